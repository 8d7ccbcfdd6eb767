//! Weights on a device, in the file's quantized form where the kernels know it.
//!
//! | in the file | on the device |
//! |---|---|
//! | Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K to Q6_K | the same bytes |
//! | F32 F16 BF16 | a dense tensor of that type (F32 on candle's CPU device, to be exact there) |
//! | IQ4_NL IQ4_XS MXFP4 | in stacks the same bytes; apart, Q8_0 |
//!
//! Kernels that want matrices apart get each as a tensor of its own, with rows of zeros up to a multiple of eight: candle's products of
//! quantized rows on Metal work on as many as eight at once, some of them without asking how many there are. Those are candle's products,
//! so what candle has no type for is Q8_0 of the same values: codes are small integers, a block's scale is a half or a power of two
//! (IQ4_XS: rounded to half precision).

use std::borrow::Cow;
use std::sync::Arc;

use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use candle_core::{DType, Device, Tensor, bail};
use half::f16;

use super::error::{GpuError, contract};
use super::kernels::Form;
use crate::gguf::{Gguf, TensorInfo};
use crate::quant::{self, GgmlType};
use crate::weights::TensorView;

/// A matrix or a stack of them.
pub struct GpuWeight {
    pub(super) store: Store,
    /// In the file.
    pub(super) ty: GgmlType,
    pub(super) cols: usize,
    pub(super) rows: usize,
    pub(super) experts: usize,
    /// Bytes of one matrix on the device, which is what a step reads.
    matrix_bytes: u64,
}

pub(super) enum Store {
    /// `[rows, cols]`, or `[experts, rows, cols]` if there is more than one.
    Quantized(Arc<QTensor>),
    /// Blocks that candle has no type for, as they are in the file: u8, and [`BEHIND`] more.
    Blocks(Tensor),
    /// `[experts, rows, cols]`.
    Dense(Tensor),
    /// One after the other.
    Apart(Vec<Matrix>),
    /// Rows in the file's format on the host, to look up.
    Table(Vec<u8>),
}

/// One matrix of a weight whose matrices are held apart.
pub(super) enum Matrix {
    /// `[rows or up to seven more, cols]`.
    Quantized(Arc<QTensor>),
    /// `[rows, cols]`.
    Dense(Tensor),
}

/// Rows of a quantized matrix that is held apart are a multiple of it.
const ROWS: usize = 8;
/// Zero bytes behind blocks: kernels read whole words around what is not aligned.
const BEHIND: usize = 4;

impl GpuWeight {
    /// Brings a weight to the device.
    ///
    /// # Errors
    /// If it has not so much memory, or a scale is beyond what the weight is to be held as.
    pub(super) fn load(view: &TensorView, device: &Device, form: Form) -> Result<Self, GpuError> {
        if form == Form::Apart {
            return Self::load_apart(view, device);
        }
        let shape = (view.experts, view.rows, view.cols);
        let (store, bytes) = match kind(view.ty) {
            Kind::Same(ty) => (Store::Quantized(qtensor(view.data, ty, shape, device)?), view.data.len()),
            Kind::Ours => {
                let len = view.data.len() + BEHIND;
                let bytes = Tensor::from_vec([view.data, &[0; BEHIND]].concat(), len, device)?;
                (Store::Blocks(bytes), view.data.len())
            }
            Kind::Dense(dtype) => {
                let dtype = if device.is_cpu() { DType::F32 } else { dtype };
                // One matrix at a time: the whole stack in F32 may be larger than the host's memory.
                let matrices = (0..view.experts).map(|e| dense(&view.expert(e), dtype, device));
                let all = matrices.collect::<Result<Vec<_>, _>>()?;
                let bytes = view.experts * view.rows * view.cols * dtype.size_in_bytes();
                (Store::Dense(Tensor::stack(&all, 0)?), bytes)
            }
        };
        Ok(Self {
            store,
            ty: view.ty,
            cols: view.cols,
            rows: view.rows,
            experts: view.experts,
            matrix_bytes: bytes as u64 / view.experts as u64,
        })
    }

