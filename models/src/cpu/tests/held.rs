//! What a step takes, against what is left free for it.

use super::*;
use crate::arch;
use crate::gguf::Gguf;
use crate::memory::{self, KvOptions, KvSize};

/// Bytes of all buffers, which are back.
fn held(b: &CpuBackend) -> u64 {
    (4 * b.core.env.floats.held() + b.core.env.bytes.held()) as u64
}

/// One sequence of so many tokens, all of them scored, from an empty cache of as many groups.
fn step(tokens: u32, groups: usize) -> Batch {
    let blocks = (0..tokens.div_ceil(16)).map(BlockId).collect();
    let table = BlockTable { first: 0, blocks };
    let row = row(0, 0, &vec![1; tokens as usize], table.clone(), true);
    let rows = vec![Row { tables: vec![table; groups], ..row }];
    Batch::new(&StepInput { rows, ..StepInput::default() })
}

fn check(name: &str, gguf: &Gguf) {
    let shape = arch::shape(gguf).unwrap();
    let tokens = shape.context.min(256);
    let (page, size) = (PageType::F16, KvSize::Blocks(tokens.div_ceil(16)));
    let kv =
        KvOptions { block_tokens: 16, page, size, context: None, sequences: u32::MAX, step_tokens: tokens };
    let groups = memory::layouts(&shape, &memory::plan(&shape, &kv, None).unwrap());
    let count = groups.len();
    // On one thread attention has no partial results.
    let options =
        CpuOptions { threads: 1, pin: false, isa: None, groups, block_tokens: 16, page, lazy: false };
    let mut b = CpuBackend::new(&options).unwrap();
    let model = arch::load(gguf, &mut b).unwrap();
    // Servers begin with a small one: buffers grow from any size.
    for tokens in [9, tokens] {
        let batch = step(tokens, count);
        b.begin(&batch).unwrap();
        drop(model.forward(&mut b, &batch).unwrap().expect("outputs"));
    }
    b.begin(&Batch::default()).unwrap();
    let (held_by_forward, bound) = (held(&b), 4 * shape.step_values * u64::from(tokens));
    assert!(held_by_forward <= bound, "{name}: {held_by_forward} of {bound}");
    assert!(bound <= 2 * held_by_forward + (128 << 10), "{name}: {held_by_forward} of {bound}");
    let batch = step(tokens, count);
    b.begin(&batch).unwrap();
    let x = model.forward(&mut b, &batch).unwrap().expect("outputs");
    drop(model.logits(&mut b, &x).unwrap());
    drop(x);
    b.begin(&Batch::default()).unwrap();
    let all = memory::step_bytes(&shape, tokens, 1);
    assert!(held(&b) <= all, "{name}: {} of {all}", held(&b));
}

#[test]
fn what_a_step_takes_is_left_free_and_hardly_twice_as_much() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures");
    let mut checked = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        // Two of them are tokenizers alone.
        if path.extension().is_some_and(|ending| ending == "gguf") && !name.starts_with("tokenizer") {
            check(&name, &Gguf::open(&path).unwrap());
            checked += 1;
        }
    }
    assert!(checked >= 20, "{checked} models");
}
