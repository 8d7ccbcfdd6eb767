//! Q4_K: `d * scale * q - dmin * min`, a 6-bit scale and min per 32.
//!
//! File block of 256, 144 bytes: f16 d; f16 dmin; 12 bytes of scales and mins ([`scales_mins`]); 4 groups of 32 bytes,
//! elements 64g.. low, 64g + 32.. high.
//!
//! Panel block, 1152 bytes: 3 vectors of scales and mins; d of eight rows; dmin of eight rows; 32 vectors, word 2v low,
//! word 2v + 1 high, row r at bytes 4r..4r+4. In a vector of scales, half `r / 4` has at byte `4j + r % 4` row r's
//! value of sub-block j of four: the low six bits of the first vector are the scales of sub-blocks 0-3, of the second
//! scales 4-7, of the third mins 0-3; mins 4-7 are spread over the upper two bits, lowest bits first.
//!
//! Product: `isum = sum of scale * q * a` and `msum = sum of min * a`, exact integers, then
//! `acc = fma(fma(-msum, dmin, isum * d), d_act, acc)`.

use super::act::{Q8X256_BYTES, Q8X256_D, Q8X256_SUMS};
use super::block32::dot4;
use super::{ActKind, Format, GgmlType, PANEL, blocks, half_at, put_word, signed, single_at, word};

pub(super) const FORMAT: Format = Format {
    ty: GgmlType::Q4_K,
    name: "Q4_K",
    ggml_id: 12,
    block: 256,
    block_bytes: BYTES,
    act: ActKind::Q8x256,
    dequantize,
    pack,
    unpack,
    scalar,
    #[cfg(target_arch = "x86_64")]
    avx2: avx2::product,
    #[cfg(target_arch = "x86_64")]
    avx2_wide: Some(avx2::wide),
};

const BYTES: usize = 144;
/// Where a file block's codes start.
const QS: usize = 16;
const _: () = assert!(BYTES == QS + 128 && QS == 2 + 2 + 12);

/// Where a panel block's d and dmin lie, and its codes.
const PANEL_D: usize = 96;
const PANEL_DMIN: usize = PANEL_D + 2 * PANEL;
const PANEL_QS: usize = PANEL_DMIN + 2 * PANEL;
const _: () = assert!(PANEL_QS + 32 * 32 == PANEL * BYTES);

const LOW: u32 = 0x0f0f_0f0f;

/// Scales and mins of the eight sub-blocks.
fn scales_mins(s: &[u8]) -> ([u8; 8], [u8; 8]) {
    let (mut scales, mut mins) = ([0; 8], [0; 8]);
    for j in 0..4 {
        scales[j] = s[j] & 63;
        mins[j] = s[j + 4] & 63;
        scales[j + 4] = s[j + 8] & 15 | s[j] >> 6 << 4;
        mins[j + 4] = s[j + 8] >> 4 | s[j + 4] >> 6 << 4;
    }
    (scales, mins)
}

/// The inverse of [`scales_mins`].
fn put_scales_mins(scales: [u8; 8], mins: [u8; 8], s: &mut [u8]) {
    for j in 0..4 {
        s[j] = scales[j] | scales[j + 4] >> 4 << 6;
        s[j + 4] = mins[j] | mins[j + 4] >> 4 << 6;
        s[j + 8] = scales[j + 4] & 15 | mins[j + 4] << 4;
    }
}

/// A row's scales and mins in a panel block.
fn panel_scales_mins(block: &[u8], row: usize) -> ([u8; 8], [u8; 8]) {
    let (mut scales, mut mins) = ([0; 8], [0; 8]);
    for j in 0..4 {
        let [a, b, c] = scale_places(row, j).map(|at| block[at]);
        scales[j] = a & 63;
        scales[j + 4] = b & 63;
        mins[j] = c & 63;
        mins[j + 4] = a >> 6 | b >> 6 << 2 | c >> 6 << 4;
    }
    (scales, mins)
}

/// The inverse of [`panel_scales_mins`].
fn put_panel_scales_mins(scales: [u8; 8], mins: [u8; 8], row: usize, block: &mut [u8]) {
    for j in 0..4 {
        let spread = mins[j + 4];
        let values = [
            scales[j] | (spread & 3) << 6,
            scales[j + 4] | (spread >> 2 & 3) << 6,
            mins[j] | (spread >> 4) << 6,
        ];
        for (at, value) in scale_places(row, j).into_iter().zip(values) {
            block[at] = value;
        }
    }
}

