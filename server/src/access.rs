//! One span and one log line per request, and its id.
//!
//! The line is written when the last byte of the answer was handed over, or its client went away. It never holds
//! what a client or the model wrote.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Instant;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue, Method};
use axum::middleware::Next;
use axum::response::Response;
use tracing::{Instrument, Span};

use crate::usage::Totals;

/// Clients may choose it, of visible ASCII, so that their logs and ours can be joined; OpenAI's clients show the answer's.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Longer ids and paths are not logged.
const LOGGED_MAX: usize = 128;

/// nginx's number for a client that did not wait.
const CLIENT_GONE: u16 = 499;

/// Asked every few seconds by machines.
const QUIET: &[&str] = &["/livez", "/readyz", "/health", "/metrics"];

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

/// What a handler adds to its request's line: a request extension.
#[derive(Debug, Default)]
pub struct Line(Mutex<Option<(Totals, End)>>);

impl Line {
    /// What an answer took.
    pub fn record(&self, totals: &Totals, end: End) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some((totals.clone(), end));
    }
}

/// The middleware.
pub async fn log(mut request: Request, next: Next) -> Response {
    let id = request.headers().get(&REQUEST_ID).filter(|id| usable(id)).cloned();
    let id = id.unwrap_or_else(|| {
        let id = uuid::Uuid::new_v4().simple().to_string();
        HeaderValue::try_from(id).expect("hexadecimal digits")
    });
    let method = request.method().clone();
    let path: String = request.uri().path().chars().take(LOGGED_MAX).collect();
    let request_id = id.to_str().unwrap_or_default();
    // Authentication fills in whose key it was.
    let span = tracing::info_span!("request", request_id, key = tracing::field::Empty);
    let line = Arc::new(Line::default());
    request.extensions_mut().insert(line.clone());
    let mut guard =
        Guard { line, span: span.clone(), begin: Instant::now(), method, path, status: CLIENT_GONE };
    let mut response = next.run(request).instrument(span).await;
    guard.status = response.status().as_u16();
    response.headers_mut().insert(REQUEST_ID, id);
    response.map(|body| Body::new(Logged { body, _guard: guard }))
}

fn usable(id: &HeaderValue) -> bool {
    !id.is_empty() && id.len() <= LOGGED_MAX && id.as_bytes().iter().all(u8::is_ascii_graphic)
}

/// Writes the line when dropped.
struct Guard {
    line: Arc<Line>,
    span: Span,
    begin: Instant,
    method: Method,
    path: String,
    status: u16,
}

impl Drop for Guard {
    fn drop(&mut self) {
        let _in = self.span.enter();
        let ms = self.begin.elapsed().as_micros() as f64 / 1e3;
        let (method, path, status) = (self.method.as_str(), self.path.as_str(), self.status);
        let record = self.line.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        match record {
            Some((totals, end)) => {
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
