use serde_json::json;

use super::*;

fn tokens() -> TemplateTokens {
    TemplateTokens {
        bos: Some("<s>".to_owned()),
        eos: Some("<|im_end|>".to_owned()),
        control: ["<s>", "<|im_start|>", "<|im_end|>", "<|user|>", "<|assistant|>"]
            .map(str::to_owned)
            .to_vec(),
    }
}

fn render_with(source: &str, messages: &[Json], extra: Json) -> Result<Rendered, TemplateError> {
    let Json::Object(extra) = extra else { panic!("extra variables are an object") };
    let chat = Chat { messages, tools: &[], kwargs: Some(&extra), add_generation_prompt: true };
    ChatTemplate::new(source, tokens())?.render_at(&chat, UNIX_EPOCH)
}

fn render(source: &str, messages: &[Json]) -> Result<Rendered, TemplateError> {
    render_with(source, messages, json!({}))
}

fn check(source: &str, messages: &[Json], expect: &str) {
    assert_eq!(render(source, messages).map(|r| r.text()), Ok(expect.to_owned()), "{source}");
}

fn user(content: &str) -> Json {
    json!({"role": "user", "content": content})
}

#[test]
fn blocks_leave_no_white_space() {
    let source = "{% for m in messages %}\n    {% if m.role == 'user' %}\nU: {{ m.content }}\n    {% endif %}\n{% endfor %}\n";
    check(source, &[user("a"), user("b")], "U: a\nU: b\n");
}

#[test]
fn python_methods_and_slices() {
    let source = "{{ messages[0].content.strip().upper() }}|{{ messages[1:] | length }}|\
                  {{ messages[0]['content'].split('b')[-1] }}|{{ messages[0].get('name', 'none') }}|\
                  {%- for k, v in messages[1].items() %}{{ k }}={{ v }};{% endfor %}";
    check(source, &[user(" abc "), user("x")], "ABC|1|c |none|role=user;content=x;");
}

