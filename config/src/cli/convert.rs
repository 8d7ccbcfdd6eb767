//! Commands that make a model file of another one.

use std::path::PathBuf;

use clap::Args;

/// How to upcycle.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct Upcycle {
    /// Dense model: a GGUF file, or hf:OWNER/REPO[:QUANT] on the Hugging Face hub
    #[arg(value_name = "IN")]
    pub input: String,
    /// File to write
    #[arg(value_name = "OUT")]
    pub output: PathBuf,
    /// Experts per layer
    #[arg(long, default_value_t = 8, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=256))]
    pub experts: u32,
    /// Experts that each token uses
    #[arg(long, default_value_t = 2, value_name = "K", value_parser = clap::value_parser!(u32).range(1..=256))]
    pub top_k: u32,
    /// Seed of the router's weights
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub seed: u64,
    /// Replace OUT if there is such a file
    #[arg(long)]
    pub force: bool,
}

/// What to pack.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct Pack {
    /// Model: a GGUF file, or hf:OWNER/REPO[:QUANT] on the Hugging Face hub
    #[arg(value_name = "IN")]
    pub input: String,
    /// File to write
    #[arg(value_name = "OUT")]
    pub output: PathBuf,
    /// Replace OUT if there is such a file
    #[arg(long)]
    pub force: bool,
}
