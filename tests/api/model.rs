//! The same API over a model that computes.

use std::sync::Arc;

use frugal_models::model_runner::BackendKind;
use serde_json::{Value, json};

use crate::harness::{Server, Setup, chunks, fixture, user};

/// Natural logarithms: rounding of F32 sums, far below what a wrong operation makes.
const TOLERANCE: f64 = 0.002;

async fn server(backend: BackendKind) -> Server {
    Setup { backend: Some(backend), ..Setup::default() }.start().await
}

#[tokio::test]
async fn distributions_over_http_are_llama_cpps() {
    let golden = std::fs::read(fixture("golden/qwen3moe-F32.json")).unwrap();
    let golden: Value = serde_json::from_slice(&golden).unwrap();
    for backend in [BackendKind::Cpu, BackendKind::Reference] {
        let server = server(backend).await;
        for prompt in &golden["prompts"].as_array().unwrap()[..4] {
            let ask = json!({
                "prompt": prompt["ids"], "max_tokens": 1, "temperature": 0, "logprobs": 64,
                "return_tokens_as_token_ids": true, "ignore_eos": true,
            });
            let answer = server.complete(&ask).await;
            let top = answer["choices"][0]["logprobs"]["top_logprobs"][0].as_object().unwrap();
            assert_eq!(top.len(), 64);
            for (name, logprob) in top {
                let id: usize = name.strip_prefix("token_id:").unwrap().parse().unwrap();
                let expected = prompt["exact"]["logprobs"][id].as_f64().unwrap();
                let difference = (logprob.as_f64().unwrap() - expected).abs();
                assert!(difference <= TOLERANCE, "{backend:?}: {name} is {logprob}, {expected} expected");
            }
        }
        server.settle().await;
    }
}

/// Sixteen chats at once, greedy and seeded, each compared with itself alone.
async fn sixteen_streams(server: Server) {
    let server = Arc::new(server);
    let ask = |i: usize| {
        json!({
            "messages": user(&format!("Question {i}: {}", "why ".repeat(i * 5))), "seed": i, "max_tokens": 24,
            "temperature": i % 2, "stream": true, "repetition_penalty": 1 + i % 2,
        })
    };
    let text = |events: &[String]| -> String {
        let chunks = chunks(events);
        let finish = chunks.iter().find_map(|c| c["choices"][0]["finish_reason"].as_str());
        assert!(matches!(finish, Some("stop" | "length")), "{finish:?}");
        let delta =
            |chunk: &Value| chunk["choices"][0]["delta"]["content"].as_str().unwrap_or_default().to_owned();
        chunks.iter().map(delta).collect()
    };
    let together: Vec<_> = (0..16)
        .map(|i| {
            let server = server.clone();
            tokio::spawn(async move { server.stream("/v1/chat/completions", &ask(i)).await })
        })
        .collect();
    for (i, stream) in together.into_iter().enumerate() {
        let stream = text(&stream.await.unwrap());
        assert_eq!(stream, text(&server.stream("/v1/chat/completions", &ask(i)).await), "stream {i}");
        assert!(!stream.is_empty());
    }
    server.settle().await;
}

#[tokio::test]
async fn sixteen_streams_of_a_model_equal_each_alone() {
    sixteen_streams(server(BackendKind::Cpu).await).await;
}

#[tokio::test]
async fn sixteen_streams_of_the_default_model_equal_each_alone() {
    let Some(model) = frugal_tests::model(frugal_models::source::default_model).unwrap() else { return };
    let backend = Some(BackendKind::Cpu);
    sixteen_streams(Setup { backend, model: Some(model), ..Setup::default() }.start().await).await;
}
