//! `frugal chat` through pipes, against the real server and against one that says what it is told to.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::process::Stdio;
use std::thread::JoinHandle;

use serde_json::{Value, json};

use crate::process::{Running, frugal, post};

/// Sends a message on stdin; (exit code, stdout, stderr).
pub(crate) fn say(message: &str, args: &[&str], env: &[(&str, &str)]) -> (i32, String, String) {
    let mut command = frugal(&[&["chat"], args].concat(), env);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the binary runs");
    let mut stdin = child.stdin.take().expect("a pipe");
    // A client that refuses its arguments does not read.
    let _ = stdin.write_all(message.as_bytes());
    drop(stdin);
    let output = child.wait_with_output().expect("an end");
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    (output.status.code().expect("no signal"), text(output.stdout), text(output.stderr))
}

/// A server for one request: its URL, and what it was sent.
fn answering(response: String) -> (String, JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let thread = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a client");
        let mut request = Vec::new();
        // The body is the client's last word: a JSON object.
        while !(request.ends_with(b"}") && request.windows(4).any(|w| w == b"\r\n\r\n")) {
            let mut chunk = [0; 4096];
            let len = stream.read(&mut chunk).expect("a request");
            assert!(len > 0, "the request ended early");
            request.extend_from_slice(&chunk[..len]);
        }
        stream.write_all(response.as_bytes()).expect("a reader");
        String::from_utf8(request).expect("UTF-8")
    });
    (url, thread)
}

pub(crate) fn streamed(events: &[Value]) -> String {
    let events: String = events.iter().map(|event| format!("data: {event}\n\n")).collect();
    format!("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n{events}")
}

pub(crate) fn delta(delta: Value) -> Value {
    json!({ "choices": [{ "index": 0, "delta": delta }] })
}

pub(crate) fn finished() -> Value {
    json!({ "choices": [{ "index": 0, "delta": {}, "finish_reason": "stop" }] })
}

#[test]
fn the_real_servers_answer_is_printed_alone() {
    let keys = r#"[{ name = "team-a", key = "sk-s3cret" }]"#;
    let server = Running::start(&[], &[("FRUGAL_AUTH__KEYS", keys)]);
    let url = format!("http://{}", server.address);
    let body = r#"{"messages":[{"role":"user","content":"hi"}],"max_tokens":8,"temperature":0}"#;
    let whole =
        post(&server.address, "/v1/chat/completions", body, &[("authorization", "Bearer sk-s3cret")]).body;
    let whole: Value = serde_json::from_str(&whole).expect("JSON");
    let text = whole["choices"][0]["message"]["content"].as_str().expect("an answer");
    let control = |c: char| c.is_control() && c != '\n' && c != '\t';
    let mut expected: String = text
        .chars()
        .map(|c| if control(c) { c.escape_default().to_string() } else { c.to_string() })
        .collect();
    if !expected.ends_with('\n') {
        expected.push('\n');
    }
    let args = ["--url", &url, "--max-tokens", "8", "--temperature", "0"];
    let key = ("FRUGAL_API_KEY", "sk-s3cret");
    let cut = "frugal: the answer was cut off at the limit of tokens\n".to_owned();
    assert_eq!(say("hi\n", &args, &[key]), (0, expected.clone(), cut));
    assert_eq!(say("hi", &[&args[..], &["--api-key", "sk-s3cret"]].concat(), &[]).1, expected);

    let (code, stdout, stderr) = say("hi", &args, &[]);
    assert_eq!((code, stdout.as_str()), (1, ""));
    assert!(stderr.starts_with("frugal: ") && stderr.contains("API key"), "{stderr}");
    let (code, _, stderr) = say("hi", &[&args[..], &["--model", "another"]].concat(), &[key]);
    assert_eq!((code, stderr.as_str()), (1, "frugal: The model `another` does not exist\n"));
    let (code, _, stderr) = say("hi", &["--url", &url, "--temperature", "9"], &[key]);
    assert!(code == 1 && stderr.contains("temperature"), "{stderr}");
    assert_eq!(server.terminate(), 0);
}

