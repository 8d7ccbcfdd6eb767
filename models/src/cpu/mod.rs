//! The CPU backend: quantized panels, one work list a phase, bit-exact whatever the batch.
//!
//! Law: a row's results depend on its tokens and positions alone; the modules say how each sum is ordered.
//! Memory: the weights at the file's size (padded to 8 rows a matrix), the cache as configured, and for a step of T
//! tokens a few `[T, width]` tensors with their encoded forms, the encoded inner activations of one layer
//! (`T * top_k` columns), logits of the selected tokens, and at most 64 MB of attention's partial results.
//! Buffers are kept between steps.
//!
//! Absent on purpose: sliding windows and recurrent state, which are refused by name.

#[expect(unsafe_code, reason = "workers write disjoint parts of one output; kernels per instruction set")]
mod attention;
#[expect(unsafe_code, reason = "workers write disjoint parts of one output")]
mod experts;
#[expect(unsafe_code, reason = "vector instructions")]
mod lanes;
#[expect(unsafe_code, reason = "workers write disjoint parts of one output")]
mod linear;
#[expect(unsafe_code, reason = "the same code compiled per instruction set")]
mod math;
mod memory;
#[expect(unsafe_code, reason = "lends borrowed closures and disjoint parts of slices to threads")]
mod pool;
mod tensor;
#[cfg(test)]
mod tests;
mod weight;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::backend::{AttendSpec, Backend, BackendError, Batch, Gated, Rope, RouteSpec, Router, WorkMeter};
use crate::kv::{GroupLayout, GroupPages, KvStore, PageType};
use crate::quant::Isa;
use crate::step::StepStats;
use crate::weights::TensorView;

use experts::Assigned;
pub use experts::CpuRouting;
use memory::{Recycled, Recycler};
use pool::Pool;
pub use pool::available_threads;
pub use tensor::CpuTensor;
use weight::Loaded;
pub use weight::{CpuVector, CpuWeight};

/// Values below which a phase is not worth waking threads for.
const PARALLEL_VALUES: usize = 8192;

/// How to set up a [`CpuBackend`].
#[derive(Clone, Debug)]
pub struct CpuOptions {
    /// Threads that compute, the one that calls the backend included; at least 1. See [`available_threads`].
    pub threads: usize,
    /// Bind the other threads to a processor each. The calling thread is left alone.
    pub pin: bool,
    /// `None` chooses the fastest that the processor has.
    pub isa: Option<Isa>,
    /// The cache's groups, in the order of `Row::tables`; all with full context.
    pub groups: Vec<GroupLayout>,
    /// Positions per block; at least 1.
    pub block_tokens: usize,
    /// Element type of cache pages.
    pub page: PageType,
}

/// What operations share; apart from the backend so that they can borrow it beside the cache.
pub(crate) struct Core {
    pool: Pool,
    env: Env,
}

/// What workers share.
struct Env {
    isa: Isa,
    floats: Arc<Recycler<f32>>,
    bytes: Arc<Recycler<u8>>,
    /// One per worker.
    scratch: Vec<Mutex<Scratch>>,
}

/// A worker's room to work in.
#[derive(Debug, Default)]
struct Scratch {
    attention: attention::Scratch,
    experts: experts::Scratch,
    raw: Vec<u8>,
    probabilities: Vec<f32>,
}

impl Env {
    fn scratch(&self, worker: usize) -> MutexGuard<'_, Scratch> {
        self.scratch[worker].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Core {
    /// `work(worker, row)` for each row, on this thread if there is little to do.
    fn rows(&self, rows: usize, width: usize, work: impl Fn(usize, usize) + Sync) {
        if rows * width < PARALLEL_VALUES {
            return (0..rows).for_each(|row| work(0, row));
        }
        let each = rows.div_ceil(self.pool.threads() * linear::ITEMS_PER_THREAD);
        self.pool.for_each(rows.div_ceil(each), |worker, i| {
            (i * each..rows.min((i + 1) * each)).for_each(|row| work(worker, row));
        });
    }

    /// [`Core::rows`] with each row of `data`, `width` values wide.
    fn rows_mut(&self, data: &mut [f32], width: usize, work: impl Fn(usize, usize, &mut [f32]) + Sync) {
        let rows = data.len() / width.max(1);
        let each = if data.len() < PARALLEL_VALUES {
            rows.max(1)
        } else {
            rows.div_ceil(self.pool.threads() * linear::ITEMS_PER_THREAD)
        };
        self.pool.for_each_part(data, each * width.max(1), |worker, part, values| {
            for (i, row) in values.chunks_exact_mut(width.max(1)).enumerate() {
                work(worker, part * each + i, row);
            }
        });
    }
}

/// A [`Backend`] on this machine's processors.
pub struct CpuBackend {
    core: Core,
    kv: KvStore,
    loaded: Loaded,
    meter: WorkMeter,
    /// This step's angles, `[T, 2 * pairs]` for each distinct rotation.
    angles: Vec<(Rope, Recycled<f32>)>,
}

impl std::fmt::Debug for CpuBackend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (threads, isa) = (self.core.pool.threads(), self.core.env.isa);
        f.debug_struct("CpuBackend").field("threads", &threads).field("isa", &isa).finish_non_exhaustive()
    }
}

