//! Prompt lookup: guesses what a sequence goes on with from what it holds already.
//!
//! Where the last tokens stood before, what followed them then may follow again: a quotation, a list, code that is copied with a change
//! (prompt lookup decoding, Saxena 2023; Yang et al., "Inference with Reference", 2023). What a client predicts is looked up in
//! likewise, and is the first guess. Each guess of the next token is held against the token, whether or not it was computed:
//! how often a sequence's guesses are right is known before any is paid for.

use std::collections::HashMap;
use std::sync::Arc;

use frugal_models::step::TokenId;

/// Tokens that must have stood before in the same order.
const MATCH: usize = 3;
/// Weight of the past at each guess: about the last ten count.
const MEMORY: f64 = 0.9;

/// What is known of a request's answers before their first token: the same for all of them.
#[derive(Debug)]
pub(crate) struct Told {
    /// Prompt, prediction.
    tokens: Vec<TokenId>,
    /// Where the prediction ends, behind which nothing is foretold; 0 without one.
    predicted: usize,
    /// Where the prompt ends, if there is a prediction.
    foretold: Option<usize>,
    follows: Follows,
}

/// Where what follows the latest occurrence of some tokens is.
type Follows = HashMap<[TokenId; MATCH], u32>;

impl Told {
    /// `prediction` is what the answer may be, or empty.
    pub(crate) fn new(prompt: &[TokenId], prediction: &[TokenId]) -> Self {
        let tokens = [prompt, prediction].concat();
        let windows = tokens.windows(MATCH).filter_map(|window| window.first_chunk().copied());
        // Of equal ones the latest stays.
        let follows = windows.zip(MATCH as u32..).collect();
        let (predicted, foretold) = match prediction {
            [] => (0, None),
            _ => (tokens.len(), Some(prompt.len())),
        };
        Self { tokens, predicted, foretold, follows }
    }
}

/// One sequence's.
#[derive(Clone, Debug)]
pub(crate) struct Lookup {
    told: Arc<Told>,
    /// Behind that, the output.
    output: Vec<TokenId>,
    /// Of windows that end in the output.
    follows: Follows,
    /// Where the next token is guessed to be, counted from the prompt's beginning.
    next: Option<usize>,
    /// Whether the guess before this one was right.
    going: bool,
    /// Of a match's first guess, and of those behind guesses that were right.
    odds: [Odds; 2],
}

/// How often guesses were right.
#[derive(Clone, Copy, Debug)]
struct Odds {
    right: f64,
    all: f64,
}

impl Odds {
    fn observe(&mut self, right: bool) {
        self.right = self.right * MEMORY + f64::from(u8::from(right));
        self.all = self.all * MEMORY + 1.0;
    }

    fn probability(self) -> f64 {
        self.right / self.all
    }
}

impl Lookup {
    /// Before the first token of the output.
    pub(crate) fn new(told: Arc<Told>) -> Self {
        Self {
            output: Vec::new(),
            follows: HashMap::new(),
            next: told.foretold,
            going: told.foretold.is_some(),
            // As good as one of four and three of four guesses: who has none right is soon not asked.
            odds: [Odds { right: 0.5, all: 2.0 }, Odds { right: 1.5, all: 2.0 }],
            told,
        }
    }

    /// The output's next token.
    pub(crate) fn push(&mut self, token: TokenId) {
        if let Some(at) = self.next {
            let right = self.get(at) == Some(token);
            self.odds[usize::from(self.going)].observe(right);
            self.going = right;
            self.next = right.then_some(at + 1);
        }
        let followed = self.append(token);
        let foretold = |at: &usize| *at != self.told.predicted;
        self.next = self.next.filter(foretold).or(followed.filter(foretold));
    }

    fn get(&self, at: usize) -> Option<TokenId> {
        let output = || self.output.get(at - self.told.tokens.len());
        self.told.tokens.get(at).or_else(output).copied()
    }

    fn len(&self) -> usize {
        self.told.tokens.len() + self.output.len()
    }

    /// Where what followed the same tokens before is.
    fn append(&mut self, token: TokenId) -> Option<usize> {
        self.output.push(token);
        let first = self.len().checked_sub(MATCH)?;
        let mut last = [token; MATCH];
        for (to, at) in last.iter_mut().zip(first..) {
            *to = self.get(at)?;
        }
        let before = self.follows.insert(last, self.len() as u32);
        before.or_else(|| self.told.follows.get(&last).copied()).map(|at| at as usize)
    }

