//! Chat templates: Jinja from the model file, from messages to the text that a model was trained on.
//!
//! Law: whatever messages contain, the control tokens in a [`Rendered`] are those that the template wrote, or the server in a
//! [`Note`], and its text pieces hold the messages' own characters. See `guard` for how.
//!
//! A template comes with the model file, so it is bounded: in instructions, in output, in recursion; and a panic of the
//! engine is an error. What it may hold in variables while it runs, how deeply that is nested, and the time of one
//! instruction are not bounded beyond what those instructions can build.

mod clock;
mod filters;
mod guard;
mod messages;
mod python;

use std::collections::HashSet;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::value::Value;
use minijinja::{AutoEscape, Environment, ErrorKind, Template};
use serde_json::{Map, Value as Json, json};

use self::guard::Guard;
use self::messages::Wants;
pub use self::messages::arguments_text;
use crate::gguf::{Gguf, GgufError};

/// Where model files keep it.
pub const TEMPLATE_KEY: &str = "tokenizer.chat_template";

/// Instructions one rendering may take: some seconds at worst, a thousand times what long conversations need.
const FUEL: u64 = 10_000_000;
/// Bytes one rendering may give.
const OUTPUT_BYTES_MAX: usize = 64 << 20;
/// Nested macro calls and includes.
const RECURSION_MAX: usize = 100;
/// Variables that requests do not set by name: they have fields of their own, are the model's, or are parameters that
/// transformers' `apply_chat_template` keeps to itself.
const RESERVED: &[&str] = &[
    "messages",
    "tools",
    "add_generation_prompt",
    "bos_token",
    "eos_token",
    "strftime_now",
    "chat_template",
    "continue_final_message",
    "tokenize",
];
/// The only template of its environment.
const NAME: &str = "chat template";

/// Why there is no template, or no rendering.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TemplateError {
    /// The model file has none.
    #[error("the model has no chat template ({TEMPLATE_KEY}) and none is configured")]
    Missing,
    /// The model file has something else under its key.
    #[error("the chat template cannot be read: {0}")]
    Metadata(String),
    /// It is not Jinja.
    #[error("line {line} of the chat template: {detail}")]
    Syntax {
        /// From 1.
        line: usize,
        /// What the parser says.
        detail: String,
    },
    /// The template refused the messages with `raise_exception`: the client's mistake.
    #[error("{0}")]
    Raised(String),
    /// A variable that is not for requests to set.
    #[error("{0:?} cannot be set in chat_template_kwargs")]
    Reserved(String),
    /// The arguments of a call are to be JSON.
    #[error("messages[{message}].tool_calls[{call}].function.arguments is not a JSON object")]
    Arguments {
        /// Index of the message.
        message: usize,
        /// Index in its `tool_calls`.
        call: usize,
    },
    /// It ran for too long.
    #[error("the chat template took more than {FUEL} instructions")]
    OutOfFuel,
    /// It wrote too much.
    #[error("the chat template wrote more than {OUTPUT_BYTES_MAX} bytes")]
    TooLong,
    /// It met a fault of the engine.
    #[error("the chat template made the template engine fail")]
    Engine,
    /// It failed, by its own fault or because these messages lack what it needs.
    #[error("line {line} of the chat template: {detail}")]
    Render {
        /// From 1; 0 if unknown.
        line: usize,
        /// What the engine says.
        detail: String,
    },
}

/// What a template needs to know of a vocabulary.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TemplateTokens {
    /// Text of the token that begins a text: the variable `bos_token`.
    pub bos: Option<String>,
    /// Text of the token that ends one: the variable `eos_token`.
    pub eos: Option<String>,
    /// Texts of all control tokens.
    pub control: Vec<String>,
}

