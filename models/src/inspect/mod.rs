//! What a model file is, what it needs, and why it cannot be served, without reading its weights (but for those that
//! an architecture rearranges itself, such as `attn_kv_b`).
//!
//! Law: a report without problems is of a file that loads on a CPU, memory permitting, and one with problems is of a file
//! that does not. The checks are those of loading: the architecture's own, over a backend that computes nothing. One is left
//! out: whether a packed file's data have their checksums, which takes all of them to be read.
//!
//! All problems are collected that can be told apart: every format, every key that is not honoured, tokenizer and
//! template. Of contradictions between keys and tensors only the first, since what follows one is guesswork.

mod census;
mod dry;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use serde::Serialize;

use self::census::Census;
pub use self::census::{Experts, TensorKind, WeightRow};
use self::dry::Dry;
use crate::arch::{self, LoadError, Shape};
use crate::gguf::{Gguf, GgufError, TensorInfo};
use crate::kv::PageType;
use crate::memory::{self, KvOptions, KvSize};
use crate::source;
use crate::step::GroupKind;
use crate::template::{ChatTemplate, TEMPLATE_KEY, TemplateError, TemplateTokens};
use crate::tokenizer::Tokenizer;

/// Keys looked past, one by one, to find more that are not honoured.
const HIDDEN_MAX: usize = 32;
/// Shortest context whose number of sequences is shown.
const CONTEXT_MIN: u32 = 1024;
/// More sequences than this are not counted.
const SEQUENCES_MAX: u32 = 1 << 20;
/// Variables by which a template switches reasoning on or off.
const THINKING: &[&str] = &["enable_thinking", "thinking", "reasoning_effort"];

/// What to hold a file against.
#[derive(Clone, Copy, Debug)]
pub struct InspectOptions<'a> {
    /// The cache it would get.
    pub kv: KvOptions,
    /// Memory there is, see [`memory::available`].
    pub available: Option<u64>,
    /// A template to use instead of the file's.
    pub template: Option<&'a str>,
}

/// What a model file is.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// `general.name`.
    pub name: Option<String>,
    /// `general.architecture`.
    pub architecture: Option<String>,
    /// `general.license`.
    pub license: Option<String>,
    /// More than 1 if the model is split.
    pub files: usize,
    /// Length of all files.
    pub file_bytes: u64,
    /// Blocks of attention and feed-forward.
    pub layers: Option<u32>,
    /// None if the model is dense.
    pub experts: Option<Experts>,
    /// Longest sequence the model was made for.
    pub context: Option<u32>,
    /// How many there are.
    pub parameters: Parameters,
    /// Tensors by kind and format.
    pub weights: Vec<WeightRow>,
    /// Bytes of weights as loaded; if the architecture's keys cannot be read, of all tensors of known formats.
    pub weight_bytes: u64,
    /// Groups of layers that keep the same past; empty if the architecture's keys cannot be read.
    pub cache: Vec<CacheRow>,
    /// What decoding one sequence reads from memory for each token: a bound on its speed.
    pub decode: Decode,
    /// What the file says of its tokenizer.
    pub tokenizer: TokenizerFacts,
    /// None if there is none.
    pub template: Option<TemplateFacts>,
    /// What of it this machine holds.
    pub fit: Fit,
    /// Whether the file can be served, memory permitting: there are no problems.
    pub servable: bool,
    /// Whether this machine's memory holds it too, with the cache that is configured.
    pub fits: bool,
    /// Why it cannot.
    pub problems: Vec<Problem>,
}

/// Elements of tensors, as published figures count them: all that are in the file, an embedding that is also the
/// output once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Parameters {
    /// All.
    pub total: u64,
    /// All but the experts that a token does not use; embedding and output are included.
    pub active: u64,
    /// The embedding is also the output.
    pub tied_output: bool,
}

