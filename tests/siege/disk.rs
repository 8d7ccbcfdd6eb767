//! Disks that are full, read-only or limited, for every path that is written: nothing half-made stays, and one line says why.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::hub::{Repo, Server as Hub};
use crate::process::{Running, fixture, frugal, skip};
use crate::watch::answer;

/// A file system of a megabyte, which only the child sees and which goes with it.
const TINY: &str = "mount -t tmpfs -o size=1m tmpfs \"$PLACE\" && ";
const READ_ONLY: &str = "mount -t tmpfs -o ro tmpfs \"$PLACE\" && ";

/// Runs a command with `place` mounted as told; None, said aloud, where the system forbids it.
fn mounted(how: &str, place: &Path, command: &Command) -> Option<Output> {
    let mut shell = Command::new("unshare");
    shell.args(["--mount", "sh", "-c", &format!("{how} exec \"$@\""), "sh"]).arg(command.get_program());
    shell.args(command.get_args()).env_clear().env("PLACE", place);
    shell.env("PATH", std::env::var_os("PATH").unwrap_or_default());
    shell.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let possible =
        Command::new("unshare").args(["--mount", "mount", "-t", "tmpfs", "tmpfs"]).arg(place).output();
    if !possible.is_ok_and(|tried| tried.status.success()) {
        skip("full disks: nothing can be mounted here");
        return None;
    }
    Some(shell.stdin(Stdio::null()).output().expect("a shell"))
}

/// An end with 1 and one line that names the path and the reason.
fn refused(output: &Output, parts: &[&str]) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    let line = stderr.lines().last().expect("a line");
    assert!(line.starts_with("frugal: ") && parts.iter().all(|part| line.contains(part)), "{stderr}");
}

/// Names of files below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder").flatten() {
            let path = entry.path();
            if path.is_dir() { folders.push(path) } else { found.push(path) }
        }
    }
    found
}

fn upcycle(to: &str) -> Command {
    frugal(&["upcycle", &fixture("llama-Q4_K_M.gguf"), to, "--experts", "64", "--top-k", "2"], &[])
}

#[test]
fn an_upcycled_model() {
    let folder = tempfile::tempdir().expect("a folder");
    let made = folder.path().join("made.gguf");
    let made = made.to_str().expect("UTF-8");
    let Some(full) = mounted(TINY, folder.path(), &upcycle(made)) else { return };
    refused(&full, &[made, "No space left"]);
    let read_only = mounted(READ_ONLY, folder.path(), &upcycle(made)).expect("as before");
    refused(&read_only, &[made, "Read-only file system"]);
}

#[test]
fn a_limit_of_file_sizes_is_an_error_and_leaves_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let made = folder.path().join("made.gguf");
    let command = upcycle(made.to_str().expect("UTF-8"));
    let mut shell = Command::new("sh");
    shell
        .args(["-c", "ulimit -f 2000 && exec \"$@\"", "sh"])
        .arg(command.get_program())
        .args(command.get_args());
    refused(&shell.output().expect("a shell"), &["made.gguf", "File too large"]);
    assert!(files(folder.path()).is_empty());
}

#[test]
fn upcycling_that_was_killed_is_cleaned_up_by_the_next() {
    let folder = tempfile::tempdir().expect("a folder");
    let made = folder.path().join("made.gguf");
    let left =
        || files(folder.path()).into_iter().filter(|file| file.extension().is_some_and(|e| e == "tmp"));
    for _ in 0..100 {
        let mut child = upcycle(made.to_str().expect("UTF-8")).spawn().expect("the binary runs");
        let begun = || left().any(|file| fs::metadata(file).is_ok_and(|data| data.len() > 0));
        while !begun() && child.try_wait().expect("a child").is_none() {}
        child.kill().expect("our child");
        child.wait().expect("an end");
        if left().next().is_some() {
            break;
        }
        // It was done before it could be killed.
        fs::remove_file(&made).expect("what it made");
    }
    assert!(left().next().is_some() && !made.exists(), "killed in the middle");
    assert!(upcycle(made.to_str().expect("UTF-8")).status().expect("the binary runs").success());
    assert_eq!(files(folder.path()), [made]);
}

