//! Byte-level BPE: words in the byte alphabet, whose pairs are merged in the order of the file's merges.

use std::collections::{HashMap, HashSet};

use tokenizers::Model;
use tokenizers::models::bpe::{BPE, Vocab};

use super::pretokenize::PreTokenizer;
use super::{Kind, TokenizerError, bytes};
use crate::step::TokenId;

pub(super) struct ByteLevel {
    pre: PreTokenizer,
    bpe: BPE,
    /// Whether the vocabulary has the byte. Text bytes it lacks are left out, as llama.cpp does.
    has_byte: [bool; 256],
}

impl ByteLevel {
    pub(super) fn new(
        pre: PreTokenizer,
        by_text: &HashMap<&str, TokenId>,
        kinds: &[Kind],
        merges: &[String],
    ) -> Result<Self, TokenizerError> {
        let vocab: Vocab = by_text
            .iter()
            .filter(|(_, id)| matches!(kinds[id.0 as usize], Kind::Normal | Kind::UserDefined))
            .map(|(&text, id)| (text.to_owned(), id.0))
            .collect();
        let has_byte = std::array::from_fn(|b| {
            u8::try_from(b)
                .is_ok_and(|b| vocab.contains_key(bytes::char_of(b).encode_utf8(&mut [0; 4]) as &str))
        });
        let merges = self::merges(merges, &vocab)?;
        let bpe = BPE::builder()
            .vocab_and_merges(vocab, merges)
            .ignore_merges(pre.whole_words)
            .build()
            .map_err(TokenizerError::Build)?;
        Ok(Self { pre, bpe, has_byte })
    }

    /// Appends the tokens of `text`.
    pub(super) fn encode(&self, text: &str, out: &mut Vec<TokenId>) -> Result<(), TokenizerError> {
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
}

/// Texts that merges make.
pub(super) fn merged(merges: &[String]) -> HashSet<String> {
    merges.iter().filter_map(|m| split_merge(m)).map(|(a, b)| format!("{a}{b}")).collect()
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
