//! The dashboard and the alerts: they name metrics that there are, and a Prometheus that scrapes a server has an answer to each.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use frugal::metrics::{Kind, METRICS};
use serde_json::Value;

use crate::process::{Running, post};
use crate::tools::{Daemon, Folder, free_port, have, path, replace, run, text};

/// Names in `text` that look like metrics of ours.
pub(crate) fn names(text: &str) -> BTreeSet<String> {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let words = text.split(|c| !is_part(c));
    let prefixes = ["frugal_", "vllm:", "process_"];
    words.filter(|w| prefixes.iter().any(|prefix| w.starts_with(prefix))).map(str::to_owned).collect()
}

/// Whether a server has such a series.
fn exists(name: &str) -> bool {
    METRICS.iter().any(|metric| match metric.kind {
        Kind::Counter | Kind::Gauge => metric.name == name,
        Kind::Histogram => ["_bucket", "_sum", "_count"]
            .iter()
            .any(|suffix| name.strip_suffix(suffix).is_some_and(|stem| stem == metric.name)),
    })
}

fn dashboard() -> Value {
    serde_json::from_str(&text("grafana/dashboards/frugal.json")).expect("JSON")
}

/// Panels as (title, queries).
fn panels(dashboard: &Value) -> Vec<(String, Vec<String>)> {
    let panels = dashboard["panels"].as_array().expect("panels").iter();
    let panels = panels.filter(|panel| panel["type"] != "row").map(|panel| {
        let targets = panel["targets"].as_array().expect("targets").iter();
        let queries = targets.map(|target| target["expr"].as_str().expect("a query").to_owned());
        (panel["title"].as_str().expect("a title").to_owned(), queries.collect())
    });
    panels.collect()
}

#[test]
fn dashboard_and_alerts_name_metrics_that_there_are() {
    let dashboard = dashboard();
    let queries: Vec<String> = panels(&dashboard).into_iter().flat_map(|(_, queries)| queries).collect();
    for (file, text) in [
        ("the dashboard", queries.join("\n")),
        ("the dashboard's variables", dashboard["templating"].to_string()),
        ("alerts.yml", text("prometheus/alerts.yml")),
        ("alerts_test.yml", text("prometheus/alerts_test.yml")),
    ] {
        let names = names(&text);
        assert!(!names.is_empty(), "{file} names no metric");
        for name in names {
            assert!(exists(&name), "{file} names {name}, which no server has");
        }
    }
}

/// The one that is chosen at the top, as other Grafanas have other names for theirs.
#[test]
fn the_dashboard_asks_the_data_source_that_is_chosen() {
    let dashboard = dashboard();
    let variable = &dashboard["templating"]["list"][0];
    assert_eq!(variable["name"], "datasource");
    assert_eq!(variable["type"], "datasource");
    let text = dashboard.to_string();
    let uids = text.matches(r#""uid":"#).count();
    // And the dashboard's own.
    assert_eq!(text.matches(r#""uid":"${datasource}""#).count() + 1, uids);
}

#[test]
fn the_alerts_are_raised_when_they_should_be() {
    if have("promtool", "the alerts") {
        let tests = path("prometheus/alerts_test.yml");
        run(Command::new("promtool").args(["test", "rules"]).arg(&tests));
        // Each is tested.
        let (alerts, tests) = (text("prometheus/alerts.yml"), text("prometheus/alerts_test.yml"));
        for alert in alerts.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")) {
            assert!(tests.contains(&format!("alertname: {alert}\n")), "{alert} is never raised in a test");
        }
    }
}

/// What Grafana would send, for all models and instances.
fn sent(query: &str) -> String {
    let query = query.replace("$__rate_interval", "1m").replace("$model", ".*").replace("$instance", ".*");
    assert!(!query.contains('$'), "a variable that is not known: {query}");
    query
}

/// A Prometheus with our configuration, but another target and less patience.
struct Prometheus {
    url: String,
    daemon: Daemon,
    _folder: Folder,
}

impl Prometheus {
    fn start(target: &str) -> Self {
        let folder = Folder::new("prometheus");
        let config = replace(&text("prometheus/prometheus.yml"), "frugal:8000", target);
        let config = replace(&config, ": 15s", ": 100ms");
        let config = folder.write("prometheus.yml", &config);
        folder.write("alerts.yml", &text("prometheus/alerts.yml"));
        run(Command::new("promtool").args(["check", "config"]).arg(&config));
        let address = format!("127.0.0.1:{}", free_port());
        let daemon = Daemon::start(
            Command::new("prometheus")
                .arg(format!("--config.file={}", config.display()))
                .arg(format!("--storage.tsdb.path={}", folder.0.join("data").display()))
                .arg(format!("--web.listen-address={address}"))
                .args(["--log.level=warn"])
                .stdin(Stdio::null()),
        );
        Self { url: format!("http://{address}"), daemon, _folder: folder }
    }

    /// The samples that a query gives now; None if there is no answer.
    fn query(&mut self, query: &str) -> Option<Vec<String>> {
        self.daemon.alive();
        let output = Command::new("promtool").args(["query", "instant", &self.url, query]).output();
        let output = output.expect("promtool runs");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(!error.contains("parse error") && !error.contains("bad_data"), "{query}: {error}");
        let lines = String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect::<Vec<_>>();
        output.status.success().then(|| lines.into_iter().filter(|line| !line.is_empty()).collect())
    }
}

/// The same token again and again, so that it is guessed.
const CHAT: &str = r#"{"messages":[{"role":"system","content":"All of this is the same in every request, and longer than a block."},
    {"role":"user","content":"hi"}],"max_tokens":32,"temperature":0,"ignore_eos":true,"logit_bias":{"100":100}}"#;

#[test]
fn a_prometheus_that_scrapes_a_server_answers_every_panel() {
    // With promtool in its package.
    if !have("prometheus", "the dashboard's queries") {
        return;
    }
    let hosted = r#"{ example = { input = "0.15", output = "0.60" } }"#;
    let server = Running::start(&["--instance-per-hour", "0.36"], &[("FRUGAL_COST__HOSTED", hosted)]);
    let mut prometheus = Prometheus::start(&server.address);
    let panels = panels(&dashboard());
    assert!(panels.len() >= 12, "{panels:?}");
    let deadline = Instant::now() + Duration::from_secs(120);
    for (panel, queries) in panels {
        for query in queries {
            let query = sent(&query);
            // Rates need two scrapes with traffic; ratios are not a number until then.
            let answered = |samples: &[String]| samples.iter().any(|sample| !sample.contains("=> NaN"));
            while !prometheus.query(&query).is_some_and(|samples| answered(&samples)) {
                assert!(Instant::now() < deadline, "{panel}: nothing from {query}");
                assert_eq!(post(&server.address, "/v1/chat/completions", CHAT, &[]).status, 200);
            }
        }
    }
    for rule in
        text("prometheus/alerts.yml").lines().filter_map(|line| line.trim().strip_prefix("- record: "))
    {
        while prometheus.query(rule).is_none_or(|samples| samples.is_empty()) {
            assert!(Instant::now() < deadline, "nothing from {rule}");
            assert_eq!(post(&server.address, "/v1/chat/completions", CHAT, &[]).status, 200);
        }
    }
    // Those that do not depend on how fast this machine is.
    let raised =
        r#"ALERTS{alertname=~"Frugal(Down|Restarted|Faults|EngineStalled|KvFull|QueueFull|Timeouts)"}"#;
    assert_eq!(prometheus.query(raised), Some(Vec::new()));
    drop(prometheus);
    assert_eq!(server.terminate(), 0);
}
