//! Loading onto a GPU: weights first, then a cache of what is left of the device's memory.

use super::{LoadError, RunnerOptions};
use crate::arch::Shape;
use crate::gguf::Gguf;
use crate::runner::Runner;

#[cfg(not(feature = "candle"))]
pub(super) fn load(_: &Gguf, _: Shape, options: &RunnerOptions) -> Result<Box<dyn Runner>, LoadError> {
    let what = match options.backend {
        super::BackendKind::Cuda { ordinal, .. } => format!("cuda:{ordinal}: {}", super::NO_CUDA),
        _ => "this build has no GPU backend (feature `candle`)".to_owned(),
    };
    Err(crate::backend::BackendError::Device(what).into())
}

#[cfg(feature = "candle")]
pub(super) fn load(gguf: &Gguf, shape: Shape, options: &RunnerOptions) -> Result<Box<dyn Runner>, LoadError> {
    use super::{BackendKind, ModelRunner, geometry};
    use crate::backend::BackendError;
    use crate::gpu::{BLOCK_TOKENS, GpuBackend, GpuDevice, element};
    use crate::runner::Invariance;
    use crate::{arch, memory};

    // Before weights are loaded, which takes a while.
    element(options.kv.page).map_err(BackendError::from)?;
    let block_tokens = options.kv.block_tokens;
    let (device, percent) = match options.backend {
        BackendKind::Cuda { .. } if !BLOCK_TOKENS.contains(&block_tokens) => {
            let what =
                format!("kv.block_tokens is {block_tokens}: on a GPU it must be one of {BLOCK_TOKENS:?}");
            return Err(BackendError::Device(what).into());
        }
        BackendKind::Cuda { ordinal, memory } => {
            (GpuDevice::cuda(ordinal).map_err(BackendError::from)?, memory)
        }
        _ => (GpuDevice::host(), 100),
    };
    let mut backend = GpuBackend::new(device);
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
