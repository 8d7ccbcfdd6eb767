//! OpenAI's `/v1/responses`: answers, streams and conversations.

use frugal_models::model_runner::BackendKind;
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::harness::{Server, Setup, with};
use crate::messages::able;

pub(crate) const RESPONSES: &str = "/v1/responses";

pub(crate) fn request() -> Value {
    json!({"input": "Hello, is anybody there?", "temperature": 0, "seed": 1, "max_output_tokens": 8})
}

pub(crate) fn tools() -> Value {
    let schema = json!({
        "type": "object", "required": ["days", "unit"], "additionalProperties": false,
        "properties": {"days": {"type": "integer", "minimum": 0, "maximum": 9}, "unit": {"enum": ["C", "F"]}},
    });
    let tool =
        |name: &str| json!({"type": "function", "name": name, "description": "Looks.", "parameters": schema});
    json!([tool("weather"), tool("time")])
}

/// The data of a stream's events, which say their names and are numbered from 0.
async fn events(server: &Server, ask: &Value) -> Vec<Value> {
    let ask = with(ask.clone(), &json!({"stream": true}));
    let response = server.client.post(format!("{}{RESPONSES}", server.url)).json(&ask).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::OK, "{ask}");
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let text = response.text().await.unwrap();
    let event = |(i, event): (usize, &str)| {
        let (name, data) = event.strip_prefix("event: ").unwrap().split_once("\ndata: ").unwrap();
        let data: Value = serde_json::from_str(data).unwrap();
        assert_eq!((&data["type"], &data["sequence_number"]), (&json!(name), &json!(i)));
        data
    };
    text.split("\n\n").filter(|event| !event.is_empty()).enumerate().map(event).collect()
}

fn append(to: &mut Value, more: &Value) {
    *to = json!(to.as_str().unwrap().to_owned() + more.as_str().unwrap());
}

/// The output that events add up to, as clients add them up, and the response that the last one has.
fn joined(events: &[Value]) -> (Value, Value) {
    let [created, in_progress, between @ .., last] = events else { panic!("{events:?}") };
    assert_eq!(created["type"], "response.created");
    assert_eq!(in_progress["type"], "response.in_progress");
    for first in [created, in_progress] {
        assert_eq!(
            (&first["response"]["status"], &first["response"]["output"]),
            (&json!("in_progress"), &json!([]))
        );
        assert_eq!(first["response"]["id"], last["response"]["id"]);
    }
    let mut output: Vec<Value> = Vec::new();
    let mut open = false;
    for event in between {
        let kind = event["type"].as_str().unwrap();
        if kind == "response.output_item.added" {
            assert!(!open && event["output_index"] == output.len(), "one item at a time: {event}");
            assert_eq!(event["item"]["status"], "in_progress");
            output.push(event["item"].clone());
            open = true;
            continue;
        }
        assert!(open && event["output_index"] == output.len() - 1, "{event}");
        let item = output.last_mut().unwrap();
        if kind == "response.output_item.done" {
            item["status"] = event["item"]["status"].clone();
            assert_eq!(*item, event["item"]);
            open = false;
            continue;
        }
        assert_eq!(event["item_id"], item["id"], "{event}");
        match kind {
            "response.content_part.added" => {
                assert_eq!(event["content_index"], item["content"].as_array().unwrap().len());
                item["content"].as_array_mut().unwrap().push(event["part"].clone());
            }
            "response.content_part.done" => assert_eq!(item["content"][0], event["part"]),
            "response.function_call_arguments.delta" => append(&mut item["arguments"], &event["delta"]),
            "response.function_call_arguments.done" => assert_eq!(item["arguments"], event["arguments"]),
            "response.output_text.delta" | "response.reasoning_text.delta" => {
                let part = &mut item["content"][0];
                append(&mut part["text"], &event["delta"]);
                if let Some(more) = event["logprobs"].as_array() {
                    part["logprobs"].as_array_mut().unwrap().extend(more.clone());
                }
            }
            "response.output_text.done" => {
                let part = &item["content"][0];
                assert_eq!((&part["text"], &part["logprobs"]), (&event["text"], &event["logprobs"]));
            }
            "response.reasoning_summary_part.added" => {
                assert_eq!(event["summary_index"], item["summary"].as_array().unwrap().len());
                item["summary"].as_array_mut().unwrap().push(event["part"].clone());
            }
            "response.reasoning_summary_text.delta" => {
                append(&mut item["summary"][0]["text"], &event["delta"]);
            }
            "response.reasoning_summary_text.done" => assert_eq!(item["summary"][0]["text"], event["text"]),
            "response.reasoning_summary_part.done" => assert_eq!(item["summary"][0], event["part"]),
            "response.reasoning_text.done" => assert_eq!(item["content"][0]["text"], event["text"]),
            other => panic!("{other}"),
        }
    }
    assert!(!open, "every item ends");
    let status = last["response"]["status"].as_str().unwrap();
    assert_eq!(last["type"], format!("response.{status}"));
    (json!(output), last["response"].clone())
}