    fn load_apart(view: &TensorView, device: &Device) -> Result<Self, GpuError> {
        let (cols, rows, experts) = (view.cols, view.rows, view.experts);
        let padded = |bytes: &[u8], ty: GgmlDType| -> Result<Matrix, GpuError> {
            let rows = rows.next_multiple_of(ROWS);
            let len = rows * cols / ty.block_size() * ty.type_size();
            // Blocks of zero bytes are zeros in every format.
            let bytes = match bytes.len() == len {
                true => Cow::Borrowed(bytes),
                false => Cow::Owned([bytes, &vec![0; len.saturating_sub(bytes.len())]].concat()),
            };
            Ok(Matrix::Quantized(qtensor(&bytes, ty, (1, rows, cols), device)?))
        };
        let matrix = |view: &TensorView| match kind(view.ty) {
            Kind::Same(ty) => padded(view.data, ty),
            Kind::Ours => padded(&to_q8_0(view)?, GgmlDType::Q8_0),
            // Converted on the host, so that the device never holds it in F32.
            Kind::Dense(dtype) => {
                let dtype = if device.is_cpu() { DType::F32 } else { dtype };
                Ok(Matrix::Dense(dense(view, dtype, &Device::Cpu)?.to_device(device)?))
            }
        };
        let all: Vec<_> = (0..experts).map(|e| matrix(&view.expert(e))).collect::<Result<_, _>>()?;
        let bytes = |matrix: &Matrix| match matrix {
            Matrix::Quantized(q) => q.storage_size_in_bytes(),
            Matrix::Dense(dense) => dense.elem_count() * dense.dtype().size_in_bytes(),
        };
        let matrix_bytes = all.first().map_or(0, bytes) as u64;
        Ok(Self { store: Store::Apart(all), ty: view.ty, cols, rows, experts, matrix_bytes })
    }

    /// A table that stays on the host.
    pub(super) fn table(view: &TensorView) -> Self {
        let (store, cols, rows) = (Store::Table(view.data.to_vec()), view.cols, view.rows);
        Self { store, ty: view.ty, cols, rows, experts: 1, matrix_bytes: view.data.len() as u64 }
    }

    /// Rows of a table, in F32.
    pub(super) fn look_up(&self, rows: impl ExactSizeIterator<Item = usize>) -> Result<Vec<f32>, GpuError> {
        let Store::Table(bytes) = &self.store else {
            return Err(contract("embed", "the weight is no table"));
        };
        let row_bytes = self.ty.row_bytes(self.cols);
        let mut all = vec![0.0; rows.len() * self.cols];
        for (row, to) in rows.zip(all.chunks_exact_mut(self.cols)) {
            let from = bytes.get(row * row_bytes..(row + 1) * row_bytes);
            let from = from.ok_or_else(|| contract("embed", format!("token {row} of {}", self.rows)))?;
            (quant::format(self.ty).dequantize)(from, to);
        }
        Ok(all)
    }

    /// All values in F32, `[experts, rows, cols]`: slow where the device has no word for their format.
    pub(super) fn values(&self, device: &Device) -> candle_core::Result<Tensor> {
        let shape = (self.experts, self.rows, self.cols);
        match &self.store {
            Store::Quantized(q) => q.dequantize(device)?.reshape(shape),
            Store::Blocks(bytes) => {
                let mut values = vec![0.0; self.experts * self.rows * self.cols];
                let bytes = bytes.to_vec1::<u8>()?;
                let blocks = &bytes[..bytes.len().saturating_sub(BEHIND)];
                (quant::format(self.ty).dequantize)(blocks, &mut values);
                Tensor::from_vec(values, shape, device)
            }
            Store::Dense(dense) => dense.to_dtype(DType::F32),
            Store::Apart(_) | Store::Table(_) => bail!("a weight that is held for something else"),
        }
    }

