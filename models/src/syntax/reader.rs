//! Takes an answer apart as it grows: reasoning, content, calls.
//!
//! Law: however the text is cut into pieces, the parts joined are the same. What might still become a mark is held back; nothing
//! else is. A call that turns out to be none before its name was told is content, as it was written; content without calls or reasoning is
//! passed on to the last character.
//!
//! White space between parts belongs to the form: it is dropped around reasoning and before calls.

use std::sync::Arc;

use super::call::Call;
use super::harmony::{self, Kind};
use super::marks::{Ahead, ahead, find};
use super::scan::{self, Object, Step};
use super::{Calls, Section, Syntax, Tool, pairs};

/// A part of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// More reasoning.
    Reasoning(String),
    /// More of what the user sees.
    Content(String),
    /// A call begins.
    Call {
        /// The function.
        name: String,
        /// If the model writes ids.
        id: Option<String>,
    },
    /// More of the newest call's arguments, as they are written: JSON, if the model wrote JSON.
    Arguments(String),
}

/// Reads one answer.
#[derive(Clone, Debug)]
pub struct Reader {
    calls: Option<Calls>,
    syntax: Syntax,
    tools: Arc<[Tool]>,
    state: State,
    /// Text that is not decided on.
    held: String,
    /// White space that content may or may not end with.
    space: String,
    /// White space at the start of what comes is dropped.
    trim: bool,
    /// Something of the content was told.
    content: bool,
    called: usize,
}

#[derive(Clone, Debug)]
enum State {
    Text {
        reasoning: bool,
    },
    /// In an object that is a call.
    Object {
        object: Object,
        call: Call,
        behind: Behind,
    },
    /// Between the objects of a list.
    List {
        first: bool,
    },
    /// Between the calls of a section.
    Section(Section),
    /// In the name of a call; the text before it, should it be none.
    Name {
        open: &'static str,
        id: &'static str,
        separator: &'static str,
    },
    /// In arguments that end at a mark.
    Arguments {
        end: &'static str,
    },
    /// In arguments that end as JSON does.
    Value(scan::Value),
    /// In a call that is read as a whole.
    Pairs(pairs::Style),
    /// White space, then this mark.
    Close(&'static str),
    /// In a message's header.
    Header,
    /// In a message's text.
    Message(Kind),
}

/// What follows an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Behind {
    Close(&'static str),
    List,
    Text,
}

impl Reader {
    /// For an answer in this syntax. Calls are looked for if there are tools; `reasoning`: the prompt ended amid it.
    pub fn new(syntax: Syntax, tools: Arc<[Tool]>, reasoning: bool) -> Self {
        let harmony = syntax.calls == Some(Calls::Harmony);
        let calls = syntax.calls.filter(|_| harmony || !tools.is_empty());
        let state = if harmony { State::Header } else { State::Text { reasoning } };
        let (held, space) = (String::new(), String::new());
        Self { calls, syntax, tools, state, held, space, trim: reasoning, content: false, called: 0 }
    }

    /// Calls so far.
    pub fn calls(&self) -> usize {
        self.called
    }

    /// Whether what comes next is reasoning, as far as is known.
    pub fn in_reasoning(&self) -> bool {
        matches!(self.state, State::Text { reasoning: true } | State::Message(Kind::Reasoning))
    }

    /// Reads on.
    pub fn push(&mut self, text: &str, parts: &mut Vec<Part>) {
        self.held.push_str(text);
        while self.step(false, parts) {}
    }

    /// The answer has come to its end.
    pub fn finish(&mut self, parts: &mut Vec<Part>) {
        while self.step(true, parts) {}
        let rest = std::mem::take(&mut self.held);
        match std::mem::replace(&mut self.state, State::Text { reasoning: false }) {
            State::Object { call, .. } if !call.named => self.tell(false, &(call.raw + &rest), parts),
            State::Name { open, .. } => self.tell(false, &format!("{open}{rest}"), parts),
            State::Pairs(_) => self.tell(false, &format!("{}{rest}", pairs::OPEN), parts),
            State::Header if !rest.contains(harmony::CHANNEL) => self.tell(false, rest.trim_start(), parts),
            _ => {}
        }
        let space = std::mem::take(&mut self.space);
        if self.called == 0 && self.content {
            add(parts, Part::Content(space));
        }
    }

