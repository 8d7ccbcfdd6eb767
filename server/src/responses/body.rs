//! A response: what was asked, what became of it, and what it took.

use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::items::Item;
use crate::error::ApiError;
use crate::routes::chat::{ChatToolChoice, ToolKind};
use crate::stream::Ending;
use crate::usage::{CostDetails, Totals};

/// A response.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct Response {
    pub(crate) id: String,
    /// `response`.
    object: &'static str,
    /// Seconds since 1970.
    created_at: u64,
    /// Likewise; null unless it is completed.
    pub(crate) completed_at: Option<u64>,
    pub(crate) status: Status,
    background: bool,
    /// Why it failed.
    error: Option<ResponseError>,
    /// Why it is incomplete.
    incomplete_details: Option<IncompleteDetails>,
    pub(crate) output: Vec<Item>,
    /// Null until it ends, and of one that did not end well.
    pub(crate) usage: Option<ResponseUsage>,
    #[serde(flatten)]
    asked: Asked,
}

/// How far a response is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = ResponseStatus)]
pub(crate) enum Status {
    /// In the background, before its first token.
    Queued,
    InProgress,
    Completed,
    /// It met a limit.
    Incomplete,
    Cancelled,
    Failed,
}

impl Status {
    /// Whether a conversation can go on from here.
    pub(crate) fn can_be_continued(self) -> bool {
        matches!(self, Self::Completed | Self::Incomplete)
    }
}

/// Why a response failed.
#[derive(Debug, Serialize, ToSchema)]
struct ResponseError {
    /// `server_error`, `rate_limit_exceeded` or `invalid_prompt`.
    code: &'static str,
    message: String,
}

/// Why a response is incomplete.
#[derive(Debug, Serialize, ToSchema)]
struct IncompleteDetails {
    /// `max_output_tokens`: that many were asked for, or the context is full.
    reason: &'static str,
}

/// What was asked, as far as responses repeat it.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ResponseAsked)]
pub(crate) struct Asked {
    pub(crate) model: String,
    pub(crate) instructions: Option<String>,
    pub(crate) max_output_tokens: Option<u32>,
    /// `null`: this server has no tools of its own to call.
    #[schema(value_type = Option<u32>)]
    pub(crate) max_tool_calls: Option<()>,
    #[schema(value_type = Object)]
    pub(crate) metadata: Map<String, Value>,
    pub(crate) parallel_tool_calls: bool,
    pub(crate) previous_response_id: Option<String>,
    pub(crate) prompt_cache_key: Option<String>,
    pub(crate) reasoning: AskedReasoning,
    pub(crate) safety_identifier: Option<String>,
    /// `default`.
    pub(crate) service_tier: &'static str,
    /// Whether it can be retrieved, for a while.
    pub(crate) store: bool,
    pub(crate) temperature: f32,
    pub(crate) text: AskedText,
    #[schema(value_type = ChatToolChoice)]
    pub(crate) tool_choice: Value,
    pub(crate) tools: Vec<AskedTool>,
    pub(crate) top_logprobs: u32,
    pub(crate) top_p: f32,
    /// `disabled`.
    pub(crate) truncation: &'static str,
    pub(crate) user: Option<String>,
}

/// Of reasoning.
#[derive(Debug, Default, Serialize, ToSchema)]
pub(crate) struct AskedReasoning {
    pub(crate) effort: Option<String>,
    /// If one was asked for: reasoning items then have one, which says what they say.
    pub(crate) summary: Option<&'static str>,
}

/// Of the text.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct AskedText {
    pub(crate) format: AskedFormat,
    /// `medium`.
    pub(crate) verbosity: &'static str,
}

/// Of its form.
#[derive(Debug, Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum AskedFormat {
    Text,
    JsonObject,
    JsonSchema {
        name: String,
        description: Option<String>,
        #[schema(value_type = Object)]
        schema: Value,
        /// True: it is enforced.
        strict: bool,
    },
}

/// A function that may be called.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct AskedTool {
    #[schema(value_type = ToolKind)]
    pub(crate) r#type: &'static str,
    pub(crate) name: String,
    pub(crate) description: Option<String>,
    #[schema(value_type = Option<Object>)]
    pub(crate) parameters: Option<Value>,
    /// Whether its arguments always follow the schema.
    pub(crate) strict: bool,
}

/// What it took. Absent money is no price, which is not a price of 0.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct ResponseUsage {
    input_tokens: u64,
    input_tokens_details: InputDetails,
    output_tokens: u64,
    output_tokens_details: OutputDetails,
    total_tokens: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    cost: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cost_details: Option<CostDetails>,
}

/// Of the prompt's tokens.
#[derive(Debug, Serialize, ToSchema)]
struct InputDetails {
    /// Taken from the prefix cache.
    cached_tokens: u64,
    /// Charged for being written to a cache: none, they are charged as computed.
    cache_write_tokens: u64,
}

/// Of the answer's tokens.
#[derive(Debug, Serialize, ToSchema)]
struct OutputDetails {
    /// Spent on reasoning.
    reasoning_tokens: u64,
}

impl ResponseUsage {
    /// `currency` labels the money, if there is any.
    pub(crate) fn new(totals: &Totals, currency: Option<&str>) -> Self {
        let cost_details = CostDetails::new(totals, currency);
        Self {
            input_tokens: totals.prompt_tokens,
            input_tokens_details: InputDetails { cached_tokens: totals.cached_tokens, cache_write_tokens: 0 },
            output_tokens: totals.completion_tokens,
            output_tokens_details: OutputDetails { reasoning_tokens: totals.reasoning_tokens.unwrap_or(0) },
            total_tokens: totals.prompt_tokens + totals.completion_tokens,
            cost: cost_details.as_ref().map(CostDetails::cost),
            cost_details,
        }
    }
}

impl Response {
    /// One that begins.
    pub(crate) fn new(asked: Asked, background: bool, created_at: u64) -> Self {
        Self {
            id: format!("resp_{}", uuid::Uuid::new_v4().simple()),
            object: "response",
            created_at,
            completed_at: None,
            status: if background { Status::Queued } else { Status::InProgress },
            background,
            error: None,
            incomplete_details: None,
            output: Vec::new(),
            usage: None,
            asked,
        }
    }

    /// Whether nobody waits for it.
    pub(crate) fn in_background(&self) -> bool {
        self.background
    }

    /// It ended like this.
    pub(crate) fn end(&mut self, ending: &Ending, now: u64) {
        if ending.reason == "length" {
            self.status = Status::Incomplete;
            self.incomplete_details = Some(IncompleteDetails { reason: "max_output_tokens" });
        } else {
            self.status = Status::Completed;
            self.completed_at = Some(now);
        }
    }

    /// It failed.
    pub(crate) fn fail(&mut self, error: &ApiError) {
        let code = match error.status().as_u16() {
            429 => "rate_limit_exceeded",
            400..500 => "invalid_prompt",
            _ => "server_error",
        };
        self.status = Status::Failed;
        self.error = Some(ResponseError { code, message: error.message().to_owned() });
    }

    /// As it is sent and kept.
    pub(crate) fn json(&self) -> String {
        serde_json::to_string(self).expect("strings and numbers")
    }
}
