//! Attention's inner loops where many queries share what they see: products of matrices, in tiles that stay in registers.
//!
//! Six rows times sixteen columns are twelve sums of eight lanes; with two vectors of columns and one value of a row they fill sixteen
//! registers, and twelve chains hide the latency of two multiply-adds a clock. A step of the loop is then twelve
//! multiply-adds for eight loads; with vectors of sixteen, six for seven. Lanes are positions in scores and dimensions in sums of values, so no sum runs across lanes.
//!
//! The bits are those of [`dots`](super::few::dots) and [`few::weigh`](super::few::weigh). A score is eight partial sums over the
//! dimension mod 8: here each is summed by itself, one after the other in the order in which [`sum8`](super::math::sum8) pairs them. For
//! that, queries and keys lie sorted by the dimension mod 8 in the order of [`PARTS`].

use std::ops::Range;

use super::lanes::{Sixteen, copy, widen_rows};
use super::math::per_isa;
use super::page::PageType;
use super::upcoming::Upcoming;

/// Queries of a tile.
pub const ROWS: usize = 6;
/// Positions of a panel of keys, dimensions of a panel of values.
pub const COLS: usize = 16;

/// Dimensions mod 8: each pair, pair of pairs and half is what [`sum8`](super::math::sum8) adds.
const PARTS: [usize; 8] = [0, 4, 2, 6, 1, 5, 3, 7];

/// How many of `dim` dimensions are `part` mod 8.
#[inline(always)]
fn count(dim: usize, part: usize) -> usize {
    (dim + 7 - part) / 8
}

/// Where each part, by its dimension mod 8, begins.
#[inline(always)]
fn begins(dim: usize) -> [usize; 8] {
    let (mut begins, mut at) = ([0; 8], 0);
    for part in PARTS {
        begins[part] = at;
        at += count(dim, part);
    }
    begins
}

/// A tile of queries as [`scores`] reads it: `[dim, ROWS]`, dimensions in the order of [`PARTS`].
pub fn query_tile(rows: [&[f32]; ROWS], to: &mut [f32]) {
    let dim = rows[0].len();
    let (mut places, _) = to.as_chunks_mut::<ROWS>();
    for part in PARTS {
        let (now, later) = places.split_at_mut(count(dim, part));
        for (r, row) in rows.iter().enumerate() {
            for (place, value) in now.iter_mut().zip(row[part.min(dim)..].iter().step_by(8)) {
                place[r] = *value;
            }
        }
        places = later;
    }
}

per_isa! {
    /// A panel of keys, rows of a page, as [`scores`] reads it: `[dim, COLS]`, dimensions in the order of [`PARTS`]. `room` is
    /// for as many values.
    pub fn key_panel[L](page: PageType, rows: [&[u8]; COLS], room: &mut [f32], to: &mut [f32]) {
        let dim = to.len() / COLS;
        for (row, to) in rows.iter().zip(room.chunks_exact_mut(dim)) {
            widen_rows::<L>(page, row, to, dim);
        }
        let begins = begins(dim);
        let (places, _) = to.as_chunks_mut::<COLS>();
        for (half, rows) in room.chunks_exact(8 * dim).enumerate() {
            for at in 0..dim / 8 {
                let mut eight = [&[0.0; 8]; 8];
                for (eight, row) in eight.iter_mut().zip(rows.chunks_exact(dim)) {
                    *eight = &row.as_chunks().0[at];
                }
                for (column, begin) in L::columns(eight).into_iter().zip(begins) {
                    column.store(&mut places[begin + at].as_chunks_mut().0[half]);
                }
            }
            for d in dim - dim % 8..dim {
                for (place, row) in places[begins[d % 8] + d / 8][8 * half..].iter_mut().zip(rows.chunks_exact(dim)) {
                    *place = row[d];
                }
            }
        }
    }
}

per_isa! {
    /// `out[i][at + j] = scale * q[i].keys[j]` for the queries of tiles and a panel of keys; `out` has rows of `stride`.
    /// `upcoming` has a turn for each tile.
    pub fn scores[L, W](
        tiles: &[f32],
        keys: &[f32],
        scale: f32,
        out: (&mut [f32], usize),
        at: usize,
        upcoming: &mut Upcoming<'_>,
    ) {
        let ((out, stride), dim, scale) = (out, keys.len() / COLS, W::splat(scale));
        let [zero, four, two, six, one, five, three, seven] = PARTS.map(|part| count(dim, part));
        for (tile, out) in tiles.chunks_exact(ROWS * dim).zip(out.chunks_exact_mut(ROWS * stride)) {
            upcoming.turn();
            let rest = &mut (tile.as_chunks().0, keys.as_chunks().0);
            let left = add(add(next::<W>(rest, zero), next(rest, four)), add(next(rest, two), next(rest, six)));
            let right = add(add(next::<W>(rest, one), next(rest, five)), add(next(rest, three), next(rest, seven)));
            for (out, score) in out.chunks_exact_mut(stride).zip(add(left, right)) {
                if let Some(out) = out[at..].first_chunk_mut() {
                    score.mul(scale).store(out);
                }
            }
        }
    }
}

/// The products of the next `count` dimensions of a tile and a panel, each summed in one chain.
#[inline(always)]
fn next<W: Sixteen>(rest: &mut (&[[f32; ROWS]], &[[f32; COLS]]), count: usize) -> [W; ROWS] {
    let ((queries, more_queries), (keys, more_keys)) = (rest.0.split_at(count), rest.1.split_at(count));
    *rest = (more_queries, more_keys);
    let mut sums = [W::zero(); ROWS];
    for (queries, keys) in queries.iter().zip(keys) {
        let keys = W::load(keys);
        for (sum, query) in sums.iter_mut().zip(queries) {
            *sum = W::splat(*query).mul_add(keys, *sum);
        }
    }
    sums
}

