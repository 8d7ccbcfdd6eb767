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
use axum::body::Bytes;
use axum::extract::Request;
use axum::http::header;

use crate::admit::{self, Admitted};
use crate::error::ApiError;
use crate::settings::{Caller, Limits};
use crate::state::State;

/// What every endpoint that generates begins with: its request is read, admitted off the threads that serve connections, and what its
/// answer must be is compiled.
pub(crate) async fn admitted(
    state: &State,
    caller: Option<Extension<Caller>>,
    request: Request,
    admit: fn(&State, Caller, &[u8]) -> Result<Admitted, ApiError>,
) -> Result<Admitted, ApiError> {
    let admitted = read(state, caller, request, admit).await?;
    admit::constraint::compiled(state, admitted).await
}

/// The first half of it.
pub(crate) async fn read<T: Send + 'static>(
    state: &State,
    caller: Option<Extension<Caller>>,
    request: Request,
    admit: fn(&State, Caller, &[u8]) -> Result<T, ApiError>,
) -> Result<T, ApiError> {
    let caller = caller.map(|Extension(caller)| caller).unwrap_or_default();
    let body = read_body(request, &state.settings().limits).await?;
    let (shared, bytes) = (state.clone(), body.len());
    state.text().run(bytes, move || admit(&shared, caller, &body)).await
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
