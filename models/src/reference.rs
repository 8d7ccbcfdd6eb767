//! The plain implementation of [`Backend`]: the specification that faster ones are held to.
//!
//! Weights stay as in the file and are expanded to F32 row by row when used; activations are F32. Every row
//! of a result depends on its own token and the pages of its own sequence, in one order of operations, so
//! results do not depend on batch or chunking. Absent on purpose: threads, fusion, instruction sets.

use crate::backend::{
    Activation, AttendSpec, Backend, BackendError, Batch, ExpertGroups, Gated, Gating, GroupScore, Rope,
    RopeStyle, RouteSpec, Router, Span, WorkMeter,
};
use crate::kv::{KvStore, Pages};
use crate::quant::{self, Format};
use crate::step::StepStats;
use crate::weights::TensorView;

/// See the module.
#[derive(Debug)]
pub struct ReferenceBackend {
    kv: KvStore,
    meter: WorkMeter,
}

/// `[rows, width]`, row-major.
#[derive(Clone, Debug)]
pub struct Rows {
    width: usize,
    values: Vec<f32>,
    /// Which of the batch's tokens the rows are, if not all.
    selected: Option<Vec<u32>>,
}

impl Rows {
    fn count(&self) -> usize {
        self.values.len() / self.width
    }

    fn like(&self, width: usize, values: Vec<f32>) -> Self {
        Self { width, values, selected: self.selected.clone() }
    }
}

/// A tensor as in the file: `[experts, rows, cols]`.
pub struct FileWeight {
    format: &'static Format,
    cols: usize,
    rows: usize,
    experts: usize,
    row_bytes: usize,
    bytes: Vec<u8>,
}

impl FileWeight {
    fn new(view: &TensorView) -> Self {
        let (cols, rows, experts, row_bytes) = (view.cols, view.rows, view.experts, view.row_bytes());
        assert_eq!(view.data.len(), experts * rows * row_bytes, "views are checked");
        Self { format: quant::format(view.ty), cols, rows, experts, row_bytes, bytes: view.data.to_vec() }
    }

    /// Expands one row.
    fn row(&self, expert: usize, row: usize, into: &mut [f32]) {
        let at = (expert * self.rows + row) * self.row_bytes;
        (self.format.dequantize)(&self.bytes[at..at + self.row_bytes], into);
    }

    /// `x W^T` with one of the stacked matrices: `[n, cols]` to `[n, rows]`.
    fn product(&self, expert: usize, x: &[f32]) -> Vec<f32> {
        let n = x.len() / self.cols;
        let mut row = vec![0.0; self.cols];
        let mut out = vec![0.0; n * self.rows];
        for r in 0..self.rows {
            self.row(expert, r, &mut row);
            for (t, x) in x.chunks_exact(self.cols).enumerate() {
                out[t * self.rows + r] = dot(&row, x);
            }
        }
        out
    }

    fn expert_bytes(&self) -> u64 {
        (self.bytes.len() / self.experts) as u64
    }

    fn macs(&self) -> u64 {
        (self.rows * self.cols) as u64
    }
}

/// The experts of each token, `top_k` a token, and their weights.
#[derive(Clone, Debug)]
pub struct Routed {
    top_k: usize,
    experts: Vec<u32>,
    weights: Vec<f32>,
}

impl ReferenceBackend {
    /// Over the blocks of `kv`.
    pub fn new(kv: KvStore) -> Self {
        Self { kv, meter: WorkMeter::default() }
    }

    fn count_dense(&mut self, bytes: usize, macs: u64, x: &Rows) {
        match &x.selected {
            None => self.meter.dense(bytes as u64, macs),
            Some(tokens) => self.meter.dense_selected(bytes as u64, macs, tokens),
        }
    }
}

impl Backend for ReferenceBackend {
    type Tensor = Rows;
    type Weight = FileWeight;
    type Room = ();
    type Vector = Vec<f32>;
    type Routing = Routed;

    fn load_weight(&mut self, view: &TensorView) -> Result<FileWeight, BackendError> {
        Ok(FileWeight::new(view))
    }

    fn load_embedding(&mut self, view: &TensorView) -> Result<FileWeight, BackendError> {
        Ok(FileWeight::new(view))
    }

    fn load_vector(&mut self, view: &TensorView) -> Result<Vec<f32>, BackendError> {
        let weight = FileWeight::new(view);
        let mut values = vec![0.0; weight.cols * weight.rows * weight.experts];
        for (i, row) in values.chunks_exact_mut(weight.cols.max(1)).enumerate() {
            weight.row(0, i, row);
        }
        Ok(values)
    }

