//! Q2_K: `d * scale * q - dmin * min`, a 4-bit scale and min per 16.
//!
//! File block, 84 bytes: 16 bytes, scale low, min high; codes, 64 bytes ([`codes`]); f16 d; f16 dmin.
//!
//! Panel block, 672 bytes: scales and mins, 4 vectors placed as in [`place`]; d of eight rows; dmin of eight rows; for each
//! sub-block one vector with row r at bytes 4r..4r+4: words 0-3 from the lowest bits up.

use super::block256::{self, Block256, Fields, place};
#[cfg(target_arch = "x86_64")]
use super::vnni;
use super::{ActKind, Format, GgmlType, PANEL, put_word, word};

pub(super) const FORMAT: Format = Format {
    ty: GgmlType::Q2_K,
    name: "Q2_K",
    ggml_id: 10,
    block: 256,
    block_bytes: 84,
    act: ActKind::Q8x256,
    dequantize: block256::dequantize::<Q2K>,
    pack: block256::pack::<Q2K>,
    #[cfg(target_arch = "x86_64")]
    avx2_pack: None,
    unpack: block256::unpack::<Q2K>,
    scalar: block256::scalar::<Q2K>,
    #[cfg(target_arch = "aarch64")]
    neon: super::neon::product256::<Q2K>,
    #[cfg(target_arch = "x86_64")]
    avx2: block256::product::<Q2K>,
    #[cfg(target_arch = "x86_64")]
    avx2_wide: None,
    #[cfg(target_arch = "x86_64")]
    avx512: Some(vnni::product256::<Q2K>),
    #[cfg(target_arch = "x86_64")]
    avx512_wide: None,
};

/// Where a file block's codes, d and dmin lie.
const QS: usize = 16;
const D: usize = QS + 64;
const DMIN: usize = D + 2;
const _: () = assert!(FORMAT.block_bytes == DMIN + 2);

/// Where a panel block's d, dmin and codes lie.
const PANEL_D: usize = 16 * PANEL;
const PANEL_DMIN: usize = PANEL_D + 2 * PANEL;
const PANEL_QS: usize = PANEL_DMIN + 2 * PANEL;
const _: () = assert!(PANEL_QS + 16 * 32 == PANEL * FORMAT.block_bytes);

const TWO: u32 = 0x0303_0303;

/// Two bits of each code: halves of 128 have 32 bytes, in which run j of four runs of 32 is bit pair j.
pub(super) fn codes(qs: &[u8]) -> [u32; 64] {
    std::array::from_fn(|i| word(qs, 32 * (i / 32) + 4 * (i % 8)) >> (2 * (i / 8 % 4)) & TWO)
}

/// The inverse of [`codes`]; upper bits are left out.
pub(super) fn put_codes(codes: &[u32; 64], qs: &mut [u8]) {
    for (half, codes) in codes.as_chunks::<32>().0.iter().enumerate() {
        for w in 0..8 {
            let bits = (0..4).fold(0, |bits, j| bits | (codes[8 * j + w] & TWO) << (2 * j));
            put_word(qs, 32 * half + 4 * w, bits);
        }
    }
}

struct Q2K;

