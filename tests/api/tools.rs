//! Tools and reasoning over HTTP: a model that would rather not call is made to, and streams say what whole answers say.

use frugal_models::model_runner::BackendKind;
use serde_json::{Value, json};

use crate::harness::{Server, Setup, chunks, user, with};

/// ChatML with tools, in the Hermes form, and reasoning.
const TEMPLATE: &str = "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}\
    {% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}\
    {% for call in m.tool_calls or [] %}<tool_call>\n{{ call.function.name }} {{ call.function.arguments.days }}</tool_call>{% endfor %}<|im_end|>\n{% endfor %}\
    {% if add_generation_prompt %}<|im_start|>assistant\n{% if enable_thinking is not defined or enable_thinking %}<think>\n{% endif %}{% endif %}";

async fn server() -> Server {
    let template_source = Some(TEMPLATE.to_owned());
    Setup { template_source, backend: Some(BackendKind::Cpu), ..Setup::default() }.start().await
}

fn tools() -> Value {
    let parameters = json!({
        "type": "object",
        "properties": {"days": {"type": "integer", "minimum": 0, "maximum": 9}, "unit": {"enum": ["C", "F"]}},
        "required": ["days", "unit"], "additionalProperties": false,
    });
    let tool = |name: &str| json!({"type": "function", "function": {"name": name, "parameters": parameters, "strict": true}});
    json!([tool("weather"), tool("time")])
}

/// A whole answer put together from a stream's chunks, as clients do it; calls by their index.
fn joined(chunks: &[Value]) -> (Value, Value) {
    let mut message = json!({"content": "", "reasoning_content": "", "tool_calls": []});
    let mut finish = Value::Null;
    let append = |to: &mut Value, more: &Value| {
        if let Some(more) = more.as_str() {
            *to = json!(to.as_str().unwrap_or_default().to_owned() + more);
        }
    };
    for choice in chunks.iter().filter_map(|chunk| chunk["choices"].get(0)) {
        let delta = &choice["delta"];
        append(&mut message["content"], &delta["content"]);
        append(&mut message["reasoning_content"], &delta["reasoning_content"]);
        for call in delta["tool_calls"].as_array().into_iter().flatten() {
            let calls = message["tool_calls"].as_array_mut().unwrap();
            let index = call["index"].as_u64().unwrap() as usize;
            if let Some(id) = call["id"].as_str() {
                assert_eq!(index, calls.len(), "calls come in order");
                assert_eq!((&call["type"], &call["function"]["arguments"]), (&json!("function"), &json!("")));
                let function = json!({"name": call["function"]["name"], "arguments": ""});
                calls.push(json!({"id": id, "type": "function", "function": function}));
            } else {
                assert_eq!(index + 1, calls.len(), "pieces belong to the newest call");
                append(&mut calls[index]["function"]["arguments"], &call["function"]["arguments"]);
            }
        }
        if !choice["finish_reason"].is_null() {
            finish = choice["finish_reason"].clone();
        }
    }
    (message, finish)
}

/// The same request whole and streamed.
async fn both(server: &Server, body: &Value) -> (Value, Value, Value) {
    let whole = server.chat(body).await;
    let streamed = with(body.clone(), &json!({"stream": true, "stream_options": {"include_usage": true}}));
    let chunks = chunks(&server.stream("/v1/chat/completions", &streamed).await);
    let (message, finish) = joined(&chunks);
    let choice = &whole["choices"][0];
    let whole_message = &choice["message"];
    assert_eq!(message["content"].as_str(), Some(whole_message["content"].as_str().unwrap_or_default()));
    let reasoning = whole_message["reasoning_content"].as_str().unwrap_or_default();
    assert_eq!(message["reasoning_content"].as_str(), Some(reasoning));
    let calls = whole_message.get("tool_calls").cloned().unwrap_or_else(|| json!([]));
    assert_eq!(message["tool_calls"], calls);
    assert_eq!(finish, choice["finish_reason"]);
    let usage = &chunks.last().unwrap()["usage"];
    for field in ["prompt_tokens", "completion_tokens", "completion_tokens_details"] {
        assert_eq!(usage[field], whole["usage"][field], "{field}");
    }
    (whole_message.clone(), choice["finish_reason"].clone(), whole["usage"].clone())
}

fn check_call(call: &Value) {
    assert!(call["id"].as_str().unwrap().starts_with("call_"), "{call}");
    let arguments: Value = serde_json::from_str(call["function"]["arguments"].as_str().unwrap()).unwrap();
    assert!((0..10).contains(&arguments["days"].as_i64().unwrap()), "{call}");
    assert!(["C", "F"].contains(&arguments["unit"].as_str().unwrap()), "{call}");
}

