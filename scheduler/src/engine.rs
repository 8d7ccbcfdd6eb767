//! The state of all requests, and how they come and go; `policy` plans, `commit` takes in what came of it.
//!
//! Pure: time is an argument, effects are collected and taken. Between `plan` and `commit` nothing else happens.
//! Absent on purpose: channels, threads, clocks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use frugal_models::step::{Geometry, SeqId, TokenId};

use crate::kv::KvCache;
use crate::kv::group::capacity;
use crate::kv::prefix::{Key, Scope};
use crate::kv::table::SeqKv;
use crate::ledger::Ledger;
use crate::options::EngineOptions;
use crate::request::{Event, FinishReason, Report, Request, RequestCost, RequestId, Tick};
use crate::seq::{Live, Seq};
use crate::snapshot::{Amount, Counters, Gauges, Histograms, Snapshot, Work, finish_index};
use crate::stop::{StopMatcher, StopStrings};

/// What the engine is told from outside.
#[derive(Clone, Debug)]
pub enum Command {
    /// A request that the gate took, at this tick.
    Submit {
        /// Ids only go up.
        id: RequestId,
        /// The request.
        request: Box<Request>,
        /// When it was taken; not after `now`.
        at: Tick,
    },
    /// End it, if it is still there.
    Cancel(RequestId),
    /// End at this tick whatever is left then.
    Drain(Tick),
}

/// What the engine wants told, in order.
#[derive(Debug, Default)]
pub struct Outbox {
    /// To whoever submitted the request.
    pub events: Vec<(RequestId, Event)>,
    /// Requests that were scheduled for the first time: to the gate.
    pub scheduled: Vec<RequestId>,
}

/// The engine. One thread owns it.
#[derive(Debug)]
pub struct Engine {
    pub(crate) options: EngineOptions,
    pub(crate) geometry: Geometry,
    capacity: u32,
    pub(crate) kv: KvCache,
    pub(crate) seqs: BTreeMap<SeqId, Seq>,
    pub(crate) live: BTreeMap<RequestId, Live>,
    /// Sequences without blocks, and with. Ids are ages.
    pub(crate) waiting: BTreeSet<SeqId>,
    pub(crate) running: BTreeSet<SeqId>,
    pub(crate) deadlines: BTreeSet<(Tick, RequestId)>,
    pub(crate) drain: Option<Tick>,
    pub(crate) ledger: Ledger,
    pub(crate) counters: Counters,
    pub(crate) histograms: Histograms,
    pub(crate) work: Work,
    /// Prefill and decode of requests that ended well.
    pub(crate) ended: [Amount; 2],
    pub(crate) outbox: Outbox,
    pub(crate) in_flight: bool,
    pub(crate) now: Tick,
    next_seq: u64,
    pub(crate) nothing: Arc<[TokenId]>,
}

impl Engine {
    /// At tick 0, with every block free.
    ///
    /// # Panics
    /// If the options or the geometry leave no room for a single token.
    pub fn new(geometry: Geometry, options: EngineOptions) -> Self {
        let capacity = capacity(&geometry);
        assert!(
            options.max_seqs > 0 && options.step_tokens > 0 && capacity > 0,
            "an engine that can run nothing"
        );
        let startup = u64::try_from(options.startup.as_nanos()).unwrap_or(u64::MAX);
        Self {
            capacity,
            kv: KvCache::new(&geometry),
            ledger: Ledger::new(&options.prices, options.coefficients, startup, options.startup_energy),
            geometry,
            options,
            seqs: BTreeMap::new(),
            live: BTreeMap::new(),
            waiting: BTreeSet::new(),
            running: BTreeSet::new(),
            deadlines: BTreeSet::new(),
            drain: None,
            counters: Counters::default(),
            histograms: Histograms::default(),
            work: Work::default(),
            ended: [Amount::default(); 2],
            outbox: Outbox::default(),
            in_flight: false,
            now: Tick(0),
            next_seq: 1,
            nothing: Arc::default(),
        }
    }

