//! Kernels in plain tensor operations, for every device that candle has: Apple's GPUs, and the host to test them on.
//!
//! Which operation does what is chosen by what candle 0.10.2 does on Metal (its `metal_backend` and `quantized/metal.rs`, and
//! `candle-metal-kernels`). What it does not check there is checked here:
//!
//! - Quantized products: those of several rows begin to read at the left side's first byte, wherever its view begins; the one of a single
//!   row with Q2_K writes as many values again behind the result. How many rows of the weight they take: module `weight`.
//! - `index_select` and `scatter_set` want contiguous tensors, and an index beyond the end is another row, or memory of someone else.
//! - `softmax_last_dim` is given no infinities: it subtracts a row's parts' maxima from one another.
//! - There is no product of chosen matrices of a stack and no top-k worth its time: experts are chosen on the host, which then asks for
//!   one product per expert. The wait for a layer's logits is the only one.
//!
//! Not helped: candle does not look at a command buffer's status after it has waited for it, so a fault of the GPU may go unreported.

use candle_core::quantized::{GgmlDType, QMatMul};
use candle_core::{DType, Device, Module, Result, Tensor, bail};
use candle_nn::ops;

use super::device::Memory;
use super::kernels::{Attention, Form, Forms, Kernels, Operand, RouteBias, dense_product, route_on_host};
use super::weight::{GpuWeight, Matrix, Store};
use crate::backend::{Gated, RouteSpec};

/// The score of a position that is not seen: as good as minus infinity.
const HIDDEN: f32 = -1e30;

/// See the module.
pub(super) struct PlainKernels {
    pub(super) device: Device,
    /// Scores of attention, of all heads, that are computed at once, if one row has no more. They exist a few times over until they are
    /// weights.
    pub(super) scores_max: usize,
}

impl Kernels for PlainKernels {
    fn form(&self) -> Form {
        Form::Apart
    }

    fn write(&self, call: &Attention<'_>) -> Result<()> {
        check(call)?;
        write(&call.pages.keys, call.k, &call.group.slots)?;
        match (&call.pages.values, call.v) {
            (Some(pages), Some(values)) => write(pages, values, &call.group.slots),
            _ => Ok(()),
        }
    }

    fn attend(&self, call: &Attention<'_>) -> Result<(Tensor, Forms)> {
        check(call)?;
        let mut parts = Vec::new();
        for (index, span) in call.step.spans.iter().enumerate() {
            let seen = Seen::gather(call, index)?;
            let scores_of_row = call.spec.heads as usize * (span.context() - seen.first);
            let rows = (self.scores_max / scores_of_row).max(1);
            for begin in (0..span.len).step_by(rows) {
                let len = rows.min(span.len - begin);
                let piece = Piece { row: span.begin + begin, start: span.start + begin, len };
                parts.push(piece.attend(call, &seen)?);
            }
        }
        Ok((Tensor::cat(&parts, 0)?, Forms::default()))
    }

    fn route(&self, logits: &Tensor, bias: &RouteBias<'_>, spec: &RouteSpec) -> Result<(Tensor, Tensor)> {
        route_on_host(logits, bias, spec)
    }

    fn product(&self, x: &Operand<'_>, weight: &GpuWeight) -> Result<Tensor> {
        product(x.values, weight, 0)
    }

    fn product_each(&self, x: &Tensor, weight: &GpuWeight) -> Result<Tensor> {
        if x.dim(1)? != weight.experts {
            bail!("{:?} for {} matrices", x.dims(), weight.experts);
        }
        let products =
            (0..weight.experts).map(|at| product(&x.narrow(1, at, 1)?.squeeze(1)?.contiguous()?, weight, at));
        Tensor::stack(&products.collect::<Result<Vec<_>>>()?, 1)
    }

