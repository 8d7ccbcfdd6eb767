//! A backend against a golden.

use anyhow::{Context, Result, ensure};
use frugal_models::gguf::Gguf;
use frugal_models::kv::PageType;
use frugal_models::model_runner::BackendKind;
use frugal_models::step::TokenId;

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

/// What is guessed rightly is chosen in one step, and behind a wrong guess it goes on as if there had been none.
pub(crate) fn guesses(gguf: &Gguf, golden: &Golden, backend: BackendKind) -> Result<()> {
    let mut driver = Driver::new(gguf, backend, PageType::F32, 128)?;
    let prompt = &golden.prompts[0].ids;
    let mut alone = driver.sequence(prompt, greedy(0), 0);
    for _ in 0..12 {
        driver.step(&mut [(&mut alone, usize::MAX / 2)])?;
    }
    let tokens = alone.output();
    let mut guessed = driver.sequence(prompt, greedy(0), 0);
    driver.step(&mut [(&mut guessed, usize::MAX / 2)])?;
    ensure!(driver.guess(&mut guessed, &tokens[1..5])? == tokens[1..6], "four are right");
    let wrong = TokenId((tokens[7].0 + 1) % driver.vocab());
    ensure!(
        driver.guess(&mut guessed, &[tokens[6], wrong, tokens[8]])? == tokens[6..8],
        "the second is wrong"
    );
    ensure!(driver.guess(&mut guessed, &[])? == tokens[8..9], "there is none");
    ensure!(driver.guess(&mut guessed, &tokens[9..11])? == tokens[9..12], "two are right");
    ensure!(guessed.output() == tokens);
    Ok(())
}
