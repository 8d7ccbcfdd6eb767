//! A server in this process, and clients for it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use frugal::settings::{Limits, Settings, StoreLimits, UnknownFields};
use frugal::state::{Operations, State};
use frugal_models::fake::FakeControl;
use frugal_models::gguf::Gguf;
use frugal_models::kv::PageType;
use frugal_models::memory::{KvOptions, KvSize};
use frugal_models::model_runner::{BackendKind, RunnerOptions, load_runner};
use frugal_models::runner::Runner;
use frugal_models::template::ChatTemplate;
use frugal_models::tokenizer::Tokenizer;
use frugal_scheduler::handle::Handle;
use frugal_scheduler::options::{EngineOptions, Prices};
use frugal_tests::load::{engine, fake_runner};
use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::net::TcpListener;

/// The name the server gives its model.
pub(crate) const MODEL: &str = "tests/qwen3moe";

/// Tokens of prompt and output together.
pub(crate) const CONTEXT: u32 = 2048;

/// What a server is started with.
pub(crate) struct Setup {
    pub(crate) settings: Settings,
    pub(crate) engine: EngineOptions,
    pub(crate) template: bool,
    pub(crate) operations: Operations,
    /// Instead of the model's.
    pub(crate) template_source: Option<String>,
    /// Runs the model itself instead of the fake, on this.
    pub(crate) backend: Option<BackendKind>,
    /// Instead of the fixture.
    pub(crate) model: Option<Gguf>,
}

impl Default for Setup {
    fn default() -> Self {
        let settings = Settings {
            models: vec![MODEL.to_owned(), "alias".to_owned()],
            created: 1_700_000_000,
            limits: Limits::default(),
            unknown_fields: UnknownFields::Refuse,
            currency: None,
            keep_alive: Duration::from_secs(10),
            responses: StoreLimits::default(),
        };
        Self {
            settings,
            engine: EngineOptions::default(),
            template: true,
            operations: Operations::default(),
            template_source: None,
            backend: None,
            model: None,
        }
    }
}

impl Setup {
    /// With a price of 3.6 dollars an hour: a thousandth a second.
    pub(crate) fn priced() -> Self {
        let mut setup = Self::default();
        setup.settings.currency = Some("USD".to_owned());
        setup.engine.prices = Prices { per_hour: Some(3_600_000_000_000), ..Prices::default() };
        setup
    }

    pub(crate) async fn start(self) -> Server {
        keep_lines_alive();
        let fixture = || Gguf::open(&fixture("qwen3moe-F32.gguf")).expect("the fixture is there");
        let gguf = self.model.unwrap_or_else(fixture);
        let tokenizer = Tokenizer::from_gguf(&gguf).expect("a tokenizer");
        let tokens = tokenizer.template_tokens();
        let template = match &self.template_source {
            None => ChatTemplate::from_gguf(&gguf, tokens).expect("a template"),
            Some(source) => ChatTemplate::new(source, tokens).expect("a template"),
        };
        let (runner, control) = match self.backend {
            None => fake(&tokenizer),
            Some(backend) => (real(&gguf, backend), FakeControl::default()),
        };
        let state = State::operated(self.settings, self.operations);
        let mut engine = engine(runner, self.engine, tokenizer, template).expect("a vocabulary of text");
        engine.template.take_if(|_| !self.template);
        let (handle, tokenizer) = (engine.handle.clone(), engine.tokenizer.clone());
        state.set_engine(engine);
        let url = serve(state.clone()).await;
        Server { url, state, control, handle, tokenizer, client: reqwest::Client::new() }
    }
}

/// Whether a line is of interest is cached for all threads, so that tests with a log of their own and tests without would disturb
/// each other: with a log for everyone every line is of interest always.
pub(crate) fn keep_lines_alive() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let nowhere =
            tracing_subscriber::fmt().with_writer(std::io::sink).with_max_level(tracing::Level::INFO);
        tracing::subscriber::set_global_default(nowhere.finish()).expect("nobody else sets it");
    });
}

fn fake(tokenizer: &Tokenizer) -> (Box<dyn Runner>, FakeControl) {
    let runner = fake_runner(tokenizer, CONTEXT, 1024).expect("512 tokens");
    let control = runner.control();
    (Box::new(runner), control)
}

fn real(gguf: &Gguf, backend: BackendKind) -> Box<dyn Runner> {
    let kv = KvOptions {
        block_tokens: 16,
        page: PageType::F32,
        size: KvSize::Blocks(512),
        context: Some(CONTEXT),
        sequences: 16,
        step_tokens: 512,
    };
    let options = RunnerOptions { backend, threads: 2, pin: false, isa: None, kv, lazy: true };
    load_runner(gguf, &options).expect("the model runs")
}

