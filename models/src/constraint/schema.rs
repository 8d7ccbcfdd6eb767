//! JSON schemas before the library sees them: every keyword is one that is enforced, or one that constrains nothing.
//!
//! The library passes over keywords that its draft of the standard does not know, and takes options from the schema itself; here
//! both are refused by name. So is what it would refuse only while it compiles, as far as it can be told cheaply: whoever can do without
//! a schema has to know early. What the library would do without counting is reckoned before ([`super::work`]).

use std::collections::HashSet;
use std::ptr;

use llguidance::JsonCompileOptions;
use regex_automata::util::syntax;
use serde_json::{Map, Number, Value};

use super::numbers::{Multiple, inexact, inexact_bound};
use super::work::{Reckoner, Work};
use super::{ConstraintError, LIST_BYTES_MAX, REGEX_BYTES_MAX, check_bytes};

/// White space between two tokens of JSON, at most: room for a line break and deep indentation, and no more, or else a model that
/// likes white space would never come to an end.
const SPACE: &str = r"[\x20\x0A\x0D\x09]{1,20}";

/// Schemas within a schema.
const SCHEMAS_MAX: usize = 10_000;

/// Values of all `enum`s.
const VALUES_MAX: usize = 10_000;

/// Names in all `required`.
const REQUIRED_MAX: usize = 4_000;

/// Deepest nesting of schemas.
pub(super) const DEPTH_MAX: usize = 64;

/// Properties of an object that may be absent: the parser follows all orders of leaving some out at once.
const OPTIONAL_MAX: usize = 400;

/// What a keyword's value holds.
pub(super) enum Holds {
    /// Nothing that constrains, or that anything refers to.
    Words,
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
    // Says which keywords there are.
    ("$schema", Holds::Value),
    // Words about the schema.
    ("$comment", Holds::Words),
    ("title", Holds::Words),
    ("description", Holds::Words),
    ("default", Holds::Words),
    ("examples", Holds::Words),
    ("deprecated", Holds::Words),
    ("readOnly", Holds::Words),
    ("writeOnly", Holds::Words),
    ("contentMediaType", Holds::Words),
    ("contentEncoding", Holds::Words),
    // OpenAPI's hint at which of several objects it is; the objects say it themselves.
    ("discriminator", Holds::Words),
];

/// What a value may be.
const TYPES: &[&str] = &["null", "boolean", "number", "integer", "string", "array", "object"];

/// What a `format` may be: all that the library knows.
const FORMATS: &[&str] =
    &["date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri", "unknown"];

pub(super) fn holds(keyword: &str) -> Option<&'static Holds> {
    KEYWORDS.iter().find(|(known, _)| *known == keyword).map(|(_, holds)| holds)
}

/// The schemas of one grammar: each is checked, and what they take is counted together.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Schemas {
    work: Work,
}

impl Schemas {
    /// A schema, checked, without words, with our options for the library in it.
    pub(super) fn prepared(&mut self, schema: &Value) -> Result<Value, String> {
        self.with_options(schema, JsonCompileOptions::default())
    }

    /// A schema as a part of a Lark grammar: `%json { ... }`, with the same white space as [`super::ConstraintSpec::Json`].
    ///
    /// # Errors
    /// If the schema is one that [`super::ConstraintSpec::Json`] would refuse before compiling.
    pub(crate) fn rule(&mut self, schema: &Value) -> Result<String, ConstraintError> {
        let prepared = self.prepared(schema).map_err(ConstraintError::Refused)?;
        Ok(format!("{JSON} {prepared}"))
    }

    /// The same for a schema that need not be followed to the letter: `oneOf` is read as `anyOf`, as whether its alternatives overlap
    /// is known only when it is compiled.
    pub(crate) fn rule_loosely(&mut self, schema: &Value) -> Result<String, ConstraintError> {
        let options = JsonCompileOptions { coerce_one_of: true, ..JsonCompileOptions::default() };
        let prepared = self.with_options(schema, options).map_err(ConstraintError::Refused)?;
        Ok(format!("{JSON} {prepared}"))
    }

    /// A Lark grammar with every schema in it prepared. A mark in a text or a comment is taken for one, too: so none is overlooked.
    pub(super) fn prepared_in(&mut self, lark: &str) -> Result<String, String> {
        let (mut prepared, mut rest) = (String::with_capacity(lark.len()), lark);
        while let Some((before, behind)) = rest.split_once(JSON) {
            let mut values = serde_json::Deserializer::from_str(behind).into_iter::<Value>();
            let schema = match values.next() {
                Some(Ok(schema)) => self.prepared(&schema)?.to_string(),
                _ => return Err(format!("what is behind a '{JSON}' in it is no JSON")),
            };
            // In JSON it can only be part of a string.
            let schema = schema.replace(JSON, "\\u0025json");
            prepared.extend([before, JSON, " ", &schema]);
            rest = behind.get(values.byte_offset()..).unwrap_or_default();
        }
        Ok(prepared + rest)
    }