    fn combine(&self, x: &Tensor, weights: Option<&Tensor>) -> Result<Tensor> {
        match weights {
            None => x.sum(1),
            // As a product: a sum over so few on Metal is a group of threads for each result.
            Some(weights) => weights.unsqueeze(1)?.matmul(x)?.squeeze(1),
        }
    }

    fn mixture(
        &self,
        x: &Operand<'_>,
        (ids, weights): (&Tensor, &Tensor),
        ffn: &Gated<'_, GpuWeight, Tensor>,
    ) -> Result<Tensor> {
        let (tokens, k) = ids.dims2()?;
        if x.values.dims() != [tokens, ffn.gate.cols] {
            bail!("experts of {:?} for {:?}", ids.dims(), x.values.dims());
        }
        let pairs = Pairs::new(&ids.flatten_all()?.to_vec1()?, k);
        let total = tokens * k;
        // Rows of x by pair, then a pair's place among them: one upload.
        let index = Tensor::from_vec([pairs.tokens, pairs.places].concat(), 2 * total, &self.device)?;
        let mut parts = Vec::with_capacity(pairs.experts.len());
        let mut begin = 0;
        for (expert, len) in pairs.experts {
            let own = x.values.index_select(&index.narrow(0, begin, len)?, 0)?;
            begin += len;
            let biased = |x: &Tensor, weight: &GpuWeight, at: usize| match &ffn.biases {
                None => product(x, weight, expert),
                Some(biases) => {
                    let bias = biases[at].reshape((weight.experts, weight.rows))?;
                    product(x, weight, expert)?.broadcast_add(&bias.narrow(0, expert, 1)?)
                }
            };
            let (gate, up) = (biased(&own, ffn.gate, 0)?, biased(&own, ffn.up, 1)?);
            let inner = self.glu(&gate, &up, ffn.activation)?;
            parts.push(biased(&inner, ffn.down, 2)?);
        }
        let all = Tensor::cat(&parts, 0)?.index_select(&index.narrow(0, total, total)?, 0)?;
        self.combine(&all.reshape((tokens, k, ffn.down.rows))?, Some(weights))
    }

    fn synchronize(&self) -> Result<()> {
        self.device.synchronize()
    }

    fn memory(&self) -> Result<Option<Memory>> {
        match &self.device {
            // Memory is the whole machine's: what Metal recommends to take at most, and what this process has of it.
            #[cfg(feature = "metal")]
            Device::Metal(device) => {
                let device = device.metal_device();
                let total = device.recommended_max_working_set_size() as u64;
                let taken = device.current_allocated_size() as u64;
                Ok(Some(Memory { total, free: total.saturating_sub(taken) }))
            }
            _ => Ok(None),
        }
    }
}

/// Whether everything has the shape that the others say; tables and slots were checked with the step (module `index`).
fn check(call: &Attention<'_>) -> Result<()> {
    let spec = call.spec;
    let [heads, kv_heads, key_dim, value_dim] =
        [spec.heads, spec.kv_heads, spec.key_dim, spec.value_dim].map(|n| n as usize);
    let tokens = call.step.spans.iter().map(|s| s.len).sum::<usize>();
    let block = call.block_tokens;
    let latent = call.v.is_none() && kv_heads == 1 && value_dim <= key_dim;
    let holds = |pages: &Tensor, dim: usize| {
        pages.rank() == 3 && pages.dims()[1..] == [block, kv_heads * dim] && pages.is_contiguous()
    };
    let pages = holds(&call.pages.keys, key_dim)
        && call.pages.values.as_ref().map_or(latent, |pages| holds(pages, value_dim) && call.v.is_some());
    let inputs = call.q.dims() == [tokens, heads, key_dim]
        && call.k.dims() == [tokens, kv_heads, key_dim]
        && call.v.is_none_or(|v| v.dims() == [tokens, kv_heads, value_dim])
        && call.sinks.is_none_or(|sinks| sinks.dims() == [heads])
        && call.group.slots.dims() == [tokens]
        && tokens > 0
        && heads.is_multiple_of(kv_heads);
    if !(pages && inputs) {
        let shapes = [Some(call.q), Some(call.k), call.v].map(|t| t.map(Tensor::dims));
        bail!("attention of {shapes:?} over pages {:?}, {spec:?}", call.pages.keys.dims());
    }
    Ok(())
}

