//! Anthropic's `/v1/messages` and `/v1/messages/count_tokens`.

use frugal::auth::Keys;
use frugal_config::auth::Key;
use frugal_models::model_runner::BackendKind;
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::harness::{CONTEXT, Server, Setup, user, with};

const MESSAGES: &str = "/v1/messages";
const COUNT: &str = "/v1/messages/count_tokens";

/// ChatML with calls in the Hermes form and reasoning that can be turned off.
const TEMPLATE: &str = "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<tool_call><|im_end|>\n\
    {% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n\
    {% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}\
    {% for call in m.tool_calls or [] %}<tool_call>{{ call.function.name }}</tool_call>{% endfor %}<|im_end|>\n{% endfor %}\
    {% if add_generation_prompt %}<|im_start|>assistant\n{% if enable_thinking %}<think>\n{% endif %}{% endif %}";

/// A model that calls and reasons if it has to.
pub(crate) async fn able() -> Server {
    let template_source = Some(TEMPLATE.to_owned());
    Setup { template_source, backend: Some(BackendKind::Cpu), ..Setup::default() }.start().await
}

fn request() -> Value {
    json!({"messages": user("Hello, is anybody there?"), "temperature": 0, "max_tokens": 8})
}

fn tools() -> Value {
    let schema = json!({
        "type": "object", "required": ["days", "unit"], "additionalProperties": false,
        "properties": {"days": {"type": "integer", "minimum": 0, "maximum": 9}, "unit": {"enum": ["C", "F"]}},
    });
    let tool =
        |name: &str| json!({"name": name, "description": "Looks.", "input_schema": schema, "strict": true});
    json!([tool("weather"), tool("time")])
}

/// Events by name.
async fn events(server: &Server, ask: &Value) -> Vec<(String, Value)> {
    let ask = with(ask.clone(), &json!({"stream": true}));
    let response = server.client.post(format!("{}{MESSAGES}", server.url)).json(&ask).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::OK, "{ask}");
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let text = response.text().await.unwrap();
    let event = |event: &str| {
        let (name, data) = event.strip_prefix("event: ").unwrap().split_once("\ndata: ").unwrap();
        let data: Value = serde_json::from_str(data).unwrap();
        assert_eq!(data["type"], name);
        (name.to_owned(), data)
    };
    text.split("\n\n").filter(|event| !event.is_empty()).map(event).collect()
}

fn append(to: &mut Value, more: &Value) {
    *to = json!(to.as_str().unwrap().to_owned() + more.as_str().unwrap());
}

/// The message that events add up to, as clients add them up.
fn joined(events: &[(String, Value)]) -> Value {
    let (first, last) = (&events[0], events.last().unwrap());
    assert_eq!((first.0.as_str(), last.0.as_str()), ("message_start", "message_stop"));
    let mut message = first.1["message"].clone();
    assert_eq!((&message["content"], &message["stop_reason"]), (&json!([]), &Value::Null));
    let (mut open, mut written) = (None, String::new());
    for (name, data) in &events[1..events.len() - 1] {
        let content = message["content"].as_array_mut().unwrap();
        if name.starts_with("content_block") {
            let index = data["index"].as_u64().unwrap() as usize;
            assert_eq!(index, if name == "content_block_start" { content.len() } else { content.len() - 1 });
        }
        match name.as_str() {
            "content_block_start" => {
                assert_eq!(open.replace(content.len()), None, "one block at a time");
                content.push(data["content_block"].clone());
            }
            "content_block_delta" => {
                let (block, delta) = (content.last_mut().unwrap(), &data["delta"]);
                match delta["type"].as_str().unwrap() {
                    "text_delta" => append(&mut block["text"], &delta["text"]),
                    "thinking_delta" => append(&mut block["thinking"], &delta["thinking"]),
                    "signature_delta" => append(&mut block["signature"], &delta["signature"]),
                    "input_json_delta" => written += delta["partial_json"].as_str().unwrap(),
                    other => panic!("{other}"),
                }
            }
            "content_block_stop" => {
                assert!(open.take().is_some(), "it was open");
                let block = content.last_mut().unwrap();
                if block["type"] == "tool_use" {
                    block["input"] = serde_json::from_str(&std::mem::take(&mut written)).unwrap();
                }
            }
            "message_delta" => {
                message.as_object_mut().unwrap().extend(data["delta"].as_object().unwrap().clone());
                message["usage"] = data["usage"].clone();
            }
            other => panic!("{other}"),
        }
    }
    message
}

