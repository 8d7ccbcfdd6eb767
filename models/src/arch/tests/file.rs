//! Small model files, sound ones and what tests make of them.

use std::collections::BTreeMap;

use crate::arch::{load, shape};
use crate::gguf::{Gguf, GgufWriter, Value};
use crate::kv::{KvStore, PageType};
use crate::quant::GgmlType;
use crate::reference::ReferenceBackend;

/// A model to be broken: hidden 8, 2 heads of 4, 1 for keys and values, 3 experts of 6, 10 tokens.
#[derive(Clone)]
pub(in crate::arch) struct File {
    pub(super) keys: BTreeMap<&'static str, Value<'static>>,
    tensors: BTreeMap<String, Vec<u64>>,
}

const NORMAL: [(&str, &[u64]); 10] = [
    ("attn_norm.weight", &[8]),
    ("attn_q.weight", &[8, 8]),
    ("attn_k.weight", &[8, 4]),
    ("attn_v.weight", &[8, 4]),
    ("attn_output.weight", &[8, 8]),
    ("ffn_norm.weight", &[8]),
    ("ffn_gate_inp.weight", &[8, 3]),
    ("ffn_gate_exps.weight", &[8, 6, 3]),
    ("ffn_up_exps.weight", &[8, 6, 3]),
    ("ffn_down_exps.weight", &[6, 8, 3]),
];

const DENSE: [(&str, &[u64]); 3] =
    [("ffn_gate.weight", &[8, 6]), ("ffn_up.weight", &[8, 6]), ("ffn_down.weight", &[6, 8])];

const SHARED: [(&str, &[u64]); 3] = [
    ("ffn_gate_shexp.weight", &[8, 6]),
    ("ffn_up_shexp.weight", &[8, 6]),
    ("ffn_down_shexp.weight", &[6, 8]),
];

const BIASES: [(&str, &[u64]); 3] = [("attn_q.bias", &[8]), ("attn_k.bias", &[4]), ("attn_v.bias", &[4])];

const HEAD_NORMS: [(&str, &[u64]); 2] = [("attn_q_norm.weight", &[4]), ("attn_k_norm.weight", &[4])];