    /// Decides on a part of what is held; false if more is needed.
    fn step(&mut self, last: bool, parts: &mut Vec<Part>) -> bool {
        // Only what may be long is moved.
        match std::mem::replace(&mut self.state, State::Header) {
            State::Object { object, call, behind } => self.object(object, call, behind, parts),
            state => {
                self.state = state.clone();
                self.small_step(state, last, parts)
            }
        }
    }

    fn small_step(&mut self, state: State, last: bool, parts: &mut Vec<Part>) -> bool {
        match state {
            State::Text { reasoning } => self.text(reasoning, last, parts),
            State::Object { .. } => unreachable!("it is not small"),
            State::List { first } => self.list(first),
            State::Section(section) => self.section(section, last),
            State::Name { open, id, separator } => self.name(open, id, separator, parts),
            State::Arguments { end } => self.arguments(end, last, parts),
            State::Value(value) => self.value(value, last, parts),
            State::Pairs(style) => self.pairs(style, parts),
            State::Close(mark) => match ahead(&self.held, &[mark], last) {
                Ahead::Mark(_, used) => self.go(used, State::Text { reasoning: false }),
                Ahead::Other => self.go(0, State::Text { reasoning: false }),
                Ahead::Unknown => false,
            },
            State::Header => match self.held.find(harmony::MESSAGE) {
                Some(at) => {
                    let kind = harmony::kind(&self.held[..at]);
                    self.begin(&kind, parts);
                    self.go(at + harmony::MESSAGE.len(), State::Message(kind))
                }
                None => false,
            },
            State::Message(kind) => self.message(&kind, last, parts),
        }
    }

    /// Goes on in `state` behind `used` bytes.
    fn go(&mut self, used: usize, state: State) -> bool {
        self.held.drain(..used);
        self.state = state;
        true
    }

    fn text(&mut self, reasoning: bool, last: bool, parts: &mut Vec<Part>) -> bool {
        if let (false, Some(Calls::Bare { tag })) = (reasoning || self.content, self.calls) {
            let marks: &[&str] = if self.called > 0 { &["{", tag, ";"] } else { &["{", tag] };
            match ahead(&self.held, marks, last) {
                Ahead::Mark(0, used) => {
                    let (object, call, behind) = (Object::new(), Call::default(), Behind::Text);
                    return self.go(used - 1, State::Object { object, call, behind });
                }
                Ahead::Mark(_, used) => {
                    self.held.drain(..used);
                    return true;
                }
                Ahead::Unknown => return false,
                Ahead::Other => {}
            }
        }
        let thinking = self.syntax.reasoning;
        let open = match self.calls {
            Some(Calls::Objects { open, .. } | Calls::List { open } | Calls::Inline { open, .. }) => {
                Some(open)
            }
            Some(Calls::Section(section)) => Some(section.open),
            Some(Calls::Pairs(_)) => Some(pairs::OPEN),
            _ => None,
        };
        let marks: &[Option<&'static str>] = match reasoning {
            true => &[thinking.map(|m| m.close)],
            false => &[thinking.map(|m| m.open), open],
        };
        let (upto, mark) = find(&self.held, marks, last);
        let text: String = self.held.drain(..upto).collect();
        self.tell(reasoning, &text, parts);
        let Some((which, len)) = mark else { return false };
        self.held.drain(..len);
        // Spaces before a mark are the form's.
        self.space.clear();
        self.trim = true;
        self.state = match (reasoning, which) {
            (true, _) => State::Text { reasoning: false },
            (false, 0) => State::Text { reasoning: true },
            (false, _) => self.opened(),
        };
        true
    }

    /// Behind the mark that opens a call.
    fn opened(&self) -> State {
        match self.calls {
            Some(Calls::Objects { close, .. }) => {
                State::Object { object: Object::new(), call: Call::default(), behind: Behind::Close(close) }
            }
            Some(Calls::List { .. }) => State::List { first: true },
            Some(Calls::Inline { open, id, separator }) => State::Name { open, id, separator },
            Some(Calls::Section(section)) => State::Section(section),
            Some(Calls::Pairs(style)) => State::Pairs(style),
            Some(Calls::Bare { .. } | Calls::Harmony) | None => State::Text { reasoning: false },
        }
    }

