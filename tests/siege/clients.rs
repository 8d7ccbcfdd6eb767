//! Clients that are slow, silent, gone, or many.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};

use crate::process::{Running, get, send, skip};
use crate::watch::{WATCHED, answer, finished, settled, to_end, until};

/// Streams whose answers outlast what the system holds for a client that does not read.
const ENDLESS: &str = r#"{"prompt":"hi","max_tokens":1500,"temperature":0,"ignore_eos":true,"stream":true,"n":16,"logprobs":100}"#;

const QUICK: [&str; 8] = [
    "--set",
    "server.header_timeout_s=1",
    "--set",
    "server.body_timeout_s=1",
    "--set",
    "server.send_timeout_s=1",
    "--set",
    "log.level=debug",
];

fn serve() -> Running {
    Running::start(&[&WATCHED[..], &QUICK].concat(), &[])
}

#[test]
fn slow_heads_and_bodies_lose_their_connections() {
    let server = serve();
    let open = |bytes: &[u8]| {
        let mut stream = TcpStream::connect(&server.address).expect("a connection");
        stream.write_all(bytes).expect("a socket");
        stream
    };
    let head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 100\r\n";
    let silent: Vec<_> = (0..100).map(|_| open(b"")).collect();
    let mut heads: Vec<_> = (0..100).map(|_| open(&head[..40])).collect();
    let bodies: Vec<_> = (0..100).map(|_| open(&[head, &b"\r\n{\"messages\""[..]].concat())).collect();
    let kept = open(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n");
    // Meanwhile others are served.
    answer(&server.address);
    // A byte now and then buys no time.
    for stream in &mut heads {
        let _ = stream.write_all(b"x");
    }
    for stream in silent.into_iter().chain(heads) {
        let said = to_end(stream);
        assert!(said.is_empty() || said.starts_with("HTTP/1.1 408"), "{said}");
    }
    for stream in bodies {
        let said = to_end(stream);
        assert!(said.starts_with("HTTP/1.1 408"), "{said}");
    }
    assert!(to_end(kept).starts_with("HTTP/1.1 200"), "answered, then closed when nothing followed");
    settled(&server.address);
    assert_eq!(server.terminate(), 0);
}

#[test]
fn a_client_that_stops_reading_loses_its_request() {
    let server = serve();
    let streams: Vec<_> =
        (0..4).map(|_| send(&server.address, "POST", "/v1/completions", ENDLESS, &[])).collect();
    until("they lose their requests", || finished(&server.address, "cancelled") == 64.0);
    answer(&server.address);
    settled(&server.address);
    drop(streams);
    assert_eq!(server.terminate(), 0);
}

#[test]
fn a_pulled_cable_ends_the_stream() {
    let run = |program: &str, args: &[&str]| {
        let ran = Command::new(program).args(args).stdout(Stdio::null()).stderr(Stdio::null()).status();
        ran.is_ok_and(|status| status.success())
    };
    // This test's thread alone moves into a network of its own, and what it starts with it: there it may lose packets.
    let alone = unshare(CloneFlags::CLONE_NEWNET).is_ok();
    if !alone || !run("ip", &["link", "set", "lo", "up"]) || !run("iptables", &["-S", "INPUT"]) {
        return skip("a pulled cable needs root, network namespaces, ip and iptables");
    }
    let server = serve();
    let mut streams: Vec<_> =
        (0..4).map(|_| send(&server.address, "POST", "/v1/completions", ENDLESS, &[])).collect();
    for stream in &mut streams {
        stream.read_exact(&mut [0; 12]).expect("a stream");
        let port = stream.local_addr().expect("ours").port().to_string();
        for end in ["--sport", "--dport"] {
            assert!(run("iptables", &["-A", "INPUT", "-p", "tcp", end, &port, "-j", "DROP"]));
        }
    }
    let pulled = Instant::now();
    until("they lose their requests", || finished(&server.address, "cancelled") == 64.0);
    // A second without an acknowledgement, as the system's timer for sending again finds it; generous, for machines that pause.
    assert!(pulled.elapsed() < Duration::from_secs(30), "{:?}", pulled.elapsed());
    answer(&server.address);
    settled(&server.address);
    drop(streams);
    assert_eq!(server.terminate(), 0);
}

#[test]
fn clients_that_vanish_are_asked_for() {
    let server = serve();
    let mut stream = send(&server.address, "POST", "/v1/completions", crate::watch::LONG, &[]);
    stream.read_exact(&mut [0; 12]).expect("a stream");
    // The system's own table: the server's side of this connection has a timer that finds out.
    let hexadecimal = |port: u16| format!("0100007F:{port:04X}");
    let (local, peer) = (stream.peer_addr().expect("it"), stream.local_addr().expect("ours"));
    let idle = TcpStream::connect(&server.address).expect("a connection");
    let quiet = idle.local_addr().expect("ours");
    until("accepted, with keepalive", || {
        let table = std::fs::read_to_string("/proc/net/tcp").expect("Linux");
        let row = table.lines().find(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            fields.get(1) == Some(&hexadecimal(local.port()).as_str())
                && fields.get(2) == Some(&hexadecimal(quiet.port()).as_str())
        });
        // 2: the keepalive timer.
        row.is_some_and(|row| row.split_whitespace().nth(5).is_some_and(|timer| timer.starts_with("02:")))
    });
    drop((stream, peer));
    until("the stream's client has gone", || finished(&server.address, "cancelled") == 2.0);
    settled(&server.address);
    assert_eq!(server.terminate(), 0);
}

#[test]
fn more_connections_than_allowed_wait_their_turn() {
    let server =
        Running::start(&[&WATCHED[..], &QUICK, &["--set", "server.max_connections=8"]].concat(), &[]);
    let silent: Vec<_> =
        (0..64).map(|_| TcpStream::connect(&server.address).expect("the system accepts")).collect();
    // Eight at a time, each for a second: a request's turn comes.
    assert_eq!(get(&server.address, "/livez").status, 200);
    drop(silent);
    settled(&server.address);
    assert_eq!(server.terminate(), 0);
}
