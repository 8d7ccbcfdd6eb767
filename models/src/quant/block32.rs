//! What formats with blocks of 32 share: one or two factors, then codes.
//!
//! A file block is `FACTORS` factors (d, or d and m) and a body of codes, which stand for small integers w; its value is
//! `d * w`, `+ m` if there is one. A panel's block is, for each factor, the eight rows', then a body of 32-byte vectors,
//! in which row r has bytes `4r..4r+4`: four consecutive k. What the vectors hold is the format's business.
//!
//! Product: per block `isum = sum of w * q`, an exact integer, then
//! `acc = fma(isum * d, d_act, acc)`, or with m `acc = fma(fma(m, sum of q, isum * d), d_act, acc)`.

use super::act::{Q8X32_BYTES, Q8X32_D, Q8X32_SUM};
use super::{Format, PANEL, blocks, half_at, put_word, single_at, word};

/// A format with blocks of 32. Codes come as eight words of four, in order of k.
pub(super) trait Block32 {
    /// Its row of the table.
    const FORMAT: Format;
    /// Factors before the codes: d, or d and m.
    const FACTORS: usize;
    /// Bytes of a factor.
    const FACTOR_BYTES: usize = 2;
    /// The factor at `at`: an f16 unless the format says otherwise.
    fn factor(bytes: &[u8], at: usize) -> f32 {
        half_at(bytes, at)
    }
    /// What a code stands for.
    fn value(code: u8) -> i8;
    /// Codes of a file block's body.
    fn codes(body: &[u8]) -> [u32; 8];
    /// The inverse of [`Block32::codes`].
    fn put_codes(codes: [u32; 8], body: &mut [u8]);
    /// Codes of one row in a panel block's body.
    fn panel_codes(body: &[u8], row: usize) -> [u32; 8];
    /// The inverse of [`Block32::panel_codes`].
    fn put_panel_codes(codes: [u32; 8], row: usize, body: &mut [u8]);
}

/// Codes of the 16 bytes that legacy formats spread 32 nibbles over: element j low, element j + 16 high.
pub(super) fn nibbles(qs: &[u8]) -> [u32; 8] {
    const LOW: u32 = 0x0f0f_0f0f;
    let mut codes = [0; 8];
    for i in 0..4 {
        let w = word(qs, 4 * i);
        codes[i] = w & LOW;
        codes[i + 4] = (w >> 4) & LOW;
    }
    codes
}

/// The inverse of [`nibbles`]; codes are below 16.
pub(super) fn put_nibbles(codes: [u32; 8], qs: &mut [u8]) {
    for i in 0..4 {
        put_word(qs, 4 * i, codes[i] | codes[i + 4] << 4);
    }
}

/// Codes of a row in four vectors: vector v has words 2v in its low and 2v + 1 in its high nibbles.
pub(super) fn panel_nibbles(body: &[u8], row: usize) -> [u32; 8] {
    const LOW: u32 = 0x0f0f_0f0f;
    let mut codes = [0; 8];
    for (v, pair) in codes.as_chunks_mut::<2>().0.iter_mut().enumerate() {
        let w = word(body, 32 * v + 4 * row);
        *pair = [w & LOW, (w >> 4) & LOW];
    }
    codes
}

/// The inverse of [`panel_nibbles`]; codes are below 16.
pub(super) fn put_panel_nibbles(codes: [u32; 8], row: usize, body: &mut [u8]) {
    for (v, [low, high]) in codes.as_chunks().0.iter().enumerate() {
        put_word(body, 32 * v + 4 * row, low | high << 4);
    }
}

/// Bytes of a file block's factors; a panel block has [`PANEL`] times as many.
pub(super) const fn header<B: Block32>() -> usize {
    B::FACTORS * B::FACTOR_BYTES
}

/// What the codes of a word stand for.
fn values<B: Block32>(word: u32) -> [i8; 4] {
    word.to_le_bytes().map(B::value)
}

pub(super) fn dequantize<B: Block32>(src: &[u8], dst: &mut [f32]) {
    for (block, values) in blocks::<32>(src, B::FORMAT.block_bytes, dst) {
        let d = B::factor(block, 0);
        let codes = B::codes(&block[header::<B>()..]);
        for (to, w) in values.iter_mut().zip(codes.into_iter().flat_map(self::values::<B>)) {
            *to = f32::from(w) * d;
        }
        if B::FACTORS == 2 {
            let m = B::factor(block, B::FACTOR_BYTES);
            values.iter_mut().for_each(|v| *v += m);
        }
    }
}

