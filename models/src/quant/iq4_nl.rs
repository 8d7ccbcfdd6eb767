//! IQ4_NL: `d * VALUES[q]`. File block, 18 bytes: f16 d; 16 bytes, element j low, j + 16 high.
//!
//! Panel block, 144 bytes: d of eight rows; 4 vectors, word 2v low, 2v + 1 high.

use super::block32::{self, Block32};
use super::{ActKind, Format, GgmlType};
#[cfg(target_arch = "x86_64")]
use super::{vnni, wide32};

pub(super) const FORMAT: Format = Format {
    ty: GgmlType::IQ4_NL,
    name: "IQ4_NL",
    ggml_id: 20,
    block: 32,
    block_bytes: 18,
    act: ActKind::Q8x32,
    dequantize: block32::dequantize::<Iq4Nl>,
    pack: block32::pack::<Iq4Nl>,
    #[cfg(target_arch = "x86_64")]
    avx2_pack: None,
    unpack: block32::unpack::<Iq4Nl>,
    scalar: block32::scalar::<Iq4Nl>,
    #[cfg(target_arch = "aarch64")]
    neon: super::neon::product32::<Iq4Nl>,
    #[cfg(target_arch = "x86_64")]
    avx2: block32::product::<Iq4Nl>,
    #[cfg(target_arch = "x86_64")]
    avx2_wide: None,
    #[cfg(target_arch = "x86_64")]
    avx512: Some(vnni::product32::<Iq4Nl>),
    #[cfg(target_arch = "x86_64")]
    avx512_wide: Some(wide32::avx512::<Iq4Nl>),
};

const _: () = assert!(FORMAT.block_bytes == 2 + FORMAT.block / 2);

/// What the sixteen codes stand for.
pub(super) const VALUES: [i8; 16] =
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

struct Iq4Nl;

impl Block32 for Iq4Nl {
    const FORMAT: Format = FORMAT;
    const FACTORS: usize = 1;
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

#[cfg(target_arch = "x86_64")]
pub(super) use avx2::decode;

#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "SIMD loads by pointer")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::*;
    use crate::avx2::{high_nibbles, load, low_nibbles, table};

    /// Signed bytes of a vector of nibbles: the low ones', the high ones'.
    ///
    /// # Safety
    /// `p` is readable for a vector.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(crate) unsafe fn decode(p: *const u8) -> [__m256i; 2] {
        // SAFETY: the caller's promise.
        let v = unsafe { load(p) };
        let values = table(&VALUES);
        [_mm256_shuffle_epi8(values, low_nibbles(v)), _mm256_shuffle_epi8(values, high_nibbles(v))]
    }

    impl block32::Kernel for Iq4Nl {
        const BIAS: i16 = 128;
        const WORDS: usize = 1;

        #[inline]
        #[target_feature(enable = "avx2")]
        unsafe fn words(body: *const u8) -> [__m256i; 8] {
            let sign = _mm256_set1_epi8(-128);
            let mut codes = [sign; 8];
            for (v, codes) in codes.as_chunks_mut().0.iter_mut().enumerate() {
                // SAFETY: the caller's promise: four vectors.
                *codes = unsafe { decode(body.add(32 * v)) }.map(|w| _mm256_xor_si256(w, sign));
            }
            codes
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
            unsafe { block32::signed_block::<Self, N>(|v| decode(body.add(32 * v)), factors, acts, sums) }
        }
    }
}

#[cfg(target_arch = "aarch64")]
#[expect(unsafe_code, reason = "SIMD loads by pointer")]
mod neon {
    use std::arch::aarch64::*;

    use super::*;
    use crate::neon::{Kernel32, decode_nibbles, look_up};

    impl Kernel32 for Iq4Nl {
        #[inline]
        #[target_feature(enable = "neon")]
        unsafe fn values(body: *const u8) -> [int8x16_t; 8] {
            // SAFETY: the caller's promise.
            look_up(&VALUES, unsafe { decode_nibbles(body) })
        }
    }
}
