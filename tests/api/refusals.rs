//! What is refused, and what it is told.

use frugal::settings::{Limits, UnknownFields};
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::harness::{CONTEXT, Server, Setup, user, with};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

fn chat() -> Value {
    json!({"messages": user("Hi"), "max_tokens": 1})
}

fn completion() -> Value {
    json!({"prompt": "Hi", "max_tokens": 1})
}

/// Fields with a value that asks for something that is not honoured, is unknown, or is wrong.
fn refused_by_both() -> Vec<(&'static str, Value)> {
    vec![
        // Not honoured.
        ("tool_choice", json!("required")),
        ("functions", json!([{"name": "f"}])),
        ("function_call", json!({"name": "f"})),
        ("modalities", json!(["text", "audio"])),
        ("audio", json!({"voice": "alloy", "format": "mp3"})),
        ("web_search_options", json!({})),
        ("reasoning_effort", json!("high")),
        ("verbosity", json!("low")),
        ("service_tier", json!("flex")),
        ("store", json!(true)),
        ("suffix", json!("end")),
        ("best_of", json!(2)),
        ("skip_special_tokens", json!(false)),
        ("cache_prompt", json!(false)),
        ("prompt_cache_retention", json!("24h")),
        // Unknown.
        ("temprature", json!(0.5)),
        ("guided_json", json!({"type": "object"})),
        // Of the wrong type.
        ("model", json!(7)),
        ("stream", json!("true")),
        ("temperature", json!("0.5")),
        ("max_tokens", json!("8")),
        ("max_tokens", json!(1.5)),
        ("n", json!([1])),
        ("seed", json!(0.5)),
        ("seed", json!("a")),
        ("stop", json!(7)),
        ("stop", json!(["a", 7])),
        ("logit_bias", json!([1])),
        ("logit_bias", json!({"1": "x"})),
        ("stream_options", json!(true)),
        ("ignore_eos", json!(1)),
        ("return_tokens_as_token_ids", json!("yes")),
        ("stop_token_ids", json!(5)),
        ("stop_token_ids", json!(["a"])),
        ("include_stop_str_in_output", json!("yes")),
        ("prompt_logprobs", json!(true)),
        ("user", json!(7)),
        ("metadata", json!("x")),
        ("safety_identifier", json!(true)),
        ("prompt_cache_key", json!(["k"])),
        // Out of range.
        ("temperature", json!(2.1)),
        ("temperature", json!(-0.1)),
        ("top_p", json!(1.1)),
        ("min_p", json!(-1)),
        ("top_k", json!(-2)),
        ("presence_penalty", json!(2.5)),
        ("frequency_penalty", json!(-2.5)),
        ("repetition_penalty", json!(0)),
        ("max_tokens", json!(-1)),
        ("max_tokens", json!(0)),
        ("min_tokens", json!(2)),
        ("n", json!(0)),
        ("n", json!(17)),
        ("seed", json!(1e300)),
        ("stop", json!("")),
        ("stop", json!(vec!["x"; 17])),
        ("stop", json!("x".repeat(1025))),
        ("stop_token_ids", json!([512])),
        ("stop_token_ids", json!([-1])),
        ("stop_token_ids", json!(vec![1; 17])),
        ("prompt_logprobs", json!(101)),
        ("prompt_logprobs", json!(-1)),
        ("logit_bias", json!({"512": 1})),
        ("logit_bias", json!({"-1": 1})),
        ("logit_bias", json!({"1": 101})),
        // Without its condition.
        ("stream_options", json!({"include_usage": true})),
    ]
}

async fn assert_refused(server: &Server, path: &str, body: &Value, param: &str) -> Value {
    let reply = server.post(path, body).await;
    let error = &reply.json["error"];
    assert_eq!(reply.status, StatusCode::BAD_REQUEST, "{path} {body} -> {}", reply.json);
    assert_eq!(error["param"], param, "{path} {body} -> {error}");
    assert_eq!(error["type"], "invalid_request_error", "{error}");
    assert!(error.as_object().unwrap().contains_key("code"), "{error}");
    let leaf = param.rsplit('.').next().unwrap().split('[').next().unwrap();
    assert!(error["message"].as_str().unwrap().contains(leaf), "the message names the field: {error}");
    error.clone()
}

#[tokio::test]
async fn refused_fields_are_named() {
    let server = Server::new().await;
    let mut messages = Vec::new();
    for (field, value) in refused_by_both() {
        for (path, base) in [(CHAT, chat()), (COMPLETIONS, completion())] {
            let error = assert_refused(&server, path, &with(base, &json!({field: value})), field).await;
            if path == CHAT {
                messages.push(format!("{field} = {}: {}", short(&value), error["message"].as_str().unwrap()));
            }
        }
    }
    insta::assert_snapshot!("refused_fields", messages.join("\n"));
}

