//! Multi-head latent attention: what is kept of a token is one compressed vector, and one rotated key for all heads.
//!
//! A query head is brought into the latent space (`attn_k_b`) and attends there; what it gathers is brought back
//! (`attn_v_b`). So keys and values of heads never exist, a page holds `kv_lora_rank` values and the rotated ones per
//! token, and there is one arithmetic, whatever the number of tokens.
//!
//! Older files have `attn_kv_b`, both matrices of all heads in one and the first transposed. Loading splits it: the
//! part of the keys becomes F32, for blocks of quantized values cannot be transposed.

use super::decoder::{Places, Rotary};
use super::held::Held;
use super::keys::Keys;
use super::load::{Loader, take};
use super::plan::Plan;
use super::rope::Rotation;
use super::{CacheShape, LoadError};
use crate::backend::{AttendSpec, Backend, BackendError, Batch, Rope};
use crate::gguf::TensorInfo;
use crate::quant::{self, GgmlType};
use crate::step::GroupKind;
use crate::weights::TensorView;

/// The tensor of older files.
pub(crate) const UNSPLIT: &str = "attn_kv_b.weight";

/// Validated hyperparameters.
#[derive(Clone, Debug)]
pub(super) struct Hyper {
    heads: u32,
    /// Rank of the queries' projection, if it has one.
    q_rank: Option<u32>,
    /// Values of the latent vector.
    rank: u32,
    /// Values of a query head that are not rotated, and that are.
    still: u32,
    rotated: u32,
    /// Values that a head brings back.
    value_dim: u32,
    /// Keys and values are projected by [`UNSPLIT`].
    unsplit: bool,
    scale: f32,
    rotation: Rotation,
}

impl Hyper {
    pub(super) fn read(keys: &Keys<'_>, plan: &Plan, context: u32) -> Result<Self, LoadError> {
        let heads = keys.count("attention.head_count")?;
        let q_rank = keys.count_or_none("attention.q_lora_rank")?;
        let rank = keys.count("attention.kv_lora_rank")?;
        let rope_key = "rope.dimension_count";
        let rotated = keys.count(rope_key)?;
        // The norm of the latent vector takes what is left of a row behind it as it is.
        if rotated % 2 != 0 || rotated >= rank {
            let why = format!("it must be even and less than attention.kv_lora_rank, {rank}");
            return Err(keys.bad(rope_key, rotated, why));
        }
        let (unsplit, key_name, dims) = Self::head_dims(keys, heads, rank, rotated)?;
        let [key_dim, value_dim] = dims;
        if key_dim <= rotated {
            let why = format!("{rotated} of its values are rotated, which leaves none");
            return Err(keys.bad(key_name, key_dim, why));
        }
        let rotation = Rotation::read(keys, plan, rotated, context)?;
        if rotation.factor != 1.0 {
            return Err(keys.not_honoured("rope.scaling.attn_factor", rotation.factor));
        }
        // Cos and sin stay as they are; what YaRN does to them elsewhere is here in the scale.
        let sharpness = match rotation.yarn() {
            Some(ln) => 1.0 + f64::from(keys.positive("rope.scaling.yarn_log_multiplier")?) * ln,
            None => 1.0,
        };
        let scale = (sharpness * sharpness / f64::from(key_dim).sqrt()) as f32;
        keys.product("attention.head_count", heads, key_dim.max(rank + rotated).max(value_dim))?;
        keys.product("attention.head_count", heads, key_dim - rotated + value_dim)?;
        let still = key_dim - rotated;
        Ok(Self { heads, q_rank, rank, still, rotated, value_dim, unsplit, scale, rotation })
    }

    /// Whether the projection is unsplit, the key that tells a head's size, and the sizes of its key and value.
    fn head_dims(
        keys: &Keys<'_>,
        heads: u32,
        rank: u32,
        rotated: u32,
    ) -> Result<(bool, &'static str, [u32; 2]), LoadError> {
        let must_be = |key, expected: u32, what: &str| match keys.opt_count(key)? {
            Some(found) if found != expected => {
                Err(keys.bad(key, found, format!("it must be {expected}, {what}")))
            }
            _ => Ok(()),
        };
        let (key, value) = ("attention.key_length_mla", "attention.value_length_mla");
        match (keys.count_or_none(key)?, keys.count_or_none(value)?) {
            (Some(key_dim), Some(value_dim)) => {
                must_be("attention.key_length", rank + rotated, "what a page holds of a token")?;
                must_be("attention.value_length", rank, "the latent vector")?;
                must_be("attention.head_count_kv", 1, "for all heads share it")?;
                Ok((false, key, [key_dim, value_dim]))
            }
            (None, None) => {
                let key = "attention.key_length";
                must_be("attention.head_count_kv", heads, "as many as attention.head_count")?;
                Ok((true, key, [keys.count(key)?, keys.count("attention.value_length")?]))
            }
            (Some(_), None) => Err(keys.missing(value)),
            (None, Some(_)) => Err(keys.missing(key)),
        }
    }

