//! Model architectures: one file and one row of [`TABLE`] each.
//!
//! An architecture is written once, against [`Backend`]. What it reads from a file is hostile until checked:
//! whatever is missing, contradictory or not honoured refuses the file by the name of the key or tensor.

mod decoder;
mod deepseek2;
mod error;
mod feed;
mod glm4moe;
mod gpt_oss;
mod granitemoe;
mod heads;
mod held;
mod keys;
mod latent;
mod llama;
mod load;
mod olmoe;
mod plan;
mod qwen2;
mod qwen2moe;
mod qwen3;
mod qwen3moe;
mod rope;
mod tensors;
#[cfg(test)]
pub(crate) mod tests;

pub use self::error::LoadError;
pub(crate) use self::latent::UNSPLIT;
use self::plan::Plan;
use crate::backend::{Backend, BackendError, Batch};
use crate::gguf::Gguf;
use crate::step::GroupKind;

/// A loaded model.
pub trait Model<B: Backend>: Send {
    /// Runs a batch that the backend has begun: writes its keys and values into the cache and gives what
    /// [`Model::logits`] takes, one row for each of `batch.outputs`; None if there are none.
    ///
    /// # Errors
    /// Those of the device.
    fn forward(&self, backend: &mut B, batch: &Batch) -> Result<Option<B::Tensor>, BackendError>;

    /// The logits `[rows, vocab]` of rows of [`Model::forward`]'s result.
    ///
    /// # Errors
    /// Those of the device.
    fn logits(&self, backend: &mut B, x: &B::Tensor) -> Result<B::Tensor, BackendError>;
}

/// What has to be known of a model before its backend exists.
#[derive(Clone, Debug, PartialEq)]
pub struct Shape {
    /// Tokens in the vocabulary.
    pub vocab: u32,
    /// Longest sequence the model was made for.
    pub context: u32,
    /// What it keeps of the past, in the order of [`Geometry::groups`](crate::step::Geometry::groups).
    pub cache: Vec<CacheShape>,
    /// Bytes of all weights as loaded.
    pub weight_bytes: u64,
    /// Most values of 4 bytes that a token of a step has at once in activations, logits apart.
    pub step_values: u64,
}

/// Layers of one kind of cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheShape {
    /// How long what is written stays.
    pub kind: GroupKind,
    /// Layers in the group.
    pub layers: u32,
    /// Key and value heads.
    pub kv_heads: u32,
    /// Values of a key.
    pub key_dim: u32,
    /// Values of a value.
    pub value_dim: u32,
}

/// A row of [`TABLE`].
#[derive(Debug)]
pub struct Architecture {
    /// `general.architecture`.
    pub name: &'static str,
    /// What is published under that name.
    pub models: &'static str,
    plan: Plan,
}

/// Every architecture.
pub static TABLE: [Architecture; 10] = [
    llama::ARCHITECTURE,
    qwen2::ARCHITECTURE,
    qwen3::ARCHITECTURE,
    qwen2moe::ARCHITECTURE,
    qwen3moe::ARCHITECTURE,
    olmoe::ARCHITECTURE,
    granitemoe::ARCHITECTURE,
    glm4moe::ARCHITECTURE,
    gpt_oss::ARCHITECTURE,
    deepseek2::ARCHITECTURE,
];

/// Reads and checks a model's metadata.
///
/// # Errors
/// If the architecture is not supported or a key is missing, contradictory or not honoured.
pub fn shape(gguf: &Gguf) -> Result<Shape, LoadError> {
    decoder::shape(gguf, &find(gguf)?.plan)
}

/// Loads a model's weights into `backend`, whose cache has the groups of [`shape`].
///
/// # Errors
/// As [`shape`]; if a tensor is missing, superfluous or of the wrong shape; if the backend cannot take it.
pub fn load<B: Backend + 'static>(gguf: &Gguf, backend: &mut B) -> Result<Box<dyn Model<B>>, LoadError> {
    decoder::load(gguf, backend, &find(gguf)?.plan)
}

fn find(gguf: &Gguf) -> Result<&'static Architecture, LoadError> {
    let name = gguf.str("general.architecture")?;
    let row = TABLE.iter().find(|row| row.name == name);
    row.ok_or_else(|| LoadError::Architecture {
        name: name.to_owned(),
        known: TABLE.each_ref().map(|row| row.name).join(", "),
    })
}
