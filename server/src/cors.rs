//! Web pages of other origins: none may read answers, unless they are configured.

use std::time::Duration;

use axum::http::{HeaderName, HeaderValue, Method};
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

/// Any origin.
const ANY: &str = "*";

/// For how long a browser may remember what it was allowed.
const REMEMBERED: Duration = Duration::from_secs(3600);

/// What pages of these origins may read beside the body and what every page may.
const SHOWN: [&str; 8] = [
    "x-request-id",
    "retry-after",
    "x-ratelimit-limit-requests",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-reset-requests",
    "x-ratelimit-limit-tokens",
    "x-ratelimit-remaining-tokens",
    "x-ratelimit-reset-tokens",
];

/// Answers preflights, and says in every answer who may read it. Cookies play no part: who asks shows a key.
pub(crate) fn layer(origins: &[HeaderValue]) -> CorsLayer {
    let origins = if origins.iter().any(|origin| origin == ANY) {
        AllowOrigin::any()
    } else {
        AllowOrigin::list(origins.iter().cloned())
    };
    CorsLayer::new()
        .allow_origin(origins)
        .allow_methods([Method::GET, Method::POST, Method::DELETE])
        // Clients have headers of their own; `*` would leave Authorization out.
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers(SHOWN.map(HeaderName::from_static))
        .max_age(REMEMBERED)
}
