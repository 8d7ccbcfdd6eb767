//! `frugal gpu-selftest`: a GPU's results beside the processor's.

use std::io::Write as _;
use std::sync::Arc;

use anyhow::{Context as _, ensure};
use frugal_config::Config;
use frugal_models::gguf::Gguf;
use frugal_models::memory::{KvOptions, KvSize};
use frugal_models::model_runner::{BackendKind, RunnerOptions, gpu_selftest, load_runner};
use frugal_models::step::{BlockId, BlockTable, GroupKind, Row, Score, SeqId, StepInput, TokenId};

use crate::load;
use crate::misuse::OrMisuse as _;
use crate::terminal::table;

/// Tokens of the text that both score.
const TOKENS: u32 = 300;
/// Root mean square of the difference of log-probabilities: what rounding costs (tests/golden/README.md).
const RMS_MAX: f32 = 0.35;

/// Whether everything is right.
pub(crate) fn run(config: &Config) -> anyhow::Result<bool> {
    load::check(config)?;
    let (backend, why) = load::choose(config);
    if backend == BackendKind::Cpu {
        return Err(anyhow::anyhow!("no GPU to test: {why}")).or_misuse();
    }
    let test = gpu_selftest(backend).map_err(anyhow::Error::msg).context("the self-test did not end")?;
    let giga = |n: u64, micros: f64| format!("{:.0}", n as f64 / micros / 1e3);
    let mut rows = Vec::new();
    let (mut right, mut compared) = (true, 0);
    for check in &test.checks {
        right &= check.passed();
        compared += usize::from(check.error.is_some());
        let error = check.error.map_or(String::new(), |e| format!("{e:.1e}"));
        let verdict = match (check.error, check.passed()) {
            (None, _) => "",
            (_, true) => "ok",
            (_, false) => "WRONG",
        };
        let share = check.bytes as f64 / check.micros / 1e-6 / test.copy * 100.0;
        rows.push(vec![
            check.name.clone(),
            verdict.to_owned(),
            error,
            format!("{:.1}", check.micros),
            giga(check.bytes, check.micros),
            format!("{share:.0}"),
            giga(check.macs, check.micros),
        ]);
    }
    let mut out = std::io::stdout().lock();
    let headings = ["operation", "", "error", "us", "GB/s", "% of copy", "G macs/s"];
    let copy = test.copy / 1e9;
    write!(out, "{}, copies at {copy:.0} GB/s\n\n{}", test.gpu, table(&headings, &rows))?;
    let verdict = if right { "all right" } else { "WRONG" };
    writeln!(out, "\n{compared} operations compared with the reference: {verdict}")?;
    if config.model.source.is_some() {
        let path = load::file(config)?;
        let (max, rms) = model(&load::open(&path)?, backend, config)?;
        right &= rms <= RMS_MAX;
        let verdict = if rms <= RMS_MAX { "right" } else { "WRONG" };
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        writeln!(
            out,
            "{name}: log-probabilities of {TOKENS} tokens differ by {max:.3} at most, {rms:.3} in root mean square: {verdict}"
        )?;
    }
    Ok(right)
}

/// Largest and root mean square difference of log-probabilities between a GPU and the processor.
fn model(gguf: &Gguf, backend: BackendKind, config: &Config) -> anyhow::Result<(f32, f32)> {
    let gpu = scores(gguf, backend, config)?;
    let cpu = scores(gguf, BackendKind::Cpu, config)?;
    ensure!(gpu.len() == cpu.len() && !gpu.is_empty(), "{} and {} scores", gpu.len(), cpu.len());
    let differences = || gpu.iter().zip(&cpu).map(|(a, b)| (a - b).abs());
    let max = differences().fold(0.0, |a: f32, b| if b > a || b.is_nan() { b } else { a });
    let squares: f32 = differences().map(|d| d * d).sum();
    Ok((max, (squares / gpu.len() as f32).sqrt()))
}

/// Log-probabilities of made-up text.
fn scores(gguf: &Gguf, backend: BackendKind, config: &Config) -> anyhow::Result<Vec<f32>> {
    let blocks = TOKENS.div_ceil(config.kv.block_tokens) + 1;
    let kv =
        KvOptions { size: KvSize::Blocks(blocks), context: None, sequences: u32::MAX, ..load::kv(config) };
    let options =
        RunnerOptions { backend, threads: load::threads(config), pin: false, isa: None, kv, lazy: false };
    let mut runner = load_runner(gguf, &options)?;
    let geometry = runner.geometry();
    let vocab = u64::from(geometry.vocab);
    let token = |i: u64| TokenId((i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33) as u32 % vocab as u32);
    let tokens: Vec<TokenId> = (0..u64::from(TOKENS)).map(token).collect();
    let targets: Vec<TokenId> = (1..=u64::from(TOKENS)).map(token).collect();
    let table = |kind: GroupKind| BlockTable {
        first: 0,
        blocks: (0..if kind == GroupKind::State { 1 } else { blocks - 1 }).map(BlockId).collect(),
    };
    let tables = geometry.groups.iter().map(|g| table(g.kind)).collect();
    let score = Some(Score { targets, top: 0 });
    let row = Row { seq: SeqId(0), start: 0, tokens, tables, sample: None, drafts: 0, score };
    runner.submit(Arc::new(StepInput { rows: vec![row], ..StepInput::default() }));
    let row = runner.wait()?.rows.pop().context("a row has a result")??;
    Ok(row.prompt_scores.iter().map(|s| s.logprob).collect())
}
