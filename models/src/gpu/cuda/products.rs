//! Products on CUDA, dense and of experts.
//!
//! | rows | weights | kernel |
//! |---|---|---|
//! | 1 | quantized, a type of candle's | candle's `mul_mat_vec_*_q8_1_cuda1`: integers |
//! | up to 32 | quantized | `experts_q*` of own.cu: eight rows share the weights |
//! | up to 63 | quantized, a type of candle's | candle's `mul_mat_*`: integers in tiles; of other types `experts_*` |
//! | from 64 | quantized | expanded to halves, then cuBLAS on tensor cores |
//! | any | float | cuBLAS |
//! | few pairs per expert | quantized stacks | `experts_q*` of own.cu: integers, eight pairs of an expert share its weights |
//! | many pairs per expert | stacks but F32 | expanded to halves, then `experts_f16` of own.cu |
//! | other | float stacks | `gather_*` of own.cu |
//! | each head's own | stacks | as of experts, each row's heads the pairs; many rows of F32 by cuBLAS |
//!
//! For integers a left side is rounded to Q8_1 once, for halves divided by its rows' largest values once, for all its products.

use std::cell::OnceCell;

use candle_core::quantized::GgmlDType;
use candle_core::{DType, Device, Result, Tensor, bail};
use half::f16;

use super::CudaKernels;
use super::launch::{Address, Arg, address, address_or_null, unwritten};
use crate::backend::{Activation, Gated};
use crate::gpu::kernels::{Forms, Kernels as _, Operand, dense_product, product_each_dense};
use crate::gpu::weight::{GpuWeight, Store};
use crate::quant::GgmlType;

/// From so many rows on a product is one of halves.
const HALVES_ROWS: usize = 64;
/// From so many pairs per expert on, on average, they share an expert's weights, expanded for them.
const SHARED_PAIRS: usize = 16;
/// Columns that candle's and mistral.rs's kernels read rows of Q8_1 in multiples of.
const PADDING: usize = 512;
/// Pairs in a tile and rows of a matrix per block of threads of `experts_f16` (own.cu).
const TILE_PAIRS: usize = 64;
const TILE_ROWS: usize = 128;
/// Pairs in a tile of the kernels of integers (own.cu, EACH).
const EACH_PAIRS: usize = 8;
/// Up to so many rows a dense product is one of our kernel of integers; with more, candle's tiles read weights less often.
const DENSE_ROWS: usize = 32;
/// Up to so many pairs each reads its expert's weights for itself.
const ALONE_PAIRS: usize = 16;
/// Columns per step of it.
const TILE_COLS: usize = 32;

/// Bytes of a row of Q8_1, padded.
fn rounded_bytes(cols: usize) -> usize {
    cols.next_multiple_of(PADDING) / 32 * 36
}

/// What `get` gives, made once.
fn once<T>(cell: &OnceCell<T>, make: impl FnOnce() -> Result<T>) -> Result<&T> {
    if let Some(made) = cell.get() {
        return Ok(made);
    }
    let made = make()?;
    Ok(cell.get_or_init(|| made))
}

fn kind(activation: Activation) -> Arg {
    Arg::Int(i32::from(activation == Activation::ClampedSwiglu))
}

impl CudaKernels {
    /// Quantized weights as halves: `[experts, rows, cols]`.
    fn expanded(&self, weight: &GpuWeight) -> Result<Tensor> {
        let y = unwritten::<f16>(&self.device, (weight.experts, weight.rows, weight.cols))?;
        let blocks = y.elem_count() / 32;
        let args = [Arg::At(blocks_at(weight)?), Arg::At(address(&y)?), Arg::Long(blocks as i64)];
        self.own.launch_flat(own_kernels(weight.ty)?.1, blocks, &args)?;
        Ok(y)
    }

    /// Room for rows of Q8_1.
    pub(super) fn rounded_rows(&self, rows: usize, cols: usize) -> Result<Tensor> {
        unwritten::<u8>(&self.device, (rows, rounded_bytes(cols)))
    }

