//! Messages and tools as a template expects them, which is not always as OpenAI's API has them.
//!
//! - Arguments of calls are objects, which the API has as JSON text; some templates write them with `+`, and want the text.
//! - A message that only calls has no content: null for templates that ask for it, no text for those that fail on null.
//! - Reasoning before a call is `reasoning_content`, and `thinking` for templates that read that.
//! - A tool without description has an empty one where a template fails without.
//!
//! Which of these a template wants is tried out once ([`Wants::of`]): what it says by other means, nobody can read.

use serde_json::{Map, Value as Json, json};

use super::TemplateError;

/// What arguments that are no JSON object become, under the name that Anthropic advises: a call that the model wrote badly, or that was cut
/// off, is part of the conversation, and so is what the client said of it.
const INVALID: &str = "INVALID_JSON";

/// What a trial's call is told by.
const TOLD: &str = "qkzxv";

/// Where the field is read that some templates have reasoning in; the variable of that name is something else.
const THINKING: &[&str] = &[".thinking", "['thinking']", "[\"thinking\"]"];

/// What a template wants beyond the API's form.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Wants {
    /// Arguments as text.
    text: bool,
    empty: Empty,
    thinking: Thinking,
    /// A description for every tool.
    description: bool,
}

/// What the content of a message with calls may be where it says nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Empty {
    /// No text.
    #[default]
    Text,
    /// That or null, as the client has it.
    Either,
    /// Null, or the template does not tell the calls: no content stands beside them.
    Null,
}

/// Whether reasoning before a call is read from `thinking`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Thinking {
    #[default]
    No,
    Yes,
    /// Yes, and there must be no content beside it.
    Alone,
}

impl Wants {
    /// Tries a template out; `render` takes messages and tools.
    pub(super) fn of(
        source: &str,
        tools: bool,
        render: impl Fn(&[Json], &[Json]) -> Result<String, TemplateError>,
    ) -> Self {
        let mut wants = Self::default();
        if tools {
            let tried = |tool: Json| render(&[json!({"role": "user", "content": "a"})], &[tool]).is_ok();
            wants.description = !tried(tool(None)) && tried(tool(Some("")));
        }
        if !source.contains("tool_calls") {
            return wants;
        }
        let mut spent = false;
        let mut tell = |text: bool, content: Option<&str>| {
            // A template that does not end is not tried again.
            let rendered = (!spent).then(|| render(&called(text, content, None), &[]))?;
            spent = matches!(rendered, Err(TemplateError::OutOfFuel | TemplateError::TooLong));
            rendered.ok().filter(|rendered| rendered.contains(TOLD))
        };
        let forms = [(false, Some("")), (true, Some("")), (false, None), (true, None)];
        let Some(((text, content), told)) =
            forms.into_iter().find_map(|form @ (text, content)| Some((form, tell(text, content)?)))
        else {
            return wants;
        };
        wants.text = text;
        // Templates that print null do not want it.
        let printed = |told: &str| told.matches("None").count() + told.matches("null").count();
        wants.empty = match content {
            None => Empty::Null,
            Some(_) if tell(text, None).is_some_and(|null| printed(&null) <= printed(&told)) => Empty::Either,
            Some(_) => Empty::Text,
        };
        if THINKING.iter().any(|field| source.contains(field)) {
            let both = render(&called(text, Some("a"), Some("b")), &[]);
            wants.thinking = if both.is_ok() { Thinking::Yes } else { Thinking::Alone };
        }
        wants
    }

    /// The messages in this form.
    pub(super) fn messages(self, messages: &[Json]) -> Result<Vec<Json>, TemplateError> {
        let mut shaped = Vec::with_capacity(messages.len());
        for (index, message) in messages.iter().enumerate() {
            let mut message = message.clone();
            self.arguments(index, &mut message)?;
            if message.get("tool_calls").and_then(Json::as_array).is_some_and(|calls| !calls.is_empty()) {
                self.think(&mut message);
                shaped.extend(self.content(&mut message));
            }
            shaped.push(message);
        }
        Ok(shaped)
    }

