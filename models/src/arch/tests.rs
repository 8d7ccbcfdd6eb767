use std::collections::BTreeMap;

use proptest::prelude::*;

use super::keys::Keys;
use super::*;
use crate::backend::{Rope, RopeStyle};
use crate::gguf::{GgufWriter, Value};
use crate::kv::{KvStore, PageType};
use crate::quant::GgmlType;
use crate::reference::ReferenceBackend;

/// A model to be broken: hidden 8, 2 heads of 4, 1 for keys and values, 1 block, 3 experts of 6, 10 tokens.
#[derive(Clone)]
struct File {
    keys: BTreeMap<&'static str, Value<'static>>,
    tensors: BTreeMap<&'static str, Vec<u64>>,
}

fn file(arch: &'static str) -> File {
    let keys = [
        ("block_count", Value::U32(1)),
        ("context_length", Value::U32(64)),
        ("embedding_length", Value::U32(8)),
        ("feed_forward_length", Value::U32(6)),
        ("expert_feed_forward_length", Value::U32(6)),
        ("attention.head_count", Value::U32(2)),
        ("attention.head_count_kv", Value::U32(1)),
        ("attention.layer_norm_rms_epsilon", Value::F32(1e-5)),
        ("expert_count", Value::U32(3)),
        ("expert_used_count", Value::U32(2)),
    ];
    let tensors = [
        ("token_embd.weight", vec![8, 10]),
        ("output_norm.weight", vec![8]),
        ("blk.0.attn_norm.weight", vec![8]),
        ("blk.0.attn_q.weight", vec![8, 8]),
        ("blk.0.attn_k.weight", vec![8, 4]),
        ("blk.0.attn_v.weight", vec![8, 4]),
        ("blk.0.attn_output.weight", vec![8, 8]),
        ("blk.0.ffn_norm.weight", vec![8]),
        ("blk.0.ffn_gate_inp.weight", vec![8, 3]),
        ("blk.0.ffn_gate_exps.weight", vec![8, 6, 3]),
        ("blk.0.ffn_up_exps.weight", vec![8, 6, 3]),
        ("blk.0.ffn_down_exps.weight", vec![6, 8, 3]),
    ];
    let mut file = File { keys: keys.into(), tensors: tensors.into() };
    file.keys.insert("general.architecture", Value::String(arch));
    if arch == "qwen3moe" {
        file.tensors.insert("blk.0.attn_q_norm.weight", vec![4]);
        file.tensors.insert("blk.0.attn_k_norm.weight", vec![4]);
    }
    file
}

impl File {
    fn set(mut self, key: &'static str, value: Value<'static>) -> Self {
        self.keys.insert(key, value);
        self
    }

    fn unset(mut self, key: &str) -> Self {
        self.keys.remove(key);
        self
    }

    fn tensor(mut self, name: &'static str, dims: &[u64]) -> Self {
        self.tensors.insert(name, dims.to_vec());
        self
    }

    fn build(&self) -> Gguf {
        let mut writer = GgufWriter::new();
        let arch = match self.keys["general.architecture"] {
            Value::String(name) => name,
            _ => "",
        };
        for (key, value) in &self.keys {
            match key.starts_with("general.") {
                true => writer.set(key, *value),
                false => writer.set(&format!("{arch}.{key}"), *value),
            };
        }
        for (name, dims) in &self.tensors {
            writer.tensor(name, GgmlType::F32, dims);
        }
        let mut data = writer.start(Vec::new()).unwrap();
        for dims in self.tensors.values() {
            let values = dims.iter().product::<u64>();
            for i in 0..values {
                data.write(&(i as f32 / values as f32 - 0.3).to_le_bytes()).unwrap();
            }
        }
        Gguf::from_bytes(data.finish()).unwrap()
    }

    /// What is said about it, or "" if it loads.
    fn verdict(&self) -> String {
        let gguf = self.build();
        let mut backend = ReferenceBackend::new(KvStore::new(&[], 16, PageType::F32).unwrap());
        let result = shape(&gguf).and_then(|_| load(&gguf, &mut backend));
        result.err().map(|e| e.to_string()).unwrap_or_default()
    }
}

fn refused(file: &File, words: &str) {
    let verdict = file.verdict();
    assert!(!words.is_empty() && verdict.contains(words), "expected {words:?}, got {verdict:?}");
}

