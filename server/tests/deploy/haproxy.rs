//! Three servers behind HAProxy: what hashing on the cache key is worth, and that one of them can go.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::process::{Running, get, post, try_get};
use crate::tools::{Daemon, Folder, free_port, have, replace, run, text};

/// Three servers and HAProxy in front of them.
struct Fleet {
    servers: Vec<Running>,
    address: String,
    daemon: Daemon,
    _folder: Folder,
}

impl Fleet {
    fn start(name: &str) -> Self {
        let servers: Vec<Running> = (0..3).map(|_| Running::start(&[], &[])).collect();
        let address = format!("127.0.0.1:{}", free_port());
        let mut config = replace(&text("haproxy/haproxy.cfg"), "127.0.0.1:8000", &address);
        for (server, port) in servers.iter().zip(["8001", "8002", "8003"]) {
            config = replace(&config, &format!("127.0.0.1:{port}"), &server.address);
        }
        let folder = Folder::new(name);
        let config = folder.write("haproxy.cfg", &config);
        run(Command::new("haproxy").arg("-c").arg("-f").arg(&config));
        let mut command = Command::new("haproxy");
        command
            .arg("-db")
            .arg("-f")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut fleet = Self { servers, address, daemon: Daemon::start(&mut command), _folder: folder };
        let deadline = Instant::now() + Duration::from_secs(60);
        while try_get(&fleet.address, "/readyz").is_none_or(|answer| answer.status != 200) {
            fleet.daemon.alive();
            assert!(Instant::now() < deadline, "HAProxy does not answer");
        }
        fleet
    }

    /// All servers' samples of a metric without labels of its own, added.
    fn sum(&self, metric: &str) -> f64 {
        self.servers.iter().map(|server| sample(server, metric)).sum()
    }
}

fn sample(server: &Running, metric: &str) -> f64 {
    let metrics = get(&server.address, "/metrics").body;
    let line = metrics.lines().find(|line| line.starts_with(&format!("{metric}{{")));
    let value = line.and_then(|line| line.rsplit_once(' ')?.1.parse().ok());
    value.unwrap_or_else(|| panic!("no {metric} in\n{metrics}"))
}

/// Turn `turn` of a conversation: all that was said before, and a question.
fn chat(conversation: &str, turn: usize, key: Option<&str>) -> String {
    let mut messages =
        vec![serde_json::json!({"role": "system", "content": format!("{conversation}. ").repeat(10)})];
    for turn in 0..turn {
        messages.push(
            serde_json::json!({"role": "user", "content": format!("question {turn} of {conversation}")}),
        );
        messages.push(
            serde_json::json!({"role": "assistant", "content": format!("answer {turn} to {conversation}")}),
        );
    }
    messages
        .push(serde_json::json!({"role": "user", "content": format!("question {turn} of {conversation}")}));
    let mut body = serde_json::json!({"messages": messages, "max_tokens": 1, "temperature": 0});
    if let Some(key) = key {
        body["prompt_cache_key"] = key.into();
    }
    body.to_string()
}

const CONVERSATIONS: usize = 8;
const TURNS: usize = 5;

/// The share of prompt tokens found in a cache, over conversations whose turns come in a random order.
fn hit_rate(fleet: &Fleet, name: &str, keyed: bool) -> f64 {
    let (hits, queries) = ("vllm:prefix_cache_hits_total", "vllm:prefix_cache_queries_total");
    let before = (fleet.sum(hits), fleet.sum(queries));
    let mut turns = [0; CONVERSATIONS];
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    while turns.iter().any(|turn| *turn < TURNS) {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let i = usize::try_from(random % CONVERSATIONS as u64).expect("few conversations");
        if turns[i] < TURNS {
            let conversation = format!("{name} {i}");
            let body = chat(&conversation, turns[i], keyed.then_some(conversation.as_str()));
            let answer = post(&fleet.address, "/v1/chat/completions", &body, &[]);
            assert_eq!(answer.status, 200, "{}", answer.body);
            turns[i] += 1;
        }
    }
    (fleet.sum(hits) - before.0) / (fleet.sum(queries) - before.1)
}

