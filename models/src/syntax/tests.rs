//! Answers of each family, cut into pieces at random.

mod grammars;

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

/// A tool with arguments of all kinds.
fn kinds() -> Arc<[Tool]> {
    let schema = json!({
        "type": "object",
        "$defs": {"unit": {"type": "string", "enum": ["C", "F"]}, "circle": {"$ref": "#/$defs/circle"}},
        "properties": {
            "city": {"type": "string"},
            "maybe": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            "list": {"type": ["string", "array"]},
            "word": {"enum": ["1", "2", null]},
            "only": {"const": "3"},
            "unit": {"anyOf": [{"$ref": "#/$defs/unit"}, {"type": "null"}]},
            "all": {"allOf": [{"$ref": "#/$defs/unit"}]},
            "flag": {"type": "boolean"},
            "gap": {"type": ["integer", "null"]},
            "circle": {"$ref": "#/$defs/circle"},
            "any": {},
        },
    });
    [Tool { name: "kinds".to_owned(), parameters: Some(schema), strict: false }].into()
}

/// What an answer holds, its parts joined.
#[derive(Clone, Debug, Default, PartialEq)]
struct Read {
    reasoning: String,
    content: String,
    calls: Vec<(String, Option<String>, String)>,
}

fn read_pieces<'a>(template: &str, reasoning: bool, pieces: impl Iterator<Item = &'a str>) -> Read {
    read_for(tools(), template, reasoning, pieces)
}

