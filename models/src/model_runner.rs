//! A [`Runner`] of a model on a backend.
//!
//! A step is checked on arrival, run when it is waited for, and its rows are sampled on the backend's threads. What concerns one row is that
//! row's fault; an error of the backend is the step's. A panic is not caught here: the backend's state is unknown after it, and
//! whoever drives the runner ends its requests and the process.

mod check;
mod gpu;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, PoisonError};

use sha2::{Digest, Sha256};

use crate::arch::{self, LoadError, Model, Shape};
use crate::backend::{Backend, BackendError, Batch};
use crate::cpu::{CpuBackend, CpuOptions};
use crate::gguf::Gguf;
use crate::kv::KvStore;
use crate::memory::{self, KvOptions, Pool};
use crate::meter::Meter;
use crate::quant::Isa;
use crate::reference::ReferenceBackend;
use crate::runner::{Invariance, Runner};
use crate::sampling::Sampler;
use crate::step::{
    CacheGroup, Geometry, Row, RowFault, RowOutput, Sample, StepFault, StepInput, StepOutput, TokenId,
    TokenScore,
};

/// Logits that are held at once; more are computed in pieces. 128 MiB: 200 rows of the largest vocabularies.
pub(crate) const LOGITS_MAX: usize = 32 << 20;

/// What a self-test of a GPU found.
#[derive(Clone, Debug)]
pub struct SelfTest {
    /// As its maker calls it.
    pub gpu: String,
    /// Bytes read and written per second by a copy within its memory.
    pub copy: f64,
    /// In the order in which they ran.
    pub checks: Vec<Check>,
}

/// One operation of a GPU.
#[derive(Clone, Debug)]
pub struct Check {
    /// What, of which sizes.
    pub name: String,
    /// Norm of the difference from the reference over the reference's norm; None where only the time was taken.
    pub error: Option<f64>,
    /// Most it may be: what rounding of activations and weights costs.
    pub limit: f64,
    /// Of one run, launches included.
    pub micros: f64,
    /// Bytes of weights, or of keys and values, that it must read.
    pub bytes: u64,
    /// Multiply-adds.
    pub macs: u64,
}

impl Check {
    /// Whether the result is right. NaN is not.
    pub fn passed(&self) -> bool {
        self.error.is_none_or(|error| error <= self.limit)
    }
}

/// Bytes of experts that a server may be ready before: one step may need them all, and from a disk of 125 MB a second (AWS's gp3, unless
/// more is paid for) packs them in 34 s, well within the minute after which a step counts as stuck (`scheduler.stall_timeout_s`).
const WAITING_MAX: usize = 4 << 30;
const _: () = assert!(WAITING_MAX / 125_000_000 < 40);

/// How to run a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunnerOptions {
    /// On what.
    pub backend: BackendKind,
    /// Threads that compute, the one that waits for steps included; at least 1.
    pub threads: usize,
    /// Bind the other threads to a processor each.
    pub pin: bool,
    /// None chooses the fastest that the processor has.
    pub isa: Option<Isa>,
    /// The cache.
    pub kv: KvOptions,
    /// Whether the runner is ready before its experts are (the last 4 GiB of them): they follow as they are needed, and in time that
    /// nothing else wants. Backends other than the processor's load all at once.
    pub lazy: bool,
}

/// The implementations of [`Backend`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackendKind {
    /// This machine's processors.
    Cpu,
    /// The specification: one slow thread, F32 activations.
    Reference,
    /// An NVIDIA GPU; refused by builds without the feature `cuda`.
    Cuda {
        /// Which, as the driver counts.
        ordinal: usize,
        /// Of its memory, what all processes may take together: weights, cache and work. Percent.
        memory: u8,
    },
    /// Apple's GPU; refused by builds without the feature `metal`.
    Metal {
        /// Of what Metal recommends to take at most, what weights, cache and work may take together. Percent.
        memory: u8,
    },
    /// The GPU backend with its kernels' contracts in plain loops on the host, for tests; refused by builds without the feature
    /// `candle`.
    GpuHost,
    /// The GPU backend with Metal's kernels on the host, for tests; refused as the last one is.
    GpuPlain,
}

impl BackendKind {
    /// What it is, whichever it is of its kind and whatever memory it gets.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Reference => "reference",
            Self::Cuda { .. } => "cuda",
            Self::Metal { .. } => "metal",
            Self::GpuHost => "gpu-host",
            Self::GpuPlain => "gpu-plain",
        }
    }
}