    /// What a block keeps of the past.
    pub(super) fn cache(&self) -> CacheShape {
        let key_dim = self.rank + self.rotated;
        CacheShape { kind: GroupKind::Full, layers: 1, kv_heads: 1, key_dim, value_dim: 0 }
    }

    /// What a token has from [`Latent::gather`] to [`Latent::project`] beside `x`, of `hidden` values, while queries enter the latent space,
    /// while they gather there, and while that is brought back. Angles are two tables, as queries and keys begin to turn at
    /// different places.
    pub(super) fn held(&self, hidden: u64) -> Held {
        let Self { heads, q_rank, rank, still, rotated, value_dim, .. } = *self;
        let [heads, q_rank, rank, still, rotated, value_dim] =
            [heads, q_rank.unwrap_or(0), rank, still, rotated, value_dim].map(u64::from);
        let (queries, key) = (heads * (still + rotated), rank + rotated);
        let (inside, gathered, values) = (heads * key, heads * rank, heads * value_dim);
        let normed = Held { values: hidden, encoded: hidden };
        let entering =
            Held { values: 2 * key + queries + inside.max(q_rank), encoded: q_rank.max(heads * still) };
        let gathering = Held { values: 2 * key + inside + gathered, encoded: 0 };
        let back = Held { values: gathered + values + hidden, encoded: gathered.max(values) };
        let angles = Held { values: 2 * rotated, encoded: 0 };
        angles + (normed + entering.or(gathering)).or(back)
    }

    /// How queries and keys are rotated.
    pub(super) fn rotary(&self, plan: &Plan, factors: Option<&[f32]>) -> Result<Rotary, LoadError> {
        let frequencies = self.rotation.frequencies(factors)?;
        let rope = |first| Rope { style: plan.rope, first, frequencies: frequencies.clone(), scale: 1.0 };
        Ok(Rotary { query: rope(self.still), key: rope(self.rank) })
    }

    /// Bytes of a tensor as loaded.
    pub(super) fn loaded_bytes(&self, tensor: &TensorInfo) -> Option<u64> {
        let bytes = tensor.bytes()?;
        if !(self.unsplit && tensor.name.ends_with(UNSPLIT)) {
            return Some(bytes);
        }
        let values = u64::from(self.value_dim);
        let keys = u64::from(self.heads) * u64::from(self.still) * u64::from(self.rank) * 4;
        Some(bytes / (u64::from(self.still) + values) * values + keys)
    }
}

/// A block's attention.
pub(super) struct Latent<B: Backend> {
    /// To queries, or to their compressed form.
    q: B::Weight,
    /// Norm of the compressed form, and from there to queries.
    q_up: Option<(B::Vector, B::Weight)>,
    /// To the latent vector and the key that is rotated.
    kv: B::Weight,
    kv_norm: B::Vector,
    /// Of each head, into the latent space and back.
    k_b: B::Weight,
    v_b: B::Weight,
    out: B::Weight,
    query_dim: u32,
    spec: AttendSpec,
}

impl<B: Backend> Latent<B> {
    /// Checks and loads one block's tensors.
    pub(super) fn load(
        loader: &mut Loader<'_, B>,
        hyper: &Hyper,
        hidden: u32,
        places: &Places,
    ) -> Result<Self, LoadError> {
        let Hyper { heads, q_rank, rank, still, rotated, value_dim, scale, .. } = *hyper;
        let query_dim = still + rotated;
        let (q, q_up) = match q_rank {
            Some(q_rank) => {
                let norm = loader.vector("attn_q_a_norm.weight", q_rank)?;
                let up = loader.matrix("attn_q_b", q_rank, heads * query_dim)?;
                (loader.matrix("attn_q_a", hidden, q_rank)?, Some((norm, up)))
            }
            None => (loader.matrix("attn_q", hidden, heads * query_dim)?, None),
        };
        let [k_b, v_b] = match hyper.unsplit {
            true => split(loader, hyper)?,
            false => [
                loader.weight("attn_k_b", [still, rank, heads])?,
                loader.weight("attn_v_b", [rank, value_dim, heads])?,
            ],
        };
        let (group, slot) = places[loader.layer as usize];
        let spec = AttendSpec {
            group,
            slot,
            heads,
            kv_heads: 1,
            key_dim: rank + rotated,
            value_dim: rank,
            scale,
            window: None,
        };
        Ok(Self {
            q,
            q_up,
            kv: loader.matrix("attn_kv_a_mqa", hidden, rank + rotated)?,
            kv_norm: loader.vector("attn_kv_a_norm.weight", rank)?,
            k_b,
            v_b,
            out: loader.matrix("attn_output", heads * value_dim, hidden)?,
            query_dim,
            spec,
        })
    }

