//! Every format against an oracle written element by element from the file format's definition.

mod oracle;

use std::io::Write as _;
use std::sync::Once;

use proptest::prelude::*;
use proptest::sample::select;

use self::oracle::{factors, oracle};
use super::act::{Q8X32_BYTES, Q8X32_D, Q8X256_BYTES, Q8X256_D};
use super::*;

const WIDTHS: [usize; 8] = [1, 7, 33, 32, 64, 256, 576, 2048];
/// Half a unit in the last place of 1.
const EPS: f64 = 5.960_464_477_539_063e-8;

fn isas() -> Vec<Isa> {
    let (has, lacks): (Vec<_>, Vec<_>) = Isa::ALL.iter().partition(|isa| isa.available());
    if !lacks.is_empty() {
        static SAID: Once = Once::new();
        // Not `eprintln`, which the test harness keeps to itself when a test passes.
        SAID.call_once(|| {
            writeln!(std::io::stderr(), "\n*** SKIPPED: this processor lacks {lacks:?}\n").expect("stderr");
        });
    }
    has
}

/// How a test's weights are made.
#[derive(Clone, Copy, Debug)]
enum Weights {
    Random,
    /// Every byte this: largest and smallest codes and scales.
    Bytes(u8),
}

/// How a test's activations are made.
#[derive(Clone, Copy, Debug)]
enum Acts {
    Random,
    /// All of this: codes of 127 or -127, or nothing.
    Same(f32),
    /// The sign alternates: with equal weights sums cancel.
    Alternating,
    /// Magnitudes from 1e-38 to 1e3, some blocks zero.
    Wild,
}

#[derive(Clone, Debug)]
struct Case {
    ty: GgmlType,
    cols: usize,
    columns: usize,
    weights: Weights,
    /// What random and adversarial blocks have as factors, as f16 bits; finite.
    factor: u16,
    acts: Acts,
    seed: u64,
}

fn types() -> impl Strategy<Value = GgmlType> {
    select(FORMATS.iter().map(|f| f.ty).collect::<Vec<_>>())
}

fn cases() -> impl Strategy<Value = Case> {
    let weights = prop_oneof![
        4 => Just(Weights::Random),
        2 => select(vec![0u8, 0xff, 0x80, 0x7f, 0x77, 0xf0, 0x0f]).prop_map(Weights::Bytes),
    ];
    let acts = prop_oneof![
        4 => Just(Acts::Random),
        2 => select(vec![1.0f32, -1.0, 0.0]).prop_map(Acts::Same),
        1 => Just(Acts::Alternating),
        2 => Just(Acts::Wild),
    ];
    // 0: random. Otherwise one, the largest, the smallest denormal, zero, and their negatives.
    let factor = select(vec![0u16, 0, 0x3c00, 0xbc00, 0x7bff, 0xfbff, 1, 0x8001, 0x8000]);
    (types(), select(WIDTHS.to_vec()), 1..=COLUMNS_MAX, weights, factor, acts, any::<u64>())
        .prop_filter("rows are whole blocks", |c| c.1 % format(c.0).block == 0)
        .prop_map(|(ty, cols, columns, weights, factor, acts, seed)| Case {
            ty,
            cols,
            columns,
            weights,
            factor,
            acts,
            seed,
        })
}

/// splitmix64: seeded, and the same everywhere.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// In -1..1.
    fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}

