//! OpenAI's Responses API: its shapes, its events, and the responses that are kept.
//!
//! Its requests become chats in `admit::responses`; an answer's parts become items here.

pub(crate) mod answer;
pub(crate) mod background;
pub(crate) mod body;
pub(crate) mod events;
pub(crate) mod items;
pub(crate) mod output;
pub(crate) mod store;
