//! `POST /v1/completions`.

use std::sync::Arc;

use axum::Extension;
use axum::extract::{Request, State as Shared};
use axum::response::Response;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::admitted;
use crate::access::Line;
use crate::admit;
use crate::answer::{Body, Shape, Whole, respond};
use crate::error::ApiError;
use crate::form::Part;
use crate::logprobs::{CompletionLogprobs, Names, PromptLogprobs, PromptToken};
use crate::openapi::{ModelRefusals, generation_request};
use crate::settings::Caller;
use crate::state::State;
use crate::stream::{Ending, Scored, StopReason};

/// The endpoint.
pub fn route() -> OpenApiRouter<State> {
    OpenApiRouter::new().routes(routes!(completions))
}

generation_request! {
    /// Prompts to continue.
    pub struct CompletionRequest {
        /// Taken as it is, texts of control tokens included; at most `server.max_prompts` prompts.
        pub prompt: RequestPrompt,
        /// Most tokens of a choice; 0 only with `echo`, to score a prompt.
        #[schema(example = 8)]
        pub max_tokens: Option<u32>,
        /// Begin every choice with its prompt.
        #[schema(example = true)]
        pub echo: Option<bool>,
        /// Log-probabilities with so many alternatives, at most `server.max_logprobs`.
        #[schema(example = 2)]
        pub logprobs: Option<u32>,
    }
}

/// One prompt or several, as text or as token ids.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
#[schema(example = "Once upon a time")]
pub enum RequestPrompt {
    /// A text.
    Text(String),
    /// Texts.
    Texts(Vec<String>),
    /// Token ids.
    Ids(Vec<u32>),
    /// Token ids of several prompts.
    IdLists(Vec<Vec<u32>>),
}

/// Continue prompts
#[utoipa::path(
    post,
    path = "/v1/completions",
    tag = "inference",
    security((), ("key" = [])),
    request_body = CompletionRequest,
    responses(
        (status = 200, description = "The answer, or chunks of it", content(
            (Body<'static, CompletionChoice> = "application/json"),
            (Body<'static, CompletionChoice> = "text/event-stream")
        )),
        ModelRefusals
    )
)]
async fn completions(
    Shared(state): Shared<State>,
    Extension(line): Extension<Arc<Line>>,
    caller: Option<Extension<Caller>>,
    request: Request,
) -> Result<Response, ApiError> {
    let admitted = admitted(&state, caller, request, admit::completions::admit).await?;
    respond(&state, admitted, line, Completion).await
}

/// Names of tokens, if log-probabilities were asked for.
struct Completion(Option<Names>);

/// The same in whole answers and in chunks.
#[derive(Serialize, ToSchema)]
struct CompletionChoice {
    index: usize,
    text: String,
    logprobs: Option<CompletionLogprobs>,
    /// `stop` or `length`.
    finish_reason: Option<&'static str>,
    /// The request's own stop string or token that ended it.
    stop_reason: Option<StopReason>,
    /// For each token of the prompt, by id.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<Option<HashMap<String, PromptToken>>>>)]
    prompt_logprobs: Option<Arc<PromptLogprobs>>,
}

impl CompletionChoice {
    /// A piece of a choice that goes on.
    fn piece(index: usize, text: String, logprobs: Option<CompletionLogprobs>) -> Self {
        Self { index, text, logprobs, finish_reason: None, stop_reason: None, prompt_logprobs: None }
    }

    fn ended(self, Ending { reason, stop }: Ending) -> Self {
        Self { finish_reason: Some(reason), stop_reason: stop, ..self }
    }
}

impl Shape for Completion {
    type Choice = CompletionChoice;
    type Delta = CompletionChoice;
    const ID_PREFIX: &'static str = "cmpl";
    const OBJECT: &'static str = "text_completion";
    const CHUNK_OBJECT: &'static str = "text_completion";
    const ONE_PROMPT: bool = false;

    fn choice(&self, index: usize, whole: Whole) -> CompletionChoice {
        let logprobs = self.0.as_ref().map(|names| CompletionLogprobs::new(names, &whole.tokens));
        CompletionChoice {
            prompt_logprobs: whole.prompt_logprobs,
            ..CompletionChoice::piece(index, whole.text, logprobs)
        }
        .ended(whole.ending)
    }

    fn opening(&self, _: usize) -> Option<CompletionChoice> {
        None
    }

    fn more(&self, index: usize, part: Option<Part>, tokens: &[Scored]) -> CompletionChoice {
        // Texts that are continued have no form: all of it is content.
        let text = if let Some(Part::Content(text)) = part { text } else { String::new() };
        let names = self.0.as_ref().filter(|_| !tokens.is_empty());
        let logprobs = names.map(|names| CompletionLogprobs::new(names, tokens));
        CompletionChoice::piece(index, text, logprobs)
    }

    fn finish(&self, index: usize, ending: Ending) -> CompletionChoice {
        CompletionChoice::piece(index, String::new(), None).ended(ending)
    }
}