/// Serves a state on a port of the system's choice.
pub(crate) async fn serve(state: State) -> String {
    serve_router(frugal::app(state)).await
}

/// The same for anything.
pub(crate) async fn serve_router(router: axum::Router) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move { axum::serve(listener, router).await });
    format!("http://{address}")
}

pub(crate) fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}

/// A server and what is behind it.
pub(crate) struct Server {
    pub(crate) url: String,
    pub(crate) state: State,
    pub(crate) control: FakeControl,
    pub(crate) handle: Handle,
    pub(crate) tokenizer: Arc<Tokenizer>,
    pub(crate) client: reqwest::Client,
}

/// A whole answer.
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: reqwest::header::HeaderMap,
    pub(crate) json: Value,
}

impl Server {
    /// With everything as usual.
    pub(crate) async fn new() -> Self {
        Setup::default().start().await
    }

    pub(crate) async fn get(&self, path: &str) -> Reply {
        reply(self.client.get(format!("{}{path}", self.url))).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Reply {
        reply(self.client.post(format!("{}{path}", self.url)).json(body)).await
    }

    /// The same with more headers.
    pub(crate) async fn post_with(&self, path: &str, body: &Value, headers: &[(&str, &str)]) -> Reply {
        let request = self.client.post(format!("{}{path}", self.url)).json(body);
        reply(headers.iter().fold(request, |request, (name, value)| request.header(*name, *value))).await
    }

    /// An answer that must be good.
    pub(crate) async fn ask(&self, path: &str, body: &Value) -> Value {
        let reply = self.post(path, body).await;
        assert_eq!(reply.status, StatusCode::OK, "{body} -> {}", reply.json);
        reply.json
    }

    pub(crate) async fn chat(&self, body: &Value) -> Value {
        self.ask("/v1/chat/completions", body).await
    }

    pub(crate) async fn complete(&self, body: &Value) -> Value {
        self.ask("/v1/completions", body).await
    }

    /// A streamed answer: the data of its events.
    pub(crate) async fn stream(&self, path: &str, body: &Value) -> Vec<String> {
        let response = self.client.post(format!("{}{path}", self.url)).json(body).send().await.expect("sent");
        assert_eq!(response.status(), StatusCode::OK, "{body}");
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        data(&response.text().await.expect("a whole stream"))
    }

    /// All is at rest and every invariant holds. Each try is a round trip, so that the server gets on.
    pub(crate) async fn settle(&self) {
        for _ in 0..10_000 {
            let check = self.handle.self_check().await.expect("the engine lives");
            assert_eq!(check.violation, None);
            if check.requests == 0 && check.sequences == 0 {
                return;
            }
            self.get("/livez").await;
        }
        panic!("requests are left over");
    }
}

async fn reply(request: reqwest::RequestBuilder) -> Reply {
    let response = request.send().await.expect("an answer");
    let (status, headers) = (response.status(), response.headers().clone());
    let text = response.text().await.expect("a body");
    let json = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{status}: {e}: {text}"));
    Reply { status, headers, json }
}

/// The events of a stream; comments are none.
pub(crate) fn data(stream: &str) -> Vec<String> {
    let lines = stream.split("\n\n").filter(|event| !event.is_empty() && !event.starts_with(':'));
    lines.map(|event| event.strip_prefix("data: ").expect("only data").to_owned()).collect()
}

/// The chunks of a stream that ended well.
pub(crate) fn chunks(events: &[String]) -> Vec<Value> {
    let (last, chunks) = events.split_last().expect("an end");
    assert_eq!(last, "[DONE]");
    chunks.iter().map(|c| serde_json::from_str(c).expect("JSON")).collect()
}

/// Replaces what differs from run to run.
pub(crate) fn stable(mut body: Value) -> Value {
    if let Some(id) = body.get_mut("id") {
        let prefix = id.as_str().and_then(|id| id.split_once('-')).expect("a prefix").0;
        *id = json!(format!("{prefix}-ID"));
    }
    if let Some(fingerprint) = body.get_mut("system_fingerprint") {
        assert!(fingerprint.as_str().is_some_and(|f| f.len() == 13 && f.starts_with("fp_")), "{fingerprint}");
        *fingerprint = json!("fp_FINGERPRINT");
    }
    if let Some(created) = body.get_mut("created") {
        assert!(created.as_u64().is_some_and(|t| t > 1_700_000_000));
        *created = json!(0);
    }
    body
}

/// One message of a user.
pub(crate) fn user(text: &str) -> Value {
    json!([{"role": "user", "content": text}])
}

/// A request with more fields.
pub(crate) fn with(mut body: Value, more: &Value) -> Value {
    let more = more.as_object().expect("fields").clone();
    body.as_object_mut().expect("a request").extend(more);
    body
}
