use serde_json::json;

use super::*;
use crate::tokenizer::{SpecialIds, TokenizerSpec};

const END: u32 = 256;
const TOOL: u32 = 257;
const INST: u32 = 258;

/// All bytes, three control tokens, and a few words.
fn tokenizer() -> Tokenizer {
    let byte = |b: u8| {
        let printable = matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
        let before = (0..b).filter(|b| !matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff)).count() as u32;
        char::from_u32(if printable { b.into() } else { 256 + before })
            .expect("below the surrogates")
            .to_string()
    };
    let mut tokens: Vec<String> = (0..=255).map(byte).collect();
    tokens.extend(["<|end|>", "<|tool|>", "[INST]"].map(str::to_owned));
    let words = ["\":", "\",", "{\"", "tr", "true", "\u{120}\"", "\u{120}\u{120}", "ab", "12", "\"}", "}}"];
    tokens.extend(words.map(str::to_owned));
    let types = (0u32..).zip(&tokens).map(|(id, _)| if (END..=INST).contains(&id) { 3 } else { 1 }).collect();
    let ids = SpecialIds { eos: Some(END), ..SpecialIds::default() };
    let spec = TokenizerSpec {
        model: "gpt2".to_owned(),
        pre: "gpt-2".to_owned(),
        tokens,
        types: Some(types),
        merges: vec!["t r".to_owned()],
        ids,
        ..TokenizerSpec::default()
    };
    Tokenizer::new(spec).expect("a sound vocabulary")
}

struct Bench {
    tokenizer: Tokenizer,
    engine: ConstraintEngine,
}

impl Bench {
    fn new() -> Self {
        let tokenizer = tokenizer();
        Self { engine: ConstraintEngine::new(&tokenizer).unwrap(), tokenizer }
    }

    fn compile(&self, spec: &ConstraintSpec) -> Arc<dyn Grammar> {
        self.engine.compile(spec).unwrap_or_else(|e| panic!("{spec:?}: {e}"))
    }

    fn refusal(&self, spec: &ConstraintSpec) -> String {
        let error = self.engine.compile(spec).err().unwrap_or_else(|| panic!("compiled: {spec:?}"));
        assert!(matches!(error, ConstraintError::Refused(_)), "{error}");
        error.to_string()
    }

    /// Any text that the grammar allows, of at most so many tokens; None if that is not enough.
    fn walk(&self, grammar: &Arc<dyn Grammar>, seed: u64, tokens_max: usize) -> Option<String> {
        let mut matcher = grammar.matcher();
        let (mut said, mut state) = (Vec::new(), seed);
        while said.len() < tokens_max {
            let next = matcher.next().wait().unwrap();
            let all: Vec<TokenId> = (0..self.tokenizer.vocab_size() as u32)
                .map(TokenId)
                .filter(|&t| next.tokens.contains(t))
                .collect();
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let pick = (state >> 33) as usize;
            if next.may_end && (all.is_empty() || pick.is_multiple_of(3)) {
                return Some(self.tokenizer.decode(&said));
            }
            let token = all[pick % all.len()];
            said.push(token);
            if matcher.advance(token).unwrap() == Progress::Complete {
                return Some(self.tokenizer.decode(&said));
            }
        }
        None
    }

    /// Takes a text byte by byte; whether all of it fits, and whether it may end there.
    fn takes(&self, grammar: &Arc<dyn Grammar>, text: &str) -> Option<bool> {
        let mut matcher = grammar.matcher();
        for (i, byte) in text.bytes().enumerate() {
            let token = TokenId(byte.into());
            if !matcher.next().wait().unwrap().tokens.contains(token) {
                return None;
            }
            if matcher.advance(token).unwrap() == Progress::Complete {
                return (i + 1 == text.len()).then_some(true);
            }
        }
        Some(matcher.next().wait().unwrap().may_end)
    }
}

