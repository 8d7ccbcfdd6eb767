//! `frugal bench`: the engine's runner alone, on random tokens.
//!
//! Sampling is greedy and counts; HTTP, templates, tokenizer, scheduler and ledger do not. Sequences grow from run to run, so
//! that each prompt is paid once: the depth differs by a few tokens between runs.

mod against;

use std::io::Write as _;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context as _;
use frugal_config::Config;
use frugal_config::cli::Bench;
use frugal_models::cpu::probe::{Probe, probe};
use frugal_models::memory::{KvOptions, KvSize};
use frugal_models::model_runner::BackendKind;
use frugal_models::runner::Runner;
use frugal_models::step::{
    BlockId, BlockTable, GroupKind, Row, Sample, SamplingParams, SeqId, StepInput, TokenId,
};
use serde_json::{Map, Value, json};

use crate::load;
use crate::random::SplitMix64;
use crate::terminal::{printable_line, table};

/// Ids below this are control tokens in most vocabularies.
const FIRST_TOKEN: u32 = 3;

/// Measures and prints.
pub(crate) fn run(config: &Config, bench: &Bench) -> anyhow::Result<()> {
    let text = match &bench.against {
        _ if bench.machine => alone(load::threads(config), bench.json)?,
        Some(command) => return against::run(config, bench, command),
        None if bench.json => line(config, bench, &measure(config, bench)?),
        None => text(&measure(config, bench)?),
    };
    print(&text)
}

fn print(text: &str) -> anyhow::Result<()> {
    Ok(std::io::stdout().write_all(text.as_bytes())?)
}

/// What one run of the bench gives.
struct Measured {
    model: String,
    device: Device,
    load_s: f64,
    figures: Vec<Figure>,
}

impl Measured {
    fn names(&self) -> Vec<&str> {
        self.figures.iter().map(|(name, _)| name.as_str()).collect()
    }
}

/// What computed.
enum Device {
    Threads(usize),
    /// By its name in the configuration.
    Gpu(String),
}

impl Device {
    fn new(backend: BackendKind, threads: usize) -> Self {
        match backend {
            BackendKind::Cuda { ordinal, .. } => Self::Gpu(format!("cuda:{ordinal}")),
            BackendKind::Metal { .. } => Self::Gpu("metal".to_owned()),
            _ => Self::Threads(threads),
        }
    }
}

impl std::fmt::Display for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Threads(threads) => write!(f, "{threads} threads"),
            Self::Gpu(name) => f.write_str(name),
        }
    }
}

/// Loads the model, measures, and lets go of it.
fn measure(config: &Config, bench: &Bench) -> anyhow::Result<Measured> {
    let path = load::file(config)?;
    let gguf = load::open(&path)?;
    let begin = Instant::now();
    let backend = load::backend(config);
    let runner = load::runner(config, backend, &path, &gguf, cache(config, bench), false)?;
    let load_s = begin.elapsed().as_secs_f64();
    let figures = Session::new(runner, config).measure(bench)?;
    let model = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let device = Device::new(backend, load::threads(config));
    Ok(Measured { model, device, load_s, figures })
}

/// The machine alone.
fn alone(threads: usize, json: bool) -> anyhow::Result<String> {
    let probe = probe(threads).context("cannot probe the machine")?;
    if json {
        return Ok(format!("{}\n", machine(threads, probe)));
    }
    let (additions, read) = (probe.additions / 1e9, probe.read / 1e9);
    Ok(format!(
        "{threads} threads together: {additions:.1} G 16-bit additions/s in registers, {read:.1} GB/s read from memory\n"
    ))
}

fn machine(threads: usize, probe: Probe) -> Value {
    let giga = |rate: f64| rounded(rate / 1e9);
    json!({ "threads": threads, "additions_g_s": giga(probe.additions), "read_gb_s": giga(probe.read) })
}

/// Just enough of a cache.
fn cache(config: &Config, bench: &Bench) -> KvOptions {
    let block = u64::from(config.kv.block_tokens);
    let blocks = |tokens: u64| tokens.div_ceil(block);
    let widest = bench.batches.iter().copied().max().unwrap_or(1);
    let needed = blocks(bench.prompt.into()).max(u64::from(widest) * blocks(grown(bench)));
    let size = KvSize::Blocks(u32::try_from(needed).unwrap_or(u32::MAX));
    KvOptions { size, context: None, sequences: u32::MAX, ..load::kv(config) }
}

/// Tokens of a decoding sequence after the last run.
fn grown(bench: &Bench) -> u64 {
    u64::from(bench.depth) + (u64::from(bench.runs) + 1) * u64::from(bench.decode)
}

