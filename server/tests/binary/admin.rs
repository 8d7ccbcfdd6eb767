//! A listener for whoever operates the server.

use super::{failure, output};
use crate::process::{Running, get};

#[test]
fn metrics_are_served_on_their_own_listener() {
    let args = ["--set", "server.admin_listen=127.0.0.1:0"];
    let mut server = Running::start(&args, &[("FRUGAL_SERVER__SELFCHECK", "true")]);
    assert!(server.line().starts_with("Chat: http://127.0.0.1:"));
    assert!(server.line().starts_with("Try: curl"));
    let line = server.line();
    let admin = line.trim().strip_prefix("Metrics on http://").and_then(|line| line.strip_suffix("/metrics"));
    let admin = admin.unwrap_or_else(|| panic!("{line}")).to_owned();
    for path in ["/metrics", "/debug/selfcheck"] {
        assert_eq!((get(&server.address, path).status, get(&admin, path).status), (404, 200), "{path}");
    }
    assert_eq!((get(&server.address, "/readyz").status, get(&admin, "/readyz").status), (200, 200));
    assert_eq!((get(&server.address, "/v1/models").status, get(&admin, "/v1/models").status), (200, 404));
    // It is also where readiness is asked for, whatever is spoken on the other port.
    let env = [("FRUGAL_SERVER__ADMIN_LISTEN", admin.as_str())];
    assert_eq!(output(&["health"], &env).1, "{\"status\":\"ok\"}\n");
    assert_eq!(server.terminate(), 0);
}

#[test]
fn both_listeners_are_had_before_the_model() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    let env = [("FRUGAL_SERVER__ADMIN_LISTEN", address.as_str())];
    let (code, error) = failure(&["--port", "0", "--model", "/nonexistent.gguf"], &env);
    assert!(code == 1 && error.contains(&format!("cannot listen on {address}")), "{error}");
}