    /// Rounds rows of F32 or F16, and widens them too if asked.
    fn round(&self, x: &Tensor, wide: Option<&Tensor>) -> Result<Tensor> {
        let (rows, cols) = x.dims2()?;
        let rounded = self.rounded_rows(rows, cols)?;
        let padded = cols.next_multiple_of(PADDING);
        let name = if x.dtype() == DType::F16 { "round_f16" } else { "round_f32" };
        let args = [
            Arg::At(address(x)?),
            Arg::At(address(&rounded)?),
            Arg::At(address_or_null(wide)?),
            Arg::Int(cols as i32),
            Arg::Int(padded as i32),
        ];
        self.own.launch(name, (padded.div_ceil(128), rows, 1), (128, 1), 0, &args)?;
        Ok(rounded)
    }

    /// F16 as F32 and as Q8_1.
    pub(super) fn widened(&self, x: &Tensor) -> Result<(Tensor, Forms)> {
        let wide = unwritten::<f32>(&self.device, x.shape())?;
        let rounded = self.round(x, Some(&wide))?;
        Ok((wide, Forms::rounded(Some(rounded))))
    }

    /// Rows of halves and their scales; with `up`, of the activation of both.
    fn halve(&self, x: &Tensor, up: Option<&Tensor>, activation: Activation) -> Result<[Tensor; 2]> {
        let cols = x.dim(candle_core::D::Minus1)?;
        let rows = x.elem_count() / cols;
        let halves = unwritten::<f16>(&self.device, (rows, cols))?;
        let scales = unwritten::<f32>(&self.device, rows)?;
        let args = [
            Arg::At(address(x)?),
            Arg::At(address_or_null(up)?),
            Arg::At(address(&halves)?),
            Arg::At(address(&scales)?),
            Arg::Int(cols as i32),
            kind(activation),
        ];
        self.own.launch("halve", (rows, 1, 1), (256, 1), 0, &args)?;
        Ok([halves, scales])
    }

    /// `[rows of x, rows of the weight]`.
    pub(super) fn dense(&self, x: &Operand<'_>, weight: &GpuWeight) -> Result<Tensor> {
        let (rows, cols) = x.values.dims2()?;
        if rows == 0 || cols != weight.cols {
            bail!("a product of {:?} with {} columns", x.values.dims(), weight.cols);
        }
        match &weight.store {
            Store::Quantized(_) | Store::Blocks(_) if rows >= HALVES_ROWS => {
                self.halves_product(x, &self.expanded(weight)?.squeeze(0)?)
            }
            Store::Quantized(_) | Store::Blocks(_) => {
                let rounded = once(&x.forms.rounded, || self.round(x.values, None))?;
                self.integers(rounded, rows, weight)
            }
            // As many rows as there may be: a model's own halves are no protection from values that a half cannot hold.
            Store::Dense(dense) if dense.dtype() == DType::F16 => self.halves_product(x, &dense.squeeze(0)?),
            Store::Dense(dense) => dense_product(x.values, &dense.squeeze(0)?),
            Store::Apart(_) | Store::Table(_) => bail!("a weight that is held for something else"),
        }
    }

    /// A product with a weight of halves `[rows, cols]`, of rows that are scaled so that no value is too large for a half.
    fn halves_product(&self, x: &Operand<'_>, weight: &Tensor) -> Result<Tensor> {
        let [halves, scales] = once(&x.forms.halves, || self.halve(x.values, None, Activation::Silu))?;
        let y = halves.matmul(&weight.t()?)?;
        let out = unwritten::<f32>(&self.device, y.shape())?;
        let total = y.elem_count();
        let args = [
            Arg::At(address(&y)?),
            Arg::At(address(scales)?),
            Arg::At(address(&out)?),
            Arg::Long(total as i64),
            Arg::Int(weight.dim(0)? as i32),
        ];
        self.own.launch_flat("unhalve", total, &args)?;
        Ok(out)
    }

