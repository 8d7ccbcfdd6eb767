//! Pieces of an answer into bodies: one JSON object, or server-sent events.
//!
//! A stream's status is decided by what comes first: an error before any piece is an HTTP error. Later errors are
//! an event `data: {"error": ...}`, after which the stream ends without `[DONE]`. While nothing comes, comments keep
//! the connection open.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::http::{HeaderName, HeaderValue};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream::{self, Stream};
use serde::Serialize;
use utoipa::ToSchema;

use crate::access::Line;
use crate::admit::{Admitted, ToldUsage};
use crate::error::ApiError;
use crate::form::Part;
use crate::logprobs::{Names, PromptLogprobs, PromptToken};
use crate::state::State;
use crate::stream::{Answer, Ending, Piece, Scored};
use crate::usage::Usage;

/// What an endpoint's answers look like.
pub trait Shape: Send + Sync + 'static {
    /// A choice of a whole answer.
    type Choice: Serialize + ToSchema;
    /// A choice of a chunk.
    type Delta: Serialize + ToSchema;
    /// Before the id.
    const ID_PREFIX: &'static str;
    /// `object` of a whole answer.
    const OBJECT: &'static str;
    /// `object` of a chunk.
    const CHUNK_OBJECT: &'static str;
    /// Log-probabilities of the prompt are the answer's own, for it has one prompt; else each choice has its prompt's.
    const ONE_PROMPT: bool;

    /// A choice as a whole.
    fn choice(&self, index: usize, whole: Whole) -> Self::Choice;
    /// What a stream says of a choice before its first text, if anything.
    fn opening(&self, index: usize) -> Option<Self::Delta>;
    /// More of a choice; no part if only tokens came.
    fn more(&self, index: usize, part: Option<Part>, tokens: &[Scored]) -> Self::Delta;
    /// The end of a choice.
    fn finish(&self, index: usize, ending: Ending) -> Self::Delta;
}

/// All of a choice.
#[derive(Debug, Default)]
pub struct Whole {
    /// The text that the user sees.
    pub text: String,
    /// The text of its reasoning.
    pub reasoning: String,
    /// Calls of functions.
    pub calls: Vec<Called>,
    /// Its tokens, if log-probabilities were asked for.
    pub tokens: Vec<Scored>,
    /// Why it ended.
    pub ending: Ending,
    /// Of its prompt, if asked for and not the answer's own.
    pub prompt_logprobs: Option<Arc<PromptLogprobs>>,
}

/// A whole answer, or a chunk of one.
#[derive(Serialize, ToSchema)]
#[schema(as = Completion)]
pub(crate) struct Body<'a, C> {
    id: &'a str,
    object: &'static str,
    created: u64,
    model: &'a str,
    choices: Vec<C>,
    /// Of a whole answer; in a stream, of the last chunk if `include_usage` is set, and null in the others.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Usage>)]
    usage: Option<Option<Usage>>,
    /// The same one, request and seed give the same tokens.
    system_fingerprint: &'a str,
    /// Of a chat, for each token of its prompt, by id.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<Option<HashMap<String, PromptToken>>>>)]
    prompt_logprobs: Option<Arc<PromptLogprobs>>,
}

/// A call of a function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Called {
    /// Its id.
    pub id: String,
    /// The function.
    pub name: String,
    /// As the model wrote them.
    pub arguments: String,
}

impl Whole {
    /// More of it.
    pub fn add(&mut self, part: Part) {
        match part {
            Part::Content(text) => self.text.push_str(&text),
            Part::Reasoning(text) => self.reasoning.push_str(&text),
            Part::Call { id, name, .. } => self.calls.push(Called { id, name, arguments: String::new() }),
            Part::Arguments { text, .. } => {
                if let Some(call) = self.calls.last_mut() {
                    call.arguments.push_str(&text);
                }
            }
        }
    }
}

/// What all chunks of an answer share.
struct Envelope {
    id: String,
    created: u64,
    fingerprint: Arc<str>,
    state: State,
}

impl Envelope {
    fn json<C: Serialize + ToSchema>(
        &self,
        object: &'static str,
        choices: Vec<C>,
        usage: Option<Option<Usage>>,
        prompt_logprobs: Option<Arc<PromptLogprobs>>,
    ) -> String {
        let body = Body {
            id: &self.id,
            object,
            created: self.created,
            model: self.state.model(),
            choices,
            usage,
            system_fingerprint: &self.fingerprint,
            prompt_logprobs,
        };
        serde_json::to_string(&body).expect("strings and numbers")
    }

    fn usage(&self, answer: &Answer) -> Usage {
        Usage::new(answer.totals(), self.state.settings().currency.as_deref())
    }
}

/// Submits an admitted request and answers it.
///
/// # Errors
/// What went wrong before the first byte of the answer.
pub async fn respond<S: Shape>(
    state: &State,
    admitted: Admitted,
    line: Arc<Line>,
    shape: impl FnOnce(Option<Names>) -> S,
) -> Result<Response, ApiError> {
    let engine = state.engine()?;
    let names = Names { tokenizer: engine.tokenizer.clone(), as_token_ids: admitted.as_token_ids };
    let shape = shape(admitted.logprobs.map(|_| names.clone()));
    let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let id = format!("{}-{}", S::ID_PREFIX, uuid::Uuid::new_v4().simple());
    let envelope = Envelope { id, created, fingerprint: engine.fingerprint.clone(), state: state.clone() };
    let (stream, usage) = (admitted.stream, admitted.usage);
    let answer = Answer::start(engine, admitted, line)?;
    if stream {
        events(envelope, answer, shape, usage).await
    } else {
        whole(&envelope, answer, &shape, &names).await
    }
}

