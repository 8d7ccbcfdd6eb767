//! Prompts that are hard to tokenize, and answers that are not text.

use std::io::Write as _;
use std::time::Instant;

use serde_json::{Value, json};

use crate::process::{Running, fixture, post};
use crate::watch::{WATCHED, answer, settled};

/// Texts of nearly the longest prompt that is taken, each hard in its own way.
fn hard() -> Vec<(&'static str, String)> {
    const BYTES: usize = 2_000_000;
    let repeated = |text: &str| text.repeat(BYTES / text.len());
    let random: String = (0..BYTES as u64)
        .map(|i| char::from(b'!' + (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 57) as u8 % 90))
        .collect();
    vec![
        ("one letter", repeated("a")),
        ("spaces", repeated(" ")),
        ("line ends", repeated("\n")),
        ("spaces and line ends", repeated("  \n")),
        ("digits", repeated("7")),
        ("one word", repeated("antidisestablishmentarianism")),
        ("dashes", repeated("-")),
        ("zeros", "\0".repeat(BYTES / 2)),
        ("emoji in families", repeated("👨‍👩‍👧‍👦")),
        ("marks on one letter", format!("e{}", "\u{301}".repeat(BYTES / 2 - 1))),
        ("letters of no case", repeated("漢")),
        ("letters from right to left", repeated("\u{202e}שלום")),
        ("apostrophes", repeated("'s'S'll")),
        ("control tokens", repeated("<|im_start|>")),
        ("almost control tokens", repeated("<|im_star")),
        ("pieces of control tokens", repeated("<|")),
        ("unassigned characters", repeated("\u{10ffff}")),
        ("noise", random),
    ]
}

/// Far more than any needs, and far less than a text whose time grows with the square of its length.
const SECONDS_MAX: f64 = 60.0;

#[test]
fn no_prompt_takes_for_ever_to_tokenize() {
    for name in ["qwen3moe-Q4_K_M.gguf", "llama-F32.gguf"] {
        let server = Running::serve(&fixture(name), &WATCHED, &[]);
        let mut times = Vec::new();
        for (what, text) in hard() {
            let body = json!({"prompt": text}).to_string();
            let begin = Instant::now();
            let tokens = post(&server.address, "/tokenize", &body, &[]);
            let seconds = begin.elapsed().as_secs_f64();
            assert_eq!(tokens.status, 200, "{what}: {}", tokens.body);
            assert!(seconds < SECONDS_MAX, "{what}: {seconds} s");
            times.push(format!("{what} {seconds:.2} s"));
        }
        // As a prompt, each is refused: it is longer than the context.
        let (_, text) = hard().swap_remove(0);
        let refused = post(&server.address, "/v1/completions", &json!({"prompt": text}).to_string(), &[]);
        assert_eq!(refused.status, 400);
        let mut stderr = std::io::stderr();
        writeln!(stderr, "{name}: 2 MB of {}", times.join(", ")).expect("stderr");
        answer(&server.address);
        settled(&server.address);
        assert_eq!(server.terminate(), 0);
    }
}

#[test]
fn answers_that_are_not_utf8_are_still_text() {
    let server = Running::start(&WATCHED, &[]);
    let mut replaced = 0;
    for seed in 0..8 {
        let ask = |stream: bool| {
            json!({"prompt": "hi", "max_tokens": 60, "temperature": 2, "seed": seed, "n": 8, "ignore_eos": true,
                   "logprobs": 3, "stream": stream})
            .to_string()
        };
        let whole = post(&server.address, "/v1/completions", &ask(false), &[]);
        let whole: Value = serde_json::from_str(&whole.body).expect("JSON");
        // `post` takes nothing but UTF-8.
        let streamed = post(&server.address, "/v1/completions", &ask(true), &[]).body;
        let mut texts = vec![String::new(); 8];
        for line in
            streamed.lines().filter_map(|line| line.strip_prefix("data: ")).filter(|line| *line != "[DONE]")
        {
            let event: Value = serde_json::from_str(line).expect("JSON");
            for choice in event["choices"].as_array().expect("choices") {
                texts[choice["index"].as_u64().expect("an index") as usize] +=
                    choice["text"].as_str().expect("text");
            }
        }
        for (i, text) in texts.iter().enumerate() {
            assert_eq!(whole["choices"][i]["text"], text.as_str());
            replaced += text.matches('\u{fffd}').count();
        }
    }
    assert!(replaced > 0, "the model wrote nothing but UTF-8: nothing was tested");
    settled(&server.address);
    assert_eq!(server.terminate(), 0);
}