    fn begin(&mut self, batch: &Batch) -> Result<(), BackendError> {
        self.kv.copy(&batch.copies);
        self.meter.begin(batch);
        Ok(())
    }

    fn embed(&mut self, table: &FileWeight, batch: &Batch) -> Result<Rows, BackendError> {
        let mut values = vec![0.0; batch.tokens.len() * table.cols];
        for (token, row) in batch.tokens.iter().zip(values.chunks_exact_mut(table.cols)) {
            table.row(0, token.0 as usize, row);
        }
        Ok(Rows { width: table.cols, values, selected: None })
    }

    fn rms_norm(&mut self, x: &Rows, weight: &Vec<f32>, eps: f32) -> Result<Rows, BackendError> {
        assert!(weight.len() <= x.width, "at least one group");
        self.count_dense(4 * weight.len(), x.width as u64, x);
        let mut y = x.clone();
        let rows = y.values.chunks_exact_mut(x.width);
        for group in rows.flat_map(|row| row.chunks_exact_mut(weight.len())) {
            let mean = dot(group, group) / group.len() as f32;
            let factor = 1.0 / (mean + eps).sqrt();
            for (v, w) in group.iter_mut().zip(weight) {
                *v = *v * factor * w;
            }
        }
        Ok(y)
    }

    fn linear(&mut self, x: &Rows, weights: &[&FileWeight]) -> Result<Vec<Rows>, BackendError> {
        let mut all = Vec::with_capacity(weights.len());
        for w in weights {
            assert_eq!(x.width, w.cols, "input width");
            self.count_dense(w.bytes.len(), w.macs(), x);
            all.push(x.like(w.rows, w.product(0, &x.values)));
        }
        Ok(all)
    }

    fn add_bias(&mut self, x: &mut Rows, bias: &Vec<f32>) -> Result<(), BackendError> {
        assert_eq!(x.width, bias.len(), "a bias per value");
        for row in x.values.chunks_exact_mut(x.width) {
            for (v, b) in row.iter_mut().zip(bias) {
                *v += b;
            }
        }
        Ok(())
    }

    fn per_head(&mut self, x: &Rows, w: &FileWeight) -> Result<Rows, BackendError> {
        let head_dim = x.width / w.experts;
        assert!(x.width.is_multiple_of(w.experts) && w.cols <= head_dim, "heads of equal width");
        self.count_dense(w.bytes.len(), w.experts as u64 * w.macs(), x);
        let width = w.experts * (w.rows + head_dim - w.cols);
        let mut out = Vec::with_capacity(x.count() * width);
        for row in x.values.chunks_exact(x.width) {
            for (expert, head) in row.chunks_exact(head_dim).enumerate() {
                let (first, rest) = head.split_at(w.cols);
                out.extend(w.product(expert, first));
                out.extend_from_slice(rest);
            }
        }
        Ok(x.like(width, out))
    }

    fn rope(&mut self, x: &mut Rows, head_dim: u32, rope: &Rope, batch: &Batch) -> Result<(), BackendError> {
        let pairs = rope.frequencies.len();
        for (row, &position) in x.values.chunks_exact_mut(x.width).zip(&batch.positions) {
            for head in row.chunks_exact_mut(head_dim as usize) {
                let head = &mut head[rope.first as usize..];
                for (i, frequency) in rope.frequencies.iter().enumerate() {
                    let (a, b) = match rope.style {
                        RopeStyle::Normal => (2 * i, 2 * i + 1),
                        RopeStyle::Neox => (i, i + pairs),
                    };
                    let (sin, cos) = (f64::from(position) * frequency).sin_cos();
                    let (sin, cos) = (sin as f32 * rope.scale, cos as f32 * rope.scale);
                    (head[a], head[b]) = (head[a] * cos - head[b] * sin, head[a] * sin + head[b] * cos);
                }
            }
        }
        Ok(())
    }

