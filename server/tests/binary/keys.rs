//! API keys: made, kept as digests, read again while serving.

use std::process::Command;

use tempfile::NamedTempFile;

use super::output;
use crate::process::{Running, get_as};

/// A file of keys, removed with the value.
fn keys_file(text: &str) -> NamedTempFile {
    let file = NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), text).expect("our file");
    file
}

#[test]
fn a_made_key_lets_in_and_its_line_does_not_tell_it() {
    let (code, line, told) = output(&["key", "team-a"], &[]);
    assert_eq!(code, 0);
    let (_, key) = told.trim().rsplit_once(' ').expect("the key");
    assert!(key.starts_with("sk-") && key.len() == 3 + 64, "{key}");
    assert!(line.starts_with("team-a sha256:") && !line.contains(&key[3..]), "{line}");
    assert_ne!(output(&["key", "team-a"], &[]).1, line, "no two are the same");
    let file = keys_file(&line);
    let server = Running::start(&[], &[("FRUGAL_AUTH__KEYS_FILE", &file.path().to_string_lossy())]);
    assert_eq!(get_as(&server.address, "/v1/models", key).status, 200);
    assert_eq!(
        get_as(&server.address, "/v1/models", line.trim().split(' ').nth(1).expect("a digest")).status,
        401
    );
    let (code, _, problem) = output(&["key", "two words"], &[]);
    assert!(code == 2 && problem.contains("visible ASCII"), "{problem}");
}

#[test]
fn the_file_is_read_again_at_sighup_and_a_bad_one_changes_nothing() {
    let file = keys_file("old sk-old\n");
    let server = Running::start(&[], &[("FRUGAL_AUTH__KEYS_FILE", &file.path().to_string_lossy())]);
    let status = |key: &str| get_as(&server.address, "/v1/models", key).status;
    let hangup = || {
        let sent = Command::new("kill").args(["-HUP", &server.id().to_string()]).status().expect("kill runs");
        assert!(sent.success());
    };
    assert_eq!((status("sk-old"), status("sk-new")), (200, 401));
    std::fs::write(&file, "new sk-new\n").expect("our file");
    hangup();
    while status("sk-new") != 200 {}
    assert_eq!(status("sk-old"), 401);
    std::fs::write(&file, "broken\n").expect("our file");
    hangup();
    assert_eq!(status("sk-new"), 200);
    // The signal is taken in order: what follows the bad file shows that it was read.
    std::fs::write(&file, "new sk-new\nthird sk-third\n").expect("our file");
    hangup();
    while status("sk-third") != 200 {}
    assert_eq!(status("sk-new"), 200);
    let log = server.stop();
    assert!(log.contains("asked=true") && log.contains("read again"), "{log}");
}
