//! Traces, as a collector gets them.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::routing::post;
use frugal::auth::Keys;
use frugal::traces::Traces;
use frugal_config::auth::Key;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::harness::{Server, Setup, serve_router, user, with};

const CHAT: &str = "/v1/chat/completions";

/// A collector that keeps what it gets.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<ExportTraceServiceRequest>>>);

impl Collector {
    async fn start() -> (Self, String) {
        let collector = Self::default();
        let kept = collector.clone();
        let take = move |body: Bytes| async move {
            let request = ExportTraceServiceRequest::decode(body).expect("OTLP in protobuf");
            kept.0.lock().unwrap().push(request);
        };
        let url = serve_router(Router::new().route("/v1/traces", post(take))).await;
        (collector, url)
    }

    /// All spans, when the last one was sent.
    async fn spans(&self, server: &Server, traces: Traces) -> Vec<Span> {
        // An answer's span may end after its last byte.
        server.get("/livez").await;
        tokio::task::spawn_blocking(move || traces.finish()).await.unwrap();
        let all = self.0.lock().unwrap();
        let scopes = all.iter().flat_map(|request| &request.resource_spans).flat_map(|r| &r.scope_spans);
        scopes.flat_map(|scope| scope.spans.clone()).collect()
    }

    fn resource(&self) -> Value {
        let all = self.0.lock().unwrap();
        attributes(&all[0].resource_spans[0].resource.as_ref().unwrap().attributes)
    }
}

fn attributes(pairs: &[KeyValue]) -> Value {
    let value = |value: &Any| match value {
        Any::StringValue(text) => json!(text),
        Any::IntValue(number) => json!(number),
        Any::DoubleValue(number) => json!(number),
        Any::ArrayValue(array) => {
            let texts = array.values.iter().map(|value| match &value.value {
                Some(Any::StringValue(text)) => json!(text),
                other => panic!("{other:?}"),
            });
            texts.collect()
        }
        other => panic!("{other:?}"),
    };
    let pairs = pairs
        .iter()
        .map(|pair| (pair.key.clone(), value(pair.value.as_ref().unwrap().value.as_ref().unwrap())));
    Value::Object(pairs.collect())
}

async fn traced(mut setup: Setup, url: &str, ratio: f64) -> (Server, Traces) {
    let traces = Traces::new(url, ratio).expect("a URL");
    setup.operations.traces = Some(traces.clone());
    (setup.start().await, traces)
}

fn hex(id: &[u8]) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

