//! What a model file says of its tokenizer, as plain data.

use super::TokenizerError;
use crate::gguf::{Gguf, GgufError};

/// The `tokenizer.ggml.*` keys that matter.
#[derive(Clone, Debug, Default)]
pub struct TokenizerSpec {
    /// `model`: the kind of tokenizer.
    pub model: String,
    /// `pre`: how text is cut into words. Byte-level BPE only.
    pub pre: String,
    /// `tokens`: their texts; ordinary ones in the byte alphabet, or with `▁` for spaces.
    pub tokens: Vec<String>,
    /// `token_type`: one per token; all ordinary if absent, which only byte-level BPE may be.
    pub types: Option<Vec<i32>>,
    /// `scores`: one per token; which pair SentencePiece joins first.
    pub scores: Option<Vec<f32>>,
    /// `merges`: two tokens with a space between, the first to be merged first. Byte-level BPE only.
    pub merges: Vec<String>,
    /// Ids of special tokens.
    pub ids: SpecialIds,
    /// `add_bos_token`; if absent the pre-tokenizer decides, and SentencePiece adds it.
    pub add_bos: Option<bool>,
    /// `add_eos_token`: whether raw prompts end with EOS; they do not if absent.
    pub add_eos: Option<bool>,
    /// `add_space_prefix`: whether SentencePiece puts a space in front of text; it does if absent.
    pub add_space_prefix: Option<bool>,
}

/// Special tokens, by the key that names them.
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs)]
pub struct SpecialIds {
    pub bos: Option<u32>,
    pub eos: Option<u32>,
    pub eot: Option<u32>,
    pub eom: Option<u32>,
    pub unk: Option<u32>,
    pub fim_pad: Option<u32>,
    pub fim_rep: Option<u32>,
    pub fim_sep: Option<u32>,
}

const BOS: &str = "tokenizer.ggml.bos_token_id";
const EOS: &str = "tokenizer.ggml.eos_token_id";
const EOT: &str = "tokenizer.ggml.eot_token_id";
const EOM: &str = "tokenizer.ggml.eom_token_id";
const UNK: &str = "tokenizer.ggml.unknown_token_id";
const FIM_PAD: &str = "tokenizer.ggml.fim_pad_token_id";
const FIM_REP: &str = "tokenizer.ggml.fim_rep_token_id";
const FIM_SEP: &str = "tokenizer.ggml.fim_sep_token_id";

impl TokenizerSpec {
    /// Reads the keys.
    ///
    /// # Errors
    /// If one that is needed is absent, or one is of the wrong type.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self, GgufError> {
        let strings = |key| Ok(gguf.str_array(key)?.map(str::to_owned).collect::<Vec<_>>());
        let model = gguf.str("tokenizer.ggml.model")?.to_owned();
        let pieces = model == "llama";
        Ok(Self {
            pre: if pieces { String::new() } else { gguf.str("tokenizer.ggml.pre")?.to_owned() },
            tokens: strings("tokenizer.ggml.tokens")?,
            types: gguf.opt_i32_array("tokenizer.ggml.token_type")?,
            scores: if pieces { gguf.opt_f32_array("tokenizer.ggml.scores")? } else { None },
            merges: if pieces { Vec::new() } else { strings("tokenizer.ggml.merges")? },
            model,
            ids: SpecialIds {
                bos: gguf.opt_u32(BOS)?,
                eos: gguf.opt_u32(EOS)?,
                eot: gguf.opt_u32(EOT)?,
                eom: gguf.opt_u32(EOM)?,
                unk: gguf.opt_u32(UNK)?,
                fim_pad: gguf.opt_u32(FIM_PAD)?,
                fim_rep: gguf.opt_u32(FIM_REP)?,
                fim_sep: gguf.opt_u32(FIM_SEP)?,
            },
            add_bos: gguf.opt_bool("tokenizer.ggml.add_bos_token")?,
            add_eos: gguf.opt_bool("tokenizer.ggml.add_eos_token")?,
            add_space_prefix: gguf.opt_bool("tokenizer.ggml.add_space_prefix")?,
        })
    }
}

impl SpecialIds {
    /// With SentencePiece's own order of special tokens where no key names them.
    pub(super) fn or_sentencepiece(self, count: usize) -> Self {
        let or = |named: Option<u32>, usual: u32| named.or(Some(usual).filter(|&id| (id as usize) < count));
        Self { unk: or(self.unk, 0), bos: or(self.bos, 1), eos: or(self.eos, 2), ..self }
    }

    /// All of them are among `count` tokens.
    pub(super) fn check(&self, count: usize) -> Result<(), TokenizerError> {
        let all = [
            (BOS, self.bos),
            (EOS, self.eos),
            (EOT, self.eot),
            (EOM, self.eom),
            (UNK, self.unk),
            (FIM_PAD, self.fim_pad),
            (FIM_REP, self.fim_rep),
            (FIM_SEP, self.fim_sep),
        ];
        match all.into_iter().find_map(|(key, id)| id.filter(|&id| id as usize >= count).map(|id| (key, id)))
        {
            Some((key, id)) => Err(TokenizerError::SpecialId { key, id, count }),
            None => Ok(()),
        }
    }
}
