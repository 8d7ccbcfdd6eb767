//! Streams and whole answers are the same answers; stop strings never show.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::harness::{Server, chunks, user, with};

/// Text, log-probabilities and finish reason of every choice.
type Choices = BTreeMap<u64, (String, Vec<Value>, String)>;

fn whole(answer: &Value) -> Choices {
    let choice = |c: &Value| {
        let text = c["message"]["content"].as_str().or(c["text"].as_str()).unwrap().to_owned();
        let reason = c["finish_reason"].as_str().unwrap().to_owned();
        (c["index"].as_u64().unwrap(), (text, entries(&c["logprobs"]), reason))
    };
    answer["choices"].as_array().unwrap().iter().map(choice).collect()
}

fn streamed(chunks: &[Value]) -> Choices {
    let mut all = Choices::new();
    for choice in chunks.iter().flat_map(|c| c["choices"].as_array().unwrap()) {
        let one = all.entry(choice["index"].as_u64().unwrap()).or_default();
        assert!(one.2.is_empty(), "nothing follows a finish: {choice}");
        one.0 += choice["delta"]["content"].as_str().or(choice["text"].as_str()).unwrap_or_default();
        one.1.extend(entries(&choice["logprobs"]));
        one.2 += choice["finish_reason"].as_str().unwrap_or_default();
    }
    all
}

/// One value per token, in either shape.
fn entries(logprobs: &Value) -> Vec<Value> {
    if let Some(content) = logprobs["content"].as_array() {
        return content.clone();
    }
    let tokens = logprobs["tokens"].as_array().map_or(0, Vec::len);
    let names = ["tokens", "token_logprobs", "top_logprobs", "text_offset"];
    (0..tokens).map(|i| names.iter().map(|name| logprobs[name][i].clone()).collect()).collect()
}

async fn same_either_way(server: &Server, path: &str, ask: &Value) -> Choices {
    let answer = server.ask(path, ask).await;
    let options = json!({"stream": true, "stream_options": {"include_usage": true}});
    let chunks = chunks(&server.stream(path, &with(ask.clone(), &options)).await);
    assert_eq!(streamed(&chunks), whole(&answer), "{ask}");
    let last = chunks.last().unwrap();
    assert_eq!(last["choices"], json!([]));
    for field in ["prompt_tokens", "completion_tokens", "total_tokens"] {
        assert_eq!(last["usage"][field], answer["usage"][field], "{ask}");
    }
    assert!(chunks[..chunks.len() - 1].iter().all(|c| c["usage"].is_null()));
    whole(&answer)
}

#[tokio::test]
async fn usage_is_told_in_every_chunk_if_asked_for() {
    let server = Server::new().await;
    for (path, ask) in [
        ("/v1/chat/completions", json!({"messages": user("Tell me"), "max_tokens": 9, "ignore_eos": true})),
        ("/v1/completions", json!({"prompt": "Once upon", "max_tokens": 9, "ignore_eos": true})),
    ] {
        let told = |usage: bool| json!({"include_usage": usage, "continuous_usage_stats": true});
        let stream = |usage| with(ask.clone(), &json!({"stream": true, "stream_options": told(usage)}));
        let chunks = chunks(&server.stream(path, &stream(true)).await);
        let count = |chunk: &Value, field: &str| chunk["usage"][field].as_u64().unwrap();
        let so_far: Vec<u64> = chunks.iter().map(|chunk| count(chunk, "completion_tokens")).collect();
        assert!(so_far.is_sorted() && so_far[0] < 9 && so_far.last() == Some(&9), "{so_far:?}");
        let [first, .., last] = &chunks[..] else { panic!("{chunks:?}") };
        assert_eq!(count(first, "prompt_tokens"), count(last, "prompt_tokens"));
        // What is not known yet is not told.
        let details = [first, last].map(|chunk| chunk["usage"].get("prompt_tokens_details").is_some());
        assert_eq!(details, [false, true]);
        let without = self::chunks(&server.stream(path, &stream(false)).await);
        assert!(
            without.iter().all(|chunk| chunk.get("usage").is_none()),
            "as in vLLM, it depends on the other"
        );
    }
}

/// Characters of `text` from `start`, if none of them is a replacement.
fn piece(text: &str, start: usize, length: usize) -> Option<String> {
    let piece: String = text.chars().skip(start).take(length).collect();
    (piece.chars().count() == length && !piece.contains('\u{fffd}')).then_some(piece)
}

