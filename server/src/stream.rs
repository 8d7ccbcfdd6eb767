//! From the engine's events to pieces of an answer. Whole answers and streams are made of the same pieces, so their
//! texts are equal.
//!
//! Text is shown as far as no stop string can take it back and no character is cut. Dropping an [`Answer`]
//! cancels its submissions: a client that is gone costs nothing more. What it has cost is recorded when the engine says it.

use std::collections::VecDeque;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use frugal_models::detok::Detokenizer;
use frugal_models::step::{TokenBytes, TokenId, TokenScore};
use frugal_scheduler::handle::Submission;
use frugal_scheduler::request::{Event, FinishReason, Report};
use futures_util::FutureExt as _;
use futures_util::stream::{SelectAll, Stream, StreamExt as _};
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};
use utoipa::ToSchema;

use crate::access::{Answered, End, Line};
use crate::admit::{Admitted, Echo};
use crate::error::{ApiError, from_submit};
use crate::form::{Form, FormReader, Part};
use crate::state::Engine;
use crate::usage::Totals;

/// A part of an answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Piece {
    /// More of a choice: text, tokens or both.
    More {
        /// Which choice: prompt by prompt, `n` each.
        choice: usize,
        /// In order; may be empty.
        parts: Vec<Part>,
        /// The tokens that came, whether or not their text did; kept only if log-probabilities were asked for.
        tokens: Vec<Scored>,
    },
    /// A choice's end.
    Finish {
        /// Which choice.
        choice: usize,
        /// Why.
        ending: Ending,
    },
    /// A prompt's log-probabilities, if they were asked for; before any of its choices has a piece.
    Prompt {
        /// Its choices.
        choices: Range<usize>,
        /// Its tokens; the first has no score.
        tokens: Vec<Scored>,
    },
}

/// Why a choice ended.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ending {
    /// OpenAI's word: `stop`, `length` or `tool_calls`.
    pub reason: &'static str,
    /// Which of the client's own stops it was, if it was one.
    pub stop: Option<StopReason>,
}

/// `stop_reason`, as vLLM has it.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
#[serde(untagged)]
pub enum StopReason {
    /// One of `stop_token_ids`.
    Token(u32),
    /// One of `stop`.
    Text(String),
}

/// A token and its place.
#[derive(Clone, Debug, PartialEq)]
pub struct Scored {
    /// The token.
    pub token: TokenId,
    /// None for the first of an echoed prompt.
    pub score: Option<TokenScore>,
    /// Characters of the choice's text that are complete before this token's bytes.
    pub text_offset: usize,
}

/// An answer in the making.
pub struct Answer {
    events: SelectAll<Events>,
    /// Of each prompt, until its last event comes.
    accounts: Vec<Option<oneshot::Receiver<Box<Report>>>>,
    bytes: Arc<TokenBytes>,
    prompts: Vec<PromptState>,
    choices: Vec<ChoiceState>,
    ready: VecDeque<Result<Piece, ApiError>>,
    totals: Totals,
    /// Prompts whose last event has come.
    done: usize,
    /// Log-probabilities were asked for, with so many alternatives: of the answer, and of the prompt.
    logprobs: Option<u32>,
    prompt_logprobs: Option<u32>,
    stops: Stops,
    /// Output tokens so far.
    tokens_seen: u64,
    end: End,
    line: Arc<Line>,
    submitted: SystemTime,
    reports: Vec<Report>,
    reasons: Vec<&'static str>,
}

/// What the client named to end a choice.
struct Stops {
    strings: Arc<[String]>,
    tokens: Arc<[TokenId]>,
}

/// What is known of one prompt.
struct PromptState {
    /// What the answer's choices begin with.
    echo: Option<Echo>,
    /// Its choices have begun.
    begun: bool,
    ids: Arc<[TokenId]>,
    scores: Vec<TokenScore>,
    /// First of its choices.
    first_choice: usize,
    n: usize,
    /// Choices that have not ended.
    running: usize,
    /// Why the request as a whole failed.
    failed: Option<ApiError>,
}

