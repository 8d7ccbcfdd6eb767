//! What a model file says of its tokenizer, as plain data.

use super::TokenizerError;
use crate::gguf::{Gguf, GgufError};

/// The `tokenizer.ggml.*` keys that matter to byte-level BPE.
#[derive(Clone, Debug, Default)]
pub struct TokenizerSpec {
    /// `model`: the kind of tokenizer.
    pub model: String,
    /// `pre`: how text is cut into words.
    pub pre: String,
    /// `tokens`: their texts, in the byte alphabet if they are ordinary.
    pub tokens: Vec<String>,
    /// `token_type`: one per token; all ordinary if absent.
    pub types: Option<Vec<i32>>,
    /// `merges`: two tokens with a space between, the first to be merged first.
    pub merges: Vec<String>,
    /// Ids of special tokens.
    pub ids: SpecialIds,
    /// `add_bos_token`; if absent the pre-tokenizer decides.
    pub add_bos: Option<bool>,
}

/// Special tokens, by the key that names them.
#[derive(Clone, Copy, Debug, Default)]
#[allow(missing_docs)]
pub struct SpecialIds {
    pub bos: Option<u32>,
    pub eos: Option<u32>,
    pub eot: Option<u32>,
    pub eom: Option<u32>,
    pub fim_pad: Option<u32>,
    pub fim_rep: Option<u32>,
    pub fim_sep: Option<u32>,
}

const BOS: &str = "tokenizer.ggml.bos_token_id";
const EOS: &str = "tokenizer.ggml.eos_token_id";
const EOT: &str = "tokenizer.ggml.eot_token_id";
const EOM: &str = "tokenizer.ggml.eom_token_id";
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
        Ok(Self {
            model: gguf.str("tokenizer.ggml.model")?.to_owned(),
            pre: gguf.str("tokenizer.ggml.pre")?.to_owned(),
            tokens: strings("tokenizer.ggml.tokens")?,
            types: gguf.opt_i32_array("tokenizer.ggml.token_type")?,
            merges: strings("tokenizer.ggml.merges")?,
            ids: SpecialIds {
                bos: gguf.opt_u32(BOS)?,
                eos: gguf.opt_u32(EOS)?,
                eot: gguf.opt_u32(EOT)?,
                eom: gguf.opt_u32(EOM)?,
                fim_pad: gguf.opt_u32(FIM_PAD)?,
                fim_rep: gguf.opt_u32(FIM_REP)?,
                fim_sep: gguf.opt_u32(FIM_SEP)?,
            },
            add_bos: gguf.opt_bool("tokenizer.ggml.add_bos_token")?,
        })
    }
}

impl SpecialIds {
    /// All of them are among `count` tokens.
    pub(super) fn check(&self, count: usize) -> Result<(), TokenizerError> {
        let all = [
            (BOS, self.bos),
            (EOS, self.eos),
            (EOT, self.eot),
            (EOM, self.eom),
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
