//! A sequence (one choice of one request) and a live request: state, no decisions.

use std::sync::Arc;

use frugal_models::mask::Matcher;
use frugal_models::step::{SeqId, TokenId};

use crate::kv::table::SeqKv;
use crate::ledger::RowTokens;
use crate::lookup::{Lookup, Told};
use crate::request::{Report, Request, RequestId, Tick};
use crate::stop::StopMatcher;

#[derive(Debug)]
pub(crate) struct Seq {
    pub(crate) request: RequestId,
    pub(crate) choice: u32,
    /// Prompt and output.
    pub(crate) tokens: Vec<TokenId>,
    pub(crate) prompt_len: u32,
    /// Output tokens chosen so far, and the most there may be; 0 for a prompt that is only scored.
    pub(crate) output: u32,
    pub(crate) output_max: u32,
    /// Positions in the cache; chases the number of tokens (I3).
    pub(crate) computed: u32,
    /// Most positions ever in the cache: before it, computing is recomputing.
    pub(crate) high: u32,
    /// Prompt positions whose scores were delivered; None if none are asked of this choice.
    pub(crate) scored: Option<u32>,
    pub(crate) kv: SeqKv,
    pub(crate) stop: StopMatcher,
    /// Where the output is in its grammar, if it follows one; from the first row that samples on. Losing blocks loses nothing here.
    pub(crate) matcher: Option<Box<dyn Matcher>>,
    /// What may follow, from the first output token on; None where nothing is speculated on.
    pub(crate) lookup: Option<Lookup>,
    pub(crate) last_token: Option<Tick>,
}

impl Seq {
    pub(crate) fn len(&self) -> u32 {
        self.tokens.len() as u32
    }

    /// Positions to compute until the next token can be chosen, or the prompt is scored.
    pub(crate) fn goal(&self) -> u32 {
        if self.output_max == 0 { self.prompt_len - 1 } else { self.len() }
    }

    pub(crate) fn remaining(&self) -> u32 {
        self.goal() - self.computed
    }

    /// Most tokens that may be taken from the prefix cache: at least one is computed, and none whose score is still owed.
    pub(crate) fn hit_max(&self) -> u32 {
        (self.goal().max(1) - 1).min(self.scored.unwrap_or(u32::MAX))
    }

    /// Where the state of recurrent layers is set aside for later prompts: the last whole block that a request with the same
    /// prompt could take.
    pub(crate) fn checkpoint_at(&self, block_tokens: u32) -> u32 {
        (self.prompt_len - 1) / block_tokens * block_tokens
    }

    /// What the next `count` positions are computed for.
    pub(crate) fn row_tokens(&self, count: u32) -> RowTokens {
        let (start, end) = (self.computed, self.computed + count);
        let fresh = start.max(self.high).min(end);
        let output = self.prompt_len.clamp(fresh, end);
        RowTokens { recompute: fresh - start, prefill: output - fresh, decode: end - output, draft: 0 }
    }
}

#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) request: Request,
    /// What guesses are made from, once there are any.
    pub(crate) told: Option<Arc<Told>>,
    pub(crate) submitted: Tick,
    /// By choice; those ended are gone from the engine.
    pub(crate) seqs: Vec<SeqId>,
    /// Choices not ended.
    pub(crate) open: u32,
    /// Choice 0's prompt was computed, or it ended: the other choices may go.
    pub(crate) prefilled: bool,
    pub(crate) first_planned: Option<Tick>,
    pub(crate) first_token: Option<Tick>,
    /// The most tokens that a choice may have.
    pub(crate) output_max: u32,
    /// The most that an ended one had.
    pub(crate) longest: u32,
    /// Any choice ended in a fault.
    pub(crate) faulted: bool,
    /// Every choice that ended came to an end of its own.
    pub(crate) answered: bool,
    /// Whether blocks are shared at all.
    pub(crate) share: bool,
    pub(crate) report: Report,
}
