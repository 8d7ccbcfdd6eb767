//! Products of two panels with many columns, for formats with blocks of 32.
//!
//! Sixteen rows of up to [`BLOCKS`] blocks are decoded once into a scratch that stays in L1 (6 KiB), then meet the columns in groups of as
//! many as there are registers for: a broadcast of activations serves both panels, and codes are not decoded for every eight columns.
//! Bits are those of the panel product: the same integers, the same float step.
//!
//! With AVX2 five columns and two panels are ten 16-bit sums ([`avx2_wide`]); signed codes have none: their four operations a word and
//! column leave decoding too small a part to save. With VNNI both panels are one vector, and a block of a column is eight `vpdpbusd` and
//! three float operations, one a clock: 11 clocks for 512 multiply-adds.

#![expect(unsafe_code, reason = "SIMD loads by pointer")]

use std::arch::x86_64::*;

use super::act::{Q8X32_BYTES, Q8X32_D, Q8X32_PAIRS, Q8X32_SUM};
use super::avx2::available;
use super::block32::{self, Kernel};
use super::prefetch::prefetch_ahead;
use super::wide::{AT_A_TIME, pointers};
use super::{COLUMNS_MAX, PANEL, avx2_wide, by_columns, vnni};

/// Most blocks that are decoded at a time; of a row's, equal parts.
const BLOCKS: usize = 9;

/// One block of two panels.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(super) struct Decoded {
    /// For each word both panels' vectors.
    pub(super) codes: [[__m256i; 2]; 8],
    /// d of both panels, and m if there is one.
    pub(super) factors: [[__m256; 2]; 2],
}

/// Adds the products of blocks to the results of some columns, whose blocks begin at byte `first`.
///
/// # Safety
/// The processor has the features; the columns have those blocks, and there are as many results: no more than the tile takes.
type Tile = unsafe fn(w: &[Decoded], acts: &[*const u8], first: usize, out: &mut [[[f32; PANEL]; 2]]);

/// With AVX2, for unsigned codes.
pub(super) fn avx2<B: Kernel>(
    panels: [&[u8]; 2],
    cols: usize,
    acts: &[&[u8]],
    out: &mut [[[f32; PANEL]; 2]],
) {
    const { assert!(B::WORDS > 1, "signed codes have none") };
    assert!(available(), "no AVX2 on this processor");
    product::<B>(panels, cols, acts, out, avx2_wide::COLUMNS, avx2_wide::blocks32::<B>);
}

/// With AVX-512 VNNI.
pub(super) fn avx512<B: Kernel>(
    panels: [&[u8]; 2],
    cols: usize,
    acts: &[&[u8]],
    out: &mut [[[f32; PANEL]; 2]],
) {
    assert!(vnni::available(), "no AVX-512 VNNI on this processor");
    product::<B>(panels, cols, acts, out, COLUMNS_MAX, vnni_tile::<B>);
}

/// With a tile that takes up to `most` columns; the processor has what it needs.
fn product<B: Kernel>(
    panels: [&[u8]; 2],
    cols: usize,
    acts: &[&[u8]],
    out: &mut [[[f32; PANEL]; 2]],
    most: usize,
    tile: Tile,
) {
    assert!(acts.len() == out.len(), "one result per column");
    let count = cols / B::FORMAT.block;
    assert!(panels.iter().all(|p| p.len() == B::FORMAT.panel_bytes(cols)), "panels of {PANEL} rows");
    assert!(acts.iter().all(|a| a.len() == count * Q8X32_BYTES), "encoded columns have the row's length");
    out.fill([[0.0; PANEL]; 2]);
    // SAFETY: the processor has the features, all of which include AVX2, FMA and F16C.
    let mut decoded = unsafe { zeros() };
    let parts = count.div_ceil(BLOCKS);
    for (acts, out) in acts.chunks(AT_A_TIME).zip(out.chunks_mut(AT_A_TIME)) {
        let (n, groups, acts) = (acts.len(), acts.len().div_ceil(most), pointers(acts));
        for part in 0..parts {
            let first = count * part / parts;
            let decoded = &mut decoded[..count * (part + 1) / parts - first];
            // SAFETY: the features; blocks `first..` of the panels and columns are as many as `decoded`, at least one.
            unsafe {
                decode::<B>(panels.map(|p| p[first * PANEL * B::FORMAT.block_bytes..].as_ptr()), decoded);
                for g in 0..groups {
                    let range = n * g / groups..n * (g + 1) / groups;
                    tile(decoded, &acts[range.clone()], first * Q8X32_BYTES, &mut out[range]);
                }
            }
        }
    }
}

