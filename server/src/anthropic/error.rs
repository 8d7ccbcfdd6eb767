//! Refusals and failures in Anthropic's shape: `{"type": "error", "error": {"type", "message"}}`.
//!
//! Whoever refuses (a handler, authentication, a limit) says so in OpenAI's shape; for Anthropic's paths a layer around them all
//! says it again. Statuses stay: Anthropic's own 529 for overload would be to its clients what 503 is, and balancers know how to send a
//! 503 elsewhere.

use axum::Json;
use axum::extract::Request;
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use crate::error::ApiError;

/// Its endpoint, and what lies below.
const PATH: &str = "/v1/messages";

/// A refusal or failure.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = MessagesErrorResponse)]
pub(crate) struct Refusal {
    /// `error`.
    r#type: &'static str,
    error: Why,
}

/// What is wrong.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = MessagesError)]
pub(crate) struct Why {
    /// One of Anthropic's: `invalid_request_error`, `authentication_error`, `permission_error`, `not_found_error`, `request_too_large`,
    /// `rate_limit_error`, `api_error`, `overloaded_error` or `timeout_error`.
    r#type: &'static str,
    /// For people; names the field to blame.
    message: String,
}

impl Refusal {
    /// The same in Anthropic's words.
    pub(crate) fn new(error: &ApiError) -> Self {
        let kind = match error.status() {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::FORBIDDEN => "permission_error",
            StatusCode::NOT_FOUND => "not_found_error",
            StatusCode::PAYLOAD_TOO_LARGE => "request_too_large",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            StatusCode::SERVICE_UNAVAILABLE => "overloaded_error",
            StatusCode::GATEWAY_TIMEOUT => "timeout_error",
            status if status.is_client_error() => "invalid_request_error",
            _ => "api_error",
        };
        Self { r#type: "error", error: Why { r#type: kind, message: error.message().to_owned() } }
    }

    /// Without the event's `type`, which the stream adds.
    pub(crate) fn why(self) -> Why {
        self.error
    }
}

/// Whether a path is of its endpoints.
pub(crate) fn is_anthropics(path: &str) -> bool {
    path.strip_prefix(PATH).is_some_and(|below| below.is_empty() || below.starts_with('/'))
}

/// The layer.
pub(crate) async fn translate(request: Request, next: Next) -> Response {
    let is_anthropics = is_anthropics(request.uri().path());
    let mut response = next.run(request).await;
    if is_anthropics && let Some(error) = response.extensions_mut().remove::<ApiError>() {
        let (_, body) = Json(Refusal::new(&error)).into_response().into_parts();
        *response.body_mut() = body;
        response.headers_mut().remove(header::CONTENT_LENGTH);
    }
    response
}
