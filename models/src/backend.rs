//! The operations architectures are written against.
//!
//! A step's tokens are the rows of every activation: `[tokens, width]`, F32 in meaning, whatever the
//! backend holds. Operations span the whole batch; a backend may fuse or defer inside them.
//! Absent on purpose: sampling, block allocation, file formats.

pub use frugal_kernels::math::RopeStyle;

use std::time::Duration;

use crate::step::{BlockCopy, BlockTable, RowWork, StepInput, StepStats, TokenId};
use crate::weights::TensorView;

/// A step laid flat: token `i` is `tokens[i]` at `positions[i]`, and belongs to `spans[span_of[i]]`.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// All rows' tokens, row by row.
    pub tokens: Vec<TokenId>,
    /// Each token's position in its sequence.
    pub positions: Vec<u32>,
    /// One per row of the step.
    pub spans: Vec<Span>,
    /// Token indices whose logits are wanted, ascending.
    pub outputs: Vec<u32>,
    /// Block copies to do before anything else.
    pub copies: Vec<BlockCopy>,
}

/// One row's tokens within a batch.
#[derive(Clone, Debug, Default)]
pub struct Span {
    /// First token index.
    pub begin: u32,
    /// One past the last.
    pub end: u32,
    /// Position of the first token.
    pub start: u32,
    /// One table per cache group.
    pub tables: Vec<BlockTable>,
}

impl Batch {
    /// Lays a step flat; logits are wanted as [`Row::outputs`] says.
    pub fn new(step: &StepInput) -> Self {
        let mut batch = Self { copies: step.copies.clone(), ..Self::default() };
        for row in &step.rows {
            let begin = batch.tokens.len() as u32;
            batch.outputs.extend(row.outputs().map(|token| begin + token as u32));
            for (i, &token) in row.tokens.iter().enumerate() {
                batch.tokens.push(token);
                batch.positions.push(row.start + i as u32);
            }
            let end = batch.tokens.len() as u32;
            batch.spans.push(Span { begin, end, start: row.start, tables: row.tables.clone() });
        }
        batch
    }
}

/// Rotary position embedding of `2 * frequencies.len()` values of each head.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Pairing.
    pub style: RopeStyle,
    /// Where in a head the rotated values begin; the others stay as they are.
    pub first: u32,
    /// Angle per position of each pair, in f64 so that every backend rounds the angle alike.
    pub frequencies: Vec<f64>,
    /// Factor on cos and sin (YaRN); 1 otherwise.
    pub scale: f32,
}

/// Attention of one layer over one cache group.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttendSpec {
    /// Index into the geometry's groups.
    pub group: u32,
    /// Which of the group's layers, from 0.
    pub slot: u32,
    /// Query heads; a multiple of `kv_heads`.
    pub heads: u32,
    /// Key and value heads.
    pub kv_heads: u32,
    /// Values of a query and of a key.
    pub key_dim: u32,
    /// Values of a value, and so of what a query head gathers.
    pub value_dim: u32,
    /// Factor on q.k, usually `1/sqrt(key_dim)`.
    pub scale: f32,
    /// Positions that a query sees, itself included; None: all up to its own.
    pub window: Option<u32>,
}

impl AttendSpec {
    /// The first position that a query at `position` sees.
    pub fn first_seen(&self, position: u32) -> u32 {
        self.window.map_or(0, |window| (position + 1).saturating_sub(window))
    }

    /// Positions whose keys and values a span's attention reads, its own included.
    pub fn positions_read(&self, span: &Span) -> u64 {
        let end = u64::from(span.start) + u64::from(span.end - span.begin);
        end - u64::from(self.first_seen(span.start))
    }

    /// Positions seen by each of a span's tokens, added up.
    pub fn positions_seen(&self, span: &Span) -> u64 {
        let seen = |position: u32| u64::from(position + 1 - self.first_seen(position));
        (span.start..span.start + (span.end - span.begin)).map(seen).sum()
    }
}

