//! Limits and policies, and who asks: plain data, known before the model is loaded.

use std::time::Duration;

use sha2::{Digest as _, Sha256};

pub use crate::responses::store::StoreLimits;

/// How requests are judged and answered.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Names clients may give as `model`; the first is the one they are told. At least one.
    pub models: Vec<String>,
    /// Seconds since 1970 at which the model appeared here.
    pub created: u64,
    /// What a single request may ask for.
    pub limits: Limits,
    /// What happens to fields that are unknown or not honoured.
    pub unknown_fields: UnknownFields,
    /// Label of money in `usage`; None without a price, and then there is no money in `usage`.
    pub currency: Option<String>,
    /// A stream that has nothing to say sends a comment this often, so that proxies do not close it.
    pub keep_alive: Duration,
    /// Responses that are kept.
    pub responses: StoreLimits,
}

/// What a single request may ask for.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Bytes of a head: the line and all headers.
    pub head_bytes: usize,
    /// Bytes of a body.
    pub body_bytes: usize,
    /// Time for a body to arrive.
    pub body_time: Duration,
    /// From submission to the end; None for no limit.
    pub request_time: Option<Duration>,
    /// Choices per prompt.
    pub n: u32,
    /// Prompts in one completion request.
    pub prompts: usize,
    /// Bytes of a prompt's text, after the chat template.
    pub prompt_bytes: usize,
    /// Stop strings.
    pub stop: usize,
    /// Bytes of one stop string.
    pub stop_bytes: usize,
    /// Entries of `logit_bias`.
    pub logit_bias: usize,
    /// Alternatives per token, for `logprobs` and `top_logprobs`.
    pub logprobs: u32,
    /// Output tokens of all choices, and prompt tokens if they are scored, times (1 + alternatives): bounds the
    /// memory of a response that its client is slow to read.
    pub response_entries: u64,
    /// Threads that parse, render and tokenize ordinary requests; one more does the large ones.
    pub text_threads: usize,
    /// Requests that may wait for such a thread.
    pub text_queue: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            head_bytes: 32 << 10,
            body_bytes: 8 << 20,
            body_time: Duration::from_secs(30),
            request_time: Some(Duration::from_secs(600)),
            n: 16,
            prompts: 64,
            prompt_bytes: 2 << 20,
            stop: 16,
            stop_bytes: 1 << 10,
            logit_bias: 1024,
            logprobs: 100,
            response_entries: 1 << 22,
            text_threads: 1,
            text_queue: 256,
        }
    }
}

/// What happens to a request's fields that are unknown or not honoured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UnknownFields {
    /// A 400 that names the field.
    #[default]
    Refuse,
    /// As if it were not there.
    Ignore,
}

/// Who asks, as authentication found it: a request extension. Absent: everyone is the same caller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Caller {
    /// Whose budget of queued requests this counts against; 0 for none.
    pub tenant: u64,
    /// Prefixes are shared within a domain only.
    pub domain: [u8; 32],
}

impl Caller {
    /// Whoever has the key of this name.
    pub fn named(name: &str) -> Self {
        let domain = Sha256::new().chain_update(b"key\0").chain_update(name).finalize();
        let (first, _) = domain.split_first_chunk().expect("32 bytes");
        Self { tenant: u64::from_be_bytes(*first).max(1), domain: domain.into() }
    }
}
