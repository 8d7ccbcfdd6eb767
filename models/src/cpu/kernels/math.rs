//! Elementwise and row-wise arithmetic: one plain definition, compiled for each instruction set.
//!
//! Law: the bits do not depend on the instruction set. The compiler neither reorders nor contracts float
//! operations, `mul_add` rounds once everywhere, and no function of the system's maths library is used except
//! sine and cosine (which only the rotation's table uses, once per position). Sums run in eight partial sums over the
//! index mod 8, each in ascending order, added pairwise by [`sum8`].

use frugal_quant::Isa;

/// Which pairs of a head rotate together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeStyle {
    /// `(2i, 2i+1)`: llama.
    Normal,
    /// `(i, i + dims/2)`: gpt-neox, qwen.
    Neox,
}

/// Defines a function whose first argument chooses the instruction set its body is compiled for. A body that
/// names its lanes, `fn name[L](..)`, gets the [`Lanes`](super::lanes::Lanes) of that set, and `fn name[L, W](..)` its
/// [`Sixteen`](super::lanes::Sixteen) as well: only such a body is compiled for AVX-512. It panics where the processor lacks the
/// set: what has been detected is remembered, so asking costs a few loads for each row or page.
macro_rules! per_isa {
    ($(#[$meta:meta])* $vis:vis fn $name:ident[$lanes:ident, $wide:ident]($($arg:ident: $ty:ty),* $(,)?) $body:block) => {
        $(#[$meta])*
        $vis fn $name(isa: frugal_quant::Isa, $($arg: $ty),*) {
            assert!(isa.available(), "the processor has {isa:?}");
            #[inline(always)]
            fn body<$lanes: $crate::lanes::Lanes, $wide: $crate::lanes::Sixteen>($($arg: $ty),*) $body
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            fn avx2($($arg: $ty),*) {
                body::<$crate::lanes::Avx2, [$crate::lanes::Avx2; 2]>($($arg),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c,avx512f")]
            fn avx512($($arg: $ty),*) {
                body::<$crate::lanes::Avx2, $crate::lanes::Avx512>($($arg),*)
            }
            match isa {
                frugal_quant::Isa::Scalar => body::<[f32; 8], [[f32; 8]; 2]>($($arg),*),
                // SAFETY: the processor has the features, as was asserted.
                #[cfg(target_arch = "x86_64")]
                frugal_quant::Isa::Avx2 => unsafe { avx2($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                frugal_quant::Isa::Avx512 => unsafe { avx512($($arg),*) },
                // All arm64 has what the plain body is compiled for.
                #[cfg(target_arch = "aarch64")]
                frugal_quant::Isa::Neon => body::<[f32; 8], [[f32; 8]; 2]>($($arg),*),
            }
        }
    };
    ($(#[$meta:meta])* $vis:vis fn $name:ident[$lanes:ident]($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        $vis fn $name(isa: frugal_quant::Isa, $($arg: $ty),*) $(-> $ret)? {
            assert!(isa.available(), "the processor has {isa:?}");
            #[inline(always)]
            fn body<$lanes: $crate::lanes::Lanes>($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            fn avx2($($arg: $ty),*) $(-> $ret)? {
                body::<$crate::lanes::Avx2>($($arg),*)
            }
            match isa {
                frugal_quant::Isa::Scalar => body::<[f32; 8]>($($arg),*),
                // SAFETY: the processor has the features, as was asserted.
                #[cfg(target_arch = "x86_64")]
                frugal_quant::Isa::Avx2 | frugal_quant::Isa::Avx512 => unsafe { avx2($($arg),*) },
                // All arm64 has what the plain body is compiled for.
                #[cfg(target_arch = "aarch64")]
                frugal_quant::Isa::Neon => body::<[f32; 8]>($($arg),*),
            }
        }
    };
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $crate::math::per_isa! { $(#[$meta])* $vis fn $name[_L]($($arg: $ty),*) $(-> $ret)? $body }
    };
}
pub(crate) use per_isa;

/// The sum of eight partial sums: ((0+4)+(2+6))+((1+5)+(3+7)).
#[inline(always)]
pub(crate) fn sum8(p: [f32; 8]) -> f32 {
    ((p[0] + p[4]) + (p[2] + p[6])) + ((p[1] + p[5]) + (p[3] + p[7]))
}

/// Above this [`exp`] does not grow.
pub(crate) const EXP_MAX: f32 = 88.0;
/// Below this [`exp`] is 0.
pub(crate) const EXP_MIN: f32 = -87.3;
/// 1.5 * 2^23: adding it rounds to an integer, whose low bits are then the sum's low bits.
pub(crate) const ROUND: f32 = 12_582_912.0;
/// ln 2 is the sum of both; multiples of the first are exact.
pub(crate) const LN2_HIGH: f32 = 0.693_359_4;
/// See [`LN2_HIGH`].
pub(crate) const LN2_LOW: f32 = -2.121_944_4e-4;
/// Taylor's, from the seventh power down.
pub(crate) const EXP_TERMS: [f32; 8] =
    [1.0 / 5040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0];

/// e^x within 2 units in the last place for -87.3 <= x <= 88; 0 below, e^88 above; NaN for NaN.
///
/// x = n ln 2 + r with |r| <= ln 2 / 2, and a polynomial of degree 7 in r (its remainder is below 1e-9).
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    let clamped = if x > EXP_MAX { EXP_MAX } else { x };
    let t = clamped.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = t - ROUND;
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, clamped));
    let [first, rest @ ..] = EXP_TERMS;
    let mut p = first;
    for c in rest {
        p = r.mul_add(p, c);
    }
    let power = f32::from_bits((t.to_bits() << 23).wrapping_add(0x3f80_0000));
    if x < EXP_MIN { 0.0 } else { p * power }
}

/// `x * sigmoid(x)`.
#[inline(always)]
fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

per_isa! {
    /// `gate[i] = silu(gate[i]) * up[i]`.
    pub fn silu_times(gate: &mut [f32], up: &[f32]) {
        for (g, &u) in gate.iter_mut().zip(up) {
            *g = silu(*g) * u;
        }
    }
}

per_isa! {
    /// `gate[i] = g * sigmoid(1.702 * g) * (u + 1)` with `g = min(gate[i], 7)` and u = `up[i]` within -7 to 7; what
    /// is not a number stays so.
    pub fn clamped_swiglu(gate: &mut [f32], up: &[f32]) {
        for (g, &u) in gate.iter_mut().zip(up) {
            let x = if *g > 7.0 { 7.0 } else { *g };
            let u = if u > 7.0 { 7.0 } else { u };
            let u = if u < -7.0 { -7.0 } else { u };
            *g = x / (1.0 + exp(-1.702 * x)) * (u + 1.0);
        }
    }
}

per_isa! {
    /// `x[i] = sigmoid(x[i])`.
    pub fn sigmoid(x: &mut [f32]) {
        for x in x {
            *x = 1.0 / (1.0 + exp(-*x));
        }
    }
}

per_isa! {
    /// `x += factor * y`.
    pub fn add(x: &mut [f32], y: &[f32], factor: f32) {
        for (a, &b) in x.iter_mut().zip(y) {
            *a = b.mul_add(factor, *a);
        }
    }
}

per_isa! {
    /// `x *= factor`.
    pub fn scale(x: &mut [f32], factor: f32) {
        for x in x {
            *x *= factor;
        }
    }
}

per_isa! {
    /// `x *= sigmoid(by . gate)`.
    pub fn gate[L](x: &mut [f32], by: &[f32], gate: &[f32]) {
        let factor = 1.0 / (1.0 + exp(-dot::<L>(by, gate)));
        for x in x {
            *x *= factor;
        }
    }
}

/// The sum of products, in eight partial sums.
#[inline(always)]
fn dot<L: super::lanes::Lanes>(a: &[f32], b: &[f32]) -> f32 {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<8>(), b.as_chunks::<8>());
    let sum = a.iter().zip(b).fold(L::zero(), |sum, (a, b)| L::load(a).mul_add(L::load(b), sum));
    let mut p = [0.0; 8];
    sum.store(&mut p);
    for (p, (a, b)) in p.iter_mut().zip(a_rest.iter().zip(b_rest)) {
        *p = a.mul_add(*b, *p);
    }
    sum8(p)
}

per_isa! {
    /// `to[i] = from[i] / sqrt(mean(from^2) + eps) * weight[i]`, over groups of the weight's length; what is left behind
    /// whole groups is copied.
    pub fn rms_norm[L](from: &[f32], weight: &[f32], eps: f32, to: &mut [f32]) {
        let whole = from.len() - from.len() % weight.len();
        to[whole..].copy_from_slice(&from[whole..]);
        for (from, to) in from.chunks_exact(weight.len()).zip(to.chunks_exact_mut(weight.len())) {
            let factor = 1.0 / (dot::<L>(from, from) / from.len() as f32 + eps).sqrt();
            for ((to, &x), &w) in to.iter_mut().zip(from).zip(weight) {
                *to = x * factor * w;
            }
        }
    }
}

per_isa! {
    /// `x[i] = exp(x[i] - max)`; returns their sum, in eight partial sums. The maximum must be among them. (By lanes: the
    /// compiler makes no vectors of it.)
    pub fn exp_sum[L](x: &mut [f32], max: f32) -> f32 {
        let (max, mut sum) = (L::splat(max), L::zero());
        let (chunks, rest) = x.as_chunks_mut::<8>();
        for c in chunks {
            let e = L::load(c).sub(max).exp();
            e.store(c);
            sum = sum.add(e);
        }
        if !rest.is_empty() {
            // What is added beyond the end is 0.
            let mut last = [f32::NEG_INFINITY; 8];
            last[..rest.len()].copy_from_slice(rest);
            let e = L::load(&last).sub(max).exp();
            e.store(&mut last);
            rest.copy_from_slice(&last[..rest.len()]);
            sum = sum.add(e);
        }
        let mut p = [0.0; 8];
        sum.store(&mut p);
        sum8(p)
    }
}

per_isa! {
    /// The largest value; NaN is ignored, so the sum of exponentials shows it.
    pub fn largest[L](x: &[f32]) -> f32 {
        let (chunks, rest) = x.as_chunks::<8>();
        let max = chunks.iter().fold(L::splat(f32::NEG_INFINITY), |max, c| max.larger(L::load(c)));
        let mut all = [0.0; 8];
        max.store(&mut all);
        all.iter().chain(rest).fold(f32::NEG_INFINITY, |m, &v| if v > m { v } else { m })
    }
}

/// Cosine and sine of one position's angles, each times the scale: `[cos; pairs]` then `[sin; pairs]`.
pub fn rope_angles(position: u32, frequencies: &[f64], scale: f32, to: &mut [f32]) {
    let (cos, sin) = to.split_at_mut(frequencies.len());
    for ((c, s), f) in cos.iter_mut().zip(sin).zip(frequencies) {
        let angle = f64::from(position) * f;
        *c = (angle.cos() * f64::from(scale)) as f32;
        *s = (angle.sin() * f64::from(scale)) as f32;
    }
}

/// Rotates `2 * pairs` values from `first` on of each head of one row; `angles` as from [`rope_angles`].
pub fn rope(isa: Isa, row: &mut [f32], (first, head_dim): (usize, usize), style: RopeStyle, angles: &[f32]) {
    match style {
        RopeStyle::Normal => rope_neighbours(isa, row, first, head_dim, angles),
        RopeStyle::Neox => rope_halves(isa, row, first, head_dim, angles),
    }
}

per_isa! {
    fn rope_neighbours(row: &mut [f32], first: usize, head_dim: usize, angles: &[f32]) {
        let (cos, sin) = angles.split_at(angles.len() / 2);
        for head in row.chunks_exact_mut(head_dim) {
            for (pair, (&c, &s)) in head[first..].as_chunks_mut::<2>().0.iter_mut().zip(cos.iter().zip(sin)) {
                let [x, y] = *pair;
                *pair = [x * c - y * s, x * s + y * c];
            }
        }
    }
}

per_isa! {
    fn rope_halves(row: &mut [f32], first: usize, head_dim: usize, angles: &[f32]) {
        let pairs = angles.len() / 2;
        let (cos, sin) = angles.split_at(pairs);
        for head in row.chunks_exact_mut(head_dim) {
            let (low, high) = head[first..].split_at_mut(pairs);
            for ((x, y), (&c, &s)) in low.iter_mut().zip(high).zip(cos.iter().zip(sin)) {
                (*x, *y) = (*x * c - *y * s, *x * s + *y * c);
            }
        }
    }
}

per_isa! {
    /// `to[i] = values[i] / sum`.
    pub fn divide(to: &mut [f32], values: &[f32], sum: f32) {
        for (to, v) in to.iter_mut().zip(values) {
            *to = v / sum;
        }
    }
}

per_isa! {
    /// Takes a range's maximum, sum and values into what was merged before.
    pub fn merge(merged: &mut [f32; 2], values: &mut [f32], part: [f32; 2], part_values: &[f32]) {
        let ([max, sum], [part_max, part_sum]) = (*merged, part);
        let both = if part_max > max { part_max } else { max };
        let (old, new) = (exp(max - both), exp(part_max - both));
        *merged = [both, sum * old + part_sum * new];
        for (v, &p) in values.iter_mut().zip(part_values) {
            *v = *v * old + p * new;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn isas() -> Vec<Isa> {
        Isa::ALL.iter().copied().filter(|isa| isa.available()).collect()
    }

    fn ulps(value: f32, exact: f64) -> f64 {
        let rounded = exact as f32;
        let unit = f64::from(f32::from_bits(rounded.to_bits() + 1)) - f64::from(rounded);
        (f64::from(value) - exact).abs() / unit
    }

    proptest! {
        #[test]
        fn exp_is_within_two_ulps(x in -87.3_f32..88.0) {
            prop_assert!(ulps(exp(x), f64::from(x).exp()) <= 2.0, "exp({x}) = {}", exp(x));
        }

        #[test]
        fn every_isa_gives_the_same_bits(
            x in prop::collection::vec(-30.0_f32..30.0, 1..70),
            seed in -3.0_f32..3.0,
        ) {
            let y: Vec<f32> = x.iter().map(|v| v * seed + 1.0).collect();
            let results: Vec<Vec<u32>> = isas()
                .into_iter()
                .map(|isa| {
                    let mut all = Vec::new();
                    let mut a = x.clone();
                    silu_times(isa, &mut a, &y);
                    all.extend_from_slice(&a);
                    let mut c = x.clone();
                    clamped_swiglu(isa, &mut c, &y);
                    all.extend_from_slice(&c);
                    sigmoid(isa, &mut c);
                    all.extend_from_slice(&c);
                    add(isa, &mut a, &y, seed);
                    all.extend_from_slice(&a);
                    gate(isa, &mut a, &x, &y);
                    all.extend_from_slice(&a);
                    scale(isa, &mut a, seed);
                    all.extend_from_slice(&a);
                    let mut n = vec![0.0; x.len()];
                    rms_norm(isa, &x, &y, 1e-5, &mut n);
                    all.extend_from_slice(&n);
                    let mut e = x.clone();
                    all.push(exp_sum(isa, &mut e, largest(isa, &x)));
                    all.extend_from_slice(&e);
                    let pairs = x.len() / 2;
                    if pairs > 0 {
                        for style in [RopeStyle::Normal, RopeStyle::Neox] {
                            let mut r = x.clone();
                            rope(isa, &mut r, (0, x.len()), style, &y[..2 * pairs]);
                            all.extend_from_slice(&r);
                        }
                    }
                    all.iter().map(|v| v.to_bits()).collect()
                })
                .collect();
            prop_assert!(results.iter().all(|r| r == &results[0]));
        }

        #[test]
        fn norm_softmax_and_silu_are_what_they_say(x in prop::collection::vec(-30.0_f32..30.0, 1..70)) {
            let x64: Vec<f64> = x.iter().map(|&v| f64::from(v)).collect();
            let mut n = vec![0.0; x.len()];
            rms_norm(Isa::detect(), &x, &vec![2.0; x.len()], 1e-5, &mut n);
            let mean = x64.iter().map(|v| v * v).sum::<f64>() / x64.len() as f64;
            for (a, b) in n.iter().zip(&x64) {
                prop_assert!((f64::from(*a) - 2.0 * b / (mean + 1e-5).sqrt()).abs() < 1e-5);
            }
            let mut e = x.clone();
            let sum = exp_sum(Isa::detect(), &mut e, largest(Isa::detect(), &x));
            let max = x64.iter().copied().fold(f64::MIN, f64::max);
            let exact: f64 = x64.iter().map(|v| (v - max).exp()).sum();
            prop_assert!((f64::from(sum) / exact - 1.0).abs() < 2e-6);
            let mut s = x.clone();
            silu_times(Isa::detect(), &mut s, &vec![1.0; x.len()]);
            for (a, b) in s.iter().zip(&x64) {
                let exact = b / (1.0 + (-b).exp());
                prop_assert!((f64::from(*a) - exact).abs() <= 1e-6 * exact.abs() + 1e-30);
            }
        }
    }

    #[test]
    fn exp_at_the_edges() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-88.0), 0.0);
        assert_eq!(exp(f32::INFINITY), exp(88.0));
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn both_rotations_turn_pairs_by_their_angle() {
        let mut angles = [0.0; 4];
        rope_angles(3, &[0.5, 0.25], 1.0, &mut angles);
        let turn = |x: f64, y: f64, a: f64| (x * a.cos() - y * a.sin(), x * a.sin() + y * a.cos());
        let close = |a: &[f32], b: &[f64]| a.iter().zip(b).all(|(a, b)| (f64::from(*a) - b).abs() < 1e-6);
        // Two heads of five values, of which four rotate.
        let row = [1.0, 2.0, 3.0, 4.0, 9.0, 5.0, 6.0, 7.0, 8.0, 9.0];
        let mut normal = row;
        rope(Isa::detect(), &mut normal, (0, 5), RopeStyle::Normal, &angles);
        let ((a, b), (c, d)) = (turn(1.0, 2.0, 1.5), turn(3.0, 4.0, 0.75));
        let ((e, f), (g, h)) = (turn(5.0, 6.0, 1.5), turn(7.0, 8.0, 0.75));
        assert!(close(&normal, &[a, b, c, d, 9.0, e, f, g, h, 9.0]), "{normal:?}");
        let mut neox = row;
        rope(Isa::detect(), &mut neox, (0, 5), RopeStyle::Neox, &angles);
        let ((a, c), (b, d)) = (turn(1.0, 3.0, 1.5), turn(2.0, 4.0, 0.75));
        let ((e, g), (f, h)) = (turn(5.0, 7.0, 1.5), turn(6.0, 8.0, 0.75));
        assert!(close(&neox, &[a, b, c, d, 9.0, e, f, g, h, 9.0]), "{neox:?}");
    }
}
