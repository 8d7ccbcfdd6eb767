//! Vocabulary of one engine step: the plain data that crosses from the scheduler to a runner and back.
//!
//! Absent on purpose: clocks, tensors, text. Everything here can be printed, compared and replayed; what a grammar allows is a
//! promise, which whoever chooses a token waits for.

use std::sync::Arc;

use crate::mask::{Next, PendingNext};

/// A sequence: one choice of one request. Never reused within a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SeqId(pub u64);

/// An index into the model's vocabulary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TokenId(pub u32);

/// A block of one cache group's pool. What it holds is known to `KvStore`, whose it is to the scheduler.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockId(pub u32);

/// How a cache group keeps a sequence's past.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupKind {
    /// Every position stays: block `i` of a table holds positions `i*block_tokens ..`.
    Full,
    /// A query sees itself and the `window - 1` positions before it; blocks wholly outside are freed.
    Window {
        /// Positions visible to a query, itself included; at least 1.
        window: u32,
    },
    /// One block holds the state after all computed positions, whatever their number (recurrent layers). A row from position
    /// 0 begins a new state, whatever its block held.
    State,
}

/// One group of layers that share a block table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheGroup {
    /// How long what is written stays.
    pub kind: GroupKind,
    /// Bytes of one block over all layers of the group.
    pub block_bytes: u64,
    /// Blocks in the pool.
    pub blocks: u32,
}

/// What the scheduler needs to know of a model and its cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Tokens in the vocabulary.
    pub vocab: u32,
    /// Longest sequence the model and the pool can hold, prompt and output together.
    pub context_max: u32,
    /// Positions per block, the same in every paged group.
    pub block_tokens: u32,
    /// The cache groups, in the order of `Row::tables`.
    pub groups: Vec<CacheGroup>,
    /// Identifies weights, tokenizer and cache format: the root of every prefix hash.
    pub digest: [u8; 32],
}

/// How to choose a token. Values are validated by whoever builds it.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// 0 is greedy (the smallest id among equals).
    pub temperature: f32,
    /// Keep the k most likely; 0 keeps all.
    pub top_k: u32,
    /// Keep the smallest set of most likely tokens whose probability reaches this; 1 keeps all.
    pub top_p: f32,
    /// Drop tokens less likely than this times the likeliest; 0 keeps all.
    pub min_p: f32,
    /// Divides positive and multiplies negative logits of tokens in prompt or output; 1 is off (CTRL, vLLM).
    pub repetition_penalty: f32,
    /// Subtracted once from the logit of every token in the output; 0 is off (OpenAI).
    pub presence_penalty: f32,
    /// Subtracted from a token's logit per occurrence in the output; 0 is off (OpenAI).
    pub frequency_penalty: f32,
    /// Added to logits before everything else.
    pub logit_bias: Vec<(TokenId, f32)>,
    /// Report the chosen token's log-probability and this many alternatives.
    pub logprobs: Option<u32>,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            logprobs: None,
        }
    }
}

impl SamplingParams {
    /// Whether choosing needs the tokens so far.
    pub fn needs_history(&self) -> bool {
        self.repetition_penalty != 1.0 || self.presence_penalty != 0.0 || self.frequency_penalty != 0.0
    }
}

/// Ask for a token after a row's last token, or for several ([`Row::drafts`]).
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// How to choose.
    pub params: Arc<SamplingParams>,
    /// The request's seed: with `choice` and the position it keys the random numbers.
    pub seed: u64,
    /// Which of the request's `n` choices.
    pub choice: u32,
    /// Prompt and output so far, including this row's tokens, drafts too; empty unless `params.needs_history()`.
    pub history: Vec<TokenId>,
    /// How many of `history` are the prompt's.
    pub prompt_len: u32,
    /// Tokens that may not be chosen here (end tokens before `min_tokens`).
    pub forbid: Arc<[TokenId]>,
    /// The grammar that the output follows, if it follows one.
    pub constraint: Option<Constrained>,
}

/// What a grammar lets be chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Constrained {
    /// What may follow the tokens so far, and then what may follow each of the row's drafts. Where that is nothing, no token is chosen.
    pub next: Vec<PendingNext>,
    /// Tokens that may be chosen, too, where the output may end.
    pub ends: Arc<[TokenId]>,
}

impl Constrained {
    /// What may follow, waited for, where so many tokens of the row have been chosen.
    ///
    /// # Errors
    /// What [`PendingNext::wait`] says, or that it was not given.
    pub fn nth(&self, chosen: usize) -> Result<Arc<Next>, RowFault> {
        self.next.get(chosen).ok_or_else(|| RowFault::Other("a token mask is missing".to_owned()))?.wait()
    }
}

/// Ask for log-probabilities of known tokens (`echo` with `logprobs`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Score {
    /// `targets[i]` is the token that follows the row's token `i`; at most as many as the row has tokens.
    pub targets: Vec<TokenId>,
    /// Alternatives reported at each position.
    pub top: u32,
}

/// The blocks of one sequence in one cache group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlockTable {
    /// Index within the sequence of `blocks[0]`: positions before `first * block_tokens` are gone (windows).
    pub first: u32,
    /// In position order; a `State` group has exactly one.
    pub blocks: Vec<BlockId>,
}

/// One sequence's part of a step: a chunk of consecutive tokens, be it a prompt's or the newest one.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// Whose row.
    pub seq: SeqId,
    /// Position of `tokens[0]`; all positions before it are in the cache.
    pub start: u32,
    /// At least one.
    pub tokens: Vec<TokenId>,
    /// One table per cache group, covering `start + tokens.len()` positions (less what a window dropped).
    pub tables: Vec<BlockTable>,
    /// Choose a token after the last one.
    pub sample: Option<Sample>,
    /// How many of `tokens`, the last ones, are guessed (speculative decoding). A token is chosen after the last that is not, and after each
    /// guess that is what was chosen before it. Fewer than `tokens`; 0 for rows that do not sample or are
    /// scored.
    pub drafts: u32,
    /// Report log-probabilities of known tokens.
    pub score: Option<Score>,
}

