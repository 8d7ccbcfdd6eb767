//! What the AVX2 kernels share.

#![expect(unsafe_code, reason = "SIMD loads by pointer")]

use std::arch::x86_64::*;

/// Whether this processor can run the kernels.
pub(super) fn available() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
}

/// 32 bytes from `p`.
///
/// # Safety
/// `p` is readable for 32 bytes.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) unsafe fn load(p: *const u8) -> __m256i {
    // SAFETY: the caller's promise; the load may be unaligned.
    unsafe { _mm256_loadu_si256(p.cast()) }
}

/// Four bytes from `p` in all eight lanes.
///
/// # Safety
/// `p` is readable for 4 bytes.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) unsafe fn dword(p: *const u8) -> __m256i {
    // SAFETY: the caller's promise; the read may be unaligned.
    _mm256_set1_epi32(unsafe { p.cast::<i32>().read_unaligned() })
}

/// A single-precision value from `p` in all eight lanes.
///
/// # Safety
/// `p` is readable for 4 bytes.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) unsafe fn single(p: *const u8) -> __m256 {
    // SAFETY: the caller's promise; the read may be unaligned.
    _mm256_set1_ps(unsafe { p.cast::<f32>().read_unaligned() })
}

/// Eight half-precision values from `p`.
///
/// # Safety
/// `p` is readable for 16 bytes.
#[inline]
#[target_feature(enable = "avx2,f16c")]
pub(super) unsafe fn halves(p: *const u8) -> __m256 {
    // SAFETY: the caller's promise; the load may be unaligned.
    _mm256_cvtph_ps(unsafe { _mm_loadu_si128(p.cast()) })
}

/// Low four bits of each byte.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn low_nibbles(v: __m256i) -> __m256i {
    _mm256_and_si256(v, _mm256_set1_epi8(15))
}

/// High four bits of each byte.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn high_nibbles(v: __m256i) -> __m256i {
    low_nibbles(_mm256_srli_epi16::<4>(v))
}

/// Sixteen bytes in both halves: a table for `pshufb`.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn table(values: &[i8; 16]) -> __m256i {
    // SAFETY: sixteen bytes are readable; the load may be unaligned.
    _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(values.as_ptr().cast()) })
}

/// Adds the products of words of unsigned codes with each column's, from byte `at` on, in pairs to its 16-bit sums: the caller sees to
/// it that none overflows.
///
/// A word meets all columns before the next: a vector of codes is then read once, where a column at a time reads each again for each
/// column, and two reads a clock are what bounds it.
///
/// # Safety
/// Each of `acts` is readable for as many words from `at` on.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) unsafe fn add_products<const N: usize>(
    codes: &[__m256i],
    at: usize,
    acts: &[*const u8; N],
    mut sums: [__m256i; N],
) -> [__m256i; N] {
    for (i, &w) in codes.iter().enumerate() {
        for (act, sum) in acts.iter().zip(&mut sums) {
            // SAFETY: the caller's promise.
            let q = unsafe { dword(act.add(at + 4 * i)) };
            *sum = hold(_mm256_add_epi16(*sum, _mm256_maddubs_epi16(w, q)));
        }
    }
    sums
}

/// The same, in a register: the compiler may not regroup sums across it. Left to itself it adds in trees, whose parts
/// then do not stay in registers.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn hold(mut v: __m256i) -> __m256i {
    // SAFETY: no instruction.
    unsafe { std::arch::asm!("/* {0} */", inout(ymm_reg) v, options(pure, nomem, nostack, preserves_flags)) };
    v
}
