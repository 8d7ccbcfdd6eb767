//! Ten times more requests than a server can take, over as many connections as it allows.

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hyper::StatusCode;
use tokio::task::JoinSet;

use crate::process::{Running, get};
use crate::traffic::{Client, percentile, seconds};
use crate::watch::{WATCHED, answer, metric, resident_kib, settled};

/// Of the server's, at most: what 1,000 connections, their requests and their answers take beside the model.
const GROWTH_KIB: u64 = 200_000;

/// What clients saw.
#[derive(Default)]
struct Seen {
    answered: AtomicU64,
    refused: AtomicU64,
}

/// A client that asks again as soon as it is answered or refused; the times of its answers.
async fn ask(address: Arc<str>, until: Instant, seen: Arc<Seen>) -> Vec<Duration> {
    let body =
        r#"{"messages":[{"role":"user","content":"hi"}],"max_tokens":64,"temperature":0,"ignore_eos":true}"#;
    let mut client = Client::connect(&address).await;
    let mut times = Vec::new();
    while Instant::now() < until {
        let begin = Instant::now();
        let answer = client.post("/v1/chat/completions", body).await;
        match answer.status {
            StatusCode::OK => {
                times.push(begin.elapsed());
                seen.answered.fetch_add(1, Ordering::Relaxed);
            }
            StatusCode::SERVICE_UNAVAILABLE => {
                assert!(answer.retry_after.is_some_and(|seconds| seconds >= 1), "when to come back");
                seen.refused.fetch_add(1, Ordering::Relaxed);
                // Sooner than told, so that ten are refused for one that is taken; but not as fast as it can.
                tokio::time::timeout(Duration::from_millis(100), std::future::pending::<()>()).await.ok();
            }
            other => panic!("{other}: {}", String::from_utf8_lossy(&answer.body)),
        }
    }
    times
}

#[test]
fn ten_times_too_many_requests() {
    let long = seconds().is_some();
    let duration = Duration::from_secs(seconds().unwrap_or(12));
    let connections = if long { 1000 } else { 300 };
    let limits = ["--set", "scheduler.queue_requests=64", "--set", "log.level=warn", "--max-seqs", "16"];
    let server = Running::start(&[&WATCHED[..], &limits].concat(), &[]);
    answer(&server.address);
    let before = resident_kib(&server);
    let runtime = tokio::runtime::Runtime::new().expect("threads");
    let seen = Arc::new(Seen::default());
    let mut times = runtime.block_on(async {
        let until = Instant::now() + duration;
        let mut clients = JoinSet::new();
        for _ in 0..connections {
            clients.spawn(ask(server.address.as_str().into(), until, seen.clone()));
        }
        clients.join_all().await.concat()
    });
    let grown = resident_kib(&server).saturating_sub(before);
    let (answered, refused) = (seen.answered.load(Ordering::Relaxed), seen.refused.load(Ordering::Relaxed));
    let metrics = get(&server.address, "/metrics").body;
    let steps = metric(&metrics, "frugal_steps_total", &[]);
    let [half, most, all] = [0.5, 0.99, 1.0].map(|share| percentile(&mut times, share));
    writeln!(
        std::io::stderr(),
        "load: {duration:?}, {connections} connections: {answered} answered ({half:.2?} median, {most:.2?} p99, {all:.2?} longest), \
         {refused} refused, {steps} steps, memory {before} KiB + {grown} KiB"
    )
    .expect("stderr");
    assert!(answered > 0 && refused > 2 * answered, "overload: {answered} answered, {refused} refused");
    // Whoever is taken waits for at most the queue before it: here that bound is generous, on a machine that pauses.
    let served = answered as f64 / duration.as_secs_f64();
    let bound = 20.0 + 10.0 * (64.0 + 16.0) / served;
    assert!(all.as_secs_f64() < bound, "{all:?}, with {served} a second");
    assert!(grown < GROWTH_KIB, "{grown} KiB more");
    settled(&server.address);
    assert_eq!(server.terminate(), 0);
}
