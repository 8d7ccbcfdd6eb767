//! The kernels' contracts in plain loops, for tensors of candle's CPU device.
//!
//! For tests: what runs here is the GPU backend but for the kernels themselves. Slow on purpose.

use candle_core::quantized::QMatMul;
use candle_core::{CpuStorage, DType, Device, InplaceOp3, Layout, Module, Result, Tensor, bail};
use half::f16;

use super::device::Memory;
use super::kernels::{Attention, Forms, Kernels, Operand, RouteBias, dense_product, route_on_host};
use super::weight::{GpuWeight, Store};
use crate::backend::{Gated, RouteSpec};
use crate::reference;

/// See the module.
pub(super) struct HostKernels;

impl Kernels for HostKernels {
    fn write(&self, call: &Attention<'_>) -> Result<()> {
        let dtype = call.pages.keys.dtype();
        let slots = &call.group.slots;
        let write = |pages: &Tensor, values: &Tensor, rank: usize| {
            let values = values.to_dtype(dtype)?.contiguous()?;
            pages.inplace_op3(&values, slots, &Write { rank })
        };
        write(&call.pages.keys, call.k, call.pages.keys.rank())?;
        match (&call.pages.values, call.v) {
            (Some(pages), Some(values)) => write(pages, values, 4),
            (None, None) => Ok(()),
            _ => bail!("values without pages for them, or the other way round"),
        }
    }

    fn attend(&self, call: &Attention<'_>) -> Result<(Tensor, Forms)> {
        let spec = call.spec;
        let (heads, key_dim) = (spec.heads as usize, spec.key_dim as usize);
        let (kv_heads, value_dim) = (spec.kv_heads as usize, spec.value_dim as usize);
        let q = call.q.flatten_all()?.to_vec1::<f32>()?;
        let flat = |t: &Tensor| t.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>();
        let keys = flat(&call.pages.keys)?;
        let values = call.pages.values.as_ref().map(flat).transpose()?;
        let sinks = call.sinks.map(|s| s.to_vec1::<f32>()).transpose()?;
        let tables = call.group.tables.to_vec2::<u32>()?;
        let firsts = call.group.firsts.to_vec1::<u32>()?;
        let block = call.block_tokens;
        let key_at = Place::of(call.pages.keys.dims(), call.pages.keys.rank())?;
        let value_at = call.pages.values.as_ref().map(|v| Place::of(v.dims(), 4)).transpose()?;
        let mut out = vec![0.0; call.q.dim(0)? * heads * value_dim];
        let group = heads / kv_heads;
        for ((span, table), first) in call.step.spans.iter().zip(&tables).zip(&firsts) {
            let seen_by = |i: usize| spec.first_seen((span.start + i) as u32) as usize..span.start + i + 1;
            let all = seen_by(0).start..span.start + span.len;
            for kv_head in 0..kv_heads {
                let (mut all_keys, mut all_values) = (Vec::new(), Vec::new());
                for p in all.clone() {
                    let slot = table[p / block - *first as usize] as usize * block + p % block;
                    let key = |d: usize| keys[key_at.index(slot, kv_head, d)];
                    all_keys.extend((0..key_dim).map(key));
                    match (&values, &value_at) {
                        (Some(values), Some(at)) => {
                            all_values.extend((0..value_dim).map(|d| values[at.index(slot, kv_head, d)]));
                        }
                        _ => all_values.extend((0..value_dim).map(key)),
                    }
                }
                for (i, head) in (0..span.len).flat_map(|i| (0..group).map(move |g| (i, kv_head * group + g)))
                {
                    let (row, seen) = (span.begin + i, seen_by(i));
                    let seen = seen.start - all.start..seen.end - all.start;
                    reference::attend_one(
                        &q[(row * heads + head) * key_dim..][..key_dim],
                        &all_keys[seen.start * key_dim..seen.end * key_dim],
                        &all_values[seen.start * value_dim..seen.end * value_dim],
                        (spec.scale, sinks.as_ref().map(|s| s[head])),
                        &mut out[(row * heads + head) * value_dim..][..value_dim],
                    );
                }
            }
        }
        let out = Tensor::from_vec(out, (call.q.dim(0)?, heads * value_dim), &Device::Cpu)?;
        Ok((out, Forms::default()))
    }

    fn route(&self, logits: &Tensor, bias: &RouteBias<'_>, spec: &RouteSpec) -> Result<(Tensor, Tensor)> {
        route_on_host(logits, bias, spec)
    }

    fn product(&self, x: &Operand<'_>, weight: &GpuWeight) -> Result<Tensor> {
        match &weight.store {
            Store::Quantized(q) => QMatMul::QTensor(q.clone()).forward(x.values),
            _ => dense_product(x.values, &weight.values(&Device::Cpu)?.squeeze(0)?),
        }
    }

