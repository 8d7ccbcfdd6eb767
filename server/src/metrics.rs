//! `/metrics`: one table names every metric and says how it is read; this module renders it.
//!
//! Logic fills the engine's `Snapshot`; nothing else in the program knows a metric's name. A family without samples
//! (money without a price, the engine before it is loaded) is absent rather than zero.

mod http;
mod process;
mod table;

use std::collections::BTreeMap;

use frugal_config::prices::Hosted;
use frugal_scheduler::histogram::Histogram;
use frugal_scheduler::snapshot::Snapshot;
use prometheus::proto;

pub use http::{HttpCounts, count};
pub use process::process;
pub use table::METRICS;

/// The media type of [`render`]'s text.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What is known from the start.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Label `currency` of money.
    pub currency: String,
    /// List prices of hosted APIs by name.
    pub hosted: BTreeMap<String, Hosted>,
}

/// Everything that a metric may be read from.
pub struct View<'a> {
    /// Label `model_name` of every metric.
    pub model: &'a str,
    /// Fixed.
    pub facts: &'a Facts,
    /// Responses so far.
    pub http: &'a HttpCounts,
    /// Responses of `/v1/responses` that are kept, and the bytes they take.
    pub kept: (usize, usize),
    /// What [`process`] said.
    pub process: &'a [proto::MetricFamily],
    /// The engine, and the positions in one of its blocks; None while the model is being loaded.
    pub engine: Option<(&'a Snapshot, u32)>,
}

/// A metric's type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Never goes down; its name ends in `_total`.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts below bounds, and a sum.
    Histogram,
}

impl Kind {
    /// As the text format spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// One row of the table.
pub struct Metric {
    /// As exported.
    pub name: &'static str,
    /// Its type.
    pub kind: Kind,
    /// One line.
    pub help: &'static str,
    /// Besides `model_name`, which all have, and `engine`, which those named `vllm:` have.
    pub labels: &'static [&'static str],
    /// How its samples are read.
    pub read: Read,
}

/// Where a metric's samples come from.
pub enum Read {
    /// What the system says of the process under the metric's own name.
    Process,
    /// Always there.
    Server(fn(&View<'_>, &mut Samples)),
    /// There once the model is loaded.
    Engine(fn(&Snapshot, &mut Samples)),
    /// As `Engine`, with more to look at.
    Both(fn(&Snapshot, &View<'_>, &mut Samples)),
}

/// Collects the samples of one metric.
pub struct Samples {
    kind: Kind,
    fixed: Vec<(&'static str, String)>,
    labels: &'static [&'static str],
    samples: Vec<proto::Metric>,
}

impl Samples {
    /// One sample of a counter or gauge; `values` in the order of the metric's labels.
    fn put(&mut self, values: &[&str], value: f64) {
        let mut sample = self.labelled(values);
        match self.kind {
            Kind::Counter => {
                let mut counter = proto::Counter::default();
                counter.set_value(value);
                sample.set_counter(counter);
            }
            Kind::Gauge => {
                let mut gauge = proto::Gauge::default();
                gauge.set_value(value);
                sample.set_gauge(gauge);
            }
            Kind::Histogram => unreachable!("histograms are put as such"),
        }
        self.samples.push(sample);
    }

    /// What the system says of the process, if it does.
    fn of_process(&mut self, view: &View<'_>, name: &str) {
        let family = view.process.iter().find(|family| family.name() == name);
        if let Some(metric) = family.and_then(|family| family.get_metric().first()) {
            let value = match self.kind {
                Kind::Counter => metric.get_counter().get_value(),
                _ => metric.get_gauge().get_value(),
            };
            self.put(&[], value);
        }
    }

    fn histogram(&mut self, values: &[&str], from: &Histogram) {
        assert_eq!(self.kind, Kind::Histogram, "the table says what this metric is");
        let mut sample = self.labelled(values);
        let mut histogram = proto::Histogram::default();
        histogram.set_sample_count(from.count());
        histogram.set_sample_sum(from.sum());
        let buckets = from.cumulative().map(|(bound, count)| {
            let mut bucket = proto::Bucket::default();
            bucket.set_upper_bound(bound);
            bucket.set_cumulative_count(count);
            bucket
        });
        histogram.set_bucket(buckets.collect());
        sample.set_histogram(histogram);
        self.samples.push(sample);
    }

    fn labelled(&self, values: &[&str]) -> proto::Metric {
        assert_eq!(values.len(), self.labels.len(), "one value for each label of the table");
        let fixed = self.fixed.iter().map(|(name, value)| (*name, value.as_str()));
        let own = self.labels.iter().copied().zip(values.iter().copied());
        let pairs = fixed.chain(own).map(|(name, value)| {
            let mut pair = proto::LabelPair::default();
            pair.set_name(name.to_owned());
            pair.set_value(value.to_owned());
            pair
        });
        proto::Metric::from_label(pairs.collect())
    }
}

/// All metrics in Prometheus' text format 0.0.4.
pub fn render(view: &View<'_>) -> String {
    let families: Vec<proto::MetricFamily> =
        METRICS.iter().filter_map(|metric| family(metric, view)).collect();
    prometheus::TextEncoder::new().encode_to_string(&families).expect("families are named and not empty")
}

fn family(metric: &Metric, view: &View<'_>) -> Option<proto::MetricFamily> {
    let mut fixed = vec![("model_name", view.model.to_owned())];
    if metric.name.starts_with("vllm:") {
        fixed.push(("engine", "0".to_owned()));
    }
    let mut samples = Samples { kind: metric.kind, fixed, labels: metric.labels, samples: Vec::new() };
    match (&metric.read, view.engine) {
        (Read::Process, _) => samples.of_process(view, metric.name),
        (Read::Server(read), _) => read(view, &mut samples),
        (Read::Engine(read), Some((snapshot, _))) => read(snapshot, &mut samples),
        (Read::Both(read), Some((snapshot, _))) => read(snapshot, view, &mut samples),
        (Read::Engine(_) | Read::Both(_), None) => {}
    }
    let mut family = proto::MetricFamily::default();
    family.set_name(metric.name.to_owned());
    family.set_help(metric.help.to_owned());
    family.set_field_type(match metric.kind {
        Kind::Counter => proto::MetricType::COUNTER,
        Kind::Gauge => proto::MetricType::GAUGE,
        Kind::Histogram => proto::MetricType::HISTOGRAM,
    });
    (!samples.samples.is_empty()).then(|| {
        family.set_metric(samples.samples);
        family
    })
}

/// The README's metric table, in Markdown.
pub fn reference() -> String {
    let mut text = String::from("| metric | type | labels | meaning |\n|---|---|---|---|\n");
    for m in METRICS {
        let labels: Vec<String> = m.labels.iter().map(|l| format!("`{l}`")).collect();
        text += &format!("| `{}` | {} | {} | {} |\n", m.name, m.kind.name(), labels.join(", "), m.help);
    }
    text
}

#[cfg(test)]
mod tests;
