//! `GET` and `DELETE /v1/responses/{response_id}`, and what lies below.
//!
//! A response of another key is not there.

use std::time::Instant;

use axum::Extension;
use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State as Shared};
use axum::http::header;
use axum::response::{IntoResponse, Response as HttpResponse};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::error::{ApiError, ErrorResponse, quoted};
use crate::openapi::Refusals;
use crate::responses::body::Response;
use crate::responses::items::Item;
use crate::responses::store::{Found, Key};
use crate::settings::Caller;
use crate::state::State;

/// The endpoints.
pub fn route() -> OpenApiRouter<State> {
    OpenApiRouter::new()
        .routes(routes!(retrieve, delete))
        .routes(routes!(cancel))
        .routes(routes!(input_items))
}

/// Items of a page.
const LIMIT: usize = 20;
const LIMIT_MAX: usize = 100;

type Id = Result<Path<String>, PathRejection>;
type Parameters = Result<Query<Vec<(String, String)>>, QueryRejection>;
type Asker = Option<Extension<Caller>>;

fn key(caller: Asker, id: Id) -> Result<Key, ApiError> {
    let caller = caller.map(|Extension(caller)| caller).unwrap_or_default();
    // What is no UTF-8 names no response.
    let Path(id) = id.map_err(|_| ApiError::response_not_found(""))?;
    Ok((caller.domain, id))
}

/// All parameters of a URL, each judged by `judge`.
fn parameters(
    parameters: Parameters,
    mut judge: impl FnMut(&str, &str) -> Result<bool, String>,
) -> Result<(), ApiError> {
    let Query(all) = parameters.map_err(|e| ApiError::malformed(format!("The URL's query: {e}")))?;
    for (name, value) in all {
        match judge(&name, &value) {
            Ok(true) => {}
            Ok(false) => {
                let message =
                    format!("Unsupported parameter: '{}' is not supported by this server", quoted(&name));
                return Err(ApiError::unsupported(&name, message));
            }
            Err(expected) => {
                let message = format!("Invalid value for '{}': expected {expected}", quoted(&name));
                return Err(ApiError::invalid(&name, message));
            }
        }
    }
    Ok(())
}

fn json(body: axum::body::Bytes) -> HttpResponse {
    ([(header::CONTENT_TYPE, "application/json")], body).into_response()
}

/// Retrieve a response
#[utoipa::path(
    get,
    path = "/v1/responses/{response_id}",
    tag = "inference",
    security((), ("key" = [])),
    params(
        ("response_id" = String, Path, description = "Its id"),
        ("stream" = Option<bool>, Query, description = "Only false: what was not streamed at first is not streamed later")
    ),
    responses(
        (status = 200, description = "The response", body = Response),
        (status = 400, description = "A parameter of the URL is not honoured", body = ErrorResponse),
        (status = 404, description = "No such response, or no more", body = ErrorResponse),
        Refusals
    )
)]
async fn retrieve(
    Shared(state): Shared<State>,
    caller: Asker,
    id: Id,
    query: Parameters,
) -> Result<HttpResponse, ApiError> {
    parameters(query, |name, value| match (name, value) {
        ("stream", "false") => Ok(true),
        ("stream", "true") => Ok(false),
        ("stream", _) => Err("true or false".to_owned()),
        _ => Ok(false),
    })?;
    let key = key(caller, id)?;
    match state.responses().find(&key, Instant::now()) {
        Some(Found::Running(response)) => Ok(json(response.body)),
        Some(Found::Ended(response)) => Ok(json(response.body)),
        None => Err(ApiError::response_not_found(&key.1)),
    }
}

/// What was deleted.
#[derive(Serialize, ToSchema)]
struct Deleted {
    id: String,
    /// `response`.
    object: &'static str,
    /// True.
    deleted: bool,
}

/// Delete a response; if it runs in the background, it ends
#[utoipa::path(
    delete,
    path = "/v1/responses/{response_id}",
    tag = "inference",
    security((), ("key" = [])),
    params(("response_id" = String, Path, description = "Its id")),
    responses(
        (status = 200, description = "It is no longer there; conversations that went on from it go on", body = Deleted),
        (status = 404, description = "No such response, or no more", body = ErrorResponse),
        Refusals
    )
)]
async fn delete(Shared(state): Shared<State>, caller: Asker, id: Id) -> Result<Json<Deleted>, ApiError> {
    let key = key(caller, id)?;
    if state.responses().delete(&key, Instant::now()) {
        Ok(Json(Deleted { id: key.1, object: "response", deleted: true }))
    } else {
        Err(ApiError::response_not_found(&key.1))
    }
}

