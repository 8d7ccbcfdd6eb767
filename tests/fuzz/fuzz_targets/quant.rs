//! Weights are any bytes and activations any floats: a panel gives its rows back, and every instruction set computes the
//! same bits, those of a NaN apart.
//!
//! The input is a format, a number of columns, a width, then what weights and activations repeat.
#![no_main]

use frugal_models::quant::{ActKind, COLUMNS_MAX, FORMATS, Format, Isa, PANEL, act_bytes, encode};
use libfuzzer_sys::fuzz_target;

/// One pattern for every NaN.
fn bits(value: f32) -> u32 {
    if value.is_nan() { f32::NAN.to_bits() } else { value.to_bits() }
}

fn encoded(isa: Isa, kind: ActKind, x: &[f32]) -> Vec<u8> {
    let mut out = vec![0xa5; act_bytes(kind, x.len())];
    encode(isa, kind, x, &mut out);
    out
}

fn products(format: &Format, isa: Isa, panel: &[u8], cols: usize, acts: &[&[u8]]) -> Vec<[u32; PANEL]> {
    let mut out = vec![[0.0; PANEL]; acts.len()];
    format.product(isa)(panel, cols, acts, &[], &mut out);
    out.into_iter().map(|column| column.map(bits)).collect()
}

fuzz_target!(|bytes: &[u8]| {
    let [format, columns, width, pattern @ ..] = bytes else { return };
    if pattern.is_empty() {
        return;
    }
    let format = &FORMATS[usize::from(*format) % FORMATS.len()];
    let (columns, width) = (usize::from(*columns) % COLUMNS_MAX + 1, usize::from(*width));
    let cols = format.block * if format.act == ActKind::F32 { width % 70 + 1 } else { width % 4 + 1 };
    let row_bytes = format.ty.row_bytes(cols);
    let mut weights = pattern.iter().copied().cycle();
    let rows: Vec<Vec<u8>> = (0..PANEL).map(|_| weights.by_ref().take(row_bytes).collect()).collect();
    let mut floats = pattern.iter().rev().copied().cycle();
    let mut float = || f32::from_le_bytes(std::array::from_fn(|_| floats.next().unwrap_or(0)));
    let columns: Vec<Vec<f32>> = (0..columns).map(|_| (0..cols).map(|_| float()).collect()).collect();

    let mut panel = vec![0xa5; PANEL * row_bytes];
    (format.pack)(&std::array::from_fn(|r| rows[r].as_slice()), &mut panel);
    for (r, row) in rows.iter().enumerate() {
        let mut unpacked = vec![0xa5; row_bytes];
        (format.unpack)(&panel, r, &mut unpacked);
        assert_eq!(&unpacked, row, "{}", format.name);
        (format.dequantize)(row, &mut vec![0.0; cols]);
    }
    let acts: Vec<Vec<u8>> = columns.iter().map(|x| encoded(Isa::Scalar, format.act, x)).collect();
    let encoded_columns: Vec<&[u8]> = acts.iter().map(Vec::as_slice).collect();
    let scalar = products(format, Isa::Scalar, &panel, cols, &encoded_columns);
    for isa in Isa::ALL.iter().copied().filter(|isa| isa.available()) {
        for (x, act) in columns.iter().zip(&acts) {
            assert_eq!(&encoded(isa, format.act, x), act, "{isa:?} {:?}", format.act);
        }
        assert_eq!(products(format, isa, &panel, cols, &encoded_columns), scalar, "{isa:?} {}", format.name);
        if let Some(wide) = format.wide(isa) {
            let mut out = vec![[[0.0; PANEL]; 2]; acts.len()];
            wide([&panel, &panel], cols, &encoded_columns, &mut out);
            for (out, scalar) in out.iter().zip(&scalar) {
                assert!(out.iter().all(|out| &out.map(bits) == scalar), "{isa:?} {} wide", format.name);
            }
        }
    }
});
