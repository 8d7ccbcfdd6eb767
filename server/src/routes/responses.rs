//! `POST /v1/responses`.

use std::collections::HashMap;
use std::sync::Arc;

use axum::Extension;
use axum::extract::{Request, State as Shared};
use axum::response::Response as HttpResponse;
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::chat::{ChatToolChoice, FormatKind, ToolKind};
use super::read_weighed;
use crate::access::Line;
use crate::admit;
use crate::error::ApiError;
use crate::openapi::{CacheRetention, ModelRefusals, ServiceTier, sampled_request};
use crate::responses::answer::respond;
use crate::responses::body::Response;
use crate::responses::events::Sent;
use crate::responses::items::{ItemRole, ItemStatus};
use crate::settings::Caller;
use crate::state::State;

/// The endpoint.
pub fn route() -> OpenApiRouter<State> {
    OpenApiRouter::new().routes(routes!(responses))
}

sampled_request! {
    /// A conversation to continue.
    pub struct ResponsesRequest {
        /// What is new in the conversation.
        pub input: ResponsesInput,
        /// What the operator says; not a part of the conversation that is kept.
        #[schema(example = "Be brief.")]
        pub instructions: Option<String>,
        /// A response that was kept: the conversation goes on from there.
        #[schema(example = json!(null))]
        pub previous_response_id: Option<String>,
        /// Most tokens of the answer, reasoning included; absent: as many as the context has left.
        #[schema(minimum = 1, example = 8)]
        pub max_output_tokens: Option<u32>,
        /// What the answer's text must be.
        pub text: Option<ResponsesText>,
        /// Functions that the model may call.
        #[schema(max_items = 128)]
        pub tools: Option<Vec<ResponsesTool>>,
        /// `none`, `auto` (the default), `required`, one function, or `allowed_tools`.
        #[schema(value_type = Option<ChatToolChoice>)]
        pub tool_choice: Option<Value>,
        /// Whether there may be more than one call in an answer. Absent: true.
        #[schema(example = true)]
        pub parallel_tool_calls: Option<bool>,
        /// How to reason.
        pub reasoning: Option<ResponsesReasoning>,
        /// Variables of the model's chat template, such as `enable_thinking`.
        #[schema(value_type = Option<Object>)]
        pub chat_template_kwargs: Option<Value>,
        /// Tokens after which reasoning is closed; only for models that reason.
        #[schema(example = json!(null))]
        pub thinking_budget: Option<u32>,
        /// Answer as a stream of server-sent events.
        #[schema(example = false)]
        pub stream: Option<bool>,
        /// Only with `stream`.
        #[schema(example = json!(null))]
        pub stream_options: Option<ResponsesStreamOptions>,
        /// Answer at once, with a response that is queued; it is to be retrieved or cancelled. Needs `store`; not with `stream`.
        #[schema(example = false)]
        pub background: Option<bool>,
        /// Keep the response, within the bounds of `responses.*`. Absent: true, if the server keeps any.
        #[schema(example = false)]
        pub store: Option<bool>,
        /// `message.output_text.logprobs`, or `reasoning.encrypted_content`, which adds nothing: reasoning is shown as it is.
        pub include: Option<Vec<Includable>>,
        /// Log-probabilities with so many alternatives, at most `server.max_logprobs`; only with `message.output_text.logprobs`.
        #[schema(example = 2)]
        pub top_logprobs: Option<u32>,
        /// A prompt that does not fit is refused.
        pub truncation: Option<Truncation>,
        /// Repeated in the response. For balancers in front of replicas; the cache finds common prefixes by itself.
        #[schema(example = "thread-7")]
        pub prompt_cache_key: Option<String>,
        /// A prefix stays as long as there is room for it.
        pub prompt_cache_retention: Option<CacheRetention>,
        /// At most 16 strings of 512 characters under keys of 64; repeated in the response.
        #[schema(example = json!({"key": "value"}))]
        pub metadata: Option<HashMap<String, String>>,
        /// Repeated in the response.
        #[schema(example = "user-7")]
        pub user: Option<String>,
        /// Repeated in the response.
        #[schema(example = "user-7")]
        pub safety_identifier: Option<String>,
        /// There is one tier.
        pub service_tier: Option<ServiceTier>,
    }
}

/// Text of a user, or items.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
#[schema(example = example)]
pub enum ResponsesInput {
    /// Text.
    Text(String),
    /// Items; at least one.
    Items(Vec<InputItem>),
}

