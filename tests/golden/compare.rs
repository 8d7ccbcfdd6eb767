//! A backend against a golden.

use anyhow::{Context, Result};
use frugal_models::gguf::Gguf;
use frugal_models::kv::PageType;
use frugal_models::model_runner::BackendKind;

use crate::drive::{Driver, Sequence, by_id, greedy};
use crate::fixture::{Golden, Limits};

/// Runs all prompts together, each with its greedy continuation.
pub(crate) fn compare(
    gguf: &Gguf,
    golden: &Golden,
    backend: BackendKind,
    page: PageType,
    limits: Limits,
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
        prompt.check(&logprobs, sequence.output(), limits)?;
    }
    Ok(())
}
