//! One seeded world: clients, gate, engine, fake runner and a clock that stands still unless moved.

use std::collections::BTreeMap;
use std::sync::Arc;

use frugal_models::fake::{FakeControl, FakeFault, FakeRunner};
use frugal_models::runner::Runner;
use frugal_models::step::{RowFault, StepFault, StepOutput, TokenId};
use frugal_scheduler::engine::{Command, Engine};
use frugal_scheduler::gate::Gate;
use frugal_scheduler::policy::Plan;
use frugal_scheduler::request::{FinishReason, Request, RequestId, SubmitError, Tick};
use frugal_scheduler::snapshot::{Snapshot, finish_index};

use crate::client::{Causes, Client};
use crate::expect::expected;
use crate::params::Params;
use crate::rng::Rng;

/// More steps than any world needs.
const STEPS_MAX: u32 = 50_000;

pub(crate) struct World {
    pub(crate) params: Params,
    rng: Rng,
    gate: Gate,
    pub(crate) engine: Engine,
    runner: FakeRunner,
    pub(crate) control: FakeControl,
    pub(crate) now: Tick,
    pub(crate) clients: BTreeMap<RequestId, Client>,
    before: Snapshot,
    room: u32,
    /// When what is left ends.
    drain: Option<Tick>,
    pub(crate) tally: Tally,
    /// Everything planned and told, if anyone wants to know.
    trace: Option<String>,
    verbose: bool,
}

impl World {
    pub(crate) fn new(seed: u64, params: Params) -> Self {
        let gate = Gate::new(&params.options, &params.geometry);
        let runner = FakeRunner::new(params.geometry.clone(), params.model);
        let engine = Engine::new(params.geometry.clone(), params.options.clone());
        Self {
            rng: Rng::new(seed ^ 0xabcd),
            gate,
            control: runner.control(),
            runner,
            before: engine.snapshot(),
            room: engine.context_max(),
            engine,
            params,
            now: Tick(0),
            clients: BTreeMap::new(),
            drain: None,
            tally: Tally::default(),
            trace: None,
            verbose: false,
        }
    }

    /// A world to its end.
    pub(crate) fn run(seed: u64, verbose: bool) -> Tally {
        let mut world = Self::new(seed, Params::draw(&mut Rng::new(seed)));
        world.verbose = verbose;
        if verbose {
            eprintln!("{:#?}", world.params);
        }
        world.live();
        world.tally
    }

    /// Everything that was planned and told in a world.
    pub(crate) fn trace(seed: u64) -> String {
        let mut world = Self::new(seed, Params::draw(&mut Rng::new(seed)));
        world.trace = Some(String::new());
        world.live();
        world.trace.unwrap_or_default()
    }

    fn live(&mut self) {
        let mut left = self.params.requests;
        for _ in 0..STEPS_MAX {
            while left > 0 && self.rng.percent(self.params.arrival) {
                left -= 1;
                let mut request = self.params.request(&mut self.rng, self.now);
                if self.rng.percent(40) && request.prompt.len() < self.room as usize {
                    let most = u64::from(request.max_tokens) + 1;
                    let wrong: Vec<_> =
                        (0..self.rng.range(0, 3)).map(|_| (self.rng.next() % most) as usize).collect();
                    request.prediction = self.predict(&request, &wrong);
                }
                // What was refused is refused; nobody comes back.
                let _ = self.submit(request);
            }
            self.meddle();
            self.step();
            if self.engine.is_idle() {
                if left == 0 {
                    return self.finish();
                }
                self.now.0 += self.rng.next() % 1_000_000;
            }
        }
        panic!("I5: the world does not come to an end");
    }

    /// What choice 0 will say, but for some places.
    pub(crate) fn predict(&self, request: &Request, wrong: &[usize]) -> Arc<[TokenId]> {
        let Params { geometry, options, .. } = &self.params;
        let mut tokens = expected(geometry, &options.token_bytes, self.room, request, 0).tokens;
        for &at in wrong {
            if let Some(token) = tokens.get_mut(at) {
                *token = TokenId((token.0 + 1) % geometry.vocab);
            }
        }
        tokens.into()
    }

