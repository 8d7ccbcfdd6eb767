//! The binary under attack: what clients, machines and people do to a server that is to stay up.
//!
//! Everything goes over sockets, signals and files, as it would in production; what is tried is listed with its results in
//! README's "Reliability". `FRUGAL_SIEGE_SECONDS` makes the tests of `load` and `soak` as long as they are meant to be.

mod bytes;
mod clients;
mod disk;
mod faults;
#[path = "../../models/src/source/hub/tests/server.rs"]
#[allow(dead_code, clippy::unwrap_used, reason = "its own tests use what these do not; a helper of tests")]
mod hub;
mod load;
mod model;
mod parameters;
#[path = "../../server/tests/binary/process.rs"]
mod process;
mod soak;
mod text;
mod traffic;
mod watch;
