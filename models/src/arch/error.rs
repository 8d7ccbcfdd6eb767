//! Why a model file cannot be run.

use crate::backend::BackendError;
use crate::gguf::GgufError;

/// Why a model file cannot be run. Names and numbers are the file's.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the fields are what the messages say")]
pub enum LoadError {
    /// The file itself.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// A format or shape without a kernel, or no memory.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// No row in the table of architectures.
    #[error("general.architecture {name} is not supported; these are: {known}")]
    Architecture { name: String, known: String },
    /// A value that cannot be.
    #[error("metadata key {key} is {value}, but {why}")]
    BadValue { key: String, value: String, why: String },
    /// A value that would change what the model computes and is not implemented.
    #[error("metadata key {key} is {value}, which is not supported for this architecture")]
    NotHonoured { key: String, value: String },
    /// A tensor whose shape contradicts the metadata.
    #[error("tensor {tensor} is {found}, but the metadata calls for {wanted}")]
    WrongShape { tensor: String, found: String, wanted: String },
    /// A tensor with values that cannot be.
    #[error("tensor {tensor} {why}")]
    BadTensor { tensor: String, why: String },
    /// Tensors that the architecture does not use: ignoring them could change what the model computes.
    #[error("tensor {tensor} is not part of this architecture as Frugal knows it{}", nor(*others))]
    UnexpectedTensor { tensor: String, others: usize },
    /// The configured context is longer than the model was made for.
    #[error("a context of {asked} tokens was asked for, but the model was made for {model}")]
    ContextTooLong { asked: u32, model: u32 },
    /// The cache does not hold one sequence of the configured length.
    #[error(
        "the KV cache of {blocks} blocks holds {tokens} tokens, less than the configured context of {context}"
    )]
    CacheTooSmall { blocks: u32, tokens: u64, context: u32 },
    /// Weights and cache do not fit.
    #[error(
        "not enough memory: weights {weights} MiB, KV cache at least {cache} MiB, reserve {reserve} MiB, \
         available {available} MiB"
    )]
    Memory { weights: u64, cache: u64, reserve: u64, available: u64 },
    /// This operating system does not say how much memory there is.
    #[error("the available memory is not known on this system: set the size of the KV cache")]
    MemoryUnknown,
}

fn nor(others: usize) -> String {
    match others {
        0 => String::new(),
        n => format!(", nor are {n} others"),
    }
}
