//! Clients that people use, of pinned versions, against the server. Where one cannot be installed, its test says so
//! and passes.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use frugal::auth::Keys;
use frugal_config::auth::Key;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::harness::{Server, Setup, user};
use crate::lifecycle::until;
use crate::messages::able;

/// What `run.sh` exits with if there is no client to run.
const NOT_TESTED: i32 = 77;

pub(crate) const KEY: &str = "sk-test";

/// A client at work.
pub(crate) struct Client {
    /// What it prints, line by line.
    lines: mpsc::UnboundedReceiver<String>,
    /// Its exit code and its errors.
    end: JoinHandle<(Option<i32>, String)>,
}

impl Client {
    pub(crate) fn start(name: &str, url: &str, environment: &[(&str, &str)]) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/run.sh");
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("clients").join(name);
        let mut command = Command::new(script);
        command.args([name, url, KEY]).env("CLIENT_ENVIRONMENT", folder).envs(environment.iter().copied());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (stdout, mut stderr) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let (sender, lines) = mpsc::unbounded_channel();
        tokio::task::spawn_blocking(move || {
            // Whoever does not listen any more has failed.
            BufReader::new(stdout).lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        let end = tokio::task::spawn_blocking(move || {
            let mut errors = String::new();
            stderr.read_to_string(&mut errors).unwrap();
            (child.wait().unwrap().code(), errors)
        });
        Self { lines, end }
    }

    /// Sees a client through; whether there was one.
    pub(crate) async fn finish(mut self, mut on_line: impl AsyncFnMut(&str)) -> bool {
        let mut text = String::new();
        while let Some(line) = self.lines.recv().await {
            on_line(&line).await;
            text += &format!("{line}\n");
        }
        let (code, errors) = self.end.await.unwrap();
        if code == Some(NOT_TESTED) {
            // Past the test harness, which would swallow it.
            std::io::Write::write_all(&mut std::io::stderr(), errors.as_bytes()).unwrap();
            return false;
        }
        assert!(code == Some(0) && text.contains("all good"), "{text}{errors}");
        true
    }
}

/// Servers in trouble.
struct Trouble {
    full: Server,
    limited: Server,
    late: Server,
}

impl Trouble {
    async fn new() -> Self {
        let mut setup = Setup::default();
        (setup.engine.max_seqs, setup.engine.queue_requests_max) = (1, 1);
        let full = setup.start().await;
        let mut setup = Setup::default();
        setup.operations.keys = Keys::new(&[Key::new("test", KEY)]);
        setup.engine.tenant_requests_max = Some(1);
        let limited = setup.start().await;
        let mut setup = Setup::default();
        setup.settings.limits.request_time = Some(Duration::ZERO);
        let late = setup.start().await;
        for (server, queued) in [(&full, 0), (&full, 1), (&limited, 0)] {
            server.control.pause();
            occupy(server);
            until(server, "one runs, and as many wait as are to", |s| {
                let snapshot = s.handle.snapshot();
                let gauges = &snapshot.gauges;
                if gauges.running == 0 {
                    s.control.allow(1);
                }
                (gauges.running, gauges.queue_requests) == (1, queued)
            })
            .await;
        }
        Self { full, limited, late }
    }

    /// As a client asks for it, once it has been refused again.
    async fn on_line(&self, line: &str) {
        let (server, status) = match line {
            "relieve full" => (&self.full, 503),
            "relieve limited" => (&self.limited, 429),
            _ => return,
        };
        while refusals(server, status).await < 2 {}
        server.control.resume();
    }

    /// For a client that was there.
    async fn judge(&self) {
        assert!(refusals(&self.full, 503).await >= 2 && refusals(&self.limited, 429).await >= 2);
        assert_eq!(refusals(&self.late, 504).await, 1, "what was too much once is not repeated");
        for server in [&self.full, &self.limited, &self.late] {
            server.settle().await;
        }
    }
}

/// A request that runs, or waits, until the server is relieved.
fn occupy(server: &Server) {
    let ask = json!({"messages": user("Hi"), "max_tokens": 1500, "ignore_eos": true});
    let request =
        server.client.post(format!("{}/v1/chat/completions", server.url)).bearer_auth(KEY).json(&ask);
    tokio::spawn(request.send());
}

/// Responses of this status so far.
async fn refusals(server: &Server, status: u16) -> u64 {
    let metrics =
        server.client.get(format!("{}/metrics", server.url)).send().await.unwrap().text().await.unwrap();
    let label = format!("status=\"{status}\"");
    let mut lines =
        metrics.lines().filter(|l| l.starts_with("frugal_http_responses_total") && l.contains(&label));
    lines.next().map_or(0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
}

/// OpenAI's own client in one of its languages.
async fn openais_client(name: &str) {
    let (server, trouble) = (Server::new().await, Trouble::new().await);
    let urls = [("FULL", &trouble.full), ("LIMITED", &trouble.limited), ("LATE", &trouble.late)];
    let client =
        Client::start(name, &server.url, &urls.map(|(variable, server)| (variable, server.url.as_str())));
    if client.finish(async |line| trouble.on_line(line).await).await {
        trouble.judge().await;
    }
    server.settle().await;
}

#[tokio::test]
async fn openais_python_client() {
    openais_client("openai").await;
}

#[tokio::test]
async fn openais_node_client() {
    openais_client("node").await;
}

#[tokio::test]
async fn anthropics_python_client() {
    let (server, able) = (Server::new().await, able().await);
    Client::start("anthropic", &server.url, &[("ABLE", &able.url)]).finish(async |_| {}).await;
    server.settle().await;
    able.settle().await;
}

#[tokio::test]
async fn langchain() {
    let server = Server::new().await;
    Client::start("langchain", &server.url, &[]).finish(async |_| {}).await;
    server.settle().await;
}

/// LiteLLM takes hundreds of megabytes, so it is installed only if FRUGAL_TEST_LITELLM is set.
#[tokio::test]
async fn litellm() {
    if std::env::var_os("FRUGAL_TEST_LITELLM").is_none() {
        return frugal_tests::skip("the client litellm is large; FRUGAL_TEST_LITELLM=1 runs it");
    }
    let server = Server::new().await;
    Client::start("litellm", &server.url, &[]).finish(async |_| {}).await;
    server.settle().await;
}

/// Random requests by the API's own description, good and bad.
#[tokio::test]
async fn schemathesis() {
    let server = Server::new().await;
    Client::start("schemathesis", &server.url, &[]).finish(async |_| {}).await;
    server.settle().await;
}
