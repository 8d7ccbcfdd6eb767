//! A chat template is hostile, and so are messages: a rendering or an error, and no control token that the template did
//! not write.
//!
//! The input is a template, messages, tools and variables, with a zero byte between each; what is not JSON is text of
//! users, line by line.
#![no_main]

use std::time::UNIX_EPOCH;

use frugal_models::template::{Chat, ChatTemplate, Piece, TemplateTokens};
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};

const CONTROL: [&str; 7] =
    ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|user|>", "<|assistant|>", "<|start|>"];

/// What is documented as unbounded is left out: the engine's operators build values of any size within few
/// instructions, as `'a' * 10 ** 8` or by doubling in a long loop, and it counts neither bytes nor time.
fn builds_without_bound(source: &str) -> bool {
    source.contains('*')
        || source.contains("range")
        || source.split(|c: char| !c.is_ascii_digit()).any(|number| number.len() > 4)
}

fn objects(part: &str) -> Vec<Value> {
    match serde_json::from_str(part) {
        Ok(Value::Array(values)) => values,
        Ok(value) => vec![value],
        Err(_) => part.lines().map(|line| json!({"role": "user", "content": line})).collect(),
    }
}

/// Whether no part of a control token is in the template.
fn writes_text_only(source: &str) -> bool {
    let part = |c: char| c == '<' || c == '\\' || ('\u{fdd0}'..='\u{fdef}').contains(&c);
    !source.contains(part) && !source.contains("_token")
}

/// The fuzzer ends at every panic. Those of the engine are caught, and no finding.
fn pass_over_faults_of_the_engine() {
    let end = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !panic.location().is_some_and(|at| at.file().contains("minijinja")) {
            end(panic);
        }
    }));
}

fuzz_target!(init: pass_over_faults_of_the_engine(), |bytes: &[u8]| {
    let text = String::from_utf8_lossy(bytes);
    let mut parts = text.split('\0');
    let mut part = || parts.next().unwrap_or_default();
    let (source, messages, tools, kwargs) = (part(), objects(part()), objects(part()), part());
    let tokens = TemplateTokens {
        bos: Some("<s>".to_owned()),
        eos: Some("</s>".to_owned()),
        control: CONTROL.map(str::to_owned).to_vec(),
    };
    let template = match ChatTemplate::new(source, tokens) {
        Ok(template) => template,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    template.variables();
    if builds_without_bound(source) {
        return;
    }
    let kwargs = serde_json::from_str::<Value>(kwargs).ok();
    let kwargs = kwargs.as_ref().and_then(Value::as_object);
    let chat = Chat { messages: &messages, tools: &tools, kwargs, add_generation_prompt: true };
    let rendered = match template.render_at(&chat, UNIX_EPOCH) {
        Ok(rendered) => rendered,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    let control = |piece: &Piece| matches!(piece, Piece::Control(_));
    for pair in rendered.pieces().windows(2) {
        assert!(pair.iter().any(control), "no two texts are neighbours");
    }
    for piece in rendered.pieces() {
        match piece {
            Piece::Text(text) => assert!(!text.is_empty()),
            Piece::Control(token) => assert!(CONTROL.contains(&token.as_str())),
        }
    }
    assert!(!writes_text_only(source) || !rendered.pieces().iter().any(control), "{rendered:?}");
    assert_eq!(template.render_at(&chat, UNIX_EPOCH), Ok(rendered));
});
