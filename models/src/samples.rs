//! Made-up numbers and tensors, for tests and the GPU's self-test.

use half::{bf16, f16};

use crate::backend::{Backend, BackendError, Batch};
use crate::quant::{GgmlType, format};
use crate::step::TokenId;
use crate::weights::TensorView;

/// Seeded numbers (xorshift64*).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    #[cfg(test)]
    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.next() >> 33) as usize % n
    }

    /// In -1..1.
    pub(crate) fn value(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    pub(crate) fn values(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.value()).collect()
    }

    #[cfg(test)]
    pub(crate) fn shuffled(&mut self, n: usize) -> Vec<u32> {
        let mut all: Vec<u32> = (0..n as u32).collect();
        for i in (1..n).rev() {
            all.swap(i, self.below(i + 1));
        }
        all
    }
}

/// A tensor of a file.
pub(crate) struct Stored {
    pub(crate) ty: GgmlType,
    pub(crate) cols: usize,
    pub(crate) rows: usize,
    pub(crate) experts: usize,
    pub(crate) data: Vec<u8>,
}

impl Stored {
    /// Random blocks whose scales make values of about `size`.
    pub(crate) fn random(
        random: &mut Random,
        ty: GgmlType,
        [cols, rows, experts]: [usize; 3],
        size: f32,
    ) -> Self {
        let block_bytes = format(ty).block_bytes;
        let mut data = vec![0; ty.row_bytes(cols) * rows * experts];
        for block in data.chunks_exact_mut(block_bytes) {
            block.iter_mut().for_each(|b| *b = random.next() as u8);
            let mut half = |at: usize, x: f32| {
                block[at..at + 2].copy_from_slice(&f16::from_f32(x).to_le_bytes());
            };
            let x = size * (1.5 + 0.5 * random.value());
            match ty {
                GgmlType::F32 => block.copy_from_slice(&(size * random.value()).to_le_bytes()),
                GgmlType::F16 => half(0, size * random.value()),
                GgmlType::Q4_0 | GgmlType::Q5_0 => half(0, x / 16.0),
                GgmlType::Q8_0 | GgmlType::IQ4_NL => half(0, x / 128.0),
                GgmlType::BF16 => block.copy_from_slice(&bf16::from_f32(size * random.value()).to_le_bytes()),
                // Values are up to 12 * 2^(e - 128).
                GgmlType::MXFP4 => block[0] = (125.0 + size.log2()).round() as u8,
                GgmlType::Q5_1 => {
                    half(0, x / 16.0);
                    half(2, -x);
                }
                GgmlType::Q4_1 => {
                    half(0, x / 8.0);
                    half(2, -x);
                }
                GgmlType::Q4_K => {
                    half(0, x / 512.0);
                    half(2, x / 64.0);
                }
                GgmlType::Q5_K => {
                    half(0, x / 1024.0);
                    half(2, x / 64.0);
                }
                GgmlType::Q2_K => {
                    half(80, x / 24.0);
                    half(82, x / 16.0);
                }
                GgmlType::Q3_K => half(108, x / 128.0),
                GgmlType::IQ4_XS => half(0, x / 4096.0),
                GgmlType::Q6_K => half(208, x / 4096.0),
            }
        }
        Self { ty, cols, rows, experts, data }
    }

    pub(crate) fn view(&self) -> TensorView<'_> {
        let Self { ty, cols, rows, experts, .. } = *self;
        TensorView { name: "random", ty, cols, rows, experts, data: &self.data, packed: false, place: None }
    }

    #[cfg(test)]
    pub(crate) fn values(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.cols * self.rows * self.experts];
        (format(self.ty).dequantize)(&self.data, &mut values);
        values
    }
}

/// Values as a file has them.
pub(crate) fn view<'a>(data: &'a [u8], [cols, rows, experts]: [usize; 3]) -> TensorView<'a> {
    TensorView { name: "values", ty: GgmlType::F32, cols, rows, experts, data, packed: false, place: None }
}

pub(crate) fn le_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// A tensor with these values.
pub(crate) fn put<B: Backend>(b: &mut B, width: usize, values: &[f32]) -> Result<B::Tensor, BackendError> {
    let rows = values.len() / width;
    let table = b.load_embedding(&view(&le_bytes(values), [width, rows, 1]))?;
    let tokens = (0..rows as u32).map(TokenId).collect();
    b.embed(&table, &Batch { tokens, ..Batch::default() })
}

/// A vector of these values.
pub(crate) fn vector<B: Backend>(b: &mut B, values: &[f32]) -> Result<B::Vector, BackendError> {
    b.load_vector(&view(&le_bytes(values), [values.len(), 1, 1]))
}