    fn with_options(&mut self, schema: &Value, options: JsonCompileOptions) -> Result<Value, String> {
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
        self.work = count.reckoned(schema, self.work)?;
        let options = JsonCompileOptions {
            whitespace_pattern: Some(SPACE.to_owned()),
            item_separator: ",".to_owned(),
            key_separator: ":".to_owned(),
            ..options
        };
        let mut prepared = bare(schema);
        options.apply_to(&mut prepared);
        Ok(prepared)
    }
}

/// What a schema stands behind in a Lark grammar.
const JSON: &str = "%json";

/// Whether a schema allows everything.
pub(crate) fn says_nothing(schema: &Value) -> bool {
    match schema {
        Value::Object(object) => object.keys().all(|keyword| matches!(holds(keyword), Some(Holds::Words))),
        schema => *schema == Value::Bool(true),
    }
}

/// The schema without what says nothing of what it allows.
fn bare(schema: &Value) -> Value {
    let Value::Object(object) = schema else { return schema.clone() };
    let all = |list: &Vec<Value>| list.iter().map(bare).collect();
    let says = object.iter().filter_map(|(keyword, value)| {
        let value = match (holds(keyword)?, value) {
            (Holds::Words, _) => return None,
            (List | SchemaOrList, Value::Array(schemas)) => all(schemas),
            (Schema | SchemaOrList, schema) => bare(schema),
            (Holds::Map, Value::Object(schemas)) => {
                schemas.iter().map(|(name, schema)| (name.clone(), bare(schema))).collect()
            }
            (Holds::Value | List | Holds::Map, value) => value.clone(),
        };
        Some((keyword.clone(), value))
    });
    Value::Object(says.collect())
}

#[derive(Default)]
struct Count<'a> {
    schemas: usize,
    values: usize,
    required: usize,
    /// Bytes of regular expressions.
    patterns: usize,
    /// What all `multipleOf` have in common, and that it is too large.
    multiple: Option<Multiple>,
    multiple_too_large: bool,
    /// Where there are schemas.
    places: HashSet<*const Value>,
    /// Where they refer to, and what errors say of who does.
    references: Vec<(&'a str, String)>,
    /// All that are objects, and what errors say of them.
    objects: Vec<(&'a Map<String, Value>, String)>,
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
        self.objects.push((object, at(path)));
        for (keyword, value) in object {
            let Some(holds) = holds(keyword) else {
                return Err(format!(
                    "the schema keyword '{}'{} is not supported",
                    shortened(keyword),
                    at(path)
                ));
            };
            let (parent, path) = (path, format!("{path}/{keyword}"));
            match (holds, value) {
                (Holds::Words, _) => {}
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
            ("pattern", Value::String(pattern)) => self.pattern(keyword, pattern, path)?,
            ("$ref", Value::String(reference)) => self.references.push((reference, at(path))),
            ("pattern" | "$ref", _) => return Err(format!("the '{keyword}'{} must be a string", at(path))),
            ("multipleOf", Value::Number(number)) => self.multiple(number, path)?,
            ("required", Value::Array(names)) => self.required += names.len(),
            ("enum", Value::Array(values)) => self.values += values.len(),
            _ => {}
        }
        let changed = match keyword {
            "const" | "enum" => inexact(value),
            "minimum" | "maximum" | "exclusiveMinimum" | "exclusiveMaximum" => {
                value.as_number().filter(|_| inexact_bound(value))
            }
            _ => None,
        };
        if let Some(number) = changed {
            let why = "integers are told apart up to 9007199254740992 (2^53)";
            return Err(format!("{number} in '{keyword}'{} is not supported: {why}", at(path)));
        }
        match () {
            () if self.values > VALUES_MAX => Err(format!("its enums have more than {VALUES_MAX} values")),
            () if self.required > REQUIRED_MAX => {
                Err(format!("its 'required' name more than {REQUIRED_MAX} properties"))
            }
            () => Ok(()),
        }
    }

    fn multiple(&mut self, number: &Number, path: &str) -> Result<(), String> {
        let Some(multiple) = Multiple::of(number).filter(|multiple| multiple.can_be_followed()) else {
            return Err(format!("'multipleOf'{} has too many digits, or is 0", at(path)));
        };
        let common = self.multiple.unwrap_or(multiple).common(multiple);
        self.multiple_too_large |= !common.is_some_and(Multiple::can_be_followed);
        self.multiple = common.or(Some(multiple));
        Ok(())
    }

    /// What its places take, `work` included.
    fn reckoned(&self, root: &'a Value, work: Work) -> Result<Work, String> {
        let mut reckoner = Reckoner::new(root, work);
        for (object, at) in &self.objects {
            reckoner.add(object).map_err(|what| format!("its schemas{at} {what}"))?;
        }
        // Where schemas are combined each may hold beside each other one.
        match self.multiple_too_large && reckoner.combines {
            true => Err("its 'multipleOf's have a common multiple of too many digits".to_owned()),
            false => Ok(reckoner.work()),
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
pub(super) fn place<'a>(root: &'a Value, reference: &str) -> Option<&'a Value> {
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
