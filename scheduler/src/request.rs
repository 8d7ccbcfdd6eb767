//! What the front end asks and what it is told: plain data across the engine's thread boundary.

use std::sync::Arc;

use frugal_models::mask::Grammar;
use frugal_models::step::{SamplingParams, TokenId, TokenScore};

use crate::snapshot::Amount;

/// Nanoseconds since the engine started. Passed in, never read from the OS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tick(pub u64);

/// A request. Ids count up from 1 within a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// An admitted request: every value has been validated by the front end.
#[derive(Clone, Debug)]
pub struct Request {
    /// At least one token, below the geometry's `context_max`.
    pub prompt: Arc<[TokenId]>,
    /// How tokens are chosen.
    pub sampling: Arc<SamplingParams>,
    /// Keys the random numbers, with choice and position.
    pub seed: u64,
    /// Independent continuations of the prompt; at least 1.
    pub n: u32,
    /// Output tokens per choice; 0 only with `prompt_logprobs` (a prompt is only scored).
    pub max_tokens: u32,
    /// End tokens may not be chosen, nor stop strings end a choice, before this many output tokens.
    pub min_tokens: u32,
    /// End a choice when chosen; not part of its text. Those of the model (none with `ignore_eos`) and of the client.
    pub end_tokens: Arc<[TokenId]>,
    /// End a choice when they appear in its text; never empty strings. Text from the match on is not output.
    pub stop: Arc<[String]>,
    /// What ended a choice is part of its text all the same: the stop string, or the end token if it stands for text.
    pub include_stop: bool,
    /// What each choice's output must follow. Where the grammar is complete the choice ends, whatever `min_tokens` says; end
    /// tokens are chosen only where it may end.
    pub grammar: Option<Arc<dyn Grammar>>,
    /// What the output may turn out to be, for speculative decoding; empty if the client does not say. No token depends on it.
    pub prediction: Arc<[TokenId]>,
    /// Report log-probabilities of the prompt's tokens from the second on, with so many alternatives.
    /// Such a request does not read the prefix cache.
    pub prompt_logprobs: Option<u32>,
    /// Requests share cached prefixes only within a domain (API key and `cache_salt`).
    pub cache_domain: [u8; 32],
    /// Ends with [`FinishReason::Timeout`] at this tick.
    pub deadline: Option<Tick>,
    /// Whose budget of queued requests this counts against; 0 for none.
    pub tenant: u64,
}

/// Why a choice ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FinishReason {
    /// An end token was chosen.
    EndToken(TokenId),
    /// The output's grammar is complete: nothing can follow.
    Complete,
    /// A stop string appeared: `Request::stop[index]`.
    StopString(u32),
    /// `max_tokens` or the context's end.
    Length,
    /// The client cancelled or went away.
    Cancelled,
    /// The deadline passed.
    Timeout,
    /// The runner failed, or this sequence did.
    Fault,
    /// Its grammar cannot be followed, or what was asked leaves no token to choose: it would end so again.
    Impossible,
    /// The server is stopping and its drain deadline has passed.
    Shutdown,
}

impl FinishReason {
    /// Whether the choice is what was asked for: nobody gave it up, and nothing failed.
    pub(crate) fn is_answer(self) -> bool {
        matches!(self, Self::EndToken(_) | Self::Complete | Self::StopString(_) | Self::Length)
    }
}

/// What happens to a request, in order. The last is always [`Event::Done`], exactly once (I6).
#[derive(Clone, Debug)]
pub enum Event {
    /// Log-probabilities of prompt tokens `first ..`; sent in order while the prompt is computed.
    PromptScores {
        /// Index in the prompt of `scores[0]`; the first token has none, so this is at least 1.
        first: u32,
        /// One per token.
        scores: Vec<TokenScore>,
    },
    /// A choice's next token. End tokens are not sent (a finish is), unless they are part of the text
    /// ([`Request::include_stop`]) or have a score.
    Token {
        /// Which choice, from 0.
        choice: u32,
        /// The token.
        token: TokenId,
        /// If log-probabilities were asked for.
        score: Option<TokenScore>,
        /// Bytes of this choice's text, from its beginning, that no stop string can take back any more.
        release: u32,
    },
    /// A choice ended. `text_len` bytes of its text count: all, or up to the stop string (or up to its end).
    Finish {
        /// Which choice.
        choice: u32,
        /// Why.
        reason: FinishReason,
        /// Bytes of text, from the beginning.
        text_len: u32,
    },
    /// All choices ended; the request is gone from the engine. (If the engine itself broke down, choices may be left without a
    /// finish; the report names the fault.)
    Done(Box<Report>),
}