/// Loads a model onto a backend.
///
/// # Errors
/// If the file cannot be run, or weights and cache do not fit into memory.
pub fn load_runner(gguf: &Gguf, options: &RunnerOptions) -> Result<Box<dyn Runner>, LoadError> {
    let shape = arch::shape(gguf)?;
    if options.backend == BackendKind::Cpu {
        gguf.verify(options.threads)?;
    } else {
        gguf.rows_only()?;
    }
    if !matches!(options.backend, BackendKind::Cpu | BackendKind::Reference) {
        return gpu::load(gguf, shape, options);
    }
    let pool = memory::plan(&shape, &options.kv, memory::available())?;
    let geometry = geometry(gguf, &shape, &pool, &options.kv)?;
    let groups = memory::layouts(&shape, &pool);
    let (block_tokens, page) = (options.kv.block_tokens as usize, options.kv.page);
    match options.backend {
        BackendKind::Cpu => {
            let RunnerOptions { threads, pin, isa, lazy, .. } = *options;
            let options = CpuOptions { threads, pin, isa, groups, block_tokens, page, lazy };
            bitwise(gguf, CpuBackend::new(&options)?, geometry, |b| b.pack_ahead(WAITING_MAX))
        }
        BackendKind::Reference => {
            let kv = KvStore::new(&groups, block_tokens, page);
            let kv = kv.map_err(|e| BackendError::Device(e.to_string()))?;
            bitwise(gguf, ReferenceBackend::new(kv), geometry, |_| ())
        }
        BackendKind::Cuda { .. }
        | BackendKind::Metal { .. }
        | BackendKind::GpuHost
        | BackendKind::GpuPlain => {
            unreachable!("loaded above")
        }
    }
}

/// Why a build without the feature `cuda` has no GPU.
#[cfg(not(feature = "cuda"))]
pub(crate) const NO_CUDA: &str = "this build has no CUDA kernels (feature `cuda`)";

/// Why a build without the feature `metal` has none of Apple's.
#[cfg(not(feature = "metal"))]
pub(crate) const NO_METAL: &str = "this build has no Metal kernels (feature `metal`)";

/// NVIDIA GPUs that the driver has for us.
///
/// # Errors
/// Why there can be none: this build, no driver, or a first one that the kernels do not run on.
pub fn cuda_devices() -> Result<usize, String> {
    #[cfg(feature = "cuda")]
    return match crate::gpu::GpuDevice::count()? {
        0 => Ok(0),
        count => crate::gpu::GpuDevice::unfit(0).map_or(Ok(count), Err),
    };
    #[cfg(not(feature = "cuda"))]
    Err(NO_CUDA.to_owned())
}

/// Apple's GPUs: one or none.
///
/// # Errors
/// Why there can be none: this build.
pub fn metal_devices() -> Result<usize, String> {
    #[cfg(feature = "metal")]
    return Ok(crate::gpu::GpuDevice::metal_count());
    #[cfg(not(feature = "metal"))]
    Err(NO_METAL.to_owned())
}

/// Whether there is what a backend computes on.
///
/// # Errors
/// Why not: this build, or this machine.
pub fn present(backend: BackendKind) -> Result<(), String> {
    match backend {
        #[cfg(feature = "cuda")]
        BackendKind::Cuda { ordinal, .. } => match crate::gpu::GpuDevice::count()? {
            count if ordinal >= count => Err(format!("NVIDIA GPUs on this machine: {count}")),
            _ => crate::gpu::GpuDevice::unfit(ordinal).map_or(Ok(()), Err),
        },
        #[cfg(not(feature = "cuda"))]
        BackendKind::Cuda { .. } => Err(NO_CUDA.to_owned()),
        BackendKind::Metal { .. } => match metal_devices()? {
            0 => Err("there is no GPU that Metal knows".to_owned()),
            _ => Ok(()),
        },
        BackendKind::Cpu | BackendKind::Reference | BackendKind::GpuHost | BackendKind::GpuPlain => Ok(()),
    }
}

