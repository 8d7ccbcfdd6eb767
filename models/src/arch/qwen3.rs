//! `qwen3`: Qwen3, dense.
//!
//! Queries and keys are normed per head before they are rotated.

use super::Architecture;
use super::plan::{Attention, Heads, Norms, Plan};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "qwen3",
    models: "Qwen3 0.6B to 32B",
    plan: Plan {
        attention: Attention::Heads(Heads { norms: Norms::PerHead, ..Heads::PLAIN }),
        ..Plan::PLAIN
    },
};
