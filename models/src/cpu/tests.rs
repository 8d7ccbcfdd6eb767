//! The law: bits depend on tokens and positions alone. And the operations against the reference, or plain f64 arithmetic.

mod attention;
mod experts;
mod held;
mod invariance;
mod products;
mod routing;

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::backend::{
    Activation, AttendSpec, Backend, ExpertGroups, Gated, Gating, GroupScore, RopeStyle, RouteSpec, Router,
};
use crate::gguf;
use crate::quant::{ActKind, FORMATS, GgmlType, PANEL, act_bytes, format};
use crate::reference::ReferenceBackend;
use crate::samples::{self, Random, Stored, le_bytes, view};
use crate::step::{
    BlockCopy, BlockId, BlockTable, Row, SamplingParams, Score, SeqId, StepInput, StepStats, TokenId,
};
use crate::weights::{Place, TensorView};

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
            lazy: false,
        }
    }
}

fn row(seq: usize, start: usize, tokens: &[u32], table: BlockTable, every: bool) -> Row {
    let tokens: Vec<TokenId> = tokens.iter().copied().map(TokenId).collect();
    let score = every.then(|| Score { targets: tokens.clone(), top: 0 });
    Row {
        seq: SeqId(seq as u64),
        start: start as u32,
        tokens,
        tables: vec![table],
        sample: None,
        drafts: 0,
        score,
    }
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

fn put<B: Backend>(b: &mut B, width: usize, values: &[f32]) -> B::Tensor {
    samples::put(b, width, values).unwrap()
}

fn vector<B: Backend>(b: &mut B, values: &[f32]) -> B::Vector {
    samples::vector(b, values).unwrap()
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
            all.extend_from_slice(&b.values(&out).unwrap());
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
fn only_so_many_bytes_of_experts_wait() {
    let random = Stored::random(&mut Random(3), GgmlType::Q8_0, [64, 40, 4], 1.0);
    let file = gguf::Bytes::Owned(Arc::new(random.data.clone()));
    let view = TensorView { data: &file, place: Some(Place { file: &file, start: 0 }), ..random.view() };
    let setting = Setting::plain(PageType::F16);
    let missing = |waiting_max: usize| {
        let options = CpuOptions { lazy: true, ..setting.options(setting.layout(1, [8, 8])) };
        let mut b = CpuBackend::new(&options).unwrap();
        let weights = [(); 3].map(|()| b.load_weight(&view).unwrap());
        let parts = |w: &CpuWeight| (0..4).map(|e| w.stack().unwrap().missing(e).count()).sum::<usize>();
        assert_eq!(weights.each_ref().map(parts), [4, 4, 4]);
        b.pack_all_but(waiting_max).map(|stack| stack.bytes()).sum::<usize>()
    };
    let each = random.data.len();
    assert_eq!([0, each - 1, each, 2 * each + 1, usize::MAX].map(missing), [0, 0, each, 2 * each, 3 * each]);
    // One that is not in a file is packed at once, and so is a matrix by itself.
    let mut b =
        CpuBackend::new(&CpuOptions { lazy: true, ..setting.options(setting.layout(1, [8, 8])) }).unwrap();
    assert!(b.load_weight(&random.view()).unwrap().stack().is_none());
    assert!(b.load_weight(&view.expert(1)).unwrap().stack().is_none());
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    let mut b = backend(1, Isa::detect());
    let data = [0; 144];
    let odd = TensorView {
        name: "odd",
        ty: GgmlType::Q4_K,
        cols: 100,
        rows: 1,
        experts: 1,
        data: &data,
        packed: false,
        place: None,
    };
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
