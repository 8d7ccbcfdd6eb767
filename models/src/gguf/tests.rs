use super::*;

/// A header byte by byte, so that every lie can be told.
#[derive(Clone)]
struct Raw(Vec<u8>);

impl Raw {
    fn new(version: u32, tensors: u64, entries: u64) -> Self {
        Self(b"GGUF".to_vec()).u32(version).u64(tensors).u64(entries)
    }
    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }
    fn u32(self, v: u32) -> Self {
        self.bytes(&v.to_le_bytes())
    }
    fn u64(self, v: u64) -> Self {
        self.bytes(&v.to_le_bytes())
    }
    fn text(self, text: &[u8]) -> Self {
        self.u64(text.len() as u64).bytes(text)
    }
    fn entry(self, key: &str, ty: ValueType) -> Self {
        self.text(key.as_bytes()).u32(ty.id())
    }
    fn tensor(self, name: &str, dims: &[u64], ty: u32, offset: u64) -> Self {
        let all = self.text(name.as_bytes()).u32(dims.len() as u32);
        dims.iter().fold(all, |all, &d| all.u64(d)).u32(ty).u64(offset)
    }
    fn data(mut self, len: usize) -> Self {
        let begin = self.0.len().next_multiple_of(32);
        self.0.resize(begin + len, 7);
        self
    }
    fn open(self) -> Result<Gguf, GgufError> {
        Gguf::from_bytes(self.0)
    }
}

/// Asserts that the file is refused with this variant and that the message names what is at fault.
macro_rules! refused {
    ($raw:expr, $variant:pat, $($word:literal),*) => {{
        let error = $raw.open().expect_err("must be refused");
        assert!(matches!(error, $variant), "{error:?}");
        let _message = error.to_string();
        $(assert!(_message.contains($word), "{_message}");)*
    }};
}

fn sample() -> Vec<u8> {
    let mut writer = GgufWriter::new();
    writer
        .set("general.architecture", Value::String("llama"))
        .set("a.u8", Value::U8(200))
        .set("a.i8", Value::I8(-3))
        .set("a.u16", Value::U16(60_000))
        .set("a.i16", Value::I16(-3))
        .set("a.u32", Value::U32(4_000_000_000))
        .set("a.i32", Value::I32(-7))
        .set("a.u64", Value::U64(u64::MAX))
        .set("a.i64", Value::I64(9))
        .set("a.f32", Value::F32(0.5))
        .set("a.f64", Value::F64(0.25))
        .set("a.bool", Value::Bool(true))
        .set_strings("a.strings", &["", "héllo", "x"])
        .set_i32s("a.i32s", &[1, -2])
        .set_f32s("a.f32s", &[1.5, f32::NEG_INFINITY])
        .tensor("norm", GgmlType::F32, &[3])
        .tensor("mat", GgmlType::Q4_0, &[64, 2])
        .tensor("exps", GgmlType::F16, &[2, 3, 4]);
    let mut data = writer.start(Vec::new()).unwrap();
    data.write(&[1.0f32, 2.0, 3.0].map(f32::to_le_bytes).concat()).unwrap();
    data.write(&[1; 36]).unwrap();
    data.write(&[2; 36]).unwrap();
    data.write(&[3; 48]).unwrap();
    data.finish()
}

#[test]
fn what_is_written_is_read() {
    let file = Gguf::from_bytes(sample()).unwrap();
    assert_eq!((file.version(), file.alignment(), file.tensors().len()), (3, 32, 3));
    assert_eq!(file.str("general.architecture").unwrap(), "llama");
    assert_eq!(file.u32("a.u8").unwrap(), 200);
    assert_eq!(file.u32("a.u32").unwrap(), 4_000_000_000);
    assert_eq!(file.u32("a.i64").unwrap(), 9);
    assert_eq!(file.u64("a.u64").unwrap(), u64::MAX);
    assert_eq!((file.f32("a.f32").unwrap(), file.f32("a.f64").unwrap()), (0.5, 0.25));
    assert!(file.bool("a.bool").unwrap());
    let strings: Vec<&str> = file.str_array("a.strings").unwrap().collect();
    assert_eq!(strings, ["", "héllo", "x"]);
    assert_eq!(file.str_array("a.strings").unwrap().len(), 3);
    assert_eq!(file.i32_array("a.i32s").unwrap(), [1, -2]);
    assert_eq!(file.f32_array("a.f32s").unwrap(), [1.5, f32::NEG_INFINITY]);

    let norm = file.view("norm").unwrap();
    assert_eq!((norm.cols, norm.rows, norm.experts, norm.ty), (3, 1, 1, GgmlType::F32));
    assert_eq!(norm.data[4..8], 2.0f32.to_le_bytes());
    let mat = file.view("mat").unwrap();
    assert_eq!((mat.cols, mat.rows, mat.row_bytes()), (64, 2, 36));
    assert_eq!((mat.row(0, 0), mat.row(0, 1)), (&[1u8; 36][..], &[2u8; 36][..]));
    let exps = file.view("exps").unwrap();
    assert_eq!((exps.cols, exps.rows, exps.experts), (2, 3, 4));
    assert_eq!((exps.expert(3).data.len(), exps.expert(3).experts), (12, 1));
    assert_eq!(file.tensor("mat").unwrap().range().unwrap().len(), 72);
}

