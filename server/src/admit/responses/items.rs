//! Items of a conversation: read as clients send them, turned into messages as templates know them.
//!
//! - What one role says in a row is one message, for templates that want roles to alternate: of the assistant also what it thought and
//!   called.
//! - Calls must have been made before they are answered.
//! - Of reasoning, its text reaches the template, or what was told of it where there is no text.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::super::fields::Fields;
use super::super::tools::{OPENAI, function_name};
use super::super::turns::{self, Assistant};
use crate::error::ApiError;
use crate::responses::items::{Item, ItemPart, ItemRole, ItemStatus, joined};
use crate::settings::UnknownFields;

/// What a user says, if nothing but text was sent.
pub(super) fn said(text: String) -> Item {
    let content = vec![ItemPart::InputText { text }];
    Item::Message { id: new_id("msg"), role: ItemRole::User, status: ItemStatus::Completed, content }
}

fn new_id(prefix: &str) -> String {
    format!("{prefix}_{}", uuid::Uuid::new_v4().simple())
}

/// What a client sends of an item.
pub(super) enum Given {
    /// All of it.
    Item(Item),
    /// Its id; a response that is kept has it.
    Reference(String),
}

/// Reads an item. A message and a reference may lack their type.
pub(super) fn read(path: &str, value: Value, policy: UnknownFields) -> Result<Given, ApiError> {
    const REFERENCE: &str = "item_reference";
    let mut fields = Fields::within(value, path)?;
    let kind = if fields.has("type") {
        let kinds = ["message", "reasoning", "function_call", "function_call_output", REFERENCE];
        fields.word("type", &kinds)?
    } else if fields.has("id") && !fields.has("role") {
        REFERENCE
    } else {
        "message"
    };
    if kind == REFERENCE {
        let id = fields.needed("id")?;
        fields.finish(policy)?;
        return Ok(Given::Reference(id));
    }
    let id = fields.string("id")?;
    let id = |prefix: &str| id.unwrap_or_else(|| new_id(prefix));
    let status = status(&mut fields)?;
    let item = match kind {
        "message" => message(id("msg"), status, &mut fields, policy)?,
        "reasoning" => reasoning(id("rs"), status, &mut fields, policy)?,
        "function_call" => Item::FunctionCall {
            id: id("fc"),
            call_id: fields.needed("call_id")?,
            name: function_name(&mut fields, OPENAI)?,
            arguments: fields.needed("arguments")?,
            status,
        },
        _ => {
            let call_id = fields.needed("call_id")?;
            let output = parts(&mut fields, "output", "input_text", policy)?;
            Item::FunctionCallOutput { id: id("fco"), call_id, output: joined(&output), status }
        }
    };
    fields.finish(policy)?;
    Ok(Given::Item(item))
}

fn status(fields: &mut Fields) -> Result<ItemStatus, ApiError> {
    if !fields.has("status") {
        return Ok(ItemStatus::Completed);
    }
    Ok(match fields.word("status", &["completed", "incomplete", "in_progress"])? {
        "completed" => ItemStatus::Completed,
        "incomplete" => ItemStatus::Incomplete,
        _ => ItemStatus::InProgress,
    })
}

fn message(
    id: String,
    status: ItemStatus,
    fields: &mut Fields,
    policy: UnknownFields,
) -> Result<Item, ApiError> {
    let (role, kind) = match fields.word("role", &["user", "assistant", "system", "developer"])? {
        "user" => (ItemRole::User, "input_text"),
        "assistant" => (ItemRole::Assistant, "output_text"),
        "system" => (ItemRole::System, "input_text"),
        _ => (ItemRole::Developer, "input_text"),
    };
    if fields.has("phase") {
        // Templates know no others.
        fields.word("phase", &["final_answer"])?;
    }
    Ok(Item::Message { id, role, status, content: parts(fields, "content", kind, policy)? })
}

