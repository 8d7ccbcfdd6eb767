//! A minimal scheduler: hands out cache blocks in no order and runs what it is told.

use std::collections::VecDeque;
use std::sync::Arc;

use anyhow::Result;
use frugal_models::gguf::Gguf;
use frugal_models::kv::PageType;
use frugal_models::memory::{KvOptions, KvSize};
use frugal_models::model_runner::{BackendKind, RunnerOptions, load_runner};
use frugal_models::runner::Runner;
use frugal_models::step::{
    BlockId, BlockTable, Geometry, GroupKind, Row, RowOutput, Sample, SamplingParams, SeqId, StepInput,
    StepStats, TokenId,
};

/// A runner and the blocks it has left, by cache group.
pub(crate) struct Driver {
    runner: Box<dyn Runner>,
    free: Vec<VecDeque<BlockId>>,
    next: u64,
    /// Of the last step.
    pub(crate) stats: StepStats,
}

/// A sequence: how it samples, its tokens, and how many are in the cache.
pub(crate) struct Sequence {
    id: SeqId,
    sample: Sample,
    prompt_len: usize,
    pub(crate) tokens: Vec<TokenId>,
    computed: usize,
    tables: Vec<BlockTable>,
}

impl Sequence {
    pub(crate) fn output(&self) -> &[TokenId] {
        &self.tokens[self.prompt_len..]
    }

    /// Tokens that are not computed.
    pub(crate) fn left(&self) -> usize {
        self.tokens.len() - self.computed
    }

    /// Forgets what was chosen, and that so many of the prompt's last tokens were computed; all of a shorter prompt.
    pub(crate) fn rewind(&mut self, count: usize) {
        self.tokens.truncate(self.prompt_len);
        self.computed = self.prompt_len.saturating_sub(count);
    }
}

/// Greedy, with the log-probabilities of so many tokens.
pub(crate) fn greedy(logprobs: u32) -> SamplingParams {
    SamplingParams { temperature: 0.0, logprobs: Some(logprobs), ..SamplingParams::default() }
}

/// A cache of 16 positions a block for as many sequences as tests run together.
pub(crate) fn kv(page: PageType, size: KvSize) -> KvOptions {
    KvOptions { block_tokens: 16, page, size, context: None, sequences: 8, step_tokens: 512 }
}

impl Driver {
    pub(crate) fn new(gguf: &Gguf, backend: BackendKind, page: PageType, blocks: u32) -> Result<Self> {
        let kv = kv(page, KvSize::Blocks(blocks));
        Self::with(gguf, &RunnerOptions { backend, threads: 2, pin: false, isa: None, kv, lazy: false })
    }

    pub(crate) fn with(gguf: &Gguf, options: &RunnerOptions) -> Result<Self> {
        let runner = load_runner(gguf, options)?;
        let free = runner.geometry().groups.iter().map(|g| shuffled(g.blocks)).collect();
        Ok(Self { free, runner, next: 0, stats: StepStats::default() })
    }

    pub(crate) fn vocab(&self) -> u32 {
        self.runner.geometry().vocab
    }

    pub(crate) fn sequence(&mut self, prompt: &[u32], params: SamplingParams, seed: u64) -> Sequence {
        self.next += 1;
        let sample = Sample {
            params: Arc::new(params),
            seed,
            choice: 0,
            history: Vec::new(),
            prompt_len: prompt.len() as u32,
            forbid: Arc::from([]),
            constraint: None,
        };
        let tokens: Vec<TokenId> = prompt.iter().map(|&t| TokenId(t)).collect();
        let (id, prompt_len) = (SeqId(self.next), tokens.len());
        let tables = vec![BlockTable::default(); self.free.len()];
        Sequence { id, sample, prompt_len, tokens, computed: 0, tables }
    }

    /// Gives a sequence's blocks back; the next to take them gets them in another order.
    pub(crate) fn release(&mut self, sequence: Sequence) {
        for (free, table) in self.free.iter_mut().zip(sequence.tables) {
            free.extend(table.blocks.into_iter().rev());
        }
    }

