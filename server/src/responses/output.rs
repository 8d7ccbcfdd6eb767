//! Parts of an answer become items, and each step of that an event.
//!
//! Law: ids follow from the request's seed and prompt, so that streams and whole answers have the same. A token belongs to the text
//! that comes with it or next; tokens that write no text of a message have no log-probability there. A summary of reasoning is the
//! reasoning itself: who asks for one is told what there is.

use sha2::{Digest, Sha256};

use super::events::{Events, ResponseEvent};
use super::items::{Item, ItemPart, ItemRole, ItemStatus};
use crate::form::Part;
use crate::logprobs::{ChatToken, Names};
use crate::stream::Scored;

/// Items so far.
pub(crate) struct Output {
    key: [u8; 32],
    /// Of tokens, if log-probabilities were asked for.
    names: Option<Names>,
    /// Reasoning is to have a summary.
    summarize: bool,
    items: Vec<Item>,
    /// The last one goes on.
    open: Option<Kind>,
    /// Log-probabilities of tokens whose text has not come.
    unplaced: Vec<ChatToken>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Message,
    Reasoning,
    Call,
}

/// All items have one part at most.
const CONTENT_INDEX: usize = 0;
/// And one of a summary.
const SUMMARY_INDEX: usize = 0;

impl Output {
    /// Of a request with this key.
    pub(crate) fn new(key: [u8; 32], names: Option<Names>, summarize: bool) -> Self {
        Self { key, names, summarize, items: Vec::new(), open: None, unplaced: Vec::new() }
    }

    /// Tokens came.
    pub(crate) fn score(&mut self, tokens: &[Scored]) {
        if let Some(names) = &self.names {
            self.unplaced.extend(tokens.iter().filter_map(|token| ChatToken::new(names, token)));
        }
    }

    /// A part came.
    pub(crate) fn add(&mut self, part: Part, events: &mut Events) {
        let mut scores = std::mem::take(&mut self.unplaced);
        match part {
            Part::Content(delta) => {
                if self.open != Some(Kind::Message) {
                    // Before a message's first text there may be marks and white space that are no part of it.
                    scores.drain(..scores.len() - writers(&scores, delta.len()));
                }
                self.open(Kind::Message, events);
                self.more_text(&delta, scores, events);
            }
            Part::Reasoning(delta) => {
                self.open(Kind::Reasoning, events);
                self.more_reasoning(&delta, events);
            }
            Part::Call { id: call_id, name, .. } => {
                self.close(ItemStatus::Completed, events);
                let id = self.id("fc");
                let (arguments, status) = (String::new(), ItemStatus::InProgress);
                self.begin(
                    Kind::Call,
                    Item::FunctionCall { id, call_id, name, arguments, status },
                    None,
                    events,
                );
            }
            Part::Arguments { text: delta, .. } => self.more_arguments(&delta, events),
        }
    }

    /// Opens an item of this kind, unless one is open.
    fn open(&mut self, kind: Kind, events: &mut Events) {
        if self.open == Some(kind) {
            return;
        }
        self.close(ItemStatus::Completed, events);
        let (status, content) = (ItemStatus::InProgress, Vec::new());
        let (item, part) = if kind == Kind::Reasoning {
            let item = Item::Reasoning { id: self.id("rs"), summary: Vec::new(), content, status };
            (item, ItemPart::ReasoningText { text: String::new() })
        } else {
            let item = Item::Message { id: self.id("msg"), role: ItemRole::Assistant, status, content };
            (item, ItemPart::output())
        };
        self.begin(kind, item, Some(part), events);
    }

    fn begin(&mut self, kind: Kind, mut item: Item, part: Option<ItemPart>, events: &mut Events) {
        let output_index = self.items.len();
        events.push(ResponseEvent::ItemAdded { output_index, item: &item });
        if let Some(part) = part {
            let (item_id, content_index) = (item.id(), CONTENT_INDEX);
            events.push(ResponseEvent::PartAdded { item_id, output_index, content_index, part: &part });
            if let Item::Message { content, .. } | Item::Reasoning { content, .. } = &mut item {
                content.push(part);
            }
        }
        if self.summarize && kind == Kind::Reasoning {
            let part = ItemPart::SummaryText { text: String::new() };
            let (item_id, summary_index) = (item.id(), SUMMARY_INDEX);
            events.push(ResponseEvent::SummaryPartAdded {
                item_id,
                output_index,
                summary_index,
                part: &part,
            });
            if let Item::Reasoning { summary, .. } = &mut item {
                summary.push(part);
            }
        }
        self.open = Some(kind);
        self.items.push(item);
    }