fn reasoning(
    id: String,
    status: ItemStatus,
    fields: &mut Fields,
    policy: UnknownFields,
) -> Result<Item, ApiError> {
    let mut texts = |field: &str, kind| match fields.has(field) {
        true => parts(fields, field, kind, policy),
        false => Ok(Vec::new()),
    };
    let (summary, content) = (texts("summary", "summary_text")?, texts("content", "reasoning_text")?);
    if fields.string("encrypted_content")?.is_some() {
        let name = fields.name("encrypted_content");
        let message = format!("Unsupported parameter: '{name}' cannot be read by this server");
        return Err(ApiError::unsupported(&name, message));
    }
    Ok(Item::Reasoning { id, summary, content, status })
}

/// Text, or parts of one kind.
fn parts(
    fields: &mut Fields,
    field: &str,
    kind: &'static str,
    policy: UnknownFields,
) -> Result<Vec<ItemPart>, ApiError> {
    let part = |text: String| match kind {
        "input_text" => ItemPart::InputText { text },
        "output_text" => ItemPart::OutputText { text, annotations: [], logprobs: Vec::new() },
        "reasoning_text" => ItemPart::ReasoningText { text },
        _ => ItemPart::SummaryText { text },
    };
    let path = fields.name(field);
    let values = match fields.take(field) {
        None => return Err(fields.missing(field)),
        Some(Value::String(text)) if kind.ends_with("put_text") => return Ok(vec![part(text)]),
        Some(Value::Array(values)) => values,
        Some(other) => return Err(fields.mistyped(field, &format!("an array of '{kind}' parts"), &other)),
    };
    let one = |(i, value)| {
        let mut fields = Fields::within(value, &format!("{path}[{i}]"))?;
        fields.word("type", &[kind])?;
        let text = fields.needed("text")?;
        if kind == "output_text" {
            // As answers have them; they say nothing to the model.
            for told in ["annotations", "logprobs"] {
                if let Some(other) = fields.take(told).filter(|value| !value.is_array()) {
                    return Err(fields.mistyped(told, "an array", &other));
                }
            }
        }
        fields.finish(policy)?;
        Ok(part(text))
    };
    values.into_iter().enumerate().map(one).collect()
}

/// Messages, item by item.
#[derive(Default)]
pub(super) struct Messages {
    messages: Vec<Value>,
    /// The assistant's turn that goes on.
    assistant: Option<Assistant>,
    /// Ids of calls so far.
    called: HashSet<String>,
}

impl Messages {
    /// One more item, at `path`.
    pub(super) fn push(&mut self, item: &Item, path: &str) -> Result<(), ApiError> {
        match item {
            Item::Message { role: ItemRole::Assistant, content, .. } => {
                self.assistant.get_or_insert_default().texts.push(joined(content));
            }
            Item::Message { role, content, .. } => {
                let role = if *role == ItemRole::User { "user" } else { "system" };
                self.say(role, &joined(content));
            }
            Item::Reasoning { summary, content, .. } => {
                let told = if content.is_empty() { summary } else { content };
                self.assistant.get_or_insert_default().thoughts.push(joined(told));
            }
            Item::FunctionCall { call_id, name, arguments, .. } => {
                self.assistant.get_or_insert_default().call(call_id, name, arguments);
                self.called.insert(call_id.clone());
            }
            Item::FunctionCallOutput { call_id, output, .. } if self.called.contains(call_id) => {
                self.add(turns::result(call_id, output));
            }
            Item::FunctionCallOutput { .. } => {
                let at = format!("{path}.call_id");
                let message =
                    format!("Invalid value for '{at}': no earlier 'function_call' item has this id");
                return Err(ApiError::invalid(&at, message));
            }
        }
        Ok(())
    }

    /// A role other than the assistant's says more.
    pub(super) fn say(&mut self, role: &str, text: &str) {
        if self.assistant.is_none()
            && let Some(last) = self.messages.last_mut().filter(|last| last["role"] == role)
            && let Value::String(said) = &mut last["content"]
        {
            said.push('\n');
            said.push_str(text);
            return;
        }
        self.add(json!({"role": role, "content": text}));
    }

    fn add(&mut self, message: Value) {
        self.messages.extend(self.assistant.take().map(Assistant::rendered));
        self.messages.push(message);
    }

    /// All of them.
    pub(super) fn finish(mut self) -> Vec<Value> {
        self.messages.extend(self.assistant.take().map(Assistant::rendered));
        self.messages
    }
}