    /// Products of at most 63 rows of Q8_1.
    fn integers(&self, rounded: &Tensor, rows: usize, weight: &GpuWeight) -> Result<Tensor> {
        let y = unwritten::<f32>(&self.device, (rows, weight.rows))?;
        let padded = weight.cols.next_multiple_of(PADDING);
        let weights = blocks_at(weight)?;
        let int = |n: usize| Arg::Int(n as i32);
        let (w, x, to) = (Arg::At(weights), Arg::At(address(rounded)?), Arg::At(address(&y)?));
        // Names and shapes: candle-core 0.10.2, quantized/cuda.rs, mul_mat_vec_via_q8_1 and mul_mat_via_q8_1.
        let known = match &weight.store {
            Store::Quantized(q) => Some(q.dtype()),
            _ => None,
        };
        if let (1, Some(ty)) = (rows, known) {
            let args = [w, x, to, int(weight.cols), int(weight.rows), int(padded), int(weight.rows)];
            self.own.launch(vec_kernel(ty)?, (weight.rows, 1, 1), (32, 4), 0, &args)?;
            return Ok(y);
        }
        let Some(ty) = known.filter(|_| rows > DENSE_ROWS) else {
            let (pairs, tiles) = self.one_expert(rows)?;
            let (pairs, tiles) = (Arg::At(address(&pairs)?), Arg::At(address(&tiles)?));
            let args = [w, x, pairs, tiles, to, int(weight.rows), int(weight.cols), int(padded), int(1)];
            let grid = (weight.rows.div_ceil(8), rows.div_ceil(EACH_PAIRS), 1);
            self.own.launch(own_kernels(weight.ty)?.0, grid, (128, 1), 0, &args)?;
            return Ok(y);
        };
        let (name, x_tile, y_tile) = tile_kernel(ty)?;
        let grid = (weight.rows.div_ceil(y_tile), rows.div_ceil(x_tile), 1);
        let args = [w, x, to, int(weight.cols), int(weight.rows), int(rows), int(padded), int(weight.rows)];
        self.own.launch(name, grid, (32, 4), 0, &args)?;
        Ok(y)
    }

