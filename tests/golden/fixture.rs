//! A golden and the comparison with it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use frugal_models::gguf::{Gguf, GgufWriter, Value};
use frugal_models::step::TokenId;
use serde::Deserialize;
use sha2::{Digest, Sha256};

/// `tests/fixtures/golden/<file>.json`.
#[derive(Deserialize)]
pub(crate) struct Golden {
    sha256: String,
    /// How many tensors are in which format.
    tensor_types: BTreeMap<String, usize>,
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
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Limits {
    pub(crate) max: f32,
    pub(crate) rms: f32,
}

/// F32 activations over weights as in the file.
pub(crate) const EXACT: Limits = Limits { max: 0.002, rms: 0.0005 };
/// The same with F16 cache pages.
pub(crate) const EXACT_F16_PAGES: Limits = Limits { max: 0.05, rms: 0.02 };
/// The same with Q8_0 cache pages. Measured: at most 0.18 and 0.085, but 0.55 and 0.17 on granitemoe.
pub(crate) const EXACT_Q8_0_PAGES: Limits = Limits { max: 0.6, rms: 0.2 };
/// For deepseek2-v3. Measured: 1.16 and 0.42 on one prompt, by the reference and the CPU alike; 0.39 and 0.12 on its others.
pub(crate) const EXACT_Q8_0_PAGES_DEEPSEEK2_V3: Limits = Limits { max: 1.2, rms: 0.45 };
/// Activations rounded to 8 bits.
pub(crate) const ROUNDED: Limits = Limits { max: 0.8, rms: 0.35 };

/// Where the fixtures are, seen from any package of the project.
pub(crate) fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures")
}

/// Where a fixture lies.
pub(crate) fn path(name: &str) -> PathBuf {
    folder().join(format!("{name}.gguf"))
}

/// Opens a fixture and its golden, which must be of the same bytes.
pub(crate) fn open(name: &str) -> Result<(Gguf, Golden)> {
    open_in(&folder(), name)
}

/// The same of another folder.
pub(crate) fn open_in(folder: &Path, name: &str) -> Result<(Gguf, Golden)> {
    let golden = golden_in(folder, name)?;
    let path = folder.join(format!("{name}.gguf"));
    let bytes = std::fs::read(&path).with_context(|| format!("{}", path.display()))?;
    let digest: String = Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect();
    ensure!(digest == golden.sha256, "{name}.gguf is not the file that the golden is of");
    let gguf = Gguf::from_bytes(bytes)?;
    let gguf = if gguf.str("general.architecture")? == "gpt-oss" { whole_yarn(&gguf)? } else { gguf };
    Ok((gguf, golden))
}

/// The file of which Frugal computes what llama.cpp did of this one. Llama.cpp rounds the ends of YaRN's ramp to whole pairs, which
/// gpt-oss was not made with: here they are at the whole pairs by themselves.
fn whole_yarn(gguf: &Gguf) -> Result<Gguf> {
    let rope = |key: &str| format!("gpt-oss.rope.{key}");
    let base = f64::from(gguf.f32(&rope("freq_base"))?);
    let pairs = f64::from(gguf.u32(&rope("dimension_count"))?) / 2.0;
    let waves = f64::from(gguf.u32(&rope("scaling.original_context_length"))?) / std::f64::consts::TAU;
    let [fast, slow] = ["fast", "slow"].map(|end| rope(&format!("scaling.yarn_beta_{end}")));
    ensure!(gguf.get(&fast).or(gguf.get(&slow)).is_none(), "the usual 32 turns and 1");
    let pair = |turns: f64| pairs * (waves / turns).ln() / base.ln();
    let turns = |pair: f64| Value::F32((waves / base.powf(pair / pairs)) as f32);
    let mut writer = GgufWriter::new();
    for (key, value) in gguf.metadata() {
        writer.set(key, value);
    }
    writer.set(&fast, turns(pair(32.0).floor())).set(&slow, turns(pair(1.0).ceil()));
    for tensor in gguf.tensors() {
        let ty = tensor.ty().context("a fixture's formats are known")?;
        writer.tensor(&tensor.name, ty, &tensor.dims[..tensor.dim_count as usize]);
    }
    let mut data = writer.start(Vec::new())?;
    for tensor in gguf.tensors() {
        data.write(gguf.view(&tensor.name)?.data)?;
    }
    Ok(Gguf::from_bytes(data.finish())?)
}

