//! `POST /v1/messages/count_tokens`, in Anthropic's words: the prompt that `/v1/messages` would compute.

use axum::extract::{Request, State as Shared};
use axum::{Extension, Json};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::messages::{
    CacheControl, ContextManagement, MessagesTool, OutputConfig, System, Thinking, ToolChoice, Turn, example,
};
use super::text;
use crate::admit;
use crate::error::ApiError;
use crate::openapi::CountRefusals;
use crate::settings::Caller;
use crate::state::State;

/// The endpoint.
pub fn route() -> OpenApiRouter<State> {
    OpenApiRouter::new().routes(routes!(count_tokens))
}

/// What makes up a prompt.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CountTokensRequest {
    /// A name of the model; if absent, the one there is.
    #[schema(example = json!(null))]
    pub model: Option<String>,
    /// Turns of user and assistant; the last is the user's.
    #[schema(min_items = 1, example = example)]
    pub messages: Vec<Turn>,
    /// What the operator says.
    pub system: Option<System>,
    /// Functions that the model may call.
    #[schema(max_items = 1024)]
    pub tools: Option<Vec<MessagesTool>>,
    /// Whether and what to call.
    pub tool_choice: Option<ToolChoice>,
    /// Whether and how long to reason.
    pub thinking: Option<Thinking>,
    /// How much to do; what the answer must be is no part of the prompt.
    pub output_config: Option<OutputConfig>,
    /// Edits of the conversation: none is made.
    pub context_management: Option<ContextManagement>,
    /// Changes nothing.
    pub cache_control: Option<CacheControl>,
}

/// How long a prompt is.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct TokenCount {
    input_tokens: usize,
}

/// Count the tokens of a conversation, in Anthropic's words
#[utoipa::path(
    post,
    path = "/v1/messages/count_tokens",
    tag = "text",
    security((), ("key" = []), ("x-api-key" = [])),
    request_body = CountTokensRequest,
    responses((status = 200, description = "Their number", body = TokenCount), CountRefusals)
)]
async fn count_tokens(
    Shared(state): Shared<State>,
    caller: Option<Extension<Caller>>,
    request: Request,
) -> Result<Json<TokenCount>, ApiError> {
    let input_tokens = text(&state, caller, request, admit::messages::count).await?;
    Ok(Json(TokenCount { input_tokens }))
}
