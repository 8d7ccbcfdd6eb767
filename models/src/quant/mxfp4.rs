//! MXFP4: `2^(e - 127) * v`, v one of 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives. File block, 17 bytes: u8 e; 16 bytes,
//! element j low, j + 16 high.
//!
//! Codes stand for 2 v, an integer, so the factor is `2^(e - 128)`, for e below 2 a subnormal number. An e of 255, in
//! the OCP's definition NaN, is 2^127 here as in llama.cpp.
//!
//! Panel block, 136 bytes: e of eight rows; 4 vectors, word 2v low, 2v + 1 high.

use super::block32::{self, Block32};
use super::{ActKind, Format, GgmlType};
#[cfg(target_arch = "x86_64")]
use super::{vnni, wide32};

pub(super) const FORMAT: Format = Format {
    ty: GgmlType::MXFP4,
    name: "MXFP4",
    ggml_id: 39,
    block: 32,
    block_bytes: 17,
    act: ActKind::Q8x32,
    dequantize: block32::dequantize::<Mxfp4>,
    pack: block32::pack::<Mxfp4>,
    #[cfg(target_arch = "x86_64")]
    avx2_pack: None,
    unpack: block32::unpack::<Mxfp4>,
    scalar: block32::scalar::<Mxfp4>,
    #[cfg(target_arch = "aarch64")]
    neon: super::neon::product32::<Mxfp4>,
    #[cfg(target_arch = "x86_64")]
    avx2: block32::product::<Mxfp4>,
    #[cfg(target_arch = "x86_64")]
    avx2_wide: Some(wide32::avx2::<Mxfp4>),
    #[cfg(target_arch = "x86_64")]
    avx512: Some(vnni::product32::<Mxfp4>),
    #[cfg(target_arch = "x86_64")]
    avx512_wide: Some(wide32::avx512::<Mxfp4>),
};

const _: () = assert!(FORMAT.block_bytes == 1 + FORMAT.block / 2);

/// What the sixteen codes stand for: twice the E2M1 value.
const VALUES: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

struct Mxfp4;

impl Block32 for Mxfp4 {
    const FORMAT: Format = FORMAT;
    const FACTORS: usize = 1;
    const FACTOR_BYTES: usize = 1;
    fn factor(bytes: &[u8], at: usize) -> f32 {
        let e = u32::from(bytes[at]);
        f32::from_bits(if e < 2 { SUBNORMAL << e } else { (e - 1) << 23 })
    }
    fn value(code: u8) -> i8 {
        VALUES[usize::from(code)]
    }
    fn codes(body: &[u8]) -> [u32; 8] {
        block32::nibbles(body)
    }
    fn put_codes(codes: [u32; 8], body: &mut [u8]) {
        block32::put_nibbles(codes, body);
    }
    fn panel_codes(body: &[u8], row: usize) -> [u32; 8] {
        block32::panel_nibbles(body, row)
    }
    fn put_panel_codes(codes: [u32; 8], row: usize, body: &mut [u8]) {
        block32::put_panel_nibbles(codes, row, body);
    }
}

/// Bits of 2^-128.
const SUBNORMAL: u32 = 0x0020_0000;

#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "SIMD loads by pointer")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::*;
    use crate::avx2::table;

    /// Added to the values, so that they are no longer negative.
    const BIAS: i16 = 12;
    /// [`VALUES`] with the bias: 0 to 24.
    const BIASED: [i8; 16] = {
        let mut biased = VALUES;
        let mut i = 0;
        while i < 16 {
            biased[i] += BIAS as i8;
            i += 1;
        }
        biased
    };

    impl block32::Kernel for Mxfp4 {
        const BIAS: i16 = BIAS;
        const WORDS: usize = 8;

        #[inline]
        #[target_feature(enable = "avx2")]
        unsafe fn words(body: *const u8) -> [__m256i; 8] {
            let values = table(&BIASED);
            // SAFETY: the caller's promise.
            unsafe { block32::decode_nibbles(body) }.map(|code| _mm256_shuffle_epi8(values, code))
        }

        #[inline]
        #[target_feature(enable = "avx2,f16c")]
        unsafe fn factor_of_rows(p: *const u8) -> __m256 {
            // SAFETY: the caller's promise: eight bytes; the load may be unaligned.
            let e = _mm256_cvtepu8_epi32(unsafe { _mm_loadl_epi64(p.cast()) });
            let normal = _mm256_slli_epi32::<23>(_mm256_sub_epi32(e, _mm256_set1_epi32(1)));
            let subnormal = _mm256_sllv_epi32(_mm256_set1_epi32(SUBNORMAL.cast_signed()), e);
            let small = _mm256_cmpgt_epi32(_mm256_set1_epi32(2), e);
            _mm256_castsi256_ps(_mm256_blendv_epi8(normal, subnormal, small))
        }
    }
}

#[cfg(target_arch = "aarch64")]
#[expect(unsafe_code, reason = "SIMD loads by pointer")]
mod neon {
    use std::arch::aarch64::*;

    use super::*;
    use crate::neon::{Kernel32, decode_nibbles, look_up};

    impl Kernel32 for Mxfp4 {
        #[inline]
        #[target_feature(enable = "neon")]
        unsafe fn values(body: *const u8) -> [int8x16_t; 8] {
            // SAFETY: the caller's promise.
            look_up(&VALUES, unsafe { decode_nibbles(body) })
        }

        #[inline]
        #[target_feature(enable = "neon")]
        unsafe fn factor_of_rows(p: *const u8) -> float32x4_t {
            // SAFETY: the caller's promise: four bytes; the read may be unaligned.
            let e = unsafe { p.cast::<u32>().read_unaligned() };
            let e = vmovl_u16(vget_low_u16(vmovl_u8(vcreate_u8(e.into()))));
            let normal = vshlq_n_u32::<23>(vsubq_u32(e, vdupq_n_u32(1)));
            let subnormal = vshlq_u32(vdupq_n_u32(SUBNORMAL), vreinterpretq_s32_u32(e));
            let small = vcltq_u32(e, vdupq_n_u32(2));
            vreinterpretq_f32_u32(vbslq_u32(small, subnormal, normal))
        }
    }
}
