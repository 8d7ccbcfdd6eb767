//! Decisions, on one thread: who runs, with how many tokens, on which blocks, and what it cost.

pub mod request;
