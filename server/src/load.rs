//! From configuration to a model that runs.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use frugal_config::Config;
use frugal_config::raw::{self, KvType};
use frugal_config::resolved::Kv;
use frugal_config::units::ByteSize;
use frugal_models::arch::LoadError;
use frugal_models::cpu::available_threads;
use frugal_models::gguf::Gguf;
use frugal_models::kv::PageType;
use frugal_models::memory::{KvOptions, KvSize};
use frugal_models::model_runner::{
    BackendKind, RunnerOptions, cuda_devices, load_runner, metal_devices, present,
};
use frugal_models::quant::Isa;
use frugal_models::runner::Runner;
use frugal_models::source::{self, Folders, Hub, LocalError, Progress, Source, SourceError, Stop};
use frugal_models::template::{ChatTemplate, TemplateTokens};

use crate::misuse::OrMisuse as _;

/// Left free by an automatic cache beside what a step takes: tokenizer, grammars, connections and answers.
const RESERVE_BYTES: u64 = 384 << 20;

/// What can be known to be wrong before the model is had: where it is to run, on which instructions, with which template.
pub(crate) fn check(config: &Config) -> anyhow::Result<()> {
    device(config, choose(config).0)?;
    isa(config.cpu.isa).or_misuse()?;
    if let Some(source) = &config.model.chat_template {
        let template = ChatTemplate::new(source, TemplateTokens::default());
        template.context("cannot use model.chat_template").or_misuse()?;
    }
    Ok(())
}

/// Whether the device is there.
fn device(config: &Config, backend: BackendKind) -> anyhow::Result<()> {
    let why = |why| anyhow::anyhow!("gpu.device = \"{}\": {why}", config.gpu.device);
    present(backend).map_err(why).or_misuse()
}

/// Which model is configured.
pub(crate) fn source(config: &Config) -> anyhow::Result<Source> {
    config.model.source.as_deref().map_or(Ok(Source::Default), |text| Source::parse(text).or_misuse())
}

/// What clients call it.
pub(crate) fn id(config: &Config) -> anyhow::Result<String> {
    let given = config.model.id.clone();
    given.map_or_else(|| Ok(source(config)?.id()), Ok)
}

/// Its file, the first one of several, fetched on first use.
pub(crate) fn file(config: &Config) -> anyhow::Result<PathBuf> {
    file_unless(config, &Stop::default())
}

/// The same, unless it is not wanted any more.
pub(crate) fn file_unless(config: &Config, stop: &Stop) -> anyhow::Result<PathBuf> {
    let folders = Folders { cache: config.model.cache_dir.clone(), hub: hub(&config.model.hub) };
    obtain(&source(config)?, &folders, stop, &mut source::progress_bar())
}

/// The file of any model.
pub(crate) fn obtain(
    source: &Source,
    folders: &Folders,
    stop: &Stop,
    progress: &mut dyn FnMut(Progress),
) -> anyhow::Result<PathBuf> {
    let obtained = source.obtain(folders, stop, progress);
    match &obtained {
        Err(error) if is_misnamed(error) => obtained.or_misuse(),
        _ => Ok(obtained?),
    }
}

/// What is not there because it was named wrongly, or not at all; a hub, a disk or a network may be there the next time.
fn is_misnamed(error: &SourceError) -> bool {
    match error {
        SourceError::NoCache | SourceError::Local(LocalError::Folder { .. }) => true,
        SourceError::Local(LocalError::Missing { source, .. }) => source.kind() == ErrorKind::NotFound,
        SourceError::Default(_) | SourceError::Hub { .. } => false,
    }
}

/// How models on the hub are had.
pub(crate) fn hub(hub: &frugal_config::hub::Hub) -> Hub {
    Hub {
        endpoint: hub.endpoint.clone(),
        token: hub.token.as_ref().map(|token| token.expose().to_owned()),
        cache: hub.cache_dir.clone(),
        offline: hub.offline,
    }
}

/// Opens a model file, whatever is in it.
pub(crate) fn read(path: &Path) -> anyhow::Result<Gguf> {
    Gguf::open(path).with_context(|| format!("cannot read model {}", path.display()))
}

/// Opens a model file that is to run.
pub(crate) fn open(path: &Path) -> anyhow::Result<Gguf> {
    let gguf = read(path)?;
    source::servable(&gguf).with_context(|| format!("cannot serve {}", path.display()))?;
    Ok(gguf)
}

