//! `tools` and what goes with them, in the Responses API's words: a function's fields lie beside its type.
//!
//! As in OpenAI's API, a function is strict unless it says otherwise; where its schema cannot be enforced, only if it says so.

use frugal_models::syntax::{Answers, Tool, grammar};
use serde_json::{Value, json};

use super::super::Context;
use super::super::fields::{Fields, mistyped};
use super::super::tools::{self, Choice, Tools};
use crate::error::ApiError;
use crate::responses::body::AskedTool;
use crate::settings::UnknownFields;

const CHOICE: &str = "tool_choice";

/// What a request says of tools, and how responses repeat it.
pub(super) struct Taken {
    pub(super) tools: Tools,
    pub(super) asked: Vec<AskedTool>,
    pub(super) choice: Value,
    pub(super) parallel: bool,
}

/// `tools`, `tool_choice`, `parallel_tool_calls`.
pub(super) fn take(fields: &mut Fields, cx: &Context<'_>) -> Result<Taken, ApiError> {
    let policy = cx.settings.unknown_fields;
    let (mut told, mut all, mut asked) = (Vec::new(), Vec::new(), Vec::new());
    for (i, value) in tools::array(fields, tools::OPENAI)?.into_iter().enumerate() {
        let tool = tool(&format!("tools[{i}]"), value, cx)?;
        let mut function = json!({"name": tool.name});
        if let Some(description) = &tool.description {
            function["description"] = description.as_str().into();
        }
        if let Some(parameters) = &tool.parameters {
            function["parameters"] = parameters.clone();
        }
        told.push(json!({"type": "function", "function": function}));
        let (name, parameters) = (tool.name.clone(), tool.parameters.clone());
        all.push(Tool { name, parameters, strict: tool.strict });
        asked.push(tool);
    }
    let parallel = fields.flag_or("parallel_tool_calls", true)?;
    let choice = fields.take(CHOICE).unwrap_or_else(|| "auto".into());
    let tools = tools::chosen(told, all, chosen(choice.clone(), policy)?, parallel)?;
    Ok(Taken { tools, asked, choice, parallel })
}

fn tool(path: &str, value: Value, cx: &Context<'_>) -> Result<AskedTool, ApiError> {
    let mut fields = Fields::within(value, path)?;
    let r#type = fields.word("type", &["function"])?;
    let name = tools::function_name(&mut fields, tools::OPENAI)?;
    let description = fields.string("description")?;
    let parameters = match fields.take("parameters") {
        None => None,
        Some(schema @ Value::Object(_)) => Some(schema),
        Some(other) => return Err(fields.mistyped("parameters", "a JSON schema", &other)),
    };
    let enforceable = || {
        let strict = Tool { name: name.clone(), parameters: parameters.clone(), strict: true };
        strict.parameters.is_some() && can_be_enforced(cx, &strict)
    };
    let strict = if fields.has("strict") { fields.flag("strict")? } else { enforceable() };
    fields.finish(cx.settings.unknown_fields)?;
    Ok(AskedTool { r#type, name, description, parameters, strict })
}

/// In the words in which this model calls.
fn can_be_enforced(cx: &Context<'_>, tool: &Tool) -> bool {
    let answers = Answers {
        tools: std::slice::from_ref(tool),
        required: true,
        parallel: false,
        content: None,
        in_reasoning: false,
        reasoning: false,
    };
    grammar(&cx.engine.form.syntax.with_calls(), &answers, &cx.engine.tokenizer).is_ok()
}

fn chosen(choice: Value, policy: UnknownFields) -> Result<Choice, ApiError> {
    let expected = "'none', 'auto', 'required', a function or 'allowed_tools'";
    let mut fields = match choice {
        Value::String(word) => match word.as_str() {
            "none" => return Ok(Choice::None),
            "auto" => return Ok(Choice::Any { required: false }),
            "required" => return Ok(Choice::Any { required: true }),
            _ => {
                let message = format!("Invalid value for '{CHOICE}': supported are {expected}");
                return Err(ApiError::invalid(CHOICE, message));
            }
        },
        Value::Object(map) => Fields::nested(map, CHOICE),
        other => return Err(mistyped(CHOICE, expected, &other)),
    };
    let choice = if fields.word("type", &["function", "allowed_tools"])? == "function" {
        let names = vec![tools::function_name(&mut fields, tools::OPENAI)?];
        Choice::Only { required: true, named: true, names }
    } else {
        let required = fields.word("mode", &["auto", "required"])? == "required";
        let at = fields.name("tools");
        let values = match fields.take("tools") {
            Some(Value::Array(values)) if !values.is_empty() => values,
            Some(Value::Array(_)) => return Err(ApiError::invalid(&at, format!("'{at}' must not be empty"))),
            None => return Err(fields.missing("tools")),
            Some(other) => return Err(fields.mistyped("tools", "an array", &other)),
        };
        let named = |(i, value)| {
            let mut fields = Fields::within(value, &format!("{at}[{i}]"))?;
            fields.word("type", &["function"])?;
            let name = tools::function_name(&mut fields, tools::OPENAI)?;
            fields.finish(policy)?;
            Ok(name)
        };
        let names = values.into_iter().enumerate().map(named).collect::<Result<_, _>>()?;
        Choice::Only { required, named: false, names }
    };
    fields.finish(policy)?;
    Ok(choice)
}