/// A sound file of an architecture, one block unless more are needed to see everything.
pub(in crate::arch) fn file(arch: &'static str) -> File {
    let keys = [
        ("general.architecture", Value::String(arch)),
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
    let file = File { keys: keys.into(), tensors: BTreeMap::new() };
    let file =
        file.tensor("token_embd.weight", &[8, 10]).tensor("output_norm.weight", &[8]).block(0, &NORMAL);
    match arch {
        "qwen2" => file.dense(0).block(0, &BIASES).unset("expert_count").unset("expert_used_count"),
        "qwen3" => file.dense(0).block(0, &HEAD_NORMS).unset("expert_count").unset("expert_used_count"),
        "qwen2moe" => file
            .set("expert_shared_feed_forward_length", Value::U32(6))
            .block(0, &BIASES)
            .block(0, &SHARED)
            .block(0, &[("ffn_gate_inp_shexp.weight", &[8])]),
        "qwen3moe" => file.block(0, &HEAD_NORMS),
        "olmoe" => file.block(0, &[("attn_q_norm.weight", &[8]), ("attn_k_norm.weight", &[4])]),
        "granitemoe" => file
            .set("embedding_scale", Value::F32(12.0))
            .set("residual_scale", Value::F32(0.22))
            .set("attention.scale", Value::F32(0.1))
            .set("logit_scale", Value::F32(6.0)),
        "glm4moe" => glm4moe(file),
        "gpt-oss" => gpt_oss(file),
        "deepseek2" => deepseek2(file),
        _ => file,
    }
}

/// A dense block, one of experts, one that predicts a further token.
fn glm4moe(file: File) -> File {
    let mut file = file
        .set("block_count", Value::U32(3))
        .set("nextn_predict_layers", Value::U32(1))
        .set("leading_dense_block_count", Value::U32(1))
        .set("expert_shared_count", Value::U32(1))
        .set("expert_weights_norm", Value::Bool(true))
        .set("expert_weights_scale", Value::F32(1.5))
        .set("rope.dimension_count", Value::U32(2));
    for block in 0..3 {
        file = file.block(block, &NORMAL).block(block, &BIASES);
        file = match block {
            0 => file.dense(0).block(0, &HEAD_NORMS),
            _ => file.block(block, &SHARED).block(block, &[("exp_probs_b.bias", &[3])]),
        };
        file = file.renamed(block, "ffn_norm.weight", "post_attention_norm.weight");
    }
    file.block(2, &[("nextn.eh_proj.weight", &[16, 8]), ("nextn.enorm.weight", &[8])])
}

fn gpt_oss(file: File) -> File {
    let mut file = file
        .set("block_count", Value::U32(2))
        .set("attention.sliding_window", Value::U32(20))
        .set("rope.scaling.type", Value::String("yarn"))
        .set("rope.scaling.factor", Value::F32(8.0))
        .set("rope.scaling.original_context_length", Value::U32(8));
    for block in 0..2 {
        file = file.block(block, &NORMAL).block(block, &BIASES).block(
            block,
            &[
                ("attn_output.bias", &[8]),
                ("attn_sinks.weight", &[2]),
                ("ffn_gate_inp.bias", &[3]),
                ("ffn_gate_exps.bias", &[6, 3]),
                ("ffn_up_exps.bias", &[6, 3]),
                ("ffn_down_exps.bias", &[8, 3]),
            ],
        );
        file = file.renamed(block, "ffn_norm.weight", "post_attention_norm.weight");
    }
    file
}

/// A dense block and one of 4 experts; latent vectors of 6, heads of 2 + 2 and 4.
fn deepseek2(file: File) -> File {
    let mut file = file
        .set("block_count", Value::U32(2))
        .set("leading_dense_block_count", Value::U32(1))
        .set("expert_count", Value::U32(4))
        .set("expert_shared_count", Value::U32(1))
        .set("attention.kv_lora_rank", Value::U32(6))
        .set("attention.q_lora_rank", Value::U32(3))
        .set("attention.key_length", Value::U32(8))
        .set("attention.value_length", Value::U32(6))
        .set("attention.key_length_mla", Value::U32(4))
        .set("attention.value_length_mla", Value::U32(4))
        .set("rope.dimension_count", Value::U32(2));
    for block in 0..2 {
        file = file.without(block, &["attn_q.weight", "attn_k.weight", "attn_v.weight"]).block(
            block,
            &[
                ("attn_norm.weight", &[8]),
                ("ffn_norm.weight", &[8]),
                ("attn_q_a.weight", &[8, 3]),
                ("attn_q_a_norm.weight", &[3]),
                ("attn_q_b.weight", &[3, 8]),
                ("attn_kv_a_mqa.weight", &[8, 8]),
                ("attn_kv_a_norm.weight", &[6]),
                ("attn_k_b.weight", &[2, 6, 2]),
                ("attn_v_b.weight", &[6, 4, 2]),
                ("attn_output.weight", &[8, 8]),
            ],
        );
    }
    file.dense(0).block(1, &SHARED).block(
        1,
        &[
            ("ffn_gate_inp.weight", &[8, 4]),
            ("ffn_gate_exps.weight", &[8, 6, 4]),
            ("ffn_up_exps.weight", &[8, 6, 4]),
            ("ffn_down_exps.weight", &[6, 8, 4]),
        ],
    )
}

/// As files before the projection was split.
pub(super) fn legacy(file: File) -> File {
    let file = file
        .unset("attention.key_length_mla")
        .unset("attention.value_length_mla")
        .set("attention.head_count_kv", Value::U32(2))
        .set("attention.key_length", Value::U32(4))
        .set("attention.value_length", Value::U32(4));
    (0..2).fold(file, |file, block| {
        let split = ["attn_k_b.weight", "attn_v_b.weight"];
        file.without(block, &split).block(block, &[("attn_kv_b.weight", &[6, 12])])
    })
}

impl File {
    pub(in crate::arch) fn set(mut self, key: &'static str, value: Value<'static>) -> Self {
        self.keys.insert(key, value);
        self
    }

    pub(in crate::arch) fn unset(mut self, key: &str) -> Self {
        self.keys.remove(key);
        self
    }

    pub(super) fn tensor(mut self, name: &str, dims: &[u64]) -> Self {
        self.tensors.insert(name.to_owned(), dims.to_vec());
        self
    }

    pub(in crate::arch) fn block(self, block: u32, tensors: &[(&str, &[u64])]) -> Self {
        tensors.iter().fold(self, |file, (kind, dims)| file.tensor(&format!("blk.{block}.{kind}"), dims))
    }

    pub(super) fn without(mut self, block: u32, kinds: &[&str]) -> Self {
        kinds.iter().for_each(|kind| drop(self.tensors.remove(&format!("blk.{block}.{kind}"))));
        self
    }

    pub(super) fn renamed(mut self, block: u32, from: &str, to: &str) -> Self {
        let dims = self.tensors.remove(&format!("blk.{block}.{from}")).expect("the tensor is there");
        self.tensors.insert(format!("blk.{block}.{to}"), dims);
        self
    }

    /// Without experts.
    fn dense(self, block: u32) -> Self {
        let experts: Vec<&str> = NORMAL[6..].iter().map(|t| t.0).collect();
        self.without(block, &experts).without(block, &["exp_probs_b.bias"]).block(block, &DENSE)
    }

    pub(in crate::arch) fn build(&self) -> Gguf {
        let mut writer = GgufWriter::new();
        let arch = match self.keys["general.architecture"] {
            Value::String(name) => name,
            _ => "",
        };
        for (key, value) in &self.keys {
            match ["general.", "tokenizer."].iter().any(|of_all| key.starts_with(of_all)) {
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
    pub(super) fn verdict(&self) -> String {
        let gguf = self.build();
        let mut backend = ReferenceBackend::new(KvStore::new(&[], 16, PageType::F32).unwrap());
        let result = shape(&gguf).and_then(|_| load(&gguf, &mut backend));
        result.err().map(|e| e.to_string()).unwrap_or_default()
    }
}