    pub(crate) fn submit(&mut self, request: Request) -> Result<RequestId, SubmitError> {
        let id = match self.gate.admit(std::slice::from_ref(&request)).map(|ids| ids[0]) {
            Ok(id) => id,
            Err(refusal) => {
                self.tally.refused += 1;
                let needed = request.prompt.len() as u32 + request.max_tokens.min(1);
                assert_eq!(
                    matches!(refusal, SubmitError::TooLong { .. }),
                    needed > self.room && self.drain.is_none()
                );
                return Err(refusal);
            }
        };
        self.say(|| format!("submit {id:?} {request:?}"));
        self.clients.insert(id, Client::new(request.clone()));
        let at = self.now;
        self.engine.apply(Command::Submit { id, request: Box::new(request), at }, self.now);
        self.deliver(false);
        Ok(id)
    }

    pub(crate) fn cancel(&mut self, id: RequestId) {
        self.say(|| format!("cancel {id:?}"));
        self.clients.get_mut(&id).expect("only clients cancel").cancelled = true;
        self.engine.apply(Command::Cancel(id), self.now);
        self.deliver(false);
        assert!(self.clients[&id].report.is_some(), "I6: {id:?} was cancelled and goes on");
    }

    pub(crate) fn drain(&mut self, deadline: Tick) {
        self.gate.close();
        self.drain = Some(self.drain.map_or(deadline, |sooner| sooner.min(deadline)));
        self.engine.apply(Command::Drain(deadline), self.now);
    }

    /// Cancels, faults, the end.
    fn meddle(&mut self) {
        if self.rng.percent(self.params.cancel) {
            let open: Vec<RequestId> =
                self.clients.iter().filter(|(_, c)| c.report.is_none()).map(|(&id, _)| id).collect();
            if !open.is_empty() {
                let id = *self.rng.pick(&open);
                self.cancel(id);
            }
        }
        if self.rng.percent(self.params.step_fault) {
            self.control.inject(FakeFault::Step("out of luck".to_owned()));
        } else if self.rng.percent(self.params.row_fault) {
            let row = self.rng.range(0, 7) as usize;
            self.control.inject(FakeFault::Row(row, RowFault::NotANumber));
        }
        if self.rng.percent(self.params.drain) && self.drain.is_none() {
            let deadline = Tick(self.now.0 + self.rng.next() % 2_000_000);
            self.drain(deadline);
        }
    }

    /// Plan, execute, commit, and everything checked.
    pub(crate) fn step(&mut self) -> Plan {
        let plan = self.engine.plan(self.now);
        self.check_plan(&plan);
        self.deliver(false);
        self.check_expired();
        if plan.is_empty() {
            self.check();
            return plan;
        }
        self.say(|| format!("plan {:?}", plan.input));
        self.runner.submit(plan.input.clone());
        let result = self.runner.wait();
        self.now.0 += self.control.last_step_ns();
        if let Some(power) = self.params.device_milliwatts {
            let since = self.params.options.startup.as_nanos() + u128::from(self.now.0);
            self.engine.measure(since * u128::from(power));
        }
        let fault = is_fault(&result);
        self.engine.commit(plan.clone(), result, self.now);
        self.tally.steps += 1;
        self.tally.rows += plan.input.rows.len() as u64;
        self.deliver(fault);
        self.check();
        plan
    }

    /// I4 and I5.
    fn check_plan(&self, plan: &Plan) {
        let (options, input) = (&self.params.options, &plan.input);
        assert!(input.rows.len() <= options.max_seqs as usize, "I4: {} rows", input.rows.len());
        assert!(input.tokens() <= options.step_tokens as usize, "I4: {} tokens", input.tokens());
        if let Some(oldest) = self.engine.runnable().first() {
            assert!(
                input.rows.iter().any(|r| r.seq == *oldest),
                "I5: {oldest:?} is the oldest and was passed over"
            );
        }
    }

