//! `response_format` and `structured_outputs` over HTTP.

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::harness::{Server, Setup, chunks, user, with};
use frugal_models::fake::FakeFault;
use frugal_models::model_runner::BackendKind;
use frugal_models::step::RowFault;

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

fn person() -> Value {
    json!({
        "type": "object", "required": ["name", "age"], "additionalProperties": false,
        "properties": {
            "name": {"type": "string", "maxLength": 12},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
        },
    })
}

fn format(schema: &Value) -> Value {
    json!({"type": "json_schema", "json_schema": {"name": "person", "schema": schema, "strict": true}})
}

fn ask(seed: u64, more: &Value) -> Value {
    with(json!({"messages": user("Who?"), "max_tokens": 400, "seed": seed}), more)
}

fn is_person(text: &str) -> bool {
    let person: Value = serde_json::from_str(text).expect("JSON");
    let name = person["name"].as_str().is_some_and(|name| name.chars().count() <= 12);
    name && person["age"].as_u64().is_some_and(|age| age <= 150)
}

#[tokio::test]
async fn answers_follow_their_schema_streamed_or_not() {
    for backend in [None, Some(BackendKind::Cpu)] {
        let server = Setup { backend, ..Setup::default() }.start().await;
        for seed in 0..6 {
            let strict = [json!({}), json!({"strict": false}), json!({"description": "A person."})];
            let mut format = format(&person());
            format["json_schema"]
                .as_object_mut()
                .unwrap()
                .extend(strict[seed as usize % 3].as_object().unwrap().clone());
            let ask = ask(seed, &json!({"response_format": format, "n": 2}));
            let answer = server.chat(&ask).await;
            let events = server.stream(CHAT, &with(ask, &json!({"stream": true}))).await;
            let chunks = chunks(&events);
            for (i, choice) in answer["choices"].as_array().unwrap().iter().enumerate() {
                assert_eq!(choice["finish_reason"], "stop", "{choice}");
                let text = choice["message"]["content"].as_str().unwrap();
                assert!(is_person(text), "{text}");
                let of_choice = chunks.iter().map(|c| &c["choices"][0]).filter(|c| c["index"] == i);
                let delta = |c: &Value| c["delta"]["content"].as_str().unwrap_or_default().to_owned();
                assert_eq!(of_choice.clone().map(delta).collect::<String>(), text);
                let reasons: Vec<_> = of_choice.filter_map(|c| c["finish_reason"].as_str()).collect();
                assert_eq!(reasons, ["stop"]);
            }
        }
        server.settle().await;
    }
}

