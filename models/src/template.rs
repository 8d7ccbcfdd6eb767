//! Chat templates: Jinja from the model file, from messages to the text that a model was trained on.
//!
//! Law: whatever messages contain, the control tokens in a [`Rendered`] are those that the template wrote, and its
//! text pieces hold the messages' own characters. See `guard` for how.
//!
//! A template comes with the model file, so it is bounded: in instructions, in output, in recursion. What it may
//! hold in variables while it runs is not bounded beyond what those instructions can build.

mod clock;
mod filters;
mod guard;

use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::value::Value;
use minijinja::{AutoEscape, Environment, ErrorKind};
use serde_json::{Map, Value as Json};

use self::guard::Guard;
use crate::gguf::{Gguf, GgufError};

/// Where model files keep it.
pub const TEMPLATE_KEY: &str = "tokenizer.chat_template";

/// Instructions one rendering may take: some seconds at worst, a thousand times what long conversations need.
const FUEL: u64 = 10_000_000;
/// Bytes one rendering may give.
const OUTPUT_BYTES_MAX: usize = 64 << 20;
/// Nested macro calls and includes.
const RECURSION_MAX: usize = 100;
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
    /// It ran for too long.
    #[error("the chat template took more than {FUEL} instructions")]
    OutOfFuel,
    /// It wrote too much.
    #[error("the chat template wrote more than {OUTPUT_BYTES_MAX} bytes")]
    TooLong,
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
    environment: Environment<'static>,
    guard: Guard,
    bos: Option<String>,
    eos: Option<String>,
}

impl ChatTemplate {
    /// Compiles a template for a vocabulary.
    ///
    /// ```
    /// use frugal_models::template::{ChatTemplate, TemplateTokens};
    /// let source = "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}{% endfor %}";
    /// let tokens = TemplateTokens { control: vec!["<s>".to_owned()], ..Default::default() };
    /// let messages = [serde_json::json!({"role": "user", "content": "Hi <s>"})];
    /// let rendered = ChatTemplate::new(source, tokens)?.render(&messages, Default::default(), true)?;
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
        environment.add_filter("tojson", filters::tojson);
        environment.add_function("raise_exception", raise_exception);
        environment.add_template_owned(NAME, guard.mark_source(source)).map_err(|e| error(&e, &guard))?;
        let mark = |text: Option<String>| text.map(|text| guard.mark(&text));
        Ok(Self { bos: mark(tokens.bos), eos: mark(tokens.eos), environment, guard })
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

    /// Renders messages: JSON objects with at least `role` and what goes with it (`content` ...). `extra` are more
    /// variables (`tools`, `enable_thinking` ...); as in transformers, `tools` and `documents` are none if not given.
    ///
    /// # Errors
    /// If the template refuses the messages, fails, or does not end within its bounds.
    pub fn render(
        &self,
        messages: &[Json],
        extra: Map<String, Json>,
        add_generation_prompt: bool,
    ) -> Result<Rendered, TemplateError> {
        self.render_at(messages, extra, add_generation_prompt, SystemTime::now())
    }

    /// The same at a given time, which only templates that write the date see (`strftime_now`, in UTC).
    ///
    /// # Errors
    /// As [`ChatTemplate::render`].
    pub fn render_at(
        &self,
        messages: &[Json],
        extra: Map<String, Json>,
        add_generation_prompt: bool,
        now: SystemTime,
    ) -> Result<Rendered, TemplateError> {
        let mut variables: Map<String, Json> = Map::new();
        variables.insert("tools".to_owned(), Json::Null);
        variables.insert("documents".to_owned(), Json::Null);
        variables.extend(extra.into_iter().map(|(key, value)| (key, self.guard.shield(&value))));
        let messages: Vec<Json> = messages.iter().map(|m| self.guard.shield(m)).collect();
        let mut context: Vec<(String, Value)> =
            variables.iter().map(|(key, value)| (key.clone(), Value::from_serialize(value))).collect();
        let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let strftime_now = move |format: &str| clock::strftime(format, seconds);
        context.extend([
            ("messages".to_owned(), Value::from_serialize(&messages)),
            ("add_generation_prompt".to_owned(), Value::from(add_generation_prompt)),
            ("bos_token".to_owned(), Value::from(self.bos.as_deref())),
            ("eos_token".to_owned(), Value::from(self.eos.as_deref())),
            ("strftime_now".to_owned(), Value::from_function(strftime_now)),
        ]);
        let context: Value = context.into_iter().collect();

        let template = self.environment.get_template(NAME).map_err(|e| error(&e, &self.guard))?;
        let mut out = Limited(Vec::new());
        template.render_captured_to(context, &mut out).map_err(|e| error(&e, &self.guard))?;
        let text = String::from_utf8_lossy(&out.0);
        Ok(Rendered { pieces: self.guard.pieces(&text) })
    }
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
