//! One item's queries over one range of positions, and the merge of ranges.

use super::{Attention, Disjoint, Env, Item, RANGE, Range, Room, at_least};
use frugal_kernels::few::{dots, turns, weigh};
use frugal_kernels::lanes::widen;
use frugal_kernels::math::{self, divide, merge};
use frugal_kernels::upcoming::Upcoming;

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

    /// One range's partial results. A query that sees nothing of the range gets what [`Attention::merge`] skips. `next` is
    /// likely done afterwards.
    pub(super) fn range(
        &self,
        env: &Env,
        (item, range): (&Item, usize),
        next: Option<(&Item, usize)>,
        room: &mut Room,
        partial: &mut [f32],
    ) {
        match item.many() {
            true => self.scores_of_many(env, (item, range), room),
            false => self.scores(env, (item, range), room),
        }
        let (maxima, rest) = partial.split_at_mut(item.queries());
        let (sums, values) = rest.split_at_mut(item.queries());
        self.exponentials(env, (item, range), &mut room.scores, maxima, sums);
        match item.many() {
            true => self.values_of_many(env, (item, range), next, room, values),
            false => self.values(env, (item, range), next, &room.scores, values),
        }
    }

    /// Each query's largest score, and what becomes of its scores and their sum.
    fn exponentials(
        &self,
        env: &Env,
        (item, range): (&Item, usize),
        scores: &mut [f32],
        maxima: &mut [f32],
        sums: &mut [f32],
    ) {
        let heads = item.heads.len();
        for (i, scores) in scores.chunks_exact_mut(RANGE).enumerate().take(item.queries()) {
            let scores = &mut scores[self.seen(item.position + i / heads, range)];
            maxima[i] = math::largest(env.isa, scores);
            sums[i] = math::exp_sum(env.isa, scores, maxima[i]);
        }
    }

    fn scores(&self, env: &Env, (item, range): (&Item, usize), room: &mut Room) {
        let (dim, heads) = (self.key_dim, item.heads.len());
        let scale = self.input.spec.scale;
        let scores = at_least(&mut room.scores, item.queries() * RANGE);
        let wide = at_least(&mut room.wide, self.segment * dim);
        self.segments(self.keys(item, range), Some(self.values_of(item, range)), |page, at, len, ahead| {
            widen(env.isa, self.pages.page(), page, &mut wide[..len * dim], dim);
            let turns = len.div_ceil(4) * heads.div_ceil(3) * item.tokens.len();
            let mut upcoming = Upcoming::new(ahead, turns);
            for (token, scores) in scores.chunks_exact_mut(heads * RANGE).enumerate() {
                let seen = overlap(&self.seen(item.position + token, range), at, len);
                if seen.is_empty() {
                    continue;
                }
                let keys = &wide[(seen.start - at) * dim..(seen.end - at) * dim];
                let q = &self.input.q.row(item.tokens.start + token)[item.heads.start * dim..][..heads * dim];
                dots(env.isa, q, keys, dim, scale, (&mut scores[seen.start..], RANGE), &mut upcoming);
            }
            upcoming.rest();
        });
    }

    /// The sums of values, weighted by what became of the scores.
    fn values(
        &self,
        env: &Env,
        (item, range): (&Item, usize),
        next: Option<(&Item, usize)>,
        scores: &[f32],
        values: &mut [f32],
    ) {
        let (dim, heads) = (self.value_dim, item.heads.len());
        values.fill(0.0);
        let next = next.map(|(item, range)| self.keys(item, range));
        let of = self.values_of(item, range);
        let bytes = of.bytes;
        self.segments(of, next, |page, at, len, ahead| {
            let mut upcoming = Upcoming::new(ahead, turns(dim, heads) * item.tokens.len());
            for (token, values) in values.chunks_exact_mut(heads * dim).enumerate() {
                let seen = overlap(&self.seen(item.position + token, range), at, len);
                if seen.is_empty() {
                    continue;
                }
                let rows = &page[(seen.start - at) * bytes..(seen.end - at) * bytes];
                let weights = &scores[token * heads * RANGE + seen.start..];
                weigh(env.isa, self.pages.page(), (rows, bytes), weights, (values, dim), &mut upcoming);
            }
            upcoming.rest();
        });
    }

    /// Rows one by one, as many as there are places.
    pub(super) fn rows<'r>(&'r self, of: &Rows<'_>, positions: Range<usize>, to: &mut [&'r [u8]]) {
        let (mut at, mut places) = (positions.start, to.iter_mut());
        while at < positions.end {
            let stretch = self.page(of, at, positions.end - at);
            for (row, place) in stretch.chunks_exact(of.bytes).zip(&mut places) {
                *place = row;
            }
            at += stretch.len() / of.bytes;
        }
    }

    /// The keys that an item reads of a range.
    pub(super) fn keys<'i>(&self, item: &'i Item, range: usize) -> Rows<'i> {
        Rows { item, range, values: false, bytes: self.pages.row_bytes()[0] }
    }

    /// Its values, which for a latent are where its keys are.
    pub(super) fn values_of<'i>(&self, item: &'i Item, range: usize) -> Rows<'i> {
        let values = self.input.v.is_some();
        Rows { item, range, values, bytes: self.pages.row_bytes()[usize::from(values)] }
    }

    /// Positions that the item's tokens see of the range.
    pub(super) fn positions(&self, rows: &Rows<'_>) -> Range<usize> {
        let base = rows.range * RANGE;
        base + self.seen(rows.item.position, rows.range).start..rows.item.context().min(base + RANGE)
    }

    /// Those rows from position `at` on that lie in its page, at most `len`.
    pub(super) fn page(&self, rows: &Rows<'_>, at: usize, len: usize) -> &[u8] {
        self.page_at(rows, self.place(at), len)
    }

    /// A position's block in the table, the first as if it were there, and where in the block. Two divisions: not for every page.
    fn place(&self, position: usize) -> [usize; 2] {
        [position / self.input.block_tokens, position % self.input.block_tokens]
    }

    fn page_at(&self, rows: &Rows<'_>, [index, slot]: [usize; 2], len: usize) -> &[u8] {
        let (block_tokens, layer) = (self.input.block_tokens, self.input.spec.slot as usize);
        let table = &self.input.batch.spans[rows.item.span].tables[self.input.spec.group as usize];
        let block = table.blocks[index - table.first as usize];
        let page = match rows.values {
            true => self.pages.values(block, layer, rows.item.head),
            false => self.pages.keys(block, layer, rows.item.head),
        };
        &page[slot * rows.bytes..(slot + len).min(block_tokens) * rows.bytes]
    }

    /// Calls `work(rows, offset in the range, positions, ahead)` for stretches of one page, in order. `ahead` should be asked for:
    /// rows two pages on, near the end those of `next`. Pages lie apart, and no processor guesses where.
    fn segments(
        &self,
        rows: Rows<'_>,
        next: Option<Rows<'_>>,
        mut work: impl FnMut(&[u8], usize, usize, &[u8]),
    ) {
        let block_tokens = self.input.block_tokens;
        let Range { start, end } = self.positions(&rows);
        let pages = end.div_ceil(block_tokens);
        let next = next.map(|next| {
            let positions = self.positions(&next);
            (self.place(positions.start), positions, next)
        });
        let ahead = |index: usize| match &next {
            _ if index < pages => self.page_at(&rows, [index, 0], end - index * block_tokens),
            Some((first, positions, next)) => {
                // As many pages into it as this one is beyond the end.
                let place = if index == pages { *first } else { [first[0] + index - pages, 0] };
                let at = positions.start.max(place[0] * block_tokens);
                if at < positions.end { self.page_at(next, place, positions.end - at) } else { &[] }
            }
            None => &[],
        };
        let ([mut index, mut slot], mut at) = (self.place(start), start);
        while at < end {
            let len = (block_tokens - slot).min(end - at).min(self.segment);
            let ahead = if slot == 0 || at == start { ahead(index + 2) } else { &[] };
            work(self.page_at(&rows, [index, slot], len), at - rows.range * RANGE, len, ahead);
            (at, slot) = (at + len, slot + len);
            if slot == block_tokens {
                (index, slot) = (index + 1, 0);
            }
        }
    }

    pub(super) fn merge(&self, env: &Env, item: &Item, range: usize, state: &mut [f32], partial: &[f32]) {
        let (dim, n, heads) = (self.value_dim, item.queries(), item.heads.len());
        for i in 0..n {
            if self.seen(item.position + i / heads, range).is_empty() {
                continue;
            }
            let values = 2 * n + i * dim..2 * n + (i + 1) * dim;
            let (mut merged, part) = ([state[i], state[n + i]], [partial[i], partial[n + i]]);
            merge(env.isa, &mut merged, &mut state[values.clone()], part, &partial[values]);
            [state[i], state[n + i]] = merged;
        }
    }

    pub(super) fn finish(&self, env: &Env, item: &Item, state: &[f32], out: &Disjoint<'_, f32>) {
        let (dim, heads) = (self.value_dim, item.heads.len());
        let (sums, values) = state[item.queries()..].split_at(item.queries());
        let tokens = values.chunks_exact(heads * dim).zip(sums.chunks_exact(heads));
        for (token, (values, sums)) in item.tokens.clone().zip(tokens) {
            let at = (token * self.input.spec.heads as usize + item.heads.start) * dim;
            // SAFETY: each query belongs to one item, and each item is finished once.
            let to = unsafe { out.slice(at, heads * dim) };
            for ((to, values), sum) in to.chunks_exact_mut(dim).zip(values.chunks_exact(dim)).zip(sums) {
                divide(env.isa, to, values, *sum);
            }
        }
    }
}

/// Keys or values of one key head, over one range of positions.
pub(super) struct Rows<'i> {
    item: &'i Item,
    range: usize,
    values: bool,
    /// Of a row.
    pub(super) bytes: usize,
}

/// What of `seen` lies in `at..at + len`; an empty range if nothing does.
fn overlap(seen: &Range<usize>, at: usize, len: usize) -> Range<usize> {
    seen.start.max(at)..seen.end.min(at + len)
}
