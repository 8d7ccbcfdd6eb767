//! `tools` and what goes with them: functions that the model may call, and what was called before.
//!
//! - A model whose template does not tell it of tools is told of them in a system message. It calls them in the form that its template
//!   has calls of earlier turns in, or else in the Hermes form.
//! - `required`, a named function, `strict` and `parallel_tool_calls: false` are enforced by a grammar; a schema that is not strict
//!   and cannot be enforced stands for any object.
//! - With `tool_choice: "none"` the model is not told of tools, so it does not call them.
//! - Calls of earlier turns must have been announced before they are answered, as OpenAI demands.

use std::collections::HashSet;
use std::sync::Arc;

use frugal_models::syntax::{Syntax, Tool};
use frugal_models::template::arguments_text;
use serde_json::{Value, json};

use super::fields::{Fields, mistyped};
use crate::error::ApiError;
use crate::settings::UnknownFields;

const TOOLS: &str = "tools";
const CHOICE: &str = "tool_choice";

/// What an API allows.
#[derive(Clone, Copy)]
pub(super) struct Most {
    /// Tools of a request.
    pub(super) tools: usize,
    /// Characters of a function's name.
    pub(super) name: usize,
}

/// As OpenAI has it.
pub(super) const OPENAI: Most = Most { tools: 128, name: 64 };

/// What a request says of tools.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tools {
    /// Those that may be called.
    pub(crate) callable: Arc<[Tool]>,
    /// All, as templates know them; empty: the model is not told.
    pub(crate) told: Vec<Value>,
    /// A call must be made.
    pub(crate) required: bool,
    /// Of this one.
    pub(crate) named: bool,
    /// More than one call may be made.
    pub(crate) parallel: bool,
}

impl Tools {
    /// Whether the syntax alone is not enough.
    pub(crate) fn need_grammar(&self) -> bool {
        let strict = self.callable.iter().any(|tool| tool.strict);
        !self.callable.is_empty() && (self.required || strict || !self.parallel)
    }
}

/// `tools`, `tool_choice`, `parallel_tool_calls`.
pub(super) fn take(fields: &mut Fields, policy: UnknownFields) -> Result<Tools, ApiError> {
    let (told, all) = told(fields, policy)?;
    let parallel = fields.flag_or("parallel_tool_calls", true)?;
    let choice = choice(fields, policy)?;
    chosen(told, all, choice, parallel)
}

/// `tools`, as templates know them and as answers are read for them.
pub(crate) fn told(fields: &mut Fields, policy: UnknownFields) -> Result<(Vec<Value>, Vec<Tool>), ApiError> {
    let (mut told, mut all) = (Vec::new(), Vec::new());
    for (i, value) in array(fields, OPENAI)?.into_iter().enumerate() {
        all.push(tool(&format!("{TOOLS}[{i}]"), value.clone(), policy)?);
        told.push(value);
    }
    Ok((told, all))
}

/// `tools`, of a bounded number.
pub(super) fn array(fields: &mut Fields, most: Most) -> Result<Vec<Value>, ApiError> {
    match fields.take(TOOLS) {
        None => Ok(Vec::new()),
        Some(Value::Array(values)) if values.len() <= most.tools => Ok(values),
        Some(Value::Array(values)) => {
            let message = format!("'{TOOLS}' has {} entries, {} is the most", values.len(), most.tools);
            Err(ApiError::invalid(TOOLS, message))
        }
        Some(other) => Err(fields.mistyped(TOOLS, "an array", &other)),
    }
}

/// What may and must be called of `all`, which templates know as `told`.
pub(super) fn chosen(
    told: Vec<Value>,
    mut all: Vec<Tool>,
    choice: Choice,
    parallel: bool,
) -> Result<Tools, ApiError> {
    let mut seen = HashSet::new();
    if let Some(twice) = all.iter().find(|tool| !seen.insert(tool.name.as_str())) {
        return Err(ApiError::invalid(TOOLS, format!("'{TOOLS}' has two functions named '{}'", twice.name)));
    }
    let names: &[String] = if let Choice::Only { names, .. } = &choice { names } else { &[] };
    if let Some(unknown) = names.iter().find(|name| all.iter().all(|tool| tool.name != **name)) {
        let message = format!("'{CHOICE}' names the function '{unknown}', which is not one of '{TOOLS}'");
        return Err(ApiError::invalid(CHOICE, message));
    }
    if all.is_empty() && matches!(choice, Choice::Any { required: true } | Choice::Only { .. }) {
        let message = format!("'{CHOICE}' is only allowed when '{TOOLS}' are specified");
        return Err(ApiError::invalid(CHOICE, message));
    }
    let mut tools = Tools { callable: Arc::default(), told, required: false, named: false, parallel };
    match choice {
        Choice::None => tools.told = Vec::new(),
        Choice::Any { required } => (tools.required, tools.callable) = (required, all.into()),
        Choice::Only { required, named, names } => {
            all.retain(|tool| names.contains(&tool.name));
            (tools.required, tools.named, tools.callable) = (required, named, all.into());
        }
    }
    Ok(tools)
}

