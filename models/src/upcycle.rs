//! Sparse upcycling of a dense llama into a mixture of experts that computes the same function.
//!
//! Every expert is the dense feed-forward with its hidden neurons reordered in groups of one quantization block
//! of `ffn_down`, so that whole blocks move and no weight is requantized. The chosen experts' weights sum to one:
//! whatever the random router picks, logits equal the dense model's up to the order of summation.

use std::io::{self, Write};
use std::path::Path;

use crate::atomic::{self, Target, WriteError};
use crate::gguf::{Gguf, GgufData, GgufError, GgufWriter, SPLIT_KEYS, Value};
use crate::quant::GgmlType;
use crate::weights::TensorView;

/// Most experts a layer may get.
pub const EXPERTS_MAX: u32 = 256;

/// Why a model was not upcycled. The output does not exist then, or is what it was.
#[derive(Debug, thiserror::Error)]
pub enum UpcycleError {
    /// Experts out of range.
    #[error("the number of experts must be from 1 to {EXPERTS_MAX}, not {0}")]
    Experts(u32),
    /// More experts per token than there are, or none.
    #[error("the experts per token must be from 1 to the number of experts ({experts}), not {top_k}")]
    TopK {
        /// Asked for.
        top_k: u32,
        /// Asked for.
        experts: u32,
    },
    /// The input is no good model file.
    #[error("the input cannot be used")]
    Model(#[from] GgufError),
    /// Another architecture.
    #[error("only the architecture llama can be upcycled, not {0}")]
    Architecture(String),
    /// Nothing to do.
    #[error("the model has experts already ({0})")]
    HasExperts(String),
    /// A tensor that has no place in the result.
    #[error("tensor {tensor} {what}")]
    Tensor {
        /// Its name.
        tensor: String,
        /// What is wrong with it.
        what: String,
    },
    /// The output could not be written: a full disk, no permission.
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// What the result is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shape {
    experts: u32,
    top_k: u32,
    seed: u64,
}

/// Makes `output`, a model with `experts` experts a layer of which `top_k` run for each token, of the dense llama
/// `input`, with these entries of metadata beside its own. The same input, numbers and seed give the same bytes. `progress` is told bytes
/// written and in all.
///
/// `output` appears whole, by renaming, or not at all.
///
/// # Errors
/// If the numbers are out of range, the input is no dense llama, or the output exists, cannot be written
/// or is the input.
pub fn upcycle<'a>(
    input: &Path,
    output: impl Into<Target<'a>>,
    (experts, top_k, seed): (u32, u32, u64),
    entries: &[(&str, Value<'_>)],
    mut progress: impl FnMut(u64, u64),
) -> Result<(), UpcycleError> {
    if !(1..=EXPERTS_MAX).contains(&experts) {
        return Err(UpcycleError::Experts(experts));
    }
    if !(1..=experts).contains(&top_k) {
        return Err(UpcycleError::TopK { top_k, experts });
    }
    let output = output.into();
    output.check()?;
    let dense = Gguf::open(input)?;
    atomic::apart(output, &dense.files(input))?;
    let shape = Shape { experts, top_k, seed };
    let (mut writer, jobs) = plan(&dense, &shape)?;
    for (key, value) in entries {
        writer.set(key, *value);
    }
    atomic::write(output, |out| {
        let result = execute(writer, &jobs, &shape, &mut *out, &mut progress);
        result.map_err(|source| UpcycleError::Write(out.failed(source)))
    })
}

/// One tensor of the result.
enum Job<'a> {
    /// As it is.
    Copy(&'a [u8]),
    /// Random.
    Router { layer: u32, hidden: usize },
    /// Groups of output rows reordered: gate and up.
    Rows { layer: u32, groups: usize, view: TensorView<'a> },
    /// Blocks within each row reordered: down.
    Blocks { layer: u32, view: TensorView<'a> },
}

const EXPERT_COUNT: &str = "llama.expert_count";
const EXPERT_USED_COUNT: &str = "llama.expert_used_count";

/// Checks the input and says what is to be written.
fn plan<'a>(dense: &'a Gguf, shape: &Shape) -> Result<(GgufWriter, Vec<Job<'a>>), UpcycleError> {
    let architecture = dense.str("general.architecture")?;
    if architecture != "llama" {
        return Err(UpcycleError::Architecture(architecture.to_owned()));
    }
    if dense.opt_u32(EXPERT_COUNT)?.unwrap_or(0) > 0 {
        return Err(UpcycleError::HasExperts(EXPERT_COUNT.to_owned()));
    }
    let mut writer = GgufWriter::new();
    for (key, value) in dense.metadata() {
        // The result is one file, of whatever alignment.
        let replaced = [EXPERT_COUNT, EXPERT_USED_COUNT, "general.alignment"].contains(&key);
        if !replaced && !key.starts_with(SPLIT_KEYS) {
            writer.set(key, value);
        }
    }
    writer.set(EXPERT_COUNT, Value::U32(shape.experts)).set(EXPERT_USED_COUNT, Value::U32(shape.top_k));

    let layers = dense.u32("llama.block_count")?;
    let mut jobs = Vec::new();
    for tensor in dense.tensors() {
        match tensor.name.as_str() {
            name if name.contains("_exps.") || name.contains(".ffn_gate_inp.") => {
                return Err(UpcycleError::HasExperts(name.to_owned()));
            }
            name if is_feed_forward(name) => {
                if !has_place(name, layers) {
                    let what = "has no place in a mixture of experts".to_owned();
                    return Err(UpcycleError::Tensor { tensor: name.to_owned(), what });
                }
            }
            name => {
                let view = dense.view(name)?;
                writer.tensor(name, view.ty, &tensor.dims[..tensor.dim_count as usize]);
                jobs.push(Job::Copy(view.data));
            }
        }
    }
    for layer in 0..layers {
        layer_plan(dense, shape, layer, &mut writer, &mut jobs)?;
    }
    Ok((writer, jobs))
}

fn is_feed_forward(name: &str) -> bool {
    [".ffn_gate.", ".ffn_up.", ".ffn_down."].iter().any(|kind| name.contains(kind))
}

/// Whether [`layer_plan`] takes this feed-forward tensor.
fn has_place(name: &str, layers: u32) -> bool {
    let layer = || name.strip_prefix("blk.")?.split_once('.')?.0.parse::<u32>().ok();
    layer().is_some_and(|layer| {
        let taken = ["gate", "up", "down"].map(|kind| format!("blk.{layer}.ffn_{kind}.weight"));
        layer < layers && taken.iter().any(|t| t == name)
    })
}

fn layer_plan<'a>(
    dense: &'a Gguf,
    shape: &Shape,
    layer: u32,
    writer: &mut GgufWriter,
    jobs: &mut Vec<Job<'a>>,
) -> Result<(), UpcycleError> {
    let view = |kind: &str| dense.view(&format!("blk.{layer}.ffn_{kind}.weight"));
    let (gate, up, down) = (view("gate")?, view("up")?, view("down")?);
    let (hidden, inner) = (gate.cols, gate.rows);
    for (view, cols, rows) in [(&gate, hidden, inner), (&up, hidden, inner), (&down, inner, hidden)] {
        if (view.cols, view.rows, view.experts) != (cols, rows, 1) {
            let what =
                format!("is {} x {} x {}; {cols} x {rows} is needed", view.cols, view.rows, view.experts);
            return Err(UpcycleError::Tensor { tensor: view.name.to_owned(), what });
        }
    }
    let (hidden, inner, experts) = (hidden as u64, inner as u64, u64::from(shape.experts));
    let groups = down.cols / down.ty.block();
    let mut declare = |kind: &str, ty, dims: &[u64]| {
        writer.tensor(&format!("blk.{layer}.ffn_{kind}.weight"), ty, dims);
    };
    declare("gate_inp", GgmlType::F32, &[hidden, experts]);
    jobs.push(Job::Router { layer, hidden: gate.cols });
    declare("gate_exps", gate.ty, &[hidden, inner, experts]);
    jobs.push(Job::Rows { layer, groups, view: gate });
    declare("up_exps", up.ty, &[hidden, inner, experts]);
    jobs.push(Job::Rows { layer, groups, view: up });
    declare("down_exps", down.ty, &[inner, hidden, experts]);
    jobs.push(Job::Blocks { layer, view: down });
    Ok(())
}

/// Writes the planned file.
fn execute(
    writer: GgufWriter,
    jobs: &[Job<'_>],
    shape: &Shape,
    out: impl Write,
    progress: &mut impl FnMut(u64, u64),
) -> io::Result<()> {
    let total = writer.data_bytes();
    let mut done = 0;
    let mut data = writer.start(out)?;
    progress(done, total);
    for job in jobs {
        let mut put = |data: &mut GgufData<_>, part: &[u8]| {
            done += part.len() as u64;
            progress(done, total);
            data.write(part)
        };
        match job {
            Job::Copy(bytes) => put(&mut data, bytes)?,
            Job::Router { layer, hidden } => {
                let mut random = Random::new(shape.seed, *layer, u32::MAX);
                for _ in 0..shape.experts {
                    let row = (0..*hidden).flat_map(|_| (random.normal() * 0.1).to_le_bytes());
                    put(&mut data, &row.collect::<Vec<u8>>())?;
                }
            }
            Job::Rows { layer, groups, view } => {
                let bytes = view.data.len() / groups;
                let mut expert = Vec::with_capacity(view.data.len());
                for e in 0..shape.experts {
                    expert.clear();
                    for group in order(shape.seed, *layer, e, *groups) {
                        expert.extend_from_slice(&view.data[group * bytes..][..bytes]);
                    }
                    put(&mut data, &expert)?;
                }
            }
            Job::Blocks { layer, view } => {
                let (groups, bytes) = (view.cols / view.ty.block(), view.ty.block_bytes());
                let mut expert = Vec::with_capacity(view.data.len());
                for e in 0..shape.experts {
                    expert.clear();
                    let order = order(shape.seed, *layer, e, groups);
                    for row in view.data.chunks_exact(view.row_bytes()) {
                        for &group in &order {
                            expert.extend_from_slice(&row[group * bytes..][..bytes]);
                        }
                    }
                    put(&mut data, &expert)?;
                }
            }
        }
    }
    data.finish().flush()
}

/// The order of an expert's neuron groups: the same for its gate, up and down.
fn order(seed: u64, layer: u32, expert: u32, groups: usize) -> Vec<usize> {
    let mut random = Random::new(seed, layer, expert);
    let mut order: Vec<usize> = (0..groups).collect();
    for i in (1..groups).rev() {
        order.swap(i, random.below(i as u64 + 1) as usize);
    }
    order
}

/// SplitMix64 over a key: the same bits on every machine.
struct Random(u64);

impl Random {
    fn new(seed: u64, layer: u32, expert: u32) -> Self {
        let mut random = Self(seed);
        random.0 = random.next() ^ ((u64::from(layer) << 32) | u64::from(expert));
        random
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform below `n`, up to a bias of n / 2^64.
    fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(n)) >> 64) as u64
    }

    /// Nearly normal with mean 0 and variance 1: twelve uniforms, because logarithms and cosines differ between C
    /// libraries and sums do not.
    fn normal(&mut self) -> f32 {
        let uniforms: u64 = (0..12).map(|_| self.next() >> 40).sum();
        uniforms as f32 / (1u32 << 24) as f32 - 6.0
    }
}

#[cfg(test)]
pub(crate) mod tests;
