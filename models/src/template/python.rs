//! Values as Python prints them, where templates print lists, mappings and numbers as they are: `['string', 'null']`, `1e-07`.
//!
//! Absent: what `~` and `join` make of such values, which the engine has to itself.

use std::fmt::{self, Write};

use minijinja::value::{Value, ValueKind};
use minijinja::{Error, ErrorKind, Output, State};

use super::{OUTPUT_BYTES_MAX, filters, guard};

/// Lists within lists; requests come nowhere near.
const DEPTH_MAX: usize = 200;

/// `{{ value }}`.
pub(super) fn print(out: &mut Output<'_>, state: &State<'_, '_>, value: &Value) -> Result<(), Error> {
    match is_plain(value) {
        true => Ok(write(out, value, 0)?),
        false => minijinja::escape_formatter(out, state, value),
    }
}

/// `value | string`.
pub(super) fn string(value: &Value) -> Result<Value, Error> {
    if !is_plain(value) {
        return Ok(if value.as_str().is_some() { value.clone() } else { Value::from(value.to_string()) });
    }
    let mut text = Bounded(String::new());
    write(&mut text, value, 0).map_err(|_| Error::new(ErrorKind::WriteFailure, "too long"))?;
    Ok(Value::from(text.0))
}

/// What the engine prints differently.
fn is_plain(value: &Value) -> bool {
    match value.kind() {
        ValueKind::Seq | ValueKind::Map => true,
        ValueKind::Number => !value.is_integer(),
        _ => false,
    }
}

/// `repr(value)`.
fn write(out: &mut impl Write, value: &Value, depth: usize) -> fmt::Result {
    if depth > DEPTH_MAX {
        return Err(fmt::Error);
    }
    match value.kind() {
        ValueKind::String => quoted(out, value.as_str().unwrap_or_default()),
        ValueKind::Number if !value.is_integer() => match f64::try_from(value.clone()) {
            Ok(number) => out.write_str(&filters::float(number)),
            Err(_) => write!(out, "{value}"),
        },
        kind @ (ValueKind::Seq | ValueKind::Map) => {
            let map = kind == ValueKind::Map;
            out.write_char(if map { '{' } else { '[' })?;
            for (i, item) in value.try_iter().into_iter().flatten().enumerate() {
                if i > 0 {
                    out.write_str(", ")?;
                }
                write(out, &item, depth + 1)?;
                if map {
                    out.write_str(": ")?;
                    write(out, &value.get_item(&item).unwrap_or_default(), depth + 1)?;
                }
            }
            out.write_char(if map { '}' } else { ']' })
        }
        _ => write!(out, "{value}"),
    }
}

fn quoted(out: &mut impl Write, text: &str) -> fmt::Result {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.write_char(quote)?;
    for c in text.chars() {
        match c {
            '\n' => out.write_str("\\n")?,
            '\r' => out.write_str("\\r")?,
            '\t' => out.write_str("\\t")?,
            // What stands for a control token or for a noncharacter stays what it is.
            c if guard::reserved(c) => out.write_char(c)?,
            c if c.is_control() => write!(out, "\\x{:02x}", u32::from(c))?,
            c if c == quote || c == '\\' => write!(out, "\\{c}")?,
            c => out.write_char(c)?,
        }
    }
    out.write_char(quote)
}

/// Text of at most [`OUTPUT_BYTES_MAX`]: what a list holds twice is written twice.
struct Bounded(String);

impl Write for Bounded {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if text.len() > OUTPUT_BYTES_MAX - self.0.len() {
            return Err(fmt::Error);
        }
        self.0.push_str(text);
        Ok(())
    }
}
