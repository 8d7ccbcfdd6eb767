//! Every refusal and failure, in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`.
//!
//! | status | type | code | when |
//! |---|---|---|---|
//! | 400 | `invalid_request_error` | null, or as below | the request asks for something impossible or not honoured |
//! | 400 | `invalid_request_error` | `context_length_exceeded` | prompt and output do not fit |
//! | 400 | `invalid_request_error` | `previous_response_not_found` | it was not stored, has expired, or another key's |
//! | 400 | `invalid_request_error` | `impossible` | the answer cannot be what was asked: its grammar cannot be followed |
//! | 401 | `invalid_request_error` | `invalid_api_key` | no key, or a wrong one |
//! | 403 | `invalid_request_error` | `foreign_host` | a web page called a server of this machine alone by a name that is not its own |
//! | 404 | `invalid_request_error` | `model_not_found`, `unknown_url` | |
//! | 405, 408, 413, 415, 431 | `invalid_request_error` | `method_not_allowed`, `request_timeout`, ... | |
//! | 429 | `rate_limit_error` | `rate_limit_exceeded` | this key has too many requests in progress, or has used its requests or tokens of a minute |
//! | 500 | `server_error` | `internal_error` | a fault in the engine, or a panic |
//! | 503 | `server_error` | `overloaded`, `shutting_down`, `loading` | |
//! | 504 | `server_error` | `timeout` | the server's own deadline passed |

use std::time::Duration;

use axum::Json;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use frugal_scheduler::request::SubmitError;
use serde::Serialize;
use utoipa::ToSchema;

/// OpenAI's clients retry 5xx, 408 and 429 unless this header says `false`.
const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

/// Longest piece of a client's own text that is quoted back to it, in characters.
const QUOTED_MAX: usize = 64;

/// What a client is told when it does not get what it asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiError {
    status: StatusCode,
    body: Body,
    retry_after_s: Option<u32>,
    should_retry: Option<bool>,
}

/// The body of every refusal and failure.
#[derive(Serialize, ToSchema)]
pub(crate) struct ErrorResponse {
    error: Body,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = Error)]
