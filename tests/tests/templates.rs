//! Chat templates of published models against llama.cpp's and jinja2's renderings, and against hostile requests.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::{Duration, UNIX_EPOCH};

use frugal_models::gguf::Gguf;
use frugal_models::template::{Chat, ChatTemplate, Piece, Rendered, TemplateError};
use frugal_models::tokenizer::{SpecialIds, Tokenizer, TokenizerSpec};
use proptest::prelude::*;
use serde_json::{Map, Value as Json, json};
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

/// A template and the control tokens of the vocabulary that it is for.
struct Family {
    name: &'static str,
    file: &'static str,
    control: &'static [&'static str],
}

const DEEPSEEK: &[&str] = &[
    "<｜User｜>",
    "<｜Assistant｜>",
    "<｜end▁of▁sentence｜>",
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁calls▁end｜>",
    "<｜tool▁call▁begin｜>",
    "<｜tool▁call▁end｜>",
    "<｜tool▁outputs▁begin｜>",
    "<｜tool▁outputs▁end｜>",
    "<｜tool▁output▁begin｜>",
    "<｜tool▁output▁end｜>",
    "<｜tool▁sep｜>",
];
const MISTRAL: &[&str] = &[
    "[INST]",
    "[/INST]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
    "[TOOL_CALLS]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
    "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]",
    "[ARGS]",
    "[CALL_ID]",
    "[TOOL_CONTENT]",
];
const GRANITE: &[&str] = &["<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>", "<|tool_call|>"];

const FAMILIES: &[Family] = &[
    Family { name: "smollm2", file: "smollm2-template.jinja", control: &[] },
    Family { name: "qwen3", file: "templates/Qwen-Qwen3-0.6B.jinja", control: &[] },
    Family {
        name: "deepseek-r1",
        file: "templates/deepseek-ai-DeepSeek-R1-Distill-Qwen-32B.jinja",
        control: DEEPSEEK,
    },
    Family { name: "deepseek-v3.1", file: "templates/deepseek-ai-DeepSeek-V3.1.jinja", control: DEEPSEEK },
    Family {
        name: "gpt-oss",
        file: "templates/openai-gpt-oss-120b.jinja",
        control: &[
            "<|start|>",
            "<|message|>",
            "<|channel|>",
            "<|call|>",
            "<|end|>",
            "<|return|>",
            "<|constrain|>",
        ],
    },
    Family {
        name: "mistral-nemo",
        file: "templates/mistralai-Mistral-Nemo-Instruct-2407.jinja",
        control: MISTRAL,
    },
    Family {
        name: "mistral-small-3.2",
        file: "templates/Mistral-Small-3.2-24B-Instruct-2506.jinja",
        control: MISTRAL,
    },
    Family {
        name: "granite-3.3",
        file: "templates/ibm-granite-granite-3.3-2B-Instruct.jinja",
        control: GRANITE,
    },
    Family { name: "granite-4.0", file: "templates/ibm-granite-granite-4.0.jinja", control: GRANITE },
    Family {
        name: "glm-4.6",
        file: "templates/GLM-4.6.jinja",
        control: &["[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"],
    },
];

struct Loaded {
    family: &'static Family,
    tokenizer: Tokenizer,
    template: ChatTemplate,
}

/// With SmolLM2's `bos_token` and `eos_token` for all of them, as the goldens have it.
static LOADED: LazyLock<Vec<Loaded>> = LazyLock::new(|| FAMILIES.iter().map(load).collect());

fn load(family: &'static Family) -> Loaded {
    let mut spec = TokenizerSpec::from_gguf(&Gguf::open(&path("tokenizer-fixture.gguf")).unwrap()).unwrap();
    for token in family.control {
        spec.tokens.push((*token).to_owned());
        spec.types.as_mut().unwrap().push(3);
    }
    let id = |text: &str| Some(u32::try_from(spec.tokens.iter().position(|t| t == text).unwrap()).unwrap());
    spec.ids = SpecialIds { bos: id("<|im_start|>"), eos: id("<|im_end|>"), ..Default::default() };
    let tokenizer = Tokenizer::new(spec).unwrap();
    let template = ChatTemplate::new(&text(family.file), tokenizer.template_tokens()).unwrap();
    Loaded { family, tokenizer, template }
}

