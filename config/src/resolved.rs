//! Validated configuration: one small struct per consumer, nothing left to check.

mod cost;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::auth::Auth;
use crate::error::ConfigError;
use crate::hub::Hub;
use crate::layers::Layers;
use crate::prices::{Hosted, Milliwatts, PicoPerHour, PicoPerKwh};
use crate::raw::{self, Isa, KvType, LogFormat, Raw, UnknownFields};
use crate::tls::Tls;
use crate::units::ByteSize;

/// All of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// What is served.
    pub model: Model,
    /// The listener.
    pub listen: Listen,
    /// What requests may ask.
    pub limits: Limits,
    /// The tokenizing threads.
    pub text: Text,
    /// HTTPS, if that is spoken.
    pub tls: Option<Tls>,
    /// Who may ask.
    pub auth: Auth,
    /// Responses that are kept.
    pub responses: Responses,
    /// How tokens are chosen for requests that do not say.
    pub sampling: Sampling,
    /// The scheduler.
    pub scheduler: Scheduler,
    /// The cache.
    pub kv: Kv,
    /// The CPU backend.
    pub cpu: Cpu,
    /// Where the model runs, if not there.
    pub gpu: Gpu,
    /// Prices.
    pub cost: Cost,
    /// Logs.
    pub log: Log,
    /// Traces; None for none.
    pub traces: Option<Traces>,
    /// Serve `/debug/selfcheck`.
    pub selfcheck: bool,
}

/// What is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Model {
    /// A path, or `hf:` and what follows; None for the default model.
    pub source: Option<String>,
    /// Its name on the wire; None for its own.
    pub id: Option<String>,
    /// Folder for the default model; None if the user has no home.
    pub cache_dir: Option<PathBuf>,
    /// The text of a template that replaces the file's.
    pub chat_template: Option<String>,
    /// How a model on the hub is had.
    pub hub: Hub,
}

/// The listener and its connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// Address.
    pub host: IpAddr,
    /// Port; 0 lets the system choose.
    pub port: u16,
    /// Address and port of metrics and self-check, if they have their own.
    pub admin: Option<SocketAddr>,
    /// Origins whose pages may read answers; `*` for all.
    pub cors_origins: Vec<String>,
    /// Connections at a time.
    pub connections_max: usize,
    /// Bytes of a request's head; at least 8192.
    pub header_bytes_max: usize,
    /// Headers in a request.
    pub headers_max: usize,
    /// To receive a request's head in, and before it to agree on TLS.
    pub header_timeout: Duration,
    /// A silent stream sends a comment this often.
    pub keep_alive: Duration,
    /// A client that takes nothing of what is sent for this long is gone.
    pub send_timeout: Duration,
    /// To finish requests in after a termination signal.
    pub drain_timeout: Duration,
}

/// What one request may ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Unknown or unsupported fields.
    pub unknown_fields: UnknownFields,
    /// Bytes of a body.
    pub body_bytes_max: usize,
    /// Bytes of one prompt's text.
    pub prompt_bytes_max: usize,
    /// Prompts in a completion request.
    pub prompts_max: usize,
    /// Choices per prompt.
    pub n_max: u32,
    /// Stop strings.
    pub stop_max: usize,
    /// Bytes of a stop string.
    pub stop_bytes_max: usize,
    /// Entries of `logit_bias`.
    pub logit_bias_max: usize,
    /// Log-probabilities per token.
    pub logprobs_max: u32,
    /// For a body to arrive.
    pub body_timeout: Duration,
    /// From submission to a request's end.
    pub request_timeout: Duration,
    /// Tokens of a response, each counted with its alternatives.
    pub response_entries_max: u64,
}

/// The tokenizing threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Text {
    /// How many.
    pub threads: usize,
    /// Prompts that may wait for one.
    pub queue: usize,
}

/// Responses that are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Responses {
    /// How many; 0 for none.
    pub entries_max: usize,
    /// Bytes that they and their conversations take.
    pub bytes_max: usize,
    /// From their end.
    pub keep: Duration,
}

/// How tokens are chosen for requests that do not say.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// 0 to 2; 0 is greedy.
    pub temperature: Option<f32>,
    /// Above 0, at most 1.
    pub top_p: Option<f32>,
    /// 0 keeps all.
    pub top_k: Option<u32>,
    /// 0 to 1.
    pub min_p: Option<f32>,
    /// Above 0, at most 2.
    pub repetition_penalty: Option<f32>,
}

