//! Grammars that outputs must follow: JSON schemas, regular expressions, choices and Lark grammars, by llguidance.
//!
//! Grammars come from clients, so all about them is bounded. Before the library sees one: its bytes, its nesting, and that a schema
//! has no keyword that would not be enforced. While it is compiled: the library's limits below, wall-clock time, the number of
//! threads at it, and a stack that its recursion fits in. While it is followed: work per mask, parser items, lexer states
//! (memory), and wall-clock time ([`crate::mask`]). What passes a limit is an error: of the request while compiling, of that choice alone later.
//!
//! End tokens are not the grammar's: where it may end, it says so. Other control tokens are never chosen unless a Lark grammar
//! names them, as `<|name|>` or `<[id]>`.
//!
//! Absent on purpose: forced tokens; each is sampled like any other. (Guesses of what is sampled are another matter: [`Matcher::ahead`].)

mod kept;
mod numbers;
mod schema;
#[cfg(test)]
mod tests;
mod text;
mod work;
mod worker;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use llguidance::api::{GrammarWithLexer, ParserLimits, StopReason, TopLevelGrammar};
use llguidance::earley::SlicedBiasComputer;
use llguidance::{CancellationHandle, ParserFactory};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use toktrie::{ApproximateTokEnv, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie};

use self::kept::Kept;
use self::worker::Workers;
use crate::mask::{Grammar, Matcher, Next, PendingNext, Progress, TokenSet};
use crate::step::TokenId;
use crate::tokenizer::Tokenizer;

pub(crate) use self::schema::{Schemas, says_nothing};
pub(crate) use self::text::{is_limited, terminal};

/// Longest schema, as compact JSON, and list of choices.
const LIST_BYTES_MAX: usize = 256 << 10;

/// Longest grammar of a client.
const LARK_BYTES_MAX: usize = 64 << 10;

/// Longest grammar that is composed of parts, each within its own limits.
pub(crate) const COMPOSED_BYTES_MAX: usize = 1 << 20;

/// Longest regular expression; of a schema, all together.
const REGEX_BYTES_MAX: usize = 16 << 10;

/// Deepest nesting of brackets in a regular expression or a grammar.
const NESTING_MAX: usize = 128;

/// Compiling takes no longer for whoever waits for it.
const COMPILE_TIME_MAX: Duration = Duration::from_secs(3);

/// Grammars being compiled at a time, those that nobody waits for any longer included.
const COMPILING_MAX: usize = 2;

/// Bytes of stack, of which only what is used takes memory: the library recurses along its input.
const STACK: usize = 256 << 20;

/// Bytes of a compiled grammar's symbols and rules for each of its text, about.
const BYTES_PER_BYTE: usize = 16;

/// Longest message of the library that is passed on, in bytes.
const MESSAGE_MAX: usize = 400;

/// The trie has a limit on depth (1024); longer tokens are never chosen under a grammar.
const TOKEN_BYTES_MAX: usize = 1000;

/// What an output must be.
#[derive(Clone, Debug, PartialEq)]
pub enum ConstraintSpec {
    /// A JSON text that the schema, an object, allows; little white space, so that it comes to an end.
    Json(Value),
    /// A text that the regular expression matches as a whole: Rust's syntax without look-around, `\d` and `\w` in ASCII.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// A text of a grammar in llguidance's dialect of Lark: `%json` embeds schemas, held to the same rules as [`Self::Json`],
    /// `<|name|>` and `<[id]>` are control tokens. A rule's `temperature` is refused.
    Lark(String),
    /// The same, made here ([`crate::syntax::grammar`]): its parts were checked one by one.
    Composed(String),
}

impl ConstraintSpec {
    /// The right side of a rule that stands for it, for a part of a larger Lark grammar.
    ///
    /// # Errors
    /// If it is refused.
    pub fn rule(&self) -> Result<String, ConstraintError> {
        right_side(self).map_err(ConstraintError::Refused)
    }

