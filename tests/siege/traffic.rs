//! Clients that cost little beside the server.

use std::time::Duration;

use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// How long a test is to take, if it is asked to be as long as it is meant to be.
pub(crate) fn seconds() -> Option<u64> {
    let text = std::env::var("FRUGAL_SIEGE_SECONDS").ok()?;
    Some(text.parse().expect("FRUGAL_SIEGE_SECONDS is a number"))
}

/// The value below which this share of them lies.
pub(crate) fn percentile(times: &mut [Duration], share: f64) -> Duration {
    times.sort_unstable();
    let last = times.len().saturating_sub(1);
    times.get((last as f64 * share) as usize).copied().unwrap_or_default()
}

/// An answer.
pub(crate) struct Whole {
    pub(crate) status: StatusCode,
    pub(crate) retry_after: Option<u32>,
    pub(crate) body: Bytes,
}

/// A connection that is kept, and made again if the server closed it.
pub(crate) struct Client {
    address: String,
    sender: SendRequest<Full<Bytes>>,
}

impl Client {
    pub(crate) async fn connect(address: &str) -> Self {
        Self { address: address.to_owned(), sender: connect(address).await }
    }

    /// Sends a request; its answer has begun.
    pub(crate) async fn begin(&mut self, path: &str, body: &str) -> Response<Incoming> {
        if self.sender.is_closed() || self.sender.ready().await.is_err() {
            self.sender = connect(&self.address).await;
        }
        let request = Request::post(path)
            .header(header::HOST, "localhost")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::from(body.to_owned()))
            .expect("a request");
        self.sender.send_request(request).await.expect("an answer")
    }

    /// Sends a request and waits for all of its answer.
    pub(crate) async fn post(&mut self, path: &str, body: &str) -> Whole {
        let (head, body) = self.begin(path, body).await.into_parts();
        let retry_after = head.headers.get(header::RETRY_AFTER).and_then(|v| v.to_str().ok()?.parse().ok());
        let body = body.collect().await.expect("all of it").to_bytes();
        Whole { status: head.status, retry_after, body }
    }

    /// Goes away, whatever is under way, and comes back.
    pub(crate) async fn leave(&mut self) {
        self.sender = connect(&self.address).await;
    }
}

async fn connect(address: &str) -> SendRequest<Full<Bytes>> {
    let stream = TcpStream::connect(address).await.expect("a connection");
    stream.set_nodelay(true).expect("a socket");
    let (sender, connection) = handshake(TokioIo::new(stream)).await.expect("no bytes are exchanged yet");
    // Its errors are those of the requests on it.
    tokio::spawn(async move { drop(connection.await) });
    sender
}
