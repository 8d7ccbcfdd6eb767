//! One endpoint a file: its wire types, its handler and `route()`.

pub mod apply_template;
pub mod chat;
pub mod completions;
pub mod count_tokens;
pub mod debug;
pub mod detokenize;
pub mod docs;
pub mod health;
pub mod messages;
pub mod metrics;
pub mod models;
pub mod page;
pub mod responses;
pub mod stored_responses;
pub mod tokenize;
pub mod version;

use axum::Extension;
use axum::body::{Bytes, HttpBody as _};
use axum::extract::Request;
use axum::http::header;
use frugal_scheduler::handle::Place;

use crate::admit::{self, Admitted};
use crate::error::{ApiError, from_submit};
use crate::settings::{Caller, Limits};
use crate::state::State;

/// Larger bodies of requests that are refused are not read.
const DRAINED_BYTES: u64 = 64 << 10;

/// What every endpoint that generates begins with: its request is read, admitted off the threads that serve connections, and what its
/// answer must be is compiled.
pub(crate) async fn admitted(
    state: &State,
    caller: Option<Extension<Caller>>,
    request: Request,
    admit: fn(&State, Caller, &[u8]) -> Result<Admitted, ApiError>,
) -> Result<Admitted, ApiError> {
    let (mut admitted, place) = read(state, caller, request, admit).await?;
    admitted.place = Some(place);
    admit::constraint::compiled(state, admitted).await
}

/// The first half of it, and the place that it has in the queue.
///
/// A full queue refuses before the work: else refusals would take from those who run, the more the more ask. A large body is not
/// even read then; a small one is, so that its connection can be kept. The place is taken behind the body, so that no one holds one
/// by sending slowly, and goes with the work, whose client may leave.
pub(crate) async fn read<T: Send + 'static>(
    state: &State,
    caller: Option<Extension<Caller>>,
    request: Request,
    admit: fn(&State, Caller, &[u8]) -> Result<T, ApiError>,
) -> Result<(T, Place), ApiError> {
    let caller = caller.map(|Extension(caller)| caller).unwrap_or_default();
    // No field is to blame: that a prompt is too long is not known yet.
    let refusal = |error| from_submit(error, "");
    let handle = &state.engine()?.handle;
    if request.body().size_hint().upper().is_none_or(|bytes| bytes > DRAINED_BYTES) {
        handle.look(caller.tenant).map_err(refusal)?;
    }
    let body = read_body(request, &state.settings().limits).await?;
    let place = handle.reserve(caller.tenant).map_err(refusal)?;
    let (shared, bytes) = (state.clone(), body.len());
    state.text().run(bytes, move || Ok((admit(&shared, caller, &body)?, place))).await
}

/// Reads a JSON body, bounded in size and time.
///
/// Only `application/json` is taken: a web page can make a browser send other types to this machine without
/// asking, and tokens cost money.
pub(crate) async fn read_body(request: Request, limits: &Limits) -> Result<Bytes, ApiError> {
    let media_type = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = media_type.and_then(|value| value.split(';').next()).unwrap_or_default().trim();
    if !essence.eq_ignore_ascii_case("application/json") {
        return Err(ApiError::media_type());
    }
    let body = axum::body::to_bytes(request.into_body(), limits.body_bytes);
    match tokio::time::timeout(limits.body_time, body).await {
        Err(_) => Err(ApiError::body_timeout()),
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(error)) if is_limit(&error) => Err(ApiError::body_too_large(limits.body_bytes)),
        Ok(Err(_)) => Err(ApiError::malformed("The request's body could not be read")),
    }
}

fn is_limit(error: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(error), |e| e.source()).any(|e| e.is::<http_body_util::LengthLimitError>())
}
