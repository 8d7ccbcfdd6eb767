//! Every fixture, on every backend, within the limits.

use anyhow::{Context, Result};
use frugal_models::gguf::Gguf;
use frugal_models::kv::PageType;
use frugal_models::model_runner::BackendKind;

use crate::drive::{Driver, Sequence, by_id, greedy};
use crate::fixture::{EXACT, EXACT_F16_PAGES, Golden, Limits, ROUNDED, open};

fn check(name: &str, backend: BackendKind, page: PageType, limits: Limits, native_too: bool) -> Result<()> {
    let (gguf, golden) = open(name)?;
    compare(&gguf, &golden, backend, page, limits, native_too).context(name.to_owned())
}

/// Runs all prompts together, each with its greedy continuation.
pub(crate) fn compare(
    gguf: &Gguf,
    golden: &Golden,
    backend: BackendKind,
    page: PageType,
    limits: Limits,
    native_too: bool,
) -> Result<()> {
    let mut driver = Driver::new(gguf, backend, page, 128)?;
    let vocab = driver.vocab();
    let mut sequences: Vec<Sequence> =
        golden.prompts.iter().map(|p| driver.sequence(&p.ids, greedy(vocab), 0)).collect();
    let mut first = None;
    for _ in 0..golden.prompts[0].exact.greedy.ids.len() {
        let mut parts: Vec<_> = sequences.iter_mut().map(|s| (s, usize::MAX / 2)).collect();
        let outputs = driver.step(&mut parts)?;
        first.get_or_insert(outputs);
    }
    let first = first.context("a step ran")?;
    for ((prompt, sequence), output) in golden.prompts.iter().zip(&sequences).zip(&first) {
        let logprobs = by_id(output, vocab);
        prompt.check(&logprobs, sequence.output(), limits, native_too)?;
    }
    Ok(())
}

macro_rules! fixtures {
    ($($test:ident = $name:literal, $cpu:expr, $native_too:literal;)*) => {
        mod reference {
            use super::*;
            $(#[test]
            fn $test() -> Result<()> {
                check($name, BackendKind::Reference, PageType::F32, EXACT, false)
            })*
        }
        mod cpu {
            use super::*;
            $(#[test]
            fn $test() -> Result<()> {
                check($name, BackendKind::Cpu, PageType::F32, $cpu, $native_too)
            })*
        }
    };
}

fixtures! {
    llama_f32 = "llama-F32", EXACT, false;
    llama_moe_f32 = "llama-moe-F32", EXACT, false;
    qwen3moe_f32 = "qwen3moe-F32", EXACT, false;
    qwen3moe_f16 = "qwen3moe-F16", EXACT, false;
    llama_q4_k_m = "llama-Q4_K_M", ROUNDED, true;
    qwen3moe_q4_k_m = "qwen3moe-Q4_K_M", ROUNDED, true;
    qwen3moe_q4_0 = "qwen3moe-Q4_0", ROUNDED, true;
    qwen3moe_q4_1 = "qwen3moe-Q4_1", ROUNDED, true;
    qwen3moe_q5_0 = "qwen3moe-Q5_0", ROUNDED, true;
    qwen3moe_q8_0 = "qwen3moe-Q8_0", ROUNDED, true;
}

#[test]
fn reference_with_f16_pages() -> Result<()> {
    check("qwen3moe-F32", BackendKind::Reference, PageType::F16, EXACT_F16_PAGES, false)
}
