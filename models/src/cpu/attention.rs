//! Attention over pages.
//!
//! Law: a query's result depends on its values, its position and the keys and values up to it. Positions are cut
//! into ranges of [`RANGE`], by absolute position. Within a range: scores (q.k as eight partial sums over the
//! dimension mod 8, times the scale), their maximum m, e = exp(score - m), l = their sum, and the sum of e * v in
//! ascending position with fused multiply-add. Ranges are merged in ascending order by [`merge`]. So neither
//! blocks, chunks, threads nor the queries that share a page change a bit.
//!
//! An item is (sequence, key head, a few of the span's tokens): its queries, of all the head's query heads, share
//! each read of a page. One worker takes all ranges of an item, unless there are too few items to occupy the
//! threads: then (item, range) pairs are spread, and merged in a second phase. The partial results of that
//! mode are at most [`PARTIALS_MAX`] values.

use std::ops::Range;

use super::lanes::{accumulate, dots};
use super::math::{self, per_isa};
use super::pool::Disjoint;
use super::tensor::CpuTensor;
use super::{Core, Env};
use crate::backend::{AttendSpec, Batch, Span};
use crate::kv::{PageValue, Pages};

/// Positions merged as one.
const RANGE: usize = 256;
/// Positions whose keys or values are widened at a time: 16 KB at 128 dimensions.
const SEGMENT: usize = 32;
/// Queries that share a page, unless one token has more.
const QUERIES: usize = 16;
/// Values of partial results, 64 MB.
const PARTIALS_MAX: usize = 16 << 20;

/// Some tokens of one span, for one key head.
#[derive(Debug)]
struct Item {
    span: usize,
    head: usize,
    /// Token indices in the batch.
    tokens: Range<usize>,
    /// Position of the first.
    position: usize,
    queries: usize,
}

impl Item {
    /// Positions that its last token sees.
    fn context(&self) -> usize {
        self.position + self.tokens.len()
    }

    fn ranges(&self) -> usize {
        self.context().div_ceil(RANGE)
    }
}

/// What a worker holds of one item: `[queries]` maxima, `[queries]` sums, `[queries, head_dim]` sums of values.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    /// Merged so far.
    state: Vec<f32>,
    /// Of one range.
    partial: Vec<f32>,
    /// `[queries, RANGE]`.
    scores: Vec<f32>,
    /// `[SEGMENT, head_dim]`.
    wide: Vec<f32>,
}

/// One layer's attention of one step.
struct Attention<'a, V> {
    q: &'a CpuTensor,
    pages: &'a Pages<V>,
    spans: &'a [Span],
    spec: &'a AttendSpec,
    block_tokens: usize,
}

impl Core {
    /// Writes the step's keys and values into their pages, then attends; counts nothing.
    pub(super) fn attention<V: PageValue>(
        &self,
        (q, k, v): (&CpuTensor, &CpuTensor, &CpuTensor),
        pages: &mut Pages<V>,
        block_tokens: usize,
        spec: &AttendSpec,
        batch: &Batch,
    ) -> CpuTensor {
        self.write_pages(k, v, pages, block_tokens, spec, batch);
        let attention = Attention { q, pages, spans: &batch.spans, spec, block_tokens };
        let mut items = attention.items();
        // The longest first, so that the end is even.
        items.sort_by_key(|i| std::cmp::Reverse(i.queries * i.context()));
        let (dim, env) = (spec.key_dim as usize, &self.env);
        let mut out = self.env.floats.take(q.rows * q.width);
        let shared = Disjoint::new(&mut out);
        let partial_values = |i: &Item| i.queries * (dim + 2);
        let partials: usize = items.iter().map(|i| i.ranges() * partial_values(i)).sum();
        let few = items.len() < 4 * self.pool.threads() && self.pool.threads() > 1;
        if few && partials <= PARTIALS_MAX && items.iter().any(|i| i.ranges() > 1) {
            let mut values = self.env.floats.take(partials);
            let pairs = attention.pairs(&items);
            let parts = Disjoint::new(&mut values);
            self.pool.for_each(pairs.len(), |worker, i| {
                let (item, range, at) = pairs[i];
                // SAFETY: `pairs` cuts the values into consecutive parts, and each is done once.
                let partial = unsafe { parts.slice(at, partial_values(&items[item])) };
                let scratch = &mut env.scratch(worker).attention;
                attention.range(env, &items[item], range, (&mut scratch.scores, &mut scratch.wide), partial);
            });
            let firsts: Vec<_> = pairs.iter().filter(|p| p.1 == 0).collect();
            self.pool.for_each(firsts.len(), |worker, i| {
                let &(item, _, mut at) = firsts[i];
                let item = &items[item];
                let state = &mut env.scratch(worker).attention.state;
                attention.start(item, state);
                for range in 0..item.ranges() {
                    // SAFETY: the phase that wrote is over; parts of different items do not overlap.
                    let partial = unsafe { parts.slice(at, partial_values(item)) };
                    attention.merge(env, item, range, state, partial);
                    at += partial.len();
                }
                attention.finish(item, state, &shared);
            });
        } else {
            self.pool.for_each(items.len(), |worker, i| {
                let mut scratch = env.scratch(worker);
                let Scratch { state, partial, scores, wide } = &mut scratch.attention;
                attention.start(&items[i], state);
                partial.resize(partial_values(&items[i]), 0.0);
                for range in 0..items[i].ranges() {
                    attention.range(env, &items[i], range, (scores, wide), partial);
                    attention.merge(env, &items[i], range, state, partial);
                }
                attention.finish(&items[i], state, &shared);
            });
        }
        CpuTensor::new(q.rows, q.width, out, None)
    }

