//! A reference is a user's, and what the hub says of a repository is anybody's: files of it that may be put into a
//! folder, or an error.
//!
//! The input is a line with the reference, then the hub's description.
#![no_main]

use frugal_models::source::{HubRef, wanted_files};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let line = bytes.iter().position(|&b| b == b'\n').unwrap_or(bytes.len());
    let (reference, json) = bytes.split_at(line);
    let reference = String::from_utf8_lossy(reference);
    let reference = match HubRef::parse(&reference) {
        Some(Ok(reference)) => reference,
        Some(Err(error)) => return assert!(!error.to_string().is_empty()),
        None => return assert!(!reference.starts_with("hf:")),
    };
    let again = HubRef::parse(&reference.to_string());
    assert!(again.is_some_and(|again| again.is_ok_and(|again| again == reference)));
    assert!(reference.to_string().contains(&reference.id()));

    let json = json.get(1..).unwrap_or_default();
    let files = match wanted_files(&reference, json) {
        Ok(files) => files,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    assert!(!files.is_empty());
    // What is not looked at is not checked either.
    let Ok(described) = serde_json::from_slice::<serde_json::Value>(json) else { return };
    let siblings = described["siblings"].as_array().expect("files were found in it");
    for file in &files {
        assert!(siblings.iter().any(|sibling| sibling["rfilename"] == file.as_str()));
        assert!(file.to_ascii_lowercase().ends_with(".gguf"));
        let path = std::path::Path::new(file);
        assert!(path.components().all(|part| matches!(part, std::path::Component::Normal(_))), "{file:?}");
        assert!(!file.chars().any(char::is_control));
    }
    let folder = |file: &str| file.rfind('/').map(|at| file[..at].to_owned());
    assert!(files.iter().all(|file| folder(file) == folder(&files[0])), "parts lie beside each other");
});
