//! Products of two panels with many columns, for formats with blocks of 32.
//!
//! Sixteen rows of up to [`BLOCKS`] blocks are decoded once into a scratch that stays in L1 (6 KiB), then meet the columns in groups of as
//! many as there are registers for: a broadcast of activations serves both panels, and codes are not decoded for every eight columns.
//! Bits are those of the panel product: the same integers, the same float step.
//!
//! With AVX2 four columns and two panels are eight 16-bit sums: a word is eight `vpmaddubsw` and eight `vpaddw`, 5 clocks on a Zen 4 for 256
//! multiply-adds, and a block's float step five more instructions for as many. With VNNI both panels are one vector, and
//! a block of a column is eight `vpdpbusd` and three float operations, one a clock: 11 clocks for 512 multiply-adds. With AVX2
//! signed codes have none: their four operations a word and column leave decoding too small a part to save.

#![expect(unsafe_code, reason = "SIMD loads by pointer")]

use std::arch::x86_64::*;

use super::act::{Q8X32_BYTES, Q8X32_D, Q8X32_PAIRS, Q8X32_SUM};
use super::avx2::{available, dword, hold, single};
use super::block32::{self, Kernel};
use super::prefetch::prefetch_ahead;
use super::{PANEL, vnni};

/// Most blocks that are decoded at a time; of a row's, equal parts.
const BLOCKS: usize = 9;

/// One block of two panels.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Decoded {
    /// For each word both panels' vectors.
    codes: [[__m256i; 2]; 8],
    /// d of both panels, and m if there is one.
    factors: [[__m256; 2]; 2],
}

/// Adds the products of blocks `first..` of N columns to the results.
///
/// # Safety
/// The processor has the features; N columns have those blocks, and N results.
type Tile = unsafe fn(w: &[Decoded], acts: &[&[u8]], first: usize, out: &mut [[[f32; PANEL]; 2]]);

/// With AVX2, for unsigned codes.
pub(super) fn avx2<B: Kernel>(
    panels: [&[u8]; 2],
    cols: usize,
    acts: &[&[u8]],
    out: &mut [[[f32; PANEL]; 2]],
) {
    const { assert!(B::WORDS > 1, "signed codes have none") };
    assert!(available(), "no AVX2 on this processor");
    let tiles: [Tile; 4] = [tile::<B, 1>, tile::<B, 2>, tile::<B, 3>, tile::<B, 4>];
    product::<B>(panels, cols, acts, out, &tiles);
}

/// With AVX-512 VNNI.
pub(super) fn avx512<B: Kernel>(
    panels: [&[u8]; 2],
    cols: usize,
    acts: &[&[u8]],
    out: &mut [[[f32; PANEL]; 2]],
) {
    assert!(vnni::available(), "no AVX-512 VNNI on this processor");
    let tiles: [Tile; 8] = [
        vnni_tile::<B, 1>,
        vnni_tile::<B, 2>,
        vnni_tile::<B, 3>,
        vnni_tile::<B, 4>,
        vnni_tile::<B, 5>,
        vnni_tile::<B, 6>,
        vnni_tile::<B, 7>,
        vnni_tile::<B, 8>,
    ];
    product::<B>(panels, cols, acts, out, &tiles);
}