#[tokio::test]
async fn streams_equal_whole_answers_and_stop_where_they_should() {
    let server = Server::new().await;
    let mut stopped = 0;
    for seed in 0..40usize {
        let ask = json!({
            "messages": user("Tell me"), "seed": seed, "n": 1 + seed % 3, "max_tokens": 40, "ignore_eos": true,
            "logprobs": seed % 2 == 0, "top_logprobs": if seed % 2 == 0 { 2 } else { 0 },
        });
        let free = same_either_way(&server, "/v1/chat/completions", &ask).await;
        // Two of the first choice's own strings, of one to six characters, and one that is never there.
        let text = &free[&0].0;
        let found = [piece(text, 8 + seed % 9, 1 + seed % 6), piece(text, 14 + seed % 7, 2 + seed % 3)];
        let stop: Vec<String> = found.into_iter().flatten().chain(["\u{1f980}never".to_owned()]).collect();
        let ask = with(ask, &json!({"stop": stop}));
        let got = same_either_way(&server, "/v1/chat/completions", &ask).await;
        for (index, (text, _, reason)) in &free {
            // The first to be complete; of those that end together, the longest.
            let found = stop.iter().filter_map(|s| text.find(s.as_str()).map(|at| (at + s.len(), at)));
            let cut = found.min().map(|(_, at)| at);
            let expected = cut.map_or(text.as_str(), |cut| &text[..cut]);
            let (got, _, why) = &got[index];
            assert_eq!(
                (got.as_str(), why.as_str()),
                (expected, if cut.is_some() { "stop" } else { reason }),
                "{ask}"
            );
            stopped += usize::from(cut.is_some());
        }
    }
    assert!(stopped > 30, "{stopped}");
    server.settle().await;
}

#[tokio::test]
async fn completions_stream_the_same_with_echo_and_scores() {
    let server = Server::new().await;
    for seed in 0..12usize {
        let logprobs = [None, Some(0), Some(3)][seed % 3];
        let ask = json!({
            "prompt": ["Once upon", "é😀"], "seed": seed, "n": 1 + seed % 2, "max_tokens": seed % 5,
            "echo": true, "logprobs": logprobs,
        });
        same_either_way(&server, "/v1/completions", &ask).await;
    }
}

#[tokio::test]
async fn nothing_is_generated_after_a_stop() {
    let server = Server::new().await;
    let ask = json!({"prompt": "Go", "temperature": 0, "max_tokens": 30, "ignore_eos": true, "logprobs": 0});
    let free = server.complete(&ask).await;
    let offsets = free["choices"][0]["logprobs"]["text_offset"].as_array().unwrap();
    let text = free["choices"][0]["text"].as_str().unwrap();
    let stop = (5..).find_map(|start| piece(text, start, 2)).unwrap();
    let cut = text.find(&stop).unwrap();
    let end = text[..cut].chars().count() + 2;
    // The tokens that begin before the stop string's end, and no other.
    let needed = offsets.iter().filter(|o| o.as_u64().unwrap() < end as u64).count();
    let stopped = server.complete(&with(ask, &json!({"stop": stop}))).await;
    assert_eq!(stopped["choices"][0]["text"], text[..cut]);
    let used = stopped["usage"]["completion_tokens"].as_u64().unwrap();
    assert!(used <= needed as u64 + 3, "{used} tokens, {needed} begin before the end");
    assert_eq!(stopped["choices"][0]["logprobs"]["tokens"].as_array().unwrap().len() as u64, used);
}

#[tokio::test]
async fn sixteen_at_once_say_what_each_says_alone() {
    let server = Arc::new(Server::new().await);
    let ask = |i: usize| {
        json!({
            "messages": user(&format!("Question {i}: {}", "why ".repeat(i * 7))), "seed": i, "max_tokens": 60,
            "temperature": i % 2, "stream": true,
        })
    };
    let mut alone = Vec::new();
    for i in 0..16 {
        alone.push(streamed(&chunks(&server.stream("/v1/chat/completions", &ask(i)).await)));
    }
    let together = (0..16).map(|i| {
        let server = server.clone();
        tokio::spawn(async move { server.stream("/v1/chat/completions", &ask(i)).await })
    });
    let together: Vec<_> = together.collect();
    for (i, stream) in together.into_iter().enumerate() {
        assert_eq!(streamed(&chunks(&stream.await.unwrap())), alone[i], "stream {i}");
    }
    server.settle().await;
}
