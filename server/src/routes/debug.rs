//! `GET /debug/selfcheck`: the engine's invariants, checked between two steps of the running engine.
//!
//! Off unless configured: a check takes time in proportion to blocks and sequences, and the engine waits for it.

use axum::extract::State as Shared;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::json;

use crate::error::ApiError;
use crate::state::State;

/// The endpoint, or nothing.
pub fn route(enabled: bool) -> Router<State> {
    if enabled { Router::new().route("/debug/selfcheck", get(selfcheck)) } else { Router::new() }
}

/// 200 if every invariant holds, else 500 with the first that does not. Numbers that may pass 2^53 are strings.
async fn selfcheck(Shared(state): Shared<State>) -> Result<Response, ApiError> {
    let handle = &state.engine()?.handle;
    let seen = handle.self_check().await.ok_or_else(ApiError::shutting_down)?;
    let blocks: Vec<_> = seen
        .blocks
        .iter()
        .map(|b| json!({ "free": b.free, "referenced": b.referenced, "cached": b.cached }))
        .collect();
    let body = json!({
        "ok": seen.violation.is_none(),
        "violation": seen.violation,
        "requests": seen.requests,
        "sequences": seen.sequences,
        "blocks": blocks,
        "accounts": { "ns": seen.accounts.ns.to_string(), "pico": seen.accounts.pico.to_string() },
    });
    let status = if seen.violation.is_none() { StatusCode::OK } else { StatusCode::INTERNAL_SERVER_ERROR };
    Ok((status, Json(body)).into_response())
}