#[test]
fn absent_and_mistyped_keys_are_named() {
    let file = Gguf::from_bytes(sample()).unwrap();
    assert_eq!(file.opt_u32("no").unwrap(), None);
    assert!(file.opt_str_array("no").unwrap().is_none());
    assert_eq!(file.opt_f32_array("no").unwrap(), None);
    let message = |e: GgufError| e.to_string();
    assert_eq!(message(file.u32("no").unwrap_err()), "metadata key no is missing");
    assert_eq!(message(file.opt_u32("a.f32").unwrap_err()), "metadata key a.f32 must be an integer, not f32");
    assert_eq!(
        message(file.u32("a.i32").unwrap_err()),
        "metadata key a.i32 is -7, which does not fit in u32"
    );
    assert_eq!(message(file.f32("a.u8").unwrap_err()), "metadata key a.u8 must be a float, not u8");
    assert_eq!(message(file.bool("a.u8").unwrap_err()), "metadata key a.u8 must be a bool, not u8");
    assert_eq!(
        message(file.str("a.i32s").unwrap_err()),
        "metadata key a.i32s must be a string, not array of i32"
    );
    let wrong = file.str_array("a.i32s").map(|_| ()).unwrap_err();
    assert_eq!(message(wrong), "metadata key a.i32s must be an array of strings, not array of i32");
    assert!(matches!(file.i32_array("a.f32s"), Err(GgufError::WrongType { .. })));
    assert!(matches!(file.f32_array("a.strings"), Err(GgufError::WrongType { .. })));
    let message = file.view("no").unwrap_err().to_string();
    assert_eq!(message, "tensor no is missing");
}

#[test]
fn metadata_copies_verbatim() {
    let file = Gguf::from_bytes(sample()).unwrap();
    let mut writer = GgufWriter::new();
    for (key, value) in file.metadata() {
        writer.set(key, value);
    }
    let copy = Gguf::from_bytes(writer.start(Vec::new()).unwrap().finish()).unwrap();
    assert!(file.metadata().eq(copy.metadata()));
    assert_eq!(copy.metadata().len(), 15);
}

#[test]
fn files_of_version_2_are_read() {
    let raw = Raw::new(2, 1, 0).tensor("t", &[4], 0, 0).data(16);
    let file = raw.open().unwrap();
    assert_eq!((file.version(), file.view("t").unwrap().data), (2, &[7u8; 16][..]));
}

