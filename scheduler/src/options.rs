//! What the engine is told once: limits, prices, start values. Validated by whoever builds it.

use std::sync::Arc;
use std::time::Duration;

use frugal_models::step::TokenBytes;

/// Limits and policies of an engine.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Sequences with blocks at a time; at least 1. No more than `step_tokens` are ever run.
    pub max_seqs: u32,
    /// Tokens in one step; at least 1.
    pub step_tokens: u32,
    /// Requests that may wait for their first step.
    pub queue_requests_max: u32,
    /// Prompt tokens that may wait, times `n`; a single request may exceed it when the queue is empty.
    pub queue_tokens_max: u64,
    /// Requests in progress of one tenant; None for no limit. Tenant 0 is not limited.
    pub tenant_requests_max: Option<u32>,
    /// Share cached prefixes between requests of a domain. The choices of one request always share.
    pub prefix_cache: bool,
    /// Bounds prompt chunks such that a step with decode rows is expected to take no longer; None for no bound.
    pub max_stall: Option<Duration>,
    /// Prompt tokens per step that bounds in time leave in any case; at least 1.
    pub chunk_min: u32,
    /// Most draft tokens of a sequence in a step; 0 for no speculation. With a runner whose results are not the same bits in every batch a
    /// draft may, as any other row of its step, now and then change a token.
    pub draft_tokens: u32,
    /// What a second costs.
    pub prices: Prices,
    /// Start values of the fit.
    pub coefficients: Coefficients,
    /// Machine time spent before the engine started, charged to the account `startup`.
    pub startup: Duration,
    /// Picojoules measured in that time, charged to it as well; None if nothing measures.
    pub startup_energy: Option<u128>,
    /// Work pending for so long without a commit is a stall. Prompt chunks are bounded such that a step is expected to take an eighth of it.
    pub stall_timeout: Duration,
    /// Text of tokens, for stop strings.
    pub token_bytes: Arc<TokenBytes>,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            max_seqs: 32,
            step_tokens: 512,
            queue_requests_max: 256,
            queue_tokens_max: 1 << 20,
            tenant_requests_max: None,
            prefix_cache: true,
            max_stall: None,
            chunk_min: 16,
            draft_tokens: 0,
            prices: Prices::default(),
            coefficients: Coefficients::default(),
            startup: Duration::ZERO,
            startup_energy: None,
            stall_timeout: Duration::from_secs(60),
            token_bytes: Arc::default(),
        }
    }
}

/// What the machine costs, in pico-units (10^-12) of some currency, and what it draws.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Prices {
    /// All of it but measured energy: rent, hardware spread over its life, energy at the configured power. None: no money is counted.
    pub per_hour: Option<u64>,
    /// The same of an hour without work; None: as with work.
    pub idle_per_hour: Option<u64>,
    /// Of a kilowatt-hour that is measured; without a price per hour it is not counted either.
    pub per_kwh: Option<u64>,
    /// Milliwatts that are drawn all the time by what does not measure its energy; None: unknown.
    pub power_milliwatts: Option<u64>,
    /// The same without work; None: as with work.
    pub idle_milliwatts: Option<u64>,
}

/// What turns work into time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Coefficients {
    /// Nanoseconds per byte of weights, keys and values read.
    pub ns_per_byte: f64,
    /// Nanoseconds per multiply-add.
    pub ns_per_mac: f64,
}

impl Default for Coefficients {
    /// 10 GB/s and 20 G multiply-adds a second: a small CPU.
    fn default() -> Self {
        Self { ns_per_byte: 0.1, ns_per_mac: 0.05 }
    }
}