/// What a template is to render.
#[derive(Clone, Copy, Debug, Default)]
pub struct Chat<'a> {
    /// JSON objects with at least `role` and what goes with it (`content`, `tool_calls` ...). Arguments of calls may be
    /// JSON text, as in OpenAI's API, or objects: templates get what they want.
    pub messages: &'a [Json],
    /// As in OpenAI's API. Templates see none where there are none.
    pub tools: &'a [Json],
    /// More variables: `enable_thinking`, `reasoning_effort`, `documents` ...
    pub kwargs: Option<&'a Map<String, Json>>,
    /// Whether the text is to end where the assistant's answer begins.
    pub add_generation_prompt: bool,
}

/// What a model is told at the end of the system's message, because its template has no place for it.
#[derive(Clone, Copy, Debug)]
pub struct Note<'a> {
    /// Ordinary text.
    pub text: &'a str,
    /// What follows it. Control tokens in it are such: it is not a request's.
    pub marked: &'a str,
}

/// Where a note, as templates get it, is put.
#[derive(Clone, Copy, Debug)]
enum Place<'a> {
    System(&'a str),
    User(&'a str),
}

/// A part of a rendering.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Ordinary text, even where it reads like a control token.
    Text(String),
    /// The text of a control token that the template wrote.
    Control(String),
}

/// What a template made of messages. Encode it with [`crate::tokenizer::Tokenizer::encode_rendered`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rendered {
    pieces: Vec<Piece>,
}

impl Rendered {
    /// In order; no two texts are neighbours, and none is empty.
    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// Everything as one text, in which control tokens can no longer be told from what reads like them.
    pub fn text(&self) -> String {
        self.pieces.iter().map(|(Piece::Text(text) | Piece::Control(text))| text.as_str()).collect()
    }
}

/// A model's chat template. `Send` and `Sync`; rendering does not change it.
#[derive(Debug)]
pub struct ChatTemplate {
    source: Box<str>,
    variables: HashSet<String>,
    environment: Environment<'static>,
    guard: Guard,
    wants: Wants,
    bos: Option<String>,
    eos: Option<String>,
}

impl ChatTemplate {
    /// Compiles a template for a vocabulary.
    ///
    /// ```
    /// use frugal_models::template::{Chat, ChatTemplate, TemplateTokens};
    /// let source = "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}{% endfor %}";
    /// let tokens = TemplateTokens { control: vec!["<s>".to_owned()], ..Default::default() };
    /// let messages = [serde_json::json!({"role": "user", "content": "Hi <s>"})];
    /// let chat = Chat { messages: &messages, ..Default::default() };
    /// let rendered = ChatTemplate::new(source, tokens)?.render(&chat)?;
    /// assert_eq!(rendered.text(), "<s>user: Hi <s>");
    /// assert_eq!(rendered.pieces().len(), 2); // the first <s> is a control token, the second is the user's text
    /// # Ok::<(), frugal_models::template::TemplateError>(())
    /// ```
    ///
    /// # Errors
    /// If it is not valid Jinja.
    pub fn new(source: &str, tokens: TemplateTokens) -> Result<Self, TemplateError> {
        let guard = Guard::new(tokens.control, source);
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_fuel(Some(FUEL));
        environment.set_recursion_limit(RECURSION_MAX);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.set_formatter(python::print);
        environment.add_filter("string", python::string);
        environment.add_filter("tojson", filters::tojson);
        environment.add_test("iterable", filters::is_iterable);
        environment.add_test("sequence", filters::is_sequence);
        environment.add_function("raise_exception", raise_exception);
        let marked = guard.mark_source(source);
        caught(|| environment.add_template_owned(NAME, marked).map_err(|e| error(&e, &guard)))?;
        let names = |template: Template<'_, '_>| caught(|| Ok(template.undeclared_variables(false))).ok();
        let variables = environment.get_template(NAME).ok().and_then(names).unwrap_or_default();
        let mark = |text: Option<String>| text.map(|text| guard.mark(&text));
        let (bos, eos, wants) = (mark(tokens.bos), mark(tokens.eos), Wants::default());
        let mut template = Self { bos, eos, wants, source: source.into(), variables, environment, guard };
        template.wants = template.tried();
        Ok(template)
    }

