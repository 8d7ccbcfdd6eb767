use std::fs;

use super::*;
use crate::quant;

const HIDDEN: u64 = 256;
const INNER: u64 = 1024;

/// Bytes without the two highest bits: as a scale or a weight of any format, finite and less than 2.
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut random = Random(seed);
    (0..len).map(|_| random.next() as u8 & 0x3f).collect()
}

/// A dense llama of two layers with random bytes for weights, after `change`.
pub(crate) fn dense(path: &Path, gate: GgmlType, down: GgmlType, change: impl FnOnce(&mut GgufWriter)) {
    let mut writer = GgufWriter::new();
    writer.set("llama.block_count", Value::U32(2)).set_strings("tokens", &["a", "b"]);
    writer.tensor("token_embd.weight", GgmlType::Q8_0, &[HIDDEN, 10]);
    for layer in 0..2 {
        writer.tensor(&format!("blk.{layer}.ffn_down.weight"), down, &[INNER, HIDDEN]);
        writer.tensor(&format!("blk.{layer}.ffn_gate.weight"), gate, &[HIDDEN, INNER]);
        writer.tensor(&format!("blk.{layer}.ffn_norm.weight"), GgmlType::F32, &[HIDDEN]);
        writer.tensor(&format!("blk.{layer}.ffn_up.weight"), gate, &[HIDDEN, INNER]);
    }
    change(&mut writer);
    let bytes = noise(writer.data_bytes() as usize, 1);
    let sizes = writer.tensor_bytes().to_vec();
    let mut data = writer.start(Vec::new()).unwrap();
    let mut rest = &bytes[..];
    for size in sizes {
        let (part, after) = rest.split_at(size as usize);
        data.write(part).unwrap();
        rest = after;
    }
    fs::write(path, data.finish()).unwrap();
}

pub(crate) fn llama(writer: &mut GgufWriter) {
    writer.set("general.architecture", Value::String("llama"));
}

/// Each neuron group's bytes: its rows of gate and up and its blocks in every row of down.
fn groups(gate: &TensorView<'_>, up: &TensorView<'_>, down: &TensorView<'_>) -> Vec<Vec<u8>> {
    let (count, block) = (down.cols / down.ty.block(), down.ty.block_bytes());
    let rows = |view: &TensorView<'_>, g: usize| {
        let bytes = view.data.len() / count;
        view.data[g * bytes..][..bytes].to_vec()
    };
    let blocks = |g: usize| (0..down.rows).flat_map(move |r| down.row(0, r)[g * block..][..block].to_vec());
    (0..count).map(|g| rows(gate, g).into_iter().chain(rows(up, g)).chain(blocks(g)).collect()).collect()
}

#[test]
fn every_expert_is_the_dense_feed_forward_reordered() {
    let folder = tempfile::tempdir().unwrap();
    let (input, output) = (folder.path().join("in.gguf"), folder.path().join("out.gguf"));
    for down in GgmlType::ALL {
        dense(&input, GgmlType::Q4_1, down, llama);
        upcycle(&input, &output, (3, 2, 7), &[], |_, _| {}).unwrap();
        let (before, after) = (Gguf::open(&input).unwrap(), Gguf::open(&output).unwrap());
        for layer in 0..2 {
            let name = |kind: &str| format!("blk.{layer}.ffn_{kind}.weight");
            let [gate, up, down] = ["gate", "up", "down"].map(|k| before.view(&name(k)).unwrap());
            let mut original = groups(&gate, &up, &down);
            original.sort();
            let stacks = ["gate_exps", "up_exps", "down_exps"].map(|k| after.view(&name(k)).unwrap());
            assert_eq!(stacks.map(|s| s.experts), [3; 3]);
            let experts: Vec<_> = (0..3)
                .map(|e| {
                    let [gate, up, down] = stacks.map(|s| s.expert(e));
                    groups(&gate, &up, &down)
                })
                .collect();
            assert!(experts[0] != experts[1] && experts[1] != experts[2], "{}", down.ty.name());
            for mut expert in experts {
                expert.sort();
                assert!(expert == original, "{}", down.ty.name());
            }
            let router = after.view(&name("gate_inp")).unwrap();
            assert_eq!((router.ty, router.cols, router.rows), (GgmlType::F32, HIDDEN as usize, 3));
        }
    }
}

/// `W x` in F64.
fn product(matrix: &TensorView<'_>, x: &[f64]) -> Vec<f64> {
    let mut weights = vec![0.0; matrix.cols];
    let mut dot = |r| {
        (quant::format(matrix.ty).dequantize)(matrix.row(0, r), &mut weights);
        weights.iter().zip(x).map(|(&w, x)| f64::from(w) * x).sum()
    };
    (0..matrix.rows).map(&mut dot).collect()
}

