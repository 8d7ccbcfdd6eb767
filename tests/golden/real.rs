//! The default model and its dense parent against llama.cpp on six chat prompts.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use frugal_models::gguf::Gguf;
use frugal_models::kv::PageType;
use frugal_models::model_runner::BackendKind;
use frugal_models::source::{default_model, dense_model};
use frugal_models::step::TokenId;
use frugal_tests::model;
use serde::Deserialize;

use crate::drive::{Driver, Sequence, by_id, greedy};
use crate::fixture::{EXACT, Greedy, Limits, ROUNDED, near};

/// `golden/real-*.json`.
#[derive(Deserialize)]
struct Golden {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    prompt_ids: Vec<u32>,
    /// Absent for the upcycled model: as a function it is the dense one.
    exact: Option<Truth>,
    native: Truth,
}

#[derive(Deserialize)]
struct Truth {
    first: First,
    greedy: Greedy,
}

/// The likeliest tokens after the prompt.
#[derive(Deserialize)]
struct First {
    ids: Vec<u32>,
    logprobs: Vec<f32>,
}

impl Truth {
    fn near(&self, logprobs: &[f32], limits: Limits) -> Result<(), String> {
        let best: Vec<_> = self.first.ids.iter().copied().zip(self.first.logprobs.iter().copied()).collect();
        near(&best, logprobs, limits)
    }
}

fn golden(name: &str) -> Result<Golden> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures/golden");
    Ok(serde_json::from_slice(&std::fs::read(folder.join(name))?)?)
}

/// Runs the first prompts together for some steps: log-probabilities after each, and the continuations.
fn run(
    gguf: &Gguf,
    backend: BackendKind,
    cases: &[Case],
    steps: usize,
) -> Result<Vec<(Vec<f32>, Vec<TokenId>)>> {
    let mut driver = Driver::new(gguf, backend, PageType::F32, 64)?;
    let vocab = driver.vocab();
    let mut sequences: Vec<Sequence> =
        cases.iter().map(|c| driver.sequence(&c.prompt_ids, greedy(500), 0)).collect();
    let mut first = Vec::new();
    for step in 0..steps {
        let mut parts: Vec<_> = sequences.iter_mut().map(|s| (s, usize::MAX / 2)).collect();
        let outputs = driver.step(&mut parts)?;
        if step == 0 {
            first = outputs.iter().map(|o| by_id(o, vocab)).collect();
        }
    }
    Ok(first.into_iter().zip(sequences.iter().map(|s| s.output().to_vec())).collect())
}

/// The CPU runner against the nearer of what llama.cpp computes exactly and with 8-bit activations.
fn check_cpu(gguf: &Gguf, cases: &[Case], exact: &[Case]) -> Result<()> {
    let mut compared = 0;
    for (i, (logprobs, ids)) in run(gguf, BackendKind::Cpu, cases, 64)?.iter().enumerate() {
        let exact = exact[i].exact.as_ref().context("exact is of the dense model")?;
        let truths = [exact, &cases[i].native];
        let distances = truths.map(|t| t.near(logprobs, ROUNDED));
        ensure!(distances.iter().any(Result::is_ok), "prompt {i}: {distances:?}");
        let followed = truths.map(|t| t.greedy.follows(ids, ROUNDED));
        compared += followed.iter().flatten().max().with_context(|| format!("prompt {i}: {followed:?}"))?;
    }
    ensure!(compared >= 6, "only {compared} greedy steps had a clear winner");
    Ok(())
}

#[test]
fn dense_on_the_cpu() -> Result<()> {
    let cases = golden("real-SmolLM2-135M-Instruct.Q4_1.json")?.cases;
    let Some(gguf) = model(dense_model)? else { return Ok(()) };
    check_cpu(&gguf, &cases, &cases)
}

#[test]
fn experts_on_the_cpu() -> Result<()> {
    let dense = golden("real-SmolLM2-135M-Instruct.Q4_1.json")?.cases;
    let cases = golden("real-smolmoe-8x135m.json")?.cases;
    let Some(gguf) = model(default_model)? else { return Ok(()) };
    check_cpu(&gguf, &cases, &dense)
}

/// Two prompts and eight steps: it is slow.
#[test]
fn dense_on_the_reference() -> Result<()> {
    let cases = golden("real-SmolLM2-135M-Instruct.Q4_1.json")?.cases;
    let Some(gguf) = model(dense_model)? else { return Ok(()) };
    let some = &cases[2..4];
    for ((logprobs, ids), case) in run(&gguf, BackendKind::Reference, some, 8)?.iter().zip(some) {
        let exact = case.exact.as_ref().context("exact is of the dense model")?;
        exact.near(logprobs, EXACT).map_err(anyhow::Error::msg)?;
        let steps = exact.greedy.follows(ids, EXACT).map_err(anyhow::Error::msg)?;
        ensure!(steps == ids.len(), "margins are clear in all of the first steps");
    }
    Ok(())
}
