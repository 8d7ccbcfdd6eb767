//! Attention with keys and values of each head.

use super::CacheShape;
use super::LoadError;
use super::decoder::{Places, Rotary};
use super::held::Held;
use super::keys::Keys;
use super::load::{Loader, take};
use super::plan::{Heads as HeadsPlan, Norms, Plan};
use super::rope::Rotation;
use crate::backend::{AttendSpec, Backend, BackendError, Batch, Rope};
use crate::step::GroupKind;

/// Validated hyperparameters.
#[derive(Clone, Debug)]
pub(super) struct Hyper {
    plan: HeadsPlan,
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
    q_width: u32,
    kv_width: u32,
    scale: f32,
    /// Positions that every other block sees, from the first on.
    window: Option<u32>,
    rotation: Rotation,
}

impl Hyper {
    pub(super) fn read(
        keys: &Keys<'_>,
        plan: &Plan,
        heads_plan: HeadsPlan,
        [hidden, context]: [u32; 2],
    ) -> Result<Self, LoadError> {
        let heads = keys.count("attention.head_count")?;
        let kv_key = "attention.head_count_kv";
        let kv_heads = keys.opt_count(kv_key)?.unwrap_or(heads);
        if !heads.is_multiple_of(kv_heads) {
            let why = format!("it does not divide attention.head_count, {heads}");
            return Err(keys.bad(kv_key, kv_heads, why));
        }
        let head_dim = Self::head_dim(keys, hidden, heads)?;
        let rope_key = "rope.dimension_count";
        let rotated = keys.opt_count(rope_key)?.unwrap_or(head_dim);
        if rotated > head_dim || rotated % 2 != 0 {
            let why = format!("it must be even and at most {head_dim}, the head's size");
            return Err(keys.bad(rope_key, rotated, why));
        }
        let rotation = Rotation::read(keys, plan, rotated, context)?;
        let asked = if plan.scales { keys.opt_positive("attention.scale")? } else { None };
        let scale = asked.unwrap_or(1.0 / (head_dim as f32).sqrt());
        let window = heads_plan.windows.then(|| Self::window(keys)).transpose()?;
        let q_width = keys.product("attention.head_count", heads, head_dim)?;
        let kv_width = keys.product(kv_key, kv_heads, head_dim)?;
        let plan = heads_plan;
        Ok(Self { plan, heads, kv_heads, head_dim, q_width, kv_width, scale, window, rotation })
    }

    fn head_dim(keys: &Keys<'_>, hidden: u32, heads: u32) -> Result<u32, LoadError> {
        let head_dim = match keys.opt_count("attention.key_length")? {
            Some(dim) => dim,
            None if hidden.is_multiple_of(heads) => hidden / heads,
            None => {
                let why =
                    format!("it is no multiple of attention.head_count, {heads}, and there is no key_length");
                return Err(keys.bad("embedding_length", hidden, why));
            }
        };
        match keys.opt_count("attention.value_length")? {
            Some(value_dim) if value_dim != head_dim => {
                let why = format!("it must equal the key's, {head_dim}");
                Err(keys.bad("attention.value_length", value_dim, why))
            }
            _ => Ok(head_dim),
        }
    }

    /// Some files say what this architecture is anyway: every second block, rotated like the others.
    fn window(keys: &Keys<'_>) -> Result<u32, LoadError> {
        let (period, base) = ("attention.sliding_window_pattern", "rope.freq_base_swa");
        if let Some(other) = keys.opt_u32(period)?.filter(|&n| n != 2) {
            return Err(keys.not_honoured(period, other));
        }
        let own = keys.opt_positive("rope.freq_base")?;
        if let Some(other) = keys.opt_positive(base)?.filter(|b| Some(*b) != own) {
            return Err(keys.not_honoured(base, other));
        }
        keys.size("attention.sliding_window")
    }

    /// What a block keeps of the past.
    pub(super) fn cache(&self, layer: u32) -> CacheShape {
        let kind = match self.window.filter(|_| layer.is_multiple_of(2)) {
            Some(window) => GroupKind::Window { window },
            None => GroupKind::Full,
        };
        CacheShape {
            kind,
            layers: 1,
            kv_heads: self.kv_heads,
            key_dim: self.head_dim,
            value_dim: self.head_dim,
        }
    }

    /// What a token has from [`Heads::gather`] to [`Heads::project`] beside `x`, of `hidden` values: first `x` normed, queries twice (as they
    /// were and normed, or with what they gather) and as much of keys and values; then the gathered twice (as it was and
    /// selected), or with what becomes of it, which is less.
    pub(super) fn held(&self, hidden: u64) -> Held {
        let [q, kv, angles] = [self.q_width, self.kv_width, self.rotation.dims()].map(u64::from);
        Held { values: angles + hidden + 2 * q + 2 * kv, encoded: hidden.max(q) }
    }