fn feed_forward([gate, up, down]: [TensorView<'_>; 3], x: &[f64]) -> Vec<f64> {
    let activated = product(&gate, x).into_iter().map(|g| g / (1.0 + (-g).exp()));
    let inner: Vec<f64> = activated.zip(product(&up, x)).map(|(g, u)| g * u).collect();
    product(&down, &inner)
}

#[test]
fn every_expert_computes_the_dense_function() {
    let folder = tempfile::tempdir().unwrap();
    let (input, output) = (folder.path().join("in.gguf"), folder.path().join("out.gguf"));
    let mut random = Random(3);
    let x: Vec<f64> = (0..HIDDEN).map(|_| f64::from(random.normal()) / 16.0).collect();
    for ty in GgmlType::ALL {
        dense(&input, ty, ty, llama);
        upcycle(&input, &output, (2, 1, 0), &[], |_, _| {}).unwrap();
        let (before, after) = (Gguf::open(&input).unwrap(), Gguf::open(&output).unwrap());
        let kinds = ["gate", "up", "down"];
        let parent = kinds.map(|k| before.view(&format!("blk.1.ffn_{k}.weight")).unwrap());
        let wanted = feed_forward(parent, &x);
        let scale = wanted.iter().fold(0.0, |m: f64, w| m.max(w.abs()));
        assert!(scale > 0.0 && scale.is_finite(), "{}", ty.name());
        for e in 0..2 {
            let expert = kinds.map(|k| after.view(&format!("blk.1.ffn_{k}_exps.weight")).unwrap().expert(e));
            let found = feed_forward(expert, &x);
            let worst = found.iter().zip(&wanted).fold(0.0, |m: f64, (f, w)| m.max((f - w).abs()));
            assert!(worst < 1e-12 * scale, "{}: {worst} of {scale}", ty.name());
        }
    }
}

#[test]
fn everything_else_stays() {
    let folder = tempfile::tempdir().unwrap();
    let (input, output) = (folder.path().join("in.gguf"), folder.path().join("out.gguf"));
    dense(&input, GgmlType::Q4_0, GgmlType::Q4_0, |writer| {
        llama(writer);
        writer.set("llama.expert_count", Value::U32(0));
        writer.tensor("cube", GgmlType::F32, &[2, 3, 4, 1]);
    });
    let mut steps = Vec::new();
    upcycle(&input, &output, (8, 2, 0), &[], |done, total| steps.push((done, total))).unwrap();
    let (before, after) = (Gguf::open(&input).unwrap(), Gguf::open(&output).unwrap());
    for (key, value) in before.metadata().filter(|(key, _)| *key != "llama.expert_count") {
        assert_eq!(after.get(key), Some(value), "{key}");
    }
    assert_eq!(after.u32("llama.expert_count").unwrap(), 8);
    assert_eq!(after.u32("llama.expert_used_count").unwrap(), 2);
    assert_eq!(after.metadata().len(), before.metadata().len() + 1);
    for name in ["token_embd.weight", "blk.0.ffn_norm.weight", "blk.1.ffn_norm.weight", "cube"] {
        assert_eq!(after.view(name).unwrap().data, before.view(name).unwrap().data, "{name}");
        assert_eq!(after.tensor(name).unwrap().dims, before.tensor(name).unwrap().dims, "{name}");
    }
    assert_eq!(after.tensors().len(), 4 + 2 * 4);
    assert!(steps.is_sorted() && steps.first().unwrap().0 == 0);
    let (done, total) = *steps.last().unwrap();
    assert_eq!(done, total);
    assert_eq!(total, after.tensors().iter().map(|t| t.bytes().unwrap()).sum::<u64>());
}

#[test]
fn the_seed_decides_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("in.gguf");
    dense(&input, GgmlType::Q4_0, GgmlType::Q4_0, llama);
    let run = |seed| {
        let output = folder.path().join("out.gguf");
        upcycle(&input, &output, (2, 1, seed), &[], |_, _| {}).unwrap();
        fs::read(output).unwrap()
    };
    assert!(run(1) == run(1));
    assert!(run(1) != run(2));
}

#[test]
fn routers_are_random_with_a_deviation_of_a_tenth() {
    let mut random = Random::new(0, 0, u32::MAX);
    let values: Vec<f64> = (0..10_000).map(|_| f64::from(random.normal())).collect();
    let mean = values.iter().sum::<f64>() / 1e4;
    let variance = values.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / 1e4;
    assert!(mean.abs() < 0.05 && (variance - 1.0).abs() < 0.05, "{mean} {variance}");
}

