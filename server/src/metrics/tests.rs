use std::collections::BTreeSet;

use frugal_config::prices::PicoPerMillion;
use frugal_models::meter::{Device, Sample};
use frugal_scheduler::snapshot::{Amount, Gpu, PoolCounts, UnitCost};
use prometheus::core::Collector as _;
use prometheus::{IntCounter, IntGauge};

use super::*;

/// A snapshot in which every metric has samples.
fn snapshot() -> Snapshot {
    let mut s = Snapshot::default();
    s.counters.prompt_tokens = 1_000_000;
    s.counters.cached_tokens = 400_000;
    s.counters.generated_tokens = 500_000;
    s.counters.finished = [1, 2, 3, 4, 5, 6, 7, 8];
    s.gauges.groups = vec![PoolCounts { free: 5, referenced: 3, cached: 2 }];
    s.gauges.running = 2;
    s.cost.price_per_hour = Some(85_000_000_000);
    s.cost.has_energy = true;
    s.cost.accounts = std::array::from_fn(|i| Amount {
        ns: 1_000_000_000 * (i as u64 + 1),
        pico: i as u128,
        energy: 65_000_000_000_000 * (i as u128 + 1),
    });
    s.gpu = Some(Gpu {
        device: Device { name: "NVIDIA \"Example\"".to_owned(), uuid: "GPU-0123".to_owned() },
        energy: Some(1_500_000_000_000_000),
        sample: Some(Sample {
            energy_millijoules: Some(99),
            power_milliwatts: Some(312_500),
            busy_percent: Some(87),
            memory_used: Some(30 << 30),
            memory: Some(80 << 30),
            celsius: Some(61),
        }),
    });
    let unit = UnitCost {
        seconds_marginal: Some(1.5),
        seconds_loaded: Some(3.0),
        money_marginal: Some(0.25),
        money_loaded: Some(0.5),
        joules_marginal: Some(97_500_000.0),
        joules_loaded: Some(195_000_000.0),
    };
    s.cost.total.input = unit;
    for ns in [500_000, 30_000_000, 90_000_000_000] {
        s.histograms.first_token.observe(ns);
    }
    s
}

fn facts() -> Facts {
    let list = |[input, cached, output]: [u128; 3]| {
        let price = |cents| PicoPerMillion(cents * 10_000_000_000);
        Hosted { input: price(input), cached: price(cached), output: price(output) }
    };
    let hosted = [("caches", list([15, 5, 60])), ("example", list([15, 15, 60]))];
    let hosted = hosted.map(|(name, list)| (name.to_owned(), list)).into();
    Facts { currency: "EUR".to_owned(), hosted }
}

/// 1, 2, 3 ... in the order of the table.
fn said_of_process() -> Vec<proto::MetricFamily> {
    let rows = METRICS.iter().filter(|metric| metric.name.starts_with("process_"));
    let families = rows.zip(1..).flat_map(|(row, value)| {
        if row.kind == Kind::Counter {
            let counter = IntCounter::new(row.name, "-").expect("a name");
            counter.inc_by(value);
            return counter.collect();
        }
        let gauge = IntGauge::new(row.name, "-").expect("a name");
        gauge.set(value as i64);
        gauge.collect()
    });
    families.collect()
}

fn text(snapshot: Option<&Snapshot>) -> String {
    let http = HttpCounts::default();
    http.add("/v1/chat/completions", 200);
    let model = "a \"model\"\\\nname";
    render(&View {
        model,
        facts: &facts(),
        http: &http,
        kept: (3, 4096),
        process: &said_of_process(),
        engine: snapshot.map(|s| (s, 16)),
    })
}

#[test]
fn the_system_says_something_of_the_process_under_each_name_of_the_table() {
    let said = process();
    let names: Vec<_> = said.iter().map(|family| family.name()).collect();
    for metric in METRICS.iter().filter(|metric| metric.name.starts_with("process_")) {
        assert_eq!(names.contains(&metric.name), cfg!(target_os = "linux"), "{}", metric.name);
    }
}

#[test]
fn rendered_text() {
    insta::assert_snapshot!("metrics", text(Some(&snapshot())));
}

