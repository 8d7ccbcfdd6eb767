//! What a device's kernels do, over candle's tensors.
//!
//! Each device implements the operations that the tensor library lacks there; the others have a plain form here, of tensor
//! operations that every device has, which a device replaces where one kernel does it faster. [`super::host::HostKernels`] has the
//! contract of all of them in plain loops.

use std::cell::OnceCell;

use candle_core::{D, DType, Device, Result, Tensor};
use candle_nn::ops;

use super::device::Memory;
use super::index::{GroupIndex, StepIndex};
use super::pages::LayerPages;
use super::weight::GpuWeight;
use crate::backend::{Activation, AttendSpec, Gated, RopeStyle, RouteSpec};
use crate::reference;

/// How weights and pages lie on a device: what its kernels read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// A stack of matrices is one tensor; pages lie as `mistralrs-paged-attn` wants them.
    Stacked,
    /// Each matrix is a tensor of its own; a block of pages is a matrix with a row per position.
    Apart,
}

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

/// Where what is read from a device lies on the host. It is kept from step to step: logits are so large that new memory for them would
/// cost more than the copy.
#[derive(Default)]
pub struct HostRoom {
    values: Vec<f32>,
    /// What the GPU writes to by itself.
    #[cfg(feature = "cuda")]
    pub(super) pinned: Option<candle_core::cuda_backend::cudarc::driver::PinnedHostSlice<f32>>,
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
    /// What the device holds weights and pages as.
    fn form(&self) -> Form {
        Form::Stacked
    }

    /// Writes T keys and values into their slots of a layer's pages.
    fn write(&self, call: &Attention<'_>) -> Result<()>;

    /// Causal attention over pages: `[T, heads * value_dim]`.
    fn attend(&self, call: &Attention<'_>) -> Result<(Tensor, Forms)>;

    /// From logits `[T, experts]` to ids u32 `[T, K]`, which may be on the host, and weights `[T, K]`.
    fn route(&self, logits: &Tensor, bias: &RouteBias<'_>, spec: &RouteSpec) -> Result<(Tensor, Tensor)>;

    /// `x W^T`: `[T, cols]` to `[T, rows]`.
    fn product(&self, x: &Operand<'_>, weight: &GpuWeight) -> Result<Tensor>;

    /// A dense gated feed-forward: `[T, hidden]`.
    fn feed_forward(&self, x: &Operand<'_>, ffn: &Gated<'_, GpuWeight, Tensor>) -> Result<Tensor> {
        let (gate, up) = (self.product(x, ffn.gate)?, self.product(x, ffn.up)?);
        let inner = self.glu(&gate, &up, ffn.activation)?;
        self.product(&Operand { values: &inner, forms: &Forms::default() }, ffn.down)
    }

    /// Each matrix of a stack with rows of its own: x `[T, matrices, cols]` to `[T, matrices, rows]`.
    fn product_each(&self, x: &Tensor, weight: &GpuWeight) -> Result<Tensor> {
        product_each_dense(x, &weight.values(x.device())?)
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

    /// A tensor's values, on the host.
    fn read<'a>(&self, x: &Tensor, room: &'a mut HostRoom) -> Result<&'a [f32]> {
        room.values = x.flatten_all()?.to_vec1()?;
        Ok(&room.values)
    }

    /// Waits until all is done that was asked for, so that its errors are known.
    fn synchronize(&self) -> Result<()>;

    /// The device's memory; None where host memory is used.
    fn memory(&self) -> Result<Option<Memory>>;
}

/// A dense product in the weight's own type, `[rows, cols]`. With halves, the largest value of each row of x is made 1 and the result
/// multiplied with it again: what is too large for a half is then none of the values, and no result that a model of any use has.
pub(super) fn dense_product(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    let weight_of = weight.t()?;
    if weight.dtype() != DType::F16 {
        return x.to_dtype(weight.dtype())?.matmul(&weight_of)?.to_dtype(DType::F32);
    }
    // Of a row of zeros, 1 or so.
    let largest = x.abs()?.max_keepdim(1)?.maximum(f64::from(f32::MIN_POSITIVE))?;
    let y = x.broadcast_div(&largest)?.to_dtype(DType::F16)?.matmul(&weight_of)?;
    y.to_dtype(DType::F32)?.broadcast_mul(&largest)
}

/// [`Kernels::product_each`] with matrices in F32, `[matrices, rows, cols]`.
pub(super) fn product_each_dense(x: &Tensor, stack: &Tensor) -> Result<Tensor> {
    let x = x.transpose(0, 1)?.contiguous()?;
    x.matmul(&stack.transpose(1, 2)?.contiguous()?)?.transpose(0, 1)?.contiguous()
}

/// [`Kernels::route`] by the reference's rule, on the host: ids stay there, weights go to the device of the logits.
pub(super) fn route_on_host(
    logits: &Tensor,
    bias: &RouteBias<'_>,
    spec: &RouteSpec,
) -> Result<(Tensor, Tensor)> {
    let (tokens, k) = (logits.dim(0)?, spec.top_k as usize);
    // What is read comes in one go: each read waits for the device.
    let mut parts = vec![logits.clone()];
    for bias in [bias.logits, bias.choice].into_iter().flatten() {
        parts.push(bias.unsqueeze(0)?);
    }
    let mut rows = Tensor::cat(&parts, 0)?.to_vec2::<f32>()?;
    let mut biases = rows.split_off(tokens).into_iter();
    let biases = [bias.logits, bias.choice].map(|bias| bias.and_then(|_| biases.next()));
    let (mut ids, mut weights) = (Vec::new(), Vec::new());
    for row in &mut rows {
        let (experts, of_them) = reference::choose_experts(row, biases.each_ref().map(Option::as_ref), spec);
        ids.extend(experts);
        weights.extend(of_them);
    }
    let shape = (tokens, k);
    Ok((Tensor::from_vec(ids, shape, &Device::Cpu)?, Tensor::from_vec(weights, shape, logits.device())?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_too_large_for_a_half_pass_through_a_product_of_halves() {
        let weight = Tensor::new(&[[1.0_f32, -2.0, 0.5], [0.25, 0.0, 4.0]], &Device::Cpu).unwrap();
        let weight = weight.to_dtype(DType::F16).unwrap();
        let x = [[3e6_f32, 1e6, -2e6], [0.0, 0.0, 0.0], [1e-3, 2e-3, 4e-3]];
        let y = dense_product(&Tensor::new(&x, &Device::Cpu).unwrap(), &weight).unwrap();
        let expected = [[0.0_f32, -7.25e6], [0.0, 0.0], [-1e-3, 16.25e-3]];
        for (y, (expected, x)) in y.to_vec2::<f32>().unwrap().iter().zip(expected.iter().zip(x)) {
            let size = x.iter().fold(0.0_f32, |max, v| v.abs().max(max));
            for (y, expected) in y.iter().zip(expected) {
                assert!((y - expected).abs() <= size * 4e-3, "{y} for {expected}");
            }
        }
        // As it would be otherwise.
        let plain = Tensor::new(&x, &Device::Cpu).unwrap().to_dtype(DType::F16).unwrap();
        let plain = plain.matmul(&weight.t().unwrap()).unwrap().to_dtype(DType::F32).unwrap();
        assert!(!plain.to_vec2::<f32>().unwrap()[0][1].is_finite());
    }
}
