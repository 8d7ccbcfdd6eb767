//! `glm4moe`: GLM-4.5 and GLM-4.5-Air, GLM-4.6.
//!
//! Part of each head rotates, after norms in the larger models. Queries, keys and values have biases. The first blocks
//! are dense; experts are chosen by sigmoids with a bias, beside them some that every token takes. The last block
//! predicts a further token and is skipped.

use super::Architecture;
use super::plan::{Attention, Experts, Gate, Heads, Norms, Plan, Shared};
use crate::backend::Gating;

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "glm4moe",
    models: "GLM-4.5, GLM-4.5-Air, GLM-4.6",
    plan: Plan {
        attention: Attention::Heads(Heads { biases: true, norms: Norms::PerHeadIfPresent, ..Heads::PLAIN }),
        ffn_norm: "post_attention_norm",
        experts: Some(Experts {
            gating: Gate::Stated(Gating::Sigmoid),
            shared: Shared::Counted,
            dense_lead: true,
            ..Experts::PLAIN
        }),
        nextn: true,
        ..Plan::PLAIN
    },
};