/// A row of the case's format, with finite factors.
fn row(case: &Case, rng: &mut Rng) -> Vec<u8> {
    let f = format(case.ty);
    let bytes = case.ty.row_bytes(case.cols);
    let mut row: Vec<u8> = (0..bytes)
        .map(|_| match case.weights {
            Weights::Random => rng.next() as u8,
            Weights::Bytes(b) => b,
        })
        .collect();
    for block in row.chunks_exact_mut(f.block_bytes) {
        for &at in factors(case.ty) {
            // Random factors are about 2^-13 to 2, of both signs.
            let bits = if case.factor != 0 { case.factor } else { rng.next() as u16 & 0xbfff | 0x0800 };
            block[at..at + 2].copy_from_slice(&bits.to_le_bytes());
        }
        match case.ty {
            GgmlType::F32 => block.copy_from_slice(&rng.unit().to_le_bytes()),
            GgmlType::BF16 => {
                let factor = half::f16::from_bits(case.factor).to_f32();
                let value = if case.factor != 0 { factor } else { rng.unit() };
                block.copy_from_slice(&half::bf16::from_f32(value).to_le_bytes());
            }
            GgmlType::MXFP4 => {
                block[0] = match case.factor {
                    0 => 96 + (rng.next() % 40) as u8,
                    1 => 0,
                    0x8001 => 1,
                    0x7bff | 0xfbff => 200,
                    _ => 128,
                }
            }
            _ => {}
        }
    }
    row
}

fn column(case: &Case, rng: &mut Rng) -> Vec<f32> {
    let mut block = 0.0;
    (0..case.cols)
        .map(|k| match case.acts {
            Acts::Random => rng.unit(),
            Acts::Same(x) => x,
            Acts::Alternating => [1.0, -1.0][k % 2],
            Acts::Wild => {
                if k % 32 == 0 {
                    block = [0.0, 1e-38, 1e-20, 1e-3, 1.0, 1e3][rng.next() as usize % 6];
                }
                block * rng.unit()
            }
        })
        .collect()
}

struct Made {
    rows: Vec<Vec<u8>>,
    panel: Vec<u8>,
    columns: Vec<Vec<f32>>,
    acts: Vec<Vec<u8>>,
}

fn make(case: &Case) -> Made {
    let mut rng = Rng(case.seed);
    let f = format(case.ty);
    let rows: Vec<Vec<u8>> = (0..PANEL).map(|_| row(case, &mut rng)).collect();
    let columns: Vec<Vec<f32>> = (0..case.columns).map(|_| column(case, &mut rng)).collect();
    let acts = columns.iter().map(|x| encoded(Isa::Scalar, f.act, x)).collect();
    Made { panel: packed(f, &rows), rows, columns, acts }
}

fn packed(f: &Format, rows: &[Vec<u8>]) -> Vec<u8> {
    let mut panel = vec![0xa5; PANEL * rows[0].len()];
    (f.pack)(&std::array::from_fn(|r| rows[r].as_slice()), &mut panel);
    panel
}

fn encoded(isa: Isa, kind: ActKind, x: &[f32]) -> Vec<u8> {
    // Not aligned to anything, and all bytes must be written.
    let bytes = act_bytes(kind, x.len());
    let mut out = vec![0xa5; bytes + 1];
    encode(isa, kind, x, &mut out[1..]);
    out.split_off(1)
}

/// What an encoded column stands for, and each value's d.
fn decoded(kind: ActKind, act: &[u8]) -> (Vec<f64>, Vec<f64>) {
    let (block, bytes, at) = match kind {
        ActKind::F32 => {
            let x: Vec<f64> = act.chunks_exact(4).map(|b| f64::from(single_at(b, 0))).collect();
            let none = vec![0.0; x.len()];
            return (x, none);
        }
        ActKind::Q8x32 => (32, Q8X32_BYTES, Q8X32_D),
        ActKind::Q8x256 => (256, Q8X256_BYTES, Q8X256_D),
    };
    act.chunks_exact(bytes)
        .flat_map(|a| {
            let d = f64::from(single_at(a, at));
            a[..block].iter().map(move |q| (f64::from(q.cast_signed()) * d, d))
        })
        .unzip()
}

