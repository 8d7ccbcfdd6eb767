//! What a world is like, drawn from its seed.

use std::sync::Arc;
use std::time::Duration;

use frugal_models::fake::FakeModel;
use frugal_models::mask::Grammar;
use frugal_models::step::{CacheGroup, Geometry, GroupKind, SamplingParams, TokenBytes, TokenId};
use frugal_scheduler::options::{EngineOptions, Prices};
use frugal_scheduler::request::{Request, Tick};

use crate::grammar::Riddle;
use crate::rng::Rng;

#[derive(Clone, Debug)]
pub(crate) struct Params {
    pub(crate) geometry: Geometry,
    pub(crate) options: EngineOptions,
    pub(crate) model: FakeModel,
    pub(crate) requests: u32,
    /// In percent, per step.
    pub(crate) arrival: u32,
    pub(crate) cancel: u32,
    pub(crate) step_fault: u32,
    pub(crate) row_fault: u32,
    pub(crate) drain: u32,
    /// In percent, per request.
    pub(crate) deadline: u32,
    /// What prompts begin with.
    bases: Vec<Vec<TokenId>>,
    /// What the device measures of itself, if it does.
    pub(crate) device_milliwatts: Option<u64>,
}

impl Params {
    pub(crate) fn draw(rng: &mut Rng) -> Self {
        let vocab = rng.range(5, 24);
        let context_max = rng.range(8, 72);
        let geometry = geometry(rng, vocab, context_max);
        let max_seqs = rng.range(1, 7);
        let rarely = |rng: &mut Rng, percent: u32| if rng.percent(30) { percent } else { 0 };
        let options = EngineOptions {
            max_seqs,
            step_tokens: max_seqs + rng.range(0, 24),
            queue_requests_max: if rng.percent(30) { rng.range(1, 6) } else { 40 },
            queue_tokens_max: u64::from(if rng.percent(30) { rng.range(10, 300) } else { 10_000 }),
            tenant_requests_max: rng.percent(30).then(|| rng.range(1, 3)),
            prefix_cache: rng.percent(70),
            max_stall: rng.percent(30).then(|| Duration::from_micros(u64::from(rng.range(1, 2000)))),
            chunk_min: rng.range(1, 8),
            draft_tokens: if rng.percent(60) { rng.range(1, 6) } else { 0 },
            prices: prices(rng),
            startup: Duration::from_nanos(rng.next() % 5_000_000_000),
            token_bytes: Arc::new(token_bytes(rng, vocab)),
            ..EngineOptions::default()
        };
        let bases = (0..3).map(|_| {
            (0..rng.range(0, context_max * 2 / 3)).map(|_| TokenId(rng.range(0, vocab - 1))).collect()
        });
        let mut params = Self {
            bases: bases.collect(),
            geometry,
            options,
            model: FakeModel::default(),
            requests: rng.range(4, 30),
            arrival: rng.range(10, 90),
            cancel: rarely(rng, 8),
            step_fault: rarely(rng, 4),
            row_fault: rarely(rng, 5),
            drain: if rng.percent(15) { 2 } else { 0 },
            deadline: rarely(rng, 40),
            device_milliwatts: rng.percent(40).then(|| rng.next() % 700_000),
        };
        if let Some(power) = params.device_milliwatts {
            params.options.startup_energy = Some(params.options.startup.as_nanos() * u128::from(power));
            params.options.prices.per_kwh = rng.percent(50).then(|| rng.next() % 1_000_000_000_000);
        }
        if rng.percent(30) {
            params.model.startup_ns = rng.next() % 1_000_000;
        }
        params
    }

    /// A world where nothing happens by itself.
    pub(crate) fn by_hand(geometry: Geometry, options: EngineOptions) -> Self {
        Self {
            geometry,
            options,
            model: FakeModel::default(),
            requests: 0,
            arrival: 0,
            cancel: 0,
            step_fault: 0,
            row_fault: 0,
            drain: 0,
            deadline: 0,
            bases: Vec::new(),
            device_milliwatts: None,
        }
    }