/// `tiles[n - 1]` takes n columns; the processor has what they need.
fn product<B: Kernel>(
    panels: [&[u8]; 2],
    cols: usize,
    acts: &[&[u8]],
    out: &mut [[[f32; PANEL]; 2]],
    tiles: &[Tile],
) {
    assert!(acts.len() == out.len(), "one result per column");
    let count = cols / B::FORMAT.block;
    assert!(panels.iter().all(|p| p.len() == B::FORMAT.panel_bytes(cols)), "panels of {PANEL} rows");
    assert!(acts.iter().all(|a| a.len() == count * Q8X32_BYTES), "encoded columns have the row's length");
    out.fill([[0.0; PANEL]; 2]);
    // SAFETY: the processor has the features, all of which include AVX2, FMA and F16C.
    let mut decoded = unsafe { zeros() };
    let groups = acts.len().div_ceil(tiles.len());
    let parts = count.div_ceil(BLOCKS);
    for part in 0..parts {
        let first = count * part / parts;
        let decoded = &mut decoded[..count * (part + 1) / parts - first];
        // SAFETY: the features; blocks `first..` of the panels and columns are as many as `decoded`, for `first < count`.
        unsafe {
            decode::<B>(panels.map(|p| p[first * PANEL * B::FORMAT.block_bytes..].as_ptr()), decoded);
            for g in 0..groups {
                let range = acts.len() * g / groups..acts.len() * (g + 1) / groups;
                tiles[range.len() - 1](decoded, &acts[range.clone()], first, &mut out[range]);
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

/// Where block `first` of each column lies, and the results. As arrays: of slices the compiler gathers the pointers with masked stores,
/// which later loads have to wait for.
///
/// # Safety
/// As [`Tile`].
#[inline(always)]
unsafe fn arrays<'a, const N: usize>(
    acts: &[&[u8]],
    first: usize,
    out: &'a mut [[[f32; PANEL]; 2]],
) -> ([*const u8; N], &'a mut [[[f32; PANEL]; 2]; N]) {
    let (Ok(acts), Ok(out)) = (<&[&[u8]; N]>::try_from(acts), out.try_into()) else {
        unreachable!("N columns and results")
    };
    // SAFETY: the caller's promise.
    (acts.map(|act| unsafe { act.as_ptr().add(first * Q8X32_BYTES) }), out)
}

/// See [`Tile`].
///
/// # Safety
/// As there; the features are AVX2, FMA and F16C.
#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn tile<B: Kernel, const N: usize>(
    w: &[Decoded],
    acts: &[&[u8]],
    first: usize,
    out: &mut [[[f32; PANEL]; 2]],
) {
    // SAFETY: the caller's promise.
    let (mut acts, out) = unsafe { arrays::<N>(acts, first, out) };
    let ones = _mm256_set1_epi16(1);
    for w in w {
        let mut dots = [[_mm256_setzero_si256(); 2]; N];
        for part in 0..8 / B::WORDS {
            let mut sums = [[_mm256_setzero_si256(); 2]; N];
            if B::BIAS != 0 {
                for (x, sums) in acts.iter().zip(&mut sums) {
                    // SAFETY: the pair sums lie within an activation block.
                    let pairs = unsafe { dword(x.add(Q8X32_PAIRS)) };
                    *sums = [_mm256_mullo_epi16(pairs, _mm256_set1_epi16(B::BIAS)); 2];
                }
            }
            for word in B::WORDS * part..B::WORDS * (part + 1) {
                let [w0, w1] = w.codes[word];
                for (x, [sum0, sum1]) in acts.iter().zip(&mut sums) {
                    // SAFETY: an activation block starts with eight words.
                    let q = unsafe { dword(x.add(4 * word)) };
                    *sum0 = hold(_mm256_add_epi16(*sum0, _mm256_maddubs_epi16(w0, q)));
                    *sum1 = hold(_mm256_add_epi16(*sum1, _mm256_maddubs_epi16(w1, q)));
                }
            }
            for (dots, sums) in dots.iter_mut().zip(sums) {
                for (dot, sum) in dots.iter_mut().zip(sums) {
                    *dot = _mm256_add_epi32(*dot, _mm256_madd_epi16(sum, ones));
                }
            }
        }
        let [d, m] = w.factors;
        for ((x, dots), out) in acts.iter_mut().zip(dots).zip(&mut *out) {
            // SAFETY: both lie within an activation block.
            let (act_d, act_sum) = unsafe { (single(x.add(Q8X32_D)), single(x.add(Q8X32_SUM))) };
            for (((dot, d), m), out) in dots.into_iter().zip(d).zip(m).zip(out) {
                let mut value = _mm256_mul_ps(_mm256_cvtepi32_ps(dot), d);
                if B::FACTORS == 2 {
                    value = _mm256_fmadd_ps(m, act_sum, value);
                }
                // SAFETY: results are eight values; loads and stores may be unaligned.
                unsafe {
                    let total = _mm256_loadu_ps(out.as_ptr());
                    _mm256_storeu_ps(out.as_mut_ptr(), _mm256_fmadd_ps(value, act_d, total));
                }
            }
            *x = x.wrapping_add(Q8X32_BYTES);
        }
    }
}

/// See [`Tile`].
///
/// # Safety
/// As there; the features are those of [`vnni::available`].
#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn vnni_tile<B: Kernel, const N: usize>(
    w: &[Decoded],
    acts: &[&[u8]],
    first: usize,
    out: &mut [[[f32; PANEL]; 2]],
) {
    // SAFETY: the caller's promise.
    let (mut acts, out) = unsafe { arrays::<N>(acts, first, out) };
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