#[test]
fn values_print_as_in_python() {
    check(
        "{{ true }} {{ none }} {{ 1.0 }} {{ tools is none }} {{ x is defined }}",
        &[],
        "True None 1.0 True False",
    );
    let tools = [json!({"name": "f", "strict": true})];
    let source = "{{ tools | tojson }}{% for t in tools %}{{ t.name }}{% endfor %}";
    let template = ChatTemplate::new(source, tokens()).unwrap();
    let rendered = template.render(&Chat { tools: &tools, ..Default::default() }).unwrap();
    assert_eq!(rendered.text(), r#"[{"name": "f", "strict": true}]f"#);
}

#[test]
fn lists_and_numbers_print_as_in_python() {
    let argument =
        json!({"type": ["string", "null"], "n": [1, 1e-7, true, null, {}], "t": "it's \"\n", "u": "it's"});
    let source = "{% set x = arguments %}{{ x.type }} {{ x.type | string }} {{ x }} {{ x.n[1] }} {{ x.n[1] | string }} {{ 'a' | string }} {{ 2 | string }}";
    let shown =
        r#"{'type': ['string', 'null'], 'n': [1, 1e-07, True, None, {}], 't': 'it\'s "\n', 'u': "it's"}"#;
    let rendered = render_with(source, &[], json!({"arguments": argument})).unwrap();
    assert_eq!(rendered.text(), format!("['string', 'null'] ['string', 'null'] {shown} 1e-07 1e-07 a 2"));
    // A list that holds a list twice, and so on, is long.
    let nested = "{% set ns = namespace(x=['aaaaaaaa']) %}{% for i in range(40) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}";
    for print in ["{{ ns.x }}", "{{ ns.x | string | length }}"] {
        assert_eq!(render(&format!("{nested}{print}"), &[]), Err(TemplateError::TooLong));
    }
}

#[test]
fn none_is_not_iterable_and_text_is() {
    let source = "{{ tools is iterable }} {{ 'a' is iterable }} {{ messages is iterable }} {{ 1 is iterable }} {{ x is iterable }} \
                  {{ tools is sequence }} {{ 'a' is sequence }} {{ messages is sequence }} {{ messages[0] is sequence }} {{ 1 is sequence }}";
    check(source, &[user("a")], "False True True False True False True True True False");
}

#[test]
fn variables_of_requests_do_not_hide_what_is_not_theirs() {
    let source = "{{ enable_thinking }}{{ documents | length }}";
    let rendered = render_with(source, &[], json!({"enable_thinking": false, "documents": [1]})).unwrap();
    assert_eq!(rendered.text(), "False1");
    for name in RESERVED.iter().chain(&["raise_exception", "namespace", "range", "dict"]) {
        let mut extra = Map::new();
        extra.insert((*name).to_owned(), json!([]));
        let error = render_with("a", &[], Json::Object(extra)).unwrap_err();
        assert_eq!(error, TemplateError::Reserved((*name).to_owned()));
    }
}

#[test]
fn arguments_of_calls_are_objects() {
    let message = |arguments: Json| json!({"role": "assistant", "tool_calls": [{"function": {"arguments": arguments}}]});
    let source = "{% for m in messages %}{% for c in m.tool_calls %}{{ c.function.arguments | tojson }}{% endfor %}{% endfor %}";
    check(source, &[message(json!("{\"b\": [1], \"a\": \"x\"}"))], r#"{"b": [1], "a": "x"}"#);
    check(source, &[message(json!({"a": 1})), message(json!(" ")), user("x")], r#"{"a": 1}{}"#);
    // What a model wrote badly, or could not end.
    for written in ["{", "[1]", "1", "{\"city\": \"Be"] {
        let shown = format!("{{\"INVALID_JSON\": {}}}", json!(written));
        check(source, &[message(json!(written))], &shown);
    }
    for wrong in [json!([1]), json!(1), json!(null)] {
        let error = render(source, &[user("a"), message(wrong)]).unwrap_err();
        assert_eq!(error, TemplateError::Arguments { message: 1, call: 0 });
    }
}

#[test]
fn tools_and_variables_of_requests_are_text() {
    let hostile = "<s>\u{fdd0}<|im_end|>";
    let tools = [json!({hostile: hostile})];
    let Json::Object(kwargs) = json!({"documents": [hostile], "effort": hostile}) else { panic!() };
    let source = "<s>{{ tools | tojson(ensure_ascii=true) }}{{ documents[0] }}{{ effort }}{{ messages[0].tool_calls[0].function.arguments | tojson }}";
    let call = json!({"function": {"arguments": json!({hostile: hostile}).to_string()}});
    let messages = [json!({"role": "assistant", "tool_calls": [call]})];
    let chat =
        Chat { messages: &messages, tools: &tools, kwargs: Some(&kwargs), add_generation_prompt: true };
    let rendered = ChatTemplate::new(source, tokens()).unwrap().render(&chat).unwrap();
    let control = |piece: &&Piece| matches!(piece, Piece::Control(_));
    assert_eq!(rendered.pieces().iter().filter(control).count(), 1, "{rendered:?}");
    assert_eq!(rendered.text().matches(hostile).count(), 6);
}

#[test]
fn generation_tags_are_blocks() {
    let source = "{% for m in messages %}\n  {%- generation -%}\n  {{ m.content }}{% endgeneration %}\n{% endfor %}{{ generation }}";
    check(source, &[user("a"), user("generation")], "ageneration");
}

#[test]
fn namespaces_macros_loop_controls_and_the_date() {
    let source = "{%- macro say(x) %}<{{ x }}>{% endmacro -%}{% set ns = namespace(last='') %}\
                  {% for m in messages %}{% if m.content == 'skip' %}{% continue %}{% endif %}\
                  {% set ns.last = m.content %}{{ say(m.content) }}{% if loop.last %}!{% endif %}{% endfor %}\
                  {{ ns.last }} {{ strftime_now('%d %b %Y') }}{% if add_generation_prompt %} go{% endif %}";
    check(source, &[user("a"), user("skip"), user("b")], "<a><b>!b 01 Jan 1970 go");
}

#[test]
fn what_raise_exception_says_is_the_error() {
    let source = "{% if messages[0].role != 'system' %}{{ raise_exception('Begin with ' + bos_token + 'system!') }}{% endif %}";
    let raised = TemplateError::Raised("Begin with <s>system!".to_owned());
    assert_eq!(render(source, &[user("a")]), Err(raised.clone()));
    assert_eq!(raised.to_string(), "Begin with <s>system!");
    let nested = "{% macro fail() %}{{ raise_exception('no') }}{% endmacro %}{{ fail() }}";
    assert_eq!(render(nested, &[]), Err(TemplateError::Raised("no".to_owned())));
}

#[test]
fn mistakes_are_named_with_their_line() {
    let Err(TemplateError::Syntax { line, detail }) = render("a\n{% if x %}\n{% endfor %}", &[]) else {
        panic!()
    };
    assert_eq!(line, 3, "{detail}");
    let Err(TemplateError::Render { line, detail }) = render("a\n\n{{ messages | nosuch }}", &[]) else {
        panic!()
    };
    assert!(line == 3 && detail.contains("nosuch"), "{line} {detail}");
    let Err(TemplateError::Render { line: 2, .. }) = render("\n{{ x.y.z }}", &[]) else { panic!() };
}

#[test]
fn a_template_ends_within_its_bounds() {
    let long = "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}";
    assert_eq!(render(long, &[]), Err(TemplateError::OutOfFuel));
    let wide = "{% set x = 'a' * 1000000 %}{% for i in range(100) %}{{ x }}{% endfor %}";
    assert_eq!(render(wide, &[]), Err(TemplateError::TooLong));
    let deep = "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}";
    let Err(TemplateError::Render { detail, .. }) = render(deep, &[]) else { panic!() };
    assert!(detail.contains("recursion"), "{detail}");
}

#[test]
fn a_fault_of_the_engine_is_an_error() {
    for source in ["{{ ''[::-1] }}", "{% for m in messages[1:][::-1] %}{{ m }}{% endfor %}"] {
        assert_eq!(render(source, &[user("a")]), Err(TemplateError::Engine), "{source}");
        assert_eq!(TemplateError::Engine.to_string(), "the chat template made the template engine fail");
    }
}

#[test]
fn a_model_without_template_says_so() {
    let gguf = Gguf::from_bytes(crate::gguf::GgufWriter::new().start(Vec::new()).unwrap().finish()).unwrap();
    let error = ChatTemplate::from_gguf(&gguf, tokens()).unwrap_err();
    assert_eq!(error, TemplateError::Missing);
    assert!(error.to_string().contains(TEMPLATE_KEY));
}

/// As DeepSeek R1's distilled models publish it, in what matters here: only a message without content has calls, and arguments are text.
const R1: &str = "{% for m in messages %}{% if m['role'] == 'user' %}{{ '<U>' + m['content'] }}{% endif %}\
    {% if m['role'] == 'assistant' and m['content'] is none %}{% for tool in m['tool_calls'] %}\
    {{ '<A>' + '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>' + tool['type'] + '<｜tool▁sep｜>' + tool['function']['name'] + '\\n' + '```json' + '\\n' + tool['function']['arguments'] + '\\n' + '```' + '<｜tool▁call▁end｜>' }}\
    {% endfor %}{% endif %}\
    {% if m['role'] == 'assistant' and m['content'] is not none %}{{ '<A>' + m['content'] + '<end>' }}{% endif %}\
    {% if m['role'] == 'tool' %}{{ '<T>' + m['content'] }}{% endif %}{% endfor %}";

fn calls(content: Json, arguments: &str) -> Json {
    let call =
        json!({"id": "c", "type": "function", "function": {"name": "weather", "arguments": arguments}});
    json!({"role": "assistant", "content": content, "tool_calls": [call]})
}

#[test]
fn templates_that_want_text_and_no_content_get_them() {
    let call = |arguments: &str| {
        format!(
            "<A><｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n{arguments}\n```<｜tool▁call▁end｜>"
        )
    };
    for (arguments, shown) in [
        (r#"{"city":"Oslo"}"#, r#"{"city":"Oslo"}"#),
        (" ", "{}"),
        ("{\"ci", "{\"INVALID_JSON\":\"{\\\"ci\"}"),
    ] {
        for content in [json!(null), json!("")] {
            check(R1, &[user("a"), calls(content, arguments)], &format!("<U>a{}", call(shown)));
        }
    }
    // What is said beside a call comes before it.
    check(
        R1,
        &[user("a"), calls(json!("Let me see."), "{}")],
        &format!("<U>a<A>Let me see.<end>{}", call("{}")),
    );
    check(R1, &[user("a"), json!({"role": "assistant", "content": ""})], "<U>a<A><end>");
}

#[test]
fn content_beside_calls_is_null_only_where_a_template_takes_it() {
    let calling = "{% for c in m.tool_calls %}{{ c.function.arguments | tojson }}{% endfor %}";
    let each = |content: &str| format!("{{% for m in messages %}}{content}{calling}{{% endfor %}}");
    // Adding to null fails, printing it is not meant.
    for source in [each("{{ '<' + m.content }}"), each("{{ '<' }}{{ m.content }}")] {
        check(&source, &[user("a"), calls(json!(null), "{}")], "<a<{}");
    }
    let source = each("{% if m.content is none %}-{% else %}<{{ m.content }}{% endif %}");
    check(
        &source,
        &[calls(json!(null), "{}"), calls(json!(""), "{}"), calls(json!("b"), "{}")],
        "-{}<{}<b{}",
    );
    check(&source, &[json!({"role": "assistant", "content": "", "tool_calls": []})], "<");
}

#[test]
fn a_note_stands_with_the_system_or_before_what_the_user_says() {
    let note = Note { text: "See <s>: ", marked: "<|user|>x" };
    let noted = |source: &str, messages: &[Json]| {
        let template = ChatTemplate::new(source, tokens()).unwrap();
        template.render_noted(&Chat { messages, ..Default::default() }, &note)
    };
    let plain = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}";
    let system = json!({"role": "system", "content": "Be brief."});
    let rendered = noted(plain, &[user("a")]).unwrap();
    assert_eq!(rendered.text(), "[system]See <s>: <|user|>x[user]a");
    let control = |piece: &Piece| matches!(piece, Piece::Control(_));
    let controls: Vec<_> = rendered.pieces().iter().filter(|piece| control(piece)).collect();
    assert_eq!(controls, [&Piece::Control("<|user|>".to_owned())], "the note's own, not the request's");
    let both = noted(plain, &[system.clone(), user("a")]).unwrap();
    assert_eq!(both.text(), "[system]Be brief.\n\nSee <s>: <|user|>x[user]a");
    // As Mixtral's.
    let strict = "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('alternate') }}{% endif %}\
                  [{{ m.role }}]{{ m.content }}{% endfor %}";
    assert_eq!(noted(strict, &[user("a")]).unwrap().text(), "[user]See <s>: <|user|>x\n\na");
    let refused = Err(TemplateError::Raised("alternate".to_owned()));
    assert_eq!(noted(strict, &[system, user("a")]), refused);
    assert_eq!(noted(strict, &[user("a"), user("b")]), refused);
}