    /// The tools in this form.
    pub(super) fn tools(self, tools: &[Json]) -> Vec<Json> {
        let mut tools = tools.to_vec();
        let functions = tools.iter_mut().filter_map(|tool| tool.get_mut("function")?.as_object_mut());
        for function in functions.filter(|_| self.description) {
            if function.get("description").is_none_or(Json::is_null) {
                function.insert("description".to_owned(), "".into());
            }
        }
        tools
    }

    fn arguments(self, index: usize, message: &mut Json) -> Result<(), TemplateError> {
        let calls = message.get_mut("tool_calls").and_then(Json::as_array_mut);
        for (call, value) in calls.into_iter().flatten().enumerate() {
            let Some(arguments) = value.pointer_mut("/function/arguments") else { continue };
            let wrong = TemplateError::Arguments { message: index, call };
            *arguments = match arguments {
                Json::String(text) if self.text => arguments_text(text).into(),
                Json::String(text) => object(text),
                Json::Object(_) if self.text => arguments.to_string().into(),
                Json::Object(_) => continue,
                _ => return Err(wrong),
            };
        }
        Ok(())
    }

    /// Reasoning where it is read. Content that must not stand beside it was said after it.
    fn think(self, message: &mut Json) {
        let reasoning =
            message.get("reasoning_content").and_then(Json::as_str).filter(|text| !text.is_empty());
        let Some(reasoning) = reasoning.filter(|_| self.thinking != Thinking::No) else { return };
        let said = message.get("content").and_then(Json::as_str).filter(|text| !text.is_empty());
        match said.filter(|_| self.thinking == Thinking::Alone) {
            Some(said) => {
                message["thinking"] = format!("{reasoning}\n{said}").into();
                message["content"] = "".into();
            }
            None => message["thinking"] = reasoning.into(),
        }
    }

    /// Content as it may stand beside calls. What may not is the message that is returned, which comes before.
    fn content(self, message: &mut Json) -> Option<Json> {
        let content = message.get("content").cloned().unwrap_or_default();
        let says = content.as_str().is_some_and(|text| !text.is_empty());
        match self.empty {
            Empty::Text if content.is_null() => message["content"] = "".into(),
            Empty::Text | Empty::Either => {}
            Empty::Null if says || content.as_str() == Some("") => message["content"] = Json::Null,
            Empty::Null => {}
        }
        let before = || json!({"role": "assistant", "content": content});
        (says && self.empty == Empty::Null).then(before)
    }
}

/// A call's arguments as a text that is a JSON object. No text stands for none, as clients send it for functions without parameters.
pub fn arguments_text(text: &str) -> String {
    let valid = serde_json::from_str::<Json>(text).is_ok_and(|arguments| arguments.is_object());
    if valid { text.to_owned() } else { object(text).to_string() }
}

fn object(text: &str) -> Json {
    if text.trim().is_empty() {
        return Json::Object(Map::new());
    }
    let parsed = serde_json::from_str(text).ok().filter(Json::is_object);
    parsed.unwrap_or_else(|| Map::from_iter([(INVALID.to_owned(), text.into())]).into())
}

/// A conversation with one call. Its id is one that Mistral's templates take.
fn called(text: bool, content: Option<&str>, thinking: Option<&str>) -> Vec<Json> {
    let arguments = json!({"a": TOLD});
    let arguments = if text { arguments.to_string().into() } else { arguments };
    let call =
        json!({"id": "abcdefghi", "type": "function", "function": {"name": "f", "arguments": arguments}});
    let mut message = json!({"role": "assistant", "content": content, "tool_calls": [call]});
    if let Some(thinking) = thinking {
        message["thinking"] = thinking.into();
    }
    let result = json!({"role": "tool", "content": "c", "tool_call_id": "abcdefghi", "name": "f"});
    vec![json!({"role": "user", "content": "d"}), message, result]
}

fn tool(description: Option<&str>) -> Json {
    let mut function = json!({"name": "f", "parameters": {"type": "object", "properties": {}}});
    if let Some(description) = description {
        function["description"] = description.into();
    }
    json!({"type": "function", "function": function})
}
