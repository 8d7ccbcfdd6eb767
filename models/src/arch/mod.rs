//! Model architectures: one file and one row of [`table`] each.
//!
//! An architecture is written once, against [`Backend`]. What it reads from a file is hostile until checked:
//! whatever is missing, contradictory or not honoured refuses the file by the name of the key or tensor.

mod decoder;
mod error;
mod keys;
mod llama;
mod qwen3moe;
mod tensors;
#[cfg(test)]
mod tests;

pub use self::error::LoadError;
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

/// A row of [`table`].
struct Architecture<B: Backend> {
    /// `general.architecture`.
    name: &'static str,
    /// Checks the metadata.
    shape: fn(&Gguf) -> Result<Shape, LoadError>,
    /// Checks and loads the tensors.
    load: Load<B>,
}

type Load<B> = fn(&Gguf, &mut B) -> Result<Box<dyn Model<B>>, LoadError>;

/// Every architecture.
fn table<B: Backend + 'static>() -> [Architecture<B>; 2] {
    [
        Architecture { name: "llama", shape: llama::shape, load: llama::load },
        Architecture { name: "qwen3moe", shape: qwen3moe::shape, load: qwen3moe::load },
    ]
}

/// Reads and checks a model's metadata.
///
/// # Errors
/// If the architecture is not supported or a key is missing, contradictory or not honoured.
pub fn shape(gguf: &Gguf) -> Result<Shape, LoadError> {
    (find::<crate::reference::ReferenceBackend>(gguf)?.shape)(gguf)
}

/// Loads a model's weights into `backend`, whose cache has the groups of [`shape`].
///
/// # Errors
/// As [`shape`]; if a tensor is missing, superfluous or of the wrong shape; if the backend cannot take it.
pub fn load<B: Backend + 'static>(gguf: &Gguf, backend: &mut B) -> Result<Box<dyn Model<B>>, LoadError> {
    (find::<B>(gguf)?.load)(gguf, backend)
}

fn find<B: Backend + 'static>(gguf: &Gguf) -> Result<Architecture<B>, LoadError> {
    let name = gguf.str("general.architecture")?;
    let row = table().into_iter().find(|row| row.name == name);
    row.ok_or_else(|| LoadError::Architecture {
        name: name.to_owned(),
        known: table::<B>().map(|row| row.name).join(", "),
    })
}