    fn more_text(&mut self, delta: &str, scores: Vec<ChatToken>, events: &mut Events) {
        let output_index = self.items.len().saturating_sub(1);
        let Some(Item::Message { id, content, .. }) = self.items.last_mut() else { return };
        let Some(ItemPart::OutputText { text, logprobs, .. }) = content.last_mut() else { return };
        let content_index = CONTENT_INDEX;
        events.push(ResponseEvent::TextDelta {
            item_id: id,
            output_index,
            content_index,
            delta,
            logprobs: &scores,
        });
        text.push_str(delta);
        logprobs.extend(scores);
    }

    fn more_reasoning(&mut self, delta: &str, events: &mut Events) {
        let output_index = self.items.len().saturating_sub(1);
        let Some(Item::Reasoning { id: item_id, content, summary, .. }) = self.items.last_mut() else {
            return;
        };
        let Some(ItemPart::ReasoningText { text }) = content.last_mut() else { return };
        let (content_index, summary_index) = (CONTENT_INDEX, SUMMARY_INDEX);
        events.push(ResponseEvent::ReasoningDelta { item_id, output_index, content_index, delta });
        text.push_str(delta);
        if let Some(ItemPart::SummaryText { text }) = summary.last_mut() {
            events.push(ResponseEvent::SummaryDelta { item_id, output_index, summary_index, delta });
            text.push_str(delta);
        }
    }

    fn more_arguments(&mut self, delta: &str, events: &mut Events) {
        let output_index = self.items.len().saturating_sub(1);
        let Some(Item::FunctionCall { id, arguments, .. }) = self.items.last_mut() else { return };
        events.push(ResponseEvent::ArgumentsDelta { item_id: id, output_index, delta });
        arguments.push_str(delta);
    }

    /// Closes the item that is open, if one is.
    pub(crate) fn close(&mut self, ending: ItemStatus, events: &mut Events) {
        if self.open.take().is_none() {
            return;
        }
        if let Some(item) = self.items.last_mut() {
            item.set_status(ending);
        }
        let Some(item) = self.items.last() else { return };
        let (item_id, output_index, content_index) = (item.id(), self.items.len() - 1, CONTENT_INDEX);
        match item {
            Item::Message { content, .. } | Item::Reasoning { content, .. } => {
                for part in content {
                    events.push(match part {
                        ItemPart::OutputText { text, logprobs, .. } => {
                            ResponseEvent::TextDone { item_id, output_index, content_index, text, logprobs }
                        }
                        part => {
                            let text = part.text();
                            ResponseEvent::ReasoningDone { item_id, output_index, content_index, text }
                        }
                    });
                    events.push(ResponseEvent::PartDone { item_id, output_index, content_index, part });
                }
            }
            Item::FunctionCall { arguments, .. } => {
                events.push(ResponseEvent::ArgumentsDone { item_id, output_index, arguments });
            }
            Item::FunctionCallOutput { .. } => {}
        }
        if let Item::Reasoning { summary, .. } = item {
            for part in summary {
                let (summary_index, text) = (SUMMARY_INDEX, part.text());
                events.push(ResponseEvent::SummaryDone { item_id, output_index, summary_index, text });
                events.push(ResponseEvent::SummaryPartDone { item_id, output_index, summary_index, part });
            }
        }
        events.push(ResponseEvent::ItemDone { output_index, item });
    }

    /// All items.
    pub(crate) fn take(&mut self) -> Vec<Item> {
        std::mem::take(&mut self.items)
    }

    /// Of the next item.
    fn id(&self, prefix: &str) -> String {
        let index = self.items.len() as u64;
        let hash =
            Sha256::new().chain_update(self.key).chain_update(b"item").chain_update(index.to_le_bytes());
        let digits: String = hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        format!("{prefix}_{digits}")
    }
}

/// How many of the last tokens it takes to write so many bytes.
fn writers(tokens: &[ChatToken], bytes: usize) -> usize {
    let (mut needed, mut written) = (0, 0);
    for token in tokens.iter().rev() {
        if written >= bytes {
            break;
        }
        written += token.byte_count();
        needed += 1;
    }
    needed
}
