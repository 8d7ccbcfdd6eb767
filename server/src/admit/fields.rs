//! A request's JSON object, taken field by field: each extractor names the field and what it expected.
//!
//! What no extractor took is judged by [`Fields::finish`] with one table: a field that asks for nothing passes,
//! one that asks for something is refused by name. Nothing is ignored silently, unless the policy says so.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use crate::error::{ApiError, quoted};
use crate::settings::UnknownFields;

/// What is done with a field that no endpoint reads.
pub(crate) enum Rule {
    /// A string that changes nothing about the answer.
    AnyString,
    /// An object that changes nothing about the answer.
    AnyObject,
    /// Not honoured. These values, as JSON, and null ask for nothing.
    Only(&'static [&'static str]),
}

use Rule::{AnyObject, AnyString, Only};

/// Fields that are taken and change nothing.
pub(crate) const NEUTRAL: &[(&str, Rule)] = &[
    // Bookkeeping on OpenAI's side; without storage there is nothing to attach it to.
    ("user", AnyString),
    ("metadata", AnyObject),
    ("safety_identifier", AnyString),
    // For balancers in front of replicas. The prefix cache finds what prompts share by itself, and is parted by API key and
    // `cache_salt` only.
    ("prompt_cache_key", AnyString),
    // How long a prefix stays depends on who else needs the room: nothing longer is promised.
    ("prompt_cache_retention", Only(&["\"in_memory\"", "\"in-memory\""])),
    ("store", Only(&["false"])),
    ("service_tier", Only(&["\"auto\"", "\"default\""])),
];

/// All other fields of OpenAI's two endpoints, and of vLLM's and llama.cpp's, that are not read here.
/// A field in no table is unknown: null, false and the empty list ask for nothing, anything else is refused.
const REFUSED: &[(&str, Rule)] = &[
    // Tools.
    ("tools", Only(&["[]"])),
    ("tool_choice", Only(&["\"none\"", "\"auto\""])),
    ("parallel_tool_calls", Only(&["true", "false"])),
    ("functions", Only(&["[]"])),
    ("function_call", Only(&["\"none\"", "\"auto\""])),
    // Shape and kind of the answer.
    ("response_format", Only(&["{\"type\":\"text\"}"])),
    ("modalities", Only(&["[\"text\"]", "[]"])),
    ("audio", Only(&[])),
    ("prediction", Only(&[])),
    // The default of OpenAI's models, older and newer.
    ("reasoning_effort", Only(&["\"medium\"", "\"none\""])),
    ("verbosity", Only(&["\"medium\""])),
    ("web_search_options", Only(&[])),
    // Of responses.
    ("conversation", Only(&[])),
    ("prompt", Only(&[])),
    ("max_tool_calls", Only(&[])),
    ("context_management", Only(&["[]"])),
    ("moderation", Only(&[])),
    ("prompt_cache_options", Only(&[])),
    ("background_options", Only(&[])),
    ("suffix", Only(&["\"\""])),
    // Extensions of vLLM and llama.cpp whose default is not false.
    ("add_generation_prompt", Only(&["true"])),
    ("add_special_tokens", Only(&["true"])),
    ("skip_special_tokens", Only(&["true"])),
    ("spaces_between_special_tokens", Only(&["true"])),
    ("cache_prompt", Only(&["true"])),
    ("chat_template_kwargs", Only(&["{}"])),
    ("length_penalty", Only(&["1", "1.0"])),
    ("priority", Only(&["0"])),
    ("typical_p", Only(&["1", "1.0"])),
    ("mirostat", Only(&["0"])),
    ("grammar", Only(&["\"\""])),
];

fn rules() -> impl Iterator<Item = &'static (&'static str, Rule)> {
    NEUTRAL.iter().chain(REFUSED)
}

/// What is left of a request's object.
#[derive(Debug)]
pub struct Fields {
    map: Map<String, Value>,
    /// Where this object lies in the request, with a dot at the end; empty for the request itself.
    path: String,
}

