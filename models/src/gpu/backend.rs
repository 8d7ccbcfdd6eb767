//! The operations of an architecture, in terms of kernels.

use std::sync::Arc;

use candle_core::{DType, Tensor};

use super::device::{GpuDevice, Memory};
use super::error::{GpuError, contract};
use super::index::StepIndex;
use super::kernels::{Angles, Attention, Forms, HostRoom, Kernels, Operand, RouteBias};
use super::pages::Pages;
use super::weight::{GpuWeight, floats, held_bytes};
use crate::backend::{AttendSpec, Backend, BackendError, Batch, Gated, Rope, RouteSpec, Router, WorkMeter};
use crate::cpu::Pool;
use crate::gguf::Gguf;
use crate::kv::{GroupLayout, PageType};
use crate::step::StepStats;
use crate::weights::TensorView;

/// See the module.
pub struct GpuBackend {
    device: candle_core::Device,
    kernels: Box<dyn Kernels>,
    meter: WorkMeter,
    /// None until [`GpuBackend::reserve`].
    pages: Option<Pages>,
    /// Of the step that runs.
    step: Option<StepIndex>,
    turns: Vec<Turns>,
    /// Experts chosen in this step, not yet brought back.
    chosen: Vec<Chosen>,
    /// Host threads, which choose tokens.
    pool: Option<Pool>,
}

/// Activations `[rows, width]`, F32 on the device.
pub struct GpuTensor {
    values: Tensor,
    /// Of these values: who changes them replaces it.
    forms: Forms,
    /// Which of the batch's tokens the rows are, if not all.
    selected: Option<Arc<[u32]>>,
}

/// The experts and weights of each token.
pub struct GpuRouting {
    /// u32 `[tokens, K]`.
    ids: Tensor,
    /// F32 `[tokens, K]`.
    weights: Tensor,
}

/// Cos and sin of a rotation's angles by position, as far as positions have come.
struct Turns {
    frequencies: Vec<f64>,
    scale: f32,
    positions: usize,
    cos: Tensor,
    sin: Tensor,
}

/// What the meter wants to know of one layer's experts.
struct Chosen {
    ids: Tensor,
    selected: Option<Arc<[u32]>>,
    top_k: usize,
    experts: usize,
    bytes: u64,
    macs: u64,
}

impl GpuBackend {
    /// Without a cache as yet.
    pub fn new(device: GpuDevice) -> Self {
        let (device, kernels) = device.into_parts();
        let (pages, step) = (None, None);
        Self {
            device,
            kernels,
            meter: WorkMeter::default(),
            pages,
            step,
            turns: Vec::new(),
            chosen: Vec::new(),
            pool: None,
        }
    }

    /// With so many host threads for [`Backend::spread`], instead of the calling one alone.
    ///
    /// # Errors
    /// If the system does not start them.
    pub fn with_threads(self, threads: usize, pin: bool) -> std::io::Result<Self> {
        Ok(Self { pool: Some(Pool::new(threads, pin)?), ..self })
    }

    /// Takes a cache's memory, and gives back that of the one before.
    ///
    /// # Errors
    /// If the device has not so much, or the kernels have no layout for a group.
    pub fn reserve(
        &mut self,
        groups: &[GroupLayout],
        block_tokens: usize,
        page: PageType,
    ) -> Result<(), GpuError> {
        self.pages = None;
        self.pages = Some(Pages::new(groups, block_tokens, page, (&self.device, self.kernels.form()))?);
        Ok(())
    }

    /// Bytes that this process may still take if all on the device may take `percent` of its memory; None where host memory is used.
    ///
    /// # Errors
    /// If the driver does not say.
    pub fn memory_left(&self, percent: u8) -> Result<Option<u64>, GpuError> {
        self.kernels.synchronize()?;
        let Some(Memory { total, free }) = self.kernels.memory()? else { return Ok(None) };
        Ok(Some((total / 100 * u64::from(percent)).saturating_sub(total - free)))
    }

    /// Bytes of a model's weights on the device, about: of what it computes with, not of the table of embeddings where that is another
    /// tensor than the head.
    pub fn held_bytes(&self, gguf: &Gguf) -> u64 {
        held_bytes(gguf, self.kernels.form())
    }

