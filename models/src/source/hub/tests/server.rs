//! A stand-in for the hub on a loopback port, which does what a test tells it, request by request.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use sha2::{Digest, Sha256};

pub(super) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What a client asked.
#[derive(Clone, Debug)]
pub(super) struct Request {
    /// With the query.
    pub(super) path: String,
    headers: Vec<(String, String)>,
}

impl Request {
    fn read(stream: &TcpStream) -> Option<Self> {
        let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
        let path = lines.next()?.split(' ').nth(1)?.to_owned();
        let header = |line: String| {
            line.split_once(": ").map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        };
        Some(Self { path, headers: lines.take_while(|line| !line.is_empty()).filter_map(header).collect() })
    }

    pub(super) fn header(&self, wanted: &str) -> Option<&str> {
        self.headers.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.as_str())
    }

    /// The first byte of the range asked for.
    pub(super) fn from(&self) -> Option<usize> {
        self.header("range")?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
    }
}

/// What a client is answered. The length of `body` is declared unless `headers` do it.
#[derive(Clone, Default)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: Vec<u8>,
    /// Sent of it; all if None.
    pub(super) sent: Option<usize>,
    /// Whether the connection then stays open until the client leaves.
    pub(super) stall: bool,
    /// Sent byte by byte.
    pub(super) trickle: bool,
}

impl Reply {
    pub(super) fn new(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    pub(super) fn with(mut self, name: &'static str, value: impl ToString) -> Self {
        self.headers.push((name, value.to_string()));
        self
    }

    pub(super) fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    fn send(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let mut head = format!("HTTP/1.1 {} Stand-in\r\nConnection: close\r\n", self.status);
        for (name, value) in &self.headers {
            head += &format!("{name}: {value}\r\n");
        }
        if !self.headers.iter().any(|(name, _)| ["Content-Length", "Transfer-Encoding"].contains(name)) {
            head += &format!("Content-Length: {}\r\n", self.body.len());
        }
        stream.write_all(format!("{head}\r\n").as_bytes())?;
        let body = &self.body[..self.sent.unwrap_or(self.body.len())];
        for part in body.chunks(if self.trickle { 1 } else { body.len().max(1) }) {
            stream.set_nodelay(true)?;
            stream.write_all(part)?;
        }
        if self.stall {
            stream.read_to_end(&mut Vec::new())?;
        }
        Ok(())
    }
}

/// A server; it ends with the test program.
pub(super) struct Server {
    pub(super) address: SocketAddr,
    log: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    /// `reply` also gets how many requests there were before.
    pub(super) fn start(reply: impl Fn(&Request, usize) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let (requests, reply) = (Arc::clone(&log), Arc::new(reply));
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (requests, reply) = (Arc::clone(&requests), Arc::clone(&reply));
                thread::spawn(move || {
                    let Some(request) = Request::read(&stream) else { return };
                    let before = {
                        let mut requests = requests.lock().unwrap();
                        requests.push(request.clone());
                        requests.len() - 1
                    };
                    // A client may leave at any time.
                    reply(&request, before).send(stream).ok();
                });
            }
        });
        Self { address, log }
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(super) fn log(&self) -> Vec<Request> {
        self.log.lock().unwrap().clone()
    }

    /// The paths asked for, without queries.
    pub(super) fn paths(&self) -> Vec<String> {
        self.log().iter().map(|r| r.path.split('?').next().unwrap_or("").to_owned()).collect()
    }
}

/// A repository as the hub serves it.
#[derive(Clone)]
pub(super) struct Repo(pub(super) Vec<(&'static str, Vec<u8>)>);

pub(super) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Repo {
    pub(super) fn reply(&self, request: &Request) -> Reply {
        if request.path.starts_with("/api/models/o/r/revision/") {
            return Reply::new(200).body(self.listing().to_string());
        }
        let file = request.path.strip_prefix(&format!("/o/r/resolve/{COMMIT}/"));
        match file.and_then(|file| self.0.iter().find(|(name, _)| *name == file)) {
            Some((_, body)) => content(request, body),
            None => Reply::new(404).with("X-Error-Code", "EntryNotFound"),
        }
    }

    pub(super) fn listing(&self) -> serde_json::Value {
        let file = |(name, bytes): &(&str, Vec<u8>)| {
            serde_json::json!({
                "rfilename": name, "size": bytes.len(), "blobId": "x",
                "lfs": { "sha256": sha256(bytes), "size": bytes.len(), "pointerSize": 130 },
            })
        };
        let mut siblings: Vec<_> = self.0.iter().map(file).collect();
        siblings.push(serde_json::json!({ "rfilename": "README.md", "size": 3, "blobId": "y" }));
        serde_json::json!({ "id": "o/r", "sha": COMMIT, "private": false, "siblings": siblings })
    }
}

/// A file, or what is asked of it.
pub(super) fn content(request: &Request, body: &[u8]) -> Reply {
    match request.from() {
        None => Reply::new(200).body(body),
        Some(from) => {
            let range = format!("bytes {from}-{}/{}", body.len() - 1, body.len());
            Reply::new(206).with("Content-Range", range).body(&body[from..])
        }
    }
}
