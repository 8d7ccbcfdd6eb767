//! I9 and I10 with a model that computes: what else runs, the prefix cache, chunks and preemption change no bit.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use frugal_models::kv::PageType;
use frugal_models::memory::{KvOptions, KvSize};
use frugal_models::model_runner::{BackendKind, RunnerOptions, load_runner};
use frugal_models::step::{GroupKind, SamplingParams, TokenId};
use frugal_scheduler::engine::{Command, Engine};
use frugal_scheduler::options::{Coefficients, EngineOptions};
use frugal_scheduler::request::{Event, Request, RequestId, Tick};
use frugal_scheduler::snapshot::Counters;

use crate::drive::kv;
use crate::fixture::open;

const REQUESTS: u64 = 16;
const OUTPUT: u32 = 24;

/// A choice's tokens, each with the bits of its log-probability.
type Texts = BTreeMap<(RequestId, u32), Vec<(TokenId, u32)>>;

/// Beginnings in common and of their own, greedy and three ways of sampling, one and two choices.
fn request(i: u64) -> Request {
    let sampled = SamplingParams { temperature: 0.9, logprobs: Some(3), ..SamplingParams::default() };
    let sampling = match i % 4 {
        0 => SamplingParams { temperature: 0.0, ..sampled },
        1 => sampled,
        2 => SamplingParams { top_p: 0.8, min_p: 0.02, logit_bias: vec![(TokenId(9), 2.0)], ..sampled },
        _ => SamplingParams {
            top_k: 30,
            repetition_penalty: 1.3,
            presence_penalty: 0.4,
            frequency_penalty: 0.2,
            ..sampled
        },
    };
    let common = (0..40).map(|t| TokenId(20 + (t + i as u32 % 2) % 200));
    let own = (0..i as u32 * 5).map(|t| TokenId(30 + (t * 7 + i as u32) % 200));
    Request {
        prompt: common.chain(own).collect(),
        sampling: Arc::new(sampling),
        seed: 1000 + i,
        n: 1 + u32::from(i % 5 == 3),
        max_tokens: OUTPUT,
        min_tokens: 0,
        end_tokens: Arc::default(),
        include_stop: false,
        stop: Arc::default(),
        grammar: None,
        prediction: Arc::default(),
        prompt_logprobs: None,
        cache_domain: [0; 32],
        deadline: None,
        tenant: 0,
    }
}

/// What may follow: what a choice said, but for a token in eight.
fn prediction(text: &[(TokenId, u32)]) -> Arc<[TokenId]> {
    text.iter().enumerate().map(|(i, t)| if i % 8 == 5 { TokenId(t.0.0 ^ 1) } else { t.0 }).collect()
}

/// Runs requests to their end, new ones arriving every other step.
fn run(name: &str, requests: &[Request], kv: KvOptions, options: EngineOptions) -> Result<(Texts, Counters)> {
    let options_of_runner =
        RunnerOptions { backend: BackendKind::Cpu, threads: 2, pin: false, isa: None, kv, lazy: false };
    let (gguf, _) = open(name)?;
    let mut runner = load_runner(&gguf, &options_of_runner)?;
    let mut engine = Engine::new(runner.geometry().clone(), options);
    let mut arrivals = requests.iter();
    let mut texts = Texts::new();
    for step in 0..10_000 {
        let now = Tick(step);
        if step % 2 == 0
            && let Some(request) = arrivals.next()
        {
            // By its seed, so that it has the same alone and in a crowd.
            let (id, request) = (RequestId(request.seed), Box::new(request.clone()));
            engine.apply(Command::Submit { id, request, at: now }, now);
        }
        let plan = engine.plan(now);
        if plan.is_empty() {
            if arrivals.len() == 0 {
                return Ok((texts, engine.snapshot().counters));
            }
            continue;
        }
        runner.submit(plan.input.clone());
        engine.commit(plan, runner.wait(), now);
        for (id, event) in engine.take_outbox().events {
            match event {
                Event::Token { choice, token, score, .. } => {
                    let bits = score.context("log-probabilities were asked for")?.logprob.to_bits();
                    texts.entry((id, choice)).or_default().push((token, bits));
                }
                Event::Done(report) => ensure!(report.fault.is_none(), "{id:?}: {:?}", report.fault),
                _ => {}
            }
        }
        ensure!(engine.check().violation.is_none(), "{:?}", engine.check().violation);
    }
    anyhow::bail!("no end in sight")
}

/// So many blocks over the whole context, and as many over a window as 8 sequences need.
fn blocks(count: u32) -> KvOptions {
    kv(PageType::F16, KvSize::Blocks(count))
}

#[test]
fn a_crowd_changes_no_token() -> Result<()> {
    for name in ["qwen3moe-Q4_K_M", "llama-Q4_K_M", "gpt-oss-MXFP4_MOE", "deepseek2-v3-F32"] {
        check(name, PageType::F16)?;
    }
    Ok(())
}