#[test]
fn a_cache_key_brings_a_conversation_back_to_its_prefix() {
    if !have("haproxy", "hashing on the cache key") {
        return;
    }
    let fleet = Fleet::start("haproxy-hash");
    let without = hit_rate(&fleet, "without", false);
    let with = hit_rate(&fleet, "with", true);
    let line = format!(
        "prefix hits over 3 servers, {CONVERSATIONS} conversations of {TURNS} turns: {:.1} % with prompt_cache_key, {:.1} % without",
        with * 100.0,
        without * 100.0
    );
    writeln!(std::io::stderr(), "\n{line}\n").expect("stderr");
    assert!(with > without + 0.1, "{line}");
    // Keys are spread, and so are requests without one.
    for server in &fleet.servers {
        assert!(sample(server, "frugal_requests_total") > 0.0, "{} got nothing", server.address);
    }
}

#[test]
fn a_body_longer_than_the_buffer_reaches_a_server() {
    if !have("haproxy", "long bodies") {
        return;
    }
    let fleet = Fleet::start("haproxy-long");
    let body =
        serde_json::json!({"prompt": "x".repeat(400_000), "max_tokens": 1, "prompt_cache_key": "long"});
    let answer = post(&fleet.address, "/v1/completions", &body.to_string(), &[]);
    // The refusal is ours: the tiny model's context is short.
    assert!(answer.status == 400 && answer.body.contains("context_length_exceeded"), "{}", answer.body);
}

const COMPLETIONS: &str = "/v1/completions";
/// Anthropic's, whose clients know another code for a server that is too busy; balancers do not.
const MESSAGES: &str = "/v1/messages";

/// A client's `i`-th request, and where it goes.
fn asked(client: usize, i: usize) -> (&'static str, serde_json::Value) {
    // Every third one has no key; half of those are messages, which never have one.
    match i % 6 {
        3 => {
            let messages = serde_json::json!([{"role": "user", "content": "a draining server"}]);
            (MESSAGES, serde_json::json!({"messages": messages, "max_tokens": 32, "temperature": 0}))
        }
        sixth => {
            let key = (sixth % 3 > 0).then(|| format!("key {}", (client + i) % 16));
            let body = serde_json::json!({
                "prompt": "a draining server", "max_tokens": 32, "temperature": 0, "ignore_eos": true,
                "prompt_cache_key": key,
            });
            (COMPLETIONS, body)
        }
    }
}

#[test]
fn a_server_that_drains_costs_no_request() {
    if !have("haproxy", "draining one of three servers") {
        return;
    }
    const CLIENTS: usize = 4;
    const REQUESTS: usize = 40;
    let mut fleet = Fleet::start("haproxy-drain");
    let (sender, answers) = mpsc::channel();
    let clients: Vec<_> = (0..CLIENTS)
        .map(|client| {
            let (address, sender) = (fleet.address.clone(), sender.clone());
            std::thread::spawn(move || {
                for i in 0..REQUESTS {
                    let (path, body) = asked(client, i);
                    let answer = post(&address, path, &body.to_string(), &[]);
                    sender.send((path, answer)).expect("the test listens");
                }
            })
        })
        .collect();
    drop(sender);
    let mut texts = BTreeSet::new();
    let mut gone = None;
    for (i, (path, answer)) in answers.iter().enumerate() {
        assert_eq!(answer.status, 200, "request {i} to {path}: {}", answer.body);
        let body: serde_json::Value = serde_json::from_str(&answer.body).expect("JSON");
        let text = body.pointer("/choices/0/text").or(body.pointer("/content/0/text"));
        texts.insert((path, text.and_then(|text| text.as_str()).expect("a text").to_owned()));
        if i == CLIENTS * REQUESTS / 4 {
            let server = fleet.servers.remove(1);
            assert!(sample(&server, "frugal_requests_total") > 0.0, "it had nothing to lose");
            server.signal();
            gone = Some(server);
        }
    }
    for client in clients {
        client.join().expect("a client");
    }
    // Whichever server it was: the same tokens.
    assert_eq!(texts.iter().map(|(path, _)| *path).collect::<Vec<_>>(), [COMPLETIONS, MESSAGES], "{texts:?}");
    assert_eq!(gone.expect("the signal was sent").wait(), 0);
    assert_eq!(get(&fleet.address, "/readyz").status, 200);
}
