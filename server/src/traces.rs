//! Traces over OTLP: a span for each request, and below it what the engine did with it.
//!
//! A thread of its own sends spans in batches from a bounded queue. While nobody takes them they are dropped; no request waits
//! for that. Names follow OpenTelemetry's conventions for generative AI; what they have no name for is `frugal.*`. Absent on
//! purpose: what clients and models write.

use std::time::{Duration, SystemTime};

use axum::extract::{MatchedPath, Request};
use axum::http::{Request as HttpRequest, Response as HttpResponse, StatusCode};
use frugal_scheduler::request::Report;
use opentelemetry::propagation::TextMapPropagator as _;
use opentelemetry::trace::{
    Span as _, SpanBuilder, SpanKind, Status, TraceContextExt as _, TraceId, TracerProvider as _,
};
use opentelemetry::{Array, Context, KeyValue, StringValue, Value};
use opentelemetry_http::{Bytes, HeaderExtractor, HttpClient, HttpError};
use opentelemetry_otlp::{ExporterBuildError, SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracer, SdkTracerProvider, Span,
};

use crate::access::{Answered, End};
use crate::usage::units;

/// Spans that wait to be sent; more are dropped.
const QUEUE_MAX: usize = 4096;

/// For a collector to take a batch; and, at the end, what is still queued.
const PATIENCE: Duration = Duration::from_secs(5);

/// Most of a collector's answer that is read.
const ANSWER_BYTES_MAX: u64 = 64 << 10;

/// Where spans go. Clones share the queue.
#[derive(Clone)]
pub struct Traces {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
}

impl Traces {
    /// To the collector at `endpoint`, such as `http://127.0.0.1:4318`: a `ratio` of the requests that say nothing of being traced.
    ///
    /// # Errors
    /// If that is no URL.
    pub fn new(endpoint: &str, ratio: f64) -> Result<Self, ExporterBuildError> {
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(Client::new())
            .with_endpoint(format!("{}/v1/traces", endpoint.trim_end_matches('/')))
            .with_timeout(PATIENCE)
            .build()?;
        let batches = BatchConfigBuilder::default().with_max_queue_size(QUEUE_MAX).build();
        let processor = BatchSpanProcessor::builder(exporter).with_batch_config(batches).build();
        let resource = Resource::builder_empty()
            .with_service_name(env!("CARGO_PKG_NAME"))
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
        let provider = SdkTracerProvider::builder()
            .with_span_processor(processor)
            .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(ratio))))
            .with_resource(resource.build())
            .build();
        let tracer = provider.tracer(env!("CARGO_PKG_NAME"));
        Ok(Self { provider, tracer })
    }

    /// Sends what is queued, if the collector takes it soon, and no more from then on. Blocks.
    pub fn finish(&self) {
        if let Err(error) = self.provider.shutdown_with_timeout(PATIENCE) {
            tracing::warn!(%error, "the last traces were not sent");
        }
    }

    /// A request has come: a part of its client's trace, if it has one.
    pub(crate) fn begin(&self, request: &Request, model: &str) -> RequestSpan {
        let method = request.method().as_str().to_owned();
        // Patterns of the router, so that their number is bounded whatever clients ask for.
        let route = request.extensions().get::<MatchedPath>().map_or("other", |path| path.as_str());
        let mut attributes = vec![
            KeyValue::new("http.request.method", method.clone()),
            KeyValue::new("http.route", route.to_owned()),
        ];
        let name = match operation(route).filter(|_| method == "POST") {
            Some(operation) => {
                attributes.extend([
                    KeyValue::new("gen_ai.operation.name", operation),
                    KeyValue::new("gen_ai.provider.name", env!("CARGO_PKG_NAME")),
                    KeyValue::new("gen_ai.request.model", model.to_owned()),
                ]);
                format!("{operation} {model}")
            }
            None => format!("{method} {route}"),
        };
        let extractor = HeaderExtractor(request.headers());
        let parent = TraceContextPropagator::new().extract_with_context(&Context::new(), &extractor);
        let span = SpanBuilder::from_name(name).with_kind(SpanKind::Server).with_attributes(attributes);
        let span = span.start_with_context(&self.tracer, &parent);
        RequestSpan { tracer: self.tracer.clone(), span }
    }
}

/// The convention's name for what an endpoint does, if it generates.
fn operation(route: &str) -> Option<&'static str> {
    match route {
        "/v1/chat/completions" | "/v1/messages" | "/v1/responses" => Some("chat"),
        "/v1/completions" => Some("text_completion"),
        _ => None,
    }
}

/// A request on its way.
pub(crate) struct RequestSpan {
    tracer: SdkTracer,
    span: Span,
}

