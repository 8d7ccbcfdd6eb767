//! `GET /`: a page to chat with the model and to watch the server.
//!
//! Its parts come out of this binary, and its policy lets the browser load from nowhere else. What it shows comes from
//! the endpoints that everyone may use.

use axum::http::header;
use axum::response::{Html, IntoResponse};
use axum::routing::get;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::state::State;

/// Path, media type and content of what the page loads.
const PARTS: &[(&str, &str, &str)] = &[
    ("/page/page.css", "text/css", include_str!("../page/page.css")),
    ("/page/chat.js", "text/javascript", include_str!("../page/chat.js")),
    ("/page/live.js", "text/javascript", include_str!("../page/live.js")),
    ("/page/icon.svg", "image/svg+xml", include_str!("../page/icon.svg")),
];

/// Nothing inline, nothing from elsewhere, in no frame.
const POLICY: &str = "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The next binary has another page.
const CACHING: &str = "no-cache";

/// The endpoint, and what the page loads.
pub fn route() -> OpenApiRouter<State> {
    PARTS.iter().fold(OpenApiRouter::new().routes(routes!(page)), |router, &(path, media_type, content)| {
        let headers = [
            (header::CONTENT_TYPE, media_type),
            (header::CACHE_CONTROL, CACHING),
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        ];
        router.route(path, get(async move || (headers, content)))
    })
}

/// Chat with the model and watch the server, on a page
#[utoipa::path(
    get,
    path = "/",
    tag = "operation",
    responses((status = 200, description = "The page", body = String, content_type = "text/html"))
)]
async fn page() -> impl IntoResponse {
    let headers = [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::CACHE_CONTROL, CACHING),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    (headers, Html(include_str!("../page/page.html")))
}