struct Body {
    /// For people.
    message: String,
    /// `invalid_request_error`, `rate_limit_error` or `server_error`.
    #[serde(rename = "type")]
    kind: &'static str,
    /// The field to blame.
    param: Option<String>,
    /// For programs.
    code: Option<&'static str>,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, code: Option<&'static str>, message: String) -> Self {
        let body = Body { message, kind, param: None, code };
        Self { status, body, retry_after_s: None, should_retry: None }
    }

    fn client(status: StatusCode, code: Option<&'static str>, message: impl Into<String>) -> Self {
        Self::new(status, "invalid_request_error", code, message.into())
    }

    fn server(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self::new(status, "server_error", Some(code), message.into())
    }

    /// 400: the field `param` asks for something that cannot be done.
    pub fn invalid(param: &str, message: impl Into<String>) -> Self {
        Self::client(StatusCode::BAD_REQUEST, None, message).with_param(param)
    }

    /// 400: the body is not a JSON object.
    pub fn malformed(message: impl Into<String>) -> Self {
        Self::client(StatusCode::BAD_REQUEST, None, message)
    }

    /// 400: the field is known to OpenAI's API, but not honoured here.
    pub fn unsupported(param: &str, message: impl Into<String>) -> Self {
        Self::client(StatusCode::BAD_REQUEST, Some("unsupported_parameter"), message).with_param(param)
    }

    /// 400: no one knows this field.
    pub fn unknown_field(param: &str) -> Self {
        let message = format!("Unrecognized request argument supplied: {}", quoted(param));
        Self::client(StatusCode::BAD_REQUEST, Some("unknown_parameter"), message).with_param(param)
    }

    /// 400: the prompt leaves no room in the context.
    pub fn context_length(param: &str, message: impl Into<String>) -> Self {
        Self::client(StatusCode::BAD_REQUEST, Some("context_length_exceeded"), message).with_param(param)
    }

    /// 400: no answer can be what was asked, which showed only when it was computed.
    pub fn impossible() -> Self {
        let message = "The answer cannot be what was asked for";
        Self::client(StatusCode::BAD_REQUEST, Some("impossible"), message)
    }

    /// 403: a web page was led to this machine by a name of somebody else's.
    pub fn foreign_host() -> Self {
        let message =
            "Pages must call this server by an address, by localhost, or by a name in server.cors_origins";
        Self::client(StatusCode::FORBIDDEN, Some("foreign_host"), message)
    }

    /// 401, with the challenge that HTTP demands.
    pub fn unauthorized(message: impl Into<String>) -> Self {
        Self::client(StatusCode::UNAUTHORIZED, Some("invalid_api_key"), message)
    }

    /// 404: no such model.
    pub fn model_not_found(model: &str) -> Self {
        let message = format!("The model `{}` does not exist", quoted(model));
        Self::client(StatusCode::NOT_FOUND, Some("model_not_found"), message).with_param("model")
    }

    /// 404: no such response of this key.
    pub fn response_not_found(id: &str) -> Self {
        let message = format!("Response with id '{}' not found.", quoted(id));
        Self::client(StatusCode::NOT_FOUND, None, message)
    }

    /// 404: no response of this key has such an item.
    pub fn item_not_found(id: &str) -> Self {
        let message = format!("Item with id '{}' not found.", quoted(id));
        Self::client(StatusCode::NOT_FOUND, None, message).with_param("input")
    }

    /// 400: no such response of this key to go on from.
    pub fn previous_response_not_found(id: &str) -> Self {
        let message = format!("Previous response with id '{}' not found.", quoted(id));
        let code = Some("previous_response_not_found");
        Self::client(StatusCode::BAD_REQUEST, code, message).with_param("previous_response_id")
    }

    /// 404: no such path.
    pub fn unknown_url(method: &str, path: &str) -> Self {
        let message = format!("Unknown request URL: {} {}", quoted(method), quoted(path));
        Self::client(StatusCode::NOT_FOUND, Some("unknown_url"), message)
    }

    /// 405: the path exists, this method on it does not.
    pub fn method_not_allowed(method: &str, path: &str) -> Self {
        let message = format!("Not allowed to {} on {}", quoted(method), quoted(path));
        Self::client(StatusCode::METHOD_NOT_ALLOWED, Some("method_not_allowed"), message)
    }

    /// 408: the body did not arrive in time.
    pub fn body_timeout() -> Self {
        let message = "The request's body did not arrive in time";
        Self::client(StatusCode::REQUEST_TIMEOUT, Some("request_timeout"), message)
    }

    /// 413: the body is larger than the server reads.
    pub fn body_too_large(bytes_max: usize) -> Self {
        let message = format!("The request's body is larger than {bytes_max} bytes");
        Self::client(StatusCode::PAYLOAD_TOO_LARGE, Some("request_too_large"), message)
    }

    /// 415: the body does not claim to be JSON.
    pub fn media_type() -> Self {
        let message = "The request's Content-Type must be application/json";
        Self::client(StatusCode::UNSUPPORTED_MEDIA_TYPE, Some("unsupported_media_type"), message)
    }

    /// 431: the line and headers are larger than the server takes.
    pub fn head_too_large(bytes_max: usize) -> Self {
        let message = format!("The request's line and headers are larger than {bytes_max} bytes");
        Self::client(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, Some("headers_too_large"), message)
    }

    /// 429: after `wait` there is room for this; never, if that is None.
    pub fn rate_limited(message: impl Into<String>, wait: Option<Duration>) -> Self {
        let code = Some("rate_limit_exceeded");
        let mut error = Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", code, message.into());
        let seconds = wait.map(|wait| wait.as_nanos().div_ceil(1_000_000_000).max(1));
        error.retry_after_s = seconds.map(|seconds| u32::try_from(seconds).unwrap_or(u32::MAX));
        error.should_retry = wait.is_none().then_some(false);
        error
    }

    /// 500. The cause belongs into the log, not here.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::server(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", message)
    }

    /// 503: come back in so many seconds.
    pub fn overloaded(retry_after_s: u32) -> Self {
        let message = "The server is overloaded; please try again later";
        let mut error = Self::server(StatusCode::SERVICE_UNAVAILABLE, "overloaded", message);
        error.retry_after_s = Some(retry_after_s.max(1));
        error
    }

    /// 503: another replica may answer.
    pub fn shutting_down() -> Self {
        let mut error =
            Self::server(StatusCode::SERVICE_UNAVAILABLE, "shutting_down", "The server is shutting down");
        error.retry_after_s = Some(1);
        error
    }

    /// 503: the model is not there yet.
    pub fn loading() -> Self {
        let mut error = Self::server(StatusCode::SERVICE_UNAVAILABLE, "loading", "The model is being loaded");
        error.retry_after_s = Some(5);
        error
    }

    /// 504: the deadline passed. Clients are asked not to repeat on their own what was too much once.
    pub fn timeout() -> Self {
        let message = "The request was not finished within the server's time limit";
        let mut error = Self::server(StatusCode::GATEWAY_TIMEOUT, "timeout", message);
        error.should_retry = Some(false);
        error
    }

    /// Names the field to blame.
    #[must_use]
    pub fn with_param(mut self, param: &str) -> Self {
        self.body.param = Some(quoted(param));
        self
    }

    /// Says more.
    #[must_use]
    pub fn with_detail(mut self, detail: &str) -> Self {
        self.body.message.push_str(": ");
        self.body.message.push_str(detail);
        self
    }

    /// The HTTP status.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// For people.
    pub fn message(&self) -> &str {
        &self.body.message
    }

    /// The body, `{"error": ...}`: also what a stream that has begun sends as its last event.
    pub fn body(&self) -> serde_json::Value {
        let response = ErrorResponse { error: self.body.clone() };
        serde_json::to_value(response).expect("strings")
    }
}

