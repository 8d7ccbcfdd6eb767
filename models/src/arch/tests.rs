pub(super) mod file;

use proptest::prelude::*;

use self::file::{File, file, legacy};
use super::keys::Keys;
use super::rope::Rotation;
use super::*;
use crate::gguf::Value;
use crate::kv::{KvStore, PageType};
use crate::memory::{KvOptions, KvSize};

fn options(size: KvSize) -> KvOptions {
    KvOptions { block_tokens: 16, page: PageType::F16, size, context: None, sequences: 4, step_tokens: 64 }
}

fn refused(file: &File, words: &str) {
    let verdict = file.verdict();
    assert!(!words.is_empty() && verdict.contains(words), "expected {words:?}, got {verdict:?}");
}

#[test]
fn sound_files_load() {
    let llama = file("llama");
    for Architecture { name, .. } in &TABLE {
        assert_eq!(file(name).verdict(), "", "{name}");
    }
    assert_eq!(legacy(file("deepseek2")).verdict(), "");
    assert_eq!(
        file("deepseek2").unset("attention.q_lora_rank").verdict(),
        "tensor blk.0.attn_q.weight is missing"
    );
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
        ("expert_weights_norm", Value::Bool(true)),
        ("expert_group_count", Value::U32(1)),
        ("rope.scaling.finetuned", Value::Bool(false)),
    ];
    let all = neutral.into_iter().fold(llama, |file, (key, value)| file.set(key, value));
    assert_eq!(all.verdict(), "");
}

