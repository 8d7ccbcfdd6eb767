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
use crate::logprobs::{CompletionLogprobs, Names, PromptLogprobs};
use crate::settings::Caller;
use crate::state::State;
use crate::stream::{Ending, Scored, StopReason};

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
    let admitted = admit::constraint::compiled(&state, admitted).await?;
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
    stop_reason: Option<StopReason>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_logprobs: Option<Arc<PromptLogprobs>>,
}

impl Choice {
    /// A piece of a choice that goes on.
    fn piece(index: usize, text: String, logprobs: Option<CompletionLogprobs>) -> Self {
        Self { index, text, logprobs, finish_reason: None, stop_reason: None, prompt_logprobs: None }
    }

    fn ended(self, Ending { reason, stop }: Ending) -> Self {
        Self { finish_reason: Some(reason), stop_reason: stop, ..self }
    }
}

impl Shape for Completion {
    type Choice = Choice;
    type Delta = Choice;
    const ID_PREFIX: &'static str = "cmpl";
    const OBJECT: &'static str = "text_completion";
    const CHUNK_OBJECT: &'static str = "text_completion";
    const ONE_PROMPT: bool = false;

    fn choice(&self, index: usize, whole: Whole) -> Choice {
        let logprobs = self.0.as_ref().map(|names| CompletionLogprobs::new(names, &whole.tokens));
        Choice { prompt_logprobs: whole.prompt_logprobs, ..Choice::piece(index, whole.text, logprobs) }
            .ended(whole.ending)
    }

    fn opening(&self, _: usize) -> Option<Choice> {
        None
    }

    fn more(&self, index: usize, text: String, tokens: &[Scored]) -> Choice {
        let names = self.0.as_ref().filter(|_| !tokens.is_empty());
        let logprobs = names.map(|names| CompletionLogprobs::new(names, tokens));
        Choice::piece(index, text, logprobs)
    }

    fn finish(&self, index: usize, ending: Ending) -> Choice {
        Choice::piece(index, String::new(), None).ended(ending)
    }
}