    /// What it wants of messages and tools.
    fn tried(&self) -> Wants {
        Wants::of(&self.source, self.reads_tools(), |messages, tools| {
            let chat = Chat { messages, tools, kwargs: None, add_generation_prompt: true };
            self.run(&chat, None, UNIX_EPOCH).map(|rendered| rendered.text())
        })
    }

    /// The template in a model file.
    ///
    /// # Errors
    /// If there is none, or it is not valid Jinja.
    pub fn from_gguf(gguf: &Gguf, tokens: TemplateTokens) -> Result<Self, TemplateError> {
        let unreadable = |e: GgufError| TemplateError::Metadata(e.to_string());
        let source = gguf.opt_str(TEMPLATE_KEY).map_err(unreadable)?.ok_or(TemplateError::Missing)?;
        Self::new(source, tokens)
    }

    /// Names that the template reads and does not define: what may be given to [`ChatTemplate::render`].
    pub fn variables(&self) -> &HashSet<String> {
        &self.variables
    }

    /// Whether it tells the model of tools.
    pub fn reads_tools(&self) -> bool {
        self.variables.contains("tools")
    }

    /// As it was written.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Renders a chat. As in transformers, `tools` and `documents` are none if not given.
    ///
    /// # Errors
    /// If the template refuses the messages, fails, or does not end within its bounds; if `kwargs` has what is not its
    /// to set; if the arguments of a call are not JSON.
    pub fn render(&self, chat: &Chat<'_>) -> Result<Rendered, TemplateError> {
        self.render_at(chat, SystemTime::now())
    }

    /// The same at a given time, which only templates that write the date see (`strftime_now`, in UTC).
    ///
    /// # Errors
    /// As [`ChatTemplate::render`].
    pub fn render_at(&self, chat: &Chat<'_>, now: SystemTime) -> Result<Rendered, TemplateError> {
        self.shaped(chat, None, now)
    }

    /// The same with a note. Where the template refuses a system's message and the chat has none, the note stands before what the
    /// user says first.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`].
    pub fn render_noted(&self, chat: &Chat<'_>, note: &Note<'_>) -> Result<Rendered, TemplateError> {
        let text = Json::from(note.text);
        let text = self.guard.shield(&text).as_str().unwrap_or_default().to_owned();
        let note = text + &self.guard.mark(note.marked);
        let now = SystemTime::now();
        match self.shaped(chat, Some(Place::System(&note)), now) {
            Err(error @ (TemplateError::Raised(_) | TemplateError::Render { .. }))
                if !chat.messages.iter().any(|message| is_of(message, "system")) =>
            {
                self.shaped(chat, Some(Place::User(&note)), now).map_err(|_| error)
            }
            rendered => rendered,
        }
    }

    /// Renders in the form that the template wants.
    fn shaped(
        &self,
        chat: &Chat<'_>,
        note: Option<Place<'_>>,
        now: SystemTime,
    ) -> Result<Rendered, TemplateError> {
        let (messages, tools) = (self.wants.messages(chat.messages)?, self.wants.tools(chat.tools));
        self.run(&Chat { messages: &messages, tools: &tools, ..*chat }, note, now)
    }

