//! `POST /tokenize`: what a prompt or a conversation is to the model, in vLLM's shape.
//!
//! The tokens are those that `/v1/completions` and `/v1/chat/completions` would compute.

use axum::extract::{Request, State as Shared};
use axum::{Extension, Json};
use frugal_models::step::TokenId;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::chat::{RequestMessage, Tool};
use super::text;
use crate::admit::{self, Context, fields, unencodable};
use crate::error::ApiError;
use crate::openapi::BodyRefusals;
use crate::settings::Caller;
use crate::state::State;

/// The endpoint.
pub fn route() -> OpenApiRouter<State> {
    OpenApiRouter::new().routes(routes!(tokenize))
}

/// Either `prompt` or `messages`.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TokenizeRequest {
    /// A name of the model; if absent, the one there is.
    #[schema(example = json!(null))]
    pub model: Option<String>,
    /// Taken as it is, texts of control tokens included.
    #[schema(example = "Hello!")]
    pub prompt: Option<String>,
    /// A conversation; the model's own template makes a prompt of it.
    #[schema(min_items = 1, example = json!([
        {"role": "user", "content": [{"type": "text", "text": "Hello!"}]},
        {"role": "assistant", "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
        ]},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"}
    ]))]
    pub messages: Option<Vec<RequestMessage>>,
    /// With `prompt`: put the token that begins a text in front, if the model wants it. Absent: true.
    #[schema(example = true)]
    pub add_special_tokens: Option<bool>,
    /// With `messages`: end with what makes the model answer. Absent: true.
    #[schema(example = true)]
    pub add_generation_prompt: Option<bool>,
    /// With `messages`: functions that the model is told of.
    #[schema(max_items = 128)]
    pub tools: Option<Vec<Tool>>,
    /// With `messages`: variables of the model's chat template, such as `enable_thinking`.
    #[schema(value_type = Option<Object>)]
    pub chat_template_kwargs: Option<serde_json::Value>,
    /// Tell the tokens' texts, too.
    #[schema(example = true)]
    pub return_token_strs: Option<bool>,
}

/// A prompt's tokens.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Tokenized {
    count: usize,
    /// Tokens of prompt and output together.
    max_model_len: u32,
    tokens: Vec<u32>,
    /// If asked for; a token that is a part of a character has U+FFFD.
    token_strs: Option<Vec<String>>,
}

/// Show a prompt's or a conversation's tokens
#[utoipa::path(
    post,
    path = "/tokenize",
    tag = "text",
    security((), ("key" = [])),
    request_body = TokenizeRequest,
    responses((status = 200, description = "The tokens", body = Tokenized), BodyRefusals)
)]
async fn tokenize(
    Shared(state): Shared<State>,
    caller: Option<Extension<Caller>>,
    request: Request,
) -> Result<Json<Tokenized>, ApiError> {
    text(&state, caller, request, tokenized).await.map(Json)
}

/// Reads, checks and tokenizes.
pub(crate) fn tokenized(state: &State, body: &[u8]) -> Result<Tokenized, ApiError> {
    let cx = Context::new(state, Caller::default())?;
    let mut fields = fields::parse(body)?;
    admit::model(&mut fields, cx.settings)?;
    let with_texts = fields.flag("return_token_strs")?;
    let special = fields.flag_or("add_special_tokens", true)?;
    let generation = fields.flag_or("add_generation_prompt", true)?;
    let prompt = fields.string("prompt")?;
    if prompt.is_some() && fields.has("messages") {
        return Err(ApiError::invalid("messages", "'messages' and 'prompt' exclude each other"));
    }
    let tokenizer = &cx.engine.tokenizer;
    let ids = if let Some(text) = prompt {
        fields.finish(cx.settings.unknown_fields)?;
        cx.check_text("prompt", text.len())?;
        if special { tokenizer.encode_prompt(&text) } else { tokenizer.encode_special(&text) }
    } else {
        tokenizer.encode_rendered(&admit::chat::render(fields, generation, &cx)?)
    };
    let ids = ids.map_err(|e| unencodable(&e))?;
    let texts = |ids: &[TokenId]| ids.iter().map(|&id| tokenizer.token_text(id)).collect();
    Ok(Tokenized {
        count: ids.len(),
        max_model_len: cx.context_max(),
        token_strs: with_texts.then(|| texts(&ids)),
        tokens: ids.into_iter().map(|id| id.0).collect(),
    })
}
