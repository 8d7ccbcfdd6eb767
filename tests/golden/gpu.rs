//! The GPU backend against the goldens: every architecture and format that the project has.
//!
//! A test of the crate `frugal-models`, so that it builds nothing else: `cargo test -p frugal-models --features candle --test gpu` runs
//! all but the kernels, on the host, and the kernels that run on Apple's GPUs, on candle's CPU device; with `--features cuda`, on a machine
//! with an NVIDIA GPU, the kernels for that, and with `--features metal`, on a Mac, the same ones on its GPU.

mod compare;
#[expect(dead_code, reason = "shared with the other goldens")]
mod drive;
#[expect(dead_code, reason = "shared with the other goldens")]
mod fixture;

use anyhow::{Context as _, Result, ensure};
use frugal_models::gguf::Gguf;
use frugal_models::kv::PageType;
use frugal_models::model_runner::BackendKind;

use crate::compare::{compare, guesses};
use crate::drive::{Driver, by_id, greedy};
use crate::fixture::{Golden, Limits, ROUNDED, folder, names, open};

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

/// Prompts in chunks whose ends lie within blocks and tiles.
fn chunks(gguf: &Gguf, golden: &Golden, backend: BackendKind, page: PageType, limits: Limits) -> Result<()> {
    const CHUNK: usize = 37;
    let mut driver = Driver::new(gguf, backend, page, 128)?;
    let vocab = driver.vocab();
    for prompt in golden.prompts.iter().filter(|prompt| prompt.ids.len() > CHUNK) {
        let mut sequence = driver.sequence(&prompt.ids, greedy(vocab), 0);
        let output = driver.prefill(&mut sequence, CHUNK)?;
        prompt.near(&by_id(&output, vocab), limits).context("in chunks")?;
    }
    Ok(())
}

#[test]
fn on_the_host() -> Result<()> {
    all(|gguf, golden| {
        compare(gguf, golden, BackendKind::GpuHost, PageType::F32, golden.cpu_limits())?;
        chunks(gguf, golden, BackendKind::GpuHost, PageType::F32, golden.cpu_limits())?;
        guesses(gguf, golden, BackendKind::GpuHost)
    })
}

#[test]
fn in_plain_operations() -> Result<()> {
    all(|gguf, golden| {
        compare(gguf, golden, BackendKind::GpuPlain, PageType::F32, golden.cpu_limits())?;
        chunks(gguf, golden, BackendKind::GpuPlain, PageType::F32, golden.cpu_limits())?;
        guesses(gguf, golden, BackendKind::GpuPlain)
    })
}

#[test]
fn with_f16_pages() -> Result<()> {
    let (gguf, golden) = open("qwen3moe-Q4_K_M")?;
    compare(&gguf, &golden, BackendKind::GpuHost, PageType::F16, ROUNDED)?;
    compare(&gguf, &golden, BackendKind::GpuPlain, PageType::F16, ROUNDED)
}

#[test]
fn a_build_without_kernels_says_so() -> Result<()> {
    let (gguf, _) = open("qwen3moe-Q4_K_M")?;
    let refused = |backend| {
        let refused = Driver::new(&gguf, backend, PageType::F16, 8).err();
        refused.map(|e| format!("{e:#}")).unwrap_or_default()
    };
    if cfg!(not(feature = "metal")) {
        let message = refused(BackendKind::Metal { memory: 90 });
        ensure!(message.contains("metal: this build has no Metal kernels (feature `metal`)"), "{message:?}");
    }
    if cfg!(not(feature = "cuda")) {
        let message = refused(BackendKind::Cuda { ordinal: 0, memory: 90 });
        ensure!(message.contains("cuda:0: this build has no CUDA kernels (feature `cuda`)"), "{message:?}");
    }
    Ok(())
}

#[test]
fn pages_that_no_kernel_reads_are_refused_by_key() -> Result<()> {
    let (gguf, _) = open("qwen3moe-Q4_K_M")?;
    let refused = Driver::new(&gguf, BackendKind::GpuHost, PageType::Q8_0, 8).err();
    let message = refused.map(|e| format!("{e:#}")).unwrap_or_default();
    ensure!(message.contains(r#"kv.dtype is "q8_0": on a GPU it must be "f16" or "f32""#), "{message:?}");
    Ok(())
}

/// Products of floats may be of fewer bits there, so every model is held to what rounding costs.
#[cfg(feature = "cuda")]
#[test]
fn on_cuda() -> Result<()> {
    all(|gguf, golden| {
        let first = BackendKind::Cuda { ordinal: 0, memory: 90 };
        compare(gguf, golden, first, PageType::F16, ROUNDED)?;
        chunks(gguf, golden, first, PageType::F16, ROUNDED)?;
        compare(gguf, golden, first, PageType::F32, ROUNDED)
    })
}

/// The same.
#[cfg(feature = "metal")]
#[test]
fn on_metal() -> Result<()> {
    all(|gguf, golden| {
        let gpu = BackendKind::Metal { memory: 90 };
        compare(gguf, golden, gpu, PageType::F16, ROUNDED)?;
        chunks(gguf, golden, gpu, PageType::F16, ROUNDED)?;
        compare(gguf, golden, gpu, PageType::F32, ROUNDED)
    })
}
