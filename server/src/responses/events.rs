//! Events of a stream, numbered.

use std::collections::VecDeque;

use axum::response::sse::Event;
use serde::Serialize;
use utoipa::ToSchema;

use super::body::{Response, Status};
use super::items::{Item, ItemPart};
use crate::logprobs::ChatToken;

/// An event of a stream: what happens to the response, to an item of its output, or to a part of an item.
#[derive(Serialize, ToSchema)]
#[serde(tag = "type")]
pub(crate) enum ResponseEvent<'a> {
    /// The first.
    #[serde(rename = "response.created")]
    Created { response: &'a Response },
    /// The second.
    #[serde(rename = "response.in_progress")]
    InProgress { response: &'a Response },
    /// An item begins.
    #[serde(rename = "response.output_item.added")]
    ItemAdded { output_index: usize, item: &'a Item },
    /// A part of it begins.
    #[serde(rename = "response.content_part.added")]
    PartAdded { item_id: &'a str, output_index: usize, content_index: usize, part: &'a ItemPart },
    /// More text.
    #[serde(rename = "response.output_text.delta")]
    TextDelta {
        item_id: &'a str,
        output_index: usize,
        content_index: usize,
        delta: &'a str,
        logprobs: &'a [ChatToken],
    },
    /// All of it.
    #[serde(rename = "response.output_text.done")]
    TextDone {
        item_id: &'a str,
        output_index: usize,
        content_index: usize,
        text: &'a str,
        logprobs: &'a [ChatToken],
    },
    /// More reasoning.
    #[serde(rename = "response.reasoning_text.delta")]
    ReasoningDelta { item_id: &'a str, output_index: usize, content_index: usize, delta: &'a str },
    /// All of it.
    #[serde(rename = "response.reasoning_text.done")]
    ReasoningDone { item_id: &'a str, output_index: usize, content_index: usize, text: &'a str },
    /// A summary begins.
    #[serde(rename = "response.reasoning_summary_part.added")]
    SummaryPartAdded { item_id: &'a str, output_index: usize, summary_index: usize, part: &'a ItemPart },
    /// More of it.
    #[serde(rename = "response.reasoning_summary_text.delta")]
    SummaryDelta { item_id: &'a str, output_index: usize, summary_index: usize, delta: &'a str },
    /// All of it.
    #[serde(rename = "response.reasoning_summary_text.done")]
    SummaryDone { item_id: &'a str, output_index: usize, summary_index: usize, text: &'a str },
    /// Its end.
    #[serde(rename = "response.reasoning_summary_part.done")]
    SummaryPartDone { item_id: &'a str, output_index: usize, summary_index: usize, part: &'a ItemPart },
    /// More of a call's arguments.
    #[serde(rename = "response.function_call_arguments.delta")]
    ArgumentsDelta { item_id: &'a str, output_index: usize, delta: &'a str },
    /// All of them.
    #[serde(rename = "response.function_call_arguments.done")]
    ArgumentsDone { item_id: &'a str, output_index: usize, arguments: &'a str },
    /// A part's end.
    #[serde(rename = "response.content_part.done")]
    PartDone { item_id: &'a str, output_index: usize, content_index: usize, part: &'a ItemPart },
    /// An item's end.
    #[serde(rename = "response.output_item.done")]
    ItemDone { output_index: usize, item: &'a Item },
    /// The last.
    #[serde(rename = "response.completed")]
    Completed { response: &'a Response },
    /// The last, at a limit.
    #[serde(rename = "response.incomplete")]
    Incomplete { response: &'a Response },
    /// The last, instead.
    #[serde(rename = "response.failed")]
    Failed { response: &'a Response },
}

impl<'a> ResponseEvent<'a> {
    /// The last event of a response.
    pub(crate) fn last(response: &'a Response) -> Self {
        match response.status {
            Status::Completed => Self::Completed { response },
            Status::Incomplete => Self::Incomplete { response },
            _ => Self::Failed { response },
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Created { .. } => "response.created",
            Self::InProgress { .. } => "response.in_progress",
            Self::ItemAdded { .. } => "response.output_item.added",
            Self::PartAdded { .. } => "response.content_part.added",
            Self::TextDelta { .. } => "response.output_text.delta",
            Self::TextDone { .. } => "response.output_text.done",
            Self::ReasoningDelta { .. } => "response.reasoning_text.delta",
            Self::ReasoningDone { .. } => "response.reasoning_text.done",
            Self::SummaryPartAdded { .. } => "response.reasoning_summary_part.added",
            Self::SummaryDelta { .. } => "response.reasoning_summary_text.delta",
            Self::SummaryDone { .. } => "response.reasoning_summary_text.done",
            Self::SummaryPartDone { .. } => "response.reasoning_summary_part.done",
            Self::ArgumentsDelta { .. } => "response.function_call_arguments.delta",
            Self::ArgumentsDone { .. } => "response.function_call_arguments.done",
            Self::PartDone { .. } => "response.content_part.done",
            Self::ItemDone { .. } => "response.output_item.done",
            Self::Completed { .. } => "response.completed",
            Self::Incomplete { .. } => "response.incomplete",
            Self::Failed { .. } => "response.failed",
        }
    }
}

/// An event with its number.
#[derive(Serialize, ToSchema)]
#[schema(as = NumberedResponseEvent)]
pub(crate) struct Numbered<'a> {
    #[serde(flatten)]
    event: ResponseEvent<'a>,
    /// From 0.
    sequence_number: u64,
}

/// An event as it is sent.
#[derive(ToSchema)]
#[schema(as = SentResponseEvent)]
#[expect(dead_code, reason = "a description; axum writes events")]
pub(crate) struct Sent {
    /// The `type` of what `data` holds.
    event: &'static str,
    /// A `NumberedResponseEvent`.
    #[schema(content_media_type = "application/json")]
    data: String,
}

/// Events that wait to be sent, if anybody listens.
pub(crate) struct Events {
    ready: Option<VecDeque<Event>>,
    next: u64,
}

impl Events {
    /// For a stream, or for nobody.
    pub(crate) fn new(stream: bool) -> Self {
        Self { ready: stream.then(VecDeque::new), next: 0 }
    }

    /// Numbers an event.
    pub(crate) fn push(&mut self, event: ResponseEvent<'_>) {
        let Some(ready) = &mut self.ready else { return };
        let name = event.name();
        let numbered = Numbered { event, sequence_number: self.next };
        self.next += 1;
        let data = serde_json::to_string(&numbered).expect("strings and numbers");
        ready.push_back(Event::default().event(name).data(data));
    }

    /// The next one.
    pub(crate) fn pop(&mut self) -> Option<Event> {
        self.ready.as_mut()?.pop_front()
    }
}