/// A page's bytes depend on its token alone, also where values share a scale.
#[test]
fn a_crowd_changes_no_token_with_q8_0_pages() -> Result<()> {
    for name in ["qwen3moe-Q4_K_M", "deepseek2-v3-F32"] {
        check(name, PageType::Q8_0)?;
    }
    Ok(())
}

fn check(name: &str, page: PageType) -> Result<()> {
    let blocks = |count| KvOptions { page, ..blocks(count) };
    let mut alone = Texts::new();
    for i in 0..REQUESTS {
        let whole = EngineOptions { prefix_cache: false, ..EngineOptions::default() };
        alone.append(&mut run(name, &[request(i)], blocks(64), whole)?.0);
    }
    ensure!(alone.len() == 19 && alone.values().all(|text| text.len() == OUTPUT as usize));
    let all: Vec<Request> = (0..REQUESTS).map(request).collect();
    let crowd = |kv: KvOptions, prefix_cache, step_tokens| -> Result<Counters> {
        let options = EngineOptions { prefix_cache, step_tokens, ..EngineOptions::default() };
        let (texts, counters) = run(name, &all, kv, options)?;
        ensure!(texts == alone, "{name}: {kv:?}, cache {prefix_cache}, {step_tokens} tokens a step");
        Ok(counters)
    };
    let ample = crowd(blocks(512), true, 512)?;
    ensure!(ample.preemptions == 0 && ample.cached_tokens > 0, "{ample:?}");
    ensure!(crowd(blocks(512), false, 37)?.cached_tokens == 0);
    for prefix_cache in [true, false] {
        let scarce = crowd(blocks(24), prefix_cache, 64)?;
        ensure!(scarce.preemptions > 0 && scarce.recomputed_tokens > 0, "{scarce:?}");
    }
    // Drafts that are mostly right, at a price at which they are computed.
    let mut predicted = all.clone();
    for request in &mut predicted {
        request.prediction = prediction(&alone[&(RequestId(request.seed), 0)]);
    }
    let coefficients = Coefficients { ns_per_byte: 1.0, ns_per_mac: 1e-6 };
    for kv in [blocks(512), blocks(24)] {
        let options = EngineOptions { draft_tokens: 6, coefficients, ..EngineOptions::default() };
        let (texts, counters) = run(name, &predicted, kv, options)?;
        ensure!(texts == alone, "{name}: {kv:?}, with drafts");
        let [right, all] = [counters.accepted_tokens, counters.draft_tokens];
        ensure!(right > 50 && all > right && counters.drafts > 20, "{counters:?}");
    }
    // Windows for one sequence and 16 tokens a step, for all of them.
    crowd(KvOptions { sequences: 1, step_tokens: 16, ..blocks(512) }, true, 64)?;
    Ok(())
}

/// After each step a sequence holds every block in one group, and in the other those that its next token sees.
#[test]
fn windows_are_let_go_as_they_pass() -> Result<()> {
    let (gguf, _) = open("gpt-oss-F32")?;
    let runner_options = RunnerOptions {
        backend: BackendKind::Cpu,
        threads: 2,
        pin: false,
        isa: None,
        kv: blocks(64),
        lazy: false,
    };
    let mut runner = load_runner(&gguf, &runner_options)?;
    let geometry = runner.geometry().clone();
    let window = geometry.groups.iter().find_map(|g| match g.kind {
        GroupKind::Window { window } => Some(window),
        _ => None,
    });
    let window = window.context("a windowed group")?;
    ensure!(geometry.groups.len() == 2 && window == 48, "{geometry:?}");
    let options = EngineOptions { prefix_cache: false, step_tokens: 37, ..EngineOptions::default() };
    let mut engine = Engine::new(geometry.clone(), options);
    let request = Box::new(request(15));
    let last = request.prompt.len() as u32 + request.max_tokens - 1;
    engine.apply(Command::Submit { id: RequestId(1), request, at: Tick(0) }, Tick(0));
    let (mut computed, mut any_gone) = (0, false);
    for step in 0.. {
        let plan = engine.plan(Tick(step));
        if plan.is_empty() {
            break;
        }
        computed = plan.input.rows[0].start + plan.input.rows[0].tokens.len() as u32;
        runner.submit(plan.input.clone());
        engine.commit(plan, runner.wait(), Tick(step));
        if computed == last {
            continue;
        }
        for (group, counts) in geometry.groups.iter().zip(engine.check().blocks) {
            let gone = match group.kind {
                GroupKind::Window { window } => (computed + 1).saturating_sub(window) / 16,
                GroupKind::Full | GroupKind::State => 0,
            };
            any_gone |= gone > 0;
            ensure!(counts.referenced == computed.div_ceil(16) - gone, "{computed} computed: {counts:?}");
        }
    }
    ensure!(computed == last && any_gone, "{computed} of {last} computed");
    ensure!(engine.check().blocks.iter().all(|b| b.referenced == 0));
    Ok(())
}
