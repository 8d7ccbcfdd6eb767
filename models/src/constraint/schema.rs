//! JSON schemas before the library sees them: every keyword is one that is enforced, or one that constrains nothing.
//!
//! The library passes over keywords that its draft of the standard does not know, and takes options from the schema itself; here
//! both are refused by name. So is what it would refuse only while it compiles, as far as it can be told cheaply: whoever can do without
//! a schema has to know early.

use std::collections::HashSet;
use std::ptr;

use llguidance::JsonCompileOptions;
use regex_automata::util::syntax;
use serde_json::{Map, Value};

use super::{LIST_BYTES_MAX, REGEX_BYTES_MAX, check_bytes};

/// White space between two tokens of JSON, at most: room for a line break and deep indentation, and no more, or else a model that
/// likes white space would never come to an end.
const SPACE: &str = r"[\x20\x0A\x0D\x09]{1,20}";

/// Schemas within a schema.
const SCHEMAS_MAX: usize = 10_000;

/// Values of all `enum`s.
const VALUES_MAX: usize = 10_000;

/// Deepest nesting of schemas.
const DEPTH_MAX: usize = 64;

/// Properties of an object that may be absent: the parser follows all orders of leaving some out at once.
const OPTIONAL_MAX: usize = 400;

/// Largest significant digits of `multipleOf`: an automaton counts up to them.
const MULTIPLE_MAX: u64 = 10_000;

/// What a keyword's value holds.
enum Holds {
    /// Nothing that is a schema.
    Value,
    /// A schema.
    Schema,
    /// A schema, or a list of them.
    SchemaOrList,
    /// A list of schemas.
    List,
    /// Schemas by name.
    Map,
}

use Holds::{List, Schema, SchemaOrList};

/// All keywords that are accepted: those enforced, then those that constrain nothing.
const KEYWORDS: &[(&str, Holds)] = &[
    ("$ref", Holds::Value),
    ("allOf", List),
    ("anyOf", List),
    ("oneOf", List),
    ("const", Holds::Value),
    ("enum", Holds::Value),
    ("type", Holds::Value),
    ("items", SchemaOrList),
    ("additionalItems", Schema),
    ("prefixItems", List),
    ("minItems", Holds::Value),
    ("maxItems", Holds::Value),
    ("properties", Holds::Map),
    ("additionalProperties", Schema),
    ("patternProperties", Holds::Map),
    ("required", Holds::Value),
    ("minProperties", Holds::Value),
    ("maxProperties", Holds::Value),
    ("minLength", Holds::Value),
    ("maxLength", Holds::Value),
    ("pattern", Holds::Value),
    ("format", Holds::Value),
    ("minimum", Holds::Value),
    ("maximum", Holds::Value),
    ("exclusiveMinimum", Holds::Value),
    ("exclusiveMaximum", Holds::Value),
    ("multipleOf", Holds::Value),
    // Places to refer to.
    ("$defs", Holds::Map),
    ("definitions", Holds::Map),
    ("$anchor", Holds::Value),
    ("$id", Holds::Value),
    ("id", Holds::Value),
    // Words about the schema.
    ("$schema", Holds::Value),
    ("$comment", Holds::Value),
    ("title", Holds::Value),
    ("description", Holds::Value),
    ("default", Holds::Value),
    ("examples", Holds::Value),
    ("deprecated", Holds::Value),
    ("readOnly", Holds::Value),
    ("writeOnly", Holds::Value),
    ("contentMediaType", Holds::Value),
    ("contentEncoding", Holds::Value),
    // OpenAPI's hint at which of several objects it is; the objects say it themselves.
    ("discriminator", Holds::Value),
];

/// What a value may be.
const TYPES: &[&str] = &["null", "boolean", "number", "integer", "string", "array", "object"];

/// What a `format` may be: all that the library knows.
const FORMATS: &[&str] =
    &["date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri", "unknown"];

/// A schema, checked, with our options for the library in it.
pub(super) fn prepared(schema: &Value) -> Result<Value, String> {
    with_options(schema, JsonCompileOptions::default())
}