impl Row {
    /// The index of the last token that is not a draft: where the first token is chosen.
    pub fn last_given(&self) -> usize {
        self.tokens.len().saturating_sub(1 + self.drafts as usize)
    }

    /// Indices of the tokens after which logits are wanted, ascending: those that are scored, and those after which a token may be
    /// chosen.
    pub fn outputs(&self) -> impl Iterator<Item = usize> + use<> {
        let scored = self.score.as_ref().map_or(0, |s| s.targets.len());
        let sampled = if self.sample.is_some() { self.last_given() } else { self.tokens.len() };
        (0..scored).chain(sampled.max(scored)..self.tokens.len())
    }
}

/// Copy a block's bytes within a group, before any row runs (checkpoints of `State` groups).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockCopy {
    /// Index into `Geometry::groups`.
    pub group: u32,
    /// Source.
    pub from: BlockId,
    /// Destination.
    pub to: BlockId,
}

/// All that a runner is told.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepInput {
    /// Done first, in order.
    pub copies: Vec<BlockCopy>,
    /// No two rows of the same sequence.
    pub rows: Vec<Row>,
}

impl StepInput {
    /// Tokens in all rows.
    pub fn tokens(&self) -> usize {
        self.rows.iter().map(|r| r.tokens.len()).sum()
    }
}

/// A token's log-probability (natural, of the raw logits) and its best rivals.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenScore {
    /// The token asked about.
    pub token: TokenId,
    /// log softmax of the raw logits at `token`.
    pub logprob: f32,
    /// 1 for the most likely token, ties by id.
    pub rank: u32,
    /// The most likely tokens, best first, ties by id; as many as asked for.
    pub top: Vec<(TokenId, f32)>,
}

/// What one row produced.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RowOutput {
    /// The chosen tokens: none if none was asked for or the grammar lets none follow; else one, and one more for each draft that
    /// was right.
    pub tokens: Vec<TokenId>,
    /// Their scores, if `params.logprobs` asked for them.
    pub scores: Vec<TokenScore>,
    /// One entry per `Score::targets`.
    pub prompt_scores: Vec<TokenScore>,
}

/// A fault that concerns one row; the others are good.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RowFault {
    /// The model produced NaN or no finite logit.
    #[error("the model produced logits that are not numbers")]
    NotANumber,
    /// Bias, penalties and forbidden tokens left nothing to choose.
    #[error("no token may be chosen")]
    NothingToChoose,
    /// The grammar that the output follows could not be followed any further.
    #[error("the output's grammar cannot be followed: {0}")]
    Grammar(String),
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

/// A fault of the whole step: no row's result counts, and the cache blocks written are not to be trusted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("step failed: {0}")]
pub struct StepFault(pub String);

/// Work that one row caused, the basis of its share of the step's cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RowWork {
    /// Its share of the expert weights streamed: each expert's bytes divided by the rows routed to it, rounded down.
    pub expert_bytes: u64,
    /// Multiply-adds of its tokens, attention included.
    pub macs: u64,
    /// Bytes of keys and values it read.
    pub kv_bytes: u64,
}

/// Work of one step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StepStats {
    /// Bytes of weights every row needs (attention, norms, router, dense and shared feed-forward, head), once a step.
    pub dense_bytes: u64,
    /// Bytes of the experts that some row was routed to, once a step.
    pub expert_bytes: u64,
    /// Distinct (layer, expert) pairs streamed.
    pub experts_used: u64,
    /// (layer, expert, token) assignments.
    pub expert_tokens: u64,
    /// Of the step's time, in nanoseconds, what made weights ready that later steps find so: no row's doing.
    pub startup_ns: u64,
    /// In the order of `StepInput::rows`.
    pub rows: Vec<RowWork>,
}

/// All that a runner tells.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepOutput {
    /// In the order of `StepInput::rows`.
    pub rows: Vec<Result<RowOutput, RowFault>>,
    /// What it took.
    pub stats: StepStats,
}

/// The bytes that each token stands for in text, shared by stop matching and detokenisation.
///
/// Control tokens stand for nothing. A token's bytes do not depend on its neighbours (byte-level BPE).
#[derive(Clone, Debug, Default)]
pub struct TokenBytes {
    bytes: Vec<u8>,
    ends: Vec<u32>,
}

impl TokenBytes {
    /// Appends the next token's bytes.
    ///
    /// # Panics
    /// If all tokens together pass 4 GiB.
    pub fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        self.ends.push(u32::try_from(self.bytes.len()).expect("a vocabulary is far smaller than 4 GiB"));
    }

    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is no token.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The bytes of `token`; empty if out of range.
    pub fn get(&self, token: TokenId) -> &[u8] {
        let i = token.0 as usize;
        let start = if i == 0 { 0 } else { self.ends.get(i - 1).copied().unwrap_or(0) as usize };
        let end = self.ends.get(i).copied().unwrap_or(0) as usize;
        self.bytes.get(start..end).unwrap_or(&[])
    }
}

impl<B: AsRef<[u8]>> FromIterator<B> for TokenBytes {
    fn from_iter<I: IntoIterator<Item = B>>(tokens: I) -> Self {
        let mut all = Self::default();
        for t in tokens {
            all.push(t.as_ref());
        }
        all
    }
}
