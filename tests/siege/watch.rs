//! What is seen of a server from outside: its metrics, its self-check, its memory.

use std::io::{ErrorKind, Read as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::process::{Running, get, post, try_get};

/// Longest wait for something that takes moments on a machine that does not pause.
const PATIENCE: Duration = Duration::from_secs(120);

/// A short request with a known answer.
pub(crate) const CHAT: &str =
    r#"{"messages":[{"role":"user","content":"hi"}],"max_tokens":4,"temperature":0}"#;

/// A long one, streamed: a thousand tokens in two choices.
pub(crate) const LONG: &str =
    r#"{"prompt":"hi","max_tokens":1000,"temperature":0,"ignore_eos":true,"stream":true,"n":2}"#;

/// The text of the answer to [`CHAT`].
pub(crate) fn answer(address: &str) -> String {
    let answer = post(address, "/v1/chat/completions", CHAT, &[]);
    assert_eq!(answer.status, 200, "{}", answer.body);
    let body: Value = serde_json::from_str(&answer.body).expect("JSON");
    body["choices"][0]["message"]["content"].as_str().expect("text").to_owned()
}

/// The sum of the samples of a metric that have all these labels.
pub(crate) fn metric(text: &str, name: &str, labels: &[&str]) -> f64 {
    let named = text.lines().filter(|line| {
        let rest = line.strip_prefix(name);
        rest.is_some_and(|rest| rest.starts_with(['{', ' ']))
            && labels.iter().all(|label| line.contains(label))
    });
    named.map(|line| line.rsplit(' ').next().and_then(|n| n.parse::<f64>().ok()).expect("a number")).sum()
}

/// Everything that comes before the server closes the connection, or resets it.
pub(crate) fn to_end(mut stream: TcpStream) -> String {
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    let mut bytes = Vec::new();
    if let Err(error) = stream.read_to_end(&mut bytes) {
        assert!(![ErrorKind::WouldBlock, ErrorKind::TimedOut].contains(&error.kind()), "it is kept open");
    }
    String::from_utf8(bytes).expect("UTF-8")
}

/// Asks until it is so; each try is a round trip, so that the server gets on.
pub(crate) fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
    }
}

/// Choices that ended for this reason.
pub(crate) fn finished(address: &str, reason: &str) -> f64 {
    let label = format!("reason=\"{reason}\"");
    metric(&get(address, "/metrics").body, "frugal_choices_finished_total", &[&label])
}

/// Waits until nothing runs or waits, then looks at the books: every block is free or cached, no invariant is violated, and
/// all accounts together are the time since start at its price. Needs `server.selfcheck`.
pub(crate) fn settled(address: &str) {
    until("idle", || {
        let Some(metrics) = try_get(address, "/metrics") else { return false };
        let text = metrics.body;
        let busy = ["vllm:num_requests_running", "vllm:num_requests_waiting", "frugal_queue_requests"];
        metrics.status == 200
            && busy.iter().all(|name| metric(&text, name, &[]) == 0.0)
            && metric(&text, "frugal_kv_blocks", &["state=\"referenced\""]) == 0.0
            && nothing_runs(address)
    });
    let text = get(address, "/metrics").body;
    let price = metric(&text, "frugal_price_per_hour", &[]);
    if price > 0.0 {
        let (money, seconds) =
            (metric(&text, "frugal_cost_total", &[]), metric(&text, "frugal_cost_seconds_total", &[]));
        let owed = seconds * price / 3600.0;
        assert!((money / owed - 1.0).abs() < 1e-6, "{money} is not {seconds} s at {price} an hour");
    }
}

/// Whether no request is in the books, which must be in order. What clients sent before they left may still come, one by one.
fn nothing_runs(address: &str) -> bool {
    let check = get(address, "/debug/selfcheck");
    let books: Value = serde_json::from_str(&check.body).expect("JSON");
    assert_eq!((check.status, &books["ok"]), (200, &Value::Bool(true)), "{books}");
    (&books["requests"], &books["sequences"]) == (&0.into(), &0.into())
}

/// Memory of the process that is in use, in KiB.
pub(crate) fn resident_kib(server: &Running) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.id())).expect("it lives");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// What every server here is started with.
pub(crate) const WATCHED: [&str; 6] =
    ["--set", "server.selfcheck=true", "--instance-per-hour", "0.36", "--set", "kv.dtype=f16"];
