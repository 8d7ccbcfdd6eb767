//! Files that are read again while serving: at SIGHUP, and when they have changed.
//!
//! Whoever replaces mounted files (an orchestrator, a renewed certificate) cannot always send a signal, so they are looked at
//! every few seconds. What is wrong with them is logged once, and what was read before stays in effect.

use std::time::Duration;

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::MissedTickBehavior;

/// Between looks.
const EVERY: Duration = Duration::from_secs(10);

/// What some files say.
pub(crate) struct Source {
    what: &'static str,
    read: Read,
    /// What was wrong with them the last time.
    problem: Option<String>,
}

/// Reads the files and puts in effect what they say; whether that is new.
type Read = Box<dyn FnMut() -> anyhow::Result<bool> + Send>;

impl Source {
    /// `what` they say stands in the log.
    pub(crate) fn new(
        what: &'static str,
        read: impl FnMut() -> anyhow::Result<bool> + Send + 'static,
    ) -> Self {
        Self { what, read: Box::new(read), problem: None }
    }

    fn look(&mut self, asked: bool) {
        let what = self.what;
        match (self.read)() {
            Ok(changed) => {
                if changed || asked || self.problem.is_some() {
                    tracing::info!(what, changed, asked, "read again");
                }
                self.problem = None;
            }
            Err(error) => {
                let problem = format!("{error:#}");
                if asked || self.problem.as_ref() != Some(&problem) {
                    tracing::error!(
                        what,
                        problem,
                        "cannot be read again; what was read before stays in effect"
                    );
                }
                self.problem = Some(problem);
            }
        }
    }
}

/// Looks after sources for as long as the process runs.
pub(crate) fn watch(mut sources: Vec<Source>) -> anyhow::Result<()> {
    let mut hangups = signal(SignalKind::hangup()).context("cannot listen for signals")?;
    tokio::spawn(async move {
        let mut ticks = tokio::time::interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let asked = tokio::select! {
                _ = hangups.recv() => true,
                _ = ticks.tick() => false,
            };
            if asked && sources.is_empty() {
                tracing::info!("asked to read files again, and there are none");
            }
            // Files may be on a network.
            tokio::task::block_in_place(|| sources.iter_mut().for_each(|source| source.look(asked)));
        }
    });
    Ok(())
}
