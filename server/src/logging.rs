//! Log lines: text for people, JSON for collectors, on standard error. Never prompt text.

use std::io::IsTerminal as _;

use frugal_config::raw::LogFormat;
use frugal_config::resolved::Log;
use tracing_subscriber::EnvFilter;

/// Sets up the process's log, before anything is logged.
///
/// # Panics
/// If called twice.
pub(crate) fn init(log: &Log) {
    // The configuration has checked it.
    let filter = EnvFilter::builder().parse_lossy(&log.level);
    let colours = std::io::stderr().is_terminal();
    let lines =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colours);
    match log.format {
        LogFormat::Text => lines.with_target(false).init(),
        LogFormat::Json => lines.json().flatten_event(true).with_span_list(false).init(),
    }
}
