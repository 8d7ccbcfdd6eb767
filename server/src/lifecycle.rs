//! From the first connection to the last: accepting, draining, ending.
//!
//! A termination signal closes the engine to new requests while the listener keeps answering: probes learn that the
//! server drains, late requests get a 503 that sends them elsewhere. When the engine has ended, connections may finish
//! writing, then the process exits. A second signal ends it at once; an engine that hangs is given up, so that its
//! clients hear of it and the process exits whatever its threads do.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use frugal_config::resolved::Listen;
use frugal_scheduler::handle::{Ended, Handle, Stalled};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Semaphore, watch};
use tokio::time::MissedTickBehavior;

use crate::notify;
use crate::tls::Tls;

/// For clients to take what is left of their answers once the engine has ended.
const FLUSH: Duration = Duration::from_secs(5);

/// Between attempts to accept after the system refused one (no file descriptors).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Until a connection without a byte is asked whether its client is still there, and between the questions.
const PROBE_AFTER: Duration = Duration::from_secs(30);
const PROBE_EVERY: Duration = Duration::from_secs(10);

/// For the step that runs when the time to drain is up.
const LAST_STEP: Duration = Duration::from_secs(5);

/// Looks at an engine that `/livez` calls stalled before it is given up, and the time between them. Looks are what counts: a
/// process that was stopped itself has not looked.
const LOOKS: u32 = 10;
pub(crate) const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How a measurement ends that a signal has ended, once it has told what there was; as shells have it of SIGINT.
pub(crate) const EXIT_INTERRUPTED: i32 = 130;

/// Where a client on this machine finds a server that listens on `address`.
pub(crate) fn reachable(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => SocketAddr::new(Ipv4Addr::LOCALHOST.into(), address.port()),
        IpAddr::V6(ip) if ip.is_unspecified() => SocketAddr::new(Ipv6Addr::LOCALHOST.into(), address.port()),
        _ => address,
    }
}

/// Termination signals, whichever way they come.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    /// Unless it has another meaning.
    hangup: Option<Signal>,
}

impl Signals {
    /// From now on signals do not end the process by themselves.
    pub(crate) fn new() -> anyhow::Result<Self> {
        let (terminate, interrupt) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
        Ok(Self { terminate, interrupt, hangup: None })
    }

    /// SIGHUP is one, too: a terminal that closes takes its programs along with it, unless they were started not to heed it (`nohup`).
    pub(crate) fn and_hangup(&mut self) -> anyhow::Result<()> {
        if !ignores_hangup() {
            self.hangup = Some(listen(SignalKind::hangup())?);
        }
        Ok(())
    }

    /// What comes of it, unless a signal comes first.
    pub(crate) async fn unless<T>(&mut self, future: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            // A terminal sends its signal to a command that runs beside us as well: that it failed is no news then.
            biased;
            _ = self.next() => None,
            output = future => Some(output),
        }
    }

    /// Resolves at the next signal, with its name.
    pub(crate) async fn next(&mut self) -> &'static str {
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
            _ = hangup => "SIGHUP",
        }
    }
}

/// Whether the process was started with SIGHUP ignored. Elsewhere than on Linux nobody knows.
fn ignores_hangup() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    // The first signal's bit is the lowest.
    ignored.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).is_some_and(|set| set & 1 == 1)
}

fn listen(kind: SignalKind) -> anyhow::Result<Signal> {
    signal(kind).context("cannot listen for signals")
}

/// Serves connections until [`Server::finish`].
pub(crate) struct Server {
    stop: watch::Sender<bool>,
    task: tokio::task::JoinHandle<()>,
}

impl Server {
    /// Starts accepting, under TLS if there is a certificate.
    pub(crate) fn start(listener: TcpListener, app: Router, listen: &Listen, tls: Option<Tls>) -> Self {
        let (stop, stopped) = watch::channel(false);
        let connections = Connections { app, listen: Arc::new(listen.clone()), tls, stopped };
        let task = tokio::spawn(accept(listener, connections));
        Self { stop, task }
    }

