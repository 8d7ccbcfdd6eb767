//! Log lines: text for people, JSON for collectors, on standard error. Never prompt text.
//!
//! A thread of their own writes them: a collector that stops reading, or a disk that is full, loses lines and stops nothing.

use frugal_config::raw::LogFormat;
use frugal_config::resolved::Log;
use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;

use crate::terminal;

/// Lines that wait to be written; more are lost.
const LINES: usize = 8192;

/// Sets up the process's log, before anything is logged. What was logged is written when the value is dropped.
///
/// # Panics
/// If called twice.
pub(crate) fn init(log: &Log) -> WorkerGuard {
    // The configuration has checked it.
    let filter = EnvFilter::builder().parse_lossy(&log.level);
    let colours = terminal::has_colours(&std::io::stderr());
    let (writer, guard) = NonBlockingBuilder::default().buffered_lines_limit(LINES).finish(std::io::stderr());
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer).with_ansi(colours);
    let lines = lines.log_internal_errors(false);
    match log.format {
        LogFormat::Text => lines.with_target(false).init(),
        LogFormat::Json => lines.json().flatten_event(true).with_span_list(false).init(),
    }
    guard
}
