//! Tells the control tokens that a template writes from text that only reads like them.
//!
//! The texts of control tokens in the template itself (in its text and its string constants) and in `bos_token` and
//! `eos_token` are replaced by placeholders before anything is rendered. In a rendering, a placeholder is a control
//! token and nothing else is: text from messages cannot become one, alone or joined with what the template
//! writes around it, however the template trims, splits or joins it.
//!
//! Placeholders are made of noncharacters (U+FDD0 to U+FDEF, which Unicode keeps for uses such as this one);
//! where messages contain those, they are escaped and restored (unless the template cuts an escape in two).
//!
//! Some templates assemble control tokens from constants and the role: `'<|' + message['role'] + '|>'`. Such tokens
//! (and only those for which the template has both constants) are also looked for in the rendered text. For
//! their sake strings in messages are broken by a noncharacter where they contain such a token's text, and where
//! their ends could be part of one. A word of a message that the template itself wraps in the same constants
//! as the role makes the same token; that is what the template says.
//!
//! A control token whose text is a plain word is never recognised: the word may be a role or a variable.

use aho_corasick::{AhoCorasick, MatchKind};
use serde_json::{Map, Value as Json};

use super::Piece;

const OPEN: char = '\u{fdd0}';
const CLOSE: char = '\u{fdd1}';
const ESCAPE: char = '\u{fdd2}';
const BREAK: char = '\u{fdd3}';
const DIGITS: [char; 16] = [
    '\u{fde0}', '\u{fde1}', '\u{fde2}', '\u{fde3}', '\u{fde4}', '\u{fde5}', '\u{fde6}', '\u{fde7}',
    '\u{fde8}', '\u{fde9}', '\u{fdea}', '\u{fdeb}', '\u{fdec}', '\u{fded}', '\u{fdee}', '\u{fdef}',
];
/// More digits than any index of a control token has.
const DIGITS_MAX: usize = 8;

/// Roles whose names templates put into control tokens.
const ROLES: &[&str] =
    &["system", "developer", "user", "assistant", "tool", "function", "ipython", "environment"];

/// Whether the character means something here.
pub(super) fn reserved(c: char) -> bool {
    ('\u{fdd0}'..='\u{fdef}').contains(&c)
}

#[derive(Debug)]
pub(super) struct Guard {
    control: Vec<String>,
    find: AhoCorasick,
    /// Tokens that the template assembles from constants and the role.
    assembled: Vec<String>,
    find_assembled: AhoCorasick,
}

fn searcher(texts: &[String]) -> AhoCorasick {
    AhoCorasick::builder()
        .match_kind(MatchKind::LeftmostLongest)
        .build(texts)
        .expect("a vocabulary's control tokens are within the library's limits of 2^31 states")
}

impl Guard {
    pub(super) fn new(control: Vec<String>, source: &str) -> Self {
        let word = |text: &String| text.chars().all(|c| c.is_alphanumeric() || c == '_' || c.is_whitespace());
        let control: Vec<String> = control.into_iter().filter(|text| !word(text)).collect();
        let constants: Vec<&str> = scan(source)
            .into_iter()
            .filter_map(|part| if let Part::Constant(c) = part { Some(c) } else { None })
            .collect();
        let assembled: Vec<String> =
            control.iter().filter(|token| is_assembled(token, &constants)).cloned().collect();
        Self { find: searcher(&control), find_assembled: searcher(&assembled), control, assembled }
    }

    /// The template with placeholders for control tokens, and without transformers' tag `generation`.
    pub(super) fn mark_source(&self, source: &str) -> String {
        scan(source)
            .into_iter()
            .map(|part| match part {
                Part::Constant(text) => self.mark(text),
                Part::Code(code) => without_generation(code),
            })
            .collect()
    }

    /// Text of the template's own with placeholders for control tokens.
    pub(super) fn mark(&self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        let mut done = 0;
        for found in self.find.find_iter(text) {
            out.push_str(&text[done..found.start()]);
            out.push(OPEN);
            out.extend(format!("{:x}", found.pattern().as_usize()).chars().filter_map(digit));
            out.push(CLOSE);
            done = found.end();
        }
        out.push_str(&text[done..]);
        out
    }

    /// Text with placeholders resolved, for messages to people.
    pub(super) fn unmark(&self, text: &str) -> String {
        self.pieces(text).into_iter().map(|(Piece::Text(text) | Piece::Control(text))| text).collect()
    }