#[target_feature(enable = "avx2")]
fn zeros() -> [Decoded; BLOCKS] {
    let (codes, factors) = ([[_mm256_setzero_si256(); 2]; 8], [[_mm256_setzero_ps(); 2]; 2]);
    [Decoded { codes, factors }; BLOCKS]
}

/// # Safety
/// The features; the panels are readable for as many blocks as there are places.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn decode<B: Kernel>(panels: [*const u8; 2], to: &mut [Decoded]) {
    let bytes = PANEL * B::FORMAT.block_bytes;
    for (b, to) in to.iter_mut().enumerate() {
        for (panel, p) in panels.iter().enumerate() {
            // SAFETY: the caller's promise.
            unsafe {
                let p = p.add(b * bytes);
                prefetch_ahead(p, bytes);
                for (to, factor) in to.factors.iter_mut().zip(block32::factors::<B>(p)) {
                    to[panel] = factor;
                }
                for (to, codes) in to.codes.iter_mut().zip(B::words(p.add(PANEL * block32::header::<B>()))) {
                    to[panel] = codes;
                }
            }
        }
    }
}

/// See [`Tile`].
///
/// # Safety
/// As there; the features are those of [`vnni::available`].
unsafe fn vnni_tile<B: Kernel>(
    w: &[Decoded],
    acts: &[*const u8],
    first: usize,
    out: &mut [[[f32; PANEL]; 2]],
) {
    // SAFETY: the caller's promise.
    unsafe { by_columns!(acts, vnni_columns[B](w, acts, first, out)) }
}

/// [`vnni_tile`] of N columns.
///
/// # Safety
/// As there.
#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn vnni_columns<B: Kernel, const N: usize>(
    w: &[Decoded],
    acts: &[*const u8],
    first: usize,
    out: &mut [[[f32; PANEL]; 2]],
) {
    let (Ok(acts), Ok(out)) = (<&[*const u8; N]>::try_from(acts), <&mut [_; N]>::try_from(out)) else {
        unreachable!("N columns and results")
    };
    // SAFETY: the caller's promise.
    let mut acts = acts.map(|act| unsafe { act.add(first) });
    let mut totals = [_mm512_setzero_ps(); N];
    for (total, out) in totals.iter_mut().zip(&*out) {
        // SAFETY: results are sixteen values; the load may be unaligned.
        *total = unsafe { _mm512_loadu_ps(out.as_flattened().as_ptr()) };
    }
    // SAFETY: all offsets lie within an activation block; a pair of vectors is 64 bytes.
    unsafe {
        let dword = |p: *const u8| _mm512_set1_epi32(p.cast::<i32>().read_unaligned());
        let single = |p: *const u8| _mm512_set1_ps(p.cast::<f32>().read_unaligned());
        for w in w {
            let mut dots = [_mm512_setzero_si512(); N];
            if B::BIAS != 0 {
                for (x, dot) in acts.iter().zip(&mut dots) {
                    *dot = _mm512_madd_epi16(dword(x.add(Q8X32_PAIRS)), _mm512_set1_epi16(B::BIAS));
                }
            }
            for (word, codes) in w.codes.iter().enumerate() {
                let codes = _mm512_loadu_si512(codes.as_ptr().cast());
                for (x, dot) in acts.iter().zip(&mut dots) {
                    *dot = _mm512_dpbusd_epi32(*dot, codes, dword(x.add(4 * word)));
                }
            }
            let [d, m] = w.factors.each_ref().map(|pair| _mm512_loadu_ps(pair.as_ptr().cast()));
            for ((x, dot), total) in acts.iter_mut().zip(dots).zip(&mut totals) {
                let mut value = _mm512_mul_ps(_mm512_cvtepi32_ps(dot), d);
                if B::FACTORS == 2 {
                    value = _mm512_fmadd_ps(m, single(x.add(Q8X32_SUM)), value);
                }
                *total = _mm512_fmadd_ps(value, single(x.add(Q8X32_D)), *total);
                *x = x.wrapping_add(Q8X32_BYTES);
            }
        }
    }
    for (total, out) in totals.into_iter().zip(out) {
        // SAFETY: results are sixteen values; the store may be unaligned.
        unsafe { _mm512_storeu_ps(out.as_flattened_mut().as_mut_ptr(), total) };
    }
}
