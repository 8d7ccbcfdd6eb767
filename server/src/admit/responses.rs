//! `/v1/responses`: items become the messages of templates, and what follows is chat's.
//!
//! - `instructions` are the system's words in front; they are not a part of the conversation that is kept.
//! - A conversation goes on from `previous_response_id` as if its items stood before `input`; no item is in it twice.
//! - Of `include`, log-probabilities are honoured; reasoning is always shown as it is, so that nothing is to be added encrypted.
//! - Beside OpenAI's settings of sampling there are chat's, and its `chat_template_kwargs` and `thinking_budget`.

mod items;
mod references;
mod tools;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use frugal_models::constraint::ConstraintSpec;
use serde_json::{Map, Value, json};

use self::items::Given;
use self::references::{References, items_of};
use super::chat::{self, Conversation};
use super::constraint::{self, Named};
use super::fields::{self, Fields, mistyped};
use super::reasoning::{self, Reasoning};
use super::{Common, Context};
use crate::error::{ApiError, quoted};
use crate::responses::answer::Request;
use crate::responses::body::{Asked, AskedFormat, AskedReasoning, AskedText};
use crate::responses::items::Item;
use crate::responses::store::{Found, Turns};
use crate::settings::{Caller, UnknownFields};
use crate::state::State;
use crate::text::LARGE_BYTES;

const PROMPT_FIELD: &str = "input";
const PREVIOUS: &str = "previous_response_id";
const INCLUDE: &str = "include";
const METADATA: &str = "metadata";
/// What names an item that is kept.
const REFERENCE: &[u8] = b"item_reference";

/// What OpenAI allows of `metadata`: pairs, and characters of a key and of a value.
const METADATA_MAX: (usize, usize, usize) = (16, 64, 512);

/// Reads, checks, renders and tokenizes a request.
pub(crate) fn admit(state: &State, caller: Caller, body: &[u8]) -> Result<Request, ApiError> {
    let cx = Context::new(state, caller)?;
    let policy = cx.settings.unknown_fields;
    let mut fields = fields::parse(body)?;
    let mut common = common(&mut fields, &cx)?;
    let max_output_tokens = fields.count("max_output_tokens", 1..=u32::MAX)?;
    cx.check_output("max_output_tokens", max_output_tokens)?;
    let (format, text) = text(&mut fields, policy)?;
    common.constraint = format;
    common.sampling.logprobs = logprobs(&mut fields, cx.limits().logprobs)?;
    let (store, background) = kept(&mut fields, state, common.stream)?;
    let (previous_response_id, before) = before(&mut fields, state, caller)?;
    let instructions = fields.string("instructions")?;
    let references = References::new(state, caller);
    let (input, messages) = conversation(&mut fields, instructions.as_deref(), &before, references)?;
    let tools = tools::take(&mut fields, &cx)?;
    let (asked_reasoning, reasoning) = reasoning(&mut fields, &cx)?;
    let asked = Asked {
        model: state.model().to_owned(),
        instructions,
        max_output_tokens,
        max_tool_calls: None,
        metadata: metadata(&mut fields)?,
        parallel_tool_calls: tools.parallel,
        previous_response_id,
        prompt_cache_key: label(&mut fields, "prompt_cache_key")?,
        reasoning: asked_reasoning,
        safety_identifier: label(&mut fields, "safety_identifier")?,
        service_tier: "default",
        store,
        temperature: common.sampling.temperature,
        text,
        tool_choice: tools.choice,
        tools: tools.asked,
        top_logprobs: common.sampling.logprobs.unwrap_or(0),
        top_p: common.sampling.top_p,
        truncation: "disabled",
        user: label(&mut fields, "user")?,
    };
    fields.finish(policy)?;
    let conversation = Conversation { field: PROMPT_FIELD, messages, tools: tools.tools, reasoning };
    let admitted = conversation.admit(&cx, common, max_output_tokens)?;
    Ok(Request { admitted, asked, before, input, background, domain: caller.domain })
}

fn common(fields: &mut Fields, cx: &Context<'_>) -> Result<Common, ApiError> {
    super::model(fields, cx.settings)?;
    let stream = fields.flag("stream")?;
    if let Some(mut options) = fields.object("stream_options")? {
        if !stream {
            let message = "The 'stream_options' parameter is only allowed when 'stream' is enabled";
            return Err(ApiError::invalid("stream_options", message));
        }
        if options.flag("include_obfuscation")? {
            let name = options.name("include_obfuscation");
            return Err(ApiError::unsupported(
                &name,
                format!("Unsupported value: '{name}' must be false on this server"),
            ));
        }
        options.finish(cx.settings.unknown_fields)?;
    }
    if fields.has("truncation") {
        // Whoever sends a conversation knows best what of it can go.
        fields.word("truncation", &["disabled"])?;
    }
    Common::of_one(fields, cx, stream, "max_output_tokens", Arc::default())
}