/// Where the three vectors have row `row`'s values of sub-block j of four.
fn scale_places(row: usize, j: usize) -> [usize; 3] {
    let at = 16 * (row / 4) + 4 * j + row % 4;
    [at, 32 + at, 64 + at]
}

fn dequantize(src: &[u8], dst: &mut [f32]) {
    for (block, values) in blocks::<256>(src, BYTES, dst) {
        let (d, dmin) = (half_at(block, 0), half_at(block, 2));
        let (scales, mins) = scales_mins(&block[4..QS]);
        for (j, values) in values.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let (scale, min) = (d * f32::from(scales[j]), dmin * f32::from(mins[j]));
            let group = &block[QS + 32 * (j / 2)..][..32];
            for (to, q) in values.iter_mut().zip(group) {
                *to = scale * f32::from(q >> (4 * (j % 2)) & 15) - min;
            }
        }
    }
}

fn pack(rows: &[&[u8]; PANEL], panel: &mut [u8]) {
    assert!(rows.iter().all(|row| row.len() * PANEL == panel.len()), "a panel holds eight rows");
    for (b, panel) in panel.chunks_exact_mut(PANEL * BYTES).enumerate() {
        for (r, row) in rows.iter().enumerate() {
            let block = &row[b * BYTES..(b + 1) * BYTES];
            panel[PANEL_D + 2 * r..][..2].copy_from_slice(&block[..2]);
            panel[PANEL_DMIN + 2 * r..][..2].copy_from_slice(&block[2..4]);
            let (scales, mins) = scales_mins(&block[4..QS]);
            put_panel_scales_mins(scales, mins, r, panel);
            for v in 0..32 {
                // Vector v is pair v % 4 of sub-block v / 4.
                let at = QS + 32 * (v / 8) + 8 * (v % 4);
                let shift = 4 * (v / 4 % 2);
                let [low, high] = [word(block, at), word(block, at + 4)].map(|w| w >> shift & LOW);
                put_word(panel, PANEL_QS + 32 * v + 4 * r, low | high << 4);
            }
        }
    }
}

fn unpack(panel: &[u8], row: usize, dst: &mut [u8]) {
    assert!(row < PANEL && dst.len() * PANEL == panel.len(), "a panel holds eight rows");
    for (panel, block) in panel.chunks_exact(PANEL * BYTES).zip(dst.chunks_exact_mut(BYTES)) {
        block[..2].copy_from_slice(&panel[PANEL_D + 2 * row..][..2]);
        block[2..4].copy_from_slice(&panel[PANEL_DMIN + 2 * row..][..2]);
        let (scales, mins) = panel_scales_mins(panel, row);
        put_scales_mins(scales, mins, &mut block[4..QS]);
        for group in 0..4 {
            for i in 0..8 {
                let (v, shift) = (8 * group + i / 2, 4 * (i % 2));
                let low = word(panel, PANEL_QS + 32 * v + 4 * row) >> shift & LOW;
                let high = word(panel, PANEL_QS + 32 * (v + 4) + 4 * row) >> shift & LOW;
                put_word(block, QS + 32 * group + 4 * i, low | high << 4);
            }
        }
    }
}