/// What is known of one choice.
#[derive(Default)]
struct ChoiceState {
    /// Bytes that a stop string may still take back.
    held: VecDeque<u8>,
    /// Bytes of the output that were shown, or wait in `text` for the rest of their character.
    released: usize,
    text: Detokenizer,
    /// Characters complete in the bytes so far, held and echoed ones included; counted for log-probabilities only.
    characters: usize,
    counter: Detokenizer,
    finished: bool,
    /// If the answer's text has a form.
    form: Option<FormReader>,
}

impl ChoiceState {
    /// How many characters of the text are complete before `bytes`, which come next.
    fn offset_of(&mut self, bytes: &[u8]) -> usize {
        let offset = self.characters;
        self.characters += self.counter.push(bytes).chars().count();
        offset
    }

    /// What the bytes up to `until`, counted from the beginning of the output, add to the answer.
    fn release(&mut self, until: usize, parts: &mut Vec<Part>) {
        while let Some(at) = self.form.as_ref().and_then(|form| form.mark_before(until)) {
            self.release_text(at, parts);
            if let Some(form) = &mut self.form {
                form.read_mark(parts);
            }
        }
        self.release_text(until, parts);
    }

    fn release_text(&mut self, until: usize, parts: &mut Vec<Part>) {
        let count = until.saturating_sub(self.released).min(self.held.len());
        self.released += count;
        let bytes: Vec<u8> = self.held.drain(..count).collect();
        let text = self.text.push(&bytes);
        self.tell(text, parts);
    }

    fn tell(&mut self, text: String, parts: &mut Vec<Part>) {
        match &mut self.form {
            _ if text.is_empty() => {}
            Some(form) => form.read(&text, parts),
            None => parts.push(Part::Content(text)),
        }
    }
}

impl Answer {
    /// Submits every prompt; all or none are taken, and charged.
    ///
    /// # Errors
    /// What the engine said of the first that it did not take, or that their key has used its tokens.
    pub fn start(engine: &Engine, admitted: Admitted, line: Arc<Line>) -> Result<Self, ApiError> {
        let Some(budget) = line.budget() else { return Self::submit(engine, admitted, line) };
        let tokens = admitted.prompts.iter().map(|prompt| prompt.request.prompt.len() as u64).sum();
        budget.prompt(tokens)?;
        Self::submit(engine, admitted, line.clone()).inspect_err(|_| budget.refund(tokens))
    }

    fn submit(engine: &Engine, mut admitted: Admitted, line: Arc<Line>) -> Result<Self, ApiError> {
        let n = admitted.n as usize;
        let strings = admitted.prompts.first().map(|p| p.request.stop.clone()).unwrap_or_default();
        let mut prompts = Vec::with_capacity(admitted.prompts.len());
        let mut requests = Vec::with_capacity(admitted.prompts.len());
        for (i, prompt) in admitted.prompts.into_iter().enumerate() {
            let (echo, ids, first_choice) = (prompt.echo, prompt.request.prompt.clone(), i * n);
            let (begun, scores, running, failed) = (false, Vec::new(), n, None);
            prompts.push(PromptState { echo, begun, ids, scores, first_choice, n, running, failed });
            requests.push(prompt.request);
        }
        let submissions = engine.handle.submit_at(admitted.place.take(), requests);
        let submissions = submissions.map_err(|e| from_submit(e, admitted.prompt_field))?;
        let waited = submissions.first().map_or(0, |one| engine.handle.now().0.saturating_sub(one.at.0));
        let submitted = SystemTime::now() - Duration::from_nanos(waited);
        let (mut events, mut accounts) = (SelectAll::new(), Vec::with_capacity(prompts.len()));
        for (prompt, Submission { events: told, account, .. }) in submissions.into_iter().enumerate() {
            events.push(Events { prompt, told });
            accounts.push(Some(account));
        }
        let form = |choice| admitted.form.as_ref().map(|form: &Form| form.reader(choice));
        let choices = (0..prompts.len() * n).map(|i| ChoiceState { form: form(i), ..ChoiceState::default() });
        let choices = choices.collect();
        Ok(Self {
            events,
            accounts,
            bytes: engine.tokenizer.token_bytes(),
            prompts,
            choices,
            ready: VecDeque::new(),
            totals: Totals::default(),
            done: 0,
            logprobs: admitted.logprobs,
            prompt_logprobs: admitted.prompt_logprobs,
            stops: Stops { strings, tokens: admitted.stop_token_ids },
            tokens_seen: 0,
            end: End::Abandoned,
            line,
            submitted,
            reports: Vec::new(),
            reasons: Vec::new(),
        })
    }