impl CpuBackend {
    /// Starts the threads and reserves the cache.
    pub fn new(options: &CpuOptions) -> Result<Self, BackendError> {
        let best = Isa::detect();
        let isa = options.isa.unwrap_or(best);
        if isa != Isa::Scalar && isa != best {
            return Err(BackendError::Device(format!("this processor has no {isa:?}")));
        }
        assert!(options.threads > 0 && options.block_tokens > 0, "threads and positions per block");
        let kv = KvStore::new(&options.groups, options.block_tokens, options.page)
            .map_err(|e| BackendError::Device(e.to_string()))?;
        let pool = Pool::new(options.threads, options.pin)
            .map_err(|e| BackendError::Device(format!("cannot start {} threads: {e}", options.threads)))?;
        let scratch = (0..options.threads).map(|_| Mutex::default()).collect();
        let env = Env { isa, floats: Arc::default(), bytes: Arc::default(), scratch };
        let core = Core { pool, env };
        let (loaded, meter) = (Loaded::default(), WorkMeter::default());
        Ok(Self { core, kv, loaded, meter, angles: Vec::new() })
    }

    /// Counts a weight that the rows of `x` pass through.
    fn count(&mut self, x: &CpuTensor, bytes: u64, macs: u64) {
        match &x.tokens {
            None => self.meter.dense(bytes, macs),
            Some(tokens) => self.meter.dense_selected(bytes, macs, tokens),
        }
    }

    /// The angles of `rope` for this step.
    fn angles(&mut self, rope: &Rope, batch: &Batch) -> usize {
        let width = 2 * rope.frequencies.len();
        if let Some(i) = self.angles.iter().position(|(r, _)| r == rope) {
            assert_eq!(self.angles[i].1.len(), width * batch.positions.len(), "one batch a step");
            return i;
        }
        let mut angles = self.core.env.floats.take(width * batch.positions.len());
        self.core.rows_mut(&mut angles, width, |_, i, to| {
            math::rope_angles(batch.positions[i], &rope.frequencies, rope.scale, to);
        });
        self.angles.push((rope.clone(), angles));
        self.angles.len() - 1
    }
}

impl Backend for CpuBackend {
    type Tensor = CpuTensor;
    type Weight = CpuWeight;
    type Vector = CpuVector;
    type Routing = CpuRouting;

    fn load_weight(&mut self, view: &TensorView<'_>) -> Result<CpuWeight, BackendError> {
        self.loaded.load(view, &self.core.pool)
    }

    fn load_embedding(&mut self, view: &TensorView<'_>) -> Result<CpuWeight, BackendError> {
        self.loaded.load(view, &self.core.pool)
    }

    fn load_vector(&mut self, view: &TensorView<'_>) -> Result<CpuVector, BackendError> {
        CpuVector::new(view)
    }

    fn begin(&mut self, batch: &Batch) -> Result<(), BackendError> {
        self.kv.copy(&batch.copies);
        self.meter.begin(batch);
        self.angles.clear();
        Ok(())
    }

    fn embed(&mut self, table: &CpuWeight, batch: &Batch) -> Result<CpuTensor, BackendError> {
        let mut out = self.core.env.floats.take(batch.tokens.len() * table.cols);
        let env = &self.core.env;
        self.core.rows_mut(&mut out, table.cols, |worker, i, to| {
            table.gather(batch.tokens[i].0 as usize, &mut env.scratch(worker).raw, to);
        });
        Ok(CpuTensor::new(batch.tokens.len(), table.cols, out, None))
    }

