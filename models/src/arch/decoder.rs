//! The decoder that most models are: attention and gated feed-forward, each behind a norm and added back.
//!
//! An architecture states its [`Plan`]; what is not in the plan it does not have.

use super::keys::{Keys, Neutral};
use super::tensors::Tensors;
use super::{CacheShape, LoadError, Model, Shape};
use crate::backend::{
    Activation, AttendSpec, Backend, BackendError, Batch, Gated, Gating, Rope, RopeStyle, RouteSpec, Router,
};
use crate::gguf::Gguf;
use crate::step::GroupKind;

/// What distinguishes one architecture from another.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    /// Which values of a head rotate together.
    pub rope: RopeStyle,
    /// Queries and keys are normed per head before they are rotated.
    pub head_norms: bool,
    /// The key that gives the inner size of an expert.
    pub expert_inner: &'static str,
    /// Whether feed-forward may be, or is, of experts.
    pub experts: Experts,
}

/// Whether an architecture has experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Experts {
    /// If `expert_count` says so.
    Optional,
    /// Always.
    Required,
}

/// Validated hyperparameters.
#[derive(Clone, Debug)]
struct Hyper {
    vocab: u32,
    context: u32,
    hidden: u32,
    layers: u32,
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
    /// Inner size of the feed-forward, of one expert if there are experts.
    inner: u32,
    /// Experts, and how many a token uses.
    experts: Option<(u32, u32)>,
    eps: f32,
}

impl Hyper {
    fn read(gguf: &Gguf, keys: &Keys<'_>, plan: &Plan) -> Result<Self, LoadError> {
        let context = keys.size("context_length")?;
        keys.refuse_unless_neutral(&neutral(context))?;
        let hidden = keys.size("embedding_length")?;
        let layers = keys.size("block_count")?;
        if layers as usize > gguf.tensors().len() {
            return Err(keys.bad("block_count", layers, "the file has fewer tensors"));
        }
        let heads = keys.count("attention.head_count")?;
        let kv_heads = keys.opt_count("attention.head_count_kv")?.unwrap_or(heads);
        if heads % kv_heads != 0 {
            let why = format!("it does not divide attention.head_count, {heads}");
            return Err(keys.bad("attention.head_count_kv", kv_heads, why));
        }
        let head_dim = match keys.opt_count("attention.key_length")? {
            Some(dim) => dim,
            None if hidden % heads == 0 => hidden / heads,
            None => {
                let why =
                    format!("it is no multiple of attention.head_count, {heads}, and there is no key_length");
                return Err(keys.bad("embedding_length", hidden, why));
            }
        };
        if let Some(value_dim) = keys.opt_count("attention.value_length")?
            && value_dim != head_dim
        {
            let why = format!("it must equal the key's, {head_dim}");
            return Err(keys.bad("attention.value_length", value_dim, why));
        }
        let experts = Self::read_experts(gguf, keys, plan)?;
        let inner = keys.size(if experts.is_some() { plan.expert_inner } else { "feed_forward_length" })?;
        let vocab = Self::read_vocab(gguf)?;
        let eps = keys.positive("attention.layer_norm_rms_epsilon")?;
        Ok(Self { vocab, context, hidden, layers, heads, kv_heads, head_dim, inner, experts, eps })
    }

    fn read_experts(gguf: &Gguf, keys: &Keys<'_>, plan: &Plan) -> Result<Option<(u32, u32)>, LoadError> {
        // Files of dense models may say `expert_count` 0.
        let count = gguf.opt_u32(&keys.name("expert_count"))?;
        if plan.experts == Experts::Optional && count.unwrap_or(0) == 0 {
            return Ok(None);
        }
        let count = keys.count("expert_count")?;
        let used = keys.count("expert_used_count")?;
        if used > count {
            return Err(keys.bad("expert_used_count", used, format!("there are {count} experts")));
        }
        Ok(Some((count, used)))
    }

    fn read_vocab(gguf: &Gguf) -> Result<u32, LoadError> {
        let name = "token_embd.weight";
        let rows = gguf.view(name)?.rows;
        let bad = |why: String| LoadError::BadTensor { tensor: name.to_owned(), why };
        let vocab = u32::try_from(rows).map_err(|_| bad(format!("has {rows} rows")))?;
        let tokens = gguf.opt_str_array("tokenizer.ggml.tokens")?.map_or(0, |tokens| tokens.len());
        if tokens > rows {
            return Err(bad(format!("has {rows} rows, but the tokenizer has {tokens} tokens")));
        }
        Ok(vocab)
    }

    /// Width of all heads together. Counts are at most 2^16 each.
    fn wide(heads: u32, head_dim: u32, keys: &Keys<'_>) -> Result<u32, LoadError> {
        heads.checked_mul(head_dim).ok_or_else(|| {
            keys.bad("attention.head_count", heads, format!("its heads have {head_dim} values"))
        })
    }
}

