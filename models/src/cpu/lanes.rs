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
    /// `out[j] = scale * q.keys[j]`, keys as rows of q's length.
    pub(super) fn dots[L](q: &[f32], keys: &[f32], scale: f32, out: &mut [f32]) {
        let dim = q.len();
        let (fours, rest) = out.as_chunks_mut::<4>();
        for (out, keys) in fours.iter_mut().zip(keys.chunks_exact(4 * dim)) {
            let (a, b) = keys.split_at(2 * dim);
            let ((a, b), (c, d)) = (a.split_at(dim), b.split_at(dim));
            *out = products::<L>(q, [a, b, c, d]).map(|dot| dot * scale);
        }
        let keys = keys[4 * dim * fours.len()..].chunks_exact(dim);
        for (out, key) in rest.iter_mut().zip(keys) {
            *out = products::<L>(q, [key; 4])[0] * scale;
        }
    }
}

/// q times each of four keys of its length.
#[inline(always)]
fn products<L: Lanes>(q: &[f32], keys: [&[f32]; 4]) -> [f32; 4] {
    let (chunks, rest) = q.as_chunks::<8>();
    let [mut a, mut b, mut c, mut d] = [L::zero(); 4];
    let [ka, kb, kc, kd] = keys.map(|k| k.as_chunks::<8>().0);
    for ((((q, ka), kb), kc), kd) in chunks.iter().zip(ka).zip(kb).zip(kc).zip(kd) {
        let q = L::load(q);
        a = q.mul_add(L::load(ka), a);
        b = q.mul_add(L::load(kb), b);
        c = q.mul_add(L::load(kc), c);
        d = q.mul_add(L::load(kd), d);
    }
    let mut sums = [a, b, c, d];
    if !rest.is_empty() {
        for (sum, key) in sums.iter_mut().zip(keys) {
            let mut p = [0.0; 8];
            sum.store(&mut p);
            for (l, (q, k)) in rest.iter().zip(&key[8 * chunks.len()..]).enumerate() {
                p[l] = q.mul_add(*k, p[l]);
            }
            *sum = L::load(&p);
        }
    }
    L::sums(sums)
}

per_isa! {
    /// `to += weights[j] * values[j]` for ascending j, values as rows of `to`'s length.
    pub(super) fn accumulate[L](weights: &[f32], values: &[f32], to: &mut [f32]) {
        let dim = to.len();
        let (lanes, rest) = to.as_chunks_mut::<8>();
        // Eight chains hide the latency of the addition.
        let (eights, ones) = lanes.as_chunks_mut::<8>();
        for (c, to) in eights.iter_mut().enumerate() {
            accumulate_lanes::<L, 8>(weights, values, dim, 64 * c, to);
        }
        let done = 64 * eights.len();
        let (fours, ones) = ones.as_chunks_mut::<4>();
        for to in fours.iter_mut() {
            accumulate_lanes::<L, 4>(weights, values, dim, done, to);
        }
        let done = done + 32 * fours.len();
        for (c, to) in ones.iter_mut().enumerate() {
            accumulate_lanes::<L, 1>(weights, values, dim, done + 8 * c, std::array::from_mut(to));
        }
        let done = done + 8 * ones.len();
        for (w, row) in weights.iter().zip(values.chunks_exact(dim)) {
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
    dim: usize,
    at: usize,
    to: &mut [[f32; 8]; N],
) {
    let mut sums: [L; N] = std::array::from_fn(|i| L::load(&to[i]));
    for (w, row) in weights.iter().zip(values.chunks_exact(dim)) {
        let w = L::splat(*w);
        let row: &[[f32; 8]; N] =
            row[at..].as_chunks().0.first_chunk().expect("the row is as wide as the sum");
        sums = std::array::from_fn(|i| w.mul_add(L::load(&row[i]), sums[i]));
    }
    for (to, sum) in to.iter_mut().zip(sums) {
        sum.store(to);
    }
}
