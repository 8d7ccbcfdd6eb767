//! `frugal load` on the real server and on ones that do what they are told to.

use std::collections::HashSet;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use serde_json::{Value, json};

use super::chat::{delta, finished, streamed};
use super::{failure, output};
use crate::process::{PATIENCE, Running, frugal};

/// The bodies of chats that a server was sent.
type Asked = Arc<Mutex<Vec<Value>>>;

/// What a server is asked.
enum Request {
    Health,
    Models,
    Chat(Value),
}

/// A server that is still loading when it is first asked, and whose answer to the n-th chat is `answer(n)`, for as long as the tests run.
fn standing_in(answer: fn(usize) -> String) -> (String, Asked) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let asked = Asked::default();
    let sent = asked.clone();
    let loading = Arc::new(AtomicBool::new(true));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, sent, loading) = (stream.expect("a client"), sent.clone(), loading.clone());
            std::thread::spawn(move || {
                let response = match request(&mut stream) {
                    Request::Health if loading.swap(false, Ordering::Relaxed) => refused(),
                    Request::Health => String::new(),
                    Request::Models => {
                        r#"{"object":"list","data":[{"id":"stand-in"},{"id":"other"}]}"#.to_owned()
                    }
                    Request::Chat(body) => {
                        assert!(!loading.load(Ordering::Relaxed), "it was not asked whether it is ready");
                        let mut sent = sent.lock().expect("no panic");
                        sent.push(body);
                        let n = sent.len() - 1;
                        // Who waits for its answer keeps nobody from looking.
                        drop(sent);
                        answer(n)
                    }
                };
                let response = match response.strip_prefix("HTTP/1.1") {
                    Some(_) => response,
                    None => format!("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{response}"),
                };
                // A client may have given up.
                let _ = stream.write_all(response.as_bytes());
            });
        }
    });
    (url, asked)
}

fn request(stream: &mut TcpStream) -> Request {
    let mut bytes = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let len = stream.read(&mut chunk).expect("a request");
        assert!(len > 0, "the request ended early");
        bytes.extend_from_slice(&chunk[..len]);
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        if head.starts_with("GET /v1/models HTTP/1.1\r\n") {
            return Request::Models;
        }
        if head.starts_with("GET /health HTTP/1.1\r\n") {
            return Request::Health;
        }
        assert!(head.starts_with("POST /v1/chat/completions HTTP/1.1\r\n"), "{head}");
        if let Ok(body) = serde_json::from_str(body) {
            return Request::Chat(body);
        }
    }
}

/// An answer of two tokens in two pieces.
fn two_tokens(_: usize) -> String {
    let usage = json!({ "choices": [], "usage": { "prompt_tokens": 9, "completion_tokens": 2 } });
    streamed(&[delta(json!({"content": "a"})), delta(json!({"content": "b"})), finished(), usage])
}