#[tokio::test]
async fn a_required_call_is_made_whole_and_streamed() {
    let server = server().await;
    for seed in 0..3 {
        let ask = json!({
            "messages": user("Hi"), "tools": tools(), "tool_choice": "required", "parallel_tool_calls": false, "seed": seed,
            "temperature": 1, "thinking_budget": 4,
        });
        let (message, finish, usage) = both(&server, &ask).await;
        assert_eq!(finish, "tool_calls");
        assert_eq!(message["content"], Value::Null);
        let calls = message["tool_calls"].as_array().unwrap();
        assert_eq!(calls.len(), 1);
        check_call(&calls[0]);
        let reasoning = usage["completion_tokens_details"]["reasoning_tokens"].as_u64().unwrap();
        // Four, and the tokens of the closing mark, which this vocabulary spells out.
        assert!((1..=4 + 8).contains(&reasoning), "{usage}");
    }
    let named = json!({"type": "function", "function": {"name": "time"}});
    let ask = json!({
        "messages": user("Hi"), "tools": tools(), "tool_choice": named, "seed": 1, "thinking_budget": 0,
        "parallel_tool_calls": false,
    });
    let (message, finish, _) = both(&server, &ask).await;
    assert_eq!((finish, &message["tool_calls"][0]["function"]["name"]), (json!("stop"), &json!("time")));
    let only = json!({"type": "function", "function": {"name": "weather"}});
    let allowed = json!({"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [only]}});
    let ask = with(ask, &json!({"tool_choice": allowed}));
    let (message, finish, _) = both(&server, &ask).await;
    assert_eq!(
        (finish, &message["tool_calls"][0]["function"]["name"]),
        (json!("tool_calls"), &json!("weather"))
    );
    server.settle().await;
}

#[tokio::test]
async fn a_schema_that_cannot_be_enforced_stops_only_who_insists() {
    let server = server().await;
    let properties = json!({"at": {"type": "string", "format": "path"}});
    let parameters = json!({"type": "object", "properties": properties});
    let body = |strict: &Value| {
        let mut function = json!({"name": "open", "parameters": parameters});
        if !strict.is_null() {
            function["strict"] = strict.clone();
        }
        let tool = json!({"type": "function", "function": function});
        let mut flat = function;
        flat["type"] = "function".into();
        let common = json!({"tool_choice": "required", "thinking_budget": 4, "seed": 3});
        let chat = json!({"messages": user("Hi"), "tools": [tool], "max_tokens": 40});
        let responses = json!({"input": "Hi", "tools": [flat], "max_output_tokens": 40});
        [("/v1/chat/completions", with(common.clone(), &chat)), ("/v1/responses", with(common, &responses))]
    };
    for strict in [json!(null), json!(false), json!(true)] {
        for (route, body) in body(&strict) {
            let reply = server.post(route, &body).await;
            let error = &reply.json["error"];
            if strict == true {
                assert_eq!((reply.status.as_u16(), &error["param"]), (400, &json!("tools")));
                let message = error["message"].as_str().unwrap();
                assert!(message.contains("'open'") && message.contains("format 'path'"), "{message}");
            } else {
                assert_eq!(reply.status.as_u16(), 200, "{route}: {error}");
            }
        }
    }
}

#[tokio::test]
async fn a_template_without_tools_is_told_of_them() {
    let server = Setup { backend: Some(BackendKind::Cpu), ..Setup::default() }.start().await;
    let ask = json!({
        "messages": user("Hi"), "tools": tools(), "tool_choice": "required", "parallel_tool_calls": false, "seed": 5,
    });
    let (message, finish, usage) = both(&server, &ask).await;
    assert_eq!(finish, "tool_calls");
    check_call(&message["tool_calls"][0]);
    let without = server.chat(&json!({"messages": user("Hi"), "max_tokens": 1})).await;
    let told = usage["prompt_tokens"].as_u64().unwrap();
    assert!(
        told > without["usage"]["prompt_tokens"].as_u64().unwrap() + 100,
        "the model is told of its tools"
    );
    // Not told, not called.
    let none = json!({"messages": user("Hi"), "tools": tools(), "tool_choice": "none", "max_tokens": 1});
    assert_eq!(server.chat(&none).await["usage"]["prompt_tokens"], without["usage"]["prompt_tokens"]);
}

/// As DeepSeek's: calls of earlier turns, and not a word of tools.
const DEEPSEEK: &str = "{% set ns = namespace(system='') %}{% for m in messages %}{% if m.role == 'system' %}{% set ns.system = m.content %}{% endif %}{% endfor %}\
    {{ ns.system }}{% for m in messages %}{% if m.role == 'user' %}<U>{{ m.content }}{% endif %}{% if m.tool_calls %}<A><｜tool▁calls▁begin｜>{% for call in m.tool_calls %}\
    <｜tool▁call▁begin｜>{{ call.function.name + '<｜tool▁sep｜>' + call.function.arguments }}<｜tool▁call▁end｜>{% endfor %}<｜tool▁calls▁end｜>{% endif %}\
    {% if m.role == 'tool' %}<R>{{ m.content }}{% endif %}{% endfor %}<A>";

async fn templated(source: &str) -> Server {
    Setup { template_source: Some(source.to_owned()), ..Setup::default() }.start().await
}

async fn prompt(server: &Server, ask: &Value) -> String {
    server.ask("/apply-template", ask).await["prompt"].as_str().unwrap().to_owned()
}

/// Someone asks, a function is called twice, and its results are there.
fn called(arguments: &str) -> Value {
    let call = |id: &str| json!({"id": id, "type": "function", "function": {"name": "time", "arguments": arguments}});
    json!([
        {"role": "user", "content": "When?"},
        {"role": "assistant", "tool_calls": [call("c1"), call("c2")]},
        {"role": "tool", "tool_call_id": "c1", "content": "noon"},
        {"role": "tool", "tool_call_id": "c2", "content": "one"},
    ])
}

#[tokio::test]
async fn a_template_with_calls_and_without_tools_is_told_of_them_in_its_own_words() {
    let server = templated(DEEPSEEK).await;
    let messages = called("{\"days\": 7}");
    let without = prompt(&server, &json!({"messages": messages})).await;
    let call = "<｜tool▁call▁begin｜>time<｜tool▁sep｜>{\"days\": 7}<｜tool▁call▁end｜>";
    let turns = format!("<U>When?<A><｜tool▁calls▁begin｜>{call}{call}<｜tool▁calls▁end｜><R>noon<R>one<A>");
    assert_eq!(without, turns);
    let with = prompt(&server, &json!({"messages": messages, "tools": tools()})).await;
    let note = with.strip_suffix(&turns).expect("the turns are the template's");
    let example = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function name<｜tool▁sep｜>{\"argument\": \"value\"}<｜tool▁call▁end｜><｜tool▁calls▁end｜>";
    assert!(note.ends_with(example) && note.contains(&tools()[1].to_string()), "{note}");
    assert!(!note.contains("<tool_call>"), "{note}");
}

#[tokio::test]
async fn calls_are_written_out_for_templates_without_them() {
    // As Mixtral's: turns alternate, and there is no system.
    let source = "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('alternate') }}{% endif %}\
                  [{{ m.role }}]{{ m.content }}{% endfor %}";
    let server = templated(source).await;
    for (arguments, shown) in
        [("{\"days\": 7}", "{\"days\": 7}"), (" ", "{}"), ("{\"d", "{\"INVALID_JSON\":\"{\\\"d\"}")]
    {
        let call = format!("<tool_call>\n{{\"name\": \"time\", \"arguments\": {shown}}}\n</tool_call>");
        let turns = format!(
            "When?[assistant]{call}\n{call}[user]<tool_response>\nnoon\n</tool_response>\n<tool_response>\none\n</tool_response>"
        );
        let ask = json!({"messages": called(arguments)});
        assert_eq!(prompt(&server, &ask).await, format!("[user]{turns}"));
        let told = prompt(&server, &with(ask, &json!({"tools": tools()}))).await;
        assert!(
            told.starts_with("[user]You can call") && told.ends_with(&format!("</tool_call>\n\n{turns}")),
            "{told}"
        );
    }
    let system = json!([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]);
    let reply = server.post("/apply-template", &json!({"messages": system, "tools": tools()})).await;
    assert_eq!((reply.status.as_u16(), &reply.json["error"]["param"]), (400, &json!("messages")));
}

#[tokio::test]
async fn what_was_called_goes_back_into_the_prompt() {
    let server = server().await;
    let call =
        json!({"id": "c1", "type": "function", "function": {"name": "time", "arguments": "{\"days\": 7}"}});
    let messages = json!([
        {"role": "user", "content": "When?"},
        {"role": "assistant", "content": null, "tool_calls": [call], "reasoning_content": "Let me look."},
        {"role": "tool", "tool_call_id": "c1", "content": "noon"},
    ]);
    let ask = json!({"messages": messages});
    let prompt = server.ask("/apply-template", &ask).await["prompt"].as_str().unwrap().to_owned();
    assert!(prompt.contains("<think>Let me look.</think><tool_call>\ntime 7</tool_call>"), "{prompt}");
    assert!(prompt.contains("<|im_start|>tool\nnoon<|im_end|>"), "{prompt}");
    let answer = server.chat(&with(ask, &json!({"max_tokens": 2, "tools": tools()}))).await;
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
}

#[tokio::test]
async fn answers_in_a_schema_come_after_reasoning() {
    let server = server().await;
    let schema = json!({"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": false});
    let format = json!({"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}});
    let ask = json!({"messages": user("Hi"), "response_format": format, "thinking_budget": 3, "seed": 2});
    let (message, finish, _) = both(&server, &ask).await;
    assert_eq!(finish, "stop");
    let content: Value = serde_json::from_str(message["content"].as_str().unwrap()).unwrap();
    assert!(content["ok"].is_boolean());
    let off =
        with(ask, &json!({"thinking_budget": null, "chat_template_kwargs": {"enable_thinking": false}}));
    let (message, _, usage) = both(&server, &off).await;
    assert!(serde_json::from_str::<Value>(message["content"].as_str().unwrap()).unwrap()["ok"].is_boolean());
    // The effort says the same in OpenAI's words.
    let effort = with(off, &json!({"chat_template_kwargs": null, "reasoning_effort": "none"}));
    assert_eq!(server.chat(&effort).await["usage"]["prompt_tokens"], usage["prompt_tokens"]);
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_by_name() {
    let server = server().await;
    let named = |name: &str| json!({"type": "function", "function": {"name": name}});
    let tool = json!({"role": "tool", "tool_call_id": "c1", "content": "noon"});
    for (field, more) in [
        ("tools", json!({"tools": 5})),
        ("tools[0].type", json!({"tools": [{"type": "web_search"}]})),
        (
            "tools[0].function.name",
            json!({"tools": [{"type": "function", "function": {"name": "no spaces"}}]}),
        ),
        (
            "tools[0].function.parameters",
            json!({"tools": [{"type": "function", "function": {"name": "a", "parameters": []}}]}),
        ),
        (
            "tools[0].function.colour",
            json!({"tools": [{"type": "function", "function": {"name": "a", "colour": 1}}]}),
        ),
        ("tools", json!({"tools": [tools()[0], tools()[0]]})),
        (
            "tools",
            json!({"tool_choice": "required", "tools": [{"type": "function", "function": {
            "name": "a", "strict": true, "parameters": {"type": "object", "unevaluatedItems": false}}}]}),
        ),
        (
            "tools",
            json!({"tool_choice": "required", "tools": [{"type": "function", "function": {
            "name": "a", "strict": true, "parameters": {"type": "object", "properties": {"at": {"type": "string", "format": "path"}}}}}]}),
        ),
        ("tool_choice", json!({"tool_choice": "required"})),
        ("tool_choice", json!({"tools": tools(), "tool_choice": "sometimes"})),
        ("tool_choice", json!({"tools": tools(), "tool_choice": named("other")})),
        ("parallel_tool_calls", json!({"parallel_tool_calls": "yes"})),
        ("messages[1].tool_call_id", json!({"messages": [{"role": "user", "content": "Hi"}, tool]})),
        (
            "messages[0].tool_calls[0].function.arguments",
            json!({"messages": [
            {"role": "assistant", "tool_calls": [{"id": "c", "type": "function", "function": {"name": "a", "arguments": {}}}]}]}),
        ),
        ("reasoning_effort", json!({"reasoning_effort": "enormous"})),
        ("chat_template_kwargs.colour", json!({"chat_template_kwargs": {"colour": 1}})),
        ("chat_template_kwargs", json!({"chat_template_kwargs": []})),
        (
            "reasoning_effort",
            json!({"reasoning_effort": "none", "chat_template_kwargs": {"enable_thinking": true}}),
        ),
    ] {
        let ask = with(json!({"messages": user("Hi"), "max_tokens": 4}), &more);
        let reply = server.post("/v1/chat/completions", &ask).await;
        assert_eq!(
            (reply.status.as_u16(), &reply.json["error"]["param"]),
            (400, &json!(field)),
            "{more}: {}",
            reply.json
        );
    }
    let plain = Server::new().await;
    let ask = json!({"messages": user("Hi"), "thinking_budget": 4});
    let reply = plain.post("/v1/chat/completions", &ask).await;
    assert_eq!((reply.status.as_u16(), &reply.json["error"]["param"]), (400, &json!("thinking_budget")));
}