/// Layers of one kind of cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct CacheRow {
    /// How long what is written stays.
    pub kind: CacheKind,
    /// Positions that a query sees, itself included.
    pub window: Option<u32>,
    /// Layers.
    pub layers: u32,
    /// Key and value heads of a layer.
    pub kv_heads: u32,
    /// Values of a key.
    pub key_dim: u32,
    /// Values of a value; 0 if values are part of the keys.
    pub value_dim: u32,
    /// Of one position (of the state, if that is what is kept) with F16 pages.
    pub f16_bytes: u64,
    /// The same with F32 pages.
    pub f32_bytes: u64,
    /// The same with Q8_0 pages.
    pub q8_0_bytes: u64,
}

/// [`GroupKind`] without its numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum CacheKind {
    Full,
    Window,
    State,
}

/// What decoding one sequence reads for each token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Decode {
    /// Of known formats: all but the experts that are not used, one row of an embedding that is not the output.
    pub weight_bytes: u64,
    /// For each position that the token sees, with the configured pages.
    pub cache_bytes_per_position: u64,
}

/// `tokenizer.ggml.*`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TokenizerFacts {
    /// `model`.
    pub model: Option<String>,
    /// `pre`.
    pub pre: Option<String>,
    /// Number of tokens.
    pub tokens: usize,
}

/// What a chat template takes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TemplateFacts {
    /// It writes definitions of tools.
    pub tools: bool,
    /// Variables that switch reasoning.
    pub thinking: Vec<String>,
}

/// What this machine holds beside the weights.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Fit {
    /// Memory there is.
    pub available_bytes: Option<u64>,
    /// Left free for a step and everything else; None if the cache's size is configured or the file's cache is not known.
    pub reserve_bytes: Option<u64>,
    /// Element type of the cache.
    pub page: &'static str,
    /// What a server would take for its cache; None if nothing fits, or the file's cache is not known.
    pub cache_bytes: Option<u64>,
    /// How many sequences of which length memory or the configured cache would hold.
    pub sequences: Vec<FitRow>,
    /// Why nothing fits.
    pub error: Option<String>,
}

/// Sequences of one length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct FitRow {
    /// Tokens of each, prompt and output together.
    pub context: u32,
    /// How many, at the same time.
    pub sequences: u32,
}

/// Something that keeps a file from being served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// In what.
    pub part: Part,
    /// What it is.
    pub message: String,
}

/// Parts of a model file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum Part {
    Architecture,
    Formats,
    Keys,
    Tensors,
    Tokenizer,
    Template,
}

/// Looks at a file. Keys that are not honoured are hidden from `gguf` on the way.
pub fn inspect(gguf: &mut Gguf, options: &InspectOptions<'_>) -> Report {
    let text = |key: &str| gguf.opt_str(key).ok().flatten().map(str::to_owned);
    let architecture = text("general.architecture");
    let of_arch = |key: &str| {
        let name = format!("{}.{key}", architecture.as_deref()?);
        gguf.opt_u32(&name).ok().flatten()
    };
    let experts = of_arch("expert_count").filter(|&count| count > 0).map(|count| Experts {
        count,
        used: of_arch("expert_used_count").unwrap_or(count).min(count),
        shared: of_arch("expert_shared_count").unwrap_or(0),
    });
    let (layers, context) = (of_arch("block_count"), of_arch("context_length"));
    let blocks = layers.map(|layers| layers.saturating_sub(of_arch("nextn_predict_layers").unwrap_or(0)));
    let census = Census::new(gguf, experts, blocks);
    let tokenizer = TokenizerFacts {
        model: text("tokenizer.ggml.model"),
        pre: text("tokenizer.ggml.pre"),
        tokens: gguf.opt_str_array("tokenizer.ggml.tokens").ok().flatten().map_or(0, |tokens| tokens.len()),
    };
    let (name, license) = (text("general.name"), text("general.license"));

    let mut problems = formats(gguf, blocks);
    let template = words(gguf, options.template, &mut problems);
    let shape = computes(gguf, &mut problems);
    let cache: Vec<CacheRow> = shape.iter().flat_map(|shape| &shape.cache).map(cache_row).collect();
    let cache_bytes_per_position = cache.iter().fold(0u64, |sum, row| {
        sum.saturating_add(match options.kv.page {
            PageType::F16 => row.f16_bytes,
            PageType::F32 => row.f32_bytes,
            PageType::Q8_0 => row.q8_0_bytes,
        })
    });
    let (fit, servable) = (fit(shape.as_ref(), options), problems.is_empty());
    Report {
        name,
        architecture,
        license,
        files: gguf.parts(),
        file_bytes: gguf.file_bytes(),
        layers,
        experts,
        context: shape.as_ref().map(|shape| shape.context).or(context),
        parameters: Parameters { total: census.parameters, active: census.active, tied_output: census.tied },
        weights: census.rows,
        weight_bytes: shape.as_ref().map_or(census.bytes, |shape| shape.weight_bytes),
        cache,
        decode: Decode { weight_bytes: census.bytes_per_token, cache_bytes_per_position },
        tokenizer,
        template,
        fits: servable && fit.error.is_none(),
        fit,
        servable,
        problems,
    }
}

