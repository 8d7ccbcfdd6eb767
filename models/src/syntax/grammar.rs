//! Which answers are calls, as a grammar in llguidance's dialect of Lark.
//!
//! Made only where the syntax alone is not trusted: a call is required, arguments must follow their schemas, or there must be one call at
//! most. Reasoning comes first where the model reasons, free but for its marks.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::pairs::{self, Style};
use super::parameters::Parameters;
use super::permits::Permits;
use super::{Calls, Section, Syntax, Tool, harmony};
use crate::constraint::{COMPOSED_BYTES_MAX, ConstraintError, Schemas, lark_literal, says_nothing, terminal};
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
    let mut writer = Writer { tokenizer, rules: String::new(), answers, schemas: Schemas::default() };
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
    schemas: Schemas,
}

/// An argument in tags.
struct Pair<'a> {
    style: Style,
    /// Its rule's.
    name: String,
    /// What comes before its value.
    head: String,
    /// Of the tool, and within it of the value.
    root: &'a Value,
    schema: &'a Value,
    strict: bool,
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
        self.some_up_to(name, ANYTHING, mark);
    }

    /// The same for a text of a terminal.
    fn some_up_to(&mut self, name: &str, terminal: &str, mark: &str) {
        match self.tokenizer.control_marks(mark).as_slice() {
            [Mark::Text(text)] => {
                let mark = lark_literal(text);
                let mut within = terminal.to_owned();
                if terminal != ANYTHING {
                    // One that the text before the mark does not fulfil must not go on behind it.
                    within = format!("{}_WITHIN", name.to_uppercase());
                    self.rule(&within, "", &format!("{terminal} & ~({ANYTHING} {mark} {ANYTHING})"));
                }
                self.rule(name, &format!("[suffix={mark}]"), &within);
            }
            _ => {
                let mark = self.literal(mark);
                self.rule(name, "", &format!("{terminal} {mark}"));
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
            Calls::Pairs(style) => self.pairs(style),
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
            let schema = self.arguments(tool)?;
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

    /// Calls whose arguments stand in tags. Where there may be text, a call that lacks its opening mark is held to its schema too.
    fn pairs(&mut self, style: Style) -> Result<String, GrammarError> {
        let function = self.functions(style)?;
        self.rule("function", "", &function);
        // A literal each, as the lexer does not go back to where two of them part.
        let (head, tail) = match style {
            Style::Function => (
                lark_literal(&format!("\n{}", pairs::FUNCTION)),
                self.literal(&format!("\n{}", pairs::CLOSE)),
            ),
            Style::Keys => (String::new(), self.literal(pairs::CLOSE)),
        };
        let between = format!("\"\\n\" {}", self.literal(pairs::OPEN));
        let marked = self.marked(pairs::OPEN, &format!("{head} function {tail}"), &between);
        if style == Style::Keys || self.answers.required || self.answers.content.is_some() {
            return Ok(marked);
        }
        self.up_to("bare", pairs::FUNCTION);
        let more = if self.answers.parallel { format!(" ({head} function)*") } else { String::new() };
        Ok(format!("({marked} | bare function{more} ({tail})?)"))
    }

    /// Behind a call's marks: each function. One whose schema cannot be enforced and need not be takes any arguments it knows.
    fn functions(&mut self, style: Style) -> Result<String, GrammarError> {
        let mut all = Vec::with_capacity(self.answers.tools.len());
        for (i, tool) in self.answers.tools.iter().enumerate() {
            let before = (self.rules.len(), self.schemas);
            let call = match self.function(style, i, tool, true) {
                Err(_) if !tool.strict => {
                    self.rules.truncate(before.0);
                    self.schemas = before.1;
                    self.function(style, i, tool, false)
                }
                call => call,
            };
            all.push(call.map_err(|source| GrammarError::Schema { tool: tool.name.clone(), source })?);
        }
        Ok(format!("({})", all.join(" | ")))
    }

    /// One argument behind the other in the schema's order, those not required left out at will; then others, if there may be any.
    fn function(
        &mut self,
        style: Style,
        i: usize,
        tool: &Tool,
        enforced: bool,
    ) -> Result<String, ConstraintError> {
        static NONE: Value = Value::Null;
        let (head, tail) = match style {
            Style::Function => (format!("{}>\n", tool.name), pairs::FUNCTION_END),
            Style::Keys => (format!("{}\n", tool.name), ""),
        };
        let mut call = lark_literal(&head);
        let root = tool.parameters.as_ref().unwrap_or(&NONE);
        let parameters = Parameters::of(root);
        if let Some(keyword) = parameters.unfollowed.filter(|_| tool.strict) {
            let why = format!("'{keyword}' beside the arguments is not enforced in text that is no JSON");
            return Err(ConstraintError::Refused(why));
        }
        let named = parameters.named.iter().enumerate().map(|(j, named)| {
            let repeated = if named.needed { "" } else { "?" };
            (format!("pair_{i}_{j}"), self.head(style, Some(named.key)), named.schema, repeated)
        });
        let others =
            parameters.others.map(|schema| (format!("pair_{i}_others"), self.head(style, None), schema, "*"));
        for (name, head, schema, repeated) in named.chain(others).collect::<Vec<_>>() {
            write!(call, " {name}{repeated}").expect("a string takes all");
            self.pair(&Pair { style, name, head, root, schema, strict: tool.strict }, enforced)?;
            // Each property brings along all that it might refer to: what is too much ends here, not when it is compiled.
            if self.rules.len() > COMPOSED_BYTES_MAX {
                return Err(ConstraintError::Refused("its grammar is too large".to_owned()));
            }
        }
        if !tail.is_empty() {
            write!(call, " {}", lark_literal(tail)).expect("a string takes all");
        }
        Ok(call)
    }

    /// What comes before the value of an argument of this name, or of any.
    fn head(&self, style: Style, key: Option<&str>) -> String {
        let (before, behind) = match style {
            Style::Function => (pairs::PARAMETER, ">\n"),
            Style::Keys => (pairs::ARG_KEY, "</arg_key>\n<arg_value>"),
        };
        match key {
            Some(key) => self.literal(&format!("{before}{key}{behind}")),
            None => format!("{} /[^<>\\n]{{1,64}}/ {}", self.literal(before), self.literal(behind)),
        }
    }

    /// The rule of one argument: text up to its tag, or one of a few texts, or JSON.
    fn pair(&mut self, pair: &Pair<'_>, enforced: bool) -> Result<(), ConstraintError> {
        let end = match pair.style {
            Style::Function => "\n</parameter>",
            Style::Keys => "</arg_value>",
        };
        let Pair { name, head, root, schema, .. } = pair;
        let permits = Permits::of(root, schema).unwrap_or_default();
        let value = format!("{name}_value");
        let words = permits.words().filter(|_| !says_nothing(schema));
        let Some(words) = words else {
            match text(&permits) {
                Ok(Some(right)) if enforced => {
                    let terminal = value.to_uppercase();
                    self.rule(&terminal, "", &right);
                    self.some_up_to(&value, &terminal, end);
                }
                Err(why) if enforced && pair.strict => return Err(why),
                _ => self.up_to(&value, end),
            }
            self.rule(name, "", &format!("{head} {value} \"\\n\""));
            return Ok(());
        };
        if pair.strict {
            permits.limits().map_err(|why| ConstraintError::Refused(why.to_owned()))?;
        }
        let json = words.is_empty() || permits.may_be_json();
        let null = (permits.null && !json).then_some("null");
        let mut all: Vec<String> = words.iter().copied().chain(null).map(lark_literal).collect();
        if json {
            all.push(match enforced {
                true => self.schema(&alone(root, schema), pair.strict)?,
                false => self.schema(&json!({}), true)?,
            });
        }
        self.rule(&value, "", &all.join(" | "));
        let end = self.literal(&format!("{end}\n"));
        self.rule(name, "", &format!("{head} {value} {end}"));
        Ok(())
    }

    /// The rule of a function's arguments. A schema that cannot be enforced and need not be is any object.
    fn arguments(&mut self, tool: &Tool) -> Result<String, GrammarError> {
        let any = json!({"type": "object"});
        match self.schema(tool.parameters.as_ref().unwrap_or(&any), tool.strict) {
            Err(_) if !tool.strict => self.schema(&any, true).map_err(GrammarError::Answer),
            rule => rule.map_err(|source| GrammarError::Schema { tool: tool.name.clone(), source }),
        }
    }

    fn schema(&mut self, schema: &Value, strict: bool) -> Result<String, ConstraintError> {
        if strict { self.schemas.rule(schema) } else { self.schemas.rule_loosely(schema) }
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

/// A part of a schema as a schema of its own, with what it may refer to.
fn alone(root: &Value, part: &Value) -> Value {
    let mut alone = part.clone();
    if let Some(object) = alone.as_object_mut()
        && part.to_string().contains("\"$ref\"")
    {
        for key in ["$defs", "definitions"] {
            if let Some(definitions) = root.get(key) {
                object.entry(key).or_insert_with(|| definitions.clone());
            }
        }
    }
    alone
}

/// A terminal for the strings that an argument may be; None: any.
fn text(permits: &Permits<'_>) -> Result<Option<String>, ConstraintError> {
    let limits = permits.limits().map_err(|why| ConstraintError::Refused(why.to_owned()))?;
    let Some(limits) = limits else { return Ok(None) };
    let mut all = limits.iter().map(|schema| terminal(schema)).collect::<Result<Vec<_>, _>>()?;
    let words = permits.words.iter().copied().chain(permits.null.then_some("null"));
    all.extend(words.map(lark_literal));
    Ok(Some(all.join(" | ")))
}