    /// Nobody waits beyond a deadline or the end of a drain.
    fn check_expired(&self) {
        let drained = self.drain.is_some_and(|due| due <= self.now);
        for (id, client) in &self.clients {
            let ended = client.report.is_some() || !drained && !client.is_overdue(self.now);
            assert!(ended, "{id:?} is planned for after its time: drained: {drained}");
        }
    }

    /// Hands out what there is to tell, after a step that failed or a row of which did, if `fault`.
    fn deliver(&mut self, fault: bool) {
        let causes = Causes { now: self.now, drain: self.drain, fault };
        let outbox = self.engine.take_outbox();
        for (id, event) in outbox.events {
            self.say(|| format!("tell {id:?} {event:?}"));
            let client = self.clients.get_mut(&id).expect("only clients are told");
            client.hear(event, &self.params.options.token_bytes, causes);
            if client.report.is_some() {
                self.gate.done(id);
                self.judge(id);
            }
        }
        outbox.scheduled.into_iter().for_each(|id| self.gate.scheduled(id));
    }

    fn judge(&mut self, id: RequestId) {
        let client = &self.clients[&id];
        let reasons = client.judge(&self.params.geometry, &self.params.options, self.room);
        let report = client.report.as_ref().expect("judged at the end");
        for reason in reasons {
            self.tally.finished[finish_index(reason)] += 1;
            if reason == FinishReason::Cancelled {
                let at = match (report.queued_ns, report.first_token_ns) {
                    (None, _) => 0,
                    (_, None) => 1,
                    _ => 2,
                };
                self.tally.cancelled[at] += 1;
            }
        }
        self.tally.hits += u64::from(report.cached_tokens > 0);
        let followed = client.request.grammar.is_some() && report.fault.is_none();
        self.tally.followed += u64::from(followed && report.completion_tokens > 0);
    }

    /// I1, I2, I3, I6, I7, and that counters only go up.
    pub(crate) fn check(&mut self) {
        let check = self.engine.check();
        assert_eq!(check.violation, None);
        // By the world's clock: the ledger's own may have stood still.
        let elapsed = self.params.options.startup.as_nanos() + u128::from(self.now.0);
        assert_eq!(u128::from(check.accounts.ns), elapsed, "I7: the accounts hold all time there was");
        let after = self.engine.snapshot();
        let (a, b) = (&self.before, &after);
        for (account, (old, new)) in a.cost.accounts.iter().zip(&b.cost.accounts).enumerate() {
            assert_eq!(old.min(*new), *old, "account {account} went down to {new:?}");
        }
        let numbers = |s: &Snapshot| {
            let c = &s.counters;
            let mut all = vec![c.prompt_tokens, c.cached_tokens, c.generated_tokens, c.recomputed_tokens];
            all.extend([c.requests, c.preemptions, c.steps, c.step_faults, c.row_faults, c.prefix_queries]);
            all.extend([c.drafts, c.draft_tokens, c.accepted_tokens]);
            all.extend(c.finished);
            all
        };
        assert!(numbers(a).iter().zip(numbers(b)).all(|(&old, new)| old <= new), "a counter went down");
        self.before = after;
    }

