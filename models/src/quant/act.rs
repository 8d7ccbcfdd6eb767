//! Encoded activations: what products read of a column, in natural order, whatever the weight's format.
//!
//! [`ActKind::Q8x32`], [`Q8X32_BYTES`] for 32 values:
//! `q i8[32]; d f32; two i16 = -(sum of bytes 0, 1 | sum of bytes 2, 3) over the block's words; f32 sum of q`.
//!
//! [`ActKind::Q8x256`], [`Q8X256_BYTES`] for 256 values:
//! `q i8[256]; per 16 values two i16 = -32 * (sum of bytes 0, 1 | of bytes 2, 3); per 32 values an i16 sum of q;
//! d f32; 12 bytes of zeros`.
//!
//! The negative sums start an accumulator so that unsigned weight codes act as signed ones. The value is `q * d`;
//! `d = max|x| / 127`, q is rounded to nearest, ties to even, and never -128. A block whose d is not a normal
//! number is all zeros. A block with a value that is not finite has d = NaN and q = 0, so the fault shows in
//! every product.

use super::{ActKind, Isa};

/// Bytes of 32 values.
pub(super) const Q8X32_BYTES: usize = 44;
/// Where d lies; then the pair sums, then the sum.
pub(super) const Q8X32_D: usize = 32;
/// See [`Q8X32_D`].
#[cfg(target_arch = "x86_64")]
pub(super) const Q8X32_PAIRS: usize = 36;
/// See [`Q8X32_D`].
pub(super) const Q8X32_SUM: usize = 40;

/// Bytes of 256 values.
pub(super) const Q8X256_BYTES: usize = 352;
/// Where the pair sums of 16 lie.
pub(super) const Q8X256_PAIRS: usize = 256;
/// Where the sums of 32 lie.
pub(super) const Q8X256_SUMS: usize = 320;
/// Where d lies.
pub(super) const Q8X256_D: usize = 336;

const _: () = assert!(Q8X32_BYTES == Q8X32_SUM + 4);
const _: () = assert!(Q8X256_SUMS == Q8X256_PAIRS + 16 * 4 && Q8X256_D == Q8X256_SUMS + 8 * 2);
const _: () = assert!(Q8X256_BYTES == Q8X256_D + 16);

/// Bytes of an encoded column of `cols` values.
///
/// # Panics
/// If `cols` is not a whole number of the kind's blocks.
pub fn act_bytes(kind: ActKind, cols: usize) -> usize {
    let (block, bytes) = match kind {
        ActKind::F32 => (1, 4),
        ActKind::Q8x32 => (32, Q8X32_BYTES),
        ActKind::Q8x256 => (256, Q8X256_BYTES),
    };
    assert!(cols.is_multiple_of(block), "activations are whole blocks of {block}");
    cols / block * bytes
}

/// Encodes a column of finite values; see the module for the others. Every `isa` gives the same bits.
///
/// # Panics
/// If `out.len() != act_bytes(kind, x.len())`, or the processor lacks `isa`.
pub fn encode(isa: Isa, kind: ActKind, x: &[f32], out: &mut [u8]) {
    assert!(out.len() == act_bytes(kind, x.len()), "room for exactly the encoded column");
    match (kind, isa) {
        (ActKind::F32, _) => {
            for (to, from) in out.as_chunks_mut::<4>().0.iter_mut().zip(x) {
                *to = from.to_le_bytes();
            }
        }
        (ActKind::Q8x32, Isa::Scalar) => each(x, out, q8x32),
        (ActKind::Q8x256, Isa::Scalar) => each(x, out, q8x256),
        // The definition is compiled for NEON as it is.
        #[cfg(target_arch = "aarch64")]
        (ActKind::Q8x32, Isa::Neon) => each(x, out, q8x32),
        #[cfg(target_arch = "aarch64")]
        (ActKind::Q8x256, Isa::Neon) => each(x, out, q8x256),
        #[cfg(target_arch = "x86_64")]
        (ActKind::Q8x32, Isa::Avx2 | Isa::Avx512) => avx2::q8x32(x, out),
        #[cfg(target_arch = "x86_64")]
        (ActKind::Q8x256, Isa::Avx2 | Isa::Avx512) => avx2::q8x256(x, out),
    }
}

fn each<const N: usize, const B: usize>(x: &[f32], out: &mut [u8], block: fn(&[f32; N], &mut [u8; B])) {
    for (x, out) in x.as_chunks().0.iter().zip(out.as_chunks_mut().0) {
        block(x, out);
    }
}

