//! Web pages of other origins: none may read answers, unless they are configured.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderName, HeaderValue, Method, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

use crate::error::ApiError;

/// Any origin.
const ANY: &str = "*";

/// For how long a browser may remember what it was allowed.
const REMEMBERED: Duration = Duration::from_secs(3600);

/// What pages of these origins may read beside the body and what every page may.
const SHOWN: [&str; 10] = [
    "x-request-id",
    "request-id",
    "retry-after",
    "x-should-retry",
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

/// For a server of this machine alone that asks for no key: a page whose name was made to mean this machine after it was loaded (DNS
/// rebinding) is of the server's own origin. So pages must have called the server by an address, by a name that nobody else can
/// give this machine, or by one that is configured. Programs send no `Origin` and may call it what they like.
pub(crate) async fn local(
    State(origins): State<Arc<[HeaderValue]>>,
    request: Request,
    next: Next,
) -> Response {
    let headers = request.headers();
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let foreign = headers.contains_key(header::ORIGIN) && !host.is_some_and(|host| known(host, &origins));
    if foreign { ApiError::foreign_host().into_response() } else { next.run(request).await }
}

/// Whether a page that calls the server so was not led here.
fn known(host: &str, origins: &[HeaderValue]) -> bool {
    let Ok(host) = host.parse::<Authority>() else { return false };
    let name = host.host().trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
    let configured = origins.iter().any(|origin| {
        let origin = origin.to_str().unwrap_or_default();
        origin == ANY || origin.parse::<Uri>().is_ok_and(|origin| origin.host() == Some(&*name))
    });
    configured || name == "localhost" || name.ends_with(".localhost") || name.parse::<IpAddr>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_others_can_give_this_machine_are_not_known() {
        let origins = ["https://chat.example.com"].map(HeaderValue::from_static);
        for host in
            ["127.0.0.1:8000", "[::1]:8000", "192.168.1.7", "localhost", "LOCALHOST:8000", "a.localhost:8000"]
        {
            assert!(known(host, &[]), "{host}");
        }
        for host in ["attacker.example:8000", "localhost.attacker.example", "127.0.0.1.nip.io", "", "a b"] {
            assert!(!known(host, &origins), "{host}");
        }
        assert!(known("chat.example.com", &origins) && known("x.example", &[HeaderValue::from_static("*")]));
    }
}