fn refused() -> String {
    let body = r#"{"error":{"message":"too busy"}}"#;
    format!("HTTP/1.1 503 Service Unavailable\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

/// The JSON of its lines, and the exit code and stderr.
fn measured(args: &[&str]) -> (Vec<Value>, i32, String) {
    let (code, stdout, stderr) = output(&[&["load", "--json"], args].concat(), &[]);
    (stdout.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect(), code, stderr)
}

fn number(object: &Value, name: &str) -> f64 {
    object[name].as_f64().unwrap_or_else(|| panic!("no {name} in {object}"))
}

/// Figures of one level that agree with each other.
fn consistent(level: &Value, requests: f64, tokens: f64) {
    let of = |name| number(level, name);
    assert_eq!((of("ok"), of("failed"), of("output_tokens")), (requests, 0.0, requests * tokens), "{level}");
    assert_eq!(of("answers_of_other_length") + of("answers_without_usage"), 0.0, "{level}");
    let wall_ms = of("wall_s") * 1e3;
    for (low, high) in [
        ("ttft_ms_p50", "ttft_ms_p95"),
        ("between_tokens_ms_p50", "between_tokens_ms_p95"),
        ("longest_pause_ms_p50", "longest_pause_ms_max"),
    ] {
        assert!(0.0 <= of(low) && of(low) <= of(high) && of(high) <= wall_ms + 0.02, "{level}");
    }
    assert!(of("ttft_ms_p50") > 0.0, "{level}");
    // A load on a stand-in takes less than a millisecond, of which a hundredth is the last digit.
    let digits = 0.01 + 1e-5 / of("wall_s");
    let close = |a: f64, b: f64| assert!((a / b - 1.0).abs() < digits, "{a} is not {b}: {level}");
    close(of("output_tokens_per_second") * of("wall_s"), requests * tokens);
    let all = requests * (tokens + of("prompt_tokens_mean"));
    close(of("all_tokens_per_second") * of("wall_s"), all);
}

#[test]
fn the_real_servers_figures_agree_with_each_other() {
    let server = Running::start(&["--instance-per-hour", "0.36"], &[]);
    let url = format!("http://{}", server.address);
    let args = [
        "--url",
        &url,
        "--clients",
        "1,3",
        "--requests",
        "6",
        "--prompt",
        "4",
        "--output",
        "5",
        "--seed",
        "7",
    ];
    let (levels, code, stderr) = measured(&args);
    assert_eq!((code, stderr.as_str(), levels.len()), (0, "", 2));
    for (level, clients) in levels.iter().zip([1, 3]) {
        consistent(level, 6.0, 5.0);
        assert_eq!(level["clients"], clients);
        assert_eq!(level["model"], "qwen3moe-Q4_K_M");
        assert!(number(level, "prompt_tokens_mean") > 4.0, "{level}");
        assert!(number(level, "cost_per_million_tokens") > 0.0, "{level}");
        assert_eq!(level["currency"], "USD");
    }
    let (code, text, stderr) = output(&[&["load"], &args[..]].concat(), &[]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    assert!(text.starts_with(&format!("{url} (qwen3moe-Q4_K_M): 6 requests a level")), "{text}");
    let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    for clients in ["1", "3"] {
        assert!(rows.iter().any(|row| row.starts_with(&[clients, "6", "0"])), "{text}");
    }
    assert_eq!(server.terminate(), 0);
}

#[test]
fn requests_say_what_was_asked_for_and_have_the_key() {
    let keys = r#"[{ name = "team-a", key = "sk-s3cret" }]"#;
    let server = Running::start(&[], &[("FRUGAL_AUTH__KEYS", keys)]);
    let url = format!("http://{}/v1", server.address);
    let args = ["load", "--url", &url, "--clients", "1", "--requests", "2", "--prompt", "1", "--output", "2"];
    let (code, text, stderr) = output(&args, &[("FRUGAL_API_KEY", "sk-s3cret")]);
    assert_eq!((code, stderr.as_str()), (0, ""), "{text}");
    let (code, line) = failure(&args, &[]);
    assert!(code == 1 && line.contains("API key"), "{line}");
    assert_eq!(server.terminate(), 0);

    let (url, asked) = standing_in(two_tokens);
    let args = ["--url", &url, "--clients", "2", "--requests", "3", "--prompt", "5", "--output", "2"];
    let (levels, code, _) = measured(&args);
    assert_eq!(code, 0);
    consistent(&levels[0], 3.0, 2.0);
    let asked = asked.lock().expect("no panic");
    // One that is not counted, and three.
    assert_eq!(asked.len(), 4);
    let prompts: HashSet<String> = asked.iter().map(|body| body["messages"].to_string()).collect();
    assert_eq!(prompts.len(), 4);
    for body in asked.iter() {
        let prompt = body["messages"][0]["content"].as_str().expect("a prompt");
        assert_eq!(prompt.split(' ').count(), 6, "{prompt}");
        let expected = json!({
            "model": "stand-in", "messages": [{ "role": "user", "content": prompt }], "max_tokens": 2,
            "ignore_eos": true, "temperature": 0, "stream": true, "stream_options": { "include_usage": true },
        });
        assert_eq!(*body, expected);
    }
}

#[test]
fn another_run_has_other_prompts_unless_it_is_told_which() {
    let (url, asked) = standing_in(|_| {
        let details = json!({ "cached_tokens": 3 });
        let usage = json!({ "prompt_tokens": 12, "completion_tokens": 2, "prompt_tokens_details": details });
        streamed(&[delta(json!({"content": "a b"})), finished(), json!({ "choices": [], "usage": usage })])
    });
    let run = |seed: &[&str]| {
        let args = ["--url", &url, "--clients", "1", "--requests", "1", "--output", "2"];
        let (levels, code, _) = measured(&[&args[..], seed].concat());
        assert_eq!((code, number(&levels[0], "cached_share")), (0, 0.25));
        let prompt = asked.lock().expect("no panic").last().expect("a chat")["messages"].to_string();
        (levels[0]["seed"].as_u64().expect("a seed"), prompt)
    };
    let (first, second) = (run(&[]), run(&[]));
    assert!(first.0 != second.0 && first.1 != second.1, "{first:?} {second:?}");
    assert_eq!(run(&["--seed", &first.0.to_string()]), first);
    let args = ["load", "--url", &url, "--clients", "1", "--requests", "1", "--output", "2", "--seed", "7"];
    let (_, text, _) = output(&args, &[]);
    assert!(text.contains(", --seed 7\n") && text.contains("25 %"), "{text}");
}

#[test]
fn failures_are_counted_and_shown() {
    // Nine requests a run: one is not counted.
    let (url, _) = standing_in(|n| match n % 9 % 4 {
        2 => refused(),
        // Without its end.
        0 if n % 9 > 0 => streamed(&[delta(json!({"content": "a"}))]),
        _ => two_tokens(n),
    });
    let args = ["--url", &url, "--clients", "1", "--requests", "8", "--output", "3"];
    let (levels, code, stderr) = measured(&args);
    assert_eq!((code, stderr.as_str(), levels.len()), (0, "", 1));
    let of = |name| number(&levels[0], name);
    assert_eq!((of("requests"), of("ok"), of("failed"), of("output_tokens")), (8.0, 4.0, 4.0, 8.0));
    assert_eq!((levels[0]["first_failure"].as_str(), of("answers_of_other_length")), (Some("too busy"), 4.0));
    let (code, text, _) = output(&[&["load"], &args[..]].concat(), &[]);
    assert_eq!(code, 0);
    assert!(text.contains("1 client: 4 of 8 requests failed, the first: too busy\n"), "{text}");
    assert!(text.contains("1 client: 4 of 8 answers do not have 3 tokens\n"), "{text}");
}

#[test]
fn a_level_without_answers_is_a_failure() {
    let (url, asked) = standing_in(|_| refused());
    let args = ["--url", &url, "--clients", "2,4", "--requests", "4"];
    let (levels, code, stderr) = measured(&args);
    let said = format!("frugal: all 4 requests of 2 clients to {url} failed, the first: too busy\n");
    assert_eq!((code, stderr), (1, said));
    assert_eq!((levels.len(), &levels[0]["failed"]), (1, &json!(4)));
    for figure in ["output_tokens_per_second", "ttft_ms_p50"] {
        assert_eq!(levels[0][figure], Value::Null, "{figure}");
    }
    // The one that is not counted, and not those of the level after it.
    assert_eq!(asked.lock().expect("no panic").len(), 1 + 4);

    // The answer that is under way never ends.
    let (url, _) = standing_in(|_| {
        let event = delta(json!({"content": "a"}));
        let event = format!("data: {event}\n\n");
        format!("HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n{event}")
    });
    let (levels, code, _) = measured(&["--url", &url, "--clients", "1", "--requests", "1"]);
    assert_eq!((code, &levels[0]["failed"]), (1, &json!(1)));
    // One that never begins, and a server that says nothing at all.
    let (late, _) = standing_in(|_| {
        loop {
            std::thread::park();
        }
    });
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let silent = format!("http://{}", listener.local_addr().expect("an address"));
    for (url, words) in [(late, "the answer has no end after 1 s"), (silent, "is not ready after 1 s")] {
        let args = ["--url", &url, "--model", "m", "--clients", "1", "--requests", "1", "--timeout", "1"];
        let (_, code, stderr) = measured(&args);
        assert!(code == 1 && stderr.contains(words), "{stderr}");
    }
}

#[test]
fn two_servers_are_loaded_in_turns_with_the_same_prompts() {
    let ((ours, to_ours), (theirs, to_theirs)) = (standing_in(two_tokens), standing_in(two_tokens));
    let args = ["--url", &ours, "--against", &theirs, "--clients", "1,2", "--requests", "3", "--output", "2"];
    let (code, text, stderr) = output(&[&["load"], &args[..]].concat(), &[]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    assert!(text.starts_with(&format!("{ours} (stand-in) / {theirs} (stand-in): 3 requests")), "{text}");
    for clients in ["1 client", "2 clients"] {
        let table = text.split(&format!("\n{clients}\n")).nth(1).expect("a table");
        let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
        for (row, name) in rows[1..=6].iter().zip(["1", "2", "3", "4", "5", "median"]) {
            assert_eq!((row[0], row[2], row[5]), (name, "/", "/"), "{text}");
            for pair in [row[1], row[3], row[4], row[6]] {
                assert!(pair.parse::<f64>().expect("a figure") > 0.0, "{text}");
            }
        }
        assert_eq!((rows[7][0], rows[7].len()), ("ratio", 3), "{text}");
    }
    let mut prompts = HashSet::new();
    let (to_ours, to_theirs) = (to_ours.lock().expect("no panic"), to_theirs.lock().expect("no panic"));
    assert_eq!((to_ours.len(), to_theirs.len()), (1 + 2 * 5 * 3, 1 + 2 * 5 * 3));
    for (ours, theirs) in to_ours[1..].chunks(3).zip(to_theirs[1..].chunks(3)) {
        let texts = |bodies: &[Value]| -> HashSet<String> {
            bodies.iter().map(|body| body["messages"][0]["content"].to_string()).collect()
        };
        assert_eq!(texts(ours), texts(theirs));
        prompts.extend(texts(ours));
    }
    assert_eq!(prompts.len(), 2 * 5 * 3, "each round has new ones");
}

#[test]
fn a_server_that_fails_in_its_turn_is_named() {
    let ((ours, _), (theirs, _)) = (
        standing_in(two_tokens),
        standing_in(|n| match n {
            0..5 => two_tokens(n),
            _ => refused(),
        }),
    );
    let args = ["--url", &ours, "--against", &theirs, "--clients", "2", "--requests", "4", "--output", "2"];
    let (levels, code, stderr) = measured(&args);
    let said = format!("frugal: all 4 requests of 2 clients to {theirs} failed, the first: too busy\n");
    assert_eq!((code, stderr), (1, said));
    let rounds = levels[0]["rounds"].as_array().expect("rounds");
    assert_eq!((rounds.len(), &rounds[1]["theirs"]["failed"]), (2, &json!(4)));
    for side in ["ours", "theirs"] {
        consistent(&rounds[0][side], 4.0, 2.0);
    }
    // A turn in which nothing was answered has no part in the medians.
    let theirs = |object: &Value| number(&object["theirs"], "output_tokens_per_second");
    assert_eq!(theirs(&levels[0]), theirs(&rounds[0]));
    assert!(number(&levels[0]["ratio"], "output_tokens_per_second") > 0.0);
    assert!(number(&levels[0]["ratio"], "ttft_ms_p50") > 0.0);
}

/// What a load has printed when a signal comes amid the request that is not answered.
fn interrupted(signal: &str, args: &[&str], asked: &[&Asked], until: usize) -> (i32, String) {
    let mut load = frugal(&[&["load"], args].concat(), &[]);
    let load = load.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let load = load.spawn().expect("the binary runs");
    let begin = Instant::now();
    while asked.iter().map(|asked| asked.lock().expect("no panic").len()).sum::<usize>() < until {
        assert!(begin.elapsed() < PATIENCE, "it asks no more");
        std::thread::yield_now();
    }
    let sent = Command::new("kill").args(["-s", signal, &load.id().to_string()]).status().expect("kill runs");
    assert!(sent.success());
    let output = load.wait_with_output().expect("an end");
    (output.status.code().expect("no signal"), String::from_utf8(output.stdout).expect("UTF-8"))
}

#[test]
fn what_was_measured_until_a_signal_is_printed() {
    fn stuck(n: usize, from: usize) -> String {
        match n < from {
            true => two_tokens(n),
            false => loop {
                std::thread::park();
            },
        }
    }
    // One that is not counted, a level of three, and the second level's first.
    let (url, asked) = standing_in(|n| stuck(n, 4));
    let args = ["--url", &url, "--clients", "1,3", "--requests", "3", "--output", "2"];
    let (code, text) = interrupted("INT", &args, &[&asked], 5);
    let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    let begin = |cells: &[&str]| rows.iter().any(|row| row.starts_with(cells));
    assert!(code == 130 && begin(&["1", "3", "0"]) && !begin(&["3"]), "{code} {text}");

    // Nothing but the one that is not counted.
    let (url, asked) = standing_in(|n| stuck(n, 0));
    assert_eq!(interrupted("TERM", &["--url", &url], &[&asked], 1), (130, String::new()));

    // In the second round it is their turn first.
    let (ours, to_ours) = standing_in(two_tokens);
    let (theirs, to_theirs) = standing_in(|n| stuck(n, 3));
    let args = ["--url", &ours, "--against", &theirs, "--clients", "1", "--requests", "2", "--json"];
    let (code, text) = interrupted("TERM", &args, &[&to_ours, &to_theirs], 3 + 4);
    let line: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!((code, line["rounds"].as_array().map(Vec::len)), (130, Some(1)), "{text}");
    assert!(number(&line["ratio"], "output_tokens_per_second") > 0.0, "{text}");
}

#[test]
fn what_cannot_be_loaded_is_refused() {
    let url = standing_in(two_tokens).0;
    for (args, code, words) in [
        (vec!["--url", "box"], 2, "frugal: --url box is not the URL of a server"),
        (vec!["--url", &url, "--against", "box"], 2, "frugal: --against box is not the URL of a server"),
        (vec!["--url", "http://127.0.0.1:1"], 1, "no server answers on http://127.0.0.1:1"),
        (vec!["--url", &url, "--against", "http://127.0.0.1:1"], 1, "name another with --against"),
        (vec!["--ca-file", "f.crt", "--url", &url], 2, "is not https, and shows no certificate"),
        (vec!["--clients", "33"], 2, "--clients 33: more than there are requests"),
    ] {
        let (ended, line) = failure(&[&["load"], &args[..]].concat(), &[]);
        assert!(ended == code && line.contains(words), "{ended} {line}");
    }
    let (code, line) = failure(&["chat", "--ca-file", "f.crt"], &[]);
    assert!(code == 2 && line.starts_with("frugal: --ca-file f.crt: http://127.0.0.1:8000"), "{line}");
}