/// Formats that are not read, each once; those of blocks that are skipped need not be.
fn formats(gguf: &Gguf, blocks: Option<u32>) -> Vec<Problem> {
    let mut unknown: BTreeMap<u32, (usize, &TensorInfo)> = BTreeMap::new();
    let loaded = |t: &&TensorInfo| TensorKind::of(&t.name, blocks) != TensorKind::NextTokens;
    for tensor in gguf.tensors().iter().filter(|t| t.ty().is_none()).filter(loaded) {
        unknown.entry(tensor.type_id).or_insert((0, tensor)).0 += 1;
    }
    let problem = |(count, tensor): (usize, &TensorInfo)| Problem {
        part: Part::Formats,
        message: format!(
            "the format {} is not supported: {count} tensors, the first is {}",
            tensor.type_name(),
            tensor.name
        ),
    };
    unknown.into_values().map(problem).collect()
}

/// Tokenizer and template.
fn words(gguf: &Gguf, configured: Option<&str>, problems: &mut Vec<Problem>) -> Option<TemplateFacts> {
    let tokens = match Tokenizer::from_gguf(gguf) {
        Ok(tokenizer) => tokenizer.template_tokens(),
        Err(error) => {
            problems.push(Problem { part: Part::Tokenizer, message: with_causes(&error) });
            TemplateTokens::default()
        }
    };
    let template = match configured {
        Some(source) => ChatTemplate::new(source, tokens),
        None => ChatTemplate::from_gguf(gguf, tokens),
    };
    match template {
        Ok(template) => {
            let variables = template.variables();
            let thinking = THINKING.iter().filter(|&&name| variables.contains(name));
            Some(TemplateFacts {
                tools: template.reads_tools(),
                thinking: thinking.map(|&name| name.to_owned()).collect(),
            })
        }
        // Completions do without.
        Err(TemplateError::Missing) => None,
        Err(error) => {
            let message = match configured {
                Some(_) => format!("the configured template: {error}"),
                None => format!("{TEMPLATE_KEY}: {error}"),
            };
            problems.push(Problem { part: Part::Template, message });
            None
        }
    }
}

/// Keys and tensors, as the architecture checks them.
fn computes(gguf: &mut Gguf, problems: &mut Vec<Problem>) -> Option<Shape> {
    if let Err(error) = source::servable(gguf) {
        // What else may be wrong with it is no one's concern.
        problems.push(Problem { part: Part::Architecture, message: error.to_string() });
        return None;
    }
    past_keys(gguf, problems, |gguf| Ok(gguf.packed_checksums()?));
    let shape = past_keys(gguf, problems, arch::shape)?;
    past_keys(gguf, problems, |gguf| arch::load(gguf, &mut Dry).map(drop));
    Some(shape)
}

/// Tries again without each key that is not honoured.
fn past_keys<T>(
    gguf: &mut Gguf,
    problems: &mut Vec<Problem>,
    check: impl Fn(&Gguf) -> Result<T, LoadError>,
) -> Option<T> {
    for _ in 0..HIDDEN_MAX {
        let error = match check(gguf) {
            Ok(value) => return Some(value),
            Err(error) => error,
        };
        let message = with_causes(&error);
        let part = match &error {
            LoadError::NotHonoured { key, .. } => {
                problems.push(Problem { part: Part::Keys, message });
                if gguf.hide(key) {
                    continue;
                }
                return None;
            }
            // Named already, with all others of its format.
            LoadError::Gguf(GgufError::UnsupportedType { .. }) => return None,
            LoadError::Architecture { .. } => Part::Architecture,
            LoadError::Gguf(
                GgufError::MissingKey { .. }
                | GgufError::WrongType { .. }
                | GgufError::DoesNotFit { .. }
                | GgufError::Layout { .. }
                | GgufError::ChecksumCount { .. },
            )
            | LoadError::BadValue { .. } => Part::Keys,
            _ => Part::Tensors,
        };
        problems.push(Problem { part, message });
        return None;
    }
    None
}