#[tokio::test]
async fn a_request_is_a_span_of_its_clients_trace_with_what_the_engine_did_below() {
    let (collector, url) = Collector::start().await;
    let mut setup = Setup::priced();
    setup.operations.keys = Keys::new(&[Key::new("team-a", "sk-a")]);
    let (server, traces) = traced(setup, &url, 1.0).await;
    let ask = json!({"messages": user("XYZZY"), "max_tokens": 5, "temperature": 0, "ignore_eos": true});
    let parent = format!("00-{TRACE}-{PARENT}-01");
    let reply = server.post_with(CHAT, &ask, &[("traceparent", &parent), ("x-api-key", "sk-a")]).await;
    assert_eq!(reply.status, StatusCode::OK);
    let spans = collector.spans(&server, traces).await;
    assert_eq!(collector.resource()["service.name"], "frugal");
    assert!(spans.iter().all(|span| hex(&span.trace_id) == TRACE), "{spans:#?}");
    let named =
        |name: &str| spans.iter().find(|span| span.name == name).unwrap_or_else(|| panic!("{spans:#?}"));
    let request = named("chat tests/qwen3moe");
    assert_eq!((hex(&request.parent_span_id).as_str(), request.kind), (PARENT, 2), "a server's");
    let usage = &reply.json["usage"];
    assert_eq!(
        attributes(&request.attributes),
        json!({
            "http.request.method": "POST",
            "http.route": CHAT,
            "http.response.status_code": 200,
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "frugal",
            "gen_ai.request.model": "tests/qwen3moe",
            "gen_ai.response.finish_reasons": ["length"],
            "gen_ai.usage.input_tokens": usage["prompt_tokens"],
            "gen_ai.usage.cache_read.input_tokens": 0,
            "gen_ai.usage.output_tokens": 5,
            "frugal.end": "complete",
            "frugal.key": "team-a",
            "frugal.cost": usage["cost"],
            "frugal.cost.currency": "USD",
        })
    );
    let [queue, prefill, decode] = ["queue", "prefill", "decode"].map(named);
    for (before, after) in [(queue, prefill), (prefill, decode)] {
        assert_eq!(before.end_time_unix_nano, after.start_time_unix_nano);
        assert_eq!(before.parent_span_id, request.span_id);
    }
    assert_eq!(decode.parent_span_id, request.span_id);
    assert!(request.start_time_unix_nano <= queue.start_time_unix_nano);
    let (prefill, decode) = (attributes(&prefill.attributes), attributes(&decode.attributes));
    assert_eq!((&prefill["frugal.tokens"], &decode["frugal.tokens"]), (&usage["prompt_tokens"], &json!(5)));
    let sum = prefill["frugal.cost"].as_f64().unwrap() + decode["frugal.cost"].as_f64().unwrap();
    assert!((sum - usage["cost"].as_f64().unwrap()).abs() < 1e-15, "{prefill} {decode} {usage}");
    // Nothing of what was said.
    let text = format!("{spans:?}{:?}", collector.0.lock().unwrap());
    let said = reply.json["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(!text.contains("XYZZY") && !text.contains(said), "{text}");
}

#[tokio::test]
async fn failures_are_errors_and_probes_are_no_spans() {
    let (collector, url) = Collector::start().await;
    let (server, traces) = traced(Setup::default(), &url, 1.0).await;
    server.control.inject(frugal_models::fake::FakeFault::Step("torn".to_owned()));
    let ask = json!({"prompt": "a", "max_tokens": 5, "ignore_eos": true});
    assert_eq!(server.post("/v1/completions", &ask).await.status, StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(server.post(CHAT, &json!({"messages": 3})).await.status, StatusCode::BAD_REQUEST);
    server.get("/v1/models").await;
    server.get("/nowhere/XYZZY").await;
    let spans = collector.spans(&server, traces).await;
    let mut seen: Vec<_> = spans
        .iter()
        .filter(|span| span.kind == 2)
        .map(|span| {
            let attributes = attributes(&span.attributes);
            let error = span.status.as_ref().is_some_and(|status| status.code == 2);
            let kind = attributes.get("error.type").cloned();
            (span.name.clone(), attributes["http.response.status_code"].clone(), error, kind)
        })
        .collect();
    seen.sort_by(|a, b| a.0.cmp(&b.0));
    let expected = [
        ("GET /v1/models", 200, false, None),
        ("GET other", 404, false, None),
        ("chat tests/qwen3moe", 400, false, None),
        ("text_completion tests/qwen3moe", 500, true, Some(json!("500"))),
    ];
    assert_eq!(
        seen,
        expected.map(|(name, status, error, kind)| (name.to_owned(), json!(status), error, kind))
    );
}

#[tokio::test]
async fn an_answer_in_the_background_is_in_its_requests_span() {
    let (collector, url) = Collector::start().await;
    let (server, traces) = traced(Setup::default(), &url, 1.0).await;
    let ask = json!({"input": "Hi", "background": true, "max_output_tokens": 16});
    let begun = server.post("/v1/responses", &ask).await;
    assert_eq!(begun.status, StatusCode::OK, "{}", begun.json);
    server.settle().await;
    let path = format!("/v1/responses/{}", begun.json["id"].as_str().unwrap());
    let mut ended = server.get(&path).await.json;
    while ended["status"] == "queued" || ended["status"] == "in_progress" {
        ended = server.get(&path).await.json;
    }
    let spans = collector.spans(&server, traces).await;
    let request = spans.iter().find(|span| span.name.starts_with("chat ")).expect("its span");
    let tokens = &attributes(&request.attributes)["gen_ai.usage.output_tokens"];
    assert_eq!(tokens, &ended["usage"]["output_tokens"], "{ended}");
}

#[tokio::test]
async fn what_the_client_decided_is_followed_and_the_rest_by_ratio() {
    let (collector, url) = Collector::start().await;
    let (server, traces) = traced(Setup::default(), &url, 0.0).await;
    let ask = json!({"messages": user("a"), "max_tokens": 1});
    server.post(CHAT, &ask).await;
    for (trace, flags) in [("1", "00"), ("2", "01")] {
        let parent = format!("00-{trace:0>32}-{PARENT}-{flags}");
        server.post_with(CHAT, &ask, &[("traceparent", &parent)]).await;
    }
    // Nonsense is as if it were not there.
    assert_eq!(server.post_with(CHAT, &ask, &[("traceparent", "00-x-y-01")]).await.status, StatusCode::OK);
    let spans = collector.spans(&server, traces).await;
    assert_eq!(spans.len(), 4, "one request and its phases: {spans:#?}");
    assert!(spans.iter().all(|span| hex(&span.trace_id) == format!("{:0>32}", "2")));
}

#[tokio::test]
async fn a_collector_that_does_not_answer_keeps_nobody() {
    // It takes connections and says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", silent.local_addr().unwrap());
    let (server, traces) = traced(Setup::default(), &url, 1.0).await;
    // Its queue is not waited for at the end of the test either.
    std::mem::forget(traces);
    let ask = json!({"prompt": ["a", "b", "c", "d"], "max_tokens": 1});
    // More spans than are queued.
    for _ in 0..500 {
        assert_eq!(
            server.post("/v1/completions", &with(ask.clone(), &json!({"n": 1}))).await.status,
            StatusCode::OK
        );
    }
}