fn product(
    f: &Format,
    isa: Isa,
    case: &Case,
    made: &Made,
    columns: std::ops::Range<usize>,
) -> Vec<[u32; PANEL]> {
    let acts: Vec<&[u8]> = made.acts[columns].iter().map(Vec::as_slice).collect();
    let mut out = vec![[f32::NAN; PANEL]; acts.len()];
    f.product(isa)(&made.panel, case.cols, &acts, &[], &mut out);
    out.into_iter().map(|c| c.map(f32::to_bits)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(800))]

    /// The law: instruction sets and grouping change no bit.
    #[test]
    fn products_have_the_same_bits_on_every_isa_and_grouping(case in cases(), cut in 0..COLUMNS_MAX) {
        let (f, made) = (format(case.ty), make(&case));
        let all = product(f, Isa::Scalar, &case, &made, 0..case.columns);
        let cut = cut.min(case.columns);
        for isa in isas() {
            let whole = product(f, isa, &case, &made, 0..case.columns);
            prop_assert_eq!(&whole, &all, "{:?}", isa);
            let mut parts = product(f, isa, &case, &made, 0..cut);
            parts.extend(product(f, isa, &case, &made, cut..case.columns));
            prop_assert_eq!(&parts, &all, "{:?} cut at {}", isa, cut);
        }
    }

    /// The law for a list of panels: each has the result it has alone, whatever is read next.
    #[test]
    fn panels_in_one_call_have_their_own_products(case in cases(), panels in 0usize..5) {
        let (f, acts) = (format(case.ty), make(&case).acts);
        let next = acts[0].clone();
        let made: Vec<Made> = (0..panels as u64)
            .map(|i| Made { acts: acts.clone(), ..make(&Case { seed: case.seed ^ i, ..case.clone() }) })
            .collect();
        let bytes: Vec<u8> = made.iter().flat_map(|m| m.panel.iter().copied()).collect();
        let alone = |m| product(f, Isa::Scalar, &case, m, 0..case.columns);
        let expected: Vec<_> = made.iter().flat_map(alone).collect();
        let acts: Vec<&[u8]> = acts.iter().map(Vec::as_slice).collect();
        for isa in isas() {
            let mut out = vec![[f32::NAN; PANEL]; panels * case.columns];
            f.product(isa)(&bytes, case.cols, &acts, &next, &mut out);
            let out: Vec<_> = out.into_iter().map(|c| c.map(f32::to_bits)).collect();
            prop_assert_eq!(&out, &expected, "{:?}", isa);
        }
    }

    /// The law for two panels and many columns.
    #[test]
    fn wide_products_have_the_bits_of_panel_products(case in cases(), columns in 0usize..20) {
        let (f, case) = (format(case.ty), Case { columns, ..case });
        let (first, second) = (make(&case), make(&Case { seed: !case.seed, ..case.clone() }));
        let acts: Vec<&[u8]> = first.acts.iter().map(Vec::as_slice).collect();
        for wide in isas().into_iter().filter_map(|isa| f.wide(isa)) {
            let mut out = vec![[[f32::NAN; PANEL]; 2]; columns];
            wide([&first.panel, &second.panel], case.cols, &acts, &mut out);
            for (c, out) in out.into_iter().enumerate() {
                for (panel, out) in [&first.panel, &second.panel].into_iter().zip(out) {
                    let mut expected = [[0.0; PANEL]];
                    (f.scalar)(panel, case.cols, &acts[c..=c], &[], &mut expected);
                    prop_assert_eq!(out.map(f32::to_bits), expected[0].map(f32::to_bits), "column {}", c);
                }
            }
        }
    }

    /// Rounding is all that separates a product from f64 on the encoded column, and half a step of its
    /// code all that separates that from the column itself.
    #[test]
    fn products_are_near_the_exact_dot_product(case in cases()) {
        let (f, made) = (format(case.ty), make(&case));
        let blocks = if f.act == ActKind::F32 { case.cols / 2 } else { case.cols / f.block };
        let out = product(f, Isa::detect(), &case, &made, 0..case.columns);
        for (c, (act, x)) in made.acts.iter().zip(&made.columns).enumerate() {
            let (a, d) = decoded(f.act, act);
            for (r, row) in made.rows.iter().enumerate() {
                let (mut exact, mut true_dot, mut size, mut code) = (0.0, 0.0, 0.0, 0.0);
                for (k, &x) in x.iter().enumerate() {
                    let block = &row[k / f.block * f.block_bytes..][..f.block_bytes];
                    let [s, t] = oracle(case.ty, block, k % f.block);
                    exact += (s + t) * a[k];
                    true_dot += (s + t) * f64::from(x);
                    size += (s.abs() + t.abs()) * a[k].abs();
                    // A block whose d would be denormal is zeros; so is what lies that far below.
                    code += (s + t).abs() * (d[k] * 0.5001 + 2e-36);
                }
                let got = f64::from(f32::from_bits(out[c][r]));
                // Results so small that they are subnormal are rounded to 2^-149.
                let bound = (size * EPS + 1e-45) * (blocks + 4) as f64 + 1e-44;
                prop_assert!((got - exact).abs() <= bound, "{got} {exact} {bound}");
                let bound = bound + code;
                prop_assert!((got - true_dot).abs() <= bound, "{got} {true_dot} {bound}");
            }
        }
    }

    #[test]
    fn unpacking_gives_back_any_bytes(ty in types(), blocks in 1usize..4, seed: u64) {
        let f = format(ty);
        let mut rng = Rng(seed);
        let rows: Vec<Vec<u8>> =
            (0..PANEL).map(|_| (0..blocks * f.block_bytes).map(|_| rng.next() as u8).collect()).collect();
        let panel = packed(f, &rows);
        for isa in isas() {
            let mut same = vec![0xa5; panel.len()];
            f.packing(isa)(&std::array::from_fn(|r| rows[r].as_slice()), &mut same);
            prop_assert_eq!(&same, &panel, "{:?}", isa);
        }
        for (r, row) in rows.iter().enumerate() {
            let mut back = vec![0; row.len()];
            (f.unpack)(&panel, r, &mut back);
            prop_assert_eq!(&back, row);
        }
    }

    #[test]
    fn dequantization_is_the_definition_rounded_once(case in cases()) {
        let (f, mut rng) = (format(case.ty), Rng(case.seed));
        let row = row(&case, &mut rng);
        let mut values = vec![f32::NAN; case.cols];
        (f.dequantize)(&row, &mut values);
        for (k, value) in values.into_iter().enumerate() {
            let block = &row[k / f.block * f.block_bytes..][..f.block_bytes];
            let [s, t] = oracle(case.ty, block, k % f.block);
            prop_assert_eq!(value, (s + t) as f32, "element {}", k);
        }
    }

    #[test]
    fn encoding_has_the_same_bits_on_every_isa_and_rounds_to_nearest(case in cases()) {
        let kind = format(case.ty).act;
        let x = column(&case, &mut Rng(case.seed));
        let act = encoded(Isa::Scalar, kind, &x);
        for isa in isas() {
            prop_assert_eq!(&encoded(isa, kind, &x), &act, "{:?}", isa);
        }
        let (a, d) = decoded(kind, &act);
        for (k, &x) in x.iter().enumerate() {
            let error = (a[k] - f64::from(x)).abs();
            prop_assert!(error <= d[k] * 0.5001 + 2e-36, "{x} became {}", a[k]);
            prop_assert!(kind == ActKind::F32 || a[k] != -128.0 * d[k] || d[k] == 0.0);
        }
    }
}