fn short(value: &Value) -> String {
    value.to_string().chars().take(40).collect()
}

#[tokio::test]
async fn fields_of_one_endpoint() {
    let server = Server::new().await;
    for (field, value) in [
        ("messages", json!(null)),
        ("messages", json!([])),
        ("messages", json!("Hi")),
        ("top_logprobs", json!(2)),
        ("logprobs", json!(2)),
        ("echo", json!(true)),
        ("prompt", json!("Hi")),
        ("max_completion_tokens", json!(0)),
        ("prediction", json!("x")),
        ("prediction.type", json!({"type": "text", "content": "x"})),
        ("prediction.content", json!({"type": "content"})),
        ("prediction.content", json!({"type": "content", "content": 7})),
        ("prediction.content[0].type", json!({"type": "content", "content": [{"type": "image_url"}]})),
        ("prediction.mood", json!({"type": "content", "content": "x", "mood": "good"})),
    ] {
        let (param, field) = (field, field.split('.').next().unwrap());
        assert_refused(&server, CHAT, &with(chat(), &json!({field: value})), param).await;
    }
    assert_refused(&server, CHAT, &with(chat(), &json!({"max_completion_tokens": 2})), "max_tokens").await;
    let top = json!({"logprobs": true, "top_logprobs": 101});
    assert_refused(&server, CHAT, &with(chat(), &top), "top_logprobs").await;
    let streamed = json!({"stream": true, "prompt_logprobs": 0});
    assert_refused(&server, CHAT, &with(chat(), &streamed), "prompt_logprobs").await;
    assert_refused(&server, COMPLETIONS, &with(completion(), &streamed), "prompt_logprobs").await;
    for (field, value) in [
        ("prompt", json!(null)),
        ("prompt", json!("")),
        ("prompt", json!([])),
        ("prompt", json!([[]])),
        ("prompt", json!({"text": "Hi"})),
        ("prompt", json!([1, "x"])),
        ("prompt", json!(["x", [1]])),
        ("prompt", json!([512])),
        ("prompt", json!([-1])),
        ("prompt", json!([[0.5]])),
        ("prompt", json!(vec!["x"; 65])),
        ("logprobs", json!(101)),
        ("logprobs", json!(true)),
        ("messages", user("Hi")),
        ("max_completion_tokens", json!(1)),
        ("prediction", json!({"type": "content", "content": "x"})),
        ("response_format", json!({"type": "json_object"})),
        ("tools", json!([{"type": "function", "function": {"name": "f"}}])),
    ] {
        assert_refused(&server, COMPLETIONS, &with(completion(), &json!({field: value})), field).await;
    }
}

