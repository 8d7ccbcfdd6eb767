//! Requests of a client to a server of OpenAI's API: one over each connection, in HTTP/1.1. Dropping a [`Stream`] closes its
//! connection, which ends the request at the server.
//!
//! Absent on purpose: redirects, proxies, reuse of connections.

pub(crate) mod sse;

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST};
use hyper::http::request::Builder;
use hyper::{Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;

use self::sse::error_message;
use crate::tls;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Of the body of a refusal, so much is read.
const REFUSAL_BYTES_MAX: usize = 64 << 10;
/// Longest list of models.
const MODELS_BYTES_MAX: usize = 4 << 20;

/// Where requests go.
pub(crate) struct Target {
    /// What gave the URL, for messages.
    flag: &'static str,
    /// As it was given, for messages.
    url: String,
    /// Host and port to connect to.
    address: String,
    /// Host and port as the server knows them.
    host: String,
    /// Before `/v1`.
    base: String,
    /// With https, and whose certificate is then wanted.
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

impl Target {
    /// From the address of a server, with or without `/v1`, which `flag` gave; with https it is trusted as the authorities
    /// in a file say.
    pub(crate) fn new(flag: &'static str, url: &str, ca_file: Option<&Path>) -> anyhow::Result<Self> {
        let wrong = || format!("{flag} {url} is not the URL of a server, such as http://127.0.0.1:8000");
        let uri: Uri = url.parse().with_context(wrong)?;
        let secure = uri.scheme_str() == Some("https");
        anyhow::ensure!((secure || uri.scheme_str() == Some("http")) && uri.query().is_none(), wrong());
        let authority = uri.authority().with_context(wrong)?;
        anyhow::ensure!(!authority.as_str().contains('@'), "{flag} {url}: give a key with --api-key");
        let tls = if secure {
            // An IPv6 address stands in brackets there, and nowhere else.
            let name = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
            Some((tls::client(ca_file)?, ServerName::try_from(name).with_context(wrong)?))
        } else {
            None
        };
        let base = uri.path().trim_end_matches('/');
        let base = base.strip_suffix("/v1").unwrap_or(base);
        Ok(Self {
            flag,
            url: url.to_owned(),
            address: format!(
                "{}:{}",
                authority.host(),
                authority.port_u16().unwrap_or(if secure { 443 } else { 80 })
            ),
            host: authority.as_str().to_owned(),
            base: base.to_owned(),
            tls,
        })
    }

    /// As it was given.
    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Asks for a chat completion, which `body` says is to be streamed, and waits for the head of the answer.
    ///
    /// # Errors
    /// If there is no server, or it refuses: then its words.
    pub(crate) async fn chat(&self, body: &Value, api_key: Option<&str>) -> anyhow::Result<Stream> {
        let request = Request::post(format!("{}/v1/chat/completions", self.base))
            .header(CONTENT_TYPE, "application/json")
            .header(ACCEPT, "text/event-stream");
        self.send(request, body.to_string().into(), api_key).await
    }

    /// The name of the first model that the server lists.
    ///
    /// # Errors
    /// As for a chat, and if it lists none.
    pub(crate) async fn first_model(&self, api_key: Option<&str>) -> anyhow::Result<String> {
        let request = Request::get(format!("{}/v1/models", self.base)).header(ACCEPT, "application/json");
        let stream = self.send(request, Bytes::new(), api_key).await?;
        let list = Limited::new(stream.body, MODELS_BYTES_MAX).collect().await;
        let list = list.map_err(|e| anyhow::anyhow!("{} breaks off its list of models: {e}", self.url))?;
        let list: Value = serde_json::from_slice(&list.to_bytes()).unwrap_or_default();
        let first = || list.get("data")?.get(0)?.get("id")?.as_str();
        let first = first().with_context(|| format!("{} lists no model: name one with --model", self.url))?;
        Ok(first.to_owned())
    }

    /// Whether it says that it cannot answer yet (503 at `/health`, as ours, vLLM's and llama.cpp's do).
    ///
    /// # Errors
    /// If there is no server.
    pub(crate) async fn is_loading(&self) -> anyhow::Result<bool> {
        let request = Request::get(format!("{}/health", self.base));
        let (response, _connection) = self.respond(request, Bytes::new(), None).await?;
        Ok(response.status() == StatusCode::SERVICE_UNAVAILABLE)
    }

    async fn send(&self, request: Builder, body: Bytes, api_key: Option<&str>) -> anyhow::Result<Stream> {
        let (response, connection) = self.respond(request, body, api_key).await?;
        let status = response.status();
        let body = response.into_body();
        if status.is_success() {
            return Ok(Stream { body, _connection: connection });
        }
        let body = Limited::new(body, REFUSAL_BYTES_MAX).collect().await;
        let body = body.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        let message = serde_json::from_slice(&body).ok().and_then(|body: Value| error_message(&body));
        match message {
            Some(message) => anyhow::bail!("{message}"),
            None => anyhow::bail!("{} answers with the status {status}", self.url),
        }
    }

    /// Whatever the status.
    async fn respond(
        &self,
        request: Builder,
        body: Bytes,
        api_key: Option<&str>,
    ) -> anyhow::Result<(Response<Incoming>, Closing)> {
        let mut request = request.header(HOST, &self.host);
        if let Some(key) = api_key {
            request = request.header(AUTHORIZATION, format!("Bearer {key}"));
        }
        let request = request.body(Full::new(body));
        let request = request.context("the API key has characters that no header may have")?;
        let (mut sender, connection) = self.connect().await?;
        let broken = || format!("{} broke the connection", self.url);
        Ok((sender.send_request(request).await.with_context(broken)?, connection))
    }

    async fn connect(&self) -> anyhow::Result<(http1::SendRequest<Full<Bytes>>, Closing)> {
        let Self { flag, url, .. } = self;
        let unreachable = |why: &dyn std::fmt::Display| {
            anyhow::anyhow!(
                "no server answers on {url} ({why}): start one with `frugal serve`, or name another with {flag}"
            )
        };
        let connected = timeout(CONNECT_TIMEOUT, TcpStream::connect(&self.address)).await;
        let socket = connected.map_err(|e| unreachable(&e))?.map_err(|e| unreachable(&e))?;
        // The end of a long request would else wait for its beginning to arrive.
        socket.set_nodelay(true).map_err(|e| unreachable(&e))?;
        match &self.tls {
            None => exchange(socket).await,
            Some((connector, name)) => {
                let agreed = timeout(CONNECT_TIMEOUT, connector.connect(name.clone(), socket)).await;
                let agreed = agreed.with_context(|| format!("{url} does not finish its TLS handshake"))?;
                let failed = |e| anyhow::anyhow!("no TLS with {url}: {}", tls::reason(&e));
                exchange(agreed.map_err(failed)?).await
            }
        }
    }
}

/// HTTP over a connection, driven until [`Closing`] is dropped.
async fn exchange(
    socket: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) -> anyhow::Result<(http1::SendRequest<Full<Bytes>>, Closing)> {
    let (sender, connection) = http1::handshake(TokioIo::new(socket)).await?;
    let driven = tokio::spawn(async move {
        // Whatever ends it, the body tells.
        let _ = connection.await;
    });
    Ok((sender, Closing(driven)))
}

/// The body of an answer.
pub(crate) struct Stream {
    body: Incoming,
    _connection: Closing,
}

impl Stream {
    /// More bytes; None at the end. Cancelling the future loses nothing.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Option<Bytes>> {
        while let Some(frame) = self.body.frame().await {
            let frame = frame.context("the server broke the connection")?;
            if let Ok(bytes) = frame.into_data() {
                return Ok(Some(bytes));
            }
        }
        Ok(None)
    }
}

/// The task that drives a connection; it ends with this.
struct Closing(JoinHandle<()>);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.abort();
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_server_says_that_it_is_loading_by_one_status_only() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/some/v1", listener.local_addr().unwrap());
        let target = Target::new("--url", &url, None).unwrap();
        for (status, expected) in [(503, true), (200, false), (404, false), (500, false)] {
            let answer = async {
                let (mut socket, _) = listener.accept().await.unwrap();
                let mut head = [0; 1024];
                let read = socket.read(&mut head).await.unwrap();
                assert!(head[..read].starts_with(b"GET /some/health HTTP/1.1\r\n"));
                let answer = format!("HTTP/1.1 {status} .\r\nContent-Length: 0\r\n\r\n");
                socket.write_all(answer.as_bytes()).await.unwrap();
                socket
            };
            let (loading, _socket) = tokio::join!(target.is_loading(), answer);
            assert_eq!(loading.unwrap(), expected, "{status}");
        }
        drop(listener);
        assert!(target.is_loading().await.is_err());
    }

    #[test]
    fn a_servers_address_is_taken_with_and_without_the_version() {
        let check = |url: &str, address: &str, host: &str, base: &str| {
            let target = Target::new("--url", url, None).unwrap();
            assert_eq!(
                (target.address.as_str(), target.host.as_str(), target.base.as_str()),
                (address, host, base)
            );
        };
        check("http://127.0.0.1:8000", "127.0.0.1:8000", "127.0.0.1:8000", "");
        check("http://box/", "box:80", "box", "");
        check("https://box", "box:443", "box", "");
        check("https://[::1]:9", "[::1]:9", "[::1]:9", "");
        check("http://[::1]:9/v1", "[::1]:9", "[::1]:9", "");
        check("http://box/models/a/v1/", "box:80", "box", "/models/a");
        for wrong in
            ["", "127.0.0.1:8000", "box", "ftp://box", "http://", "http://a b", "http://k@box", "/v1"]
        {
            let error = Target::new("--against", wrong, None).err().expect(wrong).to_string();
            assert!(error.starts_with(&format!("--against {wrong}")), "{error}");
        }
    }
}
