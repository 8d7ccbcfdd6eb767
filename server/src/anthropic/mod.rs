//! Anthropic's shapes of answers and refusals; its requests become chats in `admit::messages`.

pub(crate) mod answer;
pub(crate) mod error;
