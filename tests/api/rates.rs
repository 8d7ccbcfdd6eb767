//! Requests and tokens a minute, under a clock that stands.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use frugal::auth::Keys;
use frugal::settings::Caller;
use frugal_config::auth::{Key, Rates};
use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpSocket;

use crate::harness::{Reply, Server, Setup, user, with};
use crate::lifecycle::until;

const CHAT: &str = "/v1/chat/completions";

/// A server with the keys `sk-a`, which has these rates, and `sk-free`; and the hand of its clock, in seconds.
async fn limited(requests: u32, tokens: u32) -> (Server, Arc<AtomicU64>) {
    let (start, hand) = (Instant::now(), Arc::new(AtomicU64::new(0)));
    let clock = {
        let hand = hand.clone();
        Arc::new(move || start + Duration::from_secs(hand.load(Ordering::Relaxed)))
    };
    let rates = Rates { requests: NonZeroU32::new(requests), tokens: NonZeroU32::new(tokens) };
    let keys = [Key { rates, ..Key::new("a", "sk-a") }, Key::new("free", "sk-free")];
    let mut setup = Setup::default();
    setup.operations.keys = Keys::timed(&keys, clock);
    (setup.start().await, hand)
}

async fn post(server: &Server, key: &str, path: &str, body: &Value) -> Reply {
    server.post_with(path, body, &[("authorization", &format!("Bearer {key}"))]).await
}

fn ask(tokens: u32) -> Value {
    json!({"messages": user("Hi"), "temperature": 0, "max_tokens": tokens, "ignore_eos": true})
}

#[track_caller]
fn shows(reply: &Reply, what: &str, limit: u32, remaining: u64, reset: &str) {
    let value = |part: &str| reply.headers[format!("x-ratelimit-{part}-{what}")].to_str().unwrap().to_owned();
    let shown = (value("limit"), value("remaining"), value("reset"));
    assert_eq!(shown, (limit.to_string(), remaining.to_string(), reset.to_owned()));
}

