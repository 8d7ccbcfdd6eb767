//! Eight F32 lanes, and attention's inner loops on them: what the compiler does not turn into vectors by itself.

use half::f16;

use super::math::{self, per_isa, sum8};
use super::memory::Upcoming;
use crate::kv::{BLOCK, PageType, SCALE, widen_block};

/// Eight values. Every implementation gives the same bits.
pub(super) trait Lanes: Copy {
    /// Zeros.
    fn zero() -> Self;
    /// One value, eight times.
    fn splat(x: f32) -> Self;
    fn load(from: &[f32; 8]) -> Self;
    /// Half precision, exactly.
    fn halves(from: &[u8; 16]) -> Self;
    /// One value in half precision, eight times.
    fn half(from: [u8; 2]) -> Self;
    /// Signed bytes, exactly.
    fn bytes(from: &[u8; 8]) -> Self;
    fn store(self, to: &mut [f32; 8]);
    fn mul(self, b: Self) -> Self;
    /// `self * b + c`, rounded once.
    fn mul_add(self, b: Self, c: Self) -> Self;
    fn add(self, b: Self) -> Self;
    fn sub(self, b: Self) -> Self;
    /// [`math::exp`] of each.
    fn exp(self) -> Self;
    /// [`sum8`] of each.
    fn sums(of: [Self; 4]) -> [f32; 4];
}

impl Lanes for [f32; 8] {
    #[inline(always)]
    fn zero() -> Self {
        [0.0; 8]
    }
    #[inline(always)]
    fn splat(x: f32) -> Self {
        [x; 8]
    }
    #[inline(always)]
    fn load(from: &[f32; 8]) -> Self {
        *from
    }
    #[inline(always)]
    fn halves(from: &[u8; 16]) -> Self {
        let (halves, _) = from.as_chunks();
        std::array::from_fn(|l| single(f16::from_le_bytes(halves[l])))
    }
    #[inline(always)]
    fn half(from: [u8; 2]) -> Self {
        [single(f16::from_le_bytes(from)); 8]
    }
    #[inline(always)]
    fn bytes(from: &[u8; 8]) -> Self {
        from.map(|b| f32::from(b.cast_signed()))
    }
    #[inline(always)]
    fn store(self, to: &mut [f32; 8]) {
        *to = self;
    }
    #[inline(always)]
    fn mul(self, b: Self) -> Self {
        std::array::from_fn(|l| self[l] * b[l])
    }
    #[inline(always)]
    fn mul_add(self, b: Self, c: Self) -> Self {
        std::array::from_fn(|l| self[l].mul_add(b[l], c[l]))
    }
    #[inline(always)]
    fn add(self, b: Self) -> Self {
        std::array::from_fn(|l| self[l] + b[l])
    }
    #[inline(always)]
    fn sub(self, b: Self) -> Self {
        std::array::from_fn(|l| self[l] - b[l])
    }
    #[inline(always)]
    fn exp(self) -> Self {
        self.map(math::exp)
    }
    #[inline(always)]
    fn sums(of: [Self; 4]) -> [f32; 4] {
        of.map(sum8)
    }
}

/// `half::to_f32`, which asks at every value what the processor has, in a form that becomes vectors.
#[inline(always)]
fn single(half: f16) -> f32 {
    let bits = u32::from(half.to_bits());
    // Exponents are biased by 15 and by 127. The product is exact: it makes subnormal numbers normal.
    let size = f32::from_bits((bits & 0x7fff) << 13) * f32::from_bits((127 + 127 - 15) << 23);
    let special = if bits & 0x7c00 == 0x7c00 { f32::INFINITY.to_bits() } else { 0 };
    f32::from_bits(size.to_bits() | special | (bits & 0x8000) << 16)
}

/// AVX2 and FMA. Only [`per_isa`](super::math::per_isa) names it, in functions compiled with both, into which all
/// of this is inlined.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(super) struct Avx2(std::arch::x86_64::__m256);

