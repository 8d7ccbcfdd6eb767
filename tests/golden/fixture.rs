//! A golden and the comparison with it.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use frugal_models::gguf::Gguf;
use frugal_models::step::TokenId;
use serde::Deserialize;
use sha2::{Digest, Sha256};

/// `tests/fixtures/golden/<file>.json`.
#[derive(Deserialize)]
pub(crate) struct Golden {
    sha256: String,
    pub(crate) prompts: Vec<Prompt>,
}

#[derive(Deserialize)]
pub(crate) struct Prompt {
    pub(crate) ids: Vec<u32>,
    pub(crate) exact: Truth,
    /// Absent for F32 files.
    pub(crate) native: Option<Truth>,
}

#[derive(Deserialize)]
pub(crate) struct Truth {
    /// After the prompt, of every token.
    logprobs: Vec<f32>,
    pub(crate) greedy: Greedy,
}

#[derive(Deserialize)]
pub(crate) struct Greedy {
    pub(crate) ids: Vec<u32>,
    /// Between the two likeliest tokens of each step.
    pub(crate) margins: Vec<f32>,
}

/// Of |difference| of log-probabilities over the golden's 64 likeliest tokens.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) max: f32,
    pub(crate) rms: f32,
}

/// F32 activations over weights as in the file.
pub(crate) const EXACT: Limits = Limits { max: 0.002, rms: 0.0005 };
/// The same with F16 cache pages.
pub(crate) const EXACT_F16_PAGES: Limits = Limits { max: 0.05, rms: 0.02 };
/// Activations rounded to 8 bits.
pub(crate) const ROUNDED: Limits = Limits { max: 0.8, rms: 0.35 };

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

/// Opens a fixture and its golden, which must be of the same bytes.
pub(crate) fn open(name: &str) -> Result<(Gguf, Golden)> {
    let path = folder().join(format!("{name}.gguf"));
    let golden = std::fs::read(folder().join("golden").join(format!("{name}.json")))?;
    let golden: Golden = serde_json::from_slice(&golden)?;
    let bytes = std::fs::read(&path).with_context(|| format!("{}", path.display()))?;
    let digest: String = Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect();
    ensure!(digest == golden.sha256, "{name}.gguf is not the file that the golden is of");
    Ok((Gguf::from_bytes(bytes)?, golden))
}

impl Truth {
    /// How far `logprobs` are from this, as (max, rms) over its 64 likeliest tokens.
    fn distance(&self, logprobs: &[f32]) -> (f32, f32) {
        let mut best: Vec<usize> = (0..self.logprobs.len()).collect();
        best.sort_by(|&a, &b| self.logprobs[b].total_cmp(&self.logprobs[a]));
        best.truncate(64);
        let difference = |&i: &usize| (logprobs[i] - self.logprobs[i]).abs();
        let max = best.iter().map(difference).fold(0.0, f32::max);
        let squares: f32 = best.iter().map(|i| difference(i).powi(2)).sum();
        (max, (squares / best.len() as f32).sqrt())
    }

    fn near(&self, logprobs: &[f32], limits: Limits) -> Result<(), String> {
        let (max, rms) = self.distance(logprobs);
        let near = max <= limits.max && rms <= limits.rms; // false for NaN
        near.then_some(()).ok_or_else(|| format!("max {max:.6}, rms {rms:.6}"))
    }

    /// A different token is a fault unless the two likeliest were as near as twice the limit at that step; from
    /// such a step on the continuations need not agree.
    fn follows(&self, ids: &[TokenId], limits: Limits) -> Result<(), String> {
        let Greedy { ids: expected, margins } = &self.greedy;
        for (step, ((&ours, &golden), &margin)) in ids.iter().zip(expected).zip(margins).enumerate() {
            if margin < 2.0 * limits.max {
                break;
            }
            if ours.0 != golden {
                return Err(format!("step {step}: token {} for {golden}, margin {margin}", ours.0));
            }
        }
        Ok(())
    }
}

impl Prompt {
    /// The truths to compare with: 8-bit activations may be as near to either.
    fn truths(&self, native_too: bool) -> impl Iterator<Item = &Truth> {
        [Some(&self.exact), self.native.as_ref().filter(|_| native_too)].into_iter().flatten()
    }

    /// Whether log-probabilities and a greedy continuation agree with a truth.
    pub(crate) fn check(
        &self,
        logprobs: &[f32],
        greedy: &[TokenId],
        limits: Limits,
        native_too: bool,
    ) -> Result<()> {
        let any = |check: &dyn Fn(&Truth) -> Result<(), String>| -> Result<()> {
            let results: Vec<_> = self.truths(native_too).map(check).collect();
            ensure!(results.iter().any(Result::is_ok), "prompt of {}: {results:?}", self.ids.len());
            Ok(())
        };
        ensure!(greedy.len() == self.exact.greedy.ids.len(), "{} greedy tokens", greedy.len());
        any(&|t| t.near(logprobs, limits))?;
        any(&|t| t.follows(greedy, limits))
    }
}