/// A test's name, as peers call it, and its tokens per second.
type Figure = (String, f64);

fn line(config: &Config, bench: &Bench, measured: &Measured) -> String {
    let mut object = conditions(config, bench, measured);
    object.extend(measured.figures.iter().map(|(name, rate)| (name.clone(), json!(rounded(*rate)))));
    format!("{}\n", Value::Object(object))
}

/// What was measured and how: figures compare with those that have the same.
fn conditions(config: &Config, bench: &Bench, measured: &Measured) -> Map<String, Value> {
    let device = match &measured.device {
        Device::Gpu(name) => json!({ "device": name }),
        Device::Threads(threads) => json!({ "threads": threads, "isa": load::isa_name(config) }),
    };
    let Bench { prompt, decode, depth, batches, runs, .. } = bench;
    let engine = json!({ "engine": "frugal", "version": env!("CARGO_PKG_VERSION"), "model": measured.model });
    let asked = json!({
        "kv_dtype": config.kv.dtype, "step_tokens": config.scheduler.step_tokens,
        "prompt": prompt, "decode": decode, "depth": depth, "batches": batches, "runs": runs,
        "load_s": rounded(measured.load_s),
    });
    let objects = [engine, device, asked].into_iter();
    objects.flat_map(|object| object.as_object().cloned().unwrap_or_default()).collect()
}

fn text(measured: &Measured) -> String {
    let Measured { model, device, load_s, figures } = measured;
    let rows: Vec<_> = figures.iter().map(|(name, rate)| vec![name.clone(), format!("{rate:.2}")]).collect();
    let figures = table(&["test", "tokens/s"], &rows);
    format!("{}, {device}, loaded in {load_s:.2} s\n\n{figures}", printable_line(model))
}

pub(crate) fn rounded(rate: f64) -> f64 {
    (rate * 100.0).round() / 100.0
}

/// A sequence and its blocks.
struct Sequence {
    id: SeqId,
    computed: u32,
    tables: Vec<BlockTable>,
}

/// A runner, and what it takes to drive it without a scheduler.
struct Session {
    runner: Box<dyn Runner>,
    step_tokens: usize,
    greedy: Arc<SamplingParams>,
    random: SplitMix64,
    sequences: u64,
    /// First block that is not in use, in every group.
    free: u32,
}

impl Session {
    fn new(runner: Box<dyn Runner>, config: &Config) -> Self {
        let greedy = Arc::new(SamplingParams { temperature: 0.0, ..SamplingParams::default() });
        let step_tokens = config.scheduler.step_tokens as usize;
        Self { runner, step_tokens, greedy, random: SplitMix64(1), sequences: 0, free: 0 }
    }

    fn measure(&mut self, bench: &Bench) -> anyhow::Result<Vec<Figure>> {
        let longest = u64::from(self.runner.geometry().context_max);
        let asked = grown(bench).max(bench.prompt.into());
        anyhow::ensure!(asked <= longest, "{asked} tokens do not fit into the context of {longest}");
        let mut results = vec![(format!("pp{}", bench.prompt), self.prefill(bench)?)];
        for &batch in &bench.batches {
            results.push((format!("tg{batch}"), self.decode(bench, batch)?));
        }
        Ok(results)
    }

    /// Tokens per second of one prompt.
    fn prefill(&mut self, bench: &Bench) -> anyhow::Result<f64> {
        median_after_warm_up(bench.runs, || {
            self.free = 0;
            let mut sequence = self.sequence(bench.prompt.into());
            let tokens = self.tokens(bench.prompt);
            let begin = Instant::now();
            self.fill(&mut sequence, &tokens)?;
            Ok(f64::from(bench.prompt) / begin.elapsed().as_secs_f64())
        })
    }

    /// Tokens per second of `batch` sequences together.
    fn decode(&mut self, bench: &Bench, batch: u32) -> anyhow::Result<f64> {
        self.free = 0;
        let mut sequences = Vec::new();
        for _ in 0..batch {
            let mut sequence = self.sequence(grown(bench));
            let tokens = self.tokens(bench.depth);
            self.fill(&mut sequence, &tokens)?;
            sequences.push(sequence);
        }
        median_after_warm_up(bench.runs, || {
            let begin = Instant::now();
            for _ in 0..bench.decode {
                let tokens = self.tokens(batch);
                let rows = sequences.iter_mut().zip(&tokens).map(|(s, &t)| self.row(s, &[t], true)).collect();
                self.step(rows)?;
            }
            Ok(f64::from(batch * bench.decode) / begin.elapsed().as_secs_f64())
        })
    }

