//! Who gets how many tokens and which blocks in the next step.
//!
//! One pass over all sequences, oldest first. A sequence with one token left to compute (decoding) has its token reserved before
//! prompts get any; what is left of the budget goes to prompts in order. Blocks are taken from younger sequences if need be, never
//! from older ones, and no younger sequence starts before an older one that could: so the oldest runnable
//! sequence is in every plan (I5). A prompt whose beginning an older one computes in this very step waits for it and takes it
//! from the prefix cache; its place is kept. What is left of the budget then is for [`speculate`].
//!
//! What it costs: a row more in a step shares the weights that the others read, so it adds less than a row of that step costs, whatever the
//! coefficients are. Cost therefore sets no bound on who is admitted; blocks, `max_seqs` and the queue's order do. With chunks it is the same:
//! the larger they are, the fewer steps read a prompt's experts, so they are as large as the step, the longest pause of
//! a stream and the watchdog, foretold by the ledger, allow. Only draft tokens can cost more than they bring, and are bought at a price.

mod speculate;

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use frugal_models::step::{BlockCopy, Constrained, Row, Sample, Score, SeqId, StepInput};

use crate::engine::Engine;
use crate::kv::prefix::Key;
use crate::ledger::RowTokens;
use crate::request::{FinishReason, RequestId, Tick};

/// Steps that fit into the time after which no step is a stall, as far as is foretold.
const STEPS_IN_STALL: u32 = 8;
/// Tokens of the first chunk there is: few, for nobody knows yet how long one takes.
const CHUNK_FIRST: u32 = 64;

/// A step, decided. To be committed before the next is planned.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// What the runner is told.
    pub input: Arc<StepInput>,
    pub(crate) rows: Vec<Planned>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Planned {
    pub(crate) seq: SeqId,
    /// Its tokens, drafts included.
    pub(crate) count: u32,
    pub(crate) drafts: u32,
    /// What the others are computed for.
    pub(crate) tokens: RowTokens,
    pub(crate) samples: bool,
}

impl Plan {
    /// Whether there is nothing to run.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }
}

/// A plan in the making.
#[derive(Default)]
struct Sketch {
    copies: Vec<BlockCopy>,
    rows: Vec<Row>,
    planned: Vec<Planned>,
    prompt_budget: u32,
    /// Blocks of prompts that will be known once the step is good.
    coming: HashSet<Key>,
}

impl Engine {
    /// The next step at `now`, after ending what has outlived its deadline. Empty if there is nothing to do.
    ///
    /// # Panics
    /// If a step is in flight.
    pub fn plan(&mut self, now: Tick) -> Plan {
        self.begin(now);
        self.expire(now);
        let mut sketch = Sketch { prompt_budget: self.prompt_budget(), ..Sketch::default() };
        let running: Vec<SeqId> = self.running.iter().copied().collect();
        let mut running = running.into_iter().peekable();
        let mut waiting = Some(SeqId(0));
        let mut slots = self.max_seqs().saturating_sub(self.running.len() as u32);
        loop {
            // Waiting sequences are looked up as they come: preemption adds to them, but only younger ones.
            let next = waiting.and_then(|from| self.waiting.range(from..).next().copied());
            match (running.peek().copied(), next) {
                (Some(id), next) if next.is_none_or(|w| id < w) => {
                    running.next();
                    // Unless an older one took its blocks (and, maybe, it has started anew since).
                    if self.running.contains(&id) && sketch.planned.last().is_none_or(|p| p.seq < id) {
                        self.go_on(id, &mut sketch);
                    }
                }
                (_, Some(id)) => {
                    waiting = Some(SeqId(id.0 + 1));
                    let may = slots > 0 && sketch.prompt_budget > 0;
                    if self.waits_for_sibling(id) || may && self.waits_for_prefix(id, &sketch) {
                        // Its place is kept, or younger requests would have to be thrown out for it.
                        slots = slots.saturating_sub(1);
                    } else if may && self.start(id, &mut sketch, now) {
                        slots -= 1;
                    } else {
                        waiting = None;
                    }
                }
                (_, None) => break,
            }
        }
        assert!(
            self.seqs.is_empty() || !sketch.planned.is_empty(),
            "I5: work is pending and none was planned"
        );
        self.speculate(&mut sketch);
        self.launch(sketch, now)
    }

    fn launch(&mut self, sketch: Sketch, now: Tick) -> Plan {
        if sketch.planned.is_empty() {
            self.ledger.idle(now);
        } else {
            self.in_flight = true;
        }
        Plan { input: Arc::new(StepInput { copies: sketch.copies, rows: sketch.rows }), rows: sketch.planned }
    }

