//! What a grammar lets a choice say next: the seam between who follows grammars and who chooses tokens.
//!
//! A mask is promised before it is known: it is computed while the model computes the logits that it will be applied to, and
//! whoever chooses waits for it. Law: what may follow depends on the grammar and the tokens alone.
//!
//! Absent on purpose: grammars ([`crate::constraint`]), logits ([`crate::sampling`]).

use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::step::{RowFault, TokenId};

/// A mask that has been computed for so long is given up, and its row with it. The grammar library's own limits end
/// computations long before; this is for what they do not see.
pub const MASK_TIME_MAX: Duration = Duration::from_secs(1);

/// A mask that no thread has begun to compute for so long is given up.
const QUEUE_TIME_MAX: Duration = Duration::from_secs(10);

/// Tokens of a vocabulary, one bit each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenSet {
    words: Vec<u32>,
}

impl TokenSet {
    /// Bit `i % 32` of word `i / 32` is token `i`'s.
    pub fn from_words(words: Vec<u32>) -> Self {
        Self { words }
    }

    /// The words; tokens beyond the last are not in the set.
    pub fn words(&self) -> &[u32] {
        &self.words
    }

    /// Whether a token is in the set.
    pub fn contains(&self, token: TokenId) -> bool {
        self.words.get(token.0 as usize / 32).is_some_and(|word| word >> (token.0 % 32) & 1 == 1)
    }

    /// Takes a token out; whether it was there.
    pub fn remove(&mut self, token: TokenId) -> bool {
        let had = self.contains(token);
        if had && let Some(word) = self.words.get_mut(token.0 as usize / 32) {
            *word &= !(1 << (token.0 % 32));
        }
        had
    }

    /// Whether no token is in the set.
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|&word| word == 0)
    }
}

impl FromIterator<TokenId> for TokenSet {
    fn from_iter<I: IntoIterator<Item = TokenId>>(tokens: I) -> Self {
        let mut words = Vec::new();
        for token in tokens {
            let index = token.0 as usize / 32;
            if words.len() <= index {
                words.resize(index + 1, 0u32);
            }
            words[index] |= 1 << (token.0 % 32);
        }
        Self { words }
    }
}

/// What may follow the tokens so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Next {
    /// Tokens that may be chosen, end tokens apart.
    pub tokens: TokenSet,
    /// Whether the choice may end here: end tokens may be chosen, too.
    pub may_end: bool,
}

impl Next {
    /// Whether the choice can only end.
    pub fn is_end(&self) -> bool {
        self.may_end && self.tokens.is_empty()
    }
}

/// After a token was taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// More may follow.
    Open,
    /// The grammar is complete, and nothing can follow.
    Complete,
}

/// A grammar, ready to be followed any number of times.
pub trait Grammar: fmt::Debug + Send + Sync {
    /// Follows it from the beginning.
    fn matcher(&self) -> Box<dyn Matcher>;
}

/// Follows a grammar along one choice.
pub trait Matcher: fmt::Debug + Send {
    /// What may come next, the same until [`Matcher::advance`]. Returns at once; what it returns may have to be waited for.
    fn next(&mut self) -> PendingNext;

    /// What may come after each of some guesses, for as many of them, from the first on, as it can be told; where a guess may not
    /// follow there is nothing to wait for. Returns at once, too.
    fn ahead(&mut self, guesses: &[TokenId]) -> Vec<PendingNext> {
        let _ = guesses;
        Vec::new()
    }

    /// Takes in a token that was allowed. Quick: microseconds, and bounded.
    ///
    /// # Errors
    /// If the grammar cannot be followed any further; the matcher is of no use then.
    fn advance(&mut self, token: TokenId) -> Result<Progress, String>;
}

/// What may come next, now or soon. Cloning shares; only clones are equal.
#[derive(Clone)]
pub struct PendingNext(Arc<Slot>);

/// The other end of a [`PendingNext`], to be kept once. Dropped without, the mask is lost and its row with it.
#[derive(Debug)]
pub struct Promise(PendingNext);

struct Slot {
    inner: Mutex<Inner>,
    changed: Condvar,
    give_up: Box<dyn Fn() + Send + Sync>,
}

struct Inner {
    state: State,
    /// What waits for the mask without a thread.
    then: Option<Then>,
}

enum State {
    Queued,
    Begun(Instant),
    Done(Result<Arc<Next>, RowFault>),
}

type Then = Box<dyn FnOnce() + Send>;

impl PendingNext {
    /// Known already.
    pub fn ready(next: Arc<Next>) -> Self {
        Self::new(State::Done(Ok(next)), Box::new(|| ()))
    }

    /// To be known later; `give_up` is called, once at most, when nobody will wait any longer.
    pub fn promised(give_up: Box<dyn Fn() + Send + Sync>) -> (Self, Promise) {
        let pending = Self::new(State::Queued, give_up);
        (pending.clone(), Promise(pending))
    }

    fn new(state: State, give_up: Box<dyn Fn() + Send + Sync>) -> Self {
        let inner = Mutex::new(Inner { state, then: None });
        Self(Arc::new(Slot { inner, changed: Condvar::new(), give_up }))
    }

