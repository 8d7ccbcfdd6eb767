//! The chart: rendered by Helm and validated against schemas (`tests/chart/run.sh`); the metrics that autoscaling and the inference
//! gateway read.

use std::path::Path;
use std::process::Command;

use frugal::metrics::{Kind, METRICS};

use crate::process::skip;
use crate::prometheus::names;
use crate::tools::text;

/// What `run.sh` ends with where Helm or a schema cannot be had.
const NOT_TESTED: i32 = 77;

#[test]
fn the_chart_renders_and_fits_its_schemas() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/chart/run.sh");
    let environment = Path::new(env!("CARGO_TARGET_TMPDIR")).join("chart");
    let output = Command::new(script).arg(environment).output().expect("the script runs");
    let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if output.status.code() == Some(NOT_TESTED) {
        return skip(&errors);
    }
    assert!(output.status.success(), "{said}{errors}");
    assert_eq!(said.matches(": all good").count(), 3, "{said}");
}

#[test]
fn autoscalers_and_gateways_find_their_metrics() {
    // The gateway's protocol asks for gauges of these three things; their names are the picker's defaults.
    let picker = ["vllm:num_requests_waiting", "vllm:num_requests_running", "vllm:kv_cache_usage_perc"];
    let pool = names(&text("helm/frugal/templates/pool.yaml"));
    assert_eq!(pool, picker.map(str::to_owned).into());
    let scaling = names(&text("helm/frugal/templates/autoscaling.yaml"));
    assert!(!scaling.is_empty());
    for name in pool.iter().chain(&scaling) {
        let metric = METRICS.iter().find(|metric| metric.name == name);
        assert_eq!(metric.map(|metric| metric.kind), Some(Kind::Gauge), "{name}");
    }
}
