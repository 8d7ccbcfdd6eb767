use std::fs;

use super::*;
use crate::gguf::{GgufWriter, Value};
use crate::quant::GgmlType;
use crate::weights::TensorView;

/// What a part says, and its tensors by name, all of four floats with the name's first byte in them.
#[derive(Clone)]
struct Spec {
    no: u16,
    count: u16,
    total: Option<i32>,
    tensors: Vec<&'static str>,
}

fn write(spec: &Spec) -> Vec<u8> {
    let mut writer = GgufWriter::new();
    if spec.no == 0 {
        writer.set("general.architecture", Value::String("llama"));
    } else {
        writer.set("general.architecture", Value::String("not looked at"));
    }
    writer.set(NO, Value::U16(spec.no)).set(COUNT, Value::U16(spec.count));
    if let Some(total) = spec.total {
        writer.set(TENSORS, Value::I32(total));
    }
    for name in &spec.tensors {
        writer.tensor(name, GgmlType::F32, &[4]);
    }
    let mut data = writer.start(Vec::new()).unwrap();
    for name in &spec.tensors {
        data.write(&[name.as_bytes()[0]; 16]).unwrap();
    }
    data.finish()
}

fn specs() -> [Spec; 3] {
    let part =
        |no, tensors: &[&'static str]| Spec { no, count: 3, total: Some(4), tensors: tensors.to_vec() };
    [part(0, &["a", "b"]), part(1, &["c"]), part(2, &["d"])]
}

/// The error's messages, outermost first.
fn refusal(parts: &[Spec]) -> String {
    messages(&Gguf::from_parts(parts.iter().map(write).collect()).expect_err("must be refused"))
}

fn messages(error: &GgufError) -> String {
    let mut all = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(source) = cause {
        all += &format!(": {source}");
        cause = source.source();
    }
    all
}

#[test]
fn names_of_parts() {
    let name = PartName::parse("Model-Q4_K_M-00002-of-00011.gguf").unwrap();
    assert_eq!(name, PartName { prefix: "Model-Q4_K_M", no: 2, count: 11 });
    assert_eq!(name.part(11), "Model-Q4_K_M-00011-of-00011.gguf");
    for other in [
        "model.gguf",
        "m-0001-of-0002.gguf",
        "m-00000-of-00002.gguf",
        "m-00003-of-00002.gguf",
        "m-000+1-of-00002.gguf",
        "m-00001-of-00002.GGUF",
        "m-00001-of-00002",
        "00001-of-00002.gguf",
    ] {
        assert_eq!(PartName::parse(other), None, "{other}");
    }
}

#[test]
fn parts_are_one_model() {
    let file = Gguf::from_parts(specs().iter().map(write).collect()).unwrap();
    assert_eq!((file.parts(), file.tensors().len()), (3, 4));
    assert_eq!(file.str("general.architecture").unwrap(), "llama");
    for name in ["a", "b", "c", "d"] {
        assert_eq!(file.view(name).unwrap().data, [name.as_bytes()[0]; 16], "{name}");
    }
    let bytes: usize = specs().iter().map(|spec| write(spec).len()).sum();
    assert_eq!(file.file_bytes(), bytes as u64);
}

#[test]
fn a_count_of_one_is_no_split() {
    let whole = Spec { no: 0, count: 1, total: None, tensors: vec!["a"] };
    assert_eq!(Gguf::from_bytes(write(&whole)).unwrap().parts(), 1);
}

#[test]
fn the_digest_covers_every_part() {
    let digest = |specs: &[Spec]| Gguf::from_parts(specs.iter().map(write).collect()).unwrap().digest();
    let mut last = specs();
    last[2].tensors = vec!["e"];
    let mut moved = specs();
    moved[0].tensors = vec!["a"];
    moved[1].tensors = vec!["b", "c"];
    let all = [digest(&specs()), digest(&last), digest(&moved)];
    assert!(all[0] != all[1] && all[1] != all[2] && all[0] != all[2]);
    assert_eq!(all[0], digest(&specs()));
}

#[test]
fn parts_that_do_not_belong_together_are_refused() {
    let [a, b, c] = specs();
    let with = |change: &dyn Fn(&mut [Spec; 3])| {
        let mut parts = specs();
        change(&mut parts);
        refusal(&parts)
    };
    let short = refusal(&[a.clone(), b.clone()]);
    assert_eq!(short, "2 parts were given, but the split model has more");
    let long = refusal(&[a.clone(), b.clone(), c.clone(), c.clone()]);
    assert_eq!(long, "4 parts were given, but the split model has only 3");
    let swapped = refusal(&[a.clone(), c.clone(), b.clone()]);
    assert_eq!(swapped, "part 2 of the split model says that it is part 3");
    assert_eq!(refusal(&[b, a, c]), "part 1 of the split model says that it is part 2");
    let count = with(&|parts| parts[1].count = 4);
    assert_eq!(count, "part 2 of the split model says that there are 4 parts, not 3");
    let twice = with(&|parts| parts[2].tensors = vec!["b"]);
    assert_eq!(twice, "tensor b appears twice");
    let few = with(&|parts| parts[2].tensors.clear());
    assert_eq!(few, "the split model should have 4 tensors in all its parts, but 3 were found");
    let other = with(&|parts| parts[1].total = Some(5));
    assert_eq!(other, "the split model should have 4 tensors in all its parts, but 5 were found");
    assert_eq!(with(&|parts| parts[0].total = None), "metadata key split.tensors.count is missing");
    assert_eq!(
        with(&|parts| parts[0].total = Some(-1)),
        "metadata key split.tensors.count is -1, which does not fit in u64"
    );
    assert!(Gguf::from_parts(Vec::new()).is_err());

    // Version 2 differs from 3 in nothing but the number.
    let mut parts: Vec<_> = specs().iter().map(write).collect();
    parts[1][4] = 2;
    let error = Gguf::from_parts(parts).unwrap_err().to_string();
    assert_eq!(error, "part 2 of the split model has GGUF version 2, the first one 3");
}

#[test]
fn a_part_without_its_number_is_refused() {
    let mut parts: Vec<_> = specs().iter().map(write).collect();
    let data = GgufWriter::new().start(Vec::new()).unwrap();
    parts[1] = data.finish();
    let error = messages(&Gguf::from_parts(parts).unwrap_err());
    assert_eq!(error, "part 2 of the split model is unusable: metadata key split.no is missing");
}

#[test]
fn the_first_file_opens_all() {
    let folder = tempfile::tempdir().unwrap();
    let path = |no: u32| folder.path().join(PartName { prefix: "m", no, count: 3 }.part(no));
    let write_all = || {
        for (no, spec) in (1..).zip(&specs()) {
            fs::write(path(no), write(spec)).unwrap();
        }
    };
    write_all();
    assert_eq!(Gguf::open(&path(1)).unwrap().tensors().len(), 4);
    let open = |no| messages(&Gguf::open(&path(no)).unwrap_err());
    assert_eq!(open(3), "this is part 3 of 3 of a split model; give the first one, m-00001-of-00003.gguf");

    fs::remove_file(path(2)).unwrap();
    assert_eq!(open(1), format!("part 2 of 3 of the split model is missing: {}", path(2).display()));
    fs::copy(path(3), path(2)).unwrap();
    assert_eq!(open(1), "part 2 of the split model says that it is part 3");
    fs::write(path(2), "GGUF").unwrap();
    assert!(open(1).starts_with("part m-00002-of-00003.gguf of the split model is unusable: the file ends"));
    fs::remove_file(path(2)).unwrap();
    fs::create_dir(path(2)).unwrap();
    assert!(open(1).contains("is not a regular file"), "{}", open(1));

    let renamed = folder.path().join("renamed.gguf");
    fs::rename(path(1), &renamed).unwrap();
    let error = Gguf::open(&renamed).unwrap_err().to_string();
    assert_eq!(
        error,
        "this is part 1 of 3 of a split model, but its name does not end in -00001-of-00003.gguf"
    );
}

proptest::proptest! {
    #[test]
    fn any_bytes_for_a_part_open_or_give_an_error(
        which in 0usize..3, at in 0usize..400, byte in proptest::prelude::any::<u8>(), cut in 0usize..800
    ) {
        let mut parts: Vec<_> = specs().iter().map(write).collect();
        let part = &mut parts[which];
        let at = at % part.len();
        part[at] = byte;
        part.truncate(cut);
        match Gguf::from_parts(parts) {
            Ok(file) => {
                let mut views = file.tensors().iter().flat_map(|tensor| file.view(&tensor.name));
                let whole = |view: TensorView<'_>| view.data.len() == view.rows * view.experts * view.row_bytes();
                proptest::prop_assert!(views.all(whole));
            }
            Err(error) => proptest::prop_assert!(!error.to_string().is_empty()),
        }
    }

    #[test]
    fn any_name_is_a_part_or_not(name in ".{0,8}-[0-9]{4,6}-of-[0-9]{4,6}(.gguf)?") {
        if let Some(parsed) = PartName::parse(&name) {
            proptest::prop_assert_eq!(parsed.part(parsed.no), name);
        }
    }
}

#[test]
fn a_model_is_all_its_files() {
    let named = |name: &str, parts| files(Path::new(name), parts);
    let all = ["m/a-00001-of-00003.gguf", "m/a-00002-of-00003.gguf", "m/a-00003-of-00003.gguf"];
    assert_eq!(named(all[0], 3), all.map(PathBuf::from));
    // What is named like a part and is whole, and what is not named so.
    for name in [all[0], "m/a.gguf", "", "/"] {
        assert_eq!(named(name, 1), [PathBuf::from(name)]);
    }
}
