//! Fields beyond OpenAI's: what ends a choice and whether it is shown, scores of the prompt, fingerprints.

use frugal_models::fake::expected_prompt_score;
use frugal_models::step::TokenId;
use serde_json::{Value, json};

use crate::harness::{Server, chunks, user, with};

const PROMPT: [u32; 4] = [11, 40, 300, 7];

fn request() -> Value {
    json!({"prompt": PROMPT, "temperature": 0, "max_tokens": 12, "ignore_eos": true})
}

/// The tokens that the answer consists of if nothing stops it.
async fn tokens(server: &Server) -> Vec<TokenId> {
    let ask = with(request(), &json!({"logprobs": 0, "return_tokens_as_token_ids": true}));
    let names = server.complete(&ask).await["choices"][0]["logprobs"]["tokens"].clone();
    let id =
        |name: &Value| TokenId(name.as_str().unwrap().strip_prefix("token_id:").unwrap().parse().unwrap());
    names.as_array().unwrap().iter().map(id).collect()
}

/// The first place from `from` on where a token stands for the first time, and for text.
fn first_of_its_kind(server: &Server, tokens: &[TokenId], from: usize) -> usize {
    let new =
        |&i: &usize| !tokens[..i].contains(&tokens[i]) && !server.tokenizer.decode(&tokens[i..=i]).is_empty();
    (from..tokens.len()).find(new).expect("the fake model varies")
}

/// The same from a whole answer and from a stream: text, finish reason, stop reason, output tokens.
async fn both(server: &Server, ask: &Value) -> (String, Value, Value, Value) {
    let whole = server.complete(ask).await;
    let choice = &whole["choices"][0];
    let text = choice["text"].as_str().unwrap().to_owned();
    let ends = (choice["finish_reason"].clone(), choice["stop_reason"].clone());
    let output = whole["usage"]["completion_tokens"].clone();

    let ask = with(ask.clone(), &json!({"stream": true, "stream_options": {"include_usage": true}}));
    let chunks = chunks(&server.stream("/v1/completions", &ask).await);
    let streamed: String = chunks.iter().filter_map(|c| c["choices"][0]["text"].as_str()).collect();
    let last = &chunks[chunks.len() - 2]["choices"][0];
    assert_eq!(streamed, text);
    assert_eq!((&last["finish_reason"], &last["stop_reason"]), (&ends.0, &ends.1));
    assert_eq!(chunks.last().unwrap()["usage"]["completion_tokens"], output);
    (text, ends.0, ends.1, output)
}

#[tokio::test]
async fn stop_tokens_end_a_choice_and_are_shown_if_asked() {
    let server = Server::new().await;
    let tokens = tokens(&server).await;
    let at = first_of_its_kind(&server, &tokens, 3);
    let id = tokens[at].0;
    let ask = with(request(), &json!({"stop_token_ids": [id, 511, id]}));
    let text = |count: usize| server.tokenizer.decode(&tokens[..count]);
    assert_eq!(both(&server, &ask).await, (text(at), json!("stop"), json!(id), json!(at + 1)));
    let shown = with(ask.clone(), &json!({"include_stop_str_in_output": true}));
    assert_eq!(both(&server, &shown).await, (text(at + 1), json!("stop"), json!(id), json!(at + 1)));
    // Log-probabilities are those of the tokens shown.
    let scored = server.complete(&with(shown, &json!({"logprobs": 1}))).await;
    assert_eq!(scored["choices"][0]["logprobs"]["tokens"].as_array().unwrap().len(), at + 1);
    // Forbidden before its time.
    let later = server.complete(&with(ask, &json!({"min_tokens": at + 2}))).await;
    assert!(later["usage"]["completion_tokens"].as_u64().unwrap() >= at as u64 + 2, "{later}");
    // The model's own end is no stop of the client's.
    let end = server.tokenizer.end_tokens()[0].0;
    let forced = json!({"logit_bias": {end.to_string(): 100}, "ignore_eos": false});
    let ended = server.complete(&with(request(), &forced)).await;
    assert_eq!(
        (&ended["choices"][0]["finish_reason"], &ended["choices"][0]["stop_reason"]),
        (&json!("stop"), &Value::Null)
    );
    // Every token that is counted has its log-probability: harnesses cut the last one off.
    let scored =
        server.complete(&with(with(request(), &forced), &json!({"logprobs": 1, "echo": true}))).await;
    let tokens = scored["choices"][0]["logprobs"]["token_logprobs"].as_array().unwrap().len() as u64;
    assert_eq!(json!(tokens), scored["usage"]["total_tokens"], "{scored}");
    let named = server.complete(&with(with(request(), &forced), &json!({"stop_token_ids": [end]}))).await;
    assert_eq!(named["choices"][0]["stop_reason"], end);
}