/// The scheduler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scheduler {
    /// Sequences computed together.
    pub seqs_max: u32,
    /// Tokens computed in one step; at least `seqs_max`.
    pub step_tokens: u32,
    /// What a step with decoding sequences should take at most.
    pub max_stall: Option<Duration>,
    /// Most tokens that are guessed ahead for a sequence in a step; 0: none. None: by what runs the model.
    pub draft_tokens: Option<u32>,
    /// Requests that may wait.
    pub queue_requests: u32,
    /// Prompt tokens that may wait.
    pub queue_tokens: u64,
    /// Reuse computed prefixes.
    pub prefix_cache: bool,
    /// Without a finished step, while there is work, before `/livez` fails.
    pub stall_timeout: Duration,
}

/// The cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kv {
    /// Positions in a block.
    pub block_tokens: u32,
    /// Element type.
    pub dtype: KvType,
    /// Bytes; None for what is left.
    pub memory_bytes: Option<u64>,
    /// Longest sequence; None for the model's own.
    pub context_max: Option<u32>,
}

/// The CPU backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpu {
    /// Compute threads; None for the cores at hand.
    pub threads: Option<NonZeroU32>,
    /// Instruction set.
    pub isa: Isa,
    /// Bind threads to cores.
    pub pin: bool,
    /// Be ready before all experts are.
    pub lazy_experts: bool,
}

/// The GPU backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gpu {
    /// Where the model runs.
    pub device: raw::Device,
    /// Percent of a GPU's memory that all on it may take, 10 to 100.
    pub memory: u8,
}

/// Prices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cost {
    /// Label of all money.
    pub currency: String,
    /// The machine; None: money is not shown. At most 10^6 units.
    pub per_hour: Option<PicoPerHour>,
    /// The same while it has no work.
    pub idle_per_hour: Option<PicoPerHour>,
    /// Of energy that is measured; what is drawn at `power` is in `per_hour`.
    pub per_kwh: Option<PicoPerKwh>,
    /// Power of what does not measure its energy; None: unknown.
    pub power: Option<Milliwatts>,
    /// The same while there is no work; at most `power`.
    pub idle_power: Option<Milliwatts>,
    /// List prices of hosted APIs by name.
    pub hosted: BTreeMap<String, Hosted>,
}

/// Logs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// Text or JSON.
    pub format: LogFormat,
    /// A filter of `tracing`: levels, alone or by target.
    pub level: String,
}

/// What a probe has to know of a server. Other sections may be wrong by now: a server keeps what it read of them before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// The listener.
    pub listen: Listen,
    /// File with the certificate, if HTTPS is spoken; not read yet.
    pub certificate: Option<PathBuf>,
}

impl Probe {
    /// What is read of a configuration for it.
    pub(crate) const SECTIONS: &[&str] = &["server", "tls"];

    /// Validates `server.*` of merged layers.
    pub fn resolve(layers: &Layers) -> Result<Self, ConfigError> {
        let raw = layers.parse()?;
        Ok(Self { listen: Check { layers }.listen(&raw)?, certificate: raw.tls.certificate })
    }
}

impl Log {
    /// Validates `log.*` of merged layers.
    pub fn resolve(layers: &Layers) -> Result<Self, ConfigError> {
        Check { layers }.log(&layers.parse()?)
    }
}

/// Traces.
#[derive(Clone, Debug, PartialEq)]
pub struct Traces {
    /// The collector's URL, without `/v1/traces`.
    pub endpoint: String,
    /// Of requests that are not part of a trace already; 0 to 1.
    pub ratio: f64,
}

impl Config {
    /// Validates merged layers, reading the key and template files they name.
    pub fn resolve(layers: &Layers) -> Result<Self, ConfigError> {
        let raw = layers.parse()?;
        let check = Check { layers };
        Ok(Self {
            model: check.model(&raw)?,
            listen: check.listen(&raw)?,
            limits: check.limits(&raw)?,
            text: Text {
                threads: check.within("server.text_threads", raw.server.text_threads, 1, 256)? as usize,
                queue: check.within("server.text_queue", raw.server.text_queue, 1, 1 << 20)? as usize,
            },
            tls: Tls::resolve(layers, &raw.tls)?,
            auth: Auth::resolve(layers, &raw.auth)?,
            responses: check.responses(&raw)?,
            sampling: check.sampling(&raw)?,
            scheduler: check.scheduler(&raw)?,
            kv: check.kv(&raw)?,
            cpu: check.cpu(&raw)?,
            gpu: check.gpu(&raw)?,
            cost: check.cost(&raw)?,
            log: check.log(&raw)?,
            traces: check.traces(&raw)?,
            selfcheck: raw.server.selfcheck,
        })
    }
}