/// Without what differs from run to run, and between a prompt that was computed and one that was cached.
fn stable(mut message: Value) -> Value {
    assert!(message["id"].as_str().unwrap().starts_with("msg_"));
    message["id"] = json!("msg_ID");
    let usage = &mut message["usage"];
    let of = |name: &str| usage[name].as_u64().unwrap();
    let prompt = of("input_tokens") + of("cache_read_input_tokens");
    *usage = json!({"prompt": prompt, "output_tokens": usage["output_tokens"]});
    message
}

/// The same request whole and streamed.
async fn both(server: &Server, ask: &Value) -> Value {
    let whole = stable(server.ask(MESSAGES, ask).await);
    assert_eq!(stable(joined(&events(server, ask).await)), whole, "{ask}");
    whole
}

#[tokio::test]
async fn a_whole_answer_and_its_stream() {
    let server = Server::new().await;
    insta::assert_json_snapshot!("message", both(&server, &request()).await);
    let mut events = events(&server, &with(request(), &json!({"max_tokens": 2}))).await;
    let message = &mut events[0].1["message"];
    *message = stable(message.clone());
    let usage = &mut events.iter_mut().rev().nth(1).unwrap().1["usage"];
    assert!(usage["cache_read_input_tokens"].as_u64().unwrap() > 0, "the prompt was there: {usage}");
    *usage = json!("USAGE");
    insta::assert_json_snapshot!("message_stream", events);
    server.settle().await;
}

#[tokio::test]
async fn the_prompt_is_chats_and_is_counted() {
    let server = able().await;
    let call =
        json!({"id": "a", "type": "function", "function": {"name": "weather", "arguments": "{\"days\":1}"}});
    let chat = json!({"max_tokens": 1, "messages": [
        {"role": "system", "content": "Be brief.\nBe kind."},
        {"role": "user", "content": "Hello\nIs it warm?"},
        {"role": "assistant", "content": "I look.", "tool_calls": [call], "reasoning_content": "Hm."},
        {"role": "tool", "tool_call_id": "a", "content": "Error: no\nidea"},
        {"role": "user", "content": "And?"},
    ], "chat_template_kwargs": {"enable_thinking": false}});
    let chat = server.chat(&chat).await;
    let text = |text: &str| json!({"type": "text", "text": text, "cache_control": {"type": "ephemeral"}});
    let conversation = json!({
        "system": [text("Be brief."), text("Be kind.")],
        "messages": [
            {"role": "user", "content": "Hello"},
            {"role": "user", "content": [text("Is it warm?")]},
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "Hm.", "signature": "x"}, text("I look."),
                {"type": "tool_use", "id": "a", "name": "weather", "input": {"days": 1}},
            ]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "a", "is_error": true, "content": [text("no"), text("idea")]},
                text("And?"),
            ]},
        ],
    });
    let count = server.ask(COUNT, &conversation).await;
    assert_eq!(count, json!({"input_tokens": chat["usage"]["prompt_tokens"]}));
    let answer = server.ask(MESSAGES, &with(conversation.clone(), &json!({"max_tokens": 1}))).await;
    assert_eq!(stable(answer)["usage"]["prompt"], count["input_tokens"]);
    // Tools and reasoning are a part of the prompt.
    for more in [json!({"tools": tools()}), json!({"thinking": {"type": "adaptive"}})] {
        let more = server.ask(COUNT, &with(conversation.clone(), &more)).await;
        assert!(more["input_tokens"].as_u64() > count["input_tokens"].as_u64(), "{more}");
    }
}

#[tokio::test]
async fn calls_are_blocks_streamed_or_not() {
    let server = able().await;
    let any = json!({"type": "any", "disable_parallel_tool_use": true});
    for (seed, choice) in
        [(1, any.clone()), (2, any.clone()), (3, with(any, &json!({"type": "tool", "name": "time"})))]
    {
        let more = json!({"tools": tools(), "tool_choice": choice, "seed": seed, "temperature": 1, "max_tokens": 200,
            "thinking": {"type": "enabled", "budget_tokens": 4}});
        let message = both(&server, &with(json!({"messages": user("Warm?")}), &more)).await;
        assert_eq!(message["stop_reason"], "tool_use", "{message}");
        let content = message["content"].as_array().unwrap();
        let calls: Vec<&Value> = content.iter().filter(|block| block["type"] == "tool_use").collect();
        assert_eq!(calls.len(), 1, "{message}");
        assert!(["C", "F"].contains(&calls[0]["input"]["unit"].as_str().unwrap()), "{message}");
        assert!(choice["name"].is_null() || calls[0]["name"] == "time", "{message}");
        // What was answered is understood when it is sent back.
        let result = json!([{"type": "tool_result", "tool_use_id": calls[0]["id"], "content": "20"}]);
        let turns = json!([user("Warm?")[0], {"role": "assistant", "content": content}, {"role": "user", "content": result}]);
        let next =
            json!({"messages": turns, "tools": tools(), "tool_choice": {"type": "none"}, "max_tokens": 4});
        both(&server, &with(next, &json!({"seed": 1}))).await;
    }
    server.settle().await;
}

