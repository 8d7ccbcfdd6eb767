//! A grammar made of arithmetic: what may follow is a hash of what was said.

use std::sync::Arc;

use frugal_models::mask::{Grammar, Matcher, Next, PendingNext, Progress};
use frugal_models::step::TokenId;

/// Deterministic, and of no meaning.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Riddle {
    pub(crate) seed: u64,
    pub(crate) vocab: u32,
    /// Complete after so many tokens; at least 1.
    pub(crate) length: u32,
    /// Cannot be followed beyond so many tokens.
    pub(crate) breaks_at: u32,
}

#[derive(Clone, Debug)]
struct Follower {
    riddle: Riddle,
    hash: u64,
    said: u32,
}

impl Grammar for Riddle {
    fn matcher(&self) -> Box<dyn Matcher> {
        Box::new(Follower { riddle: *self, hash: self.seed, said: 0 })
    }
}

fn mix(hash: u64, value: u64) -> u64 {
    let mixed = (hash ^ value.wrapping_add(0x9e37_79b9)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    mixed ^ (mixed >> 29)
}

impl Follower {
    fn allows(&self, token: TokenId) -> bool {
        mix(self.hash, u64::from(token.0) + 1).is_multiple_of(3)
    }
}

impl Matcher for Follower {
    fn next(&mut self) -> PendingNext {
        let tokens = (0..self.riddle.vocab).map(TokenId).filter(|&t| self.allows(t)).collect();
        let next = Next { tokens, may_end: self.hash.is_multiple_of(4) };
        PendingNext::ready(Arc::new(next))
    }

    /// Behind what may not follow nothing is waited for.
    fn ahead(&mut self, guesses: &[TokenId]) -> Vec<PendingNext> {
        let mut on = self.clone();
        let follows = |guess: &TokenId| {
            let next = on.allows(*guess) && on.advance(*guess).is_ok();
            if next { on.next() } else { PendingNext::promised(Box::new(|| ())).0 }
        };
        guesses.iter().map(follows).collect()
    }

    fn advance(&mut self, token: TokenId) -> Result<Progress, String> {
        assert!(self.allows(token), "{token:?} does not follow");
        if self.said >= self.riddle.breaks_at {
            return Err("the riddle has no answer".to_owned());
        }
        self.said += 1;
        self.hash = mix(self.hash, u64::from(token.0));
        Ok(if self.said >= self.riddle.length { Progress::Complete } else { Progress::Open })
    }
}
