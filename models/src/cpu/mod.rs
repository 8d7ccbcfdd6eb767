//! The CPU backend: quantized panels, one work list a phase, bit-exact whatever the batch.
//!
//! Law: a row's results depend on its tokens and positions alone; the modules say how each sum is ordered.
//! Memory: the weights at the file's size (padded to 8 rows a matrix), the cache as configured, and for a step of T
//! tokens what [`step_bytes`](crate::memory::step_bytes) bounds: a few `[T, width]` tensors with their encoded forms, the encoded
//! inner activations of one layer (`T * top_k` columns), logits of the selected tokens, and at most 64 MB of attention's partial results.
//! Buffers are kept between steps.
//!
//! Absent on purpose: recurrent state, for which [`Backend`](crate::backend::Backend) has no operation: a model that
//! needs it has no row in the table of architectures, and is refused by its name.

#[expect(unsafe_code, reason = "workers write disjoint parts of one output; kernels per instruction set")]
mod attention;
mod backend;
#[expect(unsafe_code, reason = "workers write disjoint parts of one output")]
mod experts;
#[expect(unsafe_code, reason = "workers write disjoint parts of one output")]
mod linear;
mod memory;
#[expect(unsafe_code, reason = "lends borrowed closures and disjoint parts of slices to threads")]
mod pool;
#[cfg_attr(target_arch = "x86_64", expect(unsafe_code, reason = "the same additions per instruction set"))]
pub mod probe;
#[expect(unsafe_code, reason = "workers write disjoint parts of one output")]
mod route;
#[expect(unsafe_code, reason = "parts of one memory, filled one by one")]
mod stack;
mod tensor;
#[cfg(test)]
mod tests;
mod weight;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use frugal_kernels::math;

use crate::backend::{BackendError, Batch, Rope, WorkMeter};
use crate::kv::{GroupLayout, KvStore, PageType};
use crate::quant::Isa;

pub(crate) use attention::PARTIALS_MAX;
pub(crate) use memory::HUGE;
use memory::{Recycled, Recycler};
pub(crate) use pool::Pool;
pub use pool::available_threads;
use pool::spare_threads;
pub use route::CpuRouting;
use stack::{Packers, Stack};
pub use tensor::CpuTensor;
use weight::Loaded;
pub(crate) use weight::pack_panels;
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
    /// The cache's groups, in the order of `Row::tables`.
    pub groups: Vec<GroupLayout>,
    /// Positions per block; at least 1.
    pub block_tokens: usize,
    /// How cache pages hold keys and values.
    pub page: PageType,
    /// Whether experts are packed as they are needed, and behind the caller's back, instead of as they are loaded.
    pub lazy: bool,
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
    route: route::Scratch,
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
    packers: Packers,
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
        let isa = options.isa.unwrap_or_else(Isa::detect);
        if !isa.available() {
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
        let loaded = Loaded::new(options.lazy);
        let (packers, meter) = (Packers::default(), WorkMeter::default());
        Ok(Self { core, kv, loaded, packers, meter, angles: Vec::new() })
    }

    /// All is loaded: packs what waits until it is needed but for at most so many bytes, and begins with those, on as many threads
    /// as compute; under a quota mostly between steps.
    pub(crate) fn pack_ahead(&mut self, waiting_max: usize) {
        let waiting = self.pack_all_but(waiting_max).collect();
        let threads = self.core.pool.threads();
        self.packers = Packers::start(waiting, threads, spare_threads(threads));
    }

    /// Packs experts in the order in which they were loaded, until at most so many bytes wait: those.
    fn pack_all_but(&mut self, waiting_max: usize) -> impl Iterator<Item = Arc<Stack>> {
        let stacks = std::mem::take(&mut self.loaded.stacks);
        let mut waiting: usize = stacks.iter().map(|stack| stack.bytes()).sum();
        let mut stacks = stacks.into_iter();
        while waiting > waiting_max
            && let Some(stack) = stacks.next()
        {
            self.core.pool.for_each(stack.len(), |_, part| stack.pack(part));
            waiting -= stack.bytes();
        }
        stacks
    }

    /// Has these matrices of each weight packed, and counts what that takes.
    fn make_ready(&mut self, weights: &[&CpuWeight], matrices: impl Iterator<Item = usize> + Clone) {
        if let Some(took) = self.core.make_ready(weights, matrices) {
            self.meter.startup(took);
        }
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
