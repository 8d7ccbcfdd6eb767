//! Q5_0: `d * (q - 16)`. File block, 22 bytes: f16 d; u32 of fifth bits, bit j of element j; 16 bytes of low
//! four bits, element j low, j + 16 high.
//!
//! Panel block, 176 bytes: d of eight rows; 4 vectors of low bits, word 2v low, 2v + 1 high; 1 vector of fifth
//! bits, bit i of a byte for its place in word i.

use super::block32::{self, Block32};
use super::{ActKind, Format, GgmlType, put_word, word};
#[cfg(target_arch = "x86_64")]
use super::{vnni, wide32};

pub(super) const FORMAT: Format = Format {
    ty: GgmlType::Q5_0,
    name: "Q5_0",
    ggml_id: 6,
    block: 32,
    block_bytes: 22,
    act: ActKind::Q8x32,
    dequantize: block32::dequantize::<Q5_0>,
    pack: block32::pack::<Q5_0>,
    #[cfg(target_arch = "x86_64")]
    avx2_pack: None,
    unpack: block32::unpack::<Q5_0>,
    scalar: block32::scalar::<Q5_0>,
    #[cfg(target_arch = "aarch64")]
    neon: super::neon::product32::<Q5_0>,
    #[cfg(target_arch = "x86_64")]
    avx2: block32::product::<Q5_0>,
    #[cfg(target_arch = "x86_64")]
    avx2_wide: Some(wide32::avx2::<Q5_0>),
    #[cfg(target_arch = "x86_64")]
    avx512: Some(vnni::product32::<Q5_0>),
    #[cfg(target_arch = "x86_64")]
    avx512_wide: Some(wide32::avx512::<Q5_0>),
};

const _: () = assert!(FORMAT.block_bytes == 2 + 4 + FORMAT.block / 2);

/// Low four bits of each code; the fifth is [`FIFTH`].
const LOW: u32 = 0x0f0f_0f0f;
/// See [`LOW`].
const FIFTH: u32 = 0x1010_1010;
/// Where a panel's fifth bits lie in its body.
const FIFTHS: usize = 4 * 32;

struct Q5_0;

impl Block32 for Q5_0 {
    const FORMAT: Format = FORMAT;
    const FACTORS: usize = 1;
    fn value(code: u8) -> i8 {
        code.cast_signed() - 16
    }
    fn codes(body: &[u8]) -> [u32; 8] {
        codes(body)
    }
    fn put_codes(codes: [u32; 8], body: &mut [u8]) {
        put_codes(codes, body);
    }
    fn panel_codes(body: &[u8], row: usize) -> [u32; 8] {
        panel_codes(body, row)
    }
    fn put_panel_codes(codes: [u32; 8], row: usize, body: &mut [u8]) {
        put_panel_codes(codes, row, body);
    }
}

/// Codes of fifth bits and nibbles.
pub(super) fn codes(body: &[u8]) -> [u32; 8] {
    let fifths = word(body, 0);
    let mut codes = block32::nibbles(&body[4..]);
    for (i, code) in codes.iter_mut().enumerate() {
        // Bits j..j+4 to bit 4 of bytes 0..4.
        let four = (fifths >> (4 * i)) & 15;
        *code |= (four << 4 | four << 11 | four << 18 | four << 25) & FIFTH;
    }
    codes
}

/// The inverse of [`codes`].
pub(super) fn put_codes(codes: [u32; 8], body: &mut [u8]) {
    let mut fifths = 0;
    for (i, code) in codes.iter().enumerate() {
        let bits = code & FIFTH;
        fifths |= ((bits >> 4 | bits >> 11 | bits >> 18 | bits >> 25) & 15) << (4 * i);
    }
    put_word(body, 0, fifths);
    block32::put_nibbles(codes.map(|c| c & LOW), &mut body[4..]);
}

/// Codes of a row of a panel's body.
pub(super) fn panel_codes(body: &[u8], row: usize) -> [u32; 8] {
    let fifths = word(body, FIFTHS + 4 * row);
    let mut codes = block32::panel_nibbles(body, row);
    for (i, code) in codes.iter_mut().enumerate() {
        *code |= (fifths >> i & 0x0101_0101) << 4;
    }
    codes
}

/// The inverse of [`panel_codes`].
pub(super) fn put_panel_codes(codes: [u32; 8], row: usize, body: &mut [u8]) {
    let fifths = codes.iter().enumerate().fold(0, |bits, (i, code)| bits | (code & FIFTH) >> 4 << i);
    put_word(body, FIFTHS + 4 * row, fifths);
    block32::put_panel_nibbles(codes.map(|c| c & LOW), row, body);
}

#[cfg(target_arch = "x86_64")]
pub(super) use avx2::decode;

#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "SIMD loads by pointer")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::*;
    use crate::avx2::load;

    /// Codes of four vectors of nibbles and one of fifth bits.
    ///
    /// # Safety
    /// `body` is readable for them.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(crate) unsafe fn decode(body: *const u8) -> [__m256i; 8] {
        // SAFETY: the caller's promise.
        let (mut codes, h) = unsafe { (block32::decode_nibbles(body), load(body.add(FIFTHS))) };
        let fifth = _mm256_set1_epi8(0x10);
        // Bit i of each byte to bit 4; what crosses bytes is masked away.
        let shifted = [
            _mm256_slli_epi16::<4>(h),
            _mm256_slli_epi16::<3>(h),
            _mm256_slli_epi16::<2>(h),
            _mm256_slli_epi16::<1>(h),
            h,
            _mm256_srli_epi16::<1>(h),
            _mm256_srli_epi16::<2>(h),
            _mm256_srli_epi16::<3>(h),
        ];
        for (code, bit) in codes.iter_mut().zip(shifted) {
            *code = _mm256_or_si256(*code, _mm256_and_si256(bit, fifth));
        }
        codes
    }

    impl block32::Kernel for Q5_0 {
        const BIAS: i16 = 16;
        const WORDS: usize = 8;

        #[inline]
        #[target_feature(enable = "avx2")]
        unsafe fn words(body: *const u8) -> [__m256i; 8] {
            // SAFETY: the caller's promise.
            unsafe { decode(body) }
        }
    }
}

#[cfg(target_arch = "aarch64")]
pub(super) use neon::decode;

#[cfg(target_arch = "aarch64")]
#[expect(unsafe_code, reason = "SIMD loads by pointer")]
mod neon {
    use std::arch::aarch64::*;

    use super::*;
    use crate::neon::{Kernel32, decode_nibbles, less, load, with_fifths};

    /// Codes of four rows in four vectors of nibbles and one of fifth bits.
    ///
    /// # Safety
    /// `body` is readable for four rows of them.
    #[inline]
    #[target_feature(enable = "neon")]
    pub(crate) unsafe fn decode(body: *const u8) -> [uint8x16_t; 8] {
        // SAFETY: the caller's promise.
        unsafe { with_fifths(decode_nibbles(body), load(body.add(FIFTHS))) }
    }

    impl Kernel32 for Q5_0 {
        #[inline]
        #[target_feature(enable = "neon")]
        unsafe fn values(body: *const u8) -> [int8x16_t; 8] {
            // SAFETY: the caller's promise.
            less(unsafe { decode(body) }, 16)
        }
    }
}