/// Without what differs from run to run, and between a prompt that was computed and one that was cached.
fn stable(mut response: Value) -> Value {
    assert!(response["id"].as_str().unwrap().starts_with("resp_"));
    response["id"] = json!("resp_ID");
    assert!(response["created_at"].as_u64().unwrap() > 1_700_000_000);
    response["created_at"] = json!(0);
    let ended = response["status"] == "completed";
    assert_eq!(response["completed_at"].is_u64(), ended, "{response}");
    response["completed_at"] = json!(ended);
    response["usage"]["input_tokens_details"] = json!("DETAILS");
    response
}

/// The same request whole and streamed.
pub(crate) async fn both(server: &Server, ask: &Value) -> Value {
    let whole = server.ask(RESPONSES, ask).await;
    let (output, last) = joined(&events(server, ask).await);
    assert_eq!(output, last["output"], "{ask}");
    assert_eq!(stable(last), stable(whole.clone()), "{ask}");
    whole
}

/// The items of one type.
fn of_type<'a>(response: &'a Value, kind: &str) -> Vec<&'a Value> {
    response["output"].as_array().unwrap().iter().filter(|item| item["type"] == kind).collect()
}

#[tokio::test]
async fn a_whole_answer_and_its_stream() {
    let server = Server::new().await;
    let whole = both(&server, &request()).await;
    assert_eq!(whole["status"], "incomplete");
    insta::assert_json_snapshot!("response", stable(whole));
    let mut events = events(&server, &with(request(), &json!({"max_output_tokens": 2}))).await;
    for event in events.iter_mut().filter(|event| event["response"].is_object()) {
        event["response"] = json!("RESPONSE");
    }
    insta::assert_json_snapshot!("response_stream", events);
    server.settle().await;
}

#[tokio::test]
async fn the_prompt_is_chats() {
    let server = able().await;
    let call =
        json!({"id": "a", "type": "function", "function": {"name": "weather", "arguments": "{\"days\":1}"}});
    let chat = json!({"max_tokens": 1, "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello\nIs it warm?"},
        {"role": "assistant", "content": "I look.", "tool_calls": [call], "reasoning_content": "Hm."},
        {"role": "tool", "tool_call_id": "a", "content": "no\nidea"},
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "And?"},
    ]});
    let chat = server.chat(&chat).await;
    let texts = |kind: &str, texts: &[&str]| -> Value {
        texts.iter().map(|text| json!({"type": kind, "text": text})).collect()
    };
    let mut ask = json!({"instructions": "Be brief.", "max_output_tokens": 1, "input": [
        {"role": "user", "content": texts("input_text", &["Hello", "Is it warm?"])},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": texts("reasoning_text", &["Hm."]), "encrypted_content": null},
        {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": texts("output_text", &["I look."])},
        {"type": "function_call", "call_id": "a", "name": "weather", "arguments": "{\"days\":1}"},
        {"type": "function_call_output", "call_id": "a", "output": texts("input_text", &["no", "idea"])},
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": "And?"},
    ]});
    let response = server.ask(RESPONSES, &ask).await;
    assert_eq!(response["usage"]["input_tokens"], chat["usage"]["prompt_tokens"]);
    // A summary stands for reasoning that is not there.
    ask["input"][1] = json!({"type": "reasoning", "summary": texts("summary_text", &["Hm."])});
    assert_eq!(server.ask(RESPONSES, &ask).await["usage"]["input_tokens"], response["usage"]["input_tokens"]);
    // Tools and reasoning are a part of the prompt.
    for more in [json!({"tools": tools()}), json!({"reasoning": {"effort": "high", "summary": "auto"}})] {
        let more = server.ask(RESPONSES, &with(ask.clone(), &more)).await;
        assert!(
            more["usage"]["input_tokens"].as_u64() > response["usage"]["input_tokens"].as_u64(),
            "{more}"
        );
    }
}