/// What measures the energy of the device that a backend computes on; None if nothing does. For a GPU, one line in the log says
/// what is measured, or why nothing is.
pub fn meter(backend: BackendKind) -> Option<Meter> {
    match backend {
        #[cfg(feature = "cuda")]
        BackendKind::Cuda { ordinal, .. } => match crate::gpu::GpuDevice::uuid(ordinal) {
            Ok(uuid) => crate::meter::of_nvidia(uuid),
            Err(why) => {
                tracing::info!(why, "the GPU's energy and load are not measured");
                None
            }
        },
        BackendKind::Metal { .. } => {
            tracing::info!("energy and load of Apple's GPUs are not measured");
            None
        }
        _ => None,
    }
}

/// Compares what a GPU computes with the reference, operation by operation.
///
/// # Errors
/// If `backend` is no GPU, this build has no kernels for it, or the GPU fails.
pub fn gpu_selftest(backend: BackendKind) -> Result<SelfTest, String> {
    gpu::selftest(backend)
}

fn bitwise<B: Backend + 'static>(
    gguf: &Gguf,
    mut backend: B,
    geometry: Geometry,
    loaded: impl FnOnce(&mut B),
) -> Result<Box<dyn Runner>, LoadError> {
    let model = arch::load(gguf, &mut backend)?;
    gguf.release();
    loaded(&mut backend);
    Ok(Box::new(ModelRunner::new(backend, model, geometry, Invariance::Bitwise)))
}

fn geometry(gguf: &Gguf, shape: &Shape, pool: &Pool, kv: &KvOptions) -> Result<Geometry, LoadError> {
    let digest = Sha256::new().chain_update(gguf.digest()).chain_update(kv.page.name());
    let group = |((cache, &blocks), block_bytes): ((&arch::CacheShape, &u32), u64)| CacheGroup {
        kind: cache.kind,
        block_bytes,
        blocks,
    };
    Ok(Geometry {
        vocab: shape.vocab,
        context_max: pool.context,
        block_tokens: kv.block_tokens,
        groups: shape
            .cache
            .iter()
            .zip(&pool.blocks)
            .zip(memory::block_bytes(shape, kv)?)
            .map(group)
            .collect(),
        digest: digest.chain_update(kv.block_tokens.to_le_bytes()).finalize().into(),
    })
}

/// See the module.
pub struct ModelRunner<B: Backend> {
    backend: B,
    model: Box<dyn Model<B>>,
    geometry: Geometry,
    invariance: Invariance,
    /// One per thread.
    samplers: Vec<Mutex<Sampler>>,
    /// Outputs whose logits are held at once, and where.
    piece: usize,
    room: B::Room,
    pending: Option<Arc<StepInput>>,
}

impl<B: Backend> ModelRunner<B> {
    /// `model` was loaded into `backend`, whose cache is as `geometry` says.
    pub fn new(backend: B, model: Box<dyn Model<B>>, geometry: Geometry, invariance: Invariance) -> Self {
        let samplers = (0..backend.workers()).map(|_| Mutex::default()).collect();
        let (pending, room) = (None, B::Room::default());
        let piece = (LOGITS_MAX / geometry.vocab.max(1) as usize).max(1);
        Self { backend, model, geometry, invariance, samplers, piece, room, pending }
    }

    fn run(&mut self, step: &StepInput) -> Result<StepOutput, BackendError> {
        let batch = Batch::new(step);
        self.backend.begin(&batch)?;
        let hidden = match batch.tokens.is_empty() {
            true => None,
            false => self.model.forward(&mut self.backend, &batch)?,
        };
        let mut rows = vec![Ok(RowOutput::default()); step.rows.len()];
        if let Some(hidden) = hidden {
            self.answer(step, &hidden, batch.outputs.len(), &mut rows)?;
        }
        Ok(StepOutput { rows, stats: self.backend.take_stats()? })
    }

