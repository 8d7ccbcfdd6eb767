//! Who may see what: operators' endpoints apart, pages of other origins, and no way to a file.

use std::io::Write as _;

use axum::http::HeaderValue;
use frugal::auth::Keys;
use frugal_config::auth::Key;
use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};

use crate::harness::{Server, Setup, serve_router, user, with};

const CHAT: &str = "/v1/chat/completions";

#[tokio::test]
async fn what_is_for_operators_may_have_its_own_listener() {
    let mut setup = Setup::default();
    setup.operations.keys = Keys::new(&[Key::new("a", "sk-a")]);
    setup.operations.selfcheck = true;
    setup.operations.apart = true;
    let server = setup.start().await;
    let admin = serve_router(frugal::admin(server.state.clone())).await;
    let status = async |base: &str, path: &str| {
        let request = server.client.get(format!("{base}{path}")).bearer_auth("sk-a");
        request.send().await.unwrap().status().as_u16()
    };
    for path in ["/metrics", "/debug/selfcheck"] {
        assert_eq!((status(&server.url, path).await, status(&admin, path).await), (404, 200), "{path}");
        let keyless = server.client.get(format!("{admin}{path}")).send().await.unwrap();
        assert_eq!(keyless.status(), StatusCode::OK, "{path}");
    }
    for path in ["/livez", "/readyz", "/health", "/version"] {
        assert_eq!((status(&server.url, path).await, status(&admin, path).await), (200, 200), "{path}");
    }
    for path in ["/v1/models", "/", "/docs", "/openapi.json"] {
        assert_eq!((status(&server.url, path).await, status(&admin, path).await), (200, 404), "{path}");
    }
    // What is not there is not described.
    let described = server.get("/openapi.json").await.json["paths"].clone();
    assert!(described.get("/v1/models").is_some() && described.get("/metrics").is_none(), "{described}");
    // Both listeners count.
    let metrics = server.client.get(format!("{admin}/metrics")).send().await.unwrap().text().await.unwrap();
    for counted in [r#"route="/v1/models",status="200""#, r#"route="/metrics",status="200""#] {
        assert!(metrics.contains(counted), "{counted} is not in {metrics}");
    }
}

async fn from(server: &Server, method: Method, origin: &str, more: &[(&str, &str)]) -> Response {
    let request = server.client.request(method, format!("{}{CHAT}", server.url)).header("origin", origin);
    more.iter().fold(request, |request, (name, value)| request.header(*name, *value)).send().await.unwrap()
}

fn allowed(response: &Response) -> Option<&str> {
    response.headers().get("access-control-allow-origin").map(|value| value.to_str().unwrap())
}

const PREFLIGHT: &[(&str, &str)] = &[
    ("access-control-request-method", "POST"),
    ("access-control-request-headers", "authorization,content-type,x-stainless-lang"),
];

#[tokio::test]
async fn pages_of_other_origins_are_let_in_by_name() {
    let mut setup = Setup::default();
    setup.operations.keys = Keys::new(&[Key::new("a", "sk-a")]);
    setup.operations.cors_origins =
        ["https://chat.example.com", "http://localhost:5173"].map(HeaderValue::from_static).to_vec();
    let server = setup.start().await;
    let ours = "https://chat.example.com";
    let preflight = from(&server, Method::OPTIONS, ours, PREFLIGHT).await;
    assert_eq!((preflight.status(), allowed(&preflight)), (StatusCode::OK, Some(ours)), "without a key");
    let header = |name: &str| preflight.headers()[name].to_str().unwrap();
    assert_eq!(header("access-control-allow-methods"), "GET,POST,DELETE");
    assert_eq!(header("access-control-allow-headers"), PREFLIGHT[1].1);
    assert!(!preflight.headers().contains_key("access-control-allow-credentials"));
    // A page may read why it was refused, and what it may still ask.
    let refused = from(&server, Method::POST, ours, &[]).await;
    assert_eq!((refused.status(), allowed(&refused)), (StatusCode::UNAUTHORIZED, Some(ours)));
    let shown = refused.headers()["access-control-expose-headers"].to_str().unwrap();
    for name in ["x-request-id", "x-ratelimit-remaining-tokens", "x-should-retry"] {
        assert!(shown.contains(name), "{shown}");
    }
    for other in ["https://chat.example.com.evil.org", "http://chat.example.com", "null"] {
        for (method, more) in [(Method::OPTIONS, PREFLIGHT), (Method::POST, &[])] {
            assert_eq!(allowed(&from(&server, method, other, more).await), None, "{other}");
        }
    }
}

#[tokio::test]
async fn any_origin_is_let_in_only_if_that_is_said() {
    let closed = Server::new().await;
    let preflight = from(&closed, Method::OPTIONS, "https://a.example", PREFLIGHT).await;
    assert_eq!(preflight.status(), StatusCode::METHOD_NOT_ALLOWED);
    for response in [preflight, from(&closed, Method::POST, "https://a.example", &[]).await] {
        let cors = response.headers().keys().find(|name| name.as_str().starts_with("access-control-"));
        assert_eq!(cors, None);
    }
    let mut setup = Setup::default();
    setup.operations.cors_origins = vec![HeaderValue::from_static("*")];
    let open = setup.start().await;
    let preflight = from(&open, Method::OPTIONS, "https://a.example", PREFLIGHT).await;
    assert_eq!((preflight.status(), allowed(&preflight)), (StatusCode::OK, Some("*")));
}

