//! Messages as templates expect them: the arguments of calls are objects, which OpenAI's API has as JSON text.

use serde_json::{Map, Value as Json};

use super::TemplateError;

/// What arguments that are no JSON object become, under the name that Anthropic advises: a call that the model wrote badly, or that was cut
/// off, is part of the conversation, and so is what the client said of it.
const INVALID: &str = "INVALID_JSON";

/// The messages with parsed arguments. No text stands for none, as clients send it for functions without parameters.
pub(super) fn with_objects(messages: &[Json]) -> Result<Vec<Json>, TemplateError> {
    let mut messages = messages.to_vec();
    for (message, value) in messages.iter_mut().enumerate() {
        let calls = value.get_mut("tool_calls").and_then(Json::as_array_mut);
        for (call, value) in calls.into_iter().flatten().enumerate() {
            if let Some(arguments) = value.pointer_mut("/function/arguments") {
                *arguments = object(arguments).ok_or(TemplateError::Arguments { message, call })?;
            }
        }
    }
    Ok(messages)
}

fn object(arguments: &Json) -> Option<Json> {
    match arguments {
        Json::String(text) if text.trim().is_empty() => Some(Json::Object(Map::new())),
        Json::String(text) => {
            let parsed = serde_json::from_str(text).ok().filter(Json::is_object);
            parsed.or_else(|| Some(Map::from_iter([(INVALID.to_owned(), text.as_str().into())]).into()))
        }
        Json::Object(_) => Some(arguments.clone()),
        _ => None,
    }
}