    /// Carries out a command.
    ///
    /// # Panics
    /// If a step is in flight, or time went backward.
    pub fn apply(&mut self, command: Command, now: Tick) {
        self.begin(now);
        match command {
            Command::Submit { id, request, at } => self.admit(id, *request, at.min(now)),
            Command::Cancel(id) => self.end(id, FinishReason::Cancelled),
            Command::Drain(deadline) => self.drain = Some(self.drain.map_or(deadline, |d| d.min(deadline))),
        }
    }

    /// Picojoules that were measured so far: what is spent next is charged with what is new of it.
    pub fn measure(&mut self, picojoules: u128) {
        self.ledger.measure(picojoules);
    }

    pub(crate) fn begin(&mut self, now: Tick) {
        assert!(!self.in_flight, "a plan is committed before anything else happens");
        assert!(now >= self.now, "time goes forward");
        self.now = now;
        if self.live.is_empty() {
            self.ledger.idle(now);
        }
    }

    fn admit(&mut self, id: RequestId, request: Request, submitted: Tick) {
        let prompt_len = request.prompt.len() as u32;
        assert!(request.n > 0 && prompt_len > 0, "the gate takes only requests that make sense");
        let share = self.options.prefix_cache || request.n > 1;
        let scope = if self.options.prefix_cache {
            Scope::Domain(request.cache_domain)
        } else {
            Scope::Request(id.0)
        };
        let root = Key::root(&self.geometry.digest, scope);
        let stop = Arc::new(StopStrings::new(&request.stop));
        let output_max = request.max_tokens.min(self.capacity.saturating_sub(prompt_len));
        let mut seqs = Vec::with_capacity(request.n as usize);
        for choice in 0..request.n {
            let seq = SeqId(self.next_seq);
            self.next_seq += 1;
            seqs.push(seq);
            self.waiting.insert(seq);
            let state = Seq {
                request: id,
                choice,
                tokens: request.prompt.to_vec(),
                prompt_len,
                output: 0,
                output_max,
                computed: 0,
                high: 0,
                scored: (choice == 0 && request.prompt_logprobs.is_some()).then_some(0),
                kv: SeqKv::new(&self.geometry, root),
                stop: StopMatcher::new(stop.clone()),
                matcher: None,
                lookup: None,
                last_token: None,
            };
            self.seqs.insert(seq, state);
        }
        self.deadlines.extend(request.deadline.map(|d| (d, id)));
        self.counters.requests += 1;
        let money = self.ledger.is_priced().then_some(0);
        let cost = RequestCost { prefill: money, decode: money, saved: money, ..RequestCost::default() };
        let predicted = !request.prediction.is_empty();
        let only_scored = request.max_tokens == 0;
        let live = Live {
            open: request.n,
            request,
            told: None,
            submitted,
            seqs,
            prefilled: false,
            first_planned: None,
            first_token: None,
            output_max,
            longest: 0,
            faulted: false,
            answered: true,
            share,
            report: Report { prompt_tokens: prompt_len, predicted, cost, ..Report::default() },
        };
        self.live.insert(id, live);
        if only_scored && prompt_len == 1 {
            // A prompt of one token has nothing to score.
            self.end(id, FinishReason::Length);
        }
    }

    /// Ends all of a request, if it is there.
    pub(crate) fn end(&mut self, id: RequestId, reason: FinishReason) {
        let Some(live) = self.live.get(&id) else { return };
        let open: Vec<SeqId> = live.seqs.iter().copied().filter(|s| self.seqs.contains_key(s)).collect();
        open.into_iter().for_each(|seq| self.finish(seq, reason, None));
    }

    /// Ends a sequence for a reason that is told: a fault, or that it is impossible.
    pub(crate) fn fault(&mut self, id: SeqId, reason: FinishReason, what: &str) {
        let Some(seq) = self.seqs.get(&id) else { return };
        let request = seq.request;
        if let Some(live) = self.live.get_mut(&request) {
            live.report.fault.get_or_insert_with(|| what.to_owned());
            live.faulted |= reason == FinishReason::Fault;
            if live.request.max_tokens == 0 {
                return self.end(request, reason);
            }
        }
        self.finish(id, reason, None);
    }

