//! Products of two panels with many columns, for formats with blocks of 256 and unsigned codes.
//!
//! Sixteen rows of one block are decoded once into a scratch that stays in L1, then meet the columns in groups of as many
//! as there are registers for: a broadcast of activations serves two panels. The results between blocks are
//! kept in `out`. Bits are those of the panel product: the same integers, the same float step ([`Kernel::block_value`]).
//!
//! With AVX2 signed codes have none: their four operations a word and column leave decoding too small a part to save. Nor has Q2_K,
//! whose codes decode at once, while its sixteen mins a row do not stay in registers.

#![expect(unsafe_code, reason = "SIMD loads by pointer")]

use std::arch::x86_64::*;

use super::act::{Q8X256_BYTES, Q8X256_D};
use super::avx2::{available, single};
use super::block256::{Kernel, Rest, Sums};
use super::prefetch::prefetch_ahead;
use super::{PANEL, avx2_wide};

/// Most columns that meet a decoded block.
pub(super) const AT_A_TIME: usize = 64;

/// One block of two panels.
#[repr(align(64))]
pub(super) struct Decoded {
    /// For each word of the block both panels' vectors.
    pub(super) codes: [[__m256i; 2]; 64],
    /// [`Kernel::scales`] of each sub-block of 16; of every other one where a sum takes 32.
    pub(super) scales: [[__m256i; 2]; 16],
    /// Factors of the float step.
    pub(super) rest: [Rest; 2],
}

/// How decoded weights meet a group of columns.
pub(super) trait Tile {
    /// Most columns of a group: their sums fill the registers.
    const COLUMNS: usize;

    /// Whether this processor can run it.
    fn available() -> bool;

    /// Adds the products of block b of the columns to `out`.
    ///
    /// # Safety
    /// The processor can run it; the columns, at least one and at most [`Tile::COLUMNS`], have a block b; as many results.
    unsafe fn tile<K: Kernel>(w: &Decoded, acts: &[*const u8], b: usize, out: &mut [[[f32; PANEL]; 2]]);
}

pub(super) fn product<K: Kernel, T: Tile>(
    panels: [&[u8]; 2],
    cols: usize,
    acts: &[&[u8]],
    out: &mut [[[f32; PANEL]; 2]],
) {
    assert!(available() && T::available(), "this processor lacks the instructions");
    assert!(acts.len() == out.len(), "one result per column");
    let count = cols / K::FORMAT.block;
    assert!(panels.iter().all(|p| p.len() == K::FORMAT.panel_bytes(cols)), "panels of {PANEL} rows");
    assert!(acts.iter().all(|a| a.len() == count * Q8X256_BYTES), "encoded columns have the row's length");
    out.fill([[0.0; PANEL]; 2]);
    for (acts, out) in acts.chunks(AT_A_TIME).zip(out.chunks_mut(AT_A_TIME)) {
        let acts = pointers(acts);
        // SAFETY: the processor has the features, and the lengths are asserted.
        unsafe { blocks::<K, T>(panels.map(<[u8]>::as_ptr), count, &acts[..out.len()], out) }
    }
}

/// Where columns begin, up to [`AT_A_TIME`].
pub(super) fn pointers(acts: &[&[u8]]) -> [*const u8; AT_A_TIME] {
    let mut pointers = [std::ptr::null(); AT_A_TIME];
    for (pointer, act) in pointers.iter_mut().zip(acts) {
        *pointer = act.as_ptr();
    }
    pointers
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn blocks<K: Kernel, T: Tile>(
    panels: [*const u8; 2],
    count: usize,
    acts: &[*const u8],
    out: &mut [[[f32; PANEL]; 2]],
) {
    let zero = [_mm256_setzero_si256(); 2];
    let mut decoded = Decoded { codes: [zero; 64], scales: [zero; 16], rest: [Rest::new(); 2] };
    let groups = acts.len().div_ceil(T::COLUMNS);
    for b in 0..count {
        // SAFETY: b < count, which bounds the panels and every column.
        unsafe {
            for (panel, p) in panels.iter().enumerate() {
                decode::<K>(p.add(b * PANEL * K::FORMAT.block_bytes), panel, &mut decoded);
            }
            for g in 0..groups {
                let range = acts.len() * g / groups..acts.len() * (g + 1) / groups;
                T::tile::<K>(&decoded, &acts[range.clone()], b, &mut out[range]);
            }
        }
    }
}

/// Decodes a panel's block into place `panel`.
///
/// # Safety
/// The features; `p` is readable for the block.
#[inline]
#[target_feature(enable = "avx2,f16c")]
unsafe fn decode<K: Kernel>(p: *const u8, panel: usize, to: &mut Decoded) {
    // SAFETY: the caller's promise.
    unsafe {
        prefetch_ahead(p, K::HEADER);
        let header = K::header(p);
        K::rest(p, &header, &mut to.rest[panel]);
        for j in 0..8 {
            let run = p.add(K::HEADER + K::RUN * j);
            prefetch_ahead(run, K::RUN);
            for half in 0..2 {
                let sub = 2 * j + half;
                if half == 0 || K::SUMS != Sums::Run {
                    to.scales[sub][panel] = K::scales(&header, sub);
                }
                for (to, code) in to.codes[4 * sub..4 * sub + 4].iter_mut().zip(K::codes(run, half)) {
                    to[panel] = code;
                }
            }
        }
    }
}

/// Adds the block's values, times the activations' d, to `out`.
///
/// # Safety
/// AVX2 and FMA; the columns have an activation block from byte `first` on; as many results.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn finish<K: Kernel>(
    w: &Decoded,
    acts: &[*const u8],
    first: usize,
    isums: &[[__m256i; 2]],
    out: &mut [[[f32; PANEL]; 2]],
) {
    for ((x, isums), out) in acts.iter().zip(isums).zip(out) {
        // SAFETY: the caller's promise; results are eight values, loads and stores may be unaligned.
        unsafe {
            let x = x.add(first);
            let d = single(x.add(Q8X256_D));
            for ((isum, rest), out) in isums.iter().zip(&w.rest).zip(out) {
                let total = _mm256_loadu_ps(out.as_ptr());
                let total = _mm256_fmadd_ps(K::block_value(*isum, rest, x), d, total);
                _mm256_storeu_ps(out.as_mut_ptr(), total);
            }
        }
    }
}

/// The tile with AVX2, for unsigned codes.
pub(super) struct Avx2;

impl Tile for Avx2 {
    const COLUMNS: usize = avx2_wide::COLUMNS;

    fn available() -> bool {
        available()
    }

    #[inline(never)]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn tile<K: Kernel>(w: &Decoded, acts: &[*const u8], b: usize, out: &mut [[[f32; PANEL]; 2]]) {
        const { assert!(!matches!(K::SUMS, Sums::Word)) };
        let (first, mut isums) = (b * Q8X256_BYTES, [[_mm256_setzero_si256(); 2]; avx2_wide::COLUMNS]);
        // SAFETY: the caller's promise.
        unsafe {
            avx2_wide::block256(K::SUMS, w, acts, first, &mut isums);
            finish::<K>(w, acts, first, &isums, out);
        }
    }
}