/// A client's text fit to be quoted back: bounded, on one line.
pub(crate) fn quoted(text: &str) -> String {
    let mut short: String =
        text.chars().take(QUOTED_MAX).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.chars().nth(QUOTED_MAX).is_some() {
        short.push('…');
    }
    short
}

/// For requests of one prompt; `prompt_field` is the field that holds it.
pub fn from_submit(error: SubmitError, prompt_field: &str) -> ApiError {
    match error {
        SubmitError::QueueFull { retry_after_s } => ApiError::overloaded(retry_after_s),
        SubmitError::TenantLimit => {
            let message = "Too many requests of this API key are in progress";
            ApiError::rate_limited(message, Some(Duration::from_secs(1)))
        }
        SubmitError::TooLong { needed, available } => {
            ApiError::context_length(prompt_field, too_long(available, needed))
        }
        SubmitError::ShuttingDown => ApiError::shutting_down(),
    }
}

/// OpenAI's words, which clients are known to search for.
pub fn too_long(available: u32, needed: u32) -> String {
    format!(
        "This model's maximum context length is {available} tokens. However, you requested {needed} tokens. \
         Please reduce the length of the prompt or of the completion."
    )
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after_s {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Some(retry) = self.should_retry {
            headers.insert(SHOULD_RETRY, HeaderValue::from_static(if retry { "true" } else { "false" }));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        // For endpoints that say it in other words.
        response.extensions_mut().insert(self);
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_are_short_and_on_one_line() {
        assert_eq!(quoted("a\nb"), "a b");
        let long = quoted(&"é".repeat(1000));
        assert_eq!(long.chars().count(), QUOTED_MAX + 1);
    }

    #[test]
    fn a_full_queue_names_its_seconds() {
        let response = from_submit(SubmitError::QueueFull { retry_after_s: 0 }, "prompt").into_response();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(response.headers()[header::RETRY_AFTER], "1");
    }

    #[test]
    fn a_timeout_is_not_repeated() {
        let response = ApiError::timeout().into_response();
        assert_eq!(response.headers()[SHOULD_RETRY], "false");
    }
}
