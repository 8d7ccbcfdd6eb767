//! Which arguments a function may have, as far as calls whose arguments stand one by one in tags can tell.

use std::collections::HashSet;
use std::sync::LazyLock;

use serde_json::{Value, json};

use super::permits::referred;

/// A function's parameters.
pub(super) struct Parameters<'a> {
    /// In the order that they come in.
    pub(super) named: Vec<Named<'a>>,
    /// What others must be, where there may be any. With named properties there are none: a schema allows to leave them out.
    pub(super) others: Option<&'a Value>,
    /// A keyword that says more of the arguments.
    pub(super) unfollowed: Option<&'static str>,
}

pub(super) struct Named<'a> {
    pub(super) key: &'a str,
    pub(super) schema: &'a Value,
    pub(super) needed: bool,
}

/// What is said of all arguments together.
const TOGETHER: [&str; 9] = [
    "allOf",
    "anyOf",
    "oneOf",
    "$ref",
    "const",
    "enum",
    "patternProperties",
    "minProperties",
    "maxProperties",
];

static ANYTHING: LazyLock<Value> = LazyLock::new(|| json!({}));

impl<'a> Parameters<'a> {
    /// Of the schema `root`; one that is no object says nothing.
    pub(super) fn of(root: &'a Value) -> Self {
        let object = referred(root, root);
        let others = match object.get("additionalProperties") {
            Some(Value::Bool(false)) => None,
            Some(schema @ Value::Object(_)) => Some(schema),
            _ => Some(&*ANYTHING),
        };
        let properties = object.get("properties").and_then(Value::as_object);
        let required = object.get("required").and_then(Value::as_array).into_iter().flatten();
        let required: Vec<&str> = required.filter_map(Value::as_str).collect();
        let needed: HashSet<&str> = required.iter().copied().collect();
        let mut known = HashSet::new();
        let named = properties.into_iter().flatten().map(|(key, schema)| (key.as_str(), schema));
        let unnamed = required.iter().filter_map(|key| Some((*key, others?)));
        let named = named.chain(unnamed).filter(|(key, _)| known.insert(*key));
        let named = named.map(|(key, schema)| Named { key, schema, needed: needed.contains(key) }).collect();
        Self {
            named,
            others: others.filter(|_| properties.is_none()),
            unfollowed: TOGETHER.into_iter().find(|keyword| object.get(keyword).is_some()),
        }
    }
}