/// An item.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub enum InputItem {
    /// What someone said.
    Message(InputMessage),
    /// What the model thought.
    Reasoning(InputReasoning),
    /// What it called.
    Call(InputCall),
    /// What that returned.
    Output(InputCallOutput),
    /// One of those, by its id.
    Reference(InputReference),
}

/// What someone said.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct InputMessage {
    /// What it is.
    #[serde(rename = "type")]
    pub kind: Option<MessageKind>,
    /// Whose it is.
    pub role: ItemRole,
    /// What it says.
    pub content: InputContent,
    /// Only says what it was called.
    pub id: Option<String>,
    /// Says nothing to the model.
    pub status: Option<ItemStatus>,
    /// Of an assistant: what templates know.
    pub phase: Option<Phase>,
}

/// Its word.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum MessageKind {
    /// A message.
    Message,
}

/// Its word.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// An answer.
    FinalAnswer,
}

/// Text as a whole or in parts, which are joined by newlines.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub enum InputContent {
    /// A whole.
    Text(String),
    /// Parts: `input_text`, or `output_text` of an assistant.
    Parts(Vec<InputPart>),
}

/// A part of a text.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct InputPart {
    /// Whose text it is.
    #[serde(rename = "type")]
    pub kind: InputPartKind,
    /// The text.
    pub text: String,
    /// Of `output_text`: says nothing to the model.
    #[schema(value_type = Option<Vec<Object>>)]
    pub annotations: Option<Vec<Value>>,
    /// Of `output_text`: says nothing to the model.
    #[schema(value_type = Option<Vec<Object>>)]
    pub logprobs: Option<Vec<Value>>,
}

/// What parts may be.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum InputPartKind {
    /// Said to the model.
    InputText,
    /// Said by the model.
    OutputText,
}

/// A part of nothing but text.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PlainPart {
    /// Whose text it is.
    #[serde(rename = "type")]
    pub kind: PlainPartKind,
    /// The text.
    pub text: String,
}

/// What these may be.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PlainPartKind {
    /// Returned by a call.
    InputText,
    /// Thought.
    ReasoningText,
    /// Told of a thought.
    SummaryText,
}

/// Text as a whole or in parts, which are joined by newlines.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub enum CallOutput {
    /// A whole.
    Text(String),
    /// Parts: `input_text`.
    Parts(Vec<PlainPart>),
}

/// What the model thought; for templates that show it.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct InputReasoning {
    /// What it is.
    #[serde(rename = "type")]
    pub kind: ReasoningKind,
    /// Only says what it was called.
    pub id: Option<String>,
    /// `reasoning_text`.
    pub content: Option<Vec<PlainPart>>,
    /// `summary_text`; stands for `content` if that is not there.
    pub summary: Option<Vec<PlainPart>>,
    /// Null: other servers' cannot be read.
    #[schema(value_type = Option<String>)]
    pub encrypted_content: Option<()>,
    /// Says nothing to the model.
    pub status: Option<ItemStatus>,
}

/// Its word.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReasoningKind {
    /// Reasoning.
    Reasoning,
}

/// A call that was made.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct InputCall {
    /// What it is.
    #[serde(rename = "type")]
    pub kind: CallKind,
    /// Only says what the item was called.
    pub id: Option<String>,
    /// What its output refers to.
    pub call_id: String,
    /// What was called.
    #[schema(min_length = 1, max_length = 64, pattern = "^[a-zA-Z0-9_.-]+$")]
    pub name: String,
    /// JSON, as text.
    pub arguments: String,
    /// Says nothing to the model.
    pub status: Option<ItemStatus>,
}

/// Its word.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CallKind {
    /// A call.
    FunctionCall,
}

/// What a call returned.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct InputCallOutput {
    /// What it is.
    #[serde(rename = "type")]
    pub kind: CallOutputKind,
    /// Only says what the item was called.
    pub id: Option<String>,
    /// The call, one of an earlier item.
    pub call_id: String,
    /// The result.
    pub output: CallOutput,
    /// Says nothing to the model.
    pub status: Option<ItemStatus>,
}

/// Its word.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CallOutputKind {
    /// A result.
    FunctionCallOutput,
}

/// An item of a response that is kept: it stands there as if it had been sent again.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct InputReference {
    /// What it is.
    #[serde(rename = "type")]
    pub kind: Option<InputReferenceKind>,
    /// The item's.
    pub id: String,
}