/// `text`: what the answer's text must be, as it is enforced and as it is repeated.
fn text(
    fields: &mut Fields,
    policy: UnknownFields,
) -> Result<(Option<constraint::Asked>, AskedText), ApiError> {
    let mut asked = AskedText { format: AskedFormat::Text, verbosity: "medium" };
    let Some(mut text) = fields.object("text")? else { return Ok((None, asked)) };
    if text.has("verbosity") {
        text.word("verbosity", &["medium"])?;
    }
    let mut schema = None;
    if let Some(mut format) = text.object("format")? {
        match format.word("type", &["text", "json_object", "json_schema"])? {
            "json_object" => {
                asked.format = AskedFormat::JsonObject;
                schema = Some(json!({"type": "object"}));
            }
            "json_schema" => {
                let named = constraint::named_schema(&mut format)?;
                schema = Some(named.schema.clone());
                let Named { name, description, schema } = named;
                asked.format = AskedFormat::JsonSchema { name, description, schema, strict: true };
            }
            _ => {}
        }
        format.finish(policy)?;
    }
    text.finish(policy)?;
    let enforced =
        schema.map(|schema| constraint::Asked { spec: ConstraintSpec::Json(schema), field: "text.format" });
    Ok((enforced, asked))
}

/// `include` and `top_logprobs`.
fn logprobs(fields: &mut Fields, max: u32) -> Result<Option<u32>, ApiError> {
    let values = match fields.take(INCLUDE) {
        None => Vec::new(),
        Some(Value::Array(values)) => values,
        Some(other) => return Err(fields.mistyped(INCLUDE, "an array of strings", &other)),
    };
    let mut wanted = false;
    for (i, value) in values.iter().enumerate() {
        let name = format!("{INCLUDE}[{i}]");
        match value.as_str() {
            Some("message.output_text.logprobs") => wanted = true,
            Some("reasoning.encrypted_content") => {}
            Some(other) => {
                let message = format!(
                    "Unsupported value: '{name}' is '{}'; there is no such thing here",
                    quoted(other)
                );
                return Err(ApiError::unsupported(&name, message));
            }
            None => return Err(mistyped(&name, "a string", value)),
        }
    }
    match (wanted, fields.count("top_logprobs", 0..=max)?) {
        (true, top) => Ok(Some(top.unwrap_or(0))),
        (false, None | Some(0)) => Ok(None),
        (false, Some(_)) => {
            let message = "'top_logprobs' is only allowed when 'include' has 'message.output_text.logprobs'";
            Err(ApiError::invalid("top_logprobs", message))
        }
    }
}

/// `store` and `background`: whether it is kept, and whether nobody waits for it.
fn kept(fields: &mut Fields, state: &State, stream: bool) -> Result<(bool, bool), ApiError> {
    let keeps = state.responses().keeps();
    let background = fields.flag("background")?;
    let store = fields.flag_or("store", keeps)?;
    if store && !keeps {
        let message = "Unsupported value: 'store' must be false; this server keeps no responses";
        return Err(ApiError::unsupported("store", message));
    }
    if background && !store {
        let message = "'background' is only allowed when the response is stored";
        return Err(ApiError::invalid("background", message));
    }
    if background && stream {
        let message = "Unsupported value: 'background' and 'stream' exclude each other on this server";
        return Err(ApiError::unsupported("background", message));
    }
    Ok((store, background))
}

/// `previous_response_id`: what was said before.
fn before(fields: &mut Fields, state: &State, caller: Caller) -> Result<(Option<String>, Turns), ApiError> {
    let Some(id) = fields.string(PREVIOUS)? else { return Ok((None, Turns::new())) };
    match state.responses().find(&(caller.domain, id.clone()), Instant::now()) {
        None => Err(ApiError::previous_response_not_found(&id)),
        Some(Found::Ended(response)) if response.can_be_continued => {
            let mut turns = response.before;
            turns.push(response.turn);
            Ok((Some(id), turns))
        }
        Some(_) => {
            let message = format!("Previous response with id '{}' has not ended well", quoted(&id));
            Err(ApiError::invalid(PREVIOUS, message))
        }
    }
}

