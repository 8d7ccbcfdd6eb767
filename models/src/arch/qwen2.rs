//! `qwen2`: Qwen2 and Qwen2.5, dense.
//!
//! Queries, keys and values have biases.

use super::Architecture;
use super::plan::{Attention, Heads, Plan};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "qwen2",
    models: "Qwen2, Qwen2.5",
    plan: Plan { attention: Attention::Heads(Heads { biases: true, ..Heads::PLAIN }), ..Plan::PLAIN },
};
