//! Bytes cut anywhere give the text that they give whole.
#![no_main]

use frugal_models::detok::Detokenizer;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    // The first half says where the second is cut.
    let (sizes, mut bytes) = input.split_at(input.len() / 2);
    let expect = String::from_utf8_lossy(bytes).into_owned();
    let mut detok = Detokenizer::new();
    let mut text = String::new();
    for &size in sizes {
        let (piece, rest) = bytes.split_at(usize::from(size % 6).min(bytes.len()));
        text += &detok.push(piece);
        bytes = rest;
    }
    text += &detok.push(bytes);
    text += &detok.finish();
    assert_eq!(text, expect);
});
