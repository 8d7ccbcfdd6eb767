//! `deepseek2`: DeepSeek V2, V2-Lite, V3, R1 and V3.1, Kimi K2 and others built like them.
//!
//! Latent attention. The first blocks are dense; experts are chosen by softmax (V2) or by sigmoids with a bias (V3, and
//! whatever has such a bias but does not state its gating: GLM-4.7-Flash), possibly from the best groups, beside them some
//! that every token takes. Blocks at the end that predict further tokens, which few files have, are skipped.

use super::Architecture;
use super::plan::{Attention, Experts, Gate, Plan, Shared};
use crate::backend::{Gating, RopeStyle};

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "deepseek2",
    models: "DeepSeek V2, V2-Lite, V3, R1, V3.1; Kimi K2, GLM-4.7-Flash",
    plan: Plan {
        rope: RopeStyle::Normal,
        attention: Attention::Latent,
        experts: Some(Experts {
            gating: Gate::Stated(Gating::Softmax),
            shared: Shared::Counted,
            dense_lead: true,
            ..Experts::PLAIN
        }),
        nextn: true,
        ..Plan::PLAIN
    },
};