#[test]
fn json_is_compact_or_spaced_and_never_endless() {
    let b = Bench::new();
    let schema = json!({
        "type": "object", "required": ["a"], "additionalProperties": false,
        "properties": {"a": {"type": "integer"}, "b": {"enum": ["x", "y"]}},
    });
    let grammar = b.compile(&ConstraintSpec::Json(schema));
    for good in [
        r#"{"a":1,"b":"x"}"#,
        r#"{"a":-12}"#,
        "{ \"a\" : 1 ,\n  \"b\": \"y\" }",
        &format!("{{{}\"a\":1}}", " ".repeat(20)),
    ] {
        assert_eq!(b.takes(&grammar, good), Some(true), "{good}");
    }
    for bad in [
        "[",
        r#"{"b":"x"}"#,
        r#"{"a":1.5"#,
        r#"{"a":01"#,
        r#"{"a":1}}"#,
        r#"{"c""#,
        &format!("{{{}", " ".repeat(21)),
    ] {
        assert_eq!(b.takes(&grammar, bad), None, "{bad}");
    }
    assert_eq!(b.takes(&grammar, r#"{"a":1,"b":"#), Some(false));
    let any = b.compile(&ConstraintSpec::Json(json!({"type": "object"})));
    for seed in 0..30 {
        if let Some(text) = b.walk(&any, seed, 2000) {
            match serde_json::from_str::<Value>(&text) {
                Ok(value) => assert!(value.is_object(), "{text}"),
                // JSON has no largest number, the reader has.
                Err(e) => assert!(e.to_string().contains("number out of range"), "{e}: {text}"),
            }
        }
    }
}

#[test]
fn regexes_choices_and_grammars_are_matched_as_a_whole() {
    let b = Bench::new();
    let check = |spec: ConstraintSpec, good: &[&str], open: &[&str], bad: &[&str]| {
        let grammar = b.compile(&spec);
        let all = [(good, Some(true)), (open, Some(false)), (bad, None)];
        for (texts, expected) in all {
            texts.iter().for_each(|text| assert_eq!(b.takes(&grammar, text), expected, "{spec:?}: {text:?}"));
        }
    };
    let regex = |text: &str| ConstraintSpec::Regex(text.to_owned());
    for same in [r"a/b\d{2,3}|\$x", r"^a/b\d{2,3}|\$x$"] {
        check(
            regex(same),
            &["a/b12", "a/b123", "$x"],
            &["a/b1", "a"],
            &["b", "a/b1234", "$xx", "a/b1\u{661}"],
        );
    }
    check(regex("\\w+é\n?"), &["aé", "b_é\n"], &["a", "aÃ".get(..1).unwrap()], &["é", "a é"]);
    check(regex(r"x\$"), &["x$"], &["x"], &["$", "x$$"]);
    let choices = ["a", "ab", "say \"no\"\\\n", "é"].map(str::to_owned).to_vec();
    check(
        ConstraintSpec::Choice(choices),
        &["a", "ab", "say \"no\"\\\n", "é"],
        &["say "],
        &["b", "abc", "aa"],
    );
    let sum = "start: term (\"+\" term)*\nterm: /[0-9]+/ | \"(\" start \")\"";
    check(ConstraintSpec::Lark(sum.to_owned()), &["1", "1+(2+3)"], &["1+", "((1)"], &["+", "1)"]);
}

#[test]
fn control_tokens_are_chosen_where_a_grammar_names_them() {
    let b = Bench::new();
    let schema = Schemas::default().rule(&json!({"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": false})).unwrap();
    let text = format!(
        "start: <|tool|> {} call | {}\ncall: <[{INST}]> {schema}",
        lark_literal("f\"\n"),
        lark_literal("none")
    );
    let grammar = b.compile(&ConstraintSpec::Composed(text));
    let mut matcher = grammar.matcher();
    let said = [&[TOOL][..], &b"f\"\n".map(u32::from), &[INST], &b"{\"n\":7}".map(u32::from)].concat();
    for (i, &token) in said.iter().enumerate() {
        let next = matcher.next().wait().unwrap();
        assert!(next.tokens.contains(TokenId(token)), "{i}: {token}");
        assert!(!next.may_end && !next.tokens.contains(TokenId(END)), "{i}");
        assert_eq!(next.tokens.contains(TokenId(TOOL)), i == 0);
        assert_eq!(next.tokens.contains(TokenId(INST)), i == 4);
        let progress = matcher.advance(TokenId(token)).unwrap();
        assert_eq!(progress == Progress::Complete, i + 1 == said.len());
    }
    assert_eq!(b.takes(&grammar, "none"), Some(true));
    // Where none is named, none is chosen; nor is a byte that is no text.
    let next = b.compile(&ConstraintSpec::Regex("(?s).*".to_owned())).matcher().next().wait().unwrap();
    assert!(next.may_end && [END, TOOL, INST, 255].iter().all(|&t| !next.tokens.contains(TokenId(t))));
}

#[test]
fn a_choice_follows_alone() {
    let b = Bench::new();
    let grammar = b.compile(&ConstraintSpec::Regex("a{3}b|a{2}c{2}".to_owned()));
    let mut matchers = [grammar.matcher(), grammar.matcher()];
    for (x, y) in "aaab".bytes().zip("aacc".bytes()) {
        for (matcher, byte) in matchers.iter_mut().zip([x, y]) {
            let next = matcher.next();
            assert_eq!(next, matcher.next());
            assert!(next.wait().unwrap().tokens.contains(TokenId(byte.into())));
            matcher.advance(TokenId(byte.into())).unwrap();
        }
    }
    // What was not allowed is an error, and no more than that.
    let mut matcher = grammar.matcher();
    matcher.next().wait().unwrap();
    assert!(matcher.advance(TokenId(b'z'.into())).is_err());
}

#[test]
fn guesses_have_the_masks_that_they_would_have_as_tokens() {
    let b = Bench::new();
    let grammar = b.compile(&ConstraintSpec::Regex("a{3}b|a{2}c{2}".to_owned()));
    let tokens: Vec<TokenId> = b"aacc".iter().map(|&byte| TokenId(byte.into())).collect();
    for (said, guesses) in (0..4).map(|said| tokens.split_at(said)) {
        let mut matcher = grammar.matcher();
        for &token in said {
            matcher.next().wait().unwrap();
            matcher.advance(token).unwrap();
        }
        // Asked for before the mask is there, and again.
        let next = matcher.next();
        matcher.ahead(guesses);
        let ahead = matcher.ahead(guesses);
        next.wait().unwrap();
        let ahead: Vec<_> = ahead.iter().map(|pending| pending.wait().unwrap()).collect();
        assert_eq!(ahead.len(), guesses.len());
        for (&guess, ahead) in guesses.iter().zip(ahead) {
            match matcher.advance(guess).unwrap() {
                Progress::Open => assert_eq!(matcher.next().wait().unwrap(), ahead),
                Progress::Complete => assert!(ahead.is_end()),
            }
        }
    }
    // What may not follow has no mask, what is behind it neither; and the choice goes on.
    let mut matcher = grammar.matcher();
    let ahead = matcher.ahead(&[tokens[0], TokenId(b'z'.into()), tokens[0]]);
    assert!(ahead[0].wait().is_ok() && ahead[1].wait().is_err() && ahead[2].wait().is_err());
    matcher.next().wait().unwrap();
    assert_eq!(matcher.advance(tokens[0]), Ok(Progress::Open));
}

#[test]
fn what_is_not_enforced_is_refused_by_name() {
    let b = Bench::new();
    let json = |schema: Value| b.refusal(&ConstraintSpec::Json(schema));
    for (schema, named) in [
        (json!({"type": "array", "uniqueItems": true}), "uniqueItems"),
        (
            json!({"type": "object", "properties": {"a": {"not": {"type": "null"}}}}),
            "'not' at '/properties/a'",
        ),
        (json!({"if": {"type": "null"}, "then": {}}), "'if'"),
        (json!({"type": "object", "propertyNames": {"pattern": "a"}}), "propertyNames"),
        (json!({"typo": 1}), "typo"),
        (json!({"x-guidance": {"lenient": true}}), "x-guidance"),
        (json!({"type": "string", "nullable": true}), "nullable"),
        (json!({"type": "string", "format": "no-such-format"}), "no-such-format"),
        (json!({"type": "strnig"}), "strnig"),
        (json!({"$ref": "https://example.org/other"}), "example.org"),
        (json!({"$ref": "#/$defs/none"}), "none"),
        (json!({"$ref": "#"}), "no token"),
        (json!({"type": "string", "pattern": "(?=a)"}), "look"),
        (json!({"type": "integer", "minimum": 5, "maximum": 4}), "minimum"),
        (json!({"properties": 7}), "properties"),
        (json!({"enum": []}), "Unsatisfiable"),
        (json!({"enum": [1, [{"a": 1_234_567_890_123_456_789_u64}]]}), "1234567890123456789 in 'enum'"),
        (json!({"items": {"const": -9_007_199_254_740_993_i64}}), "'const' at '/items'"),
        (json!({"maximum": u64::MAX}), "'maximum'"),
        (json!({"exclusiveMinimum": i64::MIN}), "'exclusiveMinimum'"),
        (json!({"oneOf": [{"type": "integer"}, {"type": "number"}]}), "oneOf"),
        (json!([]), "object"),
    ] {
        let message = json(schema.clone());
        assert!(message.contains(named), "{schema}: {message}");
        assert!(message.len() < 500 && !message.contains('\n') && !message.contains("panic"), "{message}");
    }
    for (spec, named) in [
        (ConstraintSpec::Regex("a(".to_owned()), "regex"),
        (ConstraintSpec::Regex("a(?!b)".to_owned()), "look"),
        (ConstraintSpec::Regex("a\\".to_owned()), "backslash"),
        (ConstraintSpec::Choice(vec![]), "choice"),
        (ConstraintSpec::Choice(vec![String::new()]), "choice"),
        (ConstraintSpec::Lark(String::new()), "start"),
        (ConstraintSpec::Lark("start: other".to_owned()), "other"),
        (ConstraintSpec::Lark("start: <|no|>".to_owned()), "<|no|>"),
        (ConstraintSpec::Lark("start: a\n// \"\na[temperature = 0.5]: /\"\\/x/".to_owned()), "temperature"),
        (ConstraintSpec::Lark("start: \"\"".to_owned()), "no text"),
        (ConstraintSpec::Lark("start: %json {\"uniqItems\": true}".to_owned()), "uniqItems"),
        (ConstraintSpec::Lark("start: %json {\"multipleOf\": 99730}".to_owned()), "multipleOf"),
        (ConstraintSpec::Lark("start: %json {\"x-guidance\": {\"lenient\": true}}".to_owned()), "x-guidance"),
        // What hides a schema from one who looks for texts: a control token's name.
        (ConstraintSpec::Lark("a: <\">\nstart: %json {\"not\": {}}\nb: <\">".to_owned()), "'not'"),
        (ConstraintSpec::Lark("start: %lark {\nstart: %json {\"not\": {}}\n}".to_owned()), "'not'"),
        (ConstraintSpec::Lark("start: \"%json\"".to_owned()), "no JSON"),
    ] {
        let message = b.refusal(&spec);
        assert!(message.contains(named), "{spec:?}: {message}");
    }
}

/// Who asks for the rule of a schema learns what compiling it would bring.
#[test]
fn what_the_library_would_refuse_is_known_before_it_is_compiled() {
    let b = Bench::new();
    let property = |schema: Value| json!({"type": "object", "properties": {"a": schema}});
    let circle = json!({"$ref": "#/$defs/a", "$defs": {"a": {"items": {"$ref": "#/$defs/a"}}, "b": true}});
    let list =
        json!({"$ref": "#/anyOf/1/prefixItems/0", "anyOf": [true, {"prefixItems": [{"type": "null"}]}]});
    for (schema, named) in [
        (property(json!({"type": "string", "format": "path"})), "the format 'path' at '/properties/a'"),
        (property(json!({"type": ["null", "string"], "format": "binary"})), "'binary'"),
        (property(json!({"format": "int32"})), "'int32'"),
        (property(json!({"type": "string", "format": 1})), "format '1'"),
        (
            property(json!({"pattern": "^(?!x).*$"})),
            "the 'pattern' at '/properties/a' is not supported: look-around",
        ),
        (property(json!({"pattern": "a(?<=b)"})), "look-around"),
        (property(json!({"pattern": r"(a)\1"})), "backreferences"),
        (property(json!({"pattern": r"\ba"})), "pattern"),
        (property(json!({"pattern": "a("})), "unclosed group"),
        (property(json!({"patternProperties": {"(?=x)": {}}})), "the 'patternProperties' at '/properties/a'"),
        (property(json!({"$ref": "#/$defs/none"})), "the '$ref' to '#/$defs/none' at '/properties/a'"),
        (property(json!({"$ref": "other.json#/a"})), "other.json"),
        (property(json!({"$ref": "#/properties"})), "leads to no schema"),
        (property(json!({"type": "strnig"})), "the type 'strnig' at '/properties/a'"),
        (property(json!({"type": ["null", 5]})), "type '5'"),
    ] {
        let error = Schemas::default().rule(&schema).expect_err(&schema.to_string()).to_string();
        assert!(error.contains(named) && error.len() < 200 && !error.contains('\n'), "{schema}: {error}");
        assert!(b.engine.compile(&ConstraintSpec::Json(schema)).is_err());
    }
    for schema in [
        property(json!({"type": "integer", "format": "int32"})),
        property(json!({"type": "string", "format": "date-time", "pattern": "^[0-9]{4}|x$"})),
        property(json!({"type": "string", "pattern": r"^\d+/\w*$"})),
        property(json!({"patternProperties": {"^x-": {"type": "null"}}})),
        property(json!({"items": {"$ref": "#/properties/a"}})),
        circle,
        list,
    ] {
        Schemas::default().rule(&schema).unwrap_or_else(|e| panic!("{schema}: {e}"));
        b.compile(&ConstraintSpec::Json(schema));
    }
}

/// Each ends within the limits: refused, or followed as far as it goes.
#[test]
fn pathological_grammars_end_within_their_limits() {
    let b = Bench::new();
    let chain = |n: usize, f: &dyn Fn(usize) -> Value| {
        let defs: serde_json::Map<String, Value> = (0..n).map(|i| (format!("d{i}"), f(i + 1))).collect();
        let mut schema = json!({"$ref": "#/$defs/d0", "$defs": defs});
        schema["$defs"][format!("d{n}")] = json!({"type": "null"});
        ConstraintSpec::Json(schema)
    };
    let lark = |n: usize, f: &dyn Fn(usize) -> String| {
        let rules: String = (0..n).map(|i| f(i) + "\n").collect();
        ConstraintSpec::Lark(format!("start: r0\n{rules}r{n}: \"x\""))
    };
    let regex = |text: &str| ConstraintSpec::Regex(text.to_owned());
    let properties = |n: usize| -> Value {
        (0..n).map(|i| (format!("p{i}"), json!({"type": "string"}))).collect::<serde_json::Map<_, _>>().into()
    };
    let nested = |n: usize| (0..n).fold(json!(true), |inner, _| json!({"items": inner}));
    for (spec, named) in [
        (ConstraintSpec::Json(json!({"description": "x".repeat(1 << 20)})), "bytes"),
        (ConstraintSpec::Json(json!({"enum": (0..10_001).collect::<Vec<_>>()})), "values"),
        (ConstraintSpec::Json(json!({"type": "object", "properties": properties(401)})), "'required'"),
        (ConstraintSpec::Json(json!({"type": "integer", "multipleOf": 1_000_003})), "'multipleOf'"),
        (ConstraintSpec::Json(json!({"type": "number", "multipleOf": 0.123_456_789})), "'multipleOf'"),
        (ConstraintSpec::Json(json!({"anyOf": vec![json!({"type": "null"}); 10_001]})), "schemas"),
        (ConstraintSpec::Json(json!({"pattern": "a?".repeat(10_000)})), "patterns"),
        (ConstraintSpec::Json(nested(65)), "nested"),
        (regex(&"a?".repeat(10_000)), "bytes"),
        (regex(&("(".repeat(200) + &")".repeat(200))), "nested"),
        (ConstraintSpec::Lark("(".repeat(60_000)), "nested"),
        (ConstraintSpec::Lark(format!("start: A\nA: {}/a/", "~".repeat(60_000))), "nested"),
        (
            ConstraintSpec::Lark(format!(
                "start: R0\n{}R40: \"x\"",
                (0..40).map(|i| format!("R{i}: R{0} R{0}\n", i + 1)).collect::<String>()
            )),
            "complex",
        ),
        (ConstraintSpec::Choice(vec!["y".repeat(1 << 20)]), "bytes"),
    ]
    .into_iter()
    .chain(combined().into_iter().map(|(schema, named)| (ConstraintSpec::Json(schema), named)))
    {
        let text: String = format!("{spec:?}").chars().take(100).collect();
        let message = b.refusal(&spec);
        assert!(message.contains(named), "{text}: {message}");
        assert_eq!(b.engine.compiling.load(Ordering::Acquire), 0, "{text} is being compiled still");
    }
    let endless = [
        ConstraintSpec::Json(json!({"type": "string", "maxLength": 1_000_000_000u64})),
        ConstraintSpec::Json(json!({"type": "string", "minLength": 1_000_000_000u64})),
        ConstraintSpec::Json(json!({"type": "array", "items": {"type": "object"}, "minItems": 1_000_000})),
        ConstraintSpec::Json(
            json!({"type": "object", "properties": {"next": {"$ref": "#"}}, "required": ["next"]}),
        ),
        ConstraintSpec::Json(json!({"type": "object", "properties": properties(400)})),
        ConstraintSpec::Json(json!({"enum": (0..10_000).map(|i| format!("value {i}")).collect::<Vec<_>>()})),
        ConstraintSpec::Json(json!({"type": "string", "pattern": "(.*a.{30}b){5}"})),
        ConstraintSpec::Json(nested(60)),
        chain(2000, &|next| json!({"$ref": format!("#/$defs/d{next}")})),
        chain(
            1000,
            &|next| json!({"type": "object", "properties": {"x": {"$ref": format!("#/$defs/d{next}")}}}),
        ),
        regex("(a{1000}){1000}"),
        regex("[ab]*a[ab]{30}"),
        regex("(x+x+)+y"),
        regex(&"a?".repeat(1_000)),
        regex("((((a{1,9}){1,9}){1,9}){1,9}){1,9}"),
        regex("a{4000000000}"),
        regex("((a{0,100}){0,100}){0,100}"),
        lark(2000, &|i| format!("r{i}: r{}", i + 1)),
        lark(2000, &|i| format!("r{i}: \"a\" r{} \"b\"", i + 1)),
        lark(40, &|i| format!("r{i}: r{0} r{0} | r{0}", i + 1)),
        ConstraintSpec::Lark("start: s\ns: s s s | s s | \"a\" | ".to_owned()),
        ConstraintSpec::Lark("start: (\"a\" | \"b\"){1,1000000}".to_owned()),
        ConstraintSpec::Lark("start: A\nA: ~(/(a|b)*a(a|b){20}/) & ~/.*c.*/".to_owned()),
    ];
    endless.iter().for_each(|spec| follow_for_a_while(&b, spec));
}

/// Small schemas that the library would be at for minutes, or in gigabytes.
fn combined() -> Vec<(Value, &'static str)> {
    let strings = json!({"anyOf": vec![json!({"type": "string"}); 100]});
    let long = json!({"const": "x".repeat(200_000)});
    let within = |schema: &Value| json!({"properties": {"a": {"items": schema}}});
    let patterns = |names: std::ops::Range<u32>| -> Value {
        names.map(|i| (format!("^x{i}_.*$"), json!({}))).collect::<serde_json::Map<_, _>>().into()
    };
    let names: Vec<String> = (0..800).map(|i| format!("r{i}")).collect();
    let each = |n: usize, key: &str| -> Vec<Value> {
        (0..n).map(|i| json!({"properties": {key: {"const": i}}, "required": [key]})).collect()
    };
    let objects: Vec<Value> = each(10, "k")
        .into_iter()
        .map(|mut o| {
            o["required"] = json!(names);
            o
        })
        .collect();
    vec![
        (json!({"type": "integer", "allOf": [{"multipleOf": 9973}, {"multipleOf": 9967}]}), "'multipleOf'"),
        (
            json!({"allOf": [{"$ref": "#/$defs/a"}, {"multipleOf": 0.0007}], "$defs": {"a": {"multipleOf": 9973}}}),
            "'multipleOf'",
        ),
        (json!({"type": "integer", "multipleOf": 83_200_000}), "'multipleOf'"),
        (json!({"allOf": [strings, strings, long]}), "alternatives"),
        (json!({"allOf": [within(&strings), within(&strings), within(&long)]}), "alternatives"),
        (
            json!({"anyOf": vec![json!({"type": "string"}); 100], "$ref": "#/$defs/a", "$defs": {"a": {"allOf": [strings, long]}}}),
            "alternatives",
        ),
        (
            json!({"allOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}], "$defs": {
                "a": {"properties": {"c": {"$ref": "#/$defs/a"}}}, "b": {"properties": {"c": {"$ref": "#/$defs/b"}}},
            }}),
            "circles",
        ),
        (json!({"patternProperties": patterns(0..300)}), "'patternProperties'"),
        (
            json!({"allOf": [{"patternProperties": patterns(0..30)}, {"patternProperties": patterns(30..60)}]}),
            "'patternProperties'",
        ),
        (json!({"oneOf": objects}), "'required'"),
        (json!({"allOf": [{"oneOf": each(100, "a")}, {"oneOf": each(100, "b")}]}), "'oneOf'"),
        (json!({"required": (0..5000).map(|i| i.to_string()).collect::<Vec<_>>()}), "'required'"),
    ]
}

/// What is written so is no work.
#[test]
fn schemas_that_combine_a_little_are_compiled() {
    let b = Bench::new();
    let words: Vec<String> = (0..2000).map(|i| format!("word {i}")).collect();
    for schema in [
        json!({"type": "string", "enum": words}),
        json!({"oneOf": words.iter().map(|word| json!({"const": word, "title": word})).collect::<Vec<_>>()}),
        json!({"type": "object", "properties": {"price": {"type": "number", "multipleOf": 0.01}, "lot": {"type": "integer", "multipleOf": 1000}}}),
        json!({"allOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"type": "object", "properties": {
            "children": {"type": "array", "items": {"$ref": "#/$defs/a"}},
        }}}}),
        json!({"allOf": [{"properties": {"a": {"enum": words}}}, {"properties": {"a": {"enum": ["word 7"]}}}]}),
        json!({"type": "object", "patternProperties": {"^x": {"type": "null"}, "^y": {"type": "integer"}}}),
    ] {
        b.compile(&ConstraintSpec::Json(schema));
    }
}

