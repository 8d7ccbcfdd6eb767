//! The decoder that all these models are: attention and gated feed-forward, each behind a norm and added back.
//!
//! An architecture states its [`Plan`]; what is not in the plan it does not have.

use super::heads::{self, Heads};
use super::held::Held;
use super::keys::Keys;
use super::latent::{self, Latent};
use super::load::{Loader, take};
use super::plan::{self, Plan};
use super::tensors::Tensors;
use super::{CacheShape, LoadError, Model, Shape, feed};
use crate::backend::{Backend, BackendError, Batch, Rope};
use crate::gguf::Gguf;

/// Validated hyperparameters.
#[derive(Clone, Debug)]
struct Hyper {
    vocab: u32,
    context: u32,
    hidden: u32,
    /// Without those that are skipped.
    layers: u32,
    /// Blocks behind them that predict further tokens.
    nextn: u32,
    eps: f32,
    scales: Scales,
    attention: AttentionHyper,
    feed: feed::Hyper,
}

/// Factors, 1 unless the architecture has them.
#[derive(Clone, Copy, Debug)]
struct Scales {
    embedding: f32,
    residual: f32,
    logits: f32,
}

#[derive(Clone, Debug)]
enum AttentionHyper {
    Heads(heads::Hyper),
    Latent(latent::Hyper),
}

/// How queries and keys are rotated.
pub(super) struct Rotary {
    pub query: Rope,
    pub key: Rope,
}

/// Cache group and layer within it, of each block.
pub(super) type Places = [(u32, u32)];

impl Hyper {
    fn read(gguf: &Gguf, plan: &Plan) -> Result<Self, LoadError> {
        let keys = Keys::new(gguf)?;
        let context = keys.size("context_length")?;
        let hidden = keys.size("embedding_length")?;
        let blocks = keys.size("block_count")?;
        if blocks as usize > gguf.tensors().len() {
            return Err(keys.bad("block_count", blocks, "the file has fewer tensors"));
        }
        let nextn_key = "nextn_predict_layers";
        let nextn = if plan.nextn { keys.opt_u32(nextn_key)?.unwrap_or(0) } else { 0 };
        let layers = blocks.checked_sub(nextn).filter(|&n| n > 0);
        let layers = layers.ok_or_else(|| keys.bad(nextn_key, nextn, format!("block_count is {blocks}")))?;
        let attention = match plan.attention {
            plan::Attention::Heads(heads) => {
                AttentionHyper::Heads(heads::Hyper::read(&keys, plan, heads, [hidden, context])?)
            }
            plan::Attention::Latent => AttentionHyper::Latent(latent::Hyper::read(&keys, plan, context)?),
        };
        let feed = feed::Hyper::read(&keys, plan, layers)?;
        let eps = keys.positive("attention.layer_norm_rms_epsilon")?;
        let scales = Scales::read(&keys, plan)?;
        keys.refuse_unknown(context)?;
        let vocab = Self::read_vocab(gguf)?;
        Ok(Self { vocab, context, hidden, layers, nextn, eps, scales, attention, feed })
    }

    fn read_vocab(gguf: &Gguf) -> Result<u32, LoadError> {
        let name = "token_embd.weight";
        let rows = gguf.weight(name)?.rows;
        let bad = |why: String| LoadError::BadTensor { tensor: name.to_owned(), why };
        let vocab = u32::try_from(rows).map_err(|_| bad(format!("has {rows} rows")))?;
        let tokens = gguf.opt_str_array("tokenizer.ggml.tokens")?.map_or(0, |tokens| tokens.len());
        if tokens > rows {
            return Err(bad(format!("has {rows} rows, but the tokenizer has {tokens} tokens")));
        }
        Ok(vocab)
    }

    /// The cache groups, in the order in which blocks first need them, and each block's place.
    fn groups(&self) -> (Vec<CacheShape>, Vec<(u32, u32)>) {
        let (mut groups, mut places) = (Vec::<CacheShape>::new(), Vec::new());
        for layer in 0..self.layers {
            let cache = match &self.attention {
                AttentionHyper::Heads(hyper) => hyper.cache(layer),
                AttentionHyper::Latent(hyper) => hyper.cache(),
            };
            let group = groups.iter().position(|g| g.kind == cache.kind).unwrap_or(groups.len());
            match groups.get_mut(group) {
                Some(known) => known.layers += 1,
                None => groups.push(cache),
            }
            places.push((group as u32, groups[group].layers - 1));
        }
        (groups, places)
    }