fn missing(name: &str) -> ApiError {
    ApiError::invalid(name, format!("Missing required parameter: '{name}'"))
}

/// An object of type `function`.
fn typed(path: &str, value: Value) -> Result<Fields, ApiError> {
    let Value::Object(map) = value else { return Err(mistyped(path, "an object", &value)) };
    let mut fields = Fields::nested(map, path);
    let name = fields.name("type");
    match fields.string("type")?.as_deref() {
        Some("function") => Ok(fields),
        Some(_) => {
            let message = format!(
                "Unsupported value: '{name}' must be 'function'; this server has no tools of its own"
            );
            Err(ApiError::unsupported(&name, message))
        }
        None => Err(missing(&name)),
    }
}

fn tool(path: &str, value: Value, policy: UnknownFields) -> Result<Tool, ApiError> {
    let mut fields = typed(path, value)?;
    let at = fields.name("function");
    let mut function = fields.object("function")?.ok_or_else(|| missing(&at))?;
    let name = function_name(&mut function, OPENAI)?;
    function.string("description")?;
    let strict = function.flag("strict")?;
    let parameters = match function.take("parameters") {
        None => None,
        Some(schema @ Value::Object(_)) => Some(schema),
        Some(other) => return Err(function.mistyped("parameters", "a JSON schema", &other)),
    };
    function.finish(policy)?;
    fields.finish(policy)?;
    Ok(Tool { name, parameters, strict })
}

/// A function's `name`.
pub(super) fn function_name(function: &mut Fields, most: Most) -> Result<String, ApiError> {
    let at = function.name("name");
    let name = function.string("name")?.ok_or_else(|| missing(&at))?;
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    match (1..=most.name).contains(&name.len()) && name.chars().all(fine) {
        true => Ok(name),
        false => {
            let message = format!(
                "Invalid value for '{at}': expected 1 to {} letters, digits, '_', '-' or '.'",
                most.name
            );
            Err(ApiError::invalid(&at, message))
        }
    }
}

/// What may and must be called.
pub(super) enum Choice {
    /// Nothing.
    None,
    /// Anything.
    Any { required: bool },
    /// These; `named`: there is one, and it was named to be called.
    Only { required: bool, named: bool, names: Vec<String> },
}

fn choice(fields: &mut Fields, policy: UnknownFields) -> Result<Choice, ApiError> {
    let expected = "'none', 'auto', 'required', a function or 'allowed_tools'";
    match fields.take(CHOICE) {
        None => Ok(Choice::Any { required: false }),
        Some(Value::String(word)) => match word.as_str() {
            "none" => Ok(Choice::None),
            "auto" => Ok(Choice::Any { required: false }),
            "required" => Ok(Choice::Any { required: true }),
            _ => {
                let message = format!("Invalid value for '{CHOICE}': supported are {expected}");
                Err(ApiError::invalid(CHOICE, message))
            }
        },
        Some(Value::Object(map)) if map.get("type").is_some_and(|ty| ty == "allowed_tools") => {
            allowed(Fields::nested(map, CHOICE), policy)
        }
        Some(value @ Value::Object(_)) => {
            let names = vec![named(CHOICE, value, policy)?];
            Ok(Choice::Only { required: true, named: true, names })
        }
        Some(other) => Err(mistyped(CHOICE, expected, &other)),
    }
}

/// `{"type": "function", "function": {"name": ..}}`.
fn named(path: &str, value: Value, policy: UnknownFields) -> Result<String, ApiError> {
    let mut fields = typed(path, value)?;
    let at = fields.name("function");
    let mut function = fields.object("function")?.ok_or_else(|| missing(&at))?;
    let name = function_name(&mut function, OPENAI)?;
    function.finish(policy)?;
    fields.finish(policy)?;
    Ok(name)
}

fn allowed(mut fields: Fields, policy: UnknownFields) -> Result<Choice, ApiError> {
    fields.string("type")?;
    let at = fields.name("allowed_tools");
    let mut allowed = fields.object("allowed_tools")?.ok_or_else(|| missing(&at))?;
    let at = allowed.name("mode");
    let required = match allowed.string("mode")?.as_deref() {
        Some("auto") => false,
        Some("required") => true,
        Some(_) => {
            return Err(ApiError::invalid(
                &at,
                format!("Invalid value for '{at}': supported are 'auto' and 'required'"),
            ));
        }
        None => return Err(missing(&at)),
    };
    let at = allowed.name(TOOLS);
    let values = match allowed.take(TOOLS) {
        Some(Value::Array(values)) if !values.is_empty() => values,
        Some(Value::Array(_)) => return Err(ApiError::invalid(&at, format!("'{at}' must not be empty"))),
        Some(other) => return Err(mistyped(&at, "an array", &other)),
        None => return Err(missing(&at)),
    };
    let names = values.into_iter().enumerate();
    let names =
        names.map(|(i, value)| named(&format!("{at}[{i}]"), value, policy)).collect::<Result<_, _>>()?;
    allowed.finish(policy)?;
    fields.finish(policy)?;
    Ok(Choice::Only { required, named: false, names })
}

