//! One line per request, and nothing of what was said.

use std::io::Write;
use std::sync::{Arc, Mutex};

use serde_json::json;
use tracing_subscriber::fmt::MakeWriter;

use crate::harness::{Server, Setup, keep_lines_alive, user};

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

impl Log {
    /// Lines about requests.
    fn lines(&self) -> Vec<String> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        text.lines().filter(|line| line.contains("status=")).map(str::to_owned).collect()
    }
}

/// The test's runtime has one thread, so the server's tasks log here, too.
fn logged() -> (Log, tracing::subscriber::DefaultGuard) {
    keep_lines_alive();
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt().with_writer(log.clone()).with_ansi(false);
    let subscriber = subscriber.with_max_level(tracing::Level::INFO).finish();
    (log, tracing::subscriber::set_default(subscriber))
}

/// Whoever leaves is shown what it came to, cache and cost included: lines are what keys are billed by.
#[tokio::test]
async fn an_answer_that_is_left_is_accounted_for() {
    let (log, _guard) = logged();
    let server = Setup::priced().start().await;
    let ask = json!({"messages": user(&"Hello ".repeat(40)), "max_tokens": 2, "ignore_eos": true});
    server.chat(&ask).await;
    server.control.pause();
    let mut ask = ask;
    (ask["stream"], ask["max_tokens"]) = (json!(true), json!(500));
    let stream = server.client.post(format!("{}/v1/chat/completions", server.url)).json(&ask).send();
    server.control.allow(3);
    let mut stream = stream.await.unwrap();
    assert!(stream.chunk().await.unwrap().is_some());
    drop(stream);
    server.control.resume();
    server.settle().await;
    for _ in 0..1000 {
        if log.lines().len() >= 2 {
            break;
        }
        server.get("/livez").await;
    }
    let lines = log.lines();
    let line = lines.iter().find(|line| line.contains("end=Abandoned")).expect("its line");
    let number = |name: &str| {
        let (_, rest) = line.split_once(&format!(" {name}=")).unwrap_or_else(|| panic!("{name} in {line}"));
        rest.split(' ').next().unwrap().parse::<f64>().unwrap()
    };
    assert!(
        number("cached_tokens") > 0.0 && number("completion_tokens") >= 1.0 && number("cost") > 0.0,
        "{line}"
    );
}

#[tokio::test]
async fn one_line_a_request_without_its_text() {
    let (log, _guard) = logged();
    let server = Server::new().await;
    let ask = json!({
        "messages": user("XYZZY"), "max_tokens": 3, "logit_bias": {"70": 100}, "ignore_eos": true, "stop": ["PLUGH"],
    });
    let said = server.chat(&ask).await["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    let refused = json!({"messages": user("XYZZY"), "stop": [7]});
    server.post("/v1/chat/completions", &refused).await;
    server.get("/nowhere?q=XYZZY").await;
    // Probes are not worth a line at this level.
    server.get("/livez").await;
    // An answer's line may follow its last byte.
    for _ in 0..1000 {
        if log.lines().len() >= 3 {
            break;
        }
        server.get("/livez").await;
    }
    let lines = log.lines();
    assert_eq!(lines.len(), 3, "{lines:#?}");
    assert!(lines[0].contains("completion_tokens=3") && lines[0].contains("end=Complete"), "{}", lines[0]);
    assert!(lines[1].contains("status=400") && lines[2].contains("status=404"), "{lines:#?}");
    for line in &lines {
        assert!(line.contains("request_id="), "{line}");
        assert!(["XYZZY", "PLUGH", said.as_str()].iter().all(|word| !line.contains(word)), "{line}");
    }
}
