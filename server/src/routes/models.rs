//! `GET /v1/models` and `GET /v1/models/{id}`.

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State as Shared};
use axum::http::Uri;
use axum::routing::get;
use serde::Serialize;
use utoipa::{OpenApi, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::error::{ApiError, ErrorResponse};
use crate::openapi::Refusals;
use crate::state::State;

/// The endpoints. An id may hold slashes.
pub fn route() -> OpenApiRouter<State> {
    OpenApiRouter::with_openapi(One::openapi()).routes(routes!(list)).route("/v1/models/{*id}", get(one))
}

/// Apart from its route: a description has no pattern for ids with slashes.
#[derive(OpenApi)]
#[openapi(paths(one))]
struct One;

/// The model under all its names.
#[derive(Serialize, ToSchema)]
struct ModelList {
    object: &'static str,
    data: Vec<Model>,
}

/// The model under one of its names.
#[derive(Serialize, ToSchema)]
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

/// List the names of the model
#[utoipa::path(
    get,
    path = "/v1/models",
    tag = "inference",
    security((), ("key" = [])),
    responses((status = 200, description = "All names", body = ModelList), Refusals)
)]
async fn list(Shared(state): Shared<State>) -> Json<ModelList> {
    let data = state.settings().models.iter().map(|id| model(&state, id)).collect();
    Json(ModelList { object: "list", data })
}

/// Look a name up
#[utoipa::path(
    get,
    path = "/v1/models/{id}",
    tag = "inference",
    security((), ("key" = [])),
    params(("id" = String, Path, description = "A name; slashes are part of it")),
    responses(
        (status = 200, description = "The model", body = Model),
        (status = 404, description = "No such model", body = ErrorResponse),
        Refusals
    )
)]
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