/// A request's account.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// Tokens of the prompt, counted once.
    pub prompt_tokens: u32,
    /// Of these, taken from the prefix cache when the request was first scheduled.
    pub cached_tokens: u32,
    /// Output tokens of all choices, end tokens included.
    pub completion_tokens: u32,
    /// Whether the request says what may follow.
    pub predicted: bool,
    /// Output tokens that were computed as drafts and are right.
    pub accepted_tokens: u32,
    /// Draft tokens that were computed and are wrong.
    pub rejected_tokens: u32,
    /// What it used; zero if any choice ended in a fault, which is the house's.
    pub cost: RequestCost,
    /// Nanoseconds from submission to the first planned step; None if never scheduled.
    pub queued_ns: Option<u64>,
    /// Nanoseconds from submission to the first token.
    pub first_token_ns: Option<u64>,
    /// Nanoseconds from submission to the end.
    pub total_ns: u64,
    /// What went wrong, if something did: for the log and the error body.
    pub fault: Option<String>,
}

/// What a request used of the machine; the rest is the house's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestCost {
    /// Nanoseconds of machine time in prefill.
    pub prefill_ns: u64,
    /// Nanoseconds of machine time in decode.
    pub decode_ns: u64,
    /// Money in pico-units for prefill; None without a price.
    pub prefill: Option<u128>,
    /// Money in pico-units for decode; None without a price.
    pub decode: Option<u128>,
    /// Pico-units that prefix hits saved, estimated at the coefficients of the moment; None without a price.
    pub saved: Option<u128>,
    /// Nanoseconds that prefix hits saved, estimated likewise.
    pub saved_ns: u64,
    /// Picojoules for prefill; 0 where energy is neither measured nor configured.
    pub prefill_energy: u128,
    /// Picojoules for decode; likewise.
    pub decode_energy: u128,
}

impl RequestCost {
    /// What the account `prefill` holds of it.
    pub fn prefill(&self) -> Amount {
        Amount { ns: self.prefill_ns, pico: self.prefill.unwrap_or(0), energy: self.prefill_energy }
    }

    /// What the account `decode` holds of it.
    pub fn decode(&self) -> Amount {
        Amount { ns: self.decode_ns, pico: self.decode.unwrap_or(0), energy: self.decode_energy }
    }
}

/// Why a request was not taken. Nothing was counted, nothing will be told.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// The queue holds as many requests or tokens as it may.
    #[error("the queue is full")]
    QueueFull {
        /// A guess, from the queue's length and the rate of the last steps.
        retry_after_s: u32,
    },
    /// This tenant has as many requests as it may.
    #[error("too many requests of this key are in progress")]
    TenantLimit,
    /// The request can never run: prompt plus one token exceed context or pool.
    #[error("the request needs {needed} tokens of context, {available} is the most")]
    TooLong {
        /// Prompt and at least one output token.
        needed: u32,
        /// What the geometry allows.
        available: u32,
    },
    /// The engine is draining or gone.
    #[error("the server is shutting down")]
    ShuttingDown,
}

#[cfg(test)]
pub(crate) fn test_request(prompt: u32) -> Request {
    Request {
        prompt: (0..prompt).map(TokenId).collect(),
        sampling: Arc::default(),
        seed: 0,
        n: 1,
        max_tokens: 8,
        min_tokens: 0,
        end_tokens: Arc::default(),
        stop: Arc::default(),
        include_stop: false,
        grammar: None,
        prediction: Arc::default(),
        prompt_logprobs: None,
        cache_domain: [0; 32],
        deadline: None,
        tenant: 0,
    }
}
