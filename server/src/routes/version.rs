//! `GET /version`.

use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};

use crate::state::State;

/// The endpoint.
pub fn route() -> Router<State> {
    Router::new().route("/version", get(version))
}

async fn version() -> Json<Value> {
    Json(json!({ "name": env!("CARGO_PKG_NAME"), "version": env!("CARGO_PKG_VERSION") }))
}