struct Check<'a> {
    layers: &'a Layers,
}

impl Check<'_> {
    fn model(&self, raw: &Raw) -> Result<Model, ConfigError> {
        let raw::Model { source, id, cache_dir, chat_template } = raw.model.clone();
        if id.as_ref().is_some_and(|id| id.is_empty() || id.len() > 256 || id.contains(char::is_control)) {
            return Err(self.layers.wrong("model.id", "expected 1 to 256 bytes without control characters"));
        }
        let chat_template = chat_template.map(|path| self.read("model.chat_template", &path)).transpose()?;
        Ok(Model { source, id, cache_dir, chat_template, hub: Hub::default() })
    }

    fn listen(&self, raw: &Raw) -> Result<Listen, ConfigError> {
        let s = &raw.server;
        let host = if s.host == "localhost" { Ok(IpAddr::from([127, 0, 0, 1])) } else { s.host.parse() };
        let host = host.map_err(|_| {
            self.layers.wrong("server.host", "expected an IP address such as 127.0.0.1, 0.0.0.0 or ::")
        })?;
        Ok(Listen {
            host,
            port: s.port,
            admin: match s.admin_listen.as_deref().map(str::parse) {
                None => None,
                Some(Ok(address)) => Some(address),
                Some(Err(_)) => {
                    let problem = "expected an IP address and a port, such as 127.0.0.1:9000";
                    return Err(self.layers.wrong("server.admin_listen", problem));
                }
            },
            cors_origins: self.origins(&s.cors_origins)?,
            connections_max: self.within("server.max_connections", s.max_connections, 1, 1 << 20)? as usize,
            header_bytes_max: self.bytes(
                "server.max_header_bytes",
                s.max_header_bytes.0,
                8 << 10,
                16 << 20,
            )?,
            headers_max: self.within("server.max_headers", s.max_headers, 8, 1 << 12)? as usize,
            header_timeout: self.seconds("server.header_timeout_s", s.header_timeout_s, 1)?,
            keep_alive: self.seconds("server.keep_alive_s", s.keep_alive_s, 1)?,
            send_timeout: self.seconds("server.send_timeout_s", s.send_timeout_s, 1)?,
            drain_timeout: self.seconds("server.drain_timeout_s", s.drain_timeout_s, 0)?,
        })
    }

    fn origins(&self, origins: &[String]) -> Result<Vec<String>, ConfigError> {
        let alone = origins == ["*"];
        if alone || origins.iter().all(|origin| is_origin(origin)) {
            return Ok(origins.to_vec());
        }
        let problem =
            "expected origins as browsers write them, such as https://example.com, or [\"*\"] for all";
        Err(self.layers.wrong("server.cors_origins", problem))
    }

    fn limits(&self, raw: &Raw) -> Result<Limits, ConfigError> {
        let s = &raw.server;
        let limits = Limits {
            unknown_fields: s.unknown_fields,
            body_bytes_max: self.bytes("server.max_body_bytes", s.max_body_bytes.0, 1 << 10, 1 << 30)?,
            prompt_bytes_max: self.bytes("server.max_prompt_bytes", s.max_prompt_bytes.0, 1, 1 << 30)?,
            prompts_max: self.within("server.max_prompts", s.max_prompts, 1, 4096)? as usize,
            n_max: self.within("server.max_n", s.max_n, 1, 1024)?,
            stop_max: self.within("server.max_stop", s.max_stop, 0, 1024)? as usize,
            stop_bytes_max: self.bytes("server.max_stop_bytes", s.max_stop_bytes.0, 1, 1 << 16)?,
            logit_bias_max: self.within("server.max_logit_bias", s.max_logit_bias, 0, 1 << 20)? as usize,
            logprobs_max: self.within("server.max_logprobs", s.max_logprobs, 0, 1 << 20)?,
            body_timeout: self.seconds("server.body_timeout_s", s.body_timeout_s, 1)?,
            response_entries_max: self.within(
                "server.max_response_entries",
                s.max_response_entries,
                1,
                1 << 32,
            )?,
            request_timeout: self.seconds("server.request_timeout_s", s.request_timeout_s, 1)?,
        };
        if limits.prompt_bytes_max > limits.body_bytes_max {
            let problem = "no prompt can be longer than a body";
            return Err(self.contradiction("server.max_prompt_bytes", "server.max_body_bytes", problem));
        }
        Ok(limits)
    }

    fn sampling(&self, raw: &Raw) -> Result<Sampling, ConfigError> {
        let s = &raw.sampling;
        let within = |key, value: Option<f32>, least, most| {
            value.map(|value| self.within(key, value, least, most)).transpose()
        };
        Ok(Sampling {
            temperature: within("sampling.temperature", s.temperature, 0.0, 2.0)?,
            top_p: within("sampling.top_p", s.top_p, 0.001, 1.0)?,
            top_k: s.top_k,
            min_p: within("sampling.min_p", s.min_p, 0.0, 1.0)?,
            repetition_penalty: within("sampling.repetition_penalty", s.repetition_penalty, 0.01, 2.0)?,
        })
    }

    fn scheduler(&self, raw: &Raw) -> Result<Scheduler, ConfigError> {
        let s = &raw.scheduler;
        if s.step_tokens < s.max_seqs {
            let problem = "every sequence needs a token of each step";
            return Err(self.contradiction("scheduler.step_tokens", "scheduler.max_seqs", problem));
        }
        Ok(Scheduler {
            seqs_max: self.within("scheduler.max_seqs", s.max_seqs, 1, 4096)?,
            step_tokens: self.within("scheduler.step_tokens", s.step_tokens, 1, 1 << 16)?,
            max_stall: match self.within("scheduler.max_stall_ms", s.max_stall_ms, 0, 60_000)? {
                0 => None,
                ms => Some(Duration::from_millis(ms.into())),
            },
            draft_tokens: match s.draft_tokens {
                Some(n) => Some(self.within("scheduler.draft_tokens", n, 0, 64)?),
                None => None,
            },
            queue_requests: self.within("scheduler.queue_requests", s.queue_requests, 1, 1 << 20)?,
            queue_tokens: self.within("scheduler.queue_tokens", s.queue_tokens, 1, 1 << 40)?,
            prefix_cache: s.prefix_cache,
            stall_timeout: self.seconds("scheduler.stall_timeout_s", s.stall_timeout_s, 1)?,
        })
    }

    fn kv(&self, raw: &Raw) -> Result<Kv, ConfigError> {
        let k = &raw.kv;
        if !k.block_tokens.is_power_of_two() || !(8..=256).contains(&k.block_tokens) {
            return Err(self.layers.wrong("kv.block_tokens", "expected a power of two from 8 to 256"));
        }
        let context_max = match k.context_max {
            Some(n) => Some(self.within("kv.context_max", n, 2, 1 << 30)?),
            None => None,
        };
        let memory_bytes = match k.memory.chosen() {
            Some(size) => Some(self.within("kv.memory", size, ByteSize(1 << 16), ByteSize(1 << 50))?.0),
            None => None,
        };
        Ok(Kv { block_tokens: k.block_tokens, dtype: k.dtype, memory_bytes, context_max })
    }

    fn responses(&self, raw: &Raw) -> Result<Responses, ConfigError> {
        let r = &raw.responses;
        Ok(Responses {
            entries_max: self.within("responses.max_entries", r.max_entries, 0, 1 << 20)? as usize,
            bytes_max: self.bytes("responses.max_bytes", r.max_bytes.0, 1 << 10, 1 << 40)?,
            keep: self.seconds("responses.keep_s", r.keep_s, 1)?,
        })
    }

    fn gpu(&self, raw: &Raw) -> Result<Gpu, ConfigError> {
        let raw::Gpu { device, memory_utilization } = raw.gpu;
        if !(0.1..=1.0).contains(&memory_utilization) {
            return Err(self.layers.wrong("gpu.memory_utilization", "expected a number from 0.1 to 1"));
        }
        Ok(Gpu { device, memory: (memory_utilization * 100.0).round() as u8 })
    }

    fn cpu(&self, raw: &Raw) -> Result<Cpu, ConfigError> {
        let &raw::Cpu { threads, isa, pin, lazy_experts } = &raw.cpu;
        let threads = threads.chosen().map(|n| self.nonzero("cpu.threads", n.0)).transpose()?;
        Ok(Cpu { threads, isa, pin, lazy_experts })
    }

    fn log(&self, raw: &Raw) -> Result<Log, ConfigError> {
        if !raw.log.level.split(',').all(is_log_directive) {
            let problem = "expected off, error, warn, info, debug or trace, or such levels by target, as in \
                           \"info,frugal_scheduler=debug\"";
            return Err(self.layers.wrong("log.level", problem));
        }
        Ok(Log { format: raw.log.format, level: raw.log.level.clone() })
    }

    fn traces(&self, raw: &Raw) -> Result<Option<Traces>, ConfigError> {
        let ratio = self.within("traces.ratio", raw.traces.ratio, 0.0, 1.0)?;
        let Some(endpoint) = raw.traces.endpoint.clone() else { return Ok(None) };
        let address = endpoint.strip_prefix("http://").or_else(|| endpoint.strip_prefix("https://"));
        if address.is_none_or(|address| address.is_empty() || !address.bytes().all(|b| b.is_ascii_graphic()))
        {
            let problem = "expected the URL of a collector, such as http://127.0.0.1:4318";
            return Err(self.layers.wrong("traces.endpoint", problem));
        }
        Ok(Some(Traces { endpoint, ratio }))
    }

    /// The content of the file that `key` names.
    fn read(&self, key: &str, path: &Path) -> Result<String, ConfigError> {
        let problem = |e| self.layers.wrong(key, &format!("cannot read the file: {e}"));
        std::fs::read_to_string(path).map_err(problem)
    }

    fn within<T: PartialOrd + std::fmt::Display>(
        &self,
        key: &str,
        value: T,
        least: T,
        most: T,
    ) -> Result<T, ConfigError> {
        // Written so that NaN is outside.
        if !(value >= least && value <= most) {
            return Err(self.layers.wrong(key, &format!("expected {least} to {most}")));
        }
        Ok(value)
    }

    fn bytes(&self, key: &str, value: u64, least: u64, most: u64) -> Result<usize, ConfigError> {
        let ByteSize(value) = self.within(key, ByteSize(value), ByteSize(least), ByteSize(most))?;
        usize::try_from(value).map_err(|_| self.layers.wrong(key, "more than this machine can address"))
    }

    /// At most 31 days: no timer overflows.
    fn seconds(&self, key: &str, value: u32, least: u32) -> Result<Duration, ConfigError> {
        self.within(key, value, least, 31 * 86_400).map(|s| Duration::from_secs(s.into()))
    }

    fn nonzero(&self, key: &str, value: u32) -> Result<NonZeroU32, ConfigError> {
        NonZeroU32::new(value).ok_or_else(|| self.layers.wrong(key, "expected at least 1"))
    }

    fn contradiction(&self, first: &str, second: &str, problem: &str) -> ConfigError {
        ConfigError::Contradiction {
            first: Box::new(self.layers.setting(first)),
            second: Box::new(self.layers.setting(second)),
            problem: problem.to_owned(),
        }
    }

    fn incomplete(&self, set: &str, needs: &'static str) -> ConfigError {
        ConfigError::Incomplete { setting: Box::new(self.layers.setting(set)), needs }
    }
}

/// Scheme, host and perhaps a port: a slash behind it, and no browser's would be equal to it.
fn is_origin(origin: &str) -> bool {
    let host = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://"));
    host.is_some_and(|host| {
        let fits = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.:[]".contains(&b);
        !host.is_empty() && host.bytes().all(fits)
    })
}

/// `level` or `target=level`. A bare word that is no level would be a target: a slip that silences all the others.
fn is_log_directive(directive: &str) -> bool {
    let (target, level) = directive.split_once('=').unwrap_or(("frugal", directive));
    let levels = ["off", "error", "warn", "info", "debug", "trace"];
    let named = !target.is_empty() && target.bytes().all(|b| b.is_ascii_alphanumeric() || b"_:".contains(&b));
    named && levels.iter().any(|known| level.eq_ignore_ascii_case(known))
}
