//! A small transformer, bit for bit whatever the batch, chunks, threads, blocks and instruction set; and what it counts.

use super::*;

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

    fn layout(&self, setting: &Setting) -> GroupLayout {
        setting.layout(self.kv_heads, [self.head_dim, self.head_dim])
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

/// The logits' bits after every token of every sequence.
type Logits = BTreeMap<(usize, usize), Vec<u32>>;

fn table(blocks: &[BlockId]) -> BlockTable {
    BlockTable { first: 0, blocks: blocks.to_vec() }
}

fn run(model: &Tiny, sequences: &[Vec<u32>], setting: &Setting) -> Logits {
    let sizes = &model.sizes;
    let mut backend = CpuBackend::new(&setting.options(sizes.layout(setting))).unwrap();
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
            step.rows.push(row(seq, start, &sequences[seq][start..end], table(&tables[seq]), true));
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
        let [table, head] = backend.load_tied(&model.table.view()).unwrap();
        Self {
            table,
            head,
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
            let (top_k, gating) = (sizes.top_k as u32, Gating::Softmax);
            let spec = RouteSpec { top_k, gating, groups: None, normalise: true, scale: 1.0 };
            let router = Router { weight: &w.router, bias: None, choice_bias: None };
            let routing = b.route(&n, router, &spec).unwrap();
            b.experts(&n, &routing, ffn, batch).unwrap()
        } else {
            b.feed_forward(&n, ffn).unwrap()
        };
        b.add(&mut x, &y, 1.0).unwrap();
    }
    let x = b.select(&x, &batch.outputs).unwrap();
    let x = b.rms_norm(&x, &w.norm, 1e-5).unwrap();
    let logits = b.linear(&x, &[&w.head]).unwrap().remove(0);
    b.values(&logits).unwrap()
}

fn sequences(random: &mut Random, lengths: &[usize], vocab: usize) -> Vec<Vec<u32>> {
    lengths.iter().map(|&n| (0..n).map(|_| random.below(vocab) as u32).collect()).collect()
}

/// Every setting gives the bits of the plain one.
fn check(sizes: Sizes, lengths: &[usize], seed: u64, settings: impl Fn(Setting) -> Vec<Setting>) {
    let model = Tiny::new(sizes, seed);
    let sequences = sequences(&mut Random(seed + 1), lengths, sizes.vocab);
    for page in PageType::ALL {
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

#[test]
fn work_is_counted_once_a_step_and_per_row() {
    let sizes = Sizes::new(GgmlType::Q4_0);
    let model = Tiny::new(sizes, 5);
    let setting = Setting { threads: 2, isa: Isa::detect(), ..Setting::plain(PageType::F32) };
    let mut b = CpuBackend::new(&setting.options(sizes.layout(&setting))).unwrap();
    let w = Weights::load(&mut b, &model);
    let blocks: Vec<BlockId> = (0..8).map(BlockId).collect();
    let mut rows =
        vec![row(0, 0, &[1, 2, 3], table(&blocks[..4]), false), row(1, 0, &[4], table(&blocks[4..]), false)];
    let sample = crate::step::Sample {
        params: SamplingParams::default().into(),
        seed: 0,
        choice: 0,
        history: Vec::new(),
        prompt_len: 0,
        forbid: Vec::new().into(),
        constraint: None,
    };
    rows[0].sample = Some(sample);
    let batch = Batch::new(&StepInput { rows, ..StepInput::default() });
    assert_eq!(batch.outputs, [2]);
    forward(&mut b, &w, &sizes, &batch);
    let stats = b.take_stats().unwrap();

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
