//! What a schema lets an argument be, as far as that tells how its text is meant: as it stands, or as JSON.
//!
//! Absent on purpose: validation. A schema allows here what any of its branches allows.

use std::collections::{HashSet, VecDeque};
use std::ptr;

use serde_json::{Map, Value};

use crate::constraint::is_limited;

/// Schemas that are looked at for one argument.
const SCHEMAS_MAX: usize = 256;

/// References that are followed from one to the next.
const REFERENCES_MAX: usize = 16;

/// What an argument may be.
#[derive(Clone, Debug, Default)]
pub(super) struct Permits<'a> {
    /// A string that is not one of [`Self::words`].
    free: bool,
    /// Strings that the schema names.
    pub(super) words: Vec<&'a str>,
    pub(super) null: bool,
    boolean: bool,
    /// Numbers, arrays, objects.
    other: bool,
    /// What says that it may be any string.
    strings: Vec<&'a Map<String, Value>>,
    /// Somewhere several schemas hold at once.
    conjoined: bool,
    /// The schema says nothing of what this is not.
    typed: bool,
}

/// The schema of the argument `key` of a function whose parameters have the schema `root`.
pub(super) fn property<'a>(root: &'a Value, key: &str) -> Option<&'a Value> {
    let object = referred(root, root);
    let parts = object.get("allOf").and_then(Value::as_array).into_iter().flatten();
    let mut all = std::iter::once(object).chain(parts.map(|part| referred(root, part)));
    let named = all.find_map(|object| object.get("properties")?.get(key));
    named.or_else(|| object.get("additionalProperties"))
}

/// What `schema`, a part of `root`, refers to, if it has no properties of its own.
pub(super) fn referred<'a>(root: &'a Value, schema: &'a Value) -> &'a Value {
    let mut at = schema;
    for _ in 0..REFERENCES_MAX {
        let target = at.get("$ref").and_then(Value::as_str).and_then(|to| resolved(root, to));
        match target.filter(|_| at.get("properties").is_none()) {
            Some(target) => at = target,
            None => break,
        }
    }
    at
}

impl<'a> Permits<'a> {
    /// Of `schema`, a part of `root`, which references are resolved in. None: it is no schema.
    pub(super) fn of(root: &'a Value, schema: &'a Value) -> Option<Self> {
        schema.as_object()?;
        let mut permits = Self::default();
        // A list rather than recursion, which would go as deep as a client likes.
        let (mut open, mut seen) = (VecDeque::from([schema]), HashSet::new());
        while let Some(schema) = open.pop_front()
            && seen.len() < SCHEMAS_MAX
        {
            if seen.insert(ptr::from_ref(schema)) {
                permits.add(root, schema, &mut open);
            }
        }
        Some(permits)
    }

    /// Whether a text is taken as it stands, and not as JSON.
    pub(super) fn as_it_stands(&self, text: &str) -> bool {
        self.free || self.words.contains(&text) || (!self.words.is_empty() && !self.may_be_json())
    }

    /// The strings that it may be, if not any.
    pub(super) fn words(&self) -> Option<&[&'a str]> {
        (!self.free).then_some(&self.words)
    }

    /// It may be what is written as JSON, null apart.
    pub(super) fn may_be_json(&self) -> bool {
        self.boolean || self.other
    }

    /// What limits the strings that it may be: any of these; None: nothing does.
    ///
    /// # Errors
    /// If several schemas hold at once, which is not looked into.
    pub(super) fn limits(&self) -> Result<Option<&Vec<&'a Map<String, Value>>>, &'static str> {
        let limited = |schema: &&Map<String, Value>| is_limited(schema);
        match () {
            () if self.conjoined && (!self.words.is_empty() || self.strings.iter().any(limited)) => {
                Err("schemas that hold for a string together are not enforced in text that is no JSON")
            }
            () if self.strings.iter().all(limited) => Ok(Some(&self.strings).filter(|all| !all.is_empty())),
            () => Ok(None),
        }
    }

    /// A constant as Python writes it, or in another case; None if it is none, or not one that is permitted.
    pub(super) fn word(&self, text: &str) -> Option<Value> {
        let is = |word: &str| text.eq_ignore_ascii_case(word);
        match () {
            () if is("true") && (self.boolean || !self.typed) => Some(true.into()),
            () if is("false") && (self.boolean || !self.typed) => Some(false.into()),
            () if (is("null") || is("none")) && (self.null || !self.typed) => Some(Value::Null),
            () => None,
        }
    }

    fn add(&mut self, root: &'a Value, schema: &'a Value, open: &mut VecDeque<&'a Value>) {
        let Some(schema) = schema.as_object() else { return };
        if let Some(values) = schema.get("enum").and_then(Value::as_array) {
            return values.iter().for_each(|value| self.constant(value));
        }
        if let Some(value) = schema.get("const") {
            return self.constant(value);
        }
        let members = |key: &str| schema.get(key).and_then(Value::as_array).map_or(0, Vec::len);
        let elsewhere = members("allOf")
            + ["anyOf", "oneOf", "$ref"].iter().filter(|key| schema.contains_key(**key)).count();
        let free = std::mem::take(&mut self.free);
        match schema.get("type") {
            Some(Value::String(name)) => self.kind(name),
            Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).for_each(|n| self.kind(n)),
            // What only strings have.
            _ if ["pattern", "minLength", "maxLength"].iter().any(|k| schema.contains_key(*k)) => {
                self.kind("string");
            }
            _ => self.other |= elsewhere == 0,
        }
        if self.free {
            self.strings.push(schema);
        }
        self.conjoined |= elsewhere + usize::from(self.free) > 1;
        self.free |= free;
        let target = schema.get("$ref").and_then(Value::as_str).and_then(|to| resolved(root, to));
        let branches = ["anyOf", "oneOf", "allOf"].into_iter().filter_map(|key| schema.get(key)?.as_array());
        let room = SCHEMAS_MAX.saturating_sub(open.len());
        open.extend(target.into_iter().chain(branches.flatten()).take(room));
    }

    fn kind(&mut self, name: &str) {
        self.typed = true;
        self.free |= name == "string";
        self.null |= name == "null";
        self.boolean |= name == "boolean";
        self.other |= ["number", "integer", "array", "object"].contains(&name);
    }

    fn constant(&mut self, value: &'a Value) {
        self.typed = true;
        match value {
            Value::String(word) => self.words.push(word),
            Value::Null => self.null = true,
            Value::Bool(_) => self.boolean = true,
            _ => self.other = true,
        }
    }
}

/// What a reference within the document `root` points at.
fn resolved<'a>(root: &'a Value, reference: &str) -> Option<&'a Value> {
    root.pointer(reference.strip_prefix('#')?)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn circles_and_depth_end() {
        let mut deep = json!({"anyOf": [{"$ref": "#"}, {"$ref": "#/$defs/word"}]});
        for _ in 0..50 {
            deep = json!({"anyOf": [deep, {"$ref": "#/$defs/word"}, {"type": "null"}]});
        }
        deep["$defs"] = json!({"word": {"enum": ["a", "b"]}});
        let small = std::thread::Builder::new().stack_size(128 << 10);
        let looked = small.spawn(move || {
            let permits = Permits::of(&deep, &deep).expect("a schema");
            assert_eq!((permits.words(), permits.null), (Some(&["a", "b"][..]), true));
            let wide = json!({"anyOf": vec![json!({"type": "null"}); 10_000]});
            assert!(Permits::of(&wide, &wide).expect("a schema").null);
            assert!(Permits::of(&wide, &json!(true)).is_none());
        });
        looked.expect("a thread").join().expect("what it found is right");
    }
}