    /// Number of choices.
    pub fn choices(&self) -> usize {
        self.choices.len()
    }

    /// Tokens and money of what has ended; all of it once [`Answer::next`] returned None.
    pub fn totals(&self) -> &Totals {
        &self.totals
    }

    /// Tokens of the prompts and of the answer so far.
    pub fn tokens(&self) -> [u64; 2] {
        [self.prompts.iter().map(|prompt| prompt.ids.len() as u64).sum(), self.tokens_seen]
    }

    /// The next piece; None once every choice has ended and every account is closed, or after an error.
    ///
    /// Cancelling the future loses nothing.
    pub async fn next(&mut self) -> Option<Result<Piece, ApiError>> {
        loop {
            if let Some(piece) = self.ready.pop_front() {
                return Some(piece);
            }
            if self.end != End::Abandoned {
                return None;
            }
            if self.done == self.prompts.len() {
                self.end = End::Complete;
                return None;
            }
            let result = match self.events.next().await {
                Some((prompt, event)) => self.on_event(prompt, event),
                // Every request is promised a last event; without it, the engine is gone.
                None => Err(ApiError::internal("The engine stopped")),
            };
            if let Err(error) = result {
                self.leave();
                self.end = End::Failed;
                self.ready.push_back(Err(error));
            }
        }
    }

    fn on_event(&mut self, prompt: usize, event: Event) -> Result<(), ApiError> {
        match event {
            Event::PromptScores { scores, .. } => self.prompts[prompt].scores.extend(scores),
            Event::Token { choice, token, score, release } => {
                self.tokens_seen += 1;
                self.charge(1);
                self.begin(prompt);
                self.on_token(self.choice(prompt, choice), token, score, release as usize);
            }
            Event::Finish { choice, reason, text_len } => {
                self.begin(prompt);
                return self.on_finish(prompt, self.choice(prompt, choice), reason, text_len as usize);
            }
            Event::Done(report) => {
                self.done += 1;
                self.accounts[prompt] = None;
                self.totals.add(&report);
                let state = &mut self.prompts[prompt];
                // An engine that broke down leaves choices without an end.
                let broken = (state.running > 0).then(|| ApiError::internal("The engine failed"));
                let error = state.failed.take().or(broken);
                let detailed = error.map(|error| match &report.fault {
                    Some(fault) => error.with_detail(fault),
                    None => error,
                });
                self.reports.push(*report);
                return detailed.map_or(Ok(()), Err);
            }
        }
        Ok(())
    }

    /// Cancels what runs, and takes into account what the engine has told already and nobody will read.
    fn leave(&mut self) {
        self.events.iter_mut().for_each(|events| events.told.close());
        while let Some(Some((prompt, event))) = tokio::task::unconstrained(self.events.next()).now_or_never()
        {
            match event {
                Event::Token { .. } => {
                    self.tokens_seen += 1;
                    self.charge(1);
                }
                Event::Done(report) => {
                    self.accounts[prompt] = None;
                    self.totals.add(&report);
                    self.reports.push(*report);
                }
                Event::PromptScores { .. } | Event::Finish { .. } => {}
            }
        }
    }