/// Cancel a response that runs in the background
#[utoipa::path(
    post,
    path = "/v1/responses/{response_id}/cancel",
    tag = "inference",
    security((), ("key" = [])),
    params(("response_id" = String, Path, description = "Its id")),
    responses(
        (status = 200, description = "The response as it ended, with what there was of it", body = Response),
        (status = 400, description = "It did not run in the background", body = ErrorResponse),
        (status = 404, description = "No such response, or no more", body = ErrorResponse),
        Refusals
    )
)]
async fn cancel(Shared(state): Shared<State>, caller: Asker, id: Id) -> Result<HttpResponse, ApiError> {
    let key = key(caller, id)?;
    state.responses().cancel(&key, Instant::now()).await;
    match state.responses().find(&key, Instant::now()) {
        Some(Found::Ended(response)) if response.background => Ok(json(response.body)),
        Some(Found::Running(response)) => Ok(json(response.body)),
        Some(Found::Ended(_)) => Err(ApiError::malformed("Cannot cancel a synchronous response.")),
        None => Err(ApiError::response_not_found(&key.1)),
    }
}

/// A page of items.
#[derive(Serialize, ToSchema)]
struct ItemList {
    /// `list`.
    object: &'static str,
    data: Vec<Item>,
    /// Null if there are none.
    first_id: Option<String>,
    last_id: Option<String>,
    /// Whether there are more behind them.
    has_more: bool,
}

/// List what a response was an answer to, earlier turns included
#[utoipa::path(
    get,
    path = "/v1/responses/{response_id}/input_items",
    tag = "inference",
    security((), ("key" = [])),
    params(
        ("response_id" = String, Path, description = "Its id"),
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 100, description = "Items of a page. Absent: 20"),
        ("order" = Option<String>, Query, pattern = "^(asc|desc)$",
            description = "`asc`: the oldest first; `desc` (the default): the newest"),
        ("after" = Option<String>, Query, description = "The item before the first of the page")
    ),
    responses(
        (status = 200, description = "The items", body = ItemList),
        (status = 400, description = "A parameter of the URL is not honoured", body = ErrorResponse),
        (status = 404, description = "No such response, or no more", body = ErrorResponse),
        Refusals
    )
)]
async fn input_items(
    Shared(state): Shared<State>,
    caller: Asker,
    id: Id,
    query: Parameters,
) -> Result<Json<ItemList>, ApiError> {
    let (mut limit, mut newest_first, mut after) = (LIMIT, true, None);
    parameters(query, |name, value| {
        match name {
            "limit" => {
                let number = value.parse().ok().filter(|n| (1..=LIMIT_MAX).contains(n));
                limit = number.ok_or_else(|| format!("1 to {LIMIT_MAX}"))?;
            }
            "order" if value == "asc" || value == "desc" => newest_first = value == "desc",
            "order" => return Err("'asc' or 'desc'".to_owned()),
            "after" => after = Some(value.to_owned()),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    let key = key(caller, id)?;
    let found = state.responses().find(&key, Instant::now());
    let found = found.ok_or_else(|| ApiError::response_not_found(&key.1))?;
    let weight = found.weight();
    // A conversation may be long.
    let read = move || {
        found.input_items().map_err(|error| {
            tracing::error!(error = &error as &dyn std::error::Error, "a stored turn is not what was stored");
            ApiError::internal("The response's items could not be read")
        })
    };
    let mut items = state.text().run(weight, read).await?;
    if newest_first {
        items.reverse();
    }
    if let Some(after) = after {
        let at = items.iter().position(|item| item.id() == after);
        let at =
            at.ok_or_else(|| ApiError::invalid("after", "'after' must be the id of one of the items"))?;
        items.drain(..=at);
    }
    let has_more = items.len() > limit;
    items.truncate(limit);
    let id = |item: Option<&Item>| item.map(|item| item.id().to_owned());
    let (first_id, last_id) = (id(items.first()), id(items.last()));
    Ok(Json(ItemList { object: "list", data: items, first_id, last_id, has_more }))
}