#[test]
fn encoded_blocks_carry_their_sums() {
    let x: Vec<f32> =
        (0..256).map(|i| (i % 11) as f32 * 12.7 - 30.0 + if i == 9 { 57.0 } else { 0.0 }).collect();
    for isa in isas() {
        let act = encoded(isa, ActKind::Q8x256, &x);
        let q: Vec<i16> = act[..256].iter().map(|q| i16::from(q.cast_signed())).collect();
        let i16_at = |at: usize| i16::from_le_bytes([act[at], act[at + 1]]);
        for (i, q) in q.chunks(16).enumerate() {
            let pair = |b: usize| -> i16 { q.chunks(4).map(|w| w[b] + w[b + 1]).sum() };
            assert_eq!(i16_at(256 + 4 * i), -32 * pair(0));
            assert_eq!(i16_at(258 + 4 * i), -32 * pair(2));
        }
        for (i, q) in q.chunks(32).enumerate() {
            assert_eq!(i16_at(320 + 2 * i), q.iter().sum::<i16>());
        }
        let act = encoded(isa, ActKind::Q8x32, &x[..32]);
        let sum: i16 = act[..32].iter().map(|q| i16::from(q.cast_signed())).sum();
        let pairs = [36, 38].map(|at| i16::from_le_bytes([act[at], act[at + 1]]));
        assert_eq!(pairs[0] + pairs[1], -sum);
        assert_eq!(single_at(&act, 40), f32::from(sum));
    }
}

