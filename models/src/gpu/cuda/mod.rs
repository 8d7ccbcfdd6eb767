//! NVIDIA GPUs: attention while decoding by mistral.rs's kernel, small products by candle's, large ones by cuBLAS, the rest by our own.
//!
//! One device, one stream, one thread: nothing overlaps, so nothing is tracked by events. An error that a kernel leaves behind shows at
//! the step's end, where results are waited for, and in every call after it: the device is lost (`Backend::recover`).

mod attend;
mod foreign;
mod launch;
mod products;

use std::cell::RefCell;
use std::collections::HashMap;

use candle_core::cuda_backend::cudarc::driver::sys;
use candle_core::cuda_backend::{CudaDevice, WrapErr as _};
use candle_core::{DType, Device, Result, Storage, Tensor, bail};

use super::device::Memory;
use super::error::GpuError;
use super::kernels::{Angles, Attention, Forms, HostRoom, Kernels, Operand, RouteBias};
use super::weight::GpuWeight;
use crate::backend::{Activation, Gated, Gating, GroupScore, RopeStyle, RouteSpec};
use launch::{Address, Arg, Own, address, address_or_null, unwritten};

/// Up to so many rows a norm's result is rounded at once for products of integers.
const ROUNDED_ROWS: usize = 63;

/// A GPU that was opened.
pub(super) struct Opened {
    pub device: Device,
    pub kernels: CudaKernels,
    pub name: String,
}

/// See the module.
pub(super) struct CudaKernels {
    device: CudaDevice,
    own: Own,
    /// Pairs and tiles of dense products by their rows.
    one_expert: RefCell<HashMap<usize, (Tensor, Tensor)>>,
}

/// Opens a GPU by its number and compiles our kernels for it.
pub(super) fn open(ordinal: usize) -> std::result::Result<Opened, GpuError> {
    let device = Device::new_cuda(ordinal)?;
    let cuda = device.as_cuda_device()?.clone();
    // SAFETY: there is one stream, and tensors never leave it.
    #[expect(unsafe_code, reason = "a promise about streams")]
    unsafe {
        cuda.disable_event_tracking();
    }
    keep_freed_memory(&cuda)?;
    let name = cuda.cuda_stream().context().name().w()?;
    let own = Own::compile(&cuda)?;
    Ok(Opened { device, kernels: CudaKernels { device: cuda, own, one_expert: RefCell::default() }, name })
}

/// Lets the driver's pool keep what tensors give back: by default it returns all of it at every synchronisation.
fn keep_freed_memory(device: &CudaDevice) -> Result<()> {
    let context = device.cuda_stream().context().clone();
    if !context.has_async_alloc() {
        return Ok(());
    }
    let mut all = u64::MAX;
    let mut pool = std::ptr::null_mut();
    // SAFETY: the device is open; the attribute's value is a u64 (CUDA driver API, cuMemPoolSetAttribute).
    #[expect(unsafe_code, reason = "driver calls")]
    unsafe {
        sys::cuDeviceGetDefaultMemPool(&raw mut pool, context.cu_device()).result().w()?;
        let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        sys::cuMemPoolSetAttribute(pool, attribute, (&raw mut all).cast()).result().w()?;
    }
    Ok(())
}

impl CudaKernels {
    fn stream(&self) -> *mut std::ffi::c_void {
        self.device.cuda_stream().cu_stream().cast()
    }

    /// What went wrong so far, without waiting: launchers that are not ours end the process where they meet an error.
    fn lost(&self) -> Result<()> {
        // SAFETY: the stream is open.
        #[expect(unsafe_code, reason = "a driver call")]
        match unsafe { sys::cuStreamQuery(self.device.cuda_stream().cu_stream()) } {
            sys::CUresult::CUDA_ERROR_NOT_READY => Ok(()),
            state => state.result().w(),
        }
    }

    fn flat(
        &self,
        name: &'static str,
        shape: &Tensor,
        args: impl FnOnce(Address, i64) -> Vec<Arg>,
    ) -> Result<Tensor> {
        let y = unwritten::<f32>(&self.device, shape.shape())?;
        let total = shape.elem_count();
        self.own.launch_flat(name, total, &args(address(&y)?, total as i64))?;
        Ok(y)
    }
}

