//! What the server costs beside the model: the fake runner's steps take no time, so that all there is is overhead. Clients and server
//! share the machine; requests go through the whole router over loopback sockets.
//!
//! `cargo bench --workspace --bench overhead` prints requests and streamed tokens a second, and the time from a step's end to its token
//! at the client. `-- memory [REQUESTS]` prints the process's memory after each tenth of so many requests of every kind.

use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use frugal_tests::load::{Client, FakeServer, chat, every_kind, resident_kib};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;

const CHAT: &str = "/v1/chat/completions";
const CONNECTIONS: usize = 32;
const MEASURED: Duration = Duration::from_secs(5);
const STREAM_TOKENS: u32 = 512;
const PACED_TOKENS: u32 = 1800;
const PACED_STREAMS: u32 = 5;

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
    let mut delays = Vec::new();
    for _ in 0..PACED_STREAMS {
        delays.extend(paced(server).await?);
    }
    delays.sort_unstable();
    let at = |share: usize| delays.get(delays.len() * share / 100).copied().unwrap_or_default();
    let us = |share| at(share).as_nanos() as f64 / 1e3;
    say(&format!(
        "from a step's end to its token at the client, one stream, {} tokens: median {:.1} us, 90% {:.1} us, 99% {:.1} us",
        delays.len(),
        us(50),
        us(90),
        us(99)
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

/// How long each token of a stream takes from the moment its step may end.
async fn paced(server: &FakeServer) -> Result<Vec<Duration>> {
    let mut client = Client::connect(server.address).await?;
    server.control.pause();
    // The prompt's step gives the first token.
    server.control.allow(1);
    let mut body = client.post(CHAT, &chat(PACED_TOKENS, true)).await?;
    // Before it comes the assistant's role.
    events(&mut body, 2).await?;
    let mut delays = Vec::new();
    for _ in 1..PACED_TOKENS {
        let begin = Instant::now();
        server.control.allow(1);
        events(&mut body, 1).await?;
        delays.push(begin.elapsed());
    }
    server.control.resume();
    while let Some(frame) = body.frame().await {
        frame?;
    }
    Ok(delays)
}

/// Reads so many events.
async fn events(body: &mut Incoming, count: usize) -> Result<()> {
    let mut seen = 0;
    while seen < count {
        let frame = body.frame().await.context("one more event")??;
        let data = frame.into_data().unwrap_or_default();
        seen += data.windows(6).filter(|bytes| bytes == b"data: ").count();
    }
    Ok(())
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
