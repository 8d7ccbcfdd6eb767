//! `qwen3moe`: Qwen3 with experts (30B-A3B, 235B-A22B, Coder).
//!
//! Pairs (i, i + n/2) rotate, after queries and keys were normed per head. Every block has experts: softmax over
//! all, the chosen weights renormalised.

use super::decoder::{self, Experts, Plan};
use super::{LoadError, Model, Shape};
use crate::backend::{Backend, RopeStyle};
use crate::gguf::Gguf;

const PLAN: Plan = Plan {
    rope: RopeStyle::Neox,
    head_norms: true,
    expert_inner: "expert_feed_forward_length",
    experts: Experts::Required,
};

pub(super) fn shape(gguf: &Gguf) -> Result<Shape, LoadError> {
    decoder::shape(gguf, &PLAN)
}

pub(super) fn load<B: Backend + 'static>(
    gguf: &Gguf,
    backend: &mut B,
) -> Result<Box<dyn Model<B>>, LoadError> {
    decoder::load(gguf, backend, &PLAN)
}