    pub(super) fn matrix_bytes(&self) -> u64 {
        self.matrix_bytes
    }

    pub(super) fn macs(&self) -> u64 {
        (self.rows * self.cols) as u64
    }
}

enum Kind {
    Same(GgmlDType),
    /// candle has no word for it.
    Ours,
    Dense(DType),
}

fn kind(ty: GgmlType) -> Kind {
    match ty {
        GgmlType::F32 => Kind::Dense(DType::F32),
        GgmlType::F16 => Kind::Dense(DType::F16),
        GgmlType::BF16 => Kind::Dense(DType::BF16),
        GgmlType::Q4_0 => Kind::Same(GgmlDType::Q4_0),
        GgmlType::Q4_1 => Kind::Same(GgmlDType::Q4_1),
        GgmlType::Q5_0 => Kind::Same(GgmlDType::Q5_0),
        GgmlType::Q5_1 => Kind::Same(GgmlDType::Q5_1),
        GgmlType::Q8_0 => Kind::Same(GgmlDType::Q8_0),
        GgmlType::Q2_K => Kind::Same(GgmlDType::Q2K),
        GgmlType::Q3_K => Kind::Same(GgmlDType::Q3K),
        GgmlType::Q4_K => Kind::Same(GgmlDType::Q4K),
        GgmlType::Q5_K => Kind::Same(GgmlDType::Q5K),
        GgmlType::Q6_K => Kind::Same(GgmlDType::Q6K),
        GgmlType::IQ4_NL | GgmlType::IQ4_XS | GgmlType::MXFP4 => Kind::Ours,
    }
}

/// See `GpuBackend::held_bytes`.
pub(super) fn held_bytes(gguf: &Gguf, form: Form) -> u64 {
    let apart = gguf.tensor("output.weight").is_some();
    let computed = gguf.tensors().iter().filter(|t| !(apart && t.name == "token_embd.weight"));
    let held = |t: &TensorInfo| match t.ty().map(kind) {
        Some(Kind::Ours) if form == Form::Apart => t.elements() / 32 * 34,
        _ => t.bytes().unwrap_or(0),
    };
    computed.map(held).fold(0, u64::saturating_add)
}

fn qtensor(
    bytes: &[u8],
    ty: GgmlDType,
    (experts, rows, cols): (usize, usize, usize),
    device: &Device,
) -> Result<Arc<QTensor>, GpuError> {
    let expected = experts * rows * cols / ty.block_size() * ty.type_size();
    if bytes.len() != expected {
        return Err(contract("load", format!("{} bytes for {expected}", bytes.len())));
    }
    // The library casts the bytes to blocks, whose alignment is a half's (candle-core 0.10.2, quantized/mod.rs). A view of a file
    // has it; what has not is copied. `Cow::Borrowed` on purpose: owned bytes are freed before they are read there.
    let aligned;
    let bytes = match (bytes.as_ptr() as usize).is_multiple_of(4) {
        true => bytes,
        false => {
            aligned = bytes.to_vec();
            &aligned
        }
    };
    let storage = QStorage::from_data(Cow::Borrowed(bytes), device, ty)?;
    let tensor = match experts {
        1 => QTensor::new(storage, (rows, cols))?,
        _ => QTensor::new(storage, (experts, rows, cols))?,
    };
    Ok(Arc::new(tensor))
}

fn dense(view: &TensorView, dtype: DType, device: &Device) -> Result<Tensor, GpuError> {
    Ok(Tensor::from_vec(floats(view), (view.rows, view.cols), device)?.to_dtype(dtype)?)
}

/// All values of a view in F32.
pub(super) fn floats(view: &TensorView) -> Vec<f32> {
    let mut all = vec![0.0; view.experts * view.rows * view.cols];
    (quant::format(view.ty).dequantize)(view.data, &mut all);
    all
}

