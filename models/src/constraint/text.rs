//! What a schema says of a string, for a text that stands as it is and not as JSON.

use regex_automata::util::syntax;
use serde_json::{Map, Value};

use super::{ConstraintError, REGEX_BYTES_MAX, bounded};

/// Keywords that constrain strings.
const KEYWORDS: [&str; 4] = ["pattern", "minLength", "maxLength", "format"];

/// Whether a schema says anything of what its strings are.
pub(crate) fn is_limited(schema: &Map<String, Value>) -> bool {
    KEYWORDS.iter().any(|keyword| schema.contains_key(*keyword))
}

/// Strings that a schema allows, as an expression of a Lark grammar's terminal.
///
/// # Errors
/// If it says what can be enforced in JSON only, or nowhere.
pub(crate) fn terminal(schema: &Map<String, Value>) -> Result<String, ConstraintError> {
    let refused = |why: String| Err(ConstraintError::Refused(why));
    let mut parts = Vec::new();
    if let Some(format) = schema.get("format").filter(|format| *format != "unknown") {
        return refused(format!("the format {format} is not enforced in text that is no JSON"));
    }
    if let Some(pattern) = schema.get("pattern") {
        let whole = pattern.as_str().ok_or_else(|| "it must be a string".to_owned()).and_then(searched);
        match whole {
            Ok(whole) => parts.push(format!("/{whole}/")),
            Err(why) => {
                return refused(format!("a 'pattern' is not supported in text that is no JSON: {why}"));
            }
        }
    }
    let length = |keyword: &str| match schema.get(keyword).map(Value::as_u64) {
        None => Ok(None),
        Some(Some(length)) => Ok(Some(u32::try_from(length).unwrap_or(u32::MAX))),
        Some(None) => Err(ConstraintError::Refused(format!("'{keyword}' must be a whole number"))),
    };
    let (least, most) = (length("minLength")?, length("maxLength")?);
    if least.is_some() || most.is_some() || parts.is_empty() {
        let most = most.map_or_else(String::new, |most| most.to_string());
        parts.push(format!("/(?s:.{{{},{most}}})/", least.unwrap_or(0)));
    }
    Ok(format!("({})", parts.join(" & ")))
}

/// A regular expression for all of a text in which `pattern` is found.
fn searched(pattern: &str) -> Result<String, String> {
    bounded("it", pattern, REGEX_BYTES_MAX)?;
    let looks = |pattern: &str| match syntax::parse(&llguidance::regex_to_lark(pattern, "dw")) {
        Ok(parsed) => Ok(parsed.properties().clone()),
        Err(error) => Err(error.to_string().lines().last().unwrap_or_default().to_owned()),
    };
    let all = looks(pattern)?;
    let escaped = |text: &str| text.bytes().rev().take_while(|&byte| byte == b'\\').count() % 2 == 1;
    let begun = pattern.strip_prefix('^');
    let inner = begun.unwrap_or(pattern);
    let ended = inner.strip_suffix('$').filter(|rest| !escaped(rest));
    let inner = ended.unwrap_or(inner);
    // An anchor of one alternative says nothing of the others.
    let whole = (begun.is_none() || all.look_set_prefix().contains_anchor_haystack())
        && (ended.is_none() || all.look_set_suffix().contains_anchor_haystack());
    if !whole || !looks(inner)?.look_set().is_empty() {
        return Err("it has anchors elsewhere than around all of it".to_owned());
    }
    let anything = |anchor: Option<&str>| if anchor.is_some() { "" } else { "(?s:.*)" };
    let (before, behind) = (anything(begun), anything(ended));
    Ok(llguidance::regex_to_lark(&format!("{before}(?:{inner}){behind}"), "dw"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_searched_for() {
        for (pattern, whole) in [
            ("a", "(?s:.*)(?:a)(?s:.*)"),
            ("^a", "(?:a)(?s:.*)"),
            ("^(a|b)$", "(?:(a|b))"),
            ("a\\$", "(?s:.*)(?:a\\$)(?s:.*)"),
            ("^$", "(?:)"),
        ] {
            assert_eq!(searched(pattern).as_deref(), Ok(whole), "{pattern}");
        }
        for pattern in ["^a|b", "a|b$", "^a|b$", "^a|^b", "a^b", "(^a)", "\\ba", "(?!a)", "a("] {
            assert!(searched(pattern).is_err(), "{pattern}");
        }
    }
}