/// A stand-in for pip that downloads more than there is room for.
fn endless_pip(folder: &Path) -> PathBuf {
    let script = "#!/bin/sh\n[ \"$3\" = --version ] && exit 0\nwhile [ $# -gt 1 ]; do [ \"$1\" = --dest ] && to=$2; shift; done\n\
                  exec head -c 8000000 /dev/zero >\"$to/wheel\"\n";
    let bin = folder.join("bin");
    fs::create_dir_all(&bin).expect("a folder");
    let pip = bin.join("python3");
    fs::write(&pip, script).expect("a file");
    fs::set_permissions(&pip, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("a script");
    bin
}

#[test]
fn the_default_model() {
    let folder = tempfile::tempdir().expect("a folder");
    let cache = folder.path().join("cache");
    fs::create_dir_all(&cache).expect("a folder");
    let bin = endless_pip(folder.path());
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap_or_default());
    let set = format!("model.cache_dir={}", cache.display());
    let serve = || {
        let mut shell = Command::new("env");
        shell.arg(format!("PATH={path}")).arg(env!("CARGO_BIN_EXE_frugal"));
        shell.args(["serve", "--port", "0", "--set", &set]);
        shell
    };
    let Some(full) = mounted(TINY, &cache, &serve()) else { return };
    refused(&full, &["cannot get the default model", "No space left"]);
    let read_only = mounted(READ_ONLY, &cache, &serve()).expect("as before");
    refused(
        &read_only,
        &["cannot get the default model", cache.to_str().expect("UTF-8"), "Read-only file system"],
    );
}

#[test]
fn a_download() {
    let folder = tempfile::tempdir().expect("a folder");
    let cache = folder.path().to_str().expect("UTF-8");
    let model = fs::read(fixture("qwen3moe-Q4_K_M.gguf")).expect("a fixture");
    let hub = Hub::start(move |request, _| Repo(vec![("m-Q4_K_M.gguf", model.clone())]).reply(request));
    let url = hub.url();
    let env = [("HF_HUB_CACHE", cache), ("HF_ENDPOINT", &url)];
    let serve = || frugal(&["serve", "--port", "0", "--model", "hf:o/r", "--threads", "1"], &env);
    let Some(full) = mounted(TINY, folder.path(), &serve()) else { return };
    refused(&full, &["cannot get hf:o/r", "incomplete", "No space left"]);
    let read_only = mounted(READ_ONLY, folder.path(), &serve()).expect("as before");
    refused(&read_only, &["cannot get hf:o/r", "Read-only file system"]);

    // Killed in the middle, it goes on where it was; a content that was damaged meanwhile is fetched again.
    let blobs = folder.path().join("models--o--r/blobs");
    fs::create_dir_all(&blobs).expect("a folder");
    let sha256 = crate::hub::sha256(&fs::read(fixture("qwen3moe-Q4_K_M.gguf")).expect("a fixture"));
    fs::write(blobs.join(format!("{sha256}.incomplete")), [7; 1000]).expect("a file");
    let server = Running::launch(serve());
    answer(&server.address);
    assert_eq!(server.terminate(), 0);
    let left: Vec<_> = files(&blobs);
    assert_eq!(left, [blobs.join(sha256)]);
}

#[test]
fn a_log_that_cannot_be_written_stops_nothing() {
    let serve = |stderr: Stdio| {
        let model = fixture("qwen3moe-Q4_K_M.gguf");
        let log = ["--set", "log.level=trace", "--threads", "1", "--kv-memory", "64MiB"];
        let mut command = frugal(&[&["serve", "--model", &model, "--port", "0"], &log[..]].concat(), &[]);
        command.stderr(stderr);
        Running::start_with(command)
    };
    let full = serve(fs::File::options().write(true).open("/dev/full").expect("Linux").into());
    answer(&full.address);
    assert_eq!(full.terminate(), 0);
    // A collector that has stopped reading: far more is logged than a pipe holds.
    let (reader, writer) = std::io::pipe().expect("a pipe");
    let stuck = serve(writer.into());
    for _ in 0..20 {
        crate::process::post(
            &stuck.address,
            "/v1/completions",
            r#"{"prompt":"hi","max_tokens":400,"ignore_eos":true}"#,
            &[],
        );
    }
    answer(&stuck.address);
    assert_eq!(stuck.terminate(), 0);
    drop(reader);
}

#[test]
fn output_that_cannot_be_written_is_a_failure() {
    let model = fixture("qwen3moe-Q4_K_M.gguf");
    let tiny =
        ["--prompt", "8", "--decode", "2", "--depth", "4", "--batches", "1", "--runs", "1", "--threads", "1"];
    for args in [
        &[&["bench", "--model", &model, "--json"][..], &tiny].concat()[..],
        &["inspect", &model],
        &["inspect", "--json", &model],
        &["config"],
        &["serve", "--port", "0", "--threads", "1", "--model", &model],
    ] {
        let full = fs::File::options().write(true).open("/dev/full").expect("Linux");
        let output = frugal(args, &[]).stdin(Stdio::null()).stdout(full).stderr(Stdio::piped()).output();
        refused(&output.expect("the binary runs"), &["No space left on device"]);
    }
}
