//! Calls whose arguments stand one by one in tags (Qwen3-Coder, GLM).
//!
//! Values are text: what a schema allows to be that string is taken as it is ([`Permits`]), everything else as JSON if it is JSON. A call
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
pub(super) const PARAMETER: &str = "<parameter=";
const PARAMETER_END: &str = "</parameter>";
pub(super) const ARG_KEY: &str = "<arg_key>";
const ARG_VALUE_END: &str = "</arg_value>";

impl Style {
    pub(super) fn marks(self) -> &'static [&'static str] {
        match self {
            Self::Function => &[OPEN, CLOSE],
            Self::Keys => &[OPEN, CLOSE, ARG_KEY, "</arg_key>", "<arg_value>", ARG_VALUE_END],
        }
    }

    /// Names and arguments of what stood between [`OPEN`] and [`CLOSE`]; None if something of it was not understood.
    pub(super) fn read(self, body: &str, tools: &[Tool]) -> Option<Vec<(String, String)>> {
        if self == Self::Keys {
            let (name, rest) = body.split_at(body.find(ARG_KEY).unwrap_or(body.len()));
            let (call, rest) = self.call(name, rest, tools)?;
            return rest.trim().is_empty().then(|| vec![call]);
        }
        let (mut calls, mut rest) = (Vec::new(), body);
        while let Some((_, function)) = rest.split_once(FUNCTION) {
            let (name, pairs) = function.split_once('>')?;
            let (call, behind) = self.call(name, pairs, tools)?;
            let behind = behind.trim_start();
            rest = behind.strip_prefix(FUNCTION_END).unwrap_or(behind);
            if rest.len() == behind.len() && !(rest.is_empty() || rest.starts_with(FUNCTION)) {
                return None;
            }
            calls.push(call);
        }
        (!calls.is_empty()).then_some(calls)
    }

    /// A call whose arguments begin `text`, and what is behind them.
    fn call<'a>(self, name: &str, text: &'a str, tools: &[Tool]) -> Option<((String, String), &'a str)> {
        let name = name.trim();
        if name.is_empty() {
            return None;
        }
        let schema = tools.iter().find(|tool| tool.name == name).and_then(|tool| tool.parameters.as_ref());
        let (mut arguments, mut rest) = (Map::new(), text);
        while let Some((key, value, behind)) = self.pair(rest) {
            arguments.insert(key.trim().to_owned(), typed(key.trim(), value, schema));
            rest = behind;
        }
        Some(((name.to_owned(), Value::Object(arguments).to_string()), rest))
    }

    /// What is behind [`OPEN`] at the end of an answer without the beginning of [`CLOSE`], if it is a whole call.
    pub(super) fn ended(self, body: &str) -> Option<&str> {
        let end = match self {
            Self::Function => FUNCTION_END,
            Self::Keys => ARG_VALUE_END,
        };
        let (call, rest) = body.split_at(body.rfind(end)? + end.len());
        CLOSE.starts_with(rest.trim()).then_some(call)
    }

    /// The next argument: key, value, what is behind it.
    fn pair(self, text: &str) -> Option<(&str, &str, &str)> {
        match self {
            Self::Function => {
                let (key, rest) = text.trim_start().strip_prefix(PARAMETER)?.split_once('>')?;
                let (value, rest) = value(rest, PARAMETER_END, &[PARAMETER, FUNCTION_END]);
                let value = value.strip_prefix('\n').unwrap_or(value);
                Some((key, value.strip_suffix('\n').unwrap_or(value), rest))
            }
            Self::Keys => {
                let (key, rest) = text.trim_start().strip_prefix(ARG_KEY)?.split_once("</arg_key>")?;
                let (value, rest) =
                    value(rest.trim_start().strip_prefix("<arg_value>")?, ARG_VALUE_END, &[ARG_KEY]);
                Some((key, value, rest))
            }
        }
    }
}

/// A value and what is behind it. Models forget the tag that ends one: then it ends where `others` go on, or everything does. In a
/// value with its tag, all but the next argument's beginning (the first of `others`) is text.
fn value<'a>(text: &'a str, end: &str, others: &[&str]) -> (&'a str, &'a str) {
    let next = others.first().and_then(|next| text.find(next)).unwrap_or(text.len());
    if let Some(at) = text.find(end).filter(|at| *at < next) {
        return (&text[..at], &text[at + end.len()..]);
    }
    text.split_at(others.iter().filter_map(|other| text.find(other)).min().unwrap_or(text.len()))
}

fn typed(key: &str, text: &str, schema: Option<&Value>) -> Value {
    let permits = schema.and_then(|schema| Permits::of(schema, property(schema, key)?)).unwrap_or_default();
    if permits.as_it_stands(text) {
        let null = text.eq_ignore_ascii_case("null") || text == "None";
        return if null && permits.null { Value::Null } else { text.into() };
    }
    let text = text.trim();
    serde_json::from_str(text).unwrap_or_else(|_| permits.word(text).unwrap_or_else(|| text.into()))
}