    /// Nothing is left behind.
    pub(crate) fn finish(&mut self) {
        assert!(self.clients.values().all(|c| c.report.is_some()), "I6: someone was never told the end");
        let check = self.engine.check();
        assert_eq!((check.requests, check.sequences), (0, 0));
        assert!(check.blocks.iter().all(|b| b.referenced == 0), "I1: blocks of nobody are referenced");
        assert_eq!(self.gate.queue(), (0, 0));
        let s = self.engine.snapshot();
        let told = self.clients.values().filter_map(|c| c.report.as_ref());
        let scheduled = told.clone().filter(|r| r.queued_ns.is_some());
        assert_eq!(
            s.counters.prompt_tokens,
            scheduled.clone().map(|r| u64::from(r.prompt_tokens)).sum::<u64>()
        );
        assert_eq!(s.counters.cached_tokens, scheduled.map(|r| u64::from(r.cached_tokens)).sum::<u64>());
        assert_eq!(s.counters.generated_tokens, told.map(|r| u64::from(r.completion_tokens)).sum::<u64>());
        assert_eq!(
            s.counters.finished.iter().sum::<u64>(),
            self.clients.values().map(|c| u64::from(c.request.n)).sum::<u64>()
        );
        let drafts = self.clients.values().filter_map(|c| c.report.as_ref());
        let drafts = drafts.map(|r| [r.accepted_tokens, r.rejected_tokens].map(u64::from));
        let drafts = drafts.fold([0; 2], |a, b| [a[0] + b[0], a[1] + b[1]]);
        assert_eq!(drafts[0], s.counters.accepted_tokens);
        assert_eq!(drafts[0] + drafts[1], s.counters.draft_tokens);
        let mut told = self.clients.values().filter_map(|c| c.report.as_ref());
        assert!(told.all(|r| r.accepted_tokens <= r.completion_tokens), "drafts that nobody was given");
        self.tally.worlds += 1;
        self.tally.drafts = drafts;
        self.tally.preemptions += s.counters.preemptions;
        self.tally.recomputed += s.counters.recomputed_tokens;
        self.tally.step_faults += s.counters.step_faults;
        self.tally.row_faults += s.counters.row_faults;
    }

    fn say(&mut self, what: impl FnOnce() -> String) {
        if self.verbose || self.trace.is_some() {
            let line = format!("{:?} {}\n", self.now, what());
            if self.verbose {
                eprint!("{line}");
            }
            if let Some(trace) = &mut self.trace {
                trace.push_str(&line);
            }
        }
    }
}

/// Whether the house fails someone: what a request cannot be given is its own fault.
fn is_fault(result: &Result<StepOutput, StepFault>) -> bool {
    let Ok(output) = result else { return true };
    output.rows.iter().any(|row| matches!(row, Err(RowFault::NotANumber | RowFault::Other(_))))
}

/// What happened, over many worlds.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    worlds: u64,
    steps: u64,
    rows: u64,
    refused: u64,
    hits: u64,
    /// Requests whose output followed a grammar.
    followed: u64,
    preemptions: u64,
    recomputed: u64,
    /// Accepted and rejected tokens.
    drafts: [u64; 2],
    step_faults: u64,
    row_faults: u64,
    finished: [u64; 8],
    /// Queued, in prefill, in decode.
    cancelled: [u64; 3],
}

impl Tally {
    pub(crate) fn add(&mut self, other: &Self) {
        self.worlds += other.worlds;
        self.steps += other.steps;
        self.rows += other.rows;
        self.refused += other.refused;
        self.hits += other.hits;
        self.followed += other.followed;
        self.preemptions += other.preemptions;
        self.recomputed += other.recomputed;
        self.step_faults += other.step_faults;
        self.row_faults += other.row_faults;
        (0..8).for_each(|i| self.finished[i] += other.finished[i]);
        (0..3).for_each(|i| self.cancelled[i] += other.cancelled[i]);
        (0..2).for_each(|i| self.drafts[i] += other.drafts[i]);
    }

    /// A simulation in which something never happens says nothing about it.
    pub(crate) fn assert_everything_happened(&self) {
        let counts =
            [self.refused, self.hits, self.preemptions, self.recomputed, self.step_faults, self.row_faults];
        let counts = [&counts[..], &[self.followed]].concat();
        let all = counts.iter().chain(&self.finished).chain(&self.cancelled).chain(&self.drafts);
        assert!(all.clone().all(|&n| n >= 100), "something hardly ever happened: {self:#?}");
    }
}
