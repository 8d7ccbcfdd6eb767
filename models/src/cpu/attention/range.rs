//! One item's queries over one range of positions, and the merge of ranges.

use super::super::lanes::{accumulate, dots, widen};
use super::super::math::{self, per_isa};
use super::super::memory::prefetch;
use super::{Attention, Disjoint, Env, Item, RANGE, Range};
use crate::step::BlockId;

impl Attention<'_> {
    /// What merging begins with: nothing, or the sink.
    pub(super) fn start(&self, item: &Item, state: &mut Vec<f32>) {
        state.clear();
        state.resize(self.partial_values(item), 0.0);
        let (maxima, rest) = state.split_at_mut(item.queries());
        match self.input.sinks {
            None => maxima.fill(f32::NEG_INFINITY),
            Some(sinks) => {
                for maxima in maxima.chunks_exact_mut(item.heads.len()) {
                    maxima.copy_from_slice(&sinks[item.heads.clone()]);
                }
                rest[..item.queries()].fill(1.0);
            }
        }
    }

    /// One range's partial results. A query that sees nothing of the range gets what [`Attention::merge`] skips.
    pub(super) fn range(
        &self,
        env: &Env,
        item: &Item,
        range: usize,
        (scores, wide): (&mut Vec<f32>, &mut Vec<f32>),
        partial: &mut [f32],
    ) {
        scores.resize(item.queries() * RANGE, 0.0);
        wide.resize(self.segment * self.key_dim.max(self.value_dim), 0.0);
        self.scores(env, item, range, wide, scores);
        let heads = item.heads.len();
        let (maxima, rest) = partial.split_at_mut(item.queries());
        let (sums, values) = rest.split_at_mut(item.queries());
        for (i, scores) in scores.chunks_exact_mut(RANGE).enumerate().take(item.queries()) {
            let scores = &mut scores[self.seen(item.position + i / heads, range)];
            maxima[i] = math::largest(scores);
            sums[i] = math::exp_sum(env.isa, scores, maxima[i]);
        }
        self.values(env, item, range, (scores, wide), values);
    }

    fn scores(&self, env: &Env, item: &Item, range: usize, wide: &mut [f32], scores: &mut [f32]) {
        let (dim, heads) = (self.key_dim, item.heads.len());
        let (layer, scale) = (self.input.spec.slot as usize, self.input.spec.scale);
        let keys = |block| self.pages.keys(block, layer, item.head);
        let [row, _] = self.pages.row_bytes();
        self.segments(item, range, row, keys, |page, at, len| {
            widen(env.isa, self.pages.page(), page, &mut wide[..len * dim], dim);
            for (token, scores) in scores.chunks_exact_mut(heads * RANGE).enumerate().take(item.tokens.len())
            {
                let seen = overlap(&self.seen(item.position + token, range), at, len);
                if seen.is_empty() {
                    continue;
                }
                let keys = &wide[(seen.start - at) * dim..(seen.end - at) * dim];
                let q = &self.input.q.row(item.tokens.start + token)[item.heads.start * dim..][..heads * dim];
                dots(env.isa, q, keys, dim, scale, &mut scores[seen.start..], RANGE);
            }
        });
    }

    /// The sums of values, weighted by what became of the scores.
    fn values(
        &self,
        env: &Env,
        item: &Item,
        range: usize,
        (scores, wide): (&[f32], &mut [f32]),
        values: &mut [f32],
    ) {
        let (dim, heads, layer) = (self.value_dim, item.heads.len(), self.input.spec.slot as usize);
        let latent = self.input.v.is_none();
        let [key_bytes, value_bytes] = self.pages.row_bytes();
        // A latent's value is the beginning of its key.
        let (row, row_bytes) = if latent { (self.key_dim, key_bytes) } else { (dim, value_bytes) };
        values.fill(0.0);
        let pages = |block| match latent {
            true => self.pages.keys(block, layer, item.head),
            false => self.pages.values(block, layer, item.head),
        };
        self.segments(item, range, row_bytes, pages, |page, at, len| {
            widen(env.isa, self.pages.page(), page, &mut wide[..len * row], row);
            for (token, values) in values.chunks_exact_mut(heads * dim).enumerate() {
                let seen = overlap(&self.seen(item.position + token, range), at, len);
                if seen.is_empty() {
                    continue;
                }
                let rows = &wide[(seen.start - at) * row..(seen.end - at) * row];
                let scores = &scores[token * heads * RANGE..][..heads * RANGE];
                accumulate(env.isa, (scores, RANGE), seen, (rows, row), values, dim);
            }
        });
    }

    /// Calls `work(rows, offset in the range, positions)` for stretches of one page, in order, over what the item's tokens
    /// see of the range; `page` gives the rows of a block, of `row` bytes each. Two pages ahead are asked for: pages lie
    /// apart, and no processor guesses where.
    fn segments<'p>(
        &self,
        item: &Item,
        range: usize,
        row: usize,
        page: impl Fn(BlockId) -> &'p [u8],
        mut work: impl FnMut(&[u8], usize, usize),
    ) {
        let (block_tokens, base) = (self.input.block_tokens, range * RANGE);
        let table = &self.input.batch.spans[item.span].tables[self.input.spec.group as usize];
        let block = |at: usize| table.blocks[at / block_tokens - table.first as usize];
        let mut at = base + self.seen(item.position, range).start;
        let end = item.context().min(base + RANGE);
        let ask = |at: usize| {
            if at < end {
                prefetch(&page(block(at))[..block_tokens.min(end - at) * row]);
            }
        };
        ask(at - at % block_tokens + block_tokens);
        while at < end {
            let slot = at % block_tokens;
            let next = at - slot + block_tokens;
            let len = (next - at).min(end - at).min(self.segment);
            if slot == 0 {
                ask(next + block_tokens);
            }
            work(&page(block(at))[slot * row..(slot + len) * row], at - base, len);
            at += len;
        }
    }

    pub(super) fn merge(&self, env: &Env, item: &Item, range: usize, state: &mut [f32], partial: &[f32]) {
        let (dim, n, heads) = (self.value_dim, item.queries(), item.heads.len());
        for i in 0..n {
            if self.seen(item.position + i / heads, range).is_empty() {
                continue;
            }
            let (max, [old, new]) = merge_scales(state[i], partial[i]);
            state[i] = max;
            state[n + i] = state[n + i] * old + partial[n + i] * new;
            let values = 2 * n + i * dim..2 * n + (i + 1) * dim;
            merge_values(env.isa, &mut state[values.clone()], &partial[values], old, new);
        }
    }

    pub(super) fn finish(&self, item: &Item, state: &[f32], out: &Disjoint<'_, f32>) {
        let (dim, heads) = (self.value_dim, item.heads.len());
        let (sums, values) = state[item.queries()..].split_at(item.queries());
        let tokens = values.chunks_exact(heads * dim).zip(sums.chunks_exact(heads));
        for (token, (values, sums)) in item.tokens.clone().zip(tokens) {
            let at = (token * self.input.spec.heads as usize + item.heads.start) * dim;
            // SAFETY: each query belongs to one item, and each item is finished once.
            let to = unsafe { out.slice(at, heads * dim) };
            for ((to, values), sum) in to.chunks_exact_mut(dim).zip(values.chunks_exact(dim)).zip(sums) {
                for (to, v) in to.iter_mut().zip(values) {
                    *to = v / sum;
                }
            }
        }
    }
}

/// What of `seen` lies in `at..at + len`; an empty range if nothing does.
fn overlap(seen: &Range<usize>, at: usize, len: usize) -> Range<usize> {
    seen.start.max(at)..seen.end.min(at + len)
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