/// A template that knows no other than alternating roles, as Mistral's are.
const ALTERNATING: &str = "{% set said = messages | rejectattr('role', 'equalto', 'system') | list %}\
    {% for m in said %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}\
    {% for m in messages %}{% if m.role == 'system' and not loop.first %}{{ raise_exception('one system message') }}{% endif %}\
    [{{ m.role }}]{{ m.content }}\n{% endfor %}";

#[tokio::test]
async fn what_a_role_says_in_a_row_is_one_message() {
    let server = Setup { template_source: Some(ALTERNATING.to_owned()), ..Setup::default() }.start().await;
    let chat = json!({"max_tokens": 1, "messages": [
        {"role": "system", "content": "Be brief.\nBe kind.\nBe good."},
        {"role": "user", "content": "Hello\nIs it warm?"},
        {"role": "assistant", "content": "Yes.\nIt is."},
        {"role": "user", "content": "And\nnow?"},
    ]});
    let chat = server.chat(&chat).await;
    let said = |role: &str, text: &str| json!({"role": role, "content": text});
    let ask = json!({"instructions": "Be brief.", "max_output_tokens": 1, "seed": 1, "input": [
        said("developer", "Be kind."), said("system", "Be good."), said("user", "Hello"), said("user", "Is it warm?"),
        said("assistant", "Yes."), said("assistant", "It is."), said("user", "And"), said("user", "now?"),
    ]});
    let response = both(&server, &ask).await;
    assert_eq!(response["usage"]["input_tokens"], chat["usage"]["prompt_tokens"]);
}

#[tokio::test]
async fn calls_are_items_and_go_round() {
    let server = able().await;
    let named = json!({"type": "function", "name": "time"});
    let allowed = json!({"type": "allowed_tools", "mode": "required", "tools": [named]});
    for (seed, choice) in [(1, json!("required")), (2, named), (3, allowed)] {
        let more = json!({"tools": tools(), "tool_choice": choice, "parallel_tool_calls": false, "seed": seed,
            "max_output_tokens": 200, "thinking_budget": 4, "reasoning": {"effort": "low"}});
        let response = both(&server, &with(json!({"input": "Warm?"}), &more)).await;
        assert_eq!((&response["status"], &response["tool_choice"]), (&json!("completed"), &choice));
        assert_eq!(response["tools"][0]["strict"], true);
        let [call] = of_type(&response, "function_call")[..] else { panic!("{response}") };
        let arguments: Value = serde_json::from_str(call["arguments"].as_str().unwrap()).unwrap();
        assert!(["C", "F"].contains(&arguments["unit"].as_str().unwrap()), "{call}");
        assert!(choice == "required" || call["name"] == "time", "{call}");
        // The same answer is understood whether it is kept here or sent back.
        let result = json!({"type": "function_call_output", "call_id": call["call_id"], "output": "20"});
        let next = json!({"tools": tools(), "tool_choice": "none", "max_output_tokens": 4, "seed": 1});
        let kept = json!({"previous_response_id": response["id"], "input": [result]});
        let kept = both(&server, &with(next.clone(), &kept)).await;
        let mut input = vec![json!({"role": "user", "content": "Warm?"})];
        input.extend(response["output"].as_array().unwrap().clone());
        input.push(result);
        let sent = both(&server, &with(next, &json!({"input": input}))).await;
        assert_eq!(kept["output"], sent["output"]);
        assert_eq!(kept["usage"]["input_tokens"], sent["usage"]["input_tokens"]);
    }
    server.settle().await;
}