    fn object(&mut self, mut object: Object, mut call: Call, behind: Behind, parts: &mut Vec<Part>) -> bool {
        let mut told = Vec::new();
        let known = |name: &str| behind != Behind::Text || self.tools.iter().any(|tool| tool.name == name);
        let (used, step) = object.feed(&self.held, |member, text, ended| {
            call.member(member, text, ended, &mut told);
        });
        let unknown = call.named && !known(&call.name);
        let named = call.named && !told.is_empty();
        let taken: String = self.held.drain(..used).collect();
        if unknown || (step == Step::Bad && !call.named) || (step == Step::Done && !call.named) {
            let raw = match behind {
                Behind::Close(_) | Behind::List => self.opening() + &call.raw + &taken,
                Behind::Text => call.raw + &taken,
            };
            self.tell(false, &raw, parts);
            self.content = true;
            self.state = State::Text { reasoning: false };
            return true;
        }
        if named || call.told {
            for part in told {
                self.called += usize::from(matches!(part, Part::Call { .. }));
                add(parts, part);
            }
        } else {
            call.raw.push_str(&taken);
        }
        match step {
            Step::More => {
                self.state = State::Object { object, call, behind };
                false
            }
            Step::Done => {
                if !call.told {
                    add(parts, Part::Arguments("{}".to_owned()));
                }
                self.go(
                    0,
                    match behind {
                        Behind::Close(mark) => State::Close(mark),
                        Behind::List => State::List { first: false },
                        Behind::Text => State::Text { reasoning: false },
                    },
                )
            }
            Step::Bad => self.go(0, State::Text { reasoning: false }),
        }
    }

    /// The mark that calls open with, for what turned out to be none.
    fn opening(&self) -> String {
        match self.calls {
            Some(Calls::Objects { open, .. } | Calls::List { open }) => open.to_owned(),
            _ => String::new(),
        }
    }

    fn list(&mut self, first: bool) -> bool {
        let text = self.held.trim_start();
        let space = self.held.len() - text.len();
        match text.chars().next() {
            None => false,
            Some('[') if first => self.go(space + 1, State::List { first: false }),
            Some(',') if !first => self.go(space + 1, State::List { first: false }),
            Some('{') => {
                let (object, call, behind) = (Object::new(), Call::default(), Behind::List);
                self.go(space, State::Object { object, call, behind })
            }
            Some(']') => self.go(space + 1, State::Text { reasoning: false }),
            Some(_) => self.go(0, State::Text { reasoning: false }),
        }
    }

    fn section(&mut self, section: Section, last: bool) -> bool {
        match ahead(&self.held, &[section.begin, section.close], last) {
            Ahead::Mark(0, used) => {
                let Section { begin, separator, .. } = section;
                self.go(used, State::Name { open: begin, id: "", separator })
            }
            Ahead::Mark(_, used) => self.go(used, State::Text { reasoning: false }),
            Ahead::Other => self.go(0, State::Text { reasoning: false }),
            Ahead::Unknown => false,
        }
    }

    fn name(
        &mut self,
        open: &'static str,
        id: &'static str,
        separator: &'static str,
        parts: &mut Vec<Part>,
    ) -> bool {
        let Some(at) = self.held.find(separator) else { return false };
        let written = self.held[..at].trim();
        let (name, id) = match written.split_once(id).filter(|_| !id.is_empty()) {
            Some((name, id)) => (name, Some(id.to_owned())),
            None => (written, None),
        };
        let numbered = matches!(self.calls, Some(Calls::Section(Section { numbered: true, .. })));
        let part =
            if numbered { numbered_name(name) } else { Part::Call { name: name.trim().to_owned(), id } };
        if matches!(&part, Part::Call { name, .. } if name.is_empty()) {
            let raw = format!("{open}{}", &self.held[..at + separator.len()]);
            self.tell(false, &raw, parts);
            return self.go(at + separator.len(), State::Text { reasoning: false });
        }
        parts.push(part);
        self.called += 1;
        self.trim = true;
        let state = match self.calls {
            Some(Calls::Section(section)) => State::Arguments { end: section.end },
            _ => State::Value(scan::Value::default()),
        };
        self.go(at + separator.len(), state)
    }

    fn arguments(&mut self, end: &'static str, last: bool, parts: &mut Vec<Part>) -> bool {
        let (upto, mark) = find(&self.held, &[Some(end)], last);
        let text: String = self.held.drain(..upto).collect();
        self.tell_arguments(&text, parts);
        let Some((_, len)) = mark else { return false };
        self.space.clear();
        let state = match self.calls {
            Some(Calls::Section(section)) => State::Section(section),
            _ => State::Text { reasoning: false },
        };
        self.trim = true;
        self.go(len, state)
    }