impl RequestSpan {
    /// For the log.
    pub(crate) fn trace_id(&self) -> TraceId {
        self.span.span_context().trace_id()
    }

    /// Nothing more will become known of it. No status: its client did not wait for one.
    pub(crate) fn end(
        mut self,
        status: Option<StatusCode>,
        answered: Option<&Answered>,
        currency: Option<&str>,
    ) {
        if let Some(status) = status {
            self.set("http.response.status_code", i64::from(status.as_u16()));
        }
        if let Some(answered) = answered {
            self.answered(answered, currency);
        }
        let failed = answered.is_some_and(|answered| answered.end == End::Failed);
        if failed || status.is_some_and(|status| status.is_server_error()) {
            self.span.set_status(Status::error(""));
            let kind = status.filter(|status| !status.is_success());
            self.set("error.type", kind.map_or("_OTHER".to_owned(), |status| status.as_u16().to_string()));
        }
        self.span.end();
    }

    fn answered(&mut self, answered: &Answered, currency: Option<&str>) {
        let Answered { totals, end, submitted, reports, reasons } = answered;
        let end = match end {
            End::Complete => "complete",
            End::Failed => "failed",
            End::Abandoned => "abandoned",
        };
        self.set("frugal.end", end);
        self.set("gen_ai.usage.input_tokens", count(totals.prompt_tokens));
        self.set("gen_ai.usage.cache_read.input_tokens", count(totals.cached_tokens));
        self.set("gen_ai.usage.output_tokens", count(totals.completion_tokens));
        let reasons = reasons.iter().map(|reason| StringValue::from(*reason)).collect();
        self.set("gen_ai.response.finish_reasons", Value::Array(Array::String(reasons)));
        if let (Some(cost), Some(currency)) = (totals.cost(), currency) {
            self.set("frugal.cost", units(cost));
            self.set("frugal.cost.currency", currency.to_owned());
        }
        for report in reports {
            self.phases(*submitted, report);
        }
    }

    /// What the engine did with a prompt: three spans, one after the other.
    fn phases(&self, submitted: SystemTime, report: &Report) {
        let ended = report.total_ns;
        let planned = report.queued_ns.unwrap_or(ended);
        let first = report.first_token_ns.unwrap_or(ended).max(planned);
        let computed = report.prompt_tokens.saturating_sub(report.cached_tokens);
        self.phase("queue", submitted, (0, planned), Vec::new());
        let mut prefill = vec![
            KeyValue::new("frugal.tokens", i64::from(computed)),
            KeyValue::new("frugal.cached_tokens", i64::from(report.cached_tokens)),
        ];
        prefill.extend(report.cost.prefill.map(|cost| KeyValue::new("frugal.cost", units(cost))));
        let mut decode = vec![KeyValue::new("frugal.tokens", i64::from(report.completion_tokens))];
        decode.extend(report.cost.decode.map(|cost| KeyValue::new("frugal.cost", units(cost))));
        if report.queued_ns.is_some() {
            self.phase("prefill", submitted, (planned, first), prefill);
        }
        if report.first_token_ns.is_some() {
            self.phase("decode", submitted, (first, ended), decode);
        }
    }

    fn phase(
        &self,
        name: &'static str,
        since: SystemTime,
        (from, to): (u64, u64),
        attributes: Vec<KeyValue>,
    ) {
        let at = |ns| since + Duration::from_nanos(ns);
        let parent = Context::new().with_remote_span_context(self.span.span_context().clone());
        let span = SpanBuilder::from_name(name).with_start_time(at(from)).with_attributes(attributes);
        span.start_with_context(&self.tracer, &parent).end_with_timestamp(at(to));
    }

    /// One more attribute.
    pub(crate) fn set(&mut self, key: &'static str, value: impl Into<Value>) {
        self.span.set_attribute(KeyValue::new(key, value));
    }
}

fn count(tokens: u64) -> i64 {
    i64::try_from(tokens).unwrap_or(i64::MAX)
}

/// Speaks to the collector. It blocks: the queue's thread has nothing else to do.
#[derive(Debug)]
struct Client(ureq::Agent);

impl Client {
    fn new() -> Self {
        let config = ureq::Agent::config_builder();
        let config = config.timeout_global(Some(PATIENCE)).max_redirects(0).http_status_as_error(false);
        Self(config.build().new_agent())
    }
}

#[async_trait::async_trait]
impl HttpClient for Client {
    async fn send_bytes(&self, request: HttpRequest<Bytes>) -> Result<HttpResponse<Bytes>, HttpError> {
        let (head, mut body) = self.0.run(request.map(|body| body.to_vec()))?.into_parts();
        let bytes = body.with_config().limit(ANSWER_BYTES_MAX).read_to_vec()?;
        Ok(HttpResponse::from_parts(head, bytes.into()))
    }
}
