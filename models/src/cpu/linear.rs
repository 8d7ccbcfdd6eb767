//! Products with dense weights.
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
use crate::quant::{COLUMNS_MAX, Isa, PANEL, PanelProduct};

/// Most panels of an item: with K = 2048 and 4.5 bits a weight, 74 KB that stay in L2 for all columns.
const ITEM_PANELS: usize = 8;
/// Most columns of a wide product: its results are then 4 KiB, which stay in L1 with 5 KiB of decoded weights.
const WIDE_COLUMNS: usize = 64;
/// Items a thread should find, so that the last ones are a small part of the whole.
pub(super) const ITEMS_PER_THREAD: usize = 8;

/// `0..n` in groups of at most [`COLUMNS_MAX`] whose sizes differ by at most one.
pub(super) fn groups(n: usize) -> impl Iterator<Item = Range<usize>> {
    balanced(n, COLUMNS_MAX)
}

/// `0..n` in groups of at most `max` whose sizes differ by at most one.
fn balanced(n: usize, max: usize) -> impl Iterator<Item = Range<usize>> {
    let count = n.div_ceil(max);
    (0..count).map(move |i| n * i / count..n * (i + 1) / count)
}

/// Up to [`COLUMNS_MAX`] columns as a product takes them.
pub(super) struct Group<'a> {
    acts: [&'a [u8]; COLUMNS_MAX],
    len: usize,
}

impl<'a> Group<'a> {
    pub(super) fn new(columns: Columns<'a>, indices: impl ExactSizeIterator<Item = usize>) -> Self {
        let mut group = Self { acts: [&[]; COLUMNS_MAX], len: indices.len() };
        for (to, i) in group.acts.iter_mut().zip(indices) {
            *to = columns.get(i);
        }
        group
    }

    /// One result per column.
    pub(super) fn times<'o>(
        &self,
        product: PanelProduct,
        panel: &[u8],
        cols: usize,
        out: &'o mut [[f32; PANEL]; COLUMNS_MAX],
    ) -> &'o [[f32; PANEL]] {
        product(panel, cols, &self.acts[..self.len], &mut out[..self.len]);
        &out[..self.len]
    }
}

/// Some panels of one weight.
struct Item {
    weight: usize,
    panels: Range<usize>,
}

/// Gives `sink(panel, column, result)` every product of the panels with columns `0..count`.
fn each_product(
    isa: Isa,
    w: &CpuWeight,
    mut panels: Range<usize>,
    columns: Columns<'_>,
    count: usize,
    mut sink: impl FnMut(usize, usize, &[f32; PANEL]),
) {
    if count > COLUMNS_MAX
        && let Some(wide) = w.format.wide(isa)
    {
        let mut results = [[[0.0; PANEL]; 2]; WIDE_COLUMNS];
        while panels.len() >= 2 {
            let pair = [panels.start, panels.start + 1];
            for group in balanced(count, WIDE_COLUMNS) {
                let mut acts: [&[u8]; WIDE_COLUMNS] = [&[]; WIDE_COLUMNS];
                for (to, i) in acts.iter_mut().zip(group.clone()) {
                    *to = columns.get(i);
                }
                let results = &mut results[..group.len()];
                wide(pair.map(|p| w.panel(0, p)), w.cols, &acts[..group.len()], results);
                for (column, results) in group.zip(results) {
                    for (panel, result) in pair.iter().zip(results) {
                        sink(*panel, column, result);
                    }
                }
            }
            panels.start += 2;
        }
    }
    let product = w.format.product(isa);
    let mut results = [[0.0; PANEL]; COLUMNS_MAX];
    for group in groups(count) {
        let acts = Group::new(columns, group.clone());
        for panel in panels.clone() {
            let results = acts.times(product, w.panel(0, panel), w.cols, &mut results);
            for (column, result) in group.clone().zip(results) {
                sink(panel, column, result);
            }
        }
    }
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
        self.pool.for_each(items.len(), |_, i| {
            let Item { weight: at, ref panels } = items[i];
            let w = weights[at];
            each_product(isa, w, panels.clone(), columns[at], x.rows, |panel, row, result| {
                let first = panel * PANEL;
                let len = PANEL.min(w.rows - first);
                // SAFETY: an item writes only its panels' rows of its weight's output, and is done once.
                let to = unsafe { shared[at].slice(row * w.rows + first, len) };
                to.copy_from_slice(&result[..len]);
            });
        });
        drop(shared);
        let tensors = outs.into_iter().zip(weights);
        tensors.map(|(o, w)| CpuTensor::new(x.rows, w.rows, o, x.tokens.clone())).collect()
    }

    fn items(&self, weights: &[&CpuWeight], columns: usize) -> Vec<Item> {
        let panels: usize = weights.iter().map(|w| w.panels()).sum();
        let each = self.panels_per_item(panels).min(ITEM_PANELS);
        // Wide products take panels in pairs.
        let each = if columns > COLUMNS_MAX { each.next_multiple_of(2) } else { each };
        let of_weight = |(weight, w): (usize, &&CpuWeight)| {
            let panels = w.panels();
            let starts = (0..panels).step_by(each);
            starts.map(move |p| Item { weight, panels: p..panels.min(p + each) }).collect::<Vec<_>>()
        };
        weights.iter().enumerate().flat_map(of_weight).collect()
    }

    /// So many that every thread finds [`ITEMS_PER_THREAD`] items; at least one.
    pub(super) fn panels_per_item(&self, panels: usize) -> usize {
        (panels / (self.pool.threads() * ITEMS_PER_THREAD)).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_balanced_and_cover() {
        for n in 0..200 {
            let all: Vec<_> = groups(n).collect();
            assert_eq!(all.iter().map(Range::len).sum::<usize>(), n);
            assert!(all.iter().flat_map(Clone::clone).eq(0..n));
            let (min, max) = (all.iter().map(Range::len).min(), all.iter().map(Range::len).max());
            assert!(max <= Some(COLUMNS_MAX) && max.unwrap_or(0) - min.unwrap_or(0) <= 1);
        }
        assert_eq!(groups(9).map(|g| g.len()).collect::<Vec<_>>(), [4, 5]);
    }
}
