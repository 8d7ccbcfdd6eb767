//! Q6_K: `d * scale * (q - 32)`, a signed 8-bit scale per 16.
//!
//! File block, 210 bytes: low four bits, 128 bytes; upper two bits, 64 bytes; i8 scales[16]; f16 d. Halves of 128
//! have 64 and 32 of those bytes: see [`codes`].
//!
//! Panel block, 1680 bytes: scales, 4 vectors placed as in [`place`]; d of eight rows; for each sub-block of 16 three
//! vectors with row r at bytes 4r..4r+4: low bits of word 0 low and word 1 high, of word 2 low and word 3 high, upper bits
//! of words 0-3 from the lowest bits up.

use super::block256::{self, Block256, Fields, place};
use super::{ActKind, Format, GgmlType, PANEL, put_word, word};
#[cfg(target_arch = "x86_64")]
use super::{interleave, vnni, vnni_wide, wide};

pub(super) const FORMAT: Format = Format {
    ty: GgmlType::Q6_K,
    name: "Q6_K",
    ggml_id: 14,
    block: 256,
    block_bytes: 210,
    act: ActKind::Q8x256,
    dequantize: block256::dequantize::<Q6K>,
    pack: block256::pack::<Q6K>,
    #[cfg(target_arch = "x86_64")]
    avx2_pack: Some(interleave::pack::<Q6K>),
    unpack: block256::unpack::<Q6K>,
    scalar: block256::scalar::<Q6K>,
    #[cfg(target_arch = "aarch64")]
    neon: super::neon::product256::<Q6K>,
    #[cfg(target_arch = "x86_64")]
    avx2: block256::product::<Q6K>,
    #[cfg(target_arch = "x86_64")]
    avx2_wide: Some(wide::product::<Q6K, wide::Avx2>),
    #[cfg(target_arch = "x86_64")]
    avx512: Some(vnni::product256::<Q6K>),
    #[cfg(target_arch = "x86_64")]
    avx512_wide: Some(wide::product::<Q6K, vnni_wide::Vnni>),
};

/// Where a file block's upper bits, scales and d lie.
const QH: usize = 128;
const SCALES: usize = QH + 64;
const D: usize = SCALES + 16;
const _: () = assert!(FORMAT.block_bytes == D + 2);

/// Where a panel block's d and codes lie, and the bytes of a sub-block's codes.
const PANEL_D: usize = 16 * PANEL;
const PANEL_QS: usize = PANEL_D + 2 * PANEL;
const SUB: usize = 3 * 32;
const _: () = assert!(PANEL_QS + 16 * SUB == PANEL * FORMAT.block_bytes);

const LOW: u32 = 0x0f0f_0f0f;
const UPPER: u32 = 0x0303_0303;

/// Where word i of 64 has its low and its upper bits in a file block, and their shifts.
///
/// In a half, word `w` of 32 is in quarter `w / 8`: low bits in the 32 bytes `quarter % 2`, nibble `quarter / 2`; upper
/// bits in bit pair `quarter`.
fn places(i: usize) -> [(usize, usize); 2] {
    let (half, quarter, w) = (i / 32, i / 8 % 4, i % 8);
    [(64 * half + 32 * (quarter % 2) + 4 * w, 4 * (quarter / 2)), (QH + 32 * half + 4 * w, 2 * quarter)]
}

/// Codes of a file block in element order, four to a word.
fn codes(block: &[u8]) -> [u32; 64] {
    std::array::from_fn(|i| {
        let [(low, low_shift), (upper, upper_shift)] = places(i);
        (word(block, low) >> low_shift & LOW) | (word(block, upper) >> upper_shift & UPPER) << 4
    })
}

/// The inverse of [`codes`].
fn put_codes(codes: &[u32; 64], block: &mut [u8]) {
    block[..SCALES].fill(0);
    for (i, code) in codes.iter().enumerate() {
        let [(low, low_shift), (upper, upper_shift)] = places(i);
        put_word(block, low, word(block, low) | (code & LOW) << low_shift);
        put_word(block, upper, word(block, upper) | (code >> 4 & UPPER) << upper_shift);
    }
}

