//! The only reader of configuration files, argv and environment.
//!
//! Layers, each overriding the one before: the built-in `default.toml`, a file, the environment, flags. They
//! are merged key by key with the origin of every value, parsed once into [`raw::Raw`], and validated into
//! [`resolved::Config`]; what consumers see is only the latter. Keys and certificates may be read
//! again while serving. Absent on purpose: globals, reloading of anything else, and any key that no code honours.

pub mod auth;
pub mod cli;
mod error;
pub mod hub;
mod layers;
pub mod prices;
pub mod raw;
pub mod resolved;
pub mod tls;
pub mod units;

pub use error::ConfigError;
pub use layers::{Layers, Origin};
pub use resolved::Config;

/// Every key with its default and its reason: the lowest layer, and the source of the reference table.
pub const DEFAULT_TOML: &str = include_str!("../default.toml");
