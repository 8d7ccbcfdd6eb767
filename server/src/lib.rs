//! The HTTP front end: OpenAI's API over the engine, and Anthropic's.
//!
//! A request's way: `routes` reads the body, `admit` turns it into tokens and checked values (in `text`'s threads),
//! `stream` submits it and makes pieces of text from the engine's events, `answer` puts them into JSON or
//! server-sent events. `access` writes its line when the last byte is out.

pub mod access;
pub mod admit;
pub mod answer;
mod anthropic;
pub mod auth;
mod body;
mod cors;
pub mod error;
pub mod fingerprint;
pub mod form;
pub mod logprobs;
pub mod metrics;
pub mod openapi;
pub mod rates;
mod responses;
pub mod routes;
pub mod settings;
pub mod state;
pub mod stream;
pub mod text;
pub mod traces;
pub mod usage;

use std::any::Any;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State as Bound};
use axum::http::HeaderValue;
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use tower_http::catch_panic::CatchPanicLayer;
use utoipa::OpenApi as _;
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;

use crate::error::ApiError;
use crate::state::{Operations, State};

/// Every endpoint that clients and collectors may rely on.
fn endpoints() -> OpenApiRouter<State> {
    public().merge(routes::metrics::route())
}

/// What is for clients.
fn public() -> OpenApiRouter<State> {
    OpenApiRouter::with_openapi(openapi::Base::openapi())
        .merge(routes::chat::route())
        .merge(routes::completions::route())
        .merge(routes::responses::route())
        .merge(routes::stored_responses::route())
        .merge(routes::messages::route())
        .merge(routes::count_tokens::route())
        .merge(routes::models::route())
        .merge(routes::tokenize::route())
        .merge(routes::detokenize::route())
        .merge(routes::apply_template::route())
        .merge(routes::health::route())
        .merge(routes::version::route())
        .merge(routes::docs::route())
        .merge(routes::page::route())
}

/// The API's description: all of it, or what is for clients if the rest is served apart.
pub fn openapi(apart: bool) -> OpenApi {
    let described = if apart { public() } else { endpoints() };
    described.into_openapi()
}

/// The application: all of it, or what is for clients if the rest has a listener of its own ([`admin`]).
pub fn app(state: State) -> Router {
    let Operations { keys, selfcheck, apart, cors_origins, local, .. } = state.operations();
    let (endpoints, _) = if *apart { public() } else { endpoints() }.split_for_parts();
    let routes = or_refused(endpoints.merge(routes::debug::route(*selfcheck && !apart)));
    let mut routes = bounded(routes.layer(from_fn_with_state(keys.clone(), auth::require)), &state);
    if *local {
        let origins = Arc::<[HeaderValue]>::from(&**cors_origins);
        routes = routes.layer(from_fn_with_state(origins, cors::local));
    }
    let mut routes = routes.layer(from_fn(anthropic::error::translate));
    if !cors_origins.is_empty() {
        // Around authentication: a preflight brings no key, and a page may know why it was refused.
        routes = routes.layer(cors::layer(cors_origins));
    }
    observed(routes, state)
}

/// What is for whoever operates the server. It asks for no key: who reaches its listener is let in.
pub fn admin(state: State) -> Router {
    let operation = OpenApiRouter::new()
        .merge(routes::health::route())
        .merge(routes::version::route())
        .merge(routes::metrics::route());
    let (endpoints, _) = operation.split_for_parts();
    let routes = endpoints.merge(routes::debug::route(state.operations().selfcheck));
    observed(bounded(or_refused(routes), &state), state)
}

/// What there is not is refused in words, and so is what a handler fails at.
fn or_refused(routes: Router<State>) -> Router<State> {
    routes
        .fallback(unknown_url)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(CatchPanicLayer::custom(panicked))
}

fn bounded(routes: Router<State>, state: &State) -> Router<State> {
    routes.layer(from_fn_with_state(state.settings().limits.head_bytes, bounded_head))
}

/// Counted, logged and traced.
fn observed(routes: Router<State>, state: State) -> Router {
    routes
        .layer(from_fn_with_state(state.http().clone(), metrics::count))
        .layer(from_fn_with_state(state.clone(), access::log))
        .with_state(state)
}

/// Takes no larger heads than configured: the connection's own bound is exact only to the buffer it reads into.
async fn bounded_head(Bound(bytes_max): Bound<usize>, request: Request, next: Next) -> Response {
    let line =
        request.method().as_str().len() + request.uri().path_and_query().map_or(0, |uri| uri.as_str().len());
    // `name: value\r\n`
    let headers = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + 4);
    if headers.sum::<usize>() + line > bytes_max {
        return ApiError::head_too_large(bytes_max).into_response();
    }
    next.run(request).await
}

async fn unknown_url(request: Request) -> ApiError {
    ApiError::unknown_url(request.method().as_str(), request.uri().path())
}

async fn method_not_allowed(request: Request) -> ApiError {
    ApiError::method_not_allowed(request.method().as_str(), request.uri().path())
}

#[expect(clippy::needless_pass_by_value, reason = "the layer's signature")]
fn panicked(panic: Box<dyn Any + Send + 'static>) -> Response {
    let message = panic.downcast_ref::<String>().map(String::as_str);
    let message = message.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
    tracing::error!(message, "a handler panicked");
    ApiError::internal("The server failed to handle the request").into_response()
}
