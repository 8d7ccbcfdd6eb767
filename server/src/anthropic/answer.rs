//! Pieces of an answer as blocks: events of a stream, or the message that they add up to.
//!
//! Law: a whole answer is made of the events that its stream would have had. What a call's `input` is, is known when it ends; text of
//! a model that is no JSON object is shown as Anthropic advises, under the key `INVALID_JSON`.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;

use axum::Json;
use axum::response::sse::{Event, KeepAlive};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::Serialize;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::error::{Refusal, Why};
use crate::access::Line;
use crate::admit::Admitted;
use crate::answer::{event_stream, first};
use crate::error::ApiError;
use crate::form::Part;
use crate::state::State;
use crate::stream::{Answer, Ending, Piece, StopReason};
use crate::usage::{CostDetails, Totals};

/// What the model says.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = MessagesAnswer)]
pub(crate) struct Message {
    id: String,
    /// `message`.
    r#type: &'static str,
    /// `assistant`.
    role: &'static str,
    model: String,
    content: Vec<Block>,
    #[serde(flatten)]
    end: Stop,
    usage: MessageUsage,
}

/// Why it ended; null before it has.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
#[schema(as = MessageStop)]
pub(crate) struct Stop {
    /// `end_turn`, `max_tokens`, `stop_sequence`, `tool_use`, or `model_context_window_exceeded` where the context left less than
    /// `max_tokens`.
    stop_reason: Option<&'static str>,
    /// The request's own that ended it.
    stop_sequence: Option<String>,
}

impl Stop {
    /// `cut`: the context left less than was asked for.
    fn new(ending: Ending, cut: bool) -> Self {
        let (reason, stop) = match (ending.reason, ending.stop) {
            ("stop", Some(StopReason::Text(text))) => ("stop_sequence", Some(text)),
            ("length", _) if cut => ("model_context_window_exceeded", None),
            ("length", _) => ("max_tokens", None),
            ("tool_calls", _) => ("tool_use", None),
            _ => ("end_turn", None),
        };
        Self { stop_reason: Some(reason), stop_sequence: stop }
    }
}

/// What it took. Absent money is no price, which is not a price of 0.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct MessageUsage {
    /// Of the prompt, those that were computed; at a stream's beginning, all of it.
    input_tokens: u64,
    /// Of the prompt, those taken from the prefix cache.
    cache_read_input_tokens: u64,
    output_tokens: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    cost: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cost_details: Option<CostDetails>,
}

impl MessageUsage {
    fn new(totals: &Totals, currency: Option<&str>) -> Self {
        let cost_details = CostDetails::new(totals, currency);
        Self {
            input_tokens: totals.prompt_tokens.saturating_sub(totals.cached_tokens),
            cache_read_input_tokens: totals.cached_tokens,
            output_tokens: totals.completion_tokens,
            cost: cost_details.as_ref().map(CostDetails::cost),
            cost_details,
        }
    }
}

/// What stands for a signature. None is made or checked, but clients take thinking without one for something else: they leave it out of
/// the conversation, or send it back as what the assistant said.
const SIGNATURE: &str = "unsigned";

