//! `GET /livez`, `/readyz` and `/health`.
//!
//! - `/livez` fails when restarting would help: work is pending and no step was committed for too long.
//! - `/readyz` fails when requests should go elsewhere: also while the model is being loaded, and while draining.
//! - `/health` fails when the model is not there or does not move; a server that drains is healthy.

use axum::Json;
use axum::extract::State as Shared;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use frugal_scheduler::handle::Stalled;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::state::State;

/// The endpoints.
pub fn route() -> OpenApiRouter<State> {
    OpenApiRouter::new().routes(routes!(livez)).routes(routes!(readyz)).routes(routes!(health))
}

/// `ok`, or what is wrong.
#[derive(Serialize, ToSchema)]
struct Status {
    status: &'static str,
}

/// What is wrong, if something is.
struct Report(Option<&'static str>);

impl IntoResponse for Report {
    fn into_response(self) -> Response {
        let (code, status) = match self.0 {
            None => (StatusCode::OK, "ok"),
            Some(problem) => (StatusCode::SERVICE_UNAVAILABLE, problem),
        };
        (code, Json(Status { status })).into_response()
    }
}

fn stalled(state: &State) -> Option<&'static str> {
    match state.try_engine()?.handle.healthy() {
        Ok(()) => None,
        Err(Stalled::Stuck(_)) => Some("stalled"),
        Err(Stalled::Dead(_)) => Some("stopped"),
    }
}

fn loading(state: &State) -> Option<&'static str> {
    state.try_engine().is_none().then_some("loading")
}

fn draining(state: &State) -> Option<&'static str> {
    state.try_engine().is_some_and(|engine| engine.handle.is_draining()).then_some("draining")
}

/// Fails when restarting would help
#[utoipa::path(
    get,
    path = "/livez",
    tag = "operation",
    responses(
        (status = 200, description = "All is well", body = Status),
        (status = 503, description = "It is not", body = Status)
    )
)]
async fn livez(Shared(state): Shared<State>) -> Report {
    Report(stalled(&state))
}

/// Fails when requests should go elsewhere
#[utoipa::path(
    get,
    path = "/readyz",
    tag = "operation",
    responses(
        (status = 200, description = "All is well", body = Status),
        (status = 503, description = "It is not", body = Status)
    )
)]
async fn readyz(Shared(state): Shared<State>) -> Report {
    Report(loading(&state).or_else(|| stalled(&state)).or_else(|| draining(&state)))
}

/// Fails when the model is not there or does not move
#[utoipa::path(
    get,
    path = "/health",
    tag = "operation",
    responses(
        (status = 200, description = "All is well", body = Status),
        (status = 503, description = "It is not", body = Status)
    )
)]
async fn health(Shared(state): Shared<State>) -> Report {
    Report(loading(&state).or_else(|| stalled(&state)))
}