    /// Stands for it: no other has the same.
    pub fn digest(&self) -> [u8; 32] {
        let mut digest = Sha256::new();
        match self {
            Self::Json(schema) => digest.update(format!("json {schema}")),
            Self::Regex(regex) => digest.update(format!("regex {regex}")),
            Self::Choice(choices) => digest.update(format!("choice {choices:?}")),
            Self::Lark(text) => digest.update(format!("lark {text}")),
            Self::Composed(text) => digest.update(format!("composed {text}")),
        }
        digest.finalize().into()
    }
}

/// Why there is no grammar.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConstraintError {
    /// The grammar is wrong, needs what is not supported, or is too large.
    #[error("{0}")]
    Refused(String),
    /// Too many grammars are being compiled.
    #[error("too many grammars are being compiled")]
    Busy,
    /// The vocabulary is none that the library can work with.
    #[error("the vocabulary does not allow for grammars: {0}")]
    Vocabulary(String),
    /// The system gave no thread.
    #[error("no thread for grammars")]
    Thread(#[source] std::io::Error),
}

/// Compiles grammars for one vocabulary.
pub struct ConstraintEngine {
    factory: Arc<ParserFactory>,
    ends: Arc<[TokenId]>,
    workers: Arc<Workers>,
    compiling: Arc<AtomicUsize>,
    kept: Mutex<Kept>,
}

impl std::fmt::Debug for ConstraintEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConstraintEngine").field("ends", &self.ends).finish_non_exhaustive()
    }
}

impl ConstraintEngine {
    /// For a model's vocabulary. Takes a while: what all masks share is computed here.
    ///
    /// # Errors
    /// If the library cannot work with the vocabulary, or there are no threads for masks.
    pub fn new(tokenizer: &Tokenizer) -> Result<Self, ConstraintError> {
        let ends = tokenizer.end_tokens();
        let factory = catch_unwind(AssertUnwindSafe(|| factory(tokenizer)))
            .unwrap_or_else(|_| Err("the grammar library panicked".to_owned()))
            .map_err(ConstraintError::Vocabulary)?;
        let workers = Workers::start().map_err(ConstraintError::Thread)?;
        let (factory, workers) = (Arc::new(factory), Arc::new(workers));
        Ok(Self { factory, ends, workers, compiling: Arc::default(), kept: Mutex::default() })
    }

    /// The grammar of a [`ConstraintSpec::digest`], if it was compiled lately.
    pub fn compiled(&self, digest: &[u8; 32]) -> Option<Arc<dyn Grammar>> {
        lock(&self.kept).get(digest)
    }

    /// Compiles, on a thread of its own, and waits for it; not again what was compiled lately.
    ///
    /// # Errors
    /// If the grammar is refused, or too many are being compiled.
    pub fn compile(&self, spec: &ConstraintSpec) -> Result<Arc<dyn Grammar>, ConstraintError> {
        let digest = spec.digest();
        if let Some(grammar) = self.compiled(&digest) {
            return Ok(grammar);
        }
        let source = source(spec).map_err(ConstraintError::Refused)?;
        let permit = Permit::take(&self.compiling).ok_or(ConstraintError::Busy)?;
        let (factory, ends, workers) = (self.factory.clone(), self.ends.clone(), self.workers.clone());
        let (tell, told) = mpsc::sync_channel(1);
        let compile = move || {
            let grammar = build(&factory, source, ends, workers);
            drop(permit);
            // Whoever asked may have gone.
            let _ = tell.send(grammar);
        };
        let builder = thread::Builder::new().name("grammar".to_owned()).stack_size(STACK);
        builder.spawn(compile).map_err(ConstraintError::Thread)?;
        let grammar = match told.recv_timeout(COMPILE_TIME_MAX) {
            Ok(grammar) => grammar,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                Err(format!("it takes more than {} seconds to compile", COMPILE_TIME_MAX.as_secs()))
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => Err("the grammar library failed on it".to_owned()),
        };
        let grammar = Arc::new(grammar.map_err(ConstraintError::Refused)?);
        lock(&self.kept).put(digest, grammar.clone(), grammar.bytes);
        Ok(grammar)
    }
}