#[tokio::test]
async fn messages_are_checked() {
    let server = Server::new().await;
    for (message, param) in [
        (json!("Hi"), "messages[0]"),
        (json!({"content": "Hi"}), "messages[0].role"),
        (json!({"role": "wizard", "content": "Hi"}), "messages[0].role"),
        (json!({"role": "tool", "content": "Hi", "tool_call_id": "x"}), "messages[0].tool_call_id"),
        (json!({"role": "function", "content": "Hi", "name": "x"}), "messages[0].role"),
        (json!({"role": "user"}), "messages[0].content"),
        (json!({"role": "user", "content": 7}), "messages[0].content"),
        (json!({"role": "user", "content": ["Hi"]}), "messages[0].content[0]"),
        (json!({"role": "user", "content": [{"type": "text"}]}), "messages[0].content[0].text"),
        (
            json!({"role": "user", "content": [
                {"type": "text", "text": "What?"}, {"type": "image_url", "image_url": {"url": "data:"}}
            ]}),
            "messages[0].content[1].type",
        ),
        (json!({"role": "user", "content": "Hi", "name": "n".repeat(65)}), "messages[0].name"),
        (json!({"role": "user", "content": "Hi", "mood": "good"}), "messages[0].mood"),
        (
            json!({"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}),
            "messages[0].tool_calls[0].type",
        ),
    ] {
        assert_refused(&server, CHAT, &with(chat(), &json!({"messages": [message]})), param).await;
    }
}

#[tokio::test]
async fn what_asks_for_nothing_is_accepted() {
    let server = Server::new().await;
    let nothing = [
        json!({"user": "u-1", "metadata": {"a": "b"}, "store": false, "safety_identifier": "x"}),
        json!({"prompt_cache_key": "k", "service_tier": "auto", "parallel_tool_calls": true}),
        json!({"prompt_cache_retention": "in-memory", "service_tier": "default", "stop_token_ids": []}),
        json!({"include_stop_str_in_output": false, "prompt_logprobs": null, "user": null}),
        json!({"tools": [], "functions": [], "tool_choice": "none", "function_call": "none"}),
        json!({"response_format": {"type": "text"}, "modalities": ["text"], "verbosity": "medium"}),
        json!({"audio": null, "prediction": null, "suffix": null, "web_search_options": null, "reasoning_effort": null}),
        json!({"zzz": null, "zz": false, "z": []}),
        json!({"reasoning_effort": "medium"}),
        json!({"reasoning_effort": "none"}),
        json!({"n": 1, "best_of": 1, "temperature": 1, "top_p": 1, "presence_penalty": 0, "frequency_penalty": 0}),
        json!({"top_k": -1, "min_p": 0, "repetition_penalty": 1, "min_tokens": 0, "stop": [], "logit_bias": {}}),
        json!({"temperature": null, "n": null, "stop": null, "seed": null, "stream": null, "model": null}),
        json!({"logit_bias": null, "stream_options": null, "max_tokens": null, "logprobs": null, "stream": false}),
        json!({"n": 1.0, "top_p": 0, "temperature": 0.0000001}),
    ];
    for more in nothing {
        server.chat(&with(chat(), &more)).await;
        server.complete(&with(completion(), &more)).await;
    }
    let assistant = json!({"messages": [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", "refusal": null, "tool_calls": [], "annotations": []},
        {"role": "user", "content": []},
    ]});
    server.chat(&with(chat(), &assistant)).await;
    server.chat(&with(chat(), &json!({"logprobs": false, "top_logprobs": 0}))).await;
    server.chat(&with(chat(), &json!({"max_completion_tokens": 1}))).await;
}

#[tokio::test]
async fn lenient_servers_ignore_what_they_do_not_know() {
    let mut setup = Setup::default();
    setup.settings.unknown_fields = UnknownFields::Ignore;
    let server = setup.start().await;
    let extra = json!({"modalities": ["audio"], "zzz": 1});
    server.chat(&with(chat(), &extra)).await;
    // What is known is checked all the same.
    assert_refused(&server, CHAT, &with(chat(), &json!({"temperature": 3})), "temperature").await;
}

#[tokio::test]
async fn models_are_checked_and_listed() {
    let server = Server::new().await;
    for path in [CHAT, COMPLETIONS] {
        let base = if path == CHAT { chat() } else { completion() };
        server.ask(path, &with(base.clone(), &json!({"model": "alias"}))).await;
        let reply = server.post(path, &with(base, &json!({"model": "gpt-4"}))).await;
        assert_eq!(reply.status, StatusCode::NOT_FOUND);
        assert_eq!(reply.json["error"]["code"], "model_not_found");
    }
    insta::assert_json_snapshot!("models", server.get("/v1/models").await.json);
    for id in ["tests/qwen3moe", "tests%2Fqwen3moe", "alias"] {
        let reply = server.get(&format!("/v1/models/{id}")).await;
        assert_eq!((reply.status, &reply.json["object"]), (StatusCode::OK, &json!("model")), "{id}");
    }
    let missing = server.get("/v1/models/gpt-4").await;
    assert_eq!(missing.status, StatusCode::NOT_FOUND);
    insta::assert_json_snapshot!("model_not_found", missing.json);
    let unreadable = server.get("/v1/models/%ff%fe").await;
    assert_eq!(
        (unreadable.status, &unreadable.json["error"]["code"]),
        (StatusCode::NOT_FOUND, &json!("model_not_found"))
    );
}

#[tokio::test]
async fn what_is_too_long_is_said_in_openais_words() {
    let server = Server::new().await;
    let long = "word ".repeat(4000);
    let template = server.post(CHAT, &json!({"messages": user(&long)})).await;
    assert_eq!(
        (template.status, &template.json["error"]["param"]),
        (StatusCode::BAD_REQUEST, &json!("messages"))
    );
    let both = server.post(COMPLETIONS, &json!({"prompt": vec![1; 100], "max_tokens": CONTEXT - 50})).await;
    insta::assert_json_snapshot!("context_length", both.json);
    let prompts = server.post(COMPLETIONS, &json!({"prompt": [vec![1; CONTEXT as usize]]})).await;
    assert_eq!(prompts.json["error"]["code"], "context_length_exceeded");
    let never = server.post(CHAT, &with(chat(), &json!({"max_tokens": CONTEXT + 1}))).await;
    assert_eq!(never.json["error"]["code"], "context_length_exceeded");
    let predicted = |words: u32| {
        let content = "x ".repeat(words as usize);
        with(chat(), &json!({"prediction": {"type": "content", "content": content}}))
    };
    let error = assert_refused(&server, CHAT, &predicted(CONTEXT), "prediction").await;
    assert_eq!(error["code"], "context_length_exceeded");
    server.chat(&predicted(8)).await;
    // Exactly the context is fine.
    server.complete(&json!({"prompt": vec![1; 100], "max_tokens": CONTEXT - 100})).await;

    let mut setup = Setup::default();
    setup.settings.limits = Limits { prompt_bytes: 1000, response_entries: 5000, ..Limits::default() };
    let server = setup.start().await;
    let bytes = server.post(CHAT, &json!({"messages": user(&"x".repeat(2000))})).await;
    assert_eq!(bytes.json["error"]["code"], "context_length_exceeded");
    assert_refused(&server, CHAT, &json!({"messages": user("Hi"), "n": 4, "max_tokens": 1300}), "max_tokens")
        .await;
    let scored = json!({"messages": user("Hi"), "max_tokens": 60, "logprobs": true, "top_logprobs": 99});
    assert_refused(&server, CHAT, &scored, "max_tokens").await;
}

#[tokio::test]
async fn bodies_that_are_no_requests() {
    let server = Server::new().await;
    let send = async |body: Vec<u8>, media_type: Option<&str>| {
        let mut request = server.client.post(format!("{}{CHAT}", server.url)).body(body);
        if let Some(media_type) = media_type {
            request = request.header("content-type", media_type);
        }
        let response = request.send().await.unwrap();
        let status = response.status().as_u16();
        let json: Value = response.json().await.unwrap();
        assert!(
            json["error"]["message"].is_string() && json["error"]["type"] == "invalid_request_error",
            "{json}"
        );
        (status, json["error"]["code"].clone())
    };
    let json_type = Some("application/json");
    let deep = "[".repeat(1000);
    for body in
        ["", "{", "null", "[]", "7", "\"x\"", "{\"messages\": [}", "{} x", "{\"a\": 1e999}", deep.as_str()]
    {
        assert_eq!(send(body.into(), json_type).await.0, 400, "{body}");
    }
    for body in [
        vec![0xff, 0xfe],
        vec![0; 100],
        b"{\"messages\": \"\xc3\"}".to_vec(),
        b"{\"messages\": \"\\ud800\"}".to_vec(),
    ] {
        assert_eq!(send(body, json_type).await.0, 400);
    }
    let good = serde_json::to_vec(&chat()).unwrap();
    for media_type in [None, Some("text/plain"), Some("application/x-www-form-urlencoded"), Some("\"")] {
        assert_eq!(send(good.clone(), media_type).await, (415, json!("unsupported_media_type")));
    }
    let large = vec![b' '; (8 << 20) + 1];
    assert_eq!(send(large, json_type).await, (413, json!("request_too_large")));
    let charset = server.client.post(format!("{}{CHAT}", server.url)).body(good);
    let charset = charset.header("content-type", "Application/JSON; charset=utf-8").send().await.unwrap();
    assert_eq!(charset.status(), StatusCode::OK);
}

#[tokio::test]
async fn paths_and_methods() {
    let server = Server::new().await;
    let missing = server.get("/v1/nothing?secret=1").await;
    assert_eq!(missing.status, StatusCode::NOT_FOUND);
    insta::assert_json_snapshot!("unknown_url", missing.json);
    let wrong = server.get(CHAT).await;
    assert_eq!(
        (wrong.status, wrong.headers["allow"].to_str().unwrap()),
        (StatusCode::METHOD_NOT_ALLOWED, "POST")
    );
    insta::assert_json_snapshot!("wrong_method", wrong.json);
    let version = server.get("/version").await.json;
    assert_eq!(version["version"], env!("CARGO_PKG_VERSION"));
}

#[tokio::test]
async fn heads_are_bounded() {
    let server = Server::new().await;
    // More than the limit, and no more than what a connection may have read by then.
    for (bytes, status) in
        [(31 << 10, StatusCode::OK), (33 << 10, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE)]
    {
        let request =
            server.client.get(format!("{}/version", server.url)).header("x-large", "x".repeat(bytes));
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), status, "{bytes}");
        let body: Value = response.json().await.unwrap();
        assert_eq!(body["error"]["code"] == "headers_too_large", status != StatusCode::OK, "{body}");
    }
}

#[tokio::test]
async fn requests_have_ids() {
    let server = Server::new().await;
    assert_eq!(server.get("/version").await.headers["x-request-id"].len(), 32);
    let id = async |chosen: &[u8]| {
        let request = server.client.get(format!("{}/version", server.url)).header("x-request-id", chosen);
        request.send().await.unwrap().headers()["x-request-id"].to_str().unwrap().to_owned()
    };
    let long = "x".repeat(128);
    for good in ["mine-7", "{\"a\":1}", &long] {
        assert_eq!(id(good.as_bytes()).await, good);
    }
    for bad in [&b"two words"[..], b"", b"a\ttab", "naïve".as_bytes(), &[b'x'; 129]] {
        let own = id(bad).await;
        assert!(own.len() == 32 && own.bytes().all(|b| b.is_ascii_hexdigit()), "{own}");
    }
}