    fn charge(&self, tokens: u64) {
        if let Some(budget) = self.line.budget() {
            budget.output(tokens);
        }
    }

    fn choice(&self, prompt: usize, choice: u32) -> usize {
        let state = &self.prompts[prompt];
        assert!((choice as usize) < state.n, "the engine knows how many choices there are");
        state.first_choice + choice as usize
    }

    /// Choices begin with the prompt if it is to be repeated: by now its scores have come.
    fn begin(&mut self, prompt: usize) {
        let prompt = &mut self.prompts[prompt];
        let choices = prompt.first_choice..prompt.first_choice + prompt.n;
        if std::mem::replace(&mut prompt.begun, true) {
            return;
        }
        let scores = std::mem::take(&mut prompt.scores);
        if let Some(top) = self.prompt_logprobs {
            let scores = std::iter::once(None).chain(scores.iter().map(|s| Some(narrowed(s, top))));
            let tokens = prompt.ids.iter().zip(scores);
            let tokens = tokens.map(|(&token, score)| Scored { token, score, text_offset: 0 }).collect();
            self.ready.push_back(Ok(Piece::Prompt { choices: choices.clone(), tokens }));
        }
        let Some(echo) = prompt.echo.take() else { return };
        for choice in choices {
            let state = &mut self.choices[choice];
            let mut tokens = Vec::new();
            let mut scores = scores.iter();
            let mut text = String::new();
            for (i, (piece, &token)) in echo.pieces.iter().zip(prompt.ids.iter()).enumerate() {
                text.push_str(&state.text.push(piece));
                if let Some(top) = self.logprobs {
                    let score = if i == 0 { None } else { scores.next().map(|s| narrowed(s, top)) };
                    tokens.push(Scored { token, score, text_offset: state.offset_of(piece) });
                }
            }
            self.ready.push_back(Ok(Piece::More { choice, parts: vec![Part::Content(text)], tokens }));
        }
    }

    fn on_token(&mut self, choice: usize, token: TokenId, score: Option<TokenScore>, release: usize) {
        let state = &mut self.choices[choice];
        let bytes = self.bytes.get(token);
        if let Some(form) = &mut state.form {
            form.on_token(token, state.released + state.held.len());
        }
        state.held.extend(bytes);
        let mut parts = Vec::new();
        state.release(release, &mut parts);
        let mut tokens = Vec::new();
        if self.logprobs.is_some() {
            tokens.push(Scored { token, score, text_offset: state.offset_of(bytes) });
        }
        if !parts.is_empty() || !tokens.is_empty() {
            self.ready.push_back(Ok(Piece::More { choice, parts, tokens }));
        }
    }

