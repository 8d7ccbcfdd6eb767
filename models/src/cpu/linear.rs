//! Products with dense weights, and with a matrix per head.
//!
//! One work list for all weights of a call: an item is up to [`ITEM_PANELS`] panels of one weight times every
//! column. Columns go in balanced groups of at most eight (9 are 5 and 4), or, where the
//! format has a wide product, of at most [`WIDE_COLUMNS`] with two panels at a time; which columns are together, and
//! which thread takes an item, changes no bit.

use std::ops::Range;

use super::Core;
use super::pool::Disjoint;
use super::tensor::{Columns, CpuTensor};
use super::weight::CpuWeight;
use crate::quant::{COLUMNS_MAX, Isa, PANEL, act_bytes, encode};

/// Most panels of an item: with K = 2048 and 4.5 bits a weight, 74 KB that stay in L2 for all columns.
const ITEM_PANELS: usize = 8;
/// Panels of one call of a product: its results are then 2 KiB.
const CALL_PANELS: usize = 8;
/// Most columns of a wide product: its results are then 4 KiB, which stay in L1 with 5 KiB of decoded weights.
pub(super) const WIDE_COLUMNS: usize = 64;
/// Items a thread should find, so that the last ones are a small part of the whole.
pub(super) const ITEMS_PER_THREAD: usize = 8;

/// `0..n` in groups of at most `max` whose sizes differ by at most one.
pub(super) fn balanced(n: usize, max: usize) -> impl Iterator<Item = Range<usize>> {
    let count = n.div_ceil(max);
    (0..count).map(move |i| n * i / count..n * (i + 1) / count)
}

/// Some panels of one weight.
struct Item {
    weight: usize,
    panels: Range<usize>,
}

/// Panels of one matrix of a weight.
#[derive(Clone, Debug)]
pub(super) struct Part<'a> {
    pub(super) weight: &'a CpuWeight,
    pub(super) expert: usize,
    pub(super) panels: Range<usize>,
}

impl Part<'_> {
    /// Gives `sink(panel, i, result)` every product of the panels with columns `column(i)`, `i` of `0..count`. `next` is what
    /// is likely read afterwards.
    pub(super) fn products(
        &self,
        isa: Isa,
        (columns, count): (Columns<'_>, usize),
        column: impl Fn(usize) -> usize,
        next: &[u8],
        mut sink: impl FnMut(usize, usize, &[f32; PANEL]),
    ) {
        let &Self { weight: w, expert, ref panels } = self;
        let mut panels = panels.clone();
        if count > COLUMNS_MAX
            && let Some(wide) = w.format.wide(isa)
        {
            let mut results = [[[0.0; PANEL]; 2]; WIDE_COLUMNS];
            while panels.len() >= 2 {
                let pair = [panels.start, panels.start + 1];
                for group in balanced(count, WIDE_COLUMNS) {
                    let acts = gathered::<WIDE_COLUMNS>(columns, group.clone().map(&column));
                    let results = &mut results[..group.len()];
                    wide(pair.map(|p| w.panel(expert, p)), w.cols, &acts[..group.len()], results);
                    for (i, results) in group.zip(results) {
                        for (panel, result) in pair.iter().zip(results) {
                            sink(*panel, i, result);
                        }
                    }
                }
                panels.start += 2;
            }
        }
        let product = w.format.product(isa);
        let mut results = [[0.0; PANEL]; COLUMNS_MAX * CALL_PANELS];
        for group in balanced(count, COLUMNS_MAX) {
            let acts = gathered::<COLUMNS_MAX>(columns, group.clone().map(&column));
            let acts = &acts[..group.len()];
            for start in panels.clone().step_by(CALL_PANELS) {
                let end = panels.end.min(start + CALL_PANELS);
                let next = if end < panels.end { w.panel(expert, end) } else { next };
                let results = &mut results[..(end - start) * acts.len()];
                product(w.panels_of(expert, start..end), w.cols, acts, next, results);
                for (panel, results) in (start..end).zip(results.chunks_exact(acts.len())) {
                    for (i, result) in group.clone().zip(results) {
                        sink(panel, i, result);
                    }
                }
            }
        }
    }
}

/// Panels of an item: an even number if `columns` may call for wide products, which take them in pairs.
fn paired(panels: usize, columns: usize) -> usize {
    if columns > COLUMNS_MAX { panels.next_multiple_of(2) } else { panels }
}

/// Up to `N` columns, and nothing after them.
fn gathered<'a, const N: usize>(columns: Columns<'a>, indices: impl Iterator<Item = usize>) -> [&'a [u8]; N] {
    let mut acts: [&[u8]; N] = [&[]; N];
    for (to, i) in acts.iter_mut().zip(indices) {
        *to = columns.get(i);
    }
    acts
}