#[tokio::test]
async fn stop_strings_are_shown_if_asked_and_nothing_after_them() {
    let server = Server::new().await;
    let whole = server.complete(&request()).await["choices"][0]["text"].as_str().unwrap().to_owned();
    let letters: Vec<char> = whole.chars().collect();
    let stop = (4..letters.len() - 2).map(|i| letters[i..i + 2].iter().collect::<String>());
    let stop = stop.into_iter().find(|s| !s.contains('\u{fffd}')).expect("two characters");
    let at = whole.find(&stop).unwrap();
    let ask = with(request(), &json!({"stop": ["no such text", stop]}));
    let (text, reason, stopped_by, _) = both(&server, &ask).await;
    assert_eq!((text.as_str(), reason, stopped_by), (&whole[..at], json!("stop"), json!(stop)));
    let (text, _, stopped_by, _) =
        both(&server, &with(ask, &json!({"include_stop_str_in_output": true}))).await;
    assert_eq!((text.as_str(), stopped_by), (&whole[..at + stop.len()], json!(stop)));

    let chat = json!({"messages": user("Hi"), "temperature": 0, "max_tokens": 12, "ignore_eos": true});
    let said = server.chat(&chat).await["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    let first = said.chars().find(|c| *c != '\u{fffd}').expect("text").to_string();
    let shown = json!({"stop": first, "include_stop_str_in_output": true});
    let stopped = server.chat(&with(chat.clone(), &shown)).await["choices"][0].clone();
    let at = said.find(&first).unwrap() + first.len();
    assert_eq!(
        (&stopped["message"]["content"], &stopped["stop_reason"]),
        (&json!(said[..at]), &json!(first))
    );
    let events =
        server.stream("/v1/chat/completions", &with(chat, &with(shown, &json!({"stream": true})))).await;
    assert_eq!(chunks(&events).last().unwrap()["choices"][0]["stop_reason"], json!(first));
}

/// `prompt_logprobs` by the fake model's law.
fn law(server: &Server, prompt: &[TokenId], top: u32) -> Value {
    // As it is written: not the nearest double, but the shortest number that is this float.
    let number = |x: f32| x.to_string().parse::<f64>().unwrap();
    let entry = |token: TokenId, logprob: f32, rank: u32| {
        let entry = json!({"logprob": number(logprob), "rank": rank, "decoded_token": server.tokenizer.token_text(token)});
        (token.0.to_string(), entry)
    };
    let position = |i: usize| {
        let score = expected_prompt_score(server.handle.geometry(), &prompt[..i], prompt[i], top);
        let best = score.top.iter().zip(1..).map(|(&(token, logprob), rank)| entry(token, logprob, rank));
        let mut all: serde_json::Map<String, Value> = best.collect();
        all.extend([entry(score.token, score.logprob, score.rank)]);
        Value::Object(all)
    };
    let scored = (1..prompt.len()).map(position);
    std::iter::once(Value::Null).chain(scored).collect()
}

#[tokio::test]
async fn prompts_are_scored_as_in_vllm() {
    let server = Server::new().await;
    let prompt = PROMPT.map(TokenId);
    let ask =
        with(request(), &json!({"prompt": [PROMPT, [5]], "n": 2, "prompt_logprobs": 2, "max_tokens": 1}));
    let answer = server.complete(&ask).await;
    for (choice, prompt) in [(0, &prompt[..]), (1, &prompt[..]), (2, &[TokenId(5)])] {
        assert_eq!(answer["choices"][choice]["prompt_logprobs"], law(&server, prompt, 2), "choice {choice}");
    }
    // Next to an echo with another number of alternatives.
    for (scored, echoed) in [(3, 1), (0, 2)] {
        let more = json!({"prompt_logprobs": scored, "echo": true, "logprobs": echoed});
        let choice = server.complete(&with(request(), &more)).await["choices"][0].clone();
        assert_eq!(choice["prompt_logprobs"], law(&server, &prompt, scored));
        let own = choice["logprobs"]["tokens"][1].as_str().unwrap();
        let best = choice["logprobs"]["top_logprobs"][1].as_object().unwrap();
        assert_eq!(best.keys().filter(|name| *name != own).count(), echoed, "{best:?}");
    }
    // A chat has one prompt.
    let chat = json!({"messages": user("Hi"), "max_tokens": 1, "prompt_logprobs": 0});
    let chat = server.chat(&chat).await;
    let scores = chat["prompt_logprobs"].as_array().unwrap();
    assert_eq!(scores.len() as u64, chat["usage"]["prompt_tokens"].as_u64().unwrap());
    assert!(scores[0].is_null() && scores[1..].iter().all(|s| s.as_object().unwrap().len() == 1), "{chat}");
    let plain = server.complete(&request()).await;
    assert_eq!((plain.get("prompt_logprobs"), plain["choices"][0].get("prompt_logprobs")), (None, None));
}

#[tokio::test]
async fn answers_of_one_configuration_have_one_fingerprint() {
    let server = Server::new().await;
    let fingerprint = server.complete(&request()).await["system_fingerprint"].clone();
    let ask = json!({"messages": user("Hi"), "max_tokens": 2});
    assert_eq!(server.chat(&ask).await["system_fingerprint"], fingerprint);
    let usage = json!({"stream": true, "stream_options": {"include_usage": true}});
    for chunk in chunks(&server.stream("/v1/chat/completions", &with(ask, &usage)).await) {
        assert_eq!(chunk["system_fingerprint"], fingerprint, "{chunk}");
    }
    assert_eq!(Server::new().await.complete(&request()).await["system_fingerprint"], fingerprint);
}
