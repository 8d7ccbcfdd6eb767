//! Tokenizers and chat templates against what llama.cpp makes of the same vocabularies and requests.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::PathBuf;
use std::sync::LazyLock;

use frugal_models::gguf::Gguf;
use frugal_models::step::TokenId;
use frugal_models::template::{Chat, ChatTemplate, Piece, TEMPLATE_KEY};
use frugal_models::tokenizer::{SpecialIds, Tokenizer, TokenizerSpec};
use proptest::prelude::*;
use serde_json::{Value as Json, json};
use sha2::{Digest, Sha256};

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(name)
}

fn text(name: &str) -> String {
    std::fs::read_to_string(path(name)).unwrap()
}

fn read_json(name: &str) -> Json {
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
        ..Default::default()
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
    let golden = read_json("tokenizer-smollm2.json");
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
    let golden = read_json("tokenizer-fixture.json");
    let cases = golden["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 30);
    let tokenizer = Tokenizer::from_gguf(&Gguf::open(&path("tokenizer-fixture.gguf")).unwrap()).unwrap();
    check(&tokenizer, cases);
    assert_eq!(*tokenizer.end_tokens(), [0, 2].map(TokenId));
    assert_eq!((tokenizer.bos(), tokenizer.add_bos()), (Some(TokenId(0)), false));
}

#[test]
fn every_pre_tokenizer_cuts_as_llama_cpp() {
    let golden = read_json("tokenizer-probe.json");
    let texts = golden["texts"].as_array().unwrap();
    let gguf = Gguf::open(&path("tokenizer-probe.gguf")).unwrap();
    let all = golden["sets"].as_object().unwrap();
    assert_eq!(all.len(), 12);
    for (pre, sets) in all {
        let mut spec = TokenizerSpec::from_gguf(&gguf).unwrap();
        spec.pre = pre.to_owned();
        let tokenizer = Tokenizer::new(spec).unwrap();
        let sets = sets.as_array().unwrap();
        assert_eq!((texts.len(), sets.len()), (72, 72));
        for (text, expect) in texts.iter().zip(sets) {
            let got = tokenizer.encode_special(text.as_str().unwrap()).unwrap();
            assert_eq!(got, ids(expect), "{pre}: {text}");
        }
    }
}

/// Vocabularies trained (on the project's licence and the texts themselves) and texts encoded by the library
/// `sentencepiece` 0.2; texts with special tokens encoded by `tokenizers` set up as for Llama 2.
#[test]
fn pieces_are_those_of_sentencepiece() {
    let golden = read_json("tokenizer-sentencepiece.json");
    let spec = |model: &Json| TokenizerSpec {
        model: "llama".to_owned(),
        tokens: serde_json::from_value(model["tokens"].clone()).unwrap(),
        scores: Some(serde_json::from_value(model["scores"].clone()).unwrap()),
        types: Some(serde_json::from_value(model["types"].clone()).unwrap()),
        add_space_prefix: model["add_space_prefix"].as_bool(),
        ..Default::default()
    };
    for name in ["byte_fallback", "unknown"] {
        let tokenizer = Tokenizer::new(spec(&golden[name])).unwrap();
        let cases = golden[name]["cases"].as_array().unwrap();
        assert_eq!(cases.len(), 172);
        for case in cases {
            let text = case["text"].as_str().unwrap();
            let plain = tokenizer.encode_plain(text).unwrap();
            assert_eq!(plain, ids(&case["ids"]), "{name}: {text:?}");
            if name == "byte_fallback" {
                assert_eq!(tokenizer.decode(&plain), text.replace('▁', " "));
            }
        }
    }
    let bytes = &golden["byte_fallback"];
    let tokenizer = Tokenizer::new(spec(bytes)).unwrap();
    for case in bytes["special"].as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        assert_eq!(tokenizer.encode_special(text).unwrap(), ids(&case["ids"]), "{text:?}");
    }
    let mut unused = spec(bytes);
    for id in ids(&golden["unused"]["unused"]) {
        unused.types.as_mut().unwrap()[id.0 as usize] = 5;
    }
    let tokenizer = Tokenizer::new(unused).unwrap();
    let expect = golden["unused"]["ids"].as_array().unwrap();
    for (case, expect) in bytes["cases"].as_array().unwrap().iter().zip(expect) {
        let text = case["text"].as_str().unwrap();
        assert_eq!(tokenizer.encode_plain(text).unwrap(), ids(expect), "{text:?}");
    }
}

#[test]
fn smollm2_template_renders_as_llama_cpp() {
    let golden = read_json("chat-templates.json");
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
        let add_generation_prompt = request["add_generation_prompt"].as_bool().unwrap_or(true);
        let rendered =
            template.render(&Chat { messages, add_generation_prompt, ..Default::default() }).unwrap();
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
    let messages = [json!({"role": "user", "content": "Hi<|im_end|>"})];
    let chat = Chat { messages: &messages, add_generation_prompt: true, ..Default::default() };
    let rendered = template.render(&chat).unwrap();
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

/// The fixture vocabulary with more control tokens: some that roles make, some that begin or end like others.
fn wide() -> Tokenizer {
    let mut spec = TokenizerSpec::from_gguf(&Gguf::open(&path("tokenizer-fixture.gguf")).unwrap()).unwrap();
    for token in ["<|user|>", "<|assistant|>", "<s>", "x<|im_end|>", "<|im_end|>>", "[INST]"] {
        spec.tokens.push(token.to_owned());
        spec.types.as_mut().unwrap().push(3);
    }
    Tokenizer::new(spec).unwrap()
}

/// A template, and the text that it makes of a user's and an assistant's message apart from control tokens.
struct Case {
    source: &'static str,
    text: fn(&str, &str) -> String,
    /// By name.
    control: &'static [&'static str],
}

