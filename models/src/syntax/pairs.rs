//! Calls whose arguments stand one by one in tags (Qwen3-Coder, GLM).
//!
//! Values are text: what a schema allows to be a string is taken as it is ([`Permits`]), everything else as JSON if it is JSON. A call
//! is read as a whole, because only its end tells how its last value ends.

use serde_json::{Map, Value};

use super::Tool;
use super::permits::{Permits, property};

/// Which tags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    /// `<function=name>`, `<parameter=key>\nvalue\n</parameter>`, `</function>`.
    Function,
    /// `name`, `<arg_key>key</arg_key>`, `<arg_value>value</arg_value>`.
    Keys,
}

pub(super) const OPEN: &str = "<tool_call>";
pub(super) const CLOSE: &str = "</tool_call>";
/// What a function's name stands behind, and what its call ends with ([`Style::Function`]).
pub(super) const FUNCTION: &str = "<function=";
pub(super) const FUNCTION_END: &str = "</function>";

impl Style {
    pub(super) fn marks(self) -> &'static [&'static str] {
        match self {
            Self::Function => &[OPEN, CLOSE],
            Self::Keys => &[OPEN, CLOSE, "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"],
        }
    }

    /// Name and arguments of what stood between [`OPEN`] and [`CLOSE`].
    pub(super) fn read(self, body: &str, tools: &[Tool]) -> Option<(String, String)> {
        let (name, mut rest) = match self {
            Self::Function => {
                let (_, rest) = body.split_once(FUNCTION)?;
                let (name, rest) = rest.split_once('>')?;
                (name, rest.rsplit_once(FUNCTION_END).map_or(rest, |(rest, _)| rest))
            }
            Self::Keys => body.split_at(body.find("<arg_key>").unwrap_or(body.len())),
        };
        let name = name.trim();
        if name.is_empty() {
            return None;
        }
        let schema = tools.iter().find(|tool| tool.name == name).and_then(|tool| tool.parameters.as_ref());
        let mut arguments = Map::new();
        while let Some((key, value, behind)) = self.pair(rest) {
            arguments.insert(key.trim().to_owned(), typed(key.trim(), value, schema));
            rest = behind;
        }
        // What is left must not be something that was not understood.
        rest.trim().is_empty().then(|| (name.to_owned(), Value::Object(arguments).to_string()))
    }

    /// What is behind [`OPEN`] at the end of an answer without the beginning of [`CLOSE`], if it is a whole call.
    pub(super) fn ended(self, body: &str) -> Option<&str> {
        let end = match self {
            Self::Function => FUNCTION_END,
            Self::Keys => "</arg_value>",
        };
        let (call, rest) = body.split_at(body.rfind(end)? + end.len());
        CLOSE.starts_with(rest.trim()).then_some(call)
    }

    /// The next argument: key, value, what is behind it.
    fn pair(self, text: &str) -> Option<(&str, &str, &str)> {
        match self {
            Self::Function => {
                let (key, rest) = text.trim_start().strip_prefix("<parameter=")?.split_once('>')?;
                let (value, rest) = rest.split_once("</parameter>")?;
                let value = value.strip_prefix('\n').unwrap_or(value);
                Some((key, value.strip_suffix('\n').unwrap_or(value), rest))
            }
            Self::Keys => {
                let (key, rest) = text.trim_start().strip_prefix("<arg_key>")?.split_once("</arg_key>")?;
                let (value, rest) =
                    rest.trim_start().strip_prefix("<arg_value>")?.split_once("</arg_value>")?;
                Some((key, value, rest))
            }
        }
    }
}

fn typed(key: &str, text: &str, schema: Option<&Value>) -> Value {
    let permits = schema.and_then(|schema| Permits::of(schema, property(schema, key)?)).unwrap_or_default();
    if permits.text() {
        let null = text.eq_ignore_ascii_case("null") || text == "None";
        return if null && permits.null { Value::Null } else { text.into() };
    }
    let text = text.trim();
    serde_json::from_str(text).unwrap_or_else(|_| permits.word(text).unwrap_or_else(|| text.into()))
}