#[test]
fn sound_files_load() {
    let llama = file("llama");
    assert_eq!(llama.verdict(), "");
    assert_eq!(file("qwen3moe").verdict(), "");
    assert_eq!(llama.clone().tensor("output.weight", &[8, 10]).verdict(), "");
    assert_eq!(
        llama.clone().tensor("rope_freqs.weight", &[2]).verdict(),
        "tensor rope_freqs.weight must hold 2 positive factors"
    );
    let shape = shape(&llama.build()).unwrap();
    assert_eq!((shape.vocab, shape.context), (10, 64));
    let cache = CacheShape { kind: GroupKind::Full, layers: 1, kv_heads: 1, key_dim: 4, value_dim: 4 };
    assert_eq!(shape.cache, [cache]);
    // Keys that say nothing new.
    let neutral = [
        ("attention.sliding_window", Value::U32(64)),
        ("expert_shared_count", Value::U32(0)),
        ("logit_scale", Value::F32(1.0)),
        ("attention.key_length", Value::U32(4)),
        ("rope.dimension_count", Value::U32(4)),
        ("rope.scaling.type", Value::String("none")),
        ("vocab_size", Value::U32(10)),
    ];
    let all = neutral.into_iter().fold(llama, |file, (key, value)| file.set(key, value));
    assert_eq!(all.verdict(), "");
}

#[test]
fn metadata_is_refused_by_the_name_of_the_key() {
    let llama = || file("llama");
    let cases = [
        (file("mamba"), "general.architecture mamba is not supported; these are: llama, qwen3moe"),
        (llama().unset("block_count"), "llama.block_count is missing"),
        (
            llama().set("block_count", Value::U32(u32::MAX)),
            "llama.block_count is 4294967295, but the file has",
        ),
        (llama().set("block_count", Value::U32(2)), "blk.1."),
        (llama().set("context_length", Value::U32(0)), "llama.context_length is 0"),
        (llama().set("context_length", Value::String("9")), "llama.context_length must be"),
        (llama().set("embedding_length", Value::U32(7)), "llama.embedding_length is 7"),
        (llama().set("embedding_length", Value::U32(16)), "token_embd.weight is 8 x 10 x 1"),
        (llama().set("attention.head_count", Value::U32(1 << 20)), "llama.attention.head_count is 1048576"),
        (llama().set("attention.head_count_kv", Value::U32(3)), "llama.attention.head_count_kv is 3"),
        (llama().set("attention.key_length", Value::U32(1 << 16)), "attn_q.weight is 8 x 8 x 1"),
        (llama().set("attention.value_length", Value::U32(2)), "llama.attention.value_length is 2"),
        (llama().set("attention.layer_norm_rms_epsilon", Value::F32(f32::NAN)), "epsilon is NaN"),
        (llama().set("expert_used_count", Value::U32(4)), "llama.expert_used_count is 4"),
        (llama().set("expert_used_count", Value::U32(0)), "llama.expert_used_count is 0"),
        (llama().set("expert_count", Value::U32(0)), "blk.0.ffn_gate.weight is missing"),
        (file("qwen3moe").unset("expert_count"), "qwen3moe.expert_count is missing"),
        (file("qwen3moe").set("expert_count", Value::U32(0)), "qwen3moe.expert_count is 0"),
        (llama().set("feed_forward_length", Value::U32(5)), "blk.0.ffn_gate_exps.weight is 8 x 6 x 3"),
        (llama().set("rope.dimension_count", Value::U32(6)), "llama.rope.dimension_count is 6"),
        (llama().set("rope.dimension_count", Value::U32(3)), "llama.rope.dimension_count is 3"),
        (llama().set("rope.freq_base", Value::F32(-1.0)), "llama.rope.freq_base is -1"),
        (llama().set("rope.scaling.type", Value::String("yarn")), "llama.rope.scaling.type is yarn"),
        (llama().set("rope.scaling.type", Value::String("linear")), "llama.rope.scaling.factor is missing"),
        (llama().set("attention.sliding_window", Value::U32(63)), "llama.attention.sliding_window is"),
        (llama().set("logit_scale", Value::F32(2.0)), "llama.logit_scale is"),
        (llama().set("attention.causal", Value::Bool(false)), "llama.attention.causal is"),
        (file("qwen3moe").set("expert_gating_func", Value::U32(2)), "qwen3moe.expert_gating_func is"),
    ];
    for (file, words) in cases {
        refused(&file, words);
    }
}

