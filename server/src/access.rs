//! One span and one log line per request, and its id.
//!
//! The line is written when the last byte of the answer was handed over; if its client went away, when it is known what the answer
//! took. It never holds what a client or the model wrote.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll};
use std::time::{Instant, SystemTime};

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{Request, State as Shared};
use axum::http::{HeaderName, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::Response;
use frugal_scheduler::request::Report;
use tracing::{Instrument, Span};

use crate::anthropic::error::is_anthropics;
use crate::rates::Budget;
use crate::state::State;
use crate::traces::RequestSpan;
use crate::usage::Totals;

/// Clients may choose it, of visible ASCII, so that their logs and ours can be joined; OpenAI's clients show the answer's.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The same in Anthropic's words, for its clients.
const ANTHROPICS_ID: HeaderName = HeaderName::from_static("request-id");

/// Longer ids and paths are not logged.
const LOGGED_MAX: usize = 128;

/// nginx's number for a client that did not wait.
const CLIENT_GONE: u16 = 499;

/// Asked every few seconds by machines.
const QUIET: &[&str] = &["/livez", "/readyz", "/health", "/metrics"];

/// What is known of an answer when it has ended.
#[derive(Debug)]
pub struct Answered {
    /// What it took.
    pub totals: Totals,
    /// How it ended.
    pub end: End,
    /// When its prompts were submitted.
    pub submitted: SystemTime,
    /// The engine's accounts of its prompts, of those that were closed.
    pub reports: Vec<Report>,
    /// Why its choices ended, in the order in which they did.
    pub reasons: Vec<&'static str>,
}

/// How an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Every choice has ended.
    Complete,
    /// With an error.
    Failed,
    /// No one waits for it any more.
    Abandoned,
}

/// What becomes known of a request on its way, for its line, its trace and whoever pays: a request extension.
///
/// The trace ends when nobody knows of the request any more: an answer in the background outlives its line.
pub struct Line {
    answer: Mutex<Option<Answered>>,
    /// The key's name, and its budget.
    asker: OnceLock<(String, Arc<Budget>)>,
    status: OnceLock<StatusCode>,
    /// The answer runs in the background: it has a line of its own.
    outlived: OnceLock<()>,
    /// What was exchanged, once it was.
    exchange: Mutex<Option<Exchange>>,
    span: Option<RequestSpan>,
    /// Of money in traces.
    currency: Option<String>,
}

impl Line {
    /// An answer has ended.
    pub fn record(&self, answered: Answered) {
        *self.answer() = Some(answered);
    }

    fn answer(&self) -> MutexGuard<'_, Option<Answered>> {
        self.answer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The answer goes on when the request is done.
    pub(crate) fn outlive(&self) {
        // Once or more is the same.
        let _ = self.outlived.set(());
    }

    /// Whose budget its tokens are charged to, from now on.
    pub fn charge(&self, key: &str, budget: Arc<Budget>) {
        // A request has one key.
        let _ = self.asker.set((key.to_owned(), budget));
    }

    /// Whose that is; None if nobody is charged.
    pub fn budget(&self) -> Option<&Budget> {
        self.asker.get().map(|(_, budget)| &**budget)
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if let Some(exchange) = self.exchange.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            exchange.log(self.answer.get_mut().unwrap_or_else(PoisonError::into_inner).as_ref());
        }
        if let Some(mut span) = self.span.take() {
            if let Some((key, _)) = self.asker.take() {
                span.set("frugal.key", key);
            }
            let answer = self.answer.get_mut().unwrap_or_else(PoisonError::into_inner);
            span.end(self.status.get().copied(), answer.as_ref(), self.currency.as_deref());
        }
    }
}

/// The middleware.
pub async fn log(Shared(state): Shared<State>, mut request: Request, next: Next) -> Response {
    let id = request.headers().get(&REQUEST_ID).filter(|id| usable(id)).cloned();
    let id = id.unwrap_or_else(|| {
        let id = uuid::Uuid::new_v4().simple().to_string();
        HeaderValue::try_from(id).expect("hexadecimal digits")
    });
    let method = request.method().clone();
    let path: String = request.uri().path().chars().take(LOGGED_MAX).collect();
    let is_anthropics = is_anthropics(&path);
    let request_id = id.to_str().unwrap_or_default();
    // Authentication fills in whose key it was.
    let field = tracing::field::Empty;
    let span = tracing::info_span!("request", request_id, trace_id = field, key = field);
    let traces = state.operations().traces.as_ref().filter(|_| !QUIET.contains(&path.as_str()));
    let traced = traces.map(|traces| traces.begin(&request, state.model()));
    if let Some(traced) = &traced {
        span.record("trace_id", tracing::field::display(traced.trace_id()));
    }
    let line = Arc::new(Line {
        answer: Mutex::default(),
        asker: OnceLock::new(),
        status: OnceLock::new(),
        outlived: OnceLock::new(),
        exchange: Mutex::default(),
        span: traced,
        currency: state.settings().currency.clone(),
    });
    request.extensions_mut().insert(line.clone());
    let exchange =
        Exchange { span: span.clone(), begin: Instant::now(), ms: 0.0, method, path, status: CLIENT_GONE };
    let mut guard = Guard { line, exchange: Some(exchange) };
    let mut response = next.run(request).instrument(span).await;
    if let Some(exchange) = &mut guard.exchange {
        exchange.status = response.status().as_u16();
    }
    // Set once: here.
    let _ = guard.line.status.set(response.status());
    if is_anthropics {
        response.headers_mut().insert(ANTHROPICS_ID, id.clone());
    }
    response.headers_mut().insert(REQUEST_ID, id);
    response.map(|body| Body::new(Logged { body, _guard: guard }))
}

fn usable(id: &HeaderValue) -> bool {
    !id.is_empty() && id.len() <= LOGGED_MAX && id.as_bytes().iter().all(u8::is_ascii_graphic)
}

/// A request and its answer, as they went over the wire.
struct Exchange {
    span: Span,
    begin: Instant,
    /// Milliseconds it took.
    ms: f64,
    method: Method,
    path: String,
    status: u16,
}

impl Exchange {
    fn log(&self, answer: Option<&Answered>) {
        let _in = self.span.enter();
        let (method, path, status, ms) = (self.method.as_str(), self.path.as_str(), self.status, self.ms);
        match answer {
            Some(Answered { totals, end, .. }) => {
                let cost = totals.cost().map(crate::usage::units);
                tracing::info!(
                    target: "frugal::request",
                    method,
                    path,
                    status,
                    ms,
                    end = ?end,
                    prompt_tokens = totals.prompt_tokens,
                    cached_tokens = totals.cached_tokens,
                    completion_tokens = totals.completion_tokens,
                    cost,
                );
            }
            None if QUIET.contains(&path) => {
                tracing::debug!(target: "frugal::request", method, path, status, ms);
            }
            None => tracing::info!(target: "frugal::request", method, path, status, ms),
        }
    }
}

/// Gives the exchange to its line when dropped.
struct Guard {
    line: Arc<Line>,
    exchange: Option<Exchange>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        let Some(mut exchange) = self.exchange.take() else { return };
        exchange.ms = exchange.begin.elapsed().as_micros() as f64 / 1e3;
        match self.line.outlived.get() {
            Some(()) => exchange.log(None),
            None => *self.line.exchange.lock().unwrap_or_else(PoisonError::into_inner) = Some(exchange),
        }
    }
}

/// A body that takes its guard along. The body is dropped first, so that the line knows all.
struct Logged {
    body: Body,
    _guard: Guard,
}

impl HttpBody for Logged {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}
