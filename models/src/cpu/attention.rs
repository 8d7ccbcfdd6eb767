//! Attention over pages.
//!
//! Law: a query's result depends on its values, its position, and the keys and values that it sees. Positions are cut
//! into ranges of [`RANGE`] by absolute position, so neither the chunks nor what a window has left behind move a
//! cut. Within a range, over the positions seen: scores (q.k as eight partial sums over the dimension mod 8, times
//! the scale), their maximum m, e = exp(score - m), l = their sum, and the sum of e * v in ascending position with
//! fused multiply-add. Ranges are merged in ascending order, beginning with the sink if there is one (m = sink,
//! l = 1, no value). So neither blocks, chunks, threads nor the queries that share a page change a bit.
//!
//! An item is (sequence, a few of the span's tokens, query heads of one key head): its queries share each read of a
//! page. A few queries widen the keys of a page, which stay in L1, once for all of them ([`WIDE_VALUES`]); [`many`] of them take a range
//! as products of matrices. One worker takes
//! all ranges of an item, unless there are too few items to occupy the threads, or the longest is more than a thread's part: then (item, range) pairs are spread,
//! and merged in a second phase. The partial results of that mode are at most [`PARTIALS_MAX`] values.
//!
//! What bounds it: with up to about four queries a page (decoding with few query heads a key head) the reading of
//! pages; above, and always with latent attention, where one key head serves all query heads, the multiply-adds. Of a prompt's time three
//! quarters are those, at two instructions a clock (`cargo bench --workspace --bench attention`); exponentials are 7 %, widening
//! and turning 6 %.

mod many;
mod range;
mod write;

use std::ops::Range;

use frugal_kernels::few::RANGE;

use super::linear::balanced;
use super::pool::Disjoint;
use super::tensor::CpuTensor;
use super::{Core, Env};
use crate::backend::{AttendSpec, Batch};
use crate::kv::Pages;

/// Values of keys that are widened at a time: 24 KB.
const WIDE_VALUES: usize = 6 << 10;
/// Queries that share a page, unless one token has more: whole tiles for 1, 2, 3, 4, 6 and 8 heads of a token.
const QUERIES: usize = 96;
/// Query heads of a token that share a page: more are cut, so that a few tokens of many heads occupy all threads.
const HEADS: usize = 32;
/// Values of partial results, 64 MB.
pub(crate) const PARTIALS_MAX: usize = 16 << 20;

/// One layer's attention of one step.
pub(super) struct Attend<'a> {
    pub(super) q: &'a CpuTensor,
    pub(super) k: &'a CpuTensor,
    /// None: a value is the beginning of its key.
    pub(super) v: Option<&'a CpuTensor>,
    /// One per query head.
    pub(super) sinks: Option<&'a [f32]>,
    pub(super) spec: &'a AttendSpec,
    pub(super) batch: &'a Batch,
    pub(super) block_tokens: usize,
}

/// Some tokens of one span, and query heads of one key head.
#[derive(Debug)]
struct Item {
    span: usize,
    head: usize,
    /// Query heads, among all.
    heads: Range<usize>,
    /// Token indices in the batch.
    tokens: Range<usize>,
    /// Position of the first.
    position: usize,
    /// Ranges that some token sees into.
    ranges: Range<usize>,
}

impl Item {
    fn queries(&self) -> usize {
        self.tokens.len() * self.heads.len()
    }

    /// One past the last position that a token sees.
    fn context(&self) -> usize {
        self.position + self.tokens.len()
    }
}

/// What a worker holds of one item: `[queries]` maxima, `[queries]` sums, `[queries, value_dim]` sums of values.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    /// Merged so far.
    state: Vec<f32>,
    /// Of one range.
    partial: Vec<f32>,
    room: Room,
}

/// What one range of one item takes.
#[derive(Debug, Default)]
struct Room {
    /// `[queries, RANGE]`.
    scores: Vec<f32>,
    /// Some positions of a page.
    wide: Vec<f32>,
    /// Of many queries: themselves, and the positions that each sees of the range.
    tiles: Vec<f32>,
    seen: Vec<Range<usize>>,
}

