//! Anthropic's `/v1/messages`: its words become those of templates, and what follows is chat's.
//!
//! - Turns of one role that follow each other are one turn. The last turn is not the assistant's: answers begin at the beginning.
//! - Texts of a turn are joined by newlines, as chat joins parts. A result that `is_error` says so in front of its text.
//! - Earlier `thinking` reaches the template as `reasoning_content`; signatures are neither made nor checked.
//! - `max_tokens` must be said, so clients say their most: what the context has left bounds it too, and `stop_reason` tells.
//! - `output_config.effort` is a wish, which reaches templates that read one; `thinking` of the type `adaptive` is one as well.
//! - Without `thinking`, reasoning is off where the template has a variable for it, as in Anthropic's API.
//! - `cache_control` promises nothing: every prefix is cached while there is room.
//! - Beside Anthropic's settings of sampling there are chat's.

use std::collections::HashSet;

use frugal_models::constraint::ConstraintSpec;
use frugal_models::syntax::Tool;
use serde_json::{Value, json};

use super::chat::{self, Conversation};
use super::constraint::Asked;
use super::fields::{self, Fields};
use super::reasoning::{self, Reasoning};
use super::tools::{self, Choice, Most, Tools};
use super::turns::{self, Assistant};
use super::{Admitted, Common, Context};
use crate::error::ApiError;
use crate::settings::{Caller, UnknownFields};
use crate::state::State;

const PROMPT_FIELD: &str = "messages";
const CHOICE: &str = "tool_choice";
const THINKING: &str = "thinking";
const FORMAT: &str = "output_config.format";

/// Clients with several servers of tools send hundreds, with the servers' names in front.
const MOST: Most = Most { tools: 1024, name: 128 };
/// Anthropic's words.
const EFFORTS: &[&str] = &["low", "medium", "high", "xhigh", "max"];

/// Reads, checks, renders and tokenizes a request.
pub fn admit(state: &State, caller: Caller, body: &[u8]) -> Result<Admitted, ApiError> {
    let cx = Context::new(state, caller)?;
    let mut fields = fields::parse(body)?;
    let mut common = common(&mut fields, &cx)?;
    common.fit_context = true;
    let max_tokens = fields.count("max_tokens", 1..=u32::MAX)?.ok_or_else(|| fields.missing("max_tokens"))?;
    let (conversation, asked) = conversation(&mut fields, &cx)?;
    common.constraint = asked.format;
    if conversation.reasoning.budget.is_some_and(|budget| budget >= max_tokens) {
        let message = "'thinking.budget_tokens' must be less than 'max_tokens'";
        return Err(ApiError::invalid("thinking.budget_tokens", message));
    }
    fields.finish(cx.settings.unknown_fields)?;
    let mut admitted = conversation.admit(&cx, common, Some(max_tokens))?;
    admitted.omit_reasoning = asked.omit_thinking;
    admitted.cut_to_context = admitted.prompts.iter().any(|prompt| prompt.request.max_tokens < max_tokens);
    Ok(admitted)
}

/// How many tokens a request's prompt has.
pub fn count(state: &State, body: &[u8]) -> Result<usize, ApiError> {
    let cx = Context::new(state, Caller::default())?;
    let mut fields = fields::parse(body)?;
    super::model(&mut fields, cx.settings)?;
    cache_control(&mut fields, cx.settings.unknown_fields)?;
    let (conversation, _) = conversation(&mut fields, &cx)?;
    fields.finish(cx.settings.unknown_fields)?;
    Ok(conversation.prompt(&cx)?.1.len())
}

fn common(fields: &mut Fields, cx: &Context<'_>) -> Result<Common, ApiError> {
    let policy = cx.settings.unknown_fields;
    super::model(fields, cx.settings)?;
    cache_control(fields, policy)?;
    if let Some(mut metadata) = fields.object("metadata")? {
        // Bookkeeping on Anthropic's side.
        metadata.string("user_id")?;
        metadata.finish(policy)?;
    }
    match fields.string("service_tier")?.as_deref() {
        None | Some("auto" | "standard_only") => {}
        Some(_) => {
            let message =
                "Unsupported value: 'service_tier' must be 'auto' or 'standard_only'; there is one tier";
            return Err(ApiError::unsupported("service_tier", message));
        }
    }
    let stream = fields.flag("stream")?;
    let stop = super::stop(fields, "stop_sequences", cx.limits())?;
    Common::of_one(fields, cx, stream, "max_tokens", stop)
}