    /// Ends everything with a fault: the runner is not to be used again.
    pub fn abort(&mut self, what: &str) {
        let all: Vec<SeqId> = self.seqs.keys().copied().collect();
        all.into_iter().for_each(|id| self.fault(id, FinishReason::Fault, what));
    }

    pub(crate) fn finish(&mut self, id: SeqId, reason: FinishReason, text_len: Option<u32>) {
        let Some(mut seq) = self.seqs.remove(&id) else { return };
        self.kv.release(&mut seq.kv);
        self.waiting.remove(&id);
        self.running.remove(&id);
        self.counters.finished[finish_index(reason)] += 1;
        let text_len = text_len.unwrap_or(seq.stop.len());
        self.outbox.events.push((seq.request, Event::Finish { choice: seq.choice, reason, text_len }));
        let Some(live) = self.live.get_mut(&seq.request) else { return };
        live.open -= 1;
        live.longest = live.longest.max(seq.output);
        live.prefilled |= seq.choice == 0;
        live.answered &= reason.is_answer();
        if live.open == 0 {
            self.done(seq.request);
        }
    }

    fn done(&mut self, id: RequestId) {
        let Some(mut live) = self.live.remove(&id) else { return };
        if let Some(deadline) = live.request.deadline {
            self.deadlines.remove(&(deadline, id));
        }
        live.report.total_ns = self.now.0 - live.submitted.0;
        // What clients gave up is no measure of how they are served.
        if live.answered {
            self.observe(&live);
        }
        let mut report = live.report;
        let cost = &mut report.cost;
        if live.faulted {
            // A fault is the house's: what the request used goes to `failed`. What cannot be done is asked for all the same.
            self.ledger.fail(cost);
            let none = cost.prefill.map(|_| 0);
            *cost = RequestCost { prefill: none, decode: none, saved: none, ..RequestCost::default() };
        } else {
            self.ended[0] += cost.prefill();
            self.ended[1] += cost.decode();
        }
        self.outbox.events.push((id, Event::Done(Box::new(report))));
    }

    fn observe(&mut self, live: &Live) {
        let report = &live.report;
        let h = &mut self.histograms;
        h.total.observe(report.total_ns);
        h.prompt_tokens.observe(u64::from(report.prompt_tokens));
        h.generation_tokens.observe(u64::from(report.completion_tokens));
        h.longest_choice.observe(u64::from(live.longest));
        h.output_limit.observe(u64::from(live.output_max));
        if let Some(planned) = live.first_planned {
            h.queue.observe(planned.0 - live.submitted.0);
        }
        if let (Some(planned), Some(first)) = (live.first_planned, live.first_token) {
            h.prefill.observe(first.0 - planned.0);
            let decode = self.now.0 - first.0;
            h.decode.observe(decode);
            h.inference.observe(self.now.0 - planned.0);
            if let Some(further @ 1..) = live.longest.checked_sub(1) {
                h.output_token.observe(decode / u64::from(further));
            }
        }
    }

    /// What is to be told since the last call.
    pub fn take_outbox(&mut self) -> Outbox {
        std::mem::take(&mut self.outbox)
    }

    /// Whether no request is in the engine.
    pub fn is_idle(&self) -> bool {
        self.live.is_empty()
    }

    /// Positions of the longest sequence that context and pools allow.
    pub fn context_max(&self) -> u32 {
        self.capacity
    }

    /// The model and cache it decides for.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// All numbers, but for those that are the gate's (queue, rejections), the driver's (draining) or the GPU's.
    pub fn snapshot(&self) -> Snapshot {
        let groups: Vec<_> = self.kv.counts().collect();
        let usage = groups.iter().map(|g| {
            let total = g.free + g.referenced + g.cached;
            f64::from(g.referenced) / f64::from(total.max(1))
        });
        let gauges = Gauges {
            running: self.running.len() as u32,
            waiting: self.waiting.len() as u32,
            kv_usage: usage.fold(0.0, f64::max),
            groups,
            coefficients: self.ledger.coefficients(),
            ..Gauges::default()
        };
        Snapshot {
            at: self.now,
            counters: self.counters.clone(),
            gauges,
            cost: self.ledger.cost(),
            gpu: None,
            work: self.work.clone(),
            histograms: self.histograms.clone(),
        }
    }
}