    /// Turns what the model gave for each output into tokens and scores, in pieces that bound the logits' memory.
    fn answer(
        &mut self,
        step: &StepInput,
        hidden: &B::Tensor,
        outputs: usize,
        rows: &mut [Result<RowOutput, RowFault>],
    ) -> Result<(), BackendError> {
        let vocab = self.geometry.vocab as usize;
        let wanted = wanted(step);
        assert_eq!(wanted.len(), outputs, "the batch asks for the same");
        for (part, begin) in wanted.chunks(self.piece).zip((0..).step_by(self.piece)) {
            let logits = match part.len() == outputs {
                true => self.model.logits(&mut self.backend, hidden)?,
                false => {
                    let indices: Vec<u32> = (begin..begin + part.len() as u32).collect();
                    let some = self.backend.select(hidden, &indices)?;
                    self.model.logits(&mut self.backend, &some)?
                }
            };
            let logits = self.backend.read(&logits, &mut self.room)?;
            assert_eq!(logits.len(), part.len() * vocab, "a row of logits per output");
            // What one row asked for, in order, by one thread; a row whose outputs are in two pieces goes on where it was.
            let (mut items, mut results, mut logits) = (Vec::new(), rows.iter_mut().enumerate(), logits);
            for run in part.chunk_by(|a, b| a.0 == b.0) {
                let (own, others) = logits.split_at(run.len() * vocab);
                logits = others;
                if let Some((index, result)) = results.find(|(index, _)| *index == run[0].0) {
                    items.push(Mutex::new((&step.rows[index], run, own, result)));
                }
            }
            let samplers = &self.samplers;
            self.backend.spread(items.len(), &|worker, item| {
                let mut sampler = samplers[worker].lock().unwrap_or_else(PoisonError::into_inner);
                let mut item = items[item].lock().unwrap_or_else(PoisonError::into_inner);
                let (row, run, logits, result) = &mut *item;
                for (&(_, token), logits) in run.iter().zip(logits.chunks_exact(vocab)) {
                    if let Ok(output) = &mut **result
                        && let Err(fault) = choose(&mut sampler, row, token, logits, output)
                    {
                        **result = Err(fault);
                    }
                }
            });
        }
        Ok(())
    }
}

impl<B: Backend> Runner for ModelRunner<B> {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn invariance(&self) -> Invariance {
        self.invariance
    }

    fn submit(&mut self, step: Arc<StepInput>) {
        assert!(self.pending.is_none(), "one step at a time");
        self.pending = Some(step);
    }

    fn wait(&mut self) -> Result<StepOutput, StepFault> {
        let step = self.pending.take().expect("a step is in flight");
        check::step(&step, &self.geometry).map_err(StepFault)?;
        self.run(&step).map_err(|error| fault(&error, self.backend.recover()))
    }
}

/// What a failed step is to whoever drives the runner.
///
/// # Panics
/// If the backend is lost with it: a runner that panicked is not used again, and its process is to be started anew.
fn fault(error: &BackendError, recovered: Result<(), BackendError>) -> StepFault {
    if let Err(lost) = recovered {
        panic!("the device is lost: {lost}, after: {error}");
    }
    StepFault(error.to_string())
}

/// The (row, token within it) of each output, in the order of [`Batch::new`]'s.
fn wanted(step: &StepInput) -> Vec<(usize, usize)> {
    let of = |(index, row): (usize, &Row)| row.outputs().map(move |token| (index, token));
    step.rows.iter().enumerate().flat_map(of).collect()
}

/// What a row asked for after one of its tokens.
fn choose(
    sampler: &mut Sampler,
    row: &Row,
    token: usize,
    logits: &[f32],
    output: &mut RowOutput,
) -> Result<(), RowFault> {
    if let Some(score) = &row.score
        && let Some(&target) = score.targets.get(token)
    {
        output.prompt_scores.push(sampler.score(logits, target, score.top)?);
    }
    let Some(sample) = &row.sample else { return Ok(()) };
    // Behind a guess that was wrong nothing counts.
    let right = match token.checked_sub(row.last_given()) {
        None => return Ok(()),
        Some(0) => true,
        Some(drafts) => output.tokens.len() == drafts && output.tokens.last() == row.tokens.get(token),
    };
    if !right {
        return Ok(());
    }
    match sampled(sampler, sample, row.start + token as u32 + 1, logits, output.tokens.len()) {
        Ok(Some((token, score))) => {
            output.tokens.push(token);
            output.scores.extend(score);
        }
        Ok(None) => {}
        Err(fault) if output.tokens.is_empty() => return Err(fault),
        // What was chosen before it is good. If it goes on, the next step meets the same fault.
        Err(_) => {}
    }
    Ok(())
}

/// The row's `nth` token; None where its grammar lets none follow.
fn sampled(
    sampler: &mut Sampler,
    sample: &Sample,
    position: u32,
    logits: &[f32],
    nth: usize,
) -> Result<Option<(TokenId, Option<TokenScore>)>, RowFault> {
    if let Some(constraint) = &sample.constraint
        && constraint.nth(nth)?.is_end()
    {
        return Ok(None);
    }
    sampler.sample(logits, sample, position, nth).map(Some)
}
