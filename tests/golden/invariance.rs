//! A row's results depend on its tokens and positions alone, bit for bit.

use anyhow::{Result, ensure};
use frugal_models::gguf::Gguf;
use frugal_models::kv::PageType;
use frugal_models::memory::{KvOptions, KvSize};
use frugal_models::model_runner::{BackendKind, RunnerOptions};
use frugal_models::quant::Isa;
use frugal_models::step::{SamplingParams, StepStats, TokenId};

use crate::drive::{Driver, by_id, greedy, kv};
use crate::fixture::{Golden, open};

/// A prompt's log-probabilities as bits, and its continuation.
pub(crate) type Trace = (Vec<u32>, Vec<TokenId>);

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
pub(crate) fn alone(driver: &mut Driver, golden: &Golden, chunk: usize) -> Result<Vec<Trace>> {
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
            if bits.is_empty() && !output.tokens.is_empty() {
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
fn reference_windows() -> Result<()> {
    check("gpt-oss-F32", BackendKind::Reference, PageType::F32, &[37])
}

#[test]
fn reference_latent() -> Result<()> {
    check("deepseek2-v3-F32", BackendKind::Reference, PageType::F16, &[16])
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

#[test]
fn cpu_windows_and_sinks() -> Result<()> {
    check("gpt-oss-MXFP4_MOE", BackendKind::Cpu, PageType::F16, &[1, 37])
}

#[test]
fn cpu_latent() -> Result<()> {
    check("deepseek2-v3-Q4_K_M", BackendKind::Cpu, PageType::F16, &[1, 16])
}

#[test]
fn reference_q8_0_pages() -> Result<()> {
    check("llama-F32", BackendKind::Reference, PageType::Q8_0, &[37])
}

#[test]
fn cpu_q8_0_pages() -> Result<()> {
    for name in ["llama-Q4_K_M", "qwen3moe-F32", "gpt-oss-MXFP4_MOE", "deepseek2-v3-Q4_K_M"] {
        check(name, BackendKind::Cpu, PageType::Q8_0, &[1, 37])?;
    }
    Ok(())
}

/// Bits do not depend on instruction set, threads or the size of blocks either.
#[test]
fn cpu_machines() -> Result<()> {
    machines(PageType::F16)
}

#[test]
fn cpu_machines_with_q8_0_pages() -> Result<()> {
    machines(PageType::Q8_0)
}

fn machines(page: PageType) -> Result<()> {
    let names =
        ["llama-Q4_K_M", "qwen3moe-IQ4_NL", "qwen3moe-F16", "gpt-oss-MXFP4_MOE", "deepseek2-v3-Q4_K_M"];
    for name in names {
        let (gguf, mut golden) = open(name)?;
        // The fourth is longer than a window.
        golden.prompts.truncate(4);
        let kv = kv(page, KvSize::Blocks(32));
        let base =
            RunnerOptions { backend: BackendKind::Cpu, threads: 1, pin: false, isa: None, kv, lazy: false };
        let expected = alone(&mut Driver::with(&gguf, &base)?, &golden, 1000)?;
        let isas = Isa::ALL.iter().copied().filter(|isa| isa.available());
        let isas = isas.map(|isa| RunnerOptions { isa: Some(isa), ..base.clone() }).collect::<Vec<_>>();
        let others = [
            RunnerOptions { threads: 3, pin: true, ..base.clone() },
            RunnerOptions { threads: 2, lazy: true, ..base.clone() },
            RunnerOptions { kv: KvOptions { block_tokens: 64, ..kv }, ..base },
        ];
        for options in isas.into_iter().chain(others) {
            let found = alone(&mut Driver::with(&gguf, &options)?, &golden, 1000)?;
            ensure!(found == expected, "{name}: bits differ with {options:?}");
        }
    }
    Ok(())
}

/// What a step is said to have cost does not depend on the backend. With F32 weights both choose the same experts.
#[test]
fn backends_count_the_same_work() -> Result<()> {
    let names = ["llama-F32", "qwen3moe-F32", "gpt-oss-F32", "glm4moe-F32", "deepseek2-v3-F32"];
    let pages = [PageType::F16, PageType::Q8_0];
    for (name, page) in names.iter().flat_map(|name| pages.map(|page| (*name, page))) {
        let (gguf, golden) = open(name)?;
        let counts = [BackendKind::Reference, BackendKind::Cpu].map(|backend| -> Result<Vec<StepStats>> {
            let mut driver = Driver::new(&gguf, backend, page, 64)?;
            let prompts = &golden.prompts[1..4];
            let mut all: Vec<_> = prompts.iter().map(|p| driver.sequence(&p.ids, greedy(0), 0)).collect();
            let mut stats = Vec::new();
            for chunk in [20, 20, 1] {
                driver.step(&mut all.iter_mut().map(|s| (s, chunk)).collect::<Vec<_>>())?;
                stats.push(driver.stats.clone());
            }
            Ok(stats)
        });
        let [reference, cpu] = counts;
        let reference = reference?;
        ensure!(
            reference
                .iter()
                .all(|s| s.dense_bytes > 0 && s.rows.iter().all(|r| r.macs > 0 && r.kv_bytes > 0))
        );
        ensure!(name == "llama-F32" || reference.iter().all(|s| s.expert_bytes > 0 && s.experts_used > 0));
        assert_eq!(reference, cpu?, "{name} {page:?}");
    }
    Ok(())
}