/// Keys that other variants of these architectures use, and what they are when they change nothing.
fn neutral(context: u32) -> [(&'static str, Neutral); 19] {
    [
        ("attention.sliding_window", Neutral::AtLeast(context)),
        ("attention.scale", Neutral::Zero),
        ("attention.clamp_kqv", Neutral::Zero),
        ("attention.max_alibi_bias", Neutral::Zero),
        ("attention.causal", Neutral::True),
        ("attn_logit_softcapping", Neutral::Zero),
        ("final_logit_softcapping", Neutral::Zero),
        ("embedding_scale", Neutral::One),
        ("residual_scale", Neutral::One),
        ("logit_scale", Neutral::One),
        ("use_parallel_residual", Neutral::False),
        ("rope.scaling.attn_factor", Neutral::One),
        ("expert_shared_count", Neutral::Zero),
        ("expert_weights_scale", Neutral::One),
        ("expert_weights_norm", Neutral::True),
        ("expert_gating_func", Neutral::Softmax),
        ("expert_group_count", Neutral::AtMostOne),
        ("leading_dense_block_count", Neutral::Zero),
        ("nextn_predict_layers", Neutral::Zero),
    ]
}

/// Checks the metadata.
pub(super) fn shape(gguf: &Gguf, plan: &Plan) -> Result<Shape, LoadError> {
    let keys = Keys::new(gguf)?;
    let hyper = Hyper::read(gguf, &keys, plan)?;
    let (kv_heads, dim) = (hyper.kv_heads, hyper.head_dim);
    let cache =
        CacheShape { kind: GroupKind::Full, layers: hyper.layers, kv_heads, key_dim: dim, value_dim: dim };
    let weight_bytes = gguf.tensors().iter().filter_map(|t| t.bytes()).sum();
    Ok(Shape { vocab: hyper.vocab, context: hyper.context, cache: vec![cache], weight_bytes })
}

/// A loaded decoder.
struct Decoder<B: Backend> {
    embedding: B::Weight,
    blocks: Vec<Block<B>>,
    norm: B::Vector,
    head: B::Weight,
    rope: Rope,
    attend: AttendSpec,
    eps: f32,
}

struct Block<B: Backend> {
    attn_norm: B::Vector,
    q: B::Weight,
    k: B::Weight,
    v: B::Weight,
    /// Of queries and keys, per head.
    head_norms: Option<[B::Vector; 2]>,
    out: B::Weight,
    ffn_norm: B::Vector,
    /// None if dense.
    router: Option<(B::Weight, RouteSpec)>,
    gate: B::Weight,
    up: B::Weight,
    down: B::Weight,
}

/// Checks and loads the tensors.
pub(super) fn load<B: Backend + 'static>(
    gguf: &Gguf,
    backend: &mut B,
    plan: &Plan,
) -> Result<Box<dyn Model<B>>, LoadError> {
    let keys = Keys::new(gguf)?;
    let hyper = Hyper::read(gguf, &keys, plan)?;
    let tensors = Tensors::new(gguf);
    let factors = tensors.opt_floats("rope_freqs.weight")?;
    let rope = keys.rope(plan.rope, hyper.head_dim, factors.as_deref())?;
    let q_width = Hyper::wide(hyper.heads, hyper.head_dim, &keys)?;
    let kv_width = Hyper::wide(hyper.kv_heads, hyper.head_dim, &keys)?;

    let embedding = tensors.matrix("token_embd.weight", hyper.hidden, hyper.vocab)?;
    let head = match tensors.has("output.weight") {
        true => tensors.matrix("output.weight", hyper.hidden, hyper.vocab)?,
        false => embedding,
    };
    let (embedding, head) = (backend.load_embedding(&embedding)?, backend.load_weight(&head)?);
    let norm = backend.load_vector(&tensors.vector("output_norm.weight", hyper.hidden)?)?;
    let mut blocks = Vec::new();
    for layer in 0..hyper.layers {
        let mut loader = Loader { tensors: &tensors, backend, hyper: &hyper, layer };
        blocks.push(loader.block(plan, q_width, kv_width)?);
    }
    tensors.all_used()?;
    let attend = AttendSpec {
        group: 0,
        slot: 0,
        heads: hyper.heads,
        kv_heads: hyper.kv_heads,
        key_dim: hyper.head_dim,
        value_dim: hyper.head_dim,
        scale: 1.0 / (hyper.head_dim as f32).sqrt(),
        window: None,
    };
    Ok(Box::new(Decoder { embedding, blocks, norm, head, rope, attend, eps: hyper.eps }))
}

/// Loads one block.
struct Loader<'a, B: Backend> {
    tensors: &'a Tensors<'a>,
    backend: &'a mut B,
    hyper: &'a Hyper,
    layer: u32,
}