    fn expire(&mut self, now: Tick) {
        while let Some(&(deadline, id)) = self.deadlines.first() {
            if deadline > now {
                break;
            }
            self.end(id, FinishReason::Timeout);
        }
        if self.drain.is_some_and(|deadline| deadline <= now) {
            let all: Vec<RequestId> = self.live.keys().copied().collect();
            all.into_iter().for_each(|id| self.end(id, FinishReason::Shutdown));
        }
    }

    pub(crate) fn max_seqs(&self) -> u32 {
        self.options.max_seqs.min(self.options.step_tokens)
    }

    /// Tokens that rows may have beyond those reserved for decoding.
    fn prompt_budget(&self) -> u32 {
        let decoding = self.running.iter().filter(|id| self.seqs[id].remaining() == 1).count() as u32;
        let left = self.options.step_tokens.saturating_sub(decoding);
        // Streams pause for a step, and nobody is to take a slow one for a hang.
        let hang = self.options.stall_timeout / STEPS_IN_STALL;
        let target = self.options.max_stall.filter(|_| decoding > 0).map_or(hang, |stall| stall.min(hang));
        let target = u64::try_from(target.as_nanos()).unwrap_or(u64::MAX);
        let fit = self.ledger.chunk_within(target, decoding).unwrap_or(CHUNK_FIRST);
        left.min(fit.max(self.options.chunk_min.max(1)))
    }

    fn waits_for_sibling(&self, id: SeqId) -> bool {
        let seq = &self.seqs[&id];
        seq.choice > 0 && !self.live[&seq.request].prefilled
    }

    /// Whether at least half of what the sequence could compute in this step is computed in it anyway, by an older one. So it
    /// falls behind by no more than the step gains; and as its hit grows each time, it waits only so often.
    fn waits_for_prefix(&mut self, id: SeqId, sketch: &Sketch) -> bool {
        // State is set aside at one place of a prompt, which need not be where another one's beginning ends.
        if sketch.coming.is_empty() || self.kv.has_state() {
            return false;
        }
        let Some(seq) = self.seqs.get_mut(&id) else { return false };
        let limit = seq.hit_max();
        let (hit, coming) = self.kv.coming(&mut seq.kv, &seq.tokens, limit, &sketch.coming);
        let want = (seq.goal() - hit).min(sketch.prompt_budget);
        coming > 0 && 2 * u64::from(coming) >= u64::from(want)
    }

    /// A sequence that holds blocks gets its row, if there are blocks for it (else it waits with what it has).
    fn go_on(&mut self, id: SeqId, sketch: &mut Sketch) {
        let want = match self.seqs[&id].remaining() {
            1 => 1,
            more => more.min(sketch.prompt_budget),
        };
        if want == 0 {
            return;
        }
        let want = self.cut(id, want);
        loop {
            let seq = &self.seqs[&id];
            let count = self.kv.fit(&seq.kv, seq.computed, want, 0);
            if count > 0 {
                if seq.remaining() > 1 {
                    sketch.prompt_budget -= count;
                }
                return self.add_row(id, count, sketch);
            }
            if !self.preempt_younger(id) {
                return;
            }
        }
    }

    /// Ends a chunk where something has to happen between two tokens.
    fn cut(&self, id: SeqId, want: u32) -> u32 {
        let seq = &self.seqs[&id];
        let mut end = seq.computed + want;
        let mut cut = |at: u32| {
            if seq.computed < at {
                end = end.min(at);
            }
        };
        if self.kv.has_state() && self.live[&seq.request].share {
            cut(seq.checkpoint_at(self.geometry.block_tokens));
        }
        // Rows are scored from their first token on, and no score is told twice.
        if let Some(scored) = seq.scored {
            cut(scored);
        }
        end - seq.computed
    }

    /// A sequence without blocks takes what the prefix cache has of it and gets its first row.
    fn start(&mut self, id: SeqId, sketch: &mut Sketch, now: Tick) -> bool {
        let mut started = false;
        while !started {
            started = self.try_start(id, true, sketch);
            if !started && !self.preempt_younger(id) {
                break;
            }
        }
        // What it shares may itself be what is in its way: checkpoints it reads take blocks too.
        if !started && self.running.range(..id).next().is_none() {
            started = self.try_start(id, false, sketch);
        }
        if started {
            self.scheduled(id, now);
        }
        started
    }

    fn try_start(&mut self, id: SeqId, hit: bool, sketch: &mut Sketch) -> bool {
        let older = self.running.range(..id).next().is_some();
        let Some(seq) = self.seqs.get_mut(&id) else { return false };
        let limit = if hit { seq.hit_max() } else { 0 };
        seq.computed = self.kv.adopt(&mut seq.kv, &seq.tokens, limit, seq.prompt_len);
        let want = seq.remaining().min(sketch.prompt_budget);
        // Beside older ones it starts only if it can be computed and each of them grow by a block, lest it be thrown out again.
        let room = !older || self.kv.leaves(&seq.kv, seq.len(), self.running.len() as u32);
        let want = self.cut(id, want);
        let Some(seq) = self.seqs.get_mut(&id) else { return false };
        let count = if room { self.kv.fit(&seq.kv, seq.computed, want, 0) } else { 0 };
        if count == 0 {
            seq.computed = 0;
            self.kv.abandon(&mut seq.kv);
            return false;
        }
        self.waiting.remove(&id);
        self.running.insert(id);
        sketch.prompt_budget -= count;
        self.add_row(id, count, sketch);
        true
    }