/// `{"type": "ephemeral"}`, for so long.
pub(super) fn cache_control(fields: &mut Fields, policy: UnknownFields) -> Result<(), ApiError> {
    let Some(mut control) = fields.object("cache_control")? else { return Ok(()) };
    control.word("type", &["ephemeral"])?;
    if control.has("ttl") {
        control.word("ttl", &["5m", "1h"])?;
    }
    control.finish(policy)
}

/// What a request says of its answer.
#[derive(Default)]
struct AskedFor {
    format: Option<Asked>,
    omit_thinking: bool,
}

/// What asking and counting read.
fn conversation(fields: &mut Fields, cx: &Context<'_>) -> Result<(Conversation, AskedFor), ApiError> {
    let policy = cx.settings.unknown_fields;
    let system = match fields.take("system") {
        None => None,
        Some(Value::String(text)) => Some(text),
        Some(Value::Array(blocks)) => Some(texts("system", blocks, policy)?),
        Some(other) => return Err(fields.mistyped("system", "a string or an array of text blocks", &other)),
    };
    let values = match fields.take(PROMPT_FIELD) {
        Some(Value::Array(values)) if !values.is_empty() => values,
        Some(Value::Array(_)) => return Err(ApiError::invalid(PROMPT_FIELD, "'messages' must not be empty")),
        None => return Err(fields.missing(PROMPT_FIELD)),
        Some(other) => return Err(fields.mistyped(PROMPT_FIELD, "an array of messages", &other)),
    };
    let mut turns = Turns { turns: Vec::new(), called: HashSet::new(), policy };
    for (i, value) in values.into_iter().enumerate() {
        turns.message(&format!("{PROMPT_FIELD}[{i}]"), value)?;
    }
    if let Some(Turn::Assistant(_)) = turns.turns.last() {
        let message = "Unsupported value: the last of 'messages' must not be the assistant's; \
                       this server does not continue answers";
        return Err(ApiError::unsupported(PROMPT_FIELD, message));
    }
    let system = system.map(|text| json!({"role": "system", "content": text}));
    let messages = system.into_iter().chain(turns.turns.into_iter().map(Turn::rendered)).collect();
    let tools = tools(fields, policy)?;
    context_management(fields, policy)?;
    let (mut reasoning, omit_thinking) = thinking(fields, cx)?;
    let (effort, format) = output_config(fields, policy)?;
    if let Some(effort) = effort
        && chat::template(cx, PROMPT_FIELD)?.variables().contains(reasoning::EFFORT)
    {
        reasoning.kwargs.insert(reasoning::EFFORT.to_owned(), effort.into());
    }
    let conversation = Conversation { field: PROMPT_FIELD, messages, tools, reasoning };
    Ok((conversation, AskedFor { format, omit_thinking }))
}

/// How much the model should do, and what the answer must be.
fn output_config(
    fields: &mut Fields,
    policy: UnknownFields,
) -> Result<(Option<&'static str>, Option<Asked>), ApiError> {
    let Some(mut config) = fields.object("output_config")? else { return Ok((None, None)) };
    let effort = config.has("effort").then(|| config.word("effort", EFFORTS)).transpose()?;
    let mut asked = None;
    if let Some(mut format) = config.object("format")? {
        format.word("type", &["json_schema"])?;
        let schema = match format.take("schema") {
            Some(schema @ Value::Object(_)) => schema,
            None => return Err(format.missing("schema")),
            Some(other) => return Err(format.mistyped("schema", "a JSON schema", &other)),
        };
        format.finish(policy)?;
        asked = Some(Asked { spec: ConstraintSpec::Json(schema), field: FORMAT });
    }
    config.finish(policy)?;
    Ok((effort, asked))
}

/// Edits of the conversation by the server: none is made, so none may be asked for. To keep all earlier thinking is none.
fn context_management(fields: &mut Fields, policy: UnknownFields) -> Result<(), ApiError> {
    let Some(mut management) = fields.object("context_management")? else { return Ok(()) };
    let edits = match management.take("edits") {
        None => Vec::new(),
        Some(Value::Array(edits)) => edits,
        Some(other) => return Err(management.mistyped("edits", "an array", &other)),
    };
    for (i, edit) in edits.into_iter().enumerate() {
        let mut edit = Fields::within(edit, &format!("context_management.edits[{i}]"))?;
        let (at, kind) = (edit.name("type"), edit.needed("type")?);
        if !kind.starts_with("clear_thinking_") || edit.take("keep").is_none_or(|keep| keep != "all") {
            let message = format!(
                "Unsupported value: '{at}' is '{kind}'; this server edits no conversation, so only 'clear_thinking' that keeps \
                 'all' is taken"
            );
            return Err(ApiError::unsupported(&at, message));
        }
        edit.finish(policy)?;
    }
    management.finish(policy)
}