#[test]
fn ties_round_to_even_and_the_largest_is_127() {
    let mut x = [0.0f32; 32];
    x[..5].copy_from_slice(&[127.0, 0.5, 1.5, -2.5, -127.0]);
    for isa in isas() {
        let act = encoded(isa, ActKind::Q8x32, &x);
        assert_eq!(act[..5].iter().map(|q| q.cast_signed()).collect::<Vec<_>>(), [127, 0, 2, -2, -127]);
        assert_eq!(single_at(&act, Q8X32_D), 1.0);
    }
}

/// A value that is not finite must show, not vanish in a code.
#[test]
fn faults_in_activations_and_factors_reach_the_result() {
    for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for f in &FORMATS {
            let mut x = vec![1.0f32; 512];
            x[300] = bad;
            let acts: Vec<Vec<u8>> = isas().iter().map(|&isa| encoded(isa, f.act, &x)).collect();
            assert!(acts.iter().all(|a| *a == acts[0]), "{} {bad}", f.name);
            let case = Case {
                ty: f.ty,
                cols: 512,
                columns: 1,
                weights: Weights::Random,
                factor: 0x3c00,
                acts: Acts::Random,
                seed: 1,
            };
            let mut made = make(&case);
            made.acts[0] = acts[0].clone();
            for isa in isas() {
                let out = product(f, isa, &case, &made, 0..1);
                assert!(out[0].iter().all(|&v| !f32::from_bits(v).is_finite()), "{} {bad} {isa:?}", f.name);
            }
        }
    }
}

/// A factor that is not finite shows in its row and in no other, on every isa alike.
#[test]
fn faults_in_weights_reach_their_row() {
    for f in &FORMATS {
        let case = Case {
            ty: f.ty,
            cols: 512,
            columns: COLUMNS_MAX,
            weights: Weights::Random,
            factor: 0x3c00,
            acts: Acts::Random,
            seed: 1,
        };
        let clean = product(f, Isa::Scalar, &case, &make(&case), 0..COLUMNS_MAX);
        // NaN and both infinities, as the format has them: in MXFP4, where nothing is NaN, an overflow.
        for bad in [0x7e00u16, 0x7c00, 0xfc00] {
            let mut made = make(&case);
            let block = &mut made.rows[3][256 / f.block * f.block_bytes..][..f.block_bytes];
            let value = half::f16::from_bits(bad).to_f32();
            match f.ty {
                GgmlType::F32 => block.copy_from_slice(&value.to_le_bytes()),
                GgmlType::BF16 => block.copy_from_slice(&half::bf16::from_f32(value).to_le_bytes()),
                GgmlType::MXFP4 => block.copy_from_slice(&[&[255][..], &[0x77; 16]].concat()),
                _ => block[factors(f.ty)[0]..][..2].copy_from_slice(&bad.to_le_bytes()),
            }
            made.panel = packed(f, &made.rows);
            let scalar = product(f, Isa::Scalar, &case, &made, 0..COLUMNS_MAX);
            for isa in isas() {
                let out = product(f, isa, &case, &made, 0..COLUMNS_MAX);
                for ((out, scalar), clean) in out.iter().zip(&scalar).zip(&clean) {
                    let [v, s] = [out[3], scalar[3]].map(f32::from_bits);
                    assert!(!v.is_finite(), "{} {bad:#x} {isa:?}", f.name);
                    assert!(v.to_bits() == s.to_bits() || v.is_nan() && s.is_nan(), "{} {bad:#x}", f.name);
                    assert!((0..PANEL).all(|r| r == 3 || out[r] == clean[r]), "{} {bad:#x}", f.name);
                }
            }
        }
    }
}

