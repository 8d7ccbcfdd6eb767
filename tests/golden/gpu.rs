//! The GPU backend against the goldens: every architecture and format that the project has.
//!
//! A test of the crate `frugal-models`, so that it builds nothing else: `cargo test -p frugal-models --features candle --test gpu` runs
//! all but the kernels, on the host; with `--features cuda`, on a machine with an NVIDIA GPU, the kernels too.

mod compare;
#[expect(dead_code, reason = "shared with the other goldens")]
mod drive;
#[expect(dead_code, reason = "shared with the other goldens")]
mod fixture;

use anyhow::{Result, ensure};
use frugal_models::gguf::Gguf;
use frugal_models::kv::PageType;
use frugal_models::model_runner::BackendKind;

use crate::compare::compare;
use crate::fixture::{Golden, folder, names, open};

/// Every fixture, and how each fails.
fn all(check: fn(&Gguf, &Golden) -> Result<()>) -> Result<()> {
    let names = names(&folder())?;
    ensure!(names.len() > 20, "fixtures in {}", folder().display());
    let run = |name: &String| open(name).and_then(|(gguf, golden)| check(&gguf, &golden));
    let failed: Vec<String> =
        names.iter().filter_map(|name| Some(format!("{name}: {:#}", run(name).err()?))).collect();
    ensure!(failed.is_empty(), "{} of {} failed\n{}", failed.len(), names.len(), failed.join("\n"));
    Ok(())
}

#[test]
fn on_the_host() -> Result<()> {
    all(|gguf, golden| compare(gguf, golden, BackendKind::GpuHost, PageType::F32, golden.cpu_limits()))
}

#[test]
fn on_the_host_with_f16_pages() -> Result<()> {
    let (gguf, golden) = open("qwen3moe-Q4_K_M")?;
    compare(&gguf, &golden, BackendKind::GpuHost, PageType::F16, fixture::ROUNDED)
}

/// Products of floats may be of fewer bits there, so every model is held to what rounding costs.
#[cfg(feature = "cuda")]
#[test]
fn on_cuda() -> Result<()> {
    all(|gguf, golden| {
        let first = BackendKind::Cuda { ordinal: 0, memory: 90 };
        compare(gguf, golden, first, PageType::F16, fixture::ROUNDED)?;
        compare(gguf, golden, first, PageType::F32, fixture::ROUNDED)
    })
}