    fn rms_norm(&mut self, x: &CpuTensor, weight: &CpuVector, eps: f32) -> Result<CpuTensor, BackendError> {
        let weight = &weight.values;
        assert!(weight.len() <= x.width, "at least one group");
        self.count(x, 4 * weight.len() as u64, x.width as u64);
        let mut out = self.core.env.floats.take(x.values().len());
        let isa = self.core.env.isa;
        self.core.rows_mut(&mut out, x.width, |_, i, to| math::rms_norm(isa, x.row(i), weight, eps, to));
        Ok(CpuTensor::new(x.rows, x.width, out, x.tokens.clone()))
    }

    fn linear(&mut self, x: &CpuTensor, weights: &[&CpuWeight]) -> Result<Vec<CpuTensor>, BackendError> {
        for w in weights {
            self.count(x, w.matrix_bytes(), w.macs());
        }
        Ok(self.core.products(x, weights))
    }

    fn add_bias(&mut self, x: &mut CpuTensor, bias: &CpuVector) -> Result<(), BackendError> {
        assert_eq!(x.width, bias.values.len(), "a bias per value");
        let (isa, width) = (self.core.env.isa, x.width);
        self.core.rows_mut(x.values_mut(), width, |_, _, row| math::add(isa, row, &bias.values, 1.0));
        Ok(())
    }

    fn per_head(&mut self, _: &CpuTensor, _: &CpuWeight) -> Result<CpuTensor, BackendError> {
        Err(BackendError::Device("products per head are not implemented".to_owned()))
    }

    fn rope(
        &mut self,
        x: &mut CpuTensor,
        head_dim: u32,
        rope: &Rope,
        batch: &Batch,
    ) -> Result<(), BackendError> {
        let (dim, width) = (head_dim as usize, 2 * rope.frequencies.len());
        assert!(x.rows == batch.positions.len() && x.tokens.is_none(), "all of the batch's tokens");
        let first = rope.first as usize;
        assert!(x.width.is_multiple_of(dim) && first + width <= dim, "whole heads, pairs inside them");
        let angles = self.angles(rope, batch);
        let (angles, isa, row_width) = (&self.angles[angles].1, self.core.env.isa, x.width);
        self.core.rows_mut(x.values_mut(), row_width, |_, i, row| {
            math::rope(isa, row, (first, dim), rope.style, &angles[i * width..(i + 1) * width]);
        });
        Ok(())
    }

    fn attend(
        &mut self,
        q: &CpuTensor,
        k: &CpuTensor,
        v: Option<&CpuTensor>,
        sinks: Option<&CpuVector>,
        spec: &AttendSpec,
        batch: &Batch,
    ) -> Result<CpuTensor, BackendError> {
        let (Some(v), None, None) = (v, sinks, spec.window) else {
            return Err(BackendError::Device("this attention is not implemented".to_owned()));
        };
        assert_eq!(spec.key_dim, spec.value_dim, "not implemented");
        let tokens = batch.tokens.len();
        assert!(
            [q, k, v].iter().all(|x| x.rows == tokens && x.tokens.is_none()),
            "all of the batch's tokens"
        );
        assert!(spec.heads.is_multiple_of(spec.kv_heads), "query heads in equal groups");
        assert_eq!(q.width, (spec.heads * spec.key_dim) as usize, "query width");
        let kv_width = (spec.kv_heads * spec.key_dim) as usize;
        assert!(k.width == kv_width && v.width == kv_width, "key and value widths");
        let block_tokens = self.kv.block_tokens();
        for span in &batch.spans {
            let table = &span.tables[spec.group as usize];
            if table.first != 0 {
                return Err(BackendError::Unsupported {
                    tensor: format!("cache group {}", spec.group),
                    what: "a sliding window".to_owned(),
                });
            }
            let end = span.start as usize + (span.end - span.begin) as usize;
            assert!(table.blocks.len() * block_tokens >= end, "the table covers the row's positions");
        }
        let (qkv, core) = ((q, k, v), &self.core);
        let (out, value_bytes) = match self.kv.group_mut(spec.group as usize) {
            GroupPages::F16(pages) => (core.attention(qkv, pages, block_tokens, spec, batch), 2),
            GroupPages::F32(pages) => (core.attention(qkv, pages, block_tokens, spec, batch), 4),
        };
        for (i, span) in batch.spans.iter().enumerate() {
            let (start, new) = (u64::from(span.start), u64::from(span.end - span.begin));
            // Sum of the positions seen by each of the new tokens.
            let seen = new * start + new * (new + 1) / 2;
            self.meter.attention(
                i,
                (start + new) * 2 * kv_width as u64 * value_bytes,
                2 * seen * q.width as u64,
            );
        }
        Ok(out)
    }