    /// A message's value, harmless.
    pub(super) fn shield(&self, value: &Json) -> Json {
        match value {
            Json::String(text) => Json::String(self.shield_text(text)),
            Json::Array(values) => values.iter().map(|v| self.shield(v)).collect(),
            Json::Object(object) => {
                let shielded = object.iter().map(|(k, v)| (self.shield_text(k), self.shield(v)));
                Json::Object(shielded.collect::<Map<_, _>>())
            }
            other => other.clone(),
        }
    }

    fn shield_text(&self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        for c in text.chars() {
            if reserved(c) {
                let offset = u32::from(c) - u32::from(OPEN);
                out.push(ESCAPE);
                out.extend(format!("{offset:02x}").chars().filter_map(digit));
            } else {
                out.push(c);
            }
        }
        if self.assembled.is_empty() { out } else { self.break_text(&out) }
    }

    /// Breaks every occurrence of an assembled token, and whatever could be part of one together with its neighbours:
    /// each end of the text, with and without the white space that a template may trim.
    fn break_text(&self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        let core = text.trim();
        let start = text.len() - text.trim_start().len();
        out.push_str(&text[..start]);
        if self.may_end(core) || self.may_be_inside(core) {
            out.push(BREAK);
        }
        let mut done = 0;
        // Overlapping occurrences are broken too: every occurrence begins with one of the tokens' first characters.
        for (at, first) in core.char_indices() {
            if self.assembled.iter().any(|token| core[at..].starts_with(token.as_str())) {
                out.push_str(&core[done..at + first.len_utf8()]);
                out.push(BREAK);
                done = at + first.len_utf8();
            }
        }
        out.push_str(&core[done..]);
        if self.may_begin(core) {
            out.push(BREAK);
        }
        out.push_str(&text[start + core.len()..]);
        out
    }

    /// Whether the text's end is the beginning of an assembled token.
    fn may_begin(&self, text: &str) -> bool {
        self.assembled.iter().any(|token| cuts(token).any(|cut| text.ends_with(&token[..cut])))
    }

    /// Whether the text's beginning is the end of an assembled token.
    fn may_end(&self, text: &str) -> bool {
        self.assembled.iter().any(|token| cuts(token).any(|cut| text.starts_with(&token[cut..])))
    }

    /// Whether the whole text is a part of an assembled token, and more than a word, which templates compare.
    fn may_be_inside(&self, text: &str) -> bool {
        !text.chars().all(char::is_alphanumeric) && self.assembled.iter().any(|token| token.contains(text))
    }

    /// Splits a rendering into control tokens and text, and restores the text.
    pub(super) fn pieces(&self, rendered: &str) -> Vec<Piece> {
        let mut out = Pieces::default();
        let mut rest = rendered;
        while let Some(at) = rest.find(OPEN) {
            self.text(&rest[..at], &mut out);
            let mut chars = rest[at..].chars();
            chars.next();
            match number(&mut chars, DIGITS_MAX)
                .filter(|_| chars.next() == Some(CLOSE))
                .and_then(|i| self.control.get(i))
            {
                Some(token) => {
                    out.control(token);
                    rest = chars.as_str();
                }
                // The template cut a placeholder up.
                None => {
                    out.push(char::REPLACEMENT_CHARACTER);
                    rest = &rest[at + OPEN.len_utf8()..];
                }
            }
        }
        self.text(rest, &mut out);
        out.done()
    }

    /// A stretch without placeholders.
    fn text(&self, text: &str, out: &mut Pieces) {
        let mut done = 0;
        for found in self.find_assembled.find_iter(text) {
            restore(&text[done..found.start()], out);
            out.control(&self.assembled[found.pattern().as_usize()]);
            done = found.end();
        }
        restore(&text[done..], out);
    }
}

/// Takes breaks out of a text and escaped characters back in.
fn restore(text: &str, out: &mut Pieces) {
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            BREAK => {}
            ESCAPE => {
                let mut after = chars.clone();
                let original = number(&mut after, 2).and_then(|n| u32::try_from(n).ok());
                let original =
                    original.and_then(|n| char::from_u32(u32::from(OPEN) + n)).filter(|&c| reserved(c));
                if original.is_some() {
                    chars = after;
                }
                out.push(original.unwrap_or(char::REPLACEMENT_CHARACTER));
            }
            c if reserved(c) => out.push(char::REPLACEMENT_CHARACTER),
            c => out.push(c),
        }
    }
}

/// The next hexadecimal number of at least one and at most `most` reserved digits.
fn number(chars: &mut std::str::Chars<'_>, most: usize) -> Option<usize> {
    let mut value = None;
    for _ in 0..most {
        let mut after = chars.clone();
        let Some(digit) = after.next().and_then(|c| DIGITS.iter().position(|&d| d == c)) else { break };
        value = Some(value.unwrap_or(0) * 16 + digit);
        *chars = after;
    }
    value
}

