//! The form of an answer: which of its text is reasoning, which is calls of functions, and which the user sees.
//!
//! Control tokens are no text, yet in some models they are what reasoning and calls are marked with: here they are read where they stand
//! among the text. Ids of calls follow from the request, so that streams and whole answers have the same.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use frugal_models::step::TokenId;
use frugal_models::syntax::{self, Ids, Reader, Syntax, Tool};
use frugal_models::template::ChatTemplate;
use frugal_models::tokenizer::{Mark, Tokenizer};
use sha2::{Digest, Sha256};

/// How a model's answers are formed, known once it is loaded.
#[derive(Clone, Debug)]
pub struct ModelForm {
    /// What its template says.
    pub syntax: Syntax,
    /// Control tokens that mean something to a reader, as they are written.
    controls: Arc<HashMap<TokenId, String>>,
}

impl ModelForm {
    /// Of a model with this template, if it has one.
    pub fn of(template: Option<&ChatTemplate>, tokenizer: &Tokenizer) -> Self {
        Self::new(Syntax::of_template(template.map_or("", ChatTemplate::source)), tokenizer)
    }

    /// In this syntax, with this vocabulary.
    pub fn new(syntax: Syntax, tokenizer: &Tokenizer) -> Self {
        let mut controls = HashMap::new();
        for text in syntax.marks() {
            for mark in tokenizer.control_marks(text) {
                if let Mark::Control(id) = mark {
                    controls.insert(id, tokenizer.token_text(id));
                }
            }
        }
        Self { syntax, controls: Arc::new(controls) }
    }
}

/// How the answers to one request are formed.
#[derive(Clone, Debug)]
pub struct Form {
    /// The model's.
    pub model: ModelForm,
    /// Functions that may be called; none: calls are text.
    pub tools: Arc<[Tool]>,
    /// The prompt ended amid reasoning.
    pub in_reasoning: bool,
    /// One function was named and had to be called: OpenAI then says `stop`.
    pub named: bool,
    /// What ids of calls follow from.
    pub key: [u8; 32],
}

impl Form {
    /// What ids follow from: the seed and the prompt.
    pub fn key(seed: u64, prompt: &[TokenId]) -> [u8; 32] {
        let mut hash = Sha256::new().chain_update(seed.to_le_bytes());
        prompt.iter().for_each(|token| hash.update(token.0.to_le_bytes()));
        hash.finalize().into()
    }

    /// Whether there is anything to be told apart.
    pub fn tells(&self) -> bool {
        !self.tools.is_empty() || self.model.syntax.reasoning().is_some()
    }

    /// Reads one choice.
    pub fn reader(&self, choice: usize) -> FormReader {
        let reader = Reader::new(self.model.syntax, self.tools.clone(), self.in_reasoning);
        let in_reasoning = self.in_reasoning;
        FormReader {
            form: self.clone(),
            choice,
            reader,
            marks: VecDeque::new(),
            in_reasoning,
            reasoning_tokens: 0,
        }
    }

    fn id(&self, choice: usize, index: usize) -> String {
        let hash = Sha256::new().chain_update(self.key).chain_update((choice as u64).to_le_bytes());
        let hash = hash.chain_update((index as u64).to_le_bytes()).finalize();
        match self.model.syntax.ids() {
            Ids::Nine => {
                const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
                hash.iter()
                    .take(9)
                    .map(|byte| char::from(DIGITS[usize::from(*byte) % DIGITS.len()]))
                    .collect()
            }
            Ids::Any | Ids::Numbered => "call_"
                .chars()
                .chain(hash.iter().take(12).flat_map(|b| format!("{b:02x}").into_bytes()).map(char::from))
                .collect(),
        }
    }
}

/// A part of an answer's text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// What the user sees.
    Content(String),
    /// Reasoning.
    Reasoning(String),
    /// A call begins.
    Call {
        /// Which of the choice's calls, from 0.
        index: usize,
        /// Its id.
        id: String,
        /// The function.
        name: String,
    },
    /// More of a call's arguments.
    Arguments {
        /// Which of the choice's calls.
        index: usize,
        /// As the model writes them.
        text: String,
    },
}

/// Reads one choice as it grows.
#[derive(Debug)]
pub struct FormReader {
    form: Form,
    choice: usize,
    reader: Reader,
    /// Control tokens that are not read yet: how many bytes of output are before them, and their text.
    marks: VecDeque<(usize, String)>,
    in_reasoning: bool,
    reasoning_tokens: u64,
}

impl FormReader {
    /// A token came, behind so many bytes of output.
    pub fn on_token(&mut self, token: TokenId, bytes_before: usize) {
        self.reasoning_tokens += u64::from(self.in_reasoning);
        if let Some(text) = self.form.model.controls.get(&token) {
            self.marks.push_back((bytes_before, text.clone()));
        }
    }

    /// Where in the output the next control token stands, if it is not behind `until`.
    pub fn mark_before(&self, until: usize) -> Option<usize> {
        self.marks.front().map(|(at, _)| *at).filter(|&at| at <= until)
    }

    /// Reads the next control token.
    pub fn read_mark(&mut self, parts: &mut Vec<Part>) {
        if let Some((_, text)) = self.marks.pop_front() {
            self.read(&text, parts);
        }
    }

    /// Reads text.
    pub fn read(&mut self, text: &str, parts: &mut Vec<Part>) {
        let mut read = Vec::new();
        let before = self.reader.calls();
        self.reader.push(text, &mut read);
        self.tell(before, read, parts);
    }

    /// The choice ended.
    pub fn finish(&mut self, parts: &mut Vec<Part>) {
        let mut read = Vec::new();
        let before = self.reader.calls();
        self.reader.finish(&mut read);
        self.tell(before, read, parts);
    }

    /// OpenAI's word for the end: `tool_calls` instead of `stop` if there was a call, and none that a stop string `cut`.
    pub fn reason(&self, reason: &'static str, cut: bool) -> &'static str {
        match reason {
            "stop" if cut && self.reader.ended_amid_call() => reason,
            "stop" if self.reader.calls() > 0 && !self.form.named => "tool_calls",
            reason => reason,
        }
    }

    /// Tokens of the reasoning so far.
    pub fn reasoning_tokens(&self) -> u64 {
        self.reasoning_tokens
    }

    fn tell(&mut self, mut calls: usize, read: Vec<syntax::Part>, parts: &mut Vec<Part>) {
        for part in read {
            parts.push(match part {
                syntax::Part::Content(text) => Part::Content(text),
                syntax::Part::Reasoning(text) => Part::Reasoning(text),
                syntax::Part::Call { name, id } => {
                    calls += 1;
                    let index = calls - 1;
                    let id = id.unwrap_or_else(|| self.form.id(self.choice, index));
                    Part::Call { index, id, name }
                }
                syntax::Part::Arguments(text) => Part::Arguments { index: calls.saturating_sub(1), text },
            });
        }
        self.in_reasoning = self.reader.in_reasoning();
    }
}