/// The goldens' requests and their answer to `strftime_now`.
fn render(template: &ChatTemplate, request: &Json) -> Result<Rendered, TemplateError> {
    let mut kwargs: Map<String, Json> = Map::new();
    kwargs.insert("enable_thinking".to_owned(), true.into());
    kwargs.extend(request["chat_template_kwargs"].as_object().cloned().unwrap_or_default());
    let list = |key: &str| request[key].as_array().map(Vec::as_slice).unwrap_or_default();
    let chat = Chat {
        messages: list("messages"),
        tools: list("tools"),
        kwargs: Some(&kwargs),
        add_generation_prompt: request["add_generation_prompt"].as_bool().unwrap_or(true),
    };
    template.render_at(&chat, UNIX_EPOCH + Duration::from_secs(1_795_392_000))
}

fn check(loaded: &Loaded, name: &str, request: &Json, expect: &str) {
    let family = loaded.family.name;
    let rendered = render(&loaded.template, request).unwrap();
    assert_eq!(rendered.text(), expect, "{family} {name}");
    // Every control token in the text is the template's, unless the request has some.
    let encoded = loaded.tokenizer.encode_rendered(&rendered).unwrap();
    let special = loaded.tokenizer.encode_special(expect).unwrap();
    if name == "special_strings" {
        assert!(encoded.len() >= special.len(), "{family}");
    } else {
        assert_eq!(encoded, special, "{family} {name}");
    }
}

#[test]
fn templates_render_as_llama_cpp() {
    let golden = read_json("chat-templates.json");
    assert_eq!(golden["date"], "2026-11-23");
    let families = golden["families"].as_object().unwrap();
    assert_eq!(families.len(), 9);
    for (name, family) in families {
        let loaded = LOADED.iter().find(|loaded| loaded.family.name == name).unwrap();
        let source = text(loaded.family.file);
        let digest: String = Sha256::digest(&source).iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(digest, family["template_sha256"].as_str().unwrap());
        let cases = family["cases"].as_array().unwrap();
        assert_eq!(cases.len(), 12);
        for case in cases {
            let (name, expect) = (case["name"].as_str().unwrap(), case["rendered"].as_str().unwrap());
            check(loaded, name, &case["request"], expect);
        }
    }
}

#[test]
fn glm_renders_as_jinja2() {
    let requests = read_json("chat-templates.json");
    let expect = read_json("templates/glm-4.6.json");
    let loaded = LOADED.iter().find(|loaded| loaded.family.name == "glm-4.6").unwrap();
    for case in requests["families"]["qwen3"]["cases"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        check(loaded, name, &case["request"], expect[name].as_str().unwrap());
    }
    assert_eq!(expect.as_object().unwrap().len(), 12);
}

fn gpt_oss() -> &'static ChatTemplate {
    &LOADED.iter().find(|loaded| loaded.family.name == "gpt-oss").unwrap().template
}

#[test]
fn gpt_oss_keeps_its_reasoning_between_calls() {
    let call = json!({"type": "function", "id": "c", "function": {"name": "add", "arguments": "{}"}});
    let rendered = |content: Json| {
        let messages = json!([
            {"role": "user", "content": "Add."},
            {"role": "assistant", "content": content, "reasoning_content": "I add.", "tool_calls": [call]},
            {"role": "tool", "content": "3", "tool_call_id": "c"},
        ]);
        render(gpt_oss(), &json!({"messages": messages})).unwrap().text()
    };
    let called = "<|end|><|start|>assistant to=functions.add<|channel|>commentary json<|message|>{}<|call|>";
    for (content, thought) in
        [(json!(null), "I add."), (json!(""), "I add."), (json!("One moment."), "I add.\nOne moment.")]
    {
        let wanted = format!("<|start|>assistant<|channel|>analysis<|message|>{thought}{called}");
        let rendered = rendered(content);
        assert!(rendered.contains(&wanted), "{rendered}");
    }
}