    /// See [`Shape::step_values`]: what [`Decoder::forward`] holds, whose parts give back what they took before the next one begins. `x` lives
    /// throughout; the last block has it twice for a moment, when the only other is what attention gathered.
    fn step_values(&self) -> u64 {
        let hidden = u64::from(self.hidden);
        let attention = match &self.attention {
            AttentionHyper::Heads(hyper) => hyper.held(hidden),
            AttentionHyper::Latent(hyper) => hyper.held(hidden),
        };
        let x = Held { values: hidden, encoded: 0 };
        (x + attention.or(self.feed.held(hidden))).total()
    }

    /// Bytes of the weights of all blocks that run, as loaded.
    fn weight_bytes(&self, gguf: &Gguf) -> u64 {
        let block = |name: &str| name.strip_prefix("blk.")?.split_once('.')?.0.parse::<u32>().ok();
        let runs = |name: &str| block(name).is_none_or(|n| n < self.layers);
        let bytes = |t| match &self.attention {
            AttentionHyper::Heads(_) => crate::gguf::TensorInfo::bytes(t),
            AttentionHyper::Latent(hyper) => hyper.loaded_bytes(t),
        };
        gguf.tensors().iter().filter(|t| runs(&t.name)).filter_map(bytes).sum()
    }
}

impl Scales {
    fn read(keys: &Keys<'_>, plan: &Plan) -> Result<Self, LoadError> {
        if !plan.scales {
            return Ok(Self { embedding: 1.0, residual: 1.0, logits: 1.0 });
        }
        // To these models it is the switch of rotation.
        let rotates = "rope.scaling.finetuned";
        if keys.opt_bool(rotates)? == Some(false) {
            return Err(keys.not_honoured(rotates, false));
        }
        Ok(Self {
            embedding: keys.opt_positive("embedding_scale")?.unwrap_or(1.0),
            residual: keys.opt_positive("residual_scale")?.unwrap_or(1.0),
            logits: 1.0 / keys.positive("logit_scale")?,
        })
    }
}

/// Checks the metadata.
pub(super) fn shape(gguf: &Gguf, plan: &Plan) -> Result<Shape, LoadError> {
    let hyper = Hyper::read(gguf, plan)?;
    let (weight_bytes, step_values) = (hyper.weight_bytes(gguf), hyper.step_values());
    let (vocab, context, cache) = (hyper.vocab, hyper.context, hyper.groups().0);
    Ok(Shape { vocab, context, cache, weight_bytes, step_values })
}

/// A loaded decoder.
struct Decoder<B: Backend> {
    embedding: B::Weight,
    blocks: Vec<Block<B>>,
    norm: B::Vector,
    head: B::Weight,
    rotary: Rotary,
    eps: f32,
    scales: Scales,
}

struct Block<B: Backend> {
    attn_norm: B::Vector,
    attention: Attention<B>,
    ffn_norm: B::Vector,
    feed: feed::FeedForward<B>,
}

enum Attention<B: Backend> {
    Heads(Heads<B>),
    Latent(Latent<B>),
}

/// What the tensors of a block that predicts further tokens are called, beside those of other blocks.
const NEXTN: [&str; 6] = [
    "nextn.eh_proj.weight",
    "nextn.embed_tokens.weight",
    "nextn.enorm.weight",
    "nextn.hnorm.weight",
    "nextn.shared_head_head.weight",
    "nextn.shared_head_norm.weight",
];

/// Checks and loads the tensors.
pub(super) fn load<B: Backend + 'static>(
    gguf: &Gguf,
    backend: &mut B,
    plan: &Plan,
) -> Result<Box<dyn Model<B>>, LoadError> {
    let hyper = Hyper::read(gguf, plan)?;
    let Hyper { vocab, hidden, layers, eps, scales, .. } = hyper;
    let tensors = Tensors::new(gguf);
    let factors = tensors.opt_floats("rope_freqs.weight")?;
    let embedding = tensors.weight("token_embd.weight", [hidden, vocab, 1])?;
    let [embedding, head] = match tensors.has("output.weight") {
        true => {
            let head = tensors.weight("output.weight", [hidden, vocab, 1])?;
            [backend.load_embedding(&embedding)?, backend.load_weight(&head)?]
        }
        false => backend.load_tied(&embedding)?,
    };
    let norm = backend.load_vector(&tensors.vector("output_norm.weight", hidden)?)?;
    let (_, places) = hyper.groups();
    let mut blocks = Vec::new();
    for layer in 0..layers {
        let mut loader = Loader { tensors: &tensors, backend, layer };
        blocks.push(Block::load(&mut loader, &hyper, plan, &places)?);
    }
    tensors.skip_blocks(layers..layers + hyper.nextn, layers - 1, &NEXTN);
    tensors.all_used()?;
    // Now that tensors have the heads' size: the metadata alone may claim any.
    let rotary = match &hyper.attention {
        AttentionHyper::Heads(hyper) => hyper.rotary(plan, factors.as_deref())?,
        AttentionHyper::Latent(hyper) => hyper.rotary(plan, factors.as_deref())?,
    };
    Ok(Box::new(Decoder { embedding, blocks, norm, head, rotary, eps, scales }))
}