#[tokio::test]
async fn every_kind_is_followed_by_both_endpoints() {
    let server = Server::new().await;
    for seed in 0..4 {
        type Fits<'a> = &'a dyn Fn(&str) -> bool;
        let fits: [(Value, Fits<'_>); 5] = [
            (json!({"json": person()}), &is_person),
            (json!({"json": person().to_string()}), &is_person),
            (json!({"regex": "^(ab|cd){2,4}$"}), &|text| {
                (4..=8).contains(&text.len()) && text.replace("ab", "").replace("cd", "").is_empty()
            }),
            (json!({"choice": ["north", "south", "so"]}), &|text| ["north", "south", "so"].contains(&text)),
            (json!({"grammar": "start: \"[\" /[0-9]{3}/ \"]\""}), &|text| {
                text.len() == 5 && text[1..4].bytes().all(|b| b.is_ascii_digit())
            }),
        ];
        for (outputs, fits) in fits {
            let outputs = json!({"structured_outputs": outputs});
            let answer = server.chat(&ask(seed, &outputs)).await;
            let text = answer["choices"][0]["message"]["content"].as_str().unwrap();
            assert!(fits(text), "{outputs}: {text}");
            let body = with(json!({"prompt": ["a", "b"], "max_tokens": 400, "seed": seed}), &outputs);
            for choice in server.complete(&body).await["choices"].as_array().unwrap() {
                assert_eq!(choice["finish_reason"], "stop");
                assert!(fits(choice["text"].as_str().unwrap()), "{outputs}: {choice}");
            }
        }
        let object = json!({"response_format": {"type": "json_object"}, "max_tokens": 1000});
        let choice = &server.chat(&ask(seed, &object)).await["choices"][0];
        if choice["finish_reason"] == "stop" {
            let value: Value = serde_json::from_str(choice["message"]["content"].as_str().unwrap()).unwrap();
            assert!(value.is_object(), "{choice}");
        }
    }
    server.settle().await;
}

#[tokio::test]
async fn what_limits_an_answer_still_does() {
    let server = Server::new().await;
    let digits = json!({"structured_outputs": {"regex": "[0-9]{8}"}});
    let choice = |answer: &Value| answer["choices"][0].clone();
    // The grammar decides what is said, `max_tokens` and `stop` how much of it.
    let cut = choice(&server.chat(&ask(1, &with(digits.clone(), &json!({"max_tokens": 3})))).await);
    assert_eq!(cut["finish_reason"], "length", "{cut}");
    let whole = choice(&server.chat(&ask(1, &digits)).await);
    let text = whole["message"]["content"].as_str().unwrap().to_owned();
    assert!(whole["finish_reason"] == "stop" && text.len() == 8, "{whole}");
    let stop = with(digits.clone(), &json!({"stop": [text[3..5]]}));
    let stopped = choice(&server.chat(&ask(1, &stop)).await);
    let at = text.find(&text[3..5]).unwrap();
    assert_eq!(
        (stopped["message"]["content"].as_str(), &stopped["finish_reason"]),
        (Some(&text[..at]), &json!("stop"))
    );
    // A complete grammar ends the answer, whatever else would have it go on.
    for more in [json!({"ignore_eos": true}), json!({"min_tokens": 100})] {
        let more = with(digits.clone(), &more);
        assert_eq!(choice(&server.chat(&ask(1, &more)).await)["message"]["content"], text.as_str());
    }
    // Log-probabilities are of what the model would have said.
    let scored = with(digits, &json!({"logprobs": true, "top_logprobs": 3}));
    let scored = choice(&server.chat(&ask(1, &scored)).await);
    assert_eq!(scored["message"]["content"], text.as_str());
    assert!(!scored["logprobs"]["content"].as_array().unwrap().is_empty());
    server.settle().await;
}

#[tokio::test]
async fn what_is_wrong_is_named() {
    let server = Server::new().await;
    let schema =
        |schema: Value| json!({"type": "json_schema", "json_schema": {"name": "x", "schema": schema}});
    for (format, param) in [
        (json!("json_object"), "response_format"),
        (json!({}), "response_format.type"),
        (json!({"type": "xml"}), "response_format.type"),
        (json!({"type": "text", "extra": 1}), "response_format.extra"),
        (json!({"type": "json_object", "schema": {}}), "response_format.schema"),
        (json!({"type": "json_schema"}), "response_format.json_schema"),
        (json!({"type": "json_schema", "json_schema": {"schema": {}}}), "response_format.json_schema.name"),
        (
            json!({"type": "json_schema", "json_schema": {"name": "a b", "schema": {}}}),
            "response_format.json_schema.name",
        ),
        (json!({"type": "json_schema", "json_schema": {"name": "x"}}), "response_format.json_schema.schema"),
        (
            json!({"type": "json_schema", "json_schema": {"name": "x", "schema": true}}),
            "response_format.json_schema.schema",
        ),
        (
            json!({"type": "json_schema", "json_schema": {"name": "x", "schema": {}, "strict": 1}}),
            "response_format.json_schema.strict",
        ),
        (schema(json!({"type": "array", "uniqueItems": true})), "response_format"),
        (schema(json!({"properties": {"a": {"if": {}}}})), "response_format"),
        (schema(json!({"type": "integer", "minimum": 2, "maximum": 1})), "response_format"),
        (schema(json!({"description": "x".repeat(1 << 20)})), "response_format"),
    ] {
        refused(&server, CHAT, &ask(0, &json!({"response_format": format})), param).await;
    }
    for (outputs, param) in [
        (json!("json"), "structured_outputs"),
        (json!({}), "structured_outputs"),
        (json!({"regex": "a", "choice": ["b"]}), "structured_outputs"),
        (json!({"regex": 7}), "structured_outputs.regex"),
        (json!({"regex": "a("}), "structured_outputs"),
        (json!({"regex": "a(?=b)"}), "structured_outputs"),
        (json!({"regex": "a?".repeat(100_000)}), "structured_outputs"),
        (json!({"choice": "a"}), "structured_outputs.choice"),
        (json!({"choice": [1]}), "structured_outputs.choice"),
        (json!({"choice": []}), "structured_outputs"),
        (json!({"grammar": "start: nothing"}), "structured_outputs"),
        (json!({"json": "{"}), "structured_outputs.json"),
        (json!({"json": 7}), "structured_outputs.json"),
        (json!({"json": {}, "whitespace_pattern": " "}), "structured_outputs.whitespace_pattern"),
    ] {
        let outputs = json!({"structured_outputs": outputs});
        refused(&server, CHAT, &ask(0, &outputs), param).await;
        let body = with(json!({"prompt": "a", "max_tokens": 4}), &outputs);
        refused(&server, COMPLETIONS, &body, param).await;
    }
    let both = json!({"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}});
    refused(&server, CHAT, &ask(0, &both), "structured_outputs").await;
    server.settle().await;
}

async fn refused(server: &Server, path: &str, body: &Value, param: &str) {
    let reply = server.post(path, body).await;
    let error = &reply.json["error"];
    assert_eq!(reply.status, StatusCode::BAD_REQUEST, "{path} {param} -> {}", reply.json);
    assert_eq!(
        (&error["param"], &error["type"]),
        (&json!(param), &json!("invalid_request_error")),
        "{error}"
    );
    let message = error["message"].as_str().unwrap();
    assert!(message.contains(param.rsplit('.').next().unwrap()) && message.len() < 600, "{error}");
}

/// Grammars that take the compilers' whole time are waited for by those who asked for them, and by nobody else.
#[tokio::test]
async fn heavy_grammars_do_not_hold_up_others() {
    let server = std::sync::Arc::new(Server::new().await);
    let heavy: Vec<_> = (0..6)
        .map(|i| {
            let server = server.clone();
            let regex = format!("x{i}{}", "(a?b?c?)*".repeat(1500));
            let body = ask(0, &json!({"structured_outputs": {"regex": regex}}));
            tokio::spawn(async move { server.post(CHAT, &body).await })
        })
        .collect();
    for seed in 0..20 {
        let answer = server.chat(&json!({"messages": user("Hi"), "max_tokens": 4, "seed": seed})).await;
        assert!(answer["choices"][0]["finish_reason"].is_string());
    }
    for reply in heavy {
        let reply = reply.await.unwrap();
        let known = [StatusCode::BAD_REQUEST, StatusCode::SERVICE_UNAVAILABLE].contains(&reply.status);
        // What compiles may still be too much to follow, or take too long: that ends this answer alone.
        let message = reply.json["error"]["message"].as_str().unwrap();
        assert!(known || message.contains("a token mask took more than"), "{}: {message}", reply.status);
    }
    let answer = server.chat(&ask(0, &json!({"response_format": format(&person())}))).await;
    assert!(is_person(answer["choices"][0]["message"]["content"].as_str().unwrap()));
    server.settle().await;
}

/// What compiles may have no end that the model's tokens can write. It is the request that is wrong, so nobody is to try it again.
#[tokio::test]
async fn a_grammar_that_cannot_be_followed_is_the_requests_fault() {
    let server = Server::new().await;
    let fault = || FakeFault::Row(0, RowFault::Grammar("no token of the vocabulary can follow".to_owned()));
    let said = "The answer cannot be what was asked for: the output's grammar cannot be followed: no token of the vocabulary can follow";
    for (n, stream) in [(1, false), (3, false), (1, true)] {
        server.control.inject(fault());
        let reply = server.post(CHAT, &ask(0, &json!({"n": n, "stream": stream}))).await;
        let error = &reply.json["error"];
        assert_eq!(
            (reply.status, &error["code"]),
            (StatusCode::BAD_REQUEST, &json!("impossible")),
            "{error}"
        );
        assert!(n > 1 || error["message"] == said, "{error}");
    }
    // A stream that has begun says it last.
    for path in [CHAT, "/v1/messages", "/v1/responses"] {
        let before = server.handle.snapshot().counters.generated_tokens;
        server.control.pause();
        server.control.allow(2);
        let more = match path {
            "/v1/responses" => json!({"input": "Hi", "max_output_tokens": 50}),
            _ => json!({"messages": user("Hi"), "max_tokens": 50}),
        };
        let body = with(more, &json!({"stream": true, "temperature": 0, "seed": 1}));
        let response = server.client.post(format!("{}{path}", server.url)).json(&body).send();
        let relieve = async {
            while server.handle.snapshot().counters.generated_tokens < before + 2 {
                server.get("/version").await;
            }
            server.control.inject(fault());
            server.control.resume();
        };
        let (response, ()) = tokio::join!(response, relieve);
        let response = response.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        let text = response.text().await.unwrap();
        let last: Value = serde_json::from_str(text.trim_end().rsplit("data: ").next().unwrap()).unwrap();
        let error = if path == "/v1/responses" { &last["response"]["error"] } else { &last["error"] };
        assert_eq!(error["message"], said, "{text}");
        let word = if path == "/v1/responses" { &error["code"] } else { &error["type"] };
        assert!(word == "invalid_prompt" || word == "invalid_request_error", "{error}");
    }
    server.settle().await;
}