fn cache_row(group: &arch::CacheShape) -> CacheRow {
    let arch::CacheShape { kind, layers, kv_heads, key_dim, value_dim } = *group;
    let bytes = |page: PageType| {
        let [key, value] = [key_dim, value_dim].map(|dim| page.row_bytes(dim as usize) as u64);
        let factors = [layers, kv_heads].map(u64::from);
        factors.into_iter().fold(key.saturating_add(value), u64::saturating_mul)
    };
    let (kind, window) = match kind {
        GroupKind::Full => (CacheKind::Full, None),
        GroupKind::Window { window } => (CacheKind::Window, Some(window)),
        GroupKind::State => (CacheKind::State, None),
    };
    let [f16_bytes, f32_bytes, q8_0_bytes] = [PageType::F16, PageType::F32, PageType::Q8_0].map(bytes);
    CacheRow { kind, window, layers, kv_heads, key_dim, value_dim, f16_bytes, f32_bytes, q8_0_bytes }
}

/// The pool as a server would plan it, and what one for other numbers of sequences would be.
fn fit(shape: Option<&Shape>, options: &InspectOptions<'_>) -> Fit {
    let page = options.kv.page.name();
    let reserve_bytes = shape.and_then(|shape| options.kv.left_free(shape));
    let empty = Fit { available_bytes: options.available, reserve_bytes, page, ..Fit::default() };
    let Some(shape) = shape else { return empty };
    let planned = memory::plan(shape, &options.kv, options.available)
        .and_then(|pool| Ok((pool, memory::block_bytes(shape, &options.kv)?)));
    match planned {
        Err(error) => Fit { error: Some(error.to_string()), ..empty },
        Ok((pool, block_bytes)) => {
            let of_group = |(&blocks, each): (&u32, u64)| each.saturating_mul(blocks.into());
            let groups = pool.blocks.iter().zip(block_bytes).map(of_group);
            Fit {
                cache_bytes: Some(groups.fold(0, u64::saturating_add)),
                sequences: contexts(shape.context).map(|context| fit_row(shape, options, context)).collect(),
                ..empty
            }
        }
    }
}

/// The most sequences of a length for which a pool can be planned.
fn fit_row(shape: &Shape, options: &InspectOptions<'_>, context: u32) -> FitRow {
    let kv = options.kv;
    let limit = match kv.size {
        KvSize::Available { .. } => {
            let left_free = kv.left_free(shape).unwrap_or(0);
            options.available.map(|bytes| bytes.saturating_sub(left_free))
        }
        KvSize::Bytes(bytes) => Some(shape.weight_bytes.saturating_add(bytes)),
        KvSize::Blocks(_) => options.available,
    };
    let each = context.div_ceil(kv.block_tokens);
    let fits = |sequences: u32| {
        let size = KvSize::Blocks(each.saturating_mul(sequences));
        let kv = KvOptions { size, sequences, context: Some(context), ..kv };
        memory::plan(shape, &kv, limit).is_ok()
    };
    let (mut low, mut high) = (0, SEQUENCES_MAX.min(u32::MAX / each.max(1)));
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        match fits(middle) {
            true => low = middle,
            false => high = middle - 1,
        }
    }
    FitRow { context, sequences: low }
}

/// Some lengths up to the longest.
fn contexts(longest: u32) -> impl Iterator<Item = u32> {
    let steps = std::iter::successors(Some(CONTEXT_MIN), |context| context.checked_mul(4));
    steps.take_while(move |&context| context < longest).chain([longest])
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.ends_with(&said) {
            text += &format!(": {said}");
        }
        cause = error.source();
    }
    text
}