/// How a router's logits become the weights of experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gating {
    /// Softmax over all experts.
    Softmax,
    /// Sigmoid of each (DeepSeek V3, GLM 4.5).
    Sigmoid,
    /// Softmax over the chosen alone; the choice is by the logits (gpt-oss).
    ChosenSoftmax,
}

/// Experts in groups of neighbours of equal number, of which only the best may be chosen from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExpertGroups {
    /// Groups; divides the number of experts.
    pub count: u32,
    /// Groups chosen from, by `score`, ties to the smaller index.
    pub used: u32,
    /// What a group is chosen by.
    pub score: GroupScore,
}

/// What a group of experts is chosen by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupScore {
    /// Its best expert (DeepSeek V2).
    Best,
    /// The sum of its two best (DeepSeek V3).
    BestTwo,
}

/// How a router turns logits into experts and their weights.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RouteSpec {
    /// Experts per token.
    pub top_k: u32,
    /// From logits to weights.
    pub gating: Gating,
    /// None: all experts may be chosen.
    pub groups: Option<ExpertGroups>,
    /// Divide the chosen weights by their sum, or by [`RouteSpec::SUM_MIN`] if that is larger.
    pub normalise: bool,
    /// Factor on the chosen weights.
    pub scale: f32,
}

impl RouteSpec {
    /// Least divisor of a normalisation, so that weights that vanish stay finite: the smallest normal half-precision
    /// number, as llama.cpp has it.
    pub const SUM_MIN: f32 = 1.0 / 16384.0;
}

/// A layer's router.
#[derive(Debug)]
pub struct Router<'a, W, V> {
    /// `[hidden, experts]`.
    pub weight: &'a W,
    /// Added to the logits.
    pub bias: Option<&'a V>,
    /// Added to the weights for choosing experts and groups, and not to the weights that are used.
    pub choice_bias: Option<&'a V>,
}

impl<W, V> Clone for Router<'_, W, V> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<W, V> Copy for Router<'_, W, V> {}

/// What becomes of gate and up in a gated feed-forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `gate * sigmoid(gate) * up`.
    Silu,
    /// With `g = min(gate, 7)` and u = up within -7 to 7, `g * sigmoid(1.702 * g) * (u + 1)` (gpt-oss).
    ClampedSwiglu,
}

/// One layer's gated feed-forward, dense (`[in, out]` each) or of experts (`[in, out, experts]` each).
#[derive(Debug)]
pub struct Gated<'a, W, V> {
    /// `[hidden, inner]`.
    pub gate: &'a W,
    /// `[hidden, inner]`.
    pub up: &'a W,
    /// `[inner, hidden]`.
    pub down: &'a W,
    /// Of gate, up and down: `[experts, out]` each, added to the products.
    pub biases: Option<[&'a V; 3]>,
    /// On gate and up.
    pub activation: Activation,
}

impl<W, V> Clone for Gated<'_, W, V> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<W, V> Copy for Gated<'_, W, V> {}

/// Why a backend cannot do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BackendError {
    /// The backend has no kernel for this.
    #[error("tensor {tensor}: {what} is not supported by this backend")]
    Unsupported {
        /// Its name in the file.
        tensor: String,
        /// Format or shape.
        what: String,
    },
    /// Out of memory, or a fault of the device.
    #[error("{0}")]
    Device(String),
}

/// A device's implementation of a transformer's operations.
///
/// Shapes: `T` tokens of the batch; a [`Backend::Tensor`] is `[T, width]`. Weights are row-major `[out, in]`
/// as in GGUF (`in` contiguous). After [`Backend::select`], T is the selected tokens: what does not place tokens
/// in sequences (all but rope and attend) takes such tensors too, and counts their work to the right rows.
/// Programmer errors (mismatched widths) panic; device errors are values.
pub trait Backend: Send {
    /// Activations `[rows, width]`.
    type Tensor;
    /// A matrix `[out, in]`, a stack `[experts, out, in]`, or an embedding table, in the backend's own layout.
    type Weight: Send + Sync;
    /// Where what is read lies on the host, if it was elsewhere.
    type Room: Default + Send;
    /// F32 values: norms, biases, factors.
    type Vector: Send + Sync;
    /// The experts and weights of each token.
    type Routing;

