//! The law: bits depend on tokens and positions alone. And the operations against plain f64 arithmetic.

use std::collections::BTreeMap;

use half::{bf16, f16};
use proptest::prelude::*;

use super::*;
use crate::backend::{Activation, Gating, RopeStyle};
use crate::quant::{FORMATS, GgmlType, format};
use crate::step::{BlockCopy, BlockId, BlockTable, Row, SamplingParams, Score, SeqId, StepInput, TokenId};

/// Softmax over all experts.
fn routing(top_k: usize, normalise: bool, scale: f32) -> RouteSpec {
    RouteSpec { top_k: top_k as u32, gating: Gating::Softmax, groups: None, normalise, scale }
}

/// A router without biases.
fn plain(weight: &CpuWeight) -> Router<'_, CpuWeight, CpuVector> {
    Router { weight, bias: None, choice_bias: None }
}

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

/// Sizes of a small transformer.
#[derive(Clone, Copy, Debug)]
struct Sizes {
    ty: GgmlType,
    hidden: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    inner: usize,
    experts: usize,
    top_k: usize,
    vocab: usize,
}

impl Sizes {
    fn new(ty: GgmlType) -> Self {
        let (hidden, heads, kv_heads, head_dim) = (256, 8, 2, 32);
        Self { ty, hidden, heads, kv_heads, head_dim, inner: 256, experts: 5, top_k: 3, vocab: 67 }
    }
}

/// Two layers, the first with experts, the second dense, the table tied to the head.
struct Tiny {
    sizes: Sizes,
    table: Stored,
    norm: Stored,
    head_norm: Stored,
    router: Stored,
    layers: Vec<[Stored; 7]>,
}