    /// Accepts no more connections, lets those there are finish their answers, and closes them.
    pub(crate) async fn finish(self) {
        self.stop.send_replace(true);
        if let Err(error) = self.task.await {
            tracing::error!(%error, "the listener was lost");
        }
    }
}

/// What every connection shares.
#[derive(Clone)]
struct Connections {
    app: Router,
    listen: Arc<Listen>,
    tls: Option<Tls>,
    stopped: watch::Receiver<bool>,
}

async fn accept(listener: TcpListener, mut connections: Connections) {
    let places = Arc::new(Semaphore::new(connections.listen.connections_max));
    let graceful = GracefulShutdown::new();
    let mut refused = false;
    loop {
        let next = async {
            let place = places.clone().acquire_owned().await.expect("the semaphore is never closed");
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            next = next => next,
            _ = connections.stopped.wait_for(|stop| *stop) => break,
        };
        match accepted {
            Ok((stream, _)) => {
                if std::mem::take(&mut refused) {
                    tracing::info!("connections are accepted again");
                }
                let (connections, watcher) = (connections.clone(), graceful.watcher());
                tokio::spawn(async move {
                    connections.serve(stream, watcher).await;
                    drop(place);
                });
            }
            Err(error) => {
                if !std::mem::replace(&mut refused, true) {
                    tracing::warn!(%error, "cannot accept connections");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    if tokio::time::timeout(FLUSH, graceful.shutdown()).await.is_err() {
        tracing::warn!("some clients did not take their answers in time");
    }
}

impl Connections {
    async fn serve(mut self, stream: TcpStream, watcher: Watcher) {
        if let Err(error) = socket_options(&stream, self.listen.send_timeout) {
            tracing::debug!(%error, "socket options");
        }
        let Some(tls) = self.tls.take() else { return self.exchange(stream, watcher).await };
        // Who says nothing is not waited for longer than who sends half a head, and not at all at the end.
        let agreed = tokio::select! {
            agreed = tokio::time::timeout(self.listen.header_timeout, tls.accept(stream)) => agreed,
            _ = self.stopped.wait_for(|stop| *stop) => return,
        };
        match agreed {
            Ok(Ok(stream)) => self.exchange(stream, watcher).await,
            Ok(Err(error)) => tracing::debug!(%error, "no agreement on TLS"),
            Err(_) => tracing::debug!("no agreement on TLS in time"),
        }
    }

    async fn exchange(self, stream: impl AsyncRead + AsyncWrite + Unpin + 'static, watcher: Watcher) {
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.listen.header_timeout)
            .max_headers(self.listen.headers_max)
            .max_buf_size(self.listen.header_bytes_max)
            .serve_connection(TokioIo::new(stream), TowerToHyperService::new(self.app));
        // A client that went away, or sent what is no HTTP, was answered as far as possible.
        if let Err(error) = watcher.watch(connection).await {
            tracing::debug!(%error, "connection closed");
        }
    }
}

#[cfg_attr(not(target_os = "linux"), expect(unused_variables, reason = "the timeout is Linux's"))]
fn socket_options(stream: &TcpStream, send_timeout: Duration) -> std::io::Result<()> {
    // Tokens are small and should not wait for each other.
    stream.set_nodelay(true)?;
    // Clients that vanished without a word, and those that stop reading, are found by the system: else each would hold its
    // connection, and what it asked for, for long.
    let socket = SockRef::from(stream);
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(PROBE_AFTER).with_interval(PROBE_EVERY))?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(send_timeout))?;
    Ok(())
}

/// Gives an engine up that commits no step while there is work. Others are told that it is not alive meanwhile.
pub(crate) async fn watch_for_hang(handle: Handle, every: Duration) {
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut looks = 0;
    loop {
        ticks.tick().await;
        match handle.healthy() {
            Ok(()) => looks = 0,
            Err(Stalled::Dead(_)) => return,
            Err(stalled) if looks + 1 >= LOOKS => {
                tracing::error!(%stalled, "giving the engine up");
                return handle.give_up(&stalled.to_string());
            }
            Err(Stalled::Stuck(_)) => looks += 1,
        }
    }
}

/// How a drain ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Drain {
    /// Every request got its last event.
    Done,
    /// A second signal asked to end at once.
    Now,
}

