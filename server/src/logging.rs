//! Log lines: text for people, JSON for collectors, on standard error. Never prompt text.

use std::io::IsTerminal as _;

use frugal_config::raw::LogFormat;
use frugal_config::resolved::Log;
use tracing_subscriber::EnvFilter;

/// The level is not a filter that `tracing` understands.
#[derive(Debug, thiserror::Error)]
#[error("log.level = {level:?}: not a level or tracing filter")]
pub(crate) struct BadFilter {
    level: String,
    #[source]
    source: tracing_subscriber::filter::ParseError,
}

/// Sets up the process's log. Called once, before anything is logged; later calls change nothing.
pub(crate) fn init(log: &Log) -> Result<(), BadFilter> {
    let filter = EnvFilter::builder()
        .parse(&log.level)
        .map_err(|source| BadFilter { level: log.level.clone(), source })?;
    let colours = std::io::stderr().is_terminal();
    let lines =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colours);
    let done = match log.format {
        LogFormat::Text => lines.with_target(false).try_init(),
        LogFormat::Json => lines.json().flatten_event(true).with_current_span(true).try_init(),
    };
    // A test process sets up its log more than once; the first stays.
    drop(done);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_filters() {
        let check = |level: &str, good: bool| {
            let log = Log { format: LogFormat::Text, level: level.to_owned() };
            assert_eq!(init(&log).is_ok(), good, "{level}");
        };
        check("info", true);
        check("warn,frugal_scheduler=debug", true);
        check("a=b=c", false);
    }
}