/// Its word.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum InputReferenceKind {
    /// A reference.
    ItemReference,
}

/// What the answer's text must be.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ResponsesText {
    /// Any text, any JSON object, or JSON that fits a schema.
    pub format: Option<ResponsesFormat>,
    /// As the model is.
    pub verbosity: Option<Verbosity>,
}

/// What the answer's text must be.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"type": "json_schema", "name": "any", "schema": {"type": "object"}}))]
pub struct ResponsesFormat {
    /// Which of them.
    #[serde(rename = "type")]
    pub kind: FormatKind,
    /// Of a schema: says nothing to the model.
    #[schema(min_length = 1, max_length = 64, pattern = "^[a-zA-Z0-9_-]+$")]
    pub name: Option<String>,
    /// Of a schema: says nothing to the model.
    pub description: Option<String>,
    /// A schema is always enforced.
    pub strict: Option<bool>,
    /// What is enforced; a keyword that would not be is refused.
    #[schema(value_type = Option<Object>)]
    pub schema: Option<Value>,
}

/// Its word.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Verbosity {
    /// As the model is.
    Medium,
}

/// A function that the model may call.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"type": "function", "name": "weather"}))]
pub struct ResponsesTool {
    /// The only kind there is.
    #[serde(rename = "type")]
    pub kind: ToolKind,
    /// Its name.
    #[schema(min_length = 1, max_length = 64, pattern = "^[a-zA-Z0-9_.-]+$")]
    pub name: String,
    /// For the model.
    pub description: Option<String>,
    /// JSON schema of its arguments.
    #[schema(value_type = Option<Object>)]
    pub parameters: Option<Value>,
    /// Arguments always follow the schema. Absent: if it can be enforced.
    pub strict: Option<bool>,
}

/// How to reason.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ResponsesReasoning {
    /// How hard, where the model's template knows it: none, minimal, low, medium, high, xhigh or max.
    #[schema(example = "medium")]
    pub effort: Option<String>,
    /// Reasoning items then have a summary, which is the reasoning as it is, whichever is asked for.
    pub summary: Option<SummaryKind>,
}

/// Its word.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum SummaryKind {
    /// What there is.
    Auto,
    /// The same.
    Concise,
    /// The same.
    Detailed,
}

/// How a stream is told.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ResponsesStreamOptions {
    /// Only false: events are as long as what they tell.
    #[schema(example = false)]
    pub include_obfuscation: Option<bool>,
}

/// What may be added to a response.
#[derive(Serialize, ToSchema)]
pub enum Includable {
    /// Log-probabilities of its texts' tokens.
    #[serde(rename = "message.output_text.logprobs")]
    Logprobs,
    /// Adds nothing: reasoning is shown as it is.
    #[serde(rename = "reasoning.encrypted_content")]
    EncryptedReasoning,
}

/// Its word.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Truncation {
    /// Refuse what does not fit.
    Disabled,
}

/// Continue a conversation, in items, and keep it
#[utoipa::path(
    post,
    path = "/v1/responses",
    tag = "inference",
    security((), ("key" = [])),
    request_body = ResponsesRequest,
    responses(
        (status = 200, description = "The response, or events that tell it", content(
            (Response = "application/json"),
            (Sent = "text/event-stream")
        )),
        ModelRefusals
    )
)]
async fn responses(
    Shared(state): Shared<State>,
    Extension(line): Extension<Arc<Line>>,
    caller: Option<Extension<Caller>>,
    request: Request,
) -> Result<HttpResponse, ApiError> {
    let (mut request, place) =
        read_weighed(&state, caller, request, admit::responses::weight, admit::responses::admit).await?;
    request.admitted.place = Some(place);
    respond(&state, request, line).await
}

/// An item of each kind, with every kind of part.
pub(crate) fn example() -> Value {
    serde_json::json!([
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Is it warm?"}]},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Looking."}],
            "content": [{"type": "reasoning_text", "text": "I have to look."}]},
        {"type": "message", "role": "assistant", "content": [
            {"type": "output_text", "text": "I look.", "annotations": [], "logprobs": []}
        ]},
        {"type": "function_call", "call_id": "call_1", "name": "weather", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "call_1", "output": [
            {"type": "input_text", "text": "20 degrees"}
        ]}
    ])
}