#[tokio::test]
async fn a_key_has_its_requests_a_minute() {
    let (server, hand) = limited(2, 0).await;
    let first = post(&server, "sk-a", CHAT, &ask(1)).await;
    assert_eq!(first.status, StatusCode::OK);
    shows(&first, "requests", 2, 1, "30s");
    assert!(!first.headers.contains_key("x-ratelimit-limit-tokens"), "what is not limited is not shown");
    // What is refused was asked all the same.
    let refused = post(&server, "sk-a", CHAT, &json!({"messages": 3})).await;
    assert_eq!(refused.status, StatusCode::BAD_REQUEST);
    shows(&refused, "requests", 2, 0, "1m0s");
    let early = post(&server, "sk-a", CHAT, &ask(1)).await;
    assert_eq!(early.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(early.headers["retry-after"], "30");
    shows(&early, "requests", 2, 0, "1m0s");
    insta::assert_json_snapshot!("rate_limited", early.json);
    let anthropic = json!({"model": "alias", "messages": user("Hi"), "max_tokens": 1});
    let early = post(&server, "sk-a", "/v1/messages", &anthropic).await;
    assert_eq!((early.status.as_u16(), &early.json["error"]["type"]), (429, &json!("rate_limit_error")));
    assert_eq!(early.headers["retry-after"], "30");
    // Others are not concerned, nor are those who only look, or end something.
    assert_eq!(post(&server, "sk-free", CHAT, &ask(1)).await.status, StatusCode::OK);
    let models =
        server.client.get(format!("{}/v1/models", server.url)).bearer_auth("sk-a").send().await.unwrap();
    assert_eq!(models.status(), StatusCode::OK);
    let nothing = post(&server, "sk-a", "/v1/responses/resp_1/cancel", &json!({})).await;
    assert_eq!(nothing.status, StatusCode::NOT_FOUND);
    hand.store(30, Ordering::Relaxed);
    assert_eq!(post(&server, "sk-a", CHAT, &ask(1)).await.status, StatusCode::OK);
    assert_eq!(post(&server, "sk-a", CHAT, &ask(1)).await.status, StatusCode::TOO_MANY_REQUESTS);
}

#[tokio::test]
async fn a_key_has_its_tokens_a_minute() {
    let (server, hand) = limited(0, 600).await;
    for more in [json!({}), json!({"stream": true, "stream_options": {"include_usage": true}})] {
        hand.fetch_add(600, Ordering::Relaxed);
        let request = server.client.post(format!("{}{CHAT}", server.url)).bearer_auth("sk-a");
        let answer = request.json(&with(ask(500), &more)).send().await.unwrap();
        let text = answer.text().await.unwrap();
        let total = text.rsplit("\"total_tokens\":").next().unwrap();
        let used: u64 = total.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap();
        assert!((501..600).contains(&used), "{text}");
        let next = post(&server, "sk-a", CHAT, &ask(1)).await;
        assert_eq!(next.status, StatusCode::OK, "{}", next.json);
        let used = used + next.json["usage"]["total_tokens"].as_u64().unwrap();
        let remaining = next.headers["x-ratelimit-remaining-tokens"].to_str().unwrap();
        assert_eq!(remaining, (600 - used).to_string());
    }
    // An answer that takes more than there is goes on to its end; then nothing begins until that is paid.
    hand.fetch_add(600, Ordering::Relaxed);
    let long = post(&server, "sk-a", CHAT, &ask(900)).await;
    assert_eq!(long.json["usage"]["completion_tokens"], 900);
    let used = long.json["usage"]["total_tokens"].as_u64().unwrap();
    shows(&long, "tokens", 600, 0, &format!("1m{}s", used.div_ceil(10) - 60));
    let early = post(&server, "sk-a", CHAT, &ask(1)).await;
    assert_eq!(early.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(early.headers["retry-after"].to_str().unwrap(), (used - 600 + 1).div_ceil(10).to_string());
    assert_eq!(early.json["error"]["code"], "rate_limit_exceeded");
    hand.fetch_add(600, Ordering::Relaxed);
    // What can never fit is not worth another try.
    let huge = json!({"prompt": "a b ".repeat(400), "max_tokens": 1});
    let never = post(&server, "sk-a", "/v1/completions", &huge).await;
    assert_eq!(never.status, StatusCode::TOO_MANY_REQUESTS, "{}", never.json);
    assert!(!never.headers.contains_key("retry-after"));
    assert_eq!(never.headers["x-should-retry"], "false");
    shows(&never, "tokens", 600, 600, "0ms");
    server.settle().await;
}

/// The engine runs ahead of a client that takes nothing, and what it computed is paid for when that client leaves.
#[tokio::test]
async fn what_nobody_reads_is_charged() {
    let (server, _) = limited(0, 5000).await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut stream = socket.connect(server.url["http://".len()..].parse().unwrap()).await.unwrap();
    let more = json!({"stream": true, "logprobs": true, "top_logprobs": 20});
    let body = with(ask(900), &more).to_string();
    let head = format!(
        "POST {CHAT} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer sk-a\r\nContent-Type: application/json"
    );
    let request = format!("{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    stream.write_all(request.as_bytes()).await.unwrap();
    until(&server, "all is computed", |s| s.handle.snapshot().counters.finished[2] == 1).await;
    drop(stream);
    let prompt = server.handle.snapshot().counters.prompt_tokens;
    let left = (5000 - 900 - prompt).to_string();
    // What is refused costs nothing, and shows what is left.
    while post(&server, "sk-a", CHAT, &json!({"messages": 3})).await.headers["x-ratelimit-remaining-tokens"]
        != *left
    {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn several_prompts_are_one_request_in_progress_and_text_endpoints_are_requests() {
    let mut setup = Setup::default();
    setup.operations.keys = Keys::new(&[Key::new("a", "sk-a")]);
    setup.engine.tenant_requests_max = Some(1);
    let server = setup.start().await;
    let prompts = json!({"prompt": ["a", "b", "c"], "max_tokens": 1});
    assert_eq!(post(&server, "sk-a", "/v1/completions", &prompts).await.status, StatusCode::OK);
    let visit = server.handle.visit(Caller::named("a").tenant).unwrap();
    for (path, body) in [("/v1/completions", prompts), ("/tokenize", json!({"prompt": "a"}))] {
        let refused = post(&server, "sk-a", path, &body).await;
        assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS, "{path}");
    }
    drop(visit);
    assert_eq!(post(&server, "sk-a", "/tokenize", &json!({"prompt": "a"})).await.status, StatusCode::OK);
}

#[tokio::test]
async fn what_the_engine_does_not_take_is_not_charged() {
    let (server, _) = limited(0, 600).await;
    server.handle.drain(Duration::ZERO);
    let refused = post(&server, "sk-a", CHAT, &ask(1)).await;
    assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE);
    shows(&refused, "tokens", 600, 600, "0ms");
}