    fn on_finish(
        &mut self,
        prompt: usize,
        choice: usize,
        reason: FinishReason,
        text_len: usize,
    ) -> Result<(), ApiError> {
        let state = &mut self.choices[choice];
        assert!(!state.finished, "a choice ends once");
        state.finished = true;
        let mut parts = Vec::new();
        state.release(text_len, &mut parts);
        let rest = std::mem::take(&mut state.text).finish();
        state.tell(rest, &mut parts);
        let mut form = state.form.take();
        if let Some(form) = &mut form {
            form.finish(&mut parts);
            *self.totals.reasoning_tokens.get_or_insert(0) += form.reasoning_tokens();
        }
        state.held = VecDeque::new();
        let prompt = &mut self.prompts[prompt];
        prompt.running -= 1;
        if !parts.is_empty() {
            self.ready.push_back(Ok(Piece::More { choice, parts, tokens: Vec::new() }));
        }
        match outcome(reason, &self.stops) {
            Ok(mut ending) => {
                let cut = matches!(reason, FinishReason::StopString(_));
                ending.reason = form.map_or(ending.reason, |form| form.reason(ending.reason, cut));
                self.reasons.push(ending.reason);
                self.ready.push_back(Ok(Piece::Finish { choice, ending }));
            }
            // What remains of the account, and the reason for a fault, come with the last event.
            Err(error) if prompt.running == 0 => prompt.failed = Some(error),
            // The others may run on for long.
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if self.end != End::Complete {
            self.leave();
        }
        let open: Vec<_> = self.accounts.drain(..).flatten().collect();
        let bill = Bill {
            asked: self.prompts.iter().map(|prompt| prompt.ids.len() as u64).sum(),
            charged: self.tokens_seen,
            line: self.line.clone(),
            answered: Answered {
                totals: std::mem::take(&mut self.totals),
                end: self.end,
                submitted: self.submitted,
                reports: std::mem::take(&mut self.reports),
                reasons: std::mem::take(&mut self.reasons),
            },
        };
        match tokio::runtime::Handle::try_current() {
            // The engine closes them within a step.
            Ok(runtime) if !open.is_empty() => drop(runtime.spawn(bill.close(open))),
            _ => bill.record(),
        }
    }
}

/// What an answer took, as far as it is known.
struct Bill {
    /// Tokens of the prompts.
    asked: u64,
    /// Output tokens that its key has paid.
    charged: u64,
    line: Arc<Line>,
    answered: Answered,
}

impl Bill {
    /// With the accounts of prompts that were still running.
    async fn close(mut self, open: Vec<oneshot::Receiver<Box<Report>>>) {
        for account in open {
            // An engine that stopped tells none.
            if let Ok(report) = account.await {
                self.answered.totals.add(&report);
                self.answered.reports.push(*report);
            }
        }
        self.record();
    }

    fn record(mut self) {
        let totals = &mut self.answered.totals;
        if self.answered.end != End::Complete {
            totals.prompt_tokens = totals.prompt_tokens.max(self.asked);
            totals.completion_tokens = totals.completion_tokens.max(self.charged);
        }
        // End tokens count and were not seen, nor what was computed after the client had left.
        if let Some(budget) = self.line.budget() {
            budget.output(totals.completion_tokens.saturating_sub(self.charged));
        }
        self.line.record(self.answered);
    }
}

/// One prompt's events.
struct Events {
    prompt: usize,
    told: mpsc::Receiver<Event>,
}

impl Stream for Events {
    type Item = (usize, Event);

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let prompt = self.prompt;
        self.told.poll_recv(cx).map(|event| event.map(|event| (prompt, event)))
    }
}

/// A score with at most `top` alternatives: more were computed if two fields asked for them.
fn narrowed(score: &TokenScore, top: u32) -> TokenScore {
    TokenScore { top: score.top.iter().take(top as usize).copied().collect(), ..*score }
}

/// What a client is told of an end, or the error it is.
fn outcome(reason: FinishReason, stops: &Stops) -> Result<Ending, ApiError> {
    match reason {
        FinishReason::EndToken(token) => {
            let stop = stops.tokens.contains(&token).then_some(StopReason::Token(token.0));
            Ok(Ending { reason: "stop", stop })
        }
        FinishReason::Complete => Ok(Ending { reason: "stop", stop: None }),
        FinishReason::StopString(index) => {
            let text = stops.strings.get(index as usize);
            Ok(Ending { reason: "stop", stop: text.cloned().map(StopReason::Text) })
        }
        FinishReason::Length => Ok(Ending { reason: "length", stop: None }),
        FinishReason::Timeout => Err(ApiError::timeout()),
        FinishReason::Shutdown => Err(ApiError::shutting_down()),
        FinishReason::Cancelled => Err(ApiError::internal("The request was cancelled by the server")),
        FinishReason::Fault => Err(ApiError::internal("The engine failed")),
        FinishReason::Impossible => Err(ApiError::impossible()),
    }
}
