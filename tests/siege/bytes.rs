//! Bytes that are no HTTP, no JSON or no UTF-8: each gets an answer or a closed connection, none a 5xx, and others go on.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use crate::process::{Running, get};
use crate::watch::{WATCHED, answer, settled};

const POSTS: [&str; 7] = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/tokenize",
    "/detokenize",
];

/// Whether a client sends more after its bytes, as far as the server can know.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Then {
    /// It waits.
    Waits,
    /// It says that nothing follows. Whoever says so before the answer has come is gone.
    Ends,
}

/// Everything that comes back before the server closes.
fn exchange(address: &str, bytes: &[u8], then: Then) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).expect("a connection");
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
    // It may refuse before it has read all, and then resets.
    let _ = stream.write_all(bytes);
    if then == Then::Ends {
        let _ = stream.shutdown(std::net::Shutdown::Write);
    }
    let mut answer = Vec::new();
    if let Err(error) = stream.read_to_end(&mut answer) {
        let waited = [std::io::ErrorKind::WouldBlock, std::io::ErrorKind::TimedOut].contains(&error.kind());
        assert!(!waited, "no answer and no end: {}", String::from_utf8_lossy(&bytes[..bytes.len().min(200)]));
    }
    answer
}

/// The status, if there was an answer.
fn status(answer: &[u8]) -> Option<u16> {
    let text = String::from_utf8_lossy(answer);
    text.strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..5)).map(|code| code.parse().expect("a status"))
}

fn post(path: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n{headers}\r\n"
    );
    [head.as_bytes(), body].concat()
}

fn sized(path: &str, body: &[u8]) -> Vec<u8> {
    post(path, &format!("content-length: {}\r\n", body.len()), body)
}

fn start() -> Running {
    Running::start(&[&WATCHED[..], &["--set", "server.header_timeout_s=5"]].concat(), &[])
}

/// After all that, it is as good as new.
fn unhurt(server: Running) {
    answer(&server.address);
    settled(&server.address);
    let metrics = get(&server.address, "/metrics").body;
    assert!(!metrics.contains("status=\"5"), "{metrics}");
    assert!(!server.stop().contains("panic"), "something panicked");
}

#[test]
fn what_is_no_http_is_refused() {
    let server = start();
    let chunked = |chunks: &[u8]| post(POSTS[0], "transfer-encoding: chunked\r\n", chunks);
    let long = "x".repeat(70_000);
    let many = "a: b\r\n".repeat(5000);
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("nothing", vec![]),
        ("zeros", vec![0; 10_000]),
        ("high bytes", vec![0xff; 10_000]),
        ("TLS", [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", &[7; 500][..]].concat()),
        ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec()),
        ("HTTP/0.9", b"GET /\r\n".to_vec()),
        ("another version", b"GET / HTTP/9.9\r\nhost: x\r\n\r\n".to_vec()),
        ("a long line", format!("GET /{long} HTTP/1.1\r\nhost: x\r\n\r\n").into_bytes()),
        ("a long header", format!("GET / HTTP/1.1\r\nhost: x\r\nx: {long}\r\n\r\n").into_bytes()),
        ("many headers", format!("GET / HTTP/1.1\r\nhost: x\r\n{many}\r\n").into_bytes()),
        ("a header without a name", b"GET / HTTP/1.1\r\n: x\r\n\r\n".to_vec()),
        ("a header with a zero", b"GET / HTTP/1.1\r\nhost: \0\r\n\r\n".to_vec()),
        ("a folded header", b"GET / HTTP/1.1\r\nhost: x\r\nx: a\r\n b\r\n\r\n".to_vec()),
        ("bare line ends", b"GET /livez HTTP/1.1\nhost: x\nconnection: close\n\n".to_vec()),
        (
            "a path of zeros",
            b"GET /%00%00/../..//%2e%2e/etc/passwd HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".to_vec(),
        ),
        ("a path of high bytes", b"GET /\xff\xfe HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".to_vec()),
        (
            "a proxy's request",
            b"CONNECT example.com:443 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".to_vec(),
        ),
        (
            "an absolute address",
            b"GET http://x/livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".to_vec(),
        ),
        (
            "an upgrade",
            b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: upgrade, close\r\nupgrade: websocket\r\n\r\n"
                .to_vec(),
        ),
        ("a length below zero", post(POSTS[0], "content-length: -1\r\n", b"{}")),
        ("a length that is none", post(POSTS[0], "content-length: 0x10\r\n", b"{}")),
        ("a length beyond numbers", post(POSTS[0], "content-length: 99999999999999999999999\r\n", b"{}")),
        ("a length beyond reason", post(POSTS[0], "content-length: 9999999999999\r\n", b"{}")),
        ("two lengths", post(POSTS[0], "content-length: 2\r\ncontent-length: 3\r\n", b"{}")),
        (
            "a length and chunks",
            post(POSTS[0], "content-length: 2\r\ntransfer-encoding: chunked\r\n", b"0\r\n\r\n"),
        ),
        ("an unknown encoding", post(POSTS[0], "transfer-encoding: gzip\r\n", b"{}")),
        ("a body cut short", post(POSTS[0], "content-length: 1000\r\n", b"{")),
        ("a chunk of no size", chunked(b"\r\n{}\r\n0\r\n\r\n")),
        ("a chunk of a wrong size", chunked(b"zz\r\n{}\r\n0\r\n\r\n")),
        ("a chunk below zero", chunked(b"-2\r\n{}\r\n0\r\n\r\n")),
        ("a chunk beyond numbers", chunked(b"fffffffffffffffffff\r\n{}\r\n0\r\n\r\n")),
        ("a chunk that is longer", chunked(b"1\r\n{}\r\n0\r\n\r\n")),
        ("a chunk that never comes", chunked(b"ffff\r\n{}")),
        ("an endless extension", chunked(format!("2;{long}\r\n{{}}\r\n0\r\n\r\n").as_bytes())),
        ("endless trailers", chunked(format!("2\r\n{{}}\r\n0\r\n{many}\r\n").as_bytes())),
        ("tiny chunks", chunked(&[&b"1\r\n \r\n".repeat(20_000)[..], b"2\r\n{}\r\n0\r\n\r\n"].concat())),
    ];
    for (what, bytes) in cases {
        let answer = exchange(&server.address, &bytes, Then::Ends);
        let status = status(&answer);
        assert!(status.is_none_or(|code| code < 500), "{what}: {status:?}");
        let harmless = ["bare line ends", "an absolute address", "an upgrade", "a folded header"];
        assert!(status != Some(200) || harmless.contains(&what), "{what} was taken");
    }
    unhurt(server);
}

