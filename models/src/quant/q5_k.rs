//! Q5_K: `d * scale * q - dmin * min`, a 6-bit scale and min per 32.
//!
//! File block, 176 bytes: factors as in Q4_K, 16 bytes; fifth bits, 32 bytes, bit j of byte l for element l of sub-block j;
//! low four bits as in Q4_K, 128 bytes.
//!
//! Panel block, 1408 bytes: factors as in Q4_K, 128 bytes; for each sub-block five vectors with row r at bytes 4r..4r+4:
//! fifth bits, bit i of a byte for its place in word i; low bits, word 2v low, 2v + 1 high.

use super::block256::{self, Block256, Fields};
use super::{ActKind, Format, GgmlType, PANEL, put_word, q4_k, word};
#[cfg(target_arch = "x86_64")]
use super::{interleave, vnni, vnni_wide, wide};

pub(super) const FORMAT: Format = Format {
    ty: GgmlType::Q5_K,
    name: "Q5_K",
    ggml_id: 13,
    block: 256,
    block_bytes: 176,
    act: ActKind::Q8x256,
    dequantize: block256::dequantize::<Q5K>,
    pack: block256::pack::<Q5K>,
    #[cfg(target_arch = "x86_64")]
    avx2_pack: Some(interleave::pack::<Q5K>),
    unpack: block256::unpack::<Q5K>,
    scalar: block256::scalar::<Q5K>,
    #[cfg(target_arch = "aarch64")]
    neon: super::neon::product256::<Q5K>,
    #[cfg(target_arch = "x86_64")]
    avx2: block256::product::<Q5K>,
    #[cfg(target_arch = "x86_64")]
    avx2_wide: Some(wide::product::<Q5K, wide::Avx2>),
    #[cfg(target_arch = "x86_64")]
    avx512: Some(vnni::product256::<Q5K>),
    #[cfg(target_arch = "x86_64")]
    avx512_wide: Some(wide::product::<Q5K, vnni_wide::Vnni>),
};

/// Where a file block's fifth and low bits lie.
const QH: usize = q4_k::FACTORS;
const QS: usize = QH + 32;
const _: () = assert!(FORMAT.block_bytes == QS + 128);

/// Bytes of a sub-block's codes in a panel block.
const RUN: usize = 5 * 32;
const _: () = assert!(q4_k::PANEL_FACTORS + 8 * RUN == PANEL * FORMAT.block_bytes);

const LOW: u32 = 0x0f0f_0f0f;
const BIT: u32 = 0x0101_0101;

struct Q5K;