fn digit(hex: char) -> Option<char> {
    hex.to_digit(16).and_then(|d| DIGITS.get(d as usize)).copied()
}

#[derive(Default)]
struct Pieces {
    done: Vec<Piece>,
    text: String,
}

impl Pieces {
    fn push(&mut self, c: char) {
        self.text.push(c);
    }

    fn control(&mut self, token: &str) {
        self.flush();
        self.done.push(Piece::Control(token.to_owned()));
    }

    fn flush(&mut self) {
        if !self.text.is_empty() {
            self.done.push(Piece::Text(std::mem::take(&mut self.text)));
        }
    }

    fn done(mut self) -> Vec<Piece> {
        self.flush();
        self.done
    }
}

/// Where a token can be cut into two parts that are not empty.
fn cuts(token: &str) -> impl Iterator<Item = usize> {
    token.char_indices().map(|(at, _)| at).skip(1)
}

/// Whether the template has a constant that ends in what precedes a role in `token`, and one that begins with
/// what follows it.
fn is_assembled(token: &str, constants: &[&str]) -> bool {
    ROLES.iter().flat_map(|role| token.match_indices(role)).any(|(at, role)| {
        let (before, after) = (&token[..at], &token[at + role.len()..]);
        !before.is_empty()
            && !after.is_empty()
            && constants.iter().any(|c| c.ends_with(before))
            && constants.iter().any(|c| c.starts_with(after))
    })
}

/// `{% generation %}` marks for training what the assistant wrote; to a rendering it is a block like any other.
fn without_generation(code: &str) -> String {
    let tag = code.strip_suffix("%}").map(|tag| tag.trim_matches(['-', '+', ' ', '\t', '\r', '\n']));
    match tag {
        Some("generation") => code.replacen("generation", "if true", 1),
        Some("endgeneration") => code.replacen("endgeneration", "endif", 1),
        _ => code.to_owned(),
    }
}

/// A part of a template.
#[derive(Debug, PartialEq, Eq)]
enum Part<'a> {
    /// Text, or what stands between the quotes of a string.
    Constant(&'a str),
    /// Everything else: delimiters, names, quotes, comments.
    Code(&'a str),
}

/// Cuts a template into parts; together they are the template. Of what is not valid Jinja it makes something.
fn scan(source: &str) -> Vec<Part<'_>> {
    let mut parts = Vec::new();
    let mut rest = source;
    while let Some(at) = ["{{", "{%", "{#"].iter().filter_map(|open| rest.find(open)).min() {
        let (text, code) = rest.split_at(at);
        parts.push(Part::Constant(text));
        let (open, inner) = code.split_at(2);
        parts.push(Part::Code(open));
        rest = match open {
            "{#" => {
                let end = inner.find("#}").map_or(inner.len(), |end| end + 2);
                parts.push(Part::Code(&inner[..end]));
                &inner[end..]
            }
            "{{" => scan_code(inner, "}}", &mut parts),
            _ => scan_code(inner, "%}", &mut parts),
        };
    }
    parts.push(Part::Constant(rest));
    parts.retain(|(Part::Constant(text) | Part::Code(text))| !text.is_empty());
    parts
}

/// The inside of an expression or a statement up to `close`; returns what follows.
fn scan_code<'a>(code: &'a str, close: &str, parts: &mut Vec<Part<'a>>) -> &'a str {
    let mut rest = code;
    loop {
        let quote = rest.find(['\'', '"']);
        let end = rest.find(close);
        match (quote, end) {
            (Some(quote), end) if end.is_none_or(|end| quote < end) => {
                let (before, string) = rest.split_at(quote + 1);
                parts.push(Part::Code(before));
                let length = string_len(string, &before[quote..]);
                parts.push(Part::Constant(&string[..length]));
                let after = (length + 1).min(string.len());
                parts.push(Part::Code(&string[length..after]));
                rest = &string[after..];
            }
            (_, Some(end)) => {
                let (before, after) = rest.split_at(end + close.len());
                parts.push(Part::Code(before));
                return after;
            }
            (_, None) => {
                parts.push(Part::Code(rest));
                return "";
            }
        }
    }
}

/// Bytes up to the closing quote, or all.
fn string_len(string: &str, quote: &str) -> usize {
    let mut escaped = false;
    for (at, c) in string.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if quote.starts_with(c) => return at,
            _ => {}
        }
    }
    string.len()
}

#[cfg(test)]
mod tests;
