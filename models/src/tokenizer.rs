//! Tokenizers as GGUF files describe them, with llama.cpp's meaning of the metadata: byte-level BPE and SentencePiece.
//!
//! Law: [`Tokenizer::encode_plain`] never yields a control token, whatever the text.
//!
//! Time is linear in the text up to the logarithm in merging one word, and memory is linear, also for text that is one
//! enormous word: there is no backtracking pattern and no limit that could be hit.
//!
//! Absent on purpose: templates (they produce [`Rendered`]), streaming ([`crate::detok`]).

mod byte_level;
mod bytes;
mod ends;
mod error;
mod pieces;
mod pretokenize;
mod spec;

use std::collections::HashMap;
use std::sync::Arc;

use aho_corasick::{AhoCorasick, MatchKind};

use self::byte_level::ByteLevel;
pub use self::error::TokenizerError;
use self::pieces::Pieces;
use self::pretokenize::PreTokenizer;
pub use self::spec::{SpecialIds, TokenizerSpec};
use crate::gguf::Gguf;
use crate::step::{TokenBytes, TokenId};
use crate::template::{Piece, Rendered, TemplateTokens};

/// What a token is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Text in the byte alphabet, or with `▁` for spaces.
    Normal,
    /// One byte of a character that no piece has. SentencePiece only.
    Byte(u8),
    /// Stands for text that cannot be written, and is no text itself. SentencePiece only.
    Unknown,
    /// Steers the model: recognised only where a template or a raw prompt may say so, and no text in output.
    Control,
    /// Recognised in any text before words are cut, and text in output.
    UserDefined,
    /// Padding of the vocabulary: never recognised, no text.
    Unused,
}

/// A piece of [`Tokenizer::control_marks`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark<'a> {
    /// Ordinary text.
    Text(&'a str),
    /// A control token.
    Control(TokenId),
}

/// How text between marks becomes tokens.
enum Encoding {
    Bytes(Box<ByteLevel>),
    Pieces(Box<Pieces>),
}

/// A model's tokenizer. Cheap to share in an [`Arc`].
pub struct Tokenizer {
    encoding: Encoding,
    /// Whether a text's first space is the tokenizer's own.
    space_prefix: bool,
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
    add_eos: bool,
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
        let pieces = match spec.model.as_str() {
            "gpt2" => false,
            "llama" => true,
            _ => return Err(TokenizerError::UnknownModel { name: spec.model }),
        };
        let count = spec.tokens.len();
        let bytes = spec.tokens.iter().map(String::len).sum();
        if count == 0 || u32::try_from(count.max(bytes)).is_err() {
            return Err(TokenizerError::TokenCount { count, bytes });
        }
        let ids = if pieces { spec.ids.or_sentencepiece(count) } else { spec.ids };
        ids.check(count)?;
        let mut kinds = kinds(&spec.tokens, spec.types.as_deref(), pieces)?;
        let by_text = by_text(&spec.tokens)?;
        ends::override_kinds(&by_text, &mut kinds, &byte_level::merged(&spec.merges));
        let ends = ends::end_tokens(&by_text, &kinds, &ids);

        let space_prefix = pieces && spec.add_space_prefix.unwrap_or(true);
        let (encoding, pre_bos) = if pieces {
            let scores = spec.scores.as_deref().unwrap_or_default();
            let unknown = ids.unk.map(TokenId);
            let pieces = Pieces::new(&spec.tokens, scores, &kinds, unknown, space_prefix)?;
            (Encoding::Pieces(Box::new(pieces)), true)
        } else {
            let pre = PreTokenizer::named(&spec.pre)?;
            let add_bos = pre.add_bos;
            let bpe = ByteLevel::new(pre, &by_text, &kinds, &spec.merges)?;
            (Encoding::Bytes(Box::new(bpe)), add_bos)
        };