impl Block256 for Q5K {
    const FORMAT: Format = FORMAT;
    const SUBS: usize = 8;
    const MINS: bool = true;
    fn scale(scale: u8) -> i8 {
        scale.cast_signed()
    }
    fn value(code: u8) -> i8 {
        code.cast_signed()
    }
    fn fields(block: &[u8]) -> Fields {
        let mut codes = q4_k::group_nibbles(&block[QS..]);
        for (i, code) in codes.iter_mut().enumerate() {
            *code |= (word(block, QH + 4 * (i % 8)) >> (i / 8) & BIT) << 4;
        }
        q4_k::fields(block, codes)
    }
    fn put_fields(fields: &Fields, block: &mut [u8]) {
        q4_k::put_factors(fields, block);
        q4_k::put_group_nibbles(&fields.codes, &mut block[QS..]);
        for w in 0..8 {
            let fifths = (0..8).fold(0, |bits, j| bits | (fields.codes[8 * j + w] >> 4 & BIT) << j);
            put_word(block, QH + 4 * w, fifths);
        }
    }
    fn panel_fields(panel: &[u8], row: usize) -> Fields {
        let codes = std::array::from_fn(|i| {
            let (at, w) = (q4_k::PANEL_FACTORS + RUN * (i / 8) + 4 * row, i % 8);
            let low = word(panel, at + 32 + 32 * (w / 2)) >> (4 * (w % 2)) & LOW;
            low | (word(panel, at) >> w & BIT) << 4
        });
        q4_k::panel_fields(panel, row, codes)
    }
    fn put_panel_fields(fields: &Fields, row: usize, panel: &mut [u8]) {
        q4_k::put_panel_factors(fields, row, panel);
        for (j, codes) in fields.codes.as_chunks::<8>().0.iter().enumerate() {
            let at = q4_k::PANEL_FACTORS + RUN * j + 4 * row;
            let fifths = codes.iter().enumerate().fold(0, |bits, (w, code)| bits | (code >> 4 & BIT) << w);
            put_word(panel, at, fifths);
            for (v, [low, high]) in codes.as_chunks().0.iter().enumerate() {
                put_word(panel, at + 32 + 32 * v, low & LOW | (high & LOW) << 4);
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "SIMD loads by pointer")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::*;
    use crate::avx2::{high_nibbles, load, low_nibbles};
    use crate::block256::{Kernel, Rest, Sums, block_value_with_mins, sixes};
    use crate::interleave::{Interleave, fields, nibbles, store, words};

    impl Interleave for Q5K {
        #[inline]
        #[target_feature(enable = "avx2")]
        unsafe fn interleave(blocks: &[&[u8]; PANEL], panel: &mut [u8]) {
            q4_k::interleave_factors(blocks, panel);
            let fifths = words(blocks, QH);
            for g in 0..4 {
                let halves = nibbles(words(blocks, QS + 32 * g));
                for (j, codes) in halves.into_iter().enumerate().map(|(half, codes)| (2 * g + half, codes)) {
                    let at = q4_k::PANEL_FACTORS + RUN * j;
                    store(&[fields(&fifths, j, 1, 1)], at, panel);
                    store(&codes, at + 32, panel);
                }
            }
        }
    }

    /// Bounds: a pair of products is at most 2 * 31 * 127 and four of them 31496 (eight would overflow), so neither
    /// `maddubs` nor the 16-bit sum overflows; times a scale of 63, two a lane, sixteen of them: 63.5 million.
    impl Kernel for Q5K {
        const SUMS: Sums = Sums::Half;
        const HEADER: usize = q4_k::PANEL_FACTORS;
        type Header = [__m256i; 4];

        #[inline]
        #[target_feature(enable = "avx2")]
        unsafe fn header(p: *const u8) -> Self::Header {
            // SAFETY: the caller's promise.
            unsafe { sixes(p) }
        }

        #[inline]
        #[target_feature(enable = "avx2")]
        unsafe fn scales(header: &Self::Header, sub: usize) -> __m256i {
            q4_k::scales(header, sub)
        }

        #[inline]
        #[target_feature(enable = "avx2")]
        unsafe fn codes(run: *const u8, half: usize) -> [__m256i; 4] {
            // SAFETY: a run is five vectors.
            let (h, a, b) =
                unsafe { (load(run), load(run.add(32 + 64 * half)), load(run.add(64 + 64 * half))) };
            // Bits of the first half's words to bits 4-7, where the second half's are.
            let h = if half == 0 { _mm256_slli_epi16::<4>(h) } else { h };
            let fifth = _mm256_set1_epi8(0x10);
            // Each bit to bit 4; what crosses bytes is masked away.
            [
                _mm256_or_si256(low_nibbles(a), _mm256_and_si256(h, fifth)),
                _mm256_or_si256(high_nibbles(a), _mm256_and_si256(_mm256_srli_epi16::<1>(h), fifth)),
                _mm256_or_si256(low_nibbles(b), _mm256_and_si256(_mm256_srli_epi16::<2>(h), fifth)),
                _mm256_or_si256(high_nibbles(b), _mm256_and_si256(_mm256_srli_epi16::<3>(h), fifth)),
            ]
        }

        #[inline]
        #[target_feature(enable = "avx2,f16c")]
        unsafe fn rest(p: *const u8, header: &Self::Header, to: &mut Rest) {
            // SAFETY: the caller's promise.
            unsafe { q4_k::rest(p, header, to) }
        }

        #[inline]
        #[target_feature(enable = "avx2,fma")]
        unsafe fn block_value(isum: __m256i, rest: &Rest, act: *const u8) -> __m256 {
            // SAFETY: the caller's promise.
            unsafe { block_value_with_mins(isum, rest, act) }
        }
    }
}

#[cfg(target_arch = "aarch64")]
#[expect(unsafe_code, reason = "SIMD loads by pointer")]
mod neon {
    use std::arch::aarch64::*;

    use super::*;
    use crate::neon::{Kernel256, decode_nibbles, less, load, with_fifths};

    impl Kernel256 for Q5K {
        const HEADER: usize = q4_k::PANEL_FACTORS;
        const D: usize = q4_k::PANEL_D;
        const DMIN: usize = q4_k::PANEL_DMIN;

        #[inline]
        #[target_feature(enable = "neon")]
        unsafe fn scales(p: *const u8, half: usize) -> [int8x16_t; 4] {
            // SAFETY: the caller's promise.
            unsafe { q4_k::scales(p, half) }
        }

        #[inline]
        #[target_feature(enable = "neon")]
        unsafe fn mins(p: *const u8, half: usize) -> [int8x16_t; 4] {
            // SAFETY: the caller's promise.
            unsafe { q4_k::mins(p, half) }
        }

        #[inline]
        #[target_feature(enable = "neon")]
        unsafe fn values(run: *const u8) -> [int8x16_t; 8] {
            // SAFETY: a run is five vectors.
            less(unsafe { with_fifths(decode_nibbles(run.add(32)), load(run)) }, 0)
        }
    }
}