#[cfg(target_arch = "x86_64")]
impl Lanes for Avx2 {
    #[inline(always)]
    fn zero() -> Self {
        Self::splat(0.0)
    }
    #[inline(always)]
    fn splat(x: f32) -> Self {
        // SAFETY: the type is only used where the processor has the features.
        Self(unsafe { std::arch::x86_64::_mm256_set1_ps(x) })
    }
    #[inline(always)]
    fn load(from: &[f32; 8]) -> Self {
        // SAFETY: as in `splat`; eight values are readable, and the load may be unaligned.
        Self(unsafe { std::arch::x86_64::_mm256_loadu_ps(from.as_ptr()) })
    }
    #[inline(always)]
    fn halves(from: &[u8; 16]) -> Self {
        use std::arch::x86_64::*;
        // SAFETY: as in `splat`; 16 bytes are readable, and the load may be unaligned.
        Self(unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.as_ptr().cast())) })
    }
    #[inline(always)]
    fn half(from: [u8; 2]) -> Self {
        use std::arch::x86_64::*;
        // SAFETY: as in `splat`; what has AVX2 and FMA has F16C, which those functions are compiled with, too.
        Self(unsafe { _mm256_cvtph_ps(_mm_set1_epi16(i16::from_le_bytes(from))) })
    }
    #[inline(always)]
    fn bytes(from: &[u8; 8]) -> Self {
        use std::arch::x86_64::*;
        // SAFETY: as in `splat`; eight bytes are readable, and the load may be unaligned.
        Self(unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(from.as_ptr().cast()))) })
    }
    #[inline(always)]
    fn store(self, to: &mut [f32; 8]) {
        // SAFETY: as in `splat`; eight values are writable, and the store may be unaligned.
        unsafe { std::arch::x86_64::_mm256_storeu_ps(to.as_mut_ptr(), self.0) }
    }
    #[inline(always)]
    fn mul(self, b: Self) -> Self {
        // SAFETY: as in `splat`.
        Self(unsafe { std::arch::x86_64::_mm256_mul_ps(self.0, b.0) })
    }
    #[inline(always)]
    fn mul_add(self, b: Self, c: Self) -> Self {
        // SAFETY: as in `splat`.
        Self(unsafe { std::arch::x86_64::_mm256_fmadd_ps(self.0, b.0, c.0) })
    }
    #[inline(always)]
    fn add(self, b: Self) -> Self {
        // SAFETY: as in `splat`.
        Self(unsafe { std::arch::x86_64::_mm256_add_ps(self.0, b.0) })
    }
    #[inline(always)]
    fn sub(self, b: Self) -> Self {
        // SAFETY: as in `splat`.
        Self(unsafe { std::arch::x86_64::_mm256_sub_ps(self.0, b.0) })
    }
    #[inline(always)]
    fn exp(self) -> Self {
        use std::arch::x86_64::*;
        // SAFETY: as in `splat`.
        unsafe {
            let all = |x: f32| _mm256_set1_ps(x);
            // What is not a number comes from the second operand.
            let x = _mm256_min_ps(all(math::EXP_MAX), self.0);
            let t = _mm256_fmadd_ps(x, all(std::f32::consts::LOG2_E), all(math::ROUND));
            let n = _mm256_sub_ps(t, all(math::ROUND));
            let r = _mm256_fmadd_ps(n, all(-math::LN2_HIGH), x);
            let r = _mm256_fmadd_ps(n, all(-math::LN2_LOW), r);
            let [first, rest @ ..] = math::EXP_TERMS;
            let mut p = all(first);
            for c in rest {
                p = _mm256_fmadd_ps(r, p, all(c));
            }
            let power = _mm256_slli_epi32::<23>(_mm256_castps_si256(t));
            let power = _mm256_castsi256_ps(_mm256_add_epi32(power, _mm256_castps_si256(all(1.0))));
            let small = _mm256_cmp_ps::<_CMP_LT_OQ>(self.0, all(math::EXP_MIN));
            Self(_mm256_andnot_ps(small, _mm256_mul_ps(p, power)))
        }
    }
    #[inline(always)]
    fn sums(of: [Self; 4]) -> [f32; 4] {
        use std::arch::x86_64::*;
        let mut sums = [0.0; 4];
        // SAFETY: as in `splat`; four values are writable, and the store may be unaligned.
        unsafe {
            // Lane l of each: l + (l + 4).
            let [a, b, c, d] =
                of.map(|v| _mm_add_ps(_mm256_castps256_ps128(v.0), _mm256_extractf128_ps::<1>(v.0)));
            // Of a and b in turn: the sums over even lanes, then those over odd ones.
            let ab = _mm_add_ps(_mm_unpacklo_ps(a, b), _mm_unpackhi_ps(a, b));
            let cd = _mm_add_ps(_mm_unpacklo_ps(c, d), _mm_unpackhi_ps(c, d));
            let all = _mm_add_ps(_mm_movelh_ps(ab, cd), _mm_movehl_ps(cd, ab));
            _mm_storeu_ps(sums.as_mut_ptr(), all);
        }
        sums
    }
}

