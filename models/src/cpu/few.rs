//! Attention's inner loops for a few queries that share a page: rows times rows. Where they are many, [`tiles`](super::tiles).

use super::lanes::Lanes;
use super::math::per_isa;
use super::memory::Upcoming;

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
