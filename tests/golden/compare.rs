//! A backend against a golden.

use anyhow::{Context, Result, ensure};
use frugal_models::gguf::Gguf;
use frugal_models::kv::PageType;
use frugal_models::model_runner::BackendKind;
use frugal_models::step::{RowOutput, TokenId};

use crate::drive::{Driver, Sequence, by_id, greedy};
use crate::fixture::{Golden, Limits};

/// Of a prompt, at its end: computed once more as they would be if they were decoded.
const STEPPED: usize = 4;

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
    let whole = driver.step(&mut all(&mut sequences))?;
    let stepped = stepped(&mut driver, &mut sequences)?;
    for _ in 1..golden.prompts[0].exact.greedy.ids.len() {
        driver.step(&mut all(&mut sequences))?;
    }
    for (i, (prompt, sequence)) in golden.prompts.iter().zip(&sequences).enumerate() {
        prompt.near(&by_id(&whole[i], vocab), limits)?;
        prompt.near(&by_id(&stepped[i], vocab), limits).context("the last tokens one a step")?;
        prompt.follows(sequence.output(), limits)?;
    }
    Ok(())
}

fn all(sequences: &mut [Sequence]) -> Vec<(&mut Sequence, usize)> {
    sequences.iter_mut().map(|sequence| (sequence, usize::MAX / 2)).collect()
}

/// The outputs behind the prompts again, over what the cache has of their beginnings. Continuations are compared
/// for as long as they are clear, which those of rounded models of random weights hardly are.
fn stepped(driver: &mut Driver, sequences: &mut [Sequence]) -> Result<Vec<RowOutput>> {
    sequences.iter_mut().for_each(|sequence| sequence.rewind(STEPPED));
    let mut outputs = Vec::new();
    for left in (1..=STEPPED).rev() {
        // Shorter prompts join later.
        let mut parts: Vec<_> = sequences.iter_mut().filter(|s| s.left() >= left).map(|s| (s, 1)).collect();
        outputs = driver.step(&mut parts)?;
    }
    Ok(outputs)
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
