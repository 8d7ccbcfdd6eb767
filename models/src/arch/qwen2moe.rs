//! `qwen2moe`: Qwen1.5-MoE-A2.7B and Qwen2-57B-A14B.
//!
//! As `qwen2` with experts in every block: softmax over all, the chosen weights as they are; beside them one expert
//! that every token takes, times the sigmoid of a product of its own.

use super::Architecture;
use super::plan::{Attention, Experts, Gate, Heads, Plan, Shared};
use crate::backend::Gating;

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "qwen2moe",
    models: "Qwen1.5-MoE, Qwen2-57B-A14B",
    plan: Plan {
        attention: Attention::Heads(Heads { biases: true, ..Heads::PLAIN }),
        experts: Some(Experts {
            gating: Gate::Fixed { gating: Gating::Softmax, normalise: false },
            shared: Shared::Gated,
            ..Experts::PLAIN
        }),
        ..Plan::PLAIN
    },
};