impl Core {
    /// `x W^T` for each weight; counts nothing.
    pub(super) fn products(&self, x: &CpuTensor, weights: &[&CpuWeight]) -> Vec<CpuTensor> {
        let mut outs: Vec<_> = weights
            .iter()
            .map(|w| {
                assert!(w.cols == x.width && w.experts == 1, "a matrix of the input's width");
                self.env.floats.take(x.rows * w.rows)
            })
            .collect();
        let columns: Vec<_> = weights.iter().map(|w| x.columns(self, w.format.act)).collect();
        let shared: Vec<_> = outs.iter_mut().map(|o| Disjoint::new(o)).collect();
        let items = self.items(weights, x.rows);
        let isa = self.env.isa;
        let next = |i: usize| match items.get(i + 1) {
            Some(next) => weights[next.weight].panel(0, next.panels.start),
            None => &[],
        };
        self.pool.for_each_near(items.len(), |_, i| {
            let Item { weight: at, ref panels } = items[i];
            let w = weights[at];
            let part = Part { weight: w, expert: 0, panels: panels.clone() };
            part.products(
                isa,
                (columns[at], x.rows),
                |row| row,
                next(i),
                |panel, row, result| {
                    let first = panel * PANEL;
                    let len = PANEL.min(w.rows - first);
                    // SAFETY: an item writes only its panels' rows of its weight's output, and is done once.
                    let to = unsafe { shared[at].slice(row * w.rows + first, len) };
                    match <&mut [f32; PANEL]>::try_from(&mut *to) {
                        Ok(to) => *to = *result,
                        Err(_) => to.copy_from_slice(&result[..len]),
                    }
                },
            );
        });
        drop(shared);
        let tensors = outs.into_iter().zip(weights);
        tensors.map(|(o, w)| CpuTensor::new(x.rows, w.rows, o, x.tokens.clone())).collect()
    }

    /// Each head's own product: of a row's heads the first `w.cols` values through the head's matrix, the others
    /// behind the result as they are; counts nothing. Heads are encoded one by one, so a head's blocks hold its values
    /// alone; an item is some panels of one head's matrix times that head of every row.
    pub(super) fn head_products(&self, x: &CpuTensor, w: &CpuWeight) -> CpuTensor {
        let heads = w.experts;
        let head_dim = x.width / heads;
        assert!(x.width.is_multiple_of(heads) && w.cols <= head_dim, "heads of equal width");
        let (kind, rest) = (w.format.act, head_dim - w.cols);
        let (stride, to_dim) = (act_bytes(kind, w.cols), w.rows + rest);
        let (env, width) = (&self.env, heads * to_dim);
        let mut bytes = env.bytes.take(x.rows * heads * stride);
        let mut out = env.floats.take(x.rows * width);
        let (encoded, shared) = (Disjoint::new(&mut bytes), Disjoint::new(&mut out));
        self.rows(x.rows, x.width, |_, row| {
            for (head, values) in x.row(row).chunks_exact(head_dim).enumerate() {
                let (values, others) = values.split_at(w.cols);
                let place = row * heads + head;
                // SAFETY: every (row, head) is done once, and its encoded values and the end of its result are its own.
                let (to, end) = unsafe {
                    (encoded.slice(place * stride, stride), shared.slice(place * to_dim + w.rows, rest))
                };
                encode(env.isa, kind, values, to);
                end.copy_from_slice(others);
            }
        });
        let columns = Columns { bytes: &bytes, stride };
        let each = paired(self.panels_per_item(heads * w.panels()).min(ITEM_PANELS), x.rows);
        let per_head = w.panels().div_ceil(each);
        self.pool.for_each_near(heads * per_head, |_, i| {
            let (head, first) = (i / per_head, i % per_head * each);
            let part = Part { weight: w, expert: head, panels: first..w.panels().min(first + each) };
            let column = |row| row * heads + head;
            part.products(env.isa, (columns, x.rows), column, &[], |panel, row, result| {
                let first = panel * PANEL;
                let len = PANEL.min(w.rows - first);
                // SAFETY: an item writes only its panels' rows of its head, and is done once.
                let to = unsafe { shared.slice((row * heads + head) * to_dim + first, len) };
                to.copy_from_slice(&result[..len]);
            });
        });
        CpuTensor::new(x.rows, width, out, x.tokens.clone())
    }

    fn items(&self, weights: &[&CpuWeight], columns: usize) -> Vec<Item> {
        let panels: usize = weights.iter().map(|w| w.panels()).sum();
        let each = self.panels_per_item(panels).min(ITEM_PANELS);
        let each = paired(each, columns);
        let of_weight = |(weight, w): (usize, &&CpuWeight)| {
            let panels = w.panels();
            let starts = (0..panels).step_by(each);
            starts.map(move |p| Item { weight, panels: p..panels.min(p + each) }).collect::<Vec<_>>()
        };
        weights.iter().enumerate().flat_map(of_weight).collect()
    }

    /// So many that every thread finds [`ITEMS_PER_THREAD`] items; at least one.
    fn panels_per_item(&self, panels: usize) -> usize {
        (panels / (self.pool.threads() * ITEMS_PER_THREAD)).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_balanced_and_cover() {
        for n in 0..200 {
            let all: Vec<_> = balanced(n, COLUMNS_MAX).collect();
            assert_eq!(all.iter().map(Range::len).sum::<usize>(), n);
            assert!(all.iter().flat_map(Clone::clone).eq(0..n));
            let (min, max) = (all.iter().map(Range::len).min(), all.iter().map(Range::len).max());
            assert!(max <= Some(COLUMNS_MAX) && max.unwrap_or(0) - min.unwrap_or(0) <= 1);
        }
        assert_eq!(balanced(9, COLUMNS_MAX).map(|g| g.len()).collect::<Vec<_>>(), [4, 5]);
    }
}
