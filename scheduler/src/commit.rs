//! What a step produced becomes tokens, events, charges and cached prefixes; or faults.

use std::sync::Arc;

use frugal_models::mask::Progress;
use frugal_models::step::{
    RowFault, RowOutput, SeqId, StepFault, StepOutput, StepStats, TokenId, TokenScore,
};

use crate::engine::Engine;
use crate::ledger::RowTokens;
use crate::lookup::{Lookup, Told};
use crate::policy::{Plan, Planned};
use crate::request::{Event, FinishReason, Tick};
use crate::seq::Seq;
use crate::stop::StopMatch;

impl Engine {
    /// Takes in what a step produced; the step owns the time since the previous commit.
    ///
    /// # Panics
    /// If the output does not answer the plan.
    pub fn commit(&mut self, plan: Plan, result: Result<StepOutput, StepFault>, now: Tick) {
        assert!(self.in_flight && now >= self.now, "a commit follows its plan");
        self.in_flight = false;
        self.now = now;
        self.counters.steps += 1;
        self.histograms.step_tokens.observe(plan.input.tokens() as u64);
        match result {
            Ok(output) => self.commit_output(&plan, output),
            Err(fault) => self.commit_fault(&plan, &fault),
        }
    }

    fn commit_output(&mut self, plan: &Plan, mut output: StepOutput) {
        assert_eq!(output.rows.len(), plan.rows.len(), "every row is answered");
        for (planned, row) in plan.rows.iter().zip(&mut output.rows).filter(|(planned, _)| planned.drafts > 0)
        {
            if let (Ok(row), Some(seq)) = (row, self.seqs.get(&planned.seq)) {
                row.tokens.truncate(self.taken(seq, &row.tokens));
            }
        }
        let tokens: Vec<RowTokens> =
            plan.rows.iter().zip(&output.rows).map(|(p, row)| spent(p, row)).collect();
        let charges = self.ledger.step(self.now, &output.stats, &tokens);
        self.count_drafts(plan, &tokens);
        self.count_work(&output.stats);
        for (i, (planned, charge)) in plan.rows.iter().zip(charges).enumerate() {
            self.counters.recomputed_tokens += u64::from(planned.tokens.recompute);
            let priced = self.ledger.is_priced();
            let request = self.seqs[&planned.seq].request;
            if let Some(live) = self.live.get_mut(&request) {
                charge.add_to(&mut live.report.cost, priced);
            }
            // All pins go before any row's outcome, which may free or end what others read.
            self.unpin(planned, output.rows[i].is_ok());
        }
        for (planned, row) in plan.rows.iter().zip(output.rows) {
            match row {
                Ok(row) => self.commit_row(planned, row),
                Err(fault) => {
                    let reason = reason(&fault);
                    // What is the request's own fault is none of the house's.
                    self.counters.row_faults += u64::from(reason == FinishReason::Fault);
                    self.fault(planned.seq, reason, &fault.to_string());
                }
            }
        }
    }

    fn count_work(&mut self, stats: &StepStats) {
        self.work.dense_bytes += u128::from(stats.dense_bytes);
        self.work.expert_bytes += u128::from(stats.expert_bytes);
        self.work.experts_used += stats.experts_used;
        self.work.expert_tokens += stats.expert_tokens;
        for row in &stats.rows {
            self.work.kv_bytes += u128::from(row.kv_bytes);
            self.work.macs += u128::from(row.macs);
        }
    }

    /// No row counts, and nothing that the step wrote is known to the prefix cache: blocks become known at commit.
    fn commit_fault(&mut self, plan: &Plan, fault: &StepFault) {
        self.ledger.fault(self.now);
        self.counters.step_faults += 1;
        plan.rows.iter().for_each(|p| self.unpin(p, false));
        plan.rows.iter().for_each(|p| self.fault(p.seq, FinishReason::Fault, &fault.to_string()));
    }

    fn unpin(&mut self, planned: &Planned, good: bool) {
        if let Some(seq) = self.seqs.get_mut(&planned.seq) {
            self.kv.unpin(&mut seq.kv, &seq.tokens, good);
        }
    }

    fn count_drafts(&mut self, plan: &Plan, tokens: &[RowTokens]) {
        for (planned, tokens) in plan.rows.iter().zip(tokens).filter(|(planned, _)| planned.drafts > 0) {
            self.counters.drafts += 1;
            self.counters.draft_tokens += u64::from(planned.drafts);
            self.counters.accepted_tokens += u64::from(planned.drafts - tokens.draft);
            let request = self.seqs[&planned.seq].request;
            if let Some(live) = self.live.get_mut(&request) {
                live.report.accepted_tokens += planned.drafts - tokens.draft;
                live.report.rejected_tokens += tokens.draft;
            }
        }
    }

    fn commit_row(&mut self, planned: &Planned, row: RowOutput) {
        // A sibling may have ended it since: a request that is only scored ends as a whole.
        let Some(seq) = self.seqs.get(&planned.seq) else { return };
        let (request, from) = (seq.request, seq.computed);
        self.advance(planned.seq, planned.count - planned.drafts);
        let Some(seq) = self.seqs.get_mut(&planned.seq) else { return };
        let Some(live) = self.live.get_mut(&request) else { return };
        if !row.prompt_scores.is_empty() {
            let event = Event::PromptScores { first: from + 1, scores: row.prompt_scores };
            self.outbox.events.push((request, event));
        }
        if let Some(scored) = &mut seq.scored {
            *scored = (*scored).max(seq.computed);
        }
        if seq.choice == 0 && seq.computed >= seq.prompt_len {
            live.prefilled = true;
        }
        if seq.output_max == 0 && seq.remaining() == 0 {
            return self.end(request, FinishReason::Length);
        }
        if !planned.samples {
            return;
        }
        if row.tokens.is_empty() {
            assert!(seq.matcher.is_some(), "a row that was asked for a token gives one or a fault");
            return self.finish(planned.seq, FinishReason::Complete, None);
        }
        let mut scores = row.scores.into_iter();
        for (i, token) in row.tokens.into_iter().enumerate() {
            if i > 0 {
                // What was chosen before it was a draft, and is computed.
                self.advance(planned.seq, 1);
            }
            self.output(planned.seq, token, scores.next(), i == 0);
        }
    }

