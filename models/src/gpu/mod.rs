//! The GPU backend: [`crate::backend::Backend`] over candle's tensors and mistral.rs's kernels.
//!
//! A tensor of a model goes to the device once, in its quantized form. Pages live there in the layout of
//! `mistralrs-paged-attn`; a step's tables and slots are uploaded once. Between operations activations are F32 tensors on the device;
//! what comes back is logits, and which experts ran, once a step. Results are within the goldens' tolerance, not bit for bit: kernels
//! are chosen by the number of rows.
//!
//! | file | |
//! |---|---|
//! | `backend.rs` | the operations of an architecture, in terms of kernels |
//! | `index.rs`, `pages.rs`, `weight.rs` | what is uploaded per step, the cache, the weights |
//! | `kernels.rs` | what a device must do, and plain forms of what the tensor library has everywhere |
//! | `host.rs` | the kernels' contracts in loops, on candle's CPU device: everything but kernels is tested with it |
//! | `cuda/` | NVIDIA: kernels of mistral.rs, and our own (`own.cu`) where there is none |
//! | `selftest.rs` | every operation beside the reference's |
//! | `device.rs` | which device there is, and its memory |

mod backend;
#[cfg(feature = "cuda")]
mod cuda;
mod device;
mod error;
mod host;
#[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "some of it is for kernels alone"))]
mod index;
#[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "some of it is for kernels alone"))]
mod kernels;
mod pages;
mod selftest;
mod weight;

pub use backend::{GpuBackend, GpuRouting, GpuTensor};
pub use device::GpuDevice;
pub use error::GpuError;
pub use selftest::selftest;
pub use weight::GpuWeight;
