//! `GET /metrics`: the engine's numbers in Prometheus' text format.

use std::time::Instant;

use axum::extract::State as Shared;
use axum::http::header;
use axum::response::IntoResponse;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::metrics::{CONTENT_TYPE, View, process, render};
use crate::state::State;

/// The endpoint.
pub fn route() -> OpenApiRouter<State> {
    OpenApiRouter::new().routes(routes!(metrics))
}

/// Show the engine's numbers, in Prometheus' text format
#[utoipa::path(
    get,
    path = "/metrics",
    tag = "operation",
    responses((status = 200, description = "All of them", body = String, content_type = "text/plain"))
)]
async fn metrics(Shared(state): Shared<State>) -> impl IntoResponse {
    let engine = state.try_engine().map(|e| (e.handle.snapshot(), e.handle.geometry().block_tokens));
    let view = View {
        model: state.model(),
        facts: &state.operations().facts,
        http: state.http(),
        kept: state.responses().size(Instant::now()),
        process: &process(),
        engine: engine.as_ref().map(|(snapshot, block_tokens)| (&**snapshot, *block_tokens)),
    };
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], render(&view))
}
