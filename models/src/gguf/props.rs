//! Random files: valid ones come back as they were written, spoilt ones open or give an error.

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

use super::*;

/// A value that owns what it is made of.
#[derive(Clone, Debug)]
enum Owned {
    U8(u8),
    I16(i16),
    U32(u32),
    I64(i64),
    F32(f32),
    F64(f64),
    Bool(bool),
    String(String),
    Strings(Vec<String>),
    I32s(Vec<i32>),
    F32s(Vec<f32>),
}

fn value() -> impl Strategy<Value = Owned> {
    prop_oneof![
        any::<u8>().prop_map(Owned::U8),
        any::<i16>().prop_map(Owned::I16),
        any::<u32>().prop_map(Owned::U32),
        any::<i64>().prop_map(Owned::I64),
        any::<f32>().prop_map(Owned::F32),
        any::<f64>().prop_map(Owned::F64),
        any::<bool>().prop_map(Owned::Bool),
        ".{0,20}".prop_map(Owned::String),
        vec(".{0,5}", 0..6).prop_map(Owned::Strings),
        vec(any::<i32>(), 0..6).prop_map(Owned::I32s),
        vec(any::<f32>(), 0..6).prop_map(Owned::F32s),
    ]
}

type Tensor = (GgmlType, u64, Vec<u64>, u8);

/// Format, blocks in a row, further dimensions, fill.
fn tensor() -> impl Strategy<Value = Tensor> {
    (prop::sample::select(GgmlType::ALL.to_vec()), 1u64..4, vec(1u64..4, 0..3), any::<u8>())
}

type Content = (std::collections::BTreeMap<String, Owned>, std::collections::BTreeMap<String, Tensor>, u32);

fn content() -> impl Strategy<Value = Content> {
    (btree_map("[a-z.]{0,12}", value(), 0..8), btree_map(".{0,12}", tensor(), 0..6), 0u32..9)
}

fn dims((ty, blocks, rest, _): &Tensor) -> Vec<u64> {
    std::iter::once(blocks * ty.block() as u64).chain(rest.iter().copied()).collect()
}

