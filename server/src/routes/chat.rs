//! `POST /v1/chat/completions`.

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
use crate::logprobs::{ChatLogprobs, Names};
use crate::openapi::{ModelRefusals, generation_request};
use crate::settings::Caller;
use crate::state::State;
use crate::stream::{Ending, Scored, StopReason};

/// The endpoint.
pub fn route() -> OpenApiRouter<State> {
    OpenApiRouter::new().routes(routes!(chat))
}

generation_request! {
    /// A conversation to continue.
    pub struct ChatRequest {
        /// The conversation; the model's own template makes a prompt of it.
        #[schema(min_items = 1, example = json!([
            {"role": "user", "content": [{"type": "text", "text": "Hello!"}]},
            {"role": "assistant", "tool_calls": [
                {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
            ]},
            {"role": "tool", "tool_call_id": "call_1", "content": "sunny"}
        ]))]
        pub messages: Vec<RequestMessage>,
        /// Most tokens of an answer; absent: as many as the context has left.
        #[schema(minimum = 1, example = 8)]
        pub max_completion_tokens: Option<u32>,
        /// The older name of `max_completion_tokens`; both may be given if they are equal.
        #[schema(minimum = 1, example = 8)]
        pub max_tokens: Option<u32>,
        /// What an answer's text must be; not beside `structured_outputs`.
        pub response_format: Option<ResponseFormat>,
        /// What the answer may turn out to be: it comes sooner where that is right, and is the same in any case.
        pub prediction: Option<Prediction>,
        /// Functions that the model may call.
        #[schema(max_items = 128)]
        pub tools: Option<Vec<Tool>>,
        /// `none`, `auto` (the default), `required`, one function, or `allowed_tools`.
        pub tool_choice: Option<ChatToolChoice>,
        /// Whether there may be more than one call in an answer. Absent: true.
        #[schema(example = true)]
        pub parallel_tool_calls: Option<bool>,
        /// How hard to reason, where the model's template knows it: none, minimal, low, medium, high, xhigh or max.
        #[schema(example = "medium")]
        pub reasoning_effort: Option<String>,
        /// Variables of the model's chat template, such as `enable_thinking`.
        #[schema(value_type = Option<Object>)]
        pub chat_template_kwargs: Option<serde_json::Value>,
        /// Tokens after which reasoning is closed; only for models that reason.
        #[schema(example = json!(null))]
        pub thinking_budget: Option<u32>,
        /// Log-probabilities of the answer's tokens.
        #[schema(example = true)]
        pub logprobs: Option<bool>,
        /// With so many alternatives, at most `server.max_logprobs`; only with `logprobs`.
        #[schema(example = 2)]
        pub top_logprobs: Option<u32>,
    }
}

/// What an answer's text must be.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"type": "json_schema", "json_schema": {"name": "any", "schema": {"type": "object"}}}))]
pub struct ResponseFormat {
    /// Any text, any JSON object, or JSON that fits a schema.
    #[serde(rename = "type")]
    pub kind: FormatKind,
    /// Only with the last of them.
    pub json_schema: Option<JsonSchema>,
}

/// What an answer may turn out to be.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"type": "content", "content": [{"type": "text", "text": "Hello! How can I help you?"}]}))]
pub struct Prediction {
    /// Its only kind.
    #[serde(rename = "type")]
    pub kind: PredictionKind,
    /// The text.
    pub content: Content,
}

/// What of an answer is predicted.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PredictionKind {
    /// Its text.
    Content,
}

/// What kind of text.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FormatKind {
    /// Any.
    Text,
    /// A JSON object.
    JsonObject,
    /// JSON that fits a schema.
    JsonSchema,
}

/// A schema.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JsonSchema {
    /// Says nothing to the model.
    #[schema(min_length = 1, max_length = 64, pattern = "^[a-zA-Z0-9_-]+$", example = "answer")]
    pub name: String,
    /// Says nothing to the model.
    pub description: Option<String>,
    /// A schema is always enforced.
    pub strict: Option<bool>,
    /// What is enforced; a keyword that would not be is refused.
    #[schema(value_type = Object)]
    pub schema: serde_json::Value,
}

/// One message.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RequestMessage {
    /// Says nothing to the model.
    #[serde(rename = "type")]
    pub kind: Option<ChatMessageKind>,
    /// Whose it is.
    pub role: Role,
    /// What it says; only an assistant's message may lack it.
    pub content: Option<Content>,
    /// Templates may show it; most do not.
    #[schema(max_length = 64, example = "Ada")]
    pub name: Option<String>,
    /// Only of an assistant: what it called.
    pub tool_calls: Option<Vec<RequestCall>>,
    /// Only of an assistant: what it thought; for templates that show it.
    pub reasoning_content: Option<String>,
    /// Only of a tool: the call that this answers, one of an earlier message.
    pub tool_call_id: Option<String>,
    /// Only of an assistant: null, as answers have it.
    #[schema(value_type = Option<String>)]
    pub refusal: Option<()>,
}

