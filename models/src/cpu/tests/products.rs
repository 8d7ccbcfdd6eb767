//! Products, and tables that are also heads.

use super::*;

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
        let mut b = backend(threads, Isa::detect());
        let weights: Vec<_> = stored.iter().map(|s| b.load_weight(&s.view()).unwrap()).collect();
        b.begin(&Batch::default()).unwrap();
        let x_tensor = put(&mut b, cols, &x);
        let outs = b.linear(&x_tensor, &weights.iter().collect::<Vec<_>>()).unwrap();
        let tolerance = if format(ty).act == ActKind::F32 { 1e-6 } else { 0.03 };
        for (out, stored) in outs.iter().zip(&stored) {
            let values = stored.values();
            let exact: Vec<f64> = x.chunks_exact(cols).flat_map(|x| product(&widen(x), &values)).collect();
            // Rounding activations to 8 bits: relative to the products' size, not to what cancels.
            let size = (cols as f64).sqrt() / exact.iter().fold(1e-3_f64, |m, v| m.max(v.abs()));
            assert_close(&b.values(out).unwrap(), &exact, tolerance * size.max(1.0))?;
        }
    }
}

/// The stack's size, the values behind each head's product, and how many tokens.
fn heads(b: &mut impl Backend, stored: &Stored, x: &[f32], rest: usize) -> (Vec<f32>, StepStats) {
    let w = b.load_weight(&stored.view()).unwrap();
    let width = stored.experts * (stored.cols + rest);
    let x_tensor = put(b, width, x);
    b.begin(&batch(x.len() / width)).unwrap();
    let out = b.per_head(&x_tensor, &w).unwrap();
    (b.values(&out).unwrap(), b.take_stats().unwrap())
}

#[test]
fn each_head_has_its_own_product() {
    for (i, format) in FORMATS.iter().enumerate() {
        let random = &mut Random(500 + i as u64);
        for (count, blocks, rows, rest, tokens) in [(1, 1, 1, 0, 1), (3, 2, 13, 5, 3), (5, 1, 40, 64, 19)] {
            let cols = blocks * format.block.max(7);
            let stored = Stored::random(random, format.ty, [cols, rows, count], 1.0);
            let x = random.values(tokens * count * (cols + rest));
            let (expected, work) = heads(&mut reference(), &stored, &x, rest);
            let (found, cpu_work) = heads(&mut backend(2, Isa::detect()), &stored, &x, rest);
            assert_eq!(work, cpu_work, "{}", format.name);
            // As for products: relative to what a product of this length can be.
            let tolerance = if format.act == ActKind::F32 { 1e-6 } else { 0.03 };
            let tolerance = tolerance * (cols as f32).sqrt();
            let (of_expected, of_found) =
                (expected.chunks_exact(rows + rest), found.chunks_exact(rows + rest));
            assert_eq!((of_found.len(), found.len()), (tokens * count, expected.len()));
            for (expected, found) in of_expected.zip(of_found) {
                assert_eq!(bits(&expected[rows..]), bits(&found[rows..]), "what is behind stays");
                for (e, f) in expected[..rows].iter().zip(&found[..rows]) {
                    assert!((e - f).abs() <= tolerance, "{}: {f} for {e}", format.name);
                }
            }
        }
    }
}

#[test]
fn what_is_done_row_by_row_is_invariant() {
    for (i, format) in FORMATS.iter().enumerate() {
        let random = &mut Random(600 + i as u64);
        let (cols, rest) = (format.block.max(11), 3);
        let stored = Stored::random(random, format.ty, [cols, PANEL * 3 + 1, 2], 1.0);
        let width = 2 * (cols + rest);
        let (bias, gate) = (random.values(stored.rows * 2 + 2 * rest), random.values(width));
        check_rows(width, &random.values(23 * width), |b, x, _| {
            let (w, bias, gate) =
                (b.load_weight(&stored.view()).unwrap(), vector(b, &bias), vector(b, &gate));
            let mut y = b.per_head(&x, &w).unwrap();
            b.add_bias(&mut y, &bias).unwrap();
            b.gate(&mut y, &x, &gate).unwrap();
            b.scale(&mut y, 0.3).unwrap();
            y
        });
    }
}

/// Biases, gates and factors, on any backend.
fn elementwise(b: &mut impl Backend, width: usize, [x, bias, gate]: [&[f32]; 3]) -> (Vec<f32>, StepStats) {
    let (mut y, by) = (put(b, width, x), put(b, width, x));
    let (bias, gate) = (vector(b, bias), vector(b, gate));
    b.begin(&batch(x.len() / width)).unwrap();
    b.add_bias(&mut y, &bias).unwrap();
    b.gate(&mut y, &by, &gate).unwrap();
    b.scale(&mut y, -1.7).unwrap();
    b.add(&mut y, &by, 0.5).unwrap();
    (b.values(&y).unwrap(), b.take_stats().unwrap())
}

#[test]
fn biases_gates_and_factors_are_the_references() {
    for (seed, width, rows) in [(1, 1, 1), (2, 13, 5), (3, 64, 2), (4, 700, 17)] {
        let random = &mut Random(700 + seed);
        let values = [random.values(width * rows), random.values(width), random.values(width)];
        let (expected, work) = elementwise(&mut reference(), width, values.each_ref().map(|v| &v[..]));
        let (found, cpu_work) =
            elementwise(&mut backend(3, Isa::detect()), width, values.each_ref().map(|v| &v[..]));
        assert_eq!(work, cpu_work);
        assert_close(&found, &widen(&expected), 1e-5).unwrap();
    }
}

#[test]
fn a_tied_table_is_packed_once_and_rows_come_back_exactly() {
    for format in &FORMATS {
        let stored = Stored::random(&mut Random(3), format.ty, [256, 21, 1], 1.0);
        let mut b = backend(2, Isa::detect());
        let [table, head] = b.load_tied(&stored.view()).unwrap();
        assert_eq!(table.panel(0, 0).as_ptr(), head.panel(0, 0).as_ptr(), "{}", format.name);
        let tokens = [20, 0, 7, 8, 20];
        let batch = Batch { tokens: tokens.map(TokenId).to_vec(), ..Batch::default() };
        let x = b.embed(&table, &batch).unwrap();
        let values = stored.values();
        for (x, t) in x.values().chunks_exact(256).zip(tokens) {
            assert_eq!(x, &values[t as usize * 256..][..256], "{}", format.name);
        }
    }
}
