//! `tojson` as transformers defines it for chat templates: Python's `json.dumps` without ASCII escapes. Tests with
//! Python's meaning.

use std::io;

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Error, ErrorKind};
use serde::Serialize;
use serde_json::Value as Json;
use serde_json::ser::Formatter;

use super::guard;

const INDENT_MAX: usize = 16;

/// `value | tojson(indent=none, ensure_ascii=false, separators=none, sort_keys=false)`.
pub(super) fn tojson(value: &Value, indent: Option<usize>, options: Kwargs) -> Result<Value, Error> {
    let indent = indent.or(options.get("indent")?);
    if indent.is_some_and(|n| n > INDENT_MAX) {
        return Err(Error::new(
            ErrorKind::InvalidOperation,
            format!("tojson indents by at most {INDENT_MAX}"),
        ));
    }
    let separators: Option<Vec<String>> = options.get("separators")?;
    let ascii = options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false);
    let sort = options.get::<Option<bool>>("sort_keys")?.unwrap_or(false);
    options.assert_all_used()?;
    let (item, key) = match separators.as_deref() {
        None => (if indent.is_some() { "," } else { ", " }, ": "),
        Some([item, key]) => (item.as_str(), key.as_str()),
        Some(_) => return Err(Error::new(ErrorKind::InvalidOperation, "tojson takes two separators")),
    };
    let failed = |e| Error::new(ErrorKind::BadSerialization, "tojson cannot serialize this").with_source(e);
    let mut json = serde_json::to_value(value).map_err(failed)?;
    if sort {
        json.sort_all_objects();
    }
    let mut out = Vec::new();
    let python = Python { item, key, indent, ascii, depth: 0, filled: false };
    json.serialize(&mut serde_json::Serializer::with_formatter(&mut out, python)).map_err(failed)?;
    Ok(Value::from(String::from_utf8_lossy(&out)))
}

/// `value is iterable`: text is, none is not.
pub(super) fn is_iterable(value: &Value) -> bool {
    value.is_undefined() || value.as_str().is_some() || (!value.is_none() && value.try_iter().is_ok())
}

/// `value is sequence`: whatever has a length and items, so text and mappings too.
pub(super) fn is_sequence(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Seq | ValueKind::String | ValueKind::Map)
}

/// As Python's `repr`: an exponent has a sign and at least two digits.
pub(super) fn float(value: f64) -> String {
    if !value.is_finite() {
        return value.to_string().to_ascii_lowercase();
    }
    let text = Json::from(value).to_string();
    let Some((mantissa, exponent)) = text.split_once('e') else { return text };
    let sign = if exponent.starts_with('-') { '-' } else { '+' };
    let digits = exponent.trim_start_matches(['-', '+']);
    format!("{mantissa}e{sign}{digits:0>2}")
}

/// Python's layout: its separators, its floats, and lines as `indent` asks.
struct Python<'a> {
    item: &'a str,
    key: &'a str,
    indent: Option<usize>,
    ascii: bool,
    depth: usize,
    /// Whether the innermost list or object has had an element.
    filled: bool,
}

impl Python<'_> {
    fn line<W: ?Sized + io::Write>(&self, out: &mut W) -> io::Result<()> {
        let Some(indent) = self.indent else { return Ok(()) };
        out.write_all(b"\n")?;
        out.write_all(" ".repeat(indent * self.depth).as_bytes())
    }

    fn open<W: ?Sized + io::Write>(&mut self, out: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.depth += 1;
        self.filled = false;
        out.write_all(bracket)
    }

    fn close<W: ?Sized + io::Write>(&mut self, out: &mut W, bracket: &[u8]) -> io::Result<()> {
        self.depth -= 1;
        if self.filled {
            self.line(out)?;
        }
        self.filled = true;
        out.write_all(bracket)
    }

    fn element<W: ?Sized + io::Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        if !first {
            out.write_all(self.item.as_bytes())?;
        }
        self.line(out)
    }
}

impl Formatter for Python<'_> {
    fn begin_array<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.open(out, b"[")
    }

    fn end_array<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.close(out, b"]")
    }

    fn begin_array_value<W: ?Sized + io::Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        self.element(out, first)
    }

    fn end_array_value<W: ?Sized + io::Write>(&mut self, _: &mut W) -> io::Result<()> {
        self.filled = true;
        Ok(())
    }

    fn begin_object<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.open(out, b"{")
    }

    fn end_object<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.close(out, b"}")
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        self.element(out, first)
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(self.key.as_bytes())
    }

    fn end_object_value<W: ?Sized + io::Write>(&mut self, _: &mut W) -> io::Result<()> {
        self.filled = true;
        Ok(())
    }

    fn write_f64<W: ?Sized + io::Write>(&mut self, out: &mut W, value: f64) -> io::Result<()> {
        out.write_all(float(value).as_bytes())
    }

    fn write_string_fragment<W: ?Sized + io::Write>(&mut self, out: &mut W, text: &str) -> io::Result<()> {
        if !self.ascii {
            return out.write_all(text.as_bytes());
        }
        for c in text.chars() {
            // What stands for a control token or for a noncharacter stays what it is.
            if c.is_ascii() || guard::reserved(c) {
                write!(out, "{c}")?;
            } else {
                c.encode_utf16(&mut [0; 2]).iter().try_for_each(|unit| write!(out, "\\u{unit:04x}"))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(value: Json, options: &[(&str, Value)], expect: &str) {
        let value = Value::from_serialize(&value);
        let kwargs: Kwargs = options.iter().map(|(k, v)| (*k, v.clone())).collect();
        assert_eq!(tojson(&value, None, kwargs).unwrap().to_string(), expect);
    }

    #[test]
    fn as_python_dumps() {
        check(json!({"b": [1, 2.5, null, true], "a": {}}), &[], r#"{"b": [1, 2.5, null, true], "a": {}}"#);
        check(json!("é<>&'\"\\\n"), &[], r#""é<>&'\"\\\n""#);
        check(json!([1e-9, 1e16, 1e22, 0.0001, 1.0]), &[], "[1e-09, 1e+16, 1e+22, 0.0001, 1.0]");
        check(json!("é😀"), &[("ensure_ascii", true.into())], r#""\u00e9\ud83d\ude00""#);
        check(json!({"b": 1, "a": 2}), &[("sort_keys", true.into())], r#"{"a": 2, "b": 1}"#);
        check(json!([1, {"a": 2}]), &[("separators", vec![",", ":"].into())], r#"[1,{"a":2}]"#);
        let indented = "{\n    \"a\": [\n        1,\n        {}\n    ],\n    \"b\": []\n}";
        check(json!({"a": [1, {}], "b": []}), &[("indent", 4.into())], indented);
    }

    #[test]
    fn what_it_does_not_know_is_refused() {
        let refuse = |options: &[(&str, Value)]| {
            let kwargs: Kwargs = options.iter().map(|(k, v)| (*k, v.clone())).collect();
            tojson(&Value::from(1), None, kwargs).unwrap_err().to_string()
        };
        assert!(refuse(&[("cls", 1.into())]).contains("cls"));
        assert!(refuse(&[("indent", 1_000_000.into())]).contains("at most"));
        assert!(refuse(&[("separators", vec![","].into())]).contains("two"));
    }
}