/// Text blocks as one text.
fn texts(path: &str, blocks: Vec<Value>, policy: UnknownFields) -> Result<String, ApiError> {
    let mut texts = Vec::with_capacity(blocks.len());
    for (i, block) in blocks.into_iter().enumerate() {
        let mut block = Fields::within(block, &format!("{path}[{i}]"))?;
        block.word("type", &["text"])?;
        texts.push(block.needed("text")?);
        cache_control(&mut block, policy)?;
        block.finish(policy)?;
    }
    Ok(texts.join("\n"))
}

/// A turn, as templates count them.
enum Turn {
    User(Vec<String>),
    Assistant(Assistant),
    Result { id: String, content: String },
}

impl Turn {
    fn rendered(self) -> Value {
        match self {
            Self::User(texts) => json!({"role": "user", "content": texts.join("\n")}),
            Self::Result { id, content } => turns::result(&id, &content),
            Self::Assistant(turn) => turn.rendered(),
        }
    }
}

/// Messages, block by block.
struct Turns {
    turns: Vec<Turn>,
    /// Ids of calls so far.
    called: HashSet<String>,
    policy: UnknownFields,
}

impl Turns {
    fn message(&mut self, path: &str, value: Value) -> Result<(), ApiError> {
        let mut fields = Fields::within(value, path)?;
        let role = fields.word("role", &["user", "assistant"])?;
        let at = fields.name("content");
        let blocks = match fields.take("content") {
            Some(Value::String(text)) => vec![json!({"type": "text", "text": text})],
            // What an answer without text or calls is.
            Some(Value::Array(blocks)) if role == "assistant" || !blocks.is_empty() => blocks,
            Some(Value::Array(_)) => return Err(ApiError::invalid(&at, format!("'{at}' must not be empty"))),
            None => return Err(fields.missing("content")),
            Some(other) => return Err(fields.mistyped("content", "a string or an array of blocks", &other)),
        };
        fields.finish(self.policy)?;
        if role == "assistant" && !matches!(self.turns.last(), Some(Turn::Assistant(_))) {
            self.turns.push(Turn::Assistant(Assistant::default()));
        }
        for (i, block) in blocks.into_iter().enumerate() {
            let block = Fields::within(block, &format!("{at}[{i}]"))?;
            if role == "assistant" { self.assistants(block) } else { self.users(block) }?;
        }
        Ok(())
    }

    fn users(&mut self, mut block: Fields) -> Result<(), ApiError> {
        let kind = block.word("type", &["text", "tool_result"])?;
        cache_control(&mut block, self.policy)?;
        if kind == "text" {
            let text = block.needed("text")?;
            match self.turns.last_mut() {
                Some(Turn::User(texts)) => texts.push(text),
                _ => self.turns.push(Turn::User(vec![text])),
            }
            return block.finish(self.policy);
        }
        let id = block.needed("tool_use_id")?;
        if !self.called.contains(&id) {
            let at = block.name("tool_use_id");
            let message = format!("Invalid value for '{at}': no earlier 'tool_use' block has this id");
            return Err(ApiError::invalid(&at, message));
        }
        let at = block.name("content");
        let mut content = match block.take("content") {
            None => String::new(),
            Some(Value::String(text)) => text,
            Some(Value::Array(blocks)) => texts(&at, blocks, self.policy)?,
            Some(other) => {
                return Err(block.mistyped("content", "a string or an array of text blocks", &other));
            }
        };
        if block.flag("is_error")? {
            content.insert_str(0, "Error: ");
        }
        self.turns.push(Turn::Result { id, content });
        block.finish(self.policy)
    }

    fn assistants(&mut self, mut block: Fields) -> Result<(), ApiError> {
        let kind = block.word("type", &["text", "thinking", "tool_use"])?;
        cache_control(&mut block, self.policy)?;
        let Some(Turn::Assistant(turn)) = self.turns.last_mut() else {
            return Err(ApiError::internal("A turn was lost"));
        };
        match kind {
            "text" => turn.texts.push(block.needed("text")?),
            "thinking" => {
                turn.thoughts.push(block.needed("thinking")?);
                block.string("signature")?;
            }
            _ => {
                let id = block.needed("id")?;
                let name = tools::function_name(&mut block, MOST)?;
                let input = match block.take("input") {
                    Some(input @ Value::Object(_)) => input.to_string(),
                    None => return Err(block.missing("input")),
                    Some(other) => return Err(block.mistyped("input", "an object", &other)),
                };
                turn.call(&id, &name, &input);
                self.called.insert(id);
            }
        }
        block.finish(self.policy)
    }
}

