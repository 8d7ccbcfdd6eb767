//! IQ4_XS: `d * (scale - 32) * VALUES[q]`, a 6-bit scale per 32, IQ4_NL's values.
//!
//! File block, 136 bytes: f16 d; upper two bits of scales, u16, scale j at bit pair j; low four bits of scales, 4
//! bytes, 2j low and 2j + 1 high; for each sub-block 16 bytes, element j low, j + 16 high.
//!
//! Panel block, 1088 bytes: d of eight rows; low bits of scales, 1 vector placed as in [`place`], 0-3 low and 4-7 high;
//! upper bits of scales, 16 bytes, at byte `4j + r % 4` of sub-blocks j and j + 4 for row r % 4 in the low and for row
//! r % 4 + 4 in the high four bits; 32 vectors, word 2v low, word 2v + 1 high, row r at bytes 4r..4r+4.

use super::block256::{self, Block256, Fields, place};
use super::{ActKind, Format, GgmlType, PANEL, block32, iq4_nl};
#[cfg(target_arch = "x86_64")]
use super::{vnni, vnni_wide, wide};

pub(super) const FORMAT: Format = Format {
    ty: GgmlType::IQ4_XS,
    name: "IQ4_XS",
    ggml_id: 23,
    block: 256,
    block_bytes: 136,
    act: ActKind::Q8x256,
    dequantize: block256::dequantize::<Iq4Xs>,
    pack: block256::pack::<Iq4Xs>,
    #[cfg(target_arch = "x86_64")]
    avx2_pack: None,
    unpack: block256::unpack::<Iq4Xs>,
    scalar: block256::scalar::<Iq4Xs>,
    #[cfg(target_arch = "aarch64")]
    neon: super::neon::product256::<Iq4Xs>,
    #[cfg(target_arch = "x86_64")]
    avx2: block256::product::<Iq4Xs>,
    #[cfg(target_arch = "x86_64")]
    avx2_wide: None,
    #[cfg(target_arch = "x86_64")]
    avx512: Some(vnni::product256::<Iq4Xs>),
    #[cfg(target_arch = "x86_64")]
    avx512_wide: Some(wide::product::<Iq4Xs, vnni_wide::Vnni>),
};

/// Where a file block's scales and codes lie.
const SCALES: usize = 2;
const QS: usize = SCALES + 6;
const _: () = assert!(FORMAT.block_bytes == QS + 128);

/// Where a panel block's scales and codes lie.
const PANEL_LOW: usize = 2 * PANEL;
const PANEL_UPPER: usize = PANEL_LOW + 4 * PANEL;
const PANEL_QS: usize = PANEL_UPPER + 2 * PANEL;
const _: () = assert!(PANEL_QS + 32 * 32 == PANEL * FORMAT.block_bytes);

/// Scales of the eight sub-blocks.
fn scales(s: &[u8]) -> [u8; 16] {
    let scale = |j: usize| s[2 + j / 2] >> (4 * (j % 2)) & 15 | (s[j / 4] >> (2 * (j % 4)) & 3) << 4;
    std::array::from_fn(|j| if j < 8 { scale(j) } else { 0 })
}

/// The inverse of [`scales`].
fn put_scales(scales: &[u8; 16], s: &mut [u8]) {
    s.fill(0);
    for (j, scale) in scales[..8].iter().enumerate() {
        s[2 + j / 2] |= (scale & 15) << (4 * (j % 2));
        s[j / 4] |= scale >> 4 << (2 * (j % 4));
    }
}

/// Where a panel block has row `row`'s scale of sub-block `j`: byte and shift of the low and of the upper bits.
fn scale_places(row: usize, j: usize) -> [(usize, usize); 2] {
    let upper = PANEL_UPPER + 4 * (j % 4) + row % 4;
    [(PANEL_LOW + place(row, j % 4), 4 * (j / 4)), (upper, 4 * (row / 4) + 2 * (j / 4))]
}

struct Iq4Xs;