/// A fixture's golden alone.
pub(crate) fn golden_in(folder: &Path, name: &str) -> Result<Golden> {
    let path = folder.join("golden").join(format!("{name}.json"));
    let golden = std::fs::read(&path).with_context(|| format!("{}", path.display()))?;
    Ok(serde_json::from_slice(&golden)?)
}

/// The names of a folder's models that have a golden, in order.
pub(crate) fn names(folder: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| format!("{}", folder.display()))? {
        let name = entry?.file_name().into_string().unwrap_or_default();
        if let Some(name) = name.strip_suffix(".gguf")
            && folder.join("golden").join(format!("{name}.json")).exists()
        {
            names.push(name.to_owned());
        }
    }
    names.sort();
    Ok(names)
}

impl Golden {
    /// What the CPU backend is held to: it rounds activations to 8 bits unless weights are floats.
    pub(crate) fn cpu_limits(&self) -> Limits {
        let float = |ty: &String| ["F32", "F16", "BF16"].contains(&ty.as_str());
        if self.tensor_types.keys().all(float) { EXACT } else { ROUNDED }
    }
}

/// Whether `ours`, by token, is within `limits` of the golden's likeliest tokens.
pub(crate) fn near(golden: &[(u32, f32)], ours: &[f32], limits: Limits) -> Result<(), String> {
    let difference = |&(id, logprob): &(u32, f32)| (ours[id as usize] - logprob).abs();
    let max = golden.iter().map(difference).fold(0.0, |a: f32, b| if b > a || b.is_nan() { b } else { a });
    let squares: f32 = golden.iter().map(|best| difference(best).powi(2)).sum();
    let rms = (squares / golden.len() as f32).sqrt();
    let near = max <= limits.max && rms <= limits.rms; // false for NaN
    near.then_some(()).ok_or_else(|| format!("max {max:.6}, rms {rms:.6}"))
}

impl Truth {
    fn near(&self, logprobs: &[f32], limits: Limits) -> Result<(), String> {
        let mut best: Vec<(u32, f32)> = (0..).zip(self.logprobs.iter().copied()).collect();
        best.sort_by(|a, b| b.1.total_cmp(&a.1));
        best.truncate(64);
        near(&best, logprobs, limits)
    }
}

impl Greedy {
    /// A different token is a fault unless the two likeliest were as near as twice the limit at that step; from
    /// such a step on the continuations need not agree. Says how many steps were compared.
    pub(crate) fn follows(&self, ours: &[TokenId], limits: Limits) -> Result<usize, String> {
        let steps = ours.iter().zip(&self.ids).zip(&self.margins);
        for (step, ((&ours, &golden), &margin)) in steps.enumerate() {
            if margin < 2.0 * limits.max {
                return Ok(step);
            }
            if ours.0 != golden {
                return Err(format!("step {step}: token {} for {golden}, margin {margin}", ours.0));
            }
        }
        Ok(ours.len())
    }
}

impl Prompt {
    /// The truths to compare with: activations rounded to 8 bits may be as near to either.
    fn truths(&self, limits: Limits) -> impl Iterator<Item = &Truth> {
        [Some(&self.exact), self.native.as_ref().filter(|_| limits == ROUNDED)].into_iter().flatten()
    }

    /// Whether a truth agrees.
    fn any(&self, limits: Limits, check: impl Fn(&Truth) -> Result<(), String>) -> Result<()> {
        let results: Vec<_> = self.truths(limits).map(check).collect();
        ensure!(results.iter().any(Result::is_ok), "prompt of {}: {results:?}", self.ids.len());
        Ok(())
    }

    /// Whether log-probabilities after the prompt agree with a truth.
    pub(crate) fn near(&self, logprobs: &[f32], limits: Limits) -> Result<()> {
        self.any(limits, |truth| truth.near(logprobs, limits))
    }

    /// Whether a greedy continuation does.
    pub(crate) fn follows(&self, greedy: &[TokenId], limits: Limits) -> Result<()> {
        ensure!(greedy.len() == self.exact.greedy.ids.len(), "{} greedy tokens", greedy.len());
        self.any(limits, |truth| truth.greedy.follows(greedy, limits).map(drop))
    }
}