    /// Computes a prompt in steps of the configured size.
    fn fill(&mut self, sequence: &mut Sequence, tokens: &[TokenId]) -> anyhow::Result<()> {
        let mut chunks = tokens.chunks(self.step_tokens).peekable();
        while let Some(chunk) = chunks.next() {
            let row = self.row(sequence, chunk, chunks.peek().is_none());
            self.step(vec![row])?;
        }
        Ok(())
    }

    fn step(&mut self, rows: Vec<Row>) -> anyhow::Result<()> {
        self.runner.submit(Arc::new(StepInput { copies: Vec::new(), rows }));
        let output = self.runner.wait()?;
        output.rows.into_iter().try_for_each(|row| row.map(drop)).context("a row failed")
    }

    fn row(&self, sequence: &mut Sequence, tokens: &[TokenId], sample: bool) -> Row {
        let start = sequence.computed;
        sequence.computed += tokens.len() as u32;
        let sample = sample.then(|| Sample {
            params: self.greedy.clone(),
            seed: 0,
            choice: 0,
            history: Vec::new(),
            prompt_len: 0,
            forbid: Arc::new([]),
            constraint: None,
        });
        let tables = sequence.tables.clone();
        Row { seq: sequence.id, start, tokens: tokens.to_vec(), tables, sample, drafts: 0, score: None }
    }

    /// A sequence with blocks for `tokens` positions.
    fn sequence(&mut self, tokens: u64) -> Sequence {
        let geometry = self.runner.geometry();
        let paged = u32::try_from(tokens.div_ceil(geometry.block_tokens.into())).unwrap_or(u32::MAX);
        let tables = geometry.groups.iter().map(|group| {
            let count = if group.kind == GroupKind::State { 1 } else { paged };
            BlockTable {
                first: 0,
                blocks: (self.free..self.free.saturating_add(count)).map(BlockId).collect(),
            }
        });
        let tables = tables.collect();
        self.free = self.free.saturating_add(paged);
        self.sequences += 1;
        Sequence { id: SeqId(self.sequences), computed: 0, tables }
    }

    /// Random ids.
    fn tokens(&mut self, count: u32) -> Vec<TokenId> {
        let vocab = u64::from(self.runner.geometry().vocab);
        let first = u64::from(FIRST_TOKEN).min(vocab.saturating_sub(1));
        (0..count).map(|_| TokenId((first + self.random.below(vocab - first)) as u32)).collect()
    }
}

/// The median of `runs` figures; the first of `runs + 1` is not counted.
fn median_after_warm_up(runs: u32, mut run: impl FnMut() -> anyhow::Result<f64>) -> anyhow::Result<f64> {
    run()?;
    let rates = (0..runs).map(|_| run()).collect::<anyhow::Result<Vec<f64>>>()?;
    median(rates).context("at least one run")
}

/// None of nothing.
pub(crate) fn median(mut rates: Vec<f64>) -> Option<f64> {
    rates.sort_by(f64::total_cmp);
    let middle = rates.len() / 2;
    let upper = *rates.get(middle)?;
    Some(if rates.len() % 2 == 1 { upper } else { (rates.get(middle - 1)? + upper) / 2.0 })
}

#[cfg(test)]
mod tests {
    use frugal_config::Layers;
    use frugal_models::quant::Isa;

    use super::*;

    #[test]
    fn figures_come_with_what_they_were_measured_on() {
        let config = Config::resolve(&Layers::new()).unwrap();
        let batches = vec![1, 8];
        let bench = Bench {
            json: true,
            machine: false,
            against: None,
            rounds: 5,
            prompt: 512,
            decode: 32,
            depth: 128,
            batches,
            runs: 3,
        };
        let on = |device| {
            let measured =
                Measured { model: "m.gguf".to_owned(), device, load_s: 1.234, figures: Vec::new() };
            conditions(&config, &bench, &measured)
        };
        let (cpu, gpu) = (on(Device::Threads(2)), on(Device::Gpu("cuda:0".to_owned())));
        assert_eq!(
            (&cpu["threads"], &cpu["isa"], cpu.get("device")),
            (&json!(2), &json!(Isa::detect().name()), None)
        );
        assert_eq!((gpu.get("threads"), gpu.get("isa"), &gpu["device"]), (None, None, &json!("cuda:0")));
        for on in [cpu, gpu] {
            let asked = ["load_s", "batches", "runs", "kv_dtype"].map(|name| on[name].clone());
            assert_eq!(Value::from_iter(asked), json!([1.23, [1, 8], 3, "f16"]));
        }
    }
}
