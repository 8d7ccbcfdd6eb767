//! What a schema lets an argument be, as far as that tells how its text is meant: as it stands, or as JSON.
//!
//! Absent on purpose: validation. A schema allows here what any of its branches allows.

use serde_json::Value;

/// References that are followed for one argument: they may lead in circles.
const REFERENCES_MAX: usize = 64;

/// What an argument may be.
#[derive(Clone, Debug, Default)]
pub(super) struct Permits<'a> {
    /// A string that is not one of [`Self::words`].
    free: bool,
    /// Strings that the schema names.
    words: Vec<&'a str>,
    pub(super) null: bool,
    boolean: bool,
    /// The schema says nothing of what this is not.
    typed: bool,
}

/// The schema of the argument `key` of a function whose parameters have the schema `root`.
pub(super) fn property<'a>(root: &'a Value, key: &str) -> Option<&'a Value> {
    let named = root.get("properties").and_then(|all| all.get(key));
    named.or_else(|| root.get("additionalProperties"))
}

impl<'a> Permits<'a> {
    /// Of `schema`, a part of `root`, which references are resolved in. None: it is no schema.
    pub(super) fn of(root: &'a Value, schema: &'a Value) -> Option<Self> {
        let mut permits = Self::default();
        permits.add(root, schema, &mut REFERENCES_MAX.clone())?;
        Some(permits)
    }

    /// It may be a string, so its text is taken as it stands.
    pub(super) fn text(&self) -> bool {
        self.free || !self.words.is_empty()
    }

    /// The strings that it may be, if not any.
    pub(super) fn words(&self) -> Option<&[&'a str]> {
        (!self.free).then_some(&self.words)
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

    fn add(&mut self, root: &'a Value, schema: &'a Value, references: &mut usize) -> Option<()> {
        let schema = schema.as_object()?;
        if let Some(values) = schema.get("enum").and_then(Value::as_array) {
            values.iter().for_each(|value| self.constant(value));
            return Some(());
        }
        if let Some(value) = schema.get("const") {
            self.constant(value);
            return Some(());
        }
        match schema.get("type") {
            Some(Value::String(name)) => self.kind(name),
            Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).for_each(|n| self.kind(n)),
            // What only strings have.
            _ if ["pattern", "minLength", "maxLength"].iter().any(|k| schema.contains_key(*k)) => {
                self.kind("string");
            }
            _ => {}
        }
        if let Some(target) = schema.get("$ref").and_then(Value::as_str).and_then(|to| resolved(root, to))
            && *references > 0
        {
            *references -= 1;
            self.add(root, target, references);
        }
        for branches in ["anyOf", "oneOf", "allOf"] {
            for branch in schema.get(branches).and_then(Value::as_array).into_iter().flatten() {
                self.add(root, branch, references);
            }
        }
        Some(())
    }

    fn kind(&mut self, name: &str) {
        self.typed = true;
        self.free |= name == "string";
        self.null |= name == "null";
        self.boolean |= name == "boolean";
    }

    fn constant(&mut self, value: &'a Value) {
        self.typed = true;
        match value {
            Value::String(word) => self.words.push(word),
            Value::Null => self.null = true,
            Value::Bool(_) => self.boolean = true,
            _ => {}
        }
    }
}

/// What a reference within the document `root` points at.
fn resolved<'a>(root: &'a Value, reference: &str) -> Option<&'a Value> {
    root.pointer(reference.strip_prefix('#')?)
}