impl<B: Backend> Loader<'_, B> {
    fn block(&mut self, plan: &Plan, q_width: u32, kv_width: u32) -> Result<Block<B>, LoadError> {
        let Hyper { hidden, head_dim, inner, .. } = *self.hyper;
        let head_norms = match plan.head_norms {
            true => Some([self.vector("attn_q_norm", head_dim)?, self.vector("attn_k_norm", head_dim)?]),
            false => None,
        };
        let router = match self.hyper.experts {
            Some((count, used)) => {
                let router = self.stack("ffn_gate_inp", [hidden, count, 1])?;
                let gating = Gating::Softmax;
                Some((router, RouteSpec { top_k: used, gating, groups: None, normalise: true, scale: 1.0 }))
            }
            None => None,
        };
        let (suffix, experts) = match self.hyper.experts {
            Some((count, _)) => ("_exps", count),
            None => ("", 1),
        };
        Ok(Block {
            attn_norm: self.vector("attn_norm", hidden)?,
            q: self.stack("attn_q", [hidden, q_width, 1])?,
            k: self.stack("attn_k", [hidden, kv_width, 1])?,
            v: self.stack("attn_v", [hidden, kv_width, 1])?,
            head_norms,
            out: self.stack("attn_output", [q_width, hidden, 1])?,
            ffn_norm: self.vector("ffn_norm", hidden)?,
            router,
            gate: self.stack(&format!("ffn_gate{suffix}"), [hidden, inner, experts])?,
            up: self.stack(&format!("ffn_up{suffix}"), [hidden, inner, experts])?,
            down: self.stack(&format!("ffn_down{suffix}"), [inner, hidden, experts])?,
        })
    }

    fn stack(&mut self, kind: &str, dims: [u32; 3]) -> Result<B::Weight, LoadError> {
        let name = format!("blk.{}.{kind}.weight", self.layer);
        Ok(self.backend.load_weight(&self.tensors.stack(&name, dims)?)?)
    }

    fn vector(&mut self, kind: &str, len: u32) -> Result<B::Vector, LoadError> {
        let name = format!("blk.{}.{kind}.weight", self.layer);
        Ok(self.backend.load_vector(&self.tensors.vector(&name, len)?)?)
    }
}

impl<B: Backend> Model<B> for Decoder<B> {
    fn forward(&self, backend: &mut B, batch: &Batch) -> Result<Option<B::Tensor>, BackendError> {
        let mut x = backend.embed(&self.embedding, batch)?;
        for (slot, block) in self.blocks.iter().enumerate() {
            let mut attended = self.attention(backend, batch, block, slot as u32, &x)?;
            if slot + 1 == self.blocks.len() {
                // The cache is written: from here on only the outputs matter.
                if batch.outputs.is_empty() {
                    return Ok(None);
                }
                x = backend.select(&x, &batch.outputs)?;
                attended = backend.select(&attended, &batch.outputs)?;
            }
            let [projected] = take(backend.linear(&attended, &[&block.out])?);
            backend.add(&mut x, &projected, 1.0)?;
            let fed = self.feed_forward(backend, batch, block, &x)?;
            backend.add(&mut x, &fed, 1.0)?;
        }
        backend.rms_norm(&x, &self.norm, self.eps).map(Some)
    }

    fn logits(&self, backend: &mut B, x: &B::Tensor) -> Result<B::Tensor, BackendError> {
        let [logits] = take(backend.linear(x, &[&self.head])?);
        Ok(logits)
    }
}

impl<B: Backend> Decoder<B> {
    /// What the heads gather, before it is projected back.
    fn attention(
        &self,
        backend: &mut B,
        batch: &Batch,
        block: &Block<B>,
        slot: u32,
        x: &B::Tensor,
    ) -> Result<B::Tensor, BackendError> {
        let x = backend.rms_norm(x, &block.attn_norm, self.eps)?;
        let projected = backend.linear(&x, &[&block.q, &block.k, &block.v])?;
        let [mut q, mut k, v] = take(projected);
        if let Some([q_norm, k_norm]) = &block.head_norms {
            q = backend.rms_norm(&q, q_norm, self.eps)?;
            k = backend.rms_norm(&k, k_norm, self.eps)?;
        }
        backend.rope(&mut q, self.attend.key_dim, &self.rope, batch)?;
        backend.rope(&mut k, self.attend.key_dim, &self.rope, batch)?;
        backend.attend(&q, &k, Some(&v), None, &AttendSpec { slot, ..self.attend }, batch)
    }

    fn feed_forward(
        &self,
        backend: &mut B,
        batch: &Batch,
        block: &Block<B>,
        x: &B::Tensor,
    ) -> Result<B::Tensor, BackendError> {
        let x = backend.rms_norm(x, &block.ffn_norm, self.eps)?;
        let (gate, up, down) = (&block.gate, &block.up, &block.down);
        let ffn = Gated { gate, up, down, biases: None, activation: Activation::Silu };
        let Some((router, spec)) = &block.router else { return backend.feed_forward(&x, ffn) };
        let router = Router { weight: router, bias: None, choice_bias: None };
        let routing = backend.route(&x, router, spec)?;
        backend.experts(&x, &routing, ffn, batch)
    }
}

/// As many results as weights were given.
fn take<T, const N: usize>(results: Vec<T>) -> [T; N] {
    <[T; N]>::try_from(results).unwrap_or_else(|_| panic!("a product gives one result per weight"))
}
