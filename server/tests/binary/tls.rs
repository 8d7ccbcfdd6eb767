//! HTTPS: certificates, their renewal, clients that say nothing.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::Command;
use std::sync::Arc;

use tempfile::TempDir;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned, crypto};

use super::chat::say;
use super::{failure, output};
use crate::process::{PATIENCE, Running, try_get};

/// A folder with a certificate and its key, removed with the value.
struct Files(TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_string_lossy().into_owned()
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.0.path().join(name), text).expect("a file");
    }

    /// A new certificate for `localhost`, with its key.
    fn renew(&self) -> CertificateDer<'static> {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
        self.write("tls.crt", &made.cert.pem());
        self.write("tls.key", &made.signing_key.serialize_pem());
        made.cert.der().clone()
    }

    fn env(&self) -> [(&'static str, String); 2] {
        [("FRUGAL_TLS__CERTIFICATE", self.path("tls.crt")), ("FRUGAL_TLS__KEY", self.path("tls.key"))]
    }

    fn start(&self, args: &[&str]) -> Running {
        let env = self.env();
        Running::start(args, &env.each_ref().map(|(name, value)| (*name, value.as_str())))
    }
}

/// The status of `GET /readyz` for a client that trusts one certificate.
fn https(address: &str, trusted: &CertificateDer<'static>) -> Result<u16, std::io::Error> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone()).expect("a certificate");
    let config = ClientConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("TLS")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from("localhost").expect("a name");
    let connection = ClientConnection::new(Arc::new(config), name).expect("a client");
    let socket = TcpStream::connect(address)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut stream = StreamOwned::new(connection, socket);
    stream.write_all(b"GET /readyz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status"))
}

#[test]
fn https_is_spoken_and_nothing_else() {
    let files = Files::new();
    let (other, own) = (files.renew(), files.renew());
    let server = files.start(&[]);
    assert_eq!(https(&server.address, &own).expect("trust"), 200);
    https(&server.address, &other).expect_err("another's certificate");
    assert!(try_get(&server.address, "/readyz").is_none(), "plain HTTP was answered");
    // Whatever became of the files since: on this machine nobody else answers.
    let (_, port) = server.address.rsplit_once(':').expect("a port");
    let env = files.env();
    let env = [("FRUGAL_SERVER__PORT", port), (env[0].0, &env[0].1), (env[1].0, &env[1].1)];
    let healthy = || output(&["health"], &env) == (0, "{\"status\":\"ok\"}\n".to_owned(), String::new());
    assert!(healthy());
    files.renew();
    assert!(healthy());
    files.write("tls.crt", "no certificate");
    assert!(healthy());
    std::fs::remove_file(files.path("tls.key")).expect("a file");
    assert!(healthy());
    assert_eq!(server.terminate(), 0);
}