/// What messages may call themselves.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ChatMessageKind {
    /// After what it holds.
    Text,
    /// After what it is.
    Message,
}

/// A call that was made.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RequestCall {
    /// Its id.
    pub id: String,
    /// The only kind there is.
    #[serde(rename = "type")]
    pub kind: ToolKind,
    /// As streams count it; says nothing to the model.
    pub index: Option<u32>,
    /// What was called.
    pub function: RequestFunction,
}

/// What was called, and with what.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RequestFunction {
    /// Its name.
    #[schema(min_length = 1, max_length = 64, pattern = "^[a-zA-Z0-9_.-]+$", example = "weather")]
    pub name: String,
    /// JSON, as text.
    #[schema(example = "{}")]
    pub arguments: String,
}

/// What tools may be.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ToolKind {
    /// Functions that the client runs.
    Function,
}

/// Which tools the model may or must call.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub enum ChatToolChoice {
    /// Of all.
    Mode(ChatToolMode),
    /// `{"type": "function", "function": {"name": ..}}`: this one. `{"type": "allowed_tools", "allowed_tools": {"mode": .., "tools": [..]}}`:
    /// of these.
    Some(std::collections::HashMap<String, serde_json::Value>),
}

/// Whether there are calls.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ChatToolMode {
    /// None; the model is not told of tools.
    None,
    /// As the model likes.
    Auto,
    /// At least one.
    Required,
}

/// A function that the model may call.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"type": "function", "function": {"name": "weather"}}))]
pub struct Tool {
    /// The only kind there is.
    #[serde(rename = "type")]
    pub kind: ToolKind,
    /// What it is.
    pub function: ToolFunction,
}

/// A function.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ToolFunction {
    /// Its name.
    #[schema(min_length = 1, max_length = 64, pattern = "^[a-zA-Z0-9_.-]+$", example = "weather")]
    pub name: String,
    /// For the model.
    pub description: Option<String>,
    /// JSON schema of its arguments.
    #[schema(value_type = Option<Object>)]
    pub parameters: Option<serde_json::Value>,
    /// Arguments always follow the schema.
    pub strict: Option<bool>,
}

/// Who speaks. `developer` is `system` under its newer name.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Who operates the model.
    System,
    /// The same.
    Developer,
    /// Who asks.
    User,
    /// Who answers.
    Assistant,
    /// What a function returned.
    Tool,
}

/// Text as a whole or in parts, which are joined by newlines.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
#[schema(example = json!([{"type": "text", "text": "Hello!"}]))]
pub enum Content {
    /// A whole.
    Text(String),
    /// Parts.
    Parts(Vec<TextPart>),
}

/// A part of a message's text.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TextPart {
    /// The only kind there is.
    #[serde(rename = "type")]
    pub kind: PartKind,
    /// The text.
    #[schema(example = "Hello!")]
    pub text: String,
    /// `{"type": "ephemeral"}`, perhaps with a `ttl` of `5m` or `1h`: changes nothing.
    #[schema(value_type = Option<Object>)]
    pub cache_control: Option<serde_json::Value>,
}

/// What parts may be.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum PartKind {
    /// Text.
    Text,
}

/// Continue a conversation
#[utoipa::path(
    post,
    path = "/v1/chat/completions",
    tag = "inference",
    security((), ("key" = [])),
    request_body = ChatRequest,
    responses(
        (status = 200, description = "The answer, or chunks of it", content(
            (Body<'static, ChatChoice> = "application/json"),
            (Body<'static, ChatChunkChoice> = "text/event-stream")
        )),
        ModelRefusals
    )
)]
async fn chat(
    Shared(state): Shared<State>,
    Extension(line): Extension<Arc<Line>>,
    caller: Option<Extension<Caller>>,
    request: Request,
) -> Result<Response, ApiError> {
    let admitted = admitted(&state, caller, request, admit::chat::admit).await?;
    respond(&state, admitted, line, Chat).await
}

/// Names of tokens, if log-probabilities were asked for.
struct Chat(Option<Names>);

/// A choice of an answer.
#[derive(Serialize, ToSchema)]
struct ChatChoice {
    index: usize,
    message: Message,
    logprobs: Option<ChatLogprobs>,
    /// `stop`, `length` or `tool_calls`.
    finish_reason: &'static str,
    /// The request's own stop string or token that ended it.
    stop_reason: Option<StopReason>,
}