pub(super) fn pack<B: Block32>(rows: &[&[u8]; PANEL], panel: &mut [u8]) {
    assert!(rows.iter().all(|row| row.len() * PANEL == panel.len()), "a panel holds eight rows");
    let bytes = B::FORMAT.block_bytes;
    for (b, panel) in panel.chunks_exact_mut(PANEL * bytes).enumerate() {
        let (factors, body) = panel.split_at_mut(PANEL * header::<B>());
        for (r, row) in rows.iter().enumerate() {
            let (header, codes) = row[b * bytes..(b + 1) * bytes].split_at(header::<B>());
            for (f, factor) in header.chunks_exact(B::FACTOR_BYTES).enumerate() {
                let at = B::FACTOR_BYTES * (PANEL * f + r);
                factors[at..at + B::FACTOR_BYTES].copy_from_slice(factor);
            }
            B::put_panel_codes(B::codes(codes), r, body);
        }
    }
}

pub(super) fn unpack<B: Block32>(panel: &[u8], row: usize, dst: &mut [u8]) {
    assert!(row < PANEL && dst.len() * PANEL == panel.len(), "a panel holds eight rows");
    let bytes = B::FORMAT.block_bytes;
    for (panel, block) in panel.chunks_exact(PANEL * bytes).zip(dst.chunks_exact_mut(bytes)) {
        let (factors, body) = panel.split_at(PANEL * header::<B>());
        let (header, codes) = block.split_at_mut(header::<B>());
        for (f, factor) in header.chunks_exact_mut(B::FACTOR_BYTES).enumerate() {
            let at = B::FACTOR_BYTES * (PANEL * f + row);
            factor.copy_from_slice(&factors[at..at + B::FACTOR_BYTES]);
        }
        B::put_codes(B::panel_codes(body, row), codes);
    }
}

pub(super) fn scalar<B: Block32>(
    panels: &[u8],
    cols: usize,
    acts: &[&[u8]],
    next: &[u8],
    out: &mut [[f32; PANEL]],
) {
    for (panel, _, out) in B::FORMAT.in_turn(panels, cols, acts, next, out) {
        out.fill([0.0; PANEL]);
        for (b, block) in panel.chunks_exact(PANEL * B::FORMAT.block_bytes).enumerate() {
            let (factors, body) = block.split_at(PANEL * header::<B>());
            for r in 0..PANEL {
                let weights = B::panel_codes(body, r).map(|codes| values::<B>(codes).map(i32::from));
                let d = B::factor(factors, B::FACTOR_BYTES * r);
                for (act, out) in acts.iter().zip(&mut *out) {
                    let act = &act[b * Q8X32_BYTES..(b + 1) * Q8X32_BYTES];
                    let q = act.as_chunks::<4>().0;
                    let isum: i32 = weights.iter().zip(q).map(|(w, q)| dot4(w, q)).sum();
                    let mut value = isum as f32 * d;
                    if B::FACTORS == 2 {
                        let m = B::factor(factors, B::FACTOR_BYTES * (PANEL + r));
                        value = m.mul_add(single_at(act, Q8X32_SUM), value);
                    }
                    out[r] = value.mul_add(single_at(act, Q8X32_D), out[r]);
                }
            }
        }
    }
}

/// Dot product of four weights with four activation bytes.
pub(super) fn dot4(w: &[i32; 4], q: &[u8; 4]) -> i32 {
    w.iter().zip(q).map(|(w, q)| w * i32::from(q.cast_signed())).sum()
}

#[cfg(target_arch = "x86_64")]
pub(super) use avx2::{Kernel, add, decode_nibbles, factors, product, signed_block};

#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "SIMD loads by pointer")]
mod avx2 {
    use std::arch::x86_64::*;

    use super::*;
    use crate::act::Q8X32_PAIRS;
    use crate::avx2::{add_products, available, dword, halves, high_nibbles, load, low_nibbles, single};
    use crate::by_columns;
    use crate::prefetch::{Ahead, prefetch};

    /// How a format's codes meet activations.
    pub(crate) trait Kernel: Block32 {
        /// What [`Kernel::words`] have more than what they stand for.
        const BIAS: i16;
        /// How many of their words a 16-bit sum takes: see [`unsigned_dots`]; one where the format has a [`Kernel::block`] of its own.
        const WORDS: usize;