impl Kernels for CudaKernels {
    fn write(&self, call: &Attention<'_>) -> Result<()> {
        let (tokens, pages) = (call.q.dim(0)?, &call.pages.keys);
        let dtype = pages.dtype();
        match (&call.pages.values, call.v) {
            (None, None) => {
                let name = if dtype == DType::F16 { "write_latent_f16" } else { "write_latent_f32" };
                let args = [
                    Arg::At(address(call.k)?),
                    Arg::At(address(pages)?),
                    Arg::At(address(&call.group.slots)?),
                    Arg::Int(call.spec.key_dim as i32),
                ];
                self.own.launch(name, (tokens, 1, 1), (128, 1), 0, &args)
            }
            (Some(values), Some(v)) => {
                let spec = call.spec;
                let (_, kv_heads, parts, block, x) = pages.dims5()?;
                let dims = [call.k.dims(), v.dims()];
                let (key_dim, value_dim) = (parts * x, values.dim(2)?);
                if dims != [&[tokens, kv_heads, key_dim], &[tokens, kv_heads, value_dim]]
                    || call.group.slots.dims() != [tokens]
                    || x * dtype.size_in_bytes() != 16
                {
                    bail!(
                        "keys and values of {dims:?} for {tokens} tokens in pages {:?}, {spec:?}",
                        pages.dims()
                    );
                }
                let name = if dtype == DType::F16 { "write_pages_f16" } else { "write_pages_f32" };
                let args = [
                    Arg::At(address(call.k)?),
                    Arg::At(address(v)?),
                    Arg::At(address(pages)?),
                    Arg::At(address(values)?),
                    Arg::At(address(&call.group.slots)?),
                    Arg::Int(kv_heads as i32),
                    Arg::Int(key_dim as i32),
                    Arg::Int(value_dim as i32),
                    Arg::Int(block as i32),
                ];
                self.own.launch(name, (tokens, 1, 1), (256, 1), 0, &args)
            }
            _ => bail!("values without pages for them, or the other way round"),
        }
    }

    fn attend(&self, call: &Attention<'_>) -> Result<(Tensor, Forms)> {
        self.attend_all(call)
    }

    fn route(&self, logits: &Tensor, bias: &RouteBias<'_>, spec: &RouteSpec) -> Result<(Tensor, Tensor)> {
        let (tokens, experts) = logits.dims2()?;
        let k = spec.top_k as usize;
        let ids = unwritten::<u32>(&self.device, (tokens, k))?;
        let weights = unwritten::<f32>(&self.device, (tokens, k))?;
        let (groups, used, best) = spec
            .groups
            .map_or((1, 1, 1), |g| (g.count, g.used, if g.score == GroupScore::BestTwo { 2 } else { 1 }));
        let gating = match spec.gating {
            Gating::Softmax => 0,
            Gating::Sigmoid => 1,
            Gating::ChosenSoftmax => 2,
        };
        let args = [
            Arg::At(address(logits)?),
            Arg::At(address_or_null(bias.logits)?),
            Arg::At(address_or_null(bias.choice)?),
            Arg::At(address(&ids)?),
            Arg::At(address(&weights)?),
            Arg::Int(experts as i32),
            Arg::Int(k as i32),
            Arg::Int(gating),
            Arg::Int(groups as i32),
            Arg::Int(used as i32),
            Arg::Int(best),
            Arg::Int(i32::from(spec.normalise)),
            Arg::Float(RouteSpec::SUM_MIN),
            Arg::Float(spec.scale),
        ];
        let shared = 4 * (2 * experts + groups as usize) + experts + groups as usize;
        self.own.launch("route", (tokens, 1, 1), (32, 1), shared, &args)?;
        Ok((ids, weights))
    }

    fn product(&self, x: &Operand<'_>, weight: &GpuWeight) -> Result<Tensor> {
        self.dense(x, weight)
    }

    fn product_each(&self, x: &Tensor, weight: &GpuWeight) -> Result<Tensor> {
        self.per_matrix(x, weight)
    }

    fn feed_forward(&self, x: &Operand<'_>, ffn: &Gated<'_, GpuWeight, Tensor>) -> Result<Tensor> {
        self.gated(x, ffn)
    }

    fn mixture(
        &self,
        x: &Operand<'_>,
        routing: (&Tensor, &Tensor),
        ffn: &Gated<'_, GpuWeight, Tensor>,
    ) -> Result<Tensor> {
        self.experts(x, routing, ffn)
    }

    fn rms_norm(&self, x: &Tensor, weight: &Tensor, eps: f32) -> Result<(Tensor, Forms)> {
        let (rows, width) = x.dims2()?;
        let len = weight.elem_count();
        let groups = width / len;
        let y = unwritten::<f32>(&self.device, (rows, width))?;
        // Whole rows go into products, which for few rows are of integers.
        let whole = len == width && width.is_multiple_of(32) && rows <= ROUNDED_ROWS;
        let rounded = whole.then(|| self.rounded_rows(rows, width)).transpose()?;
        let args = [
            Arg::At(address(x)?),
            Arg::At(address(weight)?),
            Arg::At(address(&y)?),
            Arg::At(address_or_null(rounded.as_ref())?),
            Arg::Int(len as i32),
            Arg::Int(width as i32),
            Arg::Int(groups as i32),
            Arg::Int(width.next_multiple_of(512) as i32),
            Arg::Float(eps),
        ];
        let threads = len.next_multiple_of(32).clamp(32, 512);
        self.own.launch("rms_norm", (rows * groups, 1, 1), (threads, 1), 0, &args)?;
        Ok((y, Forms::rounded(rounded)))
    }

