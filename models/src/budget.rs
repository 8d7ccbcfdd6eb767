//! A budget of reasoning: when it is used up, the mark that closes reasoning is all that may be chosen.
//!
//! Works with and without a grammar: what the grammar allows is passed on except while the mark is forced. It is not forced
//! amid a character, whose bytes may be several tokens: no grammar takes it there, and no text has it.
//! Reasoning is counted from the prompt's end if that is amid reasoning, else from the opening mark on. It opens an answer or is none:
//! behind other text its mark is a word like any other. Harmony's reasoning is a message among others, and may come after one.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use crate::mask::{Grammar, Matcher, Next, PendingNext, Progress, TokenSet};
use crate::step::TokenId;
use crate::syntax::CHANNEL;
use crate::tokenizer::Tokenizer;

/// Tokens over the budget for a character to end: it has at most so many bytes more.
const CHARACTER_TOKENS: u32 = 3;

/// How many reasoning tokens each choice may spend.
pub struct Budget {
    tokenizer: Arc<Tokenizer>,
    inner: Option<Arc<dyn Grammar>>,
    tokens: u32,
    open: String,
    close: String,
    /// Other text may come before the opening mark.
    anywhere: bool,
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
        let anywhere = open.starts_with(CHANNEL);
        let (open, close) = (open.to_owned(), close.to_owned());
        Some(Self { tokenizer, inner, tokens, open, close, anywhere, forced, begun, anything })
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
    /// No token has come: what `inner` needs to take one in may not be there.
    fresh: bool,
    /// The mark's first token where nothing came before, told once `inner` is ready to take it in.
    first: Option<PendingNext>,
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
            anywhere: self.anywhere,
            forced: self.forced.clone(),
            begun: self.begun,
            anything: self.anything.clone(),
        });
        let place = if budget.begun { Place::Within(0) } else { Place::Before };
        let inner = budget.inner.as_ref().map(|inner| inner.matcher());
        let (tail, forced) = (Vec::new(), VecDeque::new());
        let mut follower = Follower { budget, inner, place, fresh: true, first: None, tail, forced };
        follower.force(false);
        Box::new(follower)
    }
}

impl Follower {
    /// Begins to force the mark once nothing is left; `amid` a character a little later.
    fn force(&mut self, amid: bool) {
        let Place::Within(spent) = self.place else { return };
        let more = if amid { CHARACTER_TOKENS } else { 0 };
        if spent >= self.budget.tokens.saturating_add(more) {
            self.forced = self.budget.forced.iter().copied().collect();
            self.place = Place::After;
        }
    }
}

impl Matcher for Follower {
    fn next(&mut self) -> PendingNext {
        if let Some(&token) = self.forced.front() {
            let next = Next { tokens: [token].into_iter().collect(), may_end: false };
            let inner = self.inner.as_mut().filter(|_| self.fresh);
            return match inner {
                Some(inner) => self.first.get_or_insert_with(|| told_after(&inner.next(), next)).clone(),
                // Later masks of `inner` need not be computed: nobody chooses by them.
                None => PendingNext::ready(Arc::new(next)),
            };
        }
        match &mut self.inner {
            Some(inner) => inner.next(),
            None => PendingNext::ready(self.budget.anything.clone()),
        }
    }

    fn advance(&mut self, token: TokenId) -> Result<Progress, String> {
        let progress = match &mut self.inner {
            Some(inner) => inner.advance(token)?,
            None => Progress::Open,
        };
        (self.fresh, self.first) = (false, None);
        if self.forced.pop_front().is_some() {
            return Ok(if self.forced.is_empty() { progress } else { Progress::Open });
        }
        if self.place == Place::After {
            return Ok(progress);
        }
        self.tail.extend(self.budget.tokenizer.raw_bytes(token));
        let before = self.place == Place::Before;
        let mark = if before { &self.budget.open } else { &self.budget.close };
        let at = self.tail.windows(mark.len()).position(|bytes| bytes == mark.as_bytes());
        let opens = self.budget.anywhere || opens(&self.tail, mark.as_bytes());
        let found = at.is_some() && (opens || !before);
        self.place = match (self.place, found) {
            (Place::Before, true) => Place::Within(0),
            (Place::Before, false) if !opens => Place::After,
            (Place::Within(_), true) => Place::After,
            (Place::Within(spent), false) => Place::Within(spent + 1),
            (place, _) => place,
        };
        let amid = amid_character(&self.tail);
        if before {
            let space = self.tail.len() - self.tail.trim_ascii_start().len();
            self.tail.drain(..space);
        }
        // Of an unfinished character there are at most three bytes.
        let keep = if found { 0 } else { mark.len().saturating_sub(1).max(3) };
        self.tail.drain(..self.tail.len().saturating_sub(keep));
        self.force(amid);
        Ok(progress)
    }
}

