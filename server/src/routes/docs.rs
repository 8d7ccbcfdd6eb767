//! `GET /openapi.json`, and `GET /docs`: a page that shows it and lets one try it.
//!
//! The page is Swagger UI out of this binary. Its policy lets the browser fetch from nowhere else.

use std::sync::OnceLock;

use axum::Router;
use axum::extract::{Request, State as Shared};
use axum::http::header;
use axum::response::{Html, IntoResponse};
use axum::routing::{get, get_service};
use swagger_ui_dist::{ApiDefinition, OpenApiSource};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::state::State;

const PAGE: &str = r#"<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Frugal: API</title>
<link rel="stylesheet" href="/docs/swagger-ui.css">
</head>
<body>
<div id="api"></div>
<script src="/docs/swagger-ui-bundle.js"></script>
<script src="/docs/start.js"></script>
</body>
</html>
"#;

/// Without the validator that Swagger UI would ask somewhere else.
const START: &str = r##"SwaggerUIBundle({
  url: "/openapi.json", dom_id: "#api", validatorUrl: null, tryItOutEnabled: true, deepLinking: true,
});
"##;

/// Swagger UI makes style elements and has its icons in data URLs.
const POLICY: &str =
    "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'";

/// The endpoints.
pub fn route() -> OpenApiRouter<State> {
    let definition = ApiDefinition {
        uri_prefix: "/docs",
        api_definition: OpenApiSource::Uri("/openapi.json"),
        title: None,
    };
    // Only these two: its own page would load more from elsewhere.
    let assets: Router = swagger_ui_dist::generate_routes(definition);
    OpenApiRouter::new()
        .routes(routes!(openapi))
        .routes(routes!(docs))
        .route("/docs/swagger-ui.css", get_service(assets.clone()))
        .route("/docs/swagger-ui-bundle.js", get_service(assets))
        .route("/docs/start.js", get(async |_: Request| ([(header::CONTENT_TYPE, "text/javascript")], START)))
}

/// Describe the API
#[utoipa::path(
    get,
    path = "/openapi.json",
    tag = "operation",
    responses((status = 200, description = "OpenAPI 3.1", body = Object))
)]
async fn openapi(Shared(state): Shared<State>) -> impl IntoResponse {
    static WHOLE: OnceLock<String> = OnceLock::new();
    static PUBLIC: OnceLock<String> = OnceLock::new();
    let apart = state.operations().apart;
    let json = if apart { &PUBLIC } else { &WHOLE };
    let json = json.get_or_init(|| crate::openapi(apart).to_json().expect("a description is JSON"));
    ([(header::CONTENT_TYPE, "application/json")], json.as_str())
}

/// Show the API on a page
#[utoipa::path(
    get,
    path = "/docs",
    tag = "operation",
    responses((status = 200, description = "The page", body = String, content_type = "text/html"))
)]
async fn docs() -> impl IntoResponse {
    ([(header::CONTENT_SECURITY_POLICY, POLICY)], Html(PAGE))
}