    fn write_pages<V: PageValue>(
        &self,
        k: &CpuTensor,
        v: &CpuTensor,
        pages: &mut Pages<V>,
        block_tokens: usize,
        spec: &AttendSpec,
        batch: &Batch,
    ) {
        let (dim, heads, layer) = (spec.key_dim as usize, spec.kv_heads as usize, spec.slot as usize);
        let layout = *pages.layout();
        assert!(layer < layout.layers && heads == layout.kv_heads, "the group's layers and heads");
        assert!(dim == layout.key_dim && dim == layout.value_dim, "the group's dimensions");
        // Where each token goes, relative to its head's part of the page.
        let mut places = Vec::with_capacity(k.rows);
        for span in &batch.spans {
            let table = &span.tables[spec.group as usize].blocks;
            for i in 0..(span.end - span.begin) as usize {
                let position = span.start as usize + i;
                let block = table[position / block_tokens];
                assert!((block.0 as usize) < layout.blocks, "a block of the pool");
                places.push((block, position % block_tokens * dim));
            }
        }
        let ranges = |head: usize, (block, at): (_, usize)| {
            (pages.keys_at(block, layer, head).start + at, pages.values_at(block, layer, head).start + at)
        };
        let at: Vec<_> =
            (0..heads).flat_map(|h| places.iter().map(move |&p| (h, p))).map(|(h, p)| ranges(h, p)).collect();
        let all = Disjoint::new(pages.all_mut());
        self.rows(heads, places.len() * 2 * dim, |_, head| {
            let from = head * dim..(head + 1) * dim;
            for (token, &(key, value)) in at[head * places.len()..][..places.len()].iter().enumerate() {
                // SAFETY: an item writes only its head's parts of the pages, one place after the other, and no
                // two heads share a place.
                unsafe {
                    V::narrow(&k.row(token)[from.clone()], all.slice(key, dim));
                    V::narrow(&v.row(token)[from.clone()], all.slice(value, dim));
                }
            }
        });
    }
}