per_isa! {
    /// [`PageType::write`] of one row.
    pub(super) fn write(page: PageType, row: &[f32], to: &mut [u8]) {
        page.write(row, to);
    }
}

per_isa! {
    /// [`PageType::widen`] of rows of `dim` values.
    pub(super) fn widen[L](page: PageType, from: &[u8], to: &mut [f32], dim: usize) {
        match page {
            PageType::F32 => page.widen(from, to),
            PageType::F16 => {
                let ((from, rest), (to, to_rest)) = (from.as_chunks(), to.as_chunks_mut());
                for (from, to) in from.iter().zip(to) {
                    L::halves(from).store(to);
                }
                page.widen(rest, to_rest);
            }
            PageType::Q8_0 => {
                for (from, to) in from.chunks(page.row_bytes(dim)).zip(to.chunks_mut(dim)) {
                    let (from, rest) = from.as_chunks::<{ SCALE + BLOCK }>();
                    let (to, to_rest) = to.as_chunks_mut::<BLOCK>();
                    for ([low, high, codes @ ..], to) in from.iter().zip(to) {
                        let scale = L::half([*low, *high]);
                        for (codes, to) in codes.as_chunks().0.iter().zip(to.as_chunks_mut().0) {
                            L::bytes(codes).mul(scale).store(to);
                        }
                    }
                    widen_block(rest, to_rest);
                }
            }
        }
    }
}

per_isa! {
    /// `out[h][j] = scale * q[h].keys[j]`: queries and keys are rows of `dim`, `out` has rows of `stride`, of which the
    /// first as many values as there are keys are written. `upcoming` has a turn for every four keys and three queries. (Rows are split off, not counted: a division costs as much
    /// as a key.)
    pub(super) fn dots[L](
        q: &[f32],
        keys: &[f32],
        dim: usize,
        scale: f32,
        out: (&mut [f32], usize),
        upcoming: &mut Upcoming<'_>,
    ) {
        let (out, stride) = out;
        let (mut q, mut out) = (q, out);
        // Three queries share the loads of four keys: twelve chains. Four queries are two and two.
        while q.len() == 3 * dim || q.len() >= 5 * dim {
            let (three, more) = q.split_at(3 * dim);
            let (first, rest) = out.split_at_mut(stride);
            let (second, rest) = rest.split_at_mut(stride);
            let (third, rest) = rest.split_at_mut(stride.min(rest.len()));
            let (a, b) = three.split_at(dim);
            let (b, c) = b.split_at(dim);
            dots_of::<L, 3>([a, b, c], keys, scale, [first, second, third], upcoming);
            (q, out) = (more, rest);
        }
        while q.len() >= 2 * dim {
            let (two, more) = q.split_at(2 * dim);
            let (first, second) = out.split_at_mut(stride);
            let (second, rest) = second.split_at_mut(stride.min(second.len()));
            let (a, b) = two.split_at(dim);
            dots_of::<L, 2>([a, b], keys, scale, [first, second], upcoming);
            (q, out) = (more, rest);
        }
        if !q.is_empty() {
            dots_of::<L, 1>([q], keys, scale, [out], upcoming);
        }
    }
}