#[test]
fn before_the_model_is_loaded_there_is_little() {
    insta::assert_snapshot!("metrics_loading", text(None));
}

#[test]
fn without_a_price_there_is_no_money() {
    let mut s = snapshot();
    s.cost.price_per_hour = None;
    s.cost.has_energy = false;
    (s.cost.total.input.joules_marginal, s.cost.total.input.joules_loaded) = (None, None);
    s.cost.total.input.money_marginal = None;
    s.cost.total.input.money_loaded = None;
    let text = text(Some(&s));
    for name in ["frugal_cost_total", "frugal_saved_cost_total", "frugal_price_per_hour", "frugal_joules"] {
        assert!(!text.contains(name), "{name}");
    }
    assert!(!text.contains("frugal_cost_per_million"));
    assert!(text.contains("frugal_cost_seconds_total"));
}

#[test]
fn what_the_gpu_does_not_say_is_absent() {
    let mut s = snapshot();
    let families = |s: &Snapshot| {
        let text = text(Some(s));
        text.lines().filter(|l| l.starts_with("# TYPE frugal_gpu_")).map(str::to_owned).collect::<Vec<_>>()
    };
    let gpu = s.gpu.as_mut().expect("there is one");
    gpu.sample = gpu.sample.map(|sample| Sample { celsius: None, ..sample });
    assert!(!families(&s).is_empty() && !families(&s).iter().any(|family| family.contains("celsius")));
    s.gpu.as_mut().expect("there is one").sample = None;
    assert_eq!(
        families(&s),
        ["# TYPE frugal_gpu_info gauge", "# TYPE frugal_gpu_joules_total counter"],
        "counters stay"
    );
    s.gpu = None;
    assert!(families(&s).is_empty());
}

#[test]
fn every_row_of_the_table_is_rendered_once() {
    let text = text(Some(&snapshot()));
    let types: Vec<(&str, &str)> =
        text.lines().filter_map(|l| l.strip_prefix("# TYPE ")?.split_once(' ')).collect();
    let rows: Vec<(&str, &str)> = METRICS.iter().map(|m| (m.name, m.kind.name())).collect();
    assert_eq!(types, rows);
}

#[test]
fn names_and_types_agree() {
    let mut seen = BTreeSet::new();
    for m in METRICS {
        assert!(seen.insert(m.name), "{} twice", m.name);
        let total = m.name.ends_with("_total");
        // vLLM's name for a histogram.
        let exempt = m.name == "vllm:iteration_tokens_total";
        assert!(exempt || total == (m.kind == Kind::Counter), "{}", m.name);
        assert!(m.help.ends_with('.') && !m.help.contains('\n') && !m.help.contains('|'), "{}", m.name);
    }
}

/// The text format's grammar, checked without anyone else's parser: every line is a comment or a sample of the
/// family that was announced last, labels are quoted, values are numbers, and histograms are cumulative.
#[test]
fn the_text_format_is_well_formed() {
    let text = text(Some(&snapshot()));
    assert!(text.ends_with('\n'));
    let mut family = "";
    let mut samples = BTreeSet::new();
    let mut bucket = 0.0;
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# ") {
            let mut words = rest.splitn(3, ' ');
            let (word, name) = (words.next().unwrap(), words.next().unwrap());
            assert!(["HELP", "TYPE"].contains(&word), "{line}");
            family = name;
            bucket = 0.0;
            continue;
        }
        let (name, rest) = line.split_once('{').expect("every metric has labels");
        let (labels, value) = rest.rsplit_once("} ").expect("labels end");
        assert!(samples.insert((name, labels)), "twice: {line}");
        let suffix = name.strip_prefix(family).expect("samples follow their family");
        assert!(["", "_bucket", "_sum", "_count"].contains(&suffix), "{line}");
        assert!(name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_:".contains(&b)), "{line}");
        let value: f64 = value.parse().unwrap_or_else(|_| panic!("not a number: {line}"));
        assert!(value.is_finite() && value >= 0.0, "{line}");
        assert!(labels.starts_with(r#"model_name="a \"model\"\\\nname""#), "{line}");
        if suffix == "_bucket" {
            assert!(value >= bucket, "{line}");
            bucket = value;
        }
    }
}