    /// Renders what is in that form.
    fn run(
        &self,
        chat: &Chat<'_>,
        note: Option<Place<'_>>,
        now: SystemTime,
    ) -> Result<Rendered, TemplateError> {
        let mut context: Map<String, Json> = Map::new();
        context.insert("documents".to_owned(), Json::Null);
        for (key, value) in chat.kwargs.into_iter().flatten() {
            if RESERVED.contains(&key.as_str()) || self.environment.globals().any(|(name, _)| name == key) {
                return Err(TemplateError::Reserved(key.clone()));
            }
            context.insert(key.clone(), self.guard.shield(value));
        }
        let mut messages = chat.messages.iter().map(|message| self.guard.shield(message)).collect();
        note.into_iter().for_each(|note| note.put(chat.messages, &mut messages));
        let tools = chat.tools.iter().map(|tool| self.guard.shield(tool)).collect();
        context.extend([
            ("messages".to_owned(), Json::Array(messages)),
            ("tools".to_owned(), if chat.tools.is_empty() { Json::Null } else { Json::Array(tools) }),
            ("add_generation_prompt".to_owned(), chat.add_generation_prompt.into()),
        ]);
        let mut context: Vec<(String, Value)> =
            context.into_iter().map(|(key, value)| (key, Value::from_serialize(&value))).collect();
        let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let strftime_now = move |format: &str| clock::strftime(format, seconds);
        context.push(("strftime_now".to_owned(), Value::from_function(strftime_now)));
        for (name, token) in [("bos_token", &self.bos), ("eos_token", &self.eos)] {
            context.push((name.to_owned(), Value::from(token.as_deref())));
        }
        let context: Value = context.into_iter().collect();

        let template = self.environment.get_template(NAME).map_err(|e| error(&e, &self.guard))?;
        let mut out = Limited(Vec::new());
        let rendering = || template.render_captured_to(context, &mut out).map_err(|e| error(&e, &self.guard));
        caught(rendering)?;
        let text = String::from_utf8_lossy(&out.0);
        Ok(Rendered { pieces: self.guard.pieces(&text) })
    }
}

impl Place<'_> {
    /// Puts the note into `shielded`, which is `messages` as templates get them.
    fn put(self, messages: &[Json], shielded: &mut Vec<Json>) {
        match self {
            Self::System(note) => match shielded.first_mut() {
                Some(first) if messages.first().is_some_and(|message| is_of(message, "system")) => {
                    let said = first.get("content").and_then(Json::as_str).unwrap_or_default();
                    let said = if said.is_empty() { note.to_owned() } else { format!("{said}\n\n{note}") };
                    first["content"] = said.into();
                }
                _ => shielded.insert(0, json!({"role": "system", "content": note})),
            },
            Self::User(note) => {
                let first = messages.iter().position(|message| is_of(message, "user"));
                if let Some(first) = first.and_then(|at| shielded.get_mut(at)) {
                    let said = first.get("content").and_then(Json::as_str).unwrap_or_default();
                    first["content"] = format!("{note}\n\n{said}").into();
                }
            }
        }
    }
}

fn is_of(message: &Json, role: &str) -> bool {
    message.get("role").is_some_and(|value| value == role)
}

/// Runs the engine. It has faults, among them that of nothing in reverse, `''[::-1]`: those panics are errors.
fn caught<T>(run: impl FnOnce() -> Result<T, TemplateError>) -> Result<T, TemplateError> {
    // What a panic leaves behind is dropped, or is an environment without the template.
    catch_unwind(AssertUnwindSafe(run)).unwrap_or(Err(TemplateError::Engine))
}

/// A writer that refuses more than [`OUTPUT_BYTES_MAX`].
struct Limited(Vec<u8>);

impl io::Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.len() > OUTPUT_BYTES_MAX - self.0.len() {
            return Err(io::Error::other("too long"));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What `raise_exception` leaves in an error's chain.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct RaisedMessage(String);

fn raise_exception(message: String) -> Result<Value, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, "raise_exception")
        .with_source(RaisedMessage(message)))
}

fn error(error: &minijinja::Error, guard: &Guard) -> TemplateError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(e) = cause {
        if let Some(RaisedMessage(message)) = e.downcast_ref() {
            return TemplateError::Raised(guard.unmark(message));
        }
        cause = e.source();
    }
    let line = error.line().unwrap_or(0);
    let detail = guard.unmark(error.detail().map_or(error.kind().to_string(), str::to_owned).as_str());
    match error.kind() {
        ErrorKind::OutOfFuel => TemplateError::OutOfFuel,
        ErrorKind::WriteFailure => TemplateError::TooLong,
        ErrorKind::SyntaxError | ErrorKind::BadEscape => TemplateError::Syntax { line, detail },
        kind if error.detail().is_some() => {
            TemplateError::Render { line, detail: format!("{kind}: {detail}") }
        }
        _ => TemplateError::Render { line, detail },
    }
}

#[cfg(test)]
mod tests;
