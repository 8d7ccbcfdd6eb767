//! Gated feed-forwards: dense ones are a stack of one expert that every token chose with weight 1.
//!
//! Two phases with a barrier between. First, item = (expert, [`BLOCK_ROWS`] inner rows): gate and up products for
//! the expert's tokens, biases, activation, and the encoding of the result for the down product, whose blocks the
//! item holds whole. Second, item = output rows: the down products of all active experts, added in ascending order of
//! expert, so an output has one writer and one order of summation: out += weight * y, y with its bias.

use std::ops::Range;

use super::linear::{Part, WIDE_COLUMNS, balanced};
use super::math;
use super::pool::Disjoint;
use super::route::CpuRouting;
use super::tensor::{Columns, CpuTensor};
use super::weight::{CpuVector, CpuWeight};
use super::{Core, Env};
use crate::backend::{Activation, Gated};
use crate::quant::{ActKind, PANEL, act_bytes, encode};

/// Most inner rows of an item: a block of the widest encoding.
const BLOCK_ROWS: usize = 256;
/// Inner rows of an item where the encoding's blocks are narrower.
const NARROW_ROWS: usize = 64;
/// Parts of a worker's share of the outputs: see [`halved`].
const PARTS: usize = 5;
/// Most columns whose gate and up results a thread holds at a time: 2 x 64 KB, and one wide product.
const CHUNK: usize = WIDE_COLUMNS;

/// Which rows of the input go through which matrix of the stack, sorted by matrix.
pub(super) struct Assigned {
    rows: Vec<usize>,
    weights: Vec<f32>,
    /// Active experts in ascending order, and their part of `rows`.
    experts: Vec<(usize, Range<usize>)>,
}

impl Assigned {
    /// Every row goes through the only matrix.
    pub(super) fn all(rows: usize) -> Self {
        let experts = if rows > 0 { vec![(0, 0..rows)] } else { Vec::new() };
        Self { rows: (0..rows).collect(), weights: vec![1.0; rows], experts }
    }

    /// As routed, among `experts` matrices; within one, in order of rows.
    pub(super) fn routed(routing: &CpuRouting, experts: usize) -> Self {
        let mut ends = vec![0; experts];
        for &e in &routing.experts {
            ends[e as usize] += 1;
        }
        let mut total = 0;
        for end in &mut ends {
            total += *end;
            *end = total - *end;
        }
        let mut assigned = Self { rows: vec![0; total], weights: vec![0.0; total], experts: Vec::new() };
        for (i, (&e, &w)) in routing.experts.iter().zip(&routing.weights).enumerate() {
            let at = &mut ends[e as usize];
            (assigned.rows[*at], assigned.weights[*at]) = (i / routing.top_k, w);
            *at += 1;
        }
        let mut start = 0;
        for (e, &end) in ends.iter().enumerate() {
            if end > start {
                assigned.experts.push((e, start..end));
            }
            start = end;
        }
        assigned
    }

    /// Matrices that some row goes through.
    pub(super) fn matrices(&self) -> impl Iterator<Item = usize> + Clone {
        self.experts.iter().map(|(expert, _)| *expert)
    }
}

/// A worker's gate and up results: `[CHUNK, rows of the item's panels]` each.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    gate: Vec<f32>,
    up: Vec<f32>,
}

/// Inner activations as the down product reads them: one column per assignment.
struct Inner<'a> {
    kind: ActKind,
    stride: usize,
    bytes: Disjoint<'a, u8>,
}

impl Env {
    /// `to[c][r - first row]` = row r of the part's panels times the token's column.
    fn block(&self, part: &Part<'_>, columns: Columns<'_>, tokens: &[usize], next: &[u8], to: &mut [f32]) {
        let (first, rows) = (part.panels.start, part.panels.len() * PANEL);
        let column = |i: usize| tokens[i];
        part.products(self.isa, (columns, tokens.len()), column, next, |panel, i, result| {
            to[i * rows + (panel - first) * PANEL..][..PANEL].copy_from_slice(result);
        });
    }
}