#[tokio::test]
async fn reasoning_is_an_item_and_is_counted() {
    let server = able().await;
    let ask = json!({"input": "Why?", "thinking_budget": 6, "reasoning": {"effort": "high"}, "max_output_tokens": 60,
        "seed": 5, "include": ["reasoning.encrypted_content"]});
    let response = both(&server, &ask).await;
    let [reasoning] = of_type(&response, "reasoning")[..] else { panic!("{response}") };
    assert_eq!(reasoning["content"][0]["type"], "reasoning_text");
    assert_eq!((&reasoning["summary"], &response["output"][1]["type"]), (&json!([]), &json!("message")));
    let spent = response["usage"]["output_tokens_details"]["reasoning_tokens"].as_u64().unwrap();
    // The budget, and the end that was written for the model.
    assert!((6..=16).contains(&spent), "{response}");
    assert_eq!(response["reasoning"], json!({"effort": "high", "summary": null}));
}

#[tokio::test]
async fn a_summary_of_reasoning_is_the_reasoning() {
    let server = able().await;
    for (kind, effort) in [("auto", "high"), ("concise", "xhigh"), ("detailed", "max")] {
        let reasoning = json!({"effort": effort, "summary": kind});
        let ask = json!({"input": "Why?", "thinking_budget": 6, "reasoning": reasoning, "max_output_tokens": 60, "seed": 5});
        let response = both(&server, &ask).await;
        assert_eq!(response["reasoning"], reasoning);
        let [item] = of_type(&response, "reasoning")[..] else { panic!("{response}") };
        let text = &item["content"][0]["text"];
        assert_eq!(item["summary"], json!([{"type": "summary_text", "text": text}]));
        let events = events(&server, &ask).await;
        let mut names: Vec<&str> = events
            .iter()
            .filter(|event| event["item_id"] == item["id"] || event["item"]["id"] == item["id"])
            .map(|event| event["type"].as_str().unwrap().strip_prefix("response.").unwrap())
            .collect();
        names.retain(|name| !name.ends_with(".delta"));
        let expected = [
            "output_item.added",
            "content_part.added",
            "reasoning_summary_part.added",
            "reasoning_text.done",
            "content_part.done",
            "reasoning_summary_text.done",
            "reasoning_summary_part.done",
            "output_item.done",
        ];
        assert_eq!(names, expected);
        // Sent back, it is thought once.
        let question = json!({"role": "user", "content": "Why?"});
        let mut sent = json!({"max_output_tokens": 1, "input": [question, item, question]});
        let whole = server.ask(RESPONSES, &sent).await;
        sent["input"][1]["summary"] = json!([]);
        let bare = server.ask(RESPONSES, &sent).await;
        assert_eq!(whole["usage"]["input_tokens"], bare["usage"]["input_tokens"]);
    }
}

