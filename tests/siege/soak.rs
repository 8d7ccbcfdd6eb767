//! Mixed traffic with clients that leave at random, for long: what was true in the first minutes is true in the last.

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use http_body_util::BodyExt as _;
use hyper::StatusCode;
use serde_json::json;
use tokio::task::JoinSet;

use crate::process::{Running, fixture, frugal};
use crate::traffic::{Client, percentile, seconds};
use crate::watch::{WATCHED, answer, resident_kib, settled};

/// Fewer than a step takes: it is never overloaded, and its times are comparable.
const CLIENTS: u64 = 8;

/// From here on drift is told: not asserted, for what else the machine does shows more.
const LONG: Duration = Duration::from_secs(1800);

/// What one window of the run was like.
struct Window {
    requests: u64,
    left: u64,
    /// Until the first event, and until the end, of streams of one kind.
    first: Vec<Duration>,
    whole: Vec<Duration>,
    memory_kib: u64,
}

/// Numbers that look random; a seed repeats them.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

#[derive(Default)]
struct Counts {
    requests: AtomicU64,
    left: AtomicU64,
}

/// A client until a moment: the times of its measured streams.
async fn client(
    address: Arc<str>,
    mut dice: Dice,
    until: Instant,
    counts: Arc<Counts>,
) -> Vec<(Duration, Duration)> {
    let mut client = Client::connect(&address).await;
    let mut times = Vec::new();
    while Instant::now() < until {
        counts.requests.fetch_add(1, Ordering::Relaxed);
        let words = |n: u64, dice: &mut Dice| {
            (0..n).map(|_| ["the ", "of ", "and ", "to ", "in "][dice.below(5) as usize]).collect::<String>()
        };
        let (long, short) = (10 + dice.below(300), 1 + dice.below(40));
        let text = words(long, &mut dice);
        let messages = json!([{"role": "user", "content": text}]);
        let (path, body) = match dice.below(8) {
            0 => (
                "/v1/completions",
                json!({"prompt": [text, "b"], "n": 2, "max_tokens": short, "logprobs": 2}),
            ),
            1 => ("/v1/responses", json!({"input": text, "max_output_tokens": short})),
            2 => ("/v1/messages", json!({"messages": messages, "max_tokens": short})),
            3 => (
                "/v1/chat/completions",
                json!({"messages": messages, "max_tokens": short, "response_format": {"type": "json_object"}}),
            ),
            4 => (
                "/v1/chat/completions",
                json!({"messages": messages, "max_tokens": short, "stop": ["a", "e"], "temperature": 2}),
            ),
            5 => ("/tokenize", json!({"prompt": text})),
            6 => {
                // Leaves at a random point of a long stream.
                let ask =
                    json!({"messages": messages, "max_tokens": 400, "stream": true, "ignore_eos": true});
                let mut answer = client.begin("/v1/chat/completions", &ask.to_string()).await.into_body();
                for _ in 0..dice.below(60) {
                    if answer.frame().await.is_none() {
                        break;
                    }
                }
                client.leave().await;
                counts.left.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            _ => {
                let ask = json!({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 32, "stream": true, "ignore_eos": true, "temperature": 0});
                let begin = Instant::now();
                let mut answer = client.begin("/v1/chat/completions", &ask.to_string()).await.into_body();
                let first = answer.frame().await.map(|_| begin.elapsed());
                answer.collect().await.expect("all of it");
                times.push((first.expect("an event"), begin.elapsed()));
                continue;
            }
        };
        let answer = client.post(path, &body.to_string()).await;
        // A schema that cannot be kept within the tokens is no one's fault but the client's.
        let good = [StatusCode::OK, StatusCode::BAD_REQUEST].contains(&answer.status);
        assert!(good, "{path}: {}: {}", answer.status, String::from_utf8_lossy(&answer.body));
    }
    times
}

#[test]
fn it_stays_as_it_was() {
    let total = Duration::from_secs(seconds().unwrap_or(24));
    // Of ten minutes, or less if the whole is short.
    let length = if total < LONG { total / 6 } else { Duration::from_secs(600) };
    let count = (total.as_secs_f64() / length.as_secs_f64()).round() as u64;
    // A cache and a store that are full soon, so that what grows then is something else.
    let small = ["--set", "kv.memory=8MiB", "--set", "responses.max_entries=50", "--set", "log.level=warn"];
    let model = fixture("qwen3moe-Q4_K_M.gguf");
    let serve = ["serve", "--model", &model, "--port", "0", "--threads", "1"];
    let server = Running::launch(frugal(&[&serve[..], &WATCHED, &small].concat(), &[]));
    answer(&server.address);
    let runtime = tokio::runtime::Runtime::new().expect("threads");
    let mut windows = Vec::new();
    for number in 0..count {
        let counts = Arc::new(Counts::default());
        let times = runtime.block_on(async {
            let until = Instant::now() + length;
            let mut clients = JoinSet::new();
            for i in 0..CLIENTS {
                clients.spawn(client(
                    server.address.as_str().into(),
                    Dice(number * CLIENTS + i),
                    until,
                    counts.clone(),
                ));
            }
            clients.join_all().await.concat()
        });
        // The books, in every window.
        settled(&server.address);
        let (first, whole) = times.into_iter().unzip();
        let [requests, left] = [&counts.requests, &counts.left].map(|n| n.load(Ordering::Relaxed));
        windows.push(Window { requests, left, first, whole, memory_kib: resident_kib(&server) });
    }
    let mut stderr = std::io::stderr();
    for (number, window) in windows.iter_mut().enumerate() {
        let [f50, f99] = [0.5, 0.99].map(|share| percentile(&mut window.first, share));
        let [w50, w99] = [0.5, 0.99].map(|share| percentile(&mut window.whole, share));
        let Window { requests, left, memory_kib, .. } = window;
        writeln!(
            stderr,
            "soak: window {number} of {length:.0?}: {requests} requests, {left} left; first event {f50:.1?} median {f99:.1?} p99, \
             end {w50:.1?} median {w99:.1?} p99; {memory_kib} KiB"
        )
        .expect("stderr");
    }
    if total >= LONG
        && let [first, .., last] = &mut windows[..]
    {
        let ratio = |now: Duration, then: Duration| now.as_secs_f64() / then.as_secs_f64();
        let mut of = |share| {
            [&mut last.first, &mut first.first, &mut last.whole, &mut first.whole]
                .map(|times| percentile(times, share))
        };
        let ([f, f0, w, w0], [g, g0, v, v0]) = (of(0.5), of(0.99));
        writeln!(
            stderr,
            "soak: the last {length:.0?} over the first: first event {:.2} median {:.2} p99, end {:.2} median {:.2} p99",
            ratio(f, f0), ratio(g, g0), ratio(w, w0), ratio(v, v0),
        )
        .expect("stderr");
    }
    assert!(windows.iter().all(|window| window.left > 0 && !window.whole.is_empty()), "nothing was shown");
    // The first window fills pools, caches and kept responses; a kilobyte for every request would be more than this.
    let (early, late) = (&windows[1], &windows[windows.len() - 1]);
    let grown = late.memory_kib.saturating_sub(early.memory_kib);
    let between: u64 = windows[2..].iter().map(|window| window.requests).sum();
    assert!(grown < 16_384 + between / 4, "{grown} KiB more after {between} requests");
    assert_eq!(server.terminate(), 0);
}
