//! Speculative decoding: tokens that are likely to follow are computed beside the one that is known.
//!
//! Only from what prompts leave of the step, and only where it pays: a draft token costs what one more token costs a step, and saves, if it is
//! right, a whole row of a later one. So it is computed where it is likelier to be right than the former over the latter, both at the
//! ledger's coefficients. With many sequences in a step a row costs little more than its tokens, and hardly any
//! draft is worth it. The chosen tokens are the same with and without drafts (I10), as far as a runner's results are the same in every batch:
//! it draws each from its own position's logits and random number, and goes on while that is what was guessed.

use super::Sketch;
use crate::engine::Engine;
use crate::seq::Seq;

impl Engine {
    /// Whether sequences are looked up in at all: the state of recurrent layers cannot go back to before a wrong draft.
    pub(crate) fn speculates(&self) -> bool {
        self.options.draft_tokens > 0 && !self.kv.has_state()
    }

    pub(super) fn speculate(&mut self, sketch: &mut Sketch) {
        if !self.speculates() {
            return;
        }
        let price = self.ledger.draft_price();
        let reserve = self.running.len() as u32;
        for (row, planned) in sketch.rows.iter_mut().zip(&mut sketch.planned) {
            let fresh = planned.samples && planned.count == 1 && planned.tokens.decode == 1;
            let Some(seq) = self.seqs.get_mut(&planned.seq).filter(|_| fresh) else { continue };
            let Some(lookup) = &seq.lookup else { continue };
            let request = &self.live[&seq.request].request;
            if seq.output < request.min_tokens {
                continue;
            }
            let most = self.options.draft_tokens.min(sketch.prompt_budget).min(output_left(seq));
            // No one goes without a block for a guess.
            let most = self.kv.fit(&seq.kv, seq.computed, 1 + most, reserve).saturating_sub(1);
            // Behind an end nothing follows.
            let guess = lookup.guess(price, most as usize);
            row.tokens.extend(guess.take_while(|token| !request.end_tokens.contains(token)));
            let constraint = row.sample.as_mut().and_then(|sample| sample.constraint.as_mut());
            if let (Some(matcher), Some(constraint), [_, guess @ ..]) =
                (&mut seq.matcher, constraint, &*row.tokens)
                && !guess.is_empty()
            {
                constraint.next.extend(matcher.ahead(guess));
                row.tokens.truncate(constraint.next.len());
            }
            let count = row.tokens.len() as u32;
            let drafts = count - 1;
            if drafts == 0 {
                continue;
            }
            row.drafts = drafts;
            if let Some(sample) = row.sample.as_mut().filter(|sample| sample.params.needs_history()) {
                sample.history.extend(&row.tokens[1..]);
            }
            self.kv.grow(&mut seq.kv, seq.computed + count);
            row.tables.clone_from(&seq.kv.tables);
            planned.count = count;
            planned.drafts = drafts;
            sketch.prompt_budget -= drafts;
        }
    }
}

/// Tokens that the output may still have after the next one.
fn output_left(seq: &Seq) -> u32 {
    seq.output_max.saturating_sub(seq.output + 1)
}
