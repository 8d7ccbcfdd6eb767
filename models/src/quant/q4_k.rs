//! Q4_K: `d * scale * q - dmin * min`, a 6-bit scale and min per 32.
//!
//! File block, 144 bytes: f16 d; f16 dmin; 12 bytes of scales and mins ([`scales_mins`]); 4 groups of 32 bytes,
//! elements 64g.. low, 64g + 32.. high.
//!
//! Panel block, 1152 bytes: 3 vectors of scales and mins; d of eight rows; dmin of eight rows; 32 vectors, word 2v low,
//! word 2v + 1 high, row r at bytes 4r..4r+4. Scales 0-7 and mins 0-7 are sixteen 6-bit values ([`panel_sixes`]).

use super::block256::{self, Block256, Fields, panel_sixes, put_panel_sixes};
use super::{ActKind, Format, GgmlType, PANEL, put_word, word};
#[cfg(target_arch = "x86_64")]
use super::{interleave, vnni, vnni_wide, wide};

pub(super) const FORMAT: Format = Format {
    ty: GgmlType::Q4_K,
    name: "Q4_K",
    ggml_id: 12,
    block: 256,
    block_bytes: 144,
    act: ActKind::Q8x256,
    dequantize: block256::dequantize::<Q4K>,
    pack: block256::pack::<Q4K>,
    #[cfg(target_arch = "x86_64")]
    avx2_pack: Some(interleave::pack::<Q4K>),
    unpack: block256::unpack::<Q4K>,
    scalar: block256::scalar::<Q4K>,
    #[cfg(target_arch = "aarch64")]
    neon: super::neon::product256::<Q4K>,
    #[cfg(target_arch = "x86_64")]
    avx2: block256::product::<Q4K>,
    #[cfg(target_arch = "x86_64")]
    avx2_wide: Some(wide::product::<Q4K, wide::Avx2>),
    #[cfg(target_arch = "x86_64")]
    avx512: Some(vnni::product256::<Q4K>),
    #[cfg(target_arch = "x86_64")]
    avx512_wide: Some(wide::product::<Q4K, vnni_wide::Vnni>),
};

/// Where a file block's codes start, after the factors that Q5_K has too.
pub(super) const FACTORS: usize = 16;
const _: () = assert!(FORMAT.block_bytes == FACTORS + 128 && FACTORS == 2 + 2 + 12);

/// Where a panel block's d and dmin lie, and its codes.
pub(super) const PANEL_D: usize = 96;
pub(super) const PANEL_DMIN: usize = PANEL_D + 2 * PANEL;
pub(super) const PANEL_FACTORS: usize = PANEL_DMIN + 2 * PANEL;
const _: () = assert!(PANEL_FACTORS + 32 * 32 == PANEL * FORMAT.block_bytes);

const LOW: u32 = 0x0f0f_0f0f;

/// Scales and mins of the eight sub-blocks.
fn scales_mins(s: &[u8]) -> ([u8; 16], [u8; 16]) {
    let (mut scales, mut mins) = ([0; 16], [0; 16]);
    for j in 0..4 {
        scales[j] = s[j] & 63;
        mins[j] = s[j + 4] & 63;
        scales[j + 4] = s[j + 8] & 15 | s[j] >> 6 << 4;
        mins[j + 4] = s[j + 8] >> 4 | s[j + 4] >> 6 << 4;
    }
    (scales, mins)
}

/// The inverse of [`scales_mins`].
fn put_scales_mins(scales: &[u8; 16], mins: &[u8; 16], s: &mut [u8]) {
    for j in 0..4 {
        s[j] = scales[j] | scales[j + 4] >> 4 << 6;
        s[j + 4] = mins[j] | mins[j + 4] >> 4 << 6;
        s[j + 8] = scales[j + 4] & 15 | mins[j + 4] << 4;
    }
}

/// Fields of a file block that starts with the factors.
pub(super) fn fields(block: &[u8], codes: [u32; 64]) -> Fields {
    let (scales, mins) = scales_mins(&block[4..FACTORS]);
    Fields { codes, scales, mins, d: [block[0], block[1]], dmin: [block[2], block[3]] }
}

/// Writes a file block's factors.
pub(super) fn put_factors(fields: &Fields, block: &mut [u8]) {
    block[..2].copy_from_slice(&fields.d);
    block[2..4].copy_from_slice(&fields.dmin);
    put_scales_mins(&fields.scales, &fields.mins, &mut block[4..FACTORS]);
}

