//! From the first connection to the last: accepting, draining, ending.
//!
//! A termination signal closes the engine to new requests while the listener keeps answering: probes learn that the
//! server drains, late requests get a 503 that sends them elsewhere. When the engine has ended, connections may finish
//! writing, then the process exits. A second signal ends it at once.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use frugal_config::resolved::Listen;
use frugal_scheduler::handle::{Ended, Handle};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Semaphore, watch};

use crate::notify;
use crate::tls::Tls;

/// For clients to take what is left of their answers once the engine has ended.
const FLUSH: Duration = Duration::from_secs(5);

/// Between attempts to accept after the system refused one (no file descriptors).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

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
}

impl Signals {
    /// From now on signals do not end the process by themselves.
    pub(crate) fn new() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("cannot listen for signals");
        Ok(Self { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    /// Resolves at the next signal, with its name.
    pub(crate) async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
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
                let (connections, watcher) = (connections.clone(), graceful.watcher());
                tokio::spawn(async move {
                    connections.serve(stream, watcher).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
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
        // Tokens are small and should not wait for each other.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY");
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
/// If the engine panicked.
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
                _ = signals.next() => return Ok(Drain::Now),
            }
        }
    };
    match ended {
        Ended::Drained => Ok(Drain::Done),
        Ended::Panicked(why) => Err(anyhow::anyhow!("the engine has stopped: {why}")),
    }
}
