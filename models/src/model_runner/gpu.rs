//! What a build without GPU backends says, and what one with them does.

use super::{BackendKind, LoadError, RunnerOptions, SelfTest};
use crate::arch::Shape;
#[cfg(not(feature = "candle"))]
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
    loading::load(gguf, shape, options)
}

#[cfg(feature = "candle")]
mod loading;