    /// Takes a weight for use in products. Copies at most once; the view's bytes may be dropped afterwards
    /// unless the backend documents that it keeps the mapping.
    fn load_weight(&mut self, view: &TensorView) -> Result<Self::Weight, BackendError>;
    /// Takes a table for [`Backend::embed`].
    fn load_embedding(&mut self, view: &TensorView) -> Result<Self::Weight, BackendError>;
    /// Takes a table whose rows are also the outputs of a product: what [`Backend::load_embedding`] and [`Backend::load_weight`] give of
    /// it. A backend that has one layout for both holds it once.
    fn load_tied(&mut self, view: &TensorView) -> Result<[Self::Weight; 2], BackendError> {
        Ok([self.load_embedding(view)?, self.load_weight(view)?])
    }
    /// Takes a vector, or a stack of vectors `[experts, len]` one after the other.
    fn load_vector(&mut self, view: &TensorView) -> Result<Self::Vector, BackendError>;

    /// Starts a step: does its block copies and clears the work counters.
    fn begin(&mut self, batch: &Batch) -> Result<(), BackendError>;

    /// Table rows of the batch's tokens: `[T, hidden]`.
    fn embed(&mut self, table: &Self::Weight, batch: &Batch) -> Result<Self::Tensor, BackendError>;
    /// `x / sqrt(mean(x^2) + eps) * weight` over groups of `weight`'s length within each row: a norm over the
    /// whole row, or per head if the weight has a head's length. What is left of a row behind whole groups stays as it is.
    fn rms_norm(
        &mut self,
        x: &Self::Tensor,
        weight: &Self::Vector,
        eps: f32,
    ) -> Result<Self::Tensor, BackendError>;
    /// `x W^T` for several weights at once (q, k, v share the input's quantisation): each `[T, out_i]`.
    fn linear(
        &mut self,
        x: &Self::Tensor,
        weights: &[&Self::Weight],
    ) -> Result<Vec<Self::Tensor>, BackendError>;
    /// `x += bias`, for every row.
    fn add_bias(&mut self, x: &mut Self::Tensor, bias: &Self::Vector) -> Result<(), BackendError>;
    /// Each head's own product: of a row's `weight.experts` heads of equal width, the first `weight.cols` values go through
    /// the head's matrix of the stack; the head's other values follow its result unchanged.
    /// `[T, heads * (cols + rest)]` to `[T, heads * (rows + rest)]`.
    fn per_head(&mut self, x: &Self::Tensor, weight: &Self::Weight) -> Result<Self::Tensor, BackendError>;
    /// Rotates each head of `x` (`[T, heads * head_dim]`) in place by the batch's positions.
    fn rope(
        &mut self,
        x: &mut Self::Tensor,
        head_dim: u32,
        rope: &Rope,
        batch: &Batch,
    ) -> Result<(), BackendError>;
    /// Writes this step's keys and values into the pages, then attends causally: `[T, heads * value_dim]`.
    ///
    /// Without `v` a value is the first `value_dim` values of its key, and the pages hold keys alone (latent attention).
    /// `sinks`, one per query head, are logits without a value: they only add to the softmax's denominator.
    fn attend(
        &mut self,
        q: &Self::Tensor,
        k: &Self::Tensor,
        v: Option<&Self::Tensor>,
        sinks: Option<&Self::Vector>,
        spec: &AttendSpec,
        batch: &Batch,
    ) -> Result<Self::Tensor, BackendError>;
    /// Chooses each token's experts by `x router^T`: the `top_k` largest, ties to the smaller index.
    fn route(
        &mut self,
        x: &Self::Tensor,
        router: Router<'_, Self::Weight, Self::Vector>,
        spec: &RouteSpec,
    ) -> Result<Self::Routing, BackendError>;
    /// Weighted sum over each token's experts, added in ascending order of expert: `[T, hidden]`.
    fn experts(
        &mut self,
        x: &Self::Tensor,
        routing: &Self::Routing,
        ffn: Gated<'_, Self::Weight, Self::Vector>,
        batch: &Batch,
    ) -> Result<Self::Tensor, BackendError>;
    /// Dense gated feed-forward: `[T, hidden]`.
    fn feed_forward(
        &mut self,
        x: &Self::Tensor,
        ffn: Gated<'_, Self::Weight, Self::Vector>,
    ) -> Result<Self::Tensor, BackendError>;
    /// Each row of `x` times sigmoid of the same row of `by` . `gate` (the gate of shared experts).
    fn gate(
        &mut self,
        x: &mut Self::Tensor,
        by: &Self::Tensor,
        gate: &Self::Vector,
    ) -> Result<(), BackendError>;
    /// `x *= factor`.
    fn scale(&mut self, x: &mut Self::Tensor, factor: f32) -> Result<(), BackendError>;
    /// `x += factor * y`, rounded once.
    fn add(&mut self, x: &mut Self::Tensor, y: &Self::Tensor, factor: f32) -> Result<(), BackendError>;
    /// The rows of `x` at these indices, which are tokens of the batch unless `x` was selected itself:
    /// `[indices, width]`.
    fn select(&mut self, x: &Self::Tensor, indices: &[u32]) -> Result<Self::Tensor, BackendError>;
    /// Brings a tensor to the host, unless it is there: `rows * width` values, row-major. `room` is where they may lie.
    fn read<'a>(&mut self, x: &'a Self::Tensor, room: &'a mut Self::Room) -> Result<&'a [f32], BackendError>;
    /// [`Self::read`], for those who keep what they get.
    fn values(&mut self, x: &Self::Tensor) -> Result<Vec<f32>, BackendError> {
        Ok(self.read(x, &mut Self::Room::default())?.to_vec())
    }

