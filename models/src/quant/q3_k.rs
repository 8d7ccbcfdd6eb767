//! Q3_K: `d * (scale - 32) * (q - 4)`, a 6-bit scale per 16.
//!
//! File block, 110 bytes: third bits, 32 bytes, bit j of byte l for element l of run j of 32; low two bits as in Q2_K, 64
//! bytes; 12 bytes of scales ([`scales`]); f16 d.
//!
//! Panel block, 880 bytes: 3 vectors of scales ([`panel_sixes`]); d of eight rows; for each run of 32 three vectors with
//! row r at bytes 4r..4r+4: third bits, bit i of a byte for its place in word i; low bits of words 0-3 and 4-7,
//! from the lowest bits up.

use super::block256::{self, Block256, Fields, panel_sixes, put_panel_sixes};
use super::{ActKind, Format, GgmlType, PANEL, put_word, q2_k, word};
#[cfg(target_arch = "x86_64")]
use super::{vnni, vnni_wide, wide};

pub(super) const FORMAT: Format = Format {
    ty: GgmlType::Q3_K,
    name: "Q3_K",
    ggml_id: 11,
    block: 256,
    block_bytes: 110,
    act: ActKind::Q8x256,
    dequantize: block256::dequantize::<Q3K>,
    pack: block256::pack::<Q3K>,
    #[cfg(target_arch = "x86_64")]
    avx2_pack: None,
    unpack: block256::unpack::<Q3K>,
    scalar: block256::scalar::<Q3K>,
    #[cfg(target_arch = "aarch64")]
    neon: super::neon::product256::<Q3K>,
    #[cfg(target_arch = "x86_64")]
    avx2: block256::product::<Q3K>,
    #[cfg(target_arch = "x86_64")]
    avx2_wide: Some(wide::product::<Q3K, wide::Avx2>),
    #[cfg(target_arch = "x86_64")]
    avx512: Some(vnni::product256::<Q3K>),
    #[cfg(target_arch = "x86_64")]
    avx512_wide: Some(wide::product::<Q3K, vnni_wide::Vnni>),
};

/// Where a file block's low bits, scales and d lie.
const QS: usize = 32;
const SCALES: usize = QS + 64;
const D: usize = SCALES + 12;
const _: () = assert!(FORMAT.block_bytes == D + 2);

/// Where a panel block's d and codes lie, and the bytes of a run.
const PANEL_D: usize = 96;
const PANEL_QS: usize = PANEL_D + 2 * PANEL;
const RUN: usize = 3 * 32;
const _: () = assert!(PANEL_QS + 8 * RUN == PANEL * FORMAT.block_bytes);

const TWO: u32 = 0x0303_0303;
const BIT: u32 = 0x0101_0101;

/// Scales of the sixteen sub-blocks: low four bits in 8 bytes, 0-7 low and 8-15 high; upper two in four, i % 4 at
/// bit pair i / 4.
fn scales(s: &[u8]) -> [u8; 16] {
    std::array::from_fn(|i| s[i % 8] >> (4 * (i / 8)) & 15 | (s[8 + i % 4] >> (2 * (i / 4)) & 3) << 4)
}

/// The inverse of [`scales`].
fn put_scales(scales: &[u8; 16], s: &mut [u8]) {
    for i in 0..8 {
        s[i] = scales[i] & 15 | scales[i + 8] << 4;
    }
    for i in 0..4 {
        s[8 + i] = (0..4).fold(0, |bits, j| bits | scales[4 * j + i] >> 4 << (2 * j));
    }
}

struct Q3K;