/// Encodes as Q8_0 (a half's scale and 32 signed bytes) what is made of integer codes times a step.
fn to_q8_0(view: &TensorView) -> Result<Vec<u8>, GpuError> {
    let format = quant::format(view.ty);
    let mut out = Vec::with_capacity(view.data.len() * 2);
    let mut values = vec![0.0; format.block];
    for block in view.data.chunks_exact(format.block_bytes) {
        (format.dequantize)(block, &mut values);
        for (sub, part) in values.chunks_exact(32).enumerate() {
            let step = step(view.ty, block, sub);
            let scale = f16::from_f32(step);
            if !scale.is_finite() {
                return Err(contract("load", format!("{}: a scale of {step} is beyond Q8_0's", view.name)));
            }
            out.extend_from_slice(&scale.to_le_bytes());
            let code = |v: &f32| if step == 0.0 { 0 } else { (v / step).round() as i8 };
            out.extend(part.iter().map(|v| code(v).cast_unsigned()));
        }
    }
    Ok(out)
}

/// What one code of a block's `sub`-th 32 values is worth.
fn step(ty: GgmlType, block: &[u8], sub: usize) -> f32 {
    let d = f16::from_le_bytes([block[0], block[1]]).to_f32();
    match ty {
        GgmlType::MXFP4 => 2f32.powi(i32::from(block[0]) - 128),
        GgmlType::IQ4_XS => {
            let low = block[4 + sub / 2] >> (4 * (sub % 2)) & 15;
            let high = block[2 + sub / 4] >> (2 * (sub % 4)) & 3;
            d * (f32::from(high << 4 | low) - 32.0)
        }
        _ => d,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Blocks of pseudo-random bytes whose scales are ordinary numbers.
    fn blocks(ty: GgmlType, count: usize) -> Vec<u8> {
        let mut state = 7u32;
        let mut byte = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        let format = quant::format(ty);
        let mut all: Vec<u8> = (0..count * format.block_bytes).map(|_| byte()).collect();
        for block in all.chunks_exact_mut(format.block_bytes) {
            match ty {
                GgmlType::MXFP4 => block[0] = 110 + block[0] % 30,
                _ => block[1] = block[1] & 0x83 | 0x28,
            }
        }
        all
    }

    fn expanded(ty: GgmlType, bytes: &[u8]) -> Vec<f32> {
        let format = quant::format(ty);
        let mut values = vec![0.0; bytes.len() / format.block_bytes * format.block];
        (format.dequantize)(bytes, &mut values);
        values
    }

    #[test]
    fn what_is_held_as_q8_0_keeps_its_values() {
        for (ty, error) in [(GgmlType::IQ4_NL, 0.0), (GgmlType::MXFP4, 0.0), (GgmlType::IQ4_XS, 1.0 / 2048.0)]
        {
            let data = blocks(ty, 50);
            let cols = 50 * quant::format(ty).block;
            let view = TensorView {
                name: "w",
                ty,
                cols,
                rows: 1,
                experts: 1,
                data: &data,
                packed: false,
                place: None,
            };
            let ours = expanded(GgmlType::Q8_0, &to_q8_0(&view).unwrap());
            let theirs = expanded(ty, &data);
            assert_eq!(ours.len(), theirs.len());
            for (ours, theirs) in ours.iter().zip(&theirs) {
                assert!((ours - theirs).abs() <= theirs.abs() * error, "{ty:?}: {ours} for {theirs}");
            }
        }
    }

    #[test]
    fn a_scale_beyond_halves_is_refused_by_name() {
        let mut data = blocks(GgmlType::MXFP4, 1);
        data[0] = 200;
        let view = TensorView {
            name: "blk.0.x",
            ty: GgmlType::MXFP4,
            cols: 32,
            rows: 1,
            experts: 1,
            data: &data,
            packed: false,
            place: None,
        };
        let error = to_q8_0(&view).unwrap_err().to_string();
        assert!(error.contains("blk.0.x"), "{error}");
    }
}
