//! Attention's inner loops for a few queries that share a page: rows times rows. Where they are many, [`tiles`](super::tiles).

use super::lanes::{Lanes, Sixteen, copy};
use super::math::per_isa;
use super::page::{BLOCK, PageType, SCALE};
use super::upcoming::Upcoming;

/// Positions that attention merges as one.
pub const RANGE: usize = 256;
/// Values that are summed at a time.
const COLS: usize = 16;

per_isa! {
    /// `out[h][j] = scale * q[h].keys[j]`: queries and keys are rows of `dim`, `out` has rows of `stride`, of which the
    /// first as many values as there are keys are written. `upcoming` has a turn for every four keys and three queries. (Rows are split off, not counted: a division costs as much
    /// as a key.)
    pub fn dots[L](
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
        while L::VECTORS && (q.len() == 3 * dim || q.len() >= 5 * dim) {
            let (three, more) = q.split_at(3 * dim);
            let (first, rest) = out.split_at_mut(stride);
            let (second, rest) = rest.split_at_mut(stride);
            let (third, rest) = rest.split_at_mut(stride.min(rest.len()));
            let (a, b) = three.split_at(dim);
            let (b, c) = b.split_at(dim);
            dots_of::<L, 3>([a, b, c], keys, scale, [first, second, third], upcoming);
            (q, out) = (more, rest);
        }
        while L::VECTORS && q.len() >= 2 * dim {
            let (two, more) = q.split_at(2 * dim);
            let (first, second) = out.split_at_mut(stride);
            let (second, rest) = second.split_at_mut(stride.min(second.len()));
            let (a, b) = two.split_at(dim);
            dots_of::<L, 2>([a, b], keys, scale, [first, second], upcoming);
            (q, out) = (more, rest);
        }
        while !q.is_empty() {
            let (one, more) = q.split_at(dim);
            let (first, rest) = out.split_at_mut(stride.min(out.len()));
            dots_of::<L, 1>([one], keys, scale, [first], upcoming);
            (q, out) = (more, rest);
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
    /// `to[h] += weights[h][j] * values[j]` for ascending j, values being what begins the rows of a page, given with their bytes:
    /// `to` has rows of `dim`, weights rows of [`RANGE`]. `upcoming` has so many [`turns`].
    pub fn weigh[L, W](
        page: PageType,
        rows: (&[u8], usize),
        weights: &[f32],
        to: (&mut [f32], usize),
        upcoming: &mut Upcoming<'_>,
    ) {
        match page {
            PageType::F16 => weigh_as::<Halves, W>(rows, weights, to, upcoming),
            PageType::F32 => weigh_as::<Singles, W>(rows, weights, to, upcoming),
            PageType::Q8_0 => weigh_as::<Codes, W>(rows, weights, to, upcoming),
        }
    }
}

/// At least as many turns as [`weigh`] takes for so many heads of `dim` values.
pub fn turns(dim: usize, heads: usize) -> usize {
    dim.div_ceil(COLS) * heads.div_ceil(6)
}

#[inline(always)]
fn weigh_as<P: Values, W: Sixteen>(
    rows: (&[u8], usize),
    weights: &[f32],
    (to, dim): (&mut [f32], usize),
    upcoming: &mut Upcoming<'_>,
) {
    let heads = to.len() / dim;
    let groups = heads.div_ceil(W::CHAINS);
    for at in (0..dim).step_by(COLS) {
        for group in 0..groups {
            upcoming.turn();
            let (first, end) = (heads * group / groups, heads * (group + 1) / groups);
            let (weights, to) = (&weights[first * RANGE..], &mut to[first * dim..end * dim]);
            match end - first {
                1 => weigh_group::<P, W, 1>(rows, weights, to, at),
                _ if W::CHAINS == 1 => unreachable!("so much is compiled for vectors alone"),
                2 => weigh_group::<P, W, 2>(rows, weights, to, at),
                3 => weigh_group::<P, W, 3>(rows, weights, to, at),
                4 => weigh_group::<P, W, 4>(rows, weights, to, at),
                5 => weigh_group::<P, W, 5>(rows, weights, to, at),
                6 => weigh_group::<P, W, 6>(rows, weights, to, at),
                7 => weigh_group::<P, W, 7>(rows, weights, to, at),
                8 => weigh_group::<P, W, 8>(rows, weights, to, at),
                _ => unreachable!("a group is not empty, and no larger than CHAINS"),
            }
        }
    }
}

/// [`COLS`] values of N heads from `at` on.
#[inline(always)]
fn weigh_group<P: Values, W: Sixteen, const N: usize>(
    (rows, bytes): (&[u8], usize),
    weights: &[f32],
    to: &mut [f32],
    at: usize,
) {
    let dim = to.len() / N;
    let mut sums = [W::zero(); N];
    for (sum, to) in sums.iter_mut().zip(to.chunks_exact(dim)) {
        *sum = match to[at..].first_chunk() {
            Some(to) => W::load(to),
            // Only here: through an array of their own, all sums would leave the registers.
            None => {
                let mut all = [0.0; COLS];
                copy(&to[at..], &mut all);
                W::load(&all)
            }
        };
    }
    // The heads' weights of one j at a time, in a window of a length that the compiler knows: a check of each would cost as much
    // as its product.
    for (row, weights) in rows.chunks_exact(bytes).zip(weights.windows((N - 1) * RANGE + 1)) {
        let values = P::sixteen::<W>(row, at);
        for (sum, weight) in sums.iter_mut().zip(weights.iter().step_by(RANGE)) {
            *sum = W::splat(*weight).mul_add(values, *sum);
        }
    }
    for (to, sum) in to.chunks_exact_mut(dim).zip(sums) {
        match to[at..].first_chunk_mut() {
            Some(to) => sum.store(to),
            None => {
                let mut all = [0.0; COLS];
                sum.store(&mut all);
                copy(&all, &mut to[at..]);
            }
        }
    }
}

/// How the rows of a page hold values: [`PageType`] as a type.
trait Values {
    /// Sixteen from `at` on, a multiple of that; anything beyond the row's end.
    fn sixteen<W: Sixteen>(row: &[u8], at: usize) -> W;
}

struct Halves;
struct Singles;
struct Codes;

impl Values for Halves {
    #[inline(always)]
    fn sixteen<W: Sixteen>(row: &[u8], at: usize) -> W {
        W::halves(&part(row, 2 * at))
    }
}

impl Values for Singles {
    #[inline(always)]
    fn sixteen<W: Sixteen>(row: &[u8], at: usize) -> W {
        let (bytes, mut singles) = (part::<{ 4 * COLS }>(row, 4 * at), [0.0; COLS]);
        for (single, bytes) in singles.iter_mut().zip(bytes.as_chunks().0) {
            *single = f32::from_le_bytes(*bytes);
        }
        W::load(&singles)
    }
}

impl Values for Codes {
    #[inline(always)]
    fn sixteen<W: Sixteen>(row: &[u8], at: usize) -> W {
        let block = at / BLOCK * (SCALE + BLOCK);
        let scale = W::half(part(row, block));
        W::bytes(&part(row, block + SCALE + at % BLOCK)).mul(scale)
    }
}

/// So many bytes from `at` on; zeros beyond the end.
#[inline(always)]
fn part<const N: usize>(row: &[u8], at: usize) -> [u8; N] {
    let rest = &row[at.min(row.len())..];
    rest.first_chunk().copied().unwrap_or_else(|| {
        let mut bytes = [0; N];
        bytes.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
        bytes
    })
}