impl<B: Backend> Block<B> {
    fn load(
        loader: &mut Loader<'_, B>,
        hyper: &Hyper,
        plan: &Plan,
        places: &Places,
    ) -> Result<Self, LoadError> {
        let hidden = hyper.hidden;
        let attention = match &hyper.attention {
            AttentionHyper::Heads(hyper) => Attention::Heads(Heads::load(loader, hyper, hidden, places)?),
            AttentionHyper::Latent(hyper) => Attention::Latent(Latent::load(loader, hyper, hidden, places)?),
        };
        Ok(Self {
            attn_norm: loader.vector("attn_norm.weight", hidden)?,
            attention,
            ffn_norm: loader.vector(&format!("{}.weight", plan.ffn_norm), hidden)?,
            feed: feed::FeedForward::load(loader, &hyper.feed, hidden)?,
        })
    }
}

/// The parts of a block, each of which gives back what it held: see [`Hyper::step_values`].
impl<B: Backend> Decoder<B> {
    /// What a block's heads gather.
    fn gather(
        &self,
        backend: &mut B,
        batch: &Batch,
        block: &Block<B>,
        x: &B::Tensor,
    ) -> Result<B::Tensor, BackendError> {
        let normed = backend.rms_norm(x, &block.attn_norm, self.eps)?;
        match &block.attention {
            Attention::Heads(a) => a.gather(backend, batch, &normed, &self.rotary, self.eps),
            Attention::Latent(a) => a.gather(backend, batch, &normed, &self.rotary, self.eps),
        }
    }

    fn add_attention(
        &self,
        backend: &mut B,
        block: &Block<B>,
        gathered: B::Tensor,
        x: &mut B::Tensor,
    ) -> Result<(), BackendError> {
        let projected = match &block.attention {
            Attention::Heads(a) => a.project(backend, &gathered)?,
            Attention::Latent(a) => a.project(backend, &gathered)?,
        };
        backend.add(x, &projected, self.scales.residual)
    }

    fn add_feed_forward(
        &self,
        backend: &mut B,
        batch: &Batch,
        block: &Block<B>,
        x: &mut B::Tensor,
    ) -> Result<(), BackendError> {
        let normed = backend.rms_norm(x, &block.ffn_norm, self.eps)?;
        let fed = block.feed.forward(backend, batch, &normed)?;
        backend.add(x, &fed, self.scales.residual)
    }
}

impl<B: Backend> Model<B> for Decoder<B> {
    fn forward(&self, backend: &mut B, batch: &Batch) -> Result<Option<B::Tensor>, BackendError> {
        let mut x = backend.embed(&self.embedding, batch)?;
        if self.scales.embedding != 1.0 {
            backend.scale(&mut x, self.scales.embedding)?;
        }
        for (i, block) in self.blocks.iter().enumerate() {
            let mut gathered = self.gather(backend, batch, block, &x)?;
            if i + 1 == self.blocks.len() {
                // The cache is written: from here on only the outputs matter.
                if batch.outputs.is_empty() {
                    return Ok(None);
                }
                x = backend.select(&x, &batch.outputs)?;
                gathered = backend.select(&gathered, &batch.outputs)?;
            }
            self.add_attention(backend, block, gathered, &mut x)?;
            self.add_feed_forward(backend, batch, block, &mut x)?;
        }
        backend.rms_norm(&x, &self.norm, self.eps).map(Some)
    }

    fn logits(&self, backend: &mut B, x: &B::Tensor) -> Result<B::Tensor, BackendError> {
        let [mut logits] = take(backend.linear(x, &[&self.head])?);
        if self.scales.logits != 1.0 {
            backend.scale(&mut logits, self.scales.logits)?;
        }
        Ok(logits)
    }
}