#[test]
fn a_request_says_what_was_asked_for_and_an_answer_steers_nothing() {
    let events = [
        delta(json!({"role": "assistant", "reasoning_content": "Hm"})),
        delta(json!({"content": "Hi \u{1b}[2J"})),
        delta(json!({"content": "\u{9b}31m\tthere"})),
        finished(),
    ];
    let (url, server) = answering(streamed(&events));
    let args = ["--url", &url, "--system", "Be brief.", "--seed", "3", "--top-k", "5"];
    let (code, stdout, stderr) = say("a\nb\n", &args, &[]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    assert_eq!(stdout, "Hi \\u{1b}[2J\\u{9b}31m\tthere\n");
    let request = server.join().expect("a request");
    let (head, body) = request.split_once("\r\n\r\n").expect("a head");
    assert!(head.starts_with("POST /v1/chat/completions HTTP/1.1\r\n"), "{head}");
    let expected = json!({
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "a\nb"}],
        "top_k": 5, "seed": 3, "stream": true, "stream_options": {"include_usage": true},
    });
    assert_eq!(serde_json::from_str::<Value>(body).expect("JSON"), expected);
}

#[test]
fn answers_that_break_off_are_failures() {
    let error = json!({ "error": { "message": "out of \u{1b}luck", "type": "server_error" } });
    let (url, server) = answering(streamed(&[delta(json!({"content": "Hi"})), error]));
    let (code, stdout, stderr) = say("hi", &["--url", &url], &[]);
    assert_eq!((code, stdout.as_str(), stderr.as_str()), (1, "Hi\n", "frugal: out of \\u{1b}luck\n"));
    server.join().expect("a request");

    let (url, server) = answering(streamed(&[delta(json!({"content": "Hi"}))]));
    let (code, stdout, stderr) = say("hi", &["--url", &url], &[]);
    assert_eq!((code, stdout.as_str()), (1, "Hi\n"));
    assert!(stderr.contains("ended the answer before its end"), "{stderr}");
    server.join().expect("a request");

    let (url, server) = answering("HTTP/1.1 502 Bad Gateway\r\ncontent-length: 4\r\n\r\noops".to_owned());
    let (code, _, stderr) = say("hi", &["--url", &url], &[]);
    assert!(code == 1 && stderr.contains("502 Bad Gateway"), "{stderr}");
    server.join().expect("a request");
}

#[test]
fn an_answer_without_text_is_none() {
    let thought = delta(json!({"reasoning_content": "Hm"}));
    let cut = json!({ "choices": [{ "index": 0, "delta": {}, "finish_reason": "length" }] });
    for (end, says) in [
        (finished(), "frugal: the answer is empty\n"),
        (cut, "frugal: the answer is empty: it was cut off at the limit of tokens\n"),
    ] {
        let (url, server) = answering(streamed(&[thought.clone(), end]));
        assert_eq!(say("hi", &["--url", &url], &[]), (1, String::new(), says.to_owned()));
        server.join().expect("a request");
    }
}

#[test]
fn a_client_without_a_server_or_a_message_says_so() {
    // A port that was free a moment ago.
    let port = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address").port();
    let (code, stdout, stderr) = say("hi", &["--url", &format!("http://127.0.0.1:{port}")], &[]);
    assert_eq!((code, stdout.as_str()), (1, ""));
    assert!(stderr.contains("start one with `frugal serve`"), "{stderr}");
    let (code, _, stderr) = say("\n", &[], &[]);
    assert!(code == 1 && stderr.contains("no message on stdin"), "{stderr}");
    let (code, _, stderr) = say("hi", &["--url", "box"], &[]);
    assert!(code == 2 && stderr.contains("--url box"), "{stderr}");
}
