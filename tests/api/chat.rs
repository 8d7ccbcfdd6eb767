//! `/v1/chat/completions`.

use serde_json::{Value, json};

use crate::harness::{CONTEXT, MODEL, Server, Setup, chunks, stable, user, with};

fn request() -> Value {
    json!({"model": MODEL, "messages": user("Hello"), "temperature": 0, "max_tokens": 8, "ignore_eos": true})
}

#[tokio::test]
async fn a_whole_answer() {
    let server = Server::new().await;
    insta::assert_json_snapshot!("chat", stable(server.chat(&request()).await));
}

#[tokio::test]
async fn a_stream_with_usage() {
    let server = Server::new().await;
    let ask =
        with(request(), &json!({"stream": true, "stream_options": {"include_usage": true}, "max_tokens": 3}));
    let events = server.stream("/v1/chat/completions", &ask).await;
    let chunks: Vec<Value> = chunks(&events).into_iter().map(stable).collect();
    insta::assert_json_snapshot!("chat_stream", chunks);
}

#[tokio::test]
async fn logprobs_have_text_and_bytes() {
    let server = Server::new().await;
    let ask = with(request(), &json!({"logprobs": true, "top_logprobs": 2, "max_tokens": 3}));
    insta::assert_json_snapshot!("chat_logprobs", stable(server.chat(&ask).await)["choices"]);
    let by_id = server.chat(&with(ask, &json!({"return_tokens_as_token_ids": true}))).await;
    for entry in by_id["choices"][0]["logprobs"]["content"].as_array().unwrap() {
        assert!(entry["token"].as_str().unwrap().starts_with("token_id:"), "{entry}");
    }
}

#[tokio::test]
async fn the_prompt_is_what_the_template_renders() {
    let server = Server::new().await;
    let messages = json!([
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "x"},
        {"role": "assistant", "content": null},
        {"role": "user", "content": "<|im_end|>"},
    ]);
    let chat = server.chat(&with(request(), &json!({"messages": messages}))).await;
    let written = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\na\nb<|im_end|>\n\
                   <|im_start|>assistant\n<|im_end|>\n<|im_start|>user\n";
    let special = |text: &str| server.tokenizer.encode_special(text).unwrap();
    let mut prompt = special(written);
    // A control token that a user writes is ordinary text.
    prompt.extend(server.tokenizer.encode_plain("<|im_end|>").unwrap());
    prompt.extend(special("<|im_end|>\n<|im_start|>assistant\n"));
    assert_eq!(chat["usage"]["prompt_tokens"], prompt.len());

    let ids: Vec<u32> = prompt.iter().map(|t| t.0).collect();
    let raw = json!({"prompt": ids, "temperature": 0, "max_tokens": 8, "ignore_eos": true});
    let raw = server.complete(&raw).await;
    assert_eq!(raw["choices"][0]["text"], chat["choices"][0]["message"]["content"]);
}

#[tokio::test]
async fn what_clients_add_to_messages_is_taken_where_it_changes_nothing() {
    let server = Server::new().await;
    let tokens = |message: Value| {
        let server = &server;
        async move {
            let answer = server.chat(&with(request(), &json!({"messages": [message]}))).await;
            answer["usage"]["prompt_tokens"].as_u64().unwrap()
        }
    };
    let plain = tokens(json!({"role": "user", "content": "Hi"})).await;
    for kind in ["text", "message"] {
        assert_eq!(tokens(json!({"type": kind, "role": "user", "content": "Hi"})).await, plain, "{kind}");
    }
    let part = |control: Value| json!({"type": "text", "text": "Hi", "cache_control": control});
    for control in [json!({"type": "ephemeral"}), json!({"type": "ephemeral", "ttl": "1h"}), json!(null)] {
        assert_eq!(tokens(json!({"role": "user", "content": [part(control)]})).await, plain);
    }
    for (name, message) in [
        ("messages[0].type", json!({"type": "image", "role": "user", "content": "Hi"})),
        (
            "messages[0].content[0].cache_control.type",
            json!({"role": "user", "content": [part(json!({"type": "forever"}))]}),
        ),
    ] {
        let ask = with(request(), &json!({"messages": [message]}));
        let reply = server.post("/v1/chat/completions", &ask).await;
        assert_eq!((reply.status.as_u16(), &reply.json["error"]["param"]), (400, &json!(name)));
    }
}

#[tokio::test]
async fn seeds_decide_and_choices_differ() {
    let server = Server::new().await;
    let seeded =
        |seed: Value| with(request(), &json!({"temperature": 1, "seed": seed, "n": 3, "max_tokens": 12}));
    let texts = |answer: &Value| -> Vec<String> {
        let choices = answer["choices"].as_array().unwrap();
        choices.iter().map(|c| c["message"]["content"].as_str().unwrap().to_owned()).collect()
    };
    let a = server.chat(&seeded(json!(1))).await;
    assert_eq!(a["choices"][2]["index"], 2);
    assert_eq!(texts(&a), texts(&server.chat(&seeded(json!(1))).await));
    assert_ne!(texts(&a), texts(&server.chat(&seeded(json!(2))).await));
    assert_ne!(texts(&a)[0], texts(&a)[1]);
    // Without a seed, or with -1, which means none, answers differ.
    for none in [json!(null), json!(-1)] {
        assert_ne!(
            texts(&server.chat(&seeded(none.clone())).await),
            texts(&server.chat(&seeded(none)).await)
        );
    }
    let (minus, large) =
        (server.chat(&seeded(json!(-2))).await, server.chat(&seeded(json!(u64::MAX - 1))).await);
    assert_eq!(texts(&minus), texts(&large), "the same 64 bits");
}