fn with_options(schema: &Value, options: JsonCompileOptions) -> Result<Value, String> {
    let Value::Object(object) = schema else { return Err("the schema must be an object".to_owned()) };
    check_bytes("the schema", schema.to_string().len(), LIST_BYTES_MAX)?;
    let mut count = Count::default();
    count.places.insert(ptr::from_ref(schema));
    count.object(object, "", 0)?;
    for (reference, at) in &count.references {
        if !place(schema, reference).is_some_and(|to| count.places.contains(&ptr::from_ref(to))) {
            return Err(format!("the '$ref' to '{}'{at} leads to no schema in it", shortened(reference)));
        }
    }
    let options = JsonCompileOptions {
        whitespace_pattern: Some(SPACE.to_owned()),
        item_separator: ",".to_owned(),
        key_separator: ":".to_owned(),
        ..options
    };
    let mut prepared = schema.clone();
    options.apply_to(&mut prepared);
    Ok(prepared)
}

/// A schema as a part of a Lark grammar: `%json { ... }`, with the same white space as [`super::ConstraintSpec::Json`].
///
/// # Errors
/// If the schema is one that [`super::ConstraintSpec::Json`] would refuse before compiling.
pub fn json_in_lark(schema: &Value) -> Result<String, super::ConstraintError> {
    let prepared = prepared(schema).map_err(super::ConstraintError::Refused)?;
    Ok(format!("%json {prepared}"))
}

/// The same for a schema that need not be followed to the letter: `oneOf` is read as `anyOf`, as whether its alternatives overlap is
/// known only when it is compiled.
pub(crate) fn json_in_lark_loosely(schema: &Value) -> Result<String, super::ConstraintError> {
    let options = JsonCompileOptions { coerce_one_of: true, ..JsonCompileOptions::default() };
    let prepared = with_options(schema, options).map_err(super::ConstraintError::Refused)?;
    Ok(format!("%json {prepared}"))
}

#[derive(Default)]
struct Count<'a> {
    schemas: usize,
    values: usize,
    /// Bytes of regular expressions.
    patterns: usize,
    /// Where there are schemas.
    places: HashSet<*const Value>,
    /// Where they refer to, and what errors say of who does.
    references: Vec<(&'a str, String)>,
}

impl<'a> Count<'a> {
    fn schema(&mut self, schema: &'a Value, path: &str, depth: usize) -> Result<(), String> {
        self.places.insert(ptr::from_ref(schema));
        match schema {
            Value::Bool(_) => self.more(depth),
            Value::Object(object) => self.object(object, path, depth),
            _ => Err(format!("the schema at '{path}' must be an object or a boolean")),
        }
    }

    fn more(&mut self, depth: usize) -> Result<(), String> {
        self.schemas += 1;
        if depth > DEPTH_MAX {
            return Err(format!("its schemas are nested more than {DEPTH_MAX} deep"));
        }
        match self.schemas <= SCHEMAS_MAX {
            true => Ok(()),
            false => Err(format!("it holds more than {SCHEMAS_MAX} schemas")),
        }
    }

    fn object(&mut self, object: &'a Map<String, Value>, path: &str, depth: usize) -> Result<(), String> {
        self.more(depth)?;
        limits(object, path)?;
        kinds(object, path)?;
        for (keyword, value) in object {
            let Some((_, holds)) = KEYWORDS.iter().find(|(known, _)| known == keyword) else {
                return Err(format!(
                    "the schema keyword '{}'{} is not supported",
                    shortened(keyword),
                    at(path)
                ));
            };
            let (parent, path) = (path, format!("{path}/{keyword}"));
            match (holds, value) {
                (Holds::Value, value) => self.value(keyword, value, parent)?,
                (List | SchemaOrList, Value::Array(schemas)) => {
                    for (i, schema) in schemas.iter().enumerate() {
                        self.schema(schema, &format!("{path}/{i}"), depth + 1)?;
                    }
                }
                (Schema | SchemaOrList, schema) => self.schema(schema, &path, depth + 1)?,
                (Holds::Map, Value::Object(schemas)) => {
                    for (name, schema) in schemas {
                        if keyword == "patternProperties" {
                            self.pattern(keyword, name, parent)?;
                        }
                        self.schema(schema, &format!("{path}/{name}"), depth + 1)?;
                    }
                }
                (List | Holds::Map, _) => return Err(format!("'{}' holds no schemas", shortened(&path))),
            }
        }
        Ok(())
    }

