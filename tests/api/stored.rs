//! Responses that are kept: retrieved, listed, continued, deleted; and those that run in the background.

use frugal::auth::Keys;
use frugal::settings::StoreLimits;
use frugal_config::auth::Key;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::harness::{Server, Setup, with};
use crate::messages::able;
use crate::responses::{RESPONSES, both, request, tools};

fn path(response: &Value) -> String {
    format!("{RESPONSES}/{}", response["id"].as_str().unwrap())
}

async fn send(server: &Server, method: Method, path: &str, key: &str) -> (StatusCode, Value) {
    let request = server.client.request(method, format!("{}{path}", server.url)).bearer_auth(key);
    let response = request.send().await.unwrap();
    let status = response.status();
    (status, serde_json::from_str(&response.text().await.unwrap()).unwrap())
}

/// The texts of items, in order.
fn texts(items: &Value) -> Vec<&str> {
    items["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| item["content"][0]["text"].as_str().unwrap())
        .collect()
}

/// Until a response in the background has this status.
async fn until(server: &Server, path: &str, status: &str) -> Value {
    for _ in 0..20_000 {
        let response = server.get(path).await.json;
        if response["status"] == status {
            return response;
        }
    }
    panic!("not {status}");
}

#[tokio::test]
async fn a_response_is_kept_as_it_was_told() {
    let server = Server::new().await;
    let whole = server.ask(RESPONSES, &request()).await;
    assert_eq!(whole["store"], true);
    assert_eq!(server.get(&path(&whole)).await.json, whole);
    assert_eq!(server.get(&format!("{}?stream=false", path(&whole))).await.json, whole);
    let (status, deleted) = send(&server, Method::DELETE, &path(&whole), "").await;
    assert_eq!(
        (status, deleted),
        (StatusCode::OK, json!({"id": whole["id"], "object": "response", "deleted": true}))
    );
    for (method, below) in
        [(Method::GET, ""), (Method::DELETE, ""), (Method::GET, "/input_items"), (Method::POST, "/cancel")]
    {
        let (status, error) = send(&server, method, &format!("{}{below}", path(&whole)), "").await;
        let message = format!("Response with id '{}' not found.", whole["id"].as_str().unwrap());
        assert_eq!((status, &error["error"]["message"]), (StatusCode::NOT_FOUND, &json!(message)));
    }
    let gone = json!({"previous_response_id": whole["id"]});
    let gone = server.post(RESPONSES, &with(request(), &gone)).await;
    assert_eq!(
        (gone.status.as_u16(), &gone.json["error"]["code"]),
        (400, &json!("previous_response_not_found"))
    );
    let unkept = server.ask(RESPONSES, &with(request(), &json!({"store": false}))).await;
    assert_eq!(server.get(&path(&unkept)).await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_conversation_goes_on_without_its_instructions() {
    let server = Server::new().await;
    let first =
        server.ask(RESPONSES, &with(request(), &json!({"instructions": "Be brief.", "input": "one"}))).await;
    let said = first["output"][0]["content"][0]["text"].as_str().unwrap();
    let next = json!({"previous_response_id": first["id"], "input": [{"role": "user", "content": "two"}]});
    let second = both(&server, &with(request(), &next)).await;
    let user = |text: &str| json!({"role": "user", "content": text});
    let whole = json!({"input": [user("one"), {"role": "assistant", "content": said}, user("two")]});
    let whole = server.ask(RESPONSES, &with(request(), &whole)).await;
    assert_eq!(whole["output"], second["output"]);
    assert_eq!(whole["usage"]["input_tokens"], second["usage"]["input_tokens"]);
    // Without the first response the conversation is still there.
    send(&server, Method::DELETE, &path(&first), "").await;
    let third = json!({"previous_response_id": second["id"], "input": "three"});
    let third = both(&server, &with(request(), &third)).await;
    let items = format!("{}/input_items", path(&third));
    let newest = server.get(&items).await.json;
    assert_eq!((&newest["object"], &newest["has_more"]), (&json!("list"), &json!(false)));
    let again = second["output"][0]["content"][0]["text"].as_str().unwrap();
    assert_eq!(texts(&newest), ["three", again, "two", said, "one"]);
    let page = server.get(&format!("{items}?order=asc&limit=2")).await.json;
    assert_eq!((texts(&page), &page["has_more"]), (vec!["one", said], &json!(true)));
    let page = server
        .get(&format!("{items}?order=asc&limit=2&after={}", page["last_id"].as_str().unwrap()))
        .await
        .json;
    assert_eq!(texts(&page), ["two", again]);
    for (query, param) in [
        ("limit=0", "limit"),
        ("limit=x", "limit"),
        ("order=up", "order"),
        ("after=x", "after"),
        ("include=a", "include"),
    ] {
        let reply = server.get(&format!("{items}?{query}")).await;
        assert_eq!((reply.status.as_u16(), &reply.json["error"]["param"]), (400, &json!(param)));
    }
    let streamed = server.get(&format!("{}?stream=true", path(&third))).await;
    assert_eq!((streamed.status.as_u16(), &streamed.json["error"]["param"]), (400, &json!("stream")));
}

#[tokio::test]
async fn items_are_sent_by_their_ids() {
    let server = able().await;
    let more = json!({"input": "one", "thinking_budget": 4, "reasoning": {"effort": "low"}, "max_output_tokens": 40});
    let first = server.ask(RESPONSES, &with(request(), &more)).await;
    let output = first["output"].as_array().unwrap();
    assert_eq!(output.len(), 2, "reasoning and a message: {first}");
    let user = |text: &str| json!({"role": "user", "content": text});
    let ask = |items: &[Value]| {
        let input: Vec<Value> = [&[user("one")], items, &[user("two")]].concat();
        with(request(), &json!({"input": input}))
    };
    let whole = both(&server, &ask(output)).await;
    let reference = |item: &Value| json!({"type": "item_reference", "id": item["id"]});
    let references: Vec<Value> = output.iter().map(reference).collect();
    let referred = both(&server, &ask(&references)).await;
    let untyped: Vec<Value> = output.iter().map(|item| json!({"id": item["id"]})).collect();
    let untyped = server.ask(RESPONSES, &ask(&untyped)).await;
    for response in [&referred, &untyped] {
        assert_eq!(response["output"], whole["output"]);
        assert_eq!(response["usage"]["input_tokens"], whole["usage"]["input_tokens"]);
    }
    // They are listed as what they are.
    let listed = server.get(&format!("{}/input_items?order=asc", path(&referred))).await.json;
    assert_eq!(listed["data"].as_array().unwrap()[1..3], output[..]);
    // Whoever has them keeps them, and nobody else does.
    let refused = async |items: &[Value]| {
        let reply = server.post(RESPONSES, &ask(items)).await;
        (reply.status.as_u16(), reply.json["error"].clone())
    };
    send(&server, Method::DELETE, &path(&first), "").await;
    server.ask(RESPONSES, &ask(&references)).await;
    let id = output[1]["id"].as_str().unwrap();
    let (status, error) = refused(&[references[1].clone(), references[1].clone()]).await;
    assert_eq!((status, &error["param"]), (400, &json!("input[2].id")));
    assert!(error["message"].as_str().unwrap().contains(id), "{error}");
    let again = json!({"previous_response_id": referred["id"], "input": [references[1]]});
    let again = server.post(RESPONSES, &with(request(), &again)).await;
    assert_eq!((again.status.as_u16(), &again.json["error"]["param"]), (400, &json!("input[0].id")));
    let (status, error) = refused(&[json!({"type": "item_reference", "id": "msg_none"})]).await;
    assert_eq!((status, &error["param"]), (404, &json!("input")));
    assert_eq!(error["message"], "Item with id 'msg_none' not found.");
}

#[tokio::test]
async fn calls_are_sent_by_their_ids() {
    let server = able().await;
    let first = json!({"tools": tools(), "tool_choice": "required", "parallel_tool_calls": false, "seed": 1,
        "max_output_tokens": 200, "thinking_budget": 4, "reasoning": {"effort": "low"}, "input": "When?"});
    let first = server.ask(RESPONSES, &first).await;
    let output = first["output"].as_array().unwrap();
    let call = output.iter().find(|item| item["type"] == "function_call").expect("a call");
    let result = json!({"type": "function_call_output", "call_id": call["call_id"], "output": "noon"});
    let reference = json!({"type": "item_reference", "id": call["id"]});
    let ask = |call: &Value| {
        with(request(), &json!({"input": [{"role": "user", "content": "When?"}, call, result]}))
    };
    let (whole, referred) = (both(&server, &ask(call)).await, both(&server, &ask(&reference)).await);
    assert_eq!(whole["output"], referred["output"]);
}

#[tokio::test]
async fn another_keys_responses_are_not_there() {
    let mut setup = Setup::default();
    let key = |name: &str| Key::new(name, name);
    setup.operations.keys = Keys::new(&[key("mine"), key("other")]);
    let server = setup.start().await;
    let ask = async |key: &str, body: &Value| {
        let post = server.client.post(format!("{}{RESPONSES}", server.url)).bearer_auth(key).json(body);
        let response = post.send().await.unwrap();
        (response.status().as_u16(), serde_json::from_str::<Value>(&response.text().await.unwrap()).unwrap())
    };
    let (status, response) = ask("mine", &request()).await;
    assert_eq!(status, 200);
    assert_eq!(send(&server, Method::GET, &path(&response), "none").await.0, StatusCode::UNAUTHORIZED);
    for (method, below) in
        [(Method::GET, ""), (Method::DELETE, ""), (Method::POST, "/cancel"), (Method::GET, "/input_items")]
    {
        let path = format!("{}{below}", path(&response));
        assert_eq!(send(&server, method, &path, "other").await.0, StatusCode::NOT_FOUND);
    }
    let next = with(request(), &json!({"previous_response_id": response["id"]}));
    assert_eq!(ask("other", &next).await.1["error"]["code"], "previous_response_not_found");
    assert_eq!(ask("mine", &next).await.0, 200);
    let next = json!({"input": [{"type": "item_reference", "id": response["output"][0]["id"]}]});
    assert_eq!(ask("other", &with(request(), &next)).await.0, 404);
    assert_eq!(ask("mine", &with(request(), &next)).await.0, 200);
}

#[tokio::test]
async fn another_key_does_not_push_out_what_is_kept() {
    let mut setup = Setup::default();
    let key = |name: &str| Key::new(name, name);
    setup.operations.keys = Keys::new(&[key("mine"), key("other")]);
    setup.settings.responses = StoreLimits { entries: 4, ..StoreLimits::default() };
    let server = setup.start().await;
    let ask = async |key: &str| {
        let post = server.client.post(format!("{}{RESPONSES}", server.url)).bearer_auth(key).json(&request());
        serde_json::from_str::<Value>(&post.send().await.unwrap().text().await.unwrap()).unwrap()
    };
    let mine = ask("mine").await;
    let mut others = Vec::new();
    for _ in 0..6 {
        others.push(ask("other").await);
    }
    assert_eq!(send(&server, Method::GET, &path(&mine), "mine").await.0, StatusCode::OK);
    assert_eq!(send(&server, Method::GET, &path(&others[2]), "other").await.0, StatusCode::NOT_FOUND);
    assert_eq!(send(&server, Method::GET, &path(&others[3]), "other").await.0, StatusCode::OK);
}

#[tokio::test]
async fn what_is_kept_is_bounded_and_measured() {
    let mut setup = Setup::default();
    setup.settings.responses = StoreLimits { entries: 2, ..StoreLimits::default() };
    let server = setup.start().await;
    let mut all = Vec::new();
    for _ in 0..3 {
        all.push(server.ask(RESPONSES, &request()).await);
    }
    assert_eq!(server.get(&path(&all[0])).await.status, StatusCode::NOT_FOUND);
    assert_eq!(server.get(&path(&all[2])).await.status, StatusCode::OK);
    let metrics =
        server.client.get(format!("{}/metrics", server.url)).send().await.unwrap().text().await.unwrap();
    let value = |name: &str| -> f64 {
        let line = metrics.lines().find(|line| line.starts_with(&format!("{name}{{"))).unwrap();
        line.rsplit(' ').next().unwrap().parse().unwrap()
    };
    assert_eq!(value("frugal_kept_responses"), 2.0);
    assert!((1000.0..20_000.0).contains(&value("frugal_kept_responses_bytes")));
    let mut setup = Setup::default();
    setup.settings.responses.entries = 0;
    let server = setup.start().await;
    assert_eq!(server.ask(RESPONSES, &request()).await["store"], false);
    let refused = server.post(RESPONSES, &with(request(), &json!({"store": true}))).await;
    assert_eq!((refused.status.as_u16(), &refused.json["error"]["param"]), (400, &json!("store")));
}

#[tokio::test]
async fn a_response_in_the_background_ends_by_itself() {
    let server = Server::new().await;
    let whole = server.ask(RESPONSES, &request()).await;
    server.control.pause();
    let next = json!({"background": true, "previous_response_id": whole["id"], "input": "And?"});
    let later = server.ask(RESPONSES, &with(request(), &next)).await;
    let queued = server.ask(RESPONSES, &with(request(), &json!({"background": true}))).await;
    assert_eq!(
        (&queued["status"], &queued["background"], &queued["output"]),
        (&json!("queued"), &json!(true), &json!([]))
    );
    assert_eq!(server.get(&path(&queued)).await.json, queued);
    // What it is asked is known before it answers, and does not change.
    let said = whole["output"][0]["content"][0]["text"].as_str().unwrap();
    let items = server.get(&format!("{}/input_items", path(&later))).await.json;
    assert_eq!(texts(&items), ["And?", said, request()["input"].as_str().unwrap()]);
    let early =
        server.post(RESPONSES, &with(request(), &json!({"previous_response_id": queued["id"]}))).await;
    assert_eq!(early.status, StatusCode::BAD_REQUEST);
    server.control.resume();
    until(&server, &path(&later), "incomplete").await;
    assert_eq!(server.get(&format!("{}/input_items", path(&later))).await.json, items);
    let ended = until(&server, &path(&queued), "incomplete").await;
    assert_eq!(ended["output"], whole["output"]);
    assert_eq!(ended["usage"]["output_tokens"], whole["usage"]["output_tokens"]);
    // It has ended; that is not an error.
    let (status, cancelled) = send(&server, Method::POST, &format!("{}/cancel", path(&queued)), "").await;
    assert_eq!((status, cancelled), (StatusCode::OK, ended));
    let (status, error) = send(&server, Method::POST, &format!("{}/cancel", path(&whole)), "").await;
    assert_eq!(
        (status, &error["error"]["message"]),
        (StatusCode::BAD_REQUEST, &json!("Cannot cancel a synchronous response."))
    );
    both(&server, &with(request(), &json!({"previous_response_id": queued["id"]}))).await;
    server.settle().await;
}

#[tokio::test]
async fn cancelling_and_deleting_end_what_runs() {
    let server = Server::new().await;
    let ask = with(request(), &json!({"background": true, "max_output_tokens": 1500}));
    for method in [Method::POST, Method::DELETE] {
        server.control.pause();
        server.control.allow(4);
        let queued = server.ask(RESPONSES, &ask).await;
        until(&server, &path(&queued), "in_progress").await;
        let below = if method == Method::POST { "/cancel" } else { "" };
        let target = format!("{}{below}", path(&queued));
        let (status, ended) = send(&server, method.clone(), &target, "").await;
        assert_eq!(status, StatusCode::OK, "{ended}");
        let kept = server.get(&path(&queued)).await;
        if method == Method::POST {
            assert_eq!(
                (&ended["status"], &ended["output"][0]["status"]),
                (&json!("cancelled"), &json!("incomplete"))
            );
            assert_eq!((&kept.json, &ended["usage"]), (&ended, &Value::Null));
            let next = json!({"previous_response_id": queued["id"]});
            assert_eq!(server.post(RESPONSES, &with(request(), &next)).await.status, StatusCode::BAD_REQUEST);
        } else {
            assert_eq!((kept.status, &ended["deleted"]), (StatusCode::NOT_FOUND, &json!(true)));
        }
        server.control.resume();
        // Nothing of it runs on.
        server.settle().await;
    }
}
