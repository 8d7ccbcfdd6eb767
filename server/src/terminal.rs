//! Text fit for a terminal: nothing that steers it, and numbers that can be read.

use std::ffi::OsStr;
use std::io::IsTerminal;

/// Whether a stream leads to a terminal that may be sent colours: none that cannot show them, nor one whose user wants none
/// (no-color.org).
pub(crate) fn has_colours(stream: &impl IsTerminal) -> bool {
    let variable = std::env::var_os;
    stream.is_terminal() && may_colour(variable("NO_COLOR").as_deref(), variable("TERM").as_deref())
}

fn may_colour(no_color: Option<&OsStr>, term: Option<&OsStr>) -> bool {
    no_color.is_none_or(OsStr::is_empty) && term.is_none_or(|term| term != "dumb")
}

/// Text from a file or a model, with every control character but newline and tab written out.
pub(crate) fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() && c != '\n' && c != '\t' {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

/// The same, on one line.
pub(crate) fn printable_line(text: &str) -> String {
    printable(text).replace(['\n', '\t'], " ")
}

/// Bytes in binary units, three digits.
pub(crate) fn bytes(count: u64) -> String {
    match scaled(count, 1024.0, &["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"]) {
        (value, "B") => format!("{value} B"),
        (value, unit) => format!("{value:.1} {unit}"),
    }
}

/// A number of parameters.
pub(crate) fn parameters(count: u64) -> String {
    match scaled(count, 1000.0, &["", "K", "M", "B", "T", "Q"]) {
        (value, "") => format!("{value}"),
        (value, unit) => format!("{value:.2} {unit}"),
    }
}

fn scaled(count: u64, step: f64, units: &[&'static str]) -> (f64, &'static str) {
    let (mut value, mut unit) = (count as f64, 0);
    while value >= step && unit + 1 < units.len() {
        value /= step;
        unit += 1;
    }
    (value, units.get(unit).copied().unwrap_or_default())
}

/// An amount: three digits at least, and no exponent.
pub(crate) fn money(amount: f64) -> String {
    let digits = match amount.abs() {
        a if a > 0.0 && a < 1.0 => (2 - a.log10().floor() as i32).clamp(2, 15),
        _ => 2,
    };
    format!("{amount:.*}", digits.unsigned_abs() as usize)
}

/// Rows of equal length under their headings, the first column to the left and the others to the right.
pub(crate) fn table(headings: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain(headings.get(column).map(|h| h.chars().count())).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..headings.len()).map(width).collect();
    let line = |cells: &[&str]| {
        let cells = cells.iter().zip(&widths).enumerate().map(|(i, (cell, &width))| match i {
            0 => format!("{cell:<width$}"),
            _ => format!("  {cell:>width$}"),
        });
        format!("{}\n", cells.collect::<String>().trim_end())
    };
    let body = rows.iter().map(|row| line(&row.iter().map(String::as_str).collect::<Vec<_>>()));
    line(headings) + &body.collect::<String>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_steers_the_terminal() {
        let hostile = "a\u{1b}[2J\tb\r\n\u{9b}31m\u{7f}é中";
        assert_eq!(printable(hostile), "a\\u{1b}[2J\tb\\r\n\\u{9b}31m\\u{7f}é中");
        assert_eq!(printable_line("a\nb\tc"), "a b c");
    }

    #[test]
    fn colours_are_for_those_who_can_see_and_want_them() {
        for (no_color, term, colours) in [
            (None, None, true),
            (None, Some("xterm-256color"), true),
            (Some(""), Some("xterm"), true),
            (Some("1"), Some("xterm"), false),
            (Some("0"), None, false),
            (None, Some("dumb"), false),
        ] {
            assert_eq!(
                may_colour(no_color.map(OsStr::new), term.map(OsStr::new)),
                colours,
                "{no_color:?} {term:?}"
            );
        }
    }

    #[test]
    fn numbers_can_be_read() {
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(u64::MAX), "16.0 EiB");
        assert_eq!(parameters(999), "999");
        assert_eq!(parameters(30_532_122_624), "30.53 B");
        assert_eq!(parameters(u64::MAX), "18446.74 Q");
        assert_eq!(
            (money(12.3456), money(0.0), money(-0.5)),
            ("12.35".into(), "0.00".into(), "-0.500".into())
        );
    }

    #[test]
    fn columns_line_up() {
        let rows = [vec!["x".to_owned(), "10".to_owned()], vec!["longer".to_owned(), "1".to_owned()]];
        assert_eq!(table(&["", "n"], &rows), "         n\nx       10\nlonger   1\n");
    }
}
