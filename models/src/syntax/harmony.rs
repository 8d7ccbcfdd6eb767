//! OpenAI's harmony: an answer is messages, each with a channel and perhaps a recipient (gpt-oss).
//!
//! `<|channel|>analysis<|message|>..<|end|>` is reasoning, `<|start|>assistant<|channel|>final<|message|>..` the answer,
//! `<|start|>assistant<|channel|>commentary to=functions.NAME <|constrain|>json<|message|>{..}<|call|>` a call. The prompt ends in
//! `<|start|>assistant`; `<|return|>` and `<|call|>` end generation.

use super::Marks;

/// What a message begins with.
pub(crate) const CHANNEL: &str = "<|channel|>";
pub(super) const MESSAGE: &str = "<|message|>";
pub(super) const CONSTRAIN: &str = "<|constrain|>";
pub(super) const START: &str = "<|start|>";
const END: &str = "<|end|>";
pub(super) const CALL: &str = "<|call|>";

pub(super) const MARKS: &[&str] = &[CHANNEL, MESSAGE, CONSTRAIN, START, END, CALL, "<|return|>"];

/// What encloses a message that is reasoning.
pub(super) const REASONING: Marks = Marks { open: "<|channel|>analysis<|message|>", close: END };

/// What a message's text ends at. A new header without an end is what small models write.
pub(super) const ENDS: &[&str] = &[END, START, CHANNEL, CALL, "<|return|>"];

/// Where a message's text goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Reasoning,
    Content,
    /// To this function.
    Call(String),
}

/// What stands before [`MESSAGE`]. Without tools nothing is a call.
pub(super) fn kind(header: &str, tools: bool) -> Kind {
    let recipient = header.split_once("to=").map(|(_, rest)| {
        let end = rest.find(|c: char| c.is_whitespace() || c == '<').unwrap_or(rest.len());
        &rest[..end]
    });
    if let Some(name) = recipient.and_then(|to| to.strip_prefix("functions.")).filter(|_| tools) {
        return Kind::Call(name.to_owned());
    }
    match header.rsplit_once(CHANNEL).map_or(header, |(_, channel)| channel).trim_start() {
        channel if channel.starts_with("analysis") => Kind::Reasoning,
        _ => Kind::Content,
    }
}