#[test]
fn what_cannot_be_upcycled_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (input, output) = (folder.path().join("in.gguf"), folder.path().join("out.gguf"));
    let run = |experts, top_k| {
        let error = upcycle(&input, &output, (experts, top_k, 0), &[], |_, _| {}).unwrap_err();
        assert!(!output.exists());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), usize::from(input.exists()));
        error
    };
    assert!(matches!(run(0, 1), UpcycleError::Experts(0)));
    assert!(matches!(run(EXPERTS_MAX + 1, 1), UpcycleError::Experts(_)));
    assert!(matches!(run(4, 0), UpcycleError::TopK { .. }));
    assert!(matches!(run(4, 5), UpcycleError::TopK { top_k: 5, experts: 4 }));
    assert!(matches!(run(4, 2), UpcycleError::Model(GgufError::Io { .. })));
    fs::write(&input, "no model").unwrap();
    assert!(matches!(run(4, 2), UpcycleError::Model(GgufError::NotGguf { .. })));

    let with = |change: &dyn Fn(&mut GgufWriter)| {
        dense(&input, GgmlType::Q4_0, GgmlType::Q4_0, change);
        run(4, 2)
    };
    let qwen = with(&|w| _ = w.set("general.architecture", Value::String("qwen3")));
    assert_eq!(qwen.to_string(), "only the architecture llama can be upcycled, not qwen3");
    assert!(matches!(with(&|_| {}), UpcycleError::Model(GgufError::MissingKey { .. })));
    let mixtral = |w: &mut GgufWriter| {
        llama(w);
        w.set("llama.expert_count", Value::U32(8));
    };
    assert!(matches!(with(&mixtral), UpcycleError::HasExperts(_)));
    let extra = |name: &str| {
        with(&|w| {
            llama(w);
            w.tensor(name, GgmlType::F32, &[4]);
        })
    };
    assert!(matches!(extra("blk.0.ffn_up_exps.weight"), UpcycleError::HasExperts(_)));
    assert!(matches!(extra("blk.0.ffn_gate_inp.weight"), UpcycleError::HasExperts(_)));
    let bias = extra("blk.0.ffn_up.bias").to_string();
    assert_eq!(bias, "tensor blk.0.ffn_up.bias has no place in a mixture of experts");
    assert!(matches!(extra("blk.00.ffn_up.weight"), UpcycleError::Tensor { .. }));
    assert!(matches!(extra("blk.2.ffn_up.weight"), UpcycleError::Tensor { .. }));
    let fewer = |layers: u32, inner: u64| {
        let mut writer = GgufWriter::new();
        llama(writer.set("llama.block_count", Value::U32(layers)));
        for (name, dims) in [("gate", [4, 8]), ("up", [4, inner]), ("down", [8, 4])] {
            writer.tensor(&format!("blk.0.ffn_{name}.weight"), GgmlType::F32, &dims);
        }
        let sizes = writer.tensor_bytes().to_vec();
        let mut data = writer.start(Vec::new()).unwrap();
        sizes.iter().for_each(|&size| data.write(&vec![0; size as usize]).unwrap());
        fs::write(&input, data.finish()).unwrap();
        run(4, 2)
    };
    let shape = fewer(1, 9).to_string();
    assert_eq!(shape, "tensor blk.0.ffn_up.weight is 4 x 9 x 1; 4 x 8 is needed");
    assert!(matches!(fewer(u32::MAX, 8), UpcycleError::Model(GgufError::MissingTensor { .. })));
}

#[test]
fn a_full_disk_is_an_error() {
    struct Disk(usize);
    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let room = self.0.min(bytes.len());
            self.0 -= room;
            if room == 0 { Err(io::ErrorKind::StorageFull.into()) } else { Ok(room) }
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("in.gguf");
    dense(&input, GgmlType::Q4_0, GgmlType::Q4_0, llama);
    let model = Gguf::open(&input).unwrap();
    let shape = Shape { experts: 4, top_k: 2, seed: 0 };
    for room in [0, 5, 100, 1000, 100_000, 1_000_000] {
        let (writer, jobs) = plan(&model, &shape).unwrap();
        let error = execute(writer, &jobs, &shape, Disk(room), &mut |_, _| {}).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull, "{room}");
    }
    let nowhere = folder.path().join("no/out.gguf");
    let error = upcycle(&input, &nowhere, (4, 2, 0), &[], |_, _| {}).unwrap_err();
    assert_eq!(error.to_string(), format!("cannot write {}", nowhere.display()));
}

#[test]
fn a_model_is_not_upcycled_over_itself() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("in.gguf");
    dense(&input, GgmlType::Q4_1, GgmlType::Q4_1, llama);
    let original = fs::read(&input).unwrap();
    let refused = upcycle(&input, &folder.path().join("./in.gguf"), (3, 2, 7), &[], |_, _| {});
    assert!(matches!(&refused, Err(UpcycleError::Write(_))), "{refused:?}");
    assert!(fs::read(&input).unwrap() == original);
}
