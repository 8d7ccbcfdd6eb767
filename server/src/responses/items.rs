//! What conversations are made of: items, given and generated.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::logprobs::ChatToken;

/// A message, reasoning, a call or what a call returned.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[schema(as = ResponseItem)]
pub(crate) enum Item {
    /// What someone said.
    Message { id: String, role: ItemRole, status: ItemStatus, content: Vec<ItemPart> },
    /// What the model thought; never encrypted.
    Reasoning { id: String, summary: Vec<ItemPart>, content: Vec<ItemPart>, status: ItemStatus },
    /// A call of a function; `arguments` as the model wrote them.
    FunctionCall { id: String, call_id: String, name: String, arguments: String, status: ItemStatus },
    /// What it returned.
    FunctionCallOutput { id: String, call_id: String, output: String, status: ItemStatus },
}

impl Item {
    /// Its id.
    pub(crate) fn id(&self) -> &str {
        match self {
            Self::Message { id, .. }
            | Self::Reasoning { id, .. }
            | Self::FunctionCall { id, .. }
            | Self::FunctionCallOutput { id, .. } => id,
        }
    }

    /// How far it is now.
    pub(crate) fn set_status(&mut self, now: ItemStatus) {
        match self {
            Self::Message { status, .. }
            | Self::Reasoning { status, .. }
            | Self::FunctionCall { status, .. }
            | Self::FunctionCallOutput { status, .. } => *status = now,
        }
    }
}

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ItemRole {
    /// Who asks.
    User,
    /// Who operates the model.
    System,
    /// The same under its newer name.
    Developer,
    /// The model.
    Assistant,
}

/// How far an item is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ItemStatus {
    /// More is to come.
    InProgress,
    /// All of it.
    Completed,
    /// The answer ended within it.
    Incomplete,
}

/// A part of an item.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[expect(clippy::enum_variant_names, reason = "the API's names")]
#[schema(as = ResponseItemPart)]
pub(crate) enum ItemPart {
    /// What was said to the model.
    InputText { text: String },
    /// What the model said.
    OutputText {
        text: String,
        /// None: nothing is cited.
        #[schema(value_type = Vec<Object>)]
        annotations: [(); 0],
        /// If asked for; only of the response that has just been made.
        #[serde(skip_deserializing, default)]
        logprobs: Vec<ChatToken>,
    },
    /// What it thought.
    ReasoningText { text: String },
    /// What was told of a thought by whoever thought it.
    SummaryText { text: String },
}

impl ItemPart {
    /// What the model says, from the beginning.
    pub(crate) fn output() -> Self {
        Self::OutputText { text: String::new(), annotations: [], logprobs: Vec::new() }
    }

    /// Its text.
    pub(crate) fn text(&self) -> &str {
        match self {
            Self::InputText { text }
            | Self::OutputText { text, .. }
            | Self::ReasoningText { text }
            | Self::SummaryText { text } => text,
        }
    }
}

/// The texts of parts, joined by newlines as chat joins them.
pub(crate) fn joined(parts: &[ItemPart]) -> String {
    parts.iter().map(ItemPart::text).collect::<Vec<_>>().join("\n")
}