/// `next`, promised for when `inner` is known; lost if that is.
fn told_after(inner: &PendingNext, next: Next) -> PendingNext {
    let given_up = inner.clone();
    let (pending, promise) = PendingNext::promised(Box::new(move || given_up.give_up()));
    inner.then(Box::new(move || promise.keep(Ok(next))));
    pending
}

/// Whether a text begins with the mark, or may yet come to: white space may stand before it.
fn opens(text: &[u8], mark: &[u8]) -> bool {
    let text = text.trim_ascii_start();
    text.starts_with(mark) || mark.starts_with(text)
}

/// Whether the text ends with the beginning of a character.
fn amid_character(text: &[u8]) -> bool {
    let begun = |end: &[u8]| {
        std::str::from_utf8(end).is_err_and(|error| error.valid_up_to() == 0 && error.error_len().is_none())
    };
    (1..=3).filter_map(|bytes| text.get(text.len().checked_sub(bytes)?..)).any(begun)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokenizer::{SpecialIds, TokenizerSpec};

    const THINK: TokenId = TokenId(4);
    const CLOSE: TokenId = TokenId(5);

    fn tokenizer() -> Arc<Tokenizer> {
        // The last ones are the bytes of é, all of ï and its first one again, and a line's end.
        let tokens =
            ["a", "b", "<", "<end>", "<think>", "</think>", "Ã", "©", "¯Ã", "Ċ"].map(str::to_owned).to_vec();
        let spec = TokenizerSpec {
            model: "gpt2".to_owned(),
            pre: "gpt-2".to_owned(),
            tokens,
            types: Some(vec![1, 1, 1, 3, 3, 3, 1, 1, 1, 1]),
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
        // Opened by the model, at once or behind white space.
        assert_eq!(forced(&[THINK.0, 1, CLOSE.0], 1, false), [false, false, true, false]);
        assert_eq!(forced(&[9, 9, THINK.0, 1, CLOSE.0], 1, false), [false, false, false, false, true, false]);
        // An answer that mentions the mark does not reason.
        assert_eq!(forced(&[0, THINK.0, 1, 1, 1], 1, false), [false; 6]);
        assert_eq!(forced(&[2, 0, THINK.0, 1, 1], 1, false), [false; 6]);
        // Nothing to spend.
        assert_eq!(forced(&[CLOSE.0, 0], 0, true), [true, false, false]);
        // Closed in time: never forced, also not by a second opening.
        assert_eq!(forced(&[0, CLOSE.0, THINK.0, 0, 0, 0], 2, true), [false; 7]);
    }

    #[test]
    fn harmony_may_reason_behind_a_message() {
        // A mark of two tokens, which no token of the vocabulary is.
        let follow = |open: &str, tokens: &[u32]| {
            let mut budget = Budget::new(tokenizer(), None, 1, ("ab", "</think>"), false).unwrap();
            budget.anywhere = open.starts_with(CHANNEL);
            let mut matcher = budget.matcher();
            tokens.iter().for_each(|token| assert_eq!(matcher.advance(TokenId(*token)), Ok(Progress::Open)));
            !matcher.next().wait().unwrap().tokens.contains(TokenId(0))
        };
        let tokens = [1, 1, 0, 1, 1];
        assert!(follow("<|channel|>analysis<|message|>", &tokens) && !follow("<think>", &tokens));
        assert!(follow("<think>", &[9, 0, 1, 1]), "a mark in two pieces");
    }

    #[test]
    fn a_character_is_not_cut() {
        assert_eq!(forced(&[0, 6, 7, CLOSE.0], 2, true), [false, false, false, true, false]);
        assert_eq!(forced(&[6, 7, CLOSE.0], 2, true), [false, false, true, false]);
        // One character begins where another ends: not forever.
        assert_eq!(forced(&[6, 8, 8, 8, CLOSE.0], 1, true), [false, false, false, false, true, false]);
        let amid = |text: &[u8]| amid_character(text);
        assert!(amid(b"\xc3") && amid("a😀".as_bytes().get(..4).unwrap()) && amid(b"\xff\xe4\xbd"));
        assert!(!amid(b"") && !amid("é".as_bytes()) && !amid("😀".as_bytes()) && !amid(b"\xa9\xa9\xa9\xa9"));
    }

    /// A grammar's own opinion of text is UTF-8's: it takes the mark where a character ends.
    #[test]
    fn a_grammar_takes_the_mark_that_is_forced() {
        use crate::constraint::{ConstraintEngine, ConstraintSpec};
        let engine = ConstraintEngine::new(&tokenizer()).unwrap();
        let grammar =
            engine.compile(&ConstraintSpec::Lark("start: /[^<]*/ </think> \"ab\"".to_owned())).unwrap();
        for budget in 0..4 {
            let budget =
                Budget::new(tokenizer(), Some(grammar.clone()), budget, ("<think>", "</think>"), true);
            let mut matcher = budget.unwrap().matcher();
            let (mut said, mut progress) = (Vec::new(), Progress::Open);
            // Bytes of é for as long as that may be.
            for wanted in [6, 7, 6, 7, 6, 7] {
                let next = matcher.next().wait().unwrap();
                if next.tokens.contains(CLOSE) && !next.tokens.contains(TokenId(6)) {
                    break;
                }
                said.push(wanted);
                progress = matcher.advance(TokenId(wanted)).unwrap();
            }
            for token in [CLOSE.0, 0, 1] {
                assert_eq!(progress, Progress::Open);
                assert!(matcher.next().wait().unwrap().tokens.contains(TokenId(token)), "{said:?} {token}");
                progress = matcher.advance(TokenId(token)).unwrap();
            }
            assert_eq!(progress, Progress::Complete);
        }
    }

    /// Whether anyone asked what comes next, before anything did and in all.
    #[derive(Clone, Debug, Default)]
    struct Asked(Arc<std::sync::Mutex<(bool, u32)>>);

    impl Grammar for Asked {
        fn matcher(&self) -> Box<dyn Matcher> {
            Box::new(self.clone())
        }
    }

    impl Matcher for Asked {
        fn next(&mut self) -> PendingNext {
            let mut asked = self.0.lock().unwrap();
            *asked = (true, asked.1 + 1);
            PendingNext::ready(Arc::default())
        }

        fn advance(&mut self, _: TokenId) -> Result<Progress, String> {
            let asked = self.0.lock().unwrap();
            if asked.0 { Ok(Progress::Open) } else { Err("a token came before its mask".to_owned()) }
        }
    }

    #[test]
    fn masks_that_nobody_chooses_by_are_not_waited_for() {
        let asked = Asked::default();
        // A mark of three tokens.
        let budget = Budget::new(tokenizer(), Some(Arc::new(asked.clone())), 0, ("<think>", "ab<"), true);
        let mut matcher = budget.unwrap().matcher();
        for token in [0, 1, 2] {
            assert!(matcher.next().wait().unwrap().tokens.contains(TokenId(token)));
            assert_eq!(matcher.advance(TokenId(token)), Ok(Progress::Open));
        }
        assert_eq!(asked.0.lock().unwrap().1, 1);
    }

    /// Its first mask is known when the test says so.
    #[derive(Clone, Debug)]
    struct Slow(PendingNext);

    impl Grammar for Slow {
        fn matcher(&self) -> Box<dyn Matcher> {
            Box::new(self.clone())
        }
    }

    impl Matcher for Slow {
        fn next(&mut self) -> PendingNext {
            self.0.clone()
        }

        fn advance(&mut self, _: TokenId) -> Result<Progress, String> {
            // As whoever chose has waited.
            self.next().wait().map(|_| Progress::Open).map_err(|fault| fault.to_string())
        }
    }

    #[test]
    fn the_first_mask_is_promised_as_any_other() {
        for good in [true, false] {
            let (inner, promise) = PendingNext::promised(Box::new(|| ()));
            let budget =
                Budget::new(tokenizer(), Some(Arc::new(Slow(inner))), 0, ("<think>", "</think>"), true);
            let mut matcher = budget.unwrap().matcher();
            let (told, when_told) = std::sync::mpsc::channel();
            let next = matcher.next();
            assert_eq!(next, matcher.next());
            next.then(Box::new(move || told.send(()).expect("the test listens")));
            assert!(when_told.try_recv().is_err(), "not before the grammar is ready");
            assert!(promise.begin());
            promise.keep(if good { Ok(Next::default()) } else { Err("no".to_owned()) });
            assert_eq!(when_told.try_recv().is_ok(), good);
            assert_eq!(next.wait().is_ok_and(|next| next.tokens.contains(CLOSE)), good);
            assert_eq!(matcher.advance(CLOSE).is_ok(), good);
        }
    }
}