        /// Unsigned codes, one vector for each word.
        ///
        /// # Safety
        /// The processor has AVX2; `body` is readable for a panel block's body.
        unsafe fn words(body: *const u8) -> [__m256i; 8];

        /// Adds a block's products with each column to the column's sums: as [`Kernel::words`] say, unless the format has
        /// a way of its own.
        ///
        /// # Safety
        /// The processor has AVX2 and FMA; `body` is readable for a panel block's body, each of `acts` for an activation block.
        #[inline]
        #[target_feature(enable = "avx2,fma")]
        unsafe fn block<const N: usize>(
            body: *const u8,
            factors: [__m256; 2],
            acts: &[*const u8; N],
            sums: &mut [__m256; N],
        ) {
            // SAFETY: the caller's promise.
            unsafe {
                let dots = unsigned_dots::<Self, N>(&Self::words(body), acts);
                for ((act, dot), sum) in acts.iter().zip(dots).zip(sums) {
                    *sum = add::<Self>(*sum, dot, factors, *act);
                }
            }
        }

        /// A factor of eight rows.
        ///
        /// # Safety
        /// The processor has AVX2 and F16C; `p` is readable for the factors.
        #[inline]
        #[target_feature(enable = "avx2,f16c")]
        unsafe fn factor_of_rows(p: *const u8) -> __m256 {
            // SAFETY: the caller's promise.
            unsafe { halves(p) }
        }
    }

