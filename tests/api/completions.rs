//! `/v1/completions`.

use frugal_models::fake::expected_prompt_score;
use frugal_models::step::TokenId;
use serde_json::{Value, json};

use crate::harness::{MODEL, Server, chunks, stable, with};

fn request() -> Value {
    json!({"model": MODEL, "prompt": "Once upon", "temperature": 0, "max_tokens": 6, "ignore_eos": true})
}

fn text(answer: &Value, choice: usize) -> &str {
    answer["choices"][choice]["text"].as_str().unwrap()
}

#[tokio::test]
async fn a_whole_answer_and_a_stream() {
    let server = Server::new().await;
    insta::assert_json_snapshot!("completion", stable(server.complete(&request()).await));
    let ask = with(request(), &json!({"stream": true, "max_tokens": 2}));
    let events = server.stream("/v1/completions", &ask).await;
    let chunks: Vec<Value> = chunks(&events).into_iter().map(stable).collect();
    insta::assert_json_snapshot!("completion_stream", chunks);
}

#[tokio::test]
async fn sixteen_tokens_are_the_default() {
    let server = Server::new().await;
    let answer = server.complete(&json!({"prompt": "x", "ignore_eos": true})).await;
    assert_eq!(answer["usage"]["completion_tokens"], 16);
}

#[tokio::test]
async fn prompts_in_every_form() {
    let server = Server::new().await;
    let ids = |text: &str| -> Vec<u32> {
        server.tokenizer.encode_prompt(text).unwrap().iter().map(|t| t.0).collect()
    };
    let one = server.complete(&with(request(), &json!({"prompt": "cat"}))).await;
    let two = server.complete(&with(request(), &json!({"prompt": "dogs bark"}))).await;
    for prompt in [json!(["cat", "dogs bark"]), json!([ids("cat"), ids("dogs bark")])] {
        let both = server.complete(&with(request(), &json!({"prompt": prompt, "n": 2}))).await;
        let texts: Vec<&str> = (0..4).map(|i| text(&both, i)).collect();
        let (a, b) = (text(&one, 0), text(&two, 0));
        assert_eq!(texts, [a, a, b, b], "prompt by prompt");
        assert_eq!(both["choices"][3]["index"], 3);
        let prompt_tokens = ids("cat").len() + ids("dogs bark").len();
        assert_eq!(both["usage"]["prompt_tokens"], prompt_tokens);
        assert_eq!(both["usage"]["completion_tokens"], 24);
    }
    let by_ids = server.complete(&with(request(), &json!({"prompt": ids("cat")}))).await;
    assert_eq!(text(&by_ids, 0), text(&one, 0));
}

#[tokio::test]
async fn control_tokens_in_a_raw_prompt_are_control_tokens() {
    let server = Server::new().await;
    let answer =
        server.complete(&with(request(), &json!({"prompt": "<|im_start|>user", "echo": true}))).await;
    let ids = server.tokenizer.encode_special("<|im_start|>user").unwrap();
    assert_eq!(answer["usage"]["prompt_tokens"], ids.len());
    assert!(text(&answer, 0).starts_with("<|im_start|>user"));
}

#[tokio::test]
async fn an_echo_comes_first() {
    let server = Server::new().await;
    let plain = server.complete(&request()).await;
    let echo = with(request(), &json!({"echo": true, "n": 2}));
    let answer = server.complete(&echo).await;
    for choice in 0..2 {
        assert_eq!(text(&answer, choice), format!("Once upon{}", text(&plain, 0)));
    }
    // A character split between prompt and answer is one character.
    let byte = |b: &str| server.tokenizer.encode_plain(b).unwrap();
    let ids = byte("é");
    if ids.len() == 2 {
        let bias = json!({ids[1].0.to_string(): 100});
        let ask = json!({"prompt": [ids[0].0], "echo": true, "max_tokens": 1, "logit_bias": bias, "temperature": 0});
        assert_eq!(text(&server.complete(&ask).await, 0), "é");
    }
}

#[tokio::test]
async fn logprobs_line_up_with_the_text() {
    let server = Server::new().await;
    let ask =
        with(request(), &json!({"echo": true, "logprobs": 2, "max_tokens": 2, "prompt": "Once upon é"}));
    let answer = server.complete(&ask).await;
    insta::assert_json_snapshot!("completion_logprobs", stable(answer.clone())["choices"]);
    let logprobs = &answer["choices"][0]["logprobs"];
    let list = |name: &str| logprobs[name].as_array().unwrap().clone();
    let prompt = server.tokenizer.encode_prompt("Once upon é").unwrap();
    for name in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
        assert_eq!(list(name).len(), prompt.len() + 2, "{name}");
    }
    let characters: Vec<char> = text(&answer, 0).chars().collect();
    for (token, offset) in list("tokens").iter().zip(list("text_offset")) {
        let (token, offset) = (token.as_str().unwrap(), usize::try_from(offset.as_u64().unwrap()).unwrap());
        if !token.starts_with("bytes:") {
            let there: String = characters[offset..].iter().take(token.chars().count()).collect();
            assert_eq!(there, token);
        }
    }
    assert_eq!(list("token_logprobs")[0], Value::Null);
}

#[tokio::test]
async fn a_prompt_can_be_scored_without_going_on() {
    let server = Server::new().await;
    let ids = [11u32, 40, 300, 7];
    let ask = json!({"prompt": ids, "echo": true, "logprobs": 3, "max_tokens": 0, "return_tokens_as_token_ids": true});
    let answer = server.complete(&ask).await;
    assert_eq!(answer["usage"]["completion_tokens"], 0);
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    let logprobs = &answer["choices"][0]["logprobs"];
    assert_eq!(logprobs["tokens"], json!(ids.map(|id| format!("token_id:{id}"))));
    let tokens: Vec<TokenId> = ids.iter().map(|&id| TokenId(id)).collect();
    for i in 1..tokens.len() {
        let score = expected_prompt_score(server.handle.geometry(), &tokens[..i], tokens[i], 3);
        let got = logprobs["token_logprobs"][i].as_f64().unwrap();
        assert!((got - f64::from(score.logprob)).abs() < 1e-5, "{got} at {i}, {score:?}");
        let top = logprobs["top_logprobs"][i].as_object().unwrap();
        for (token, logprob) in score.top {
            let got = top[&format!("token_id:{}", token.0)].as_f64().unwrap();
            assert!((got - f64::from(logprob)).abs() < 1e-5);
        }
        assert!(top.contains_key(&format!("token_id:{}", ids[i])), "the token itself is always there");
    }
    // Without log-probabilities the same costs the same and says less.
    let bare = server.complete(&json!({"prompt": "Hi", "echo": true, "max_tokens": 0})).await;
    assert_eq!((text(&bare, 0), &bare["choices"][0]["logprobs"]), ("Hi", &Value::Null));
    // A prompt of one token has nothing to score.
    let one = server.complete(&json!({"prompt": [5], "echo": true, "max_tokens": 0, "logprobs": 0})).await;
    assert_eq!(one["choices"][0]["logprobs"]["token_logprobs"], json!([null]));
}
