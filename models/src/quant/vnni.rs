//! Products with AVX-512's dot products of bytes: four products of an unsigned and a signed byte are added to a 32-bit
//! sum at once, so neither pairs nor 16-bit sums can overflow, and signed codes serve as unsigned ones with a bias of 128.
//!
//! Sums of a block are bounded as in the AVX2 kernels; on the way to them a sub-block of 32 is at most 32 * 255 * 127.
//! Vectors have 256 bits: a panel has eight rows. Panels, decoding and float steps are those of the AVX2 kernels.

#![expect(unsafe_code, reason = "SIMD loads by pointer")]

use std::arch::x86_64::*;

use super::act::{Q8X32_BYTES, Q8X32_PAIRS, Q8X256_BYTES, Q8X256_D, Q8X256_PAIRS};
use super::avx2::{self, dword, single};
use super::prefetch::{Ahead, prefetch};
use super::{PANEL, block32, block256, by_columns};

/// Whether this processor can run the kernels.
pub(super) fn available() -> bool {
    avx2::available()
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512vnni")
}

/// A panel product of a format with blocks of 32.
pub(super) fn product32<B: block32::Kernel>(
    panels: &[u8],
    cols: usize,
    acts: &[&[u8]],
    next: &[u8],
    out: &mut [[f32; PANEL]],
) {
    let count = cols / B::FORMAT.block;
    assert!(available(), "no AVX-512 VNNI on this processor");
    for (panel, next, out) in B::FORMAT.in_turn(panels, cols, acts, next, out) {
        // SAFETY: the processor has the features; `in_turn` asserted the lengths.
        unsafe { by_columns!(acts, tile32[B](panel.as_ptr(), next, count, acts, out)) }
    }
}

/// # Safety
/// The features; `p` is a panel of `count` blocks, so is each of the N `acts`; N results.
#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn tile32<B: block32::Kernel, const N: usize>(
    p: *const u8,
    next: *const u8,
    count: usize,
    acts: &[&[u8]],
    out: &mut [[f32; PANEL]],
) {
    let bytes = PANEL * B::FORMAT.block_bytes;
    let mut x = [std::ptr::null(); N];
    for (x, act) in x.iter_mut().zip(acts) {
        *x = act.as_ptr();
    }
    let mut sums = [_mm256_setzero_ps(); N];
    let ahead = Ahead::new(p, next, count, bytes);
    for b in 0..count {
        // SAFETY: b < count, which bounds the panel and every column.
        unsafe {
            let p = p.add(b * bytes);
            // A line at the end may be asked for twice, none is missed.
            prefetch(ahead.of(b), bytes);
            let factors = block32::factors::<B>(p);
            let codes = B::words(p.add(PANEL * block32::header::<B>()));
            for (act, sum) in x.iter_mut().zip(&mut sums) {
                let mut dot = _mm256_setzero_si256();
                if B::BIAS != 0 {
                    dot = _mm256_madd_epi16(dword(act.add(Q8X32_PAIRS)), _mm256_set1_epi16(B::BIAS));
                }
                for (i, &w) in codes.iter().enumerate() {
                    dot = _mm256_dpbusd_epi32(dot, w, dword(act.add(4 * i)));
                }
                *sum = block32::add::<B>(*sum, dot, factors, *act);
                *act = act.add(Q8X32_BYTES);
            }
        }
    }
    for (out, sum) in out.iter_mut().zip(sums) {
        // SAFETY: eight values; the store may be unaligned.
        unsafe { _mm256_storeu_ps(out.as_mut_ptr(), sum) };
    }
}

/// A panel product of a format with blocks of 256.
pub(super) fn product256<K: block256::Kernel>(
    panels: &[u8],
    cols: usize,
    acts: &[&[u8]],
    next: &[u8],
    out: &mut [[f32; PANEL]],
) {
    let count = cols / K::FORMAT.block;
    assert!(available(), "no AVX-512 VNNI on this processor");
    for (panel, next, out) in K::FORMAT.in_turn(panels, cols, acts, next, out) {
        // SAFETY: the processor has the features; `in_turn` asserted the lengths.
        unsafe { by_columns!(acts, tile256[K](panel.as_ptr(), next, count, acts, out)) }
    }
}