#[tokio::test]
async fn a_format_is_enforced_and_repeated() {
    let server = able().await;
    let schema = json!({"type": "object", "required": ["n"], "additionalProperties": false,
        "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}}});
    let format = json!({"type": "json_schema", "name": "count", "schema": schema});
    let ask = json!({"input": "How many?", "text": {"format": format, "verbosity": "medium"}, "max_output_tokens": 60, "seed": 1});
    let response = both(&server, &ask).await;
    let text: Value =
        serde_json::from_str(response["output"][0]["content"][0]["text"].as_str().unwrap()).unwrap();
    assert!((0..=99).contains(&text["n"].as_i64().unwrap()), "{text}");
    let repeated = json!({"type": "json_schema", "name": "count", "description": null, "schema": schema, "strict": true});
    assert_eq!(response["text"], json!({"format": repeated, "verbosity": "medium"}));
    let text = json!({"format": {"type": "json_object"}});
    let object = json!({"input": "Any?", "text": text, "max_output_tokens": 200, "seed": 2});
    let response = both(&server, &object).await;
    assert_eq!(response["text"]["format"], json!({"type": "json_object"}));
    let refused = json!({"format": {"type": "json_schema", "name": "x", "schema": {"not": {}}}});
    let refused = server.post(RESPONSES, &with(request(), &json!({"text": refused}))).await;
    assert_eq!((refused.status.as_u16(), &refused.json["error"]["param"]), (400, &json!("text.format")));
}

#[tokio::test]
async fn log_probabilities_are_of_the_text() {
    let ask = json!({"input": "Hi", "max_output_tokens": 12, "seed": 3, "top_logprobs": 2,
        "include": ["message.output_text.logprobs"]});
    // The end of reasoning is no part of the text behind it.
    let thought = json!({"thinking_budget": 4, "reasoning": {"effort": "low"}, "max_output_tokens": 40});
    for (server, more) in
        [(Server::new().await, json!({})), (able().await, json!({})), (able().await, thought)]
    {
        let response = both(&server, &with(ask.clone(), &more)).await;
        assert_eq!(response["output"].as_array().unwrap().len(), if more == json!({}) { 1 } else { 2 });
        let part = &of_type(&response, "message")[0]["content"][0];
        let tokens = part["logprobs"].as_array().unwrap();
        let bytes = tokens.iter().flat_map(|token| token["bytes"].as_array().unwrap());
        let bytes: Vec<u8> = bytes.map(|byte| byte.as_u64().unwrap() as u8).collect();
        assert_eq!(String::from_utf8_lossy(&bytes), part["text"].as_str().unwrap());
        assert!(tokens.iter().all(|token| token["top_logprobs"].as_array().unwrap().len() == 2));
    }
}

#[tokio::test]
async fn what_was_asked_and_what_it_cost_is_told() {
    let server = Setup::priced().start().await;
    let asked = json!({"instructions": "Be brief.", "metadata": {"a": "b"}, "user": "u", "safety_identifier": "s",
        "prompt_cache_key": "k", "top_p": 0.5, "temperature": 0.7, "store": false, "max_output_tokens": 3});
    let more = json!({"truncation": "disabled", "service_tier": "auto", "stream_options": null, "reasoning": {}, "text": {}});
    let response = server.ask(RESPONSES, &with(with(request(), &asked), &more)).await;
    for (name, value) in asked.as_object().unwrap() {
        assert_eq!(response[name], *value, "{name}");
    }
    let usage = &response["usage"];
    assert_eq!(usage["cost"], usage["cost_details"]["upstream_inference_cost"]);
    assert!(usage["cost"].as_f64().unwrap() > 0.0, "{usage}");
}

#[tokio::test]
async fn what_is_not_honoured_is_named() {
    let server = Server::new().await;
    let item = |item: Value| json!({"input": [{"role": "user", "content": "Hi"}, item]});
    let part = |part: Value| json!({"input": [{"role": "user", "content": [part]}]});
    let tool = |kind: &str| json!({"tools": [{"type": kind}]});
    let cases = [
        (json!({"input": null}), "input"),
        (json!({"input": []}), "input"),
        (json!({"input": 3}), "input"),
        (json!({"model": "other"}), "model"),
        (item(json!({"type": "web_search_call", "id": "ws"})), "input[1].type"),
        (item(json!({"type": "item_reference"})), "input[1].id"),
        (item(json!({"type": "item_reference", "id": "msg", "role": "user"})), "input[1].role"),
        (
            json!({"input": [{"role": "user", "content": "a", "id": "msg_1"}, {"role": "user", "content": "b", "id": "msg_1"}]}),
            "input[1].id",
        ),
        (item(json!({"type": "function_call_output", "call_id": "a", "output": "b"})), "input[1].call_id"),
        (item(json!({"type": "function_call", "call_id": "a", "name": "b"})), "input[1].arguments"),
        (item(json!({"type": "reasoning", "encrypted_content": "x"})), "input[1].encrypted_content"),
        (item(json!({"role": "tool", "content": "x"})), "input[1].role"),
        (
            item(json!({"role": "assistant", "content": [{"type": "input_text", "text": "x"}]})),
            "input[1].content[0].type",
        ),
        (item(json!({"role": "assistant", "content": "x", "phase": "commentary"})), "input[1].phase"),
        (item(json!({"role": "user", "content": "x", "zzz": 1})), "input[1].zzz"),
        (
            part(json!({"type": "input_image", "image_url": "http://localhost/a.png"})),
            "input[0].content[0].type",
        ),
        (part(json!({"type": "input_text"})), "input[0].content[0].text"),
        (tool("web_search"), "tools[0].type"),
        (tool("custom"), "tools[0].type"),
        (json!({"tools": [{"type": "function", "name": "no spaces"}]}), "tools[0].name"),
        (json!({"tool_choice": {"type": "file_search"}}), "tool_choice.type"),
        (json!({"tool_choice": {"type": "function", "name": "none"}}), "tool_choice"),
        (json!({"tool_choice": "any"}), "tool_choice"),
        (json!({"text": {"verbosity": "low"}}), "text.verbosity"),
        (json!({"text": {"format": {"type": "grammar"}}}), "text.format.type"),
        (json!({"text": {"format": {"type": "json_schema", "schema": {}}}}), "text.format.name"),
        (json!({"reasoning": {"effort": "high"}}), "reasoning.effort"),
        (json!({"reasoning": {"summary": "long"}}), "reasoning.summary"),
        (json!({"include": ["file_search_call.results"]}), "include[0]"),
        (json!({"top_logprobs": 3}), "top_logprobs"),
        (json!({"max_output_tokens": 0}), "max_output_tokens"),
        (json!({"max_output_tokens": 1_000_000}), "max_output_tokens"),
        (json!({"truncation": "auto"}), "truncation"),
        (json!({"stream_options": {"include_obfuscation": false}}), "stream_options"),
        (
            json!({"stream": true, "stream_options": {"include_obfuscation": true}}),
            "stream_options.include_obfuscation",
        ),
        (json!({"metadata": {"a": 1}}), "metadata"),
        (json!({"safety_identifier": "x".repeat(513)}), "safety_identifier"),
        (json!({"user": "x".repeat(1 << 20)}), "user"),
        (json!({"background": true, "store": false}), "background"),
        (json!({"background": true, "stream": true}), "background"),
        (json!({"conversation": "conv_1"}), "conversation"),
        (json!({"prompt": {"id": "pmpt_1"}}), "prompt"),
        (json!({"previous_response_id": "resp_1"}), "previous_response_id"),
        (json!({"zzz": 1}), "zzz"),
    ];
    for (more, param) in cases {
        let reply = server.post(RESPONSES, &with(request(), &more)).await;
        let status = if param == "model" { StatusCode::NOT_FOUND } else { StatusCode::BAD_REQUEST };
        assert_eq!(
            (reply.status, &reply.json["error"]["param"]),
            (status, &json!(param)),
            "{more} -> {}",
            reply.json
        );
    }
}

#[tokio::test]
async fn a_failure_has_a_status_first_and_an_event_later() {
    let mut setup = Setup::default();
    setup.settings.limits.request_time = Some(std::time::Duration::ZERO);
    let reply = setup.start().await.post(RESPONSES, &request()).await;
    assert_eq!((reply.status.as_u16(), &reply.json["error"]["code"]), (504, &json!("timeout")));
    let server = Server::new().await;
    let ask = with(request(), &json!({"stream": true, "max_output_tokens": 200}));
    server.control.pause();
    let response = server.client.post(format!("{}{RESPONSES}", server.url)).json(&ask).send();
    let relieve = async {
        server.control.allow(3);
        while server.handle.snapshot().counters.generated_tokens < 2 {
            server.get("/version").await;
        }
        server.handle.drain(std::time::Duration::ZERO);
        server.control.resume();
    };
    let (response, ()) = tokio::join!(response, relieve);
    let text = response.unwrap().text().await.unwrap();
    let last = text.trim_end().rsplit("data: ").next().unwrap();
    let last: Value = serde_json::from_str(last).unwrap();
    assert_eq!((&last["type"], &last["response"]["status"]), (&json!("response.failed"), &json!("failed")));
    assert_eq!(last["response"]["error"]["code"], "server_error");
    assert!(!last["response"]["output"].as_array().unwrap().is_empty());
}

#[tokio::test]
async fn a_model_of_its_own_answers_alike_on_the_cpu() {
    let server = Setup { backend: Some(BackendKind::Cpu), ..Setup::default() }.start().await;
    let first = both(&server, &with(request(), &json!({"seed": 7, "temperature": 1}))).await;
    let next =
        json!({"input": "And?", "previous_response_id": first["id"], "seed": 7, "max_output_tokens": 8});
    let second = both(&server, &next).await;
    assert!(second["usage"]["input_tokens"].as_u64() > first["usage"]["input_tokens"].as_u64());
}
