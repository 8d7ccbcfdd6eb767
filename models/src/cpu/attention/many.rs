//! One range of positions for an item of many queries, by [`tiles`]: the same bits as for a few.
//!
//! Sixteen keys at a time are widened and turned for all queries, then all values of the range, so each page is read once. What that
//! costs, about 3 instructions for eight values, is spread over the queries, as each of them needs 16 multiply-adds for
//! as many.

use super::{Attention, Env, Item, RANGE, Room, at_least};
use frugal_kernels::tiles::{self, COLS, ROWS};
use frugal_kernels::upcoming::Upcoming;

/// Queries from which tiles pay.
const MANY: usize = 12;
/// Values of a range that are widened at a time: 128 KB, which stays in L2.
const VALUES: usize = 32 << 10;

impl Item {
    pub(super) fn many(&self) -> bool {
        self.queries() >= MANY
    }
}

impl Attention<'_> {
    /// The item's queries as tiles; what fills the last one is a query again.
    pub(super) fn tiles(&self, item: &Item, room: &mut Room) {
        if !item.many() {
            return;
        }
        let (dim, heads, n) = (self.key_dim, item.heads.len(), item.queries());
        let to = at_least(&mut room.tiles, n.next_multiple_of(ROWS) * dim);
        let query = |i: usize| {
            let i = i.min(n - 1);
            let row = self.input.q.row(item.tokens.start + i / heads);
            &row[(item.heads.start + i % heads) * dim..][..dim]
        };
        for (tile, to) in to.chunks_exact_mut(ROWS * dim).enumerate() {
            tiles::query_tile(std::array::from_fn(|r| query(tile * ROWS + r)), to);
        }
    }

    /// The scores of one range; the room holds the item's tiles.
    pub(super) fn scores_of_many(&self, env: &Env, (item, range): (&Item, usize), room: &mut Room) {
        let Room { scores, wide, tiles, seen } = room;
        let n = item.queries();
        let padded = n.next_multiple_of(ROWS);
        seen.clear();
        seen.extend((0..padded).map(|i| self.seen(item.position + i.min(n - 1) / item.heads.len(), range)));
        let scores = at_least(scores, padded * RANGE);
        let (dim, page) = (self.key_dim, self.pages.page());
        let (keys, values) = (self.keys(item, range), self.values_of(item, range));
        let (base, positions) = (range * RANGE, self.positions(&keys));
        let (panel, turn) = at_least(wide, 2 * COLS * dim).split_at_mut(COLS * dim);
        for at in (positions.start - positions.start % COLS..positions.end).step_by(COLS) {
            // Beyond what is seen lies what may not be read; what stands in for it is not looked at.
            let mut rows = [&[][..]; COLS];
            let inside = at.max(positions.start)..positions.end.min(at + COLS);
            self.rows(&keys, inside.clone(), &mut rows[inside.start - at..]);
            let any = rows[inside.start - at];
            rows.iter_mut().filter(|row| row.is_empty()).for_each(|row| *row = any);
            tiles::key_panel(env.isa, page, rows, turn, panel);

            let at = at - base;
            // Neither beginnings nor ends descend from query to query.
            let first = seen.partition_point(|s| s.end <= at) / ROWS;
            let last = seen.partition_point(|s| s.start < at + COLS).div_ceil(ROWS);
            let middle = first + (last - first) / 2;
            let ahead = |rows, from: usize| {
                if from < positions.end { self.page(rows, from, COLS.min(positions.end - from)) } else { &[] }
            };
            let both = [
                (first..middle, ahead(&values, inside.start)),
                (middle..last, ahead(&keys, base + at + COLS)),
            ];
            for (part, ahead) in both {
                let mut upcoming = Upcoming::new(ahead, part.len());
                let out = &mut scores[part.start * ROWS * RANGE..part.end * ROWS * RANGE];
                let tiles = &tiles[part.start * ROWS * dim..part.end * ROWS * dim];
                tiles::scores(env.isa, tiles, panel, self.input.spec.scale, (out, RANGE), at, &mut upcoming);
                upcoming.rest();
            }
        }
    }

    /// The sums of values over the range whose scores the room holds, as weights.
    pub(super) fn values_of_many(
        &self,
        env: &Env,
        (item, range): (&Item, usize),
        next: Option<(&Item, usize)>,
        room: &mut Room,
        values: &mut [f32],
    ) {
        let Room { scores, wide, seen, .. } = room;
        let (dim, page) = (self.value_dim, self.pages.page());
        // A latent's value is the beginning of its key.
        let width = if self.input.v.is_none() { self.key_dim } else { dim };
        let rows = self.values_of(item, range);
        let (base, positions) = (range * RANGE, self.positions(&rows));
        let panels = dim.div_ceil(COLS);
        let each = (VALUES / (panels * COLS)).clamp(COLS, RANGE);
        let (wide, one) = at_least(wide, panels * COLS * each + width).split_at_mut(panels * COLS * each);
        let next = next.map(|(item, range)| self.keys(item, range));
        let next = next.map_or(&[][..], |rows| self.page(&rows, self.positions(&rows).start, COLS));
        let mut from = positions.start;
        while from < positions.end {
            let to = positions.end.min(from + each);
            let mut position = from;
            while position < to {
                let stretch = self.page(&rows, position, to - position);
                tiles::value_rows(env.isa, page, stretch, [width, dim], one, (wide, each), position - from);
                position += stretch.len() / rows.bytes;
            }
            let mut upcoming = Upcoming::new(if to == positions.end { next } else { &[] }, seen.len() / ROWS);
            for (panel, at) in wide.chunks_exact(COLS * each).zip((0..dim).step_by(COLS)) {
                let panel = &panel[..COLS * (to - from)];
                let fresh = from == positions.start;
                let (weights, seen) = ((&scores[..], RANGE), (&seen[..], from - base));
                tiles::weigh(env.isa, weights, seen, panel, (values, [dim, at]), fresh, &mut upcoming);
            }
            upcoming.rest();
            from = to;
        }
    }
}