    /// Whether there can be another step after one that failed.
    ///
    /// # Errors
    /// If there cannot: the device is lost.
    fn recover(&mut self) -> Result<(), BackendError> {
        Ok(())
    }

    /// Host threads of [`Backend::spread`].
    fn workers(&self) -> usize {
        1
    }
    /// Calls `work(worker, item)` for every item, on host threads that have nothing else to do between operations;
    /// `worker` is below [`Backend::workers`], and each has one item at a time.
    fn spread(&self, items: usize, work: &(dyn Fn(usize, usize) + Sync)) {
        (0..items).for_each(|item| work(0, item));
    }

    /// Work since [`Backend::begin`], one entry per span. Waits for a device that works on its own, so that what went wrong in the
    /// step is known.
    fn take_stats(&mut self) -> Result<StepStats, BackendError>;
}

/// Counts a step's work; backends feed it from within their operations.
#[derive(Clone, Debug, Default)]
pub struct WorkMeter {
    stats: StepStats,
    tokens: Vec<u64>,
    span_of: Vec<u32>,
    hits: Vec<u32>,
}

impl WorkMeter {
    /// Starts over for `batch`.
    pub fn begin(&mut self, batch: &Batch) {
        self.stats = StepStats { rows: vec![RowWork::default(); batch.spans.len()], ..StepStats::default() };
        self.tokens = batch.spans.iter().map(|s| u64::from(s.end - s.begin)).collect();
        self.span_of.clear();
        for (i, s) in batch.spans.iter().enumerate() {
            self.span_of.resize(s.end as usize, i as u32);
        }
    }

    /// A weight of `bytes` that all tokens pass through, `macs_per_token` each.
    pub fn dense(&mut self, bytes: u64, macs_per_token: u64) {
        self.stats.dense_bytes += bytes;
        for (row, tokens) in self.stats.rows.iter_mut().zip(&self.tokens) {
            row.macs += tokens * macs_per_token;
        }
    }

    /// A weight of `bytes` that only the selected token indices pass through (the head).
    pub fn dense_selected(&mut self, bytes: u64, macs_per_token: u64, tokens: &[u32]) {
        self.stats.dense_bytes += bytes;
        for &t in tokens {
            self.stats.rows[self.span_of[t as usize] as usize].macs += macs_per_token;
        }
    }