/// One row's codes in a panel block.
fn panel_codes(panel: &[u8], row: usize) -> [u32; 64] {
    std::array::from_fn(|i| {
        let (at, w) = (PANEL_QS + SUB * (i / 4) + 4 * row, i % 4);
        let low = word(panel, at + 32 * (w / 2)) >> (4 * (w % 2)) & LOW;
        low | (word(panel, at + 64) >> (2 * w) & UPPER) << 4
    })
}

/// The inverse of [`panel_codes`].
fn put_panel_codes(codes: &[u32; 64], row: usize, panel: &mut [u8]) {
    for (sub, codes) in codes.as_chunks::<4>().0.iter().enumerate() {
        let at = PANEL_QS + SUB * sub + 4 * row;
        let low = codes.map(|c| c & LOW);
        let upper = codes.map(|c| c >> 4 & UPPER);
        put_word(panel, at, low[0] | low[1] << 4);
        put_word(panel, at + 32, low[2] | low[3] << 4);
        put_word(panel, at + 64, upper[0] | upper[1] << 2 | upper[2] << 4 | upper[3] << 6);
    }
}

struct Q6K;

impl Block256 for Q6K {
    const FORMAT: Format = FORMAT;
    const SUBS: usize = 16;
    const MINS: bool = false;
    fn scale(scale: u8) -> i8 {
        scale.cast_signed()
    }
    fn value(code: u8) -> i8 {
        code.cast_signed() - 32
    }
    fn fields(block: &[u8]) -> Fields {
        let scales = std::array::from_fn(|i| block[SCALES + i]);
        Fields { codes: codes(block), scales, mins: [0; 16], d: [block[D], block[D + 1]], dmin: [0; 2] }
    }
    fn put_fields(fields: &Fields, block: &mut [u8]) {
        put_codes(&fields.codes, block);
        block[SCALES..D].copy_from_slice(&fields.scales);
        block[D..].copy_from_slice(&fields.d);
    }
    fn panel_fields(panel: &[u8], row: usize) -> Fields {
        let scales = std::array::from_fn(|i| panel[place(row, i)]);
        let d = [panel[PANEL_D + 2 * row], panel[PANEL_D + 2 * row + 1]];
        Fields { codes: panel_codes(panel, row), scales, mins: [0; 16], d, dmin: [0; 2] }
    }
    fn put_panel_fields(fields: &Fields, row: usize, panel: &mut [u8]) {
        for (i, scale) in fields.scales.into_iter().enumerate() {
            panel[place(row, i)] = scale;
        }
        panel[PANEL_D + 2 * row..][..2].copy_from_slice(&fields.d);
        put_panel_codes(&fields.codes, row, panel);
    }
}