    /// How many of these tokens are the choice's: drafts that were right may go on behind a stop, where nobody asked for them.
    fn taken(&self, seq: &Seq, tokens: &[TokenId]) -> usize {
        let request = &self.live[&seq.request].request;
        let mut text = seq.stop.clone();
        let last = tokens.iter().zip(seq.output + 1..).position(|(&token, output)| {
            let stops = output > request.min_tokens;
            request.end_tokens.contains(&token)
                || text.push(self.options.token_bytes.get(token), stops).is_some()
        });
        last.map_or(tokens.len(), |last| last + 1)
    }

    /// The next `count` positions are computed, unless the sequence has ended.
    fn advance(&mut self, id: SeqId, count: u32) {
        let Some(seq) = self.seqs.get_mut(&id) else { return };
        let Some(live) = self.live.get(&seq.request) else { return };
        let from = seq.computed;
        seq.computed += count;
        seq.high = seq.high.max(seq.computed);
        self.kv.computed(&mut seq.kv, &seq.tokens, from, seq.computed, live.share);
    }

    /// One more token; the `first` of a step is the one that a client waited for.
    fn output(&mut self, id: SeqId, token: TokenId, score: Option<TokenScore>, first: bool) {
        let speculates = self.speculates();
        let Some(seq) = self.seqs.get_mut(&id) else { return };
        let Some(live) = self.live.get_mut(&seq.request) else { return };
        seq.output += 1;
        live.report.completion_tokens += 1;
        self.counters.generated_tokens += 1;
        self.ledger.count(0, 1);
        if live.first_token.is_none() {
            live.first_token = Some(self.now);
            live.report.first_token_ns = Some(self.now.0 - live.submitted.0);
            self.histograms.first_token.observe(self.now.0 - live.submitted.0);
        }
        if let Some(last) = seq.last_token.replace(self.now)
            && first
        {
            self.histograms.inter_token.observe(self.now.0 - last.0);
        }
        if live.request.end_tokens.contains(&token) {
            assert!(seq.output > live.request.min_tokens, "a forbidden token was chosen");
            let bytes = self.options.token_bytes.get(token);
            let told = live.request.include_stop && !bytes.is_empty();
            if told {
                seq.stop.push(bytes, false);
            }
            // Where log-probabilities were asked for, every token that is counted has an entry.
            if told || score.is_some() {
                let event = Event::Token { choice: seq.choice, token, score, release: seq.stop.len() };
                self.outbox.events.push((seq.request, event));
            }
            return self.finish(id, FinishReason::EndToken(token), None);
        }
        if speculates && seq.output_max > 1 {
            let told = || Arc::new(Told::new(&live.request.prompt, &live.request.prediction));
            let told = live.told.get_or_insert_with(told);
            seq.lookup.get_or_insert_with(|| Lookup::new(told.clone())).push(token);
        }
        seq.tokens.push(token);
        let bytes = self.options.token_bytes.get(token);
        let mut found = seq.stop.push(bytes, seq.output > live.request.min_tokens);
        let mut release = seq.stop.release();
        if live.request.include_stop {
            // Nothing is taken back, but for what follows a stop string in its last token.
            let length = |m: &StopMatch| live.request.stop[m.index as usize].len() as u32;
            found = found.map(|m| StopMatch { text_len: m.text_len + length(&m), ..m });
            release = seq.stop.len();
        }
        let release = found.map_or(release, |m| m.text_len);
        let event = Event::Token { choice: seq.choice, token, score, release };
        self.outbox.events.push((seq.request, event));
        if let Some(found) = found {
            return self.finish(id, FinishReason::StopString(found.index), Some(found.text_len));
        }
        let full = seq.output >= seq.output_max;
        match seq.matcher.as_mut().map_or(Ok(Progress::Open), |matcher| matcher.advance(token)) {
            Ok(Progress::Complete) => self.finish(id, FinishReason::Complete, None),
            Ok(Progress::Open) if full => self.finish(id, FinishReason::Length, None),
            Ok(Progress::Open) => {}
            Err(why) => self.fault(id, FinishReason::Impossible, &RowFault::Grammar(why).to_string()),
        }
    }
}

/// What a row's tokens were computed for, now that its drafts are known to be right or wrong.
fn spent(planned: &Planned, row: &Result<RowOutput, RowFault>) -> RowTokens {
    let accepted = row.as_ref().map_or(0, |row| row.tokens.len().saturating_sub(1) as u32);
    assert!(accepted <= planned.drafts, "only drafts are followed by more tokens");
    let RowTokens { decode, .. } = planned.tokens;
    RowTokens { decode: decode + accepted, draft: planned.drafts - accepted, ..planned.tokens }
}

/// Whether the request is to blame.
fn reason(fault: &RowFault) -> FinishReason {
    match fault {
        RowFault::Grammar(_) | RowFault::NothingToChoose => FinishReason::Impossible,
        RowFault::NotANumber | RowFault::Other(_) => FinishReason::Fault,
    }
}