    /// What the heads gather in the latent space; `x` is normed.
    pub(super) fn gather(
        &self,
        backend: &mut B,
        batch: &Batch,
        x: &B::Tensor,
        rotary: &Rotary,
        eps: f32,
    ) -> Result<B::Tensor, BackendError> {
        let [mut q, kv] = take(backend.linear(x, &[&self.q, &self.kv])?);
        if let Some((norm, up)) = &self.q_up {
            q = backend.rms_norm(&q, norm, eps)?;
            [q] = take(backend.linear(&q, &[up])?);
        }
        backend.rope(&mut q, self.query_dim, &rotary.query, batch)?;
        q = backend.per_head(&q, &self.k_b)?;
        let mut kv = backend.rms_norm(&kv, &self.kv_norm, eps)?;
        backend.rope(&mut kv, self.spec.key_dim, &rotary.key, batch)?;
        backend.attend(&q, &kv, None, None, &self.spec, batch)
    }

    /// From what the heads gathered to what is added back.
    pub(super) fn project(&self, backend: &mut B, gathered: &B::Tensor) -> Result<B::Tensor, BackendError> {
        let values = backend.per_head(gathered, &self.v_b)?;
        let [out] = take(backend.linear(&values, &[&self.out])?);
        Ok(out)
    }
}

/// Loads the two matrices of each head that [`UNSPLIT`] holds one after the other.
fn split<B: Backend>(loader: &mut Loader<'_, B>, hyper: &Hyper) -> Result<[B::Weight; 2], LoadError> {
    let Hyper { heads, rank, still, value_dim, .. } = *hyper;
    let name = loader.name(UNSPLIT);
    let both = loader.tensors.matrix(&name, rank, heads * (still + value_dim))?;
    let keys = transposed_keys(&both, [heads, still, value_dim].map(|n| n as usize));
    let view = TensorView {
        name: &name,
        ty: GgmlType::F32,
        cols: still as usize,
        rows: rank as usize,
        experts: heads as usize,
        data: &keys,
        packed: false,
        place: None,
    };
    let k_b = loader.backend.load_weight(&view)?;
    let values = values(&both, [heads, still, value_dim].map(|n| n as usize));
    let view = TensorView {
        rows: value_dim as usize,
        experts: heads as usize,
        name: &name,
        data: &values,
        place: None,
        ..both
    };
    Ok([k_b, loader.backend.load_weight(&view)?])
}

/// Of each head the rows of its keys, `[still, rank]` in any format, as `[rank, still]` in F32.
fn transposed_keys(both: &TensorView<'_>, [heads, still, value_dim]: [usize; 3]) -> Vec<u8> {
    let rank = both.cols;
    let mut keys = vec![0; heads * still * rank * 4];
    let mut row = vec![0.0; rank];
    for (head, to) in keys.chunks_exact_mut(still * rank * 4).enumerate() {
        for i in 0..still {
            (quant::format(both.ty).dequantize)(both.row(0, head * (still + value_dim) + i), &mut row);
            for (value, to) in row.iter().zip(to.chunks_exact_mut(still * 4)) {
                to[i * 4..][..4].copy_from_slice(&value.to_le_bytes());
            }
        }
    }
    keys
}

/// Of each head the rows of its values, as in the file.
fn values(both: &TensorView<'_>, [heads, still, value_dim]: [usize; 3]) -> Vec<u8> {
    let rows = (0..heads).flat_map(|head| {
        let first = head * (still + value_dim) + still;
        first..first + value_dim
    });
    rows.flat_map(|row| both.row(0, row)).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_older_projection_holds_both_matrices_of_every_head() {
        // 3 heads of 2 + 4 values over a rank of 32, as Q8_0; a row's codes are its number plus the column.
        let [heads, still, value_dim, rank] = [3usize, 2, 4, 32];
        let code = |row: usize, col: usize| (row * 5 + col) as u8;
        let one = half::f16::ONE.to_le_bytes();
        let rows = 0..heads * (still + value_dim);
        let data: Vec<u8> =
            rows.flat_map(|row| one.into_iter().chain((0..rank).map(move |col| code(row, col)))).collect();
        let both = TensorView {
            name: "both",
            ty: GgmlType::Q8_0,
            cols: rank,
            rows: 18,
            experts: 1,
            data: &data,
            packed: false,
            place: None,
        };
        let keys = transposed_keys(&both, [heads, still, value_dim]);
        let values = values(&both, [heads, still, value_dim]);
        assert_eq!((keys.len(), values.len()), (heads * rank * still * 4, heads * value_dim * 34));
        let (keys, _) = keys.as_chunks::<4>();
        for head in 0..heads {
            for col in 0..rank {
                for i in 0..still {
                    let key = f32::from_le_bytes(keys[(head * rank + col) * still + i]);
                    assert_eq!(key, f32::from(code(head * 6 + i, col)));
                }
                for i in 0..value_dim {
                    let at = (head * value_dim + i) * 34 + 2 + col;
                    assert_eq!(values[at], code(head * 6 + still + i, col));
                }
            }
        }
    }
}
