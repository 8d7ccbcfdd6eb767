//! `frugal bench` on a tiny model: its forms, not its figures.

use serde_json::Value;

use super::{failure, output};
use crate::process::fixture;

const TINY: [&str; 10] =
    ["--prompt", "8", "--decode", "2", "--depth", "4", "--batches", "1,2", "--runs", "1"];

#[test]
fn the_machine_is_measured_without_a_model() {
    let (code, stdout, stderr) = output(&["bench", "--machine", "--json", "--threads", "2"], &[]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    let machine: Value = serde_json::from_str(&stdout).expect("JSON");
    assert_eq!(machine["threads"], 2);
    for rate in ["additions_g_s", "read_gb_s"] {
        assert!(machine[rate].as_f64().expect("a rate") > 0.0, "{machine}");
    }
    let (_, text, _) = output(&["bench", "--machine", "--threads", "1"], &[]);
    assert!(text.starts_with("1 threads together: ") && text.ends_with(" read from memory\n"), "{text}");
}

#[test]
fn two_engines_are_measured_in_turns() {
    let model = fixture("qwen3moe-Q4_K_M.gguf");
    let peer = r#"echo warm; echo '{"engine":"peer","pp8":100,"tg2":50.5}'"#;
    let args =
        [&["bench", "--model", &model, "--threads", "1", "--json", "--against", peer], &TINY[..]].concat();
    let (code, stdout, stderr) = output(&args, &[]);
    assert_eq!(code, 0, "{stderr}");
    let result: Value = serde_json::from_str(&stdout).expect("JSON");
    let rounds = result["rounds"].as_array().expect("rounds");
    assert_eq!(rounds.len(), 5);
    for round in rounds {
        assert_eq!(round["against"], serde_json::json!({"pp8": 100.0, "tg2": 50.5}));
        assert!(round["machine"]["read_gb_s"].as_f64().expect("a rate") > 0.0);
        for name in ["pp8", "tg1", "tg2"] {
            assert!(round["frugal"][name].as_f64().expect("a rate") > 0.0, "{round}");
        }
    }
    let ratio = |name: &str| result["ratio"][name].as_f64();
    assert!(ratio("pp8").is_some() && ratio("tg2").is_some() && ratio("tg1").is_none(), "{result}");
}

#[test]
fn a_comparison_with_nothing_is_refused() {
    let model = fixture("qwen3moe-Q4_K_M.gguf");
    let against = |command| {
        failure(
            &[&["bench", "--model", &model, "--threads", "1", "--against", command], &TINY[..]].concat(),
            &[],
        )
    };
    let (code, line) = against("echo no such thing >&2; exit 3");
    assert!(code == 1 && line.contains("exit status: 3") && line.ends_with("no such thing"), "{line}");
    let (code, line) = against("echo '{\"speed\":1}'");
    assert!(code == 1 && line.contains("none of our figures"), "{line}");
    let (code, _, stderr) = output(&["bench", "--against", "true", "--rounds", "3"], &[]);
    assert!(code == 2 && stderr.contains("5..=100"), "{stderr}");
}