/// Writes `[tokens, heads, dim]` into the slots of pages `[blocks, block_tokens, heads * dim]`.
fn write(pages: &Tensor, values: &Tensor, slots: &Tensor) -> Result<()> {
    let (blocks, block, width) = pages.dims3()?;
    let tokens = slots.elem_count();
    let values = values.reshape((tokens, width))?.to_dtype(pages.dtype())?.contiguous()?;
    let slots = slots.reshape((tokens, 1))?.broadcast_as((tokens, width))?.contiguous()?;
    pages.reshape((blocks * block, width))?.scatter_set(&slots, &values, 0)
}

/// What a span's attention reads.
struct Seen {
    /// The first position.
    first: usize,
    /// F32 `[kv_heads, positions, key_dim]`.
    k: Tensor,
    /// F32 `[kv_heads, positions, value_dim]`.
    v: Tensor,
}

impl Seen {
    fn gather(call: &Attention<'_>, span: usize) -> Result<Self> {
        let (block, spec, place) = (call.block_tokens, call.spec, call.step.spans[span]);
        let first = spec.first_seen(place.start as u32) as usize;
        let gone = call.group.gone[span];
        let Some(before) = first.checked_sub(gone) else {
            bail!("position {first} is seen, and the table begins at {gone}");
        };
        let (from, to) = (before / block, (place.context() - gone).div_ceil(block));
        let blocks = call.group.tables.get(span)?.narrow(0, from, to - from)?;
        let gathered = |pages: &Tensor, dim: u32| {
            let shape = ((to - from) * block, spec.kv_heads as usize, dim as usize);
            let rows = pages.index_select(&blocks, 0)?.reshape(shape)?;
            let rows = rows.narrow(0, before - from * block, place.context() - first)?;
            rows.transpose(0, 1)?.to_dtype(DType::F32)?.contiguous()
        };
        let k = gathered(&call.pages.keys, spec.key_dim)?;
        let v = match &call.pages.values {
            Some(pages) => gathered(pages, spec.value_dim)?,
            None => k.narrow(2, 0, spec.value_dim as usize)?.contiguous()?,
        };
        Ok(Self { first, k, v })
    }
}

/// Rows of one span, few enough for their scores to be held.
struct Piece {
    /// The first, in the batch.
    row: usize,
    /// Its position.
    start: usize,
    len: usize,
}

impl Piece {
    /// `[len, heads * value_dim]`.
    fn attend(&self, call: &Attention<'_>, seen: &Seen) -> Result<Tensor> {
        let (spec, len) = (call.spec, self.len);
        let (kv_heads, key_dim) = (spec.kv_heads as usize, spec.key_dim as usize);
        let (value_dim, of_each) = (spec.value_dim as usize, (spec.heads / spec.kv_heads) as usize);
        let first = spec.first_seen(self.start as u32) as usize;
        let positions = self.start + len - first;
        let of_ours = |all: &Tensor| all.narrow(1, first - seen.first, positions);
        // Query heads that share keys are rows of one product.
        let q = call.q.narrow(0, self.row, len)?.reshape((len, kv_heads, of_each, key_dim))?;
        let q = q.transpose(0, 1)?.contiguous()?.reshape((kv_heads, len * of_each, key_dim))?;
        let scores = (q * f64::from(spec.scale))?.matmul(&of_ours(&seen.k)?.transpose(1, 2)?)?;
        let mut scores = scores.reshape((kv_heads, len, of_each, positions))?;
        if len > 1 {
            scores = self.masked(call, &scores, first)?;
        }
        // A sink is one position more, without a value.
        if let Some(sinks) = call.sinks {
            let sinks =
                sinks.reshape((kv_heads, 1, of_each, 1))?.broadcast_as((kv_heads, len, of_each, 1))?;
            scores = Tensor::cat(&[scores, sinks.contiguous()?], 3)?;
        }
        let weights = ops::softmax_last_dim(&scores)?.narrow(3, 0, positions)?.contiguous()?;
        let out = weights.reshape((kv_heads, len * of_each, positions))?.matmul(&of_ours(&seen.v)?)?;
        let out = out.reshape((kv_heads, len, of_each, value_dim))?.transpose(0, 1)?;
        out.contiguous()?.reshape((len, kv_heads * of_each * value_dim))
    }