#[test]
fn what_was_compiled_lately_is_not_compiled_again() {
    let b = Bench::new();
    let [one, other] = ["a", "b"].map(|text| ConstraintSpec::Regex(text.to_owned()));
    let grammar = b.compile(&one);
    assert!(Arc::ptr_eq(&grammar, &b.compile(&one)) && !Arc::ptr_eq(&grammar, &b.compile(&other)));
    assert!(b.engine.compiled(&one.digest()).is_some_and(|kept| Arc::ptr_eq(&kept, &grammar)));
    let refused = ConstraintSpec::Lark("start: other".to_owned());
    b.refusal(&refused);
    assert!(b.engine.compiled(&refused.digest()).is_none());
    // It is of the same text, not the same grammar.
    let text = "start: \"a\"".to_owned();
    assert_ne!(ConstraintSpec::Lark(text.clone()).digest(), ConstraintSpec::Composed(text).digest());
}

#[test]
fn schemas_in_a_clients_grammar_are_held_to_the_same_rules() {
    let b = Bench::new();
    let lark = "start: \"<\" %json {\n\"const\": {\"a\": \"%\\u006ason\"}, \"title\": \"t\"} \">\"";
    let grammar = b.compile(&ConstraintSpec::Lark(lark.to_owned()));
    assert_eq!(b.takes(&grammar, "<{\"a\": \"%json\"}>"), Some(true));
    assert_eq!(b.takes(&grammar, &format!("<{{{}", " ".repeat(21))), None, "white space is bounded");
}

/// A hundred tokens, or as many as the limits allow.
fn follow_for_a_while(b: &Bench, spec: &ConstraintSpec) {
    let compiled = b.engine.compile(spec);
    assert_eq!(b.engine.compiling.load(Ordering::Acquire), 0, "it is being compiled still");
    let Ok(grammar) = compiled else { return };
    let mut matcher = grammar.matcher();
    for i in 0..100u32 {
        let Ok(next) = matcher.next().wait() else { return };
        let fitting = (0..256).map(|t| TokenId((t * 7 + i * 31) % 256)).find(|&t| next.tokens.contains(t));
        let Some(token) = fitting else { return };
        if matcher.advance(token) != Ok(Progress::Open) {
            return;
        }
    }
}

#[test]
fn compilers_are_few_and_their_places_come_back() {
    let places = Arc::new(AtomicUsize::new(0));
    let held: Vec<Permit> = (0..COMPILING_MAX).map(|_| Permit::take(&places).expect("a place")).collect();
    assert!(Permit::take(&places).is_none());
    drop(held);
    assert!(Permit::take(&places).is_some());
}
