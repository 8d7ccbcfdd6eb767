use std::fs;
use std::path::PathBuf;

use super::*;
use crate::gguf::packed::PACKED;
use crate::quant::GgmlType;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name)
}

/// A packed fixture's bytes.
fn packed() -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("packed.gguf");
    let mut last = (0, 0);
    pack(&fixture("qwen3moe-Q4_K_M.gguf"), &output, 2, |done, total| last = (done, total)).unwrap();
    assert!(last.0 == last.1 && last.0 > 0, "progress ends at the whole");
    fs::read(output).unwrap()
}

/// Replaces bytes that occur once.
fn replaced(bytes: &[u8], old: &[u8], new: &[u8]) -> Vec<u8> {
    let at: Vec<usize> = (0..bytes.len()).filter(|&at| bytes[at..].starts_with(old)).collect();
    assert_eq!(at.len(), 1, "once");
    [&bytes[..at[0]], new, &bytes[at[0] + old.len()..]].concat()
}

#[test]
fn matrices_are_packed_and_nothing_else_changes() {
    let (rows, panels) =
        (Gguf::open(&fixture("qwen3moe-Q4_K_M.gguf")).unwrap(), Gguf::from_bytes(packed()).unwrap());
    panels.verify(3).unwrap();
    assert_eq!(rows.tensors().len(), panels.tensors().len());
    for (was, is) in rows.tensors().iter().zip(panels.tensors()) {
        assert_eq!((&was.name, was.dims, was.ty()), (&is.name, is.dims, is.ty()));
        let view = rows.view(&was.name).unwrap();
        if !is.is_packed() {
            assert!(view.rows == 1 || was.name.ends_with(".bias"), "{}", was.name);
            assert!(view.data == panels.view(&was.name).unwrap().data, "{}", was.name);
            continue;
        }
        assert!(is.type_id == was.type_id + PACKED && is.type_name().ends_with(", packed"));
        assert!(matches!(panels.view(&was.name), Err(GgufError::Packed { tensor }) if tensor == was.name));
        let (weight, format) = (panels.weight(&was.name).unwrap(), format(view.ty));
        let (bytes, each) = (PANEL * view.row_bytes(), view.rows.div_ceil(PANEL));
        let mut row = vec![0; view.row_bytes()];
        for (at, panel) in weight.data.chunks_exact(bytes).enumerate() {
            for r in 0..PANEL.min(view.rows - at % each * PANEL) {
                (format.unpack)(panel, r, &mut row);
                assert!(row == view.row(at / each, at % each * PANEL + r), "{}", was.name);
            }
        }
    }
    for (key, value) in rows.metadata().filter(|(key, _)| *key != "general.alignment") {
        assert!(panels.get(key) == Some(value), "{key}");
    }
}

#[test]
fn damage_and_other_layouts_are_found() {
    let good = packed();
    let verify =
        |bytes: Vec<u8>| Gguf::from_bytes(bytes).and_then(|gguf| gguf.verify(2)).map_err(|e| e.to_string());
    assert_eq!(verify(good.clone()), Ok(()));
    let last = Gguf::from_bytes(good.clone()).unwrap().tensors().last().unwrap().name.clone();
    // The last byte of the file may be padding.
    let at = Gguf::from_bytes(good.clone()).unwrap().tensors().last().unwrap().range().unwrap().end - 1;
    let mut flipped_data = good.clone();
    flipped_data[at] ^= 1;
    assert!(verify(flipped_data).unwrap_err().contains(&last));
    let layout = |n: u32| [LAYOUT_KEY.as_bytes(), &4u32.to_le_bytes(), &n.to_le_bytes()].concat();
    let error = verify(replaced(&good, &layout(LAYOUT), &layout(7))).unwrap_err();
    assert!(error.contains("layout 7") && error.contains("pack the original again"), "{error}");
    let key = CHECKSUM_KEY.as_bytes();
    let error = verify(replaced(&good, key, &[b'x'].repeat(key.len()))).unwrap_err();
    assert!(error.contains("is missing"), "{error}");
}

/// A file in rows may have keys of packed ones, as other programs copy what they do not know.
#[test]
fn keys_of_an_earlier_packing_are_replaced() {
    let original = Gguf::open(&fixture("qwen3moe-Q4_K_M.gguf")).unwrap();
    let mut writer = GgufWriter::new();
    for (key, value) in original.metadata() {
        writer.set(key, value);
    }
    writer.set(LAYOUT_KEY, Value::U32(7)).set_i32s(CHECKSUM_KEY, &[1, 2]);
    for tensor in original.tensors() {
        writer.tensor(&tensor.name, tensor.ty().unwrap(), &tensor.dims[..tensor.dim_count as usize]);
    }
    let mut data = writer.start(Vec::new()).unwrap();
    for tensor in original.tensors() {
        data.write(original.view(&tensor.name).unwrap().data).unwrap();
    }
    let folder = tempfile::tempdir().unwrap();
    let (input, output) = (folder.path().join("in.gguf"), folder.path().join("out.gguf"));
    fs::write(&input, data.finish()).unwrap();
    pack(&input, &output, 1, |_, _| {}).unwrap();
    Gguf::open(&output).unwrap().verify(1).unwrap();
}

#[test]
fn a_packed_file_is_not_packed_again() {
    let folder = tempfile::tempdir().unwrap();
    let (input, output) = (folder.path().join("in.gguf"), folder.path().join("out.gguf"));
    fs::write(&input, packed()).unwrap();
    let again = pack(&input, &output, 1, |_, _| {});
    assert!(matches!(again, Err(PackError::File(GgufError::Packed { .. }))), "{again:?}");
    assert!(!output.exists());
}

/// The size of a packed tensor is that of whole panels, and does not overflow.
#[test]
fn sizes_are_those_of_panels() {
    use crate::gguf::packed::bytes;
    assert_eq!(bytes(GgmlType::F32, true, [3, 9, 2, 1]), Some(3 * 16 * 2 * 4));
    assert_eq!(bytes(GgmlType::F32, false, [3, 9, 2, 1]), Some(3 * 9 * 2 * 4));
    assert_eq!(bytes(GgmlType::F32, true, [1, u64::MAX - 2, 1, 1]), None);
    assert_eq!(bytes(GgmlType::F32, true, [1 << 32, 1 << 31, 1, 1]), None);
}

#[test]
fn a_model_is_not_packed_over_itself() {
    let folder = tempfile::tempdir().unwrap();
    let (input, link) = (folder.path().join("in.gguf"), folder.path().join("link.gguf"));
    let original = fs::read(fixture("qwen3moe-Q4_K_M.gguf")).unwrap();
    fs::write(&input, &original).unwrap();
    std::os::unix::fs::symlink(&input, &link).unwrap();
    for (from, to) in [(&input, &input), (&input, &link), (&link, &input), (&link, &link)] {
        let refused = pack(from, to, 1, |_, _| {});
        assert!(matches!(&refused, Err(PackError::Write(error)) if error.path == *to), "{refused:?}");
    }
    assert!(fs::read(&input).unwrap() == original);
}
