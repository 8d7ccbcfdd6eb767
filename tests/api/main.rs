//! The HTTP API as clients see it: a server on a loopback port, the fixture's tokenizer and chat template, and the
//! fake runner, whose tokens are hashes of what came before.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

mod chat;
mod clients;
mod completions;
mod endpoints;
mod fields;
mod harness;
mod lifecycle;
mod log;
mod messages;
mod model;
mod page;
mod rates;
mod refusals;
mod responses;
mod security;
mod stored;
mod streaming;
mod structured;
mod tools;
mod traces;
