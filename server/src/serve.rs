//! `frugal serve`: listen, load, announce, drain.
//!
//! The listener opens first, so that probes get answers (alive, not ready) while a model is fetched and loaded, and a
//! port in use is known before the work is done.

use std::convert::Infallible;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use axum::http::HeaderValue;
use frugal::auth::Keys;
use frugal::fingerprint::fingerprint;
use frugal::form::ModelForm;
use frugal::metrics::Facts;
use frugal::settings::{self, Settings, UnknownFields};
use frugal::state::{Engine, Operations, State};
use frugal::traces::Traces;
use frugal_config::{Config, raw};
use frugal_models::constraint::ConstraintEngine;
use frugal_models::meter::Meter;
use frugal_models::model_runner::{BackendKind, meter};
use frugal_models::runner::{Invariance, Runner};
use frugal_models::sampling::recommended;
use frugal_models::source::Stop;
use frugal_models::step::{Geometry, SamplingParams};
use frugal_models::template::{ChatTemplate, TemplateError};
use frugal_models::tokenizer::Tokenizer;
use frugal_scheduler::options::{EngineOptions, Prices};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use crate::lifecycle::{Drain, LOOK_EVERY, Server, Signals, reachable, until_drained, watch_for_hang};
use crate::misuse::OrMisuse as _;
use crate::reload::{self, Source};
use crate::tls::Tls;
use crate::{load, notify};

/// File descriptors for all but connections.
const DESCRIPTORS: u64 = 64;

/// Threads of the HTTP runtime: few, because the cores belong to the model.
const RUNTIME_THREADS: usize = 2;
/// For the programs that fetch a model to end with us.
const FETCH_END: Duration = Duration::from_secs(1);
/// Draft tokens, unless the configuration says how many, where none can change an answer.
const DRAFT_TOKENS: u32 = 8;

/// Serves until a signal; `started` is when the process began.
pub(crate) fn run(config: &Config, started: Instant) -> anyhow::Result<()> {
    allow_descriptors(config.listen.connections_max);
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime =
        runtime.worker_threads(RUNTIME_THREADS).enable_all().build().context("cannot start threads")?;
    let result = runtime.block_on(serve(config, started));
    // Neither a model that is still being loaded nor a client that does not read keeps the process.
    runtime.shutdown_background();
    result
}

/// As many as connections need, where the system's default is too low and its limit is not.
pub(crate) fn allow_descriptors(connections: usize) {
    let needed = connections as u64 + DESCRIPTORS;
    let limits = getrlimit(Resource::Nofile);
    if limits.current.is_none_or(|current| current >= needed) {
        return;
    }
    let current = limits.maximum.map_or(needed, |most| most.min(needed));
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: Some(current), ..limits }) {
        tracing::warn!(%error, "cannot raise the limit of file descriptors");
    } else if current < needed {
        tracing::warn!(
            limit = current,
            needed,
            "fewer file descriptors than server.max_connections may take"
        );
    }
}

