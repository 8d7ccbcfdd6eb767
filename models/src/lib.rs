//! What Frugal runs: model files, tokenizers, architectures and their kernels.

pub mod arch;
mod atomic;
pub mod backend;
pub mod budget;
pub mod constraint;
pub mod cpu;
pub mod detok;
pub mod fake;
pub mod gguf;
#[cfg(feature = "candle")]
pub mod gpu;
pub mod inspect;
pub mod kv;
pub mod mask;
pub mod memory;
pub mod meter;
pub mod model_runner;
pub mod pack;
pub mod reference;
pub mod runner;
#[cfg(any(test, feature = "candle"))]
mod samples;
pub mod sampling;
pub mod source;
pub mod step;
pub mod syntax;
pub mod template;
pub mod tokenizer;
pub mod upcycle;
pub mod weights;

pub use atomic::{Target, WriteError};
pub use frugal_quant as quant;