    fn value(&mut self, keyword: &str, value: &'a Value, path: &str) -> Result<(), String> {
        match (keyword, value) {
            ("enum", Value::Array(values)) => self.values += values.len(),
            ("pattern", Value::String(pattern)) => self.pattern(keyword, pattern, path)?,
            ("$ref", Value::String(reference)) => self.references.push((reference, at(path))),
            ("pattern" | "$ref", _) => return Err(format!("the '{keyword}'{} must be a string", at(path))),
            _ => {}
        }
        match self.values <= VALUES_MAX {
            true => Ok(()),
            false => Err(format!("its enums have more than {VALUES_MAX} values")),
        }
    }

    /// A regular expression, parsed as the library parses it, which is linear; it has no look-around and no boundaries of words.
    fn pattern(&mut self, keyword: &str, pattern: &str, path: &str) -> Result<(), String> {
        self.patterns += pattern.len();
        check_bytes("the patterns together", self.patterns, REGEX_BYTES_MAX)?;
        let refused = |why: &str| Err(format!("the '{keyword}'{} is not supported: {why}", at(path)));
        match syntax::parse(&llguidance::regex_to_lark(pattern, "dw")) {
            Ok(parsed) => {
                let looks = parsed.properties().look_set();
                match looks.contains_word() || looks.contains_anchor_line() {
                    true => refused("it looks at what is around a place, as with \\b"),
                    false => Ok(()),
                }
            }
            Err(error) => {
                // The last line says what, those before it show where.
                let error = error.to_string();
                let why = error.lines().last().unwrap_or_default();
                refused(why.strip_prefix("error: ").unwrap_or(why))
            }
        }
    }
}

/// Types and formats that the library does not know. A format is looked at where there may be a string.
fn kinds(object: &Map<String, Value>, path: &str) -> Result<(), String> {
    let named = |keyword: &str, value: &Value| {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        format!("the {keyword} '{}'{} is not supported", shortened(&value), at(path))
    };
    let ty = object.get("type");
    let types = ty.map(|ty| ty.as_array().map_or(std::slice::from_ref(ty), Vec::as_slice));
    let known = |ty: &&Value| ty.as_str().is_some_and(|name| TYPES.contains(&name));
    if let Some(unknown) = types.and_then(|types| types.iter().find(|ty| !known(ty))) {
        return Err(named("type", unknown));
    }
    let text = types.is_none_or(|types| types.iter().any(|ty| ty == "string"));
    match object.get("format").filter(|_| text) {
        Some(format) if !format.as_str().is_some_and(|name| FORMATS.contains(&name)) => {
            Err(named("format", format))
        }
        _ => Ok(()),
    }
}

/// What a reference points at, as the library reads it: without escapes.
fn place<'a>(root: &'a Value, reference: &str) -> Option<&'a Value> {
    if reference == "#" {
        return Some(root);
    }
    let mut segments = reference.strip_prefix("#/")?.split('/').filter(|_| reference != "#/");
    segments.try_fold(root, |value, segment| match value {
        Value::Array(values) => values.get(segment.parse::<usize>().ok()?),
        value => value.get(segment),
    })
}

/// What of one schema is known to take too much to follow.
fn limits(object: &Map<String, Value>, path: &str) -> Result<(), String> {
    let names = object.get("properties").and_then(Value::as_object).map_or(0, Map::len);
    let required = object.get("required").and_then(Value::as_array).map_or(0, Vec::len);
    if names.saturating_sub(required) > OPTIONAL_MAX {
        let message = format!("more than {OPTIONAL_MAX} 'properties'{} are not 'required'", at(path));
        return Err(message);
    }
    if let Some(Value::Number(number)) = object.get("multipleOf") {
        // Digits without point and zeros at either end; an exponent says nothing of the automaton's size.
        let text = number.to_string();
        let digits = text.split(['e', 'E']).next().unwrap_or_default().replace(['.', '-'], "");
        let digits = digits.trim_matches('0').parse().unwrap_or(if digits.len() > 15 { u64::MAX } else { 1 });
        if digits > MULTIPLE_MAX {
            return Err(format!("'multipleOf'{} has more digits than {MULTIPLE_MAX}", at(path)));
        }
    }
    Ok(())
}

fn at(path: &str) -> String {
    if path.is_empty() { String::new() } else { format!(" at '{}'", shortened(path)) }
}

/// A client's own words, bounded.
fn shortened(text: &str) -> String {
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
