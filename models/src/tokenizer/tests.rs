use super::*;

/// The byte alphabet, then `extra`, whose merges are `merges`; control tokens last.
fn spec(extra: &[&str], merges: &[&str], control: &[&str]) -> TokenizerSpec {
    let alphabet = (0..=255).map(|b| bytes::char_of(b).to_string());
    let rest = extra.iter().chain(control).map(|t| (*t).to_owned());
    let tokens: Vec<String> = alphabet.chain(rest).collect();
    let types = (0..tokens.len()).map(|i| if i < 256 + extra.len() { 1 } else { 3 }).collect();
    TokenizerSpec {
        model: "gpt2".to_owned(),
        pre: "gpt-2".to_owned(),
        types: Some(types),
        merges: merges.iter().map(|m| (*m).to_owned()).collect(),
        tokens,
        ..Default::default()
    }
}

fn small() -> TokenizerSpec {
    spec(&["he", "ll", "hell"], &["h e", "l l", "he ll"], &["<|im_start|>", "<|im_end|>"])
}

fn id(value: u32) -> TokenId {
    TokenId(value)
}

fn refused(change: impl FnOnce(&mut TokenizerSpec)) -> String {
    let mut spec = small();
    change(&mut spec);
    Tokenizer::new(spec).unwrap_err().to_string()
}

#[test]
fn merges_apply_in_order() {
    let tokenizer = Tokenizer::new(small()).unwrap();
    assert_eq!(tokenizer.encode_plain("hello").unwrap(), [id(258), id(u32::from(b'o'))]);
    assert_eq!(tokenizer.decode(&tokenizer.encode_plain("héllo 😀").unwrap()), "héllo 😀");
}

#[test]
fn bad_metadata_is_refused_by_name() {
    let contains = |error: String, what: &str| assert!(error.contains(what), "{error}");
    contains(refused(|s| s.model = "bert".into()), "\"bert\"");
    contains(refused(|s| s.pre = "nosuch".into()), "\"nosuch\"");
    contains(refused(|s| s.tokens.clear()), "0 entries");
    contains(refused(|s| s.tokens[300 - 42] = "he".into()), "tokens 256 and 258 are both \"he\"");
    contains(refused(|s| s.types = Some(vec![1; 3])), "3 entries for 261 tokens");
    contains(refused(|s| s.types.as_mut().unwrap()[7] = 6), "token 7 has type 6");
    contains(refused(|s| s.types.as_mut().unwrap()[7] = -1), "token 7 has type -1");
    contains(refused(|s| s.merges[1] = "ll".into()), "merge 1, \"ll\", is not two tokens");
    contains(refused(|s| s.merges[1] = "l ".into()), "merge 1");
    contains(refused(|s| s.merges[1] = "l x".into()), "merge 1, \"l x\", makes");
    contains(refused(|s| s.merges[1] = "zz l".into()), "merge 1, \"zz l\", joins");
    contains(refused(|s| s.ids.eos = Some(261)), "eos_token_id is 261, but there are 261 tokens");
    contains(refused(|s| s.add_bos = Some(true)), "bos_token_id");
}

/// `small` with more tokens of some type.
fn with(tokens: &[(&str, i32)]) -> TokenizerSpec {
    let mut spec = small();
    for (text, ty) in tokens {
        spec.tokens.push((*text).to_owned());
        spec.types.as_mut().unwrap().push(*ty);
    }
    spec
}

#[test]
fn control_tokens_are_recognised_only_where_asked() {
    let tokenizer = Tokenizer::new(small()).unwrap();
    let text = "<|im_start|>he<|im_end|>";
    assert_eq!(tokenizer.encode_special(text).unwrap(), [id(259), id(256), id(260)]);
    let plain = tokenizer.encode_plain(text).unwrap();
    assert!(plain.iter().all(|t| t.0 < 259), "{plain:?}");
    assert_eq!(tokenizer.decode(&plain), text);
    assert_eq!(tokenizer.decode(&[id(259), id(256), id(260)]), "he");
    assert_eq!(tokenizer.token_text(id(259)), "<|im_start|>");
    assert_eq!(tokenizer.raw_bytes(id(260)), b"<|im_end|>");
    assert!(tokenizer.token_bytes().get(id(260)).is_empty());
}