/// `out[i][j] = scale * q[i].keys[j]`, keys as rows of the queries' length.
#[inline(always)]
fn dots_of<L: Lanes, const N: usize>(
    q: [&[f32]; N],
    keys: &[f32],
    scale: f32,
    mut out: [&mut [f32]; N],
    upcoming: &mut Upcoming<'_>,
) {
    let dim = q[0].len();
    let (mut keys, mut at) = (keys, 0);
    while keys.len() >= 4 * dim {
        upcoming.turn();
        let (four, more) = keys.split_at(4 * dim);
        let (a, b) = four.split_at(2 * dim);
        let ((a, b), (c, d)) = (a.split_at(dim), b.split_at(dim));
        for (out, dots) in out.iter_mut().zip(products::<L, N>(q, [a, b, c, d])) {
            out[at..at + 4].copy_from_slice(&dots.map(|dot| dot * scale));
        }
        (keys, at) = (more, at + 4);
    }
    while !keys.is_empty() {
        let (key, more) = keys.split_at(dim);
        for (out, dots) in out.iter_mut().zip(products::<L, N>(q, [key; 4])) {
            out[at] = dots[0] * scale;
        }
        (keys, at) = (more, at + 1);
    }
}

/// Each query times each of four keys of its length: eight partial sums over the dimension mod 8.
#[inline(always)]
fn products<L: Lanes, const N: usize>(q: [&[f32]; N], keys: [&[f32]; 4]) -> [[f32; 4]; N] {
    let chunks = keys[0].len() / 8;
    let lanes = q.map(|q| &q.as_chunks::<8>().0[..chunks]);
    let [a, b, c, d] = keys.map(|k| &k.as_chunks::<8>().0[..chunks]);
    let mut sums = [[L::zero(); 4]; N];
    for (at, (((a, b), c), d)) in a.iter().zip(b).zip(c).zip(d).enumerate() {
        // The queries stay in registers, keys come one by one: 3 * 4 sums, 3 and 1 are sixteen.
        let mut q = [L::zero(); N];
        for (q, lanes) in q.iter_mut().zip(lanes) {
            *q = L::load(&lanes[at]);
        }
        for (j, key) in [a, b, c, d].into_iter().enumerate() {
            let key = L::load(key);
            for (sums, q) in sums.iter_mut().zip(q) {
                sums[j] = q.mul_add(key, sums[j]);
            }
        }
    }
    if !keys[0].len().is_multiple_of(8) {
        for (sums, q) in sums.iter_mut().zip(q) {
            for (sum, key) in sums.iter_mut().zip(keys) {
                let mut p = [0.0; 8];
                sum.store(&mut p);
                for (p, (q, k)) in p.iter_mut().zip(q[8 * chunks..].iter().zip(&key[8 * chunks..])) {
                    *p = q.mul_add(*k, *p);
                }
                *sum = L::load(&p);
            }
        }
    }
    // No `map`: the compiler leaves that a call, outside of which the instruction set is unknown.
    let mut dots = [[0.0; 4]; N];
    for (dots, sums) in dots.iter_mut().zip(sums) {
        *dots = L::sums(sums);
    }
    dots
}

per_isa! {
    /// `to[h] += weights[h][j] * values[j]` for ascending j of `range`: `to` has rows of `dim`, weights and values of what is
    /// beside them, and the first row of values is that of the range's first. `upcoming` has a turn for
    /// every 32 values of three rows.
    pub(super) fn accumulate[L](
        weights: (&[f32], usize),
        range: std::ops::Range<usize>,
        values: (&[f32], usize),
        to: (&mut [f32], usize),
        upcoming: &mut Upcoming<'_>,
    ) {
        let ((weights, weights_stride), (values, stride)) = (weights, values);
        let (mut to, dim) = to;
        let mut weights = weights.chunks(weights_stride).map(|w| &w[range.clone()]);
        // Three rows share the loads of 32 values: twelve chains. Four rows are two and two, which is also why.
        while to.len() == 3 * dim || to.len() >= 5 * dim {
            let (three, rest) = to.split_at_mut(3 * dim);
            let (a, b) = three.split_at_mut(dim);
            let (b, c) = b.split_at_mut(dim);
            if let [Some(x), Some(y), Some(z)] = std::array::from_fn(|_| weights.next()) {
                accumulate_of::<L, 3>([x, y, z], values, stride, [a, b, c], upcoming);
            }
            to = rest;
        }
        while to.len() >= 2 * dim {
            let (two, rest) = to.split_at_mut(2 * dim);
            let (a, b) = two.split_at_mut(dim);
            if let [Some(x), Some(y)] = std::array::from_fn(|_| weights.next()) {
                accumulate_of::<L, 2>([x, y], values, stride, [a, b], upcoming);
            }
            to = rest;
        }
        if let (false, Some(x)) = (to.is_empty(), weights.next()) {
            accumulate_of::<L, 1>([x], values, stride, [to], upcoming);
        }
    }
}