/// A place among those who compile.
struct Permit(Arc<AtomicUsize>);

impl Permit {
    fn take(places: &Arc<AtomicUsize>) -> Option<Self> {
        let more = |taken| (taken < COMPILING_MAX).then_some(taken + 1);
        let taken = places.fetch_update(Ordering::AcqRel, Ordering::Acquire, more);
        taken.is_ok().then(|| Self(places.clone()))
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

fn factory(tokenizer: &Tokenizer) -> Result<ParserFactory, String> {
    let words: Vec<Vec<u8>> =
        (0..tokenizer.vocab_size()).map(|id| word(tokenizer, TokenId(id as u32))).collect();
    let vocab = u32::try_from(words.len()).ok().filter(|&n| n < 1 << 21).ok_or("it is too large")?;
    let ends: Vec<u32> = tokenizer.end_tokens().iter().map(|end| end.0).collect();
    let eos = ends.first().copied().unwrap_or(toktrie::INVALID_TOKEN);
    let mut trie = TokTrie::from(&TokRxInfo::new(vocab, eos), &words);
    if !ends.is_empty() {
        trie = trie.with_eos_tokens(&ends);
    }
    let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
    let slices = SlicedBiasComputer::general_slices();
    let factory = ParserFactory::new(&env, InferenceCapabilities::default(), &slices);
    let mut factory = factory.map_err(|e| message(&e.to_string()))?;
    factory.quiet();
    *factory.limits_mut() = ParserLimits {
        max_items_in_row: 2000,
        initial_lexer_fuel: 200_000,
        step_lexer_fuel: 100_000,
        step_max_items: 50_000,
        // A state takes one or two kilobytes.
        max_lexer_states: 20_000,
        max_grammar_size: 100_000,
        precompute_large_lexemes: true,
        verbose_errors: false,
    };
    Ok(factory)
}

/// A token as the library wants it: control tokens after a byte that text does not have, nothing for what no grammar reaches.
fn word(tokenizer: &Tokenizer, token: TokenId) -> Vec<u8> {
    let bytes = tokenizer.raw_bytes(token);
    if tokenizer.is_control(token) {
        let named = bytes.starts_with(b"<") && bytes.ends_with(b">") && bytes.len() <= TOKEN_BYTES_MAX;
        return if named { [&[TokTrie::SPECIAL_TOKEN_MARKER], &bytes[..]].concat() } else { Vec::new() };
    }
    let usable = bytes.len() <= TOKEN_BYTES_MAX && bytes.first() != Some(&TokTrie::SPECIAL_TOKEN_MARKER);
    if usable { bytes } else { Vec::new() }
}

/// Checks what is cheap to check, and says it in the library's terms.
fn source(spec: &ConstraintSpec) -> Result<TopLevelGrammar, String> {
    match spec {
        ConstraintSpec::Json(schema) => {
            Ok(TopLevelGrammar::from_json_schema(Schemas::default().prepared(schema)?))
        }
        ConstraintSpec::Regex(_) | ConstraintSpec::Choice(_) => {
            Ok(TopLevelGrammar::from_lark(format!("start: {}", right_side(spec)?)))
        }
        ConstraintSpec::Lark(text) => Ok(TopLevelGrammar::from_lark(clients_own(text)?)),
        ConstraintSpec::Composed(text) => {
            check_bytes("the grammar with all schemas", text.len(), COMPOSED_BYTES_MAX)?;
            Ok(TopLevelGrammar::from_lark(text.clone()))
        }
    }
}

/// A client's grammar, checked, its schemas too.
fn clients_own(text: &str) -> Result<String, String> {
    bounded("the grammar", text, LARK_BYTES_MAX)?;
    if names_temperature(text) {
        return Err("a rule's 'temperature' is not supported".to_owned());
    }
    Schemas::default().prepared_in(text)
}

/// The right side of a rule that stands for it.
fn right_side(spec: &ConstraintSpec) -> Result<String, String> {
    match spec {
        ConstraintSpec::Json(schema) => Schemas::default().rule(schema).map_err(|e| e.to_string()),
        ConstraintSpec::Regex(regex) => {
            bounded("the regular expression", regex, REGEX_BYTES_MAX)?;
            Ok(format!("/{}/", anchored(regex)?))
        }
        ConstraintSpec::Choice(choices) => {
            let bytes: usize = choices.iter().map(String::len).sum();
            check_bytes("the list of choices", bytes, LIST_BYTES_MAX)?;
            if choices.iter().any(String::is_empty) || choices.is_empty() {
                return Err("there must be at least one choice, and none may be empty".to_owned());
            }
            let quoted: Vec<String> = choices.iter().map(|text| lark_literal(text)).collect();
            Ok(format!("({})", quoted.join(" | ")))
        }
        ConstraintSpec::Lark(text) => Ok(format!("%lark {{\n{}\n}}", clients_own(text)?)),
        ConstraintSpec::Composed(text) => Ok(format!("%lark {{\n{text}\n}}")),
    }
}

/// A text as a literal of a Lark grammar.
pub fn lark_literal(text: &str) -> String {
    Value::from(text).to_string()
}

fn check_bytes(what: &str, bytes: usize, most: usize) -> Result<(), String> {
    match bytes <= most {
        true => Ok(()),
        false => Err(format!("{what} has {bytes} bytes, {most} is the most")),
    }
}

/// Size, and nesting: counted without a look at quotes, which can only count too much.
fn bounded(what: &str, text: &str, bytes_max: usize) -> Result<(), String> {
    check_bytes(what, text.len(), bytes_max)?;
    let (mut depth, mut deepest, mut negations, mut most) = (0usize, 0, 0, 0);
    for c in text.chars() {
        negations = if c == '~' { negations + 1 } else { 0 };
        most = negations.max(most);
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = depth.max(deepest);
    }
    match deepest.max(most) <= NESTING_MAX {
        true => Ok(()),
        false => Err(format!("{what} is nested more than {NESTING_MAX} deep")),
    }
}

/// The whole output is matched anyway: anchors around it say nothing new.
fn anchored(regex: &str) -> Result<String, String> {
    let escaped = |text: &str| text.bytes().rev().take_while(|&b| b == b'\\').count() % 2 == 1;
    if escaped(regex) {
        return Err("the regular expression ends in a backslash".to_owned());
    }
    let regex = regex.strip_prefix('^').unwrap_or(regex);
    let regex = regex.strip_suffix('$').filter(|rest| !escaped(rest)).unwrap_or(regex);
    Ok(llguidance::regex_to_lark(regex, "dw"))
}

/// Whether an attribute list outside of strings, regular expressions and comments has a temperature.
fn names_temperature(text: &str) -> bool {
    let mut chars = text.chars().peekable();
    let mut bare = String::with_capacity(text.len());
    while let Some(c) = chars.next() {
        match c {
            '"' => {
                while let Some(c) = chars.next().filter(|&c| c != '"') {
                    if c == '\\' {
                        chars.next();
                    }
                }
            }
            '/' if chars.peek() == Some(&'/') => while chars.next().is_some_and(|c| c != '\n') {},
            '/' => {
                while let Some(c) = chars.next().filter(|&c| c != '/') {
                    if c == '\\' {
                        chars.next();
                    }
                }
            }
            c if c.is_whitespace() => {}
            c => bare.push(c),
        }
    }
    bare.contains("[temperature=") || bare.contains(",temperature=")
}

fn build(
    factory: &ParserFactory,
    source: TopLevelGrammar,
    ends: Arc<[TokenId]>,
    workers: Arc<Workers>,
) -> Result<LlGrammar, String> {
    let text: usize = source.grammars.iter().map(text_bytes).sum();
    let parser = factory.create_parser(source).map_err(|e| message(&e.to_string()))?;
    let bytes = parser.parser.lexer_stats().num_bytes + text * BYTES_PER_BYTE;
    let mut matcher = llguidance::Matcher::new(Ok(parser)).into_cancellable();
    let first = next(&mut matcher, &ends)?;
    if first.tokens.is_empty() {
        return Err("it allows no text".to_owned());
    }
    Ok(LlGrammar { start: Arc::new(Mutex::new(matcher)), first: Arc::new(first), ends, workers, bytes })
}

fn text_bytes(grammar: &GrammarWithLexer) -> usize {
    let schema = grammar.json_schema.as_ref().map_or(0, |schema| schema.to_string().len());
    grammar.lark_grammar.as_ref().map_or(schema, String::len)
}

/// What may follow.
fn next(matcher: &mut llguidance::Matcher, ends: &[TokenId]) -> Result<Next, String> {
    if matcher.is_stopped() && matcher.stop_reason().is_ok() {
        return Ok(Next { tokens: TokenSet::default(), may_end: true });
    }
    let mask = match matcher.compute_mask() {
        Ok(mask) => mask,
        Err(e) => return Err(message(&e.to_string())),
    };
    let mut tokens = TokenSet::from_words(mask.as_slice().to_vec());
    let mut may_end = matcher.is_accepting().map_err(|e| message(&e.to_string()))?;
    for &end in ends {
        may_end |= tokens.remove(end);
    }
    Ok(Next { tokens, may_end })
}

/// The library's message without its reports: one line, bounded.
fn message(text: &str) -> String {
    if text.starts_with("panic") {
        tracing::warn!(error = text, "the grammar library panicked");
        return "the grammar library failed on it".to_owned();
    }
    let text = text.replace("<non-verbose/>", "");
    if text.trim() == StopReason::NoExtensionBias.to_string() {
        return "no token of the vocabulary can follow".to_owned();
    }
    // The library names its settings, which are not the client's.
    if ["fuel", "too big", "too large"].iter().any(|word| text.contains(word)) {
        return "it is too complex: it needs more work than a grammar may".to_owned();
    }
    let mut line = String::new();
    for word in text.split_whitespace() {
        if line.len() + word.len() >= MESSAGE_MAX {
            line.push_str(" …");
            break;
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    line
}

/// A compiled grammar, at its beginning.
struct LlGrammar {
    start: Arc<Mutex<llguidance::Matcher>>,
    first: Arc<Next>,
    ends: Arc<[TokenId]>,
    workers: Arc<Workers>,
    /// About what it takes.
    bytes: usize,
}

impl std::fmt::Debug for LlGrammar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LlGrammar").finish_non_exhaustive()
    }
}

impl Grammar for LlGrammar {
    fn matcher(&self) -> Box<dyn Matcher> {
        let (next, promise) = PendingNext::promised(Box::new(|| ()));
        let state = Arc::new(Mutex::new(None));
        let (start, first, copy) = (self.start.clone(), self.first.clone(), state.clone());
        self.workers.post(Box::new(move || {
            if promise.begin() {
                // Caches and all: choices do not wait for each other's masks.
                let matcher = lock(&start).deep_clone();
                *lock(&copy) = Some(matcher);
                promise.keep(Ok(Next::clone(&first)));
            }
        }));
        let (ends, workers) = (self.ends.clone(), self.workers.clone());
        Box::new(LlMatcher { state, next: Some(next), ahead: Vec::new(), ends, workers })
    }
}

/// What panics in the library is caught within it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A choice's place in its grammar.
struct LlMatcher {
    /// Shared with the worker that copies it or computes a mask; whoever chose a token has waited for that.
    state: Arc<Mutex<Option<llguidance::Matcher>>>,
    /// None from a token on until the next mask is asked for.
    next: Option<PendingNext>,
    /// What would follow guesses.
    ahead: Vec<PendingNext>,
    ends: Arc<[TokenId]>,
    workers: Arc<Workers>,
}

impl std::fmt::Debug for LlMatcher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LlMatcher").finish_non_exhaustive()
    }
}