#[test]
fn tensors_are_refused_by_name() {
    let llama = || file("llama");
    let cases = [
        (llama().tensor("blk.0.attn_q.bias", &[8]), "tensor blk.0.attn_q.bias is not part of"),
        (llama().tensor("blk.0.attn_q_norm.weight", &[4]), "tensor blk.0.attn_q_norm.weight is not part of"),
        (llama().tensor("blk.1.attn_norm.weight", &[8]), "tensor blk.1.attn_norm.weight is not part of"),
        (
            llama().tensor("blk.0.ffn_gate_shexp.weight", &[8, 6]),
            "blk.0.ffn_gate_shexp.weight is not part of",
        ),
        (llama().tensor("output_norm.weight", &[4]), "tensor output_norm.weight is 4 x 1 x 1"),
        (llama().tensor("output.weight", &[8, 9]), "tensor output.weight is 8 x 9 x 1"),
        (llama().tensor("blk.0.attn_norm.weight", &[8, 2]), "tensor blk.0.attn_norm.weight is 8 x 2 x 1"),
        (llama().tensor("blk.0.attn_k.weight", &[8, 8]), "tensor blk.0.attn_k.weight is 8 x 8 x 1"),
        (llama().tensor("rope_freqs.weight", &[3]), "tensor rope_freqs.weight must hold 2 positive"),
        (llama().tensor("rope_freqs.weight", &[2, 2]), "tensor rope_freqs.weight must be a vector"),
        (llama().tensor("token_embd.weight", &[8, 10, 1, 2]), "token_embd.weight has four dimensions"),
    ];
    for (file, words) in cases {
        refused(&file, words);
    }
}

#[test]
fn rotation_follows_its_keys() {
    let rope = |file: File, factors: Option<&[f32]>| -> Rope {
        Keys::new(&file.build()).unwrap().rope(RopeStyle::Neox, 4, factors).unwrap()
    };
    let close = |rope: Rope, expected: [f64; 2]| {
        assert_eq!(rope.frequencies.len(), 2);
        for (f, e) in rope.frequencies.iter().zip(expected) {
            assert!((f - e).abs() < 1e-12, "{f} is not {e}");
        }
    };
    let base = || file("llama").set("rope.freq_base", Value::F32(100.0));
    close(rope(base(), None), [1.0, 0.1]);
    close(rope(file("llama"), None), [1.0, 0.01]);
    close(rope(base(), Some(&[2.0, 4.0])), [0.5, 0.025]);
    let linear = base().set("rope.scaling.factor", Value::F32(4.0));
    close(rope(linear.clone().set("rope.scaling.type", Value::String("linear")), None), [0.25, 0.025]);
    close(rope(linear.clone(), None), [0.25, 0.025]);
    close(rope(linear.set("rope.scaling.type", Value::String("none")), None), [1.0, 0.1]);
    close(rope(base().set("rope.scale_linear", Value::F32(2.0)), None), [0.5, 0.05]);
    assert_eq!(rope(base().set("rope.dimension_count", Value::U32(2)), None).frequencies, [1.0]);
}

proptest! {
    /// Whatever the numbers say: a verdict, and no allocation that the file's own size does not justify.
    #[test]
    fn absurd_numbers_are_survived(
        changes in prop::collection::vec((0usize..40, prop_oneof![
            (0u32..20).prop_map(Value::U32),
            any::<u32>().prop_map(Value::U32),
            Just(Value::U32(u32::MAX)),
            Just(Value::U32(1 << 16)),
            any::<f32>().prop_map(Value::F32),
            Just(Value::U64(u64::MAX)),
            Just(Value::I32(-1)),
            Just(Value::Bool(true)),
        ]), 1..4),
        arch in prop_oneof![Just("llama"), Just("qwen3moe")],
    ) {
        const MORE: [&str; 6] = [
            "attention.key_length", "attention.value_length", "rope.dimension_count", "rope.freq_base",
            "rope.scaling.factor", "attention.sliding_window",
        ];
        let mut file = file(arch);
        let keys: Vec<_> = file.keys.keys().copied().filter(|k| !k.starts_with("general.")).chain(MORE).collect();
        for (which, value) in changes {
            file = file.set(keys[which % keys.len()], value);
        }
        let gguf = file.build();
        let kv = crate::memory::KvOptions {
            block_tokens: 16,
            page: PageType::F16,
            size: crate::memory::KvSize::Bytes(1 << 20),
            context: None,
        };
        if let Ok(shape) = shape(&gguf) {
            let _ = crate::memory::plan(&shape, &kv, Some(1 << 30));
        }
        let _ = file.verdict();
    }
}
