//! What is published after each step, for `/metrics` and health: plain numbers, without names or labels.
//!
//! Counters never go down. Absent on purpose: metric names, which are one table in the server.

use std::ops::{Add, AddAssign, Sub};

use frugal_models::meter;

use crate::histogram::{self, Histogram};
use crate::options::Coefficients;
use crate::request::{FinishReason, Tick};

pub use crate::kv::pool::PoolCounts;

/// The engine at the end of a step, or of an idle second.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// When.
    pub at: Tick,
    /// What has happened since start.
    pub counters: Counters,
    /// How things are.
    pub gauges: Gauges,
    /// Machine time, money and energy by account.
    pub cost: Cost,
    /// The GPU, if it is asked what it uses.
    pub gpu: Option<Gpu>,
    /// Work the runner reported since start.
    pub work: Work,
    /// Distributions since start.
    pub histograms: Histograms,
}

/// Totals since start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Prompt tokens of requests that were scheduled, cached ones included; each request counts once.
    pub prompt_tokens: u64,
    /// Of these, taken from the prefix cache. (Their sum is also the prefix cache's hits.)
    pub cached_tokens: u64,
    /// Prompt tokens of requests that may read the prefix cache: what its hits are a share of.
    pub prefix_queries: u64,
    /// Output tokens, end tokens included.
    pub generated_tokens: u64,
    /// Tokens computed again after a preemption.
    pub recomputed_tokens: u64,
    /// Rows that had draft tokens.
    pub drafts: u64,
    /// Tokens computed on the guess that they would be chosen.
    pub draft_tokens: u64,
    /// Of these, those that were.
    pub accepted_tokens: u64,
    /// Choices ended, in the order of [`finish_index`].
    pub finished: [u64; 8],
    /// Requests accepted.
    pub requests: u64,
    /// Sequences that lost their blocks to an older one.
    pub preemptions: u64,
    /// Requests not taken.
    pub rejections: Rejections,
    /// Steps committed, faulted ones included.
    pub steps: u64,
    /// Steps that faulted as a whole.
    pub step_faults: u64,
    /// Rows that faulted alone; those of requests that cannot be answered are none.
    pub row_faults: u64,
}

/// Requests not taken, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rejections {
    /// `SubmitError::QueueFull`.
    pub queue_full: u64,
    /// `SubmitError::TenantLimit`.
    pub tenant_limit: u64,
    /// `SubmitError::TooLong`.
    pub too_long: u64,
    /// `SubmitError::ShuttingDown`.
    pub shutting_down: u64,
}

/// Index into [`Counters::finished`].
pub const fn finish_index(reason: FinishReason) -> usize {
    match reason {
        FinishReason::EndToken(_) | FinishReason::Complete => 0,
        FinishReason::StopString(_) => 1,
        FinishReason::Length => 2,
        FinishReason::Cancelled => 3,
        FinishReason::Timeout => 4,
        FinishReason::Fault => 5,
        FinishReason::Shutdown => 6,
        FinishReason::Impossible => 7,
    }
}

/// Present values.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Gauges {
    /// Sequences that hold blocks.
    pub running: u32,
    /// Sequences that hold none: queued, preempted, or waiting for their request's first prefill.
    pub waiting: u32,
    /// Prompt tokens (times `n`) of requests that have not been scheduled yet.
    pub queue_tokens: u64,
    /// Requests that have not been scheduled yet.
    pub queue_requests: u32,
    /// Referenced blocks over all blocks, of the fullest group; 0 to 1.
    pub kv_usage: f64,
    /// Per cache group.
    pub groups: Vec<PoolCounts>,
    /// Present fit.
    pub coefficients: Coefficients,
    /// Whether no more requests are taken.
    pub draining: bool,
}

/// Accounts of machine time: a closed set whose sum is all time since start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Account {
    /// Before the engine could run.
    Startup,
    /// Nothing to do.
    Idle,
    /// Computing prompts.
    Prefill,
    /// Computing output.
    Decode,
    /// Computing again what a preemption threw away.
    Recompute,
    /// Rejected speculation.
    Draft,
    /// Requests that ended in a fault, and steps that faulted.
    Failed,
}

impl Account {
    /// All, in index order.
    pub const ALL: [Self; 7] =
        [Self::Startup, Self::Idle, Self::Prefill, Self::Decode, Self::Recompute, Self::Draft, Self::Failed];

    /// Its name as a label.
    pub const fn name(self) -> &'static str {
        ["startup", "idle", "prefill", "decode", "recompute", "draft", "failed"][self as usize]
    }
}

/// Machine time and what it costs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// Nanoseconds.
    pub ns: u64,
    /// Pico-units; 0 where no price is configured.
    pub pico: u128,
    /// Picojoules, measured and at the configured power; 0 where there is neither.
    pub energy: u128,
}

impl Amount {
    /// The lesser of each.
    pub fn min(self, other: Self) -> Self {
        Self {
            ns: self.ns.min(other.ns),
            pico: self.pico.min(other.pico),
            energy: self.energy.min(other.energy),
        }
    }
}

impl Add for Amount {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { ns: self.ns + other.ns, pico: self.pico + other.pico, energy: self.energy + other.energy }
    }
}

