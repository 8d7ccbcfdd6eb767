//! `GET /v1/models` and `GET /v1/models/{id}`.

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State as Shared};
use axum::http::Uri;
use axum::routing::get;
use axum::{Json, Router};
use serde::Serialize;

use crate::error::ApiError;
use crate::state::State;

/// The endpoints. An id may hold slashes.
pub fn route() -> Router<State> {
    Router::new().route("/v1/models", get(list)).route("/v1/models/{*id}", get(one))
}

#[derive(Serialize)]
struct List {
    object: &'static str,
    data: Vec<Model>,
}

#[derive(Serialize)]
struct Model {
    id: String,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    /// Tokens of prompt and output together, as vLLM has it; absent while the model is being loaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    max_model_len: Option<u32>,
}

fn model(state: &State, id: &str) -> Model {
    Model {
        id: id.to_owned(),
        object: "model",
        created: state.settings().created,
        owned_by: "frugal",
        max_model_len: state.try_engine().map(|engine| engine.handle.context_max()),
    }
}

async fn list(Shared(state): Shared<State>) -> Json<List> {
    let data = state.settings().models.iter().map(|id| model(&state, id)).collect();
    Json(List { object: "list", data })
}

async fn one(
    Shared(state): Shared<State>,
    uri: Uri,
    id: Result<Path<String>, PathRejection>,
) -> Result<Json<Model>, ApiError> {
    // What is no UTF-8 names no model, and is quoted as it came.
    let id = id.map_or_else(|_| uri.path().trim_start_matches("/v1/models/").to_owned(), |Path(id)| id);
    if state.settings().models.contains(&id) {
        Ok(Json(model(&state, &id)))
    } else {
        Err(ApiError::model_not_found(&id))
    }
}