fn write((metadata, tensors, alignment): &Content) -> Vec<u8> {
    let mut writer = GgufWriter::new();
    writer.set("general.alignment", Value::U32(1 << alignment));
    for (key, value) in metadata {
        match value {
            Owned::U8(v) => writer.set(key, Value::U8(*v)),
            Owned::I16(v) => writer.set(key, Value::I16(*v)),
            Owned::U32(v) => writer.set(key, Value::U32(*v)),
            Owned::I64(v) => writer.set(key, Value::I64(*v)),
            Owned::F32(v) => writer.set(key, Value::F32(*v)),
            Owned::F64(v) => writer.set(key, Value::F64(*v)),
            Owned::Bool(v) => writer.set(key, Value::Bool(*v)),
            Owned::String(v) => writer.set(key, Value::String(v)),
            Owned::Strings(v) => writer.set_strings(key, v),
            Owned::I32s(v) => writer.set_i32s(key, v),
            Owned::F32s(v) => writer.set_f32s(key, v),
        };
    }
    for (name, tensor) in tensors {
        writer.tensor(name, tensor.0, &dims(tensor));
    }
    let sizes = writer.tensor_bytes().to_vec();
    let mut data = writer.start(Vec::new()).unwrap();
    for (size, (.., fill)) in sizes.into_iter().zip(tensors.values()) {
        // In two parts: where a part ends must not matter.
        data.write(&vec![*fill; size as usize / 2]).unwrap();
        data.write(&vec![*fill; size as usize - size as usize / 2]).unwrap();
    }
    data.finish()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

fn same(file: &Gguf, key: &str, value: &Owned) -> bool {
    match value {
        Owned::U8(v) => file.u32(key).unwrap() == u32::from(*v),
        Owned::I16(v) => file.get(key) == Some(Value::I16(*v)),
        Owned::U32(v) => file.u32(key).unwrap() == *v,
        Owned::I64(v) => file.u64(key).ok() == u64::try_from(*v).ok(),
        Owned::F32(v) => file.f32(key).unwrap().to_bits() == v.to_bits(),
        Owned::F64(v) => file.f32(key).unwrap().to_bits() == (*v as f32).to_bits() || v.is_nan(),
        Owned::Bool(v) => file.bool(key).unwrap() == *v,
        Owned::String(v) => file.str(key).unwrap() == v,
        Owned::Strings(v) => file.str_array(key).unwrap().eq(v.iter().map(String::as_str)),
        Owned::I32s(v) => file.i32_array(key).unwrap() == *v,
        Owned::F32s(v) => bits(&file.f32_array(key).unwrap()) == bits(v),
    }
}

/// Reads all that can be read and returns how many bytes that was.
fn exercise(file: &Gguf) -> usize {
    let mut bytes = file.digest().len();
    for (key, value) in file.metadata() {
        assert!(file.get(key).is_some());
        bytes += match value {
            Value::Array(array) => array.iter().map(|v| format!("{v:?}").len()).sum(),
            value => format!("{value:?}").len(),
        };
    }
    for tensor in file.tensors() {
        if let Ok(view) = file.view(&tensor.name) {
            assert_eq!(view.data.len(), view.experts * view.rows * view.row_bytes());
            assert_eq!(view.expert(view.experts - 1).row(0, view.rows - 1).len(), view.row_bytes());
            bytes += view.data.iter().filter(|&&b| b > 0).count();
        }
    }
    bytes
}

/// A change of a file's bytes: at a fraction of its length.
#[derive(Clone, Debug)]
enum Damage {
    Byte(f64, u8),
    Number(f64, u64),
    Cut(f64),
    Insert(f64, Vec<u8>),
    Remove(f64, usize),
}

fn damage() -> impl Strategy<Value = Damage> {
    // Most of it near the beginning, where the header is.
    let at = || prop_oneof![0.0..1.0f64, (0.0..1.0f64).prop_map(|x| x * x * x)];
    let number = prop_oneof![
        any::<u64>(),
        0u64..64,
        (0u32..64).prop_map(|bit| 1 << bit),
        (0u64..64).prop_map(|small| u64::MAX - small),
    ];
    prop_oneof![
        (at(), any::<u8>()).prop_map(|(at, v)| Damage::Byte(at, v)),
        (at(), number).prop_map(|(at, v)| Damage::Number(at, v)),
        at().prop_map(Damage::Cut),
        (at(), vec(any::<u8>(), 1..20)).prop_map(|(at, v)| Damage::Insert(at, v)),
        (at(), 1usize..20).prop_map(|(at, v)| Damage::Remove(at, v)),
    ]
}

fn spoil(bytes: &mut Vec<u8>, damage: &Damage) {
    let position = |at: f64| (bytes.len() as f64 * at) as usize;
    match damage {
        Damage::Byte(at, v) => {
            let at = position(*at);
            bytes.splice(at..bytes.len().min(at + 1), [*v]);
        }
        Damage::Number(at, v) => {
            let at = position(*at);
            bytes.splice(at..bytes.len().min(at + 8), v.to_le_bytes());
        }
        Damage::Cut(at) => bytes.truncate(position(*at)),
        Damage::Insert(at, v) => {
            let at = position(*at);
            bytes.splice(at..at, v.iter().copied());
        }
        Damage::Remove(at, len) => {
            let at = position(*at);
            bytes.drain(at..bytes.len().min(at + len));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn valid_files_come_back(content in content()) {
        let file = Gguf::from_bytes(write(&content)).unwrap();
        let (metadata, tensors, alignment) = &content;
        prop_assert_eq!(file.alignment(), 1 << alignment);
        prop_assert_eq!(file.metadata().len(), metadata.len() + 1);
        for (key, value) in metadata {
            prop_assert!(same(&file, key, value), "{}", key);
        }
        prop_assert_eq!(file.tensors().len(), tensors.len());
        for (name, tensor) in tensors {
            let view = file.view(name).unwrap();
            let dims = dims(tensor);
            prop_assert_eq!((view.ty, view.cols as u64), (tensor.0, dims[0]));
            prop_assert_eq!((view.rows * view.experts) as u64, dims[1..].iter().product::<u64>());
            prop_assert!(view.data.iter().all(|&b| b == tensor.3));
        }
        prop_assert!(exercise(&file) > 0);
    }

    #[test]
    fn spoilt_files_open_or_give_an_error(content in content(), damages in vec(damage(), 1..4)) {
        let mut bytes = write(&content);
        for damage in &damages {
            spoil(&mut bytes, damage);
        }
        match Gguf::from_bytes(bytes) {
            Ok(file) => prop_assert!(exercise(&file) > 0),
            Err(error) => prop_assert!(!error.to_string().is_empty()),
        }
    }

    #[test]
    fn noise_after_the_magic_opens_or_gives_an_error(noise in vec(any::<u8>(), 0..200), small in 0u64..4) {
        let counts = [small.to_le_bytes(), (3 - small).to_le_bytes()].concat();
        let bytes = [b"GGUF\x03\0\0\0".as_slice(), &counts, &noise].concat();
        match Gguf::from_bytes(bytes) {
            Ok(file) => prop_assert!(exercise(&file) > 0),
            Err(error) => prop_assert!(!error.to_string().is_empty()),
        }
    }
}

/// What the fuzzer found interesting stays a test for those who do not run it.
#[test]
fn the_fuzz_corpus_opens_or_gives_an_error() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fuzz/corpus/gguf");
    let (mut good, mut bad) = (0, 0);
    for entry in std::fs::read_dir(corpus).unwrap() {
        match Gguf::from_bytes(std::fs::read(entry.unwrap().path()).unwrap()) {
            Ok(file) => good += usize::from(exercise(&file) > 0),
            Err(error) => bad += usize::from(!error.to_string().is_empty()),
        }
    }
    assert!(good > 0 && bad > 0, "{good} good, {bad} bad");
}
