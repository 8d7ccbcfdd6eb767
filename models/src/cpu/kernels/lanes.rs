//! Eight and sixteen F32 lanes: what the compiler does not turn into vectors by itself.

use half::f16;

use super::math::{self, per_isa, sum8};
use super::page::{BLOCK, PageType, SCALE, widen_block};

/// Eight values. Every implementation gives the same bits.
pub(crate) trait Lanes: Copy {
    /// Whether they are in a register, so that several sums at a time pay: for plain code where nothing multiplies and adds at once,
    /// the same loops would be hundreds of kilobytes of calls.
    const VECTORS: bool;
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
    /// `if b > self { b } else { self }`.
    fn larger(self, b: Self) -> Self;
    /// [`math::exp`] of each.
    fn exp(self) -> Self;
    /// [`sum8`] of each.
    fn sums(of: [Self; 4]) -> [f32; 4];
    /// The columns of eight rows.
    fn columns(of: [&[f32; 8]; 8]) -> [Self; 8];
}

impl Lanes for [f32; 8] {
    const VECTORS: bool = cfg!(any(target_arch = "aarch64", target_feature = "fma"));
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
    fn larger(self, b: Self) -> Self {
        std::array::from_fn(|l| if b[l] > self[l] { b[l] } else { self[l] })
    }
    #[inline(always)]
    fn exp(self) -> Self {
        self.map(math::exp)
    }
    #[inline(always)]
    fn sums(of: [Self; 4]) -> [f32; 4] {
        of.map(sum8)
    }
    #[inline(always)]
    fn columns(of: [&[f32; 8]; 8]) -> [Self; 8] {
        std::array::from_fn(|c| std::array::from_fn(|r| of[r][c]))
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
pub(crate) struct Avx2(std::arch::x86_64::__m256);

#[cfg(target_arch = "x86_64")]
impl Lanes for Avx2 {
    const VECTORS: bool = true;
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
    fn larger(self, b: Self) -> Self {
        // SAFETY: as in `splat`. The second operand where either is not a number, as said.
        Self(unsafe { std::arch::x86_64::_mm256_max_ps(b.0, self.0) })
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
    #[inline(always)]
    fn columns(of: [&[f32; 8]; 8]) -> [Self; 8] {
        use std::arch::x86_64::*;
        let mut columns = [Self::zero(); 8];
        // No closures: the compiler leaves them calls, outside of which the instruction set is unknown.
        for (half, columns) in columns.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            // Rows r and r + 4 in one register, so that four by four values are left to turn in each half.
            let mut pairs = [Self::zero(); 4];
            for (r, pair) in pairs.iter_mut().enumerate() {
                // SAFETY: as in `splat`; four values from either half of a row are readable, and the loads may be unaligned.
                *pair = Self(unsafe {
                    let low = _mm_loadu_ps(of[r].as_ptr().add(4 * half));
                    let high = _mm_loadu_ps(of[r + 4].as_ptr().add(4 * half));
                    _mm256_insertf128_ps::<1>(_mm256_castps128_ps256(low), high)
                });
            }
            let [a, b, c, d] = pairs;
            // SAFETY: as in `splat`.
            *columns = unsafe {
                let (ab, cd) = (_mm256_unpacklo_ps(a.0, b.0), _mm256_unpacklo_ps(c.0, d.0));
                let (ab_high, cd_high) = (_mm256_unpackhi_ps(a.0, b.0), _mm256_unpackhi_ps(c.0, d.0));
                [
                    Self(_mm256_shuffle_ps::<0x44>(ab, cd)),
                    Self(_mm256_shuffle_ps::<0xee>(ab, cd)),
                    Self(_mm256_shuffle_ps::<0x44>(ab_high, cd_high)),
                    Self(_mm256_shuffle_ps::<0xee>(ab_high, cd_high)),
                ]
            };
        }
        columns
    }
}

/// Sixteen values: two times eight, or one vector of AVX-512.
pub(crate) trait Sixteen: Copy {
    /// How many sums stay in registers beside what they are sums of; at most 8.
    const CHAINS: usize;
    /// Zeros.
    fn zero() -> Self;
    /// One value, sixteen times.
    fn splat(x: f32) -> Self;
    fn load(from: &[f32; 16]) -> Self;
    /// As [`Lanes::halves`].
    fn halves(from: &[u8; 32]) -> Self;
    /// As [`Lanes::half`].
    fn half(from: [u8; 2]) -> Self;
    /// As [`Lanes::bytes`].
    fn bytes(from: &[u8; 16]) -> Self;
    fn store(self, to: &mut [f32; 16]);
    fn mul(self, b: Self) -> Self;
    /// `self * b + c`, rounded once.
    fn mul_add(self, b: Self, c: Self) -> Self;
    fn add(self, b: Self) -> Self;
}

impl<L: Lanes> Sixteen for [L; 2] {
    const CHAINS: usize = if L::VECTORS { 6 } else { 1 };
    #[inline(always)]
    fn zero() -> Self {
        [L::zero(); 2]
    }
    #[inline(always)]
    fn splat(x: f32) -> Self {
        [L::splat(x); 2]
    }
    #[inline(always)]
    fn load(from: &[f32; 16]) -> Self {
        let (eights, _) = from.as_chunks();
        [L::load(&eights[0]), L::load(&eights[1])]
    }
    #[inline(always)]
    fn halves(from: &[u8; 32]) -> Self {
        let (eights, _) = from.as_chunks();
        [L::halves(&eights[0]), L::halves(&eights[1])]
    }
    #[inline(always)]
    fn half(from: [u8; 2]) -> Self {
        [L::half(from); 2]
    }
    #[inline(always)]
    fn bytes(from: &[u8; 16]) -> Self {
        let (eights, _) = from.as_chunks();
        [L::bytes(&eights[0]), L::bytes(&eights[1])]
    }
    #[inline(always)]
    fn store(self, to: &mut [f32; 16]) {
        let (eights, _) = to.as_chunks_mut();
        self[0].store(&mut eights[0]);
        self[1].store(&mut eights[1]);
    }
    #[inline(always)]
    fn mul(self, b: Self) -> Self {
        [self[0].mul(b[0]), self[1].mul(b[1])]
    }
    #[inline(always)]
    fn mul_add(self, b: Self, c: Self) -> Self {
        [self[0].mul_add(b[0], c[0]), self[1].mul_add(b[1], c[1])]
    }
    #[inline(always)]
    fn add(self, b: Self) -> Self {
        [self[0].add(b[0]), self[1].add(b[1])]
    }
}

/// AVX-512; see [`Avx2`].
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(crate) struct Avx512(std::arch::x86_64::__m512);

#[cfg(target_arch = "x86_64")]
impl Sixteen for Avx512 {
    const CHAINS: usize = 8;
    #[inline(always)]
    fn zero() -> Self {
        Self::splat(0.0)
    }
    #[inline(always)]
    fn splat(x: f32) -> Self {
        // SAFETY: the type is only used where the processor has the features.
        Self(unsafe { std::arch::x86_64::_mm512_set1_ps(x) })
    }
    #[inline(always)]
    fn load(from: &[f32; 16]) -> Self {
        // SAFETY: as in `splat`; sixteen values are readable, and the load may be unaligned.
        Self(unsafe { std::arch::x86_64::_mm512_loadu_ps(from.as_ptr()) })
    }
    #[inline(always)]
    fn halves(from: &[u8; 32]) -> Self {
        use std::arch::x86_64::*;
        // SAFETY: as in `splat`; 32 bytes are readable, and the load may be unaligned.
        Self(unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast())) })
    }
    #[inline(always)]
    fn half(from: [u8; 2]) -> Self {
        use std::arch::x86_64::*;
        // SAFETY: as in `splat`.
        Self(unsafe { _mm512_cvtph_ps(_mm256_set1_epi16(i16::from_le_bytes(from))) })
    }
    #[inline(always)]
    fn bytes(from: &[u8; 16]) -> Self {
        use std::arch::x86_64::*;
        // SAFETY: as in `splat`; 16 bytes are readable, and the load may be unaligned.
        Self(unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.as_ptr().cast()))) })
    }
    #[inline(always)]
    fn store(self, to: &mut [f32; 16]) {
        // SAFETY: as in `splat`; sixteen values are writable, and the store may be unaligned.
        unsafe { std::arch::x86_64::_mm512_storeu_ps(to.as_mut_ptr(), self.0) }
    }
    #[inline(always)]
    fn mul(self, b: Self) -> Self {
        // SAFETY: as in `splat`.
        Self(unsafe { std::arch::x86_64::_mm512_mul_ps(self.0, b.0) })
    }
    #[inline(always)]
    fn mul_add(self, b: Self, c: Self) -> Self {
        // SAFETY: as in `splat`.
        Self(unsafe { std::arch::x86_64::_mm512_fmadd_ps(self.0, b.0, c.0) })
    }
    #[inline(always)]
    fn add(self, b: Self) -> Self {
        // SAFETY: as in `splat`.
        Self(unsafe { std::arch::x86_64::_mm512_add_ps(self.0, b.0) })
    }
}

/// As many values as the shorter has, at most sixteen; sixteen without a call.
#[inline(always)]
pub(crate) fn copy(from: &[f32], to: &mut [f32]) {
    match (from.first_chunk::<16>(), to.first_chunk_mut::<16>()) {
        (Some(from), Some(to)) => *to = *from,
        _ => to.iter_mut().zip(from).for_each(|(to, from)| *to = *from),
    }
}

per_isa! {
    /// [`PageType::write`] of one row.
    pub fn write(page: PageType, row: &[f32], to: &mut [u8]) {
        page.write(row, to);
    }
}

per_isa! {
    /// [`PageType::widen`] of rows of `dim` values.
    pub fn widen[L](page: PageType, from: &[u8], to: &mut [f32], dim: usize) {
        widen_rows::<L>(page, from, to, dim);
    }
}

/// See [`widen`].
#[inline(always)]
pub(crate) fn widen_rows<L: Lanes>(page: PageType, from: &[u8], to: &mut [f32], dim: usize) {
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
