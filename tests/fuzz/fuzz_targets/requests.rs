//! The body of every request, over a server with a fake model: an answer that is JSON or events, never the server's fault.
#![no_main]

use std::sync::LazyLock;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode, header};
use frugal_tests::load;
use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use tokio::runtime::Runtime;
use tower::ServiceExt as _;

const PATHS: [&str; 8] = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/tokenize",
    "/detokenize",
    "/apply-template",
];

static SERVER: LazyLock<(Runtime, Router)> = LazyLock::new(|| {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let (state, _) = load::fake(8, 96).expect("a fixture");
    (runtime.expect("threads"), frugal::app(state))
});

fuzz_target!(|input: &[u8]| {
    let Some((&path, body)) = input.split_first() else { return };
    let path = PATHS[usize::from(path) % PATHS.len()];
    let (runtime, app) = &*SERVER;
    let request = Request::post(path).header(header::CONTENT_TYPE, "application/json");
    let request = request.body(Body::from(body.to_vec())).expect("a request");
    let (status, bytes) = runtime.block_on(async {
        let response = app.clone().oneshot(request).await.expect("it answers everything");
        let (head, body) = response.into_parts();
        (head.status, axum::body::to_bytes(body, usize::MAX).await.expect("it ends"))
    });
    assert!(!status.is_server_error() || status == StatusCode::SERVICE_UNAVAILABLE, "{path}: {status}");
    let text = std::str::from_utf8(&bytes).expect("UTF-8");
    if serde_json::from_str::<Value>(text).is_ok() {
        return;
    }
    assert_eq!(status, StatusCode::OK, "{path}: {text}");
    for line in text.lines().filter_map(|line| line.strip_prefix("data: ")).filter(|line| *line != "[DONE]") {
        let event: Value = serde_json::from_str(line).expect("an event of JSON");
        let fault = event.pointer("/error/type").is_some_and(|kind| kind == "server_error");
        assert!(!fault, "{path}: {line}");
    }
});