/// The items that are new, and all messages.
fn conversation(
    fields: &mut Fields,
    instructions: Option<&str>,
    before: &Turns,
    mut references: References<'_>,
) -> Result<(Vec<Item>, Vec<Value>), ApiError> {
    let mut turns = items::Messages::default();
    if let Some(text) = instructions {
        turns.say("system", text);
    }
    let mut ids = HashSet::new();
    for turn in before {
        for item in items_of(turn)? {
            turns.push(&item, PREVIOUS)?;
            ids.insert(item.id().to_owned());
        }
    }
    let values = match fields.take(PROMPT_FIELD) {
        Some(Value::String(text)) => {
            let item = items::said(text);
            turns.push(&item, PROMPT_FIELD)?;
            return Ok((vec![item], turns.finish()));
        }
        Some(Value::Array(values)) if !values.is_empty() => values,
        Some(Value::Array(_)) => return Err(ApiError::invalid(PROMPT_FIELD, "'input' must not be empty")),
        None => return Err(fields.missing(PROMPT_FIELD)),
        Some(other) => return Err(fields.mistyped(PROMPT_FIELD, "a string or an array of items", &other)),
    };
    let mut input = Vec::with_capacity(values.len());
    for (i, value) in values.into_iter().enumerate() {
        let path = format!("{PROMPT_FIELD}[{i}]");
        let given = items::read(&path, value, references.policy())?;
        let id = match &given {
            Given::Item(item) => item.id(),
            Given::Reference(id) => id,
        };
        if !ids.insert(id.to_owned()) {
            // Lists of items go on after an id.
            let message = format!(
                "Duplicate item found with id '{}'. Remove duplicate items from your input and try again.",
                quoted(id)
            );
            return Err(ApiError::invalid(&format!("{path}.id"), message));
        }
        let item = match given {
            Given::Item(item) => item,
            Given::Reference(id) => references.take(&id)?,
        };
        turns.push(&item, &path)?;
        input.push(item);
    }
    Ok((input, turns.finish()))
}

/// `reasoning`, and chat's fields of it.
fn reasoning(fields: &mut Fields, cx: &Context<'_>) -> Result<(AskedReasoning, Reasoning), ApiError> {
    let template = chat::template(cx, PROMPT_FIELD)?;
    let mut asked = AskedReasoning::default();
    if let Some(mut wanted) = fields.object("reasoning")? {
        asked.effort = wanted.string("effort")?;
        if wanted.has("summary") {
            asked.summary = Some(wanted.word("summary", &["auto", "concise", "detailed"])?);
        }
        wanted.finish(cx.settings.unknown_fields)?;
    }
    let can_reason = chat::can_reason(cx);
    let effort = asked.effort.clone();
    let reasoning = reasoning::with_effort(fields, "reasoning.effort", effort, template, can_reason)?;
    Ok((asked, reasoning))
}

/// What is repeated in the answer and means nothing here: as long as a value of `metadata`, for it is kept.
fn label(fields: &mut Fields, name: &str) -> Result<Option<String>, ApiError> {
    let label = fields.string(name)?;
    let (.., most) = METADATA_MAX;
    if label.as_ref().is_some_and(|label| label.chars().count() > most) {
        return Err(ApiError::invalid(name, format!("'{name}' must have at most {most} characters")));
    }
    Ok(label)
}

/// Bytes that a request makes its server read: its own, and what it goes on from.
pub(crate) fn weight(state: &State, caller: Caller, body: &[u8]) -> usize {
    #[derive(serde::Deserialize)]
    struct Continued {
        previous_response_id: Option<String>,
    }
    if body.len() >= LARGE_BYTES {
        return body.len();
    }
    let store = state.responses();
    // What is wrong with the body is told later.
    let id = serde_json::from_slice::<Continued>(body).ok().and_then(|body| body.previous_response_id);
    let before = id.and_then(|id| store.find(&(caller.domain, id), Instant::now()));
    let refers = body.windows(REFERENCE.len()).any(|part| part == REFERENCE);
    let referred = if refers { store.owned(caller.domain) } else { 0 };
    body.len() + before.map_or(0, |found| found.weight()) + referred
}

/// `metadata`: repeated and kept with the response.
fn metadata(fields: &mut Fields) -> Result<Map<String, Value>, ApiError> {
    let pairs = match fields.take(METADATA) {
        None => return Ok(Map::new()),
        Some(Value::Object(pairs)) => pairs,
        Some(other) => return Err(fields.mistyped(METADATA, "an object", &other)),
    };
    let (most, key_chars, value_chars) = METADATA_MAX;
    let fits = |(key, value): (&String, &Value)| {
        let value = value.as_str().is_some_and(|value| value.chars().count() <= value_chars);
        value && key.chars().count() <= key_chars
    };
    if pairs.len() > most || !pairs.iter().all(fits) {
        let message = format!(
            "'{METADATA}' must have at most {most} strings of {value_chars} characters under keys of {key_chars}"
        );
        return Err(ApiError::invalid(METADATA, message));
    }
    Ok(pairs)
}