    /// Bytes read and written per second by a copy of one large tensor.
    pub(super) fn copy_rate(&self) -> Result<f64, GpuError> {
        let values = if self.device.is_cpu() { 1 << 20 } else { 1 << 28 };
        let from = Tensor::zeros(values, DType::F32, &self.device)?;
        drop(from.force_contiguous()?);
        self.kernels.synchronize()?;
        let begin = std::time::Instant::now();
        for _ in 0..8 {
            // `copy` would share the bytes on Metal.
            drop(from.force_contiguous()?);
        }
        self.kernels.synchronize()?;
        Ok(8.0 * 2.0 * 4.0 * values as f64 / begin.elapsed().as_secs_f64())
    }

    /// Waits until the device has done all that it was told.
    ///
    /// # Errors
    /// What went wrong there since.
    pub fn synchronize(&self) -> Result<(), GpuError> {
        Ok(self.kernels.synchronize()?)
    }

    fn count(&mut self, bytes: u64, macs: u64, x: &GpuTensor) {
        match &x.selected {
            None => self.meter.dense(bytes, macs),
            Some(tokens) => self.meter.dense_selected(bytes, macs, tokens),
        }
    }

    fn step(&self) -> Result<&StepIndex, GpuError> {
        self.step.as_ref().ok_or_else(|| contract("step", "none has begun"))
    }

    /// The index in `turns` of a rotation's table, which reaches as far as the batch's positions.
    fn turns(&mut self, rope: &Rope, batch: &Batch) -> Result<usize, GpuError> {
        let needed = batch.positions.iter().max().map_or(0, |&p| p as usize) + 1;
        let known = |t: &Turns| t.scale == rope.scale && t.frequencies == rope.frequencies;
        let at = self.turns.iter().position(known);
        if let Some(at) = at
            && self.turns[at].positions >= needed
        {
            return Ok(at);
        }
        let turns = Turns::new(rope, needed.next_power_of_two().max(4096), &self.device)?;
        match at {
            Some(at) => self.turns[at] = turns,
            None => self.turns.push(turns),
        }
        Ok(at.unwrap_or(self.turns.len() - 1))
    }
}

impl Turns {
    fn new(rope: &Rope, positions: usize, device: &candle_core::Device) -> Result<Self, GpuError> {
        let angle = |position: usize| rope.frequencies.iter().map(move |f| position as f64 * f);
        let (sin, cos): (Vec<f32>, Vec<f32>) = (0..positions)
            .flat_map(angle)
            .map(|a| {
                let (sin, cos) = a.sin_cos();
                (sin as f32 * rope.scale, cos as f32 * rope.scale)
            })
            .unzip();
        let shape = (positions, rope.frequencies.len());
        Ok(Self {
            frequencies: rope.frequencies.clone(),
            scale: rope.scale,
            positions,
            cos: Tensor::from_vec(cos, shape, device)?,
            sin: Tensor::from_vec(sin, shape, device)?,
        })
    }
}

impl GpuTensor {
    fn like(&self, values: Tensor) -> Self {
        Self { values, forms: Forms::default(), selected: self.selected.clone() }
    }

    fn operand(&self) -> Operand<'_> {
        Operand { values: &self.values, forms: &self.forms }
    }

    fn set(&mut self, values: Tensor) {
        self.values = values;
        self.forms = Forms::default();
    }

    fn rows(&self) -> Result<usize, GpuError> {
        Ok(self.values.dim(0)?)
    }

    fn width(&self) -> Result<usize, GpuError> {
        Ok(self.values.dim(1)?)
    }
}

/// A named error unless `holds`.
fn require(holds: bool, operation: &'static str, what: &str) -> Result<(), GpuError> {
    if holds { Ok(()) } else { Err(contract(operation, what)) }
}

fn own(error: candle_core::Error) -> BackendError {
    GpuError::from(error).into()
}

impl Backend for GpuBackend {
    type Tensor = GpuTensor;
    type Weight = GpuWeight;
    type Room = HostRoom;
    type Vector = Tensor;
    type Routing = GpuRouting;

    fn load_weight(&mut self, view: &TensorView) -> Result<GpuWeight, BackendError> {
        Ok(GpuWeight::load(view, &self.device, self.kernels.form())?)
    }

