//! What distinguishes one architecture from another. What is not in its plan, an architecture does not have.

use crate::backend::{Activation, Gating, RopeStyle};

/// An architecture's plan.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    /// Which values of a head rotate together.
    pub rope: RopeStyle,
    /// YaRN's ramp begins and ends at whole pairs, as most published models were made.
    pub yarn_whole: bool,
    /// How tokens look at each other.
    pub attention: Attention,
    /// The norm before feed-forward.
    pub ffn_norm: &'static str,
    /// None: every block is dense.
    pub experts: Option<Experts>,
    /// `embedding_scale`, `residual_scale`, `attention.scale` and `logit_scale` are honoured.
    pub scales: bool,
    /// The last `nextn_predict_layers` blocks predict further tokens; decoding token by token skips them.
    pub nextn: bool,
}

impl Plan {
    /// Attention and feed-forward without anything that has a name of its own.
    pub(super) const PLAIN: Self = Self {
        rope: RopeStyle::Neox,
        yarn_whole: true,
        attention: Attention::Heads(Heads::PLAIN),
        ffn_norm: "ffn_norm",
        experts: None,
        scales: false,
        nextn: false,
    };
}

/// How tokens look at each other.
#[derive(Clone, Copy, Debug)]
pub(super) enum Attention {
    /// Keys and values of each head.
    Heads(Heads),
    /// Multi-head latent attention.
    Latent,
}

/// Attention with keys and values of each head.
#[derive(Clone, Copy, Debug)]
pub(super) struct Heads {
    /// Queries, keys and values have biases.
    pub biases: bool,
    /// So has the projection back.
    pub out_bias: bool,
    /// Norms of queries and keys.
    pub norms: Norms,
    /// Each query head has a logit without a value.
    pub sinks: bool,
    /// Blocks 0, 2, .. see `attention.sliding_window` positions, the others all.
    pub windows: bool,
}

impl Heads {
    /// Projections alone.
    pub(super) const PLAIN: Self =
        Self { biases: false, out_bias: false, norms: Norms::None, sinks: false, windows: false };
}

/// Norms of queries and keys before they are rotated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Norms {
    None,
    /// Each head by itself.
    PerHead,
    /// The same where a block has the tensors.
    PerHeadIfPresent,
    /// All heads together.
    Whole,
}

/// Feed-forward of experts.
#[derive(Clone, Copy, Debug)]
pub(super) struct Experts {
    /// None of them, where `expert_count` is 0 or missing.
    pub optional: bool,
    /// The key that gives an expert's inner size.
    pub inner: &'static str,
    /// From logits to weights.
    pub gating: Gate,
    /// Beside the routed ones, one that every token takes.
    pub shared: Shared,
    /// The first `leading_dense_block_count` blocks are dense.
    pub dense_lead: bool,
    /// Router and experts have biases.
    pub biases: bool,
    /// On gate and up.
    pub activation: Activation,
}

impl Experts {
    /// Softmax over all in every block, the chosen weights normalised.
    pub(super) const PLAIN: Self = Self {
        optional: false,
        inner: "expert_feed_forward_length",
        gating: Gate::Fixed { gating: Gating::Softmax, normalise: true },
        shared: Shared::None,
        dense_lead: false,
        biases: false,
        activation: Activation::Silu,
    };
}

/// Who says how a router's logits become weights.
#[derive(Clone, Copy, Debug)]
pub(super) enum Gate {
    /// The architecture.
    Fixed {
        /// From logits to weights.
        gating: Gating,
        /// Divide the chosen weights by their sum.
        normalise: bool,
    },
    /// `expert_gating_func` (where it is missing sigmoid if there is a bias for it, else this), `expert_weights_norm`,
    /// `expert_weights_scale`, and the keys of groups.
    Stated(Gating),
}

/// The expert that every token takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shared {
    None,
    /// `expert_shared_feed_forward_length` wide, times the sigmoid of a product.
    Gated,
    /// `expert_shared_feed_forward_length` wide; none where that is 0 or missing.
    Wide,
    /// As wide as `expert_shared_count` experts; none where that is 0 or missing.
    Counted,
}