/// The panels of an output among so many workers: each has a stretch, in parts of a half of it, a quarter and so on. A part is
/// read from one expert after the other, so large ones are long runs of memory; the last ones are what can be taken over to
/// even out the threads. (tests/benches/RESULTS.md has what that brings.)
fn halved(panels: usize, workers: usize) -> Vec<Range<usize>> {
    let even = |panel: usize| if panel < panels { panel & !1 } else { panels };
    let parts = |worker: usize| {
        let (start, end) = (panels * worker / workers, panels * (worker + 1) / workers);
        let cut = move |part: usize| if part < PARTS { end - ((end - start) >> part) } else { end };
        (0..PARTS).map(move |part| even(cut(part))..even(cut(part + 1)))
    };
    (0..workers).flat_map(parts).collect()
}

impl Core {
    /// The weighted sum of the experts' outputs for each row of `x`; counts nothing.
    pub(super) fn gated(
        &self,
        x: &CpuTensor,
        assigned: &Assigned,
        ffn: Gated<'_, CpuWeight, CpuVector>,
    ) -> CpuTensor {
        let (gate, up, down) = (ffn.gate, ffn.up, ffn.down);
        assert!(gate.cols == x.width && up.cols == x.width, "gate and up take the input's width");
        assert!(gate.rows == up.rows && gate.rows == down.cols, "one inner width");
        assert!(gate.experts == up.experts && gate.experts == down.experts, "stacks of one size");
        for (bias, w) in ffn.biases.iter().flatten().zip([gate, up, down]) {
            assert_eq!(bias.values.len(), w.experts * w.rows, "a bias per expert and output");
        }
        let kind = down.format.act;
        let stride = act_bytes(kind, down.cols);
        let mut inner = self.env.bytes.take(assigned.rows.len() * stride);
        self.gate_and_up(x, assigned, ffn, &Inner { kind, stride, bytes: Disjoint::new(&mut inner) });
        self.down(x, assigned, ffn, Columns { bytes: &inner, stride })
    }

    fn gate_and_up(
        &self,
        x: &CpuTensor,
        assigned: &Assigned,
        ffn: Gated<'_, CpuWeight, CpuVector>,
        inner: &Inner<'_>,
    ) {
        let (gate, up) = (ffn.gate, ffn.up);
        let block = if inner.kind == ActKind::Q8x256 { BLOCK_ROWS } else { NARROW_ROWS };
        let blocks = gate.rows.div_ceil(block);
        // By number of tokens: what is taken from a stretch's end to even out the threads is then among its smallest.
        let mut order: Vec<_> = assigned.experts.iter().collect();
        order.sort_by_key(|(_, rows)| std::cmp::Reverse(rows.len()));
        let inputs = (x.columns(self, gate.format.act), x.columns(self, up.format.act));
        let env = &self.env;
        // An item's expert, its assignments and its inner rows.
        let item = |i: usize| {
            let ((expert, assignments), first) = (order[i / blocks], i % blocks * block);
            (*expert, assignments, first..gate.rows.min(first + block))
        };
        self.pool.for_each_near(order.len() * blocks, |worker, i| {
            let (expert, assignments, rows) = item(i);
            let panels = rows.start / PANEL..rows.end.div_ceil(PANEL);
            let [of_gate, of_up] = [gate, up].map(|weight| Part { weight, expert, panels: panels.clone() });
            let then_up = up.panel(expert, panels.start);
            let then = match i + 1 < order.len() * blocks {
                true => item(i + 1),
                false => item(i),
            };
            let then_gate = gate.panel(then.0, then.2.start / PANEL);
            let mut scratch = env.scratch(worker);
            let Scratch { gate: g, up: u } = &mut scratch.experts;
            g.resize(CHUNK * BLOCK_ROWS, 0.0);
            u.resize(CHUNK * BLOCK_ROWS, 0.0);
            for chunk in balanced(assignments.len(), CHUNK) {
                let chunk = assignments.start + chunk.start..assignments.start + chunk.end;
                let tokens = &assigned.rows[chunk.clone()];
                env.block(&of_gate, inputs.0, tokens, then_up, g);
                env.block(&of_up, inputs.1, tokens, then_gate, u);
                // As close together as their number allows: they are to stay in L1.
                let stride = panels.len() * PANEL;
                let columns = g.chunks_exact_mut(stride).zip(u.chunks_exact_mut(stride));
                for (assignment, (g, u)) in chunk.zip(columns) {
                    let (g, u) = (&mut g[..rows.len()], &mut u[..rows.len()]);
                    if let Some([gate, up, _]) = ffn.biases {
                        let of = expert * ffn.gate.rows + rows.start..expert * ffn.gate.rows + rows.end;
                        math::add(env.isa, g, &gate.values[of.clone()], 1.0);
                        math::add(env.isa, u, &up.values[of], 1.0);
                    }
                    match ffn.activation {
                        Activation::Silu => math::silu_times(env.isa, g, u),
                        Activation::ClampedSwiglu => math::clamped_swiglu(env.isa, g, u),
                    }
                    let at = assignment * inner.stride + act_bytes(inner.kind, rows.start);
                    // SAFETY: an item writes only its rows of its expert's assignments, and is done once.
                    let to = unsafe { inner.bytes.slice(at, act_bytes(inner.kind, rows.len())) };
                    encode(env.isa, inner.kind, g, to);
                }
            }
        });
    }