#[test]
fn ids_outside_the_vocabulary_are_nothing() {
    let tokenizer = Tokenizer::new(small()).unwrap();
    assert_eq!(tokenizer.raw_bytes(id(261)), b"");
    assert_eq!(tokenizer.token_text(id(u32::MAX)), "");
    assert_eq!(tokenizer.decode(&[id(261), id(256)]), "he");
    assert_eq!(tokenizer.vocab_size(), 261);
}

#[test]
fn user_defined_tokens_are_recognised_everywhere_and_are_text() {
    let tokenizer = Tokenizer::new(with(&[("<think>", 4), ("<th", 4), ("[PAD]x", 5), ("", 1)])).unwrap();
    assert_eq!(tokenizer.encode_plain("he<think><th").unwrap(), [id(256), id(261), id(262)]);
    assert_eq!(tokenizer.decode(&[id(261)]), "<think>");
    // Unused and empty tokens are never found, and no text.
    assert!(tokenizer.encode_special("[PAD]x").unwrap().iter().all(|t| t.0 < 261));
    assert_eq!(tokenizer.decode(&[id(263), id(264)]), "");
    assert_eq!(tokenizer.template_tokens().control, ["<|im_start|>", "<|im_end|>"]);
}

#[test]
fn bytes_without_a_token_are_left_out_and_nothing_merges_across_them() {
    let mut spec = small();
    spec.tokens[4] = "unused".to_owned();
    spec.types.as_mut().unwrap()[4] = 5;
    let tokenizer = Tokenizer::new(spec).unwrap();
    let h = id(u32::from(b'h'));
    let e = id(u32::from(b'e'));
    assert_eq!(tokenizer.encode_plain("h\u{4}e\u{4}").unwrap(), [h, e]);
}

#[test]
fn whole_words_win_over_merges_where_the_model_says_so() {
    let mut spec = with(&[("hello", 1)]);
    assert_eq!(
        Tokenizer::new(spec.clone()).unwrap().encode_plain("hello").unwrap(),
        [id(258), id(u32::from(b'o'))]
    );
    spec.pre = "llama-bpe".to_owned();
    assert_eq!(Tokenizer::new(spec).unwrap().encode_plain("hello").unwrap(), [id(261)]);
}

#[test]
fn end_tokens_are_known_by_key_and_by_text() {
    let ends = |spec: TokenizerSpec| Tokenizer::new(spec).unwrap().end_tokens().to_vec();
    assert_eq!(ends(small()), [id(260)]);
    let mut named = small();
    named.ids = SpecialIds { eos: Some(7), eot: Some(259), ..Default::default() };
    assert_eq!(ends(named), [id(7), id(259), id(260)]);
    // Left ordinary by mistake; made by a merge; a message's end where turns end otherwise.
    assert_eq!(ends(with(&[("</s>", 1), ("<|fim_pad|>", 3)])), [id(260), id(261), id(262)]);
    let mut merged = with(&[("</", 1), ("s>", 1), ("</s>", 1)]);
    merged.merges.extend(["< /", "s >", "</ s>"].map(str::to_owned));
    assert_eq!(ends(merged), [id(260)]);
    assert_eq!(ends(with(&[("<|end|>", 3)])), [id(260), id(261)]);
    assert_eq!(
        ends(with(&[("<|end|>", 3), ("<|return|>", 3), ("<|call|>", 3)])),
        [id(260), id(262), id(263)]
    );
}

