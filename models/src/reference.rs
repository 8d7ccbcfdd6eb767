//! The plain implementation of [`Backend`]: the specification that faster ones are held to.
//!
//! Weights stay as in the file and are expanded to F32 row by row when used; activations are F32. Every row
//! of a result depends on its own token and the pages of its own sequence, in one order of operations, so
//! results do not depend on batch or chunking. Absent on purpose: threads, fusion, instruction sets.

use crate::backend::{
    Activation, AttendSpec, Backend, BackendError, Batch, Gated, Rope, RopeStyle, RouteSpec, Span, WorkMeter,
};
use crate::kv::{GroupPages, KvStore, PageValue, Pages};
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
        if weight.rows != 1 || weight.experts != 1 {
            return Err(BackendError::Unsupported {
                tensor: view.name.to_owned(),
                what: "a matrix as a vector".to_owned(),
            });
        }
        let mut values = vec![0.0; weight.cols];
        weight.row(0, 0, &mut values);
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
        assert_eq!(x.width % weight.len(), 0, "norms span whole groups");
        self.count_dense(4 * weight.len(), x.width as u64, x);
        let mut y = x.clone();
        for group in y.values.chunks_exact_mut(weight.len()) {
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

    fn rope(&mut self, x: &mut Rows, head_dim: u32, rope: &Rope, batch: &Batch) -> Result<(), BackendError> {
        let pairs = rope.frequencies.len();
        for (row, &position) in x.values.chunks_exact_mut(x.width).zip(&batch.positions) {
            for head in row.chunks_exact_mut(head_dim as usize) {
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
        v: &Rows,
        spec: &AttendSpec,
        batch: &Batch,
    ) -> Result<Rows, BackendError> {
        let mut out = vec![0.0; q.values.len()];
        let block_tokens = self.kv.block_tokens();
        for (i, span) in batch.spans.iter().enumerate() {
            let part = Part { q, k, v, spec, span, block_tokens };
            let page_bytes = match self.kv.group_mut(spec.group as usize) {
                GroupPages::F16(pages) => part.attend(pages, &mut out),
                GroupPages::F32(pages) => part.attend(pages, &mut out),
            };
            let (from, tokens) = (u64::from(span.start), u64::from(span.end - span.begin));
            let seen = tokens * from + tokens * (tokens + 1) / 2;
            let values = 2 * u64::from(spec.head_dim);
            let read = (from + tokens) * u64::from(spec.kv_heads) * values * page_bytes;
            self.meter.attention(i, read, seen * u64::from(spec.heads) * values);
        }
        Ok(q.like(q.width, out))
    }

    fn route(&mut self, x: &Rows, router: &FileWeight, spec: &RouteSpec) -> Result<Routed, BackendError> {
        let top_k = spec.top_k as usize;
        assert!(0 < top_k && top_k <= router.rows, "experts per token");
        self.count_dense(router.bytes.len(), router.macs(), x);
        let mut routed = Routed { top_k, experts: Vec::new(), weights: Vec::new() };
        for row in router.product(0, &x.values).chunks_exact_mut(router.rows) {
            softmax(row);
            let mut order: Vec<usize> = (0..row.len()).collect();
            order.sort_by(|&a, &b| row[b].total_cmp(&row[a]).then(a.cmp(&b)));
            order.truncate(top_k);
            let sum = if spec.normalise { order.iter().map(|&e| row[e]).sum() } else { 1.0 };
            routed.experts.extend(order.iter().map(|&e| e as u32));
            routed.weights.extend(order.iter().map(|&e| row[e] / sum * spec.scale));
        }
        Ok(routed)
    }

    fn experts(
        &mut self,
        x: &Rows,
        routing: &Routed,
        ffn: Gated<'_, FileWeight>,
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

    fn feed_forward(&mut self, x: &Rows, ffn: Gated<'_, FileWeight>) -> Result<Rows, BackendError> {
        for w in [ffn.gate, ffn.up, ffn.down] {
            self.count_dense(w.bytes.len(), w.macs(), x);
        }
        Ok(x.like(ffn.down.rows, gated(&ffn, 0, &x.values)))
    }

    fn add(&mut self, x: &mut Rows, y: &Rows) -> Result<(), BackendError> {
        assert_eq!(x.values.len(), y.values.len(), "shapes of a sum");
        for (x, y) in x.values.iter_mut().zip(&y.values) {
            *x += y;
        }
        Ok(())
    }

    fn select(&mut self, x: &Rows, indices: &[u32]) -> Result<Rows, BackendError> {
        let values = indices.iter().flat_map(|&i| &x.values[i as usize * x.width..][..x.width]).copied();
        let token = |&i: &u32| x.selected.as_ref().map_or(i, |tokens| tokens[i as usize]);
        let selected = Some(indices.iter().map(token).collect());
        Ok(Rows { width: x.width, values: values.collect(), selected })
    }

    fn read(&mut self, x: &Rows) -> Result<Vec<f32>, BackendError> {
        Ok(x.values.clone())
    }

    fn take_stats(&mut self) -> StepStats {
        self.meter.take()
    }
}

/// One span's share of an attention.
struct Part<'a> {
    q: &'a Rows,
    k: &'a Rows,
    v: &'a Rows,
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

    /// Writes the span's keys and values, then attends; returns the bytes of one page value.
    fn attend<V: PageValue>(&self, pages: &mut Pages<V>, out: &mut [f32]) -> u64 {
        let (dim, slot) = (self.spec.head_dim as usize, self.spec.slot as usize);
        let kv_heads = self.spec.kv_heads as usize;
        let tokens = self.span.begin as usize..self.span.end as usize;
        let end = self.span.start as usize + tokens.len();
        for (position, t) in (self.span.start as usize..).zip(tokens.clone()) {
            let (block, at) = self.place(position);
            for head in 0..kv_heads {
                let from = t * self.k.width + head * dim;
                let (key, value) = (&self.k.values[from..from + dim], &self.v.values[from..from + dim]);
                pages.write(block, slot, head, at, key, value);
            }
        }
        for kv_head in 0..kv_heads {
            let (mut keys, mut values) = (vec![0.0; end * dim], vec![0.0; end * dim]);
            for position in 0..end {
                let (block, at) = self.place(position);
                let range = at * dim..(at + 1) * dim;
                V::widen(
                    &pages.keys(block, slot, kv_head)[range.clone()],
                    &mut keys[position * dim..][..dim],
                );
                V::widen(&pages.values(block, slot, kv_head)[range], &mut values[position * dim..][..dim]);
            }
            let group = self.spec.heads as usize / kv_heads;
            for (seen, t) in (self.span.start as usize + 1..).zip(tokens.clone()) {
                for head in kv_head * group..(kv_head + 1) * group {
                    let at = t * self.q.width + head * dim;
                    let q = &self.q.values[at..at + dim];
                    let seen = seen * dim;
                    attend_one(q, &keys[..seen], &values[..seen], self.spec.scale, &mut out[at..at + dim]);
                }
            }
        }
        size_of::<V>() as u64
    }
}

/// One query over all that it sees: `keys` and `values` are `[seen, dim]`.
fn attend_one(q: &[f32], keys: &[f32], values: &[f32], scale: f32, out: &mut [f32]) {
    let mut weights: Vec<f32> = keys.chunks_exact(q.len()).map(|key| dot(q, key) * scale).collect();
    softmax(&mut weights);
    for (weight, value) in weights.iter().zip(values.chunks_exact(q.len())) {
        for (o, v) in out.iter_mut().zip(value) {
            *o += weight * v;
        }
    }
}

/// `down(activation(gate x) * (up x))` with one of the stacked experts.
fn gated(ffn: &Gated<'_, FileWeight>, expert: usize, x: &[f32]) -> Vec<f32> {
    let mut inner = ffn.gate.product(expert, x);
    for (g, u) in inner.iter_mut().zip(ffn.up.product(expert, x)) {
        *g = match ffn.activation {
            Activation::Silu => *g / (1.0 + (-*g).exp()) * u,
        };
    }
    ffn.down.product(expert, &inner)
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