impl Block256 for Q2K {
    const FORMAT: Format = FORMAT;
    const SUBS: usize = 16;
    const MINS: bool = true;
    fn scale(scale: u8) -> i8 {
        scale.cast_signed()
    }
    fn value(code: u8) -> i8 {
        code.cast_signed()
    }
    fn fields(block: &[u8]) -> Fields {
        Fields {
            codes: codes(&block[QS..D]),
            scales: std::array::from_fn(|i| block[i] & 15),
            mins: std::array::from_fn(|i| block[i] >> 4),
            d: [block[D], block[D + 1]],
            dmin: [block[DMIN], block[DMIN + 1]],
        }
    }
    fn put_fields(fields: &Fields, block: &mut [u8]) {
        for (to, (scale, min)) in block.iter_mut().zip(fields.scales.iter().zip(fields.mins)) {
            *to = scale | min << 4;
        }
        put_codes(&fields.codes, &mut block[QS..D]);
        block[D..DMIN].copy_from_slice(&fields.d);
        block[DMIN..].copy_from_slice(&fields.dmin);
    }
    fn panel_fields(panel: &[u8], row: usize) -> Fields {
        let half = |at: usize| [panel[at + 2 * row], panel[at + 2 * row + 1]];
        let code = |i: usize| word(panel, PANEL_QS + 32 * (i / 4) + 4 * row) >> (2 * (i % 4)) & TWO;
        Fields {
            codes: std::array::from_fn(code),
            scales: std::array::from_fn(|i| panel[place(row, i)] & 15),
            mins: std::array::from_fn(|i| panel[place(row, i)] >> 4),
            d: half(PANEL_D),
            dmin: half(PANEL_DMIN),
        }
    }
    fn put_panel_fields(fields: &Fields, row: usize, panel: &mut [u8]) {
        for i in 0..16 {
            panel[place(row, i)] = fields.scales[i] | fields.mins[i] << 4;
        }
        panel[PANEL_D + 2 * row..][..2].copy_from_slice(&fields.d);
        panel[PANEL_DMIN + 2 * row..][..2].copy_from_slice(&fields.dmin);
        for (sub, [a, b, c, e]) in fields.codes.as_chunks().0.iter().enumerate() {
            put_word(panel, PANEL_QS + 32 * sub + 4 * row, a | b << 2 | c << 4 | e << 6);
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "SIMD loads by pointer")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::*;
    use crate::act::Q8X256_PAIRS;
    use crate::avx2::{dword, halves, high_nibbles, load, low_nibbles};
    use crate::block256::{Kernel, Rest, Sums, twice};

    /// Bounds: a pair of products is at most 2 * 3 * 127 and four of them 3048; times a scale of 15, two a lane, sixteen
    /// sub-blocks: 1.5 million.
    impl Kernel for Q2K {
        const SUMS: Sums = Sums::Half;
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
            twice(low_nibbles(unsafe { load(header.add(32 * (sub / 4))) }), sub % 4)
        }

        #[inline]
        #[target_feature(enable = "avx2")]
        unsafe fn codes(run: *const u8, half: usize) -> [__m256i; 4] {
            // SAFETY: a run is two vectors.
            let v = unsafe { load(run.add(32 * half)) };
            let two = _mm256_set1_epi8(3);
            // What crosses bytes is masked away.
            [
                _mm256_and_si256(v, two),
                _mm256_and_si256(_mm256_srli_epi16::<2>(v), two),
                _mm256_and_si256(_mm256_srli_epi16::<4>(v), two),
                _mm256_and_si256(_mm256_srli_epi16::<6>(v), two),
            ]
        }

        #[inline]
        #[target_feature(enable = "avx2,f16c")]
        unsafe fn rest(p: *const u8, _header: &Self::Header, to: &mut Rest) {
            // SAFETY: the caller's promise.
            unsafe {
                (to.d, to.dmin) = (halves(p.add(PANEL_D)), halves(p.add(PANEL_DMIN)));
                for (sub, min) in to.mins.iter_mut().enumerate() {
                    *min = twice(high_nibbles(load(p.add(32 * (sub / 4)))), sub % 4);
                }
            }
        }

        /// The pair sums are -32 * (sum of two bytes of four), at most 32 * 8 * 127; times a min of 15, two a lane, sixteen
        /// sub-blocks: 15.6 million. The sum of it all is a multiple of 32.
        #[inline]
        #[target_feature(enable = "avx2,fma")]
        unsafe fn block_value(isum: __m256i, rest: &Rest, act: *const u8) -> __m256 {
            let mut negative = _mm256_setzero_si256();
            for (sub, &min) in rest.mins.iter().enumerate() {
                // SAFETY: the pair sums lie within the activation block.
                let pairs = unsafe { dword(act.add(Q8X256_PAIRS + 4 * sub)) };
                negative = _mm256_add_epi32(negative, _mm256_madd_epi16(pairs, min));
            }
            let msum = _mm256_srai_epi32::<5>(_mm256_sub_epi32(_mm256_setzero_si256(), negative));
            let value = _mm256_mul_ps(_mm256_cvtepi32_ps(isum), rest.d);
            _mm256_fnmadd_ps(_mm256_cvtepi32_ps(msum), rest.dmin, value)
        }
    }
}

#[cfg(target_arch = "aarch64")]
pub(super) use neon::fours;

#[cfg(target_arch = "aarch64")]
#[expect(unsafe_code, reason = "SIMD loads by pointer")]
mod neon {
    use std::arch::aarch64::*;

    use super::*;
    use crate::neon::{Kernel256, less, load, nibbles};

    impl Kernel256 for Q2K {
        const HEADER: usize = PANEL_QS;
        const D: usize = PANEL_D;
        const DMIN: usize = PANEL_DMIN;

        #[inline]
        #[target_feature(enable = "neon")]
        unsafe fn scales(p: *const u8, half: usize) -> [int8x16_t; 4] {
            // SAFETY: there are four vectors, scales low.
            less([0, 1, 2, 3].map(|v| nibbles(unsafe { load(p.add(32 * v + 16 * half)) })[0]), 0)
        }

        #[inline]
        #[target_feature(enable = "neon")]
        unsafe fn mins(p: *const u8, half: usize) -> [int8x16_t; 4] {
            // SAFETY: there are four vectors, mins high.
            less([0, 1, 2, 3].map(|v| nibbles(unsafe { load(p.add(32 * v + 16 * half)) })[1]), 0)
        }

        #[inline]
        #[target_feature(enable = "neon")]
        unsafe fn values(run: *const u8) -> [int8x16_t; 8] {
            let mut codes = [vdupq_n_u8(0); 8];
            for (sub, codes) in codes.as_chunks_mut().0.iter_mut().enumerate() {
                // SAFETY: a run is two vectors.
                *codes = fours(unsafe { load(run.add(32 * sub)) });
            }
            less(codes, 0)
        }
    }

    /// Four words of codes below 4, from the lowest bits up.
    #[inline]
    #[target_feature(enable = "neon")]
    pub(crate) fn fours(v: uint8x16_t) -> [uint8x16_t; 4] {
        let two = vdupq_n_u8(3);
        [
            vandq_u8(v, two),
            vandq_u8(vshrq_n_u8::<2>(v), two),
            vandq_u8(vshrq_n_u8::<4>(v), two),
            vshrq_n_u8::<6>(v),
        ]
    }
}
