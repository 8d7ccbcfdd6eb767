//! Decisions, on one thread: who runs, with how many tokens, on which blocks, and what it cost.
//!
//! [`handle::start`] spawns the thread and gives the server its [`handle::Handle`]; [`engine::Engine`] is
//! what the thread drives, pure: commands, plans and commits in, events out, time an argument.
//! No clock, thread or randomness outside `handle`, `driver` and `watchdog`.

mod commit;
mod driver;
mod kv;
mod lookup;
mod seq;
mod watchdog;

pub mod check;
pub mod engine;
pub mod gate;
pub mod handle;
pub mod histogram;
pub mod ledger;
pub mod options;
pub mod policy;
pub mod request;
pub mod snapshot;
pub mod stop;