/// Reads a body as a JSON object. Its depth is bounded by the parser (128), its size by whoever read it.
pub fn parse(body: &[u8]) -> Result<Fields, ApiError> {
    match serde_json::from_slice(body) {
        Ok(Value::Object(map)) => Ok(Fields { map, path: String::new() }),
        Ok(other) => {
            Err(ApiError::malformed(format!("The body must be a JSON object, not {}", kind(&other))))
        }
        Err(e) => Err(ApiError::malformed(format!("We could not parse the JSON body of your request: {e}"))),
    }
}

impl Fields {
    /// A value at `path` that must be an object.
    pub fn within(value: Value, path: &str) -> Result<Self, ApiError> {
        match value {
            Value::Object(map) => Ok(Self::nested(map, path)),
            other => Err(mistyped(path, "an object", &other)),
        }
    }

    /// An object within a request, at `path`.
    pub fn nested(map: Map<String, Value>, path: &str) -> Self {
        Self { map, path: format!("{path}.") }
    }

    /// The full name of a field.
    pub fn name(&self, field: &str) -> String {
        format!("{}{field}", self.path)
    }

    /// A field as it is; null is the same as absent.
    pub fn take(&mut self, field: &str) -> Option<Value> {
        #[cfg(test)]
        asked::note(&self.name(field));
        self.map.shift_remove(field).filter(|value| !value.is_null())
    }

    /// Whether a field is there and not null.
    pub fn has(&self, field: &str) -> bool {
        #[cfg(test)]
        asked::note(&self.name(field));
        self.map.get(field).is_some_and(|value| !value.is_null())
    }

    /// The error for a field of the wrong type.
    pub fn mistyped(&self, field: &str, expected: &str, got: &Value) -> ApiError {
        mistyped(&self.name(field), expected, got)
    }

