//! Products of one packed matrix with 1 to 8 columns, and the encoding of their columns.
//!
//! Bound of a product: with few columns the time to read the weights (bytes / read bandwidth; a core reads 12 to
//! 18 GB/s on the 2-core EPYC these were designed on, both together 19 to 29), with many the multiply-adds
//! (rows * cols * columns / rate; `vpmaddubsw` with `vpaddw` alone does 114 to 167 G/s there, `vpsignb` and `vpmaddwd` for
//! the signed codes of Q8_0, IQ4_NL and IQ4_XS 72, F32 52; one `vpdpbusd` of AVX-512 VNNI does the work of the two or four).
//! The knee is at about 4 columns. divan prints bytes of weights per second: compare with
//! the first bound up to 4 columns, and times columns / bytes per weight with the second above. The matrix is larger
//! than any cache, so every product streams it.

use divan::counter::{BytesCount, ItemsCount};
use divan::{Bencher, black_box};
use frugal_models::quant::{ActKind, FORMATS, Format, Isa, PANEL, act_bytes, encode};
use frugal_tests::isa;

const COLS: usize = 2048;
/// 64 Mi weights: 36 MiB in 4 bits, 256 MiB in F32.
const ROWS: usize = 32 * 1024;
/// Of the wide products: multiply-adds bound them, so fewer do.
const WIDE_ROWS: usize = 1024;
const COLUMNS: [usize; 5] = [1, 2, 4, 6, 8];

fn main() {
    divan::main();
}

/// Bytes from a fixed sequence; halves made of them may be anything, which does not change the time.
fn bytes(n: usize) -> Vec<u8> {
    let mut state = 1u64;
    (0..n)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            // Below 0x7c as the upper byte of a half or a single: finite; above 1 as MXFP4's exponent: not subnormal.
            (state >> 57) as u8 & 0x3b | 0x20
        })
        .collect()
}

fn columns(kind: ActKind, isa: Isa, n: usize) -> Vec<Vec<u8>> {
    (0..n)
        .map(|c| {
            let x: Vec<f32> = (0..COLS).map(|k| ((k * 7 + c) % 31) as f32 - 15.0).collect();
            let mut act = vec![0; act_bytes(kind, COLS)];
            encode(isa, kind, &x, &mut act);
            act
        })
        .collect()
}

fn names() -> impl Iterator<Item = &'static str> {
    FORMATS.iter().map(|f| f.name)
}

fn wide_names() -> impl Iterator<Item = &'static str> {
    FORMATS.iter().filter(|f| f.wide(isa()).is_some()).map(|f| f.name)
}

fn named(name: &str) -> &'static Format {
    FORMATS.iter().find(|f| f.name == name).expect("names are of FORMATS")
}

/// `FORMATS` x columns, on one thread.
#[divan::bench(args = names(), consts = COLUMNS, sample_count = 10, sample_size = 1)]
fn product<const N: usize>(bencher: Bencher, name: &str) {
    let (f, isa) = (named(name), isa());
    let panel_bytes = PANEL * f.ty.row_bytes(COLS);
    let matrix = bytes(ROWS / PANEL * panel_bytes);
    let acts = columns(f.act, isa, N);
    let acts: Vec<&[u8]> = acts.iter().map(Vec::as_slice).collect();
    let product = f.product(isa);
    bencher.counter(BytesCount::new(matrix.len())).bench_local(|| {
        let mut out = [[[0.0; PANEL]; N]; 8];
        for panels in matrix.chunks_exact(8 * panel_bytes) {
            product(panels, COLS, black_box(&acts), &[], out.as_flattened_mut());
            black_box(&out);
        }
    });
}

/// Products of two panels with 48 columns, where a format has them. Bound: multiply-adds, as `vpmaddubsw` with `vpaddw` does
/// them; divan prints them.
#[divan::bench(args = wide_names(), sample_count = 10, sample_size = 1)]
fn wide(bencher: Bencher, name: &str) {
    const N: usize = 48;
    let (f, isa) = (named(name), isa());
    let panel_bytes = PANEL * f.ty.row_bytes(COLS);
    let matrix = bytes(WIDE_ROWS / PANEL * panel_bytes);
    let acts = columns(f.act, isa, N);
    let acts: Vec<&[u8]> = acts.iter().map(Vec::as_slice).collect();
    let wide = f.wide(isa).expect("names are of formats that have one");
    bencher.counter(ItemsCount::new(WIDE_ROWS * COLS * N)).bench_local(|| {
        let mut out = [[[0.0; PANEL]; 2]; N];
        for pair in matrix.chunks_exact(2 * panel_bytes) {
            let (first, second) = pair.split_at(panel_bytes);
            wide([first, second], COLS, black_box(&acts), &mut out);
            black_box(&out);
        }
    });
}

/// Bound: reads 4 bytes a value from L1 and computes about a cycle for eight of them: below 0.2 ns a value.
#[divan::bench(args = ["Q8_0", "Q4_K"])]
fn encode_column(bencher: Bencher, name: &str) {
    let (f, isa) = (named(name), isa());
    let x: Vec<f32> = (0..COLS).map(|k| (k % 31) as f32 - 15.0).collect();
    let mut out = vec![0; act_bytes(f.act, COLS)];
    bencher.counter(BytesCount::of_slice(&x)).bench_local(|| encode(isa, f.act, black_box(&x), &mut out));
}

/// Bound: loading a model; reads and writes each byte once, so the disk (1 to 3 GB/s) should be what limits it.
#[divan::bench(args = names())]
fn pack(bencher: Bencher, name: &str) {
    let f = named(name);
    let row = bytes(f.ty.row_bytes(COLS));
    let rows = [row.as_slice(); PANEL];
    let mut panel = vec![0; PANEL * row.len()];
    bencher.counter(BytesCount::new(panel.len())).bench_local(|| (f.pack)(black_box(&rows), &mut panel));
}

/// Bound: an embedding row, and the reference's weights; writes 4 bytes a value.
#[divan::bench(args = names())]
fn dequantize(bencher: Bencher, name: &str) {
    let f = named(name);
    let row = bytes(f.ty.row_bytes(COLS));
    let mut values = vec![0.0; COLS];
    bencher
        .counter(BytesCount::of_slice(&values))
        .bench_local(|| (f.dequantize)(black_box(&row), &mut values));
}