    /// Waits for it, as long as the limits of this module allow.
    ///
    /// # Errors
    /// [`RowFault::Grammar`] if the grammar has none, [`RowFault::Other`] if it took too long or was lost.
    pub fn wait(&self) -> Result<Arc<Next>, RowFault> {
        let asked = Instant::now();
        let mut inner = self.inner();
        loop {
            let left = match &inner.state {
                State::Done(result) => return result.clone(),
                State::Begun(since) => MASK_TIME_MAX.saturating_sub(since.elapsed()),
                State::Queued => QUEUE_TIME_MAX.saturating_sub(asked.elapsed()),
            };
            if left.is_zero() {
                let why = match &inner.state {
                    State::Queued => "no thread was free to compute a token mask".to_owned(),
                    _ => format!("a token mask took more than {MASK_TIME_MAX:?}"),
                };
                drop(inner);
                self.end(why);
                inner = self.inner();
                continue;
            }
            inner = self.0.changed.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Has `then` done as soon as the mask is known, by whoever computed it, or at once. Dropped if there is none; for one at a time.
    pub fn then(&self, then: Then) {
        let mut inner = self.inner();
        match &inner.state {
            State::Queued | State::Begun(_) => inner.then = Some(then),
            State::Done(Ok(_)) => {
                drop(inner);
                then();
            }
            State::Done(Err(_)) => {}
        }
    }

    /// Nobody will wait for it: not begun, it will not be; begun, it is asked to stop.
    pub fn give_up(&self) {
        self.end("a token mask was given up".to_owned());
    }

    fn end(&self, why: String) {
        if self.settle(Err(RowFault::Other(why))) {
            (self.0.give_up)();
        }
    }

    /// Only the first time; whether it was.
    fn settle(&self, result: Result<Next, RowFault>) -> bool {
        let mut inner = self.inner();
        if matches!(inner.state, State::Done(_)) {
            return false;
        }
        let good = result.is_ok();
        inner.state = State::Done(result.map(Arc::new));
        let then = inner.then.take();
        drop(inner);
        self.0.changed.notify_all();
        if let Some(then) = then.filter(|_| good) {
            then();
        }
        true
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // What is changed is whole after each assignment.
        self.0.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Promise {
    /// The computation begins; false if nobody waits for it any longer.
    pub fn begin(&self) -> bool {
        let mut inner = self.0.inner();
        if !matches!(inner.state, State::Queued) {
            return false;
        }
        inner.state = State::Begun(Instant::now());
        self.0.0.changed.notify_all();
        true
    }

    /// Here it is, or why not.
    pub fn keep(self, result: Result<Next, String>) {
        self.0.settle(result.map_err(RowFault::Grammar));
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        self.0.settle(Err(RowFault::Other("a token mask was lost".to_owned())));
    }
}

impl PartialEq for PendingNext {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl fmt::Debug for PendingNext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PendingNext").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn sets_hold_what_was_put_in() {
        let ids = [0, 31, 32, 95].map(TokenId);
        let mut set: TokenSet = ids.into_iter().collect();
        for id in 0..200 {
            assert_eq!(set.contains(TokenId(id)), ids.contains(&TokenId(id)), "{id}");
        }
        assert!(set.remove(TokenId(32)) && !set.remove(TokenId(32)) && !set.remove(TokenId(1000)));
        assert_eq!(set, [0, 31, 95].map(TokenId).into_iter().collect());
        assert!(!set.is_empty() && TokenSet::from_words(vec![0, 0]).is_empty());
    }

    #[test]
    fn a_promise_is_kept_broken_or_given_up() {
        let next = Next { may_end: true, ..Next::default() };
        let (pending, promise) = PendingNext::promised(Box::new(|| ()));
        let keeper = std::thread::spawn({
            let next = next.clone();
            move || promise.begin().then(|| promise.keep(Ok(next)))
        });
        assert_eq!(pending.wait(), Ok(Arc::new(next)));
        assert_eq!(keeper.join().unwrap(), Some(()));

        let (pending, promise) = PendingNext::promised(Box::new(|| ()));
        drop(promise);
        assert!(matches!(pending.wait(), Err(RowFault::Other(why)) if why.contains("lost")));

        // Begun long ago: waiting for it gives it up at once, and what comes later is not looked at.
        let given_up = Arc::new(AtomicBool::new(false));
        let seen = given_up.clone();
        let (pending, promise) = PendingNext::promised(Box::new(move || seen.store(true, Ordering::Relaxed)));
        let long_ago =
            Instant::now().checked_sub(2 * MASK_TIME_MAX).expect("the machine has run for that long");
        pending.inner().state = State::Begun(long_ago);
        assert!(matches!(pending.wait(), Err(RowFault::Other(why)) if why.contains("more than 1s")));
        assert!(given_up.load(Ordering::Relaxed) && !promise.begin());
        promise.keep(Ok(Next::default()));
        assert!(pending.wait().is_err());
    }

    #[test]
    fn what_waits_for_a_mask_is_done_once_it_is_known_and_dropped_if_it_never_is() {
        let done = Arc::new(AtomicBool::new(false));
        let then = || -> Then {
            let done = done.clone();
            Box::new(move || assert!(!done.swap(true, Ordering::Relaxed), "once"))
        };
        let (pending, promise) = PendingNext::promised(Box::new(|| ()));
        pending.then(then());
        assert!(promise.begin() && !done.load(Ordering::Relaxed), "not before");
        promise.keep(Ok(Next::default()));
        assert!(done.swap(false, Ordering::Relaxed));
        // Known already.
        pending.then(then());
        assert!(done.load(Ordering::Relaxed));

        let (pending, promise) = PendingNext::promised(Box::new(|| ()));
        pending.then(then());
        drop(promise);
        pending.then(then());
        assert_eq!(Arc::strong_count(&done), 1);
    }
}