/// What the model says.
#[derive(Serialize, ToSchema)]
struct Message {
    role: &'static str,
    /// Null if there is nothing but calls.
    content: Option<String>,
    #[schema(value_type = Option<String>)]
    refusal: Option<()>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tool_calls: Vec<ToolCall>,
}

/// A call of a function.
#[derive(Serialize, ToSchema)]
struct ToolCall {
    id: String,
    /// `function`.
    r#type: &'static str,
    function: Function,
}

/// Which function, and with what.
#[derive(Serialize, ToSchema)]
struct Function {
    name: String,
    /// As the model wrote them: JSON, if it wrote JSON.
    arguments: String,
}

/// A piece of a choice.
#[derive(Serialize, ToSchema)]
struct ChatChunkChoice {
    index: usize,
    delta: Delta,
    logprobs: Option<ChatLogprobs>,
    finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stop_reason: Option<StopReason>,
}

/// What a piece adds.
#[derive(Default, Serialize, ToSchema)]
struct Delta {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_content: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<CallDelta>>)]
    tool_calls: Option<[CallDelta; 1]>,
}

/// The first of a call has its id and name, the others have more of its arguments.
#[derive(Serialize, ToSchema)]
struct CallDelta {
    index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    r#type: Option<&'static str>,
    function: FunctionDelta,
}

/// More of a call.
#[derive(Serialize, ToSchema)]
struct FunctionDelta {
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    arguments: String,
}

impl Delta {
    fn of(part: Option<Part>) -> Self {
        match part {
            None => Self { content: Some(String::new()), ..Self::default() },
            Some(Part::Content(text)) => Self { content: Some(text), ..Self::default() },
            Some(Part::Reasoning(text)) => Self { reasoning_content: Some(text), ..Self::default() },
            Some(Part::Call { index, id, name }) => {
                let function = FunctionDelta { name: Some(name), arguments: String::new() };
                let call = CallDelta { index, id: Some(id), r#type: Some("function"), function };
                Self { tool_calls: Some([call]), ..Self::default() }
            }
            Some(Part::Arguments { index, text }) => {
                let function = FunctionDelta { name: None, arguments: text };
                let call = CallDelta { index, id: None, r#type: None, function };
                Self { tool_calls: Some([call]), ..Self::default() }
            }
        }
    }
}

impl Shape for Chat {
    type Choice = ChatChoice;
    type Delta = ChatChunkChoice;
    const ID_PREFIX: &'static str = "chatcmpl";
    const OBJECT: &'static str = "chat.completion";
    const CHUNK_OBJECT: &'static str = "chat.completion.chunk";
    const ONE_PROMPT: bool = true;

    fn choice(&self, index: usize, whole: Whole) -> ChatChoice {
        let logprobs = self.0.as_ref().map(|names| ChatLogprobs::new(names, &whole.tokens));
        let tool_calls = whole.calls.into_iter().map(|call| {
            let function = Function { name: call.name, arguments: call.arguments };
            ToolCall { id: call.id, r#type: "function", function }
        });
        let tool_calls: Vec<ToolCall> = tool_calls.collect();
        let message = Message {
            role: "assistant",
            content: Some(whole.text).filter(|text| tool_calls.is_empty() || !text.is_empty()),
            refusal: None,
            reasoning_content: Some(whole.reasoning).filter(|text| !text.is_empty()),
            tool_calls,
        };
        let Ending { reason, stop } = whole.ending;
        ChatChoice { index, message, logprobs, finish_reason: reason, stop_reason: stop }
    }

    fn opening(&self, index: usize) -> Option<ChatChunkChoice> {
        let delta = Delta { role: Some("assistant"), content: Some(String::new()), ..Delta::default() };
        Some(ChatChunkChoice { index, delta, logprobs: None, finish_reason: None, stop_reason: None })
    }

    fn more(&self, index: usize, part: Option<Part>, tokens: &[Scored]) -> ChatChunkChoice {
        let names = self.0.as_ref().filter(|_| !tokens.is_empty());
        let logprobs = names.map(|names| ChatLogprobs::new(names, tokens));
        let delta = Delta::of(part);
        ChatChunkChoice { index, delta, logprobs, finish_reason: None, stop_reason: None }
    }

    fn finish(&self, index: usize, Ending { reason, stop }: Ending) -> ChatChunkChoice {
        let (delta, finish_reason) = (Delta::default(), Some(reason));
        ChatChunkChoice { index, delta, logprobs: None, finish_reason, stop_reason: stop }
    }
}