/// `to[i] += weights[i][j] * values[j]`, rows of one width.
#[inline(always)]
fn accumulate_of<L: Lanes, const N: usize>(
    weights: [&[f32]; N],
    values: &[f32],
    stride: usize,
    to: [&mut [f32]; N],
    upcoming: &mut Upcoming<'_>,
) {
    let dim = to[0].len();
    let mut to = to;
    let mut at = 0;
    if N == 1 {
        // One row alone: eight chains hide the latency of the addition.
        while at + 64 <= dim {
            upcoming.turn();
            accumulate_lanes::<L, N, 8>(weights, values, stride, at, &mut to);
            at += 64;
        }
    }
    while at + 32 <= dim {
        upcoming.turn();
        accumulate_lanes::<L, N, 4>(weights, values, stride, at, &mut to);
        at += 32;
    }
    while at + 8 <= dim {
        accumulate_lanes::<L, N, 1>(weights, values, stride, at, &mut to);
        at += 8;
    }
    if at < dim {
        for (weights, to) in weights.iter().zip(to) {
            for (w, row) in weights.iter().zip(values.chunks(stride)) {
                for (to, v) in to[at..].iter_mut().zip(&row[at..]) {
                    *to = w.mul_add(*v, *to);
                }
            }
        }
    }
}

#[inline(always)]
fn accumulate_lanes<L: Lanes, const N: usize, const C: usize>(
    weights: [&[f32]; N],
    values: &[f32],
    stride: usize,
    at: usize,
    to: &mut [&mut [f32]; N],
) {
    let places = to.each_mut().map(|to| lanes_mut::<C>(&mut to[at..]));
    let mut sums: [[L; C]; N] = std::array::from_fn(|i| std::array::from_fn(|c| L::load(&places[i][c])));
    let count = weights[0].len();
    let weights = weights.map(|w| &w[..count]);
    for (j, row) in values.chunks(stride).take(count).enumerate() {
        // The weights stay in registers, values come one by one: 3 * 4 sums, 3 and 1 are sixteen.
        let mut each = [L::zero(); N];
        for (each, weights) in each.iter_mut().zip(weights) {
            *each = L::splat(weights[j]);
        }
        for (c, values) in lanes::<C>(&row[at..]).iter().enumerate() {
            let values = L::load(values);
            for (sums, weight) in sums.iter_mut().zip(each) {
                sums[c] = weight.mul_add(values, sums[c]);
            }
        }
    }
    for (to, sums) in places.into_iter().zip(sums) {
        for (to, sum) in to.iter_mut().zip(sums) {
            sum.store(to);
        }
    }
}

/// The first `8 * C` values.
#[inline(always)]
fn lanes<const C: usize>(of: &[f32]) -> &[[f32; 8]; C] {
    of.as_chunks().0.first_chunk().expect("the row is as wide as the sum")
}

#[inline(always)]
fn lanes_mut<const C: usize>(of: &mut [f32]) -> &mut [[f32; 8]; C] {
    of.as_chunks_mut().0.first_chunk_mut().expect("the sum is as wide as said")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_becomes_its_single() {
        for half in (0..=u16::MAX).map(f16::from_bits) {
            let (got, expected) = (single(half), half.to_f32());
            assert!(got.to_bits() == expected.to_bits() || got.is_nan() && expected.is_nan(), "{half:?}");
        }
    }
}
