//! A server over the fake runner, whose steps take no time, and clients that cost little beside it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use axum::serve::ListenerExt as _;
use frugal::fingerprint::fingerprint;
use frugal::form::ModelForm;
use frugal::settings::{Limits, Settings, StoreLimits, UnknownFields};
use frugal::state::{Engine, State};
use frugal_models::constraint::ConstraintEngine;
use frugal_models::fake::{FakeControl, FakeModel, FakeRunner};
use frugal_models::gguf::Gguf;
use frugal_models::runner::Runner;
use frugal_models::step::{CacheGroup, Geometry, GroupKind, SamplingParams};
use frugal_models::template::ChatTemplate;
use frugal_models::tokenizer::Tokenizer;
use frugal_scheduler::handle::start;
use frugal_scheduler::options::EngineOptions;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};

/// Tokens of prompt and output together.
const CONTEXT: u32 = 2048;

/// A token of plain text in the fixture's vocabulary: answers of nothing else have an event for each token.
const PLAIN: &str = "70";

/// A server on a loopback port.
pub struct FakeServer {
    /// Where it listens.
    pub address: SocketAddr,
    /// Holds its steps back.
    pub control: FakeControl,
}

impl FakeServer {
    /// With the fixture's tokenizer and template. It keeps so many responses.
    ///
    /// # Errors
    /// If there is no port or no fixture.
    pub async fn start(kept: usize) -> Result<Self> {
        let (state, control) = fake(kept, CONTEXT)?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        // As the server's own listener does; a socket that is gone already needs no option.
        let listener = listener.tap_io(|stream| drop(stream.set_nodelay(true)));
        tokio::spawn(async move { axum::serve(listener, frugal::app(state)).await });
        Ok(Self { address, control })
    }
}

/// What serves, without a socket: the fixture's tokenizer and template over the fake runner. It keeps so many responses,
/// and prompt and output together have at most `context` tokens.
///
/// # Errors
/// If there is no fixture.
pub fn fake(kept: usize, context: u32) -> Result<(State, FakeControl)> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures/qwen3moe-F32.gguf");
    let gguf = Gguf::open(&path)?;
    let tokenizer = Tokenizer::from_gguf(&gguf)?;
    let template = ChatTemplate::from_gguf(&gguf, tokenizer.template_tokens())?;
    let runner = fake_runner(&tokenizer, context, 8192)?;
    let control = runner.control();
    let state = State::new(Settings {
        models: vec!["fake".to_owned()],
        created: 0,
        limits: Limits::default(),
        unknown_fields: UnknownFields::Refuse,
        currency: None,
        keep_alive: Duration::from_secs(10),
        responses: StoreLimits { entries: kept, ..StoreLimits::default() },
    });
    state.set_engine(engine(Box::new(runner), EngineOptions::default(), tokenizer, template)?);
    Ok((state, control))
}

/// A fake runner of a tokenizer's vocabulary, with so many blocks of 16 tokens.
///
/// # Errors
/// If there are more tokens than fit 32 bits.
pub fn fake_runner(tokenizer: &Tokenizer, context: u32, blocks: u32) -> Result<FakeRunner> {
    let geometry = Geometry {
        vocab: u32::try_from(tokenizer.vocab_size())?,
        context_max: context,
        block_tokens: 16,
        groups: vec![CacheGroup { kind: GroupKind::Full, block_bytes: 1024, blocks }],
        digest: [7; 32],
    };
    Ok(FakeRunner::new(geometry, FakeModel::default()))
}

