//! Byte-level BPE tokenizers as GGUF files describe them, with llama.cpp's meaning of the metadata.
//!
//! Law: [`Tokenizer::encode_plain`] never yields a control token, whatever the text.
//!
//! Time is linear in the text up to the logarithm in merging one word, and memory is linear, also for text that is one
//! enormous word: there is no backtracking pattern and no limit that could be hit.
//!
//! Absent on purpose: templates (they produce [`Rendered`]), streaming ([`crate::detok`]).

mod bytes;
mod ends;
mod pretokenize;
mod spec;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use aho_corasick::{AhoCorasick, MatchKind};
use tokenizers::Model;
use tokenizers::models::bpe::{BPE, Vocab};

use self::pretokenize::PreTokenizer;
pub use self::spec::{SpecialIds, TokenizerSpec};
use crate::gguf::{Gguf, GgufError};
use crate::step::{TokenBytes, TokenId};
use crate::template::{Piece, Rendered, TemplateTokens};

/// Why a model's tokenizer cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// A key is absent or of the wrong type.
    #[error("the tokenizer's metadata cannot be read")]
    Metadata(#[source] GgufError),
    /// Not byte-level BPE.
    #[error("tokenizer.ggml.model is {name:?}; only gpt2 (byte-level BPE) is supported")]
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
    /// A type that byte-level BPE does not have.
    #[error("token {token} has type {found}, which byte-level BPE does not have")]
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
    /// The BPE or search library refused what was checked here.
    #[error("the tokenizer cannot be built")]
    Build(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The BPE library failed on a word.
    #[error("text cannot be encoded")]
    Encode(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// What a token is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Text in the byte alphabet.
    Normal,
    /// Steers the model: recognised only where a template or a raw prompt may say so, and no text in output.
    Control,
    /// Recognised in any text before words are cut, and text in output.
    UserDefined,
    /// Padding of the vocabulary: never recognised, no text.
    Unused,
}

/// A model's tokenizer. Cheap to share in an [`Arc`].
pub struct Tokenizer {
    pre: PreTokenizer,
    bpe: BPE,
    /// Whether the vocabulary has the byte. Text bytes it lacks are left out, as llama.cpp does.
    has_byte: [bool; 256],
    /// As in the file.
    texts: Vec<String>,
    kinds: Vec<Kind>,
    token_bytes: Arc<TokenBytes>,
    /// User-defined tokens.
    marks: Marks,
    /// User-defined and control tokens.
    special_marks: Marks,
    control: HashMap<String, TokenId>,
    ends: Arc<[TokenId]>,
    bos: Option<TokenId>,
    eos: Option<TokenId>,
    add_bos: bool,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("tokens", &self.texts.len())
            .field("control", &self.control.len())
            .field("ends", &self.ends)
            .field("bos", &self.bos)
            .field("add_bos", &self.add_bos)
            .finish_non_exhaustive()
    }
}

/// Tokens that are found in text as they are written, the longest first where several begin.
struct Marks {
    find: AhoCorasick,
    ids: Vec<TokenId>,
}

impl Marks {
    fn new(texts: &[String], ids: Vec<TokenId>) -> Result<Self, TokenizerError> {
        let find = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(ids.iter().map(|id| &texts[id.0 as usize]))
            .map_err(|e| TokenizerError::Build(e.into()))?;
        Ok(Self { find, ids })
    }
}

impl Tokenizer {
    /// From a model file's `tokenizer.ggml.*` keys.
    ///
    /// # Errors
    /// If the tokenizer is of a kind that is not supported, or its metadata contradict themselves.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self, TokenizerError> {
        Self::new(TokenizerSpec::from_gguf(gguf).map_err(TokenizerError::Metadata)?)
    }

    /// From plain data.
    ///
    /// # Errors
    /// As [`Tokenizer::from_gguf`].
    pub fn new(spec: TokenizerSpec) -> Result<Self, TokenizerError> {
        if spec.model != "gpt2" {
            return Err(TokenizerError::UnknownModel { name: spec.model });
        }
        let pre = PreTokenizer::named(&spec.pre)?;
        let count = spec.tokens.len();
        let bytes = spec.tokens.iter().map(String::len).sum();
        if count == 0 || u32::try_from(count.max(bytes)).is_err() {
            return Err(TokenizerError::TokenCount { count, bytes });
        }
        let ids = spec.ids;
        ids.check(count)?;
        let merged: HashSet<String> =
            spec.merges.iter().filter_map(|m| split_merge(m)).map(|(a, b)| format!("{a}{b}")).collect();
        let mut kinds = kinds(&spec.tokens, spec.types.as_deref())?;
        let by_text = by_text(&spec.tokens)?;
        ends::override_kinds(&by_text, &mut kinds, &merged);
        let ends = ends::end_tokens(&by_text, &kinds, &ids);

        let vocab: Vocab = by_text
            .iter()
            .filter(|(_, id)| matches!(kinds[id.0 as usize], Kind::Normal | Kind::UserDefined))
            .map(|(&text, id)| (text.to_owned(), id.0))
            .collect();
        let has_byte = std::array::from_fn(|b| {
            u8::try_from(b)
                .is_ok_and(|b| vocab.contains_key(bytes::char_of(b).encode_utf8(&mut [0; 4]) as &str))
        });
        let merges = merges(&spec.merges, &vocab)?;
        let bpe = BPE::builder()
            .vocab_and_merges(vocab, merges)
            .ignore_merges(pre.whole_words)
            .build()
            .map_err(TokenizerError::Build)?;

        let of_kind = |wanted: &[Kind]| {
            let all = (0u32..).map(TokenId).zip(&kinds);
            all.filter(|(_, kind)| wanted.contains(kind)).map(|(id, _)| id).collect::<Vec<_>>()
        };
        let text = |id: &TokenId| spec.tokens[id.0 as usize].clone();
        let control = of_kind(&[Kind::Control]).iter().map(|id| (text(id), *id)).collect();
        let add_bos = spec.add_bos.unwrap_or(pre.add_bos && ids.bos.is_some());
        if add_bos && ids.bos.is_none() {
            return Err(TokenizerError::NoBos);
        }
        Ok(Self {
            token_bytes: Arc::new(spec.tokens.iter().zip(&kinds).map(|(t, k)| output_bytes(t, *k)).collect()),
            marks: Marks::new(&spec.tokens, of_kind(&[Kind::UserDefined]))?,
            special_marks: Marks::new(&spec.tokens, of_kind(&[Kind::UserDefined, Kind::Control]))?,
            control,
            ends: ends.into(),
            bos: ids.bos.map(TokenId),
            eos: ids.eos.map(TokenId),
            add_bos,
            pre,
            bpe,
            has_byte,
            kinds,
            texts: spec.tokens,
        })
    }

    /// Encodes text in which nothing steers the model: the text of control tokens is ordinary text.
    /// User-defined tokens are recognised. No BOS is added.
    ///
    /// # Errors
    /// If the BPE library fails, which no input is known to cause.
    pub fn encode_plain(&self, text: &str) -> Result<Vec<TokenId>, TokenizerError> {
        let mut out = Vec::new();
        self.encode(text, &self.marks, &mut out)?;
        Ok(out)
    }

    /// Encodes text in which control tokens are recognised. No BOS is added.
    ///
    /// # Errors
    /// As [`Tokenizer::encode_plain`].
    pub fn encode_special(&self, text: &str) -> Result<Vec<TokenId>, TokenizerError> {
        let mut out = Vec::new();
        self.encode(text, &self.special_marks, &mut out)?;
        Ok(out)
    }

    /// Encodes a raw prompt as llama.cpp and vLLM do: control tokens are recognised, and BOS is put in front if the
    /// model wants it and the text does not begin with it.
    ///
    /// # Errors
    /// As [`Tokenizer::encode_plain`].
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<TokenId>, TokenizerError> {
        let mut out = self.encode_special(text)?;
        self.put_bos(&mut out);
        Ok(out)
    }

    /// Encodes what a chat template rendered: control tokens are exactly those that the template itself wrote. BOS is
    /// put in front if the model wants it and the template did not.
    ///
    /// # Errors
    /// As [`Tokenizer::encode_plain`].
    pub fn encode_rendered(&self, rendered: &Rendered) -> Result<Vec<TokenId>, TokenizerError> {
        let mut out = Vec::new();
        for piece in rendered.pieces() {
            match piece {
                Piece::Text(text) => self.encode(text, &self.marks, &mut out)?,
                Piece::Control(text) => match self.control.get(text.as_str()) {
                    Some(&id) => out.push(id),
                    // A template made for another vocabulary.
                    None => self.encode(text, &self.marks, &mut out)?,
                },
            }
        }
        self.put_bos(&mut out);
        Ok(out)
    }

    fn put_bos(&self, ids: &mut Vec<TokenId>) {
        if let Some(bos) = self.bos.filter(|bos| self.add_bos && ids.first() != Some(bos)) {
            ids.insert(0, bos);
        }
    }

    fn encode(&self, text: &str, marks: &Marks, out: &mut Vec<TokenId>) -> Result<(), TokenizerError> {
        let mut done = 0;
        for mark in marks.find.find_iter(text) {
            self.encode_words(&text[done..mark.start()], out)?;
            out.push(marks.ids[mark.pattern().as_usize()]);
            done = mark.end();
        }
        self.encode_words(&text[done..], out)
    }

    fn encode_words(&self, text: &str, out: &mut Vec<TokenId>) -> Result<(), TokenizerError> {
        let mut result = Ok(());
        let mut word = String::new();
        self.pre.words(text, &mut |piece| {
            // Merging does not reach across a byte that has no token.
            for run in piece.as_bytes().split(|&b| !self.has_byte[usize::from(b)]) {
                word.clear();
                word.extend(run.iter().map(|&b| bytes::char_of(b)));
                match self.bpe.tokenize(&word) {
                    Ok(tokens) => out.extend(tokens.iter().map(|t| TokenId(t.id))),
                    Err(error) => result = Err(TokenizerError::Encode(error)),
                }
            }
        });
        result
    }

    /// The bytes each token stands for in output; control tokens stand for none.
    pub fn token_bytes(&self) -> Arc<TokenBytes> {
        self.token_bytes.clone()
    }

    /// A token's bytes with control tokens as they are written; none for an id outside the vocabulary.
    pub fn raw_bytes(&self, token: TokenId) -> Vec<u8> {
        match self.kinds.get(token.0 as usize) {
            Some(Kind::Control) => self.texts[token.0 as usize].clone().into_bytes(),
            _ => self.token_bytes.get(token).to_vec(),
        }
    }

    /// Whether a token steers the model and is no text in output.
    pub fn is_control(&self, token: TokenId) -> bool {
        self.kinds.get(token.0 as usize) == Some(&Kind::Control)
    }

    /// [`Tokenizer::raw_bytes`] as text, with U+FFFD for what is not.
    pub fn token_text(&self, token: TokenId) -> String {
        String::from_utf8_lossy(&self.raw_bytes(token)).into_owned()
    }

    /// Output text of tokens, without control tokens, with U+FFFD for what is not UTF-8.
    pub fn decode(&self, tokens: &[TokenId]) -> String {
        let bytes: Vec<u8> = tokens.iter().flat_map(|&t| self.token_bytes.get(t)).copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// All tokens that end generation, in order of their ids.
    pub fn end_tokens(&self) -> Arc<[TokenId]> {
        self.ends.clone()
    }

    /// The token that begins a text.
    pub fn bos(&self) -> Option<TokenId> {
        self.bos
    }

    /// Whether raw prompts begin with [`Tokenizer::bos`].
    pub fn add_bos(&self) -> bool {
        self.add_bos
    }

    /// Number of tokens.
    pub fn vocab_size(&self) -> usize {
        self.texts.len()
    }

    /// What a chat template needs to know of the vocabulary.
    pub fn template_tokens(&self) -> TemplateTokens {
        let text = |id: Option<TokenId>| id.map(|id| self.texts[id.0 as usize].clone());
        let control = self.texts.iter().zip(&self.kinds).filter(|(_, kind)| **kind == Kind::Control);
        TemplateTokens {
            bos: text(self.bos),
            eos: text(self.eos),
            control: control.map(|(t, _)| t.clone()).collect(),
        }
    }
}

fn kinds(tokens: &[String], types: Option<&[i32]>) -> Result<Vec<Kind>, TokenizerError> {
    let Some(types) = types else { return Ok(vec![Kind::Normal; tokens.len()]) };
    if types.len() != tokens.len() {
        return Err(TokenizerError::TypeCount { expected: tokens.len(), found: types.len() });
    }
    let kind = |(id, (text, &ty)): (u32, (&String, &i32))| match ty {
        // An empty text would be found everywhere.
        1..=5 if text.is_empty() => Ok(Kind::Unused),
        1 => Ok(Kind::Normal),
        // "Unknown" and "control" differ only for tokenizers that can meet unknown text.
        2 | 3 => Ok(Kind::Control),
        4 => Ok(Kind::UserDefined),
        5 => Ok(Kind::Unused),
        found => Err(TokenizerError::TokenType { token: id, found }),
    };
    (0..).zip(tokens.iter().zip(types)).map(kind).collect()
}

fn by_text(tokens: &[String]) -> Result<HashMap<&str, TokenId>, TokenizerError> {
    let mut by_text = HashMap::with_capacity(tokens.len());
    for (second, text) in (0..).zip(tokens).filter(|(_, text)| !text.is_empty()) {
        if let Some(TokenId(first)) = by_text.insert(text.as_str(), TokenId(second)) {
            return Err(TokenizerError::DuplicateToken { first, second, text: text.clone() });
        }
    }
    Ok(by_text)
}

/// The two sides of a merge; the left one may begin with a space.
fn split_merge(merge: &str) -> Option<(&str, &str)> {
    let (space, _) = merge.char_indices().skip(1).find(|&(_, c)| c == ' ')?;
    Some((&merge[..space], &merge[space + 1..])).filter(|(_, right)| !right.is_empty())
}

fn merges(merges: &[String], vocab: &Vocab) -> Result<Vec<(String, String)>, TokenizerError> {
    let mut seen = HashSet::with_capacity(merges.len());
    let mut out = Vec::with_capacity(merges.len());
    for (index, merge) in merges.iter().enumerate() {
        let bad = |problem| TokenizerError::BadMerge { index, text: merge.clone(), problem };
        let (left, right) =
            split_merge(merge).ok_or_else(|| bad("is not two tokens with a space between"))?;
        if !vocab.contains_key(left) || !vocab.contains_key(right) {
            return Err(bad("joins what is not text in the vocabulary"));
        }
        if !vocab.contains_key(&format!("{left}{right}")) {
            return Err(bad("makes what is not text in the vocabulary"));
        }
        // The library would let the last of equal merges win; the first has the better rank.
        if seen.insert((left, right)) {
            out.push((left.to_owned(), right.to_owned()));
        }
    }
    Ok(out)
}

fn output_bytes(text: &str, kind: Kind) -> Vec<u8> {
    match kind {
        Kind::Normal => bytes::bytes_of(text),
        Kind::UserDefined => text.as_bytes().to_vec(),
        Kind::Control | Kind::Unused => Vec::new(),
    }
}

#[cfg(test)]
mod tests;
