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
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Semaphore, watch};

use crate::notify;

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
    /// Starts accepting.
    pub(crate) fn start(listener: TcpListener, app: Router, listen: &Listen) -> Self {
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(accept(listener, app, listen.clone(), stopped));
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

async fn accept(listener: TcpListener, app: Router, listen: Listen, mut stopped: watch::Receiver<bool>) {
    let connections = Arc::new(Semaphore::new(listen.connections_max));
    let graceful = GracefulShutdown::new();
    loop {
        let next = async {
            let permit = connections.clone().acquire_owned().await.expect("the semaphore is never closed");
            (permit, listener.accept().await)
        };
        let (permit, accepted) = tokio::select! {
            next = next => next,
            _ = stopped.wait_for(|stop| *stop) => break,
        };
        match accepted {
            Ok((stream, _)) => {
                let connection = graceful.watch(connection(stream, app.clone(), &listen));
                tokio::spawn(async move {
                    // A client that went away, or sent what is no HTTP, was answered as far as possible.
                    if let Err(error) = connection.await {
                        tracing::debug!(%error, "connection closed");
                    }
                    drop(permit);
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

type Connection = http1::Connection<TokioIo<TcpStream>, TowerToHyperService<Router>>;

fn connection(stream: TcpStream, app: Router, listen: &Listen) -> Connection {
    // Tokens are small and should not wait for each other.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY");
    }
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(listen.header_timeout)
        .max_headers(listen.headers_max)
        .max_buf_size(listen.header_bytes_max)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(app))
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