/// A runner at work, and what makes text of its tokens.
///
/// # Errors
/// If nothing can be constrained to the vocabulary.
pub fn engine(
    runner: Box<dyn Runner>,
    options: EngineOptions,
    tokenizer: Tokenizer,
    template: ChatTemplate,
) -> Result<Engine> {
    let options = EngineOptions { token_bytes: tokenizer.token_bytes(), ..options };
    let (handle, _thread) = start(runner, options);
    Ok(Engine {
        fingerprint: fingerprint("fake", handle.geometry(), &SamplingParams::default(), None),
        sampling: SamplingParams::default(),
        handle,
        form: ModelForm::of(Some(&template), &tokenizer),
        grammars: Arc::new(ConstraintEngine::new(&tokenizer)?),
        template: Some(Arc::new(template)),
        tokenizer: Arc::new(tokenizer),
    })
}

/// A connection that is kept.
pub struct Client {
    address: SocketAddr,
    sender: SendRequest<Full<Bytes>>,
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// If there is no server.
    pub async fn connect(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        // Its errors are those of the requests on it.
        tokio::spawn(async move { drop(connection.await) });
        Ok(Self { address, sender })
    }

    /// Sends a request; what comes is its answer's body.
    ///
    /// # Errors
    /// If the answer is no good one.
    pub async fn post(&mut self, path: &str, body: &Value) -> Result<Incoming> {
        let request = Request::post(path)
            .header(header::HOST, "localhost")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::from(body.to_string()))?;
        self.sender.ready().await?;
        let response = self.sender.send_request(request).await?;
        ensure!(response.status() == StatusCode::OK, "{path}: {}", response.status());
        Ok(response.into_body())
    }

    /// The whole of an answer.
    ///
    /// # Errors
    /// If the answer is no good one.
    pub async fn whole(&mut self, path: &str, body: &Value) -> Result<Bytes> {
        Ok(self.post(path, body).await?.collect().await?.to_bytes())
    }

    /// Sends a request and leaves with the first of its answer.
    async fn abandon(&mut self, path: &str, body: &Value) -> Result<()> {
        self.post(path, body).await?.frame().await.context("a first frame")??;
        *self = Self::connect(self.address).await?;
        Ok(())
    }
}

/// A chat that answers with exactly so many tokens, each of which has text.
pub fn chat(tokens: u32, stream: bool) -> Value {
    json!({
        "messages": [{"role": "user", "content": "Say hello."}],
        "max_tokens": tokens, "ignore_eos": true, "stream": stream, "temperature": 0, "logit_bias": {PLAIN: 100},
    })
}

/// Sends so many requests of every kind over so many connections.
///
/// # Errors
/// If one is not answered.
pub async fn every_kind(address: SocketAddr, requests: u64, connections: u64) -> Result<()> {
    let next = Arc::new(AtomicU64::new(0));
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..connections {
        let (next, mut client) = (next.clone(), Client::connect(address).await?);
        clients.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= requests {
                    return anyhow::Ok(());
                }
                one(&mut client, number).await?;
            }
        });
    }
    while let Some(client) = clients.join_next().await {
        client??;
    }
    Ok(())
}

async fn one(client: &mut Client, number: u64) -> Result<()> {
    const CHAT: &str = "/v1/chat/completions";
    match number % 6 {
        0 => drop(client.whole(CHAT, &chat(8, false)).await?),
        1 => drop(client.whole(CHAT, &chat(8, true)).await?),
        2 => client.abandon(CHAT, &chat(500, true)).await?,
        3 => {
            let ask = json!({"prompt": ["Once", "upon a time"], "n": 2, "max_tokens": 8, "logprobs": 1});
            client.whole("/v1/completions", &ask).await?;
        }
        4 => {
            let user = format!("user-{number}");
            let ask = json!({"input": user, "max_output_tokens": 8, "background": number.is_multiple_of(12)});
            client.whole("/v1/responses", &ask).await?;
        }
        _ => {
            let ask =
                json!({"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 8, "stream": true});
            client.whole("/v1/messages", &ask).await?;
        }
    }
    Ok(())
}

/// Memory of this process that is in use, in KiB, as the system counts it.
///
/// # Errors
/// If the system does not tell.
pub fn resident_kib() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}
