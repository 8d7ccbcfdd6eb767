//! What systemd is told if it asked to be (`NOTIFY_SOCKET`, and `WATCHDOG_USEC` for signs of life).

use frugal_scheduler::handle::Handle;
use sd_notify::NotifyState;

/// Whether a service manager started the process and listens.
pub(crate) fn is_managed() -> bool {
    std::env::var_os("NOTIFY_SOCKET").is_some_and(|socket| !socket.is_empty())
}

/// Requests are taken. From now on signs of life are sent for as long as the engine is healthy, so that one that hangs is
/// started again.
pub(crate) fn ready(handle: &Handle) {
    tell(NotifyState::Ready);
    if let Some(patience) = sd_notify::watchdog_enabled() {
        let handle = handle.clone();
        tokio::spawn(async move {
            let mut ticks = tokio::time::interval(patience / 2);
            loop {
                ticks.tick().await;
                if handle.healthy().is_ok() {
                    tell(NotifyState::Watchdog);
                }
            }
        });
    }
}

/// Requests in progress may finish; others should go elsewhere.
pub(crate) fn stopping() {
    tell(NotifyState::Stopping);
}

fn tell(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "cannot notify the service manager");
    }
}