async fn serve(config: &Config, started: Instant) -> anyhow::Result<()> {
    let mut signals = Signals::new()?;
    load::check(config)?;
    let tls = config.tls.as_ref().map(|tls| Tls::new(&tls.pem)).transpose().or_misuse()?;
    let (listener, address) = listen(SocketAddr::new(config.listen.host, config.listen.port)).await?;
    let admin = match config.listen.admin {
        Some(address) => Some(listen(address).await?),
        None => None,
    };
    let state = State::operated(settings(config, load::id(config)?), operations(config).or_misuse()?);
    if !config.listen.host.is_loopback() && config.auth.keys.is_empty() {
        tracing::warn!(%address, "no API key is asked for: whoever reaches this address may use the server");
    }
    match sources(config, &state, tls.clone()) {
        // A service manager sends SIGHUP to have files read again, and a terminal when it closes.
        none if none.is_empty() && !notify::is_managed() => signals.and_hangup()?,
        sources => reload::watch(sources)?,
    }
    let scheme = if tls.is_some() { "https" } else { "http" };
    let mut servers = vec![Server::start(listener, frugal::app(state.clone()), &config.listen, tls)];
    let admin = admin.map(|(listener, address)| {
        servers.push(Server::start(listener, frugal::admin(state.clone()), &config.listen, None));
        address
    });
    tracing::info!(%address, model = state.model(), "loading");
    let stop = Stop::default();
    let (fetching, fetched) = oneshot::channel();
    let loaded = tokio::select! {
        loaded = load_aside(config, stop.clone(), fetching) => loaded?,
        name = signals.next() => {
            tracing::info!(signal = name, "stopped while loading");
            stop.now();
            // Whatever it takes: what matters is that it is over.
            let _ = tokio::time::timeout(FETCH_END, fetched).await;
            return Ok(());
        }
    };
    let options = engine_options(config, started, &loaded);
    let backend = loaded.backend.name();
    let (handle, _thread) = frugal_scheduler::handle::start_metered(loaded.runner, options, loaded.meter);
    let template = config.model.chat_template.as_deref();
    state.set_engine(Engine {
        fingerprint: fingerprint(backend, handle.geometry(), &loaded.sampling, template),
        handle: handle.clone(),
        form: ModelForm::of(loaded.template.as_deref(), &loaded.tokenizer),
        tokenizer: loaded.tokenizer,
        template: loaded.template,
        grammars: loaded.grammars,
        sampling: loaded.sampling,
    });
    tell_what_runs(config, backend, handle.geometry());
    let keys = !config.auth.keys.is_empty();
    match announce(&format!("{scheme}://"), address, admin, state.model(), keys) {
        // Whoever started us has read what it wanted.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
        announced => announced?,
    }
    notify::ready(&handle);
    tokio::spawn(watch_for_hang(handle.clone(), LOOK_EVERY));
    let drained = until_drained(&handle, &mut signals, config.listen.drain_timeout).await;
    if let Ok(Drain::Now) = drained {
        anyhow::bail!("stopped at once by a second signal");
    }
    for server in servers {
        server.finish().await;
    }
    if let Some(traces) = &state.operations().traces {
        tokio::task::block_in_place(|| traces.finish());
    }
    drained.map(|_| ())
}

/// A listener, and its address as it is.
async fn listen(address: SocketAddr) -> anyhow::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))?;
    let address = listener.local_addr().context("the listener has no address")?;
    Ok((listener, address))
}

/// What is read again while serving.
fn sources(config: &Config, state: &State, tls: Option<Tls>) -> Vec<Source> {
    let mut sources = Vec::new();
    if config.auth.has_file() {
        let (auth, keys) = (config.auth.clone(), state.operations().keys.clone());
        let mut last = auth.keys.clone();
        sources.push(Source::new("API keys", move || {
            let now = auth.read_again()?;
            let changed = now != last;
            if changed {
                keys.replace(&now);
                last = now;
            }
            Ok(changed)
        }));
    }
    if let (Some(files), Some(tls)) = (config.tls.clone(), tls) {
        let mut last = files.pem.clone();
        sources.push(Source::new("certificate", move || {
            let now = files.read_again()?;
            let changed = now != last;
            if changed {
                tls.replace(&now)?;
                last = now;
            }
            Ok(changed)
        }));
    }
    sources
}

struct Loaded {
    backend: BackendKind,
    runner: Box<dyn Runner>,
    meter: Option<Meter>,
    tokenizer: Arc<Tokenizer>,
    template: Option<Arc<ChatTemplate>>,
    grammars: Arc<ConstraintEngine>,
    sampling: SamplingParams,
}

/// Loads on a thread of its own, which the end of the process does not wait for. `fetching` is dropped when the model's file is had, or
/// never will be.
async fn load_aside(
    config: &Config,
    stop: Stop,
    fetching: oneshot::Sender<Infallible>,
) -> anyhow::Result<Loaded> {
    let (sender, loaded) = oneshot::channel();
    let config = config.clone();
    std::thread::Builder::new()
        .name("load".to_owned())
        .spawn(move || {
            let path = load::file_unless(&config, &stop);
            drop(fetching);
            drop(sender.send(path.and_then(|path| load(&config, &path))));
        })
        .context("cannot start a thread")?;
    loaded.await.context("the model's loader panicked")?
}