/// Loads an open model onto a backend; `lazy` as in [`RunnerOptions`].
pub(crate) fn runner(
    config: &Config,
    backend: BackendKind,
    path: &Path,
    gguf: &Gguf,
    kv: KvOptions,
    lazy: bool,
) -> anyhow::Result<Box<dyn Runner>> {
    device(config, backend)?;
    let options = RunnerOptions {
        backend,
        threads: threads(config),
        pin: config.cpu.pin,
        isa: isa(config.cpu.isa).or_misuse()?,
        kv,
        lazy,
    };
    let of = || format!("cannot load model {}", path.display());
    match load_runner(gguf, &options) {
        Err(error) => match misconfigured(&error, &config.kv) {
            Some(problem) => Err(anyhow::anyhow!(problem)).with_context(of).or_misuse(),
            None => Err(error).with_context(of),
        },
        Ok(runner) => Ok(runner),
    }
}

/// What the configuration has to do with an error, in its own words.
fn misconfigured(error: &LoadError, kv: &Kv) -> Option<String> {
    let memory = match kv.memory_bytes {
        Some(bytes) => format!("kv.memory = \"{}\"", ByteSize(bytes)),
        None => "the memory left for the cache (kv.memory)".to_owned(),
    };
    match error {
        LoadError::ContextTooLong { asked, model } => {
            Some(format!("kv.context_max = {asked}, but the model was made for {model} tokens"))
        }
        LoadError::CacheTooSmall { blocks: 0, .. } => {
            let block = kv.block_tokens;
            Some(format!("{memory} does not hold even one block of {block} tokens (kv.block_tokens)"))
        }
        LoadError::CacheTooSmall { tokens, context, .. } => {
            Some(format!("{memory} holds {tokens} tokens, fewer than kv.context_max = {context}"))
        }
        _ => None,
    }
}

/// On what the model runs, with one line in the log that says why.
pub(crate) fn backend(config: &Config) -> BackendKind {
    let (backend, why) = choose(config);
    tracing::info!(?backend, %why, "where the model runs");
    backend
}

/// On what a model runs, and why.
pub(crate) fn choose(config: &Config) -> (BackendKind, String) {
    let memory = config.gpu.memory;
    let cuda = |ordinal: u32| BackendKind::Cuda { ordinal: ordinal as usize, memory };
    let device = config.gpu.device;
    let asked = format!("gpu.device = \"{device}\"");
    match device {
        raw::Device::Cpu => (BackendKind::Cpu, asked),
        raw::Device::Cuda(ordinal) => (cuda(ordinal), asked),
        raw::Device::Metal => (BackendKind::Metal { memory }, asked),
        raw::Device::Auto => match (cuda_devices(), metal_devices()) {
            (Ok(n @ 1..), _) => (cuda(0), format!("the first of {n} NVIDIA GPUs")),
            (_, Ok(1..)) => (BackendKind::Metal { memory }, "there is one of Apple's GPUs".to_owned()),
            (Ok(_), _) => (BackendKind::Cpu, "there is no NVIDIA GPU".to_owned()),
            (_, Ok(_)) => (BackendKind::Cpu, "there is no GPU that Metal knows".to_owned()),
            (Err(cuda), Err(_)) if cfg!(feature = "cuda") => (BackendKind::Cpu, cuda),
            (Err(_), Err(_)) => (BackendKind::Cpu, "this build computes on processors alone".to_owned()),
        },
    }
}

/// Compute threads.
pub(crate) fn threads(config: &Config) -> usize {
    config.cpu.threads.map_or_else(available_threads, |n| n.get() as usize)
}

/// What computes, as configured or else the fastest.
pub(crate) fn isa_name(config: &Config) -> &'static str {
    isa(config.cpu.isa).ok().flatten().unwrap_or_else(Isa::detect).name()
}

/// None for the fastest.
fn isa(isa: raw::Isa) -> anyhow::Result<Option<Isa>> {
    let name = match isa {
        raw::Isa::Auto => return Ok(None),
        raw::Isa::Scalar => "scalar",
        raw::Isa::Avx2 => "avx2",
        raw::Isa::Avx512 => "avx512",
        raw::Isa::Neon => "neon",
    };
    // Those of other architectures are not among them.
    match Isa::ALL.iter().find(|isa| isa.name() == name && isa.available()) {
        Some(isa) => Ok(Some(*isa)),
        None => anyhow::bail!("cpu.isa = \"{name}\", which this processor does not have"),
    }
}

/// The cache that the configuration asks for.
pub(crate) fn kv(config: &Config) -> KvOptions {
    let Kv { block_tokens, dtype, memory_bytes, context_max } = config.kv;
    let available = KvSize::Available { reserve: RESERVE_BYTES, threads: Some(threads(config)) };
    let page = match dtype {
        KvType::F16 => PageType::F16,
        KvType::F32 => PageType::F32,
        KvType::Q8_0 => PageType::Q8_0,
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