/// An assistant's `tool_calls`, checked; their ids are added to `announced`.
pub(super) fn calls(
    fields: &mut Fields,
    announced: &mut HashSet<String>,
    policy: UnknownFields,
) -> Result<Vec<Value>, ApiError> {
    let path = fields.name("tool_calls");
    let values = match fields.take("tool_calls") {
        None => return Ok(Vec::new()),
        Some(Value::Array(values)) => values,
        Some(other) => return Err(fields.mistyped("tool_calls", "an array", &other)),
    };
    let mut calls = Vec::with_capacity(values.len());
    for (i, value) in values.into_iter().enumerate() {
        let mut call = typed(&format!("{path}[{i}]"), value)?;
        let at = call.name("id");
        let id = call.string("id")?.ok_or_else(|| missing(&at))?;
        // What streams count by, and some clients send back.
        call.integer("index", 0..=i64::MAX)?;
        let at = call.name("function");
        let mut function = call.object("function")?.ok_or_else(|| missing(&at))?;
        let name = function_name(&mut function, OPENAI)?;
        let at = function.name("arguments");
        let arguments = function.string("arguments")?.ok_or_else(|| missing(&at))?;
        function.finish(policy)?;
        call.finish(policy)?;
        calls.push(json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}));
        announced.insert(id);
    }
    Ok(calls)
}

/// The id of the call that a tool's message answers.
pub(super) fn answered(fields: &mut Fields, announced: &HashSet<String>) -> Result<String, ApiError> {
    let at = fields.name("tool_call_id");
    let id = fields.string("tool_call_id")?.ok_or_else(|| missing(&at))?;
    match announced.contains(&id) {
        true => Ok(id),
        false => {
            let message = format!(
                "Invalid value for '{at}': a message of role 'tool' must answer a call of an earlier message's 'tool_calls'"
            );
            Err(ApiError::invalid(&at, message))
        }
    }
}

/// How a model is told of tools that its template does not tell it of: the text, and an example of a call in its syntax behind it.
pub(super) fn note(told: &[Value], syntax: &Syntax) -> (String, String) {
    let functions: Vec<String> = told.iter().map(Value::to_string).collect();
    let text = format!(
        "You can call functions. Their signatures, one a line, as JSON:\n<tools>\n{}\n</tools>\n\
         To call one, answer with nothing but its name and arguments in this form, once for each call:\n",
        functions.join("\n")
    );
    let example = syntax.with_calls().shown("function name", "argument", "value").unwrap_or_default();
    (text, example)
}

/// Messages for a template that knows no calls: calls and results are written out. Results in a row are one message, because some
/// templates refuse two of a user in a row.
pub(super) fn written_out(messages: &[Value]) -> Vec<Value> {
    let mut out: Vec<Value> = Vec::with_capacity(messages.len());
    let mut result_before = false;
    for message in messages {
        let result = is_result(message);
        let written = one_written_out(message);
        match out.last_mut().filter(|_| result && result_before) {
            Some(last) => last["content"] = format!("{}\n{}", content(last), content(&written)).into(),
            None => out.push(written),
        }
        result_before = result;
    }
    out
}

fn is_result(message: &Value) -> bool {
    message.get("role").is_some_and(|role| role == "tool")
}

fn content(message: &Value) -> &str {
    message.get("content").and_then(Value::as_str).unwrap_or_default()
}

fn one_written_out(message: &Value) -> Value {
    if is_result(message) {
        let content = format!("<tool_response>\n{}\n</tool_response>", content(message));
        return json!({"role": "user", "content": content});
    }
    let Some(calls) = message.get("tool_calls").and_then(Value::as_array) else { return message.clone() };
    let mut content = content(message).to_owned();
    for call in calls {
        let function = &call["function"];
        let arguments = arguments_text(function["arguments"].as_str().unwrap_or_default());
        let separator = if content.is_empty() { "" } else { "\n" };
        let name = &function["name"];
        content += &format!(
            "{separator}<tool_call>\n{{\"name\": {name}, \"arguments\": {arguments}}}\n</tool_call>"
        );
    }
    let mut message = message.clone();
    message["content"] = content.into();
    message.as_object_mut().and_then(|fields| fields.remove("tool_calls"));
    message
}