/// Waits for a signal or the engine's end, and sees the engine through its drain.
///
/// # Errors
/// If the engine failed.
pub(crate) async fn until_drained(
    handle: &Handle,
    signals: &mut Signals,
    grace: Duration,
) -> anyhow::Result<Drain> {
    let ended = tokio::select! {
        ended = handle.ended() => ended,
        name = signals.next() => {
            tracing::info!(signal = name, grace_s = grace.as_secs(), "draining");
            notify::stopping();
            handle.drain(grace);
            tokio::select! {
                ended = handle.ended() => ended,
                () = tokio::time::sleep(grace.saturating_add(LAST_STEP)) => {
                    handle.give_up("its last step did not end");
                    handle.ended().await
                }
                _ = signals.next() => return Ok(Drain::Now),
            }
        }
    };
    match ended {
        Ended::Drained => Ok(Drain::Done),
        Ended::Failed(why) => Err(anyhow::anyhow!("the engine has stopped: {why}")),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use frugal_models::fake::{FakeControl, FakeFault, FakeModel, FakeRunner};
    use frugal_models::step::{CacheGroup, Geometry, GroupKind, TokenId};
    use frugal_scheduler::handle::{EngineThread, Submission, start};
    use frugal_scheduler::options::EngineOptions;
    use frugal_scheduler::request::{Event, Request};

    use super::*;

    fn engine(stall_timeout: Duration) -> (Handle, EngineThread, FakeControl) {
        let geometry = Geometry {
            vocab: 100,
            context_max: 64,
            block_tokens: 4,
            groups: vec![CacheGroup { kind: GroupKind::Full, block_bytes: 64, blocks: 16 }],
            digest: [0; 32],
        };
        let runner = FakeRunner::new(geometry, FakeModel::default());
        let control = runner.control();
        let options = EngineOptions { stall_timeout, ..EngineOptions::default() };
        let (handle, thread) = start(Box::new(runner), options);
        (handle, thread, control)
    }

    fn submit(handle: &Handle) -> Submission {
        let request = Request {
            prompt: [TokenId(1)].into(),
            sampling: Arc::default(),
            seed: 0,
            n: 1,
            max_tokens: 4,
            min_tokens: 0,
            end_tokens: Arc::default(),
            stop: Arc::default(),
            include_stop: false,
            grammar: None,
            prediction: Arc::default(),
            prompt_logprobs: None,
            cache_domain: [0; 32],
            deadline: None,
            tenant: 0,
        };
        handle.submit(request).expect("room")
    }

    async fn fault(mut submission: Submission) -> Option<String> {
        loop {
            if let Event::Done(report) = submission.events.recv().await.expect("the end is told") {
                return report.fault;
            }
        }
    }

    #[tokio::test]
    async fn a_step_that_panics_ends_the_process_with_an_error() {
        let (handle, _thread, control) = engine(Duration::from_secs(60));
        control.inject(FakeFault::Panic);
        let told = fault(submit(&handle)).await;
        assert!(told.is_some_and(|why| why.contains("the script says so")));
        let mut signals = Signals::new().expect("signals");
        let ended = until_drained(&handle, &mut signals, Duration::ZERO).await;
        let error = ended.expect_err("it failed").to_string();
        assert!(
            error.starts_with("the engine has stopped: ") && error.contains("the script says so"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn an_engine_that_hangs_is_given_up() {
        let (handle, _thread, control) = engine(Duration::ZERO);
        control.pause();
        let waiting = submit(&handle);
        watch_for_hang(handle.clone(), Duration::from_millis(1)).await;
        let told = fault(waiting).await.expect("a reason");
        assert!(told.starts_with("no step was committed for "), "{told}");
        let mut signals = Signals::new().expect("signals");
        assert!(until_drained(&handle, &mut signals, Duration::ZERO).await.is_err());
        control.resume();
    }
}