    fn load_embedding(&mut self, view: &TensorView) -> Result<GpuWeight, BackendError> {
        Ok(GpuWeight::table(view))
    }

    fn load_vector(&mut self, view: &TensorView) -> Result<Tensor, BackendError> {
        let values = floats(view);
        let len = values.len();
        Tensor::from_vec(values, len, &self.device).map_err(own)
    }

    fn begin(&mut self, batch: &Batch) -> Result<(), BackendError> {
        self.meter.begin(batch);
        self.chosen.clear();
        let (block_tokens, blocks) =
            self.pages.as_ref().map_or((1, Vec::new()), |pages| (pages.block_tokens, pages.blocks()));
        if let Some(pages) = &self.pages {
            pages.copy(&batch.copies)?;
        }
        self.step = match batch.tokens.is_empty() {
            true => None,
            false => Some(StepIndex::new(batch, block_tokens, &blocks, &self.device)?),
        };
        Ok(())
    }

    fn embed(&mut self, table: &GpuWeight, batch: &Batch) -> Result<GpuTensor, BackendError> {
        let rows = batch.tokens.iter().map(|t| t.0 as usize);
        let values = table.look_up(rows)?;
        let shape = (batch.tokens.len(), table.cols);
        let values = Tensor::from_vec(values, shape, &self.device).map_err(own)?;
        Ok(GpuTensor { values, forms: Forms::default(), selected: None })
    }

    fn rms_norm(&mut self, x: &GpuTensor, weight: &Tensor, eps: f32) -> Result<GpuTensor, BackendError> {
        let (len, width) = (weight.elem_count(), x.width()?);
        require(0 < len && len <= width, "rms_norm", "at least one group")?;
        self.count(4 * len as u64, width as u64, x);
        let (values, forms) = self.kernels.rms_norm(&x.values, weight, eps).map_err(own)?;
        Ok(GpuTensor { values, forms, selected: x.selected.clone() })
    }

    fn linear(&mut self, x: &GpuTensor, weights: &[&GpuWeight]) -> Result<Vec<GpuTensor>, BackendError> {
        let mut all = Vec::with_capacity(weights.len());
        for w in weights {
            require(x.width()? == w.cols && w.experts == 1, "linear", "input width")?;
            self.count(w.matrix_bytes(), w.macs(), x);
            all.push(x.like(self.kernels.product(&x.operand(), w).map_err(own)?));
        }
        Ok(all)
    }

    fn add_bias(&mut self, x: &mut GpuTensor, bias: &Tensor) -> Result<(), BackendError> {
        x.set(x.values.broadcast_add(bias).map_err(own)?);
        Ok(())
    }

    fn per_head(&mut self, x: &GpuTensor, weight: &GpuWeight) -> Result<GpuTensor, BackendError> {
        let (heads, width) = (weight.experts, x.width()?);
        let head_dim = width / heads;
        require(width == head_dim * heads && weight.cols <= head_dim, "per_head", "heads of equal width")?;
        self.count(heads as u64 * weight.matrix_bytes(), heads as u64 * weight.macs(), x);
        let product = || -> candle_core::Result<Tensor> {
            let rows = x.values.dim(0)?;
            let x = x.values.reshape((rows, heads, head_dim))?;
            let out = self.kernels.product_each(&x.narrow(2, 0, weight.cols)?.contiguous()?, weight)?;
            let rest = x.narrow(2, weight.cols, head_dim - weight.cols)?;
            let out = if head_dim > weight.cols { Tensor::cat(&[out, rest], 2)? } else { out };
            out.contiguous()?.reshape((rows, heads * (weight.rows + head_dim - weight.cols)))
        };
        Ok(x.like(product().map_err(own)?))
    }

    fn rope(
        &mut self,
        x: &mut GpuTensor,
        head_dim: u32,
        rope: &Rope,
        batch: &Batch,
    ) -> Result<(), BackendError> {
        let head_dim = head_dim as usize;
        let turned = rope.first as usize + 2 * rope.frequencies.len();
        require(x.width()?.is_multiple_of(head_dim) && turned <= head_dim, "rope", "whole heads")?;
        require(x.rows()? == batch.tokens.len(), "rope", "the batch's tokens")?;
        let at = self.turns(rope, batch)?;
        let turns = &self.turns[at];
        let angles = Angles {
            cos: &turns.cos,
            sin: &turns.sin,
            positions: &self.step()?.positions,
            first: rope.first as usize,
            style: rope.style,
        };
        let turned = self.kernels.rope(&x.values, head_dim, &angles).map_err(own)?;
        x.set(turned);
        Ok(())
    }

