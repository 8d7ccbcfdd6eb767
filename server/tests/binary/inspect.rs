//! `frugal inspect`: what it prints and how it ends.

use super::{failure, output};
use crate::process::fixture;

#[test]
fn a_model_that_can_be_served_is_a_success() {
    let model = fixture("qwen3moe-Q4_K_M.gguf");
    let (code, stdout, stderr) = output(&["inspect", &model], &[]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    assert!(stdout.ends_with("\nFrugal serves this model.\n"), "{stdout}");
    // The configuration counts.
    for page in ["f32", "q8_0"] {
        let dtype = format!("kv.dtype={page}");
        let set = ["inspect", &model, "--json", "--set", &dtype, "--set", "kv.memory=1MiB"];
        let (code, stdout, _) = output(&set, &[]);
        assert_eq!(code, 0);
        let report: serde_json::Value = serde_json::from_str(&stdout).expect("JSON");
        assert_eq!((&report["servable"], &report["fits"]), (&true.into(), &true.into()));
        assert_eq!(report["fit"]["page"], page);
        let cache = report["fit"]["cache_bytes"].as_u64().expect("it fits");
        assert!(cache > 0 && cache <= 1 << 20, "{cache}");
        let per_position = &report["cache"][0][format!("{page}_bytes")];
        assert_eq!(&report["decode"]["cache_bytes_per_position"], per_position);
    }
}

#[test]
fn one_that_does_not_fit_here_is_said_to() {
    let model = fixture("qwen3moe-Q4_K_M.gguf");
    let args = ["inspect", &model, "--set", "kv.memory=64KiB", "--set", "kv.context_max=2048"];
    let (code, stdout, _) = output(&args, &[]);
    let last = stdout.lines().last().expect("a line");
    assert_eq!(code, 0);
    assert!(last.starts_with("Frugal can serve this model, but not here as configured: "), "{stdout}");
    let (_, stdout, _) = output(&[&args[..], &["--json"]].concat(), &[]);
    let report: serde_json::Value = serde_json::from_str(&stdout).expect("JSON");
    assert_eq!((&report["servable"], &report["fits"]), (&true.into(), &false.into()));
}

#[test]
fn one_that_cannot_is_told_with_a_code_of_its_own() {
    let (code, stdout, stderr) = output(&["inspect", &fixture("tokenizer-fixture.gguf")], &[]);
    assert_eq!((code, stderr.as_str()), (3, ""));
    assert!(stdout.contains("\nFrugal cannot serve this model:\n- "), "{stdout}");
    let (code, stdout, _) = output(&["inspect", "--json", &fixture("tokenizer-fixture.gguf")], &[]);
    let report: serde_json::Value = serde_json::from_str(&stdout).expect("JSON");
    assert_eq!((code, &report["servable"]), (3, &serde_json::json!(false)));
}

#[test]
fn what_is_no_model_is_an_error() {
    let (code, line) = failure(&["inspect", &fixture("dequant.json")], &[]);
    assert_eq!(code, 1);
    assert!(line.contains("dequant.json: not a GGUF file"), "{line}");
    let (code, line) = failure(&["inspect", "/nonexistent/model.gguf"], &[]);
    assert_eq!(code, 2);
    assert!(line.contains("no model file /nonexistent/model.gguf"), "{line}");
    assert_eq!(failure(&["inspect", "--model", "/nonexistent/model.gguf"], &[]), (code, line));
    assert_eq!(failure(&["inspect", "hf:no-owner"], &[]).0, 2);
}