/// A part of a message.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[schema(as = MessageBlock)]
pub(crate) enum Block {
    /// What the user sees.
    Text { text: String },
    /// Reasoning, empty if the request wants it left out; not signed, whatever `signature` holds.
    Thinking { thinking: String, signature: &'static str },
    /// A call of a function.
    ToolUse {
        id: String,
        name: String,
        #[schema(value_type = Object)]
        input: Value,
    },
}

/// More of a block.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[schema(as = MessageBlockDelta)]
#[expect(clippy::enum_variant_names, reason = "the API's names")]
pub(crate) enum Delta {
    /// Of text.
    TextDelta { text: String },
    /// Of reasoning.
    ThinkingDelta { thinking: String },
    /// Behind reasoning.
    SignatureDelta { signature: &'static str },
    /// Of a call's input, as the model writes it.
    InputJsonDelta { partial_json: String },
}

/// An event of a stream.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(crate) enum MessageEvent {
    /// The first: a message without content.
    MessageStart { message: Message },
    /// A block begins.
    ContentBlockStart { index: usize, content_block: Block },
    /// More of it.
    ContentBlockDelta { index: usize, delta: Delta },
    /// Its end.
    ContentBlockStop { index: usize },
    /// Why it ended and what it took.
    MessageDelta { delta: Stop, usage: MessageUsage },
    /// The last.
    MessageStop,
    /// While nothing else comes.
    Ping,
    /// The last, instead.
    Error { error: Why },
}

/// An event as it is sent.
#[derive(ToSchema)]
#[schema(as = SentMessageEvent)]
#[expect(dead_code, reason = "a description; axum writes events")]
pub(crate) struct Sent {
    /// The `type` of what `data` holds.
    event: &'static str,
    /// A `MessageEvent`.
    #[schema(content_media_type = "application/json")]
    data: String,
}

impl From<MessageEvent> for Event {
    fn from(event: MessageEvent) -> Self {
        let name = match event {
            MessageEvent::MessageStart { .. } => "message_start",
            MessageEvent::ContentBlockStart { .. } => "content_block_start",
            MessageEvent::ContentBlockDelta { .. } => "content_block_delta",
            MessageEvent::ContentBlockStop { .. } => "content_block_stop",
            MessageEvent::MessageDelta { .. } => "message_delta",
            MessageEvent::MessageStop => "message_stop",
            MessageEvent::Ping => "ping",
            MessageEvent::Error { .. } => "error",
        };
        let data = serde_json::to_string(&event).expect("strings and numbers");
        Self::default().event(name).data(data)
    }
}

/// Submits an admitted request and answers it.
///
/// # Errors
/// What went wrong before the first byte of the answer.
pub(crate) async fn respond(
    state: &State,
    admitted: Admitted,
    line: Arc<Line>,
) -> Result<Response, ApiError> {
    let prompt_tokens = admitted.prompts.iter().map(|prompt| prompt.request.prompt.len() as u64).sum();
    let totals = Totals { prompt_tokens, ..Totals::default() };
    let message = Message {
        id: format!("msg_{}", uuid::Uuid::new_v4().simple()),
        r#type: "message",
        role: "assistant",
        model: state.model().to_owned(),
        content: Vec::new(),
        end: Stop::default(),
        usage: MessageUsage::new(&totals, None),
    };
    let (stream, cut) = (admitted.stream, admitted.cut_to_context);
    let blocks = Blocks { omit: admitted.omit_reasoning, ..Blocks::default() };
    let answer = Answer::start(state.engine()?, admitted, line)?;
    let currency = state.settings().currency.clone();
    let mut feed =
        Feed { answer, currency, blocks, cut, ready: VecDeque::new(), ending: Stop::default(), ended: false };
    if !stream {
        return whole(feed, message).await;
    }
    let keep_alive = state.settings().keep_alive;
    let first = first(&mut feed.answer, keep_alive).await?;
    feed.ready.push_back(MessageEvent::MessageStart { message });
    if let Some(piece) = first {
        feed.on_piece(piece);
    }
    let events = stream::unfold(feed, |mut feed| async move {
        let event = feed.next().await?;
        let event = event.unwrap_or_else(|error| MessageEvent::Error { error: Refusal::new(&error).why() });
        Some((Ok::<_, Infallible>(event.into()), feed))
    });
    Ok(event_stream(events, KeepAlive::new().interval(keep_alive).event(MessageEvent::Ping.into())))
}

async fn whole(mut feed: Feed, mut message: Message) -> Result<Response, ApiError> {
    let mut written = String::new();
    while let Some(event) = feed.next().await {
        match event? {
            MessageEvent::ContentBlockStart { content_block, .. } => message.content.push(content_block),
            MessageEvent::ContentBlockDelta { delta, .. } => match (delta, message.content.last_mut()) {
                (Delta::TextDelta { text: more }, Some(Block::Text { text })) => text.push_str(&more),
                (Delta::ThinkingDelta { thinking: more }, Some(Block::Thinking { thinking, .. })) => {
                    thinking.push_str(&more);
                }
                (Delta::SignatureDelta { signature: all }, Some(Block::Thinking { signature, .. })) => {
                    *signature = all;
                }
                (Delta::InputJsonDelta { partial_json }, _) => written.push_str(&partial_json),
                _ => {}
            },
            MessageEvent::ContentBlockStop { .. } => {
                if let Some(Block::ToolUse { input, .. }) = message.content.last_mut() {
                    *input = object(std::mem::take(&mut written));
                }
            }
            MessageEvent::MessageDelta { delta, usage } => (message.end, message.usage) = (delta, usage),
            _ => {}
        }
    }
    Ok(Json(message).into_response())
}

/// What a call was given.
fn object(written: String) -> Value {
    match serde_json::from_str::<Map<String, Value>>(&written) {
        Ok(input) => input.into(),
        Err(_) if written.trim().is_empty() => json!({}),
        Err(_) => json!({"INVALID_JSON": written}),
    }
}

/// What a stream of events is made of.
struct Feed {
    answer: Answer,
    currency: Option<String>,
    blocks: Blocks,
    /// The context left less than was asked for.
    cut: bool,
    ready: VecDeque<MessageEvent>,
    ending: Stop,
    ended: bool,
}

impl Feed {
    fn on_piece(&mut self, piece: Piece) {
        match piece {
            Piece::More { parts, .. } => {
                parts.into_iter().for_each(|part| self.blocks.add(part, &mut self.ready));
            }
            Piece::Finish { ending, .. } => {
                self.blocks.close(&mut self.ready);
                self.ending = Stop::new(ending, self.cut);
            }
            // No field asks for it.
            Piece::Prompt { .. } => {}
        }
    }