#[tokio::test]
async fn reasoning_is_a_block_and_ends_with_its_budget() {
    let server = able().await;
    let thinking = json!({"type": "enabled", "budget_tokens": 6});
    let ask = json!({"messages": user("Why?"), "thinking": thinking, "max_tokens": 60, "seed": 5});
    let message = both(&server, &ask).await;
    assert_eq!(message["content"][0]["type"], "thinking", "{message}");
    assert_ne!(message["content"][0]["signature"], "", "clients drop thinking that is not signed");
    assert_eq!(message["content"][1]["type"], "text", "{message}");
    let omitted =
        with(ask, &json!({"thinking": {"type": "enabled", "budget_tokens": 6, "display": "omitted"}}));
    let quiet = both(&server, &omitted).await;
    let nothing =
        json!({"type": "thinking", "thinking": "", "signature": message["content"][0]["signature"]});
    assert_eq!((&quiet["content"][0], &quiet["content"][1]), (&nothing, &message["content"][1]));
}

/// The words are Claude Code's.
#[tokio::test]
async fn what_clients_always_send_is_taken() {
    let more = json!({
        "thinking": {"type": "adaptive", "display": "omitted"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "output_config": {"effort": "high"},
        "metadata": {"user_id": "user-7"},
        "tools": [{"name": "Read", "description": "Reads.", "input_schema": {"type": "object"}, "eager_input_streaming": true}],
        "tool_choice": {"type": "none"},
        "max_tokens": 64_000,
        "stop_sequences": ["\n"],
    });
    for server in [Server::new().await, able().await] {
        let message = server.ask(MESSAGES, &with(request(), &more)).await;
        assert!(message["usage"]["output_tokens"].as_u64().unwrap() > 0, "{message}");
        let counted =
            with(more.clone(), &json!({"max_tokens": null, "stop_sequences": null, "metadata": null}));
        let counted = with(json!({"messages": request()["messages"]}), &counted);
        assert!(server.ask(COUNT, &counted).await["input_tokens"].as_u64().unwrap() > 0);
    }
}

#[tokio::test]
async fn an_effort_reaches_the_templates_that_read_one() {
    let template_source = Some(format!(
        "{{% if reasoning_effort %}}Effort: {{{{ reasoning_effort }}}}\n{{% endif %}}{TEMPLATE}"
    ));
    let server = Setup { template_source, ..Setup::default() }.start().await;
    let count = async |effort: &str| {
        let ask = json!({"messages": user("Hi"), "output_config": {"effort": effort}});
        server.ask(COUNT, &ask).await["input_tokens"].as_u64().unwrap()
    };
    let plain = server.ask(COUNT, &json!({"messages": user("Hi")})).await["input_tokens"].as_u64().unwrap();
    assert!(count("low").await > plain);
    let examples = |examples: Value| {
        let tool = json!({"name": "f", "input_schema": {"type": "object"}, "input_examples": examples});
        json!({"messages": user("Hi"), "tools": [tool]})
    };
    let [none, one] = [json!([]), json!([{"city": "Berlin"}])].map(examples);
    let tokens = async |ask: &Value| server.ask(COUNT, ask).await["input_tokens"].as_u64().unwrap();
    assert!(tokens(&one).await > tokens(&none).await);
}

#[tokio::test]
async fn an_answer_follows_the_schema_of_its_format() {
    let server = able().await;
    let schema = json!({"type": "object", "required": ["ok"], "additionalProperties": false, "properties": {"ok": {"type": "boolean"}}});
    let format = json!({"output_config": {"format": {"type": "json_schema", "schema": schema}}});
    let ask = with(json!({"messages": user("Is it?"), "max_tokens": 200, "seed": 3}), &format);
    let message = both(&server, &ask).await;
    let said: Value = serde_json::from_str(message["content"][0]["text"].as_str().unwrap()).unwrap();
    assert!(said["ok"].is_boolean(), "{message}");
}

#[tokio::test]
async fn what_the_context_has_left_bounds_the_answer() {
    let server = Server::new().await;
    let ends = server.tokenizer.end_tokens();
    let never = ends.iter().map(|token| (token.0.to_string(), json!(-100)));
    let never = Value::Object(never.collect());
    let ask = with(request(), &json!({"max_tokens": CONTEXT * 2, "logit_bias": never}));
    let message = both(&server, &ask).await;
    let usage = &message["usage"];
    assert_eq!(message["stop_reason"], "model_context_window_exceeded", "{message}");
    assert_eq!(
        usage["prompt"].as_u64().unwrap() + usage["output_tokens"].as_u64().unwrap(),
        u64::from(CONTEXT)
    );
    let long = json!({"messages": user(&"a b ".repeat(CONTEXT as usize))});
    let reply = server.post(MESSAGES, &with(request(), &long)).await;
    let said = reply.json["error"]["message"].as_str().unwrap();
    assert!(said.starts_with("prompt is too long: ") && said.ends_with(" maximum"), "{said}");
}

#[tokio::test]
async fn tools_may_be_many_and_have_long_names() {
    let server = able().await;
    let tool = |i: usize| json!({"name": format!("mcp__{i}__{}", "x".repeat(100)), "input_schema": {"type": "object"}});
    let ask = |tools: usize, name: usize| {
        let mut tools: Vec<Value> = (0..tools).map(tool).collect();
        tools[0]["name"] = json!("n".repeat(name));
        json!({"messages": user("Hi"), "tools": tools})
    };
    // The prompt is too long; that it was made is the point.
    let reply = server.post(COUNT, &ask(200, 128)).await;
    assert_eq!(reply.status, StatusCode::OK, "{}", reply.json);
    for (tools, name) in [(1025, 8), (3, 129)] {
        assert_eq!(server.post(COUNT, &ask(tools, name)).await.status, StatusCode::BAD_REQUEST);
    }
}

#[tokio::test]
async fn a_stop_sequence_is_named_and_not_shown() {
    let server = Server::new().await;
    let text = both(&server, &request()).await["content"][0]["text"].as_str().unwrap().to_owned();
    let stop: String = text.chars().skip(2).take(2).collect();
    let at = text.find(&stop).unwrap();
    let message = both(&server, &with(request(), &json!({"stop_sequences": ["\u{1}", stop]}))).await;
    assert_eq!((&message["stop_reason"], &message["stop_sequence"]), (&json!("stop_sequence"), &json!(stop)));
    assert_eq!(message["content"][0]["text"].as_str().unwrap_or_default(), &text[..at]);
    let message = both(&server, &request()).await;
    assert_eq!((&message["stop_reason"], &message["stop_sequence"]), (&json!("max_tokens"), &Value::Null));
}

#[tokio::test]
async fn what_is_not_honoured_is_named() {
    let server = Server::new().await;
    let block = |block: Value| json!({"messages": [{"role": "user", "content": [block]}]});
    let said = |role: &str| json!({"messages": [user("Hi")[0], {"role": role, "content": "a"}]});
    let source = json!({"type": "url", "url": "http://localhost/a.png"});
    let cases = [
        (json!({"max_tokens": null}), "'max_tokens'"),
        (json!({"max_tokens": 0}), "'max_tokens'"),
        (json!({"messages": []}), "'messages'"),
        (json!({"model": "other"}), "`other`"),
        (block(json!({"type": "image", "source": source})), "'messages[0].content[0].type' is 'image'"),
        (block(json!({"type": "document", "source": source})), "'messages[0].content[0].type' is 'document'"),
        (
            block(json!({"type": "tool_use", "id": "a", "name": "f", "input": {}})),
            "'messages[0].content[0].type' is 'tool_use'",
        ),
        (block(json!({"type": "tool_result", "tool_use_id": "a"})), "'messages[0].content[0].tool_use_id'"),
        (block(json!({"type": "text"})), "'messages[0].content[0].text'"),
        (block(json!({"type": "text", "text": "a", "citations": [1]})), "messages[0].content[0].citations"),
        (block(json!({"type": "text", "text": "a", "cache_control": {"type": "x"}})), "cache_control.type"),
        (said("system"), "'messages[1].role' is 'system'"),
        (said("assistant"), "'messages'"),
        (json!({"system": [{"type": "image"}]}), "'system[0].type'"),
        (json!({"system": 7}), "'system'"),
        (json!({"thinking": {"type": "disabled", "display": "full"}}), "'thinking.display'"),
        (json!({"output_config": {"effort": "huge"}}), "'output_config.effort'"),
        (json!({"output_config": {"format": {"type": "text"}}}), "'output_config.format.type'"),
        (json!({"output_config": {"format": {"type": "json_schema"}}}), "'output_config.format.schema'"),
        (
            json!({"context_management": {"edits": [{"type": "clear_tool_uses_20250919", "keep": "all"}]}}),
            "'context_management.edits[0].type'",
        ),
        (
            json!({"context_management": {"edits": [{"type": "clear_thinking_20251015"}]}}),
            "'context_management.edits[0].type'",
        ),
        (
            json!({"tools": [{"name": "f", "input_schema": {}, "defer_loading": true}]}),
            "tools[0].defer_loading",
        ),
        (json!({"thinking": {"type": "enabled"}}), "'thinking.budget_tokens'"),
        (json!({"thinking": {"type": "enabled", "budget_tokens": 9}}), "'thinking'"),
        (json!({"thinking": {"type": "disabled", "budget_tokens": 9}}), "'thinking.budget_tokens'"),
        (json!({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}), "'tools[0].type'"),
        (json!({"tools": [{"name": "f"}]}), "'tools[0].input_schema'"),
        (json!({"tools": [{"name": "a b", "input_schema": {}}]}), "'tools[0].name'"),
        (json!({"tool_choice": {"type": "any"}}), "'tool_choice'"),
        (json!({"tool_choice": {"type": "tool"}}), "'tool_choice.name'"),
        (json!({"tool_choice": {"type": "auto", "name": "f"}}), "'tool_choice.name'"),
        (json!({"stop_sequences": [""]}), "'stop_sequences'"),
        (json!({"service_tier": "priority"}), "'service_tier'"),
        (json!({"metadata": {"user_id": 7}}), "'metadata.user_id'"),
        (json!({"mcp_servers": [{}]}), "mcp_servers"),
    ];
    for (more, named) in cases {
        let reply = server.post(MESSAGES, &with(request(), &more)).await;
        let error = &reply.json["error"];
        let (status, kind) = match more.get("model") {
            Some(_) => (StatusCode::NOT_FOUND, "not_found_error"),
            None => (StatusCode::BAD_REQUEST, "invalid_request_error"),
        };
        assert_eq!((reply.status, error["type"].as_str()), (status, Some(kind)), "{more} -> {}", reply.json);
        assert_eq!(reply.json["type"], "error");
        assert!(error["message"].as_str().unwrap().contains(named), "{more} -> {error}");
    }
}

#[tokio::test]
async fn refusals_are_in_anthropics_shape_below_its_path_only() {
    let mut setup = Setup::default();
    setup.operations.keys = Keys::new(&[Key::new("test", "sk-a")]);
    setup.settings.limits.body_bytes = 1000;
    let server = setup.start().await;
    let send = async |path: &str, key: Option<&str>, body: &Value| {
        let mut post = server.client.post(format!("{}{path}", server.url)).json(body);
        if let Some(key) = key {
            post = post.header("x-api-key", key).header("anthropic-version", "2023-06-01");
        }
        let response = post.send().await.unwrap();
        let status = response.status().as_u16();
        let json: Value = serde_json::from_str(&response.text().await.unwrap()).unwrap();
        (status, json["type"].clone(), json["error"]["type"].clone())
    };
    let error = |status: u16, kind: &str| (status, json!("error"), json!(kind));
    let long = with(request(), &json!({"system": "x".repeat(1000)}));
    assert_eq!(send(MESSAGES, Some("sk-a"), &request()).await.0, 200);
    assert_eq!(send(MESSAGES, None, &request()).await, error(401, "authentication_error"));
    assert_eq!(send(COUNT, Some("sk-b"), &request()).await, error(401, "authentication_error"));
    assert_eq!(send("/v1/messages/batches", Some("sk-a"), &request()).await, error(404, "not_found_error"));
    assert_eq!(send(MESSAGES, Some("sk-a"), &long).await, error(413, "request_too_large"));
    let openais = (401, Value::Null, json!("invalid_request_error"));
    assert_eq!(send("/v1/chat/completions", None, &request()).await, openais);
    assert_eq!(send("/v1/messages_of_others", None, &request()).await, openais);
}

#[tokio::test]
async fn overload_and_time_out_have_anthropics_words() {
    let mut setup = Setup::default();
    setup.settings.limits.request_time = Some(std::time::Duration::ZERO);
    let reply = setup.start().await.post(MESSAGES, &request()).await;
    assert_eq!((reply.status.as_u16(), &reply.json["error"]["type"]), (504, &json!("timeout_error")));
    let server = Server::new().await;
    server.handle.drain(std::time::Duration::ZERO);
    // Which a balancer sends to a server that is not about to end.
    let reply = server.post(MESSAGES, &request()).await;
    assert_eq!((reply.status.as_u16(), &reply.json["error"]["type"]), (503, &json!("overloaded_error")));
}
