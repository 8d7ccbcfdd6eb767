//! An answer on the terminal, as it comes.

use std::io::{self, Write};
use std::time::Duration;

use crate::client::sse::Usage;
use crate::terminal::{money, printable, printable_line};

const DIM: &str = "\x1b[2m";
const PLAIN: &str = "\x1b[0m";

/// Who reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reader {
    /// Gets the answer's text alone.
    Program,
    /// Gets thoughts and notes, too, dimmed where there are colours.
    Person { colours: bool },
}

/// Writes an answer.
pub(super) struct Show<W> {
    out: W,
    reader: Reader,
    /// Thoughts were the last to come.
    thinking: bool,
    /// The cursor is behind text.
    within_line: bool,
}

impl<W: Write> Show<W> {
    pub(super) fn new(out: W, reader: Reader) -> Self {
        Self { out, reader, thinking: false, within_line: false }
    }

    /// More of what the model thinks before it answers.
    pub(super) fn reasoning(&mut self, text: &str) -> io::Result<()> {
        if self.reader == Reader::Program || text.is_empty() {
            return Ok(());
        }
        if !std::mem::replace(&mut self.thinking, true) {
            self.style(DIM)?;
        }
        self.write(text)
    }

    /// More of the answer.
    pub(super) fn text(&mut self, text: &str) -> io::Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        if self.thinking {
            self.plain()?;
            self.end_line()?;
        }
        self.write(text)
    }

    /// The answer is over, whole or not.
    pub(super) fn end(&mut self) -> io::Result<()> {
        self.plain()?;
        self.end_line()?;
        self.out.flush()
    }

    /// A line about the answer, not of it.
    pub(super) fn note(&mut self, note: &str) -> io::Result<()> {
        if self.reader != Reader::Program {
            self.style(DIM)?;
            write!(self.out, "[{}]", printable_line(note))?;
            self.style(PLAIN)?;
            self.out.write_all(b"\n\n")?;
        }
        self.out.flush()
    }

    fn plain(&mut self) -> io::Result<()> {
        match std::mem::take(&mut self.thinking) {
            true => self.style(PLAIN),
            false => Ok(()),
        }
    }

    fn style(&mut self, code: &str) -> io::Result<()> {
        match self.reader {
            Reader::Person { colours: true } => self.out.write_all(code.as_bytes()),
            _ => Ok(()),
        }
    }

    fn end_line(&mut self) -> io::Result<()> {
        match std::mem::take(&mut self.within_line) {
            true => self.out.write_all(b"\n"),
            false => Ok(()),
        }
    }

    fn write(&mut self, text: &str) -> io::Result<()> {
        self.within_line = !text.ends_with('\n');
        self.out.write_all(printable(text).as_bytes())?;
        self.out.flush()
    }
}

/// When an answer's tokens came.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Times {
    /// From the request to the first of them.
    pub(super) first: Option<Duration>,
    /// From the request to the last.
    pub(super) last: Duration,
}

/// What an answer took, in words.
pub(super) fn summary(usage: Option<&Usage>, times: Times, end: &str) -> String {
    let mut parts = Vec::new();
    if let Some(usage) = usage {
        parts.push(format!("{} tokens", usage.tokens));
    }
    if let Some(first) = times.first {
        let rest = times.last.saturating_sub(first).as_secs_f64();
        // The first token is not of that time.
        if let Some(usage) = usage.filter(|usage| usage.tokens > 1 && rest > 0.0) {
            parts.push(format!("{:.1} tokens/s", (usage.tokens - 1) as f64 / rest));
        }
        parts.push(format!("first after {:.2} s", first.as_secs_f64()));
    }
    if let Some((amount, currency)) = usage.and_then(|usage| usage.cost.as_ref()) {
        parts.push(format!("{} {currency}", money(*amount)));
    }
    if !end.is_empty() {
        parts.push(end.to_owned());
    }
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(reader: Reader, act: impl FnOnce(&mut Show<&mut Vec<u8>>)) -> String {
        let mut out = Vec::new();
        act(&mut Show::new(&mut out, reader));
        String::from_utf8(out).unwrap()
    }

    fn answer(show: &mut Show<&mut Vec<u8>>) {
        for thought in ["", "Hm", " \u{1b}[0m"] {
            show.reasoning(thought).unwrap();
        }
        for text in ["", "Hi\u{1b}]52;c;\u{7}", "\tthere"] {
            show.text(text).unwrap();
        }
        show.end().unwrap();
        show.note("3 tokens").unwrap();
    }

    #[test]
    fn thoughts_are_dim_and_nothing_else_steers() {
        let text = "\x1b[2mHm \\u{1b}[0m\x1b[0m\nHi\\u{1b}]52;c;\\u{7}\tthere\n\x1b[2m[3 tokens]\x1b[0m\n\n";
        assert_eq!(shown(Reader::Person { colours: true }, answer), text);
        let plain = text.replace(DIM, "").replace(PLAIN, "");
        assert_eq!(shown(Reader::Person { colours: false }, answer), plain);
    }

    #[test]
    fn a_program_gets_the_answer_alone() {
        assert_eq!(shown(Reader::Program, answer), "Hi\\u{1b}]52;c;\\u{7}\tthere\n");
        assert_eq!(shown(Reader::Program, |show| show.text("a\n").and_then(|()| show.end()).unwrap()), "a\n");
        assert_eq!(shown(Reader::Program, |show| show.end().unwrap()), "");
    }

    #[test]
    fn an_answers_effort_in_words() {
        let cost = |amount| Some((amount, "EUR".to_owned()));
        let times = Times { first: Some(Duration::from_millis(120)), last: Duration::from_millis(2120) };
        let usage = Usage { tokens: 41, cost: cost(0.000_016_692_616), ..Usage::default() };
        let text = "41 tokens, 20.0 tokens/s, first after 0.12 s, 0.0000167 EUR";
        assert_eq!(summary(Some(&usage), times, ""), text);
        let one = Usage { tokens: 1, ..Usage::default() };
        assert_eq!(summary(Some(&one), times, ""), "1 tokens, first after 0.12 s");
        assert_eq!(summary(None, Times::default(), "stopped"), "stopped");
    }
}