fn read_for<'a>(
    tools: Arc<[Tool]>,
    template: &str,
    reasoning: bool,
    pieces: impl Iterator<Item = &'a str>,
) -> Read {
    let mut reader = Reader::new(Syntax::of_template(template), tools, reasoning);
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
fn what_a_model_is_shown_is_read_as_a_call() {
    for template in
        [HERMES, CODER, GLM, MISTRAL, INLINE, LLAMA, DEEPSEEK, DEEPSEEK_V31, KIMI, HARMONY, GRANITE]
    {
        let shown = Syntax::of_template(template).shown("weather", "city", "Rome").unwrap();
        let read = read(template, &shown);
        let [(name, _, arguments)] = read.calls.as_slice() else { panic!("{shown}: {read:?}") };
        let arguments: serde_json::Value = serde_json::from_str(arguments).unwrap();
        assert_eq!((name.as_str(), arguments), ("weather", json!({"city": "Rome"})), "{shown}");
        assert_eq!((read.content.as_str(), read.reasoning.as_str()), ("", ""), "{shown}");
    }
    assert_eq!(Syntax::of_template("").shown("a", "b", "c"), None);
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
fn arguments_in_tags_are_what_their_schema_lets_them_be() {
    for (key, text, wanted) in [
        ("city", "null", json!("null")),
        ("city", "12", json!("12")),
        ("maybe", "12", json!("12")),
        ("maybe", "NULL", json!(null)),
        ("maybe", "None", json!(null)),
        ("maybe", "none", json!("none")),
        ("list", "[1]", json!("[1]")),
        ("word", "1", json!("1")),
        ("word", "null", json!(null)),
        ("only", "3", json!("3")),
        ("unit", "C", json!("C")),
        ("unit", "None", json!(null)),
        ("all", "1", json!("1")),
        ("flag", "True", json!(true)),
        ("flag", "None", json!("None")),
        ("gap", "none", json!(null)),
        ("gap", "True", json!("True")),
        ("gap", "7", json!(7)),
        ("circle", "False", json!(false)),
        ("any", "{\"a\": 1}", json!({"a": 1})),
        ("any", "FALSE", json!(false)),
        ("any", "{'a': 1}", json!("{'a': 1}")),
        ("unknown", "None", json!(null)),
    ] {
        let coder = format!(
            "<tool_call>\n<function=kinds>\n<parameter={key}>\n{text}\n</parameter>\n</function>\n</tool_call>"
        );
        let glm = format!(
            "<tool_call>kinds\n<arg_key>{key}</arg_key>\n<arg_value>{text}</arg_value>\n</tool_call>"
        );
        for (template, answer) in [(CODER, coder), (GLM, glm)] {
            let read = read_for(kinds(), template, false, [answer.as_str()].into_iter());
            assert_eq!(read.calls, [call("kinds", &json!({key: wanted}).to_string())], "{answer}");
        }
    }
}

#[test]
fn a_function_without_the_mark_before_it_is_a_call() {
    let one = "<function=weather>\n<parameter=days>\n3\n</parameter>\n</function>";
    let calls = vec![call("weather", r#"{"days":3}"#)];
    let wanted =
        |content: &str| Read { content: content.to_owned(), calls: calls.clone(), ..Read::default() };
    for (answer, content) in [
        (format!("I will look.\n\n{one}\n</tool_call>"), "I will look."),
        (format!("{one}</tool_call>"), ""),
        (format!("{one}\n</tool"), ""),
        (one.to_owned(), ""),
        (format!("See: {one}\n and more"), "See:and more"),
    ] {
        assert_eq!(read(CODER, &answer), wanted(content), "{answer}");
    }
    let two = format!("{one}\n<function=time>\n</function>\n</tool_call>");
    assert_eq!(read(CODER, &two).calls, [calls.clone(), vec![call("time", "{}")]].concat());
    // The mark before it was there, the one behind it was not.
    assert_eq!(read(CODER, &format!("<tool_call>\n{one}\n</tool_")), wanted(""));
    let glm = "<tool_call>weather\n<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n</";
    assert_eq!(read(GLM, glm), wanted(""));
    assert_eq!(read(HERMES, one).calls, []);
    // Nothing of a call is shown before it is known to be none.
    let mut reader = Reader::new(Syntax::of_template(CODER), tools(), false);
    let mut parts = Vec::new();
    reader.push("a \n<function=wea", &mut parts);
    assert_eq!(parts, [Part::Content("a".to_owned())]);
    reader.push("k>", &mut parts);
    assert_eq!(parts, [Part::Content("a \n<function=weak>".to_owned())]);
}

#[test]
fn tags_that_are_missing_and_functions_side_by_side_are_calls() {
    let both = vec![call("weather", r#"{"city":"Rome","days":3}"#), call("time", "{}")];
    for answer in [
        "<tool_call>\n<function=weather>\n<parameter=city>\nRome\n</parameter>\n<parameter=days>\n3\n</parameter>\n</function>\n<function=time>\n</function>\n</tool_call>",
        "<tool_call>\n<function=weather>\n<parameter=city>\nRome\n<parameter=days>\n3\n</function>\n<function=time>\n</function>\n</tool_call>",
        "<tool_call>\n<function=weather><parameter=city>Rome<parameter=days>3</parameter><function=time></tool_call>",
    ] {
        assert_eq!(read(CODER, answer), Read { calls: both.clone(), ..Read::default() }, "{answer}");
    }
    let city = |city: &str| vec![call("weather", &json!({"city": city}).to_string())];
    for (answer, wanted) in [
        // The end is missing, and everything behind it.
        ("<tool_call>\n<function=weather>\n<parameter=city>\nRome\n</tool_call>", city("Rome")),
        // With its end, a value may have other tags.
        (
            "<tool_call>\n<function=weather>\n<parameter=city>\na</function>b\n</parameter>\n</function>\n</tool_call>",
            city("a</function>b"),
        ),
    ] {
        assert_eq!(read(CODER, answer).calls, wanted, "{answer}");
    }
    let glm = "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Rome<arg_key>days</arg_key><arg_value>3</tool_call>";
    assert_eq!(read(GLM, glm).calls, [call("weather", r#"{"city":"Rome","days":3}"#)]);
}

#[test]
fn harmony_cut_in_a_header_shows_none_of_it() {
    let said = "<|channel|>final<|message|>Yes.";
    for cut in ["", "<|end|><|start|>", "<|end|><|start|>assistant", "<|start|>assistant", "<|channel|>fin"] {
        let wanted = Read { content: "Yes.".to_owned(), ..Read::default() };
        assert_eq!(read(HARMONY, &format!("{said}{cut}")), wanted, "{cut}");
    }
}

#[test]
fn it_is_known_whether_an_answer_ended_amid_a_call() {
    let read = |template: &str, answer: &str| {
        let tools = [Tool { name: "time".to_owned(), parameters: None, strict: false }];
        let mut reader = Reader::new(Syntax::of_template(template), tools.into(), false);
        reader.push(answer, &mut Vec::new());
        reader.finish(&mut Vec::new());
        (reader.calls(), reader.ended_amid_call())
    };
    for (template, cut, rest) in [
        (HERMES, "<tool_call>\n{\"name\": \"time\", \"arguments\": {\"a\": ", "1}}\n</tool_call>"),
        (
            DEEPSEEK_V31,
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>time<｜tool▁sep｜>{\"a\": ",
            "1}<｜tool▁call▁end｜>",
        ),
        (HARMONY, "<|channel|>commentary to=functions.time <|message|>{\"a\": ", "1}<|call|>"),
    ] {
        assert_eq!(read(template, cut), (1, true), "{cut}");
        assert_eq!(read(template, &format!("{cut}{rest}")), (1, false), "{cut}{rest}");
    }
    assert_eq!(read(HERMES, "There is no call."), (0, false));
}

#[test]
fn harmony_calls_nothing_without_tools() {
    for header in ["<|channel|>commentary to=functions.time json", "to=functions.time<|channel|>commentary"] {
        let answer = format!("{header}<|message|>{{}}<|call|>");
        let read = read_for(Arc::default(), HARMONY, false, [answer.as_str()].into_iter());
        assert_eq!(read, Read { content: "{}".to_owned(), ..Read::default() }, "{header}");
    }
}

#[test]
fn kimi_calls_amid_its_reasoning() {
    let template = "<|tool_calls_section_begin|> <think></think>";
    let section = "<|tool_calls_section_begin|><|tool_call_begin|>functions.time:0<|tool_call_argument_begin|>{}\
                   <|tool_call_end|><|tool_calls_section_end|>";
    let calls = vec![("time".to_owned(), Some("functions.time:0".to_owned()), "{}".to_owned())];
    let wanted = Read { reasoning: "Hm.".to_owned(), calls, ..Read::default() };
    let answer = format!("Hm. {section}");
    assert_eq!(read_pieces(template, true, [answer.as_str()].into_iter()), wanted);
    assert_eq!(read(template, &format!("<think>{answer}")), wanted);
    let untold = read_for(Arc::default(), template, true, [answer.as_str()].into_iter());
    assert_eq!((untold.reasoning, untold.calls), (answer, vec![]));
}

#[test]
fn what_stands_between_a_calls_marks_is_not_shown() {
    let (weather, time) =
        (r#"{"name": "weather", "arguments": {"days": 3}}"#, r#"{"name": "time", "arguments": {}}"#);
    let (one, two) = (
        vec![call("weather", r#"{"days": 3}"#)],
        vec![call("weather", r#"{"days": 3}"#), call("time", "{}")],
    );
    for (answer, calls, content) in [
        (format!("<tool_call>\n{weather}\n{time}\n</tool_call>"), &two, ""),
        (format!("<tool_call>{weather}, {time}</tool_call>"), &two, ""),
        (format!("a <tool_call>\n[{weather}, {time}]\n</tool_call>\nb"), &two, "ab"),
        (format!("<tool_call>\n```json\n{weather}\n```\n</tool_call>"), &one, ""),
        (format!("<tool_call>\n```\n[{weather},\n{time}]\n```\n</tool_call>"), &two, ""),
        (format!("<tool_call>\n{weather}\n{{\"no\": 1}} x </tool_call> b"), &one, "b"),
        (format!("<tool_call>\n{weather}}} x\n</tool_call> b"), &one, "b"),
        (format!("<tool_call>\n{weather}\n<tool_call>\n{time}\n</tool_call>"), &two, ""),
        (format!("<tool_call>\n{weather} x\n<tool_call>\n{time}\n</tool_call>"), &two, ""),
        (format!("<tool_call>\n{weather}\n</tool"), &one, ""),
        (format!("<tool_call>\n{weather} x </tool"), &one, ""),
        (format!("<tool_call>\n{weather}\n{{\"na"), &one, ""),
    ] {
        let wanted = Read { content: content.to_owned(), calls: calls.clone(), ..Read::default() };
        assert_eq!(read(HERMES, &answer), wanted, "{answer}");
    }
    let cut = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>time\n```json\n{}\n```";
    assert_eq!(read(DEEPSEEK, cut), Read { calls: vec![call("time", "{}")], ..Read::default() });
}

#[test]
fn reasoning_is_what_an_answer_begins_with() {
    for (reasoning, answer, thought, content) in [
        (false, " \n<think>\na</think> b", "a", "b"),
        (false, "Use <think> and </think>.", "", "Use <think> and </think>."),
        (false, "<think>a</think> b <think> c", "a", "b <think> c"),
        (false, "<think>a</think><think> c", "a", "<think> c"),
        (true, "a <think> b</think> c <think> d", "a <think> b", "c <think> d"),
        (false, " <thin", "", " <thin"),
    ] {
        for template in [HERMES, GLM] {
            let whole = read_pieces(template, reasoning, [answer].into_iter());
            let wanted =
                Read { reasoning: thought.to_owned(), content: content.to_owned(), ..Read::default() };
            assert_eq!(whole, wanted, "{answer}");
        }
    }
    let behind = "<tool_call>{\"name\": \"time\"}</tool_call>\n<think> a";
    assert_eq!(read(HERMES, behind).content, "<think> a");
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
        (CODER, "write <function=name> or <function=weather"),
        (CODER, "a\n<function=weather>\nb</function>\n</tool_call>"),
        (HERMES, "a\n<tool_call>\n```json\nno object</tool_call>"),
        (LLAMA, " {\"name\": 1}"),
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
        "<function=",
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
        "<|tool_calls_section_begin|>",
        "<|tool_call_begin|>",
        "<|tool_call_argument_begin|>",
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
            "<|tool_calls_section_begin|> </think>",
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