    fn value(&mut self, mut value: scan::Value, last: bool, parts: &mut Vec<Part>) -> bool {
        if self.trim {
            let space = self.held.len() - self.held.trim_start().len();
            self.held.drain(..space);
        }
        let (used, ended) = value.feed(&self.held);
        let text: String = self.held.drain(..used).collect();
        self.trim &= text.is_empty();
        if !text.is_empty() {
            add(parts, Part::Arguments(text));
        }
        self.state = State::Value(value);
        if ended {
            self.trim = true;
            return self.go(0, State::Text { reasoning: false });
        }
        debug_assert!(!last || self.held.is_empty(), "a value takes all that there is");
        false
    }

    fn pairs(&mut self, style: pairs::Style, parts: &mut Vec<Part>) -> bool {
        let Some(at) = self.held.find(pairs::CLOSE) else { return false };
        match style.read(&self.held[..at], &self.tools) {
            Some((name, arguments)) => {
                self.called += 1;
                parts.push(Part::Call { name, id: None });
                parts.push(Part::Arguments(arguments));
            }
            None => {
                let raw = format!("{}{}{}", pairs::OPEN, &self.held[..at], pairs::CLOSE);
                self.tell(false, &raw, parts);
            }
        }
        self.go(at + pairs::CLOSE.len(), State::Text { reasoning: false })
    }

    /// A message's header is read.
    fn begin(&mut self, kind: &Kind, parts: &mut Vec<Part>) {
        self.space.clear();
        self.trim = *kind != Kind::Content;
        if let Kind::Call(name) = kind {
            self.called += 1;
            parts.push(Part::Call { name: name.clone(), id: None });
        }
    }

    fn message(&mut self, kind: &Kind, last: bool, parts: &mut Vec<Part>) -> bool {
        let marks: Vec<_> = harmony::ENDS.iter().map(|mark| Some(*mark)).collect();
        let (upto, mark) = find(&self.held, &marks, last);
        let text: String = self.held.drain(..upto).collect();
        match kind {
            Kind::Reasoning => self.tell(true, &text, parts),
            Kind::Content => self.tell(false, &text, parts),
            Kind::Call(_) => self.tell_arguments(&text, parts),
        }
        let Some((_, len)) = mark else { return false };
        self.go(len, State::Header)
    }

    /// Tells text, less white space that may turn out to be the form's.
    fn tell(&mut self, reasoning: bool, text: &str, parts: &mut Vec<Part>) {
        let text = if self.trim { text.trim_start() } else { text };
        if text.is_empty() {
            return;
        }
        self.trim = false;
        let kept = text.trim_end();
        if !kept.is_empty() {
            let told = std::mem::take(&mut self.space) + kept;
            self.content |= !reasoning;
            add(parts, if reasoning { Part::Reasoning(told) } else { Part::Content(told) });
        }
        self.space.push_str(&text[kept.len()..]);
    }

    fn tell_arguments(&mut self, text: &str, parts: &mut Vec<Part>) {
        let text = if self.trim { text.trim_start() } else { text };
        let kept = text.trim_end();
        if !kept.is_empty() {
            self.trim = false;
            add(parts, Part::Arguments(std::mem::take(&mut self.space) + kept));
        }
        if !self.trim {
            self.space.push_str(&text[kept.len()..]);
        }
    }
}

/// `functions.name:index`, and it is the id.
fn numbered_name(written: &str) -> Part {
    let name = written.strip_prefix("functions.").unwrap_or(written);
    let name = match name.rsplit_once(':') {
        Some((name, index)) if !index.is_empty() && index.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => name,
    };
    Part::Call { name: name.to_owned(), id: Some(written.to_owned()) }
}

/// Appends, joined to what it continues.
fn add(parts: &mut Vec<Part>, part: Part) {
    match (parts.last_mut(), part) {
        (Some(Part::Reasoning(text)), Part::Reasoning(more))
        | (Some(Part::Content(text)), Part::Content(more))
        | (Some(Part::Arguments(text)), Part::Arguments(more)) => text.push_str(&more),
        (_, Part::Reasoning(text) | Part::Content(text) | Part::Arguments(text)) if text.is_empty() => {}
        (_, part) => parts.push(part),
    }
}