#[test]
fn chat_speaks_tls_with_who_is_vouched_for() {
    let files = Files::new();
    files.renew();
    std::fs::copy(files.path("tls.crt"), files.path("other.crt")).expect("a copy");
    files.renew();
    let server = files.start(&[]);
    let (_, port) = server.address.rsplit_once(':').expect("a port");
    let (own, other) = (files.path("tls.crt"), files.path("other.crt"));
    let ask = |scheme: &str, host: &str, env: &[(&str, &str)], file: &[&str]| {
        let url = format!("{scheme}://{host}:{port}");
        let args = [&["--url", &url, "--temperature", "0", "--max-tokens", "4"], file].concat();
        let (code, answer, error) = say("Hello", &args, env);
        // After four tokens.
        let error = error.replace("frugal: the answer was cut off at the limit of tokens\n", "");
        assert_eq!(code == 0, error.is_empty() && !answer.is_empty(), "{code} {answer} {error}");
        error
    };
    assert_eq!(ask("https", "localhost", &[], &["--ca-file", &own]), "");
    assert_eq!(ask("https", "localhost", &[("SSL_CERT_FILE", &own)], &[]), "");
    for (error, says) in [
        (ask("https", "localhost", &[("SSL_CERT_FILE", "")], &[]), "name one with --ca-file"),
        (
            ask("https", "localhost", &[("SSL_CERT_FILE", &own)], &["--ca-file", &other]),
            "no TLS with https://",
        ),
        (ask("https", "127.0.0.1", &[], &["--ca-file", &own]), "not valid for name"),
        (ask("https", "localhost", &[], &["--ca-file", "/nowhere"]), "cannot take authorities from /nowhere"),
        (ask("https", "localhost", &[], &["--ca-file", &files.path("tls.key")]), "no certificate in PEM"),
        (ask("http", "localhost", &[], &[]), "broke the connection"),
    ] {
        assert!(error.contains(says) && error.lines().count() == 1, "{error}");
    }
    let url = format!("https://localhost:{port}");
    let load = ["load", "--url", &url, "--clients", "1", "--requests", "1", "--prompt", "1", "--output", "2"];
    let (code, _, error) = output(&[&load[..], &["--ca-file", &own]].concat(), &[]);
    assert_eq!((code, error.as_str()), (0, ""));
    let (code, error) = failure(&load, &[]);
    assert!(code == 1 && error.contains("name one with --ca-file"), "{error}");
    assert_eq!(server.terminate(), 0);
}

#[test]
fn a_renewed_certificate_is_shown_and_a_bad_one_is_not() {
    let files = Files::new();
    let first = files.renew();
    let server = files.start(&[]);
    let hangup = || {
        let sent = Command::new("kill").args(["-HUP", &server.id().to_string()]).status().expect("kill runs");
        assert!(sent.success());
    };
    assert_eq!(https(&server.address, &first).expect("trust"), 200);
    let second = files.renew();
    hangup();
    while https(&server.address, &second).is_err() {}
    https(&server.address, &first).expect_err("the first is gone");
    // A key that is another certificate's.
    let own = std::fs::read_to_string(files.path("tls.crt")).expect("a file");
    files.renew();
    files.write("tls.crt", &own);
    hangup();
    assert_eq!(https(&server.address, &second).expect("as before"), 200);
    let third = files.renew();
    hangup();
    while https(&server.address, &third).is_err() {}
    assert!(server.stop().contains("read again"));
}

#[test]
fn what_cannot_be_a_certificate_is_named_at_start() {
    let files = Files::new();
    let port = ["--port", "0"];
    let check = |problem: &str| {
        let env = files.env();
        let (code, error) = failure(&port, &env.each_ref().map(|(name, value)| (*name, value.as_str())));
        assert!(code == 2 && error.contains(problem), "{error}");
    };
    files.renew();
    let key = std::fs::read_to_string(files.path("tls.key")).expect("a file");
    files.renew();
    files.write("tls.key", &key);
    check("tls.certificate and tls.key cannot be used together");
    files.write("tls.key", "no key");
    check("tls.key: the file has no private key in PEM");
    files.write("tls.key", &key);
    files.write("tls.crt", "no certificate");
    check("tls.certificate: the file has no certificate");
}

#[test]
fn a_client_that_says_nothing_holds_nothing() {
    let files = Files::new();
    let own = files.renew();
    let server = files.start(&["--set", "server.header_timeout_s=1", "--set", "server.max_connections=1"]);
    let mut silent = TcpStream::connect(&server.address).expect("a connection");
    silent.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    // The only place is taken until the server gives up.
    assert_eq!(https(&server.address, &own).expect("its turn"), 200);
    let mut rest = Vec::new();
    silent.read_to_end(&mut rest).expect("the server closes");
    assert_eq!(rest, b"");
    assert_eq!(server.terminate(), 0);
}

#[test]
fn a_client_that_says_nothing_does_not_delay_the_end() {
    let files = Files::new();
    files.renew();
    let server = files.start(&["--set", "server.header_timeout_s=3600"]);
    let silent = TcpStream::connect(&server.address).expect("a connection");
    let log = server.stop();
    assert!(!log.contains("did not take their answers"), "{log}");
    drop(silent);
}