/// Fields of a row of a panel block that starts with the factors.
pub(super) fn panel_fields(panel: &[u8], row: usize, codes: [u32; 64]) -> Fields {
    let sixes = panel_sixes(panel, row);
    let (mut scales, mut mins) = ([0; 16], [0; 16]);
    scales[..8].copy_from_slice(&sixes[..8]);
    mins[..8].copy_from_slice(&sixes[8..]);
    let half = |at: usize| [panel[at + 2 * row], panel[at + 2 * row + 1]];
    Fields { codes, scales, mins, d: half(PANEL_D), dmin: half(PANEL_DMIN) }
}

/// Writes a row's factors of a panel block.
pub(super) fn put_panel_factors(fields: &Fields, row: usize, panel: &mut [u8]) {
    let sixes = std::array::from_fn(|i| if i < 8 { fields.scales[i] } else { fields.mins[i - 8] });
    put_panel_sixes(sixes, row, panel);
    panel[PANEL_D + 2 * row..][..2].copy_from_slice(&fields.d);
    panel[PANEL_DMIN + 2 * row..][..2].copy_from_slice(&fields.dmin);
}

/// Low four bits of each code in the groups of a file block.
pub(super) fn group_nibbles(groups: &[u8]) -> [u32; 64] {
    std::array::from_fn(|i| word(groups, 32 * (i / 16) + 4 * (i % 8)) >> (4 * (i / 8 % 2)) & LOW)
}

/// The inverse of [`group_nibbles`]; upper bits are left out.
pub(super) fn put_group_nibbles(codes: &[u32; 64], groups: &mut [u8]) {
    for (g, codes) in codes.as_chunks::<16>().0.iter().enumerate() {
        for w in 0..8 {
            put_word(groups, 32 * g + 4 * w, codes[w] & LOW | (codes[w + 8] & LOW) << 4);
        }
    }
}

struct Q4K;

