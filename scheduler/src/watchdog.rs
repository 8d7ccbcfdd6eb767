//! Notices that work is pending and nothing is committed.
//!
//! No thread of its own: whoever asks for health compares two ticks, so there is nothing that could hang too.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::request::Tick;

const IDLE: u64 = u64::MAX;

/// Since when work has been pending without a commit.
#[derive(Debug)]
pub(crate) struct Watchdog {
    since: AtomicU64,
    timeout_ns: u64,
}

impl Watchdog {
    pub(crate) fn new(timeout: Duration) -> Self {
        let timeout_ns = u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX);
        Self { since: AtomicU64::new(IDLE), timeout_ns }
    }

    /// There is work now.
    pub(crate) fn work(&self, now: Tick) {
        // Only the first arrival starts the clock; failing means it runs already.
        let _ = self.since.compare_exchange(IDLE, now.0, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// A step was committed, and there may be more to do.
    pub(crate) fn progress(&self, now: Tick) {
        self.since.store(now.0, Ordering::Relaxed);
    }

    /// Nothing is left to do.
    pub(crate) fn idle(&self) {
        self.since.store(IDLE, Ordering::Relaxed);
    }

    /// For how long nothing has been committed, if that is too long.
    pub(crate) fn stalled(&self, now: Tick) -> Option<Duration> {
        let since = self.since.load(Ordering::Relaxed);
        let waited = now.0.saturating_sub(since);
        (since != IDLE && waited >= self.timeout_ns).then(|| Duration::from_nanos(waited))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_pending_work_without_progress_is_a_stall() {
        let dog = Watchdog::new(Duration::from_nanos(10));
        assert_eq!(dog.stalled(Tick(1000)), None);
        dog.work(Tick(1000));
        dog.work(Tick(1005));
        assert_eq!(dog.stalled(Tick(1009)), None);
        assert_eq!(dog.stalled(Tick(1010)), Some(Duration::from_nanos(10)));
        dog.progress(Tick(1012));
        assert_eq!(dog.stalled(Tick(1020)), None);
        assert!(dog.stalled(Tick(1022)).is_some());
        dog.idle();
        assert_eq!(dog.stalled(Tick(9999)), None);
    }
}
