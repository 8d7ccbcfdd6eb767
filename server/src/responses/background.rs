//! Responses that nobody waits for: they are retrieved when they have ended, or cancelled.

use std::time::Instant;

use tracing::Instrument as _;

use super::answer::Making;
use super::body::Status;
use super::store::Run;

/// Lets a response run on its own. It must be one that is kept.
pub(super) fn start(making: Making) {
    let Some((key, running)) = making.key().zip(making.running()) else { return };
    let run = making.state.responses().run(key, running, Instant::now());
    tokio::spawn(finish(making, run).in_current_span());
}

async fn finish(mut making: Making, run: Run) {
    while !making.ended {
        tokio::select! {
            biased;
            () = run.cancelled() => making.cancel(),
            () = making.step() => {
                if making.response.status == Status::Queued {
                    making.response.status = Status::InProgress;
                    run.update(making.response.json().into(), Instant::now());
                }
            }
        }
    }
    let totals = making.answer.totals();
    tracing::info!(
        target: "frugal::request",
        response = making.response.id,
        status = ?making.response.status,
        prompt_tokens = totals.prompt_tokens,
        cached_tokens = totals.cached_tokens,
        completion_tokens = totals.completion_tokens,
        cost = totals.cost().map(crate::usage::units),
    );
    if let Some(ended) = making.kept() {
        // Its sequence first: who cancelled it finds nothing of it running.
        drop(making);
        run.end(ended, Instant::now());
    }
}