        let of_kind = |wanted: &[Kind]| {
            let all = (0u32..).map(TokenId).zip(&kinds);
            all.filter(|(_, kind)| wanted.contains(kind)).map(|(id, _)| id).collect::<Vec<_>>()
        };
        let text = |id: &TokenId| spec.tokens[id.0 as usize].clone();
        let control = of_kind(&[Kind::Control]).iter().map(|id| (text(id), *id)).collect();
        let add_bos = spec.add_bos.unwrap_or(pre_bos && ids.bos.is_some());
        if add_bos && ids.bos.is_none() {
            return Err(TokenizerError::NoBos);
        }
        let add_eos = spec.add_eos.unwrap_or(false);
        if add_eos && ids.eos.is_none() {
            return Err(TokenizerError::NoEos);
        }
        let text_bytes = spec.tokens.iter().zip(&kinds).map(|(t, k)| output_bytes(t, *k, pieces));
        Ok(Self {
            token_bytes: Arc::new(text_bytes.collect()),
            marks: Marks::new(&spec.tokens, of_kind(&[Kind::UserDefined]))?,
            special_marks: Marks::new(
                &spec.tokens,
                of_kind(&[Kind::UserDefined, Kind::Control, Kind::Unknown]),
            )?,
            control,
            ends: ends.into(),
            bos: ids.bos.map(TokenId),
            eos: ids.eos.map(TokenId),
            add_bos,
            add_eos,
            encoding,
            space_prefix,
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
        self.encode(text, &self.marks, &mut true, &mut out)?;
        Ok(out)
    }

    /// Encodes text in which control tokens are recognised. No BOS is added.
    ///
    /// # Errors
    /// As [`Tokenizer::encode_plain`].
    pub fn encode_special(&self, text: &str) -> Result<Vec<TokenId>, TokenizerError> {
        let mut out = Vec::new();
        self.encode(text, &self.special_marks, &mut true, &mut out)?;
        Ok(out)
    }

    /// Encodes a raw prompt as llama.cpp and vLLM do: control tokens are recognised, and BOS is put in front, EOS at the
    /// end, if the model wants it and the text does not have it.
    ///
    /// # Errors
    /// As [`Tokenizer::encode_plain`].
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<TokenId>, TokenizerError> {
        let mut out = self.encode_special(text)?;
        self.put_bos(&mut out);
        out.extend(self.eos.filter(|eos| self.add_eos && out.last() != Some(eos)));
        Ok(out)
    }

    /// Encodes what a chat template rendered: control tokens are exactly those that the template itself wrote. BOS is
    /// put in front if the model wants it and the template did not.
    ///
    /// # Errors
    /// As [`Tokenizer::encode_plain`].
    pub fn encode_rendered(&self, rendered: &Rendered) -> Result<Vec<TokenId>, TokenizerError> {
        let (mut out, mut fresh) = (Vec::new(), true);
        for piece in rendered.pieces() {
            match piece {
                Piece::Text(text) => self.encode(text, &self.marks, &mut fresh, &mut out)?,
                Piece::Control(text) => match self.control.get(text.as_str()) {
                    Some(&id) => {
                        out.push(id);
                        fresh = true;
                    }
                    // A template made for another vocabulary.
                    None => self.encode(text, &self.marks, &mut fresh, &mut out)?,
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

    /// `fresh`: nothing or a token is in front of the text; afterwards, of what follows.
    fn encode(
        &self,
        text: &str,
        marks: &Marks,
        fresh: &mut bool,
        out: &mut Vec<TokenId>,
    ) -> Result<(), TokenizerError> {
        let mut done = 0;
        for mark in marks.find.find_iter(text) {
            self.encode_words(&text[done..mark.start()], fresh, out)?;
            out.push(marks.ids[mark.pattern().as_usize()]);
            *fresh = true;
            done = mark.end();
        }
        self.encode_words(&text[done..], fresh, out)
    }

    fn encode_words(
        &self,
        text: &str,
        fresh: &mut bool,
        out: &mut Vec<TokenId>,
    ) -> Result<(), TokenizerError> {
        if text.is_empty() {
            return Ok(());
        }
        let fresh = std::mem::take(fresh);
        match &self.encoding {
            Encoding::Bytes(bpe) => bpe.encode(text, out),
            Encoding::Pieces(pieces) => {
                pieces.encode(text, fresh, out);
                Ok(())
            }
        }
    }

    /// The bytes each token stands for in output; control tokens stand for none. Where a text goes on, as an answer does
    /// after a prompt, the space that begins a SentencePiece word is text; only [`Tokenizer::decode`] begins one.
    pub fn token_bytes(&self) -> Arc<TokenBytes> {
        self.token_bytes.clone()
    }

    /// A token's bytes with control tokens as they are written; none for an id outside the vocabulary.
    pub fn raw_bytes(&self, token: TokenId) -> Vec<u8> {
        match self.kinds.get(token.0 as usize) {
            Some(Kind::Control | Kind::Unknown) => self.texts[token.0 as usize].clone().into_bytes(),
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

    /// A text cut at the control tokens in it.
    pub fn control_marks<'a>(&self, text: &'a str) -> Vec<Mark<'a>> {
        let (mut marks, mut done) = (Vec::new(), 0);
        for found in self.special_marks.find.find_iter(text) {
            let id = self.special_marks.ids[found.pattern().as_usize()];
            if self.kinds.get(id.0 as usize) != Some(&Kind::Control) {
                continue;
            }
            if found.start() > done {
                marks.push(Mark::Text(&text[done..found.start()]));
            }
            marks.push(Mark::Control(id));
            done = found.end();
        }
        if done < text.len() {
            marks.push(Mark::Text(&text[done..]));
        }
        marks
    }

    /// Output text of tokens that are a whole text, without control tokens, with U+FFFD for what is not UTF-8, and
    /// without the space that the tokenizer puts in front of texts.
    pub fn decode(&self, tokens: &[TokenId]) -> String {
        let bytes: Vec<u8> = tokens.iter().flat_map(|&t| self.token_bytes.get(t)).copied().collect();
        let bytes = bytes.strip_prefix(b" ").filter(|_| self.space_prefix).unwrap_or(&bytes);
        String::from_utf8_lossy(bytes).into_owned()
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

fn kinds(tokens: &[String], types: Option<&[i32]>, pieces: bool) -> Result<Vec<Kind>, TokenizerError> {
    let types = match types {
        // Without types nothing tells SentencePiece's control tokens from text.
        None if !pieces => return Ok(vec![Kind::Normal; tokens.len()]),
        types => types.unwrap_or_default(),
    };
    if types.len() != tokens.len() {
        return Err(TokenizerError::TypeCount { expected: tokens.len(), found: types.len() });
    }
    let kind = |(id, (text, &ty)): (u32, (&String, &i32))| match ty {
        // An empty text would be found everywhere.
        1..=5 if text.is_empty() => Ok(Kind::Unused),
        1 => Ok(Kind::Normal),
        2 if pieces => Ok(Kind::Unknown),
        2 | 3 => Ok(Kind::Control),
        4 => Ok(Kind::UserDefined),
        5 => Ok(Kind::Unused),
        6 if pieces => byte(text)
            .map(Kind::Byte)
            .ok_or_else(|| TokenizerError::ByteToken { token: id, text: text.clone() }),
        found => Err(TokenizerError::TokenType { token: id, found }),
    };
    (0..).zip(tokens.iter().zip(types)).map(kind).collect()
}

/// The byte that `<0x0A>` and its like stand for.
fn byte(text: &str) -> Option<u8> {
    let hex = text.strip_prefix("<0x")?.strip_suffix('>')?;
    (hex.len() == 2 && hex.bytes().all(|c| c.is_ascii_hexdigit()))
        .then(|| u8::from_str_radix(hex, 16).ok())?
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

fn output_bytes(text: &str, kind: Kind, pieces: bool) -> Vec<u8> {
    match kind {
        Kind::Normal | Kind::UserDefined if pieces => text.replace(pieces::SPACE, " ").into_bytes(),
        Kind::Normal => bytes::bytes_of(text),
        Kind::UserDefined => text.as_bytes().to_vec(),
        Kind::Byte(byte) => vec![byte],
        Kind::Control | Kind::Unknown | Kind::Unused => Vec::new(),
    }
}

#[cfg(test)]
mod tests;
