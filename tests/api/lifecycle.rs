//! Clients that go away, engines that fail, servers that are full or stop.

use std::time::Duration;

use frugal::state::State;
use frugal_models::fake::FakeFault;
use frugal_models::step::RowFault;
use frugal_scheduler::request::FinishReason;
use frugal_scheduler::snapshot::finish_index;
use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::{Server, Setup, data, serve, user, with};

const CHAT: &str = "/v1/chat/completions";

fn request() -> Value {
    json!({"messages": user("Hi"), "temperature": 0, "max_tokens": 1500, "ignore_eos": true})
}

/// Sends a request over a connection of its own.
async fn send(server: &Server, body: &Value) -> TcpStream {
    let mut stream = TcpStream::connect(server.url.strip_prefix("http://").unwrap()).await.unwrap();
    let body = body.to_string();
    let head = format!(
        "POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all((head + &body).as_bytes()).await.unwrap();
    stream
}

/// Waits for a state of the engine. Each try is a round trip, so that the server gets on.
pub(crate) async fn until(server: &Server, what: &str, condition: impl Fn(&Server) -> bool) {
    for _ in 0..20_000 {
        if condition(server) {
            return;
        }
        server.get("/version").await;
    }
    panic!("not reached: {what}");
}

fn finished(server: &Server, reason: FinishReason) -> u64 {
    server.handle.snapshot().counters.finished[finish_index(reason)]
}

#[tokio::test]
async fn a_client_that_leaves_ends_its_sequences() {
    for stream in [true, false] {
        let mut setup = Setup::default();
        setup.engine.max_seqs = 1;
        let server = setup.start().await;
        server.control.pause();
        server.control.allow(1);
        // One runs, and one waits.
        let ask = with(request(), &json!({"stream": stream}));
        let mut running = send(&server, &ask).await;
        until(&server, "one runs", |s| s.handle.snapshot().gauges.running == 1).await;
        let queued = send(&server, &ask).await;
        until(&server, "one waits", |s| s.handle.snapshot().gauges.queue_requests == 1).await;
        if stream {
            let mut first = [0; 12];
            running.read_exact(&mut first).await.unwrap();
            assert_eq!(&first, b"HTTP/1.1 200");
        }
        drop((running, queued));
        // A step at a time: were the sequences to go on, they would end by length.
        until(&server, "cancelled", |s| {
            s.control.allow(1);
            finished(s, FinishReason::Cancelled) == 2
        })
        .await;
        server.control.resume();
        server.settle().await;
        assert_eq!(finished(&server, FinishReason::Length), 0);
    }
}

#[tokio::test]
async fn a_full_queue_says_when_to_come_back() {
    let mut setup = Setup::default();
    setup.engine.max_seqs = 1;
    setup.engine.queue_requests_max = 1;
    let server = setup.start().await;
    server.control.pause();
    let short = with(request(), &json!({"max_tokens": 3}));
    server.control.allow(1);
    let first = send(&server, &short).await;
    until(&server, "one runs", |s| s.handle.snapshot().gauges.running == 1).await;
    let second = send(&server, &short).await;
    until(&server, "one waits", |s| s.handle.snapshot().gauges.queue_requests == 1).await;
    let refused = server.post(CHAT, &short).await;
    assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE, "{}", refused.json);
    assert!(refused.headers["retry-after"].to_str().unwrap().parse::<u32>().unwrap() >= 1);
    insta::assert_json_snapshot!("overloaded", refused.json);
    // Before any work: what is wrong with a request is not found, and a large one is not even read.
    for path in [CHAT, "/v1/completions", "/v1/responses", "/v1/messages"] {
        let status = server.post(path, &json!({"prompt": 7})).await.status;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{path}");
    }
    let mut large = TcpStream::connect(server.url.strip_prefix("http://").unwrap()).await.unwrap();
    let head = format!(
        "POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 1000000\r\n\r\n"
    );
    large.write_all(head.as_bytes()).await.unwrap();
    let mut status = [0; 12];
    large.read_exact(&mut status).await.unwrap();
    assert_eq!(&status, b"HTTP/1.1 503");
    assert_eq!(server.handle.snapshot().counters.rejections.queue_full, 6);
    // What does not queue is served.
    assert_eq!(server.post("/tokenize", &json!({"prompt": "Hi"})).await.status, StatusCode::OK);
    server.control.resume();
    drop((first, second));
    server.settle().await;
}

