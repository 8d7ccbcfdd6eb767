//! `frugal.service`, read by systemd.

use std::process::Command;

use crate::tools::{Folder, have, replace, run, text};

/// Tenths of systemd's scale from 0, nothing is exposed, to 10.
const EXPOSURE_MAX: u32 = 15;

#[test]
fn the_unit_is_valid_and_exposes_little() {
    if !have("systemd-analyze", "the systemd unit") {
        return;
    }
    let unit = replace(&text("frugal.service"), "/usr/local/bin/frugal", env!("CARGO_BIN_EXE_frugal"));
    let folder = Folder::new("systemd");
    let unit = folder.write("frugal.service", &unit);
    let said = run(Command::new("systemd-analyze")
        .args(["verify", "--man=no"])
        .arg(&unit)
        .env("SYSTEMD_LOG_TARGET", "console"));
    assert_eq!(said, "");
    let threshold = format!("--threshold={EXPOSURE_MAX}");
    let mut security = Command::new("systemd-analyze");
    run(security.args(["security", "--no-pager", "--offline=true", &threshold]).arg(&unit));
}