impl Tiny {
    fn new(sizes: Sizes, seed: u64) -> Self {
        let Sizes { ty, hidden, heads, kv_heads, head_dim, inner, experts, vocab, .. } = sizes;
        let random = &mut Random(seed);
        let (q, kv) = (heads * head_dim, kv_heads * head_dim);
        let layers = [experts, 1].map(|n| {
            let shapes = [
                [hidden, q, 1],
                [hidden, kv, 1],
                [hidden, kv, 1],
                [q, hidden, 1],
                [hidden, inner, n],
                [hidden, inner, n],
                [inner, hidden, n],
            ];
            shapes.map(|shape| Stored::random(random, ty, shape, 0.15))
        });
        Self {
            sizes,
            table: Stored::random(random, ty, [hidden, vocab, 1], 1.0),
            norm: Stored::random(random, GgmlType::F32, [hidden, 1, 1], 1.0),
            head_norm: Stored::random(random, GgmlType::F32, [head_dim, 1, 1], 2.0),
            router: Stored::random(random, GgmlType::F32, [hidden, experts, 1], 1.0),
            layers: layers.into(),
        }
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

    fn options(&self, sizes: &Sizes) -> CpuOptions {
        let (key_dim, kv_heads) = (sizes.head_dim, sizes.kv_heads);
        let blocks = 2048_usize.div_ceil(self.block_tokens);
        let layout = GroupLayout { layers: 2, kv_heads, key_dim, value_dim: key_dim, blocks };
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

/// The logits' bits after every token of every sequence.
type Logits = BTreeMap<(usize, usize), Vec<u32>>;

fn row(seq: usize, start: usize, tokens: &[u32], table: &[BlockId], every: bool) -> Row {
    let tokens: Vec<TokenId> = tokens.iter().copied().map(TokenId).collect();
    let score = every.then(|| Score { targets: tokens.clone(), top: 0 });
    let table = BlockTable { first: 0, blocks: table.to_vec() };
    Row { seq: SeqId(seq as u64), start: start as u32, tokens, tables: vec![table], sample: None, score }
}

fn run(model: &Tiny, sequences: &[Vec<u32>], setting: &Setting) -> Logits {
    let sizes = &model.sizes;
    let mut backend = CpuBackend::new(&setting.options(sizes)).unwrap();
    let loaded = Weights::load(&mut backend, model);
    let mut free = Random(setting.blocks).shuffled(2048 / setting.block_tokens).into_iter().map(BlockId);
    let mut tables = vec![Vec::new(); sequences.len()];
    let mut done = vec![0; sequences.len()];
    let mut chunks = setting.chunks.iter().cycle();
    let mut logits = Logits::new();
    loop {
        let mut step = StepInput::default();
        let unfinished = (0..sequences.len()).filter(|&s| done[s] < sequences[s].len());
        for seq in unfinished.take(setting.together).collect::<Vec<_>>() {
            let start = done[seq];
            let end = sequences[seq].len().min(start.saturating_add(*chunks.next().unwrap()));
            while tables[seq].len() * setting.block_tokens < end {
                tables[seq].push(free.next().unwrap());
            }
            step.rows.push(row(seq, start, &sequences[seq][start..end], &tables[seq], true));
            done[seq] = end;
        }
        if step.rows.is_empty() {
            return logits;
        }
        let batch = Batch::new(&step);
        let values = forward(&mut backend, &loaded, sizes, &batch);
        let places = step
            .rows
            .iter()
            .flat_map(|r| (0..r.tokens.len()).map(|i| (r.seq.0 as usize, r.start as usize + i)));
        for (place, row) in places.zip(values.chunks_exact(sizes.vocab)) {
            assert!(row.iter().all(|v| v.is_finite()), "{setting:?}");
            logits.insert(place, row.iter().map(|v| v.to_bits()).collect());
        }
    }
}

struct Weights {
    table: CpuWeight,
    head: CpuWeight,
    norm: CpuVector,
    head_norm: CpuVector,
    router: CpuWeight,
    layers: Vec<[CpuWeight; 7]>,
}

impl Weights {
    fn load(backend: &mut CpuBackend, model: &Tiny) -> Self {
        Self {
            table: backend.load_embedding(&model.table.view()).unwrap(),
            head: backend.load_weight(&model.table.view()).unwrap(),
            norm: backend.load_vector(&model.norm.view()).unwrap(),
            head_norm: backend.load_vector(&model.head_norm.view()).unwrap(),
            router: backend.load_weight(&model.router.view()).unwrap(),
            layers: model
                .layers
                .iter()
                .map(|l| std::array::from_fn(|i| backend.load_weight(&l[i].view()).unwrap()))
                .collect(),
        }
    }
}

fn forward(b: &mut CpuBackend, w: &Weights, sizes: &Sizes, batch: &Batch) -> Vec<f32> {
    let dim = sizes.head_dim as u32;
    let frequencies = (0..dim / 2).map(|i| 1e4_f64.powf(-2.0 * f64::from(i) / f64::from(dim))).collect();
    let rope = Rope { style: RopeStyle::Neox, first: 0, frequencies, scale: 1.0 };
    b.begin(batch).unwrap();
    let mut x = b.embed(&w.table, batch).unwrap();
    for (slot, [q, k, v, o, gate, up, down]) in w.layers.iter().enumerate() {
        let n = b.rms_norm(&x, &w.norm, 1e-5).unwrap();
        let mut qkv = b.linear(&n, &[q, k, v]).unwrap();
        let (v, k, q) = (qkv.remove(2), qkv.remove(1), qkv.remove(0));
        let mut q = b.rms_norm(&q, &w.head_norm, 1e-5).unwrap();
        let mut k = b.rms_norm(&k, &w.head_norm, 1e-5).unwrap();
        b.rope(&mut q, dim, &rope, batch).unwrap();
        b.rope(&mut k, dim, &rope, batch).unwrap();
        let (heads, kv_heads) = (sizes.heads as u32, sizes.kv_heads as u32);
        let scale = 1.0 / (dim as f32).sqrt();
        let spec = AttendSpec {
            group: 0,
            slot: slot as u32,
            heads,
            kv_heads,
            key_dim: dim,
            value_dim: dim,
            scale,
            window: None,
        };
        let a = b.attend(&q, &k, Some(&v), None, &spec, batch).unwrap();
        let a = b.linear(&a, &[o]).unwrap().remove(0);
        b.add(&mut x, &a, 1.0).unwrap();
        let n = b.rms_norm(&x, &w.norm, 1e-5).unwrap();
        let ffn = Gated { gate, up, down, biases: None, activation: Activation::Silu };
        let y = if gate.experts > 1 {
            let spec = routing(sizes.top_k, true, 1.0);
            let routing = b.route(&n, plain(&w.router), &spec).unwrap();
            b.experts(&n, &routing, ffn, batch).unwrap()
        } else {
            b.feed_forward(&n, ffn).unwrap()
        };
        b.add(&mut x, &y, 1.0).unwrap();
    }
    let x = b.select(&x, &batch.outputs).unwrap();
    let x = b.rms_norm(&x, &w.norm, 1e-5).unwrap();
    let logits = b.linear(&x, &[&w.head]).unwrap().remove(0);
    b.read(&logits).unwrap()
}

fn sequences(random: &mut Random, lengths: &[usize], vocab: usize) -> Vec<Vec<u32>> {
    lengths.iter().map(|&n| (0..n).map(|_| random.below(vocab) as u32).collect()).collect()
}

/// Every setting gives the bits of the plain one.
fn check(sizes: Sizes, lengths: &[usize], seed: u64, settings: impl Fn(Setting) -> Vec<Setting>) {
    let model = Tiny::new(sizes, seed);
    let sequences = sequences(&mut Random(seed + 1), lengths, sizes.vocab);
    for page in [PageType::F32, PageType::F16] {
        let plain = Setting::plain(page);
        let expected = run(&model, &sequences, &plain);
        assert_eq!(expected.len(), lengths.iter().sum::<usize>());
        for setting in settings(plain) {
            let logits = run(&model, &sequences, &setting);
            let wrong = expected.iter().find(|(place, bits)| logits.get(place) != Some(bits));
            assert!(wrong.is_none(), "{sizes:?} {setting:?}: differs first at {:?}", wrong.map(|w| w.0));
        }
    }
}

#[test]
fn every_format_is_invariant() {
    for (i, format) in FORMATS.iter().enumerate() {
        check(Sizes::new(format.ty), &[21, 1, 34, 9, 2], 100 + i as u64, |plain| {
            let isa = Isa::detect();
            vec![
                Setting { isa, ..plain.clone() },
                Setting { isa, threads: 2, together: 5, ..plain.clone() },
                Setting {
                    isa,
                    threads: 3,
                    together: 3,
                    chunks: vec![7, 1, 12],
                    block_tokens: 4,
                    ..plain.clone()
                },
                Setting { threads: 5, together: 4, chunks: vec![1], blocks: 77, ..plain },
            ]
        });
    }
}

#[test]
fn long_contexts_are_invariant() {
    let sizes = Sizes {
        hidden: 40,
        heads: 6,
        kv_heads: 2,
        head_dim: 20,
        inner: 24,
        experts: 3,
        top_k: 3,
        vocab: 9,
        ..Sizes::new(GgmlType::F32)
    };
    // Over three ranges of attention; the chunks leave single queries for the split over ranges.
    check(sizes, &[600, 300], 7, |plain| {
        let isa = Isa::detect();
        vec![
            Setting { isa, threads: 2, together: 2, chunks: vec![255, 1, 1, 2, 64], ..plain.clone() },
            Setting { isa, threads: 3, chunks: vec![511, 1], block_tokens: 7, blocks: 5, ..plain.clone() },
            Setting { threads: 5, together: 2, chunks: vec![40, 260], block_tokens: 1, ..plain },
        ]
    });
}

/// A tensor that is no selection.
fn tensor(b: &CpuBackend, width: usize, values: &[f32]) -> CpuTensor {
    let mut to = b.core.env.floats.take(values.len());
    to.copy_from_slice(values);
    CpuTensor::new(values.len() / width, width, to, None)
}

fn backend(threads: usize, sizes: &Sizes) -> CpuBackend {
    let setting = Setting { threads, isa: Isa::detect(), ..Setting::plain(PageType::F32) };
    CpuBackend::new(&setting.options(sizes)).unwrap()
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn products_are_right(
        seed in 1_u64.., at in 0..FORMATS.len(), blocks in 1_usize..3, tokens in 1_usize..20,
        rows in prop::collection::vec(1_usize..50, 1..4), threads in 1_usize..4,
    ) {
        let (ty, random) = (FORMATS[at].ty, &mut Random(seed));
        let cols = blocks * format(ty).block.max(8);
        let stored: Vec<_> =
            rows.iter().map(|&r| Stored::random(random, ty, [cols, r, 1], 1.0)).collect();
        let x: Vec<f32> = (0..tokens * cols).map(|_| random.value()).collect();
        let mut b = backend(threads, &Sizes::new(ty));
        let weights: Vec<_> = stored.iter().map(|s| b.load_weight(&s.view()).unwrap()).collect();
        b.begin(&Batch::default()).unwrap();
        let outs = b.linear(&tensor(&b, cols, &x), &weights.iter().collect::<Vec<_>>()).unwrap();
        let tolerance = if format(ty).act == crate::quant::ActKind::F32 { 1e-6 } else { 0.03 };
        for (out, stored) in outs.iter().zip(&stored) {
            let values = stored.values();
            let exact: Vec<f64> = x.chunks_exact(cols).flat_map(|x| product(&widen(x), &values)).collect();
            // Rounding activations to 8 bits: relative to the products' size, not to what cancels.
            let size = (cols as f64).sqrt() / exact.iter().fold(1e-3_f64, |m, v| m.max(v.abs()));
            assert_close(&b.read(out).unwrap(), &exact, tolerance * size.max(1.0))?;
        }
    }

    #[test]
    fn attention_is_right(
        seed in 1_u64.., heads in prop::sample::select(vec![(1, 1), (4, 2), (6, 1), (3, 3)]),
        head_dim in 1_usize..70, lengths in prop::collection::vec((0_usize..300, 1_usize..40), 1..4),
        threads in 1_usize..4, block_tokens in 1_usize..40,
    ) {
        let (heads, kv_heads) = heads;
        let sizes = Sizes { heads, kv_heads, head_dim, ..Sizes::new(GgmlType::F32) };
        let setting = Setting { threads, isa: Isa::detect(), block_tokens, ..Setting::plain(PageType::F32) };
        let mut b = CpuBackend::new(&setting.options(&sizes)).unwrap();
        let random = &mut Random(seed);
        let mut blocks = random.shuffled(2048 / block_tokens).into_iter().map(BlockId);
        let (q_width, kv_width) = (heads * head_dim, kv_heads * head_dim);
        let spec = AttendSpec {
            group: 0, slot: 1, heads: heads as u32, kv_heads: kv_heads as u32, key_dim: head_dim as u32, value_dim: head_dim as u32, scale: 0.3, window: None,
        };
        // The past first, in a step of its own, then the new tokens.
        let tables: Vec<Vec<BlockId>> = lengths
            .iter()
            .map(|(past, new)| blocks.by_ref().take((past + new).div_ceil(block_tokens)).collect())
            .collect();
        let mut fill = |n: usize| (0..n).map(|_| 3.0 * random.value()).collect::<Vec<f32>>();
        let mut cached: Vec<(Vec<f32>, Vec<f32>)> = vec![Default::default(); lengths.len()];
        let mut result = Vec::new();
        let mut queries = Vec::new();
        for old in [true, false] {
            let mut step = StepInput::default();
            let (mut q, mut k, mut v) = (Vec::new(), Vec::new(), Vec::new());
            for (seq, &(past, new)) in lengths.iter().enumerate() {
                let (start, n) = if old { (0, past) } else { (past, new) };
                if n == 0 {
                    continue;
                }
                step.rows.push(row(seq, start, &vec![0; n], &tables[seq], false));
                let (new_k, new_v) = (fill(n * kv_width), fill(n * kv_width));
                q.extend(fill(n * q_width));
                cached[seq].0.extend(&new_k);
                cached[seq].1.extend(&new_v);
                k.extend(new_k);
                v.extend(new_v);
            }
            let batch = Batch::new(&step);
            b.begin(&batch).unwrap();
            let (tq, tk, tv) = (tensor(&b, q_width, &q), tensor(&b, kv_width, &k), tensor(&b, kv_width, &v));
            let out = b.attend(&tq, &tk, Some(&tv), None, &spec, &batch).unwrap();
            result = b.read(&out).unwrap();
            queries = q;
        }
        let mut exact = Vec::new();
        let mut queries = queries.chunks_exact(q_width);
        for (&(past, new), (k, v)) in lengths.iter().zip(&cached) {
            for position in past..past + new {
                for (h, q) in queries.next().unwrap().chunks_exact(head_dim).enumerate() {
                    let at = |j: usize| j * kv_width + h / (heads / kv_heads) * head_dim;
                    let e: Vec<f64> = (0..=position)
                        .map(|j| (0.3_f32 as f64 * product(&widen(q), &k[at(j)..at(j) + head_dim])[0]).exp())
                        .collect();
                    let sum: f64 = e.iter().sum();
                    exact.extend((0..head_dim).map(|d| {
                        e.iter().enumerate().map(|(j, e)| e * f64::from(v[at(j) + d])).sum::<f64>() / sum
                    }));
                }
            }
        }
        assert_close(&result, &exact, 2e-5)?;
    }

    #[test]
    fn experts_are_right(
        seed in 1_u64.., hidden in 1_usize..40, inner in 1_usize..90, experts in 1_usize..9,
        tokens in 1_usize..50, threads in 1_usize..4, normalise: bool,
    ) {
        let (ty, random) = (GgmlType::F32, &mut Random(seed));
        let top_k = 1 + random.below(experts);
        let shapes = [[hidden, inner, experts], [hidden, inner, experts], [inner, hidden, experts]];
        let parts = shapes.map(|shape| Stored::random(random, ty, shape, 1.0));
        let router = Stored::random(random, ty, [hidden, experts, 1], 1.0);
        let x: Vec<f32> = (0..tokens * hidden).map(|_| random.value()).collect();
        let mut b = backend(threads, &Sizes::new(ty));
        let [gate, up, down] = parts.each_ref().map(|p| b.load_weight(&p.view()).unwrap());
        let loaded = b.load_weight(&router.view()).unwrap();
        let step = StepInput { rows: vec![row(0, 0, &vec![0; tokens], &[], false)], ..StepInput::default() };
        let batch = Batch::new(&step);
        b.begin(&batch).unwrap();
        let xt = tensor(&b, hidden, &x);
        let routing =
            b.route(&xt, plain(&loaded), &routing(top_k, normalise, 1.5)).unwrap();
        let ffn = Gated { gate: &gate, up: &up, down: &down, biases: None, activation: Activation::Silu };
        let out = b.experts(&xt, &routing, ffn, &batch).unwrap();
        let out = b.read(&out).unwrap();

        let [gate, up, down] = parts.map(|p| p.values());
        let mut exact = Vec::new();
        for (t, x) in x.chunks_exact(hidden).enumerate() {
            let x = widen(x);
            let logits = product(&x, &router.values());
            let mut order: Vec<usize> = (0..experts).collect();
            order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
            let mut chosen = order[..top_k].to_vec();
            let sum: f64 = order.iter().map(|&e| logits[e].exp()).sum();
            let kept: f64 = chosen.iter().map(|&e| logits[e].exp()).sum();
            chosen.sort_unstable();
            let ours = &routing.experts[t * top_k..][..top_k];
            prop_assert_eq!(ours, chosen.iter().map(|&e| e as u32).collect::<Vec<_>>());
            let mut y = vec![0.0; hidden];
            for e in chosen {
                let weight = 1.5 * logits[e].exp() / if normalise { kept } else { sum };
                let part = |w: &[f32]| w[e * hidden * inner..][..hidden * inner].to_vec();
                let (g, u) = (product(&x, &part(&gate)), product(&x, &part(&up)));
                let h: Vec<f64> = g.iter().zip(&u).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
                y.iter_mut().zip(product(&h, &part(&down))).for_each(|(y, d)| *y += weight * d);
            }
            exact.extend(y);
        }
        assert_close(&out, &exact, 2e-5)?;
    }
}

#[test]
fn equal_probabilities_go_to_the_smaller_index() {
    let b = backend(1, &Sizes::new(GgmlType::F32));
    let logits = tensor(&b, 4, &[1.0, 3.0, 3.0, 3.0, f32::NAN, 0.0, f32::NAN, 0.0]);
    let spec = routing(2, true, 1.0);
    let routing = b.core.choose(&logits, &spec);
    assert_eq!(routing.experts[..2], [1, 2]);
    assert_eq!(routing.weights[..2], [0.5, 0.5]);
    // What is not a number still chooses distinct experts, and stays visible.
    assert_ne!(routing.experts[2], routing.experts[3]);
    assert!(routing.weights[2].is_nan());
}

#[test]
fn a_tied_table_is_packed_once_and_rows_come_back_exactly() {
    for format in &FORMATS {
        let sizes = Sizes::new(format.ty);
        let mut stored = Stored::random(&mut Random(3), format.ty, [256, 21, 1], 1.0);
        let mut b = backend(2, &sizes);
        let table = b.load_embedding(&stored.view()).unwrap();
        let head = b.load_weight(&stored.view()).unwrap();
        assert_eq!(table.panel(0, 0).as_ptr(), head.panel(0, 0).as_ptr(), "{}", format.name);
        let tokens = [20, 0, 7, 8, 20];
        let batch = Batch { tokens: tokens.map(TokenId).to_vec(), ..Batch::default() };
        let x = b.embed(&table, &batch).unwrap();
        let values = stored.values();
        for (x, t) in x.values().chunks_exact(256).zip(tokens) {
            assert_eq!(x, &values[t as usize * 256..][..256], "{}", format.name);
        }
        // Other content at the same place is another weight.
        stored.data[0] ^= 1;
        let other = b.load_weight(&stored.view()).unwrap();
        assert_ne!(table.panel(0, 0).as_ptr(), other.panel(0, 0).as_ptr(), "{}", format.name);
    }
}

#[test]
fn work_is_counted_once_a_step_and_per_row() {
    let sizes = Sizes::new(GgmlType::Q4_0);
    let model = Tiny::new(sizes, 5);
    let mut b = backend(2, &sizes);
    let w = Weights::load(&mut b, &model);
    let table: Vec<BlockId> = (0..8).map(BlockId).collect();
    let mut rows = vec![row(0, 0, &[1, 2, 3], &table[..4], false), row(1, 0, &[4], &table[4..], false)];
    let sample = crate::step::Sample {
        params: SamplingParams::default().into(),
        seed: 0,
        choice: 0,
        history: Vec::new(),
        prompt_len: 0,
        forbid: Vec::new().into(),
    };
    rows[0].sample = Some(sample);
    let batch = Batch::new(&StepInput { rows, ..StepInput::default() });
    assert_eq!(batch.outputs, [2]);
    forward(&mut b, &w, &sizes, &batch);
    let stats = b.take_stats();

    let matrix = |s: &Stored| (s.data.len() / s.experts) as u64;
    let norms = 4 * (5 * 256 + 4 * 32);
    let attention: u64 = model.layers.iter().flat_map(|l| &l[..4]).map(matrix).sum();
    let dense: u64 = model.layers[1][4..].iter().map(matrix).sum();
    let others = matrix(&model.table) + matrix(&model.router);
    assert_eq!(stats.dense_bytes, norms + attention + dense + others);
    let expert: u64 = model.layers[0][4..].iter().map(matrix).sum();
    assert_eq!(stats.expert_tokens, 4 * 3);
    assert!((3..=5).contains(&stats.experts_used));
    assert_eq!(stats.expert_bytes, stats.experts_used * expert);
    // F32 pages, two layers, keys and values of two heads of 32.
    let position = 2 * 2 * 2 * 32 * 4;
    assert_eq!(stats.rows.iter().map(|r| r.kv_bytes).collect::<Vec<_>>(), [3 * position, position]);
    let norm_macs = 2 * (2 * 256 + 256 + 64);
    let macs = |tokens: u64, seen: u64, outputs: u64| {
        let matrices = 2 * (256 * 256 * 2 + 256 * 64 * 2) + (3 + 1) * 3 * 256 * 256 + 256 * 5;
        tokens * (matrices + norm_macs) + 2 * 2 * seen * 256 + outputs * (256 * 67 + 256)
    };
    assert_eq!(stats.rows.iter().map(|r| r.macs).collect::<Vec<_>>(), [macs(3, 6, 1), macs(1, 1, 0)]);
}

#[test]
fn blocks_are_copied_before_the_step() {
    let sizes = Sizes { heads: 2, kv_heads: 2, head_dim: 8, ..Sizes::new(GgmlType::F32) };
    let mut b = backend(1, &sizes);
    let spec = AttendSpec {
        group: 0,
        slot: 0,
        heads: 2,
        kv_heads: 2,
        key_dim: 8,
        value_dim: 8,
        scale: 1.0,
        window: None,
    };
    let random = &mut Random(9);
    let attend = |b: &mut CpuBackend, values: &[f32], start: usize, block: u32, copies: Vec<BlockCopy>| {
        let n = values.len() / 16;
        let rows = vec![row(0, start, &vec![0; n], &[BlockId(block)], false)];
        let batch = Batch::new(&StepInput { copies, rows });
        b.begin(&batch).unwrap();
        let x = tensor(b, 16, values);
        let out = b.attend(&x, &x, Some(&x), None, &spec, &batch).unwrap();
        b.read(&out).unwrap()
    };
    let past: Vec<f32> = (0..5 * 16).map(|_| random.value()).collect();
    let new: Vec<f32> = (0..16).map(|_| random.value()).collect();
    attend(&mut b, &past, 0, 3, Vec::new());
    let copy = BlockCopy { group: 0, from: BlockId(3), to: BlockId(6) };
    let copied = attend(&mut b, &new, 5, 6, vec![copy]);
    assert_eq!(copied, attend(&mut b, &new, 5, 3, Vec::new()));
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    let sizes = Sizes { heads: 1, kv_heads: 1, head_dim: 8, ..Sizes::new(GgmlType::F32) };
    let mut b = backend(1, &sizes);
    let mut windowed = row(0, 16, &[0], &[BlockId(0)], false);
    windowed.tables[0].first = 1;
    let batch = Batch::new(&StepInput { rows: vec![windowed], ..StepInput::default() });
    b.begin(&batch).unwrap();
    let x = tensor(&b, 8, &[1.0; 8]);
    let spec = AttendSpec {
        group: 0,
        slot: 0,
        heads: 1,
        kv_heads: 1,
        key_dim: 8,
        value_dim: 8,
        scale: 1.0,
        window: None,
    };
    let error = b.attend(&x, &x, Some(&x), None, &spec, &batch).unwrap_err();
    assert_eq!(error.to_string(), "tensor cache group 0: a sliding window is not supported by this backend");

    let data = [0; 144];
    let view = TensorView { name: "odd", ty: GgmlType::Q4_K, cols: 100, rows: 1, experts: 1, data: &data };
    let error = b.load_weight(&view).unwrap_err();
    assert!(error.to_string().starts_with("tensor odd: Q4_K rows of 100 values"), "{error}");

    let mut options = Setting::plain(PageType::F16).options(&sizes);
    options.groups[0].blocks = 1 << 50;
    assert!(CpuBackend::new(&options).unwrap_err().to_string().contains("cache group 0"));
}