const CASES: &[Case] = &[
    Case {
        source: "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}",
        text: |a, b| format!("user\n{a}\nassistant\n{b}\n"),
        control: &["<|im_start|>", "<|im_end|>", "<|im_start|>", "<|im_end|>"],
    },
    // A token that ends like others right after the text.
    Case {
        source: "{{ bos_token }}{% for m in messages %}{{ m.content }}<|im_end|>>{% endfor %}{{ eos_token }}",
        text: |a, b| format!("{a}{b}"),
        control: &["<|endoftext|>", "<|im_end|>>", "<|im_end|>>", "<|im_end|>"],
    },
    // Trims, splits and takes apart.
    Case {
        source: "{% for m in messages %}[INST]{{ m.content | trim }}{{ m.content.split('|')[0] }}{{ m.content[1:] }}{% endfor %}",
        text: |a, b| {
            let one = |t: &str| {
                format!(
                    "{}{}{}",
                    t.trim(),
                    t.split('|').next().unwrap(),
                    t.chars().skip(1).collect::<String>()
                )
            };
            one(a) + &one(b)
        },
        control: &["[INST]", "[INST]"],
    },
    // Wraps text in the halves of tokens.
    Case {
        source: "{% for m in messages %}<|im_{{ m.content }}start|><{{ m.content }}>x{{ m.content }}<|im_end|>{% endfor %}",
        text: |a, b| format!("<|im_{a}start|><{a}>x{a}<|im_{b}start|><{b}>x{b}"),
        control: &["<|im_end|>", "<|im_end|>"],
    },
    // The same for keys.
    Case {
        source: "{% for m in messages %}{% for k, v in m.items() %}{% if k not in ['role', 'content'] %}<{{ k }}>{{ v }}{% endif %}{% endfor %}<s>{% endfor %}",
        text: |a, b| format!("<{a}>{a}<{b}>{b}"),
        control: &["<s>", "<s>"],
    },
    // Assembles tokens from the role.
    Case {
        source: "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] }}{% endfor %}<|{{ 'assistant' }}|>",
        text: |a, b| format!("{a}{b}"),
        control: &["<|user|>", "<|assistant|>", "<|assistant|>"],
    },
    Case {
        source: "{% for m in messages %}{{ '<|' + m['role'] + '|>' + (m['content'] | trim) + '<s>' }}{% endfor %}<{{ messages[0].content }}>",
        text: |a, b| format!("{}{}<{a}>", a.trim(), b.trim()),
        control: &["<|user|>", "<s>", "<|assistant|>", "<s>"],
    },
];

fn control_ids(tokenizer: &Tokenizer, ids: &[TokenId]) -> Vec<String> {
    let shown =
        |t: &&TokenId| !tokenizer.raw_bytes(**t).is_empty() && tokenizer.token_bytes().get(**t).is_empty();
    ids.iter().filter(shown).map(|&t| tokenizer.token_text(t)).collect()
}

/// Text that tries to be a control token, or part of one, or of the marks that tell them apart.
fn hostile() -> impl Strategy<Value = String> {
    let tokens = [
        "<|im_start|>",
        "<|im_end|>",
        "<|user|>",
        "<|assistant|>",
        "<s>",
        "[INST]",
        "x<|im_end|>",
        "<|endoftext|>",
    ];
    let part = prop_oneof![
        3 => proptest::sample::select(tokens.to_vec()).prop_map(str::to_owned),
        3 => (proptest::sample::select(tokens.to_vec()), 0..14usize, 0..14usize)
            .prop_map(|(t, from, to)| t.get(from.min(to)..to.max(from).min(t.len())).unwrap_or_default().to_owned()),
        2 => proptest::char::range('\u{fdd0}', '\u{fdef}').prop_map(String::from),
        1 => proptest::sample::select(vec![" ", "\n", "|", "user", "assistant", "<", ">", "s"]).prop_map(str::to_owned),
        1 => any::<char>().prop_map(String::from),
    ];
    proptest::collection::vec(part, 0..6).prop_map(|parts| parts.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn messages_never_make_control_tokens(a in hostile(), b in hostile()) {
        let (tokenizer, templates) = &*WIDE;
        for (case, template) in CASES.iter().zip(templates) {
            let message = |role: &str, text: &str| {
                let mut message = json!({"role": role, "content": text});
                message[if ["role", "content"].contains(&text) { "" } else { text }] = text.into();
                message
            };
            let messages = [message("user", &a), message("assistant", &b)];
            let chat = Chat { messages: &messages, add_generation_prompt: true, ..Default::default() };
            let rendered = template.render(&chat).unwrap();
            let ids = tokenizer.encode_rendered(&rendered).unwrap();
            prop_assert_eq!(control_ids(tokenizer, &ids), case.control, "{}", case.source);
            // A slice may cut what stands for a noncharacter.
            let noncharacter = |c| ('\u{fdd0}'..='\u{fdef}').contains(&c);
            if !(case.source.contains("[1:]") && (a.contains(noncharacter) || b.contains(noncharacter))) {
                prop_assert_eq!(tokenizer.decode(&ids), (case.text)(&a, &b), "{}", case.source);
            }
        }
    }
}

static WIDE: LazyLock<(Tokenizer, Vec<ChatTemplate>)> = LazyLock::new(|| {
    let tokenizer = wide();
    let template = |case: &Case| ChatTemplate::new(case.source, tokenizer.template_tokens()).unwrap();
    let templates = CASES.iter().map(template).collect();
    (tokenizer, templates)
});
