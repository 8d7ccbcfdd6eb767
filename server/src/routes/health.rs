//! `GET /livez`, `/readyz` and `/health`.
//!
//! - `/livez` fails when restarting would help: work is pending and no step was committed for too long.
//! - `/readyz` fails when requests should go elsewhere: also while the model is being loaded, and while draining.
//! - `/health` fails when the model is not there or does not move; a server that drains is healthy.

use axum::extract::State as Shared;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use frugal_scheduler::handle::Stalled;

use crate::state::State;

/// The endpoints.
pub fn route() -> Router<State> {
    Router::new().route("/livez", get(livez)).route("/readyz", get(readyz)).route("/health", get(health))
}

/// What is wrong, if something is.
struct Report(Option<&'static str>);

impl IntoResponse for Report {
    fn into_response(self) -> Response {
        let (code, status) = match self.0 {
            None => (StatusCode::OK, "ok"),
            Some(problem) => (StatusCode::SERVICE_UNAVAILABLE, problem),
        };
        (code, Json(serde_json::json!({ "status": status }))).into_response()
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

async fn livez(Shared(state): Shared<State>) -> Report {
    Report(stalled(&state))
}

async fn readyz(Shared(state): Shared<State>) -> Report {
    Report(loading(&state).or_else(|| stalled(&state)).or_else(|| draining(&state)))
}

async fn health(Shared(state): Shared<State>) -> Report {
    Report(loading(&state).or_else(|| stalled(&state)))
}
