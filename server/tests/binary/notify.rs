//! What a service manager and an image's health check learn from the binary.

use std::io::Read as _;
use std::net::TcpListener;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use tempfile::TempDir;

use super::{failure, output};
use crate::process::{self, Running, get};

/// The service manager's end; its socket's folder is removed with the value.
struct Manager {
    socket: UnixDatagram,
    path: String,
    _folder: TempDir,
}

impl Manager {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("notify").to_string_lossy().into_owned();
        let socket = UnixDatagram::bind(&path).expect("a socket");
        socket.set_read_timeout(Some(Duration::from_secs(120))).expect("a timeout");
        Self { socket, path, _folder: folder }
    }

    fn next(&self) -> String {
        let mut message = [0; 256];
        let len = self.socket.recv(&mut message).expect("a message");
        String::from_utf8_lossy(&message[..len]).trim().to_owned()
    }
}

#[test]
fn the_service_manager_learns_of_readiness_life_and_the_end() {
    let manager = Manager::new();
    let env = [("NOTIFY_SOCKET", manager.path.as_str()), ("WATCHDOG_USEC", "100000")];
    let server = Running::start(&[], &env);
    assert_eq!(manager.next(), "READY=1");
    assert_eq!(get(&server.address, "/readyz").status, 200);
    for _ in 0..3 {
        assert_eq!(manager.next(), "WATCHDOG=1");
    }
    let body = r#"{"prompt":"hi","max_tokens":1000,"temperature":0,"ignore_eos":true,"stream":true}"#;
    let mut stream = process::send(&server.address, "POST", "/v1/completions", body, &[]);
    let mut first = [0; 64];
    assert!(stream.read(&mut first).expect("a stream") > 0);
    server.signal();
    while manager.next() != "STOPPING=1" {}
    let mut rest = String::new();
    stream.read_to_string(&mut rest).expect("the rest of the stream");
    assert!(rest.contains("data: [DONE]"), "{rest}");
    assert_eq!(server.wait(), 0);
}

#[test]
fn asked_to_reload_a_server_that_has_nothing_to_read_goes_on() {
    let manager = Manager::new();
    let mut server = Running::start(&[], &[("NOTIFY_SOCKET", manager.path.as_str())]);
    assert_eq!(manager.next(), "READY=1");
    server.send_signal("HUP");
    server.log_until("asked to read files again, and there are none");
    assert_eq!(get(&server.address, "/readyz").status, 200);
    assert_eq!(server.terminate(), 0);
}

#[test]
fn a_server_that_cannot_load_is_never_ready() {
    let manager = Manager::new();
    let env = [("NOTIFY_SOCKET", manager.path.as_str())];
    let (code, _) = failure(&["--port", "0", "--model", "/nonexistent.gguf"], &env);
    assert_eq!(code, 2);
    manager.socket.set_nonblocking(true).expect("a socket");
    assert!(manager.socket.recv(&mut [0; 256]).is_err(), "it said something");
}

#[test]
fn a_manager_that_is_gone_stops_nobody() {
    let server = Running::start(&[], &[("NOTIFY_SOCKET", "/nonexistent/socket")]);
    assert_eq!(get(&server.address, "/readyz").status, 200);
    assert!(server.stop().contains("cannot notify the service manager"));
}

#[test]
fn health_tells_ready_from_draining_and_gone() {
    let server = Running::start(&[], &[]);
    let address = server.address.clone();
    let (host, port) = address.rsplit_once(':').expect("a port");
    assert_eq!(host, "127.0.0.1");
    // An image sets the address to listen on, not the one to ask.
    let env = [("FRUGAL_SERVER__PORT", port), ("FRUGAL_SERVER__HOST", "0.0.0.0")];
    assert_eq!(output(&["health"], &env), (0, "{\"status\":\"ok\"}\n".to_owned(), String::new()));
    let body = r#"{"prompt":"hi","max_tokens":1500,"temperature":0,"ignore_eos":true,"stream":true}"#;
    let mut stream = process::send(&server.address, "POST", "/v1/completions", body, &[]);
    let mut first = [0; 64];
    assert!(stream.read(&mut first).expect("a stream") > 0);
    server.signal();
    // The signal takes a moment, and the stream ends at some time.
    let (mut code, mut error) = (0, String::new());
    while code == 0 {
        (code, _, error) = output(&["health"], &env);
    }
    let (draining, gone) = ("is not ready: {\"status\":\"draining\"}", "no server answers on");
    assert!(code == 1 && (error.contains(draining) || error.contains(gone)), "{error}");
    drop(stream);
    assert_eq!(server.wait(), 0);
    let (code, error) = failure(&["health", "--set", &format!("server.port={port}")], &[]);
    assert!(code == 1 && error.contains(&format!("{gone} http://127.0.0.1:{port}")), "{error}");
}

#[test]
fn health_does_not_depend_on_what_the_server_read_long_ago() {
    let server = Running::start(&[], &[]);
    let (_, port) = server.address.rsplit_once(':').expect("a port");
    let env = [("FRUGAL_SERVER__PORT", port), ("FRUGAL_AUTH__KEYS_FILE", "/nonexistent/keys")];
    assert_eq!(output(&["health"], &env).0, 0);
    assert_eq!(server.terminate(), 0);
}

#[test]
fn health_waits_for_no_one_who_is_silent() {
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = silent.local_addr().expect("an address").port().to_string();
    let (code, error) = failure(&["health", "--set", &format!("server.port={port}")], &[]);
    assert!(code == 1 && error.contains("no server answers"), "{error}");
}