async fn whole<S: Shape>(
    envelope: &Envelope,
    mut answer: Answer,
    shape: &S,
    names: &Names,
) -> Result<Response, ApiError> {
    let mut own = None;
    let mut all = Vec::new();
    all.resize_with(answer.choices(), Whole::default);
    while let Some(piece) = answer.next().await {
        match piece? {
            Piece::More { choice, parts, tokens } => {
                parts.into_iter().for_each(|part| all[choice].add(part));
                all[choice].tokens.extend(tokens);
            }
            Piece::Finish { choice, ending } => all[choice].ending = ending,
            Piece::Prompt { choices, tokens } => {
                let logprobs = Some(Arc::new(PromptLogprobs::new(names, &tokens)));
                if S::ONE_PROMPT {
                    own = logprobs;
                } else {
                    all[choices].iter_mut().for_each(|one| one.prompt_logprobs = logprobs.clone());
                }
            }
        }
    }
    let choices = all.into_iter().enumerate().map(|(i, one)| shape.choice(i, one)).collect();
    let json = envelope.json(S::OBJECT, choices, Some(Some(envelope.usage(&answer))), own);
    Ok(([(axum::http::header::CONTENT_TYPE, "application/json")], json).into_response())
}

async fn events<S: Shape>(
    envelope: Envelope,
    mut answer: Answer,
    shape: S,
    usage: ToldUsage,
) -> Result<Response, ApiError> {
    let keep_alive = envelope.state.settings().keep_alive;
    let first = first(&mut answer, keep_alive).await?;
    let (ready, opened, ended) = (VecDeque::new(), false, false);
    let mut feed = Feed { envelope, answer, shape, usage, ready, opened, ended };
    if let Some(piece) = first {
        feed.on_piece(piece);
    }
    let events = stream::unfold(feed, |mut feed| async move {
        let data = feed.next().await?;
        Some((Ok::<_, Infallible>(Event::default().data(data)), feed))
    });
    Ok(event_stream(events, KeepAlive::new().interval(keep_alive)))
}

/// The first piece of an answer, if it comes `within` a time; an error that comes first has a status of its own.
pub(crate) async fn first(answer: &mut Answer, within: Duration) -> Result<Option<Piece>, ApiError> {
    match tokio::time::timeout(within, answer.next()).await {
        Ok(piece) => piece.transpose(),
        Err(_) => Ok(None),
    }
}

/// Server-sent events.
pub(crate) fn event_stream(
    events: impl Stream<Item = Result<Event, Infallible>> + Send + 'static,
    keep_alive: KeepAlive,
) -> Response {
    let mut response = Sse::new(events).keep_alive(keep_alive).into_response();
    // nginx would hold the events back until they fill a buffer.
    let unbuffered = HeaderName::from_static("x-accel-buffering");
    response.headers_mut().insert(unbuffered, HeaderValue::from_static("no"));
    response
}

/// What a stream of events is made of.
struct Feed<S> {
    envelope: Envelope,
    answer: Answer,
    shape: S,
    usage: ToldUsage,
    ready: VecDeque<String>,
    /// The choices' first chunks were told: with the first piece, for clients time the first token by them.
    opened: bool,
    ended: bool,
}

impl<S: Shape> Feed<S> {
    fn push(&mut self, delta: S::Delta) {
        // With usage asked for, every chunk has the field, and all but the last have null (OpenAI), unless it is always told.
        let usage = match self.usage {
            ToldUsage::Never => None,
            ToldUsage::Last => Some(None),
            ToldUsage::Always => Some(Some(Usage::so_far(self.answer.tokens()))),
        };
        self.ready.push_back(self.envelope.json(S::CHUNK_OBJECT, vec![delta], usage, None));
    }

    fn on_piece(&mut self, piece: Piece) {
        if !std::mem::replace(&mut self.opened, true) {
            let openings: Vec<_> =
                (0..self.answer.choices()).filter_map(|choice| self.shape.opening(choice)).collect();
            openings.into_iter().for_each(|delta| self.push(delta));
        }
        match piece {
            Piece::More { choice, parts, tokens } => {
                // One part a chunk: what comes first in the answer comes first in the stream.
                let mut parts: Vec<_> = parts.into_iter().map(Some).collect();
                if parts.is_empty() {
                    parts.push(None);
                }
                let mut tokens = tokens.as_slice();
                for part in parts {
                    self.push(self.shape.more(choice, part, std::mem::take(&mut tokens)));
                }
            }
            Piece::Finish { choice, ending } => self.push(self.shape.finish(choice, ending)),
            // Refused with a stream.
            Piece::Prompt { .. } => {}
        }
    }

    /// The next event's data.
    async fn next(&mut self) -> Option<String> {
        loop {
            if let Some(data) = self.ready.pop_front() {
                return Some(data);
            }
            if self.ended {
                return None;
            }
            match self.answer.next().await {
                Some(Ok(piece)) => self.on_piece(piece),
                Some(Err(error)) => {
                    self.ended = true;
                    self.ready.push_back(error.body().to_string());
                }
                None => {
                    self.ended = true;
                    if self.usage != ToldUsage::Never {
                        let usage = Some(Some(self.envelope.usage(&self.answer)));
                        let none: Vec<S::Delta> = Vec::new();
                        self.ready.push_back(self.envelope.json(S::CHUNK_OBJECT, none, usage, None));
                    }
                    self.ready.push_back("[DONE]".to_owned());
                }
            }
        }
    }
}