/// So many values of any content; never fewer than there were, so that they are zeroed once.
fn at_least(of: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if of.len() < len {
        of.resize(len, 0.0);
    }
    &mut of[..len]
}

/// An attention whose keys and values are written.
struct Attention<'a> {
    input: &'a Attend<'a>,
    pages: &'a Pages,
    key_dim: usize,
    value_dim: usize,
    /// Most positions that are widened at a time.
    segment: usize,
}

impl Attend<'_> {
    /// Asserts what the caller promises.
    fn check(&self) {
        let Self { q, k, v, sinks, spec, batch, block_tokens } = *self;
        let tokens = batch.tokens.len();
        let all = |x: &CpuTensor| x.rows == tokens && x.tokens.is_none();
        assert!(all(q) && all(k) && v.is_none_or(all), "all of the batch's tokens");
        assert!(spec.kv_heads > 0 && spec.heads.is_multiple_of(spec.kv_heads), "query heads in equal groups");
        assert!(spec.key_dim > 0 && spec.value_dim > 0, "heads have values");
        assert_eq!(q.width, (spec.heads * spec.key_dim) as usize, "query width");
        assert_eq!(k.width, (spec.kv_heads * spec.key_dim) as usize, "key width");
        match v {
            Some(v) => assert_eq!(v.width, (spec.kv_heads * spec.value_dim) as usize, "value width"),
            None => assert!(spec.value_dim <= spec.key_dim, "a value is part of its key"),
        }
        assert!(sinks.is_none_or(|s| s.len() == spec.heads as usize), "a sink per query head");
        for span in &batch.spans {
            let table = &span.tables[spec.group as usize];
            let end = span.start as usize + (span.end - span.begin) as usize;
            let (first, blocks) = (table.first as usize, table.blocks.len());
            assert!((first + blocks) * block_tokens >= end, "the table covers the row's positions");
            assert!(
                first * block_tokens <= spec.first_seen(span.start) as usize,
                "the table still has what the row's first token sees"
            );
        }
    }
}

impl Core {
    /// Writes the step's keys and values into their pages, then attends; counts nothing.
    pub(super) fn attention(&self, input: &Attend<'_>, pages: &mut Pages) -> CpuTensor {
        input.check();
        self.write_pages(input, pages);
        let attention = Attention::new(input, pages);
        let mut items = attention.items();
        // The longest first, so that the end is even.
        let work = |i: &Item| i.queries() * i.ranges.len();
        items.sort_by_key(|i| std::cmp::Reverse(work(i)));
        let width = input.spec.heads as usize * attention.value_dim;
        let mut out = self.env.floats.take(input.q.rows * width);
        let partials: usize = items.iter().map(|i| i.ranges.len() * attention.partial_values(i)).sum();
        let (threads, total) = (self.pool.threads(), items.iter().map(work).sum::<usize>());
        let few = items.len() < 4 * threads || items.first().map_or(0, work) * threads > total;
        if threads > 1 && few && partials <= PARTIALS_MAX && items.iter().any(|i| i.ranges.len() > 1) {
            self.spread(&attention, &items, partials, &mut out);
        } else {
            let (shared, env) = (Disjoint::new(&mut out), &self.env);
            self.pool.for_each_near(items.len(), |worker, i| {
                let (item, mut scratch) = (&items[i], env.scratch(worker));
                let Scratch { state, partial, room } = &mut scratch.attention;
                attention.start(item, state);
                attention.tiles(item, room);
                partial.resize(attention.partial_values(item), 0.0);
                let then = items.get(i + 1).map(|item| (item, item.ranges.start));
                for range in item.ranges.clone() {
                    let next = if range + 1 < item.ranges.end { Some((item, range + 1)) } else { then };
                    attention.range(env, (item, range), next, room, partial);
                    attention.merge(env, item, range, state, partial);
                }
                attention.finish(env, item, state, &shared);
            });
        }
        CpuTensor::new(input.q.rows, width, out, None)
    }

