//! Tokenizers and chat templates against what llama.cpp makes of the same vocabularies and requests.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::PathBuf;

use frugal_models::gguf::Gguf;
use frugal_models::step::TokenId;
use frugal_models::template::{ChatTemplate, Piece, TEMPLATE_KEY};
use frugal_models::tokenizer::{SpecialIds, Tokenizer, TokenizerSpec};
use serde_json::Value as Json;
use sha2::{Digest, Sha256};

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}

fn text(name: &str) -> String {
    std::fs::read_to_string(path(name)).unwrap()
}

fn json(name: &str) -> Json {
    serde_json::from_str(&text(name)).unwrap()
}

fn ids(value: &Json) -> Vec<TokenId> {
    let id = |v: &Json| TokenId(v.as_u64().unwrap().try_into().unwrap());
    value.as_array().unwrap().iter().map(id).collect()
}

/// SmolLM2's vocabulary: 17 control tokens, 235 characters of the byte alphabet, and one token for every merge.
fn smollm2() -> Tokenizer {
    let file = text("smollm2-vocabulary.txt");
    let lines: Vec<String> = file.lines().map(str::to_owned).collect();
    let (base, merges) = lines.split_at(252);
    let tokens: Vec<String> = base.iter().cloned().chain(merges.iter().map(|m| m.replace(' ', ""))).collect();
    assert_eq!(tokens.len(), 49_152);
    let types = (0..tokens.len()).map(|i| if i < 17 { 3 } else { 1 }).collect();
    Tokenizer::new(TokenizerSpec {
        model: "gpt2".to_owned(),
        pre: "smollm".to_owned(),
        types: Some(types),
        merges: merges.to_vec(),
        ids: SpecialIds { bos: Some(1), eos: Some(2), ..Default::default() },
        add_bos: Some(false),
        tokens,
    })
    .unwrap()
}

fn check(tokenizer: &Tokenizer, cases: &[Json]) {
    let detokenize = |ids: &[TokenId]| {
        let bytes: Vec<u8> = ids.iter().flat_map(|&t| tokenizer.raw_bytes(t)).collect();
        String::from_utf8(bytes).unwrap()
    };
    for case in cases {
        let text = case["text"].as_str().unwrap();
        let special = tokenizer.encode_special(text).unwrap();
        assert_eq!(special, ids(&case["ids_special"]), "{text:?}");
        assert_eq!(detokenize(&special), case["detokenized"].as_str().unwrap(), "{text:?}");
        let plain = tokenizer.encode_plain(text).unwrap();
        assert_eq!(plain, ids(&case["ids_plain"]), "{text:?}");
        assert_eq!(tokenizer.decode(&plain), text);
    }
}

#[test]
fn smollm2_encodes_as_llama_cpp() {
    let golden = json("tokenizer-smollm2.json");
    let cases = golden["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 60);
    let tokenizer = smollm2();
    check(&tokenizer, cases);
    // <|endoftext|>, <|im_end|>, and <reponame>, which separates files in code models.
    assert_eq!(*tokenizer.end_tokens(), [0, 2, 4].map(TokenId));
    assert_eq!(tokenizer.vocab_size(), 49_152);
}

#[test]
fn the_fixture_vocabulary_encodes_as_llama_cpp() {
    let golden = json("tokenizer-fixture.json");
    let cases = golden["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 30);
    let tokenizer = Tokenizer::from_gguf(&Gguf::open(&path("tokenizer-fixture.gguf")).unwrap()).unwrap();
    check(&tokenizer, cases);
    assert_eq!(*tokenizer.end_tokens(), [0, 2].map(TokenId));
    assert_eq!((tokenizer.bos(), tokenizer.add_bos()), (Some(TokenId(0)), false));
}

#[test]
fn every_pre_tokenizer_cuts_as_llama_cpp() {
    let golden = json("tokenizer-probe.json");
    let texts = golden["texts"].as_array().unwrap();
    let gguf = Gguf::open(&path("tokenizer-probe.gguf")).unwrap();
    for pre in ["smollm", "qwen2", "llama-bpe", "gpt-2"] {
        let mut spec = TokenizerSpec::from_gguf(&gguf).unwrap();
        spec.pre = pre.to_owned();
        let tokenizer = Tokenizer::new(spec).unwrap();
        let sets = golden["sets"][pre].as_array().unwrap();
        assert_eq!((texts.len(), sets.len()), (72, 72));
        for (text, expect) in texts.iter().zip(sets) {
            let got = tokenizer.encode_special(text.as_str().unwrap()).unwrap();
            assert_eq!(got, ids(expect), "{pre}: {text}");
        }
    }
}

#[test]
fn smollm2_template_renders_as_llama_cpp() {
    let golden = json("chat-templates.json");
    let family = &golden["families"]["smollm2"];
    let source = text("smollm2-template.jinja");
    let digest: String = Sha256::digest(&source).iter().map(|b| format!("{b:02x}")).collect();
    assert_eq!(digest, family["template_sha256"].as_str().unwrap());

    let tokenizer = smollm2();
    let template = ChatTemplate::new(&source, tokenizer.template_tokens()).unwrap();
    let cases = family["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 12);
    for case in cases {
        let (name, request, expect) = (&case["name"], &case["request"], case["rendered"].as_str().unwrap());
        let messages = request["messages"].as_array().unwrap();
        let mut extra: serde_json::Map<_, _> =
            request["chat_template_kwargs"].as_object().cloned().unwrap_or_default();
        extra.extend(request.get("tools").map(|tools| ("tools".to_owned(), tools.clone())));
        let prompt = request["add_generation_prompt"].as_bool().unwrap_or(true);
        let rendered = template.render(messages, extra, prompt).unwrap();
        assert_eq!(rendered.text(), expect, "{name}");

        // Nothing but the template's own tokens is special; without special strings in the messages that is all.
        let encoded = tokenizer.encode_rendered(&rendered).unwrap();
        if name == "special_strings" {
            let special = encoded.iter().filter(|t| t.0 < 17).count();
            assert_eq!(special, 5, "three messages, two of them ended");
        } else {
            assert_eq!(encoded, tokenizer.encode_special(expect).unwrap(), "{name}");
        }
    }
}

#[test]
fn the_template_in_a_model_file_is_used() {
    let gguf = Gguf::open(&path("tokenizer-fixture.gguf")).unwrap();
    assert!(gguf.opt_str(TEMPLATE_KEY).unwrap().is_some());
    let tokenizer = Tokenizer::from_gguf(&gguf).unwrap();
    let template = ChatTemplate::from_gguf(&gguf, tokenizer.template_tokens()).unwrap();
    let messages = [serde_json::json!({"role": "user", "content": "Hi<|im_end|>"})];
    let rendered = template.render(&messages, Default::default(), true).unwrap();
    let control = |text: &str| Piece::Control(text.to_owned());
    let plain = |text: &str| Piece::Text(text.to_owned());
    let expect = [
        control("<|im_start|>"),
        plain("user\nHi<|im_end|>"),
        control("<|im_end|>"),
        plain("\n"),
        control("<|im_start|>"),
        plain("assistant\n"),
    ];
    assert_eq!(rendered.pieces(), expect);
}