#[test]
fn gpt_oss_takes_tools_without_description() {
    let tools = |more: Json| json!([{"type": "function", "function": more}]);
    let messages = json!([{"role": "user", "content": "Hi"}]);
    for function in [json!({"name": "add"}), json!({"name": "add", "description": null})] {
        let request = json!({"messages": messages, "tools": tools(function)});
        let rendered = render(gpt_oss(), &request).unwrap().text();
        assert!(rendered.contains("// \ntype add = () => any;"), "{rendered}");
    }
    // Others are told what the request says.
    let qwen = LOADED.iter().find(|loaded| loaded.family.name == "qwen3").unwrap();
    let request = json!({"messages": messages, "tools": tools(json!({"name": "add"}))});
    let rendered = render(&qwen.template, &request).unwrap().text();
    assert!(rendered.contains(r#"{"type": "function", "function": {"name": "add"}}"#), "{rendered}");
}

/// A request whose every text that a user may choose is `of` something.
fn request(mut of: impl FnMut() -> String) -> Json {
    let arguments = json!({of(): of(), "city": of()}).to_string();
    json!({
        "messages": [
            {"role": "system", "content": of()},
            {"role": "user", "content": of()},
            {"role": "assistant", "content": "", "tool_calls": [
                {"type": "function", "id": "call00001", "function": {"name": of(), "arguments": arguments}},
            ]},
            {"role": "tool", "content": of(), "tool_call_id": "call00001", "name": of()},
            {"role": "assistant", "content": of()},
            {"role": "user", "content": of()},
        ],
        "tools": [{"type": "function", "function": {"name": of(), "description": of(), "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": of()}, of(): {"type": "string", "enum": [of()]}},
            "required": ["city", of()],
        }}}],
        "chat_template_kwargs": {
            "documents": [{"doc_id": of(), "title": of(), "text": of()}],
            "reasoning_effort": of(), "model_identity": of(), "custom": of(),
        },
    })
}

fn controls(rendered: &Rendered) -> Vec<&str> {
    let pieces = rendered.pieces().iter();
    pieces
        .filter_map(|piece| if let Piece::Control(text) = piece { Some(text.as_str()) } else { None })
        .collect()
}

/// Parts of control tokens of all families, of what tells them apart, and of JSON.
fn hostile() -> impl Strategy<Value = String> {
    let tokens: Vec<&str> = FAMILIES.iter().flat_map(|family| family.control).copied().collect();
    let whole = tokens.clone();
    let part = prop_oneof![
        4 => proptest::sample::select(whole).prop_map(str::to_owned),
        2 => (proptest::sample::select(tokens), 0..30usize, 0..30usize).prop_map(|(token, from, to)| {
            token.chars().skip(from.min(to)).take(from.abs_diff(to)).collect()
        }),
        2 => proptest::sample::select(vec!["<|im_start|>", "<|im_end|>", "|>", "<|", "\"", "\\", "user", "\n", " "])
            .prop_map(str::to_owned),
        1 => proptest::char::range('\u{fdd0}', '\u{fdef}').prop_map(String::from),
        1 => any::<char>().prop_map(String::from),
    ];
    // No end of a thought, where some templates cut.
    proptest::collection::vec(part, 1..4).prop_map(|parts| parts.concat().replace("</think>", ""))
}

/// The texts in turn, and none equal to another or empty after trimming: templates compare messages and leave some out.
fn distinct(texts: Vec<String>) -> impl FnMut() -> String {
    let mut numbered = texts.into_iter().cycle().enumerate();
    move || match numbered.next().unwrap() {
        (i, text) if i % 2 == 0 => format!("{text}x{i}"),
        (i, text) => format!("x{i}{text}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn requests_never_make_control_tokens(texts in proptest::collection::vec(hostile(), 24)) {
        for loaded in LOADED.iter() {
            let harmless = render(&loaded.template, &request(distinct(vec![String::new()]))).unwrap();
            let rendered = render(&loaded.template, &request(distinct(texts.clone()))).unwrap();
            prop_assert_eq!(controls(&rendered), controls(&harmless), "{}", loaded.family.name);
            let encoded = loaded.tokenizer.encode_rendered(&rendered).unwrap();
            let count = encoded.iter().filter(|t| loaded.tokenizer.token_bytes().get(**t).is_empty()).count();
            prop_assert_eq!(count, controls(&harmless).len());
        }
    }
}