    /// A string.
    pub fn string(&mut self, field: &str) -> Result<Option<String>, ApiError> {
        match self.take(field) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.mistyped(field, "a string", &other)),
        }
    }

    /// A string that must be there.
    pub fn needed(&mut self, field: &str) -> Result<String, ApiError> {
        self.string(field)?.ok_or_else(|| self.missing(field))
    }

    /// A string that must be there and be one of these.
    pub fn word(&mut self, field: &str, words: &[&'static str]) -> Result<&'static str, ApiError> {
        let word = self.needed(field)?;
        words.iter().find(|known| **known == word).copied().ok_or_else(|| {
            let name = self.name(field);
            let message = format!(
                "Unsupported value: '{name}' is '{}'; supported: {}",
                quoted(&word),
                words.join(", ")
            );
            ApiError::unsupported(&name, message)
        })
    }

    /// The error for a field that is not there.
    pub fn missing(&self, field: &str) -> ApiError {
        let name = self.name(field);
        ApiError::invalid(&name, format!("Missing required parameter: '{name}'"))
    }

    /// A boolean; absent is false.
    pub fn flag(&mut self, field: &str) -> Result<bool, ApiError> {
        self.flag_or(field, false)
    }

    /// A boolean with a default.
    pub fn flag_or(&mut self, field: &str, default: bool) -> Result<bool, ApiError> {
        match self.take(field) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(flag),
            Some(other) => Err(self.mistyped(field, "a boolean", &other)),
        }
    }

    /// A whole number in a range. A float without a fraction counts: some languages know no other numbers.
    pub fn integer(&mut self, field: &str, range: RangeInclusive<i64>) -> Result<Option<i64>, ApiError> {
        let Some(value) = self.take(field) else { return Ok(None) };
        let number = whole(&value).ok_or_else(|| self.mistyped(field, "an integer", &value))?;
        if range.contains(&number) { Ok(Some(number)) } else { Err(self.outside(field, &value, &range)) }
    }

    /// As [`Fields::integer`], for what is counted in 32 bits.
    pub fn count(&mut self, field: &str, range: RangeInclusive<u32>) -> Result<Option<u32>, ApiError> {
        let wide = i64::from(*range.start())..=i64::from(*range.end());
        let number = self.integer(field, wide)?;
        Ok(number.map(|n| u32::try_from(n).expect("the range is of 32 bits")))
    }

    /// A number in a range.
    pub fn number(&mut self, field: &str, range: RangeInclusive<f32>) -> Result<Option<f32>, ApiError> {
        let Some(value) = self.take(field) else { return Ok(None) };
        let number = value.as_f64().ok_or_else(|| self.mistyped(field, "a number", &value))?;
        if (f64::from(*range.start())..=f64::from(*range.end())).contains(&number) {
            #[expect(
                clippy::cast_possible_truncation,
                reason = "within the range of an f32, rounded to the nearest"
            )]
            let narrow = number as f32;
            Ok(Some(narrow))
        } else {
            Err(self.outside(field, &value, &range))
        }
    }

    /// An object, as fields of its own.
    pub fn object(&mut self, field: &str) -> Result<Option<Self>, ApiError> {
        match self.take(field) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Self::nested(map, &self.name(field)))),
            Some(other) => Err(self.mistyped(field, "an object", &other)),
        }
    }

    fn outside<T: std::fmt::Debug>(&self, field: &str, got: &Value, range: &RangeInclusive<T>) -> ApiError {
        let (name, low, high) = (self.name(field), range.start(), range.end());
        ApiError::invalid(
            &name,
            format!("Invalid value for '{name}': {got} is not between {low:?} and {high:?}"),
        )
    }

    /// Judges what no extractor took.
    pub fn finish(self, policy: UnknownFields) -> Result<(), ApiError> {
        if policy == UnknownFields::Ignore {
            return Ok(());
        }
        for (field, value) in &self.map {
            let name = self.name(field);
            let rule = rules().find(|(known, _)| self.path.is_empty() && known == field);
            match rule {
                Some(_) if value.is_null() => {}
                Some((_, AnyString)) if value.is_string() => {}
                Some((_, AnyString)) => return Err(mistyped(&name, "a string", value)),
                Some((_, AnyObject)) if value.is_object() => {}
                Some((_, AnyObject)) => return Err(mistyped(&name, "an object", value)),
                Some((_, Only(harmless))) => {
                    if !harmless.iter().any(|text| same(text, value)) {
                        let message =
                            format!("Unsupported parameter: '{name}' is not supported by this server");
                        return Err(ApiError::unsupported(&name, message));
                    }
                }
                None => {
                    let asks_for_nothing = matches!(value, Value::Null | Value::Bool(false))
                        || value.as_array().is_some_and(Vec::is_empty);
                    if !asks_for_nothing {
                        return Err(ApiError::unknown_field(&name));
                    }
                }
            }
        }
        Ok(())
    }
}

fn same(json: &str, value: &Value) -> bool {
    serde_json::from_str::<Value>(json).expect("the table holds JSON") == *value
}

/// The error for a value of the wrong type.
pub fn mistyped(name: &str, expected: &str, got: &Value) -> ApiError {
    ApiError::invalid(
        name,
        format!("Invalid type for '{name}': expected {expected}, but got {} instead.", kind(got)),
    )
}

/// A number without a fraction; integers beyond i64 keep their bits (seeds of 64 bits).
pub fn whole(value: &Value) -> Option<i64> {
    /// Up to here an f64 counts every integer.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if let Some(n) = value.as_i64() {
        return Some(n);
    }
    let n = value.as_f64().filter(|_| value.is_f64())?;
    #[expect(clippy::cast_possible_truncation, reason = "it has no fraction and is below 2^53")]
    (n.fract() == 0.0 && n.abs() <= EXACT).then_some(n as i64)
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(n) if n.is_f64() => "a number",
        Value::Number(_) => "an integer",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// The fields that extractors asked for in this thread: what the schemas are compared with.
