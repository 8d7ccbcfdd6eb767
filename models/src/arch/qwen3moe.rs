//! `qwen3moe`: Qwen3 with experts (30B-A3B, 235B-A22B, Coder).
//!
//! As `qwen3` with experts in every block: softmax over all, the chosen weights normalised.

use super::Architecture;
use super::plan::{Attention, Experts, Heads, Norms, Plan};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "qwen3moe",
    models: "Qwen3-30B-A3B, Qwen3-235B-A22B, Qwen3-Coder",
    plan: Plan {
        attention: Attention::Heads(Heads { norms: Norms::PerHead, ..Heads::PLAIN }),
        experts: Some(Experts::PLAIN),
        ..Plan::PLAIN
    },
};