/// Of a choice whose first mask has not been computed.
const EARLY: &str = "a token came before its mask";

impl Matcher for LlMatcher {
    fn next(&mut self) -> PendingNext {
        if let Some(next) = &self.next {
            return next.clone();
        }
        // As in `advance`, which came before.
        let cancel = lock(&self.state).as_ref().and_then(llguidance::Matcher::cancellation_handle);
        let cancel = cancel.unwrap_or_default();
        let (pending, promise) = PendingNext::promised(Box::new(move || cancel.cancel()));
        let (state, ends) = (self.state.clone(), self.ends.clone());
        self.workers.post(Box::new(move || {
            if promise.begin() {
                // The lock is free again before anyone learns of the mask: `advance` does not wait for it.
                let result =
                    lock(&state).as_mut().map_or(Err(EARLY.to_owned()), |matcher| next(matcher, &ends));
                promise.keep(result);
            }
        }));
        self.next.insert(pending).clone()
    }

    fn ahead(&mut self, guesses: &[TokenId]) -> Vec<PendingNext> {
        let cancel = Arc::new(OnceLock::<CancellationHandle>::new());
        let promised = |_: &TokenId| {
            let cancel = cancel.clone();
            PendingNext::promised(Box::new(move || {
                cancel.get().into_iter().for_each(CancellationHandle::cancel)
            }))
        };
        let (pending, promises): (Vec<_>, Vec<_>) = guesses.iter().map(promised).unzip();
        self.ahead.clone_from(&pending);
        let (guesses, state, ends) = (guesses.to_vec(), self.state.clone(), self.ends.clone());
        let follow = move || {
            // A copy, as the choice may be told how it goes on before all guesses are followed.
            let Some(mut matcher) = lock(&state).as_ref().map(llguidance::Matcher::deep_clone) else {
                return;
            };
            // Before anything is begun: who gives up what is begun finds the handle.
            if let Some(handle) = matcher.cancellation_handle() {
                let _ = cancel.set(handle);
            }
            for (guess, promise) in guesses.into_iter().zip(promises) {
                if !promise.begin() || matcher.try_consume_tokens(&[guess.0]).ok() != Some(1) {
                    return;
                }
                promise.keep(next(&mut matcher, &ends));
            }
        };
        // Not before the choice's own mask: then the state is there, and free, and no thread waits for another.
        let workers = Arc::downgrade(&self.workers);
        self.next().then(Box::new(move || {
            if let Some(workers) = workers.upgrade() {
                workers.post(Box::new(follow));
            }
        }));
        pending
    }

    fn advance(&mut self, token: TokenId) -> Result<Progress, String> {
        self.next = None;
        self.ahead.drain(..).for_each(|guess| guess.give_up());
        // Free, or held for as long as a copy takes.
        let mut state = lock(&self.state);
        let matcher = state.as_mut().ok_or(EARLY)?;
        matcher.consume_token(token.0).map_err(|e| message(&e.to_string()))?;
        if matcher.is_stopped() {
            let reason = matcher.stop_reason();
            return if reason.is_ok() { Ok(Progress::Complete) } else { Err(reason.to_string()) };
        }
        Ok(Progress::Open)
    }
}

impl Drop for LlMatcher {
    fn drop(&mut self) {
        // A mask that is being computed is of no use to anyone.
        self.next.iter().chain(&self.ahead).for_each(PendingNext::give_up);
    }
}
