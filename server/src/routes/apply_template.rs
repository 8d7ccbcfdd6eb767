//! `POST /apply-template`: what the model's template makes of a conversation, in llama.cpp's shape.
//!
//! In the text, control tokens that the template wrote can no longer be told from what users wrote: to compute a
//! conversation, send it to `/v1/chat/completions`.

use axum::extract::{Request, State as Shared};
use axum::{Extension, Json};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::chat::{RequestMessage, Tool};
use super::text;
use crate::admit::{self, Context, fields};
use crate::error::ApiError;
use crate::openapi::BodyRefusals;
use crate::settings::Caller;
use crate::state::State;

/// The endpoint.
pub fn route() -> OpenApiRouter<State> {
    OpenApiRouter::new().routes(routes!(apply_template))
}

/// A conversation.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TemplateRequest {
    /// A name of the model; if absent, the one there is.
    #[schema(example = json!(null))]
    pub model: Option<String>,
    /// The conversation.
    #[schema(min_items = 1, example = json!([
        {"role": "user", "content": [{"type": "text", "text": "Hello!"}]},
        {"role": "assistant", "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
        ]},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"}
    ]))]
    pub messages: Vec<RequestMessage>,
    /// End with what makes the model answer. Absent: true.
    #[schema(example = true)]
    pub add_generation_prompt: Option<bool>,
    /// Functions that the model is told of.
    #[schema(max_items = 128)]
    pub tools: Option<Vec<Tool>>,
    /// Variables of the model's chat template, such as `enable_thinking`.
    #[schema(value_type = Option<Object>)]
    pub chat_template_kwargs: Option<serde_json::Value>,
}

/// The prompt as text.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Templated {
    prompt: String,
}

/// Show the prompt that a conversation becomes
#[utoipa::path(
    post,
    path = "/apply-template",
    tag = "text",
    security((), ("key" = [])),
    request_body = TemplateRequest,
    responses((status = 200, description = "The prompt", body = Templated), BodyRefusals)
)]
async fn apply_template(
    Shared(state): Shared<State>,
    caller: Option<Extension<Caller>>,
    request: Request,
) -> Result<Json<Templated>, ApiError> {
    text(&state, caller, request, templated).await.map(Json)
}

/// Reads, checks and renders.
pub(crate) fn templated(state: &State, body: &[u8]) -> Result<Templated, ApiError> {
    let cx = Context::new(state, Caller::default())?;
    let mut fields = fields::parse(body)?;
    admit::model(&mut fields, cx.settings)?;
    let generation = fields.flag_or("add_generation_prompt", true)?;
    Ok(Templated { prompt: admit::chat::render(fields, generation, &cx)?.text() })
}