#[test]
fn other_files_are_refused() {
    for (bytes, word) in [
        (b"".as_slice(), "not a GGUF file: it is empty"),
        (b"GGU", "not a GGUF file"),
        (b"PK\x03\x04", "PyTorch"),
        (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
        (b"<!DOCTYPE html>", "web page"),
        (b"\x40\0\0\0\0\0\0\0{\"__metadata__\"", "safetensors"),
        (b"tjgg\x03\0\0\0", "GGML"),
    ] {
        let error = Raw(bytes.to_vec()).open().unwrap_err();
        assert!(matches!(error, GgufError::NotGguf { .. }) && error.to_string().contains(word), "{error}");
    }
    refused!(Raw(b"GGUF".to_vec()), GgufError::Truncated { .. }, "the version");
    refused!(Raw::new(1, 0, 0), GgufError::Version(1), "version 1");
    refused!(Raw::new(4, 0, 0), GgufError::Version(4), "version 4");
    refused!(Raw::new(3u32.swap_bytes(), 0, 0), GgufError::BigEndian, "big-endian");
    refused!(Raw::new(2u32.swap_bytes(), 0, 0), GgufError::BigEndian,);
}

#[test]
fn every_truncation_is_refused() {
    let whole = sample();
    // The last tensor's padding is not needed.
    let end = Gguf::from_bytes(whole.clone()).unwrap().tensor("exps").unwrap().range().unwrap().end;
    assert!(end < whole.len());
    for len in 0..end {
        assert!(Gguf::from_bytes(whole[..len].to_vec()).is_err(), "{len} bytes of {end}");
    }
    assert!(Gguf::from_bytes(whole[..end].to_vec()).is_ok());
}

#[test]
fn absurd_counts_are_refused() {
    // By what is left of the file, at 32 bytes a tensor and 13 an entry, or by what any model has.
    for (tensors, entries, left, words) in [
        (u64::MAX, 0, 0, "18446744073709551615 tensors, but at most 0"),
        (1 << 40, 0, 64, "1099511627776 tensors, but at most 2"),
        ((1 << 20) + 1, 0, 64 << 20, "1048577 tensors, but at most 1048576"),
        (0, 1 << 40, 26, "1099511627776 metadata entries, but at most 2"),
        (0, (1 << 16) + 1, 1 << 20, "65537 metadata entries, but at most 65536"),
    ] {
        let error = Raw::new(3, tensors, entries).bytes(&vec![0; left]).open().unwrap_err();
        assert!(matches!(error, GgufError::AbsurdCount { .. }), "{error:?}");
        assert!(error.to_string().contains(words), "{error}");
    }
    // As many as may be are read.
    let key = |raw: Raw, i: u64| raw.entry(&i.to_string(), ValueType::U8).bytes(&[1]);
    assert_eq!((0..1 << 16).fold(Raw::new(3, 0, 1 << 16), key).open().unwrap().metadata().len(), 1 << 16);
    let array = |ty: ValueType, len| Raw::new(3, 0, 1).entry("k", ValueType::Array).u32(ty.id()).u64(len);
    for ty in [ValueType::U8, ValueType::U64, ValueType::String, ValueType::Bool] {
        refused!(array(ty, u64::MAX), GgufError::AbsurdCount { .. }, "key k");
        refused!(array(ty, u64::MAX / 8 + 1).bytes(&[0; 64]), GgufError::AbsurdCount { .. }, "key k");
        refused!(array(ty, 65).bytes(&[0; 64]), GgufError::AbsurdCount { .. }, "65");
    }
    let long_key = Raw::new(3, 0, 1).u64(u64::MAX).bytes(&[b'a'; 64]);
    refused!(long_key, GgufError::Truncated { .. }, "key of metadata entry 0");
    let long_value = Raw::new(3, 0, 1).entry("k", ValueType::String).u64(u64::MAX - 8).bytes(b"abc");
    refused!(long_value, GgufError::Truncated { .. }, "key k");
    let huge = array(ValueType::U8, 200 << 20);
    refused!(huge.bytes(&vec![0; 200 << 20]), GgufError::HeaderTooLarge { .. }, "134217728");
}

#[test]
fn bad_metadata_is_refused() {
    let one = || Raw::new(3, 0, 1);
    refused!(one().text(b"k\xff").u32(0).bytes(&[1]), GgufError::NotUtf8 { .. }, "metadata entry 0");
    let value = one().entry("k", ValueType::String).text(b"\xc3");
    refused!(value, GgufError::NotUtf8 { .. }, "metadata key k");
    let strings = one().entry("k", ValueType::Array).u32(8).u64(2).text(b"ok").text(b"\xff");
    refused!(strings, GgufError::NotUtf8 { .. }, "element 1 of metadata key k");
    refused!(one().text(b"k").u32(13).u64(0), GgufError::UnknownValueType { id: 13, .. }, "key k");
    let array = one().entry("k", ValueType::Array);
    refused!(array.clone().u32(99).u64(0), GgufError::UnknownValueType { id: 99, .. }, "key k");
    refused!(array.u32(9).u64(0), GgufError::NestedArray { .. }, "key k");
    refused!(one().entry("k", ValueType::Bool).bytes(&[2]), GgufError::BadBool { value: 2, .. }, "key k");
    let bools = one().entry("k", ValueType::Array).u32(7).u64(3).bytes(&[0, 1, 3]);
    refused!(bools, GgufError::BadBool { value: 3, .. }, "key k");
    let twice = Raw::new(3, 0, 2).entry("k", ValueType::U8).bytes(&[1]).entry("k", ValueType::I8).bytes(&[1]);
    refused!(twice, GgufError::DuplicateKey { .. }, "key k");
    for bad in [0u32, 3, 31] {
        let raw = one().entry("general.alignment", ValueType::U32).u32(bad);
        refused!(raw, GgufError::BadAlignment { .. }, "power of two");
    }
    let text = one().entry("general.alignment", ValueType::String).text(b"32");
    refused!(text, GgufError::BadAlignment { .. }, "string");
    let wide = one().entry("general.alignment", ValueType::U64).u64(1 << 40);
    refused!(wide, GgufError::BadAlignment { .. }, "1099511627776");
}

#[test]
fn bad_tensors_are_refused() {
    let one = || Raw::new(3, 1, 0);
    let name = one().text(b"\xff\xfe").u32(1).u64(4).u32(0).u64(0).data(16);
    refused!(name, GgufError::NotUtf8 { .. }, "tensor 0");
    for dims in [0, 5, u32::MAX] {
        let raw = one().text(b"t").u32(dims).bytes(&[1; 64]);
        refused!(raw, GgufError::DimensionCount { .. }, "tensor t");
    }
    refused!(one().tensor("t", &[4, 0], 0, 0).data(16), GgufError::EmptyTensor { .. }, "tensor t");
    for dims in [[1 << 32, 1 << 32], [u64::MAX, 2], [1 << 62, 2]] {
        refused!(one().tensor("t", &dims, 0, 0).data(16), GgufError::SizeOverflow { .. }, "tensor t");
    }
    // Elements fit in 64 bits, bytes do not.
    refused!(one().tensor("t", &[1 << 62], 0, 0).data(16), GgufError::SizeOverflow { .. }, "tensor t");
    refused!(one().tensor("t", &[48], 2, 0).data(99), GgufError::PartialBlock { .. }, "t", "48", "Q4_0");
    refused!(one().tensor("t", &[128, 2], 12, 0).data(999), GgufError::PartialBlock { .. }, "Q4_K", "256");
    refused!(one().tensor("t", &[4], 0, 8).data(99), GgufError::Misaligned { offset: 8, .. }, "tensor t");
    refused!(one().tensor("t", &[4], 0, 0).data(15), GgufError::OutOfFile { bytes: 16, .. }, "tensor t");
    refused!(one().tensor("t", &[4], 0, 32).data(32), GgufError::OutOfFile { offset: 32, .. }, "tensor t");
    let far = u64::MAX - 31;
    refused!(one().tensor("t", &[4], 0, far).data(32), GgufError::OutOfFile { .. }, "tensor t");
    refused!(one().tensor("t", &[4], 99, 32).data(32), GgufError::OutOfFile { .. }, "tensor t");
    refused!(one().tensor("t", &[4], 0, 0), GgufError::OutOfFile { .. }, "tensor t");

    let two = |a: &str, b: &str, at| Raw::new(3, 2, 0).tensor(a, &[9], 0, 0).tensor(b, &[2], 0, at).data(99);
    refused!(two("t", "t", 64), GgufError::DuplicateTensor { .. }, "tensor t");
    refused!(two("t", "u", 32), GgufError::Overlap { .. }, "t and u");
    refused!(two("t", "u", 0), GgufError::Overlap { .. }, "t and u");
    assert!(two("t", "u", 64).open().is_ok());
    let unknown = Raw::new(3, 2, 0).tensor("t", &[9], 0, 0).tensor("u", &[2], 99, 32).data(99);
    refused!(unknown, GgufError::Overlap { .. }, "t and u");
}

#[test]
fn unusable_tensors_are_listed_and_refused_when_used() {
    let raw = Raw::new(3, 3, 0).tensor("iq", &[33], 16, 0).tensor("new", &[32], 777, 32).tensor(
        "deep",
        &[1, 1, 1, 2],
        0,
        64,
    );
    let file = raw.data(99).open().unwrap();
    assert_eq!(file.tensor("iq").unwrap().type_name(), "IQ2_XXS");
    assert_eq!(file.tensor("iq").unwrap().range(), None);
    let message = |name: &str| file.view(name).unwrap_err().to_string();
    assert_eq!(message("iq"), "tensor iq has the type IQ2_XXS, which is not supported");
    assert_eq!(message("new"), "tensor new has the type number 777, which is not supported");
    assert_eq!(message("deep"), "tensor deep has four dimensions; at most three are supported");
}

#[test]
fn other_alignments_are_honoured() {
    for alignment in [1u32, 2, 64, 4096] {
        let mut writer = GgufWriter::new();
        writer.set("general.alignment", Value::U32(alignment));
        writer.tensor("a", GgmlType::F16, &[1]).tensor("b", GgmlType::Q8_0, &[32]);
        let mut data = writer.start(Vec::new()).unwrap();
        data.write(&[1, 2]).unwrap();
        data.write(&[5; 30]).unwrap();
        data.write(&[6; 4]).unwrap();
        let file = Gguf::from_bytes(data.finish()).unwrap();
        assert_eq!(file.alignment(), u64::from(alignment));
        assert_eq!(file.view("a").unwrap().data, [1, 2]);
        assert_eq!(file.view("b").unwrap().data, [[5; 30].as_slice(), &[6; 4]].concat());
    }
}

#[test]
fn paths_that_are_no_files_are_named() {
    let gone = Gguf::open(Path::new("/nonexistent/model.gguf")).unwrap_err();
    assert_eq!(gone.to_string(), "cannot read /nonexistent/model.gguf");
    assert!(matches!(gone, GgufError::Io { .. }));
    let folder = Gguf::open(Path::new(env!("CARGO_MANIFEST_DIR"))).unwrap_err();
    assert!(matches!(folder, GgufError::NotAFile { .. }));
    let source = Gguf::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")).unwrap_err();
    assert!(matches!(source, GgufError::NotGguf { .. }));
}

#[test]
fn released_memory_reads_the_same_again() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let data: Vec<u8> = (0..64 << 10).map(|i| (i % 251) as u8).collect();
    let mut writer = GgufWriter::new();
    writer.tensor("t", GgmlType::F32, &[16 << 10]);
    let mut out = writer.start(Vec::new()).unwrap();
    out.write(&data).unwrap();
    let bytes = out.finish();
    std::fs::write(file.path(), &bytes).unwrap();
    for gguf in [Gguf::open(file.path()).unwrap(), Gguf::from_bytes(bytes).unwrap()] {
        let view = gguf.view("t").unwrap();
        assert!(view.data == data);
        gguf.release();
        assert!(view.data == data);
    }
}

