//! Worlds by hand: situations that chance would hardly find, each with its story.

use std::sync::Arc;
use std::time::Duration;

use frugal_models::fake::FakeFault;
use frugal_models::step::{CacheGroup, Geometry, GroupKind, TokenId};
use frugal_scheduler::options::{EngineOptions, Prices};
use frugal_scheduler::request::{FinishReason, Report, Request, RequestId, Tick};
use frugal_scheduler::snapshot::Account;

use crate::params::Params;
use crate::world::World;

fn group(kind: GroupKind, blocks: u32) -> CacheGroup {
    CacheGroup { kind, block_bytes: 64, blocks }
}

/// Blocks of four positions.
fn world(groups: Vec<CacheGroup>, options: EngineOptions) -> World {
    let geometry = Geometry { vocab: 64, context_max: 64, block_tokens: 4, groups, digest: [7; 32] };
    World::new(0, Params::by_hand(geometry, options))
}

fn request(prompt: std::ops::Range<u32>, max_tokens: u32) -> Request {
    Request {
        prompt: prompt.map(TokenId).collect(),
        sampling: Arc::default(),
        seed: 1,
        n: 1,
        max_tokens,
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

impl World {
    fn take(&mut self, request: Request) -> RequestId {
        self.submit(request).expect("there is room")
    }

    fn run_to_end(&mut self) {
        while !self.step().is_empty() {}
        self.finish();
    }

    fn report(&self, id: RequestId) -> &Report {
        self.clients[&id].report.as_ref().expect("it is done")
    }
}

/// A checkpoint needs a second block of the `State` pool, and a hit on it needs both at once: with a pool of one, the
/// sequence must start from nothing rather than wait for ever for the block that its own hit holds.
#[test]
fn a_state_pool_of_one_block_serves() {
    let mut w = world(vec![group(GroupKind::State, 1)], EngineOptions::default());
    let first = w.take(request(0..12, 4));
    w.run_to_end();
    let second = w.take(request(0..12, 4));
    w.run_to_end();
    assert_eq!((w.report(first).cached_tokens, w.report(second).cached_tokens), (0, 0));
}

/// The state after 8 positions, set aside while the first request ran, is copied to the second.
#[test]
fn a_state_is_taken_from_its_checkpoint() {
    let mut w = world(vec![group(GroupKind::State, 3), group(GroupKind::Full, 20)], EngineOptions::default());
    w.take(request(0..12, 4));
    w.run_to_end();
    let second = w.take(request(0..12, 4));
    w.run_to_end();
    assert_eq!(w.report(second).cached_tokens, 8, "the last full block before the last token");
}

/// With the prefix cache off, choices still share their prompt's full blocks, and only those.
#[test]
fn choices_share_the_prompt_even_with_the_cache_off() {
    let options = EngineOptions { prefix_cache: false, ..EngineOptions::default() };
    let mut w = world(vec![group(GroupKind::Full, 40)], options);
    let id = w.take(Request { n: 3, ..request(0..18, 1) });
    let first = w.step();
    assert_eq!(
        (first.input.rows.len(), first.input.tokens()),
        (1, 18),
        "siblings wait for the first prefill"
    );
    let second = w.step();
    assert_eq!((second.input.rows.len(), second.input.tokens()), (2, 4), "16 of 18 tokens are shared");
    w.run_to_end();
    assert_eq!(w.report(id).cached_tokens, 0);
    let again = w.take(request(0..18, 1));
    w.run_to_end();
    assert_eq!(w.report(again).cached_tokens, 0, "but nobody else shares them");
}

/// A prompt of 60 tokens with 6 in a step: whoever decodes gets a token in every one of those steps.
#[test]
fn decoding_does_not_wait_for_prompts() {
    let options = EngineOptions { max_seqs: 4, step_tokens: 6, ..EngineOptions::default() };
    let mut w = world(vec![group(GroupKind::Full, 60)], options);
    w.take(request(0..2, 40));
    let decoding = w.step().input.rows[0].seq;
    w.take(request(0..60, 2));
    for _ in 0..12 {
        let plan = w.step();
        assert_eq!(plan.input.tokens(), 6, "the budget is used");
        assert!(plan.input.rows.iter().any(|r| r.seq == decoding && r.sample.is_some()));
    }
    w.run_to_end();
}

/// With a bound on step time, chunks beside decoding rows shrink to it once the work per token is known.
#[test]
fn chunks_keep_to_the_longest_stall() {
    let options = EngineOptions {
        max_seqs: 4,
        step_tokens: 60,
        chunk_min: 2,
        max_stall: Some(Duration::from_nanos(1)),
        ..EngineOptions::default()
    };
    let mut w = world(vec![group(GroupKind::Full, 60)], options);
    w.take(request(0..8, 30));
    w.step();
    w.take(request(10..40, 2));
    assert_eq!(w.step().input.tokens(), 1 + 2, "nothing meets this target, so the least chunk it is");
    w.run_to_end();
}

/// So is a step without decoding rows, by what counts as a hang; the first is short, for nothing is known of it.
#[test]
fn a_slow_prompt_is_no_hang() {
    let options = EngineOptions {
        step_tokens: 200,
        chunk_min: 2,
        stall_timeout: Duration::from_nanos(8),
        ..EngineOptions::default()
    };
    let mut w = world(vec![group(GroupKind::Full, 60)], options);
    w.take(request(0..40, 2));
    w.take(request(20..60, 2));
    assert_eq!(w.step().input.tokens(), 64);
    assert_eq!(w.step().input.tokens(), 1 + 2, "nothing meets this target, so the least chunk it is");
    w.run_to_end();
}

/// Draft tokens that are right save steps, and those that are wrong are the house's; the client judges that none changes a token.
#[test]
fn what_is_guessed_rightly_is_computed_in_fewer_steps() {
    let run = |draft_tokens, wrong: &[usize]| {
        let options = EngineOptions { draft_tokens, ..EngineOptions::default() };
        let mut w = world(vec![group(GroupKind::Full, 60)], options);
        let mut request = request(0..8, 40);
        request.prediction = w.predict(&request, wrong);
        let id = w.take(request);
        w.run_to_end();
        let (s, report) = (w.engine.snapshot(), w.report(id).clone());
        assert_eq!(report.completion_tokens, 40);
        assert_eq!(s.counters.accepted_tokens, u64::from(report.accepted_tokens));
        assert_eq!(s.counters.draft_tokens, u64::from(report.accepted_tokens + report.rejected_tokens));
        let account = |a: Account| s.cost.accounts[a as usize].ns;
        assert_eq!(account(Account::Decode), report.cost.decode_ns);
        assert_eq!(account(Account::Draft) > 0, report.rejected_tokens > 0);
        assert_eq!(s.histograms.inter_token.count() + 1, s.counters.steps, "tokens of a step come together");
        (s.counters.steps, report)
    };
    let (steps, plain) = run(0, &[]);
    assert_eq!((steps, plain.accepted_tokens, plain.rejected_tokens), (40, 0, 0));
    let (steps, right) = run(8, &[]);
    assert!(steps < 20 && right.rejected_tokens == 0, "{steps} steps, {right:?}");
    assert_eq!(steps + u64::from(right.accepted_tokens), 40);
    assert!(right.cost.decode_ns < plain.cost.decode_ns);
    let (steps, half) = run(8, &[12, 13, 20, 30]);
    assert!(steps < 40 && half.rejected_tokens > 0 && half.accepted_tokens > 0, "{steps} steps, {half:?}");
    let (steps, wrong) = run(8, &(0..40).collect::<Vec<_>>());
    assert!(steps == 40 && wrong.rejected_tokens <= 2, "it learns: {wrong:?}");
}

/// Where a choice stops amid drafts that were right, what was computed behind the stop is the house's.
#[test]
fn nobody_pays_for_what_lies_behind_a_stop() {
    let token_bytes = Arc::new((0..64).map(|id| format!("{id},").into_bytes()).collect());
    let options = EngineOptions { draft_tokens: 8, token_bytes, ..EngineOptions::default() };
    let mut behind = 0;
    for at in 5..30 {
        let mut w = world(vec![group(GroupKind::Full, 60)], options.clone());
        let mut request = request(0..8, 40);
        request.prediction = w.predict(&request, &[]);
        request.stop = Arc::new([format!(",{},", request.prediction[at].0)]);
        let id = w.take(request);
        w.run_to_end();
        let (steps, report) = (w.engine.snapshot().counters.steps, w.report(id));
        assert!(report.completion_tokens > 1 && report.completion_tokens < 40, "it stops: {report:?}");
        assert_eq!(steps + u64::from(report.accepted_tokens), u64::from(report.completion_tokens));
        behind += report.rejected_tokens;
    }
    assert!(behind > 20, "{behind} drafts lay behind");
}

/// Draft tokens take only what prompts leave of the step, and no block that someone may need.
#[test]
fn no_one_waits_for_a_guess() {
    let options = EngineOptions { draft_tokens: 8, step_tokens: 12, max_seqs: 4, ..EngineOptions::default() };
    let mut w = world(vec![group(GroupKind::Full, 24)], options);
    let mut predicted = request(0..4, 56);
    predicted.prediction = w.predict(&predicted, &[]);
    w.take(predicted);
    w.step();
    while w.step().input.rows[0].drafts < 8 {}
    w.take(request(20..50, 2));
    let plan = w.step();
    assert_eq!(
        plan.input.rows.iter().map(|r| (r.tokens.len(), r.drafts)).collect::<Vec<_>>(),
        [(1, 0), (11, 0)]
    );
    w.run_to_end();
    assert_eq!(w.engine.snapshot().counters.preemptions, 0);
}

/// Two sequences in a pool for one and a half: the younger goes, comes back and says the same (the client judges). Its prompt is
/// counted once; what it computes again is the house's.
#[test]
fn a_preempted_sequence_is_counted_once() {
    let options = EngineOptions { prefix_cache: false, ..EngineOptions::default() };
    let mut w = world(vec![group(GroupKind::Full, 16)], options);
    let (a, b) = (w.take(request(0..20, 25)), w.take(request(20..40, 25)));
    w.run_to_end();
    let s = w.engine.snapshot();
    assert!(s.counters.preemptions > 0 && s.counters.recomputed_tokens > 0);
    assert_eq!((s.counters.prompt_tokens, s.counters.generated_tokens), (40, 50));
    assert!(s.cost.accounts[Account::Recompute as usize].ns > 0);
    let shown: u64 =
        [a, b].iter().map(|&id| w.report(id).cost.prefill_ns + w.report(id).cost.decode_ns).sum();
    let accounts = [Account::Prefill, Account::Decode].map(|a| s.cost.accounts[a as usize].ns);
    assert_eq!(shown, accounts.iter().sum::<u64>());
}

/// Cancelled while queued, waiting for a sibling, in prefill, in decode and preempted: nothing is left behind.
#[test]
fn a_request_can_be_cancelled_in_every_state() {
    let options =
        EngineOptions { max_seqs: 3, step_tokens: 8, prefix_cache: false, ..EngineOptions::default() };
    let mut w = world(vec![group(GroupKind::Full, 16)], options);
    let decoding = w.take(request(0..4, 40));
    w.step();
    let prefilling = w.take(Request { n: 2, ..request(0..40, 4) });
    let queued = w.take(request(0..4, 4));
    w.step();
    for id in [prefilling, queued, decoding] {
        w.cancel(id);
        w.check();
        assert_eq!(w.report(id).queued_ns.is_none(), id == queued);
    }
    w.finish();
    let histograms = w.engine.snapshot().histograms;
    assert_eq!((histograms.total.count(), histograms.prompt_tokens.count()), (0, 0), "nobody was answered");
    let older = w.take(request(0..20, 30));
    let younger = w.take(request(20..40, 30));
    while w.engine.snapshot().counters.preemptions == 0 {
        w.step();
    }
    w.cancel(younger);
    w.check();
    w.run_to_end();
    assert_eq!(w.report(older).completion_tokens, 30);
    let histograms = w.engine.snapshot().histograms;
    assert_eq!((histograms.total.count(), histograms.prompt_tokens.sum()), (1, 20.0));
}

/// What a fault takes back is paid out of later charges: no account goes down (the world checks it after each step), and once
/// paid, `failed` holds all of it.
#[test]
fn a_fault_is_paid_by_later_charges() {
    let prices = Prices { per_hour: Some(1_234_567_890_123), ..Prices::default() };
    let mut w = world(vec![group(GroupKind::Full, 40)], EngineOptions { prices, ..EngineOptions::default() });
    let failed = w.take(request(0..8, 9));
    (0..3).for_each(|_| drop(w.step()));
    let before = w.engine.snapshot().cost.accounts;
    w.control.inject(FakeFault::Step("torn".to_owned()));
    w.step();
    let step = w.engine.snapshot().cost.accounts[Account::Failed as usize].ns;
    assert!(step > 0, "the failed step itself is nobody's");
    assert_eq!((w.report(failed).cost.prefill_ns, w.report(failed).cost.prefill), (0, Some(0)));
    w.take(request(10..18, 9));
    w.run_to_end();
    let after = w.engine.snapshot().cost.accounts;
    let owed = before[Account::Prefill as usize].ns + before[Account::Decode as usize].ns;
    assert_eq!(after[Account::Failed as usize].ns, step + owed);
}

/// No one learns from a hit, or its absence, what another key or salt has asked.
#[test]
fn domains_do_not_share() {
    let mut w = world(vec![group(GroupKind::Full, 40)], EngineOptions::default());
    let cached = [0, 1, 0, 1].map(|domain| {
        let id = w.take(Request { cache_domain: [domain; 32], ..request(0..17, 2) });
        w.run_to_end();
        w.report(id).cached_tokens
    });
    assert_eq!(cached, [0, 0, 16, 16]);
    let saved = w.report(RequestId(3)).cost;
    assert!(saved.saved_ns > 0 && saved.saved.is_none());
}

/// A conversation goes on: output tokens are in the cache as well as the prompt.
#[test]
fn the_next_turn_hits_what_was_generated() {
    let mut w = world(vec![group(GroupKind::Full, 40)], EngineOptions::default());
    let first = w.take(request(0..10, 10));
    w.run_to_end();
    let mut turn = request(0..10, 2);
    turn.prompt = turn.prompt.iter().copied().chain(w.clients[&first].said(0)).chain([TokenId(1)]).collect();
    let second = w.take(turn);
    w.run_to_end();
    // The last token was chosen and never computed.
    assert_eq!(w.report(second).cached_tokens, 16);
}

/// Deadline and drain end what is queued as well as what runs.
#[test]
fn deadline_and_drain_end_everything() {
    let options = EngineOptions { max_seqs: 1, ..EngineOptions::default() };
    let mut w = world(vec![group(GroupKind::Full, 40)], options);
    let timed = w.take(Request { deadline: Some(Tick(1)), ..request(0..10, 30) });
    let running = w.take(request(0..10, 30));
    let queued = w.take(request(0..10, 30));
    (0..2).for_each(|_| drop(w.step()));
    w.drain(w.now);
    assert!(w.step().is_empty());
    w.finish();
    let reasons = [timed, running, queued].map(|id| w.clients[&id].ended(0));
    assert_eq!(reasons, [FinishReason::Timeout, FinishReason::Shutdown, FinishReason::Shutdown]);
    assert!(w.report(running).first_token_ns.is_some() && w.report(queued).queued_ns.is_none());
}

/// A small request does not slip past a large one that waits for blocks, or the large one might wait for ever.
#[test]
fn nobody_overtakes_in_the_queue() {
    let mut w = world(vec![group(GroupKind::Full, 16)], EngineOptions::default());
    w.take(request(0..30, 30));
    w.step();
    let (large, small) = (w.take(request(3..48, 4)), w.take(request(1..3, 4)));
    for _ in 0..29 {
        assert_eq!(w.step().input.rows.len(), 1, "the large one does not fit beside the first");
    }
    w.run_to_end();
    assert!(w.report(large).queued_ns <= w.report(small).queued_ns);
}

/// A prompt of whole blocks, asked again: all of it is cached, and yet its last token is computed, or there would be nothing to
/// choose the next one from.
#[test]
fn a_fully_cached_prompt_computes_its_last_block() {
    let mut w = world(vec![group(GroupKind::Full, 40)], EngineOptions::default());
    let cached = [(); 2].map(|()| {
        let id = w.take(request(0..12, 2));
        w.run_to_end();
        w.report(id).cached_tokens
    });
    assert_eq!(cached, [0, 8]);
}

/// Four prompts that begin alike come at once. The first is computed; the others wait one step for it, and compute what is their own.
#[test]
fn a_beginning_that_several_share_is_computed_once() {
    let mut w = world(vec![group(GroupKind::Full, 80)], EngineOptions::default());
    let with_end =
        |end: u32| Request { prompt: (0..32).chain([end, end]).map(TokenId).collect(), ..request(0..0, 2) };
    let ids = [50, 51, 52, 53].map(|end| w.take(with_end(end)));
    let other = w.take(request(40..50, 2));
    let first = w.step();
    assert_eq!((first.input.rows.len(), first.input.tokens()), (2, 34 + 10), "others are not held up");
    let second = w.step();
    assert_eq!((second.input.rows.len(), second.input.tokens()), (5, 2 + 3 * 2));
    w.run_to_end();
    assert_eq!(ids.map(|id| w.report(id).cached_tokens), [0, 32, 32, 32]);
    assert_eq!(w.report(other).cached_tokens, 0);
}

/// A prompt of which an older one computes but a small part does not wait for it.
#[test]
fn little_in_common_is_not_waited_for() {
    let mut w = world(vec![group(GroupKind::Full, 80)], EngineOptions::default());
    w.take(request(0..8, 2));
    let long = w.take(request(0..40, 2));
    assert_eq!(w.step().input.tokens(), 8 + 40);
    w.run_to_end();
    assert_eq!(w.report(long).cached_tokens, 0);
}

/// Places of those that wait for a beginning are kept: whoever is younger does not get them.
#[test]
fn waiting_for_a_beginning_keeps_the_place() {
    let options = EngineOptions { max_seqs: 2, ..EngineOptions::default() };
    let mut w = world(vec![group(GroupKind::Full, 80)], options);
    w.take(request(0..30, 8));
    let waits = w.take(request(0..30, 8));
    let young = w.take(request(40..50, 2));
    assert_eq!(w.step().input.rows.len(), 1);
    w.run_to_end();
    assert!(w.report(waits).queued_ns < w.report(young).queued_ns);
    assert_eq!(w.report(waits).cached_tokens, 28);
}

/// Time in which nobody wanted anything is nobody's, also when no empty step has settled it.
#[test]
fn waiting_for_work_is_idle_time() {
    let mut w = world(vec![group(GroupKind::Full, 40)], EngineOptions::default());
    w.now = Tick(1_000_000_000);
    let id = w.take(request(0..12, 1));
    w.run_to_end();
    let accounts = w.engine.snapshot().cost.accounts;
    assert_eq!(accounts[Account::Idle as usize].ns, 1_000_000_000);
    assert_eq!(accounts[Account::Prefill as usize].ns, w.control.last_step_ns());
    assert_eq!(w.report(id).cost.prefill_ns, w.control.last_step_ns());
}
