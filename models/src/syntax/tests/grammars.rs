//! What grammars of calls let out, and that it is read as what it is.

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
        let words = words.filter(|word| word.ends_with('>')).chain(Some(mark).filter(|m| m.starts_with('[')));
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
    let tool = |name: &str| Tool { name: name.to_owned(), parameters: Some(schema.clone()), strict: true };
    [tool("weather"), tool("time")].into()
}

/// A text that the grammar allows, chosen by chance.
fn walk(tokenizer: &Tokenizer, lark: &str, seed: u64) -> String {
    let engine = ConstraintEngine::new(tokenizer).expect("a vocabulary with all bytes");
    let grammar = engine.compile(&ConstraintSpec::Composed(lark.to_owned()));
    let mut matcher = grammar.unwrap_or_else(|e| panic!("{e}\n{lark}")).matcher();
    let (mut text, mut state) = (Vec::new(), seed);
    for _ in 0..2000 {
        let next = matcher.next().wait().unwrap_or_else(|e| panic!("{e}\n{lark}"));
        let allowed: Vec<TokenId> =
            (0..tokenizer.vocab_size() as u32).map(TokenId).filter(|&t| next.tokens.contains(t)).collect();
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

/// Follows texts in the grammar of free text and calls: the first token that is not allowed.
fn follower(
    syntax: Syntax,
    controls: bool,
    tools: &[Tool],
    reasoning: bool,
) -> impl Fn(&str) -> Option<usize> + use<> {
    let tokenizer = tokenizer(syntax, controls);
    let answers =
        Answers { tools, required: false, parallel: true, content: None, in_reasoning: reasoning, reasoning };
    let lark = grammar(&syntax, &answers, &tokenizer).unwrap();
    let engine = ConstraintEngine::new(&tokenizer).unwrap();
    let grammar =
        engine.compile(&ConstraintSpec::Composed(lark.clone())).unwrap_or_else(|e| panic!("{e}\n{lark}"));
    move |text| {
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
    }
}

#[test]
fn calls_in_tags_are_held_to_their_schemas_marked_or_not() {
    let [mut kinds] = <[Tool; 1]>::try_from(kinds().to_vec()).expect("one tool");
    let schema = kinds.parameters.as_mut().unwrap();
    for (key, unfit) in [("circle", json!({"$ref": "#/$defs/none"})), ("any", json!({"format": "path"}))] {
        schema["properties"][key] = unfit;
    }
    // Not strict, so any arguments but those that are text.
    let loose = follower(Syntax::of_template(CODER), false, &[kinds.clone()], false);
    let arguments = |unit: &str, gap: &str| {
        format!(
            "kinds>\n<parameter=unit>\n{unit}\n</parameter>\n<parameter=gap>\n{gap}\n</parameter>\n</function>"
        )
    };
    assert_eq!(loose(&format!("<function={}", arguments("C", "\"x\""))), None);
    let properties = kinds.parameters.as_mut().unwrap()["properties"].as_object_mut().unwrap();
    properties.retain(|key, _| ["unit", "gap"].contains(&key.as_str()));
    properties["gap"] = json!({"anyOf": [{"$ref": "#/$defs/number"}, {"type": "null"}]});
    kinds.parameters.as_mut().unwrap()["$defs"] =
        json!({"unit": {"enum": ["C", "F"]}, "number": {"type": "integer"}});
    kinds.strict = true;
    for controls in [true, false] {
        let follow = follower(Syntax::of_template(CODER), controls, &[kinds.clone()], false);
        for (unit, gap, fits) in
            [("C", "12", true), ("null", "null", true), ("K", "12", false), ("C", "\"x\"", false)]
        {
            let call = arguments(unit, gap);
            for answer in [
                format!("Look.\n<tool_call>\n<function={call}\n</tool_call>"),
                format!("Look.\n<function={call}\n</tool_call>"),
                format!("<function={call}\n<function={call}"),
            ] {
                assert_eq!(follow(&answer).is_none(), fits, "{controls}: {answer}");
            }
        }
        assert!(follow("Look.\n<function=other>").is_some(), "{controls}");
    }
}

#[test]
fn free_text_is_cut_where_a_call_begins_and_schemas_hold_from_there() {
    let syntax = Syntax::of_template(HERMES);
    for controls in [true, false] {
        let follow = follower(syntax, controls, &strict_tools(), true);
        let good = "hm</think>\n\nLet me see.\n<tool_call>\n{\"name\": \"time\", \"arguments\": {\"unit\": \"C\", \"days\": 3}}\n</tool_call>";
        assert_eq!(follow(good), None, "{controls}");
        assert_eq!(follow("hm</think>Only text < here."), None, "{controls}");
        assert!(follow("hm</think>x<tool_call>\n{\"name\": \"other\"").is_some(), "{controls}");
        assert!(
            follow("hm</think>x<tool_call>\n{\"name\": \"time\", \"arguments\": {\"unit\": \"K").is_some()
        );
    }
}

#[test]
fn a_schema_that_cannot_be_enforced_is_refused_only_where_it_must_be() {
    for (keyword, odd) in [
        ("'if'", json!({"if": {"required": ["a"]}})),
        ("format 'path'", json!({"type": "string", "format": "path"})),
        ("'pattern'", json!({"type": "integer", "pattern": "(?!a)"})),
        ("'#/$defs/a'", json!({"$ref": "#/$defs/a"})),
        ("", json!({"oneOf": [{"type": "integer"}, {"type": "number"}]})),
    ] {
        for (template, strict) in [(HERMES, true), (HERMES, false), (GLM, true), (GLM, false)] {
            let syntax = Syntax::of_template(template);
            let tokenizer = tokenizer(syntax, true);
            // What is text in tags has no schema that is enforced.
            let odd = json!({"type": "array", "items": odd});
            let parameters = Some(json!({"type": "object", "properties": {"a": odd, "b": {"type": "null"}}}));
            let tools = [Tool { name: "odd".to_owned(), parameters, strict }];
            let answers = Answers {
                tools: &tools,
                required: true,
                parallel: true,
                content: None,
                in_reasoning: false,
                reasoning: false,
            };
            match grammar(&syntax, &answers, &tokenizer) {
                Ok(lark) => {
                    let engine = ConstraintEngine::new(&tokenizer).unwrap();
                    let compiled = engine.compile(&ConstraintSpec::Composed(lark));
                    // Whether alternatives overlap is seen while compiling.
                    assert_eq!(compiled.is_err(), strict, "{odd}: {compiled:?}");
                    assert!(!strict || keyword.is_empty(), "{odd}");
                }
                Err(error) => {
                    assert!(strict, "{odd}: {error}");
                    let message = error.to_string();
                    assert!(message.contains("'odd'") && message.contains(keyword), "{message}");
                }
            }
        }
    }
}

fn strict(parameters: serde_json::Value) -> Tool {
    Tool { name: "f".to_owned(), parameters: Some(parameters), strict: true }
}

/// A call of `f` in each style, its arguments as `(name, text)`.
fn calls(arguments: &[(&str, &str)]) -> [(&'static str, String); 2] {
    let coder = |(key, text): &(&str, &str)| format!("<parameter={key}>\n{text}\n</parameter>\n");
    let glm =
        |(key, text): &(&str, &str)| format!("<arg_key>{key}</arg_key>\n<arg_value>{text}</arg_value>\n");
    let (coder, glm): (String, String) =
        (arguments.iter().map(coder).collect(), arguments.iter().map(glm).collect());
    [
        (CODER, format!("<tool_call>\n<function=f>\n{coder}</function>\n</tool_call>")),
        (GLM, format!("<tool_call>f\n{glm}</tool_call>")),
    ]
}

/// Whether the grammar allows such a call, marks being control tokens or not; and what it is read as.
fn allowed(tool: &Tool, arguments: &[(&str, &str)]) -> Option<serde_json::Value> {
    let mut all = Vec::new();
    for (template, answer) in calls(arguments) {
        for controls in [true, false] {
            let syntax = Syntax::of_template(template);
            let follow = follower(syntax, controls, std::slice::from_ref(tool), false);
            let read = read_for([tool.clone()].into(), template, false, [answer.as_str()].into_iter());
            let [(_, _, arguments)] = read.calls.as_slice() else { panic!("{answer}: {read:?}") };
            let arguments: serde_json::Value = serde_json::from_str(arguments).unwrap();
            all.push(follow(&answer).is_none().then_some(arguments));
        }
    }
    assert!(all.windows(2).all(|pair| pair[0] == pair[1]), "{tool:?}: {arguments:?}: {all:?}");
    all.remove(0)
}

#[test]
fn texts_in_tags_may_be_words_or_what_else_their_schema_allows() {
    let word = json!({"anyOf": [{"const": "auto"}, {"const": "7"}, {"type": "integer"}]});
    let tool = strict(json!({"type": "object", "properties": {"a": word}, "required": ["a"]}));
    for (text, value) in
        [("auto", Some(json!("auto"))), ("5", Some(json!(5))), ("7", Some(json!("7"))), ("other", None)]
    {
        assert_eq!(allowed(&tool, &[("a", text)]), value.map(|value| json!({"a": value})), "{text}");
    }
}

#[test]
fn strings_in_tags_are_held_to_their_limits() {
    for (schema, good, bad) in [
        (json!({"type": "string", "pattern": "^[a-c]+$", "maxLength": 3}), "abc", "abca"),
        (json!({"type": "string", "pattern": "b"}), "abc", "ac"),
        (json!({"type": "string", "minLength": 2}), "é<", "é"),
        (json!({"type": ["string", "null"], "maxLength": 2}), "null", "nul"),
        (json!({"anyOf": [{"type": "string", "pattern": "^x"}, {"enum": ["y", "z"]}]}), "z", "zz"),
        (json!({"$ref": "#/$defs/a"}), "1", "b"),
    ] {
        let tool = strict(
            json!({"type": "object", "properties": {"a": schema}, "$defs": {"a": {"type": "string", "pattern": "^1"}}}),
        );
        assert!(allowed(&tool, &[("a", good)]).is_some(), "{schema}");
        assert!(allowed(&tool, &[("a", bad)]).is_none(), "{schema}");
    }
    for (schema, named) in [
        (json!({"type": "string", "format": "date"}), "date"),
        (json!({"type": "string", "pattern": "^a|b$"}), "'pattern'"),
        (json!({"allOf": [{"type": "string"}, {"pattern": "a"}]}), "together"),
    ] {
        for template in [CODER, GLM] {
            let syntax = Syntax::of_template(template);
            let mut tool = strict(json!({"type": "object", "properties": {"a": schema}}));
            let tokenizer = tokenizer(syntax, false);
            let mut ask = |strict: bool| {
                tool.strict = strict;
                let answers = Answers {
                    tools: std::slice::from_ref(&tool),
                    required: true,
                    parallel: true,
                    content: None,
                    in_reasoning: false,
                    reasoning: false,
                };
                grammar(&syntax, &answers, &tokenizer)
            };
            assert!(ask(true).is_err_and(|e| e.to_string().contains(named)), "{schema}");
            assert!(ask(false).is_ok(), "{schema}");
        }
    }
}

#[test]
fn parameters_without_properties_of_their_own_are_not_empty() {
    let integer = json!({"type": "integer"});
    for (parameters, arguments, fits) in [
        (json!({"$ref": "#/$defs/p", "$defs": {"p": {"properties": {"a": integer}}}}), ("a", "5"), true),
        (json!({"$ref": "#/$defs/p", "$defs": {"p": {"properties": {"a": integer}}}}), ("a", "x"), false),
        (json!({"type": "object"}), ("any", "text"), true),
        (json!({"type": "object", "additionalProperties": integer}), ("any", "5"), true),
        (json!({"type": "object", "additionalProperties": integer}), ("any", "x"), false),
        (json!({"type": "object", "additionalProperties": false}), ("any", "5"), false),
        (json!({"type": "object", "properties": {}}), ("any", "5"), false),
        (json!({"type": "object", "required": ["a"]}), ("a", "5"), true),
        (json!({"type": "object", "required": ["a"]}), ("b", "5"), false),
    ] {
        assert_eq!(allowed(&strict(parameters.clone()), &[arguments]).is_some(), fits, "{parameters}");
    }
    let parts = json!({"allOf": [{"properties": {"a": integer}}]});
    let loose = Tool { strict: false, ..strict(parts) };
    assert_eq!(allowed(&loose, &[("a", "5"), ("b", "x")]), Some(json!({"a": 5, "b": "x"})));
    assert_eq!(allowed(&Tool { parameters: None, ..loose }, &[]), Some(json!({})));
}

#[test]
fn many_tools_and_long_descriptions_make_no_grammar_too_large() {
    let syntax = Syntax::of_template(HERMES);
    let tokenizer = tokenizer(syntax, true);
    let compiled = |tools: &[Tool], content: Option<&str>| {
        let answers = Answers {
            tools,
            required: content.is_none(),
            parallel: false,
            content,
            in_reasoning: true,
            reasoning: true,
        };
        let lark = grammar(&syntax, &answers, &tokenizer).unwrap();
        ConstraintEngine::new(&tokenizer).unwrap().compile(&ConstraintSpec::Composed(lark)).unwrap();
    };
    let words = "what it is for; ".repeat(5);
    let named = |i: usize| {
        let property = |j: usize| (format!("property_{j}"), json!({"type": "integer", "description": words}));
        let properties: serde_json::Map<String, serde_json::Value> = (0..8).map(property).collect();
        let parameters = json!({"type": "object", "properties": properties, "required": ["property_0"]});
        Tool { name: format!("f{i}"), ..strict(parameters) }
    };
    compiled(&(0..80).map(named).collect::<Vec<_>>(), None);
    let word = "x".repeat(100_000);
    let schema =
        json!({"type": "object", "properties": {"description": {"const": word}}, "description": word});
    compiled(&[], Some(&ConstraintSpec::Json(schema).rule().unwrap()));
}
