//! How families of models write reasoning and tool calls.
//!
//! A model's chat template tells its family: it writes calls of earlier turns in the form that the model was trained to write them.
//! [`Syntax`] is what a template said; [`Reader`] takes an answer apart as it grows; [`grammar()`] says which answers are calls.
//! To add a family is to add a row to [`FAMILIES`], and a file only if it is of a new kind.
//!
//! Absent on purpose: HTTP, and what ids calls get.

mod call;
mod grammar;
mod harmony;
mod marks;
mod pairs;
mod parameters;
mod permits;
mod reader;
mod scan;
mod shown;
#[cfg(test)]
mod tests;

use serde_json::Value;

pub use self::grammar::{Answers, GrammarError, grammar};
pub(crate) use self::harmony::CHANNEL;
pub use self::reader::{Part, Reader};

/// A function that the model may call.
#[derive(Clone, Debug, PartialEq)]
pub struct Tool {
    /// Its name.
    pub name: String,
    /// JSON schema of its arguments, an object; None: any object.
    pub parameters: Option<Value>,
    /// Arguments must follow the schema.
    pub strict: bool,
}

/// What encloses reasoning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marks {
    /// Before it.
    pub open: &'static str,
    /// Behind it.
    pub close: &'static str,
}

/// How calls are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Calls {
    /// For each call `open {"name": .., "arguments": {..}} close`.
    Objects { open: &'static str, close: &'static str },
    /// `open [{"name": .., "arguments": {..}}, ..]`.
    List { open: &'static str },
    /// The answer is one object `{"name": .., "parameters": {..}}`, perhaps behind `tag`; more behind a `;`.
    Bare { tag: &'static str },
    /// For each call `open name separator {..}`; an id may stand between `id` and the separator.
    Inline { open: &'static str, id: &'static str, separator: &'static str },
    /// `open`, then for each call `begin name separator {..} end`, then `close`.
    Section(Section),
    /// For each call `<tool_call>`, the name and its arguments one by one in tags, `</tool_call>`.
    Pairs(pairs::Style),
    /// Messages to recipients.
    Harmony,
}

/// The marks of [`Calls::Section`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Section {
    open: &'static str,
    begin: &'static str,
    separator: &'static str,
    end: &'static str,
    close: &'static str,
    /// Names are written `functions.name:index`, and that is the call's id (Kimi).
    numbered: bool,
}

/// A row of [`FAMILIES`].
struct Family {
    /// What its template contains, all of it.
    template: &'static [&'static str],
    calls: Calls,
}

/// The most telling first: some templates contain what others are known by.
const FAMILIES: &[Family] = &[
    // gpt-oss.
    Family { template: &["<|start|>", "<|channel|>"], calls: Calls::Harmony },
    // Kimi K2.
    Family {
        template: &["<|tool_calls_section_begin|>"],
        calls: Calls::Section(Section {
            open: "<|tool_calls_section_begin|>",
            begin: "<|tool_call_begin|>",
            separator: "<|tool_call_argument_begin|>",
            end: "<|tool_call_end|>",
            close: "<|tool_calls_section_end|>",
            numbered: true,
        }),
    },
    // DeepSeek V3 and R1.
    Family {
        template: &["<｜tool▁calls▁begin｜>", "```json"],
        calls: Calls::Section(Section {
            open: "<｜tool▁calls▁begin｜>",
            begin: "<｜tool▁call▁begin｜>function<｜tool▁sep｜>",
            separator: "\n```json\n",
            end: "\n```<｜tool▁call▁end｜>",
            close: "<｜tool▁calls▁end｜>",
            numbered: false,
        }),
    },
    // DeepSeek V3.1.
    Family {
        template: &["<｜tool▁calls▁begin｜>"],
        calls: Calls::Section(Section {
            open: "<｜tool▁calls▁begin｜>",
            begin: "<｜tool▁call▁begin｜>",
            separator: "<｜tool▁sep｜>",
            end: "<｜tool▁call▁end｜>",
            close: "<｜tool▁calls▁end｜>",
            numbered: false,
        }),
    },
    // Qwen3-Coder.
    Family { template: &["<tool_call>", "<function="], calls: Calls::Pairs(pairs::Style::Function) },
    // GLM 4.5.
    Family { template: &["<tool_call>", "<arg_key>"], calls: Calls::Pairs(pairs::Style::Keys) },
    // Hermes, Qwen 2.5 and 3, Granite 4, SmolLM3.
    Family {
        template: &["<tool_call>"],
        calls: Calls::Objects { open: "<tool_call>", close: "</tool_call>" },
    },
    // Mistral from tokenizer version 11 on.
    Family {
        template: &["[TOOL_CALLS]", "[ARGS]"],
        calls: Calls::Inline { open: "[TOOL_CALLS]", id: "[CALL_ID]", separator: "[ARGS]" },
    },
    // Mistral before.
    Family { template: &["[TOOL_CALLS]"], calls: Calls::List { open: "[TOOL_CALLS]" } },
    // Granite 3.
    Family { template: &["<|tool_call|>"], calls: Calls::List { open: "<|tool_call|>" } },
    // Llama 3.1 to 3.3.
    Family {
        template: &["\"parameters\": dictionary of argument"],
        calls: Calls::Bare { tag: "<|python_tag|>" },
    },
];

