//! A JSON text read as it grows, as far as reading a call needs: where values end, and which member of an object comes.
//!
//! Absent on purpose: full validation. What a model writes is passed on as it is; a text that is no JSON at the places looked at
//! is [`Step::Bad`].

/// What the next characters brought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// All characters are used; more must come.
    More,
    /// The end; characters behind it are not used.
    Done,
    /// No JSON object.
    Bad,
}

/// One JSON value: where it ends.
#[derive(Clone, Debug, Default)]
pub(super) struct Value {
    depth: usize,
    in_string: bool,
    escaped: bool,
    /// A number or a word, which ends where something else begins.
    bare: bool,
    begun: bool,
}

impl Value {
    /// Takes characters that belong to the value, and says how many bytes that were and whether the value ended.
    /// White space before it is no part of it and must be skipped by the caller.
    pub(super) fn feed(&mut self, text: &str) -> (usize, bool) {
        for (at, c) in text.char_indices() {
            let after = at + c.len_utf8();
            if self.in_string {
                match c {
                    _ if self.escaped => self.escaped = false,
                    '\\' => self.escaped = true,
                    '"' => {
                        self.in_string = false;
                        if self.depth == 0 {
                            return (after, true);
                        }
                    }
                    _ => {}
                }
                continue;
            }
            if self.bare && (c.is_whitespace() || matches!(c, ',' | '}' | ']')) {
                return (at, true);
            }
            match c {
                '"' => self.in_string = true,
                '{' | '[' => self.depth += 1,
                '}' | ']' => {
                    self.depth = self.depth.saturating_sub(1);
                    if self.depth == 0 {
                        return (after, true);
                    }
                }
                _ if self.depth == 0 => self.bare = true,
                _ => {}
            }
            self.begun = true;
        }
        (text.len(), false)
    }
}

/// Where in an object the reader is.
#[derive(Clone, Debug)]
enum Place {
    /// Before `{`, perhaps behind a list's bracket or a fence, whose word stands right behind it.
    Lead {
        fence: bool,
    },
    /// Before `{`.
    Open,
    /// Before a member's name, or `}`.
    Key,
    /// In the name.
    InKey(Value, String),
    /// Before `:`.
    Colon(String),
    /// Before the member's value.
    BeforeValue(String),
    /// In the value.
    InValue(String, Value),
    /// Before `,` or `}`.
    Comma,
    End,
}

/// An object's members, one after the other.
#[derive(Clone, Debug)]
pub(super) struct Object(Place);

impl Object {
    pub(super) fn new() -> Self {
        Self(Place::Open)
    }

    /// Behind a mark: models put a list's bracket or a fence before it.
    pub(super) fn led() -> Self {
        Self(Place::Lead { fence: false })
    }

    /// Reads on; `member(name, text, ended)` gets the text of members' values, in pieces. Says how many bytes were used.
    pub(super) fn feed(&mut self, text: &str, mut member: impl FnMut(&str, &str, bool)) -> (usize, Step) {
        let mut at = 0;
        while let Some(c) = text[at..].chars().next() {
            let place = std::mem::replace(&mut self.0, Place::End);
            let space = c.is_whitespace();
            let mut used = c.len_utf8();
            self.0 = match place {
                Place::Lead { .. } | Place::Open if c == '{' => Place::Key,
                Place::Lead { .. } if c == '[' => Place::Open,
                Place::Lead { .. } if c == '`' => Place::Lead { fence: true },
                Place::Lead { fence: true } if c.is_ascii_alphabetic() => Place::Lead { fence: true },
                Place::Lead { .. } if space => Place::Lead { fence: false },
                Place::Key if c == '}' => return (at + used, Step::Done),
                Place::Key if c == '"' => {
                    let mut key = Value::default();
                    key.feed("\"");
                    Place::InKey(key, "\"".to_owned())
                }
                Place::InKey(mut value, mut raw) => {
                    let (len, ended) = value.feed(&text[at..]);
                    raw.push_str(&text[at..at + len]);
                    used = len;
                    match ended.then(|| serde_json::from_str::<String>(&raw)) {
                        None => Place::InKey(value, raw),
                        Some(Ok(name)) => Place::Colon(name),
                        Some(Err(_)) => return (at, Step::Bad),
                    }
                }
                Place::Colon(name) if c == ':' => Place::BeforeValue(name),
                Place::BeforeValue(name) if !space => {
                    if matches!(c, ',' | '}' | ']' | ':') {
                        return (at, Step::Bad);
                    }
                    used = 0;
                    Place::InValue(name, Value::default())
                }
                Place::InValue(name, mut value) => {
                    let (len, ended) = value.feed(&text[at..]);
                    member(&name, &text[at..at + len], ended);
                    used = len;
                    if ended { Place::Comma } else { Place::InValue(name, value) }
                }
                Place::Comma if c == ',' => Place::Key,
                Place::Comma if c == '}' => return (at + used, Step::Done),
                place if space => place,
                _ => return (at, Step::Bad),
            };
            at += used;
        }
        (at, Step::More)
    }
}