/// # Safety
/// As [`tile32`].
#[inline(never)]
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")]
unsafe fn tile256<K: block256::Kernel, const N: usize>(
    p: *const u8,
    next: *const u8,
    count: usize,
    acts: &[&[u8]],
    out: &mut [[f32; PANEL]],
) {
    let (words, bytes) = (64 / K::SUBS, PANEL * K::FORMAT.block_bytes);
    let mut x = [std::ptr::null(); N];
    for (x, act) in x.iter_mut().zip(acts) {
        *x = act.as_ptr();
    }
    let mut sums = [_mm256_setzero_ps(); N];
    let mut rest = block256::Rest::new();
    let ahead = Ahead::new(p, next, count, bytes);
    for b in 0..count {
        // SAFETY: b < count, which bounds the panel and every column.
        unsafe {
            let (p, ahead) = (p.add(b * bytes), ahead.of(b));
            prefetch(ahead, K::HEADER);
            let header = K::header(p);
            let mut isums = [_mm256_setzero_si256(); N];
            for j in 0..8 {
                let run = p.add(K::HEADER + K::RUN * j);
                prefetch(ahead.wrapping_add(K::HEADER + K::RUN * j), K::RUN);
                let codes = [K::codes(run, 0), K::codes(run, 1)];
                for (part, codes) in codes.as_flattened().chunks_exact(words).enumerate() {
                    let sub = j * K::SUBS / 8 + part;
                    let pairs = K::scales(&header, sub * words / 4);
                    let scale = _mm256_srai_epi32::<16>(pairs);
                    for (x, isum) in x.iter().zip(&mut isums) {
                        let act = x.add(b * Q8X256_BYTES);
                        let mut sum = start::<K>(act, sub);
                        for (i, &w) in codes.iter().enumerate() {
                            sum = _mm256_dpbusd_epi32(
                                sum,
                                unsigned::<K>(w),
                                dword(act.add(4 * (words * sub + i))),
                            );
                        }
                        *isum = _mm256_add_epi32(*isum, _mm256_mullo_epi32(sum, scale));
                        if K::SUMS == block256::Sums::Biased {
                            // What the codes have too much, from the sums of 16, which are times -32.
                            const { assert!(!matches!(K::SUMS, block256::Sums::Biased) || K::SUBS == 16) };
                            *isum = _mm256_dpwssd_epi32(*isum, pairs, dword(act.add(Q8X256_PAIRS + 4 * sub)));
                        }
                    }
                }
            }
            K::rest(p, &header, &mut rest);
            for ((x, isum), total) in x.iter().zip(isums).zip(&mut sums) {
                let act = x.add(b * Q8X256_BYTES);
                *total = _mm256_fmadd_ps(K::block_value(isum, &rest, act), single(act.add(Q8X256_D)), *total);
            }
        }
    }
    for (out, sum) in out.iter_mut().zip(sums) {
        // SAFETY: eight values; the store may be unaligned.
        unsafe { _mm256_storeu_ps(out.as_mut_ptr(), sum) };
    }
}

/// Codes without sign.
#[inline]
#[target_feature(enable = "avx2")]
fn unsigned<K: block256::Kernel>(w: __m256i) -> __m256i {
    match K::SUMS {
        block256::Sums::Word => _mm256_xor_si256(w, _mm256_set1_epi8(-128)),
        _ => w,
    }
}

/// What sub-block `sub`'s sum starts at: the 128 that signed codes have too much here, times the activations, from their pair
/// sums of 16, which are times -32.
///
/// # Safety
/// `act` is an activation block.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn start<K: block256::Kernel>(act: *const u8, sub: usize) -> __m256i {
    // SAFETY: the pair sums lie within the activation block.
    let pairs = |sub: usize| unsafe { dword(act.add(Q8X256_PAIRS + 4 * sub)) };
    match K::SUMS {
        block256::Sums::Run | block256::Sums::Half | block256::Sums::Biased => _mm256_setzero_si256(),
        block256::Sums::Word => {
            const { assert!(!matches!(K::SUMS, block256::Sums::Word) || K::SUBS == 8) };
            let four = _mm256_set1_epi16(4);
            let first = _mm256_madd_epi16(pairs(2 * sub), four);
            _mm256_add_epi32(first, _mm256_madd_epi16(pairs(2 * sub + 1), four))
        }
    }
}