#[tokio::test]
async fn a_page_under_a_foreign_name_cannot_use_a_server_of_this_machine_alone() {
    let mut setup = Setup::default();
    setup.operations.local = true;
    let server = setup.start().await;
    let ask = json!({"messages": user("Hi"), "max_tokens": 1});
    let port = server.url.rsplit(':').next().unwrap();
    let called = async |name: &str, origin: bool| {
        let host = format!("{name}:{port}");
        let origin = origin.then(|| ("origin", format!("http://{host}")));
        let mut headers = vec![("host", &*host)];
        headers.extend(origin.as_ref().map(|(name, value)| (*name, value.as_str())));
        server.post_with(CHAT, &ask, &headers).await
    };
    let led = called("attacker.example", true).await;
    assert_eq!((led.status, &led.json["error"]["code"]), (StatusCode::FORBIDDEN, &json!("foreign_host")));
    let foreign = [("host", "attacker.example"), ("origin", "http://attacker.example")];
    let said = server.post_with("/v1/messages", &ask, &foreign).await;
    assert_eq!(
        (said.status, &said.json["error"]["type"]),
        (StatusCode::FORBIDDEN, &json!("permission_error"))
    );
    // Its own page, and programs whatever they call it.
    for (name, origin) in [("localhost", true), ("127.0.0.1", true), ("attacker.example", false)] {
        assert_eq!(called(name, origin).await.status, StatusCode::OK, "{name}");
    }
}

/// In no answer, whoever asks for the file in which it stands.
const SECRET: &str = "PLUGH-XYZZY-4711";

#[tokio::test]
async fn nothing_in_a_request_reaches_a_file() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(format!("{{\"type\": \"object\", \"title\": \"{SECRET}\"}}").as_bytes()).unwrap();
    let path = file.path().to_str().unwrap();
    let url = format!("file://{path}");
    let server = Server::new().await;
    let ask = || json!({"messages": user("Hi"), "max_tokens": 4, "ignore_eos": true});
    let parts = |part: Value| json!({"messages": [{"role": "user", "content": [part]}], "max_tokens": 4});
    let schema = |schema: Value| {
        let format = json!({"type": "json_schema", "json_schema": {"name": "a", "schema": schema}});
        with(ask(), &json!({"response_format": format}))
    };
    let refused = [
        (CHAT, with(ask(), &json!({"model": path}))),
        (CHAT, with(ask(), &json!({"model": format!("../../../..{path}")}))),
        (CHAT, with(ask(), &json!({"chat_template": path}))),
        (CHAT, with(ask(), &json!({"chat_template_kwargs": {"include": path}}))),
        (CHAT, parts(json!({"type": "image_url", "image_url": {"url": url}}))),
        (CHAT, parts(json!({"type": "input_audio", "input_audio": {"data": url, "format": "wav"}}))),
        (CHAT, parts(json!({"type": "file", "file": {"file_id": path}}))),
        (CHAT, schema(json!({"$ref": url}))),
        (CHAT, schema(json!({"type": "object", "properties": {"a": {"$ref": path}}}))),
        (
            CHAT,
            with(ask(), &json!({"structured_outputs": {"grammar": format!("%import {path}.a\nstart: a")}})),
        ),
        ("/v1/completions", json!({"prompt": "a", "model": url, "max_tokens": 1})),
        (
            "/v1/responses",
            json!({"input": [{"role": "user", "content": [{"type": "input_file", "file_url": url}]}]}),
        ),
        ("/v1/responses", json!({"input": "a", "previous_response_id": path})),
        (
            "/v1/messages",
            json!({"model": "alias", "max_tokens": 4, "messages": [
                {"role": "user", "content": [{"type": "document", "source": {"type": "url", "url": url}}]}
            ]}),
        ),
        ("/apply-template", with(json!({"messages": user("a")}), &json!({"chat_template": path}))),
    ];
    for (endpoint, body) in refused {
        let reply = server.post(endpoint, &body).await;
        assert!(reply.status.is_client_error(), "{endpoint} {body} -> {} {}", reply.status, reply.json);
        assert!(!reply.json.to_string().contains(SECRET), "{endpoint} {body}");
    }
    // What is text stays text, also for a template that may include others.
    let includes = format!("{{% include '{path}' %}}{{% import '{path}' as a %}}");
    let reply = server.post("/apply-template", &json!({"messages": user(&includes)})).await;
    assert_eq!(reply.status, StatusCode::OK, "{}", reply.json);
    let prompt = reply.json.to_string();
    assert!(prompt.contains("include") && !prompt.contains(SECRET), "{prompt}");
    for below in ["/docs", "/page", "/v1/models", "/v1/responses", ""] {
        for way in [path.to_owned(), path.replace('/', "%2f"), format!("/..%2f..%2f..%2f..{path}")] {
            let url = format!("{}{below}/{way}", server.url);
            let response = server.client.get(&url).send().await.unwrap();
            assert_eq!(response.status(), StatusCode::NOT_FOUND, "{url}");
            assert!(!response.text().await.unwrap().contains(SECRET), "{url}");
        }
    }
}

#[tokio::test]
async fn templates_have_no_files() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(SECRET.as_bytes()).unwrap();
    let mut setup = Setup::default();
    let path = file.path().to_str().unwrap();
    setup.template_source =
        Some(format!("{{% include '{path}' ignore missing %}}{{{{ messages[0].content }}}}"));
    let server = setup.start().await;
    let reply = server.post("/apply-template", &json!({"messages": user("Hi")})).await;
    assert!(!reply.json.to_string().contains(SECRET), "{}", reply.json);
}