    /// Exact sums of `w * q` per row and column for unsigned codes below 32; a 16-bit sum takes [`Kernel::WORDS`] of their words.
    ///
    /// A pair of products is at most 2 * 31 * 127 = 7874, so `maddubs` does not saturate. The 16-bit sum starts at
    /// -BIAS * (sum of its q); on the way it is the sum of (code - BIAS) * q over the products done and of -BIAS * q over
    /// the others: with eight words and a BIAS of 16 always within 16 * 16 * 127 = 32512, with less (codes no larger than
    /// twice the BIAS) below that. Without BIAS eight words of codes below 16 are at most 16 * 15 * 127 = 30480, four of
    /// codes below 32 at most 8 * 31 * 127 = 31496.
    ///
    /// # Safety
    /// Each of `acts` is readable for an activation block.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn unsigned_dots<B: Kernel + ?Sized, const N: usize>(
        codes: &[__m256i; 8],
        acts: &[*const u8; N],
    ) -> [__m256i; N] {
        const { assert!(B::WORDS == 8 || (B::WORDS == 4 && B::BIAS == 0), "the pair sums are of eight words") };
        let ones = _mm256_set1_epi16(1);
        let mut dots = [_mm256_setzero_si256(); N];
        for (part, codes) in codes.chunks_exact(B::WORDS).enumerate() {
            let mut sums = [_mm256_setzero_si256(); N];
            if B::BIAS != 0 {
                for (act, sum) in acts.iter().zip(&mut sums) {
                    // SAFETY: the pair sums lie within the activation block.
                    let pairs = unsafe { dword(act.add(Q8X32_PAIRS)) };
                    *sum = _mm256_mullo_epi16(pairs, _mm256_set1_epi16(B::BIAS));
                }
            }
            // SAFETY: the activation block starts with eight words.
            let sums = unsafe { add_products(codes, 4 * B::WORDS * part, acts, sums) };
            for (dot, sum) in dots.iter_mut().zip(sums) {
                *dot = _mm256_add_epi32(*dot, _mm256_madd_epi16(sum, ones));
            }
        }
        dots
    }

    /// [`Kernel::block`] for signed bytes, given two words at a time: all of [`Kernel::words`] at once would not stay in registers
    /// beside the columns.
    ///
    /// `|w| * (q with the sign of w)`: a pair is at most 2 * 128 * 127 = 32512, so one `maddubs` fits 16 bits and two do
    /// not. -q exists, for q is never -128.
    ///
    /// # Safety
    /// Each of `acts` is readable for an activation block.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    pub(crate) unsafe fn signed_block<B: Kernel + ?Sized, const N: usize>(
        words: impl Fn(usize) -> [__m256i; 2],
        factors: [__m256; 2],
        acts: &[*const u8; N],
        sums: &mut [__m256; N],
    ) {
        let ones = _mm256_set1_epi16(1);
        let mut dots = [_mm256_setzero_si256(); N];
        for v in 0..4 {
            for (i, w) in words(v).into_iter().enumerate() {
                let size = _mm256_abs_epi8(w);
                for (dot, act) in dots.iter_mut().zip(acts) {
                    // SAFETY: the activation block starts with 32 codes.
                    let q = _mm256_sign_epi8(unsafe { dword(act.add(8 * v + 4 * i)) }, w);
                    let pairs = _mm256_maddubs_epi16(size, q);
                    *dot = _mm256_add_epi32(*dot, _mm256_madd_epi16(pairs, ones));
                }
            }
        }
        for ((act, dot), sum) in acts.iter().zip(dots).zip(sums) {
            // SAFETY: the caller's promise.
            *sum = unsafe { add::<B>(*sum, dot, factors, *act) };
        }
    }

    /// Codes of four vectors of nibbles.
    ///
    /// # Safety
    /// `body` is readable for 128 bytes.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(crate) unsafe fn decode_nibbles(body: *const u8) -> [__m256i; 8] {
        let mut codes = [_mm256_setzero_si256(); 8];
        for (v, pair) in codes.as_chunks_mut::<2>().0.iter_mut().enumerate() {
            // SAFETY: v < 4.
            let bytes = unsafe { load(body.add(32 * v)) };
            *pair = [low_nibbles(bytes), high_nibbles(bytes)];
        }
        codes
    }

    pub(crate) fn product<B: Kernel>(
        panels: &[u8],
        cols: usize,
        acts: &[&[u8]],
        next: &[u8],
        out: &mut [[f32; PANEL]],
    ) {
        let count = cols / B::FORMAT.block;
        assert!(available(), "no AVX2 on this processor");
        for (panel, next, out) in B::FORMAT.in_turn(panels, cols, acts, next, out) {
            // SAFETY: the processor has the features; `in_turn` asserted the lengths.
            unsafe { by_columns!(acts, tile[B](panel.as_ptr(), next, count, acts, out)) }
        }
    }

    /// d of eight rows, and m if there is one.
    ///
    /// # Safety
    /// `p` is readable for a panel block's factors.
    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    pub(crate) unsafe fn factors<B: Kernel + ?Sized>(p: *const u8) -> [__m256; 2] {
        // SAFETY: the caller's promise.
        unsafe {
            let d = B::factor_of_rows(p);
            [d, if B::FACTORS == 2 { B::factor_of_rows(p.add(PANEL * B::FACTOR_BYTES)) } else { d }]
        }
    }

    /// Adds a block's value: the float step.
    ///
    /// # Safety
    /// `act` is readable for an activation block.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    pub(crate) unsafe fn add<B: Kernel + ?Sized>(
        sum: __m256,
        dot: __m256i,
        [d, m]: [__m256; 2],
        act: *const u8,
    ) -> __m256 {
        let mut value = _mm256_mul_ps(_mm256_cvtepi32_ps(dot), d);
        // SAFETY: the caller's promise.
        unsafe {
            if B::FACTORS == 2 {
                value = _mm256_fmadd_ps(m, single(act.add(Q8X32_SUM)), value);
            }
            _mm256_fmadd_ps(value, single(act.add(Q8X32_D)), sum)
        }
    }

    /// # Safety
    /// The features; `p` is a panel of `count` blocks, so is each of the N `acts`; N results.
    #[inline(never)]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn tile<B: Kernel, const N: usize>(
        p: *const u8,
        next: *const u8,
        count: usize,
        acts: &[&[u8]],
        out: &mut [[f32; PANEL]],
    ) {
        let bytes = PANEL * B::FORMAT.block_bytes;
        let Ok(acts) = <&[&[u8]; N]>::try_from(acts) else { unreachable!("N columns") };
        let mut sums = [_mm256_setzero_ps(); N];
        let ahead = Ahead::new(p, next, count, bytes);
        for b in 0..count {
            // SAFETY: b < count, which bounds the panel and every column.
            unsafe {
                let p = p.add(b * bytes);
                // A line at the end may be asked for twice, none is missed.
                prefetch(ahead.of(b), bytes);
                let acts = acts.map(|act| act.as_ptr().add(b * Q8X32_BYTES));
                B::block(p.add(PANEL * header::<B>()), factors::<B>(p), &acts, &mut sums);
            }
        }
        for (out, sum) in out.iter_mut().zip(sums) {
            // SAFETY: eight values; the store may be unaligned.
            unsafe { _mm256_storeu_ps(out.as_mut_ptr(), sum) };
        }
    }
}
