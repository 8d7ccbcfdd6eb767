//! The law: bits depend on tokens and positions alone. And the operations against the reference, or plain f64 arithmetic.

mod attention;
mod experts;
mod invariance;
mod products;
mod routing;

use std::collections::BTreeMap;

use half::{bf16, f16};
use proptest::prelude::*;

use super::*;
use crate::backend::{
    Activation, AttendSpec, Backend, ExpertGroups, Gated, Gating, GroupScore, RopeStyle, RouteSpec, Router,
};
use crate::quant::{ActKind, FORMATS, GgmlType, PANEL, act_bytes, format};
use crate::reference::ReferenceBackend;
use crate::step::{
    BlockCopy, BlockId, BlockTable, Row, SamplingParams, Score, SeqId, StepInput, StepStats, TokenId,
};
use crate::weights::TensorView;

/// Seeded numbers (xorshift64*).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() >> 33) as usize % n
    }

    /// In -1..1.
    fn value(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    fn values(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.value()).collect()
    }

    fn shuffled(&mut self, n: usize) -> Vec<u32> {
        let mut all: Vec<u32> = (0..n as u32).collect();
        for i in (1..n).rev() {
            all.swap(i, self.below(i + 1));
        }
        all
    }
}

/// A tensor of a file.
struct Stored {
    ty: GgmlType,
    cols: usize,
    rows: usize,
    experts: usize,
    data: Vec<u8>,
}

impl Stored {
    /// Random blocks whose scales make values of about `size`.
    fn random(random: &mut Random, ty: GgmlType, [cols, rows, experts]: [usize; 3], size: f32) -> Self {
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

    fn view(&self) -> TensorView<'_> {
        let Self { ty, cols, rows, experts, .. } = *self;
        TensorView { name: "random", ty, cols, rows, experts, data: &self.data }
    }

    fn values(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.cols * self.rows * self.experts];
        (format(self.ty).dequantize)(&self.data, &mut values);
        values
    }
}

/// What must not change a bit.
#[derive(Clone, Debug)]
struct Setting {
    threads: usize,
    isa: Isa,
    page: PageType,
    block_tokens: usize,
    /// Orders the pool's blocks.
    blocks: u64,
    /// Tokens of each sequence per step, from the front of this list, over and over.
    chunks: Vec<usize>,
    /// Sequences at most in one step.
    together: usize,
}

impl Setting {
    fn plain(page: PageType) -> Self {
        let (isa, chunks) = (Isa::Scalar, vec![usize::MAX]);
        Self { threads: 1, isa, page, block_tokens: 16, blocks: 1, chunks, together: 1 }
    }

    /// Two layers of so many key heads, with room for 2048 positions.
    fn layout(&self, kv_heads: usize, [key_dim, value_dim]: [usize; 2]) -> GroupLayout {
        let blocks = 2048_usize.div_ceil(self.block_tokens);
        GroupLayout { layers: 2, kv_heads, key_dim, value_dim, blocks }
    }

    fn options(&self, layout: GroupLayout) -> CpuOptions {
        CpuOptions {
            threads: self.threads,
            pin: false,
            isa: Some(self.isa),
            groups: vec![layout],
            block_tokens: self.block_tokens,
            page: self.page,
        }
    }
}

fn row(seq: usize, start: usize, tokens: &[u32], table: BlockTable, every: bool) -> Row {
    let tokens: Vec<TokenId> = tokens.iter().copied().map(TokenId).collect();
    let score = every.then(|| Score { targets: tokens.clone(), top: 0 });
    Row { seq: SeqId(seq as u64), start: start as u32, tokens, tables: vec![table], sample: None, score }
}

/// One sequence of so many tokens, without a cache.
fn batch(tokens: usize) -> Batch {
    let rows = vec![row(0, 0, &vec![0; tokens], BlockTable::default(), false)];
    Batch::new(&StepInput { rows, ..StepInput::default() })
}

/// A backend for what has no cache.
fn backend(threads: usize, isa: Isa) -> CpuBackend {
    let setting = Setting { threads, isa, ..Setting::plain(PageType::F32) };
    CpuBackend::new(&setting.options(setting.layout(1, [1, 1]))).unwrap()
}