/// What encloses reasoning, by what the template contains.
const REASONING: &[Marks] = &[
    Marks { open: "<think>", close: "</think>" },
    // Magistral.
    Marks { open: "[THINK]", close: "[/THINK]" },
];

/// What a chat template says of a model's answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Syntax {
    calls: Option<Calls>,
    reasoning: Option<Marks>,
}

impl Syntax {
    /// From the source of a chat template.
    pub fn of_template(source: &str) -> Self {
        let family = FAMILIES.iter().find(|row| row.template.iter().all(|text| source.contains(text)));
        let calls = family.map(|row| row.calls);
        let marks = REASONING.iter().find(|m| source.contains(m.open) || source.contains(m.close));
        let reasoning = marks.copied().filter(|_| calls != Some(Calls::Harmony));
        Self { calls, reasoning }
    }

    /// The same for a model whose template knows no calls: it is told to write them as Hermes does.
    #[must_use]
    pub fn with_calls(self) -> Self {
        let told = Calls::Objects { open: "<tool_call>", close: "</tool_call>" };
        Self { calls: self.calls.or(Some(told)), ..self }
    }

    /// What encloses reasoning.
    pub fn reasoning(&self) -> Option<Marks> {
        match self.calls {
            Some(Calls::Harmony) => Some(harmony::REASONING),
            _ => self.reasoning,
        }
    }

    /// Whether the model was taught to call tools.
    pub fn has_calls(&self) -> bool {
        self.calls.is_some()
    }

    /// Whether calls bring ids of their own, or need ones of nine letters and digits.
    pub fn ids(&self) -> Ids {
        match self.calls {
            Some(Calls::Section(Section { numbered: true, .. })) => Ids::Numbered,
            Some(Calls::List { open: "[TOOL_CALLS]" } | Calls::Inline { .. }) => Ids::Nine,
            _ => Ids::Any,
        }
    }

    /// Whether an answer that follows `prompt`, the rendered template, begins amid reasoning: the template opened it.
    pub fn begins_in_reasoning(&self, prompt: &str) -> bool {
        self.reasoning.is_some_and(|marks| prompt.trim_end().ends_with(marks.open))
    }

    /// Every text that means something to [`Reader`]: control tokens among them have to be passed to it as they are written.
    pub fn marks(&self) -> Vec<&'static str> {
        let calls: &[&'static str] = match &self.calls {
            None => &[],
            Some(Calls::Objects { open, close }) => &[open, close],
            Some(Calls::List { open }) => &[open],
            Some(Calls::Bare { tag }) => &[tag],
            Some(Calls::Inline { open, id, separator }) => &[open, id, separator],
            Some(Calls::Section(s)) => &[s.open, s.begin, s.separator, s.end, s.close],
            Some(Calls::Pairs(style)) => style.marks(),
            Some(Calls::Harmony) => harmony::MARKS,
        };
        let reasoning = self.reasoning.iter().flat_map(|marks| [marks.open, marks.close]);
        reasoning.chain(calls.iter().copied()).collect()
    }
}

/// What ids of calls a family's templates take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ids {
    /// Any.
    Any,
    /// Nine letters and digits (Mistral).
    Nine,
    /// `functions.name:index` (Kimi).
    Numbered,
}
