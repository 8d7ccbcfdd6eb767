//! From configuration to a model that runs.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use frugal_config::Config;
use frugal_config::raw::{self, KvType};
use frugal_config::resolved::Kv;
use frugal_models::cpu::available_threads;
use frugal_models::gguf::Gguf;
use frugal_models::kv::PageType;
use frugal_models::memory::{KvOptions, KvSize};
use frugal_models::model_runner::{BackendKind, RunnerOptions, load_runner};
use frugal_models::quant::Isa;
use frugal_models::runner::Runner;
use frugal_models::source;

/// Left free by an automatic cache: activations, tokenizer, connections and answers.
const RESERVE_BYTES: u64 = 512 << 20;

/// The name of the default model on the wire.
const DEFAULT_ID: &str = "smollm2-135m-instruct-8x2";

/// What clients call the model.
pub(crate) fn id(config: &Config) -> String {
    let stem = |path: &PathBuf| path.file_stem().map(|s| s.to_string_lossy().into_owned());
    let from_path = || config.model.path.as_ref().and_then(stem);
    config.model.id.clone().or_else(from_path).unwrap_or_else(|| DEFAULT_ID.to_owned())
}

/// The model file: the configured one, or the default one, fetched on first use.
pub(crate) fn file(config: &Config) -> anyhow::Result<PathBuf> {
    if let Some(path) = &config.model.path {
        return Ok(path.clone());
    }
    let cache = config.model.cache_dir.as_deref();
    let cache = cache
        .context("no folder for the default model: set HOME or model.cache_dir, or give --model PATH")?;
    Ok(source::default_model(cache, &mut source::progress_bar())?)
}

/// Opens a model file.
pub(crate) fn open(path: &Path) -> anyhow::Result<Gguf> {
    Gguf::open(path).with_context(|| format!("cannot read model {}", path.display()))
}

/// Loads an open model onto the configured backend.
pub(crate) fn runner(
    config: &Config,
    path: &Path,
    gguf: &Gguf,
    kv: KvOptions,
) -> anyhow::Result<Box<dyn Runner>> {
    let options = RunnerOptions {
        backend: BackendKind::Cpu,
        threads: threads(config),
        pin: config.cpu.pin,
        isa: isa(config.cpu.isa)?,
        kv,
    };
    load_runner(gguf, &options).with_context(|| format!("cannot load model {}", path.display()))
}

/// Compute threads.
pub(crate) fn threads(config: &Config) -> usize {
    config.cpu.threads.map_or_else(available_threads, |n| n.get() as usize)
}

/// None for the fastest.
fn isa(isa: raw::Isa) -> anyhow::Result<Option<Isa>> {
    match isa {
        raw::Isa::Auto => Ok(None),
        raw::Isa::Scalar => Ok(Some(Isa::Scalar)),
        #[cfg(target_arch = "x86_64")]
        raw::Isa::Avx2 if Isa::detect() == Isa::Avx2 => Ok(Some(Isa::Avx2)),
        raw::Isa::Avx2 => anyhow::bail!("cpu.isa = \"avx2\", which this processor does not have"),
    }
}

/// The cache that the configuration asks for.
pub(crate) fn kv(config: &Config) -> KvOptions {
    let Kv { block_tokens, dtype, memory_bytes, context_max } = config.kv;
    let available = KvSize::Available { reserve: RESERVE_BYTES };
    let page = match dtype {
        KvType::F16 => PageType::F16,
        KvType::F32 => PageType::F32,
    };
    KvOptions {
        block_tokens,
        page,
        size: memory_bytes.map_or(available, KvSize::Bytes),
        context: context_max,
        sequences: config.scheduler.seqs_max,
        step_tokens: config.scheduler.step_tokens,
    }
}
