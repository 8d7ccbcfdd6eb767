//! `POST /detokenize`: the text of tokens, in vLLM's shape.

use axum::extract::{Request, State as Shared};
use axum::{Extension, Json};
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::text;
use crate::admit::{self, Context, fields, token_ids};
use crate::error::ApiError;
use crate::openapi::BodyRefusals;
use crate::settings::Caller;
use crate::state::State;

const FIELD: &str = "tokens";

/// The endpoint.
pub fn route() -> OpenApiRouter<State> {
    OpenApiRouter::new().routes(routes!(detokenize))
}

/// Tokens.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DetokenizeRequest {
    /// A name of the model; if absent, the one there is.
    #[schema(example = json!(null))]
    pub model: Option<String>,
    /// Token ids.
    #[schema(example = json!([1, 2]))]
    pub tokens: Vec<u32>,
}

/// Their text, control tokens as they are written, with U+FFFD for what is not UTF-8.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Detokenized {
    prompt: String,
}

/// Show the text of tokens
#[utoipa::path(
    post,
    path = "/detokenize",
    tag = "text",
    security((), ("key" = [])),
    request_body = DetokenizeRequest,
    responses((status = 200, description = "Their text", body = Detokenized), BodyRefusals)
)]
async fn detokenize(
    Shared(state): Shared<State>,
    caller: Option<Extension<Caller>>,
    request: Request,
) -> Result<Json<Detokenized>, ApiError> {
    text(&state, caller, request, detokenized).await.map(Json)
}

/// Reads, checks and decodes; a text is no longer than a prompt may be.
pub(crate) fn detokenized(state: &State, body: &[u8]) -> Result<Detokenized, ApiError> {
    let cx = Context::new(state, Caller::default())?;
    let mut fields = fields::parse(body)?;
    admit::model(&mut fields, cx.settings)?;
    let ids = match fields.take(FIELD) {
        Some(Value::Array(values)) => token_ids(FIELD, &values, cx.vocab())?,
        None => return Err(ApiError::invalid(FIELD, "Missing required parameter: 'tokens'")),
        Some(other) => return Err(fields.mistyped(FIELD, "an array of token ids", &other)),
    };
    fields.finish(cx.settings.unknown_fields)?;
    let mut text = Vec::new();
    for id in ids {
        text.extend(cx.engine.tokenizer.raw_bytes(id));
        cx.check_text(FIELD, text.len())?;
    }
    Ok(Detokenized { prompt: String::from_utf8_lossy(&text).into_owned() })
}