/// As [`backend`].
fn reference() -> ReferenceBackend {
    ReferenceBackend::new(KvStore::new(&[], 1, PageType::F32).unwrap())
}

/// Values as a file has them.
fn view<'a>(data: &'a [u8], [cols, rows, experts]: [usize; 3]) -> TensorView<'a> {
    TensorView { name: "values", ty: GgmlType::F32, cols, rows, experts, data }
}

fn le_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// A tensor with these values.
fn put<B: Backend>(b: &mut B, width: usize, values: &[f32]) -> B::Tensor {
    let rows = values.len() / width;
    let table = b.load_embedding(&view(&le_bytes(values), [width, rows, 1])).unwrap();
    let tokens = (0..rows as u32).map(TokenId).collect();
    b.embed(&table, &Batch { tokens, ..Batch::default() }).unwrap()
}

fn vector<B: Backend>(b: &mut B, values: &[f32]) -> B::Vector {
    b.load_vector(&view(&le_bytes(values), [values.len(), 1, 1])).unwrap()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// `op` gives each row the same bits whatever rows are beside it, the threads and the instruction set.
fn check_rows(width: usize, values: &[f32], op: impl Fn(&mut CpuBackend, CpuTensor, &Batch) -> CpuTensor) {
    let count = values.len() / width;
    let run = |threads: usize, isa: Isa, together: usize| {
        let mut b = backend(threads, isa);
        let mut all = Vec::new();
        for rows in values.chunks(together * width) {
            let batch = batch(rows.len() / width);
            let x = put(&mut b, width, rows);
            b.begin(&batch).unwrap();
            let out = op(&mut b, x, &batch);
            all.extend_from_slice(&b.read(&out).unwrap());
        }
        bits(&all)
    };
    let expected = run(1, Isa::Scalar, count);
    for (threads, isa, together) in
        [(1, Isa::Scalar, 1), (1, Isa::detect(), count), (3, Isa::detect(), 1), (2, Isa::detect(), 7)]
    {
        assert_eq!(run(threads, isa, together), expected, "{threads} threads, {isa:?}, {together} together");
    }
}

fn assert_close(values: &[f32], exact: &[f64], tolerance: f64) -> Result<(), TestCaseError> {
    prop_assert_eq!(values.len(), exact.len());
    let size = exact.iter().fold(1e-3_f64, |m, v| m.max(v.abs()));
    for (i, (a, b)) in values.iter().zip(exact).enumerate() {
        prop_assert!((f64::from(*a) - b).abs() <= tolerance * size, "value {}: {} for {}", i, a, b);
    }
    Ok(())
}

/// `x W^T` in f64; `values` is `[rows, cols]`.
fn product(x: &[f64], values: &[f32]) -> Vec<f64> {
    values.chunks_exact(x.len()).map(|w| w.iter().zip(x).map(|(w, x)| f64::from(*w) * x).sum()).collect()
}

fn widen(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&v| f64::from(v)).collect()
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    let mut b = backend(1, Isa::detect());
    let data = [0; 144];
    let odd = TensorView { name: "odd", ty: GgmlType::Q4_K, cols: 100, rows: 1, experts: 1, data: &data };
    let error = b.load_weight(&odd).unwrap_err();
    assert!(error.to_string().starts_with("tensor odd: Q4_K rows of 100 values"), "{error}");
    let error = b.load_vector(&TensorView { cols: 256, rows: 2, ..odd }).unwrap_err();
    assert_eq!(
        error.to_string(),
        "tensor odd: a vector of 512 values as Q4_K is not supported by this backend"
    );

    let setting = Setting::plain(PageType::F16);
    let layout = GroupLayout { blocks: 1 << 50, ..setting.layout(1, [8, 8]) };
    assert!(CpuBackend::new(&setting.options(layout)).unwrap_err().to_string().contains("cache group 0"));
}

/// So a weight whose rows are whole blocks, which loading makes sure of, meets activations that can be encoded.
#[test]
fn a_formats_blocks_are_whole_blocks_of_its_activations() {
    for format in &FORMATS {
        assert!(act_bytes(format.act, format.block) > 0, "{}", format.name);
    }
}