    async fn next(&mut self) -> Option<Result<MessageEvent, ApiError>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(Ok(event));
            }
            if self.ended {
                return None;
            }
            match self.answer.next().await {
                Some(Ok(piece)) => self.on_piece(piece),
                Some(Err(error)) => {
                    self.ended = true;
                    return Some(Err(error));
                }
                None => {
                    self.ended = true;
                    let usage = MessageUsage::new(self.answer.totals(), self.currency.as_deref());
                    let delta = std::mem::take(&mut self.ending);
                    self.ready.push_back(MessageEvent::MessageDelta { delta, usage });
                    self.ready.push_back(MessageEvent::MessageStop);
                }
            }
        }
    }
}

/// Blocks so far.
#[derive(Default)]
struct Blocks {
    open: Option<Kind>,
    /// Blocks that ended.
    index: usize,
    /// Reasoning is not shown.
    omit: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    Thinking,
    Call,
}

impl Blocks {
    fn add(&mut self, part: Part, events: &mut VecDeque<MessageEvent>) {
        let delta = match part {
            Part::Content(text) => {
                self.open(Kind::Text, || Block::Text { text: String::new() }, events);
                Delta::TextDelta { text }
            }
            Part::Reasoning(thinking) => {
                let block = || Block::Thinking { thinking: String::new(), signature: "" };
                self.open(Kind::Thinking, block, events);
                if self.omit {
                    return;
                }
                Delta::ThinkingDelta { thinking }
            }
            Part::Call { id, name, .. } => {
                self.close(events);
                return self.open(Kind::Call, || Block::ToolUse { id, name, input: json!({}) }, events);
            }
            Part::Arguments { text, .. } => Delta::InputJsonDelta { partial_json: text },
        };
        events.push_back(MessageEvent::ContentBlockDelta { index: self.index, delta });
    }

    /// Opens a block, unless the one that is open is of this kind.
    fn open(&mut self, kind: Kind, block: impl FnOnce() -> Block, events: &mut VecDeque<MessageEvent>) {
        if self.open != Some(kind) {
            self.close(events);
            self.open = Some(kind);
            events.push_back(MessageEvent::ContentBlockStart { index: self.index, content_block: block() });
        }
    }

    fn close(&mut self, events: &mut VecDeque<MessageEvent>) {
        if let Some(kind) = self.open.take() {
            if kind == Kind::Thinking {
                let delta = Delta::SignatureDelta { signature: SIGNATURE };
                events.push_back(MessageEvent::ContentBlockDelta { index: self.index, delta });
            }
            events.push_back(MessageEvent::ContentBlockStop { index: self.index });
            self.index += 1;
        }
    }
}
