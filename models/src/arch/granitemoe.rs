//! `granitemoe`: Granite 3 with experts (1B-A400M, 3B-A800M).
//!
//! Embeddings, residuals, attention and logits have factors of their own. Pairs (2i, 2i+1) rotate. Experts in every
//! block: softmax over all, the chosen weights normalised; some files have one that every token takes.

use super::Architecture;
use super::plan::{Experts, Plan, Shared};
use crate::backend::RopeStyle;

pub(super) const ARCHITECTURE: Architecture = Architecture {
    name: "granitemoe",
    models: "Granite 3 1B-A400M, 3B-A800M",
    plan: Plan {
        rope: RopeStyle::Normal,
        experts: Some(Experts { inner: "feed_forward_length", shared: Shared::Wide, ..Experts::PLAIN }),
        scales: true,
        ..Plan::PLAIN
    },
};
