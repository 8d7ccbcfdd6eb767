//! Eight F32 lanes, for the loops that the compiler does not turn into vectors by itself.

use super::math::sum8;

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