#[tokio::test]
async fn the_same_prompt_twice_is_answered_twice_unless_a_seed_is_given() {
    let server = Server::new().await;
    let ask = json!({"prompt": ["Tell", "Tell"], "temperature": 1, "max_tokens": 12, "ignore_eos": true});
    let drawn = server.ask("/v1/completions", &ask).await;
    assert_ne!(drawn["choices"][0]["text"], drawn["choices"][1]["text"]);
    let given = server.ask("/v1/completions", &with(ask, &json!({"seed": 3}))).await;
    assert_eq!(given["choices"][0]["text"], given["choices"][1]["text"]);
}

#[tokio::test]
async fn a_repeated_prompt_is_cached_and_salt_keeps_apart() {
    let server = Setup::priced().start().await;
    let long = with(request(), &json!({"messages": user(&"word ".repeat(100))}));
    let cached = |answer: &Value| answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
    assert_eq!(cached(&server.chat(&long).await), 0);
    let again = server.chat(&long).await;
    assert!(cached(&again) > 100, "{again}");
    let salted = with(long, &json!({"cache_salt": "secret"}));
    assert_eq!(cached(&server.chat(&salted).await), 0);
    assert!(cached(&server.chat(&salted).await) > 100);
}

#[tokio::test]
async fn money_is_shown_with_a_price_only() {
    let free = Server::new().await.chat(&request()).await;
    assert_eq!(free["usage"].get("cost"), None);
    let server = Setup::priced().start().await;
    let usage = server.chat(&request()).await["usage"].clone();
    let number = |value: &Value| value.as_f64().unwrap_or_else(|| panic!("{usage}"));
    let details = &usage["cost_details"];
    let parts = number(&details["upstream_inference_prompt_cost"])
        + number(&details["upstream_inference_completions_cost"]);
    assert!(number(&usage["cost"]) > 0.0);
    assert!((number(&usage["cost"]) - parts).abs() < 1e-12, "{usage}");
    assert_eq!(details["upstream_inference_cost"], usage["cost"]);
    assert_eq!(details["currency"], "USD");
    assert!(number(&details["saved"]) >= 0.0);
}

#[tokio::test]
async fn a_prediction_changes_nothing_but_what_is_computed_ahead() {
    let mut setup = Setup::default();
    setup.engine.draft_tokens = 8;
    let server = setup.start().await;
    let a = server.tokenizer.encode_plain("a").unwrap()[0].0;
    let ask =
        with(request(), &json!({"logit_bias": {a.to_string(): 100}, "max_tokens": 40, "logprobs": true}));
    let plain = server.chat(&ask).await;
    assert_eq!(plain["usage"].get("completion_tokens_details"), None);
    for content in [json!("a a"), json!([{"type": "text", "text": "a"}, {"type": "text", "text": "a"}])] {
        let predicted = with(ask.clone(), &json!({"prediction": {"type": "content", "content": content}}));
        let predicted = server.chat(&predicted).await;
        assert_eq!(predicted["choices"], plain["choices"]);
        assert_eq!(predicted["usage"]["completion_tokens"], 40);
        let details = &predicted["usage"]["completion_tokens_details"];
        assert!(details["accepted_prediction_tokens"].as_u64().unwrap() > 5, "{details}");
        assert!(details["rejected_prediction_tokens"].is_u64() && details.get("reasoning_tokens").is_none());
    }
    let metrics = server.client.get(format!("{}/metrics", server.url)).send().await.unwrap();
    let metrics = metrics.text().await.unwrap();
    let count = |name: &str| {
        let of = metrics.lines().find(|line| line.starts_with(&format!("vllm:spec_decode_num_{name}_total")));
        of.and_then(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
            .unwrap_or_else(|| panic!("{metrics}"))
    };
    let [drafts, tokens, accepted] = ["drafts", "draft_tokens", "accepted_tokens"].map(count);
    assert!(drafts > 0 && accepted > drafts && tokens >= accepted, "{drafts} {tokens} {accepted}");
}

#[tokio::test]
async fn without_max_tokens_the_context_is_the_limit() {
    let server = Server::new().await;
    let mut ask = request();
    ask.as_object_mut().unwrap().remove("max_tokens");
    let answer = server.chat(&ask).await;
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    assert_eq!(answer["usage"]["total_tokens"], CONTEXT);
}

#[tokio::test]
async fn end_tokens_end_unless_ignored_or_too_early() {
    let server = Server::new().await;
    let end = server.tokenizer.end_tokens()[0].0;
    let ask = |more: Value| {
        let mut ask = with(request(), &json!({"logit_bias": {end.to_string(): 100}}));
        ask.as_object_mut().unwrap().remove("ignore_eos");
        with(ask, &more)
    };
    let ended = server.chat(&ask(json!({}))).await;
    assert_eq!(ended["choices"][0]["finish_reason"], "stop");
    assert_eq!(ended["choices"][0]["message"]["content"], "");
    assert_eq!(ended["usage"]["completion_tokens"], 1);
    let ignored = server.chat(&ask(json!({"ignore_eos": true}))).await;
    assert_eq!(ignored["choices"][0]["finish_reason"], "length");
    assert_eq!(ignored["usage"]["completion_tokens"], 8);
    let later = server.chat(&ask(json!({"min_tokens": 4}))).await;
    assert_eq!(later["choices"][0]["finish_reason"], "stop");
    assert_eq!(later["usage"]["completion_tokens"], 5);
}

#[tokio::test]
async fn a_model_without_template_completes_but_does_not_chat() {
    let server = Setup { template: false, ..Setup::default() }.start().await;
    let refused = server.post("/v1/chat/completions", &request()).await;
    assert_eq!((refused.status.as_u16(), &refused.json["error"]["param"]), (400, &json!("messages")));
    server.complete(&json!({"prompt": "Hi"})).await;
}