    /// A layer's experts.
    pub(super) fn experts(
        &self,
        x: &Operand<'_>,
        (ids, weights): (&Tensor, &Tensor),
        ffn: &Gated<'_, GpuWeight, Tensor>,
    ) -> Result<Tensor> {
        let (tokens, k) = ids.dims2()?;
        let all = [ffn.gate, ffn.up, ffn.down];
        if tokens == 0 || x.values.dims() != [tokens, ffn.gate.cols] {
            bail!("experts of {:?} for {:?}", ids.dims(), x.values.dims());
        }
        let shared = tokens * k >= SHARED_PAIRS * ffn.gate.experts && all.iter().all(|w| shareable(w));
        let biased = |y: Tensor, at: usize| match &ffn.biases {
            None => Ok(y),
            Some(biases) => self.add_chosen(&y, biases[at], ids),
        };
        let down = if shared {
            let by_expert = self.by_expert(ids, ffn.gate.experts, TILE_PAIRS)?;
            let [halves, scales] = once(&x.forms.halves, || self.halve(x.values, None, Activation::Silu))?;
            let gate = biased(self.shared(halves, scales, ffn.gate, &by_expert, k)?, 0)?;
            let up = biased(self.shared(halves, scales, ffn.up, &by_expert, k)?, 1)?;
            let [halves, scales] = self.halve(&gate, Some(&up), ffn.activation)?;
            self.shared(&halves, &scales, ffn.down, &by_expert, 1)?
        } else {
            // With few pairs hardly two choose the same expert, and sorting them costs more than it saves.
            let by_expert = match tokens * k > ALONE_PAIRS {
                true => Some(self.by_expert(ids, ffn.gate.experts, EACH_PAIRS)?),
                false => None,
            };
            let product = |weight: &GpuWeight, x: &Operand<'_>, per_row: usize| match &weight.store {
                Store::Quantized(_) | Store::Blocks(_) => {
                    let rounded = once(&x.forms.rounded, || self.round(x.values, None))?;
                    self.each(rounded, weight, (ids, by_expert.as_ref()), per_row)
                }
                Store::Dense(stack) => {
                    self.each_float(x.values, stack, weight, ids, if per_row == 1 { k } else { 1 })
                }
                Store::Apart(_) | Store::Table(_) => bail!("a weight that is held for something else"),
            };
            let gate = biased(product(ffn.gate, x, k)?, 0)?;
            let up = biased(product(ffn.up, x, k)?, 1)?;
            let inner = self.activated(&gate, &up, ffn.activation, &ffn.down.store)?;
            product(ffn.down, &Operand { values: &inner.0, forms: &inner.1 }, 1)?
        };
        self.combine(&biased(down, 2)?, Some(weights))
    }

    /// What the last product of a gated feed-forward takes: rounded if it is one of integers, else as it is.
    fn activated(
        &self,
        gate: &Tensor,
        up: &Tensor,
        activation: Activation,
        for_store: &Store,
    ) -> Result<(Tensor, Forms)> {
        let cols = gate.dim(candle_core::D::Minus1)?;
        let rows = gate.elem_count() / cols;
        let (gate, up) = (gate.reshape((rows, cols))?, up.reshape((rows, cols))?);
        if !matches!(for_store, Store::Quantized(_) | Store::Blocks(_)) {
            return Ok((self.glu(&gate, &up, activation)?, Forms::default()));
        }
        let padded = cols.next_multiple_of(PADDING);
        let rounded = self.rounded_rows(rows, cols)?;
        let args = [
            Arg::At(address(&gate)?),
            Arg::At(address(&up)?),
            Arg::At(address(&rounded)?),
            Arg::Int(cols as i32),
            Arg::Int(padded as i32),
            kind(activation),
        ];
        self.own.launch("glu_round", (padded.div_ceil(128), rows, 1), (128, 1), 0, &args)?;
        Ok((gate, Forms::rounded(Some(rounded))))
    }

    /// A dense gated feed-forward.
    pub(super) fn gated(&self, x: &Operand<'_>, ffn: &Gated<'_, GpuWeight, Tensor>) -> Result<Tensor> {
        let (gate, up) = (self.dense(x, ffn.gate)?, self.dense(x, ffn.up)?);
        if x.values.dim(0)? < HALVES_ROWS {
            let (values, forms) = self.activated(&gate, &up, ffn.activation, &ffn.down.store)?;
            return self.dense(&Operand { values: &values, forms: &forms }, ffn.down);
        }
        let inner = self.glu(&gate, &up, ffn.activation)?;
        self.dense(&Operand { values: &inner, forms: &Forms::default() }, ffn.down)
    }

    /// Products of integers of pairs with a stack: `[tokens, k, rows]`. A pair's row of x is pair / per_row. Without `by_expert` each
    /// pair reads its expert's weights for itself.
    fn each(
        &self,
        rounded: &Tensor,
        weight: &GpuWeight,
        (ids, by_expert): (&Tensor, Option<&ByExpert>),
        per_row: usize,
    ) -> Result<Tensor> {
        let (tokens, k) = ids.dims2()?;
        if rounded.dims() != [tokens * k / per_row, rounded_bytes(weight.cols)] {
            bail!("experts' rounded rows are {:?}", rounded.dims());
        }
        let y = unwritten::<f32>(&self.device, (tokens, k, weight.rows))?;
        let (pairs, tiles, tiles_max) = match by_expert {
            Some(by) => (address(&by.pairs)?, address(&by.tiles)?, by.tiles_max),
            None => (address(ids)?, Address::NULL, tokens * k),
        };
        let args = [
            Arg::At(blocks_at(weight)?),
            Arg::At(address(rounded)?),
            Arg::At(pairs),
            Arg::At(tiles),
            Arg::At(address(&y)?),
            Arg::Int(weight.rows as i32),
            Arg::Int(weight.cols as i32),
            Arg::Int(weight.cols.next_multiple_of(PADDING) as i32),
            Arg::Int(per_row as i32),
        ];
        let grid = (weight.rows.div_ceil(8), tiles_max, 1);
        self.own.launch(own_kernels(weight.ty)?.0, grid, (128, 1), 0, &args)?;
        Ok(y)
    }

    /// The same of a stack of floats.
    fn each_float(
        &self,
        x: &Tensor,
        stack: &Tensor,
        weight: &GpuWeight,
        ids: &Tensor,
        slots: usize,
    ) -> Result<Tensor> {
        let (tokens, k) = ids.dims2()?;
        let name = match stack.dtype() {
            DType::F16 => "gather_f16",
            DType::BF16 => "gather_bf16",
            _ => "gather_f32",
        };
        let y = unwritten::<f32>(&self.device, (tokens, k, weight.rows))?;
        let args = [
            Arg::At(address(x)?),
            Arg::At(address(stack)?),
            Arg::At(address(ids)?),
            Arg::At(address(&y)?),
            Arg::Int(weight.rows as i32),
            Arg::Int(weight.cols as i32),
            Arg::Int(k as i32),
            Arg::Int(slots as i32),
        ];
        // Pairs in the first direction: only there may be more than 65,535.
        self.own.launch(name, (tokens * k, weight.rows.div_ceil(4), 1), (128, 1), 0, &args)?;
        Ok(y)
    }

    /// Products of pairs sorted by expert, on tensor cores: `[tokens, k, rows]`. A pair's row of x is pair / per_row.
    fn shared(
        &self,
        x: &Tensor,
        scales: &Tensor,
        weight: &GpuWeight,
        by_expert: &ByExpert,
        per_row: usize,
    ) -> Result<Tensor> {
        let stack = match &weight.store {
            Store::Quantized(_) | Store::Blocks(_) => self.expanded(weight)?,
            Store::Dense(dense) if dense.dtype() == DType::BF16 => {
                let y = unwritten::<f16>(&self.device, dense.shape())?;
                let total = y.elem_count();
                let args = [Arg::At(address(dense)?), Arg::At(address(&y)?), Arg::Long(total as i64)];
                self.own.launch_flat("expand_bf16", total, &args)?;
                y
            }
            Store::Dense(dense) => dense.clone(),
            Store::Apart(_) | Store::Table(_) => bail!("a weight that is held for something else"),
        };
        if x.dims() != [by_expert.pairs.dim(0)? / per_row, weight.cols] {
            bail!("experts' rows of halves are {:?}", x.dims());
        }
        let y = unwritten::<f32>(&self.device, (by_expert.tokens, by_expert.top_k, weight.rows))?;
        let args = [
            Arg::At(address(x)?),
            Arg::At(address(scales)?),
            Arg::At(address(&stack)?),
            Arg::At(address(&by_expert.pairs)?),
            Arg::At(address(&by_expert.tiles)?),
            Arg::At(address(&y)?),
            Arg::Int(weight.rows as i32),
            Arg::Int(weight.cols as i32),
            Arg::Int(per_row as i32),
        ];
        let grid = (weight.rows.div_ceil(TILE_ROWS), by_expert.tiles_max, 1);
        self.own.launch("experts_f16", grid, (256, 1), 0, &args)?;
        Ok(y)
    }

    /// Each matrix of a stack with rows of its own: x `[tokens, matrices, cols]` to `[tokens, matrices, rows]`. A token's rows are pairs
    /// that have chosen the matrices in order.
    pub(super) fn per_matrix(&self, x: &Tensor, weight: &GpuWeight) -> Result<Tensor> {
        let (tokens, matrices, cols) = x.dims3()?;
        if tokens == 0 || matrices != weight.experts || cols != weight.cols {
            bail!("{:?} for {} matrices of {} columns", x.dims(), weight.experts, weight.cols);
        }
        let rows = x.reshape((tokens * matrices, cols))?;
        let ids = Tensor::arange(0, matrices as u32, x.device())?;
        let ids = ids.broadcast_as((tokens, matrices))?.contiguous()?;
        if tokens >= SHARED_PAIRS && shareable(weight) {
            let by_expert = self.by_expert(&ids, matrices, TILE_PAIRS)?;
            let [halves, scales] = self.halve(&rows, None, Activation::Silu)?;
            return self.shared(&halves, &scales, weight, &by_expert, 1);
        }
        match &weight.store {
            Store::Dense(stack) if tokens >= SHARED_PAIRS => {
                product_each_dense(x, &stack.to_dtype(DType::F32)?)
            }
            Store::Dense(stack) => self.each_float(&rows, stack, weight, &ids, matrices),
            _ => {
                let by_expert = match tokens {
                    1 => None,
                    _ => Some(self.by_expert(&ids, matrices, EACH_PAIRS)?),
                };
                self.each(&self.round(&rows, None)?, weight, (&ids, by_expert.as_ref()), 1)
            }
        }
    }

    /// Rows of a dense product as pairs of one expert.
    fn one_expert(&self, rows: usize) -> Result<(Tensor, Tensor)> {
        if let Some(known) = self.one_expert.borrow().get(&rows) {
            return Ok(known.clone());
        }
        let device = Device::Cuda(self.device.clone());
        let tiles = rows.div_ceil(EACH_PAIRS);
        let mut words = vec![tiles as u32, 0, 0, 0];
        for at in (0..rows).step_by(EACH_PAIRS) {
            words.extend([0, at as u32, rows.min(at + EACH_PAIRS) as u32, 0]);
        }
        let pairs = Tensor::arange(0, rows as u32, &device)?;
        let made = (pairs, Tensor::new(words, &device)?);
        self.one_expert.borrow_mut().insert(rows, made.clone());
        Ok(made)
    }

    fn by_expert(&self, ids: &Tensor, experts: usize, size: usize) -> Result<ByExpert> {
        let (tokens, top_k) = ids.dims2()?;
        let total = tokens * top_k;
        if experts > 1024 {
            bail!("{experts} experts: pairs are sorted among 1024 at most");
        }
        // Each expert has at most one tile that is not full.
        let tiles_max = total / size + experts.min(total);
        let pairs = unwritten::<u32>(&self.device, total)?;
        let tiles = unwritten::<u32>(&self.device, 4 + 4 * tiles_max)?;
        let args = [
            Arg::At(address(ids)?),
            Arg::At(address(&pairs)?),
            Arg::At(address(&tiles)?),
            Arg::Int(total as i32),
            Arg::Int(experts as i32),
            Arg::Int(size as i32),
        ];
        self.own.launch("sort_experts", (1, 1, 1), (1024, 1), 8 * experts, &args)?;
        Ok(ByExpert { pairs, tiles, tiles_max, tokens, top_k })
    }
}

