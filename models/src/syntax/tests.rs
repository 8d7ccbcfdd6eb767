//! Answers of each family, cut into pieces at random.

use std::sync::Arc;

use proptest::prelude::*;
use serde_json::json;

use super::{Ids, Part, Reader, Syntax, Tool};

const HERMES: &str = "{{ '<tool_call>' }} {{ '<think>' }}";
const CODER: &str = "<tool_call>\n<function=example>";
const GLM: &str = "<tool_call>{name}\n<arg_key> <think></think>";
const MISTRAL: &str = "[TOOL_CALLS] [";
const INLINE: &str = "[TOOL_CALLS] + name + [ARGS]";
const LLAMA: &str = r#"Respond in the format {"name": function name, "parameters": dictionary of argument name and its value}."#;
const DEEPSEEK: &str = "<｜tool▁calls▁begin｜> ```json </think>";
const DEEPSEEK_V31: &str = "<｜tool▁calls▁begin｜> </think>";
const KIMI: &str = "<|tool_calls_section_begin|>";
const HARMONY: &str = "<|start|>assistant<|channel|>";
const GRANITE: &str = "<|tool_call|>";

fn tools() -> Arc<[Tool]> {
    let schema =
        json!({"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}});
    let tool = |name: &str| Tool { name: name.to_owned(), parameters: Some(schema.clone()), strict: false };
    [tool("weather"), tool("time")].into()
}

/// What an answer holds, its parts joined.
#[derive(Clone, Debug, Default, PartialEq)]
struct Read {
    reasoning: String,
    content: String,
    calls: Vec<(String, Option<String>, String)>,
}

fn read_pieces<'a>(template: &str, reasoning: bool, pieces: impl Iterator<Item = &'a str>) -> Read {
    let mut reader = Reader::new(Syntax::of_template(template), tools(), reasoning);
    let (mut parts, mut read) = (Vec::new(), Read::default());
    pieces.for_each(|piece| reader.push(piece, &mut parts));
    reader.finish(&mut parts);
    for part in parts {
        match part {
            Part::Reasoning(text) => read.reasoning += &text,
            Part::Content(text) => read.content += &text,
            Part::Call { name, id } => read.calls.push((name, id, String::new())),
            Part::Arguments(text) => read.calls.last_mut().expect("a call").2 += &text,
        }
    }
    assert_eq!(reader.calls(), read.calls.len());
    read
}

fn read(template: &str, answer: &str) -> Read {
    let whole = read_pieces(template, false, [answer].into_iter());
    let cut = |(at, c): (usize, char)| &answer[at..at + c.len_utf8()];
    assert_eq!(read_pieces(template, false, answer.char_indices().map(cut)), whole, "by character");
    whole
}

fn call(name: &str, arguments: &str) -> (String, Option<String>, String) {
    (name.to_owned(), None, arguments.to_owned())
}

#[test]
fn each_family_calls_in_its_own_words() {
    let two = vec![call("weather", r#"{"city": "Rome"}"#), call("time", "{}")];
    let objects = "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Rome\"}}\n</tool_call>\n\
                   <tool_call>\n{\"name\": \"time\", \"arguments\": {}}\n</tool_call>";
    let section = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n{\"city\": \"Rome\"}\n\
                   ```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>time\n```json\n{}\n```\
                   <｜tool▁call▁end｜><｜tool▁calls▁end｜>";
    let short = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather<｜tool▁sep｜>{\"city\": \"Rome\"}<｜tool▁call▁end｜>\
                 <｜tool▁call▁begin｜>time<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>";
    let list = "[{\"name\": \"weather\", \"arguments\": {\"city\": \"Rome\"}}, {\"arguments\": {}, \"name\": \"time\"}]";
    let bare = "{\"name\": \"weather\", \"parameters\": {\"city\": \"Rome\"}}; {\"name\": \"time\", \"parameters\": {}}";
    let harmony = "<|channel|>commentary to=functions.weather <|constrain|>json<|message|>{\"city\": \"Rome\"}<|call|>\
                   <|start|>assistant to=functions.time<|channel|>commentary<|message|>{}";
    for (template, answer) in [
        (HERMES, objects.to_owned()),
        (DEEPSEEK, section.to_owned()),
        (DEEPSEEK_V31, short.to_owned()),
        (MISTRAL, format!("[TOOL_CALLS] {list}")),
        (GRANITE, format!("<|tool_call|>{list}")),
        (LLAMA, bare.to_owned()),
        (LLAMA, format!("<|python_tag|>{bare}")),
        (INLINE, "[TOOL_CALLS]weather[ARGS]{\"city\": \"Rome\"}[TOOL_CALLS]time[ARGS]{}".to_owned()),
        (HARMONY, harmony.to_owned()),
    ] {
        assert_eq!(read(template, &answer), Read { calls: two.clone(), ..Read::default() }, "{answer}");
    }
}

#[test]
fn ids_and_typed_arguments_come_from_the_text() {
    let kimi = "<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0<|tool_call_argument_begin|>{\"days\": 2}\
                <|tool_call_end|><|tool_calls_section_end|>";
    let wanted = ("weather".to_owned(), Some("functions.weather:0".to_owned()), "{\"days\": 2}".to_owned());
    assert_eq!(read(KIMI, kimi).calls, [wanted]);
    let with_id = "[TOOL_CALLS]time[CALL_ID]abcdefghi[ARGS]{}";
    assert_eq!(
        read(INLINE, with_id).calls,
        [("time".to_owned(), Some("abcdefghi".to_owned()), "{}".to_owned())]
    );
    let coder = "Let me see.\n<tool_call>\n<function=weather>\n<parameter=city>\n12\nx\n</parameter>\n<parameter=days>\n3\n\
                 </parameter>\n</function>\n</tool_call>";
    let wanted = Read {
        content: "Let me see.".to_owned(),
        calls: vec![call("weather", r#"{"city":"12\nx","days":3}"#)],
        ..Read::default()
    };
    assert_eq!(read(CODER, coder), wanted);
    let glm = "<think>hm</think>\n<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>7</arg_value>\n<arg_key>days</arg_key>\n\
               <arg_value>7</arg_value>\n</tool_call>";
    let wanted = Read {
        reasoning: "hm".to_owned(),
        calls: vec![call("weather", r#"{"city":"7","days":7}"#)],
        ..Read::default()
    };
    assert_eq!(read(GLM, glm), wanted);
    assert_eq!(Syntax::of_template(KIMI).ids(), Ids::Numbered);
    assert_eq!(Syntax::of_template(MISTRAL).ids(), Ids::Nine);
    assert_eq!(Syntax::of_template(HERMES).ids(), Ids::Any);
}

#[test]
fn reasoning_is_taken_out_and_may_be_open_already() {
    let answer = "<think>\nOne, two.\n</think>\n\nThree. ";
    let wanted = Read { reasoning: "One, two.".to_owned(), content: "Three. ".to_owned(), calls: vec![] };
    assert_eq!(read(HERMES, answer), wanted);
    let open = read_pieces(HERMES, true, ["One, ", "two.\n</th", "ink>\n\nThree. "].into_iter());
    assert_eq!(open, wanted);
    let unfinished = read_pieces(HERMES, true, ["One, two."].into_iter());
    assert_eq!(unfinished, Read { reasoning: "One, two.".to_owned(), ..Read::default() });
    let harmony = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Yes.";
    assert_eq!(
        read(HARMONY, harmony),
        Read { reasoning: "Hm.".to_owned(), content: "Yes.".to_owned(), calls: vec![] }
    );
    let syntax = Syntax::of_template(HERMES);
    assert!(syntax.begins_in_reasoning("<|im_start|>assistant\n<think>\n"));
    assert!(!syntax.begins_in_reasoning("<|im_start|>assistant\n<think>\n\n</think>\n\n"));
}

#[test]
fn what_is_no_call_is_content_as_it_was_written() {
    for (template, answer) in [
        (HERMES, " a < b <tool_cal and <tools> \n"),
        (HERMES, "<tool_call>\nno object</tool_call>"),
        (HERMES, "<tool_call>{\"name\": 5}</tool_call>"),
        (LLAMA, "{\"name\": \"unknown\", \"parameters\": {}}"),
        (LLAMA, "{\"weather\": \"weather\"} is what it says"),
        (LLAMA, "see {\"name\": \"weather\", \"parameters\": {}}"),
        (CODER, "<tool_call>\nfree text\n</tool_call>"),
        (CODER, "<tool_call>\n<function=weather>\n<parameter=ci"),
        (DEEPSEEK, "plain ｜tool▁calls▁begin｜"),
        (HARMONY, "no header at all"),
    ] {
        assert_eq!(read(template, answer), Read { content: answer.to_owned(), ..Read::default() });
    }
}

#[test]
fn a_call_that_is_cut_short_keeps_what_came() {
    let cut = read(HERMES, "<tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\": \"Ro");
    assert_eq!(cut.calls, [call("weather", "{\"city\": \"Ro")]);
    let quoted = read(HERMES, r#"<tool_call>{"name": "time", "arguments": "{\"city\": \"é\"}"}</tool_call>"#);
    assert_eq!(quoted.calls, [call("time", r#"{"city": "é"}"#)]);
    let none = read(HERMES, "<tool_call>{\"name\": \"time\"}</tool_call> and more");
    assert_eq!((none.calls, none.content.as_str()), (vec![call("time", "{}")], "and more"));
}

#[test]
fn without_tools_marks_are_text() {
    let answer = "<tool_call>{\"name\": \"time\", \"arguments\": {}}</tool_call>";
    let mut reader = Reader::new(Syntax::of_template(HERMES), Arc::default(), false);
    let mut parts = Vec::new();
    reader.push(answer, &mut parts);
    reader.finish(&mut parts);
    assert_eq!(parts, [Part::Content(answer.to_owned())]);
}

/// Marks, their beginnings, and what stands between them.
fn fragments() -> impl Strategy<Value = String> {
    let words: &[&str] = &[
        "<tool_call>",
        "</tool_call>",
        "<tool",
        "<think>",
        "</think>",
        "</",
        "\n",
        " ",
        "{\"name\": \"weather\"",
        ", ",
        "}",
        "\"arguments\": {\"a\": [1, \"}\"]}",
        "\"parameters\": \"x\"",
        "{",
        "[TOOL_CALLS]",
        "[ARGS]",
        "[",
        "]",
        "text",
        "é",
        ";",
        "<function=weather>",
        "</function>",
        "<parameter=city>",
        "</parameter>",
        "<|channel|>",
        "<|message|>",
        "<|end|>",
        "final",
        "analysis",
        "commentary to=functions.time ",
        "<|start|>",
        "assistant",
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁call▁begin｜>",
        "<｜tool▁sep｜>",
        "<｜tool▁call▁end｜>",
        "<｜tool▁calls▁end｜>",
        "function",
        "```json\n",
        "```",
        "<|python_tag|>",
        "<|tool_call|>",
        "<arg_key>",
        "</arg_key>",
        "<arg_value>",
        "</arg_value>",
    ];
    prop::collection::vec(prop::sample::select(words), 0..14).prop_map(|words| words.concat())
}

proptest! {
    #[test]
    fn pieces_do_not_matter(
        answer in fragments(),
        template in prop::sample::select(&[
            HERMES, CODER, GLM, MISTRAL, INLINE, LLAMA, DEEPSEEK, DEEPSEEK_V31, KIMI, HARMONY, GRANITE, "",
        ][..]),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
        reasoning: bool,
    ) {
        let whole = read_pieces(template, reasoning, [answer.as_str()].into_iter());
        let mut at: Vec<usize> = answer.char_indices().map(|(at, _)| at).collect();
        at.push(answer.len());
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| *cut.get(&at)).collect();
        cuts.extend([0, answer.len()]);
        cuts.sort_unstable();
        let pieces = cuts.windows(2).map(|pair| &answer[pair[0]..pair[1]]);
        prop_assert_eq!(read_pieces(template, reasoning, pieces), whole);
    }
}

mod grammars {
    use super::*;
    use crate::constraint::{ConstraintEngine, ConstraintSpec};
    use crate::mask::Progress;
    use crate::step::TokenId;
    use crate::syntax::{Answers, grammar};
    use crate::tokenizer::{SpecialIds, Tokenizer, TokenizerSpec};

    /// All bytes and an end; the marks of a syntax as control tokens, or as nothing but text.
    fn tokenizer(syntax: Syntax, controls: bool) -> Tokenizer {
        let plain = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
        let byte = |b: u8| {
            let before = (0..b).filter(|&b| !plain(b)).count() as u32;
            char::from_u32(if plain(b) { b.into() } else { 256 + before }).expect("a character").to_string()
        };
        let mut tokens: Vec<String> = (0..=255).map(byte).collect();
        tokens.push("<|the end|>".to_owned());
        for mark in syntax.marks().into_iter().filter(|_| controls) {
            // Some marks are several tokens and text between them.
            let words = mark.split_inclusive('>').filter_map(|part| Some(&part[part.find('<')?..]));
            let words =
                words.filter(|word| word.ends_with('>')).chain(Some(mark).filter(|m| m.starts_with('[')));
            for word in words {
                if !tokens.iter().any(|token| token == word) {
                    tokens.push(word.to_owned());
                }
            }
        }
        let types = (0..tokens.len()).map(|id| if id < 256 { 1 } else { 3 }).collect();
        let ids = SpecialIds { eos: Some(256), ..SpecialIds::default() };
        let (model, pre) = ("gpt2".to_owned(), "gpt-2".to_owned());
        let spec = TokenizerSpec { model, pre, tokens, types: Some(types), ids, ..TokenizerSpec::default() };
        Tokenizer::new(spec).expect("a sound vocabulary")
    }

    fn strict_tools() -> Arc<[Tool]> {
        let schema = json!({
            "type": "object",
            "properties": {
                "unit": {"type": "string", "enum": ["C", "F"]},
                "days": {"type": "integer", "minimum": 0, "maximum": 9},
            },
            "required": ["unit", "days"],
            "additionalProperties": false,
        });
        let tool =
            |name: &str| Tool { name: name.to_owned(), parameters: Some(schema.clone()), strict: true };
        [tool("weather"), tool("time")].into()
    }

    /// A text that the grammar allows, chosen by chance.
    fn walk(tokenizer: &Tokenizer, lark: &str, seed: u64) -> String {
        let engine = ConstraintEngine::new(tokenizer).expect("a vocabulary with all bytes");
        let grammar = engine.compile(&ConstraintSpec::Lark(lark.to_owned()));
        let mut matcher = grammar.unwrap_or_else(|e| panic!("{e}\n{lark}")).matcher();
        let (mut text, mut state) = (Vec::new(), seed);
        for _ in 0..2000 {
            let next = matcher.next().wait().unwrap_or_else(|e| panic!("{e}\n{lark}"));
            let allowed: Vec<TokenId> = (0..tokenizer.vocab_size() as u32)
                .map(TokenId)
                .filter(|&t| next.tokens.contains(t))
                .collect();
            if next.may_end || allowed.is_empty() {
                break;
            }
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let token = allowed[(state >> 33) as usize % allowed.len()];
            text.extend(tokenizer.raw_bytes(token));
            if matcher.advance(token).unwrap_or_else(|e| panic!("{e}\n{lark}")) == Progress::Complete {
                break;
            }
        }
        String::from_utf8(text).expect("whole characters")
    }

    #[test]
    fn what_a_grammar_lets_out_is_read_as_calls() {
        for template in
            [HERMES, CODER, GLM, MISTRAL, INLINE, LLAMA, DEEPSEEK, DEEPSEEK_V31, KIMI, HARMONY, GRANITE]
        {
            let syntax = Syntax::of_template(template);
            for (controls, seed) in [(false, 1), (false, 2), (true, 3), (true, 4)] {
                let tokenizer = tokenizer(syntax, controls);
                let tools = strict_tools();
                let answers = Answers {
                    tools: &tools,
                    required: true,
                    parallel: false,
                    content: None,
                    in_reasoning: false,
                    reasoning: false,
                };
                let lark = grammar(&syntax, &answers, &tokenizer).unwrap();
                let answer = walk(&tokenizer, &lark, seed);
                let mut reader = Reader::new(syntax, tools, false);
                let mut parts = Vec::new();
                reader.push(&answer, &mut parts);
                reader.finish(&mut parts);
                let [Part::Call { name, .. }, Part::Arguments(arguments)] = parts.as_slice() else {
                    panic!("{template}: {answer:?} is {parts:?}");
                };
                assert!(["weather", "time"].contains(&name.as_str()));
                let arguments: serde_json::Value = serde_json::from_str(arguments).unwrap();
                assert!(["C", "F"].contains(&arguments["unit"].as_str().unwrap()), "{answer}");
                assert!((0..10).contains(&arguments["days"].as_i64().unwrap()), "{answer}");
            }
        }
    }

    #[test]
    fn content_may_stand_where_calls_need_not() {
        for (template, controls) in
            [(HERMES, true), (HERMES, false), (LLAMA, false), (HARMONY, true), (KIMI, true)]
        {
            let syntax = Syntax::of_template(template);
            let tokenizer = tokenizer(syntax, controls);
            let tools = strict_tools();
            let content = "/[a-c]{3}/";
            let (mut texts, mut calls) = (0, 0);
            for seed in 0..24 {
                let answers = Answers {
                    tools: &tools,
                    required: false,
                    parallel: true,
                    content: Some(content),
                    in_reasoning: false,
                    reasoning: false,
                };
                let lark = grammar(&syntax, &answers, &tokenizer).unwrap();
                let answer = walk(&tokenizer, &lark, seed);
                let mut reader = Reader::new(syntax, tools.clone(), false);
                let mut parts = Vec::new();
                reader.push(&answer, &mut parts);
                reader.finish(&mut parts);
                match parts.as_slice() {
                    [Part::Content(text)] if text.len() == 3 => texts += 1,
                    [Part::Call { .. }, Part::Arguments(_), ..] => calls += 1,
                    other => panic!("{template}: {answer:?} is {other:?}"),
                }
            }
            assert!(texts > 0 && calls > 0, "{template}: {texts} texts, {calls} calls");
        }
    }

    #[test]
    fn free_text_is_cut_where_a_call_begins_and_schemas_hold_from_there() {
        let syntax = Syntax::of_template(HERMES);
        for controls in [true, false] {
            let tokenizer = tokenizer(syntax, controls);
            let tools = strict_tools();
            let answers = Answers {
                tools: &tools,
                required: false,
                parallel: true,
                content: None,
                in_reasoning: true,
                reasoning: true,
            };
            let lark = grammar(&syntax, &answers, &tokenizer).unwrap();
            let engine = ConstraintEngine::new(&tokenizer).unwrap();
            let grammar = engine.compile(&ConstraintSpec::Lark(lark)).unwrap();
            let follow = |text: &str| {
                let mut matcher = grammar.matcher();
                let tokens = tokenizer.encode_special(text).unwrap();
                let allowed = |(i, &token): (usize, &TokenId)| {
                    let next = matcher.next().wait().unwrap();
                    let allowed = next.tokens.contains(token);
                    if allowed {
                        matcher.advance(token).unwrap();
                    }
                    (!allowed).then_some(i)
                };
                tokens.iter().enumerate().find_map(allowed)
            };
            let good = "hm</think>\n\nLet me see.\n<tool_call>\n{\"name\": \"time\", \"arguments\": {\"unit\": \"C\", \"days\": 3}}\n</tool_call>";
            assert_eq!(follow(good), None, "{controls}");
            assert_eq!(follow("hm</think>Only text < here."), None, "{controls}");
            assert!(follow("hm</think>x<tool_call>\n{\"name\": \"other\"").is_some(), "{controls}");
            assert!(
                follow("hm</think>x<tool_call>\n{\"name\": \"time\", \"arguments\": {\"unit\": \"K")
                    .is_some()
            );
        }
    }

    #[test]
    fn a_schema_that_cannot_be_enforced_is_refused_only_where_it_must_be() {
        let syntax = Syntax::of_template(HERMES);
        let tokenizer = tokenizer(syntax, true);
        for strict in [true, false] {
            let parameters = Some(json!({"type": "object", "if": {"required": ["a"]}}));
            let tools = [Tool { name: "odd".to_owned(), parameters, strict }];
            let answers = Answers {
                tools: &tools,
                required: true,
                parallel: true,
                content: None,
                in_reasoning: false,
                reasoning: false,
            };
            let result = grammar(&syntax, &answers, &tokenizer);
            assert_eq!(result.is_err(), strict, "{result:?}");
        }
    }
}