    /// What may follow: as many tokens, at most `most`, as are each likelier than `price` to be right. Behind the output's last token comes
    /// again what is guessed to follow it: a text that repeats itself.
    pub(crate) fn guess(&self, price: f64, most: usize) -> impl Iterator<Item = TokenId> {
        let at = self.next.unwrap_or(self.len());
        let foretold = at < self.told.predicted;
        let end = if foretold { self.told.predicted } else { self.len() };
        let most = if foretold { most.min(end - at) } else { most };
        let first = self.odds[usize::from(self.going)].probability();
        let likely = std::iter::successors(Some(first), |p| Some(p * self.odds[1].probability()));
        let worth = likely.take(most).take_while(move |p| *p > price);
        (at..end).cycle().filter_map(|at| self.get(at)).zip(worth).map(|(token, _)| token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: [u32; 0] = [];

    fn tokens(of: &[u32]) -> Vec<TokenId> {
        of.iter().map(|&t| TokenId(t)).collect()
    }

    fn told(prompt: &[u32], prediction: &[u32], output: &[u32]) -> Lookup {
        let mut lookup = Lookup::new(Arc::new(Told::new(&tokens(prompt), &tokens(prediction))));
        tokens(output).into_iter().for_each(|token| lookup.push(token));
        lookup
    }

    fn guess(lookup: &Lookup, price: f64, most: usize) -> Vec<u32> {
        lookup.guess(price, most).map(|t| t.0).collect()
    }

    #[test]
    fn what_followed_the_same_tokens_is_guessed() {
        let text = [1, 2, 3, 4, 5, 6, 7, 8, 9];
        assert_eq!(guess(&told(&text, &[], &[1, 2]), 0.0, 8), NOTHING);
        assert_eq!(guess(&told(&text, &[], &[1, 2, 3]), 0.0, 4), [4, 5, 6, 7]);
        // The latest occurrence counts, be it in the output itself, and goes round.
        assert_eq!(guess(&told(&text, &[], &[1, 2, 3, 0, 1, 2, 3]), 0.0, 6), [0, 1, 2, 3, 0, 1]);
        assert_eq!(guess(&told(&[], &[], &[1, 1, 1, 1]), 0.0, 3), [1, 1, 1]);
        // What is guessed next stays beside what was guessed before.
        let lookup = told(&[1, 2, 3, 4, 5, 6, 0, 3, 4, 5, 7], &[], &[1, 2, 3, 4, 5]);
        assert_eq!(guess(&lookup, 0.0, 1), [6]);
        assert_eq!(guess(&told(&[], &[], &[]), 0.0, 8), NOTHING);
    }

    #[test]
    fn a_prediction_is_guessed_from_the_first_token_on_and_found_again() {
        let prediction = [1, 2, 3, 4, 5, 6, 7];
        assert_eq!(guess(&told(&[8], &prediction, &[]), 0.0, 3), [1, 2, 3]);
        assert_eq!(guess(&told(&[8], &prediction, &[1, 2]), 0.0, 3), [3, 4, 5]);
        assert_eq!(guess(&told(&[8], &prediction, &[1, 9, 3]), 0.0, 3), NOTHING);
        // Not beyond its end.
        assert_eq!(guess(&told(&[8], &prediction, &[1, 9, 3, 4, 5]), 0.0, 8), [6, 7]);
        assert_eq!(guess(&told(&[8], &prediction, &prediction), 0.0, 8), NOTHING);
        assert_eq!(guess(&told(&[8], &prediction, &[1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3]), 0.0, 2), [4, 5]);
    }

    #[test]
    fn only_guesses_that_are_likelier_than_their_price_are_made() {
        let text: Vec<u32> = (0..40).collect();
        let lookup = told(&text, &[], &[0, 1, 2]);
        assert_eq!(guess(&lookup, 0.3, 8), NOTHING, "nothing is known yet but that most are wrong");
        assert_eq!(guess(&lookup, 0.2, 8).len(), 1);
        let lookup = told(&text, &[], &text[..20]);
        assert_eq!(guess(&lookup, 0.3, 8), text[20..28], "all were right");
        assert_eq!(guess(&lookup, 0.99, 8), NOTHING);
        // Matches that lead nowhere are not followed any more, and it took no price to learn it.
        let wrong: Vec<u32> = (0..20).flat_map(|i| [i, i + 1, i + 2, 99]).collect();
        assert_eq!(guess(&told(&text, &[], &[&wrong[..], &[30, 31, 32]].concat()), 0.1, 8), NOTHING);
    }
}
