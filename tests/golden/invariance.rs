//! A row's results depend on its tokens and positions alone, bit for bit.

use anyhow::{Result, ensure};
use frugal_models::gguf::Gguf;
use frugal_models::kv::PageType;
use frugal_models::model_runner::BackendKind;
use frugal_models::step::{SamplingParams, TokenId};

use crate::drive::{Driver, by_id, greedy};
use crate::fixture::{Golden, open};

/// A prompt's log-probabilities as bits, and its continuation.
type Trace = (Vec<u32>, Vec<TokenId>);

/// How each prompt chooses: greedy, and three ways of seeded sampling, so that a changed bit shows.
fn params(index: usize, vocab: u32) -> SamplingParams {
    let sampled = SamplingParams { temperature: 0.9, ..greedy(vocab) };
    match index % 4 {
        0 => greedy(vocab),
        1 => sampled,
        2 => SamplingParams { top_p: 0.9, min_p: 0.01, ..sampled },
        _ => SamplingParams { top_k: 40, repetition_penalty: 1.2, presence_penalty: 0.3, ..sampled },
    }
}

const OUTPUT: usize = 8;

/// Each prompt by itself, in chunks.
fn alone(driver: &mut Driver, golden: &Golden, chunk: usize) -> Result<Vec<Trace>> {
    let vocab = driver.vocab();
    let mut traces = Vec::new();
    for (i, prompt) in golden.prompts.iter().enumerate() {
        let mut sequence = driver.sequence(&prompt.ids, params(i, vocab), 40 + i as u64);
        let output = driver.prefill(&mut sequence, chunk)?;
        while sequence.output().len() < OUTPUT {
            driver.step(&mut [(&mut sequence, 1)])?;
        }
        let bits = by_id(&output, vocab).into_iter().map(f32::to_bits).collect();
        traces.push((bits, sequence.output().to_vec()));
        driver.release(sequence);
    }
    Ok(traces)
}

/// All prompts at once, in chunks of different sizes, so that each step mixes prompts and single tokens.
fn together(driver: &mut Driver, golden: &Golden) -> Result<Vec<Trace>> {
    let vocab = driver.vocab();
    let prompts = golden.prompts.iter().enumerate();
    let mut all: Vec<_> = prompts
        .map(|(i, p)| (driver.sequence(&p.ids, params(i, vocab), 40 + i as u64), 5 + 9 * i, Vec::new()))
        .collect();
    while all.iter().any(|(s, ..)| s.output().len() < OUTPUT) {
        let mut running: Vec<_> = all.iter_mut().filter(|(s, ..)| s.output().len() < OUTPUT).collect();
        let mut parts: Vec<_> = running.iter_mut().map(|(s, chunk, _)| (s, *chunk)).collect();
        let outputs = driver.step(&mut parts)?;
        for ((_, _, bits), output) in running.iter_mut().zip(outputs) {
            if bits.is_empty() && output.token.is_some() {
                *bits = by_id(&output, vocab).into_iter().map(f32::to_bits).collect();
            }
        }
    }
    Ok(all.into_iter().map(|(s, _, bits)| (bits, s.output().to_vec())).collect())
}

fn check(name: &str, backend: BackendKind, page: PageType, chunks: &[usize]) -> Result<()> {
    let (gguf, golden): (Gguf, Golden) = open(name)?;
    let mut driver = Driver::new(&gguf, backend, page, 128)?;
    let whole = alone(&mut driver, &golden, 1000)?;
    ensure!(whole.iter().all(|(bits, _)| bits.iter().all(|&b| !f32::from_bits(b).is_nan())));
    for &chunk in chunks {
        ensure!(alone(&mut driver, &golden, chunk)? == whole, "{name}: chunks of {chunk} change bits");
    }
    ensure!(together(&mut driver, &golden)? == whole, "{name}: the batch changes bits");
    Ok(())
}

#[test]
fn reference_llama() -> Result<()> {
    check("llama-F32", BackendKind::Reference, PageType::F16, &[37])
}

#[test]
fn reference_experts() -> Result<()> {
    check("qwen3moe-F32", BackendKind::Reference, PageType::F32, &[16])
}

#[test]
fn cpu_llama() -> Result<()> {
    check("llama-Q4_K_M", BackendKind::Cpu, PageType::F16, &[1, 37])
}

#[test]
fn cpu_experts() -> Result<()> {
    check("qwen3moe-Q4_K_M", BackendKind::Cpu, PageType::F16, &[1, 16])
}

#[test]
fn cpu_experts_f32() -> Result<()> {
    check("llama-moe-F32", BackendKind::Cpu, PageType::F32, &[64])
}
