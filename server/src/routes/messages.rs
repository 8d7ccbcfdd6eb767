//! `POST /v1/messages`, in Anthropic's words.

use std::sync::Arc;

use axum::Extension;
use axum::extract::{Request, State as Shared};
use axum::response::Response;
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::admitted;
use super::chat::PartKind;
use crate::access::Line;
use crate::admit;
use crate::anthropic::answer::{Message, Sent, respond};
use crate::error::ApiError;
use crate::openapi::{MessagesRefusals, sampled_request};
use crate::settings::Caller;
use crate::state::State;

/// The endpoint.
pub fn route() -> OpenApiRouter<State> {
    OpenApiRouter::new().routes(routes!(messages))
}

sampled_request! {
    /// A conversation to continue.
    pub struct MessagesRequest {
        /// Turns of user and assistant; the last is the user's.
        #[schema(min_items = 1, example = example)]
        pub messages: Vec<Turn>,
        /// Most tokens of the answer; what the context has left beside the prompt bounds it, too.
        #[schema(minimum = 1, example = 8)]
        pub max_tokens: u32,
        /// What the operator says.
        pub system: Option<System>,
        /// Functions that the model may call.
        #[schema(max_items = 1024)]
        pub tools: Option<Vec<MessagesTool>>,
        /// Whether and what to call.
        pub tool_choice: Option<ToolChoice>,
        /// Whether and how long to reason. Absent: not, where the model's template lets that be chosen.
        pub thinking: Option<Thinking>,
        /// How much to do, and what the answer must be.
        pub output_config: Option<OutputConfig>,
        /// Edits of the conversation: none is made.
        pub context_management: Option<ContextManagement>,
        /// Ends the answer when it appears in its text; at most `server.max_stop` strings of `server.max_stop_bytes`.
        #[schema(example = json!(["\n\n"]))]
        pub stop_sequences: Option<Vec<String>>,
        /// Answer as a stream of server-sent events.
        #[schema(example = false)]
        pub stream: Option<bool>,
        /// Changes nothing: every prefix is cached while there is room.
        pub cache_control: Option<CacheControl>,
        /// Changes nothing.
        pub metadata: Option<Metadata>,
        /// There is one tier.
        pub service_tier: Option<Tier>,
    }
}

/// A turn.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Turn {
    /// Whose it is.
    pub role: Speaker,
    /// What it holds.
    pub content: TurnContent,
}

/// Who speaks.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Speaker {
    /// Who asks.
    User,
    /// Who answers.
    Assistant,
}

/// Text, or blocks.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub enum TurnContent {
    /// Text.
    Text(String),
    /// Blocks.
    Blocks(Vec<RequestBlock>),
}

/// A part of a turn.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub enum RequestBlock {
    /// Text.
    Text(TextBlock),
    /// Of an assistant: what it called.
    ToolUse(ToolUseBlock),
    /// Of a user: what a function returned.
    ToolResult(ToolResultBlock),
    /// Of an assistant: what it thought.
    Thinking(ThinkingBlock),
}

/// Text.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TextBlock {
    /// What it is.
    #[serde(rename = "type")]
    pub kind: PartKind,
    /// The text.
    #[schema(example = "Hello!")]
    pub text: String,
    /// Changes nothing.
    pub cache_control: Option<CacheControl>,
}

/// A call that was made.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ToolUseBlock {
    /// What it is.
    #[serde(rename = "type")]
    pub kind: ToolUseKind,
    /// Its id.
    pub id: String,
    /// What was called.
    #[schema(min_length = 1, max_length = 128, pattern = "^[a-zA-Z0-9_.-]+$")]
    pub name: String,
    /// With what.
    #[schema(value_type = Object)]
    pub input: serde_json::Value,
    /// Changes nothing.
    pub cache_control: Option<CacheControl>,
}

/// Its word.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ToolUseKind {
    /// A call.
    ToolUse,
}

/// What a function returned.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ToolResultBlock {
    /// What it is.
    #[serde(rename = "type")]
    pub kind: ToolResultKind,
    /// The call, one of an earlier turn.
    pub tool_use_id: String,
    /// The result.
    pub content: Option<System>,
    /// The call failed.
    pub is_error: Option<bool>,
    /// Changes nothing.
    pub cache_control: Option<CacheControl>,
}

/// Its word.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ToolResultKind {
    /// A result.
    ToolResult,
}

/// What the model thought; for templates that show it.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ThinkingBlock {
    /// What it is.
    #[serde(rename = "type")]
    pub kind: ThinkingKind,
    /// The text.
    pub thinking: String,
    /// Not checked.
    pub signature: Option<String>,
}

/// Its word.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ThinkingKind {
    /// Reasoning.
    Thinking,
}

/// Text as a whole or in blocks, which are joined by newlines.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
#[schema(example = json!([{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral", "ttl": "5m"}}]))]
pub enum System {
    /// A whole.
    Text(String),
    /// Blocks.
    Blocks(Vec<TextBlock>),
}

/// For caches that must be told.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"type": "ephemeral", "ttl": "5m"}))]
pub struct CacheControl {
    /// The only kind there is.
    #[serde(rename = "type")]
    pub kind: Ephemeral,
    /// Changes nothing.
    pub ttl: Option<Ttl>,
}

/// Its word.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Ephemeral {
    /// For a while.
    Ephemeral,
}

/// For how long.
#[derive(Serialize, ToSchema)]
pub enum Ttl {
    /// Minutes.
    #[serde(rename = "5m")]
    Minutes,
    /// An hour.
    #[serde(rename = "1h")]
    Hour,
}

