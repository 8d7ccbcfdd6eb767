//! The tensor table, added up: what kinds of tensors there are, in which formats, and what a token needs of them.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::gguf::{Gguf, TensorInfo};

/// What a tensor is for, as its name in GGUF files says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum TensorKind {
    Embedding,
    Attention,
    Router,
    Experts,
    SharedExperts,
    FeedForward,
    Norms,
    Output,
    /// Of blocks that predict further tokens, which decoding token by token skips.
    NextTokens,
    Other,
}

impl TensorKind {
    /// `blocks` run, if it is known how many.
    pub(super) fn of(name: &str, blocks: Option<u32>) -> Self {
        let within = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
        let part = within.map_or(name, |(_, part)| part);
        let block = within.and_then(|(block, _)| block.parse::<u32>().ok());
        match part {
            _ if block.zip(blocks).is_some_and(|(block, blocks)| block >= blocks) => Self::NextTokens,
            _ if part.contains("_norm") => Self::Norms,
            _ if part.starts_with("token_embd.") => Self::Embedding,
            _ if part.starts_with("output.") => Self::Output,
            _ if part.contains("_exps.") => Self::Experts,
            _ if part.contains("_shexp.") => Self::SharedExperts,
            _ if part.starts_with("ffn_gate_inp.") || part.starts_with("exp_probs_b.") => Self::Router,
            _ if part.starts_with("attn_") => Self::Attention,
            _ if part.starts_with("ffn_") => Self::FeedForward,
            _ => Self::Other,
        }
    }

    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Self::Embedding => "embedding",
            Self::Attention => "attention",
            Self::Router => "router",
            Self::Experts => "experts",
            Self::SharedExperts => "shared experts",
            Self::FeedForward => "feed-forward",
            Self::Norms => "norms",
            Self::Output => "output",
            Self::NextTokens => "next tokens (unused)",
            Self::Other => "other",
        }
    }
}

/// All tensors of one kind and format.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct WeightRow {
    /// What they are for.
    pub kind: TensorKind,
    /// The format's name in GGUF tools.
    pub format: String,
    /// Whether Frugal reads it.
    pub supported: bool,
    /// How many.
    pub tensors: u64,
    /// Elements in all of them.
    pub parameters: u64,
    /// None if the format's size is not known.
    pub bytes: Option<u64>,
    /// None as for `bytes`.
    pub bits_per_weight: Option<f64>,
}

/// Experts of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Experts {
    /// That a router chooses from.
    pub count: u32,
    /// That a token uses.
    pub used: u32,
    /// That every token uses besides.
    pub shared: u32,
}

impl Experts {
    /// Of so much in all experts, what a token uses.
    fn share(self, all: u64) -> u64 {
        let used = u128::from(all) * u128::from(self.used) / u128::from(self.count.max(1));
        u64::try_from(used).unwrap_or(u64::MAX)
    }
}

/// Sums over the tensor table. Sums of what a file claims saturate.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Census {
    pub(super) rows: Vec<WeightRow>,
    pub(super) parameters: u64,
    pub(super) active: u64,
    /// Of known formats.
    pub(super) bytes: u64,
    /// Read for one token of one sequence.
    pub(super) bytes_per_token: u64,
    /// There is no tensor for the output: it is the embedding.
    pub(super) tied: bool,
}

impl Census {
    /// `blocks` as for [`TensorKind`]s.
    pub(super) fn new(gguf: &Gguf, experts: Option<Experts>, blocks: Option<u32>) -> Self {
        let mut rows: BTreeMap<(TensorKind, u32), WeightRow> = BTreeMap::new();
        let tied = gguf.tensor("output.weight").is_none();
        let mut census = Self { tied, ..Self::default() };
        for tensor in gguf.tensors() {
            let kind = TensorKind::of(&tensor.name, blocks);
            let elements = tensor.elements();
            let row = rows.entry((kind, tensor.type_id)).or_insert_with(|| WeightRow {
                kind,
                format: tensor.type_name(),
                supported: tensor.ty().is_some(),
                tensors: 0,
                parameters: 0,
                bytes: tensor.ty().map(|_| 0),
                bits_per_weight: None,
            });
            row.tensors += 1;
            row.parameters = row.parameters.saturating_add(elements);
            row.bytes = row.bytes.zip(tensor.bytes()).map(|(sum, bytes)| sum.saturating_add(bytes));
            census.add(tensor, kind, experts);
        }
        census.rows = rows.into_values().map(with_bits).collect();
        census
    }

    fn add(&mut self, tensor: &TensorInfo, kind: TensorKind, experts: Option<Experts>) {
        let (elements, bytes) = (tensor.elements(), tensor.bytes().unwrap_or(0));
        let (active, read) = match (kind, experts) {
            (TensorKind::NextTokens, _) => (0, 0),
            (TensorKind::Experts, Some(experts)) => (experts.share(elements), experts.share(bytes)),
            // A token's row, unless the whole table is multiplied as well.
            (TensorKind::Embedding, _) if !self.tied => (elements, bytes / tensor.dims[1].max(1)),
            _ => (elements, bytes),
        };
        self.parameters = self.parameters.saturating_add(elements);
        self.active = self.active.saturating_add(active);
        self.bytes = self.bytes.saturating_add(bytes);
        self.bytes_per_token = self.bytes_per_token.saturating_add(read);
    }
}

fn with_bits(row: WeightRow) -> WeightRow {
    let bits = |bytes: u64| (bytes as f64 * 800.0 / row.parameters as f64).round() / 100.0;
    WeightRow { bits_per_weight: row.bytes.map(bits), ..row }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_what_tensors_are_for() {
        let check = |kind: TensorKind, names: &[&str]| {
            for name in names {
                assert_eq!(TensorKind::of(name, Some(13)), kind, "{name}");
            }
        };
        check(TensorKind::Embedding, &["token_embd.weight"]);
        check(TensorKind::Output, &["output.weight", "output.bias"]);
        check(
            TensorKind::Norms,
            &["output_norm.weight", "blk.3.attn_norm.weight", "blk.0.attn_q_norm.weight"],
        );
        check(
            TensorKind::Attention,
            &["blk.3.attn_q.weight", "blk.12.attn_k.bias", "blk.0.attn_kv_a_mqa.weight"],
        );
        check(TensorKind::Router, &["blk.3.ffn_gate_inp.weight", "blk.3.exp_probs_b.bias"]);
        check(TensorKind::Experts, &["blk.3.ffn_gate_exps.weight", "blk.0.ffn_down_exps.bias"]);
        check(TensorKind::SharedExperts, &["blk.3.ffn_up_shexp.weight", "blk.3.ffn_gate_inp_shexp.weight"]);
        check(TensorKind::FeedForward, &["blk.3.ffn_up.weight"]);
        check(TensorKind::NextTokens, &["blk.13.nextn.eh_proj.weight", "blk.13.attn_q.weight"]);
        assert_eq!(TensorKind::of("blk.13.attn_q.weight", None), TensorKind::Attention);
        check(TensorKind::Other, &["rope_freqs.weight", "blk.3", "", "blk..", "v.patch.weight"]);
    }

    #[test]
    fn a_share_of_anything_is_in_range() {
        let experts = |count, used| Experts { count, used, shared: 0 };
        assert_eq!(experts(128, 8).share(1 << 40), 1 << 36);
        assert_eq!(experts(3, 2).share(u64::MAX), 12_297_829_382_473_034_410);
        assert_eq!(experts(0, u32::MAX).share(u64::MAX), u64::MAX);
    }
}
