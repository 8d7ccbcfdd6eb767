//! What the schemas say of requests, compared with what is read from them.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use frugal_models::constraint::ConstraintEngine;
use frugal_models::fake::{FakeModel, FakeRunner};
use frugal_models::gguf::Gguf;
use frugal_models::step::{CacheGroup, Geometry, GroupKind, SamplingParams};
use frugal_models::template::ChatTemplate;
use frugal_models::tokenizer::Tokenizer;
use frugal_scheduler::options::EngineOptions;
use serde_json::{Map, Value, json};

use crate::admit::fields::{NEUTRAL, asked};
use crate::admit::{chat, completions, messages, responses};
use crate::error::ApiError;
use crate::fingerprint::fingerprint;
use crate::form::ModelForm;
use crate::routes::{apply_template, detokenize, tokenize};
use crate::settings::{Caller, Limits, Settings, StoreLimits, UnknownFields};
use crate::state::{Engine, State};

/// A server that nobody listens to.
fn state() -> State {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/qwen3moe-F32.gguf");
    let gguf = Gguf::open(&path).unwrap();
    let tokenizer = Arc::new(Tokenizer::from_gguf(&gguf).unwrap());
    let template = ChatTemplate::from_gguf(&gguf, tokenizer.template_tokens()).unwrap();
    let geometry = Geometry {
        vocab: u32::try_from(tokenizer.vocab_size()).unwrap(),
        context_max: 1024,
        block_tokens: 16,
        groups: vec![CacheGroup { kind: GroupKind::Full, block_bytes: 1024, blocks: 64 }],
        digest: [7; 32],
    };
    let sampling = SamplingParams::default();
    let fingerprint = fingerprint("fake", &geometry, &sampling, None);
    let runner = Box::new(FakeRunner::new(geometry, FakeModel::default()));
    let (handle, _thread) = frugal_scheduler::handle::start(runner, EngineOptions::default());
    let state = State::new(Settings {
        models: vec!["model".to_owned()],
        created: 0,
        limits: Limits::default(),
        unknown_fields: UnknownFields::Refuse,
        currency: None,
        keep_alive: std::time::Duration::from_secs(10),
        responses: StoreLimits::default(),
    });
    let grammars = Arc::new(ConstraintEngine::new(&tokenizer).unwrap());
    let form = ModelForm::of(Some(&template), &tokenizer);
    let template = Some(Arc::new(template));
    state.set_engine(Engine { handle, tokenizer, template, form, grammars, fingerprint, sampling });
    state
}

type Read = fn(&State, &[u8]) -> Result<(), ApiError>;

/// An endpoint's request, as it is described and as it is read.
struct Endpoint {
    schema: &'static str,
    read: Read,
    /// Fields without which nothing is accepted.
    base: Value,
    /// Fields that need others beside them: (field, others).
    needs: &'static [(&'static str, &'static str)],
}

