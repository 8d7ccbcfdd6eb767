//! Takes an answer apart as it grows: reasoning, content, calls.
//!
//! Law: however the text is cut into pieces, the parts joined are the same. What might still become a mark is held back; nothing
//! else is. A call that turns out to be none before its name was told is content, as it was written; content without calls or reasoning is
//! passed on to the last character.
//!
//! White space between parts belongs to the form: it is dropped around reasoning and before calls.
//!
//! Reasoning opens an answer or is none: behind content, a call or other reasoning its mark is a word like any other.

mod objects;

use std::sync::Arc;

use super::call::Call;
use super::harmony::{self, Kind};
use super::marks::{Ahead, ahead, find};
use super::scan::{self, Object};
use super::{Calls, Marks, Section, Syntax, Tool, pairs};

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
    /// Reasoning has come to its end.
    reasoned: bool,
    called: usize,
    /// The answer's end came before that of its last call's arguments, as far as marks and JSON tell.
    amid_call: bool,
    /// So much of what is held is known not to have the mark that ends it ([`Self::seek`]).
    sought: usize,
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
    /// In the name of a function that no mark of a call stands before.
    Function,
    /// In such a function's call, which is read as a whole.
    Unmarked,
    /// White space, then this mark.
    Close(&'static str),
    /// Behind an object, before this mark; perhaps there are more objects.
    More(&'static str),
    /// Nothing up to and with this mark is anything.
    Skip(&'static str),
    /// In a message's header.
    Header,
    /// In a message's text.
    Message(Kind),
}

/// What follows an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Behind {
    Close(&'static str),
    /// The same, and it is not the first before this mark.
    Further(&'static str),
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
        Self {
            calls,
            syntax,
            tools,
            state,
            held,
            space,
            trim: reasoning,
            content: false,
            reasoned: false,
            called: 0,
            amid_call: false,
            sought: 0,
        }
    }

    /// Calls so far.
    pub fn calls(&self) -> usize {
        self.called
    }

    /// Whether an answer that came to its end did so amid a call.
    pub fn ended_amid_call(&self) -> bool {
        self.amid_call
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
        self.amid_call = match &self.state {
            State::Object { call, .. } => call.named,
            State::Arguments { .. } | State::Value(_) | State::Message(Kind::Call(_)) => true,
            _ => false,
        };
        match std::mem::replace(&mut self.state, State::Text { reasoning: false }) {
            State::Object { behind: Behind::Further(_), .. } => {}
            State::Object { call, .. } if !call.named => self.tell(false, &(call.raw + &rest), parts),
            State::Name { open, .. } => self.tell(false, &format!("{open}{rest}"), parts),
            State::Pairs(style) => self.pairs_cut(style, &rest, parts),
            State::Function | State::Unmarked => {
                self.tell(false, &format!("{}{rest}", pairs::FUNCTION), parts);
            }
            // What no header has begun in was never to become one.
            State::Header if ![harmony::CHANNEL, harmony::START].iter().any(|mark| rest.contains(mark)) => {
                self.tell(false, rest.trim_start(), parts);
            }
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
            State::Function => self.function(last, parts),
            State::Unmarked => self.unmarked(parts),
            State::Close(mark) => match self.awaited(&[mark]) {
                Ahead::Mark(_, used) => self.go(used, State::Text { reasoning: false }),
                Ahead::Other => self.go(0, State::Text { reasoning: false }),
                Ahead::Unknown => self.cut(last),
            },
            State::More(mark) => self.more(mark, last),
            State::Skip(mark) => self.skip(mark, last),
            State::Header => match self.seek(harmony::MESSAGE) {
                Some(at) => {
                    let kind = harmony::kind(&self.held[..at], !self.tools.is_empty());
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
        self.sought = 0;
        true
    }

    /// Which of these marks comes next; white space before it is the form's.
    fn awaited(&mut self, marks: &[&str]) -> Ahead {
        self.held.drain(..self.held.len() - self.held.trim_start().len());
        ahead(&self.held, marks, false)
    }

    /// A mark is awaited: at the end of the answer, the beginning of one is not content.
    fn cut(&mut self, last: bool) -> bool {
        if last {
            self.held.clear();
        }
        false
    }

    /// Where this mark, which ends what is held, stands. What was searched before is not searched again.
    fn seek(&mut self, mark: &str) -> Option<usize> {
        let mut from = self.sought.saturating_sub(mark.len());
        while !self.held.is_char_boundary(from) {
            from -= 1;
        }
        let at = self.held.get(from..)?.find(mark).map(|at| from + at);
        self.sought = self.held.len();
        at
    }

    fn text(&mut self, reasoning: bool, last: bool, parts: &mut Vec<Part>) -> bool {
        if !(reasoning || self.content) {
            // Kept apart, so that nobody looks at it twice.
            let rest = self.held.trim_start();
            let space: String = self.held.drain(..self.held.len() - rest.len()).collect();
            self.tell(false, &space, parts);
        }
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
        if let Some(Marks { open, .. }) = thinking
            && !(reasoning || self.reasoned || self.content || self.called > 0)
        {
            match ahead(&self.held, &[open], last) {
                Ahead::Mark(_, used) => {
                    self.space.clear();
                    self.trim = true;
                    return self.go(used, State::Text { reasoning: true });
                }
                Ahead::Unknown => return false,
                Ahead::Other => {}
            }
        }
        let open = match self.calls {
            Some(Calls::Objects { open, .. } | Calls::List { open } | Calls::Inline { open, .. }) => {
                Some(open)
            }
            Some(Calls::Section(section)) => Some(section.open),
            Some(Calls::Pairs(_)) => Some(pairs::OPEN),
            _ => None,
        };
        // Models forget the mark before it.
        let function = (self.calls == Some(Calls::Pairs(pairs::Style::Function))).then_some(pairs::FUNCTION);
        // Kimi calls amid its reasoning, and does not close it.
        let section = match self.calls {
            Some(Calls::Section(Section { open, numbered: true, .. })) => Some(open),
            _ => None,
        };
        let marks: &[Option<&'static str>] = match reasoning {
            true => &[thinking.map(|m| m.close), section],
            false => &[open, function],
        };
        let (upto, mark) = find(&self.held, marks, last);
        let text: String = self.held.drain(..upto).collect();
        self.tell(reasoning, &text, parts);
        let Some((which, len)) = mark else { return false };
        let state = match (reasoning, which) {
            (true, 1) => {
                self.reasoned = true;
                self.opened()
            }
            (true, _) => {
                // Spaces before a mark are the form's; before a call, that is seen when it is one.
                self.space.clear();
                self.reasoned = true;
                State::Text { reasoning: false }
            }
            (false, 0) => self.opened(),
            (false, _) => State::Function,
        };
        self.trim = true;
        self.go(len, state)
    }

    /// Behind the mark that opens a call.
    fn opened(&self) -> State {
        match self.calls {
            Some(Calls::Objects { close, .. }) => {
                let (object, call) = (Object::led(), Call::default());
                State::Object { object, call, behind: Behind::Close(close) }
            }
            Some(Calls::List { .. }) => State::List { first: true },
            Some(Calls::Inline { open, id, separator }) => State::Name { open, id, separator },
            Some(Calls::Section(section)) => State::Section(section),
            Some(Calls::Pairs(style)) => State::Pairs(style),
            Some(Calls::Bare { .. } | Calls::Harmony) | None => State::Text { reasoning: false },
        }
    }

    fn section(&mut self, section: Section, last: bool) -> bool {
        match self.awaited(&[section.begin, section.close]) {
            Ahead::Mark(0, used) => {
                let Section { begin, separator, .. } = section;
                self.go(used, State::Name { open: begin, id: "", separator })
            }
            Ahead::Mark(_, used) => self.go(used, State::Text { reasoning: false }),
            Ahead::Other => self.go(0, State::Text { reasoning: false }),
            Ahead::Unknown => self.cut(last),
        }
    }

    fn name(
        &mut self,
        open: &'static str,
        id: &'static str,
        separator: &'static str,
        parts: &mut Vec<Part>,
    ) -> bool {
        let Some(at) = self.seek(separator) else { return false };
        let written = self.held[..at].trim();
        let (name, id) = match written.split_once(id).filter(|_| !id.is_empty()) {
            Some((name, id)) => (name, Some(id.to_owned())),
            None => (written, None),
        };
        let numbered = matches!(self.calls, Some(Calls::Section(Section { numbered: true, .. })));
        let (name, id) = if numbered { numbered_name(name) } else { (name.trim().to_owned(), id) };
        if name.is_empty() {
            let raw = format!("{open}{}", &self.held[..at + separator.len()]);
            self.tell(false, &raw, parts);
            return self.go(at + separator.len(), State::Text { reasoning: false });
        }
        self.tell_call(name, id, parts);
        self.trim = true;
        let state = match self.calls {
            Some(Calls::Section(section)) => State::Arguments { end: section.end },
            _ => State::Value(scan::Value::default()),
        };
        self.go(at + separator.len(), state)
    }

    fn arguments(&mut self, end: &'static str, last: bool, parts: &mut Vec<Part>) -> bool {
        let (upto, mark) = find(&self.held, &[Some(end)], false);
        let text: String = self.held.drain(..upto).collect();
        self.tell_arguments(&text, parts);
        let Some((_, len)) = mark else { return self.cut(last) };
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
        let Some(at) = self.seek(pairs::CLOSE) else { return false };
        let body: String = self.held.drain(..at).collect();
        if !self.tell_pairs(style, &body, parts) {
            self.tell(false, &format!("{}{body}{}", pairs::OPEN, pairs::CLOSE), parts);
        }
        self.go(pairs::CLOSE.len(), State::Text { reasoning: false })
    }

    /// All that is missing at the end of an answer may be the mark.
    fn pairs_cut(&mut self, style: pairs::Style, rest: &str, parts: &mut Vec<Part>) {
        let whole = style.ended(rest).is_some_and(|body| self.tell_pairs(style, body, parts));
        if !whole {
            self.tell(false, &format!("{}{rest}", pairs::OPEN), parts);
        }
    }

    /// Only the name of a tool makes it a call.
    fn function(&mut self, last: bool, parts: &mut Vec<Part>) -> bool {
        let behind = |tool: &Tool| self.held.strip_prefix(&tool.name).map(|rest| rest.starts_with('>'));
        if self.tools.iter().any(|tool| behind(tool) == Some(true)) {
            return self.go(0, State::Unmarked);
        }
        if !last && self.tools.iter().any(|tool| tool.name.starts_with(&self.held)) {
            return false;
        }
        self.tell(false, pairs::FUNCTION, parts);
        self.go(0, State::Text { reasoning: false })
    }

    fn unmarked(&mut self, parts: &mut Vec<Part>) -> bool {
        let Some(at) = self.seek(pairs::FUNCTION_END) else { return false };
        let body: String = self.held.drain(..at + pairs::FUNCTION_END.len()).collect();
        let call = format!("{}{body}", pairs::FUNCTION);
        if self.tell_pairs(pairs::Style::Function, &call, parts) {
            // Who forgets the first mark may remember the last.
            return self.go(0, State::Close(pairs::CLOSE));
        }
        self.tell(false, &call, parts);
        self.go(0, State::Text { reasoning: false })
    }

    /// Tells what stood between a call's marks, if it is one, or several.
    fn tell_pairs(&mut self, style: pairs::Style, body: &str, parts: &mut Vec<Part>) -> bool {
        let Some(calls) = style.read(body, &self.tools) else { return false };
        for (name, arguments) in calls {
            self.tell_call(name, None, parts);
            parts.push(Part::Arguments(arguments));
        }
        true
    }

    /// A call begins. The white space before it is the form's.
    fn tell_call(&mut self, name: String, id: Option<String>, parts: &mut Vec<Part>) {
        self.space.clear();
        self.called += 1;
        parts.push(Part::Call { name, id });
    }

    /// A message's header is read.
    fn begin(&mut self, kind: &Kind, parts: &mut Vec<Part>) {
        self.space.clear();
        self.trim = *kind != Kind::Content;
        if let Kind::Call(name) = kind {
            self.tell_call(name.clone(), None, parts);
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
        let Some((which, len)) = mark else { return false };
        // What begins a header stays with it.
        let begins = [harmony::START, harmony::CHANNEL].contains(&harmony::ENDS[which]);
        self.go(if begins { 0 } else { len }, State::Header)
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
fn numbered_name(written: &str) -> (String, Option<String>) {
    let name = written.strip_prefix("functions.").unwrap_or(written);
    let name = match name.rsplit_once(':') {
        Some((name, index)) if !index.is_empty() && index.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => name,
    };
    (name.to_owned(), Some(written.to_owned()))
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