/// Bookkeeping.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Metadata {
    /// Who asks on behalf of whom.
    #[schema(example = "user-7")]
    pub user_id: Option<String>,
}

/// What can be had: there is one tier.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Tier {
    /// The one there is.
    Auto,
    /// The one there is.
    StandardOnly,
}

/// A function that the model may call.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"name": "weather", "input_schema": {"type": "object"}, "cache_control": {"type": "ephemeral"}}))]
pub struct MessagesTool {
    /// The only kind there is.
    #[serde(rename = "type")]
    pub kind: Option<Custom>,
    /// Its name.
    #[schema(min_length = 1, max_length = 128, pattern = "^[a-zA-Z0-9_.-]+$")]
    pub name: String,
    /// For the model.
    pub description: Option<String>,
    /// JSON schema of its input.
    #[schema(value_type = Object)]
    pub input_schema: serde_json::Value,
    /// Input always follows the schema.
    pub strict: Option<bool>,
    /// Added to the description.
    #[schema(value_type = Option<Vec<Object>>)]
    pub input_examples: Option<Vec<serde_json::Value>>,
    /// Changes nothing: input comes as the model writes it.
    pub eager_input_streaming: Option<bool>,
    /// Changes nothing.
    pub cache_control: Option<CacheControl>,
}

/// Its word.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Custom {
    /// Functions that the client runs.
    Custom,
}

/// Whether and what to call.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"type": "none"}))]
pub struct ToolChoice {
    /// Whether.
    #[serde(rename = "type")]
    pub kind: ToolChoiceKind,
    /// Only with `tool`: which.
    pub name: Option<String>,
    /// At most one call.
    pub disable_parallel_tool_use: Option<bool>,
}

/// Whether to call.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ToolChoiceKind {
    /// As the model likes.
    Auto,
    /// Any function, but one.
    Any,
    /// The function that is named.
    Tool,
    /// None.
    None,
}

/// Whether and how long to reason.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"type": "disabled"}))]
pub struct Thinking {
    /// Whether; only a model that marks its reasoning can be asked for it.
    #[serde(rename = "type")]
    pub kind: Thought,
    /// Only with `enabled`, which needs it: tokens after which reasoning is closed; less than `max_tokens`.
    #[schema(minimum = 1)]
    pub budget_tokens: Option<u32>,
    /// Whether the answer holds the reasoning.
    pub display: Option<Display>,
}

/// What the answer holds of the reasoning.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Display {
    /// All of it: nothing is summarized here.
    Summarized,
    /// An empty block.
    Omitted,
}

/// How much to do, and what the answer must be.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"effort": "low", "format": {"type": "json_schema", "schema": {"type": "boolean"}}}))]
pub struct OutputConfig {
    /// A wish; for templates that read one.
    pub effort: Option<MessagesEffort>,
    /// The answer's text is JSON of this schema.
    pub format: Option<OutputFormat>,
}

/// How much to do.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum MessagesEffort {
    /// Little.
    Low,
    /// As usual.
    Medium,
    /// Much.
    High,
    /// More.
    Xhigh,
    /// Whatever it takes.
    Max,
}

/// What the answer must be.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"type": "json_schema", "schema": {"type": "boolean"}}))]
pub struct OutputFormat {
    /// The only kind there is.
    #[serde(rename = "type")]
    pub kind: JsonSchemaKind,
    /// The schema.
    #[schema(value_type = Object)]
    pub schema: serde_json::Value,
}

/// Its word.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum JsonSchemaKind {
    /// JSON of a schema.
    JsonSchema,
}

/// Edits of the conversation by the server.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}))]
pub struct ContextManagement {
    /// None but such as change nothing.
    pub edits: Option<Vec<ContextEdit>>,
}

/// An edit.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ContextEdit {
    /// Which.
    #[serde(rename = "type")]
    #[schema(pattern = "^clear_thinking_", example = "clear_thinking_20251015")]
    pub kind: String,
    /// Of earlier thinking.
    pub keep: KeepAll,
}

/// What is kept.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum KeepAll {
    /// All.
    All,
}

/// Whether to reason.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Thought {
    /// For so many tokens.
    Enabled,
    /// As long as the model likes.
    Adaptive,
    /// No.
    Disabled,
}

/// Continue a conversation, in Anthropic's words
#[utoipa::path(
    post,
    path = "/v1/messages",
    tag = "inference",
    security((), ("key" = []), ("x-api-key" = [])),
    request_body = MessagesRequest,
    responses(
        (status = 200, description = "The answer, or events that tell it", content(
            (Message = "application/json"),
            (Sent = "text/event-stream")
        )),
        MessagesRefusals
    )
)]
async fn messages(
    Shared(state): Shared<State>,
    Extension(line): Extension<Arc<Line>>,
    caller: Option<Extension<Caller>>,
    request: Request,
) -> Result<Response, ApiError> {
    let admitted = admitted(&state, caller, request, admit::messages::admit).await?;
    respond(&state, admitted, line).await
}

/// A turn of each kind, with every kind of block.
pub(crate) fn example() -> serde_json::Value {
    let control = serde_json::json!({"type": "ephemeral", "ttl": "1h"});
    serde_json::json!([
        {"role": "user", "content": [{"type": "text", "text": "Is it warm?", "cache_control": control}]},
        {"role": "assistant", "content": [
            {"type": "thinking", "thinking": "I have to look.", "signature": ""},
            {"type": "tool_use", "id": "call_1", "name": "weather", "input": {}}
        ]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "call_1", "content": [
                {"type": "text", "text": "20 degrees", "cache_control": control}
            ]}
        ]}
    ])
}