    fn down(
        &self,
        x: &CpuTensor,
        assigned: &Assigned,
        ffn: Gated<'_, CpuWeight, CpuVector>,
        inner: Columns<'_>,
    ) -> CpuTensor {
        let down = ffn.down;
        let mut out = self.env.floats.zeros(x.rows * down.rows);
        let shared = Disjoint::new(&mut out);
        let isa = self.env.isa;
        let items = halved(down.panels(), self.pool.threads());
        self.pool.for_each_near(items.len(), |_, i| {
            let panels = items[i].clone();
            for (at, (expert, assignments)) in assigned.experts.iter().enumerate() {
                let next = match (assigned.experts.get(at + 1), assigned.experts.first()) {
                    (Some((expert, _)), _) => down.panels_of(*expert, panels.clone()),
                    (None, Some((expert, _))) if i + 1 < items.len() => {
                        down.panels_of(*expert, items[i + 1].clone())
                    }
                    _ => &[],
                };
                let part = Part { weight: down, expert: *expert, panels: panels.clone() };
                let column = |i| assignments.start + i;
                let bias = ffn.biases.map(|[_, _, b]| &b.values[expert * down.rows..][..down.rows]);
                part.products(isa, (inner, assignments.len()), column, next, |panel, i, result| {
                    let (a, first) = (assignments.start + i, panel * PANEL);
                    let (weight, len) = (assigned.weights[a], PANEL.min(down.rows - first));
                    // SAFETY: an item writes only its panels' values of each row, and is done once.
                    let to = unsafe { shared.slice(assigned.rows[a] * down.rows + first, len) };
                    match (bias, <&mut [f32; PANEL]>::try_from(&mut *to)) {
                        // Most panels are whole, which is worth knowing.
                        (None, Ok(to)) => to.iter_mut().zip(result).for_each(|(to, y)| *to += weight * y),
                        (None, Err(_)) => to.iter_mut().zip(result).for_each(|(to, y)| *to += weight * y),
                        (Some(bias), _) => {
                            for ((to, y), b) in to.iter_mut().zip(result).zip(&bias[first..]) {
                                *to += weight * (y + b);
                            }
                        }
                    }
                });
            }
        });
        CpuTensor::new(x.rows, down.rows, out, x.tokens.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_the_panels_in_order_as_many_for_each_worker() {
        for panels in 0..300 {
            for workers in 1..=9 {
                let items = halved(panels, workers);
                assert_eq!(items.len(), workers * PARTS);
                assert!(items.iter().flat_map(Clone::clone).eq(0..panels), "{panels} among {workers}");
                assert!(
                    items.iter().all(|i| i.start.is_multiple_of(2) || i.is_empty()),
                    "pairs stay together"
                );
            }
        }
        let sizes: Vec<_> = halved(256, 2).iter().map(Range::len).collect();
        assert_eq!(sizes, [64, 32, 16, 8, 8, 64, 32, 16, 8, 8]);
    }
}