    /// How queries and keys are rotated.
    pub(super) fn rotary(&self, plan: &Plan, factors: Option<&[f32]>) -> Result<Rotary, LoadError> {
        let (frequencies, scale) = (self.rotation.frequencies(factors)?, self.rotation.sharpness());
        let rope = Rope { style: plan.rope, first: 0, frequencies, scale };
        Ok(Rotary { query: rope.clone(), key: rope })
    }
}

/// A block's attention.
pub(super) struct Heads<B: Backend> {
    q: B::Weight,
    k: B::Weight,
    v: B::Weight,
    biases: Option<[B::Vector; 3]>,
    /// Of queries and keys.
    norms: Option<[B::Vector; 2]>,
    sinks: Option<B::Vector>,
    out: B::Weight,
    out_bias: Option<B::Vector>,
    spec: AttendSpec,
}

impl<B: Backend> Heads<B> {
    /// Checks and loads one block's tensors.
    pub(super) fn load(
        loader: &mut Loader<'_, B>,
        hyper: &Hyper,
        hidden: u32,
        places: &Places,
    ) -> Result<Self, LoadError> {
        let Hyper { plan, heads, kv_heads, head_dim, q_width, kv_width, scale, .. } = *hyper;
        let norm_dims = match plan.norms {
            Norms::None => None,
            Norms::PerHead => Some([head_dim; 2]),
            Norms::PerHeadIfPresent => loader.has("attn_q_norm.weight").then_some([head_dim; 2]),
            Norms::Whole => Some([q_width, kv_width]),
        };
        let norms = match norm_dims {
            Some([q, k]) => {
                Some([loader.vector("attn_q_norm.weight", q)?, loader.vector("attn_k_norm.weight", k)?])
            }
            None => None,
        };
        let biases = match plan.biases {
            true => Some([
                loader.vector("attn_q.bias", q_width)?,
                loader.vector("attn_k.bias", kv_width)?,
                loader.vector("attn_v.bias", kv_width)?,
            ]),
            false => None,
        };
        let cache = hyper.cache(loader.layer);
        let window = match cache.kind {
            GroupKind::Window { window } => Some(window),
            GroupKind::Full | GroupKind::State => None,
        };
        let (group, slot) = places[loader.layer as usize];
        let (key_dim, value_dim) = (head_dim, head_dim);
        let spec = AttendSpec { group, slot, heads, kv_heads, key_dim, value_dim, scale, window };
        Ok(Self {
            q: loader.matrix("attn_q", hidden, q_width)?,
            k: loader.matrix("attn_k", hidden, kv_width)?,
            v: loader.matrix("attn_v", hidden, kv_width)?,
            biases,
            norms,
            sinks: plan.sinks.then(|| loader.vector("attn_sinks.weight", heads)).transpose()?,
            out: loader.matrix("attn_output", q_width, hidden)?,
            out_bias: plan.out_bias.then(|| loader.vector("attn_output.bias", hidden)).transpose()?,
            spec,
        })
    }

    /// What the heads gather; `x` is normed.
    pub(super) fn gather(
        &self,
        backend: &mut B,
        batch: &Batch,
        x: &B::Tensor,
        rotary: &Rotary,
        eps: f32,
    ) -> Result<B::Tensor, BackendError> {
        let [mut q, mut k, mut v] = take(backend.linear(x, &[&self.q, &self.k, &self.v])?);
        if let Some([q_bias, k_bias, v_bias]) = &self.biases {
            backend.add_bias(&mut q, q_bias)?;
            backend.add_bias(&mut k, k_bias)?;
            backend.add_bias(&mut v, v_bias)?;
        }
        if let Some([q_norm, k_norm]) = &self.norms {
            q = backend.rms_norm(&q, q_norm, eps)?;
            k = backend.rms_norm(&k, k_norm, eps)?;
        }
        backend.rope(&mut q, self.spec.key_dim, &rotary.query, batch)?;
        backend.rope(&mut k, self.spec.key_dim, &rotary.key, batch)?;
        backend.attend(&q, &k, Some(&v), self.sinks.as_ref(), &self.spec, batch)
    }

    /// From what the heads gathered to what is added back.
    pub(super) fn project(&self, backend: &mut B, gathered: &B::Tensor) -> Result<B::Tensor, BackendError> {
        let [mut out] = take(backend.linear(gathered, &[&self.out])?);
        if let Some(bias) = &self.out_bias {
            backend.add_bias(&mut out, bias)?;
        }
        Ok(out)
    }
}
