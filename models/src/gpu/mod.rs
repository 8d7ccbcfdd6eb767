//! The GPU backend: [`crate::backend::Backend`] over candle's tensors, with kernels of mistral.rs, of candle and our own.
//!
//! A tensor of a model goes to the device once, in its quantized form. Pages live there in the layout that the device's kernels
//! want; a step's tables and slots are uploaded once. Between operations activations are F32 tensors on the device;
//! what comes back is logits, and which experts ran, once a step. Results are within the goldens' tolerance, not bit for bit: kernels
//! are chosen by the number of rows.
//!
//! | file | |
//! |---|---|
//! | `backend.rs` | the operations of an architecture, in terms of kernels |
//! | `index.rs`, `pages.rs`, `weight.rs` | what is uploaded per step, the cache, the weights |
//! | `kernels.rs` | what a device must do, and plain forms of what the tensor library has everywhere |
//! | `host.rs` | the kernels' contracts in loops, on candle's CPU device: everything but kernels is tested with it |
//! | `plain.rs` | kernels in plain tensor operations: Apple's GPUs, by candle's Metal device |
//! | `cuda/` | NVIDIA: whose kernel does what is told in `attend.rs` and `products.rs`; ours are in `own.cu` |
//! | `selftest.rs` | every operation beside the reference's |
//! | `device.rs` | which device there is, and its memory |

mod backend;
#[cfg(any(feature = "cuda", test))]
mod capability;
#[cfg(feature = "cuda")]
mod cuda;
mod device;
mod error;
mod host;
#[cfg_attr(not(any(feature = "cuda", test)), expect(dead_code, reason = "some of it is for kernels alone"))]
mod index;
#[cfg_attr(not(feature = "cuda"), expect(dead_code, reason = "some of it is for kernels alone"))]
mod kernels;
mod pages;
mod plain;
mod selftest;
mod weight;

/// Positions per block that mistral.rs's attention has kernels for; for others it launches nothing and says nothing
/// (mistralrs-paged-attn 0.8.1, pagedattention.cuh).
pub const BLOCK_TOKENS: [u32; 3] = [8, 16, 32];

pub(crate) use pages::element;

pub use backend::{GpuBackend, GpuRouting, GpuTensor};
pub use device::GpuDevice;
pub use error::GpuError;
pub use kernels::HostRoom;
pub use selftest::selftest;
pub use weight::GpuWeight;