#[test]
fn rows_of_zero_bytes_are_zeros_in_every_format() {
    for f in &FORMATS {
        let mut values = vec![1.0; 256];
        (f.dequantize)(&vec![0; f.ty.row_bytes(256)], &mut values);
        assert!(values.iter().all(|&v| v == 0.0), "{}", f.name);
    }
}

#[test]
fn wrong_lengths_are_refused_before_any_kernel_runs() {
    for f in &FORMATS {
        for isa in isas() {
            let row = f.ty.row_bytes(256);
            let (panel, act) = (vec![0; PANEL * row], vec![0; act_bytes(f.act, 256)]);
            let call = |panel: &[u8], act: &[u8], columns: usize, results: usize| {
                let mut out = vec![[0.0; PANEL]; results];
                std::panic::catch_unwind(move || {
                    f.product(isa)(panel, 256, &vec![act; columns], &[], &mut out)
                })
            };
            assert!(call(&panel, &act, 1, 1).is_ok());
            assert!(call(&panel, &act, 0, 0).is_ok());
            assert!(call(&panel[1..], &act, 1, 1).is_err(), "{}: short panel", f.name);
            assert!(call(&panel, &act[1..], 1, 1).is_err(), "{}: short column", f.name);
            assert!(call(&panel, &act, 2, 1).is_err(), "{}: missing result", f.name);
            assert!(call(&panel, &act, 9, 9).is_err(), "{}: too many columns", f.name);
            assert!(call(&panel[1..], &act, 0, 0).is_err(), "{}: part of a panel", f.name);
            let two = [&panel[..], &panel].concat();
            assert!(call(&two, &act, 2, 4).is_ok());
            assert!(call(&two, &act, 2, 2).is_err(), "{}: results of one panel", f.name);
            assert!(call(&panel, &act, 2, 4).is_err(), "{}: one panel for two", f.name);
            let Some(wide) = f.wide(isa) else { continue };
            let call = |panels: [&[u8]; 2], act: &[u8], results: usize| {
                let mut out = vec![[[0.0; PANEL]; 2]; results];
                std::panic::catch_unwind(move || wide(panels, 256, &[act; 9], &mut out))
            };
            assert!(call([&panel, &panel], &act, 9).is_ok());
            assert!(call([&panel, &panel[1..]], &act, 9).is_err(), "{}: short second panel", f.name);
            assert!(call([&panel, &panel], &act[1..], 9).is_err(), "{}: short column", f.name);
            assert!(call([&panel, &panel], &act, 8).is_err(), "{}: missing result", f.name);
        }
    }
}

/// Blocks of quantized model files and their values in llama.cpp's reference implementation (gguf-py 0.19), bit for bit.
#[test]
fn dequantization_is_llama_cpps() {
    #[derive(serde::Deserialize)]
    struct Vector {
        format: String,
        /// The file's bytes.
        bytes: String,
        /// The values, as little-endian F32.
        bits: String,
    }
    let hex = |s: &str| -> Vec<u8> {
        s.as_bytes().chunks(2).map(|d| u8::from_str_radix(str::from_utf8(d).unwrap(), 16).unwrap()).collect()
    };
    let vectors: Vec<Vector> =
        serde_json::from_str(include_str!("../../../tests/fixtures/dequant.json")).unwrap();
    assert_eq!(vectors.iter().map(|v| &v.format).collect::<Vec<_>>(), FORMATS.each_ref().map(|f| f.name));
    for (vector, f) in vectors.iter().zip(&FORMATS) {
        let (src, expected) = (hex(&vector.bytes), hex(&vector.bits));
        let mut values = vec![0.0f32; expected.len() / 4];
        (f.dequantize)(&src, &mut values);
        let got: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(got, expected, "{}", f.name);
    }
}
