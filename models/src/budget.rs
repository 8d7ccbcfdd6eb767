//! A budget of reasoning: when it is used up, the mark that closes reasoning is all that may be chosen.
//!
//! Works with and without a grammar: what the grammar allows is passed on except while the mark is forced.
//! Reasoning is counted from the prompt's end if that is amid reasoning, else from the opening mark on.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use crate::mask::{Grammar, Matcher, Next, PendingNext, Progress, TokenSet};
use crate::step::TokenId;
use crate::tokenizer::Tokenizer;

/// How many reasoning tokens each choice may spend.
pub struct Budget {
    tokenizer: Arc<Tokenizer>,
    inner: Option<Arc<dyn Grammar>>,
    tokens: u32,
    open: String,
    close: String,
    /// The closing mark, and a token at a time of what is forced.
    forced: Vec<TokenId>,
    begun: bool,
    anything: Arc<Next>,
}

impl Budget {
    /// `tokens` for what is between `open` and `close`; `begun`: the prompt has opened it. None if the mark cannot be encoded.
    pub fn new(
        tokenizer: Arc<Tokenizer>,
        inner: Option<Arc<dyn Grammar>>,
        tokens: u32,
        (open, close): (&str, &str),
        begun: bool,
    ) -> Option<Self> {
        let forced = tokenizer.encode_special(close).ok().filter(|forced| !forced.is_empty())?;
        let all = (0..tokenizer.vocab_size() as u32).map(TokenId).collect::<TokenSet>();
        let anything = Arc::new(Next { tokens: all, may_end: true });
        let (open, close) = (open.to_owned(), close.to_owned());
        Some(Self { tokenizer, inner, tokens, open, close, forced, begun, anything })
    }
}

impl fmt::Debug for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Budget")
            .field("tokens", &self.tokens)
            .field("inner", &self.inner)
            .finish_non_exhaustive()
    }
}

/// Where a choice is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Reasoning may yet begin.
    Before,
    /// So many tokens of it were spent.
    Within(u32),
    After,
}

struct Follower {
    budget: Arc<Budget>,
    inner: Option<Box<dyn Matcher>>,
    place: Place,
    /// The end of the text so far: long enough to recognise a mark in.
    tail: Vec<u8>,
    forced: VecDeque<TokenId>,
}

impl fmt::Debug for Follower {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Follower")
            .field("place", &self.place)
            .field("forced", &self.forced)
            .finish_non_exhaustive()
    }
}

impl Grammar for Budget {
    fn matcher(&self) -> Box<dyn Matcher> {
        let budget = Arc::new(Self {
            tokenizer: self.tokenizer.clone(),
            inner: self.inner.clone(),
            tokens: self.tokens,
            open: self.open.clone(),
            close: self.close.clone(),
            forced: self.forced.clone(),
            begun: self.begun,
            anything: self.anything.clone(),
        });
        let place = if budget.begun { Place::Within(0) } else { Place::Before };
        let inner = budget.inner.as_ref().map(|inner| inner.matcher());
        let mut follower = Follower { budget, inner, place, tail: Vec::new(), forced: VecDeque::new() };
        follower.force();
        Box::new(follower)
    }
}

impl Follower {
    /// Begins to force the mark once nothing is left.
    fn force(&mut self) {
        if self.place == Place::Within(self.budget.tokens) {
            self.forced = self.budget.forced.iter().copied().collect();
            self.place = Place::After;
        }
    }
}

impl Matcher for Follower {
    fn next(&mut self) -> PendingNext {
        if let Some(&token) = self.forced.front() {
            return PendingNext::ready(Arc::new(Next {
                tokens: [token].into_iter().collect(),
                may_end: false,
            }));
        }
        match &mut self.inner {
            Some(inner) => inner.next(),
            None => PendingNext::ready(self.budget.anything.clone()),
        }
    }

    fn advance(&mut self, token: TokenId) -> Result<Progress, String> {
        let progress = match &mut self.inner {
            Some(inner) => {
                if !self.forced.is_empty() {
                    // Nobody waited for what the grammar lets come, and it goes on from there.
                    inner.next().wait().map_err(|fault| fault.to_string())?;
                }
                inner.advance(token)?
            }
            None => Progress::Open,
        };
        if self.forced.pop_front().is_some() {
            return Ok(if self.forced.is_empty() { progress } else { Progress::Open });
        }
        if self.place == Place::After {
            return Ok(progress);
        }
        self.tail.extend(self.budget.tokenizer.raw_bytes(token));
        let mark = if self.place == Place::Before { &self.budget.open } else { &self.budget.close };
        let found = self.tail.windows(mark.len()).any(|bytes| bytes == mark.as_bytes());
        self.place = match (self.place, found) {
            (Place::Before, true) => Place::Within(0),
            (Place::Within(_), true) => Place::After,
            (Place::Within(spent), false) => Place::Within(spent + 1),
            (place, _) => place,
        };
        let keep = if found { 0 } else { mark.len().saturating_sub(1) };
        self.tail.drain(..self.tail.len().saturating_sub(keep));
        self.force();
        Ok(progress)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::{SpecialIds, TokenizerSpec};

    const THINK: TokenId = TokenId(4);
    const CLOSE: TokenId = TokenId(5);

    fn tokenizer() -> Arc<Tokenizer> {
        let tokens = ["a", "b", "<", "<end>", "<think>", "</think>"].map(str::to_owned).to_vec();
        let spec = TokenizerSpec {
            model: "gpt2".to_owned(),
            pre: "gpt-2".to_owned(),
            tokens,
            types: Some(vec![1, 1, 1, 3, 3, 3]),
            ids: SpecialIds { eos: Some(3), ..SpecialIds::default() },
            ..TokenizerSpec::default()
        };
        Arc::new(Tokenizer::new(spec).unwrap())
    }

    /// Follows `tokens`; after each, whether the mark alone may be chosen.
    fn forced(tokens: &[u32], budget: u32, begun: bool) -> Vec<bool> {
        let budget = Budget::new(tokenizer(), None, budget, ("<think>", "</think>"), begun).unwrap();
        let mut matcher = budget.matcher();
        let forced = |matcher: &mut dyn Matcher| {
            let next = matcher.next().wait().unwrap();
            let only = next.tokens == [CLOSE].into_iter().collect();
            assert!(only != next.tokens.contains(TokenId(0)) && only != next.may_end);
            only
        };
        let mut all = vec![forced(&mut *matcher)];
        for &token in tokens {
            assert_eq!(matcher.advance(TokenId(token)), Ok(Progress::Open));
            all.push(forced(&mut *matcher));
        }
        all
    }

    #[test]
    fn reasoning_is_closed_once_its_tokens_are_spent() {
        // Open from the start: two tokens, then the mark, then freedom.
        assert_eq!(
            forced(&[0, 1, CLOSE.0, 0, 0, 0], 2, true),
            [false, false, true, false, false, false, false]
        );
        // Opened by the model; what comes before is not counted.
        assert_eq!(
            forced(&[0, 0, 0, THINK.0, 1, CLOSE.0], 1, false),
            [false, false, false, false, false, true, false]
        );
        // Nothing to spend.
        assert_eq!(forced(&[CLOSE.0, 0], 0, true), [true, false, false]);
        // Closed in time: never forced, also not by a second opening.
        assert_eq!(forced(&[0, CLOSE.0, THINK.0, 0, 0, 0], 2, true), [false; 7]);
    }
}
