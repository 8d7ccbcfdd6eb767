//! Which answers are calls, as a grammar in llguidance's dialect of Lark.
//!
//! Made only where the syntax alone is not trusted: a call is required, arguments must follow their schemas, or there must be one call at
//! most. Reasoning comes first where the model reasons, free but for its marks.

use std::fmt::Write as _;

use serde_json::Value;

use super::pairs::{self, Style};
use super::{Calls, Section, Syntax, Tool, harmony};
use crate::constraint::{ConstraintError, json_in_lark, lark_literal};
use crate::tokenizer::{Mark, Tokenizer};

/// Why there is no grammar.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GrammarError {
    /// A strict tool's schema is refused.
    #[error("the parameters of function '{tool}': {source}")]
    Schema {
        /// Which.
        tool: String,
        /// Why.
        source: ConstraintError,
    },
    /// The schema of the answer is refused.
    #[error(transparent)]
    Answer(ConstraintError),
    /// The model's template says nothing of calls.
    #[error("this model's chat template has no tools")]
    NoCalls,
}

/// Which answers there may be.
#[derive(Clone, Debug)]
pub struct Answers<'a> {
    /// Functions that may be called.
    pub tools: &'a [Tool],
    /// There must be a call.
    pub required: bool,
    /// There may be more than one.
    pub parallel: bool,
    /// What an answer without a call must be, as the right side of a rule; None: any text. Without tools it must be there.
    pub content: Option<&'a str>,
    /// The prompt ended amid reasoning.
    pub in_reasoning: bool,
    /// There may be reasoning.
    pub reasoning: bool,
}

/// The grammar of `answers` in a syntax.
///
/// # Errors
/// If a schema that must be followed is refused, or the model has no calls.
pub fn grammar(
    syntax: &Syntax,
    answers: &Answers<'_>,
    tokenizer: &Tokenizer,
) -> Result<String, GrammarError> {
    let mut writer = Writer { tokenizer, rules: String::new(), answers };
    let body = writer.body(syntax.calls)?;
    let start = writer.reasoning(syntax) + &body;
    Ok(format!("start: {start}\n{}", writer.rules))
}

/// Any text without control tokens.
const ANYTHING: &str = "/(.|\\n)*/";

struct Writer<'a> {
    tokenizer: &'a Tokenizer,
    rules: String,
    answers: &'a Answers<'a>,
}

