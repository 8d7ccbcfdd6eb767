//! `llama`: Llama, Mistral, SmolLM2 and their kin; with `expert_count` > 0, Mixtral.
//!
//! Pairs (2i, 2i+1) rotate, `rope_freqs.weight` divides frequencies (Llama 3.1). Experts: softmax over all, the
//! chosen weights normalised. The head is the embedding where there is no `output.weight`.

use super::Architecture;
use super::plan::{Experts, Plan};
use crate::backend::RopeStyle;

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "llama",
    models: "Llama, Mistral, SmolLM2; with experts Mixtral",
    plan: Plan {
        rope: RopeStyle::Normal,
        experts: Some(Experts { optional: true, inner: "feed_forward_length", ..Experts::PLAIN }),
        ..Plan::PLAIN
    },
};