#[test]
fn what_is_no_json_is_refused_everywhere() {
    let server = start();
    let deep = |open: &str, close: &str| [open.repeat(100_000), close.repeat(100_000)].concat().into_bytes();
    let long = format!("{{\"{}\":1}}", "k".repeat(1_000_000)).into_bytes();
    let many: String = (0..100_000).map(|i| format!("\"k{i}\":0,")).collect();
    let bodies: Vec<(&str, Vec<u8>)> = vec![
        ("nothing", vec![]),
        ("white space", vec![b' '; 1_000_000]),
        ("another type", b"[]".to_vec()),
        ("a number", b"1e999999999".to_vec()),
        ("a string", b"\"\\ud800\"".to_vec()),
        (
            "bad UTF-8",
            b"{\"messages\":\"\xff\xfe\",\"prompt\":\"\xc0\x80\",\"input\":\"\xed\xa0\x80\"}".to_vec(),
        ),
        (
            "half a pair",
            br#"{"messages":[{"role":"user","content":"\ud800"}],"prompt":"\ud800","input":"\udfff"}"#
                .to_vec(),
        ),
        ("zeros", b"{\"prompt\":\"\0\"}".to_vec()),
        ("deep arrays", deep("[", "]")),
        ("deep objects", deep("{\"a\":", "}")),
        ("deep content", [b"{\"messages\":", &deep("[", "]")[..], b"}"].concat()),
        ("deep tools", [b"{\"tools\":", &deep("[{\"a\":", "}]")[..], b"}"].concat()),
        ("a long key", long),
        ("many keys", format!("{{{many}\"z\":0}}").into_bytes()),
        ("two documents", b"{}{}".to_vec()),
        ("a comment", b"{/**/}".to_vec()),
        ("not a number", br#"{"prompt":"a","messages":[],"temperature":NaN}"#.to_vec()),
        ("infinity", br#"{"prompt":"a","messages":[],"temperature":-Infinity}"#.to_vec()),
        ("a byte order mark", b"\xef\xbb\xbf{}".to_vec()),
        ("UTF-16", "{\"a\":1}".encode_utf16().flat_map(u16::to_le_bytes).collect()),
    ];
    for path in POSTS {
        for (what, body) in &bodies {
            let answer = exchange(&server.address, &sized(path, body), Then::Waits);
            let status = status(&answer).expect("an answer");
            assert!((400..500).contains(&status), "{path}: {what}: {status}");
        }
    }
    let large = vec![b' '; (8 << 20) + 1];
    assert_eq!(status(&exchange(&server.address, &sized(POSTS[0], &large), Then::Waits)), Some(413));
    unhurt(server);
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let server = start();
    let body = br#"{"prompt":"hi","max_tokens":2,"temperature":0}"#;
    let mut bytes = Vec::new();
    for i in 0..50 {
        let path = if i % 2 == 0 { "/v1/completions" } else { "/nowhere" };
        let close = if i == 49 { "connection: close\r\n" } else { "" };
        let length = body.len();
        bytes.extend(format!("POST {path} HTTP/1.1\r\nhost: x\r\n{close}content-type: application/json\r\nx-request-id: n{i}\r\ncontent-length: {length}\r\n\r\n").bytes());
        bytes.extend(body);
    }
    let text = String::from_utf8(exchange(&server.address, &bytes, Then::Waits)).expect("UTF-8");
    let ids: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("x-request-id: ")).collect();
    assert_eq!(ids, (0..50).map(|i| format!("n{i}")).collect::<Vec<_>>());
    assert_eq!((text.matches("HTTP/1.1 200").count(), text.matches("HTTP/1.1 404").count()), (25, 25));
    // A client that sends requests and leaves.
    for _ in 0..50 {
        let mut stream = TcpStream::connect(&server.address).expect("a connection");
        stream.write_all(&bytes).expect("a socket");
    }
    unhurt(server);
}
