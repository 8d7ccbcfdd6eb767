//! Q8_0: `d * q`. File block, 34 bytes: f16 d; 32 signed bytes.
//!
//! Panel block, 272 bytes: d of eight rows; 8 vectors, one for each word.

use super::block32::{self, Block32};
use super::{ActKind, Format, GgmlType, put_word, word};
#[cfg(target_arch = "x86_64")]
use super::{vnni, wide32};

pub(super) const FORMAT: Format = Format {
    ty: GgmlType::Q8_0,
    name: "Q8_0",
    ggml_id: 8,
    block: 32,
    block_bytes: 34,
    act: ActKind::Q8x32,
    dequantize: block32::dequantize::<Q8_0>,
    pack: block32::pack::<Q8_0>,
    #[cfg(target_arch = "x86_64")]
    avx2_pack: None,
    unpack: block32::unpack::<Q8_0>,
    scalar: block32::scalar::<Q8_0>,
    #[cfg(target_arch = "aarch64")]
    neon: super::neon::product32::<Q8_0>,
    #[cfg(target_arch = "x86_64")]
    avx2: block32::product::<Q8_0>,
    #[cfg(target_arch = "x86_64")]
    avx2_wide: None,
    #[cfg(target_arch = "x86_64")]
    avx512: Some(vnni::product32::<Q8_0>),
    #[cfg(target_arch = "x86_64")]
    avx512_wide: Some(wide32::avx512::<Q8_0>),
};

const _: () = assert!(FORMAT.block_bytes == 2 + FORMAT.block);

struct Q8_0;

impl Block32 for Q8_0 {
    const FORMAT: Format = FORMAT;
    const FACTORS: usize = 1;
    fn value(code: u8) -> i8 {
        code.cast_signed()
    }
    fn codes(body: &[u8]) -> [u32; 8] {
        std::array::from_fn(|i| word(body, 4 * i))
    }
    fn put_codes(codes: [u32; 8], body: &mut [u8]) {
        for (i, code) in codes.into_iter().enumerate() {
            put_word(body, 4 * i, code);
        }
    }
    fn panel_codes(body: &[u8], row: usize) -> [u32; 8] {
        std::array::from_fn(|i| word(body, 32 * i + 4 * row))
    }
    fn put_panel_codes(codes: [u32; 8], row: usize, body: &mut [u8]) {
        for (i, code) in codes.into_iter().enumerate() {
            put_word(body, 32 * i + 4 * row, code);
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "SIMD loads by pointer")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::*;
    use crate::avx2::load;

    impl block32::Kernel for Q8_0 {
        const BIAS: i16 = 128;
        const WORDS: usize = 1;

        #[inline]
        #[target_feature(enable = "avx2")]
        unsafe fn words(body: *const u8) -> [__m256i; 8] {
            let sign = _mm256_set1_epi8(-128);
            // SAFETY: the caller's promise.
            unsafe { [0, 1, 2, 3, 4, 5, 6, 7].map(|i| load(body.add(32 * i))) }
                .map(|w| _mm256_xor_si256(w, sign))
        }

        #[inline]
        #[target_feature(enable = "avx2,fma")]
        unsafe fn block<const N: usize>(
            body: *const u8,
            factors: [__m256; 2],
            acts: &[*const u8; N],
            sums: &mut [__m256; N],
        ) {
            // SAFETY: the caller's promise, and v < 4.
            unsafe {
                block32::signed_block::<Self, N>(
                    |v| [load(body.add(64 * v)), load(body.add(64 * v + 32))],
                    factors,
                    acts,
                    sums,
                )
            }
        }
    }
}

#[cfg(target_arch = "aarch64")]
#[expect(unsafe_code, reason = "SIMD loads by pointer")]
mod neon {
    use std::arch::aarch64::*;

    use super::*;
    use crate::neon::{Kernel32, load};

    impl Kernel32 for Q8_0 {
        #[inline]
        #[target_feature(enable = "neon")]
        unsafe fn values(body: *const u8) -> [int8x16_t; 8] {
            // SAFETY: the caller's promise: eight vectors.
            unsafe { [0, 1, 2, 3, 4, 5, 6, 7].map(|i| vreinterpretq_s8_u8(load(body.add(32 * i)))) }
        }
    }
}