#[inline(always)]
fn add<W: Sixteen>(mut a: [W; ROWS], b: [W; ROWS]) -> [W; ROWS] {
    for (a, b) in a.iter_mut().zip(b) {
        *a = a.add(b);
    }
    a
}

per_isa! {
    /// Rows of a page as [`weigh`] reads them: `[dim / COLS, positions, COLS]`, from `position` on. A row has `width` values, of
    /// which the first `dim` count. `room` is for one.
    pub fn value_rows[L](
        page: PageType,
        rows: &[u8],
        widths: [usize; 2],
        room: &mut [f32],
        to: (&mut [f32], usize),
        position: usize,
    ) {
        let ([width, dim], (to, positions)) = (widths, to);
        let (places, _) = to.as_chunks_mut::<COLS>();
        for (row, position) in rows.chunks_exact(page.row_bytes(width)).zip(position..) {
            widen_rows::<L>(page, row, &mut room[..width], width);
            let (panels, rest) = room[..dim].as_chunks::<COLS>();
            for (place, values) in places[position..].iter_mut().step_by(positions).zip(panels) {
                *place = *values;
            }
            if !rest.is_empty() {
                places[panels.len() * positions + position][..rest.len()].copy_from_slice(rest);
            }
        }
    }
}

per_isa! {
    /// `to[i][at + c] += weights[i][j] * panel[j][c]` for ascending j of `seen[i]`, in place of the sum where `fresh`. Weights lie
    /// in rows of what is beside them, sums in rows of `dim`; beside them are `[dim, at]`. Of `seen`, which is padded to whole tiles and counts from `first` before the
    /// panel, neither beginnings nor ends descend.
    pub fn weigh[L, W](
        weights: (&[f32], usize),
        seen: (&[Range<usize>], usize),
        panel: &[f32],
        to: (&mut [f32], [usize; 2]),
        fresh: bool,
        upcoming: &mut Upcoming<'_>,
    ) {
        let ((weights, stride), (seen, first), (to, [dim, at])) = (weights, seen, to);
        let (panel, _) = panel.as_chunks::<COLS>();
        let width = COLS.min(dim - at);
        let tiles = seen.chunks_exact(ROWS).zip(weights.chunks_exact(ROWS * stride)).zip(to.chunks_mut(ROWS * dim));
        for ((seen, weights), to) in tiles {
            upcoming.turn();
            let mut sums = [[0.0; COLS]; ROWS];
            if !fresh {
                for (sums, to) in sums.iter_mut().zip(to.chunks_exact(dim)) {
                    copy(&to[at..at + width], sums);
                }
            }
            let mut rows: [(&[f32], Range<usize>); ROWS] = Default::default();
            for ((row, weights), seen) in rows.iter_mut().zip(weights.chunks_exact(stride)).zip(seen) {
                let within = |position: usize| position.saturating_sub(first).min(panel.len());
                *row = (&weights[first..], within(seen.start)..within(seen.end));
            }
            // What all rows see, and of each what lies before and behind.
            let begin = rows[ROWS - 1].1.start;
            let end = rows[0].1.end.max(begin);
            for (sums, (weights, seen)) in sums.iter_mut().zip(&rows) {
                weigh_one::<W>(weights, panel, seen.start..seen.end.min(begin), sums);
            }
            weigh_all::<W>(rows.each_ref().map(|(row, _)| &row[begin..end]), &panel[begin..end], &mut sums);
            for (sums, (weights, seen)) in sums.iter_mut().zip(&rows) {
                weigh_one::<W>(weights, panel, seen.start.max(end)..seen.end, sums);
            }
            for (sums, to) in sums.iter().zip(to.chunks_exact_mut(dim)) {
                copy(sums, &mut to[at..at + width]);
            }
        }
    }
}

#[inline(always)]
fn weigh_one<W: Sixteen>(weights: &[f32], panel: &[[f32; COLS]], seen: Range<usize>, to: &mut [f32; COLS]) {
    if seen.is_empty() {
        return;
    }
    let mut sum = W::load(to);
    for (weight, values) in weights[seen.clone()].iter().zip(&panel[seen]) {
        sum = W::splat(*weight).mul_add(W::load(values), sum);
    }
    sum.store(to);
}

#[inline(always)]
fn weigh_all<W: Sixteen>(weights: [&[f32]; ROWS], panel: &[[f32; COLS]], to: &mut [[f32; COLS]; ROWS]) {
    let mut sums = [W::zero(); ROWS];
    for (sum, to) in sums.iter_mut().zip(to.iter()) {
        *sum = W::load(to);
    }
    // Side by side, not by index: a check of each would cost as much as the products.
    let [a, b, c, d, e, f] = weights;
    let weights = a.iter().zip(b).zip(c).zip(d).zip(e).zip(f);
    for (values, (((((a, b), c), d), e), f)) in panel.iter().zip(weights) {
        let values = W::load(values);
        for (sum, weight) in sums.iter_mut().zip([a, b, c, d, e, f]) {
            *sum = W::splat(*weight).mul_add(values, *sum);
        }
    }
    for (sum, to) in sums.into_iter().zip(to) {
        sum.store(to);
    }
}
