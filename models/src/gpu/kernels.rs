//! What a device's kernels do, over candle's tensors.
//!
//! Each device implements the operations that the tensor library lacks there; the others have a plain form here, of tensor
//! operations that every device has, which a device replaces where one kernel does it faster. [`super::host::HostKernels`] has the
//! contract of all of them in plain loops.

use std::cell::OnceCell;

use candle_core::{D, DType, Result, Tensor};
use candle_nn::ops;

use super::device::Memory;
use super::index::{GroupIndex, StepIndex};
use super::pages::LayerPages;
use super::weight::GpuWeight;
use crate::backend::{Activation, AttendSpec, Gated, RopeStyle, RouteSpec};

/// The left side of products, with what a device makes of it once for all of them.
pub(super) struct Operand<'a> {
    /// `[rows, cols]`.
    pub values: &'a Tensor,
    pub forms: &'a Forms,
}

/// Forms of a tensor that products take, made when first wanted.
#[derive(Default)]
pub(super) struct Forms {
    /// Rows of Q8_1 blocks, u8.
    pub rounded: OnceCell<Tensor>,
    /// Rows of halves, F16, and what each row is to be multiplied with, F32.
    pub halves: OnceCell<[Tensor; 2]>,
}

impl Forms {
    /// One that is there already.
    pub(super) fn rounded(rounded: Option<Tensor>) -> Self {
        Self { rounded: rounded.map(OnceCell::from).unwrap_or_default(), halves: OnceCell::new() }
    }
}

/// Rotation of one kind of head.
pub(super) struct Angles<'a> {
    /// F32 `[positions, pairs]`, by position.
    pub cos: &'a Tensor,
    /// The same.
    pub sin: &'a Tensor,
    /// u32 `[tokens]`.
    pub positions: &'a Tensor,
    /// Where in a head the rotated values begin.
    pub first: usize,
    pub style: RopeStyle,
}

/// One layer's attention.
pub(super) struct Attention<'a> {
    /// `[tokens, heads, key_dim]`.
    pub q: &'a Tensor,
    /// `[tokens, kv_heads, key_dim]`, in the pages already.
    pub k: &'a Tensor,
    /// `[tokens, kv_heads, value_dim]`, or none for latent pages.
    pub v: Option<&'a Tensor>,
    pub pages: &'a LayerPages,
    pub block_tokens: usize,
    /// F32 `[heads]`.
    pub sinks: Option<&'a Tensor>,
    pub spec: &'a AttendSpec,
    pub step: &'a StepIndex,
    pub group: &'a GroupIndex,
}

/// A router's biases.
pub(super) struct RouteBias<'a> {
    /// On logits: F32 `[experts]`.
    pub logits: Option<&'a Tensor>,
    /// On what experts are chosen by: F32 `[experts]`.
    pub choice: Option<&'a Tensor>,
}

