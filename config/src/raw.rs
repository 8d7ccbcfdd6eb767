//! The merged layers as they are written: types are checked, ranges and contradictions are not.
//!
//! What each key means stands in `default.toml`; a key without a default there is an `Option` here.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::units::{Auto, ByteSize, Count, Decimal, Secret};

/// All sections.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "default.toml documents every key")]
pub struct Raw {
    pub model: Model,
    pub server: Server,
    pub tls: Tls,
    pub auth: Auth,
    pub responses: Responses,
    pub sampling: Sampling,
    pub scheduler: Scheduler,
    pub kv: Kv,
    pub cpu: Cpu,
    pub gpu: Gpu,
    pub cost: Cost,
    pub log: Log,
    pub traces: Traces,
}

/// `[model]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "default.toml documents every key")]
pub struct Model {
    pub source: Option<String>,
    pub id: Option<String>,
    pub cache_dir: Option<PathBuf>,
    pub chat_template: Option<PathBuf>,
}

/// `[server]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "default.toml documents every key")]
pub struct Server {
    pub host: String,
    pub port: u16,
    pub admin_listen: Option<String>,
    pub cors_origins: Vec<String>,
    pub max_connections: u32,
    pub max_body_bytes: ByteSize,
    pub max_header_bytes: ByteSize,
    pub max_headers: u32,
    pub header_timeout_s: u32,
    pub body_timeout_s: u32,
    pub keep_alive_s: u32,
    pub send_timeout_s: u32,
    pub request_timeout_s: u32,
    pub drain_timeout_s: u32,
    pub unknown_fields: UnknownFields,
    pub max_n: u32,
    pub max_prompts: u32,
    pub max_stop: u32,
    pub max_stop_bytes: ByteSize,
    pub max_logit_bias: u32,
    pub max_logprobs: u32,
    pub max_prompt_bytes: ByteSize,
    pub max_response_entries: u64,
    pub text_threads: u32,
    pub text_queue: u32,
    pub selfcheck: bool,
}

/// What to do with request fields that are unknown or not supported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UnknownFields {
    /// A 400 that names the field.
    Refuse,
    /// As if it were not there.
    Ignore,
}

/// `[tls]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "default.toml documents every key")]
pub struct Tls {
    pub certificate: Option<PathBuf>,
    pub key: Option<PathBuf>,
}

/// `[auth]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "default.toml documents every key")]
pub struct Auth {
    pub keys: Vec<ApiKey>,
    pub keys_file: Option<PathBuf>,
    pub max_requests_per_key: Option<u32>,
    pub requests_per_minute: Option<u32>,
    pub tokens_per_minute: Option<u32>,
}

/// One API key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApiKey {
    /// Stands for the key in logs and isolates its prefix cache.
    pub name: String,
    /// What the client sends, or `sha256:` and its digest.
    pub key: Secret,
    /// Instead of `auth.requests_per_minute`.
    pub requests_per_minute: Option<u32>,
    /// Instead of `auth.tokens_per_minute`.
    pub tokens_per_minute: Option<u32>,
}

/// `[responses]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "default.toml documents every key")]
pub struct Responses {
    pub max_entries: u32,
    pub max_bytes: ByteSize,
    pub keep_s: u32,
}

/// `[sampling]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "default.toml documents every key")]
pub struct Sampling {
    pub temperature: Option<f32>,
    pub top_p: Option<f32>,
    pub top_k: Option<u32>,
    pub min_p: Option<f32>,
    pub repetition_penalty: Option<f32>,
}

/// `[scheduler]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "default.toml documents every key")]
pub struct Scheduler {
    pub max_seqs: u32,
    pub step_tokens: u32,
    pub max_stall_ms: u32,
    pub draft_tokens: Option<u32>,
    pub queue_requests: u32,
    pub queue_tokens: u64,
    pub prefix_cache: bool,
    pub stall_timeout_s: u32,
}

/// `[kv]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "default.toml documents every key")]
pub struct Kv {
    pub block_tokens: u32,
    pub dtype: KvType,
    pub memory: Auto<ByteSize>,
    pub context_max: Option<u32>,
}

/// How the cache holds keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "default.toml documents every key")]
pub enum KvType {
    F16,
    F32,
    Q8_0,
}

/// `[cpu]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "default.toml documents every key")]
pub struct Cpu {
    pub threads: Auto<Count>,
    pub isa: Isa,
    pub pin: bool,
    pub lazy_experts: bool,
}

/// `[gpu]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "default.toml documents every key")]
pub struct Gpu {
    pub device: Device,
    pub memory_utilization: f64,
}

/// Where a model runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// A GPU if there is one.
    Auto,
    /// The processor.
    Cpu,
    /// NVIDIA's GPU of this number.
    Cuda(u32),
    /// Apple's GPU.
    Metal,
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let cuda = || text.strip_prefix("cuda:")?.parse().ok().map(Self::Cuda);
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "metal" => Ok(Self::Metal),
            _ => cuda().ok_or_else(|| "expected \"auto\", \"cpu\", \"cuda:N\" or \"metal\"".to_owned()),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
            Self::Metal => f.write_str("metal"),
        }
    }
}

/// Instruction set of the kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "default.toml documents every key")]
pub enum Isa {
    Auto,
    Scalar,
    Avx2,
    Avx512,
    Neon,
}

/// `[cost]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "default.toml documents every key")]
pub struct Cost {
    pub currency: String,
    pub instance_per_hour: Option<Decimal>,
    pub gpu_per_hour: Option<Decimal>,
    pub gpu_count: Option<u32>,
    pub power_watts: Option<Decimal>,
    pub idle_watts: Option<Decimal>,
    pub electricity_per_kwh: Option<Decimal>,
    pub hardware_price: Option<Decimal>,
    pub hardware_years: Option<Decimal>,
    pub hosted: Option<BTreeMap<String, Hosted>>,
}

/// List prices of a hosted API, per million tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "default.toml documents every key")]
pub struct Hosted {
    pub input: Decimal,
    pub cached: Option<Decimal>,
    pub output: Decimal,
}

/// `[log]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "default.toml documents every key")]
pub struct Log {
    pub format: LogFormat,
    pub level: String,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "default.toml documents every key")]
pub enum LogFormat {
    Text,
    Json,
}

/// `[traces]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "default.toml documents every key")]
pub struct Traces {
    pub endpoint: Option<String>,
    pub ratio: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_read_back_as_they_are_written() {
        for text in ["auto", "cpu", "cuda:0", "cuda:12", "metal"] {
            assert_eq!(text.parse::<Device>().map(|device| device.to_string()), Ok(text.to_owned()));
        }
        for text in ["", "cuda", "cuda:", "cuda:-1", "metal:0", "Metal"] {
            assert!(text.parse::<Device>().is_err(), "{text:?}");
        }
    }
}