    /// One layer's experts: `chosen[t * top_k + j]` is token t's j-th expert, each of `bytes` and `macs_per_token`.
    pub fn experts(&mut self, chosen: &[u32], top_k: usize, experts: usize, bytes: u64, macs_per_token: u64) {
        self.hit(chosen, top_k, experts, |row| row);
        self.count_hits(bytes, macs_per_token);
    }

    /// [`WorkMeter::experts`] of selected tokens only: row `r` of `chosen` is token `tokens[r]`.
    pub fn experts_selected(
        &mut self,
        tokens: &[u32],
        chosen: &[u32],
        top_k: usize,
        experts: usize,
        bytes: u64,
        macs_per_token: u64,
    ) {
        self.hit(chosen, top_k, experts, |row| tokens[row] as usize);
        self.count_hits(bytes, macs_per_token);
    }

    fn hit(&mut self, chosen: &[u32], top_k: usize, experts: usize, token: impl Fn(usize) -> usize) {
        let spans = self.stats.rows.len();
        self.hits.clear();
        self.hits.resize(experts * spans, 0);
        for (i, &e) in chosen.iter().enumerate() {
            let span = self.span_of[token(i / top_k)] as usize;
            self.hits[e as usize * spans + span] += 1;
        }
    }

    fn count_hits(&mut self, bytes: u64, macs_per_token: u64) {
        let spans = self.stats.rows.len();
        for by_span in self.hits.chunks_exact(spans.max(1)) {
            let rows = by_span.iter().filter(|&&n| n > 0).count() as u64;
            if rows == 0 {
                continue;
            }
            self.stats.expert_bytes += bytes;
            self.stats.experts_used += 1;
            for (row, &n) in self.stats.rows.iter_mut().zip(by_span) {
                if n > 0 {
                    row.expert_bytes += bytes / rows;
                    row.macs += u64::from(n) * macs_per_token;
                    self.stats.expert_tokens += u64::from(n);
                }
            }
        }
    }

    /// Time that made weights ready which later steps find so.
    pub fn startup(&mut self, took: Duration) {
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.stats.startup_ns = self.stats.startup_ns.saturating_add(ns);
    }

    /// Attention of span `i` in one layer.
    pub fn attention(&mut self, span: usize, kv_bytes: u64, macs: u64) {
        let row = &mut self.stats.rows[span];
        row.kv_bytes += kv_bytes;
        row.macs += macs;
    }

    /// The counts since [`WorkMeter::begin`].
    pub fn take(&mut self) -> StepStats {
        std::mem::take(&mut self.stats)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meter(lengths: &[u32]) -> WorkMeter {
        let mut end = 0;
        let mut span = |n: &u32| {
            end += n;
            Span { begin: end - n, end, ..Span::default() }
        };
        let mut meter = WorkMeter::default();
        meter.begin(&Batch { spans: lengths.iter().map(&mut span).collect(), ..Batch::default() });
        meter
    }

    fn work(expert_bytes: u64, macs: u64) -> RowWork {
        RowWork { expert_bytes, macs, kv_bytes: 0 }
    }

    #[test]
    fn rows_share_the_experts_they_were_routed_to() {
        let mut meter = meter(&[2, 1]);
        // Tokens 0 and 1 are the first row's, token 2 the second's; expert 3 serves both.
        meter.experts(&[0, 3, 3, 1, 3, 2], 2, 4, 100, 7);
        let stats = meter.take();
        assert_eq!((stats.expert_bytes, stats.experts_used, stats.expert_tokens), (400, 4, 6));
        assert_eq!(stats.rows, [work(250, 28), work(150, 14)]);
    }

    #[test]
    fn selected_tokens_count_for_their_own_rows() {
        let mut meter = meter(&[2, 1, 3]);
        meter.experts_selected(&[1, 5], &[0, 1, 1, 2], 2, 3, 100, 7);
        meter.dense_selected(10, 3, &[1, 5]);
        let stats = meter.take();
        assert_eq!((stats.expert_bytes, stats.experts_used, stats.expert_tokens), (300, 3, 4));
        assert_eq!(stats.dense_bytes, 10);
        assert_eq!(stats.rows, [work(150, 17), work(0, 0), work(150, 17)]);
    }
}