    /// Scores `[kv_heads, len, heads of each, positions from first]` with those hidden that a row does not see.
    fn masked(&self, call: &Attention<'_>, scores: &Tensor, first: usize) -> Result<Tensor> {
        let (_, len, _, seen) = scores.dims4()?;
        let rows = call.step.positions.narrow(0, self.row, len)?.reshape((len, 1))?;
        let positions = |later: usize| {
            let all: Vec<u32> =
                (first..first + seen).map(|at| u32::try_from(at + later).unwrap_or(u32::MAX)).collect();
            Tensor::from_vec(all, (1, seen), scores.device())
        };
        let mut visible = positions(0)?.broadcast_le(&rows)?;
        if let Some(window) = call.spec.window {
            visible = (visible * positions(window as usize)?.broadcast_gt(&rows)?)?;
        }
        let hidden = Tensor::new(HIDDEN, scores.device())?.broadcast_as(scores.shape())?;
        visible.reshape((1, len, 1, seen))?.broadcast_as(scores.shape())?.where_cond(scores, &hidden)
    }
}

/// Pairs of token and expert in ascending order of expert.
struct Pairs {
    /// Each expert that was chosen, and how often.
    experts: Vec<(usize, usize)>,
    /// The token of each pair.
    tokens: Vec<u32>,
    /// Where the pairs, in the order of tokens, are now.
    places: Vec<u32>,
}

impl Pairs {
    /// `chosen` has `k` for each token.
    fn new(chosen: &[u32], k: usize) -> Self {
        let mut order: Vec<usize> = (0..chosen.len()).collect();
        order.sort_by_key(|&pair| chosen[pair]);
        let mut places = vec![0; chosen.len()];
        for (place, &pair) in order.iter().enumerate() {
            places[pair] = place as u32;
        }
        let runs = order.chunk_by(|&a, &b| chosen[a] == chosen[b]);
        let experts = runs.map(|run| (chosen[run[0]] as usize, run.len())).collect();
        let tokens = order.iter().map(|pair| (pair / k) as u32).collect();
        Self { experts, tokens, places }
    }
}

/// `x W^T` with one matrix of a weight: `[n, cols]` to `[n, rows]`.
fn product(x: &Tensor, weight: &GpuWeight, at: usize) -> Result<Tensor> {
    let Store::Apart(matrices) = &weight.store else {
        bail!("a weight that is held for something else");
    };
    let Some(matrix) = matrices.get(at) else {
        bail!("matrix {at} of {}", weight.experts);
    };
    let (rows, cols) = x.dims2()?;
    if rows == 0 || cols != weight.cols || x.dtype() != DType::F32 {
        bail!("a product of {:?} {:?} with {} columns", x.dtype(), x.dims(), weight.cols);
    }
    match matrix {
        Matrix::Dense(dense) => dense_product(x, dense),
        Matrix::Quantized(q) => {
            let x = match q.dtype() {
                GgmlDType::Q2K if rows == 1 => Tensor::cat(&[x, x], 0)?,
                _ => whole(x)?,
            };
            QMatMul::QTensor(q.clone())
                .forward(&x)?
                .narrow(0, 0, rows)?
                .narrow(1, 0, weight.rows)?
                .contiguous()
        }
    }
}