    /// One step: each sequence computes up to so many of its tokens, and samples if none are left.
    pub(crate) fn step(&mut self, parts: &mut [(&mut Sequence, usize)]) -> Result<Vec<RowOutput>> {
        let rows = parts.iter_mut().map(|(sequence, chunk)| self.row(sequence, *chunk)).collect();
        self.runner.submit(Arc::new(StepInput { copies: Vec::new(), rows }));
        let output = self.runner.wait()?;
        self.stats = output.stats;
        let rows = output.rows.into_iter().collect::<Result<Vec<_>, _>>()?;
        for ((sequence, chunk), row) in parts.iter_mut().zip(&rows) {
            sequence.computed = sequence.tokens.len().min(sequence.computed + *chunk);
            sequence.tokens.extend(&row.tokens);
        }
        Ok(rows)
    }

    /// Computes a sequence's last token and guesses behind it; what was chosen, the guesses that were right among it.
    pub(crate) fn guess(&mut self, sequence: &mut Sequence, guesses: &[TokenId]) -> Result<Vec<TokenId>> {
        let known = sequence.tokens.len();
        sequence.tokens.extend(guesses);
        let row = Row { drafts: guesses.len() as u32, ..self.row(sequence, guesses.len() + 1) };
        self.runner.submit(Arc::new(StepInput { copies: Vec::new(), rows: vec![row] }));
        let chosen = self.runner.wait()?.rows.swap_remove(0)?.tokens;
        sequence.tokens.truncate(known);
        sequence.tokens.extend(&chosen);
        sequence.computed = sequence.tokens.len() - 1;
        Ok(chosen)
    }

    fn row(&mut self, sequence: &mut Sequence, chunk: usize) -> Row {
        let end = sequence.tokens.len().min(sequence.computed + chunk);
        let Geometry { block_tokens, groups, .. } = self.runner.geometry();
        let block_tokens = *block_tokens as usize;
        for ((group, free), table) in groups.iter().zip(&mut self.free).zip(&mut sequence.tables) {
            // What no query will see any more is given to others at once.
            if let GroupKind::Window { window } = group.kind {
                let first = (sequence.computed + 1).saturating_sub(window as usize) / block_tokens;
                let gone = (first - table.first as usize).min(table.blocks.len());
                free.extend(table.blocks.drain(..gone));
                table.first = first as u32;
            }
            while (table.first as usize + table.blocks.len()) * block_tokens < end {
                table.blocks.push(free.pop_front().expect("tests bring enough blocks"));
            }
        }
        let samples = end == sequence.tokens.len();
        let sample = samples.then(|| {
            let history = match sequence.sample.params.needs_history() {
                true => sequence.tokens.clone(),
                false => Vec::new(),
            };
            Sample { history, ..sequence.sample.clone() }
        });
        Row {
            seq: sequence.id,
            start: sequence.computed as u32,
            tokens: sequence.tokens[sequence.computed..end].to_vec(),
            tables: sequence.tables.clone(),
            sample,
            drafts: 0,
            score: None,
        }
    }

    /// Computes what is left of the prompt in chunks, one sequence alone; the output of the last.
    pub(crate) fn prefill(&mut self, sequence: &mut Sequence, chunk: usize) -> Result<RowOutput> {
        let len = sequence.tokens.len();
        loop {
            let output = self.step(&mut [(&mut *sequence, chunk)])?.swap_remove(0);
            if sequence.computed == len {
                return Ok(output);
            }
        }
    }
}

/// All blocks of a pool, neighbours in the order never neighbours in memory.
fn shuffled(blocks: u32) -> VecDeque<BlockId> {
    let stride = (blocks / 2..).find(|s| gcd(*s, blocks) == 1).unwrap_or(1);
    let block = |i: u32| BlockId((u64::from(i) * u64::from(stride) % u64::from(blocks)) as u32);
    (0..blocks).map(block).collect()
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// All log-probabilities in the order of ids.
pub(crate) fn by_id(output: &RowOutput, vocab: u32) -> Vec<f32> {
    let mut all = vec![f32::NAN; vocab as usize];
    for &(token, logprob) in output.scores.iter().flat_map(|s| &s.top) {
        all[token.0 as usize] = logprob;
    }
    all
}