#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "SIMD loads by pointer")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::*;
    use crate::avx2::{halves, high_nibbles, load, low_nibbles};
    use crate::block256::{Kernel, Rest, Sums, twice_signed};
    use crate::interleave::{Interleave, fields, nibbles, placed, store, words};

    impl Interleave for Q6K {
        #[inline]
        #[target_feature(enable = "avx2")]
        unsafe fn interleave(blocks: &[&[u8]; PANEL], panel: &mut [u8]) {
            // The scales are the last four of eight words.
            let scales = words(blocks, SCALES - 16);
            for (j, word) in scales[4..].iter().enumerate() {
                store(&[placed(*word)], 32 * j, panel);
            }
            for (row, block) in blocks.iter().enumerate() {
                panel[PANEL_D + 2 * row..][..2].copy_from_slice(&block[D..]);
            }
            for half in 0..2 {
                let [a, b] = [0, 32].map(|at| nibbles(words(blocks, 64 * half + at)));
                let upper = words(blocks, QH + 32 * half);
                for (quarter, low) in [a[0], b[0], a[1], b[1]].iter().enumerate() {
                    for (sub, (low, upper)) in
                        low.as_chunks::<2>().0.iter().zip(upper.as_chunks::<4>().0).enumerate()
                    {
                        let at = PANEL_QS + SUB * (8 * half + 2 * quarter + sub);
                        store(&[low[0], low[1], fields(upper, 2 * quarter, 3, 2)], at, panel);
                    }
                }
            }
        }
    }

    /// Bounds: a pair of products is at most 2 * 63 * 127 = 16002, so `maddubs` does not saturate. The 16-bit sum starts
    /// at -32 * (sum of its a); on the way it is the sum of (q - 32) * a over the products done and of -32 * a over
    /// the others, so always within 8 * 32 * 127 = 32512. Times a scale of -128, two a lane, sixteen sub-blocks: 133
    /// million.
    impl Kernel for Q6K {
        const SUMS: Sums = Sums::Biased;
        const HEADER: usize = PANEL_QS;
        type Header = *const u8;

        #[inline]
        #[target_feature(enable = "avx2")]
        unsafe fn header(p: *const u8) -> Self::Header {
            p
        }

        #[inline]
        #[target_feature(enable = "avx2")]
        unsafe fn scales(header: &Self::Header, sub: usize) -> __m256i {
            // SAFETY: there are four vectors of scales.
            twice_signed(unsafe { load(header.add(32 * (sub / 4))) }, sub % 4)
        }

        #[inline]
        #[target_feature(enable = "avx2")]
        unsafe fn codes(run: *const u8, half: usize) -> [__m256i; 4] {
            // SAFETY: a run is twice three vectors.
            let [a, b, h] = unsafe { [0, 32, 64].map(|at| load(run.add(SUB * half + at))) };
            let upper = _mm256_set1_epi8(0x30);
            // Each pair of bits to bits 4 and 5; what crosses bytes is masked away.
            [
                _mm256_or_si256(low_nibbles(a), _mm256_and_si256(_mm256_slli_epi16::<4>(h), upper)),
                _mm256_or_si256(high_nibbles(a), _mm256_and_si256(_mm256_slli_epi16::<2>(h), upper)),
                _mm256_or_si256(low_nibbles(b), _mm256_and_si256(h, upper)),
                _mm256_or_si256(high_nibbles(b), _mm256_and_si256(_mm256_srli_epi16::<2>(h), upper)),
            ]
        }

        #[inline]
        #[target_feature(enable = "avx2,f16c")]
        unsafe fn rest(p: *const u8, _header: &Self::Header, to: &mut Rest) {
            // SAFETY: the caller's promise.
            to.d = unsafe { halves(p.add(PANEL_D)) };
        }
    }
}

#[cfg(target_arch = "aarch64")]
#[expect(unsafe_code, reason = "SIMD loads by pointer")]
mod neon {
    use std::arch::aarch64::*;

    use super::*;
    use crate::neon::{Kernel256, less, load, nibbles};

    impl Kernel256 for Q6K {
        const HEADER: usize = PANEL_QS;
        const D: usize = PANEL_D;

        #[inline]
        #[target_feature(enable = "neon")]
        unsafe fn scales(p: *const u8, half: usize) -> [int8x16_t; 4] {
            // SAFETY: there are four vectors of scales.
            unsafe { [0, 1, 2, 3].map(|v| vreinterpretq_s8_u8(load(p.add(32 * v + 16 * half)))) }
        }

        #[inline]
        #[target_feature(enable = "neon")]
        unsafe fn values(run: *const u8) -> [int8x16_t; 8] {
            let mut codes = [vdupq_n_u8(0); 8];
            for (sub, codes) in codes.as_chunks_mut().0.iter_mut().enumerate() {
                // SAFETY: a run is twice three vectors.
                let [a, b, h] = unsafe { [0, 32, 64].map(|at| load(run.add(SUB * sub + at))) };
                let ([a, b], [c, d]) = (nibbles(a), nibbles(b));
                // Each pair of bits to bits 4 and 5.
                let with = |low, bits| vorrq_u8(low, vandq_u8(bits, vdupq_n_u8(0x30)));
                *codes = [
                    with(a, vshlq_n_u8::<4>(h)),
                    with(b, vshlq_n_u8::<2>(h)),
                    with(c, h),
                    with(d, vshrq_n_u8::<2>(h)),
                ];
            }
            less(codes, 32)
        }
    }
}