const ENDPOINTS: &[fn() -> Endpoint] = &[
    || Endpoint {
        schema: "ChatRequest",
        read: |state, body| chat::admit(state, Caller::default(), body).map(|_| ()),
        base: json!({"messages": [{"role": "user", "content": "Hi"}]}),
        needs: &[("top_logprobs", r#"{"logprobs": true}"#), ("stream_options", r#"{"stream": true}"#)],
    },
    || Endpoint {
        schema: "CompletionRequest",
        read: |state, body| completions::admit(state, Caller::default(), body).map(|_| ()),
        base: json!({"prompt": "Hi"}),
        needs: &[("stream_options", r#"{"stream": true}"#)],
    },
    || Endpoint {
        schema: "ResponsesRequest",
        read: |state, body| responses::admit(state, Caller::default(), body).map(|_| ()),
        base: json!({"input": "Hi"}),
        needs: &[
            ("top_logprobs", r#"{"include": ["message.output_text.logprobs"]}"#),
            ("stream_options", r#"{"stream": true}"#),
        ],
    },
    || Endpoint {
        schema: "MessagesRequest",
        read: |state, body| messages::admit(state, Caller::default(), body).map(|_| ()),
        base: json!({"max_tokens": 8, "messages": [{"role": "user", "content": "Hi"}]}),
        needs: &[],
    },
    || Endpoint {
        schema: "CountTokensRequest",
        read: |state, body| messages::count(state, body).map(|_| ()),
        base: json!({"messages": [{"role": "user", "content": "Hi"}]}),
        needs: &[],
    },
    || Endpoint {
        schema: "TokenizeRequest",
        read: |state, body| tokenize::tokenized(state, body).map(|_| ()),
        base: json!({"prompt": "Hi"}),
        needs: &[
            ("messages", r#"{"prompt": null}"#),
            ("tools", r#"{"prompt": null, "messages": [{"role": "user", "content": "Hi"}]}"#),
            ("chat_template_kwargs", r#"{"prompt": null, "messages": [{"role": "user", "content": "Hi"}]}"#),
        ],
    },
    || Endpoint {
        schema: "DetokenizeRequest",
        read: |state, body| detokenize::detokenized(state, body).map(|_| ()),
        base: json!({"tokens": [1]}),
        needs: &[],
    },
    || Endpoint {
        schema: "TemplateRequest",
        read: |state, body| apply_template::templated(state, body).map(|_| ()),
        base: json!({"messages": [{"role": "user", "content": "Hi"}]}),
        needs: &[],
    },
];

/// The description, as clients read it.
struct Document(Value);

impl Document {
    fn new() -> Self {
        Self(serde_json::to_value(crate::openapi(false)).unwrap())
    }

    fn named(&self, name: &str) -> &Value {
        self.0.pointer(&format!("/components/schemas/{name}")).unwrap_or_else(|| panic!("no schema {name}"))
    }

    /// The schema that is meant, and all that it may be instead.
    fn variants<'a>(&'a self, schema: &'a Value) -> Vec<&'a Value> {
        if let Some(reference) = schema["$ref"].as_str() {
            return self.variants(self.named(reference.rsplit('/').next().unwrap()));
        }
        match schema["oneOf"].as_array() {
            Some(all) => all.iter().flat_map(|one| self.variants(one)).collect(),
            None => vec![schema],
        }
    }

    fn types(&self, schema: &Value) -> BTreeSet<String> {
        let of = |schema: &Value| match &schema["type"] {
            Value::String(one) => vec![one.clone()],
            Value::Array(several) => several.iter().map(|t| t.as_str().unwrap().to_owned()).collect(),
            other => panic!("{other} in {schema}"),
        };
        self.variants(schema).into_iter().flat_map(of).collect()
    }

    /// A good value: the schema's example, or one made of its parts.
    fn example(&self, schema: &Value) -> Value {
        if let Some(reference) = schema["$ref"].as_str() {
            return self.example(self.named(reference.rsplit('/').next().unwrap()));
        }
        if let Some(example) = schema.get("example") {
            return example.clone();
        }
        if let Some(first) = schema["enum"].as_array().and_then(|all| all.first()) {
            return first.clone();
        }
        let filled = |v: &&Value| v["type"] != "null";
        if let Some(first) = schema["oneOf"].as_array().and_then(|all| all.iter().find(filled)) {
            return self.example(first);
        }
        let kind = match &schema["type"] {
            Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).find(|kind| *kind != "null"),
            kind => kind.as_str(),
        };
        match kind {
            Some("object") => {
                self.properties(schema).map(|(name, part)| (name.clone(), self.example(part))).collect()
            }
            _ if schema["items"].is_object() => json!([self.example(&schema["items"])]),
            other => panic!("no example for {other:?}: {schema}"),
        }
    }

    fn properties<'a>(&self, schema: &'a Value) -> impl Iterator<Item = (&'a String, &'a Value)> {
        schema["properties"].as_object().into_iter().flatten()
    }

    /// Names of all fields below a schema: `messages[].role`.
    fn names(&self, prefix: &str, schema: &Value, all: &mut BTreeSet<String>) {
        for variant in self.variants(schema) {
            for (name, part) in self.properties(variant) {
                let dot = if prefix.is_empty() { "" } else { "." };
                let name = format!("{prefix}{dot}{name}");
                self.names(&name, part, all);
                all.insert(name);
            }
            if variant["items"].is_object() {
                self.names(&format!("{prefix}[]"), &variant["items"], all);
            }
        }
    }
}

/// The base, a field, and what it needs.
fn request(endpoint: &Endpoint, field: &str, value: Value) -> Vec<u8> {
    let mut body: Map<String, Value> = endpoint.base.as_object().unwrap().clone();
    if let Some((_, others)) = endpoint.needs.iter().find(|(needy, _)| *needy == field) {
        body.extend(serde_json::from_str::<Map<String, Value>>(others).unwrap());
    }
    body.insert(field.to_owned(), value);
    serde_json::to_vec(&body).unwrap()
}

#[test]
fn every_property_is_honoured_and_every_field_is_described() {
    let (state, document) = (state(), Document::new());
    for endpoint in ENDPOINTS.iter().map(|make| make()) {
        let schema = document.named(endpoint.schema);
        assert_eq!(schema["additionalProperties"], false, "{}", endpoint.schema);
        asked::take();
        for (field, part) in document.properties(schema) {
            let good = document.example(part);
            let read = (endpoint.read)(&state, &request(&endpoint, field, good.clone()));
            assert_eq!(read.map_err(|e| e.body()), Ok(()), "{}: {field} = {good}", endpoint.schema);
            // A value of another type is refused by name: the field is looked at.
            let types = document.types(part);
            let bad = [
                ("boolean", json!(true)),
                ("string", json!("x")),
                ("object", json!({"x": 1})),
                ("array", json!([[{}]])),
            ];
            let (_, bad) = bad.into_iter().find(|(kind, _)| !types.contains(*kind)).unwrap();
            let error = (endpoint.read)(&state, &request(&endpoint, field, bad.clone())).unwrap_err().body();
            let param = error["error"]["param"].as_str().unwrap_or_default();
            assert!(param.starts_with(field.as_str()), "{}: {field} = {bad} -> {error}", endpoint.schema);
        }
        let mut described = BTreeSet::new();
        document.names("", schema, &mut described);
        let mut honoured = asked::take();
        // They are taken everywhere, and worth mentioning where clients send them.
        let neutral = NEUTRAL.iter().map(|(name, _)| (*name).to_owned());
        honoured.extend(neutral.filter(|name| described.contains(name)));
        assert_eq!(
            honoured, described,
            "{}: fields that are read (left) must be those of its schema (right); add the field to the struct \
             that describes the request",
            endpoint.schema
        );
    }
}

#[test]
fn generating_endpoints_describe_all_that_changes_nothing() {
    let document = Document::new();
    for schema in ["ChatRequest", "CompletionRequest"] {
        let mut described = BTreeSet::new();
        document.names("", document.named(schema), &mut described);
        for (name, _) in NEUTRAL {
            assert!(described.contains(*name), "{schema} lacks {name}");
        }
    }
}

#[test]
fn references_lead_somewhere_and_operations_say_what_they_do() {
    fn references<'a>(value: &'a Value, all: &mut Vec<&'a str>) {
        match value {
            Value::Object(map) => {
                all.extend(map.get("$ref").and_then(Value::as_str));
                map.values().for_each(|v| references(v, all));
            }
            Value::Array(list) => list.iter().for_each(|v| references(v, all)),
            _ => {}
        }
    }
    let document = Document::new();
    let mut all = Vec::new();
    references(&document.0, &mut all);
    assert!(all.len() > 50, "{all:?}");
    for reference in all {
        assert!(document.0.pointer(&reference[1..]).is_some(), "{reference}");
    }
    for (path, item) in document.0["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            assert!(operation["summary"].as_str().is_some_and(|s| s.len() > 3), "{method} {path}");
            assert!(operation["responses"]["200"].is_object(), "{method} {path}");
        }
    }
}
