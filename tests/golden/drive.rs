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
    BlockId, BlockTable, Row, RowOutput, Sample, SamplingParams, SeqId, StepInput, StepStats, TokenId,
};

/// A runner and the blocks it has left.
pub(crate) struct Driver {
    runner: Box<dyn Runner>,
    free: VecDeque<BlockId>,
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
    table: BlockTable,
}

impl Sequence {
    pub(crate) fn output(&self) -> &[TokenId] {
        &self.tokens[self.prompt_len..]
    }
}

/// Greedy, with the log-probabilities of so many tokens.
pub(crate) fn greedy(logprobs: u32) -> SamplingParams {
    SamplingParams { temperature: 0.0, logprobs: Some(logprobs), ..SamplingParams::default() }
}

impl Driver {
    pub(crate) fn new(gguf: &Gguf, backend: BackendKind, page: PageType, blocks: u32) -> Result<Self> {
        let kv = KvOptions { block_tokens: 16, page, size: KvSize::Blocks(blocks), context: None };
        Self::with(gguf, &RunnerOptions { backend, threads: 2, pin: false, isa: None, kv })
    }

    pub(crate) fn with(gguf: &Gguf, options: &RunnerOptions) -> Result<Self> {
        let runner = load_runner(gguf, options)?;
        let blocks = runner.geometry().groups[0].blocks;
        // Neighbours in a table are never neighbours in memory.
        let stride = (blocks / 2..).find(|s| gcd(*s, blocks) == 1).unwrap_or(1);
        let free =
            (0..blocks).map(|i| BlockId((u64::from(i) * u64::from(stride) % u64::from(blocks)) as u32));
        Ok(Self { free: free.collect(), runner, next: 0, stats: StepStats::default() })
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
        };
        let tokens: Vec<TokenId> = prompt.iter().map(|&t| TokenId(t)).collect();
        let (id, prompt_len, table) = (SeqId(self.next), tokens.len(), BlockTable::default());
        Sequence { id, sample, prompt_len, tokens, computed: 0, table }
    }

    /// Gives a sequence's blocks back; the next to take them gets them in another order.
    pub(crate) fn release(&mut self, sequence: Sequence) {
        self.free.extend(sequence.table.blocks.into_iter().rev());
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
            sequence.tokens.extend(row.token);
        }
        Ok(rows)
    }

    fn row(&mut self, sequence: &mut Sequence, chunk: usize) -> Row {
        let end = sequence.tokens.len().min(sequence.computed + chunk);
        let block_tokens = self.runner.geometry().block_tokens as usize;
        while sequence.table.blocks.len() * block_tokens < end {
            sequence.table.blocks.push(self.free.pop_front().expect("tests bring enough blocks"));
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
            tables: vec![sequence.table.clone()],
            sample,
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

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// All log-probabilities in the order of ids.
pub(crate) fn by_id(output: &RowOutput, vocab: u32) -> Vec<f32> {
    let mut all = vec![f32::NAN; vocab as usize];
    for &(token, logprob) in output.score.iter().flat_map(|s| &s.top) {
        all[token.0 as usize] = logprob;
    }
    all
}
