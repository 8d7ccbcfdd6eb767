//! What can be wrong with a model's tokenizer.

use crate::gguf::GgufError;

/// Why a model's tokenizer cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// A key is absent or of the wrong type.
    #[error("the tokenizer's metadata cannot be read")]
    Metadata(#[source] GgufError),
    /// Neither byte-level BPE nor SentencePiece.
    #[error(
        "tokenizer.ggml.model is {name:?}; supported are gpt2 (byte-level BPE) and llama (SentencePiece)"
    )]
    UnknownModel {
        /// What the file says.
        name: String,
    },
    /// A pre-tokenizer without a row in the table.
    #[error("tokenizer.ggml.pre is {name:?}; supported are {known}")]
    UnknownPre {
        /// What the file says.
        name: String,
        /// What could be said.
        known: String,
    },
    /// No tokens, or more than 32 bits can count.
    #[error("tokenizer.ggml.tokens has {count} entries of {bytes} bytes together")]
    TokenCount {
        /// How many.
        count: usize,
        /// Length of all texts.
        bytes: usize,
    },
    /// Two tokens with the same text.
    #[error("tokens {first} and {second} are both {text:?}")]
    DuplicateToken {
        /// The smaller id.
        first: u32,
        /// The other.
        second: u32,
        /// Theirs.
        text: String,
    },
    /// `tokenizer.ggml.token_type` is not one entry per token.
    #[error("tokenizer.ggml.token_type has {found} entries for {expected} tokens")]
    TypeCount {
        /// Tokens.
        expected: usize,
        /// Types.
        found: usize,
    },
    /// A type that the kind of tokenizer does not have.
    #[error("token {token} has type {found}, which its kind of tokenizer does not have")]
    TokenType {
        /// Whose.
        token: u32,
        /// What the file says.
        found: i32,
    },
    /// A merge that is not two tokens giving a third, all of them text.
    #[error("merge {index}, {text:?}, {problem}")]
    BadMerge {
        /// Its place in `tokenizer.ggml.merges`.
        index: usize,
        /// As in the file.
        text: String,
        /// What is wrong.
        problem: &'static str,
    },
    /// A special token outside the vocabulary.
    #[error("{key} is {id}, but there are {count} tokens")]
    SpecialId {
        /// Which.
        key: &'static str,
        /// What the file says.
        id: u32,
        /// Size of the vocabulary.
        count: usize,
    },
    /// BOS is to be added but not named.
    #[error("tokenizer.ggml.add_bos_token is true, but there is no tokenizer.ggml.bos_token_id")]
    NoBos,
    /// EOS is to be added but not named.
    #[error("tokenizer.ggml.add_eos_token is true, but there is no tokenizer.ggml.eos_token_id")]
    NoEos,
    /// `tokenizer.ggml.scores` is not one entry per token.
    #[error("tokenizer.ggml.scores has {found} entries for {expected} tokens")]
    ScoreCount {
        /// Tokens.
        expected: usize,
        /// Scores.
        found: usize,
    },
    /// A score that cannot be compared.
    #[error("the score of token {token} is not a number")]
    Score {
        /// Whose.
        token: u32,
    },
    /// A piece that is longer than any text is joined to.
    #[error("token {token} has {bytes} bytes")]
    LongPiece {
        /// Which.
        token: u32,
        /// Its length.
        bytes: usize,
    },
    /// A token of type "byte" that does not name one.
    #[error("token {token}, {text:?}, has the type of a byte and is not written as one, such as <0x0A>")]
    ByteToken {
        /// Which.
        token: u32,
        /// Its text.
        text: String,
    },
    /// The BPE or search library refused what was checked here.
    #[error("the tokenizer cannot be built")]
    Build(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The BPE library failed on a word.
    #[error("text cannot be encoded")]
    Encode(#[source] Box<dyn std::error::Error + Send + Sync>),
}