    fn attend(
        &mut self,
        q: &Rows,
        k: &Rows,
        v: Option<&Rows>,
        sinks: Option<&Vec<f32>>,
        spec: &AttendSpec,
        batch: &Batch,
    ) -> Result<Rows, BackendError> {
        let width = (spec.heads * spec.value_dim) as usize;
        let mut out = vec![0.0; q.count() * width];
        let block_tokens = self.kv.block_tokens();
        for (i, span) in batch.spans.iter().enumerate() {
            let part = Part { q, k, v, sinks: sinks.map(Vec::as_slice), spec, span, block_tokens };
            let pages = self.kv.group_mut(spec.group as usize);
            part.attend(pages, &mut out);
            let dims = u64::from(spec.key_dim) + u64::from(spec.value_dim);
            let read = spec.positions_read(span) * pages.position_bytes() as u64;
            self.meter.attention(i, read, spec.positions_seen(span) * u64::from(spec.heads) * dims);
        }
        Ok(q.like(width, out))
    }

    fn route(
        &mut self,
        x: &Rows,
        router: Router<'_, FileWeight, Vec<f32>>,
        spec: &RouteSpec,
    ) -> Result<Routed, BackendError> {
        let (top_k, experts) = (spec.top_k as usize, router.weight.rows);
        assert!(0 < top_k && top_k <= experts, "experts per token");
        self.count_dense(router.weight.bytes.len(), router.weight.macs(), x);
        let mut routed = Routed { top_k, experts: Vec::new(), weights: Vec::new() };
        for row in router.weight.product(0, &x.values).chunks_exact_mut(experts) {
            let (chosen, weights) = choose_experts(row, [router.bias, router.choice_bias], spec);
            routed.experts.extend(chosen);
            routed.weights.extend(weights);
        }
        Ok(routed)
    }

    fn experts(
        &mut self,
        x: &Rows,
        routing: &Routed,
        ffn: Gated<'_, FileWeight, Vec<f32>>,
        _batch: &Batch,
    ) -> Result<Rows, BackendError> {
        let bytes = ffn.gate.expert_bytes() + ffn.up.expert_bytes() + ffn.down.expert_bytes();
        let macs = ffn.gate.macs() + ffn.up.macs() + ffn.down.macs();
        let (chosen, top_k, experts) = (&routing.experts, routing.top_k, ffn.gate.experts);
        match &x.selected {
            None => self.meter.experts(chosen, top_k, experts, bytes, macs),
            Some(tokens) => self.meter.experts_selected(tokens, chosen, top_k, experts, bytes, macs),
        }
        let mut out = vec![0.0; x.count() * ffn.down.rows];
        for expert in 0..ffn.gate.experts {
            let chose = |&i: &usize| routing.experts[i] as usize == expert;
            let assigned: Vec<usize> = (0..routing.experts.len()).filter(chose).collect();
            if assigned.is_empty() {
                continue;
            }
            let token = |i: usize| i / routing.top_k;
            let inputs: Vec<f32> =
                assigned.iter().flat_map(|&i| &x.values[token(i) * x.width..][..x.width]).copied().collect();
            let results = gated(&ffn, expert, &inputs);
            for (&i, result) in assigned.iter().zip(results.chunks_exact(ffn.down.rows)) {
                for (o, r) in out[token(i) * ffn.down.rows..].iter_mut().zip(result) {
                    *o += routing.weights[i] * r;
                }
            }
        }
        Ok(x.like(ffn.down.rows, out))
    }

    fn feed_forward(&mut self, x: &Rows, ffn: Gated<'_, FileWeight, Vec<f32>>) -> Result<Rows, BackendError> {
        for w in [ffn.gate, ffn.up, ffn.down] {
            self.count_dense(w.bytes.len(), w.macs(), x);
        }
        Ok(x.like(ffn.down.rows, gated(&ffn, 0, &x.values)))
    }

    fn gate(&mut self, x: &mut Rows, by: &Rows, gate: &Vec<f32>) -> Result<(), BackendError> {
        assert!(by.width == gate.len() && x.count() == by.count(), "a gate for each row");
        self.count_dense(4 * gate.len(), gate.len() as u64, by);
        for (x, by) in x.values.chunks_exact_mut(x.width).zip(by.values.chunks_exact(by.width)) {
            let factor = sigmoid(dot(gate, by));
            x.iter_mut().for_each(|v| *v *= factor);
        }
        Ok(())
    }

    fn scale(&mut self, x: &mut Rows, factor: f32) -> Result<(), BackendError> {
        x.values.iter_mut().for_each(|v| *v *= factor);
        Ok(())
    }