fn load(config: &Config, path: &Path) -> anyhow::Result<Loaded> {
    let gguf = load::open(path)?;
    let of = || format!("cannot load model {}", path.display());
    let tokenizer = Arc::new(Tokenizer::from_gguf(&gguf).with_context(of)?);
    let tokens = tokenizer.template_tokens();
    let template = match &config.model.chat_template {
        Some(source) => {
            let template = ChatTemplate::new(source, tokens).context("cannot use model.chat_template");
            Some(template.or_misuse()?)
        }
        None => match ChatTemplate::from_gguf(&gguf, tokens) {
            Err(TemplateError::Missing) => None,
            template => Some(template.with_context(of)?),
        },
    };
    let grammars = Arc::new(ConstraintEngine::new(&tokenizer).with_context(of)?);
    let backend = load::backend(config);
    let meter = meter(backend);
    let runner = load::runner(config, backend, path, &gguf, load::kv(config), config.cpu.lazy_experts)?;
    let sampling = sampling(config, recommended(&gguf));
    Ok(Loaded { backend, runner, meter, tokenizer, template: template.map(Arc::new), grammars, sampling })
}

fn settings(config: &Config, model: String) -> Settings {
    let limits = &config.limits;
    Settings {
        models: vec![model],
        created: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()),
        limits: settings::Limits {
            head_bytes: config.listen.header_bytes_max,
            body_bytes: limits.body_bytes_max,
            body_time: limits.body_timeout,
            request_time: Some(limits.request_timeout),
            n: limits.n_max,
            prompts: limits.prompts_max,
            prompt_bytes: limits.prompt_bytes_max,
            stop: limits.stop_max,
            stop_bytes: limits.stop_bytes_max,
            logit_bias: limits.logit_bias_max,
            logprobs: limits.logprobs_max,
            response_entries: limits.response_entries_max,
            text_threads: config.text.threads,
            text_queue: config.text.queue,
        },
        unknown_fields: match limits.unknown_fields {
            raw::UnknownFields::Refuse => UnknownFields::Refuse,
            raw::UnknownFields::Ignore => UnknownFields::Ignore,
        },
        currency: config.cost.per_hour.map(|_| config.cost.currency.clone()),
        keep_alive: config.listen.keep_alive,
        responses: settings::StoreLimits {
            entries: config.responses.entries_max,
            bytes: config.responses.bytes_max,
            keep: config.responses.keep,
        },
    }
}

/// For requests that do not say: as configured, else as the model's publisher would have it.
fn sampling(config: &Config, recommended: SamplingParams) -> SamplingParams {
    let asked = &config.sampling;
    SamplingParams {
        temperature: asked.temperature.unwrap_or(recommended.temperature),
        top_p: asked.top_p.unwrap_or(recommended.top_p),
        top_k: asked.top_k.unwrap_or(recommended.top_k),
        min_p: asked.min_p.unwrap_or(recommended.min_p),
        repetition_penalty: asked.repetition_penalty.unwrap_or(recommended.repetition_penalty),
        ..recommended
    }
}

fn operations(config: &Config) -> anyhow::Result<Operations> {
    let origins = config.listen.cors_origins.iter().map(|origin| HeaderValue::try_from(origin.as_str()));
    let traces = config.traces.as_ref().map(|traces| Traces::new(&traces.endpoint, traces.ratio));
    Ok(Operations {
        keys: Keys::new(&config.auth.keys),
        facts: Facts { currency: config.cost.currency.clone(), hosted: config.cost.hosted.clone() },
        selfcheck: config.selfcheck,
        apart: config.listen.admin.is_some(),
        local: config.listen.host.is_loopback() && config.auth.keys.is_empty() && !config.auth.has_file(),
        cors_origins: origins.collect::<Result<_, _>>().context("server.cors_origins")?,
        traces: traces.transpose().context("traces.endpoint cannot be used")?,
    })
}

