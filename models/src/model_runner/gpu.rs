//! Loading onto a GPU: weights first, then a cache of what is left of the device's memory.

use super::{BackendKind, LoadError, RunnerOptions, SelfTest};
use crate::arch::Shape;
use crate::backend::BackendError;
use crate::gguf::Gguf;
use crate::runner::Runner;

#[cfg(not(feature = "candle"))]
fn absent(backend: BackendKind) -> String {
    match backend {
        BackendKind::Cuda { ordinal, .. } => format!("cuda:{ordinal}: {}", super::NO_CUDA),
        BackendKind::Metal { .. } => format!("metal: {}", super::NO_METAL),
        _ => "this build has no GPU backend (feature `candle`)".to_owned(),
    }
}

#[cfg(not(feature = "candle"))]
pub(super) fn load(_: &Gguf, _: Shape, options: &RunnerOptions) -> Result<Box<dyn Runner>, LoadError> {
    Err(BackendError::Device(absent(options.backend)).into())
}

#[cfg(not(feature = "candle"))]
pub(super) fn selftest(backend: BackendKind) -> Result<SelfTest, String> {
    Err(absent(backend))
}

#[cfg(feature = "candle")]
use crate::gpu::{GpuDevice, GpuError};

#[cfg(feature = "candle")]
fn open(backend: BackendKind) -> Result<GpuDevice, GpuError> {
    match backend {
        BackendKind::Cuda { ordinal, .. } => GpuDevice::cuda(ordinal),
        BackendKind::Metal { .. } => GpuDevice::metal(),
        BackendKind::GpuHost => Ok(GpuDevice::host()),
        BackendKind::GpuPlain => Ok(GpuDevice::plain()),
        BackendKind::Cpu | BackendKind::Reference => Err(GpuError::Absent(format!("{backend:?} is no GPU"))),
    }
}

#[cfg(feature = "candle")]
pub(super) fn selftest(backend: BackendKind) -> Result<SelfTest, String> {
    crate::gpu::selftest(&|| open(backend)).map_err(|e| e.to_string())
}

#[cfg(feature = "candle")]
pub(super) fn load(gguf: &Gguf, shape: Shape, options: &RunnerOptions) -> Result<Box<dyn Runner>, LoadError> {
    use super::{ModelRunner, geometry};
    use crate::gpu::{BLOCK_TOKENS, GpuBackend, element};
    use crate::runner::Invariance;
    use crate::{arch, memory};

    // Before weights are loaded, which takes a while.
    element(options.kv.page).map_err(BackendError::from)?;
    let block_tokens = options.kv.block_tokens;
    let percent = match options.backend {
        BackendKind::Cuda { .. } if !BLOCK_TOKENS.contains(&block_tokens) => {
            let what =
                format!("kv.block_tokens is {block_tokens}: on a GPU it must be one of {BLOCK_TOKENS:?}");
            return Err(BackendError::Device(what).into());
        }
        BackendKind::Cuda { memory, .. } | BackendKind::Metal { memory } => memory,
        _ => 100,
    };
    let mut backend = GpuBackend::new(open(options.backend).map_err(BackendError::from)?);
    let model = arch::load(gguf, &mut backend)?;
    gguf.release();
    // Weights are there already, in whatever form the device has them.
    let left = backend.memory_left(percent).map_err(BackendError::from)?;
    let shape = Shape { weight_bytes: 0, ..shape };
    let pool = memory::plan(&shape, &options.kv, left.or_else(memory::available))?;
    let geometry = geometry(gguf, &shape, &pool, &options.kv)?;
    let groups = memory::layouts(&shape, &pool);
    let kv = &options.kv;
    backend.reserve(&groups, kv.block_tokens as usize, kv.page).map_err(BackendError::from)?;
    Ok(Box::new(ModelRunner::new(backend, model, geometry, Invariance::Tolerance)))
}
