//! What can go wrong on the way to a device.

use crate::backend::BackendError;

/// An error of the GPU backend.
#[derive(Debug, thiserror::Error)]
pub enum GpuError {
    /// A kernel would be called with what it does not take. Kernels check little themselves, and end the process or write where
    /// they should not.
    #[error("{operation}: {what}")]
    Contract {
        /// Which.
        operation: &'static str,
        /// What is wrong.
        what: String,
    },
    /// The tensor library or the driver.
    #[error("{0}")]
    Device(String),
    /// There is no such device, or this build has no kernels for it.
    #[error("{0}")]
    Absent(String),
}

impl From<candle_core::Error> for GpuError {
    fn from(error: candle_core::Error) -> Self {
        Self::Device(error.to_string())
    }
}

impl From<GpuError> for BackendError {
    fn from(error: GpuError) -> Self {
        Self::Device(error.to_string())
    }
}

/// A [`GpuError::Contract`].
pub(super) fn contract(operation: &'static str, what: impl Into<String>) -> GpuError {
    GpuError::Contract { operation, what: what.into() }
}