/// Pairs of token and expert in ascending order of expert, in tiles of one expert each.
struct ByExpert {
    pairs: Tensor,
    tiles: Tensor,
    /// At least as many as there are.
    tiles_max: usize,
    tokens: usize,
    top_k: usize,
}

/// Whether `experts_f16` can take the stack, expanded.
fn shareable(w: &GpuWeight) -> bool {
    let known = match &w.store {
        Store::Quantized(_) | Store::Blocks(_) => true,
        Store::Dense(dense) => matches!(dense.dtype(), DType::F16 | DType::BF16),
        Store::Apart(_) | Store::Table(_) => false,
    };
    known && w.cols.is_multiple_of(TILE_COLS)
}

/// Where a quantized weight's blocks lie.
fn blocks_at(weight: &GpuWeight) -> Result<Address> {
    match &weight.store {
        Store::Quantized(q) => Ok(Address(q.device_ptr()? as u64)),
        Store::Blocks(bytes) => address(bytes),
        _ => bail!("a weight that is held for something else"),
    }
}

fn vec_kernel(ty: GgmlDType) -> Result<&'static str> {
    Ok(match ty {
        GgmlDType::Q4_0 => "mul_mat_vec_q4_0_q8_1_cuda1",
        GgmlDType::Q4_1 => "mul_mat_vec_q4_1_q8_1_cuda1",
        GgmlDType::Q5_0 => "mul_mat_vec_q5_0_q8_1_cuda1",
        GgmlDType::Q5_1 => "mul_mat_vec_q5_1_q8_1_cuda1",
        GgmlDType::Q8_0 => "mul_mat_vec_q8_0_q8_1_cuda1",
        GgmlDType::Q2K => "mul_mat_vec_q2_K_q8_1_cuda1",
        GgmlDType::Q3K => "mul_mat_vec_q3_K_q8_1_cuda1",
        GgmlDType::Q4K => "mul_mat_vec_q4_K_q8_1_cuda1",
        GgmlDType::Q5K => "mul_mat_vec_q5_K_q8_1_cuda1",
        GgmlDType::Q6K => "mul_mat_vec_q6_K_q8_1_cuda1",
        other => bail!("products of {other:?}"),
    })
}

