//! Endpoints around generation: text and tokens, the API's description and its page.

use frugal::auth::Keys;
use frugal::settings::Limits;
use frugal_config::auth::Key;
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::harness::{CONTEXT, Server, Setup, user, with};
use crate::messages::able;

fn messages() -> Value {
    json!([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is <|im_end|>?"}])
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| u32::try_from(id.as_u64().unwrap()).unwrap()).collect()
}

#[tokio::test]
async fn prompts_are_tokenized_as_they_would_be_computed() {
    let server = Server::new().await;
    for text in ["Once upon é", "<|im_start|>user", ""] {
        let told = server.ask("/tokenize", &json!({"prompt": text, "return_token_strs": true})).await;
        let want: Vec<u32> = server.tokenizer.encode_prompt(text).unwrap().iter().map(|t| t.0).collect();
        assert_eq!(ids(&told["tokens"]), want, "{text}");
        assert_eq!((&told["count"], &told["max_model_len"]), (&json!(want.len()), &json!(CONTEXT)));
        assert_eq!(told["token_strs"].as_array().unwrap().len(), want.len());
        let bare = server.ask("/tokenize", &json!({"prompt": text, "add_special_tokens": false})).await;
        let want: Vec<u32> = server.tokenizer.encode_special(text).unwrap().iter().map(|t| t.0).collect();
        assert_eq!((ids(&bare["tokens"]), &bare["token_strs"]), (want, &Value::Null));
        let back = server.ask("/detokenize", &json!({"tokens": told["tokens"]})).await;
        assert!(back["prompt"].as_str().unwrap().ends_with(text), "{back}");
    }
}

#[tokio::test]
async fn conversations_are_tokenized_as_they_would_be_computed() {
    let server = Server::new().await;
    let told = server.ask("/tokenize", &json!({"messages": messages()})).await;
    let chat = json!({"messages": messages(), "max_tokens": 6, "temperature": 0, "ignore_eos": true});
    let chat = server.chat(&chat).await;
    assert_eq!(chat["usage"]["prompt_tokens"], told["count"]);
    let raw = json!({"prompt": told["tokens"], "max_tokens": 6, "temperature": 0, "ignore_eos": true});
    assert_eq!(server.complete(&raw).await["choices"][0]["text"], chat["choices"][0]["message"]["content"]);
    // What makes the model answer comes last, or not at all.
    let quiet =
        server.ask("/tokenize", &json!({"messages": messages(), "add_generation_prompt": false})).await;
    let (whole, part) = (ids(&told["tokens"]), ids(&quiet["tokens"]));
    assert!(part.len() < whole.len() && whole.starts_with(&part));
    // As text, what a user wrote reads like a control token; as tokens it is none.
    let templated = server.ask("/apply-template", &json!({"messages": messages()})).await;
    let text = server.ask("/detokenize", &json!({"tokens": whole})).await;
    assert_eq!(templated["prompt"], text["prompt"]);
    assert!(
        ids(&server.ask("/tokenize", &json!({"prompt": text["prompt"]})).await["tokens"]).len() < whole.len()
    );
    let short =
        server.ask("/apply-template", &json!({"messages": messages(), "add_generation_prompt": false})).await;
    assert!(templated["prompt"].as_str().unwrap().starts_with(short["prompt"].as_str().unwrap()));
}

#[tokio::test]
async fn tools_and_variables_of_the_template_are_a_part_of_conversations() {
    let tool = json!({"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}});
    for (server, kwargs) in
        [(Server::new().await, json!({})), (able().await, json!({"enable_thinking": true}))]
    {
        let more = json!({"messages": messages(), "tools": [tool], "chat_template_kwargs": kwargs});
        let told = server.ask("/tokenize", &more).await;
        let chat = server.chat(&with(more.clone(), &json!({"max_tokens": 1}))).await;
        assert_eq!(told["count"], chat["usage"]["prompt_tokens"]);
        let bare = server.ask("/tokenize", &json!({"messages": messages()})).await;
        assert!(told["count"].as_u64() > bare["count"].as_u64());
        let templated = server.ask("/apply-template", &more).await;
        let text = server.ask("/detokenize", &json!({"tokens": told["tokens"]})).await;
        assert_eq!(templated["prompt"], text["prompt"]);
        for path in ["/tokenize", "/apply-template"] {
            for (wrong, param) in [
                (json!({"tools": [{"type": "web_search"}]}), "tools[0].type"),
                (json!({"chat_template_kwargs": {"no_such": 1}}), "chat_template_kwargs.no_such"),
            ] {
                let reply = server.post(path, &with(more.clone(), &wrong)).await;
                assert_eq!(
                    (reply.status.as_u16(), &reply.json["error"]["param"]),
                    (400, &json!(param)),
                    "{path}"
                );
            }
        }
        let reply = server.post("/tokenize", &json!({"prompt": "a", "tools": [tool]})).await;
        assert_eq!((reply.status.as_u16(), &reply.json["error"]["param"]), (400, &json!("tools")));
    }
}

#[tokio::test]
async fn text_endpoints_have_the_limits_of_prompts() {
    let mut setup = Setup::default();
    setup.settings.limits = Limits { prompt_bytes: 100, ..Limits::default() };
    let server = setup.start().await;
    let long = "x".repeat(101);
    let refused = [
        ("/tokenize", json!({"prompt": long}), "prompt"),
        ("/tokenize", json!({"messages": user(&long)}), "messages"),
        ("/tokenize", json!({"prompt": "a", "messages": user("b")}), "messages"),
        ("/tokenize", json!({}), "messages"),
        ("/tokenize", json!({"prompt": 7}), "prompt"),
        ("/tokenize", json!({"prompt": "a", "zzz": 1}), "zzz"),
        ("/tokenize", json!({"prompt": "a", "add_special_tokens": 1}), "add_special_tokens"),
        ("/detokenize", json!({"tokens": vec![100; 101]}), "tokens"),
        ("/detokenize", json!({"tokens": [512]}), "tokens"),
        ("/detokenize", json!({"tokens": [-1]}), "tokens"),
        ("/detokenize", json!({"tokens": "a"}), "tokens"),
        ("/detokenize", json!({}), "tokens"),
        ("/apply-template", json!({"messages": user(&long)}), "messages"),
        ("/apply-template", json!({"messages": [{"role": "wizard", "content": ""}]}), "messages[0].role"),
        (
            "/apply-template",
            json!({"messages": user("a"), "add_generation_prompt": "x"}),
            "add_generation_prompt",
        ),
    ];
    for (path, body, param) in refused {
        let reply = server.post(path, &body).await;
        assert_eq!(
            (reply.status.as_u16(), &reply.json["error"]["param"]),
            (400, &json!(param)),
            "{path} {body}"
        );
    }
    for (path, base) in
        [("/tokenize", json!({"prompt": "a"})), ("/apply-template", json!({"messages": user("a")}))]
    {
        let missing = server.post(path, &with(base, &json!({"model": "gpt-4"}))).await;
        assert_eq!(missing.status, StatusCode::NOT_FOUND, "{path}");
    }
}

#[tokio::test]
async fn keys_guard_what_works_and_not_what_describes() {
    let mut setup = Setup::default();
    setup.operations.keys = Keys::new(&[Key::new("a", "sk-a")]);
    let server = setup.start().await;
    for guarded in ["/tokenize", "/detokenize", "/apply-template"] {
        assert_eq!(server.post(guarded, &json!({})).await.status, StatusCode::UNAUTHORIZED, "{guarded}");
    }
    for open in
        ["/openapi.json", "/docs", "/docs/start.js", "/docs/swagger-ui.css", "/docs/swagger-ui-bundle.js"]
    {
        let response = server.client.get(format!("{}{open}", server.url)).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK, "{open}");
    }
}

#[tokio::test]
async fn the_page_needs_nothing_from_elsewhere() {
    let server = Server::new().await;
    let get = async |path: &str| server.client.get(format!("{}{path}", server.url)).send().await.unwrap();
    let page = get("/docs").await;
    let policy = page.headers()["content-security-policy"].to_str().unwrap().to_owned();
    assert!(policy.starts_with("default-src 'self';") && !policy.contains("http"), "{policy}");
    let page = page.text().await.unwrap();
    let parts: Vec<&str> = page.split(['"']).filter(|part| part.starts_with('/')).collect();
    assert_eq!(parts, ["/docs/swagger-ui.css", "/docs/swagger-ui-bundle.js", "/docs/start.js"]);
    for (part, kind) in parts.into_iter().zip(["text/css", "text/javascript", "text/javascript"]) {
        let part = get(part).await;
        assert_eq!(part.headers()["content-type"], kind);
        assert!(!part.text().await.unwrap().is_empty());
    }
    assert!(!page.contains("://"), "{page}");
    let description: Value = get("/openapi.json").await.json().await.unwrap();
    assert_eq!(description["openapi"], "3.1.0");
    assert!(description["paths"]["/v1/chat/completions"]["post"].is_object());
}