#[cfg(test)]
pub(crate) mod asked {
    use std::cell::RefCell;
    use std::collections::BTreeSet;

    thread_local! {
        static NAMES: RefCell<BTreeSet<String>> = const { RefCell::new(BTreeSet::new()) };
    }

    /// `messages[3].role` is `messages[].role`.
    pub(super) fn note(name: &str) {
        let mut pieces = name.split(['[', ']']);
        let mut noted = pieces.next().unwrap_or_default().to_owned();
        while let (Some(_), Some(rest)) = (pieces.next(), pieces.next()) {
            noted = format!("{noted}[]{rest}");
        }
        NAMES.with_borrow_mut(|names| names.insert(noted));
    }

    /// Those since the last call.
    pub(crate) fn take() -> BTreeSet<String> {
        NAMES.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(json: &str) -> Fields {
        parse(json.as_bytes()).unwrap()
    }

    fn param(error: &ApiError) -> String {
        error.body()["error"]["param"].as_str().unwrap_or_default().to_owned()
    }

    #[test]
    fn every_row_is_valid_json_and_unique() {
        for (i, (name, rule)) in rules().enumerate() {
            assert!(rules().take(i).all(|(other, _)| other != name), "{name} twice");
            let (harmless, harmful) = match rule {
                Only(values) => (*values, "\"something\""),
                AnyString => (&["\"something\""][..], "7"),
                AnyObject => (&["{\"some\":\"thing\"}"][..], "7"),
            };
            for value in harmless {
                serde_json::from_str::<Value>(value).unwrap();
                fields(&format!("{{{name:?}: {value}}}")).finish(UnknownFields::Refuse).unwrap();
            }
            let asks = fields(&format!("{{{name:?}: {harmful}}}")).finish(UnknownFields::Refuse);
            assert_eq!(param(&asks.unwrap_err()), *name);
            fields(&format!("{{{name:?}: null}}")).finish(UnknownFields::Refuse).unwrap();
        }
    }

    #[test]
    fn unknown_fields_pass_only_when_they_ask_for_nothing() {
        for nothing in ["null", "false", "[]"] {
            fields(&format!(r#"{{"zzz": {nothing}}}"#)).finish(UnknownFields::Refuse).unwrap();
        }
        for something in ["0", "true", "\"\"", "{}", "[1]"] {
            let json = format!(r#"{{"zzz": {something}}}"#);
            assert_eq!(param(&fields(&json).finish(UnknownFields::Refuse).unwrap_err()), "zzz");
            fields(&json).finish(UnknownFields::Ignore).unwrap();
        }
    }

    #[test]
    fn numbers_are_checked_for_type_and_range() {
        assert_eq!(fields(r#"{"a": 3.0}"#).integer("a", 0..=9).unwrap(), Some(3));
        assert_eq!(fields(r#"{"a": null}"#).integer("a", 0..=9).unwrap(), None);
        for bad in ["3.5", "10", "-1", "\"3\"", "1e300", "18446744073709551615", "true", "[]"] {
            assert_eq!(
                param(&fields(&format!(r#"{{"a": {bad}}}"#)).integer("a", 0..=9).unwrap_err()),
                "a",
                "{bad}"
            );
        }
        assert_eq!(fields(r#"{"a": 1}"#).number("a", 0.0..=2.0).unwrap(), Some(1.0));
        for bad in ["2.0001", "-1e-9", "1e300", "\"1\"", "false"] {
            assert!(fields(&format!(r#"{{"a": {bad}}}"#)).number("a", 0.0..=2.0).is_err(), "{bad}");
        }
    }

    #[test]
    fn nested_fields_are_named_by_path() {
        let mut outer = fields(r#"{"stream_options": {"include_usage": 1}}"#);
        let mut inner = outer.object("stream_options").unwrap().unwrap();
        assert_eq!(param(&inner.flag("include_usage").unwrap_err()), "stream_options.include_usage");
    }
}
