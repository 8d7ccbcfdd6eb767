//! The HTTP front end: OpenAI's API over the engine.

pub mod access;
pub mod error;
pub mod settings;
pub mod text;
pub mod usage;