    fn add(&mut self, x: &mut Rows, y: &Rows, factor: f32) -> Result<(), BackendError> {
        assert_eq!(x.values.len(), y.values.len(), "shapes of a sum");
        for (x, y) in x.values.iter_mut().zip(&y.values) {
            *x = y.mul_add(factor, *x);
        }
        Ok(())
    }

    fn select(&mut self, x: &Rows, indices: &[u32]) -> Result<Rows, BackendError> {
        let values = indices.iter().flat_map(|&i| &x.values[i as usize * x.width..][..x.width]).copied();
        let token = |&i: &u32| x.selected.as_ref().map_or(i, |tokens| tokens[i as usize]);
        let selected = Some(indices.iter().map(token).collect());
        Ok(Rows { width: x.width, values: values.collect(), selected })
    }

    fn read<'a>(&mut self, x: &'a Rows, (): &'a mut ()) -> Result<&'a [f32], BackendError> {
        Ok(&x.values)
    }

    fn take_stats(&mut self) -> Result<StepStats, BackendError> {
        Ok(self.meter.take())
    }
}

/// One span's share of an attention.
struct Part<'a> {
    q: &'a Rows,
    k: &'a Rows,
    v: Option<&'a Rows>,
    sinks: Option<&'a [f32]>,
    spec: &'a AttendSpec,
    span: &'a Span,
    block_tokens: usize,
}

impl Part<'_> {
    /// Where a position of this sequence lies: block of the pool, token within the block.
    fn place(&self, position: usize) -> (crate::step::BlockId, usize) {
        let table = &self.span.tables[self.spec.group as usize];
        let index = position / self.block_tokens - table.first as usize;
        (table.blocks[index], position % self.block_tokens)
    }

    /// Writes the span's keys and values, then attends.
    fn attend(&self, pages: &mut Pages, out: &mut [f32]) {
        let (spec, page, [key_bytes, value_bytes]) = (self.spec, pages.page(), pages.row_bytes());
        let (key_dim, value_dim, slot) = (spec.key_dim as usize, spec.value_dim as usize, spec.slot as usize);
        let kv_heads = spec.kv_heads as usize;
        let tokens = self.span.begin as usize..self.span.end as usize;
        let (start, end) = (self.span.start as usize, self.span.start as usize + tokens.len());
        for (position, t) in (start..).zip(tokens.clone()) {
            let (block, at) = self.place(position);
            for head in 0..kv_heads {
                let key = &self.k.values[t * self.k.width + head * key_dim..][..key_dim];
                let value =
                    self.v.map_or(&[][..], |v| &v.values[t * v.width + head * value_dim..][..value_dim]);
                pages.write(block, slot, head, at, key, value);
            }
        }
        // Positions before that no query sees; their blocks may be gone.
        let first = spec.first_seen(start as u32) as usize;
        for kv_head in 0..kv_heads {
            let (mut keys, mut values) = (Vec::new(), Vec::new());
            for position in first..end {
                let (block, at) = self.place(position);
                let mut key = vec![0.0; key_dim];
                page.widen(&pages.keys(block, slot, kv_head)[at * key_bytes..][..key_bytes], &mut key);
                let mut value = key[..value_dim.min(key_dim)].to_vec();
                if self.v.is_some() {
                    value.resize(value_dim, 0.0);
                    let row = &pages.values(block, slot, kv_head)[at * value_bytes..][..value_bytes];
                    page.widen(row, &mut value);
                }
                keys.extend(key);
                values.extend(value);
            }
            let group = spec.heads as usize / kv_heads;
            for (position, t) in (start..).zip(tokens.clone()) {
                let seen = spec.first_seen(position as u32) as usize - first..position + 1 - first;
                for head in kv_head * group..(kv_head + 1) * group {
                    attend_one(
                        &self.q.values[t * self.q.width + head * key_dim..][..key_dim],
                        &keys[seen.start * key_dim..seen.end * key_dim],
                        &values[seen.start * value_dim..seen.end * value_dim],
                        (spec.scale, self.sinks.map(|s| s[head])),
                        &mut out[(t * spec.heads as usize + head) * value_dim..][..value_dim],
                    );
                }
            }
        }
    }
}

/// One query over all that it sees: `keys` is `[seen, q.len()]`, `values` `[seen, out.len()]`.
pub(crate) fn attend_one(
    q: &[f32],
    keys: &[f32],
    values: &[f32],
    (scale, sink): (f32, Option<f32>),
    out: &mut [f32],
) {
    let mut weights: Vec<f32> = keys.chunks_exact(q.len()).map(|key| dot(q, key) * scale).collect();
    weights.extend(sink);
    softmax(&mut weights);
    for (weight, value) in weights.iter().zip(values.chunks_exact(out.len())) {
        for (o, v) in out.iter_mut().zip(value) {
            *o += weight * v;
        }
    }
}