impl<V: PageValue> Attention<'_, V> {
    fn group(&self) -> usize {
        (self.spec.heads / self.spec.kv_heads) as usize
    }

    fn items(&self) -> Vec<Item> {
        let tokens_each = (QUERIES / self.group()).max(1);
        let mut items = Vec::new();
        for (span, s) in self.spans.iter().enumerate() {
            let (begin, end) = (s.begin as usize, s.end as usize);
            for first in (begin..end).step_by(tokens_each) {
                let tokens = first..end.min(first + tokens_each);
                let position = s.start as usize + (first - begin);
                let queries = tokens.len() * self.group();
                for head in 0..self.spec.kv_heads as usize {
                    items.push(Item { span, head, tokens: tokens.clone(), position, queries });
                }
            }
        }
        items
    }

    /// Every (item, range) and where its partial results go: the ranges of an item one after the other.
    fn pairs(&self, items: &[Item]) -> Vec<(usize, usize, usize)> {
        let mut at = 0;
        let mut pairs = Vec::new();
        for (i, item) in items.iter().enumerate() {
            for range in 0..item.ranges() {
                pairs.push((i, range, at));
                at += item.queries * (self.spec.key_dim as usize + 2);
            }
        }
        pairs
    }

    /// Where query `i` of an item is in q and in the output, and how many positions it sees.
    fn query(&self, item: &Item, i: usize) -> (usize, usize) {
        let (token, head) = (i / self.group(), item.head * self.group() + i % self.group());
        let row = item.tokens.start + token;
        ((row * self.spec.heads as usize + head) * self.spec.key_dim as usize, item.position + token + 1)
    }

    fn start(&self, item: &Item, state: &mut Vec<f32>) {
        state.clear();
        state.resize(item.queries, f32::NEG_INFINITY);
        state.resize(item.queries * (self.spec.key_dim as usize + 2), 0.0);
    }

    /// One range's partial results.
    fn range(
        &self,
        env: &Env,
        item: &Item,
        range: usize,
        (scores, wide): (&mut Vec<f32>, &mut Vec<f32>),
        partial: &mut [f32],
    ) {
        let (dim, layer) = (self.spec.key_dim as usize, self.spec.slot as usize);
        let from = range * RANGE;
        let to = item.context().min(from + RANGE);
        scores.resize(item.queries * RANGE, 0.0);
        wide.resize(SEGMENT * dim, 0.0);
        let (maxima, rest) = partial.split_at_mut(item.queries);
        let (sums, values) = rest.split_at_mut(item.queries);
        let seen = |i: usize| self.query(item, i).1.saturating_sub(from).min(RANGE);
        self.segments(item, from..to, |block, slot, at, len| {
            let page = &self.pages.keys(block, layer, item.head)[slot * dim..(slot + len) * dim];
            V::widen(page, &mut wide[..len * dim]);
            for i in 0..item.queries {
                let len = seen(i).saturating_sub(at).min(len);
                let q = &self.q.values()[self.query(item, i).0..][..dim];
                let scores = &mut scores[i * RANGE + at..][..len];
                dots(env.isa, q, &wide[..len * dim], self.spec.scale, scores);
            }
        });
        for i in 0..item.queries {
            let scores = &mut scores[i * RANGE..][..seen(i)];
            maxima[i] = math::largest(scores);
            sums[i] = math::exp_sum(env.isa, scores, maxima[i]);
        }
        values.fill(0.0);
        self.segments(item, from..to, |block, slot, at, len| {
            let page = &self.pages.values(block, layer, item.head)[slot * dim..(slot + len) * dim];
            V::widen(page, &mut wide[..len * dim]);
            for (i, values) in values.chunks_exact_mut(dim).enumerate() {
                let len = seen(i).saturating_sub(at).min(len);
                let weights = &scores[i * RANGE + at..][..len];
                accumulate(env.isa, weights, &wide[..len * dim], values);
            }
        });
    }

    /// Calls `work(block, slot, offset in the range, positions)` for stretches of one page, in order.
    fn segments(
        &self,
        item: &Item,
        positions: Range<usize>,
        mut work: impl FnMut(crate::step::BlockId, usize, usize, usize),
    ) {
        let table = &self.spans[item.span].tables[self.spec.group as usize].blocks;
        let mut at = positions.start;
        while at < positions.end {
            let slot = at % self.block_tokens;
            let len = (self.block_tokens - slot).min(positions.end - at).min(SEGMENT);
            work(table[at / self.block_tokens], slot, at - positions.start, len);
            at += len;
        }
    }

    fn merge(&self, env: &Env, item: &Item, range: usize, state: &mut [f32], partial: &[f32]) {
        let dim = self.spec.key_dim as usize;
        let n = item.queries;
        for i in 0..n {
            if self.query(item, i).1 <= range * RANGE {
                continue;
            }
            let (max, scales) = merge_scales(state[i], partial[i]);
            let [old, new] = scales;
            state[i] = max;
            state[n + i] = state[n + i] * old + partial[n + i] * new;
            let values = 2 * n + i * dim..2 * n + (i + 1) * dim;
            merge_values(env.isa, &mut state[values.clone()], &partial[values], old, new);
        }
    }

    fn finish(&self, item: &Item, state: &[f32], out: &Disjoint<'_, f32>) {
        let dim = self.spec.key_dim as usize;
        let (sums, values) = state[item.queries..].split_at(item.queries);
        for (i, (values, sum)) in values.chunks_exact(dim).zip(sums).enumerate() {
            // SAFETY: each query belongs to one item, and each item is finished once.
            let to = unsafe { out.slice(self.query(item, i).0, dim) };
            for (to, v) in to.iter_mut().zip(values) {
                *to = v / sum;
            }
        }
    }
}

/// The common maximum, and what to multiply either side by.
fn merge_scales(old: f32, new: f32) -> (f32, [f32; 2]) {
    let max = if new > old { new } else { old };
    (max, [math::exp(old - max), math::exp(new - max)])
}

per_isa! {
    fn merge_values(state: &mut [f32], partial: &[f32], old: f32, new: f32) {
        for (s, &p) in state.iter_mut().zip(partial) {
            *s = *s * old + p * new;
        }
    }
}
