//! Packing K-quants with AVX2: 32 bytes of eight rows are transposed, so that a vector has the rows' word w, then codes move as
//! vectors. Bytes are those of [`block256::pack`], which moves them one by one and is the definition.

#![expect(unsafe_code, reason = "SIMD loads and stores by pointer")]

use std::arch::x86_64::*;

use super::PANEL;
use super::avx2::{available, high_nibbles, load, low_nibbles};
use super::block256::Block256;

/// A format whose blocks of eight rows can be interleaved as vectors.
pub(super) trait Interleave: Block256 {
    /// Writes every byte of a panel block from the rows' file blocks.
    ///
    /// # Safety
    /// The processor has AVX2.
    unsafe fn interleave(blocks: &[&[u8]; PANEL], panel: &mut [u8]);
}

pub(super) fn pack<B: Interleave>(rows: &[&[u8]; PANEL], panel: &mut [u8]) {
    assert!(available(), "no AVX2 on this processor");
    assert!(rows.iter().all(|row| row.len() * PANEL == panel.len()), "a panel holds eight rows");
    let bytes = B::FORMAT.block_bytes;
    for (b, panel) in panel.chunks_exact_mut(PANEL * bytes).enumerate() {
        let blocks = rows.map(|row| &row[b * bytes..(b + 1) * bytes]);
        // SAFETY: the processor has the features.
        unsafe { B::interleave(&blocks, panel) };
    }
}

/// Words 0 to 7 of the 32 bytes at `at` of each block: vector w has row r's word w at bytes 4r..4r+4.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn words(blocks: &[&[u8]; PANEL], at: usize) -> [__m256i; 8] {
    // SAFETY: each slice has 32 bytes.
    let rows = blocks.map(|block| unsafe { load(block[at..at + 32].as_ptr()) });
    // Of four rows words 0 | 4, 1 | 5, 2 | 6 and 3 | 7, a half-vector each.
    let four = |r: usize| {
        let (low, low2) =
            (_mm256_unpacklo_epi32(rows[r], rows[r + 1]), _mm256_unpacklo_epi32(rows[r + 2], rows[r + 3]));
        let (high, high2) =
            (_mm256_unpackhi_epi32(rows[r], rows[r + 1]), _mm256_unpackhi_epi32(rows[r + 2], rows[r + 3]));
        [
            _mm256_unpacklo_epi64(low, low2),
            _mm256_unpackhi_epi64(low, low2),
            _mm256_unpacklo_epi64(high, high2),
            _mm256_unpackhi_epi64(high, high2),
        ]
    };
    let (first, second) = (four(0), four(4));
    std::array::from_fn(|w| match w {
        0..4 => _mm256_permute2x128_si256::<0x20>(first[w], second[w]),
        _ => _mm256_permute2x128_si256::<0x31>(first[w - 4], second[w - 4]),
    })
}

/// Of eight words of nibbles the low ones, then the high ones: word 2v low, word 2v + 1 high.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn nibbles(words: [__m256i; 8]) -> [[__m256i; 4]; 2] {
    let upper = _mm256_set1_epi8(0xf0_u8.cast_signed());
    [
        std::array::from_fn(|v| {
            let second = _mm256_and_si256(_mm256_slli_epi16::<4>(words[2 * v + 1]), upper);
            _mm256_or_si256(low_nibbles(words[2 * v]), second)
        }),
        std::array::from_fn(|v| {
            _mm256_or_si256(high_nibbles(words[2 * v]), _mm256_and_si256(words[2 * v + 1], upper))
        }),
    ]
}

/// Of eight rows' word the bytes as [`place`](super::block256::place) has those of four sub-blocks.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn placed(word: __m256i) -> __m256i {
    // Byte j of row r, at 4r + j, goes to 4j + r.
    let half = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    _mm256_shuffle_epi8(word, _mm256_broadcastsi128_si256(half))
}

/// From each word the bits of `mask` that lie `shift` up; those of word i go `step * i` up.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn fields(words: &[__m256i], shift: usize, mask: i8, step: usize) -> __m256i {
    let (mask, count) = (_mm256_set1_epi8(mask), |n: usize| _mm_cvtsi32_si128(n as i32));
    let mut all = _mm256_setzero_si256();
    for (i, &word) in words.iter().enumerate() {
        // Shifts of 16-bit lanes; what crosses bytes is masked away, and the fields of a byte fit it.
        let field = _mm256_and_si256(_mm256_srl_epi16(word, count(shift)), mask);
        all = _mm256_or_si256(all, _mm256_sll_epi16(field, count(step * i)));
    }
    all
}

/// Stores vectors one after another from `at`.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn store(vectors: &[__m256i], at: usize, panel: &mut [u8]) {
    let (to, _) = panel[at..at + 32 * vectors.len()].as_chunks_mut::<32>();
    for (to, &v) in to.iter_mut().zip(vectors) {
        // SAFETY: 32 bytes; the store may be unaligned.
        unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), v) };
    }
}