fn scalar(panel: &[u8], cols: usize, acts: &[&[u8]], out: &mut [[f32; PANEL]]) {
    FORMAT.check(panel, cols, acts, out);
    out.fill([0.0; PANEL]);
    for (b, block) in panel.chunks_exact(PANEL * BYTES).enumerate() {
        for r in 0..PANEL {
            let (scales, mins) = panel_scales_mins(block, r);
            let codes: [[i32; 4]; 64] = std::array::from_fn(|i| {
                let w = word(block, PANEL_QS + 32 * (i / 2) + 4 * r) >> (4 * (i % 2));
                signed(w & LOW).map(i32::from)
            });
            let (d, dmin) = (half_at(block, PANEL_D + 2 * r), half_at(block, PANEL_DMIN + 2 * r));
            for (act, out) in acts.iter().zip(&mut *out) {
                let act = &act[b * Q8X256_BYTES..(b + 1) * Q8X256_BYTES];
                let (mut isum, mut msum) = (0, 0);
                for j in 0..8 {
                    let q = act[32 * j..32 * (j + 1)].as_chunks().0;
                    let dot: i32 = codes[8 * j..8 * (j + 1)].iter().zip(q).map(|(w, q)| dot4(w, q)).sum();
                    let at = Q8X256_SUMS + 2 * j;
                    isum += i32::from(scales[j]) * dot;
                    msum += i32::from(mins[j]) * i32::from(i16::from_le_bytes([act[at], act[at + 1]]));
                }
                let value = (-(msum as f32)).mul_add(dmin, isum as f32 * d);
                out[r] = value.mul_add(single_at(act, Q8X256_D), out[r]);
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "SIMD loads by pointer")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::*;
    use crate::quant::avx2::{
        available, by_columns, dword, halves, high_nibbles, load, low_nibbles, prefetch, single,
    };
    use crate::quant::wide::{self, Decoded, Rest, Wide};

    pub(super) fn wide(panels: [&[u8]; 2], cols: usize, acts: &[&[u8]], out: &mut [[[f32; PANEL]; 2]]) {
        wide::product::<Q4K>(panels, cols, acts, out);
    }

    pub(super) fn product(panel: &[u8], cols: usize, acts: &[&[u8]], out: &mut [[f32; PANEL]]) {
        let count = FORMAT.check(panel, cols, acts, out);
        assert!(available(), "no AVX2 on this processor");
        // SAFETY: the processor has the features; `check` asserted the lengths.
        unsafe { by_columns!(acts, tile[](panel.as_ptr(), count, acts, out)) }
    }

    /// Scales of sub-blocks 0-3 and 4-7, mins of 0-3 and 4-7, a byte each.
    ///
    /// # Safety
    /// The three vectors at `p` are readable.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn scales_mins(p: *const u8) -> [__m256i; 4] {
        // SAFETY: the caller's promise.
        let (a, b, c) = unsafe { (load(p), load(p.add(32)), load(p.add(64))) };
        let six = _mm256_set1_epi8(63);
        // Shifts of 16-bit lanes; what crosses bytes is masked away.
        let low = _mm256_and_si256(_mm256_srli_epi16::<6>(a), _mm256_set1_epi8(0x03));
        let middle = _mm256_and_si256(_mm256_srli_epi16::<4>(b), _mm256_set1_epi8(0x0c));
        let high = _mm256_and_si256(_mm256_srli_epi16::<2>(c), _mm256_set1_epi8(0x30));
        [
            _mm256_and_si256(a, six),
            _mm256_and_si256(b, six),
            _mm256_and_si256(c, six),
            _mm256_or_si256(_mm256_or_si256(low, middle), high),
        ]
    }

    /// For `pshufb`: each row's bytes of sub-blocks `first` and `second` of four, as a pair of 16-bit values.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn pair_of(first: i32, second: i32) -> __m256i {
        let rows = _mm256_setr_epi32(0, 1, 2, 3, 0, 1, 2, 3);
        // The upper byte of each value has its sign bit set in the pattern, which gives zero.
        let pattern = 0x8000_8000_u32.cast_signed() | (4 * first) | (4 * second) << 16;
        let row_in_both = _mm256_or_si256(rows, _mm256_slli_epi32::<16>(rows));
        _mm256_or_si256(_mm256_set1_epi32(pattern), row_in_both)
    }

    /// A sub-block's eight vectors of codes, one for each word.
    ///
    /// # Safety
    /// `p` is readable for four vectors.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn codes(p: *const u8) -> [__m256i; 8] {
        let mut codes = [_mm256_setzero_si256(); 8];
        for (v, pair) in codes.as_chunks_mut::<2>().0.iter_mut().enumerate() {
            // SAFETY: v < 4.
            let bytes = unsafe { load(p.add(32 * v)) };
            *pair = [low_nibbles(bytes), high_nibbles(bytes)];
        }
        codes
    }

    /// Bounds: a pair of products is at most 2 * 15 * 127 and eight of them 30480, so neither `maddubs` nor the
    /// 16-bit sum overflows; times a scale of 63, two a lane, eight sub-blocks: 30.7 million. Sums of 32 are at most
    /// 4064; times 63, eight of them: 2.1 million.
    ///
    /// # Safety
    /// The features; `p` is a panel of `count` blocks, so is each of the N `acts`; N results.
    #[inline(never)]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn tile<const N: usize>(p: *const u8, count: usize, acts: &[&[u8]], out: &mut [[f32; PANEL]]) {
        let mut x = [std::ptr::null(); N];
        for (x, act) in x.iter_mut().zip(acts) {
            *x = act.as_ptr();
        }
        let mut sums = [_mm256_setzero_ps(); N];
        for b in 0..count {
            // SAFETY: b < count, which bounds the panel and every column.
            unsafe {
                let p = p.add(b * PANEL * BYTES);
                prefetch::<PANEL_QS>(p);
                let [scales0, scales1, mins0, mins1] = scales_mins(p);
                let mut isums = [_mm256_setzero_si256(); N];
                for j in 0..8 {
                    let p = p.add(PANEL_QS + 128 * j);
                    prefetch::<128>(p);
                    let codes = codes(p);
                    let scales = if j < 4 { scales0 } else { scales1 };
                    let scale = _mm256_shuffle_epi8(scales, pair_of(j as i32 % 4, j as i32 % 4));
                    for (x, isum) in x.iter().zip(&mut isums) {
                        let act = x.add(b * Q8X256_BYTES + 32 * j);
                        let mut sum = _mm256_setzero_si256();
                        for (i, &w) in codes.iter().enumerate() {
                            sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(w, dword(act.add(4 * i))));
                        }
                        *isum = _mm256_add_epi32(*isum, _mm256_madd_epi16(sum, scale));
                    }
                }
                let rest = rest(p, mins0, mins1);
                for ((x, isum), total) in x.iter().zip(isums).zip(&mut sums) {
                    let act = x.add(b * Q8X256_BYTES);
                    let value = Q4K::value(isum, &rest, act);
                    *total = _mm256_fmadd_ps(value, single(act.add(Q8X256_D)), *total);
                }
            }
        }
        for (out, sum) in out.iter_mut().zip(sums) {
            // SAFETY: eight values; the store may be unaligned.
            unsafe { _mm256_storeu_ps(out.as_mut_ptr(), sum) };
        }
    }
    /// # Safety
    /// `p` is readable for a panel block.
    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    unsafe fn rest(p: *const u8, mins0: __m256i, mins1: __m256i) -> Rest {
        // SAFETY: the caller's promise.
        let (d, dmin) = unsafe { (halves(p.add(PANEL_D)), halves(p.add(PANEL_DMIN))) };
        let mins = [
            _mm256_shuffle_epi8(mins0, pair_of(0, 1)),
            _mm256_shuffle_epi8(mins0, pair_of(2, 3)),
            _mm256_shuffle_epi8(mins1, pair_of(0, 1)),
            _mm256_shuffle_epi8(mins1, pair_of(2, 3)),
        ];
        Rest { d, dmin, mins }
    }

    pub(super) struct Q4K;

    impl Wide for Q4K {
        const FORMAT: Format = FORMAT;
        const SUBS: usize = 8;
        const BIASED: bool = false;

        #[inline]
        #[target_feature(enable = "avx2,f16c")]
        unsafe fn decode(p: *const u8, panel: usize, to: &mut Decoded) {
            // SAFETY: the caller's promise.
            unsafe {
                prefetch::<PANEL_QS>(p);
                let [scales0, scales1, mins0, mins1] = scales_mins(p);
                to.rest[panel] = rest(p, mins0, mins1);
                for j in 0..8 {
                    let scales = if j < 4 { scales0 } else { scales1 };
                    to.scales[j][panel] = _mm256_shuffle_epi8(scales, pair_of(j as i32 % 4, j as i32 % 4));
                    let p = p.add(PANEL_QS + 128 * j);
                    prefetch::<128>(p);
                    for (to, code) in to.codes[8 * j..8 * j + 8].iter_mut().zip(codes(p)) {
                        to[panel] = code;
                    }
                }
            }
        }

        #[inline]
        #[target_feature(enable = "avx2,fma")]
        unsafe fn value(isum: __m256i, rest: &Rest, act: *const u8) -> __m256 {
            let mut msum = _mm256_setzero_si256();
            for (i, &min) in rest.mins.iter().enumerate() {
                // SAFETY: the sums lie within the activation block.
                let pair = unsafe { dword(act.add(Q8X256_SUMS + 4 * i)) };
                msum = _mm256_add_epi32(msum, _mm256_madd_epi16(pair, min));
            }
            let value = _mm256_mul_ps(_mm256_cvtepi32_ps(isum), rest.d);
            _mm256_fnmadd_ps(_mm256_cvtepi32_ps(msum), rest.dmin, value)
        }
    }
}