#[test]
fn metadata_is_refused_by_the_name_of_the_key() {
    let llama = || file("llama");
    let cases = [
        (
            file("mamba"),
            "general.architecture mamba is not supported; these are: llama, qwen2, qwen3, qwen2moe",
        ),
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
        (llama().set("rope.scaling.type", Value::String("longrope")), "llama.rope.scaling.type is longrope"),
        (llama().set("rope.scaling.type", Value::String("yarn")), "llama.rope.scaling.factor is missing"),
        (llama().set("rope.dimension_sections", Value::U32(1)), "llama.rope.dimension_sections is"),
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

/// Of architectures that have more to say.
#[test]
fn their_own_metadata_is_refused_by_the_name_of_the_key() {
    let set = |arch, key, value| file(arch).set(key, value);
    let deepseek = |key, value| set("deepseek2", key, value);
    let (u, f, b, s) = (Value::U32, Value::F32, Value::Bool, Value::String);
    let yarn = || deepseek("rope.scaling.type", s("yarn")).set("rope.scaling.factor", f(4.0));
    let cases = [
        (set("qwen2", "expert_count", u(3)), "qwen2.expert_count is"),
        (set("qwen3", "logit_scale", f(2.0)), "qwen3.logit_scale is"),
        (set("qwen2moe", "expert_weights_norm", b(true)), "qwen2moe.expert_weights_norm is true"),
        (file("qwen2moe").unset("expert_shared_feed_forward_length"), "feed_forward_length is missing"),
        (set("olmoe", "attention.clamp_kqv", f(8.0)), "olmoe.attention.clamp_kqv is"),
        (set("olmoe", "expert_weights_norm", b(true)), "olmoe.expert_weights_norm is true"),
        (file("granitemoe").unset("logit_scale"), "granitemoe.logit_scale is missing"),
        (set("granitemoe", "logit_scale", f(0.0)), "granitemoe.logit_scale is 0"),
        (set("granitemoe", "embedding_scale", f(f32::NAN)), "granitemoe.embedding_scale is NaN"),
        (set("granitemoe", "rope.scaling.finetuned", b(false)), "granitemoe.rope.scaling.finetuned is false"),
        (set("glm4moe", "nextn_predict_layers", u(3)), "glm4moe.nextn_predict_layers is 3"),
        (set("glm4moe", "leading_dense_block_count", u(3)), "glm4moe.leading_dense_block_count is 3"),
        (set("glm4moe", "expert_gating_func", u(3)), "glm4moe.expert_gating_func is 3"),
        (set("glm4moe", "expert_weights_scale", f(-1.0)), "glm4moe.expert_weights_scale is -1"),
        (file("gpt-oss").unset("attention.sliding_window"), "attention.sliding_window is missing"),
        (set("gpt-oss", "attention.sliding_window", u(0)), "gpt-oss.attention.sliding_window is 0"),
        (set("gpt-oss", "rope.scaling.factor", f(0.5)), "gpt-oss.rope.scaling.factor is 0.5"),
        (set("gpt-oss", "rope.freq_base", f(0.0)), "gpt-oss.rope.freq_base is 0"),
        (set("gpt-oss", "rope.scaling.yarn_ext_factor", f(0.5)), "rope.scaling.yarn_ext_factor is"),
        (set("gpt-oss", "rope.scaling.yarn_beta_fast", f(-1.0)), "rope.scaling.yarn_beta_fast is -1"),
        (file("deepseek2").unset("attention.kv_lora_rank"), "attention.kv_lora_rank is missing"),
        (file("deepseek2").unset("rope.dimension_count"), "rope.dimension_count is missing"),
        (deepseek("rope.dimension_count", u(6)), "rope.dimension_count is 6"),
        (deepseek("attention.key_length_mla", u(2)), "attention.key_length_mla is 2"),
        (file("deepseek2").unset("attention.key_length_mla"), "attention.key_length_mla is missing"),
        (file("deepseek2").unset("attention.value_length_mla"), "attention.value_length_mla is missing"),
        (deepseek("attention.key_length", u(9)), "attention.key_length is 9, but it must be 8"),
        (deepseek("attention.value_length", u(7)), "attention.value_length is 7, but it must be 6"),
        (deepseek("attention.head_count_kv", u(2)), "attention.head_count_kv is 2, but it must be 1"),
        (
            legacy(file("deepseek2")).set("attention.head_count_kv", u(1)),
            "head_count_kv is 1, but it must be 2",
        ),
        (yarn(), "rope.scaling.yarn_log_multiplier is missing"),
        (yarn().set("rope.scaling.yarn_log_multiplier", f(0.0)), "rope.scaling.yarn_log_multiplier is 0"),
        (deepseek("rope.scaling.yarn_log_multiplier", f(0.1)), "rope.scaling.yarn_log_multiplier is"),
        (deepseek("rope.scaling.attn_factor", f(2.0)), "rope.scaling.attn_factor is 2"),
        (deepseek("attention.temperature_scale", f(0.1)), "attention.temperature_scale is"),
        (
            deepseek("expert_group_count", u(3)).set("expert_group_used_count", u(1)),
            "expert_group_count is 3",
        ),
        (deepseek("expert_group_count", u(2)), "expert_group_used_count is missing"),
        (deepseek("expert_group_used_count", u(2)), "expert_group_used_count is 2"),
        (
            deepseek("expert_group_count", u(4)).set("expert_group_used_count", u(1)),
            "expert_group_used_count is 1",
        ),
        (
            deepseek("expert_group_count", u(2)).set("expert_group_used_count", u(3)),
            "expert_group_used_count is 3",
        ),
        (deepseek("expert_gating_func", u(2)), "tensor blk.1.exp_probs_b.bias is missing"),
        (deepseek("expert_shared_count", u(0)), "blk.1.ffn_down_shexp.weight is not part of"),
        (deepseek("nextn_predict_layers", u(2)), "deepseek2.nextn_predict_layers is 2"),
        (deepseek("nextn_predict_layers", u(1)), "blk.1.ffn_down_exps.weight is not part of"),
        (set("qwen3", "nextn_predict_layers", u(1)), "qwen3.nextn_predict_layers is"),
        (set("gpt-oss", "attention.sliding_window_pattern", u(4)), "attention.sliding_window_pattern is 4"),
        (set("gpt-oss", "rope.freq_base_swa", f(5.0)), "gpt-oss.rope.freq_base_swa is 5"),
    ];
    for (file, words) in cases {
        refused(&file, words);
    }
}

/// What is neutral to one architecture is honoured by another.
#[test]
fn optional_parts_load_where_they_are_there() {
    let windows = file("gpt-oss").set("attention.sliding_window_pattern", Value::U32(2));
    let windows = windows.set("rope.freq_base", Value::F32(7.0)).set("rope.freq_base_swa", Value::F32(7.0));
    assert_eq!(windows.verdict(), "");
    let shared = file("granitemoe").set("expert_shared_feed_forward_length", Value::U32(6));
    refused(&shared, "tensor blk.0.ffn_gate_shexp.weight is missing");
    let shexp: [(&str, &[u64]); 3] = [
        ("ffn_gate_shexp.weight", &[8, 6]),
        ("ffn_up_shexp.weight", &[8, 6]),
        ("ffn_down_shexp.weight", &[6, 8]),
    ];
    assert_eq!(shared.block(0, &shexp).verdict(), "");
    assert_eq!(file("qwen3moe").set("expert_shared_feed_forward_length", Value::U32(0)).verdict(), "");
    assert_eq!(file("deepseek2").set("expert_group_count", Value::U32(1)).verdict(), "");
    let groups = file("deepseek2").set("expert_group_count", Value::U32(2));
    assert_eq!(groups.set("expert_group_used_count", Value::U32(1)).verdict(), "");
    let biased = file("deepseek2").block(1, &[("exp_probs_b.bias", &[4])]);
    assert_eq!(biased.set("expert_gating_func", Value::U32(2)).verdict(), "");
    let lite = ["attn_q_a.weight", "attn_q_a_norm.weight", "attn_q_b.weight"];
    let lite = (0..2).fold(file("deepseek2").set("attention.q_lora_rank", Value::U32(0)), |file, block| {
        file.without(block, &lite).block(block, &[("attn_q.weight", &[8, 8])])
    });
    assert_eq!(lite.verdict(), "");
}

#[test]
fn caches_are_what_blocks_keep() {
    let cache = |arch| shape(&file(arch).build()).unwrap().cache;
    let heads = CacheShape { kind: GroupKind::Full, layers: 1, kv_heads: 1, key_dim: 4, value_dim: 4 };
    let window = CacheShape { kind: GroupKind::Window { window: 20 }, ..heads };
    assert_eq!(cache("gpt-oss"), [window, heads]);
    assert_eq!(cache("glm4moe"), [CacheShape { layers: 2, ..heads }]);
    assert_eq!(cache("deepseek2"), [CacheShape { layers: 2, key_dim: 8, value_dim: 0, ..heads }]);
}

/// Of a token, latent attention keeps `kv_lora_rank` and the rotated values in each layer: by the plan and in memory.
#[test]
fn a_latent_cache_holds_the_latent_vector_alone() {
    let (rank, rotated, layers) = (6, 2, 2);
    let values = rank + rotated;
    for (page, row) in
        [(PageType::F16, 2 * values), (PageType::F32, 4 * values), (PageType::Q8_0, values + 2)]
    {
        let formula = row * layers;
        for file in [file("deepseek2"), legacy(file("deepseek2"))] {
            let shape = shape(&file.build()).unwrap();
            let kv = KvOptions { page, ..options(KvSize::Blocks(5)) };
            let pool = crate::memory::plan(&shape, &kv, None).unwrap();
            assert_eq!(crate::memory::block_bytes(&shape, &kv).unwrap(), [16 * formula]);
            let store = KvStore::new(&crate::memory::layouts(&shape, &pool), 16, page).unwrap();
            assert_eq!(store.group(0).all().len() as u64, 5 * 16 * formula);
        }
    }
}

#[test]
fn weights_count_as_they_are_loaded() {
    let bytes = |file: &File| shape(&file.build()).unwrap().weight_bytes;
    let of_file = |file: &File| file.build().tensors().iter().filter_map(|t| t.bytes()).sum::<u64>();
    for arch in ["llama", "gpt-oss", "deepseek2"] {
        assert_eq!(bytes(&file(arch)), of_file(&file(arch)), "{arch}");
    }
    // In F32 the split projection is as large as the unsplit one.
    assert_eq!(bytes(&legacy(file("deepseek2"))), bytes(&file("deepseek2")));
    let skipped = file("glm4moe")
        .build()
        .tensors()
        .iter()
        .filter(|t| t.name.starts_with("blk.2."))
        .filter_map(|t| t.bytes())
        .sum::<u64>();
    assert_eq!(bytes(&file("glm4moe")), of_file(&file("glm4moe")) - skipped);
}

#[test]
fn their_own_tensors_are_refused_by_name() {
    let cases = [
        (file("qwen2").without(0, &["attn_k.bias"]), "tensor blk.0.attn_k.bias is missing"),
        (file("qwen2").block(0, &[("attn_k.bias", &[8])]), "tensor blk.0.attn_k.bias is 8 x 1 x 1"),
        (file("qwen3").without(0, &["attn_q_norm.weight"]), "tensor blk.0.attn_q_norm.weight is missing"),
        (file("qwen2moe").without(0, &["ffn_gate_inp_shexp.weight"]), "ffn_gate_inp_shexp.weight is missing"),
        (file("olmoe").block(0, &[("attn_q_norm.weight", &[4])]), "blk.0.attn_q_norm.weight is 4 x 1 x 1"),
        (
            file("glm4moe").block(2, &[("nextn.other.weight", &[8])]),
            "blk.2.nextn.other.weight is not part of",
        ),
        (
            file("glm4moe").block(1, &[("nextn.enorm.weight", &[8])]),
            "blk.1.nextn.enorm.weight is not part of",
        ),
        (file("glm4moe").without(1, &["exp_probs_b.bias"]), "tensor blk.1.exp_probs_b.bias is missing"),
        (file("gpt-oss").without(1, &["attn_sinks.weight"]), "tensor blk.1.attn_sinks.weight is missing"),
        (file("gpt-oss").block(0, &[("attn_sinks.weight", &[1])]), "blk.0.attn_sinks.weight is 1 x 1 x 1"),
        (
            file("gpt-oss").block(1, &[("ffn_down_exps.bias", &[6, 3])]),
            "blk.1.ffn_down_exps.bias is 6 x 3 x 1",
        ),
        (file("deepseek2").block(0, &[("attn_k_b.weight", &[6, 2, 2])]), "attn_k_b.weight is 6 x 2 x 2"),
        (file("deepseek2").without(1, &["attn_v_b.weight"]), "tensor blk.1.attn_v_b.weight is missing"),
        (file("deepseek2").block(0, &[("attn_kv_b.weight", &[6, 12])]), "attn_kv_b.weight is not part of"),
        (
            legacy(file("deepseek2")).block(0, &[("attn_kv_b.weight", &[6, 11])]),
            "attn_kv_b.weight is 6 x 11 x 1",
        ),
        (file("deepseek2").tensor("rope_freqs.weight", &[2]), "rope_freqs.weight must hold 1 positive"),
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

/// Frequencies of heads that no tensor has would take gigabytes.
#[test]
fn tensors_are_checked_before_frequencies_are_computed() {
    let claims = file("llama").set("embedding_length", Value::U32(1 << 31));
    refused(&claims.tensor("rope_freqs.weight", &[3]), "tensor token_embd.weight is 8 x 10 x 1");
}

const YARN_16: [f64; 8] = [
    1.0,
    0.159_671_083_477_033_52,
    0.021_172_197_839_775_617,
    0.001_431_778_349_082_528_2,
    0.000_322_748_612_183_951_4,
    7.275_334_672_675_824e-5,
    1.639_991_392_721_192e-5,
    3.696_835_800_971_321e-6,
];

fn rotation(file: File, dims: u32) -> Rotation {
    let gguf = file.build();
    Rotation::read(&Keys::new(&gguf).unwrap(), &find(&gguf).unwrap().plan, dims, 64).unwrap()
}

fn close(found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    for (f, e) in found.iter().zip(expected) {
        assert!((f - e).abs() < 1e-12 * e, "{f} is not {e}");
    }
}

#[test]
fn rotation_follows_its_keys() {
    let close = |file: File, factors: Option<&[f32]>, expected: [f64; 2]| {
        let rotation = rotation(file, 4);
        close(&rotation.frequencies(factors).unwrap(), &expected);
        assert_eq!((rotation.sharpness(), rotation.yarn()), (1.0, None));
    };
    let base = || file("llama").set("rope.freq_base", Value::F32(100.0));
    close(base(), None, [1.0, 0.1]);
    close(file("llama"), None, [1.0, 0.01]);
    close(base(), Some(&[2.0, 4.0]), [0.5, 0.025]);
    let linear = base().set("rope.scaling.factor", Value::F32(4.0));
    close(linear.clone().set("rope.scaling.type", Value::String("linear")), None, [0.25, 0.025]);
    close(linear.clone(), None, [0.25, 0.025]);
    close(linear.set("rope.scaling.type", Value::String("none")), None, [1.0, 0.1]);
    close(base().set("rope.scale_linear", Value::F32(2.0)), None, [0.5, 0.05]);
}

/// Numbers of the goldens' numpy description of YaRN.
#[test]
fn yarn_keeps_fast_pairs_and_divides_slow_ones() {
    let yarn = || {
        file("llama")
            .set("rope.scaling.type", Value::String("yarn"))
            .set("rope.freq_base", Value::F32(150_000.0))
            .set("rope.scaling.factor", Value::F32(8.0))
            .set("rope.scaling.original_context_length", Value::U32(256))
    };
    let sixteen = rotation(yarn(), 16);
    let frequencies = |rotation: &Rotation| rotation.frequencies(None).unwrap();
    close(&frequencies(&sixteen), &YARN_16);
    assert_eq!((sixteen.yarn(), sixteen.sharpness()), (Some(8f64.ln()), 1.207_944_2));
    let stretched = rotation(yarn().set("rope.scaling.attn_factor", Value::F32(0.5)), 16);
    close(&stretched.frequencies(Some(&[2.0; 8])).unwrap(), &YARN_16.map(|f| f / 2.0));
    assert_eq!(stretched.sharpness(), 0.603_972_1);
    // Without an original context it is the model's own.
    let own = rotation(yarn().unset("rope.scaling.original_context_length"), 16);
    let told = rotation(yarn().set("rope.scaling.original_context_length", Value::U32(64)), 16);
    assert_eq!(frequencies(&own), frequencies(&told));
    assert_ne!(frequencies(&own), frequencies(&sixteen));
    let slower = yarn().set("rope.scaling.yarn_beta_slow", Value::F32(0.01));
    assert_ne!(frequencies(&rotation(slower, 16)), frequencies(&sixteen));
}

/// As gpt-oss's published configuration has it: the ramp is from pair 8.0928 to pair 17.398.
#[test]
fn the_ramp_of_gpt_oss_is_not_rounded() {
    let published = |arch| {
        let file = file(arch)
            .set("rope.scaling.type", Value::String("yarn"))
            .set("rope.freq_base", Value::F32(150_000.0))
            .set("rope.scaling.factor", Value::F32(32.0))
            .set("rope.scaling.original_context_length", Value::U32(4096));
        rotation(file, 64).frequencies(None).unwrap()
    };
    let ramp = |[low, high]: [f64; 2]| -> Vec<f64> {
        let stretched = |i: f64| ((i - low) / (high - low)).clamp(0.0, 1.0);
        let divided = |i: f64| 1.0 - stretched(i) + stretched(i) / 32.0;
        (0..32).map(f64::from).map(|i| 150_000f64.powf(-i / 32.0) * divided(i)).collect()
    };
    close(&published("llama"), &ramp([8.0, 18.0]));
    // `find_correction_range` of OpenAI's reference.
    let end = |turns: f64| 32.0 * (4096.0 / (turns * std::f64::consts::TAU)).ln() / 150_000f64.ln();
    let ends = [end(32.0), end(1.0)];
    assert_eq!(ends.map(|e| (e * 1e3).round()), [8093.0, 17398.0]);
    close(&published("gpt-oss"), &ramp(ends));
}

/// Kimi K2's files do not say how many turns are fast: its configuration says 1, so that the ramp is a step behind pair 19.
#[test]
fn kimi_k2_divides_every_pair_that_does_not_turn_once() {
    let published = |arch| {
        file(arch)
            .set("rope.scaling.type", Value::String("yarn"))
            .set("rope.freq_base", Value::F32(50_000.0))
            .set("rope.scaling.factor", Value::F32(32.0))
            .set("rope.scaling.original_context_length", Value::U32(4096))
    };
    let ramp = |[low, high]: [f64; 2]| -> Vec<f64> {
        let stretched = |i: f64| ((i - low) / (high - low)).clamp(0.0, 1.0);
        let divided = |i: f64| 1.0 - stretched(i) + stretched(i) / 32.0;
        (0..32).map(f64::from).map(|i| 50_000f64.powf(-i / 32.0) * divided(i)).collect()
    };
    let pre = |arch, pre| published(arch).set("tokenizer.ggml.pre", Value::String(pre));
    let (step, usual) = (ramp([19.0, 20.0]), ramp([8.0, 20.0]));
    let kimi = pre("deepseek2", "kimi-k2");
    let cases = [
        (kimi.clone(), &step),
        (kimi.set("rope.scaling.yarn_beta_fast", Value::F32(32.0)), &usual),
        (pre("deepseek2", "deepseek-v3"), &usual),
        (published("deepseek2"), &usual),
        (pre("llama", "kimi-k2"), &usual),
    ];
    for (file, expected) in cases {
        close(&rotation(file, 64).frequencies(None).unwrap(), expected);
    }
}

proptest! {
    /// Whatever the numbers say: a verdict, and no allocation that the file's own size does not justify.
    #[test]
    fn absurd_numbers_are_survived(
        changes in prop::collection::vec((0usize..60, prop_oneof![
            (0u32..20).prop_map(Value::U32),
            any::<u32>().prop_map(Value::U32),
            Just(Value::U32(u32::MAX)),
            Just(Value::U32(1 << 16)),
            any::<f32>().prop_map(Value::F32),
            Just(Value::U64(u64::MAX)),
            Just(Value::I32(-1)),
            Just(Value::Bool(true)),
        ]), 1..4),
        arch in prop::sample::select(TABLE.each_ref().map(|row| row.name).to_vec()),
    ) {
        const MORE: [&str; 11] = [
            "attention.key_length", "attention.value_length", "rope.dimension_count", "rope.freq_base",
            "rope.scaling.factor", "attention.sliding_window", "expert_group_count", "expert_group_used_count",
            "rope.scaling.yarn_log_multiplier", "rope.scaling.yarn_beta_fast", "nextn_predict_layers",
        ];
        let mut file = file(arch);
        let keys: Vec<_> = file.keys.keys().copied().filter(|k| !k.starts_with("general.")).chain(MORE).collect();
        for (which, value) in changes {
            file = file.set(keys[which % keys.len()], value);
        }
        let gguf = file.build();
        let kv = options(KvSize::Bytes(1 << 20));
        if let Ok(shape) = shape(&gguf) {
            let _ = crate::memory::plan(&shape, &kv, Some(1 << 30));
        }
        let _ = file.verdict();
    }
}
