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
use axum::body::HttpBody as _;
use axum::extract::Request;
use frugal_scheduler::handle::Place;

use crate::admit::{self, Admitted};
use crate::body::SMALL_BYTES;
use crate::error::{ApiError, from_submit};
use crate::settings::Caller;
use crate::state::State;

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
    read_weighed(state, caller, request, |_, _, body| body.len(), admit).await
}

/// [`read`] of a body that makes more work than its own bytes: `weight` says how many there are.
pub(crate) async fn read_weighed<T: Send + 'static>(
    state: &State,
    caller: Option<Extension<Caller>>,
    request: Request,
    weight: fn(&State, Caller, &[u8]) -> usize,
    admit: fn(&State, Caller, &[u8]) -> Result<T, ApiError>,
) -> Result<(T, Place), ApiError> {
    let caller = caller.map(|Extension(caller)| caller).unwrap_or_default();
    // No field is to blame: that a prompt is too long is not known yet.
    let refusal = |error| from_submit(error, "");
    let handle = &state.engine()?.handle;
    if request.body().size_hint().upper().is_none_or(|bytes| bytes > SMALL_BYTES as u64) {
        handle.look(caller.tenant).map_err(refusal)?;
    }
    let body = state.bodies().read(request, &state.settings().limits).await?;
    let place = handle.reserve(caller.tenant).map_err(refusal)?;
    let (shared, bytes) = (state.clone(), weight(state, caller, &body));
    state.text().run(bytes, move || Ok((admit(&shared, caller, &body)?, place))).await
}

/// What every endpoint does that looks at text alone: `work` on the body, off the threads that serve connections. It takes no place in the
/// queue, and counts among what its caller has in progress.
pub(crate) async fn text<T: Send + 'static>(
    state: &State,
    caller: Option<Extension<Caller>>,
    request: Request,
    work: fn(&State, &[u8]) -> Result<T, ApiError>,
) -> Result<T, ApiError> {
    let caller = caller.map(|Extension(caller)| caller).unwrap_or_default();
    let visit = state.engine()?.handle.visit(caller.tenant).map_err(|error| from_submit(error, ""))?;
    let body = state.bodies().read(request, &state.settings().limits).await?;
    let (shared, bytes) = (state.clone(), body.len());
    let work = move || {
        let result = work(&shared, &body);
        drop((body, visit));
        result
    };
    state.text().run(bytes, work).await
}