impl AddAssign for Amount {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

/// # Panics
/// If there is less of anything than what is taken.
impl Sub for Amount {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        let holds = "no more is taken than there is";
        Self {
            ns: self.ns.checked_sub(other.ns).expect(holds),
            pico: self.pico.checked_sub(other.pico).expect(holds),
            energy: self.energy.checked_sub(other.energy).expect(holds),
        }
    }
}

/// A GPU's own numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gpu {
    /// Which.
    pub device: meter::Device,
    /// Picojoules that it measured since the model began to load; None if it does not measure any.
    pub energy: Option<u128>,
    /// Its last answer; None if that was an error.
    pub sample: Option<meter::Sample>,
}

/// Totals of the ledger.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cost {
    /// By `Account as usize`. Each only grows: what a fault takes back from `prefill` and `decode` is taken out of their
    /// next charges, so that the sum is exact at all times.
    pub accounts: [Amount; 7],
    /// Pico-units per hour, measured energy apart; None if no price is configured, and then all money is meaningless.
    pub price_per_hour: Option<u64>,
    /// Whether energy means anything: it is measured, or a power is configured.
    pub has_energy: bool,
    /// Estimated saving by prefix hits.
    pub saved: Amount,
    /// Over the last five minutes.
    pub recent: UnitCosts,
    /// Since start.
    pub total: UnitCosts,
}

impl Cost {
    /// Joules of an account; None where energy is neither measured nor configured.
    pub fn joules(&self, account: Account) -> Option<f64> {
        self.has_energy.then(|| self.accounts[account as usize].energy as f64 * 1e-12)
    }
}

/// What a million tokens cost over some time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct UnitCosts {
    /// Account `prefill` over prompt tokens (cached ones included).
    pub input: UnitCost,
    /// Account `decode` over output tokens.
    pub output: UnitCost,
    /// Both over all tokens.
    pub all: UnitCost,
}

/// Per million tokens; None where there were no tokens (or no price, for money, or no energy is known).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct UnitCost {
    /// Seconds of machine time in the account itself.
    pub seconds_marginal: Option<f64>,
    /// Seconds, with all other accounts spread in proportion.
    pub seconds_loaded: Option<f64>,
    /// Units of the currency in the account itself.
    pub money_marginal: Option<f64>,
    /// Units of the currency, with all other accounts spread in proportion: it reconciles with the bill.
    pub money_loaded: Option<f64>,
    /// Joules in the account itself.
    pub joules_marginal: Option<f64>,
    /// Joules, with all other accounts spread in proportion.
    pub joules_loaded: Option<f64>,
}

/// Sums of `StepStats`; 64 bits would not outlast a fast machine's year.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Bytes of dense weights read.
    pub dense_bytes: u128,
    /// Bytes of expert weights read.
    pub expert_bytes: u128,
    /// Distinct (layer, expert) pairs read, summed over steps.
    pub experts_used: u64,
    /// (layer, expert, token) assignments.
    pub expert_tokens: u64,
    /// Bytes of keys and values read.
    pub kv_bytes: u128,
    /// Multiply-adds.
    pub macs: u128,
}

/// All distributions.
#[derive(Clone, Debug)]
pub struct Histograms {
    /// Submission to first token, per request.
    pub first_token: Histogram,
    /// Between tokens of a choice.
    pub inter_token: Histogram,
    /// Submission to end, per request.
    pub total: Histogram,
    /// Submission to first planned step, per scheduled request.
    pub queue: Histogram,
    /// First planned step to first token.
    pub prefill: Histogram,
    /// First token to end.
    pub decode: Histogram,
    /// Prompt tokens, per ended request.
    pub prompt_tokens: Histogram,
    /// Output tokens of all choices, per ended request.
    pub generation_tokens: Histogram,
    /// First planned step to end.
    pub inference: Histogram,
    /// First token to end, over the longest choice's tokens but the first, per ended request that has more than one.
    pub output_token: Histogram,
    /// Output tokens of the longest choice, per ended request.
    pub longest_choice: Histogram,
    /// Output tokens that a choice could have, per ended request.
    pub output_limit: Histogram,
    /// Tokens per step.
    pub step_tokens: Histogram,
}

impl Default for Histograms {
    fn default() -> Self {
        Self {
            first_token: Histogram::seconds(histogram::FIRST_TOKEN),
            inter_token: Histogram::seconds(histogram::INTER_TOKEN),
            total: Histogram::seconds(histogram::REQUEST_TIME),
            queue: Histogram::seconds(histogram::REQUEST_TIME),
            prefill: Histogram::seconds(histogram::REQUEST_TIME),
            decode: Histogram::seconds(histogram::REQUEST_TIME),
            prompt_tokens: Histogram::tokens(histogram::REQUEST_TOKENS),
            generation_tokens: Histogram::tokens(histogram::REQUEST_TOKENS),
            inference: Histogram::seconds(histogram::REQUEST_TIME),
            output_token: Histogram::seconds(histogram::INTER_TOKEN),
            longest_choice: Histogram::tokens(histogram::REQUEST_TOKENS),
            output_limit: Histogram::tokens(histogram::REQUEST_TOKENS),
            step_tokens: Histogram::tokens(histogram::STEP_TOKENS),
        }
    }
}