impl Block256 for Iq4Xs {
    const FORMAT: Format = FORMAT;
    const SUBS: usize = 8;
    const MINS: bool = false;
    fn scale(scale: u8) -> i8 {
        scale.cast_signed() - 32
    }
    fn value(code: u8) -> i8 {
        iq4_nl::VALUES[usize::from(code)]
    }
    fn fields(block: &[u8]) -> Fields {
        let mut codes = [0; 64];
        for (codes, qs) in codes.as_chunks_mut().0.iter_mut().zip(block[QS..].chunks_exact(16)) {
            *codes = block32::nibbles(qs);
        }
        let d = [block[0], block[1]];
        Fields { codes, scales: scales(&block[SCALES..QS]), mins: [0; 16], d, dmin: [0; 2] }
    }
    fn put_fields(fields: &Fields, block: &mut [u8]) {
        block[..SCALES].copy_from_slice(&fields.d);
        put_scales(&fields.scales, &mut block[SCALES..QS]);
        for (codes, qs) in fields.codes.as_chunks().0.iter().zip(block[QS..].chunks_exact_mut(16)) {
            block32::put_nibbles(*codes, qs);
        }
    }
    fn panel_fields(panel: &[u8], row: usize) -> Fields {
        let (mut codes, mut scales) = ([0; 64], [0; 16]);
        for (codes, run) in codes.as_chunks_mut().0.iter_mut().zip(panel[PANEL_QS..].chunks_exact(128)) {
            *codes = block32::panel_nibbles(run, row);
        }
        for (j, scale) in scales[..8].iter_mut().enumerate() {
            let [(low, low_shift), (upper, upper_shift)] = scale_places(row, j);
            *scale = panel[low] >> low_shift & 15 | (panel[upper] >> upper_shift & 3) << 4;
        }
        Fields { codes, scales, mins: [0; 16], d: [panel[2 * row], panel[2 * row + 1]], dmin: [0; 2] }
    }
    fn put_panel_fields(fields: &Fields, row: usize, panel: &mut [u8]) {
        panel[2 * row..][..2].copy_from_slice(&fields.d);
        for (j, scale) in fields.scales[..8].iter().enumerate() {
            let [(low, low_shift), (upper, upper_shift)] = scale_places(row, j);
            panel[low] = panel[low] & !(15 << low_shift) | (scale & 15) << low_shift;
            panel[upper] = panel[upper] & !(3 << upper_shift) | scale >> 4 << upper_shift;
        }
        for (codes, run) in fields.codes.as_chunks().0.iter().zip(panel[PANEL_QS..].chunks_exact_mut(128)) {
            block32::put_panel_nibbles(*codes, row, run);
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "SIMD loads by pointer")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::*;
    use crate::avx2::{halves, high_nibbles, load, low_nibbles};
    use crate::block256::{Kernel, Rest, Sums, twice_signed};

    /// Bounds: values and activations are within 127, so one `maddubs` of a magnitude and an activation with its sign is at
    /// most 2 * 127 * 127 = 32258 and two do not fit 16 bits; times a scale of -32, two a lane, 64 words: 132 million.
    impl Kernel for Iq4Xs {
        const SUMS: Sums = Sums::Word;
        const HEADER: usize = PANEL_QS;
        type Header = [__m256i; 2];

        #[inline]
        #[target_feature(enable = "avx2")]
        unsafe fn header(p: *const u8) -> Self::Header {
            // SAFETY: the caller's promise; the load may be unaligned.
            let (low, upper) =
                unsafe { (load(p.add(PANEL_LOW)), _mm_loadu_si128(p.add(PANEL_UPPER).cast())) };
            // Rows 4-7 have theirs four bits further up; what crosses bytes is masked away.
            let rows = _mm256_setr_epi32(0, 0, 0, 0, 4, 4, 4, 4);
            let upper = _mm256_srlv_epi32(_mm256_broadcastsi128_si256(upper), rows);
            let first = _mm256_slli_epi16::<4>(_mm256_and_si256(upper, _mm256_set1_epi8(0x03)));
            let second = _mm256_slli_epi16::<2>(_mm256_and_si256(upper, _mm256_set1_epi8(0x0c)));
            let bias = _mm256_set1_epi8(32);
            [
                _mm256_sub_epi8(_mm256_or_si256(low_nibbles(low), first), bias),
                _mm256_sub_epi8(_mm256_or_si256(high_nibbles(low), second), bias),
            ]
        }

        #[inline]
        #[target_feature(enable = "avx2")]
        unsafe fn scales(header: &Self::Header, sub: usize) -> __m256i {
            twice_signed(header[sub / 8], sub / 2 % 4)
        }

        #[inline]
        #[target_feature(enable = "avx2")]
        unsafe fn codes(run: *const u8, half: usize) -> [__m256i; 4] {
            // SAFETY: a run is four vectors.
            let [[a, b], [c, e]] =
                unsafe { [iq4_nl::decode(run.add(64 * half)), iq4_nl::decode(run.add(64 * half + 32))] };
            [a, b, c, e]
        }

        #[inline]
        #[target_feature(enable = "avx2,f16c")]
        unsafe fn rest(p: *const u8, _header: &Self::Header, to: &mut Rest) {
            // SAFETY: d comes first.
            to.d = unsafe { halves(p) };
        }
    }
}

#[cfg(target_arch = "aarch64")]
#[expect(unsafe_code, reason = "SIMD loads by pointer")]
mod neon {
    use std::arch::aarch64::*;

    use super::*;
    use crate::neon::{Kernel256, decode_nibbles, less, load, look_up, nibbles};

    impl Kernel256 for Iq4Xs {
        const HEADER: usize = PANEL_QS;
        const D: usize = 0;

        #[inline]
        #[target_feature(enable = "neon")]
        unsafe fn scales(p: *const u8, half: usize) -> [int8x16_t; 4] {
            // SAFETY: the caller's promise.
            let (low, upper) = unsafe { (load(p.add(PANEL_LOW + 16 * half)), load(p.add(PANEL_UPPER))) };
            let [low, high] = nibbles(low);
            // Rows 4-7 have theirs four bits further up.
            let upper = nibbles(upper)[half];
            let first = vorrq_u8(low, vshlq_n_u8::<4>(vandq_u8(upper, vdupq_n_u8(0x03))));
            let second = vorrq_u8(high, vshlq_n_u8::<2>(vandq_u8(upper, vdupq_n_u8(0x0c))));
            less([first, second, first, second], 32)
        }

        #[inline]
        #[target_feature(enable = "neon")]
        unsafe fn values(run: *const u8) -> [int8x16_t; 8] {
            // SAFETY: a run is four vectors.
            look_up(&iq4_nl::VALUES, unsafe { decode_nibbles(run) })
        }
    }
}
