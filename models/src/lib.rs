//! What Frugal runs: model files, tokenizers, architectures and their kernels.

pub mod backend;
pub mod gguf;
pub mod kv;
pub mod quant;
pub mod runner;
pub mod sampling;
pub mod step;
pub mod weights;