/// The same values, as all that their memory begins with.
fn whole(x: &Tensor) -> Result<Tensor> {
    match x.is_contiguous() && x.layout().start_offset() == 0 {
        true => Ok(x.clone()),
        false => x.force_contiguous(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::weight::GpuWeight;
    use crate::quant::GgmlType;
    use crate::samples::{Random, Stored};

    #[test]
    fn pairs_are_sorted_and_find_back() {
        let pairs = Pairs::new(&[3, 1, 1, 0, 3, 1], 2);
        assert_eq!(pairs.experts, [(0, 1), (1, 3), (3, 2)]);
        assert_eq!(pairs.tokens, [1, 0, 1, 2, 0, 2]);
        assert_eq!(pairs.places, [4, 1, 2, 0, 5, 3]);
    }

    #[test]
    fn a_view_becomes_whole() {
        let x = Tensor::arange(0f32, 12.0, &Device::Cpu).unwrap().reshape((4, 3)).unwrap();
        let view = x.narrow(0, 2, 2).unwrap();
        assert!(view.is_contiguous() && view.layout().start_offset() == 6);
        let copy = whole(&view).unwrap();
        assert_eq!(copy.layout().start_offset(), 0);
        assert_eq!(copy.to_vec2::<f32>().unwrap(), [[6.0, 7.0, 8.0], [9.0, 10.0, 11.0]]);
    }

    /// Rows that are no multiple of eight, one row on the left, each matrix of a stack: what Metal's kernels need help with.
    #[test]
    fn matrices_are_padded_and_results_are_not() {
        let random = &mut Random(3);
        for ty in [GgmlType::Q2_K, GgmlType::Q8_0, GgmlType::MXFP4, GgmlType::F16] {
            let stored = Stored::random(random, ty, [256, 13, 3], 1.0);
            let weight = GpuWeight::load(&stored.view(), &Device::Cpu, Form::Apart).unwrap();
            let Store::Apart(matrices) = &weight.store else { panic!("a stack") };
            let rows = |matrix: &Matrix| match matrix {
                Matrix::Quantized(q) => q.shape().dims()[0],
                Matrix::Dense(dense) => dense.dims()[0],
            };
            assert_eq!(rows(&matrices[2]), if ty == GgmlType::F16 { 13 } else { 16 });
            let floats = crate::gpu::weight::floats(&stored.view());
            for n in [1, 2] {
                let x = random.values(256 * n);
                let ours = product(&Tensor::from_slice(&x, (n, 256), &Device::Cpu).unwrap(), &weight, 2);
                let ours = ours.unwrap().to_vec2::<f32>().unwrap();
                assert_eq!((ours.len(), ours[0].len()), (n, 13));
                for (x, ours) in x.chunks_exact(256).zip(ours) {
                    for (row, ours) in floats[2 * 13 * 256..].chunks_exact(256).zip(ours) {
                        let theirs: f32 = row.iter().zip(x).map(|(w, x)| w * x).sum();
                        let size: f32 = row.iter().zip(x).map(|(w, x)| (w * x).abs()).sum();
                        assert!((ours - theirs).abs() <= 0.02 * size, "{ty:?}: {ours} for {theirs}");
                    }
                }
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let stored = Stored::random(&mut Random(4), GgmlType::Q8_0, [64, 8, 2], 1.0);
        let weight = GpuWeight::load(&stored.view(), &Device::Cpu, Form::Apart).unwrap();
        let x = |shape, dtype| Tensor::zeros(shape, dtype, &Device::Cpu).unwrap();
        assert!(product(&x((2, 64), DType::F32), &weight, 1).is_ok());
        for (x, at) in [(x((2, 32), DType::F32), 1), (x((2, 64), DType::F16), 1), (x((2, 64), DType::F32), 2)]
        {
            assert!(product(&x, &weight, at).is_err(), "{x:?} {at}");
        }
    }
}