impl Writer<'_> {
    fn rule(&mut self, name: &str, attributes: &str, right: &str) {
        writeln!(self.rules, "{name}{attributes}: {right}").expect("a string takes all");
    }

    /// A text as the vocabulary has it: control tokens by their number, the rest literally.
    fn literal(&self, text: &str) -> String {
        let marks = self.tokenizer.control_marks(text);
        let parts = marks.into_iter().map(|mark| match mark {
            Mark::Text(text) => lark_literal(text),
            Mark::Control(id) => format!("<[{}]>", id.0),
        });
        parts.collect::<Vec<_>>().join(" ")
    }

    /// A rule for any text up to and with `mark`, at its first appearance.
    fn up_to(&mut self, name: &str, mark: &str) {
        match self.tokenizer.control_marks(mark).as_slice() {
            [Mark::Text(text)] => {
                let attributes = format!("[suffix={}]", lark_literal(text));
                self.rule(name, &attributes, ANYTHING);
            }
            _ => {
                let mark = self.literal(mark);
                self.rule(name, "", &format!("{ANYTHING} {mark}"));
            }
        }
    }

    /// What may come before the answer proper, with a space behind it.
    fn reasoning(&mut self, syntax: &Syntax) -> String {
        let Some(marks) = syntax.reasoning.filter(|_| self.answers.reasoning) else { return String::new() };
        self.up_to("reasoning", marks.close);
        self.rule("space", "", "/[ \\n]{0,4}/");
        match self.answers.in_reasoning {
            true => "reasoning space ".to_owned(),
            false => format!("({} reasoning space)? ", self.literal(marks.open)),
        }
    }

    fn body(&mut self, calls: Option<Calls>) -> Result<String, GrammarError> {
        if self.answers.tools.is_empty() && calls != Some(Calls::Harmony) {
            self.rule("content", "", self.answers.content.unwrap_or(ANYTHING));
            return Ok("content".to_owned());
        }
        match calls.ok_or(GrammarError::NoCalls)? {
            Calls::Objects { open, close } => {
                let close = self.literal(&format!("\n{close}"));
                let call = self.objects("arguments", &format!("\"\\n\" {{}} {close}"))?;
                Ok(self.marked(open, &call, &format!("\"\\n\" {}", self.literal(open))))
            }
            Calls::List { open } => {
                let object = self.objects("arguments", "{}")?;
                let more = if self.answers.parallel { format!("(\", \" {object})*") } else { String::new() };
                let call = format!("\" \"? \"[\" {object} {more} \"]\"");
                Ok(self.marked_once(open, &call))
            }
            Calls::Bare { .. } => {
                let call = self.objects("parameters", "{}")?;
                Ok(self.unmarked(&call))
            }
            Calls::Inline { open, separator, .. } => {
                let call = self.named(|writer, name| writer.literal(&format!("{name}{separator}")), "")?;
                Ok(self.marked(open, &call, &self.literal(open)))
            }
            Calls::Section(section) => self.section(&section),
            Calls::Pairs(style) => {
                let call = self.pairs(style)?;
                Ok(self.marked(pairs::OPEN, &call, &format!("\"\\n\" {}", self.literal(pairs::OPEN))))
            }
            Calls::Harmony => self.harmony(),
        }
    }

    /// An answer that is calls behind `open`, or else content. `between` repeats the mark.
    fn marked(&mut self, open: &str, call: &str, between: &str) -> String {
        self.rule("call", "", call);
        let more = if self.answers.parallel { format!(" ({between} call)*") } else { String::new() };
        self.choice(open, &format!("call{more}"))
    }

    /// The same where the mark stands once before all calls.
    fn marked_once(&mut self, open: &str, calls: &str) -> String {
        self.rule("call", "", calls);
        self.choice(open, "call")
    }

    fn choice(&mut self, open: &str, calls: &str) -> String {
        let mark = self.literal(open);
        match (self.answers.required, self.answers.content) {
            (true, _) => format!("{mark} {calls}"),
            (false, Some(content)) => {
                self.rule("content", "", content);
                format!("(content | {mark} {calls})")
            }
            (false, None) => {
                // Text ends where the mark begins: then there is no way back.
                self.up_to("lead", open);
                format!("({ANYTHING} | lead {calls})")
            }
        }
    }

    /// An answer that is calls, or else content that begins differently.
    fn unmarked(&mut self, call: &str) -> String {
        self.rule("call", "", call);
        let more = if self.answers.parallel { " (\"; \" call)*" } else { "" };
        match (self.answers.required, self.answers.content) {
            (true, _) => format!("call{more}"),
            (false, Some(content)) => {
                self.rule("content", "", content);
                format!("(content | call{more})")
            }
            (false, None) => format!("(/[^{{ \\n](.|\\n)*/ | call{more})"),
        }
    }

    /// A rule for each function's arguments; calls `one` with its index to write a call.
    fn each(
        &mut self,
        mut one: impl FnMut(&mut Self, &Tool, &str) -> String,
    ) -> Result<String, GrammarError> {
        let mut all = Vec::with_capacity(self.answers.tools.len());
        for (i, tool) in self.answers.tools.iter().enumerate() {
            let name = format!("arguments_{i}");
            let schema = arguments(tool)?;
            self.rule(&name, "", &schema);
            all.push(one(self, tool, &name));
        }
        Ok(format!("({})", all.join(" | ")))
    }

    /// `{"name": .., key: ..}`, in place of `{}` in `around`.
    fn objects(&mut self, key: &str, around: &str) -> Result<String, GrammarError> {
        let object = self.each(|_, tool, arguments| {
            let head = format!("{{\"name\": {}, \"{key}\": ", Value::from(tool.name.as_str()));
            format!("{} {arguments} \"}}\"", lark_literal(&head))
        })?;
        Ok(around.replace("{}", &object))
    }

    /// A head made of the name, the arguments, and a tail.
    fn named(&mut self, head: impl Fn(&Self, &str) -> String, tail: &str) -> Result<String, GrammarError> {
        self.each(|writer, tool, arguments| format!("{} {arguments} {tail}", head(writer, &tool.name)))
    }

    fn section(&mut self, section: &Section) -> Result<String, GrammarError> {
        let tail = self.literal(section.end);
        let head = |writer: &Self, name: &str| {
            let (begin, separator) = (section.begin, section.separator);
            match section.numbered {
                false => writer.literal(&format!("{begin}{name}{separator}")),
                true => {
                    let (name, separator) =
                        (writer.literal(&format!("{begin}functions.{name}:")), writer.literal(separator));
                    format!("{name} /[0-9]{{1,2}}/ {separator}")
                }
            }
        };
        let one = self.named(head, &tail)?;
        let close = self.literal(section.close);
        self.rule("one", "", &one);
        let more = if self.answers.parallel { " (\"\\n\"? one)*" } else { "" };
        Ok(self.marked_once(section.open, &format!("one{more} {close}")))
    }

    /// One argument behind the other in the schema's order, those not required left out at will.
    fn pairs(&mut self, style: Style) -> Result<String, GrammarError> {
        let mut all = Vec::with_capacity(self.answers.tools.len());
        for (i, tool) in self.answers.tools.iter().enumerate() {
            let mut call = match style {
                Style::Function => lark_literal(&format!("\n<function={}>\n", tool.name)),
                Style::Keys => lark_literal(&format!("{}\n", tool.name)),
            };
            let schema = tool.parameters.as_ref();
            let properties = schema.and_then(|s| s.get("properties")).and_then(Value::as_object);
            for (j, (key, property)) in properties.into_iter().flatten().enumerate() {
                let name = format!("pair_{i}_{j}");
                let pair = self
                    .pair(style, &name, key, property, tool)
                    .map_err(|source| GrammarError::Schema { tool: tool.name.clone(), source })?;
                self.rule(&name, "", &pair);
                let required = schema.and_then(|s| s.get("required")).and_then(Value::as_array);
                let needed = required.is_some_and(|names| names.iter().any(|n| n == key));
                write!(call, " {name}{}", if needed { "" } else { "?" }).expect("a string takes all");
            }
            let tail = match style {
                Style::Function => format!("</function>\n{}", pairs::CLOSE),
                Style::Keys => pairs::CLOSE.to_owned(),
            };
            all.push(format!("{call} {}", self.literal(&tail)));
        }
        Ok(format!("({})", all.join(" | ")))
    }

    fn pair(
        &mut self,
        style: Style,
        name: &str,
        key: &str,
        property: &Value,
        tool: &Tool,
    ) -> Result<String, ConstraintError> {
        let schema = tool.parameters.as_ref();
        let (head, end, tail) = match style {
            Style::Function => (format!("<parameter={key}>\n"), "\n</parameter>", "\n"),
            Style::Keys => (format!("<arg_key>{key}</arg_key>\n<arg_value>"), "</arg_value>", "\n"),
        };
        let value = format!("{name}_value");
        if pairs::is_text(schema, key) && property.get("enum").is_none() {
            self.up_to(&value, end);
            return Ok(format!("{} {value} {}", self.literal(&head), lark_literal(tail)));
        }
        let right =
            match property.get("enum").and_then(Value::as_array).filter(|_| pairs::is_text(schema, key)) {
                Some(choices) => {
                    choices.iter().filter_map(Value::as_str).map(lark_literal).collect::<Vec<_>>().join(" | ")
                }
                None => match json_in_lark(property) {
                    Err(_) if !tool.strict => json_in_lark(&Value::Object(serde_json::Map::new()))?,
                    rule => rule?,
                },
            };
        self.rule(&value, "", &right);
        Ok(format!("{} {value} {}", self.literal(&head), self.literal(&format!("{end}{tail}"))))
    }

    fn harmony(&mut self) -> Result<String, GrammarError> {
        let Answers { required, content, reasoning, .. } = *self.answers;
        let (channel, message) = (harmony::CHANNEL, harmony::MESSAGE);
        let constrain = harmony::CONSTRAIN;
        let head = |writer: &Self, name: &str| {
            writer.literal(&format!("{channel}commentary to=functions.{name} {constrain}json{message}"))
        };
        let tools = !self.answers.tools.is_empty();
        if tools {
            let call = self.named(head, "")?;
            self.rule("call", "", &call);
        }
        let mut start = String::new();
        if reasoning {
            self.up_to("analysis", "<|end|>");
            let (open, next) =
                (self.literal(&format!("{channel}analysis{message}")), self.literal("<|start|>assistant"));
            start = format!("({open} analysis {next})* ");
        }
        if required && tools {
            return Ok(start + "call");
        }
        let last = self.literal(&format!("{channel}final{message}"));
        self.rule("content", "", content.unwrap_or(ANYTHING));
        Ok(format!("{start}({}{last} content)", if tools { "call | " } else { "" }))
    }
}

/// The rule of a function's arguments. A schema that cannot be enforced and need not be is any object.
fn arguments(tool: &Tool) -> Result<String, GrammarError> {
    let any = Value::Object([("type".to_owned(), Value::from("object"))].into_iter().collect());
    let Some(schema) = &tool.parameters else { return json_in_lark(&any).map_err(GrammarError::Answer) };
    match json_in_lark(schema) {
        Ok(rule) => Ok(rule),
        Err(_) if !tool.strict => json_in_lark(&any).map_err(GrammarError::Answer),
        Err(source) => Err(GrammarError::Schema { tool: tool.name.clone(), source }),
    }
}
