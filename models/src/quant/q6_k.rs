//! Q6_K: `d * scale * (q - 32)`, a signed 8-bit scale per 16.
//!
//! File block of 256, 210 bytes: low four bits, 128 bytes; upper two bits, 64 bytes; i8 scales[16]; f16 d. Halves of 128
//! have 64 and 32 of those bytes: see [`codes`].
//!
//! Panel block, 1680 bytes: scales, 4 vectors of four sub-blocks, half `r / 4` of a vector with row r's scale of
//! sub-block j of four at byte `4j + r % 4`; d of eight rows; for each sub-block of 16 three vectors with row r at
//! bytes 4r..4r+4: low bits of word 0 low and word 1 high, of word 2 low and word 3 high, upper bits of
//! words 0-3 from the lowest bits up.
//!
//! Product: `isum = sum of scale * (q - 32) * a`, an exact integer, then `acc = fma(isum * d, d_act, acc)`.

use super::act::{Q8X256_BYTES, Q8X256_D};
use super::block32::dot4;
use super::{ActKind, Format, GgmlType, PANEL, blocks, half_at, put_word, signed, single_at, word};

pub(super) const FORMAT: Format = Format {
    ty: GgmlType::Q6_K,
    name: "Q6_K",
    ggml_id: 14,
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

const BYTES: usize = 210;
/// Where a file block's upper bits, scales and d lie.
const QH: usize = 128;
const SCALES: usize = QH + 64;
const D: usize = SCALES + 16;
const _: () = assert!(BYTES == D + 2);

/// Where a panel block's d and codes lie, and the bytes of a sub-block's codes.
const PANEL_D: usize = 16 * PANEL;
const PANEL_QS: usize = PANEL_D + 2 * PANEL;
const SUB: usize = 3 * 32;
const _: () = assert!(PANEL_QS + 16 * SUB == PANEL * BYTES);

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

/// Where a panel block has row `row`'s scale of sub-block `sub` of 16.
fn scale_place(row: usize, sub: usize) -> usize {
    32 * (sub / 4) + 16 * (row / 4) + 4 * (sub % 4) + row % 4
}

fn dequantize(src: &[u8], dst: &mut [f32]) {
    for (block, values) in blocks::<256>(src, BYTES, dst) {
        let d = half_at(block, D);
        let codes = codes(block);
        for (i, (values, code)) in values.as_chunks_mut::<4>().0.iter_mut().zip(codes).enumerate() {
            let scale = d * f32::from(block[SCALES + i / 4].cast_signed());
            *values = signed(code).map(|q| scale * f32::from(q - 32));
        }
    }
}

fn pack(rows: &[&[u8]; PANEL], panel: &mut [u8]) {
    assert!(rows.iter().all(|row| row.len() * PANEL == panel.len()), "a panel holds eight rows");
    for (b, panel) in panel.chunks_exact_mut(PANEL * BYTES).enumerate() {
        for (r, row) in rows.iter().enumerate() {
            let block = &row[b * BYTES..(b + 1) * BYTES];
            for sub in 0..16 {
                panel[scale_place(r, sub)] = block[SCALES + sub];
            }
            panel[PANEL_D + 2 * r..][..2].copy_from_slice(&block[D..]);
            put_panel_codes(&codes(block), r, panel);
        }
    }
}

fn unpack(panel: &[u8], row: usize, dst: &mut [u8]) {
    assert!(row < PANEL && dst.len() * PANEL == panel.len(), "a panel holds eight rows");
    for (panel, block) in panel.chunks_exact(PANEL * BYTES).zip(dst.chunks_exact_mut(BYTES)) {
        put_codes(&panel_codes(panel, row), block);
        for sub in 0..16 {
            block[SCALES + sub] = panel[scale_place(row, sub)];
        }
        block[D..].copy_from_slice(&panel[PANEL_D + 2 * row..][..2]);
    }
}

fn scalar(panel: &[u8], cols: usize, acts: &[&[u8]], out: &mut [[f32; PANEL]]) {
    FORMAT.check(panel, cols, acts, out);
    out.fill([0.0; PANEL]);
    for (b, block) in panel.chunks_exact(PANEL * BYTES).enumerate() {
        for r in 0..PANEL {
            let codes = panel_codes(block, r).map(|w| signed(w).map(|q| i32::from(q) - 32));
            let d = half_at(block, PANEL_D + 2 * r);
            for (act, out) in acts.iter().zip(&mut *out) {
                let act = &act[b * Q8X256_BYTES..(b + 1) * Q8X256_BYTES];
                let mut isum = 0;
                for (sub, codes) in codes.as_chunks::<4>().0.iter().enumerate() {
                    let q = act[16 * sub..16 * (sub + 1)].as_chunks().0;
                    let dot: i32 = codes.iter().zip(q).map(|(w, q)| dot4(w, q)).sum();
                    isum += i32::from(block[scale_place(r, sub)].cast_signed()) * dot;
                }
                out[r] = (isum as f32 * d).mul_add(single_at(act, Q8X256_D), out[r]);
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "SIMD loads by pointer")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::*;
    use crate::quant::act::Q8X256_PAIRS;
    use crate::quant::avx2::{
        available, by_columns, dword, halves, high_nibbles, load, low_nibbles, prefetch, single,
    };
    use crate::quant::wide::{self, Decoded, Rest, Wide};

    pub(super) fn wide(panels: [&[u8]; 2], cols: usize, acts: &[&[u8]], out: &mut [[[f32; PANEL]; 2]]) {
        wide::product::<Q6K>(panels, cols, acts, out);
    }

    pub(super) fn product(panel: &[u8], cols: usize, acts: &[&[u8]], out: &mut [[f32; PANEL]]) {
        let count = FORMAT.check(panel, cols, acts, out);
        assert!(available(), "no AVX2 on this processor");
        // SAFETY: the processor has the features; `check` asserted the lengths.
        unsafe { by_columns!(acts, tile[](panel.as_ptr(), count, acts, out)) }
    }

    /// Each row's scale of sub-block j of four, twice, as 16-bit values.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn scale(scales: __m256i, j: i32) -> __m256i {
        let rows = _mm256_setr_epi32(0, 1, 2, 3, 0, 1, 2, 3);
        // Scales go to the upper bytes; a sign bit in the pattern gives zero below them.
        let pattern = _mm256_set1_epi32(0x0080_0080 | (4 * j) << 8 | (4 * j) << 24);
        let both = _mm256_or_si256(_mm256_slli_epi32::<8>(rows), _mm256_slli_epi32::<24>(rows));
        _mm256_srai_epi16::<8>(_mm256_shuffle_epi8(scales, _mm256_or_si256(pattern, both)))
    }

    /// A sub-block's four vectors of codes, one for each word.
    ///
    /// # Safety
    /// `p` is readable for three vectors.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn codes(p: *const u8) -> [__m256i; 4] {
        // SAFETY: the caller's promise.
        let (a, b, h) = unsafe { (load(p), load(p.add(32)), load(p.add(64))) };
        let upper = _mm256_set1_epi8(0x30);
        // Each pair of bits to bits 4 and 5; what crosses bytes is masked away.
        [
            _mm256_or_si256(low_nibbles(a), _mm256_and_si256(_mm256_slli_epi16::<4>(h), upper)),
            _mm256_or_si256(high_nibbles(a), _mm256_and_si256(_mm256_slli_epi16::<2>(h), upper)),
            _mm256_or_si256(low_nibbles(b), _mm256_and_si256(h, upper)),
            _mm256_or_si256(high_nibbles(b), _mm256_and_si256(_mm256_srli_epi16::<2>(h), upper)),
        ]
    }

    /// Bounds: a pair of products is at most 2 * 63 * 127 = 16002, so `maddubs` does not saturate. The 16-bit sum starts
    /// at -32 * (sum of its a); on the way it is the sum of (q - 32) * a over the products done and of -32 * a over
    /// the others, so always within 8 * 32 * 127 = 32512. Times a scale of -128, two a lane, sixteen sub-blocks: 133
    /// million.
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
                let mut isums = [_mm256_setzero_si256(); N];
                for quarter in 0..4 {
                    let scales = load(p.add(32 * quarter));
                    for j in 0..4 {
                        let sub = 4 * quarter + j;
                        let p = p.add(PANEL_QS + SUB * sub);
                        prefetch::<SUB>(p);
                        let codes = codes(p);
                        let scale = scale(scales, j as i32);
                        for (x, isum) in x.iter().zip(&mut isums) {
                            let act = x.add(b * Q8X256_BYTES);
                            let mut sum = dword(act.add(Q8X256_PAIRS + 4 * sub));
                            for (i, &w) in codes.iter().enumerate() {
                                let q = dword(act.add(16 * sub + 4 * i));
                                sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(w, q));
                            }
                            *isum = _mm256_add_epi32(*isum, _mm256_madd_epi16(sum, scale));
                        }
                    }
                }
                let rest = rest(p);
                for ((x, isum), total) in x.iter().zip(isums).zip(&mut sums) {
                    let act = x.add(b * Q8X256_BYTES);
                    let value = Q6K::value(isum, &rest, act);
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
    unsafe fn rest(p: *const u8) -> Rest {
        // SAFETY: the caller's promise.
        let d = unsafe { halves(p.add(PANEL_D)) };
        Rest { d, dmin: _mm256_setzero_ps(), mins: [_mm256_setzero_si256(); 4] }
    }

    pub(super) struct Q6K;

    impl Wide for Q6K {
        const FORMAT: Format = FORMAT;
        const SUBS: usize = 16;
        const BIASED: bool = true;

        #[inline]
        #[target_feature(enable = "avx2,f16c")]
        unsafe fn decode(p: *const u8, panel: usize, to: &mut Decoded) {
            // SAFETY: the caller's promise.
            unsafe {
                prefetch::<PANEL_QS>(p);
                to.rest[panel] = rest(p);
                for sub in 0..16 {
                    let scales = load(p.add(32 * (sub / 4)));
                    to.scales[sub][panel] = scale(scales, sub as i32 % 4);
                    let p = p.add(PANEL_QS + SUB * sub);
                    prefetch::<SUB>(p);
                    for (to, code) in to.codes[4 * sub..4 * sub + 4].iter_mut().zip(codes(p)) {
                        to[panel] = code;
                    }
                }
            }
        }

        #[inline]
        #[target_feature(enable = "avx2,fma")]
        unsafe fn value(isum: __m256i, rest: &Rest, _act: *const u8) -> __m256 {
            _mm256_mul_ps(_mm256_cvtepi32_ps(isum), rest.d)
        }
    }
}