/// A block's d and what to multiply by, from the bits of its largest magnitude; a factor of 0 means that all
/// codes are 0.
fn scale(max_bits: u32) -> (f32, f32) {
    let d = f32::from_bits(max_bits) / 127.0;
    if max_bits >= f32::INFINITY.to_bits() {
        (f32::NAN, 0.0)
    } else if d < f32::MIN_POSITIVE {
        (0.0, 0.0)
    } else {
        (d, 1.0 / d)
    }
}

/// Codes and d of a block. Magnitudes compare as integers: then NaN is the largest of all.
fn quantize<const N: usize>(x: &[f32; N]) -> ([i8; N], f32) {
    let max = x.iter().map(|v| v.to_bits() & 0x7fff_ffff).max().unwrap_or(0);
    let (d, factor) = scale(max);
    // At most 127 * (1 + 2^-22) in magnitude before rounding.
    let q = if factor == 0.0 { [0; N] } else { x.map(|v| (v * factor).round_ties_even() as i8) };
    (q, d)
}

/// Sums of bytes 0 and 1, and of bytes 2 and 3, over the words of `q`.
fn pairs(q: &[i8]) -> [i16; 2] {
    q.as_chunks().0.iter().fold([0, 0], |[a, b], &[q0, q1, q2, q3]: &[i8; 4]| {
        [a + i16::from(q0) + i16::from(q1), b + i16::from(q2) + i16::from(q3)]
    })
}

fn put_pair(out: &mut [u8], at: usize, pair: [i16; 2]) {
    out[at..at + 2].copy_from_slice(&pair[0].to_le_bytes());
    out[at + 2..at + 4].copy_from_slice(&pair[1].to_le_bytes());
}

fn q8x32(x: &[f32; 32], out: &mut [u8; Q8X32_BYTES]) {
    let (q, d) = quantize(x);
    let [a, b] = pairs(&q);
    out[..32].copy_from_slice(&q.map(i8::cast_unsigned));
    out[Q8X32_D..Q8X32_D + 4].copy_from_slice(&d.to_le_bytes());
    put_pair(out, Q8X32_D + 4, [-a, -b]);
    out[Q8X32_SUM..].copy_from_slice(&f32::from(a + b).to_le_bytes());
}

fn q8x256(x: &[f32; 256], out: &mut [u8; Q8X256_BYTES]) {
    let (q, d) = quantize(x);
    out[..256].copy_from_slice(&q.map(i8::cast_unsigned));
    for (i, half) in q.chunks_exact(32).enumerate() {
        let ([a, b], [c, e]) = (pairs(&half[..16]), pairs(&half[16..]));
        // 32 * 8 * 127 = 32512 fits.
        put_pair(out, Q8X256_PAIRS + 8 * i, [-32 * a, -32 * b]);
        put_pair(out, Q8X256_PAIRS + 8 * i + 4, [-32 * c, -32 * e]);
        let at = Q8X256_SUMS + 2 * i;
        out[at..at + 2].copy_from_slice(&(a + b + c + e).to_le_bytes());
    }
    out[Q8X256_D..Q8X256_D + 4].copy_from_slice(&d.to_le_bytes());
    out[Q8X256_D + 4..].fill(0);
}