impl Block256 for Q3K {
    const FORMAT: Format = FORMAT;
    const SUBS: usize = 16;
    const MINS: bool = false;
    fn scale(scale: u8) -> i8 {
        scale.cast_signed() - 32
    }
    fn value(code: u8) -> i8 {
        code.cast_signed() - 4
    }
    fn fields(block: &[u8]) -> Fields {
        let mut codes = q2_k::codes(&block[QS..SCALES]);
        for (i, code) in codes.iter_mut().enumerate() {
            *code |= (word(block, 4 * (i % 8)) >> (i / 8) & BIT) << 2;
        }
        let d = [block[D], block[D + 1]];
        Fields { codes, scales: scales(&block[SCALES..D]), mins: [0; 16], d, dmin: [0; 2] }
    }
    fn put_fields(fields: &Fields, block: &mut [u8]) {
        for w in 0..8 {
            let thirds = (0..8).fold(0, |bits, j| bits | (fields.codes[8 * j + w] >> 2 & BIT) << j);
            put_word(block, 4 * w, thirds);
        }
        q2_k::put_codes(&fields.codes, &mut block[QS..SCALES]);
        put_scales(&fields.scales, &mut block[SCALES..D]);
        block[D..].copy_from_slice(&fields.d);
    }
    fn panel_fields(panel: &[u8], row: usize) -> Fields {
        let codes = std::array::from_fn(|i| {
            let (at, w) = (PANEL_QS + RUN * (i / 8) + 4 * row, i % 8);
            let low = word(panel, at + 32 + 32 * (w / 4)) >> (2 * (w % 4)) & TWO;
            low | (word(panel, at) >> w & BIT) << 2
        });
        let d = [panel[PANEL_D + 2 * row], panel[PANEL_D + 2 * row + 1]];
        Fields { codes, scales: panel_sixes(panel, row), mins: [0; 16], d, dmin: [0; 2] }
    }
    fn put_panel_fields(fields: &Fields, row: usize, panel: &mut [u8]) {
        put_panel_sixes(fields.scales, row, panel);
        panel[PANEL_D + 2 * row..][..2].copy_from_slice(&fields.d);
        for (j, codes) in fields.codes.as_chunks::<8>().0.iter().enumerate() {
            let at = PANEL_QS + RUN * j + 4 * row;
            let thirds = codes.iter().enumerate().fold(0, |bits, (w, code)| bits | (code >> 2 & BIT) << w);
            put_word(panel, at, thirds);
            for (half, codes) in codes.as_chunks::<4>().0.iter().enumerate() {
                let [a, b, c, e] = codes.map(|code| code & TWO);
                put_word(panel, at + 32 + 32 * half, a | b << 2 | c << 4 | e << 6);
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "SIMD loads by pointer")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::*;
    use crate::avx2::{halves, load};
    use crate::block256::{Kernel, Rest, Sums, sixes, twice_signed};

    /// Codes are decoded as 8 q, which stands for `8 q - 32`; then d is an eighth of itself: powers of two, so no bit of
    /// the result changes.
    ///
    /// Bounds: a pair of products is at most 2 * 56 * 127 = 14224, so `maddubs` does not saturate. The 16-bit sum starts at
    /// -32 * (sum of its a); on the way it is the sum of 8 * (q - 4) * a over the products done and of -32 * a over
    /// the others, so always within 8 * 32 * 127 = 32512. Times a scale of -32, two a lane, sixteen sub-blocks: 33.3
    /// million.
    impl Kernel for Q3K {
        const SUMS: Sums = Sums::Biased;
        const HEADER: usize = PANEL_QS;
        type Header = [__m256i; 4];

        #[inline]
        #[target_feature(enable = "avx2")]
        unsafe fn header(p: *const u8) -> Self::Header {
            // SAFETY: the caller's promise.
            let sixes = unsafe { sixes(p) };
            sixes.map(|v| _mm256_sub_epi8(v, _mm256_set1_epi8(32)))
        }

        #[inline]
        #[target_feature(enable = "avx2")]
        unsafe fn scales(header: &Self::Header, sub: usize) -> __m256i {
            twice_signed(header[sub / 4], sub % 4)
        }

        #[inline]
        #[target_feature(enable = "avx2")]
        unsafe fn codes(run: *const u8, half: usize) -> [__m256i; 4] {
            // SAFETY: a run is three vectors.
            let (h, v) = unsafe { (load(run), load(run.add(32 + 32 * half))) };
            // Bits of the first half's words to bits 4-7, where the second half's are.
            let h = if half == 0 { _mm256_slli_epi16::<4>(h) } else { h };
            let (low, third) = (_mm256_set1_epi8(0x18), _mm256_set1_epi8(0x20));
            // Low bits to bits 3 and 4, third bits to bit 5; what crosses bytes is masked away.
            let code = |v, h| _mm256_or_si256(_mm256_and_si256(v, low), _mm256_and_si256(h, third));
            [
                code(_mm256_slli_epi16::<3>(v), _mm256_slli_epi16::<1>(h)),
                code(_mm256_slli_epi16::<1>(v), h),
                code(_mm256_srli_epi16::<1>(v), _mm256_srli_epi16::<1>(h)),
                code(_mm256_srli_epi16::<3>(v), _mm256_srli_epi16::<2>(h)),
            ]
        }

        #[inline]
        #[target_feature(enable = "avx2,f16c")]
        unsafe fn rest(p: *const u8, _header: &Self::Header, to: &mut Rest) {
            // SAFETY: the caller's promise.
            to.d = _mm256_mul_ps(unsafe { halves(p.add(PANEL_D)) }, _mm256_set1_ps(0.125));
        }
    }
}

#[cfg(target_arch = "aarch64")]
#[expect(unsafe_code, reason = "SIMD loads by pointer")]
mod neon {
    use std::arch::aarch64::*;

    use super::*;
    use crate::neon::{Kernel256, less, load, sixes};

    impl Kernel256 for Q3K {
        const HEADER: usize = PANEL_QS;
        const D: usize = PANEL_D;

        #[inline]
        #[target_feature(enable = "neon")]
        unsafe fn scales(p: *const u8, half: usize) -> [int8x16_t; 4] {
            // SAFETY: the caller's promise.
            less(unsafe { sixes(p.add(16 * half)) }, 32)
        }

        #[inline]
        #[target_feature(enable = "neon")]
        unsafe fn values(run: *const u8) -> [int8x16_t; 8] {
            // SAFETY: a run is three vectors.
            let [h, a, b] = unsafe { [0, 32, 64].map(|at| load(run.add(at))) };
            let ([a, b, c, d], [e, f, g, i]) = (q2_k::fours(a), q2_k::fours(b));
            // Each bit to bit 2.
            let with = |low, bits| vorrq_u8(low, vandq_u8(bits, vdupq_n_u8(4)));
            let codes = [
                with(a, vshlq_n_u8::<2>(h)),
                with(b, vshlq_n_u8::<1>(h)),
                with(c, h),
                with(d, vshrq_n_u8::<1>(h)),
                with(e, vshrq_n_u8::<2>(h)),
                with(f, vshrq_n_u8::<3>(h)),
                with(g, vshrq_n_u8::<4>(h)),
                with(i, vshrq_n_u8::<5>(h)),
            ];
            less(codes, 4)
        }
    }
}
