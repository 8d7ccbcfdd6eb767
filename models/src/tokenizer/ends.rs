//! Which tokens end generation. Files name one or two of them; the others are known by their text, as in llama.cpp.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::{Kind, SpecialIds};
use crate::step::TokenId;

/// Texts that end generation in every vocabulary that has them.
const ENDS: &[&str] = &[
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
];

/// Texts of the fill-in-the-middle tokens that end generation, where no key names them.
const FIM_PAD: &[&str] = &["<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"];
const FIM_REP: &[&str] = &["<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"];
const FIM_SEP: &[&str] = &["<|file_sep|>"];

/// Makes control tokens of those that only a mistake in conversion left ordinary: no merge makes them.
pub(super) fn override_kinds(by_text: &HashMap<&str, TokenId>, kinds: &mut [Kind], merged: &HashSet<String>) {
    for text in [ENDS, FIM_PAD, FIM_REP, FIM_SEP].into_iter().flatten() {
        if let Some(id) = by_text.get(text)
            && !merged.contains(*text)
        {
            kinds[id.0 as usize] = Kind::Control;
        }
    }
}

/// The end tokens, in order of their ids.
pub(super) fn end_tokens(by_text: &HashMap<&str, TokenId>, kinds: &[Kind], ids: &SpecialIds) -> Vec<TokenId> {
    let control =
        |text: &&str| by_text.get(*text).copied().filter(|id| kinds[id.0 as usize] == Kind::Control);
    let fim =
        |named: Option<u32>, texts: &[&str]| named.map(TokenId).or_else(|| texts.iter().find_map(control));
    let mut ends: BTreeSet<TokenId> = ENDS.iter().filter_map(control).collect();
    ends.extend(fim(ids.fim_pad, FIM_PAD));
    ends.extend(fim(ids.fim_rep, FIM_REP));
    ends.extend(fim(ids.fim_sep, FIM_SEP));
    // Where a call and a return end a turn, `<|end|>` only ends a message within it.
    let has = |text: &str| control(&text).is_some();
    if (has("<|call|>") || has("<|calls|>")) && (has("<|return|>") || has("<|flush|>")) {
        ends.retain(|id| Some(*id) != control(&"<|end|>"));
    }
    ends.extend([ids.eos, ids.eot, ids.eom].into_iter().flatten().map(TokenId));
    ends.into_iter().collect()
}
