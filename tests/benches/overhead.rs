//! What the server costs beside the model: the fake runner's steps take no time, so that all there is is overhead. Clients and server
//! share the machine; requests go through the whole router over loopback sockets.
//!
//! `cargo bench --workspace --bench overhead` prints requests and streamed tokens a second, what a token of a single stream takes when step
//! follows step, and how long one token takes from its step's end to the client's socket when everything slept before. The client that
//! times that asks the socket again and again: its own waking is not the server's. `-- memory [REQUESTS]` prints the process's memory after each tenth of so many requests of every kind.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use frugal_tests::load::{Client, FakeServer, chat, every_kind, resident_kib};
use http_body_util::BodyExt as _;

const CHAT: &str = "/v1/chat/completions";
const CONNECTIONS: usize = 32;
const MEASURED: Duration = Duration::from_secs(5);
const STREAM_TOKENS: u32 = 512;
const TIMED_TOKENS: u32 = 1800;
const TIMED_STREAMS: u32 = 5;
const ASLEEP_AFTER: Duration = Duration::from_micros(200);
const PATIENCE: Duration = Duration::from_secs(10);

fn main() -> Result<()> {
    // As many as the binary has.
    let server = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let clients = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let running = server.block_on(FakeServer::start(1000))?;
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    match arguments.next().as_deref() {
        Some("memory") => {
            let requests = arguments.next().map_or(Ok(100_000), |n| n.parse())?;
            clients.block_on(memory(&running, requests))
        }
        _ => clients.block_on(overhead(&running)),
    }
}

fn say(line: &str) -> Result<()> {
    Ok(writeln!(std::io::stdout(), "{line}")?)
}

async fn overhead(server: &FakeServer) -> Result<()> {
    let requests = rate(server.address, false, 1).await?;
    say(&format!("requests a second, {CONNECTIONS} connections, whole answers of 1 token: {requests:.0}"))?;
    let streams = rate(server.address, true, STREAM_TOKENS).await?;
    let tokens = streams * f64::from(STREAM_TOKENS);
    say(&format!("streamed tokens a second, {CONNECTIONS} streams of {STREAM_TOKENS} tokens: {tokens:.0}"))?;
    let gaps = timed(|| unpaced(server.address))?;
    say(&format!("between tokens of a single stream, {gaps}"))?;
    let delays = timed(|| paced(server))?;
    say(&format!("from a step's end to its token at the client, all asleep before, {delays}"))
}

/// The times that some streams give, in words.
fn timed(stream: impl Fn() -> Result<Vec<Duration>>) -> Result<String> {
    let mut times = Vec::new();
    for _ in 0..TIMED_STREAMS {
        times.extend(stream()?);
    }
    times.sort_unstable();
    let at = |share: usize| times.get(times.len() * share / 100).copied().unwrap_or_default();
    let us = |share| at(share).as_nanos() as f64 / 1e3;
    let mean = times.iter().sum::<Duration>().as_nanos() as f64 / 1e3 / times.len().max(1) as f64;
    let (count, median, most, nearly) = (times.len(), us(50), us(90), us(99));
    Ok(format!(
        "{count} tokens: median {median:.1} us, mean {mean:.1} us, 90% {most:.1} us, 99% {nearly:.1} us"
    ))
}

/// Answers a second.
async fn rate(address: SocketAddr, stream: bool, tokens: u32) -> Result<f64> {
    let (done, begin) = (Arc::new(AtomicU64::new(0)), Instant::now());
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..CONNECTIONS {
        let (done, mut client) = (done.clone(), Client::connect(address).await?);
        tasks.spawn(async move {
            let ask = chat(tokens, stream);
            while begin.elapsed() < MEASURED {
                let mut body = client.post(CHAT, &ask).await?;
                while let Some(frame) = body.frame().await {
                    frame?;
                }
                done.fetch_add(1, Ordering::Relaxed);
            }
            anyhow::Ok(())
        });
    }
    while let Some(task) = tasks.join_next().await {
        task??;
    }
    Ok(done.load(Ordering::Relaxed) as f64 / begin.elapsed().as_secs_f64())
}

/// The times between the tokens of a stream whose steps are not held back. Tokens that arrive together share the time.
fn unpaced(address: SocketAddr) -> Result<Vec<Duration>> {
    let mut stream = Events::ask(address)?;
    let (mut tokens, mut last, mut gaps) = (stream.first()?, Instant::now(), Vec::new());
    while tokens < TIMED_TOKENS {
        let count = stream.some()?;
        let now = Instant::now();
        tokens += count;
        gaps.extend(std::iter::repeat_n((now - last) / count, count as usize));
        last = now;
    }
    Ok(gaps)
}

/// How long each token of a stream takes from its step's end, each step let go after the token before.
fn paced(server: &FakeServer) -> Result<Vec<Duration>> {
    server.control.pause();
    // The prompt's step gives the first token.
    server.control.allow(1);
    let mut stream = Events::ask(server.address)?;
    stream.first()?;
    let mut delays = Vec::new();
    for _ in 1..TIMED_TOKENS {
        // Until whoever waits has gone to sleep.
        let idle = Instant::now();
        while idle.elapsed() < ASLEEP_AFTER {
            std::hint::spin_loop();
        }
        server.control.allow(1);
        stream.some()?;
        let now = Instant::now();
        delays.push(now - server.control.passed().context("a step was let finish")?);
    }
    server.control.resume();
    Ok(delays)
}

/// A stream of events, read without ever sleeping.
struct Events {
    socket: TcpStream,
    /// The end of what was read, where an event's mark may be cut.
    tail: Vec<u8>,
}

impl Events {
    fn ask(address: SocketAddr) -> Result<Self> {
        let mut socket = TcpStream::connect(address)?;
        let body = chat(TIMED_TOKENS, true).to_string();
        let head = format!("POST {CHAT} HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\n");
        write!(socket, "{head}content-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket, tail: Vec::new() })
    }

    /// How many tokens there are when the first is there. Before it comes the assistant's role.
    fn first(&mut self) -> Result<u32> {
        let mut seen = 0;
        while seen < 2 {
            seen += self.some()?;
        }
        Ok(seen - 1)
    }

    /// How many events came, at least one.
    fn some(&mut self) -> Result<u32> {
        const MARK: &[u8] = b"data: ";
        let (mut chunk, begin) = ([0; 1 << 16], Instant::now());
        loop {
            match self.socket.read(&mut chunk) {
                Ok(0) => bail!("the stream ended early"),
                Ok(len) => {
                    self.tail.extend_from_slice(chunk.get(..len).unwrap_or_default());
                    let count = self.tail.windows(MARK.len()).filter(|bytes| *bytes == MARK).count();
                    self.tail.drain(..self.tail.len().saturating_sub(MARK.len() - 1));
                    if count > 0 {
                        return Ok(u32::try_from(count)?);
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    ensure!(begin.elapsed() < PATIENCE, "no event for {PATIENCE:?}");
                    std::hint::spin_loop();
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

async fn memory(server: &FakeServer, requests: u64) -> Result<()> {
    let tenth = requests.div_ceil(10);
    say(&format!("{:>9} requests: {:>7} KiB", 0, resident_kib()?))?;
    for part in 1..=10 {
        every_kind(server.address, tenth, 16).await?;
        say(&format!("{:>9} requests: {:>7} KiB", part * tenth, resident_kib()?))?;
    }
    Ok(())
}
