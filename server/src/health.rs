//! `frugal health`: a probe for supervisors whose image has no HTTP client.

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use frugal_config::resolved::Probe;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::HOST;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use crate::lifecycle::reachable;
use crate::terminal::printable_line;
use crate::tls::{self, Trust};

/// A server that takes longer is not ready.
const PATIENCE: Duration = Duration::from_secs(5);
const ANSWER_BYTES_MAX: usize = 4 << 10;

/// Prints what a ready server says of itself.
///
/// # Errors
/// If it is not ready: then its words.
pub(crate) fn run(probe: &Probe) -> anyhow::Result<()> {
    let Probe { listen, certificate } = probe;
    let public = SocketAddr::new(listen.host, listen.port);
    let (scheme, address, certificate) = match (listen.admin, certificate) {
        (Some(admin), _) => ("http", reachable(admin), None),
        (None, None) => ("http", reachable(public), None),
        (None, Some(file)) => ("https", reachable(public), Some(file)),
    };
    let tls = certificate.map(|file| trust(address, file)).transpose()?;
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().build().context("cannot start a runtime")?;
    let asked = runtime.block_on(async { tokio::time::timeout(PATIENCE, ask(address, tls.as_ref())).await });
    let no_answer = || format!("no server answers on {scheme}://{address}");
    let (status, text) = asked.with_context(no_answer)?.with_context(no_answer)?;
    anyhow::ensure!(status == StatusCode::OK, "{scheme}://{address} is not ready: {text}");
    writeln!(std::io::stdout(), "{text}")?;
    Ok(())
}

/// The configured certificate. On the loopback whatever is shown: nobody else answers there, and a server whose certificate was
/// renewed badly still has the one before, and serves.
fn trust(address: SocketAddr, file: &Path) -> anyhow::Result<Trust> {
    if address.ip().is_loopback() {
        return Ok(Trust::Anyone);
    }
    let pem = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    Ok(Trust::Own(pem))
}

async fn ask(address: SocketAddr, tls: Option<&Trust>) -> anyhow::Result<(StatusCode, String)> {
    let socket = TcpStream::connect(address).await?;
    match tls {
        None => readyz(address, socket).await,
        Some(trust) => readyz(address, tls::connect(socket, trust).await?).await,
    }
}

async fn readyz(
    address: SocketAddr,
    socket: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) -> anyhow::Result<(StatusCode, String)> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(socket)).await?;
    // Whatever ends it, the answer tells; it goes with the runtime.
    tokio::spawn(connection);
    let request = Request::get("/readyz").header(HOST, address.to_string());
    let response = sender.send_request(request.body(Empty::<Bytes>::new())?).await?;
    let status = response.status();
    let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
    let body = body.map_err(|error| anyhow::anyhow!(error))?.to_bytes();
    Ok((status, printable_line(&String::from_utf8_lossy(&body))))
}