/// Our kernels for a type: products of integers, and expansion to halves.
fn own_kernels(ty: GgmlType) -> Result<(&'static str, &'static str)> {
    Ok(match ty {
        GgmlType::Q4_0 => ("experts_q4_0", "expand_q4_0"),
        GgmlType::Q4_1 => ("experts_q4_1", "expand_q4_1"),
        GgmlType::Q5_0 => ("experts_q5_0", "expand_q5_0"),
        GgmlType::Q5_1 => ("experts_q5_1", "expand_q5_1"),
        GgmlType::Q8_0 => ("experts_q8_0", "expand_q8_0"),
        GgmlType::IQ4_NL => ("experts_iq4_nl", "expand_iq4_nl"),
        GgmlType::IQ4_XS => ("experts_iq4_xs", "expand_iq4_xs"),
        GgmlType::MXFP4 => ("experts_mxfp4", "expand_mxfp4"),
        GgmlType::Q2_K => ("experts_q2_k", "expand_q2_k"),
        GgmlType::Q3_K => ("experts_q3_k", "expand_q3_k"),
        GgmlType::Q4_K => ("experts_q4_k", "expand_q4_k"),
        GgmlType::Q5_K => ("experts_q5_k", "expand_q5_k"),
        GgmlType::Q6_K => ("experts_q6_k", "expand_q6_k"),
        other => bail!("quantized weights of {other:?}"),
    })
}

/// Name, and rows of x and of the weight per block of threads.
fn tile_kernel(ty: GgmlDType) -> Result<(&'static str, usize, usize)> {
    Ok(match ty {
        GgmlDType::Q4_0 => ("mul_mat_q4_0", 64, 128),
        GgmlDType::Q4_1 => ("mul_mat_q4_1", 64, 128),
        GgmlDType::Q5_0 => ("mul_mat_q5_0", 128, 64),
        GgmlDType::Q5_1 => ("mul_mat_q5_1", 128, 64),
        GgmlDType::Q8_0 => ("mul_mat_q8_0", 128, 64),
        GgmlDType::Q2K => ("mul_mat_q2_K", 64, 128),
        GgmlDType::Q3K => ("mul_mat_q3_K", 128, 128),
        GgmlDType::Q4K => ("mul_mat_q4_K", 64, 128),
        GgmlDType::Q5K => ("mul_mat_q5_K", 64, 128),
        GgmlDType::Q6K => ("mul_mat_q6_K", 64, 64),
        other => bail!("products of {other:?}"),
    })
}
