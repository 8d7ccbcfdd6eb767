//! Eight F32 lanes, and attention's inner loops on them: what the compiler does not turn into vectors by itself.

use super::math::{per_isa, sum8};

/// Eight values. Every implementation gives the same bits.
pub(super) trait Lanes: Copy {
    /// Zeros.
    fn zero() -> Self;
    /// One value, eight times.
    fn splat(x: f32) -> Self;
    fn load(from: &[f32; 8]) -> Self;
    fn store(self, to: &mut [f32; 8]);
    /// `self * b + c`, rounded once.
    fn mul_add(self, b: Self, c: Self) -> Self;
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
    fn store(self, to: &mut [f32; 8]) {
        *to = self;
    }
    #[inline(always)]
    fn mul_add(self, b: Self, c: Self) -> Self {
        std::array::from_fn(|l| self[l].mul_add(b[l], c[l]))
    }
    #[inline(always)]
    fn sums(of: [Self; 4]) -> [f32; 4] {
        of.map(sum8)
    }
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
    fn store(self, to: &mut [f32; 8]) {
        // SAFETY: as in `splat`; eight values are writable, and the store may be unaligned.
        unsafe { std::arch::x86_64::_mm256_storeu_ps(to.as_mut_ptr(), self.0) }
    }
    #[inline(always)]
    fn mul_add(self, b: Self, c: Self) -> Self {
        // SAFETY: as in `splat`.
        Self(unsafe { std::arch::x86_64::_mm256_fmadd_ps(self.0, b.0, c.0) })
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
    /// `out[h][j] = scale * q[h].keys[j]`: queries and keys are rows of `dim`, `out` has rows of `stride`, of which the
    /// first as many values as there are keys are written. (Rows are split off, not counted: a division costs as much
    /// as a key.)
    pub(super) fn dots[L](q: &[f32], keys: &[f32], dim: usize, scale: f32, out: &mut [f32], stride: usize) {
        let (mut q, mut out) = (q, out);
        // Two queries share the loads of four keys: eight chains, which hide the latency of the addition.
        while q.len() >= 2 * dim {
            let (two, more) = q.split_at(2 * dim);
            let (first, second) = out.split_at_mut(stride);
            let (second, rest) = second.split_at_mut(stride.min(second.len()));
            let (a, b) = two.split_at(dim);
            dots_of::<L, 2>([a, b], keys, scale, [first, second]);
            (q, out) = (more, rest);
        }
        if !q.is_empty() {
            dots_of::<L, 1>([q], keys, scale, [out]);
        }
    }
}

/// `out[i][j] = scale * q[i].keys[j]`, keys as rows of the queries' length.
#[inline(always)]
fn dots_of<L: Lanes, const N: usize>(q: [&[f32]; N], keys: &[f32], scale: f32, mut out: [&mut [f32]; N]) {
    let dim = q[0].len();
    let (mut keys, mut at) = (keys, 0);
    while keys.len() >= 4 * dim {
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
        let k = [L::load(a), L::load(b), L::load(c), L::load(d)];
        for i in 0..N {
            let q = L::load(&lanes[i][at]);
            let [s0, s1, s2, s3] = sums[i];
            sums[i] = [q.mul_add(k[0], s0), q.mul_add(k[1], s1), q.mul_add(k[2], s2), q.mul_add(k[3], s3)];
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
    /// `to += weights[j] * values[j]` for ascending j: values are the beginnings of rows of `stride`.
    pub(super) fn accumulate[L](weights: &[f32], values: &[f32], stride: usize, to: &mut [f32]) {
        let (lanes, rest) = to.as_chunks_mut::<8>();
        // Eight chains hide the latency of the addition.
        let (eights, ones) = lanes.as_chunks_mut::<8>();
        for (c, to) in eights.iter_mut().enumerate() {
            accumulate_lanes::<L, 8>(weights, values, stride, 64 * c, to);
        }
        let done = 64 * eights.len();
        let (fours, ones) = ones.as_chunks_mut::<4>();
        for to in fours.iter_mut() {
            accumulate_lanes::<L, 4>(weights, values, stride, done, to);
        }
        let done = done + 32 * fours.len();
        for (c, to) in ones.iter_mut().enumerate() {
            accumulate_lanes::<L, 1>(weights, values, stride, done + 8 * c, std::array::from_mut(to));
        }
        let done = done + 8 * ones.len();
        for (w, row) in weights.iter().zip(values.chunks_exact(stride)) {
            for (to, v) in rest.iter_mut().zip(&row[done..]) {
                *to = w.mul_add(*v, *to);
            }
        }
    }
}

#[inline(always)]
fn accumulate_lanes<L: Lanes, const N: usize>(
    weights: &[f32],
    values: &[f32],
    stride: usize,
    at: usize,
    to: &mut [[f32; 8]; N],
) {
    let mut sums: [L; N] = std::array::from_fn(|i| L::load(&to[i]));
    for (w, row) in weights.iter().zip(values.chunks_exact(stride)) {
        let w = L::splat(*w);
        let row: &[[f32; 8]; N] =
            row[at..].as_chunks().0.first_chunk().expect("the row is as wide as the sum");
        sums = std::array::from_fn(|i| w.mul_add(L::load(&row[i]), sums[i]));
    }
    for (to, sum) in to.iter_mut().zip(sums) {
        sum.store(to);
    }
}