    fn add_row(&mut self, id: SeqId, count: u32, sketch: &mut Sketch) {
        let Some(seq) = self.seqs.get_mut(&id) else { return };
        let live = &self.live[&seq.request];
        let (start, end) = (seq.computed, seq.computed + count);
        self.kv.grow(&mut seq.kv, end);
        sketch.copies.extend(self.kv.restore(&seq.kv));
        let bt = self.geometry.block_tokens;
        if live.share && count > 1 {
            sketch.coming.extend(self.kv.keys(&mut seq.kv, &seq.tokens, start, end));
        }
        if live.share && start > 0 && start == seq.checkpoint_at(bt) {
            sketch.copies.extend(self.kv.checkpoint(&mut seq.kv, &seq.tokens, start));
        }
        let request = &live.request;
        let samples = seq.output_max > 0 && end == seq.len();
        let early = seq.output < request.min_tokens;
        let sample = samples.then(|| Sample {
            params: request.sampling.clone(),
            seed: request.seed,
            choice: seq.choice,
            history: if request.sampling.needs_history() { seq.tokens.clone() } else { Vec::new() },
            prompt_len: seq.prompt_len,
            forbid: if early { request.end_tokens.clone() } else { self.nothing.clone() },
            constraint: request.grammar.as_ref().map(|grammar| Constrained {
                next: vec![seq.matcher.get_or_insert_with(|| grammar.matcher()).next()],
                ends: if early { self.nothing.clone() } else { request.end_tokens.clone() },
            }),
        });
        let owed = seq.scored.is_some_and(|scored| start >= scored) && start + 1 < seq.prompt_len;
        let score = request.prompt_logprobs.filter(|_| owed).map(|top| Score {
            targets: request.prompt[start as usize + 1..(end + 1).min(seq.prompt_len) as usize].to_vec(),
            top,
        });
        sketch.planned.push(Planned { seq: id, count, drafts: 0, tokens: seq.row_tokens(count), samples });
        sketch.rows.push(Row {
            seq: id,
            start,
            tokens: seq.tokens[start as usize..end as usize].to_vec(),
            tables: seq.kv.tables.clone(),
            sample,
            drafts: 0,
            score,
        });
    }

    /// The youngest sequence loses its blocks, if it is younger than `id`. It will compute again what the prefix cache
    /// does not keep; its tokens stay.
    fn preempt_younger(&mut self, id: SeqId) -> bool {
        let Some(&victim) = self.running.last().filter(|&&last| last > id) else { return false };
        if let Some(seq) = self.seqs.get_mut(&victim) {
            self.kv.release(&mut seq.kv);
            seq.computed = 0;
        }
        self.running.remove(&victim);
        self.waiting.insert(victim);
        self.counters.preemptions += 1;
        true
    }

    /// Bookkeeping of a request's first row.
    fn scheduled(&mut self, id: SeqId, now: Tick) {
        let Some(seq) = self.seqs.get_mut(&id) else { return };
        let Some(live) = self.live.get_mut(&seq.request) else { return };
        let hit = seq.computed;
        if live.first_planned.is_none() {
            live.first_planned = Some(now);
            live.report.queued_ns = Some(now.0 - live.submitted.0);
            live.report.cached_tokens = hit;
            self.outbox.scheduled.push(seq.request);
            self.counters.prompt_tokens += u64::from(seq.prompt_len);
            self.counters.cached_tokens += u64::from(hit);
            if self.options.prefix_cache && seq.scored.is_none() {
                self.counters.prefix_queries += u64::from(seq.prompt_len);
            }
            self.ledger.count(u64::from(seq.prompt_len), 0);
            if hit > 0 {
                let saved = self.ledger.save(hit);
                live.report.cost.saved_ns = saved.ns;
                live.report.cost.saved = self.ledger.is_priced().then_some(saved.pico);
            }
        }
        // What was taken is not recomputed: only positions beyond it are charged.
        seq.high = seq.high.max(hit);
    }

    /// The oldest sequences first: those that could run.
    pub fn runnable(&self) -> BTreeSet<SeqId> {
        self.seqs
            .keys()
            .copied()
            .filter(|&id| self.running.contains(&id) || !self.waits_for_sibling(id))
            .collect()
    }
}
