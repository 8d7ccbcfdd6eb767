//! Loading onto a GPU: weights first, then steps to try it with, then a cache of what is left of the device's memory.
//!
//! Steps before the first request are for three things. Kernels that do not fit the GPU fail here and not in every request; what is
//! compiled or set up at a kernel's first use is no client's time; and the device's pool, which keeps what it was once given, then holds
//! what the largest step needs, so that the cache takes none of it.

use std::time::Instant;

use super::super::{BackendKind, LoadError, ModelRunner, RunnerOptions, geometry};
use super::open;
use crate::arch::{self, Model, Shape};
use crate::backend::BackendError;
use crate::gguf::Gguf;
use crate::gpu::{BLOCK_TOKENS, GpuBackend, element};
use crate::memory::{self, KvOptions, KvSize, Pool};
use crate::runner::{Invariance, Runner};
use crate::step::{
    BlockId, BlockTable, Geometry, GroupKind, Row, Sample, SamplingParams, SeqId, StepInput, TokenId,
};

/// Rows of single tokens to try: products go other ways for one, for few, for more and for many.
const ROWS: [u32; 4] = [1, 8, 40, 100];
/// Tokens of the largest step where computing is slow and nothing is to be learned.
const HOST_TOKENS: u32 = 48;

pub(super) fn load(gguf: &Gguf, shape: Shape, options: &RunnerOptions) -> Result<Box<dyn Runner>, LoadError> {
    // Before weights are loaded, which takes a while.
    element(options.kv.page).map_err(BackendError::from)?;
    // Steps take the device's memory, and have done so before the cache does.
    let kv = options.kv.beside_steps();
    let block_tokens = kv.block_tokens;
    let percent = match options.backend {
        BackendKind::Cuda { .. } if !BLOCK_TOKENS.contains(&block_tokens) => {
            let what =
                format!("kv.block_tokens is {block_tokens}: on a GPU it must be one of {BLOCK_TOKENS:?}");
            return Err(BackendError::Device(what).into());
        }
        BackendKind::Cuda { memory, .. } | BackendKind::Metal { memory } => memory,
        _ => 100,
    };
    let backend = GpuBackend::new(open(options.backend).map_err(BackendError::from)?);
    let no_threads = |error| BackendError::Device(format!("no threads beside the GPU: {error}"));
    let mut backend = backend.with_threads(options.threads, options.pin).map_err(no_threads)?;
    if let Some(left) = backend.memory_left(percent).map_err(BackendError::from)? {
        let held = Shape { weight_bytes: backend.held_bytes(gguf), ..shape.clone() };
        memory::plan(&held, &kv, Some(left))?;
    }
    let model = arch::load(gguf, &mut backend)?;
    gguf.release();

    let host = matches!(options.backend, BackendKind::GpuHost | BackendKind::GpuPlain);
    let tokens = if host { HOST_TOKENS } else { kv.step_tokens };
    let rows = ROWS.map(|rows| rows.min(kv.sequences));
    // Weights are there already, in whatever form the device has them.
    let shape = Shape { weight_bytes: 0, ..shape };
    let begin = Instant::now();
    let blocks = tokens.div_ceil(block_tokens).max(rows[rows.len() - 1]);
    let small = KvOptions { size: KvSize::Blocks(blocks), context: None, ..kv };
    let mut runner = ready(gguf, &shape, (backend, model), &small, &memory::plan(&shape, &small, None)?)?;
    let chunk = tokens.min(runner.geometry.context_max);
    try_step(&mut runner, &[(0, chunk)])?;
    for rows in rows {
        try_step(&mut runner, &vec![(0, 1); rows as usize])?;
    }

    let ModelRunner { backend, model, .. } = runner;
    let left = backend.memory_left(percent).map_err(BackendError::from)?;
    let pool = memory::plan(&shape, &kv, left.or_else(memory::available))?;
    let mut runner = ready(gguf, &shape, (backend, model), &kv, &pool)?;
    // The farthest position: tables by position are as long as they will be.
    let last = runner.geometry.context_max - 1;
    try_step(&mut runner, &[(last, 1)])?;
    tracing::info!(seconds = begin.elapsed().as_secs_f64(), chunk, "the GPU has run its first steps");
    Ok(Box::new(runner))
}

/// A runner with a cache.
fn ready(
    gguf: &Gguf,
    shape: &Shape,
    (mut backend, model): (GpuBackend, Box<dyn Model<GpuBackend>>),
    kv: &KvOptions,
    pool: &Pool,
) -> Result<ModelRunner<GpuBackend>, LoadError> {
    let geometry = geometry(gguf, shape, pool, kv)?;
    let groups = memory::layouts(shape, pool);
    backend.reserve(&groups, kv.block_tokens as usize, kv.page).map_err(BackendError::from)?;
    Ok(ModelRunner::new(backend, model, geometry, Invariance::Tolerance))
}

/// Runs a step of rows, each from a position on and so many tokens long. What it computes is of no interest: a row over pages that no
/// one has written may well be no number.
fn try_step(runner: &mut ModelRunner<GpuBackend>, rows: &[(u32, u32)]) -> Result<(), LoadError> {
    let step = step(&runner.geometry, rows);
    super::super::check::step(&step, &runner.geometry).map_err(BackendError::Device)?;
    runner.run(&step).map_err(|error| {
        let what = format!("a first step of {} rows, {} tokens: {error}", rows.len(), step.tokens());
        BackendError::Device(what)
    })?;
    Ok(())
}

/// Rows of the token 0, greedy.
fn step(geometry: &Geometry, rows: &[(u32, u32)]) -> StepInput {
    let mut used = vec![0; geometry.groups.len()];
    let mut table = |group: usize, start: u32, tokens: u32| {
        let (size, blocks) = (geometry.block_tokens, geometry.groups[group].blocks);
        let (first, end) = match geometry.groups[group].kind {
            GroupKind::Full => (0, (start + tokens).div_ceil(size)),
            GroupKind::Window { window } => {
                (start.saturating_sub(window.saturating_sub(1)) / size, (start + tokens).div_ceil(size))
            }
            GroupKind::State => (0, 1),
        };
        let from = used[group];
        used[group] += end - first;
        // Windows may have fewer blocks than one long row has without a scheduler; those it has are as good twice.
        BlockTable { first, blocks: (from..from + end - first).map(|i| BlockId(i % blocks.max(1))).collect() }
    };
    let params = std::sync::Arc::new(SamplingParams { temperature: 0.0, ..SamplingParams::default() });
    let rows = rows.iter().zip(0..).map(|(&(start, tokens), seq)| Row {
        seq: SeqId(seq),
        start,
        tokens: vec![TokenId(0); tokens as usize],
        tables: (0..geometry.groups.len()).map(|group| table(group, start, tokens)).collect(),
        sample: Some(Sample {
            params: params.clone(),
            seed: 0,
            choice: 0,
            history: Vec::new(),
            prompt_len: start + tokens,
            forbid: [].into(),
            constraint: None,
        }),
        drafts: 0,
        score: None,
    });
    StepInput { copies: Vec::new(), rows: rows.collect() }
}
