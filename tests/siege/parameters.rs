//! Sampling parameters at their bounds and past them.

use serde_json::{Value, json};

use crate::process::{Running, get, post};
use crate::watch::{WATCHED, answer, settled};

/// Field, values that are taken, values that are refused.
const FIELDS: &[(&str, &[&str], &[&str])] = &[
    (
        "temperature",
        &["0", "2", "1e-300", "0.0", "5e-324", "-0.0"],
        &["-1e-9", "2.0001", "1e39", "1e300", "\"1\"", "true"],
    ),
    ("top_p", &["0", "1", "1e-300", "1e-9"], &["-1e-9", "1.0001", "1e300", "[]"]),
    (
        "top_k",
        &["-1", "0", "1", "4294967295", "1e3"],
        &["-2", "4294967296", "1e300", "0.5", "9223372036854775808"],
    ),
    ("min_p", &["0", "1", "1e-300"], &["-0.1", "1.1", "1e300"]),
    ("presence_penalty", &["-2", "2", "1e-300"], &["-2.1", "2.1", "1e300"]),
    ("frequency_penalty", &["-2", "2", "1e-300"], &["-2.1", "2.1", "-1e300"]),
    ("repetition_penalty", &["0.01", "10", "1"], &["0", "-1", "10.1", "1e-300", "1e300"]),
    ("n", &["1", "16", "2.0"], &["0", "17", "-1", "1.5", "4294967297", "1e300"]),
    ("max_tokens", &["1", "2e1"], &["-1", "4294967295", "4294967296", "1e300", "1.5", "\"8\""]),
    ("min_tokens", &["0", "2"], &["-1", "4294967296", "1e300"]),
    (
        "seed",
        &["0", "-9223372036854775808", "9223372036854775807"],
        &["18446744073709551616", "1e300", "0.5"],
    ),
    ("logprobs", &["0", "100"], &["-1", "101", "4294967296", "1e300"]),
    ("prompt_logprobs", &["0", "100"], &["-1", "101", "1e300"]),
    (
        "logit_bias",
        &["{}", "{\"0\":100,\"1\":-100}", "{\"0\":-1e-300}"],
        &[
            "{\"0\":100.1}",
            "{\"0\":-1e300}",
            "{\"-1\":0}",
            "{\"4294967296\":0}",
            "{\"a\":0}",
            "{\"0\":null}",
            "[1]",
        ],
    ),
    (
        "stop",
        &["[]", "\"\\u0000\"", "[\"a\",\"a\"]"],
        &[
            "\"\"",
            "[\"\"]",
            "[1]",
            "[\"1\",\"2\",\"3\",\"4\",\"5\",\"6\",\"7\",\"8\",\"9\",\"a\",\"b\",\"c\",\"d\",\"e\",\"f\",\"g\",\"h\"]",
        ],
    ),
    ("stop_token_ids", &["[]", "[0]"], &["[-1]", "[4294967296]", "[1e300]", "[\"a\"]"]),
    (
        "prompt",
        &["[0]", "[[0],[1]]", "\"\\u0000\\uffff\""],
        &["[-1]", "[4294967295]", "[1e300]", "[[[0]]]", "[]", "null", "{}"],
    ),
    ("best_of", &["1"], &["0", "1e300"]),
];

/// A number that JSON does not have, in whatever field.
const NO_NUMBERS: [&str; 6] = ["NaN", "Infinity", "-Infinity", "1e400", "01", "+1"];

#[test]
fn bounds_are_kept_and_named() {
    let server = Running::start(&WATCHED, &[]);
    let ask = |field: &str, value: &str| {
        let mut body = String::from(r#"{"ignore_eos":true"#);
        for (name, default) in [("prompt", "\"hi\""), ("max_tokens", "3")] {
            if name != field {
                body += &format!(",\"{name}\":{default}");
            }
        }
        body += &format!(",\"{field}\":{value}}}");
        let answer = post(&server.address, "/v1/completions", &body, &[]);
        (answer.status, serde_json::from_str::<Value>(&answer.body).expect("JSON"))
    };
    let mut wrong = Vec::new();
    for &(field, taken, refused) in FIELDS {
        for value in taken {
            let (status, body) = ask(field, value);
            let texts =
                body["choices"].as_array().is_some_and(|all| all.iter().all(|one| one["text"].is_string()));
            if status != 200 || !texts {
                wrong.push(format!("{field}={value} is in bounds: {status}: {body}"));
            }
        }
        for value in refused {
            let (status, body) = ask(field, value);
            if status != 400 || body["error"]["param"] != field {
                wrong.push(format!("{field}={value} is out of bounds: {status}: {body}"));
            }
        }
        for value in NO_NUMBERS {
            let (status, body) = ask(field, value);
            if status != 400 {
                wrong.push(format!("{field}={value} is no JSON: {status}: {body}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    answer(&server.address);
    settled(&server.address);
    assert!(!get(&server.address, "/metrics").body.contains("status=\"5"));
    assert_eq!(server.terminate(), 0);
}

/// All extremes together, with seeds: each is a good request, whatever comes of it.
#[test]
fn extremes_together_give_answers() {
    let server = Running::start(&WATCHED, &[]);
    for seed in 0..60u64 {
        let pick = |values: &[Value], salt: u64| {
            values[(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left((salt * 7) as u32) >> 7) as usize
                % values.len()]
            .clone()
        };
        let body = json!({
            "prompt": pick(&[json!("hi"), json!([0, 0, 0]), json!("\u{0}\u{10ffff}")], 1),
            "max_tokens": 5, "seed": seed, "ignore_eos": true,
            "temperature": pick(&[json!(0), json!(2), json!(1e-30), json!(1e-5)], 2),
            "top_p": pick(&[json!(0), json!(1), json!(1e-30)], 3),
            "top_k": pick(&[json!(-1), json!(1), json!(4_294_967_295_u32)], 4),
            "min_p": pick(&[json!(0), json!(1), json!(1e-30)], 5),
            "presence_penalty": pick(&[json!(-2), json!(2)], 6),
            "frequency_penalty": pick(&[json!(-2), json!(2)], 7),
            "repetition_penalty": pick(&[json!(0.01), json!(10), json!(1)], 8),
            "logit_bias": pick(&[json!({}), json!({"0": 100, "1": 100}), json!({"0": -100})], 9),
            "logprobs": pick(&[Value::Null, json!(0), json!(100)], 10),
            "n": pick(&[json!(1), json!(5)], 11),
        });
        let answer = post(&server.address, "/v1/completions", &body.to_string(), &[]);
        assert_eq!(answer.status, 200, "{body}: {}", answer.body);
        let answered: Value = serde_json::from_str(&answer.body).expect("JSON has no NaN");
        assert_eq!(answered["choices"][0]["finish_reason"], "length", "{body}: {answered}");
    }
    settled(&server.address);
    assert_eq!(server.terminate(), 0);
}