fn engine_options(config: &Config, started: Instant, loaded: &Loaded) -> EngineOptions {
    let scheduler = &config.scheduler;
    let drafts = match loaded.runner.invariance() {
        Invariance::Bitwise => DRAFT_TOKENS,
        Invariance::Tolerance => 0,
    };
    EngineOptions {
        max_seqs: scheduler.seqs_max,
        step_tokens: scheduler.step_tokens,
        queue_requests_max: scheduler.queue_requests,
        queue_tokens_max: scheduler.queue_tokens,
        tenant_requests_max: config.auth.requests_per_key_max.map(Into::into),
        prefix_cache: scheduler.prefix_cache,
        max_stall: scheduler.max_stall,
        draft_tokens: scheduler.draft_tokens.unwrap_or(drafts),
        prices: Prices {
            per_hour: config.cost.per_hour.map(|p| p.0),
            idle_per_hour: config.cost.idle_per_hour.map(|p| p.0),
            per_kwh: config.cost.per_kwh.map(|p| p.0),
            power_milliwatts: config.cost.power.map(|p| p.0),
            idle_milliwatts: config.cost.idle_power.map(|p| p.0),
        },
        startup: started.elapsed(),
        stall_timeout: scheduler.stall_timeout,
        token_bytes: loaded.tokenizer.token_bytes(),
        ..EngineOptions::default()
    }
}

/// One line in the log with what people look for first.
fn tell_what_runs(config: &Config, backend: &str, geometry: &Geometry) {
    let blocks = geometry.groups.iter().map(|group| u64::from(group.blocks)).max().unwrap_or(0);
    let isa = (backend == "cpu").then(|| load::isa_name(config));
    tracing::info!(
        context = geometry.context_max,
        cache_tokens = blocks * u64::from(geometry.block_tokens),
        threads = load::threads(config),
        isa,
        max_seqs = config.scheduler.seqs_max,
        price_per_hour = config.cost.per_hour.map(|price| format!("{price} {}", config.cost.currency)),
        "ready"
    );
}

/// One line with the address, one for people with a browser, one for those with a terminal, and one with the other address if there
/// is one.
fn announce(
    scheme: &str,
    address: SocketAddr,
    admin: Option<SocketAddr>,
    model: &str,
    keys: bool,
) -> io::Result<()> {
    let reachable = format!("{scheme}{}", reachable(address));
    let body = serde_json::json!({ "model": model, "messages": [{ "role": "user", "content": "Hello!" }] });
    let key = if keys { " -H \"Authorization: Bearer $FRUGAL_API_KEY\"" } else { "" };
    let mut out = io::stdout().lock();
    writeln!(out, "Serving {model} on {scheme}{address}")?;
    writeln!(out, "Chat: {reachable}/")?;
    writeln!(
        out,
        "Try: curl {reachable}/v1/chat/completions -H 'Content-Type: application/json'{key} -d '{body}'"
    )?;
    if let Some(admin) = admin {
        writeln!(out, "Metrics on http://{admin}/metrics")?;
    }
    out.flush()
}

#[cfg(test)]
mod tests {
    use frugal_config::Layers;

    use super::*;

    #[test]
    fn what_is_configured_counts_before_what_the_model_s_file_recommends() {
        let mut layers = Layers::new();
        layers.flag("--set", "sampling.temperature", "0.7").unwrap();
        layers.flag("--set", "sampling.top_k", "0").unwrap();
        let config = Config::resolve(&layers).unwrap();
        let file = SamplingParams { temperature: 0.2, top_p: 0.9, top_k: 40, ..SamplingParams::default() };
        let expected = SamplingParams { temperature: 0.7, top_k: 0, ..file.clone() };
        assert_eq!(sampling(&config, file), expected);
    }
}