/// Operations of one device. Tensors are F32 and contiguous unless said otherwise; T tokens, K experts per token.
pub(super) trait Kernels: Send {
    /// Writes T keys and values into their slots of a layer's pages.
    fn write(&self, call: &Attention<'_>) -> Result<()>;

    /// Causal attention over pages: `[T, heads * value_dim]`.
    fn attend(&self, call: &Attention<'_>) -> Result<(Tensor, Forms)>;

    /// From logits `[T, experts]` to ids u32 `[T, K]` and weights `[T, K]`.
    fn route(&self, logits: &Tensor, bias: &RouteBias<'_>, spec: &RouteSpec) -> Result<(Tensor, Tensor)>;

    /// `x W^T`: `[T, cols]` to `[T, rows]`.
    fn product(&self, x: &Operand<'_>, weight: &GpuWeight) -> Result<Tensor>;

    /// A dense gated feed-forward: `[T, hidden]`.
    fn feed_forward(&self, x: &Operand<'_>, ffn: &Gated<'_, GpuWeight, Tensor>) -> Result<Tensor> {
        let (gate, up) = (self.product(x, ffn.gate)?, self.product(x, ffn.up)?);
        let inner = self.glu(&gate, &up, ffn.activation)?;
        self.product(&Operand { values: &inner, forms: &Forms::default() }, ffn.down)
    }

    /// RMS norm of groups of `weight`'s length within rows of x `[T, width]`; what is left of a row stays.
    fn rms_norm(&self, x: &Tensor, weight: &Tensor, eps: f32) -> Result<(Tensor, Forms)> {
        let (rows, width) = x.dims2()?;
        let len = weight.elem_count();
        let normed = width / len * len;
        let groups = x.narrow(1, 0, normed)?.contiguous()?.reshape((rows * (width / len), len))?;
        let y = ops::rms_norm(&groups, weight, eps)?.reshape((rows, normed))?;
        match normed == width {
            true => Ok((y, Forms::default())),
            false => {
                let rest = x.narrow(1, normed, width - normed)?;
                Ok((Tensor::cat(&[y, rest], 1)?.contiguous()?, Forms::default()))
            }
        }
    }

    /// Rotates heads of `head_dim` within rows of x `[T, width]`.
    fn rope(&self, x: &Tensor, head_dim: usize, angles: &Angles<'_>) -> Result<Tensor> {
        let (rows, width) = x.dims2()?;
        let heads = width / head_dim;
        let pairs = angles.cos.dim(1)?;
        let at = |table: &Tensor| table.index_select(angles.positions, 0)?.reshape((rows, 1, pairs));
        let (cos, sin) = (at(angles.cos)?, at(angles.sin)?);
        let x = x.reshape((rows, heads, 1, head_dim))?;
        let turned = x.narrow(3, angles.first, 2 * pairs)?.contiguous()?;
        let turned = match angles.style {
            RopeStyle::Normal => candle_nn::rotary_emb::rope_i(&turned, &cos, &sin)?,
            RopeStyle::Neox => candle_nn::rotary_emb::rope(&turned, &cos, &sin)?,
        };
        let behind = angles.first + 2 * pairs;
        let mut parts = Vec::new();
        if angles.first > 0 {
            parts.push(x.narrow(3, 0, angles.first)?);
        }
        parts.push(turned);
        if behind < head_dim {
            parts.push(x.narrow(3, behind, head_dim - behind)?);
        }
        Tensor::cat(&parts, 3)?.contiguous()?.reshape((rows, width))
    }

    /// What becomes of gate and up, of one shape.
    fn glu(&self, gate: &Tensor, up: &Tensor, activation: Activation) -> Result<Tensor> {
        match activation {
            Activation::Silu => ops::silu(gate)? * up,
            Activation::ClampedSwiglu => {
                let gate = gate.minimum(7.0)?;
                let up = (up.clamp(-7.0, 7.0)? + 1.0)?;
                (ops::sigmoid(&(&gate * 1.702)?)? * gate)? * up
            }
        }
    }

    /// Adds each chosen expert's bias, of `experts * n`, to x `[T, K, n]`.
    fn add_chosen(&self, x: &Tensor, bias: &Tensor, ids: &Tensor) -> Result<Tensor> {
        x + bias.reshape(((), x.dim(2)?))?.index_select(&ids.flatten_all()?, 0)?.reshape(x.shape())?
    }

    /// Sum over K: x `[T, K, n]`, weights `[T, K]`, or none for ones; to `[T, n]`.
    fn combine(&self, x: &Tensor, weights: Option<&Tensor>) -> Result<Tensor> {
        match weights {
            None => x.sum(1),
            Some(weights) => x.broadcast_mul(&weights.unsqueeze(D::Minus1)?)?.sum(1),
        }
    }

    /// A layer's experts: x `[T, hidden]`, ids and weights as [`Kernels::route`] gives them.
    fn mixture(
        &self,
        x: &Operand<'_>,
        routing: (&Tensor, &Tensor),
        ffn: &Gated<'_, GpuWeight, Tensor>,
    ) -> Result<Tensor>;

    /// `x + factor * y`.
    fn add(&self, x: &Tensor, y: &Tensor, factor: f32) -> Result<Tensor> {
        match factor == 1.0 {
            true => x + y,
            false => x + (y * f64::from(factor))?,
        }
    }

    /// Waits until all is done that was asked for, so that its errors are known.
    fn synchronize(&self) -> Result<()>;

    /// The device's memory; None where host memory is used.
    fn memory(&self) -> Result<Option<Memory>>;
}

/// A dense product in the weight's own type.
pub(super) fn dense_product(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let weight = weight.squeeze(0)?;
    let x = x.to_dtype(weight.dtype())?;
    x.matmul(&weight.t()?)?.to_dtype(DType::F32)
}