/// `down(activation(gate x, up x))` with one of the stacked experts.
fn gated(ffn: &Gated<'_, FileWeight, Vec<f32>>, expert: usize, x: &[f32]) -> Vec<f32> {
    let product = |w: &FileWeight, x: &[f32], bias: usize| {
        let mut y = w.product(expert, x);
        if let Some(biases) = &ffn.biases {
            let bias = &biases[bias][expert * w.rows..][..w.rows];
            y.chunks_exact_mut(w.rows).for_each(|y| y.iter_mut().zip(bias).for_each(|(y, b)| *y += b));
        }
        y
    };
    let mut inner = product(ffn.gate, x, 0);
    for (g, u) in inner.iter_mut().zip(product(ffn.up, x, 1)) {
        *g = match ffn.activation {
            Activation::Silu => *g * sigmoid(*g) * u,
            Activation::ClampedSwiglu => {
                let (g, u) = (g.min(7.0), u.clamp(-7.0, 7.0));
                g * sigmoid(1.702 * g) * (u + 1.0)
            }
        };
    }
    product(ffn.down, &inner, 2)
}

/// From one token's logits to its experts and their weights; biases as in [`Router`].
pub(crate) fn choose_experts(
    row: &mut [f32],
    [bias, choice_bias]: [Option<&Vec<f32>>; 2],
    spec: &RouteSpec,
) -> (Vec<u32>, Vec<f32>) {
    add_to(row, bias);
    match spec.gating {
        Gating::Softmax => softmax(row),
        Gating::Sigmoid => row.iter_mut().for_each(|v| *v = sigmoid(*v)),
        Gating::ChosenSoftmax => {}
    }
    let mut score = row.to_vec();
    add_to(&mut score, choice_bias);
    if let Some(groups) = &spec.groups {
        close_groups(&mut score, groups);
    }
    let order = best(&score, spec.top_k as usize);
    let mut weights: Vec<f32> = order.iter().map(|&e| row[e]).collect();
    if spec.gating == Gating::ChosenSoftmax {
        softmax(&mut weights);
    }
    let sum = if spec.normalise { weights.iter().sum::<f32>().max(RouteSpec::SUM_MIN) } else { 1.0 };
    weights.iter_mut().for_each(|w| *w = *w / sum * spec.scale);
    (order.into_iter().map(|e| e as u32).collect(), weights)
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

fn add_to(x: &mut [f32], bias: Option<&Vec<f32>>) {
    if let Some(bias) = bias {
        assert_eq!(x.len(), bias.len(), "a bias per value");
        x.iter_mut().zip(bias).for_each(|(x, b)| *x += b);
    }
}

/// Indices of the `n` largest, largest first, ties to the smaller index.
fn best(x: &[f32], n: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..x.len()).collect();
    order.sort_by(|&a, &b| x[b].total_cmp(&x[a]).then(a.cmp(&b)));
    order.truncate(n);
    order
}

/// Puts the scores of experts outside the best groups beyond choice.
fn close_groups(scores: &mut [f32], groups: &ExpertGroups) {
    let each = scores.len() / groups.count as usize;
    let score = |group: &[f32]| {
        let n = match groups.score {
            GroupScore::Best => 1,
            GroupScore::BestTwo => 2,
        };
        best(group, n).iter().map(|&e| group[e]).sum()
    };
    let of_groups: Vec<f32> = scores.chunks_exact(each).map(score).collect();
    let open = best(&of_groups, groups.used as usize);
    for (i, group) in scores.chunks_exact_mut(each).enumerate() {
        if !open.contains(&i) {
            group.fill(f32::NEG_INFINITY);
        }
    }
}

fn softmax(x: &mut [f32]) {
    let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for v in x.iter_mut() {
        *v = (*v - max).exp();
        sum += *v;
    }
    for v in x.iter_mut() {
        *v /= sum;
    }
}

/// Eight partial sums over k mod 8, added in order.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0; 8];
    for (a, b) in a.chunks(8).zip(b.chunks(8)) {
        for ((s, a), b) in sums.iter_mut().zip(a).zip(b) {
            *s += a * b;
        }
    }
    sums.iter().sum()
}
