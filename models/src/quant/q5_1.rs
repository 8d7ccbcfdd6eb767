//! Q5_1: `d * q + m`. File block, 24 bytes: f16 d; f16 m; fifth and low bits as in Q5_0.
//!
//! Panel block, 192 bytes: d of eight rows; m of eight rows; 5 vectors as in Q5_0.

use super::block32::{self, Block32};
use super::{ActKind, Format, GgmlType, q5_0};
#[cfg(target_arch = "x86_64")]
use super::{vnni, wide32};

pub(super) const FORMAT: Format = Format {
    ty: GgmlType::Q5_1,
    name: "Q5_1",
    ggml_id: 7,
    block: 32,
    block_bytes: 24,
    act: ActKind::Q8x32,
    dequantize: block32::dequantize::<Q5_1>,
    pack: block32::pack::<Q5_1>,
    #[cfg(target_arch = "x86_64")]
    avx2_pack: None,
    unpack: block32::unpack::<Q5_1>,
    scalar: block32::scalar::<Q5_1>,
    #[cfg(target_arch = "aarch64")]
    neon: super::neon::product32::<Q5_1>,
    #[cfg(target_arch = "x86_64")]
    avx2: block32::product::<Q5_1>,
    #[cfg(target_arch = "x86_64")]
    avx2_wide: Some(wide32::avx2::<Q5_1>),
    #[cfg(target_arch = "x86_64")]
    avx512: Some(vnni::product32::<Q5_1>),
    #[cfg(target_arch = "x86_64")]
    avx512_wide: Some(wide32::avx512::<Q5_1>),
};

const _: () = assert!(FORMAT.block_bytes == 4 + 4 + FORMAT.block / 2);

struct Q5_1;

impl Block32 for Q5_1 {
    const FORMAT: Format = FORMAT;
    const FACTORS: usize = 2;
    fn value(code: u8) -> i8 {
        code.cast_signed()
    }
    fn codes(body: &[u8]) -> [u32; 8] {
        q5_0::codes(body)
    }
    fn put_codes(codes: [u32; 8], body: &mut [u8]) {
        q5_0::put_codes(codes, body);
    }
    fn panel_codes(body: &[u8], row: usize) -> [u32; 8] {
        q5_0::panel_codes(body, row)
    }
    fn put_panel_codes(codes: [u32; 8], row: usize, body: &mut [u8]) {
        q5_0::put_panel_codes(codes, row, body);
    }
}

#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "SIMD loads by pointer")]
mod avx2 {
    use std::arch::x86_64::__m256i;

    use super::*;

    impl block32::Kernel for Q5_1 {
        const BIAS: i16 = 0;
        const WORDS: usize = 4;

        #[inline]
        #[target_feature(enable = "avx2")]
        unsafe fn words(body: *const u8) -> [__m256i; 8] {
            // SAFETY: the caller's promise.
            unsafe { q5_0::decode(body) }
        }
    }
}

#[cfg(target_arch = "aarch64")]
#[expect(unsafe_code, reason = "SIMD loads by pointer")]
mod neon {
    use std::arch::aarch64::*;

    use super::*;
    use crate::neon::{Kernel32, less};

    impl Kernel32 for Q5_1 {
        #[inline]
        #[target_feature(enable = "neon")]
        unsafe fn values(body: *const u8) -> [int8x16_t; 8] {
            // SAFETY: the caller's promise.
            less(unsafe { q5_0::decode(body) }, 0)
        }
    }
}