    fn rope(&self, x: &Tensor, head_dim: usize, angles: &Angles<'_>) -> Result<Tensor> {
        let (width, pairs) = (x.dim(1)?, angles.cos.dim(1)?);
        let x_at = address(x)?;
        let tables = [address(angles.cos)?, address(angles.sin)?, address(angles.positions)?];
        self.flat("rope", x, |y, total| {
            vec![
                Arg::At(x_at),
                Arg::At(tables[0]),
                Arg::At(tables[1]),
                Arg::At(tables[2]),
                Arg::At(y),
                Arg::Long(total),
                Arg::Int(width as i32),
                Arg::Int(head_dim as i32),
                Arg::Int(angles.first as i32),
                Arg::Int(pairs as i32),
                Arg::Int(i32::from(angles.style == RopeStyle::Neox)),
            ]
        })
    }

    fn glu(&self, gate: &Tensor, up: &Tensor, activation: Activation) -> Result<Tensor> {
        if gate.dims() != up.dims() {
            bail!("gate {:?} and up {:?}", gate.dims(), up.dims());
        }
        let [gate_at, up_at] = [address(gate)?, address(up)?];
        let kind = i32::from(activation == Activation::ClampedSwiglu);
        self.flat("glu", gate, |y, total| {
            vec![Arg::At(gate_at), Arg::At(up_at), Arg::At(y), Arg::Long(total), Arg::Int(kind)]
        })
    }

    fn add_chosen(&self, x: &Tensor, bias: &Tensor, ids: &Tensor) -> Result<Tensor> {
        let (_, _, n) = x.dims3()?;
        let [x_at, bias_at, ids_at] = [address(x)?, address(bias)?, address(ids)?];
        self.flat("add_chosen", x, |y, total| {
            vec![
                Arg::At(x_at),
                Arg::At(bias_at),
                Arg::At(ids_at),
                Arg::At(y),
                Arg::Long(total),
                Arg::Int(n as i32),
            ]
        })
    }

    fn combine(&self, x: &Tensor, weights: Option<&Tensor>) -> Result<Tensor> {
        let (tokens, k, n) = x.dims3()?;
        let y = unwritten::<f32>(&self.device, (tokens, n))?;
        let args = [
            Arg::At(address(x)?),
            Arg::At(address_or_null(weights)?),
            Arg::At(address(&y)?),
            Arg::Long((tokens * n) as i64),
            Arg::Int(n as i32),
            Arg::Int(k as i32),
        ];
        self.own.launch_flat("combine", tokens * n, &args)?;
        Ok(y)
    }

    fn add(&self, x: &Tensor, y: &Tensor, factor: f32) -> Result<Tensor> {
        if x.dims() != y.dims() {
            bail!("a sum of {:?} and {:?}", x.dims(), y.dims());
        }
        let [x_at, y_at] = [address(x)?, address(y)?];
        self.flat("add_scaled", x, |z, total| {
            vec![Arg::At(x_at), Arg::At(y_at), Arg::At(z), Arg::Long(total), Arg::Float(factor)]
        })
    }

    fn read<'a>(&self, x: &Tensor, room: &'a mut HostRoom) -> Result<&'a [f32]> {
        let x = x.contiguous()?;
        let (storage, layout) = x.storage_and_layout();
        let Storage::Cuda(storage) = &*storage else { bail!("a tensor of the host") };
        let (begin, len) = (layout.start_offset(), x.elem_count());
        let from = storage.as_cuda_slice::<f32>()?.slice(begin..begin + len);
        let stream = self.device.cuda_stream();
        if room.pinned.as_ref().is_none_or(|pinned| pinned.len() < len) {
            // Not write-combined, as the library would have it: that is for what the host never reads.
            // SAFETY: what is read of it was written to before.
            #[expect(unsafe_code, reason = "memory that is not yet written")]
            let pinned =
                unsafe { stream.context().alloc_pinned_with_flags(len.next_power_of_two(), 0) }.w()?;
            room.pinned = Some(pinned);
        }
        let room = room.pinned.as_mut().map(|pinned| pinned.as_mut_slice()).transpose().w()?;
        let Some(to) = room.and_then(|room| room.get_mut(..len)) else { bail!("no room for {len} values") };
        stream.memcpy_dtoh(&from, &mut *to).w()?;
        stream.synchronize().w()?;
        Ok(to)
    }

    fn synchronize(&self) -> Result<()> {
        self.device.cuda_stream().synchronize().w()
    }

    fn memory(&self) -> Result<Option<Memory>> {
        let (free, total) = self.device.cuda_stream().context().mem_get_info().w()?;
        Ok(Some(Memory { total: total as u64, free: free as u64 }))
    }
}
