use std::path::{Path, PathBuf};

use super::*;
use crate::gguf::{GgufWriter, Value};
use crate::model_runner::{BackendKind, RunnerOptions, load_runner};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures")
}

fn bytes(name: &str) -> Vec<u8> {
    std::fs::read(folder().join(format!("{name}.gguf"))).unwrap()
}

const KV: KvOptions = KvOptions {
    block_tokens: 16,
    page: PageType::F16,
    size: KvSize::Available { reserve: 1 << 20, threads: Some(3) },
    context: None,
    sequences: 1,
    step_tokens: 64,
};

fn report(bytes: Vec<u8>, available: u64) -> Report {
    let options = InspectOptions { kv: KV, available: Some(available), template: None };
    inspect(&mut Gguf::from_bytes(bytes).unwrap(), &options)
}

fn messages(report: &Report, part: Part) -> Vec<&str> {
    report.problems.iter().filter(|p| p.part == part).map(|p| p.message.as_str()).collect()
}

/// A fixture with other or more metadata, and a tensor more.
fn changed(name: &str, keys: &[(&str, Value<'_>)], tensors: &[&str]) -> Vec<u8> {
    let original = Gguf::from_bytes(bytes(name)).unwrap();
    let mut writer = GgufWriter::new();
    for (key, value) in original.metadata().filter(|(key, _)| keys.iter().all(|(other, _)| other != key)) {
        writer.set(key, value);
    }
    for (key, value) in keys {
        writer.set(key, *value);
    }
    for tensor in original.tensors() {
        writer.tensor(&tensor.name, tensor.ty().unwrap(), &tensor.dims[..tensor.dim_count as usize]);
    }
    for tensor in tensors {
        writer.tensor(tensor, crate::quant::GgmlType::F32, &[4]);
    }
    let mut data = writer.start(Vec::new()).unwrap();
    for tensor in original.tensors() {
        data.write(original.view(&tensor.name).unwrap().data).unwrap();
    }
    for _ in tensors {
        data.write(&[0; 16]).unwrap();
    }
    data.finish()
}

/// Gives a tensor's entry another format.
fn retyped(mut file: Vec<u8>, tensor: &str, id: u32) -> Vec<u8> {
    let at =
        file.windows(tensor.len()).position(|window| window == tensor.as_bytes()).unwrap() + tensor.len();
    let dims = u32::from_le_bytes(file[at..at + 4].try_into().unwrap()) as usize;
    file[at + 4 + 8 * dims..][..4].copy_from_slice(&id.to_le_bytes());
    file
}

#[test]
fn a_report_without_problems_is_of_a_file_that_loads() {
    let mut counts = [0, 0];
    for entry in std::fs::read_dir(folder()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "gguf") {
            continue;
        }
        let mut gguf = Gguf::open(&path).unwrap();
        let kv = KvOptions { size: KvSize::Blocks(2), ..KV };
        let options =
            RunnerOptions { backend: BackendKind::Cpu, threads: 1, pin: false, isa: None, kv, lazy: false };
        let loads = load_runner(&gguf, &options).is_ok() && Tokenizer::from_gguf(&gguf).is_ok();
        let report = inspect(&mut gguf, &InspectOptions { kv: KV, available: None, template: None });
        assert_eq!(report.servable, loads, "{}: {:?}", path.display(), report.problems);
        assert_eq!(report.servable, report.problems.is_empty());
        let sum = report.weights.iter().map(|row| row.parameters).sum::<u64>();
        assert_eq!(report.parameters.total, sum);
        counts[usize::from(loads)] += 1;
    }
    // Two of them have a tokenizer and no weights.
    assert!(counts[0] >= 2 && counts[1] >= 6, "{counts:?}");
}

#[test]
fn a_mixture_of_experts_is_counted_by_what_a_token_uses() {
    let gguf = Gguf::from_bytes(bytes("qwen3moe-Q4_K_M")).unwrap();
    let report = report(bytes("qwen3moe-Q4_K_M"), 1 << 30);
    let experts = report.experts.unwrap();
    assert!(experts.used < experts.count && experts.shared == 0);
    let of_experts = |t: &&TensorInfo| t.dims[2] == u64::from(experts.count) && t.name.contains("_exps.");
    let all: u64 = gguf.tensors().iter().filter(of_experts).map(TensorInfo::elements).sum();
    let left_out = all * u64::from(experts.count - experts.used) / u64::from(experts.count);
    assert!(all > 0);
    assert_eq!(report.parameters.active, report.parameters.total - left_out);
    let known: u64 = gguf.tensors().iter().filter_map(TensorInfo::bytes).sum();
    assert_eq!(report.weight_bytes, known);
    assert!(report.decode.weight_bytes < known);
}

#[test]
fn what_fits_is_what_can_be_planned() {
    for name in ["qwen3moe-F32", "gpt-oss-F32"] {
        let shape = arch::shape(&Gguf::from_bytes(bytes(name)).unwrap()).unwrap();
        let plan = |sequences: u32| {
            let size = KvSize::Blocks(sequences * shape.context.div_ceil(16));
            memory::plan(&shape, &KvOptions { size, sequences, ..KV }, None).unwrap()
        };
        let cost = |sequences: u32| {
            let each = memory::block_bytes(&shape, &KV).unwrap();
            plan(sequences)
                .blocks
                .iter()
                .zip(each)
                .map(|(&blocks, bytes)| u64::from(blocks) * bytes)
                .sum::<u64>()
        };
        let full = |available: u64| report(bytes(name), available).fit.sequences.last().copied().unwrap();
        let room = shape.weight_bytes + KV.left_free(&shape).unwrap();
        assert_eq!(report(bytes(name), room).fit.reserve_bytes, KV.left_free(&shape));
        assert_eq!(full(room + cost(5)), FitRow { context: shape.context, sequences: 5 }, "{name}");
        assert_eq!(full(room + cost(5) - 1).sequences, 4, "{name}");
        // A server is configured for one.
        assert_eq!(report(bytes(name), room + cost(5)).fit.cache_bytes, Some(cost(1)), "{name}");
        let nothing = report(bytes(name), shape.weight_bytes);
        assert!(nothing.servable && nothing.fit.cache_bytes.is_none());
        assert!(nothing.fit.error.unwrap().contains("not enough memory"));
    }
    assert_eq!(contexts(32768).collect::<Vec<_>>(), [1024, 4096, 16384, 32768]);
    assert_eq!(contexts(64).collect::<Vec<_>>(), [64]);
    assert_eq!(contexts(u32::MAX).count(), 12);
}

#[test]
fn all_problems_are_found_at_once() {
    let keys = [
        ("qwen3moe.embedding_scale", Value::F32(3.0)),
        ("qwen3moe.attention.clamp_kqv", Value::F32(8.0)),
        ("qwen3moe.rope.scaling.type", Value::String("odd")),
        ("tokenizer.ggml.pre", Value::String("unheard-of")),
        ("tokenizer.chat_template", Value::String("{% if %}")),
    ];
    let report = report(changed("qwen3moe-F32", &keys, &["blk.0.a", "blk.1.b"]), 1 << 30);
    let keys = messages(&report, Part::Keys);
    assert_eq!(keys.len(), 3, "{keys:?}");
    for name in ["embedding_scale", "clamp_kqv", "rope.scaling.type"] {
        assert!(keys.iter().any(|key| key.contains(name)), "{name} is not in {keys:?}");
    }
    let [tensors] = messages(&report, Part::Tensors)[..] else { panic!("{:?}", report.problems) };
    assert!(tensors.contains("blk.0.a") && tensors.contains("1 other"), "{tensors}");
    assert!(messages(&report, Part::Tokenizer)[0].contains("unheard-of"));
    assert!(messages(&report, Part::Template)[0].contains("line 1"));
    assert!(!report.servable && report.problems.len() == 6);
}

#[test]
fn a_format_that_is_not_read_is_named_once() {
    let file = retyped(bytes("qwen3moe-F32"), "blk.0.attn_q.weight", 4);
    let report = report(retyped(file, "blk.1.attn_q.weight", 4), 1 << 30);
    let [formats] = messages(&report, Part::Formats)[..] else { panic!("{:?}", report.problems) };
    assert!(formats.contains("number 4") && formats.contains("2 tensors"), "{formats}");
    assert_eq!(report.problems.len(), 1);
    let row = report.weights.iter().find(|row| !row.supported).unwrap();
    assert_eq!((row.kind, row.tensors, row.bytes), (TensorKind::Attention, 2, None));
}

/// What a packed file's header says is held to what loading holds it to; its data are not read.
#[test]
fn packed_files_that_do_not_load_are_told() {
    use crate::gguf::packed::{CHECKSUM_KEY, LAYOUT_KEY, PACKED};
    let output = tempfile::tempdir().unwrap();
    let output = output.path().join("packed.gguf");
    crate::pack::pack(&folder().join("qwen3moe-Q4_K_M.gguf"), &output, 1, |_, _| {}).unwrap();
    let packed = std::fs::read(output).unwrap();
    let check = |bytes: Vec<u8>, word: &str| {
        let gguf = Gguf::from_bytes(bytes.clone()).unwrap();
        let fails = gguf.verify(1).map_err(|e| e.to_string());
        let report = report(bytes, 1 << 30);
        let keys: Vec<String> = messages(&report, Part::Keys).into_iter().map(str::to_owned).collect();
        assert_eq!((fails, report.problems.len()), (Err(keys[0].clone()), 1), "{:?}", report.problems);
        assert!(keys[0].contains(word) && !report.servable, "{keys:?}");
    };
    assert_eq!(report(packed.clone(), 1 << 30).problems, []);
    // A key's last letter, and a layout's number, behind the key and its type.
    let at = |key: &str| packed.windows(key.len()).position(|w| w == key.as_bytes()).unwrap() + key.len();
    let changed = |at: usize, by: u8| {
        let mut bytes = packed.clone();
        bytes[at] ^= by;
        bytes
    };
    check(changed(at(LAYOUT_KEY) + 4, 6), "packed in layout 7");
    check(changed(at(LAYOUT_KEY) - 1, 1), "frugal.packed.layout is missing");
    check(changed(at(CHECKSUM_KEY) - 1, 1), "frugal.packed.crc32 is missing");
    let q4_k = crate::quant::GgmlType::Q4_K.id();
    let odd = retyped(bytes("qwen3moe-Q4_K_M"), "blk.0.attn_q.weight", PACKED + q4_k);
    check(odd, "frugal.packed.layout is missing");
}

#[test]
fn the_format_of_what_is_skipped_is_no_problem() {
    let original = Gguf::from_bytes(bytes("glm4moe-F32")).unwrap();
    let last = original.u32("glm4moe.block_count").unwrap() - 1;
    assert_eq!(original.opt_u32("glm4moe.nextn_predict_layers").unwrap(), Some(1));
    let of_block = |block: u32| retyped(bytes("glm4moe-F32"), &format!("blk.{block}.attn_q.weight"), 99);
    let report = |block| report(of_block(block), 1 << 30);
    assert_eq!(report(last).problems, []);
    assert_eq!(messages(&report(last - 1), Part::Formats).len(), 1);
}

#[test]
fn an_unknown_architecture_is_told_as_far_as_it_goes() {
    let keys = [("general.architecture", Value::String("unheard-of"))];
    let report = report(changed("llama-F32", &keys, &[]), 1 << 30);
    let [message] = messages(&report, Part::Architecture)[..] else { panic!("{:?}", report.problems) };
    assert!(message.contains("unheard-of") && message.contains("llama"));
    assert!(report.cache.is_empty() && report.fit.error.is_none() && report.context.is_none());
    assert!(report.parameters.total > 0 && report.tokenizer.tokens > 0);
}

#[test]
fn what_is_no_language_model_is_said_and_no_more() {
    let keys = [("general.type", Value::String("adapter"))];
    let report = report(changed("llama-F32", &keys, &["blk.0.a"]), 1 << 30);
    let [message] = messages(&report, Part::Architecture)[..] else { panic!("{:?}", report.problems) };
    assert!(message.contains("LoRA adapter") && report.problems.len() == 1, "{:?}", report.problems);
}

#[test]
fn a_template_shows_what_it_takes() {
    let file = Gguf::from_bytes(bytes("tokenizer-fixture")).unwrap();
    let source =
        "{% if tools %}{{ tools }}{% endif %}{% set thinking = 1 %}{% if enable_thinking %}{% endif %}";
    let facts = words(&file, Some(source), &mut Vec::new()).unwrap();
    assert_eq!(facts, TemplateFacts { tools: true, thinking: vec!["enable_thinking".to_owned()] });
    let facts = words(&file, Some("{{ messages }}"), &mut Vec::new()).unwrap();
    assert_eq!(facts, TemplateFacts { tools: false, thinking: Vec::new() });
}
