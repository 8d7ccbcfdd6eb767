//! `POST /v1/chat/completions`.

use std::sync::Arc;

use axum::extract::{Request, State as Shared};
use axum::response::Response;
use axum::routing::post;
use axum::{Extension, Router};
use serde::Serialize;

use super::read_body;
use crate::access::Line;
use crate::admit;
use crate::answer::{Shape, Whole, respond};
use crate::error::ApiError;
use crate::logprobs::{ChatLogprobs, Names};
use crate::settings::Caller;
use crate::state::State;
use crate::stream::{Ending, Scored, StopReason};

/// The endpoint.
pub fn route() -> Router<State> {
    Router::new().route("/v1/chat/completions", post(chat))
}

async fn chat(
    Shared(state): Shared<State>,
    Extension(line): Extension<Arc<Line>>,
    caller: Option<Extension<Caller>>,
    request: Request,
) -> Result<Response, ApiError> {
    let caller = caller.map(|Extension(caller)| caller).unwrap_or_default();
    let body = read_body(request, &state.settings().limits).await?;
    let (shared, bytes) = (state.clone(), body.len());
    let admit = move || admit::chat::admit(&shared, caller, &body);
    let admitted = state.text().run(bytes, admit).await?;
    let admitted = admit::constraint::compiled(&state, admitted).await?;
    respond(&state, admitted, line, Chat).await
}

/// Names of tokens, if log-probabilities were asked for.
struct Chat(Option<Names>);

#[derive(Serialize)]
struct Choice {
    index: usize,
    message: Message,
    logprobs: Option<ChatLogprobs>,
    finish_reason: &'static str,
    stop_reason: Option<StopReason>,
}

#[derive(Serialize)]
struct Message {
    role: &'static str,
    content: String,
    refusal: Option<()>,
}

#[derive(Serialize)]
struct ChunkChoice {
    index: usize,
    delta: Delta,
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stop_reason: Option<StopReason>,
}

#[derive(Default, Serialize)]
struct Delta {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<String>,
}

impl Shape for Chat {
    type Choice = Choice;
    type Delta = ChunkChoice;
    const ID_PREFIX: &'static str = "chatcmpl";
    const OBJECT: &'static str = "chat.completion";
    const CHUNK_OBJECT: &'static str = "chat.completion.chunk";
    const ONE_PROMPT: bool = true;

    fn choice(&self, index: usize, whole: Whole) -> Choice {
        let logprobs = self.0.as_ref().map(|names| ChatLogprobs::new(names, &whole.tokens));
        let message = Message { role: "assistant", content: whole.text, refusal: None };
        let Ending { reason, stop } = whole.ending;
        Choice { index, message, logprobs, finish_reason: reason, stop_reason: stop }
    }

    fn opening(&self, index: usize) -> Option<ChunkChoice> {
        let delta = Delta { role: Some("assistant"), content: Some(String::new()) };
        Some(ChunkChoice { index, delta, logprobs: None, finish_reason: None, stop_reason: None })
    }

    fn more(&self, index: usize, text: String, tokens: &[Scored]) -> ChunkChoice {
        let names = self.0.as_ref().filter(|_| !tokens.is_empty());
        let logprobs = names.map(|names| ChatLogprobs::new(names, tokens));
        let delta = Delta { role: None, content: Some(text) };
        ChunkChoice { index, delta, logprobs, finish_reason: None, stop_reason: None }
    }

    fn finish(&self, index: usize, Ending { reason, stop }: Ending) -> ChunkChoice {
        let (delta, finish_reason) = (Delta::default(), Some(reason));
        ChunkChoice { index, delta, logprobs: None, finish_reason, stop_reason: stop }
    }
}