    fn attend(
        &mut self,
        q: &GpuTensor,
        k: &GpuTensor,
        v: Option<&GpuTensor>,
        sinks: Option<&Tensor>,
        spec: &AttendSpec,
        batch: &Batch,
    ) -> Result<GpuTensor, BackendError> {
        let pages = self.pages.as_ref().ok_or_else(|| contract("attend", "no cache is reserved"))?;
        let step = self.step()?;
        let group = spec.group as usize;
        let layer = pages.groups.get(group).and_then(|g| g.layers.get(spec.slot as usize));
        let layer = layer.ok_or_else(|| contract("attend", "no such layer in the cache"))?;
        let rows = batch.tokens.len();
        let heads = |x: &GpuTensor, heads: u32, dim: u32| {
            x.values.reshape((rows, heads as usize, dim as usize)).map_err(own)
        };
        let v = v.map(|v| heads(v, spec.kv_heads, spec.value_dim)).transpose()?;
        let call = Attention {
            q: &heads(q, spec.heads, spec.key_dim)?,
            k: &heads(k, spec.kv_heads, spec.key_dim)?,
            v: v.as_ref(),
            pages: layer,
            block_tokens: pages.block_tokens,
            sinks,
            spec,
            step,
            group: &step.groups[group],
        };
        self.kernels.write(&call).map_err(own)?;
        let (values, forms) = self.kernels.attend(&call).map_err(own)?;
        let dims = u64::from(spec.key_dim) + u64::from(spec.value_dim);
        let held = if call.v.is_some() { dims } else { u64::from(spec.key_dim) };
        let value_bytes = pages.dtype.size_in_bytes() as u64;
        for (i, span) in batch.spans.iter().enumerate() {
            let read = spec.positions_read(span) * u64::from(spec.kv_heads) * held * value_bytes;
            self.meter.attention(i, read, spec.positions_seen(span) * u64::from(spec.heads) * dims);
        }
        Ok(GpuTensor { values, forms, selected: q.selected.clone() })
    }

    fn route(
        &mut self,
        x: &GpuTensor,
        router: Router<'_, GpuWeight, Tensor>,
        spec: &RouteSpec,
    ) -> Result<GpuRouting, BackendError> {
        let experts = router.weight.rows;
        require(0 < spec.top_k && spec.top_k as usize <= experts, "route", "experts per token")?;
        self.count(router.weight.matrix_bytes(), router.weight.macs(), x);
        let logits = self.kernels.product(&x.operand(), router.weight).map_err(own)?;
        let bias = RouteBias { logits: router.bias, choice: router.choice_bias };
        let (ids, weights) = self.kernels.route(&logits, &bias, spec).map_err(own)?;
        Ok(GpuRouting { ids, weights })
    }

    fn experts(
        &mut self,
        x: &GpuTensor,
        routing: &GpuRouting,
        ffn: Gated<'_, GpuWeight, Tensor>,
        _batch: &Batch,
    ) -> Result<GpuTensor, BackendError> {
        let parts = [ffn.gate, ffn.up, ffn.down];
        let (tokens, top_k) = routing.ids.dims2().map_err(own)?;
        require(tokens == x.rows()?, "experts", "routed for the same tokens")?;
        self.chosen.push(Chosen {
            ids: routing.ids.clone(),
            selected: x.selected.clone(),
            top_k,
            experts: ffn.gate.experts,
            bytes: parts.iter().map(|w| w.matrix_bytes()).sum(),
            macs: parts.iter().map(|w| w.macs()).sum(),
        });
        let routing = (&routing.ids, &routing.weights);
        Ok(x.like(self.kernels.mixture(&x.operand(), routing, &ffn).map_err(own)?))
    }