    fn route(
        &mut self,
        x: &CpuTensor,
        router: Router<'_, CpuWeight, CpuVector>,
        spec: &RouteSpec,
    ) -> Result<CpuRouting, BackendError> {
        if spec.gating != crate::backend::Gating::Softmax || spec.groups.is_some() {
            return Err(BackendError::Device("this routing is not implemented".to_owned()));
        }
        let router = router.weight;
        self.count(x, router.matrix_bytes(), router.macs());
        let logits = self.core.products(x, &[router]);
        Ok(self.core.choose(&logits[0], spec))
    }

    fn experts(
        &mut self,
        x: &CpuTensor,
        routing: &CpuRouting,
        ffn: Gated<'_, CpuWeight, CpuVector>,
        batch: &Batch,
    ) -> Result<CpuTensor, BackendError> {
        let all = batch.tokens.len();
        assert_eq!(x.rows, x.tokens.as_ref().map_or(all, |t| t.len()), "the batch's tokens");
        assert_eq!(routing.experts.len(), x.rows * routing.top_k, "routed for the same tokens");
        let parts = [ffn.gate, ffn.up, ffn.down];
        let bytes = parts.iter().map(|w| w.matrix_bytes()).sum();
        let macs = parts.iter().map(|w| w.macs()).sum();
        let (chosen, experts) = (&routing.experts, ffn.gate.experts);
        match &x.tokens {
            None => self.meter.experts(chosen, routing.top_k, experts, bytes, macs),
            Some(t) => self.meter.experts_selected(t, chosen, routing.top_k, experts, bytes, macs),
        }
        Ok(self.core.gated(x, &Assigned::routed(routing, experts), ffn))
    }

    fn feed_forward(
        &mut self,
        x: &CpuTensor,
        ffn: Gated<'_, CpuWeight, CpuVector>,
    ) -> Result<CpuTensor, BackendError> {
        for w in [ffn.gate, ffn.up, ffn.down] {
            assert_eq!(w.experts, 1, "a dense feed-forward");
            self.count(x, w.matrix_bytes(), w.macs());
        }
        Ok(self.core.gated(x, &Assigned::all(x.rows), ffn))
    }

    fn gate(&mut self, x: &mut CpuTensor, by: &CpuTensor, gate: &CpuVector) -> Result<(), BackendError> {
        let gate = &gate.values;
        assert!(by.width == gate.len() && x.rows == by.rows, "a gate for each row");
        self.count(by, 4 * gate.len() as u64, gate.len() as u64);
        let (isa, width) = (self.core.env.isa, x.width);
        self.core.rows_mut(x.values_mut(), width, |_, i, row| math::gate(isa, row, by.row(i), gate));
        Ok(())
    }

    fn scale(&mut self, x: &mut CpuTensor, factor: f32) -> Result<(), BackendError> {
        let (isa, width) = (self.core.env.isa, x.width);
        self.core.rows_mut(x.values_mut(), width, |_, _, row| math::scale(isa, row, factor));
        Ok(())
    }

    fn add(&mut self, x: &mut CpuTensor, y: &CpuTensor, factor: f32) -> Result<(), BackendError> {
        assert!(x.rows == y.rows && x.width == y.width, "equal shapes");
        let (isa, width) = (self.core.env.isa, x.width);
        self.core.rows_mut(x.values_mut(), width, |_, i, row| math::add(isa, row, y.row(i), factor));
        Ok(())
    }

    fn select(&mut self, x: &CpuTensor, indices: &[u32]) -> Result<CpuTensor, BackendError> {
        let mut out = self.core.env.floats.take(indices.len() * x.width);
        for (to, &i) in out.chunks_exact_mut(x.width).zip(indices) {
            to.copy_from_slice(x.row(i as usize));
        }
        let tokens = match &x.tokens {
            None => indices.into(),
            Some(t) => indices.iter().map(|&i| t[i as usize]).collect(),
        };
        Ok(CpuTensor::new(indices.len(), x.width, out, Some(tokens)))
    }

    fn read(&mut self, x: &CpuTensor) -> Result<Vec<f32>, BackendError> {
        Ok(x.values().to_vec())
    }

    fn take_stats(&mut self) -> StepStats {
        self.meter.take()
    }
}