#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "SIMD loads and stores by pointer")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::*;
    use crate::avx2::available;

    pub(super) fn q8x32(x: &[f32], out: &mut [u8]) {
        assert!(available(), "no AVX2 on this processor");
        for (x, out) in x.as_chunks().0.iter().zip(out.as_chunks_mut().0) {
            // SAFETY: the processor has the features.
            unsafe { block32(x, out) };
        }
    }

    pub(super) fn q8x256(x: &[f32], out: &mut [u8]) {
        assert!(available(), "no AVX2 on this processor");
        for (x, out) in x.as_chunks().0.iter().zip(out.as_chunks_mut().0) {
            // SAFETY: the processor has the features.
            unsafe { block256(x, out) };
        }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn values(x: &[f32; 32]) -> [__m256; 4] {
        let p = x.as_ptr();
        // SAFETY: 32 values are readable; the loads may be unaligned.
        unsafe {
            [
                _mm256_loadu_ps(p),
                _mm256_loadu_ps(p.add(8)),
                _mm256_loadu_ps(p.add(16)),
                _mm256_loadu_ps(p.add(24)),
            ]
        }
    }

    /// Bits of the largest magnitude, per lane.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn magnitude(x: [__m256; 4]) -> __m256i {
        let bits = _mm256_set1_epi32(0x7fff_ffff);
        let mut max = _mm256_setzero_si256();
        for v in x {
            max = _mm256_max_epi32(max, _mm256_and_si256(_mm256_castps_si256(v), bits));
        }
        max
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn largest(max: __m256i) -> u32 {
        let v = _mm_max_epi32(_mm256_castsi256_si128(max), _mm256_extracti128_si256::<1>(max));
        let v = _mm_max_epi32(v, _mm_shuffle_epi32::<0b01_00_11_10>(v));
        let v = _mm_max_epi32(v, _mm_shuffle_epi32::<0b10_11_00_01>(v));
        _mm_cvtsi128_si32(v).cast_unsigned()
    }

    /// Codes of 32 values, in order.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn codes(x: [__m256; 4], factor: f32) -> __m256i {
        if factor == 0.0 {
            return _mm256_setzero_si256();
        }
        let f = _mm256_set1_ps(factor);
        let [a, b, c, d] = x;
        let a = _mm256_cvtps_epi32(_mm256_mul_ps(a, f));
        let b = _mm256_cvtps_epi32(_mm256_mul_ps(b, f));
        let c = _mm256_cvtps_epi32(_mm256_mul_ps(c, f));
        let d = _mm256_cvtps_epi32(_mm256_mul_ps(d, f));
        let bytes = _mm256_packs_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
        // Packs work within lanes: words come out as a0 b0 c0 d0 a1 b1 c1 d1.
        _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7))
    }

    /// Negative pair sums over each half's 16 codes, repeated in each of its words.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn negative_pairs(q: __m256i) -> __m256i {
        let v = _mm256_maddubs_epi16(_mm256_set1_epi8(1), q);
        let v = _mm256_add_epi16(v, _mm256_shuffle_epi32::<0b01_00_11_10>(v));
        let v = _mm256_add_epi16(v, _mm256_shuffle_epi32::<0b10_11_00_01>(v));
        _mm256_sub_epi16(_mm256_setzero_si256(), v)
    }

    /// The first word of each half.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn words(v: __m256i) -> [u32; 2] {
        [_mm256_extract_epi32::<0>(v), _mm256_extract_epi32::<4>(v)].map(i32::cast_unsigned)
    }

    /// Both 16-bit parts of a word of negative pair sums, added and negated.
    fn sum(pairs: u32) -> i16 {
        -(pairs as i16).wrapping_add((pairs >> 16) as i16)
    }

    #[target_feature(enable = "avx2")]
    fn block32(x: &[f32; 32], out: &mut [u8; Q8X32_BYTES]) {
        let x = values(x);
        let (d, factor) = scale(largest(magnitude(x)));
        let q = codes(x, factor);
        // SAFETY: `out` has more than 32 bytes; the store may be unaligned.
        unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), q) };
        let half = negative_pairs(q);
        let [pairs, _] = words(_mm256_add_epi16(half, _mm256_permute2x128_si256::<1>(half, half)));
        out[Q8X32_D..Q8X32_PAIRS].copy_from_slice(&d.to_le_bytes());
        out[Q8X32_PAIRS..Q8X32_SUM].copy_from_slice(&pairs.to_le_bytes());
        out[Q8X32_SUM..].copy_from_slice(&f32::from(sum(pairs)).to_le_bytes());
    }

    #[target_feature(enable = "avx2")]
    fn block256(x: &[f32; 256], out: &mut [u8; Q8X256_BYTES]) {
        let mut max = _mm256_setzero_si256();
        for x in x.as_chunks::<32>().0 {
            max = _mm256_max_epi32(max, magnitude(values(x)));
        }
        let (d, factor) = scale(largest(max));
        for (i, x) in x.as_chunks::<32>().0.iter().enumerate() {
            let q = codes(values(x), factor);
            // SAFETY: i < 8, and `out` has more than 256 bytes; the store may be unaligned.
            unsafe { _mm256_storeu_si256(out.as_mut_ptr().add(32 * i).cast(), q) };
            let half = negative_pairs(q);
            let [a, b] = words(_mm256_slli_epi16::<5>(half));
            let at = Q8X256_PAIRS + 8 * i;
            out[at..at + 4].copy_from_slice(&a.to_le_bytes());
            out[at + 4..at + 8].copy_from_slice(&b.to_le_bytes());
            let [a, b] = words(half);
            let at = Q8X256_SUMS + 2 * i;
            out[at..at + 2].copy_from_slice(&(sum(a) + sum(b)).to_le_bytes());
        }
        out[Q8X256_D..Q8X256_D + 4].copy_from_slice(&d.to_le_bytes());
        out[Q8X256_D + 4..].fill(0);
    }
}