/// A family, its key `eos`, its key `eot`, its other special tokens, and which of all end generation.
type Ends = (&'static str, &'static str, &'static str, &'static [&'static str], &'static [&'static str]);

#[test]
fn every_family_ends_where_its_turns_end() {
    let cases: &[Ends] = &[
        (
            "llama 3",
            "<|end_of_text|>",
            "",
            &["<|eot_id|>", "<|eom_id|>", "<|start_header_id|>"],
            &["<|end_of_text|>", "<|eot_id|>", "<|eom_id|>"],
        ),
        (
            "gpt-oss",
            "<|return|>",
            "",
            &["<|end|>", "<|call|>", "<|start|>", "<|channel|>", "<|endoftext|>"],
            &["<|return|>", "<|call|>", "<|endoftext|>"],
        ),
        (
            "glm 4.5",
            "<|endoftext|>",
            "<|user|>",
            &["<|observation|>", "<|assistant|>"],
            &["<|endoftext|>", "<|user|>"],
        ),
        (
            "deepseek",
            "<｜end▁of▁sentence｜>",
            "",
            &["<｜User｜>", "<｜Assistant｜>"],
            &["<｜end▁of▁sentence｜>"],
        ),
        (
            "kimi k2",
            "[EOS]",
            "",
            &["[EOT]", "[PAD]", "<|im_end|>", "<|im_user|>"],
            &["[EOS]", "[EOT]", "[PAD]", "<|im_end|>"],
        ),
        ("granite", "<|end_of_text|>", "", &["<|start_of_role|>", "<|tool_call|>"], &["<|end_of_text|>"]),
        ("mistral", "</s>", "", &["[INST]", "[/INST]"], &["</s>"]),
        ("phi", "<|endoftext|>", "", &["<|end|>", "<|user|>"], &["<|endoftext|>", "<|end|>"]),
        ("minimax m2", "[e~[", "", &["]~b]"], &["[e~["]),
    ];
    for (family, eos, eot, others, expect) in cases {
        let names: Vec<&str> =
            [*eos, *eot].iter().chain(*others).copied().filter(|t| !t.is_empty()).collect();
        let mut spec = spec(&[], &[], &names);
        let key = |text: &str| names.iter().position(|t| *t == text).map(|i| 256 + u32::try_from(i).unwrap());
        spec.ids = SpecialIds { eos: key(eos), eot: key(eot), ..Default::default() };
        let tokenizer = Tokenizer::new(spec).unwrap();
        let mut got: Vec<String> = tokenizer.end_tokens().iter().map(|&t| tokenizer.token_text(t)).collect();
        let mut expect = expect.to_vec();
        got.sort_unstable();
        expect.sort_unstable();
        assert_eq!(got, expect, "{family}");
    }
}

#[test]
fn bos_is_put_in_front_once() {
    let mut spec = small();
    spec.ids.bos = Some(259);
    let add_bos = |spec: &TokenizerSpec| Tokenizer::new(spec.clone()).unwrap().add_bos();
    assert!(!add_bos(&spec));
    spec.pre = "llama-bpe".to_owned();
    assert!(add_bos(&spec), "llama-bpe's default");
    spec.add_bos = Some(false);
    assert!(!add_bos(&spec));
    spec.add_bos = Some(true);
    let tokenizer = Tokenizer::new(spec).unwrap();
    assert_eq!(tokenizer.encode_prompt("he").unwrap(), [id(259), id(256)]);
    assert_eq!(tokenizer.encode_prompt("<|im_start|>he").unwrap(), [id(259), id(256)]);
    assert_eq!(tokenizer.encode_special("he").unwrap(), [id(256)]);
}

#[test]
fn a_merge_may_not_make_or_use_a_control_token() {
    let mut spec = with(&[("ab", 3)]);
    spec.merges.push("a b".to_owned());
    let error = Tokenizer::new(spec).unwrap_err().to_string();
    assert!(error.contains("merge 3") && error.contains("makes what is not text"), "{error}");
}

/// Quadratic time in the length of a word or of a run of white space would take hours here.
#[test]
fn enormous_words_are_encoded() {
    let tokenizer = Tokenizer::new(small()).unwrap();
    for unit in ["a", " ", "\n", "he", "1", "'", " \n", "\u{3000}", "😀", "<|im_start|"] {
        let text = unit.repeat((1 << 20) / unit.len());
        let ids = tokenizer.encode_plain(&text).unwrap();
        assert!(tokenizer.decode(&ids) == text, "{unit:?}");
    }
}

#[test]
fn metadata_of_the_wrong_type_are_refused_by_key() {
    use crate::gguf::{GgufWriter, Value};
    let refused = |change: &dyn Fn(&mut GgufWriter)| {
        let mut writer = GgufWriter::new();
        writer.set("tokenizer.ggml.model", Value::String("gpt2"));
        change(&mut writer);
        let bytes = writer.start(Vec::new()).unwrap().finish();
        let error = Tokenizer::from_gguf(&Gguf::from_bytes(bytes).unwrap()).unwrap_err();
        std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default()
    };
    let contains = |error: String, key: &str| assert!(error.contains(key), "{error}");
    contains(refused(&|_| ()), "tokenizer.ggml.pre");
    let pre = |w: &mut GgufWriter| {
        w.set("tokenizer.ggml.pre", Value::String("gpt-2"));
    };
    contains(refused(&pre), "tokenizer.ggml.tokens");
    contains(
        refused(&|w| {
            pre(w);
            w.set_i32s("tokenizer.ggml.tokens", &[1]);
        }),
        "tokenizer.ggml.tokens",
    );
    contains(
        refused(&|w| {
            pre(w);
            w.set_strings("tokenizer.ggml.tokens", &["a"]);
            w.set_f32s("tokenizer.ggml.token_type", &[1.0]);
        }),
        "tokenizer.ggml.token_type",
    );
    contains(
        refused(&|w| {
            pre(w);
            w.set_strings("tokenizer.ggml.tokens", &["a"]);
            w.set_strings::<&str>("tokenizer.ggml.merges", &[]);
            w.set("tokenizer.ggml.eos_token_id", Value::I32(-1));
        }),
        "tokenizer.ggml.eos_token_id",
    );
}

/// `▁`, letters and a few words, with all bytes; then `extra` with its type.
fn pieces(extra: &[(&str, i32)]) -> TokenizerSpec {
    let mut tokens: Vec<(String, i32)> = vec![("<unk>".into(), 2), ("<s>".into(), 3), ("</s>".into(), 3)];
    tokens.extend((0..=255).map(|b| (format!("<0x{b:02X}>"), 6)));
    tokens.extend(["▁", "a", "b", "<", "s", ">", "▁a", "ab", "<s", "▁ab"].map(|t| (t.to_owned(), 1)));
    tokens.extend(extra.iter().map(|(t, ty)| ((*t).to_owned(), *ty)));
    TokenizerSpec {
        model: "llama".to_owned(),
        scores: Some((0..tokens.len()).map(|i| -(i as f32)).collect()),
        types: Some(tokens.iter().map(|(_, ty)| *ty).collect()),
        tokens: tokens.into_iter().map(|(t, _)| t).collect(),
        ..Default::default()
    }
}

fn shown(tokenizer: &Tokenizer, ids: &[TokenId]) -> Vec<String> {
    ids.iter().map(|&t| tokenizer.texts[t.0 as usize].clone()).collect()
}

#[test]
fn pieces_begin_with_a_space_and_fall_back_to_bytes() {
    let tokenizer = Tokenizer::new(pieces(&[("<t>", 4)])).unwrap();
    let plain = |text: &str| tokenizer.encode_plain(text).unwrap();
    assert_eq!(shown(&tokenizer, &plain("ab é")), ["▁ab", "▁", "<0xC3>", "<0xA9>"]);
    assert_eq!(shown(&tokenizer, &plain("<s>ab")), ["▁", "<s", ">", "ab"]);
    assert_eq!(shown(&tokenizer, &plain("a<t>a")), ["▁a", "<t>", "▁a"]);
    let special = tokenizer.encode_special("<s>ab</s><s> b").unwrap();
    assert_eq!(shown(&tokenizer, &special), ["<s>", "▁ab", "</s>", "<s>", "▁", "▁", "b"]);
    let prompt = tokenizer.encode_prompt("b").unwrap();
    assert_eq!(shown(&tokenizer, &prompt), ["<s>", "▁", "b"]);
    for text in ["", " ", "ab", "  ab \n\u{301}😀 ", "<0x0A>", "<s>"] {
        assert_eq!(tokenizer.decode(&plain(text)), text);
    }
    // Streamed text goes on after a prompt, so its first space stays.
    assert_eq!(tokenizer.token_bytes().get(plain("ab")[0]), b" ab");
    assert_eq!(*tokenizer.end_tokens(), [id(2)]);
}

#[test]
fn keys_decide_prefix_and_ends() {
    let spec = TokenizerSpec {
        add_space_prefix: Some(false),
        add_bos: Some(false),
        add_eos: Some(true),
        ..pieces(&[])
    };
    let tokenizer = Tokenizer::new(spec).unwrap();
    assert_eq!(shown(&tokenizer, &tokenizer.encode_prompt("ab ").unwrap()), ["ab", "▁", "</s>"]);
    assert_eq!(shown(&tokenizer, &tokenizer.encode_prompt("ab</s>").unwrap()), ["ab", "</s>"]);
    assert_eq!(tokenizer.decode(&tokenizer.encode_plain(" ab").unwrap()), " ab");
}

#[test]
fn bad_pieces_are_refused_by_name() {
    let refused = |change: &dyn Fn(&mut TokenizerSpec)| {
        let mut spec = pieces(&[]);
        change(&mut spec);
        Tokenizer::new(spec).unwrap_err().to_string()
    };
    let contains = |error: String, what: &str| assert!(error.contains(what), "{error}");
    contains(refused(&|s| s.types = None), "token_type has 0 entries for 269");
    contains(refused(&|s| s.scores = None), "scores has 0 entries for 269");
    contains(refused(&|s| s.scores.as_mut().unwrap()[260] = f32::NAN), "score of token 260");
    contains(refused(&|s| s.tokens[260] = "x".repeat(1025)), "token 260 has 1025 bytes");
    contains(refused(&|s| s.tokens[7] = "<0x+4>".into()), "token 7, \"<0x+4>\"");
    contains(refused(&|s| s.types.as_mut().unwrap()[260] = 7), "token 260 has type 7");
    contains(refused(&|s| s.ids.unk = Some(269)), "unknown_token_id is 269");
}

/// Quadratic time would take hours here; so would recursion into pieces that are taken apart overflow a stack.
#[test]
fn enormous_words_of_pieces_are_encoded() {
    let doubled: Vec<String> = (1..=10).map(|n| "a".repeat(1 << n)).collect();
    let mut extra: Vec<(&str, i32)> = doubled.iter().map(|t| (t.as_str(), 5)).collect();
    let across = Tokenizer::new(pieces(&[("a▁", 1)])).unwrap();
    extra.push(("▁▁", 1));
    let words = Tokenizer::new(pieces(&extra)).unwrap();
    for tokenizer in [across, words] {
        for unit in ["a", "ab", " ", "a ", "é", "<s", "b"] {
            let text = unit.repeat((1 << 18) / unit.len());
            let ids = tokenizer.encode_plain(&text).unwrap();
            assert!(tokenizer.decode(&ids) == text, "{unit:?}");
        }
    }
}
