//! The tile of wide products with AVX-512's dot products of bytes on vectors of 512 bits: both panels' words fill one.
//!
//! A word takes one load of weights and one `vpdpbusd` a column, which broadcasts the activations itself. What bounds it are
//! the multipliers, one such operation a clock: of a column's block the 64 words, a product with the scale per sub-block
//! (8 or 16), the bias (Q6_K, Q3_K: 16; IQ4_XS: 4), the mins (Q4_K, Q5_K: 4) and two or three in the float step. So the words
//! are 81 % of Q4_K's and 65 % of Q6_K's. Eight columns hide the latencies; with more, their pointers exceed the general
//! registers, and what that costs was measured as more than the loads it saves.

#![expect(unsafe_code, reason = "SIMD loads by pointer")]

use std::arch::x86_64::*;

use super::act::{Q8X256_BYTES, Q8X256_D, Q8X256_PAIRS, Q8X256_SUMS};
use super::block256::{Kernel, Sums};
use super::vnni::available;
use super::wide::{Decoded, Tile};
use super::{PANEL, by_columns};

/// The tile.
pub(super) struct Vnni;

impl Tile for Vnni {
    const COLUMNS: usize = 8;

    fn available() -> bool {
        available()
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
    unsafe fn tile<K: Kernel>(w: &Decoded, acts: &[*const u8], b: usize, out: &mut [[[f32; PANEL]; 2]]) {
        // SAFETY: the caller's promise.
        unsafe { by_columns!(acts, tile[K](w, acts, b, out)) }
    }
}

/// Both panels' vectors.
#[inline]
#[target_feature(enable = "avx512f")]
fn both(pair: &[__m256i; 2]) -> __m512i {
    // SAFETY: 64 bytes are readable.
    unsafe { _mm512_loadu_si512(pair.as_ptr().cast()) }
}

/// Four bytes from `p` in all sixteen lanes.
///
/// # Safety
/// `p` is readable for 4 bytes.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn dword(p: *const u8) -> __m512i {
    // SAFETY: the caller's promise; the read may be unaligned.
    _mm512_set1_epi32(unsafe { p.cast::<i32>().read_unaligned() })
}

/// # Safety
/// As [`Tile::tile`], with N columns.
#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn tile<K: Kernel, const N: usize>(
    w: &Decoded,
    acts: &[*const u8],
    b: usize,
    out: &mut [[[f32; PANEL]; 2]],
) {
    let (Ok(acts), Ok(out)) = (<&[*const u8; N]>::try_from(acts), <&mut [_; N]>::try_from(out)) else {
        unreachable!("N columns and results")
    };
    let words = 64 / K::SUBS;
    // SAFETY: the caller's promise.
    let acts = acts.map(|act| unsafe { act.add(b * Q8X256_BYTES) });
    let mut isums = [_mm512_setzero_si512(); N];
    // SAFETY: all offsets lie within an activation block.
    unsafe {
        for sub in 0..K::SUBS {
            let mut sums = [_mm512_setzero_si512(); N];
            for word in words * sub..words * (sub + 1) {
                let mut codes = both(&w.codes[word]);
                if K::SUMS == Sums::Word {
                    codes = _mm512_xor_si512(codes, _mm512_set1_epi8(-128));
                }
                for (x, sum) in acts.iter().zip(&mut sums) {
                    *sum = _mm512_dpbusd_epi32(*sum, codes, dword(x.add(4 * word)));
                }
            }
            let pairs = both(&w.scales[sub * words / 4]);
            let scale = _mm512_srai_epi32::<16>(pairs);
            for ((x, isum), sum) in acts.iter().zip(&mut isums).zip(sums) {
                *isum = _mm512_add_epi32(*isum, _mm512_mullo_epi32(sum, scale));
                if K::SUMS == Sums::Biased {
                    // What the codes have too much, from the sums of 16, which are times -32.
                    const { assert!(!matches!(K::SUMS, Sums::Biased) || K::SUBS == 16) };
                    *isum = _mm512_dpwssd_epi32(*isum, pairs, dword(x.add(Q8X256_PAIRS + 4 * sub)));
                }
            }
        }
        if K::SUMS == Sums::Word {
            // 128 too much, times the sums of 32, two sub-blocks at a time.
            const { assert!(!matches!(K::SUMS, Sums::Word) || K::SUBS == 8) };
            for i in 0..4 {
                let [first, second] = [4 * i, 4 * i + 2].map(|sub| both(&w.scales[sub]));
                let pairs = _mm512_mask_blend_epi16(0xaaaa_aaaa, first, second);
                for (x, isum) in acts.iter().zip(&mut isums) {
                    let excess = _mm512_madd_epi16(pairs, dword(x.add(Q8X256_SUMS + 4 * i)));
                    *isum = _mm512_sub_epi32(*isum, _mm512_slli_epi32::<7>(excess));
                }
            }
        }
        finish::<K, N>(w, acts, isums, out);
    }
}

/// Adds the block's values, times the activations' d, to `out`: the float step of [`Kernel::block_value`] on both panels.
///
/// # Safety
/// The features; `acts` are activation blocks.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn finish<K: Kernel, const N: usize>(
    w: &Decoded,
    acts: [*const u8; N],
    isums: [__m512i; N],
    out: &mut [[[f32; PANEL]; 2]; N],
) {
    const { assert!(!K::MINS || K::SUBS == 8, "mins of sub-blocks of 32, in pairs") };
    let [first, second] = &w.rest;
    let d = both_singles(first.d, second.d);
    let dmin = both_singles(first.dmin, second.dmin);
    let mins: [__m512i; 4] = std::array::from_fn(|i| both(&[first.mins[i], second.mins[i]]));
    for ((x, isum), out) in acts.into_iter().zip(isums).zip(out) {
        let mut value = _mm512_mul_ps(_mm512_cvtepi32_ps(isum), d);
        // SAFETY: the caller's promise; results are sixteen values, loads and stores may be unaligned.
        unsafe {
            if K::MINS {
                let mut msum = _mm512_setzero_si512();
                for (i, &min) in mins.iter().enumerate() {
                    msum = _mm512_dpwssd_epi32(msum, min, dword(x.add(Q8X256_SUMS + 4 * i)));
                }
                value = _mm512_fnmadd_ps(_mm512_cvtepi32_ps(msum), dmin, value);
            }
            let act_d = _mm512_castsi512_ps(dword(x.add(Q8X256_D)));
            let out = out.as_flattened_mut().as_mut_ptr();
            _mm512_storeu_ps(out, _mm512_fmadd_ps(value, act_d, _mm512_loadu_ps(out)));
        }
    }
}

/// Both panels' factors.
#[inline]
#[target_feature(enable = "avx512f")]
fn both_singles(first: __m256, second: __m256) -> __m512 {
    let [first, second] = [first, second].map(|v| _mm256_castps_pd(v));
    _mm512_castpd_ps(_mm512_insertf64x4::<1>(_mm512_castpd256_pd512(first), second))
}
