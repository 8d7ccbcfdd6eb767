//! Products of two panels with many columns, for formats with blocks of 256.
//!
//! Sixteen rows of one block are decoded once into a scratch that stays in L1, then meet the columns six at a time:
//! a broadcast of activations serves two panels, and twelve sums fill the registers. The results between blocks are
//! kept in `out`. Bits are those of the panel product: the same integers, the same float step ([`Wide::value`]).

#![expect(unsafe_code, reason = "SIMD loads by pointer")]

use std::arch::x86_64::*;

use super::act::{Q8X256_BYTES, Q8X256_D, Q8X256_PAIRS};
use super::avx2::{available, dword, single};
use super::{Format, PANEL};

/// Columns whose sums fill the registers.
const COLUMNS: usize = 6;

/// One block of two panels.
pub(super) struct Decoded {
    /// Unsigned codes: for each word of the block both panels' vectors.
    pub(super) codes: [[__m256i; 2]; 64],
    /// Each row's scale twice, as 16-bit values, for each of [`Wide::SUBS`] sub-blocks.
    pub(super) scales: [[__m256i; 2]; 16],
    /// Factors of the float step.
    pub(super) rest: [Rest; 2],
}

/// What [`Wide::value`] needs of one panel's block.
#[derive(Clone, Copy)]
pub(super) struct Rest {
    /// d of eight rows.
    pub(super) d: __m256,
    /// dmin of eight rows.
    pub(super) dmin: __m256,
    /// Mins of sub-blocks 2i and 2i + 1 as pairs.
    pub(super) mins: [__m256i; 4],
}

/// A format with blocks of 256 whose codes are unsigned.
pub(super) trait Wide {
    /// Its row of the table.
    const FORMAT: Format;
    /// Sub-blocks with a scale of their own.
    const SUBS: usize;
    /// Whether the 16-bit sums start at the pair sums of 16.
    const BIASED: bool;
    /// Decodes a panel's block into place `panel`.
    ///
    /// # Safety
    /// AVX2 and F16C; `p` is readable for the block.
    unsafe fn decode(p: *const u8, panel: usize, to: &mut Decoded);
    /// The block's value before the activations' d.
    ///
    /// # Safety
    /// AVX2 and FMA; `act` is an activation block.
    unsafe fn value(isum: __m256i, rest: &Rest, act: *const u8) -> __m256;
}

pub(super) fn product<W: Wide>(
    panels: [&[u8]; 2],
    cols: usize,
    acts: &[&[u8]],
    out: &mut [[[f32; PANEL]; 2]],
) {
    assert!(available(), "no AVX2 on this processor");
    assert!(acts.len() == out.len(), "one result per column");
    let count = cols / W::FORMAT.block;
    for panel in panels {
        W::FORMAT.check(panel, cols, &[], &[]);
    }
    assert!(acts.iter().all(|a| a.len() == count * Q8X256_BYTES), "encoded columns have the row's length");
    out.fill([[0.0; PANEL]; 2]);
    // SAFETY: the processor has the features, and the lengths are asserted.
    unsafe { blocks::<W>(panels.map(<[u8]>::as_ptr), count, acts, out) }
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn blocks<W: Wide>(
    panels: [*const u8; 2],
    count: usize,
    acts: &[&[u8]],
    out: &mut [[[f32; PANEL]; 2]],
) {
    let zero = _mm256_setzero_si256();
    let none = Rest { d: _mm256_setzero_ps(), dmin: _mm256_setzero_ps(), mins: [zero; 4] };
    let mut decoded = Decoded { codes: [[zero; 2]; 64], scales: [[zero; 2]; 16], rest: [none; 2] };
    let groups = acts.len().div_ceil(COLUMNS);
    for b in 0..count {
        // SAFETY: b < count, which bounds the panels and every column.
        unsafe {
            for (panel, p) in panels.iter().enumerate() {
                W::decode(p.add(b * PANEL * W::FORMAT.block_bytes), panel, &mut decoded);
            }
            for g in 0..groups {
                let range = acts.len() * g / groups..acts.len() * (g + 1) / groups;
                let (acts, out) = (&acts[range.clone()], &mut out[range]);
                match acts.len() {
                    1 => tile::<W, 1>(&decoded, acts, b, out),
                    2 => tile::<W, 2>(&decoded, acts, b, out),
                    3 => tile::<W, 3>(&decoded, acts, b, out),
                    4 => tile::<W, 4>(&decoded, acts, b, out),
                    5 => tile::<W, 5>(&decoded, acts, b, out),
                    _ => tile::<W, 6>(&decoded, acts, b, out),
                }
            }
        }
    }
}

/// # Safety
/// The features; the N columns have a block b.
#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn tile<W: Wide, const N: usize>(
    w: &Decoded,
    acts: &[&[u8]],
    b: usize,
    out: &mut [[[f32; PANEL]; 2]],
) {
    let words = 64 / W::SUBS;
    let mut x = [std::ptr::null(); N];
    for (x, act) in x.iter_mut().zip(acts) {
        // SAFETY: the caller's promise.
        *x = unsafe { act.as_ptr().add(b * Q8X256_BYTES) };
    }
    let mut isums = [[_mm256_setzero_si256(); 2]; N];
    // SAFETY: all offsets lie within an activation block.
    unsafe {
        for sub in 0..W::SUBS {
            let mut sums = [[_mm256_setzero_si256(); 2]; N];
            if W::BIASED {
                for (x, sums) in x.iter().zip(&mut sums) {
                    *sums = [dword(x.add(Q8X256_PAIRS + 4 * sub)); 2];
                }
            }
            for i in 0..words {
                let word = words * sub + i;
                let [w0, w1] = w.codes[word];
                for (x, [sum0, sum1]) in x.iter().zip(&mut sums) {
                    let q = dword(x.add(4 * word));
                    *sum0 = _mm256_add_epi16(*sum0, _mm256_maddubs_epi16(w0, q));
                    *sum1 = _mm256_add_epi16(*sum1, _mm256_maddubs_epi16(w1, q));
                }
            }
            let [s0, s1] = w.scales[sub];
            for ([isum0, isum1], [sum0, sum1]) in isums.iter_mut().zip(sums) {
                *isum0 = _mm256_add_epi32(*isum0, _mm256_madd_epi16(sum0, s0));
                *isum1 = _mm256_add_epi32(*isum1, _mm256_madd_epi16(sum1, s1));
            }
        }
        for ((x, isums), out) in x.iter().zip(isums).zip(out) {
            let d = single(x.add(Q8X256_D));
            for ((isum, rest), out) in isums.iter().zip(&w.rest).zip(out) {
                let total = _mm256_loadu_ps(out.as_ptr());
                let total = _mm256_fmadd_ps(W::value(*isum, rest, *x), d, total);
                _mm256_storeu_ps(out.as_mut_ptr(), total);
            }
        }
    }
}