    fn feed_forward(
        &mut self,
        x: &GpuTensor,
        ffn: Gated<'_, GpuWeight, Tensor>,
    ) -> Result<GpuTensor, BackendError> {
        require(ffn.biases.is_none(), "feed_forward", "no biases")?;
        for w in [ffn.gate, ffn.up, ffn.down] {
            self.count(w.matrix_bytes(), w.macs(), x);
        }
        Ok(x.like(self.kernels.feed_forward(&x.operand(), &ffn).map_err(own)?))
    }

    fn gate(&mut self, x: &mut GpuTensor, by: &GpuTensor, gate: &Tensor) -> Result<(), BackendError> {
        require(by.width()? == gate.elem_count() && x.rows()? == by.rows()?, "gate", "a gate for each row")?;
        self.count(4 * gate.elem_count() as u64, gate.elem_count() as u64, by);
        let factor = || {
            let dot = by.values.broadcast_mul(gate)?.sum_keepdim(1)?;
            x.values.broadcast_mul(&candle_nn::ops::sigmoid(&dot)?)
        };
        let values = factor().map_err(own)?;
        x.set(values);
        Ok(())
    }

    fn scale(&mut self, x: &mut GpuTensor, factor: f32) -> Result<(), BackendError> {
        x.set((&x.values * f64::from(factor)).map_err(own)?);
        Ok(())
    }

    fn add(&mut self, x: &mut GpuTensor, y: &GpuTensor, factor: f32) -> Result<(), BackendError> {
        x.set(self.kernels.add(&x.values, &y.values, factor).map_err(own)?);
        Ok(())
    }

    fn select(&mut self, x: &GpuTensor, indices: &[u32]) -> Result<GpuTensor, BackendError> {
        let rows = x.rows()?;
        require(indices.iter().all(|&i| (i as usize) < rows), "select", "rows of the tensor")?;
        let selected = match &x.selected {
            None => indices.into(),
            Some(tokens) => indices.iter().map(|&i| tokens[i as usize]).collect(),
        };
        let select = || {
            let at = Tensor::new(indices, &self.device)?;
            x.values.index_select(&at, 0)
        };
        Ok(GpuTensor { values: select().map_err(own)?, forms: Forms::default(), selected: Some(selected) })
    }

    fn read<'a>(&mut self, x: &'a GpuTensor, room: &'a mut HostRoom) -> Result<&'a [f32], BackendError> {
        self.kernels.read(&x.values, room).map_err(own)
    }

    fn recover(&mut self) -> Result<(), BackendError> {
        // What a kernel left behind stays, and every later call reports it; what the host found wrong, or memory that was short, does not.
        Ok(self.synchronize()?)
    }

    fn workers(&self) -> usize {
        self.pool.as_ref().map_or(1, Pool::threads)
    }

    fn spread(&self, items: usize, work: &(dyn Fn(usize, usize) + Sync)) {
        match &self.pool {
            Some(pool) => pool.for_each(items, work),
            None => (0..items).for_each(|item| work(0, item)),
        }
    }

    fn take_stats(&mut self) -> Result<StepStats, BackendError> {
        let chosen = std::mem::take(&mut self.chosen);
        let ids = || -> candle_core::Result<Vec<u32>> {
            // Reading ids waits for the device, if they are there.
            if chosen.first().is_none_or(|c| c.ids.device().is_cpu()) {
                self.kernels.synchronize()?;
            }
            if chosen.is_empty() {
                return Ok(Vec::new());
            }
            let flat = chosen.iter().map(|c| c.ids.flatten_all());
            Tensor::cat(&flat.collect::<candle_core::Result<Vec<_>>>()?, 0)?.to_vec1()
        };
        let ids = ids().map_err(own)?;
        let mut rest = ids.as_slice();
        for c in &chosen {
            let (own, others) = rest.split_at(c.ids.elem_count());
            rest = others;
            if let Some(id) = own.iter().find(|&&id| id as usize >= c.experts) {
                return Err(contract("route", format!("expert {id} of {}", c.experts)).into());
            }
            match &c.selected {
                None => self.meter.experts(own, c.top_k, c.experts, c.bytes, c.macs),
                Some(t) => self.meter.experts_selected(t, own, c.top_k, c.experts, c.bytes, c.macs),
            }
        }
        Ok(self.meter.take())
    }
}
