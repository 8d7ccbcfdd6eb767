//! `llama`: Llama, Mistral, SmolLM2 and their kin; with `expert_count` > 0, Mixtral.
//!
//! Pairs (2i, 2i+1) rotate, `rope_freqs.weight` divides frequencies (Llama 3.1). Experts: softmax over all, the
//! chosen weights renormalised. The head is the embedding where there is no `output.weight`.

use super::decoder::{self, Experts, Plan};
use super::{LoadError, Model, Shape};
use crate::backend::{Backend, RopeStyle};
use crate::gguf::Gguf;

const PLAN: Plan = Plan {
    rope: RopeStyle::Normal,
    head_norms: false,
    expert_inner: "feed_forward_length",
    experts: Experts::Optional,
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
