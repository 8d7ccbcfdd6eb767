//! A model's bytes are hostile, in one file or several: they open or give an error, and what is open can be read
//! throughout.
#![no_main]

use frugal_models::gguf::{Gguf, Value};
use libfuzzer_sys::fuzz_target;

/// The files of a split model, one after the other: each begins with the magic number.
fn parts(bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut begins: Vec<usize> = (1..bytes.len()).filter(|&at| bytes[at..].starts_with(b"GGUF")).collect();
    begins.insert(0, 0);
    begins.push(bytes.len());
    begins.windows(2).map(|part| bytes[part[0]..part[1]].to_vec()).collect()
}

fuzz_target!(|bytes: &[u8]| {
    let file = match Gguf::from_parts(parts(bytes)) {
        Ok(file) => file,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    for (key, value) in file.metadata() {
        assert_eq!(file.get(key).map(|v| v.ty()), Some(value.ty()));
        if let Value::Array(array) = value {
            assert_eq!(
                array.iter().map(|v| v.ty()).filter(|&ty| ty == array.element_type()).count(),
                array.len()
            );
        }
        // Each of them: a value or an error.
        let _ =
            (file.opt_u32(key), file.opt_u64(key), file.opt_f32(key), file.opt_bool(key), file.opt_str(key));
        let _ = (file.opt_i32_array(key), file.opt_f32_array(key));
        if let Ok(Some(texts)) = file.opt_str_array(key) {
            assert!(texts.map(str::len).sum::<usize>() <= bytes.len());
        }
    }
    for tensor in file.tensors() {
        if let Ok(view) = file.view(&tensor.name) {
            assert_eq!(view.data.len(), view.experts * view.rows * view.row_bytes());
            assert!(view.data.len() <= bytes.len());
        }
        if let Ok(weight) = file.weight(&tensor.name) {
            assert_eq!(weight.packed, tensor.is_packed());
            let rows = if tensor.is_packed() { weight.rows.next_multiple_of(8) } else { weight.rows };
            assert_eq!(weight.data.len(), weight.experts * rows * weight.row_bytes());
        }
    }
    assert!(file.verify(1).is_ok() || file.is_packed());
    assert_eq!(file.digest(), file.digest());
});