#[tokio::test]
async fn places_in_the_queue_come_back() {
    let mut setup = Setup::default();
    setup.engine.queue_requests_max = 1;
    let server = setup.start().await;
    let short = with(request(), &json!({"max_tokens": 3}));
    for wrong in
        [json!({"n": 0}), json!({"structured_outputs": {"regex": "("}}), json!({"max_tokens": 1_000_000})]
    {
        let refused = server.post(CHAT, &with(short.clone(), &wrong)).await;
        assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{}", refused.json);
    }
    // In the middle of a body, and while an answer is prepared.
    for _ in 0..20 {
        let mut gone = TcpStream::connect(server.url.strip_prefix("http://").unwrap()).await.unwrap();
        let head = format!(
            "POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 50\r\n\r\n{{"
        );
        gone.write_all(head.as_bytes()).await.unwrap();
        drop((gone, send(&server, &short).await));
    }
    until(&server, "a place", |s| s.handle.look(0).is_ok()).await;
    server.settle().await;
    server.chat(&short).await;
}

#[tokio::test]
async fn faults_before_the_first_byte_are_statuses() {
    let server = Server::new().await;
    for stream in [false, true] {
        let ask = with(request(), &json!({"stream": stream, "max_tokens": 5}));
        server.control.inject(FakeFault::Step("torn".to_owned()));
        let failed = server.post(CHAT, &ask).await;
        assert_eq!(failed.status, StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(failed.json["error"]["type"], "server_error");
        let message = failed.json["error"]["message"].as_str().unwrap();
        assert!(message.contains("torn"), "{message}");
        server.control.inject(FakeFault::Row(0, RowFault::NotANumber));
        assert_eq!(server.post(CHAT, &ask).await.status, StatusCode::INTERNAL_SERVER_ERROR);
    }
    server.chat(&with(request(), &json!({"max_tokens": 5}))).await;
    server.settle().await;
}

#[tokio::test]
async fn faults_later_are_events() {
    let server = Server::new().await;
    server.control.pause();
    let ask = with(request(), &json!({"stream": true}));
    let response = server.client.post(format!("{}{CHAT}", server.url)).json(&ask).send();
    let response = tokio::spawn(response);
    server.control.allow(3);
    let response = response.await.unwrap().unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    server.control.inject(FakeFault::Step("torn".to_owned()));
    server.control.resume();
    let events = data(&response.text().await.unwrap());
    let last: Value = serde_json::from_str(events.last().unwrap()).unwrap();
    assert_eq!(last["error"]["type"], "server_error", "no [DONE] after an error: {last}");
    server.settle().await;
}

#[tokio::test]
async fn a_deadline_is_a_timeout() {
    let mut setup = Setup::default();
    setup.settings.limits.request_time = Some(Duration::ZERO);
    let server = setup.start().await;
    for stream in [false, true] {
        let late = server.post(CHAT, &with(request(), &json!({"stream": stream}))).await;
        assert_eq!(late.status, StatusCode::GATEWAY_TIMEOUT);
        assert_eq!(late.headers["x-should-retry"], "false");
        insta::assert_json_snapshot!("timeout", late.json);
    }
}

#[tokio::test]
async fn stopping() {
    let server = Server::new().await;
    assert_eq!(server.get("/readyz").await.status, StatusCode::OK);
    server.control.pause();
    let streaming = server.client.post(format!("{}{CHAT}", server.url));
    let streaming = tokio::spawn(streaming.json(&with(request(), &json!({"stream": true}))).send());
    server.control.allow(2);
    let streaming = streaming.await.unwrap().unwrap();
    server.handle.drain(Duration::ZERO);
    let ready = server.get("/readyz").await;
    assert_eq!((ready.status.as_u16(), &ready.json), (503, &json!({"status": "draining"})));
    assert_eq!(server.get("/livez").await.status, StatusCode::OK);
    assert_eq!(server.get("/health").await.status, StatusCode::OK);
    let refused = server.post(CHAT, &request()).await;
    assert_eq!((refused.status.as_u16(), &refused.json["error"]["code"]), (503, &json!("shutting_down")));
    server.control.resume();
    let events = data(&streaming.text().await.unwrap());
    let last: Value = serde_json::from_str(events.last().unwrap()).unwrap();
    assert_eq!(last["error"]["code"], "shutting_down");
}

#[tokio::test]
async fn a_dead_engine_is_not_alive() {
    let server = Server::new().await;
    server.control.inject(FakeFault::Panic);
    let failed = server.post(CHAT, &request()).await;
    assert_eq!(failed.status, StatusCode::INTERNAL_SERVER_ERROR, "{}", failed.json);
    until(&server, "dead", |s| s.handle.healthy().is_err()).await;
    for path in ["/livez", "/readyz", "/health"] {
        let health = server.get(path).await;
        assert_eq!((health.status.as_u16(), &health.json), (503, &json!({"status": "stopped"})), "{path}");
    }
    assert_eq!(server.post(CHAT, &request()).await.status, StatusCode::SERVICE_UNAVAILABLE);
}

#[tokio::test]
async fn a_stalled_engine_is_not_alive() {
    let mut setup = Setup::default();
    setup.engine.stall_timeout = Duration::ZERO;
    let server = setup.start().await;
    server.control.pause();
    let waiting = send(&server, &request()).await;
    until(&server, "stalled", |s| s.handle.healthy().is_err()).await;
    let health = server.get("/livez").await;
    assert_eq!((health.status.as_u16(), &health.json), (503, &json!({"status": "stalled"})));
    drop(waiting);
    server.control.resume();
}

#[tokio::test]
async fn a_server_that_loads_is_alive_and_not_ready() {
    let url = serve(State::new(Setup::default().settings)).await;
    let client = reqwest::Client::new();
    let get = async |path: &str| client.get(format!("{url}{path}")).send().await.unwrap().status().as_u16();
    assert_eq!((get("/livez").await, get("/readyz").await, get("/health").await), (200, 503, 503));
    assert_eq!(get("/v1/models").await, 200);
    let refused = client.post(format!("{url}{CHAT}")).json(&request()).send().await.unwrap();
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    let refused: Value = refused.json().await.unwrap();
    assert_eq!(refused["error"]["code"], "loading");
}

#[tokio::test]
async fn a_slow_stream_is_kept_open() {
    let mut setup = Setup::default();
    setup.settings.keep_alive = Duration::from_millis(1);
    let server = setup.start().await;
    server.control.pause();
    let ask = with(request(), &json!({"stream": true, "max_tokens": 2}));
    let mut response = server.client.post(format!("{}{CHAT}", server.url)).json(&ask).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::OK, "nothing has come yet");
    let mut text = String::new();
    while text.matches(':').count() < 3 {
        text += std::str::from_utf8(&response.chunk().await.unwrap().expect("more")).unwrap();
    }
    assert_eq!(data(&text), Vec::<String>::new(), "clients take the first chunk for the first token");
    server.control.resume();
    text += &response.text().await.unwrap();
    assert_eq!(data(&text).last().unwrap(), "[DONE]");
}

#[tokio::test]
async fn huge_prompts_do_not_block_small_ones() {
    let server = Server::new().await;
    // Each keeps its thread for a while and is refused in the end.
    let huge = json!({"messages": user(&"a b ".repeat(400_000)), "max_tokens": 1});
    let waiting: Vec<_> = (0..8)
        .map(|_| {
            let request = server.client.post(format!("{}{CHAT}", server.url)).json(&huge).send();
            tokio::spawn(request)
        })
        .collect();
    for _ in 0..5 {
        server.chat(&with(request(), &json!({"max_tokens": 1}))).await;
    }
    let ahead = waiting.iter().any(|w| !w.is_finished());
    assert!(ahead, "small requests were answered while large ones were at work");
    for huge in waiting {
        let refused = huge.await.unwrap().unwrap();
        assert_eq!(refused.status(), StatusCode::BAD_REQUEST);
    }
}
