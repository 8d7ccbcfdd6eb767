//! Attention of one layer over half-precision pages, on one thread.
//!
//! Bound with many queries: two multiply-adds for each pair of a query and a position that it sees, for each value of a
//! head; two instructions of eight a clock are 58 G/s on a Zen of 3.66 GHz. With few, the bytes of the pages: at 16 GB/s and with
//! eight query heads a key head, 64 G/s. divan prints multiply-adds a second as items.

use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use frugal_models::backend::{AttendSpec, Backend, Batch};
use frugal_models::cpu::{CpuBackend, CpuOptions, CpuTensor};
use frugal_models::kv::{GroupLayout, PageType};
use frugal_models::quant::GgmlType;
use frugal_models::step::{BlockId, BlockTable, Row, SeqId, StepInput, TokenId};
use frugal_models::weights::TensorView;
use frugal_tests::isa;

/// Sequences, tokens of each, the position of their first, query heads, key heads, values of a head.
#[derive(Clone, Copy)]
struct Case(&'static str, [usize; 6]);

const CASES: [Case; 7] = [
    Case("prompt of 512", [1, 512, 0, 32, 4, 128]),
    Case("512 after 3584", [1, 512, 3584, 32, 4, 128]),
    Case("prompt of 512, small heads", [1, 512, 0, 9, 3, 64]),
    Case("512 after 3584, one query head a key head", [1, 512, 3584, 8, 8, 128]),
    Case("decoding one at 4096", [1, 1, 4096, 32, 4, 128]),
    Case("decoding 32 at 200", [32, 1, 200, 32, 4, 128]),
    Case("decoding 32 at 200, small heads", [32, 1, 200, 9, 3, 64]),
];

const BLOCK_TOKENS: usize = 16;

fn main() {
    divan::main();
}

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0)
    }
}

/// Rows of `width` values between -1 and 1 from a fixed sequence.
fn tensor(b: &mut CpuBackend, rows: usize, width: usize, seed: u32) -> CpuTensor {
    let mut state = seed;
    let data: Vec<u8> = (0..rows * width)
        .flat_map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            ((state >> 8) as f32 / 8_388_608.0 - 1.0).to_le_bytes()
        })
        .collect();
    let (cols, experts) = (width, 1);
    let view = TensorView {
        name: "made up",
        ty: GgmlType::F32,
        cols,
        rows,
        experts,
        data: &data,
        packed: false,
        place: None,
    };
    let table = b.load_embedding(&view).expect("a table of floats");
    let tokens = (0..rows as u32).map(TokenId).collect();
    b.embed(&table, &Batch { tokens, ..Batch::default() }).expect("its rows")
}

#[divan::bench(args = CASES, sample_count = 20, sample_size = 1)]
fn attention(bencher: Bencher, case: &Case) {
    let [sequences, tokens, start, heads, kv_heads, dim] = case.1;
    let blocks = (start + tokens).div_ceil(BLOCK_TOKENS);
    let layout =
        GroupLayout { layers: 1, kv_heads, key_dim: dim, value_dim: dim, blocks: sequences * blocks };
    let options = CpuOptions {
        threads: 1,
        pin: false,
        isa: Some(isa()),
        groups: vec![layout],
        block_tokens: BLOCK_TOKENS,
        page: PageType::F16,
        lazy: false,
    };
    let mut b = CpuBackend::new(&options).expect("a backend");
    let spec = AttendSpec {
        group: 0,
        slot: 0,
        heads: heads as u32,
        kv_heads: kv_heads as u32,
        key_dim: dim as u32,
        value_dim: dim as u32,
        scale: 1.0 / (dim as f32).sqrt(),
        window: None,
    };
    let batch = |start: usize, tokens: usize| {
        let rows = (0..sequences).map(|s| {
            let ids = (0..blocks).map(|i| BlockId((i * sequences + s) as u32)).collect();
            Row {
                seq: SeqId(s as u64),
                start: start as u32,
                tokens: vec![TokenId(0); tokens],
                tables: vec![BlockTable { first: 0, blocks: ids }],
                sample: None,
                drafts: 0,
                score: None,
            }
        });
        Batch::new(&StepInput { rows: rows.collect(), ..StepInput::default() })
    };
    let mut run = |start: usize, tokens: usize| {
        let batch = batch(start, tokens);
        let n = sequences * tokens;
        let [q, k, v] = [heads, kv_heads, kv_heads].map(|h| tensor(&mut b, n, h * dim, 7 + h as u32));
        b.begin(&batch).expect("a step");
        (batch, q, k, v)
    };
    // What the cache holds from before: written by attending a few tokens at a time.
    let past: Vec<_> = (0..start).step_by(64).map(|at| run(at, 64.min(start - at))).collect();
    let (batch, q, k, v) = run(start, tokens);
    for (batch, q, k, v) in &past {
        let _ = b.attend(q, k, Some(v), None, &spec, batch).expect("attention");
    }
    let pairs: usize = (start..start + tokens).map(|position| position + 1).sum();
    bencher
        .counter(ItemsCount::new(sequences * pairs * heads * 2 * dim))
        .bench_local(|| black_box(b.attend(&q, &k, Some(&v), None, &spec, &batch).expect("attention")));
}
