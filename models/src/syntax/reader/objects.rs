//! Calls that are JSON objects: one between marks or several, the items of a list, or an answer of nothing else.

use super::super::Calls;
use super::super::call::Call;
use super::super::marks::find;
use super::super::scan::{Object, Step};
use super::{Behind, Part, Reader, State, add};

impl Reader {
    pub(super) fn object(
        &mut self,
        mut object: Object,
        mut call: Call,
        behind: Behind,
        parts: &mut Vec<Part>,
    ) -> bool {
        let mut told = Vec::new();
        let known = |name: &str| behind != Behind::Text || self.tools.iter().any(|tool| tool.name == name);
        let (used, step) = object.feed(&self.held, |member, text, ended| {
            call.member(member, text, ended, &mut told);
        });
        let unknown = call.named && !known(&call.name);
        let named = call.named && !told.is_empty();
        let taken: String = self.held.drain(..used).collect();
        if unknown || (step != Step::More && !call.named) {
            let raw = match behind {
                // What stands with calls between their marks is not for the user.
                Behind::Further(mark) => return self.go(0, State::Skip(mark)),
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
                match part {
                    Part::Call { name, id } => self.tell_call(name, id, parts),
                    part => add(parts, part),
                }
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
                        Behind::Close(mark) | Behind::Further(mark) => State::More(mark),
                        Behind::List => State::List { first: false },
                        Behind::Text => State::Text { reasoning: false },
                    },
                )
            }
            Step::Bad => match behind {
                Behind::Close(mark) | Behind::Further(mark) => self.go(0, State::Skip(mark)),
                Behind::List | Behind::Text => self.go(0, State::Text { reasoning: false }),
            },
        }
    }

    /// Models put several objects between two marks, or a list of them, or a fence around one.
    pub(super) fn more(&mut self, mark: &'static str, last: bool) -> bool {
        let filler = |c: char| c.is_whitespace() || matches!(c, ',' | ';' | ']' | '`');
        let rest = self.held.trim_start_matches(filler);
        let begins = rest.starts_with('{');
        let awaited = rest.len() < mark.len() && mark.starts_with(rest);
        let used = self.held.len() - rest.len();
        match (begins, awaited) {
            (true, _) => {
                let (object, call, behind) = (Object::new(), Call::default(), Behind::Further(mark));
                self.go(used, State::Object { object, call, behind })
            }
            (false, true) => {
                self.held.drain(..used);
                self.cut(last)
            }
            (false, false) => self.go(used, State::Skip(mark)),
        }
    }

    /// A model that forgot the mark may write the next call's.
    pub(super) fn skip(&mut self, mark: &'static str, last: bool) -> bool {
        let open = match self.calls {
            Some(Calls::Objects { open, .. }) => Some(open),
            _ => None,
        };
        let (upto, found) = find(&self.held, &[Some(mark), open], false);
        self.held.drain(..upto);
        self.trim = true;
        match found {
            Some((0, len)) => self.go(len, State::Text { reasoning: false }),
            Some((_, len)) => {
                let opened = self.opened();
                self.go(len, opened)
            }
            None => self.cut(last),
        }
    }

    /// The mark that calls open with, for what turned out to be none.
    fn opening(&self) -> String {
        match self.calls {
            Some(Calls::Objects { open, .. } | Calls::List { open }) => open.to_owned(),
            _ => String::new(),
        }
    }

    pub(super) fn list(&mut self, first: bool) -> bool {
        self.held.drain(..self.held.len() - self.held.trim_start().len());
        match self.held.chars().next() {
            None => false,
            Some('[') if first => self.go(1, State::List { first: false }),
            Some(',') if !first => self.go(1, State::List { first: false }),
            Some('{') => {
                let (object, call, behind) = (Object::new(), Call::default(), Behind::List);
                self.go(0, State::Object { object, call, behind })
            }
            Some(']') => self.go(1, State::Text { reasoning: false }),
            Some(_) => self.go(0, State::Text { reasoning: false }),
        }
    }
}
