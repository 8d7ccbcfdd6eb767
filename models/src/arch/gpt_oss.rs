//! `gpt-oss`: gpt-oss-20b and gpt-oss-120b.
//!
//! Every other block, the first included, sees a window. Each head has a sink, every projection a bias. Experts in
//! every block: softmax over the chosen, a clamped activation. YaRN's ramp is not rounded, as the published configuration
//! says (`"truncate": false`); llama.cpp rounds it.

use super::Architecture;
use super::plan::{Attention, Experts, Gate, Heads, Plan};
use crate::backend::{Activation, Gating};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "gpt-oss",
    models: "gpt-oss-20b, gpt-oss-120b",
    plan: Plan {
        yarn_whole: false,
        attention: Attention::Heads(Heads {
            biases: true,
            out_bias: true,
            sinks: true,
            windows: true,
            ..Heads::PLAIN
        }),
        ffn_norm: "post_attention_norm",
        experts: Some(Experts {
            gating: Gate::Fixed { gating: Gating::ChosenSoftmax, normalise: false },
            biases: true,
            activation: Activation::ClampedSwiglu,
            ..Experts::PLAIN
        }),
        ..Plan::PLAIN
    },
};
