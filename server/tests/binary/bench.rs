//! `frugal bench` on a tiny model: its forms, not its figures.

use serde_json::Value;

use super::{failure, output};
use crate::process::fixture;

const TINY: [&str; 10] =
    ["--prompt", "8", "--decode", "2", "--depth", "4", "--batches", "1,2", "--runs", "1"];

/// What figures were measured with, on the processor.
pub(super) const CONDITIONS: [&str; 12] = [
    "engine",
    "version",
    "model",
    "threads",
    "isa",
    "kv_dtype",
    "step_tokens",
    "prompt",
    "decode",
    "depth",
    "batches",
    "runs",
];

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
    let keys: Vec<&String> = result.as_object().expect("an object").keys().collect();
    assert_eq!(
        keys,
        [&CONDITIONS[..], &["load_s", "command", "rounds", "frugal", "against", "ratio"]].concat()
    );
    assert_eq!((&result["model"], &result["batches"]), (&"qwen3moe-Q4_K_M.gguf".into(), &vec![1, 2].into()));
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

/// Two rounds of a peer that at its third turn does something else.
fn third_turn(act: &str) -> (i32, Value, String) {
    let turns = std::env::temp_dir().join(format!("frugal-turns-{}-{}", std::process::id(), act.len()));
    let model = fixture("qwen3moe-Q4_K_M.gguf");
    let peer = format!(
        r#"echo turn >> {turns}; if [ $(wc -l < {turns}) -eq 3 ]; then {act}; fi; echo '{{"pp8":100,"tg2":50.5}}'"#,
        turns = turns.display()
    );
    let args =
        [&["bench", "--model", &model, "--threads", "1", "--json", "--against", &peer], &TINY[..]].concat();
    let (code, stdout, stderr) = output(&args, &[]);
    std::fs::remove_file(&turns).expect("our file");
    (code, serde_json::from_str(&stdout).unwrap_or_else(|_| panic!("{stdout}{stderr}")), stderr)
}

#[test]
fn rounds_before_a_failure_or_a_signal_are_printed() {
    let (code, line, stderr) = third_turn("echo too hot >&2; exit 3");
    assert!(code == 1 && stderr.trim_end().ends_with("failed (exit status: 3): too hot"), "{code} {stderr}");
    let rounds = |line: &Value| line["rounds"].as_array().map(Vec::len);
    assert_eq!(rounds(&line), Some(2), "{line}");
    assert!(line["ratio"]["pp8"].as_f64().expect("a ratio") > 0.0, "{line}");
    // The command would go on for long.
    for signal in ["INT", "TERM"] {
        let (code, line, stderr) = third_turn(&format!("kill -s {signal} $PPID; exec sleep 60"));
        assert_eq!((code, rounds(&line)), (130, Some(2)), "{line} {stderr}");
    }
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
