//! A model file that changes under the server.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::process::{Running, fixture, frugal, send};
use crate::watch::{LONG, answer, to_end};

/// A copy that may be spoilt.
fn copy(folder: &Path, name: &str) -> PathBuf {
    let path = folder.join(name);
    fs::copy(fixture(name), &path).expect("a fixture");
    path
}

fn cut(model: &Path) {
    fs::File::options().write(true).open(model).and_then(|file| file.set_len(100)).expect("our file");
}

#[test]
fn a_model_replaced_by_renaming_stays_as_it_was() {
    let folder = tempfile::tempdir().expect("a folder");
    let model = copy(folder.path(), "llama-F32.gguf");
    let server = Running::serve(model.to_str().expect("UTF-8"), &[], &[]);
    let before = answer(&server.address);
    fs::rename(copy(folder.path(), "qwen3-F32.gguf"), &model).expect("our folder");
    assert_eq!(answer(&server.address), before);
    fs::remove_file(model).expect("our file");
    assert_eq!(answer(&server.address), before);
    assert_eq!(server.terminate(), 0);
}

/// Weights that were loaded need no file.
#[test]
fn a_model_cut_short_while_it_is_served_changes_nothing() {
    for name in ["llama-F32.gguf", "qwen3moe-Q4_K_M.gguf"] {
        let folder = tempfile::tempdir().expect("a folder");
        let model = copy(folder.path(), name);
        // Experts that wait are read from the file.
        let all = ["--set", "cpu.lazy_experts=false"];
        let server = Running::serve(model.to_str().expect("UTF-8"), &all, &[]);
        let before = answer(&server.address);
        cut(&model);
        assert_eq!(answer(&server.address), before);
        let text = to_end(send(&server.address, "POST", "/v1/completions", LONG, &[]));
        assert!(text.contains("data: [DONE]"), "{text}");
        assert_eq!(server.terminate(), 0);
    }
}

/// Packed weights are used where they lie: another file under their name changes nothing, bytes that are gone end the process.
#[test]
fn a_packed_model_is_read_for_as_long_as_it_is_served() {
    let folder = tempfile::tempdir().expect("a folder");
    let [first, second] = ["first.gguf", "second.gguf"].map(|name| folder.path().join(name));
    let pack = ["pack", &fixture("qwen3moe-Q4_K_M.gguf"), first.to_str().expect("UTF-8")];
    assert!(frugal(&pack, &[]).status().expect("the binary runs").success());
    fs::copy(&first, &second).expect("our folder");
    let server = Running::serve(second.to_str().expect("UTF-8"), &[], &[]);
    let before = answer(&server.address);
    fs::rename(copy(folder.path(), "llama-F32.gguf"), &second).expect("our folder");
    assert_eq!(answer(&server.address), before);
    assert_eq!(server.terminate(), 0);

    let server = Running::serve(first.to_str().expect("UTF-8"), &[], &[]);
    assert_eq!(answer(&server.address), before);
    cut(&first);
    drop(to_end(send(&server.address, "POST", "/v1/completions", LONG, &[])));
    assert_eq!(server.wait(), 4);
}

/// Where it is cut decides what becomes of it; that nothing ends silently holds everywhere.
#[test]
fn a_model_cut_short_while_it_is_loaded_ends_with_a_code() {
    let folder = tempfile::tempdir().expect("a folder");
    let whole = folder.path().join("whole.gguf");
    let made = whole.to_str().expect("UTF-8");
    let upcycle = ["upcycle", &fixture("llama-Q4_K_M.gguf"), made, "--experts", "64", "--top-k", "2"];
    assert!(frugal(&upcycle, &[]).status().expect("the binary runs").success());
    let mut lost = false;
    for attempt in 0..60 {
        let model = folder.path().join("model.gguf");
        fs::copy(&whole, &model).expect("our folder");
        let mut command = frugal(&["serve", "--port", "0", "--threads", "1", "--kv-memory", "4MiB"], &[]);
        command.args(["--model".as_ref(), model.as_os_str()]).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the binary runs");
        let mut log = BufReader::new(child.stderr.take().expect("a pipe"));
        let mut said = String::new();
        while !said.contains("loading") {
            assert!(log.read_line(&mut said).expect("UTF-8") > 0, "{said}");
        }
        // Sooner or later it is met while it reads.
        let (begin, delay) = (Instant::now(), Duration::from_millis(attempt * 2));
        while begin.elapsed() < delay {
            std::thread::yield_now();
        }
        cut(&model);
        // If it had loaded all, it serves.
        let mut announced = String::new();
        BufReader::new(child.stdout.take().expect("a pipe")).read_line(&mut announced).expect("UTF-8");
        if announced.starts_with("Serving") {
            Command::new("kill").arg(child.id().to_string()).status().expect("kill runs");
        }
        log.read_to_string(&mut said).expect("UTF-8");
        let status = child.wait().expect("an end");
        match status.code() {
            Some(0) => {}
            Some(1) => assert!(said.contains("frugal: cannot"), "{said}"),
            Some(4) => {
                assert!(said.contains("frugal: a model file was cut short"), "{said}");
                lost = true;
                break;
            }
            _ => panic!("{status}: {said}"),
        }
    }
    assert!(lost, "it was never met while it read");
}