    pub(crate) fn request(&self, rng: &mut Rng, now: Tick) -> Request {
        let base = rng.pick(&self.bases);
        let keep = rng.range(0, base.len() as u32) as usize;
        let keep = if rng.percent(60) { base.len() } else { keep };
        let vocab = self.geometry.vocab;
        let tail_max = if rng.percent(20) { 30 } else { 4 };
        let tail = rng.range(0, tail_max);
        let mut prompt = base[..keep].to_vec();
        prompt.extend((0..tail).map(|_| TokenId(rng.range(0, vocab - 1))));
        if prompt.is_empty() {
            prompt.push(TokenId(0));
        }
        let prompt_logprobs = rng.percent(12).then(|| rng.range(0, 3));
        let only_scored = prompt_logprobs.is_some() && rng.percent(40);
        let output_max = if rng.percent(20) { 60 } else { 12 };
        let max_tokens = if only_scored { 0 } else { rng.range(1, output_max) };
        let stop = (0..if rng.percent(25) { rng.range(1, 3) } else { 0 }).map(|_| stop_string(rng)).collect();
        Request {
            prompt: prompt.into(),
            sampling: Arc::new(sampling(rng)),
            seed: rng.next(),
            n: if rng.percent(25) { rng.range(2, 5) } else { 1 },
            max_tokens,
            min_tokens: if rng.percent(30) { rng.range(0, max_tokens) } else { 0 },
            end_tokens: (0..rng.range(0, 5) / 4).map(|_| TokenId(rng.range(0, vocab - 1))).collect(),
            stop,
            include_stop: rng.percent(30),
            grammar: rng.percent(25).then(|| riddle(rng, vocab)),
            prediction: Arc::default(),
            prompt_logprobs,
            cache_domain: [rng.range(0, 1) as u8; 32],
            deadline: rng.percent(self.deadline).then(|| Tick(now.0 + rng.next() % 6_000_000)),
            tenant: u64::from(rng.range(0, 3)),
        }
    }
}

fn riddle(rng: &mut Rng, vocab: u32) -> Arc<dyn Grammar> {
    let breaks_at = if rng.percent(20) { rng.range(0, 6) } else { u32::MAX };
    Arc::new(Riddle { seed: rng.next(), vocab, length: rng.range(1, 20), breaks_at })
}

fn geometry(rng: &mut Rng, vocab: u32, context_max: u32) -> Geometry {
    let block_tokens = *rng.pick(&[1, 2, 4, 4, 8]);
    let mut groups = Vec::new();
    let whole = context_max.div_ceil(block_tokens);
    // From pools that hold hardly one sequence to pools that hold many.
    let plenty = rng.range(1, 6);
    if rng.percent(75) {
        let blocks =
            if rng.percent(20) { rng.range(2, whole.max(2)) } else { whole * plenty + rng.range(0, 3) };
        groups.push(CacheGroup { kind: GroupKind::Full, block_bytes: 64, blocks });
    }
    if rng.percent(45) {
        let window = rng.range(1, 20);
        let blocks = (window.div_ceil(block_tokens) + 1) * plenty + rng.range(0, 3);
        groups.push(CacheGroup { kind: GroupKind::Window { window }, block_bytes: 32, blocks });
    }
    if groups.is_empty() || rng.percent(30) {
        let blocks = if rng.percent(15) { 1 } else { rng.range(2, 14) };
        groups.push(CacheGroup { kind: GroupKind::State, block_bytes: 128, blocks });
    }
    Geometry { vocab, context_max, block_tokens, groups, digest: [7; 32] }
}

fn prices(rng: &mut Rng) -> Prices {
    Prices {
        per_hour: rng.percent(60).then(|| rng.next() % 20_000_000_000_000),
        power_milliwatts: rng.percent(40).then(|| rng.next() % 500_000),
        ..Prices::default()
    }
}

/// Few letters, so that stop strings do occur; some tokens stand for nothing.
fn token_bytes(rng: &mut Rng, vocab: u32) -> TokenBytes {
    (0..vocab).map(|_| (0..rng.range(0, 3)).map(|_| *rng.pick(b"abc")).collect::<Vec<u8>>()).collect()
}

fn stop_string(rng: &mut Rng) -> String {
    (0..rng.range(1, 4)).map(|_| char::from(*rng.pick(b"abc"))).collect()
}

fn sampling(rng: &mut Rng) -> SamplingParams {
    SamplingParams {
        temperature: if rng.percent(50) { 0.0 } else { 1.0 },
        presence_penalty: if rng.percent(15) { 0.5 } else { 0.0 },
        logprobs: rng.percent(25).then(|| rng.range(0, 2)),
        ..SamplingParams::default()
    }
}