fn tools(fields: &mut Fields, policy: UnknownFields) -> Result<Tools, ApiError> {
    let (mut told, mut all) = (Vec::new(), Vec::new());
    for (i, value) in tools::array(fields, MOST)?.into_iter().enumerate() {
        let mut tool = Fields::within(value, &format!("tools[{i}]"))?;
        if tool.has("type") {
            tool.word("type", &["custom"])?;
        }
        let name = tools::function_name(&mut tool, MOST)?;
        let mut function = json!({"name": name});
        let description = described(&mut tool)?;
        if !description.is_empty() {
            function["description"] = description.into();
        }
        // Input comes as the model writes it anyway.
        tool.flag("eager_input_streaming")?;
        let schema = match tool.take("input_schema") {
            Some(schema @ Value::Object(_)) => schema,
            None => return Err(tool.missing("input_schema")),
            Some(other) => return Err(tool.mistyped("input_schema", "a JSON schema", &other)),
        };
        function["parameters"] = schema.clone();
        let strict = tool.flag("strict")?;
        cache_control(&mut tool, policy)?;
        tool.finish(policy)?;
        told.push(json!({"type": "function", "function": function}));
        all.push(Tool { name, parameters: Some(schema), strict });
    }
    let (choice, parallel) = choice(fields, policy)?;
    tools::chosen(told, all, choice, parallel)
}

/// A tool's `description`, and below it its `input_examples`.
fn described(tool: &mut Fields) -> Result<String, ApiError> {
    let mut text = tool.string("description")?.unwrap_or_default();
    match tool.take("input_examples") {
        None => {}
        Some(Value::Array(examples)) => {
            for example in examples {
                let line = if text.is_empty() { "" } else { "\n" };
                text += &format!("{line}Example of its input: {example}");
            }
        }
        Some(other) => return Err(tool.mistyped("input_examples", "an array", &other)),
    }
    Ok(text)
}

/// `tool_choice`, and whether there may be more than one call.
fn choice(fields: &mut Fields, policy: UnknownFields) -> Result<(Choice, bool), ApiError> {
    let Some(mut choice) = fields.object(CHOICE)? else { return Ok((Choice::Any { required: false }, true)) };
    let kind = choice.word("type", &["auto", "any", "tool", "none"])?;
    let single = choice.flag("disable_parallel_tool_use")?;
    let name = choice.has("name").then(|| tools::function_name(&mut choice, MOST)).transpose()?;
    let missing = choice.missing("name");
    choice.finish(policy)?;
    let choice = match (kind, name) {
        ("tool", Some(name)) => Choice::Only { required: true, named: false, names: vec![name] },
        ("tool", None) => return Err(missing),
        (_, Some(_)) => {
            let message = "'tool_choice.name' is only allowed with the type 'tool'";
            return Err(ApiError::invalid("tool_choice.name", message));
        }
        ("none", None) => Choice::None,
        (kind, None) => Choice::Any { required: kind == "any" },
    };
    Ok((choice, !single))
}

/// How the model reasons, and whether that is left out of the answer.
fn thinking(fields: &mut Fields, cx: &Context<'_>) -> Result<(Reasoning, bool), ApiError> {
    let template = chat::template(cx, PROMPT_FIELD)?;
    let Some(mut thinking) = fields.object(THINKING)? else {
        return Ok((reasoning::switched(false, None, template), false));
    };
    let kind = thinking.word("type", &["enabled", "adaptive", "disabled"])?;
    let budget = thinking.count("budget_tokens", 1..=u32::MAX)?;
    match (kind, budget) {
        ("enabled", None) => return Err(thinking.missing("budget_tokens")),
        ("adaptive" | "disabled", Some(_)) => {
            let message = "'thinking.budget_tokens' is only allowed with the type 'enabled'";
            return Err(ApiError::invalid("thinking.budget_tokens", message));
        }
        _ => {}
    }
    let display = thinking.has("display").then(|| thinking.word("display", &["summarized", "omitted"]));
    let omit = display.transpose()? == Some("omitted");
    thinking.finish(cx.settings.unknown_fields)?;
    let on = match kind {
        "enabled" if !chat::can_reason(cx) => {
            let message =
                "Unsupported parameter: 'thinking', because this model's chat template knows no reasoning";
            return Err(ApiError::unsupported(THINKING, message));
        }
        // As the model likes.
        "adaptive" => chat::can_reason(cx),
        kind => kind == "enabled",
    };
    Ok((reasoning::switched(on, budget, template), omit))
}
