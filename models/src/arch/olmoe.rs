//! `olmoe`: OLMoE-1B-7B.
//!
//! Queries and keys are normed over all heads together. Experts in every block: softmax over all, the chosen weights
//! as they are.

use super::Architecture;
use super::plan::{Attention, Experts, Gate, Heads, Norms, Plan};
use crate::backend::Gating;

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "olmoe",
    models: "OLMoE-1B-7B",
    plan: Plan {
        attention: Attention::Heads(Heads { norms: Norms::Whole, ..Heads::PLAIN }),
        experts: Some(Experts {
            inner: "feed_forward_length",
            gating: Gate::Fixed { gating: Gating::Softmax, normalise: false },
            ..Experts::PLAIN
        }),
        ..Plan::PLAIN
    },
};