impl Block256 for Q4K {
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
        fields(block, group_nibbles(&block[FACTORS..]))
    }
    fn put_fields(fields: &Fields, block: &mut [u8]) {
        put_factors(fields, block);
        put_group_nibbles(&fields.codes, &mut block[FACTORS..]);
    }
    fn panel_fields(panel: &[u8], row: usize) -> Fields {
        let at = PANEL_FACTORS + 4 * row;
        let code = |i: usize| word(panel, at + 32 * (i / 2)) >> (4 * (i % 2)) & LOW;
        panel_fields(panel, row, std::array::from_fn(code))
    }
    fn put_panel_fields(fields: &Fields, row: usize, panel: &mut [u8]) {
        put_panel_factors(fields, row, panel);
        for (v, [low, high]) in fields.codes.as_chunks().0.iter().enumerate() {
            put_word(panel, PANEL_FACTORS + 32 * v + 4 * row, low | high << 4);
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) use avx2::{interleave_factors, rest, scales};

#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "SIMD loads by pointer")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::*;
    use crate::avx2::{halves, high_nibbles, load, low_nibbles};
    use crate::block256::{Kernel, Rest, Sums, block_value_with_mins, pair, sixes, twice};
    use crate::interleave::{Interleave, nibbles, placed, store, words};

    /// [`Kernel::scales`] of sub-blocks of 32, from [`sixes`].
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(crate) fn scales(header: &[__m256i; 4], sub: usize) -> __m256i {
        twice(if sub < 8 { header[0] } else { header[1] }, sub / 2 % 4)
    }

    /// [`Kernel::rest`] of a panel block that starts with the factors.
    ///
    /// # Safety
    /// `p` is readable for them.
    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    pub(crate) unsafe fn rest(p: *const u8, header: &[__m256i; 4], to: &mut Rest) {
        // SAFETY: the caller's promise.
        (to.d, to.dmin) = unsafe { (halves(p.add(PANEL_D)), halves(p.add(PANEL_DMIN))) };
        let [_, _, mins0, mins1] = *header;
        to.mins[0] = pair(mins0, 0, 1);
        to.mins[1] = pair(mins0, 2, 3);
        to.mins[2] = pair(mins1, 0, 1);
        to.mins[3] = pair(mins1, 2, 3);
    }

    /// [`put_panel_factors`] of eight rows' file blocks.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(crate) fn interleave_factors(blocks: &[&[u8]; PANEL], panel: &mut [u8]) {
        let [factors, s0, s1, s2, ..] = words(blocks, 0);
        let byte = |b: u8| _mm256_set1_epi8(b.cast_signed());
        // Shifts of 16-bit lanes; what crosses bytes is masked away. As [`scales_mins`].
        let six = byte(63);
        let upper = |s: __m256i| _mm256_and_si256(_mm256_srli_epi16::<2>(s), byte(0x30));
        let scales = [_mm256_and_si256(s0, six), _mm256_or_si256(low_nibbles(s2), upper(s0))];
        let mins = [_mm256_and_si256(s1, six), _mm256_or_si256(high_nibbles(s2), upper(s1))];
        // As [`put_panel_sixes`].
        let top = [
            _mm256_slli_epi16::<6>(mins[1]),
            _mm256_slli_epi16::<4>(mins[1]),
            _mm256_slli_epi16::<2>(mins[1]),
        ];
        let low = [scales[0], scales[1], mins[0]];
        for (v, (low, top)) in low.into_iter().zip(top).enumerate() {
            let sixes = _mm256_or_si256(low, _mm256_and_si256(top, byte(0xc0)));
            store(&[placed(sixes)], 32 * v, panel);
        }
        // Of each half-vector four d, then four dmin; then the halves' d side by side, and their dmin.
        let apart = _mm_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
        let apart = _mm256_shuffle_epi8(factors, _mm256_broadcastsi128_si256(apart));
        store(&[_mm256_permute4x64_epi64::<0b11_01_10_00>(apart)], PANEL_D, panel);
    }

    impl Interleave for Q4K {
        #[inline]
        #[target_feature(enable = "avx2")]
        unsafe fn interleave(blocks: &[&[u8]; PANEL], panel: &mut [u8]) {
            interleave_factors(blocks, panel);
            for g in 0..4 {
                let codes = nibbles(words(blocks, FACTORS + 32 * g));
                store(codes.as_flattened(), PANEL_FACTORS + 256 * g, panel);
            }
        }
    }

    /// Bounds: a pair of products is at most 2 * 15 * 127 and eight of them 30480, so neither `maddubs` nor the
    /// 16-bit sum overflows; times a scale of 63, two a lane, eight sub-blocks: 30.7 million.
    impl Kernel for Q4K {
        const SUMS: Sums = Sums::Run;
        const HEADER: usize = PANEL_FACTORS;
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
            scales(header, sub)
        }

        #[inline]
        #[target_feature(enable = "avx2")]
        unsafe fn codes(run: *const u8, half: usize) -> [__m256i; 4] {
            // SAFETY: a run is four vectors.
            let (a, b) = unsafe { (load(run.add(64 * half)), load(run.add(64 * half + 32))) };
            [low_nibbles(a), high_nibbles(a), low_nibbles(b), high_nibbles(b)]
        }

        #[inline]
        #[target_feature(enable = "avx2,f16c")]
        unsafe fn rest(p: *const u8, header: &Self::Header, to: &mut Rest) {
            // SAFETY: the caller's promise.
            unsafe { rest(p, header, to) }
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
pub(super) use neon::{mins, scales};

#[cfg(target_arch = "aarch64")]
#[expect(unsafe_code, reason = "SIMD loads by pointer")]
mod neon {
    use std::arch::aarch64::*;

    use super::*;
    use crate::neon::{Kernel256, decode_nibbles, less, sixes};

    /// [`Kernel256::scales`] of a panel block that starts with the factors.
    ///
    /// # Safety
    /// `p` is readable for them.
    #[inline]
    #[target_feature(enable = "neon")]
    pub(crate) unsafe fn scales(p: *const u8, half: usize) -> [int8x16_t; 4] {
        // SAFETY: the caller's promise.
        less(unsafe { sixes(p.add(16 * half)) }, 0)
    }

    /// [`Kernel256::mins`], likewise.
    ///
    /// # Safety
    /// `p` is readable for the factors.
    #[inline]
    #[target_feature(enable = "neon")]
    pub(crate) unsafe fn mins(p: *const u8, half: usize) -> [int8x16_t; 4] {
        // SAFETY: the caller's promise.
        let [scales @ .., first, second] = less(unsafe { sixes(p.add(16 * half)) }, 0);
        [first, second, scales[0], scales[1]]
    }

    impl Kernel256 for Q4K {
        const HEADER: usize = PANEL_FACTORS;
        const D: usize = PANEL_D;
        const DMIN: usize = PANEL_DMIN;

        #[inline]
        #[target_feature(enable = "neon")]
        unsafe fn scales(p: *const u8, half: usize) -> [int8x16_t; 4] {
            // SAFETY: the caller's promise.
            unsafe { scales(p, half) }
        }

        #[inline]
        #[target_feature(enable = "neon")]
        unsafe fn mins(p: *const u8, half: usize) -> [int8x16_t; 4] {
            // SAFETY: the caller's promise.
            unsafe { mins(p, half) }
        }

        #[inline]
        #[target_feature(enable = "neon")]
        unsafe fn values(run: *const u8) -> [int8x16_t; 8] {
            // SAFETY: a run is four vectors.
            less(unsafe { decode_nibbles(run) }, 0)
        }
    }
}