    /// The ranges of all items at once, then each item's merge.
    fn spread(&self, attention: &Attention<'_>, items: &[Item], partials: usize, out: &mut [f32]) {
        let (shared, env) = (Disjoint::new(out), &self.env);
        let mut values = env.floats.take(partials);
        let parts = Disjoint::new(&mut values);
        // Every (item, range), and where an item's partial results begin: one range after the other.
        let (mut pairs, mut begins, mut end) = (Vec::new(), Vec::new(), 0);
        for (i, item) in items.iter().enumerate() {
            pairs.extend(item.ranges.clone().map(|range| (i, range)));
            begins.push(end);
            end += item.ranges.len() * attention.partial_values(item);
        }
        let place = |i: usize, range: usize| {
            let len = attention.partial_values(&items[i]);
            (begins[i] + (range - items[i].ranges.start) * len, len)
        };
        self.pool.for_each_near(pairs.len(), |worker, pair| {
            let (i, range) = pairs[pair];
            let (at, len) = place(i, range);
            // SAFETY: `place` cuts the values into consecutive parts, and each pair is done once.
            let partial = unsafe { parts.slice(at, len) };
            let room = &mut env.scratch(worker).attention.room;
            let next = pairs.get(pair + 1).map(|&(i, range)| (&items[i], range));
            attention.tiles(&items[i], room);
            attention.range(env, (&items[i], range), next, room, partial);
        });
        self.pool.for_each(items.len(), |worker, i| {
            let state = &mut env.scratch(worker).attention.state;
            attention.start(&items[i], state);
            for range in items[i].ranges.clone() {
                let (at, len) = place(i, range);
                // SAFETY: the phase that wrote is over; parts of different items do not overlap.
                let partial = unsafe { parts.slice(at, len) };
                attention.merge(env, &items[i], range, state, partial);
            }
            attention.finish(env, &items[i], state, &shared);
        });
    }
}

impl<'a> Attention<'a> {
    fn new(input: &'a Attend<'a>, pages: &'a Pages) -> Self {
        let (key_dim, value_dim) = (input.spec.key_dim as usize, input.spec.value_dim as usize);
        // A power of two divides blocks evenly.
        let fit = (WIDE_VALUES / key_dim).max(1);
        Self { input, pages, key_dim, value_dim, segment: 1 << fit.ilog2() }
    }

    fn items(&self) -> Vec<Item> {
        let spec = self.input.spec;
        let group = (spec.heads / spec.kv_heads) as usize;
        let tokens_each = (QUERIES / group).max(1);
        let mut items = Vec::new();
        for (span, s) in self.input.batch.spans.iter().enumerate() {
            let (begin, end) = (s.begin as usize, s.end as usize);
            for first in (begin..end).step_by(tokens_each) {
                let tokens = first..end.min(first + tokens_each);
                let position = s.start as usize + (first - begin);
                let first_seen = spec.first_seen(position as u32) as usize;
                let ranges = first_seen / RANGE..(position + tokens.len()).div_ceil(RANGE);
                for head in 0..spec.kv_heads as usize {
                    for part in balanced(group, HEADS) {
                        let heads = head * group + part.start..head * group + part.end;
                        let (tokens, ranges) = (tokens.clone(), ranges.clone());
                        items.push(Item { span, head, heads, tokens, position, ranges });
                    }
                }
            }
        }
        items
    }

    fn partial_values(&self, item: &Item) -> usize {
        item.queries() * (self.value_dim + 2)
    }

    /// The positions that a token at `position` sees, relative to the range's first.
    fn seen(&self, position: usize, range: usize) -> Range<usize> {
        let within = |p: usize| p.saturating_sub(range * RANGE).min(RANGE);
        within(self.input.spec.first_seen(position as u32) as usize)..within(position + 1)
    }
}