#[test]
fn digest_tells_models_apart() {
    let build = |key: &str, byte: usize| {
        let mut writer = GgufWriter::new();
        writer.set("name", Value::String(key)).tensor("big", GgmlType::F32, &[256, 256]);
        writer.tensor("small", GgmlType::F32, &[16]);
        let mut bytes = vec![0u8; 256 * 256 * 4 + 64];
        bytes[byte] = 1;
        let mut data = writer.start(Vec::new()).unwrap();
        data.write(&bytes[..256 * 256 * 4]).unwrap();
        data.write(&bytes[256 * 256 * 4..]).unwrap();
        Gguf::from_bytes(data.finish()).unwrap().digest()
    };
    let big = 256 * 256 * 4;
    assert_eq!(build("a", 5), build("a", 5));
    let all = [build("a", 0), build("b", 0), build("a", 4095), build("a", big - 1), build("a", big + 63)];
    for (i, digest) in all.iter().enumerate() {
        assert!(!all[..i].contains(digest), "{i}");
    }
}

#[test]
fn a_hidden_entry_is_gone_and_the_others_stay() {
    let mut writer = GgufWriter::new();
    writer.set("a", Value::U32(1)).set("b", Value::U32(2)).set("c", Value::U32(3));
    let mut file = Gguf::from_bytes(writer.start(Vec::new()).unwrap().finish()).unwrap();
    assert!(file.hide("b") && !file.hide("b") && !file.hide("d"));
    assert_eq!((file.u32("a").unwrap(), file.get("b"), file.u32("c").unwrap()), (1, None, 3));
    assert_eq!(file.metadata().map(|(key, _)| key).collect::<Vec<_>>(), ["a", "c"]);
}
