//! The files of a split model are hostile, their names are ours: under the right names they open as they do in memory,
//! under others they do not.
//!
//! The input is a byte that says what is done to the names, then the parts, each of which begins with the magic number.
#![no_main]

use frugal_models::gguf::{Gguf, PartName};
use libfuzzer_sys::fuzz_target;

fn parts(bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut begins: Vec<usize> = (1..bytes.len()).filter(|&at| bytes[at..].starts_with(b"GGUF")).collect();
    begins.insert(0, 0);
    begins.push(bytes.len());
    begins.windows(2).map(|part| bytes[part[0]..part[1]].to_vec()).collect()
}

fuzz_target!(|bytes: &[u8]| {
    let Some((&how, bytes)) = bytes.split_first() else { return };
    let parts = parts(bytes);
    let count = parts.len() as u32;
    if count > 9 {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder for temporary files");
    let named = PartName { prefix: "model", no: 1, count };
    let paths: Vec<_> = (1..=count).map(|no| folder.path().join(named.part(no))).collect();
    for (path, part) in paths.iter().zip(&parts) {
        std::fs::write(path, part).expect("room for temporary files");
    }
    let memory = Gguf::from_parts(parts);
    match how % 4 {
        0 | 1 => {
            let opened = Gguf::open(&paths[0]);
            let (opened, memory) = match (opened, memory) {
                (Ok(opened), Ok(memory)) => (opened, memory),
                // In memory no file may be left over; other files of a folder are no concern of the model's.
                (Ok(opened), Err(_)) => return assert!(opened.parts() < paths.len()),
                (Err(error), Ok(_)) => panic!("{error}"),
                (Err(error), Err(_)) => return assert!(!error.to_string().is_empty()),
            };
            assert_eq!(opened.digest(), memory.digest());
            assert_eq!(opened.parts(), paths.len());
            for tensor in memory.tensors() {
                let view = |file: &Gguf| file.view(&tensor.name).map(|view| view.data.to_vec()).ok();
                assert_eq!(view(&opened), view(&memory));
            }
        }
        // Another part first, another number of parts, or one too few: an error, if it is split at all.
        wrong if count > 1 => {
            let first = match wrong {
                2 => paths[1].clone(),
                _ => {
                    std::fs::remove_file(&paths[paths.len() - 1]).expect("it is there");
                    paths[0].clone()
                }
            };
            assert!(Gguf::open(&first).is_err() || memory.is_err());
        }
        _ => {}
    }
});