    fn mixture(
        &self,
        x: &Operand<'_>,
        (ids, weights): (&Tensor, &Tensor),
        ffn: &Gated<'_, GpuWeight, Tensor>,
    ) -> Result<Tensor> {
        let product = |x: &Tensor, weight: &GpuWeight, bias: usize| -> Result<Tensor> {
            let y = gather(x, weight, ids)?;
            match &ffn.biases {
                None => Ok(y),
                Some(biases) => self.add_chosen(&y, biases[bias], ids),
            }
        };
        let x = x.values.unsqueeze(1)?;
        let (gate, up) = (product(&x, ffn.gate, 0)?, product(&x, ffn.up, 1)?);
        let inner = self.glu(&gate, &up, ffn.activation)?;
        self.combine(&product(&inner, ffn.down, 2)?, Some(weights))
    }

    fn synchronize(&self) -> Result<()> {
        Ok(())
    }

    fn memory(&self) -> Result<Option<Memory>> {
        Ok(None)
    }
}

/// Products with chosen matrices of a stack: x `[T, 1, cols]` or `[T, K, cols]`, ids u32 `[T, K]`; to `[T, K, rows]`.
fn gather(x: &Tensor, weight: &GpuWeight, ids: &Tensor) -> Result<Tensor> {
    let (tokens, k) = ids.dims2()?;
    let stack = weight.values(&Device::Cpu)?;
    let x = x.broadcast_as((tokens, k, weight.cols))?.contiguous()?;
    let mut rows = Vec::with_capacity(tokens * k);
    for (t, chosen) in ids.to_vec2::<u32>()?.into_iter().enumerate() {
        for (j, expert) in chosen.into_iter().enumerate() {
            let x = x.get(t)?.get(j)?.unsqueeze(0)?;
            rows.push(x.matmul(&stack.get(expert as usize)?.t()?)?);
        }
    }
    Tensor::cat(&rows, 0)?.reshape((tokens, k, weight.rows))
}

/// Where a value lies in pages of each layout (module `pages`).
enum Place {
    /// `[blocks, kv_heads, dim / x, block_tokens, x]`.
    Keys { heads: usize, dim: usize, block: usize, x: usize },
    /// `[blocks, kv_heads, dim, block_tokens]`.
    Values { heads: usize, dim: usize, block: usize },
    /// `[blocks, block_tokens, dim]`.
    Latent { dim: usize },
}

impl Place {
    fn of(dims: &[usize], rank: usize) -> Result<Self> {
        match (rank, dims) {
            (5, &[_, heads, parts, block, x]) => Ok(Self::Keys { heads, dim: parts * x, block, x }),
            (4, &[_, heads, dim, block]) => Ok(Self::Values { heads, dim, block }),
            (3, &[_, _, dim]) => Ok(Self::Latent { dim }),
            _ => bail!("no layout of pages: {dims:?}"),
        }
    }

    fn index(&self, slot: usize, head: usize, d: usize) -> usize {
        match *self {
            Self::Keys { heads, dim, block, x } => {
                let (b, at) = (slot / block, slot % block);
                (((b * heads + head) * (dim / x) + d / x) * block + at) * x + d % x
            }
            Self::Values { heads, dim, block } => {
                let (b, at) = (slot / block, slot % block);
                ((b * heads + head) * dim + d) * block + at
            }
            Self::Latent { dim } => slot * dim + d,
        }
    }
}

/// Writes `[tokens, kv_heads, dim]` into pages; slots below 0 are skipped.
struct Write {
    rank: usize,
}

impl InplaceOp3 for Write {
    fn name(&self) -> &'static str {
        "write-pages"
    }

    fn cpu_fwd(
        &self,
        pages: &mut CpuStorage,
        pages_layout: &Layout,
        values: &CpuStorage,
        values_layout: &Layout,
        slots: &CpuStorage,
        slots_layout: &Layout,
    ) -> Result<()> {
        let at = Place::of(pages_layout.dims(), self.rank)?;
        let (_, heads, dim) = values_layout.shape().dims3()?;
        let CpuStorage::I64(slots) = slots else { bail!("slots are i64") };
        let slots = &slots[slots_layout.start_offset()..][..slots_layout.shape().elem_count()];
        fn put<T: Copy>(
            pages: &mut [T],
            values: &[T],
            slots: &[i64],
            (heads, dim): (usize, usize),
            at: &Place,
        ) {
            for (t, &slot) in slots.iter().enumerate() {
                let Ok(slot) = usize::try_from(slot) else { continue };
                for head in 0..heads {
                    for d in 0..dim {
                        pages[at.index(slot, head, d)] = values[(t * heads + head) * dim + d];
                    }
                }
            }
        }
        let from = values_layout.start_offset();
        match (pages, values) {
            (CpuStorage::F32(p), CpuStorage::F32(v)) => put::<f32>(p, &v[from..], slots, (heads, dim), &at),
            (CpuStorage::F16(p), CpuStorage::F16(v)) => put::<f16>(p, &v[from..], slots, (heads, dim), &at),
            _ => bail!("pages are f16 or f32, and what is written is of their type"),
        }
        Ok(())
    }
}
