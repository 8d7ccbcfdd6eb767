//! `POST /v1/completions`.

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
use crate::logprobs::{CompletionLogprobs, Names};
use crate::settings::Caller;
use crate::state::State;
use crate::stream::Scored;

/// The endpoint.
pub fn route() -> Router<State> {
    Router::new().route("/v1/completions", post(completions))
}

async fn completions(
    Shared(state): Shared<State>,
    Extension(line): Extension<Arc<Line>>,
    caller: Option<Extension<Caller>>,
    request: Request,
) -> Result<Response, ApiError> {
    let caller = caller.map(|Extension(caller)| caller).unwrap_or_default();
    let body = read_body(request, &state.settings().limits).await?;
    let (shared, bytes) = (state.clone(), body.len());
    let admit = move || admit::completions::admit(&shared, caller, &body);
    let admitted = state.text().run(bytes, admit).await?;
    respond(&state, admitted, line, Completion).await
}

/// Names of tokens, if log-probabilities were asked for.
struct Completion(Option<Names>);

/// The same in whole answers and in chunks.
#[derive(Serialize)]
struct Choice {
    index: usize,
    text: String,
    logprobs: Option<CompletionLogprobs>,
    finish_reason: Option<&'static str>,
}

impl Shape for Completion {
    type Choice = Choice;
    type Delta = Choice;
    const ID_PREFIX: &'static str = "cmpl";
    const OBJECT: &'static str = "text_completion";
    const CHUNK_OBJECT: &'static str = "text_completion";

    fn choice(&self, index: usize, whole: Whole) -> Choice {
        let logprobs = self.0.as_ref().map(|names| CompletionLogprobs::new(names, &whole.tokens));
        Choice { index, text: whole.text, logprobs, finish_reason: Some(whole.reason) }
    }

    fn opening(&self, _: usize) -> Option<Choice> {
        None
    }

    fn more(&self, index: usize, text: String, tokens: &[Scored]) -> Choice {
        let names = self.0.as_ref().filter(|_| !tokens.is_empty());
        let logprobs = names.map(|names| CompletionLogprobs::new(names, tokens));
        Choice { index, text, logprobs, finish_reason: None }
    }

    fn finish(&self, index: usize, reason: &'static str) -> Choice {
        Choice { index, text: String::new(), logprobs: None, finish_reason: Some(reason) }
    }
}
