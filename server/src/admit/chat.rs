//! `/v1/chat/completions`: messages become a prompt by the model's own template.
//!
//! - `developer` is `system` under its newer name; templates know the older one.
//! - A list of text parts is their texts, joined by newlines (as in vLLM and llama.cpp).
//! - `cache_control` promises nothing, as in messages: every prefix is cached while there is room.
//! - `name` reaches the template, and most templates do not use it.
//! - An assistant's message may lack its content, which is no text, or null beside calls.

use std::collections::HashSet;
use std::sync::Arc;

use frugal_models::constraint::ConstraintSpec;
use frugal_models::step::TokenId;
use frugal_models::syntax::{Answers, GrammarError, grammar};
use frugal_models::template::{Chat, ChatTemplate, Note, Piece, Rendered};
use serde_json::{Map, Value};

use super::constraint::Asked;
use super::fields::{Fields, mistyped};
use super::reasoning::{self, Reasoning};
use super::tools::{self, Tools};
use super::{Admitted, Budgeted, Common, Context, Prompt, constraint, messages, unencodable};
use crate::error::ApiError;
use crate::form::{Form, ModelForm};
use crate::settings::Caller;
use crate::state::State;

const PROMPT_FIELD: &str = "messages";

/// Longest `name`, as OpenAI has it.
const NAME_CHARS: usize = 64;

/// What a message may call itself: some clients say it, and it says nothing.
const MESSAGE_TYPES: &[&str] = &["text", "message"];

/// Reads, checks, renders and tokenizes a request.
pub fn admit(state: &State, caller: Caller, body: &[u8]) -> Result<Admitted, ApiError> {
    let cx = Context::new(state, caller)?;
    let mut fields = super::fields::parse(body)?;
    let mut common = Common::take(&mut fields, &cx)?;
    common.sampling.logprobs = logprobs(&mut fields, cx.limits().logprobs)?;
    let format = constraint::response_format(&mut fields, cx.settings.unknown_fields)?;
    common.constraint = constraint::one_of(format, common.constraint)?;
    let max_tokens = max_tokens(&mut fields, &cx)?;
    let tools = tools::take(&mut fields, cx.settings.unknown_fields)?;
    let messages = messages(&mut fields, &cx)?;
    let reasoning = reasoning::take(&mut fields, template(&cx, PROMPT_FIELD)?, can_reason(&cx))?;
    let prediction = prediction(&mut fields, &cx)?;
    fields.finish(cx.settings.unknown_fields)?;
    if let Some(text) = prediction {
        common.prediction = cx.engine.tokenizer.encode_plain(&text).map_err(|e| unencodable(&e))?.into();
    }
    Conversation { field: PROMPT_FIELD, messages, tools, reasoning }.admit(&cx, common, max_tokens)
}

/// A conversation that was read and checked, in whichever API's words it came.
pub(super) struct Conversation {
    /// The field that holds it: errors name it.
    pub(super) field: &'static str,
    /// As templates know them.
    pub(super) messages: Vec<Value>,
    pub(super) tools: Tools,
    pub(super) reasoning: Reasoning,
}

impl Conversation {
    /// What the model sees of it, as text and as tokens.
    pub(super) fn prompt(&self, cx: &Context<'_>) -> Result<(Rendered, Vec<TokenId>), ApiError> {
        let chat = Chat {
            messages: &self.messages,
            tools: &self.tools.told,
            kwargs: Some(&self.reasoning.kwargs),
            add_generation_prompt: true,
        };
        let rendered = rendered(cx, &chat, self.field)?;
        let prompt = cx.engine.tokenizer.encode_rendered(&rendered).map_err(|e| unencodable(&e))?;
        Ok((rendered, prompt))
    }

    /// Ready to be submitted.
    pub(super) fn admit(
        self,
        cx: &Context<'_>,
        mut common: Common,
        max_tokens: Option<u32>,
    ) -> Result<Admitted, ApiError> {
        let (rendered, prompt) = self.prompt(cx)?;
        let form = form(cx, &self.tools, &rendered.text(), Form::key(common.seed.value, &prompt));
        common.constraint = formed(cx, &form, &self.tools, common.constraint.take())?;
        let budget = budget(&form, &self.reasoning);
        let request = common.request(cx, self.field, prompt.into(), max_tokens)?;
        let admitted = common.admit(cx, self.field, vec![Prompt { request, echo: None }])?;
        Ok(Admitted { form: Some(form).filter(Form::tells), budget, ..admitted })
    }
}

/// The model's template; without one there is no chat.
pub(super) fn template<'a>(cx: &Context<'a>, field: &str) -> Result<&'a ChatTemplate, ApiError> {
    cx.engine.template.as_deref().ok_or_else(|| {
        ApiError::invalid(field, "This model has no chat template; use /v1/completions instead")
    })
}

/// Whether the model marks its reasoning.
pub(super) fn can_reason(cx: &Context<'_>) -> bool {
    cx.engine.form.syntax.reasoning().is_some()
}

/// What the model's template makes of `messages`, `tools` and `chat_template_kwargs`, which are all that is left of a request.
pub(crate) fn render(
    mut fields: Fields,
    add_generation_prompt: bool,
    cx: &Context<'_>,
) -> Result<Rendered, ApiError> {
    let policy = cx.settings.unknown_fields;
    let messages = messages(&mut fields, cx)?;
    let (tools, _) = tools::told(&mut fields, policy)?;
    let kwargs = reasoning::kwargs(&mut fields, template(cx, PROMPT_FIELD)?)?;
    fields.finish(policy)?;
    let chat = Chat { messages: &messages, tools: &tools, kwargs: Some(&kwargs), add_generation_prompt };
    rendered(cx, &chat, PROMPT_FIELD)
}

/// No longer than a prompt may be. Of tools that the template says nothing of the model is told in words.
fn rendered(cx: &Context<'_>, chat: &Chat<'_>, field: &str) -> Result<Rendered, ApiError> {
    let template = template(cx, field)?;
    let syntax = &cx.engine.form.syntax;
    let written = (!syntax.has_calls()).then(|| tools::written_out(chat.messages));
    let chat = Chat { messages: written.as_deref().unwrap_or(chat.messages), ..*chat };
    let says_nothing = !(syntax.has_calls() && template.reads_tools());
    let rendered = match chat.tools {
        [_, ..] if says_nothing => {
            let (text, marked) = tools::note(chat.tools, syntax);
            template.render_noted(&Chat { tools: &[], ..chat }, &Note { text: &text, marked: &marked })
        }
        _ => template.render(&chat),
    };
    let rendered =
        rendered.map_err(|e| ApiError::invalid(field, format!("The model's chat template refused: {e}")))?;
    cx.check_text(field, rendered.pieces().iter().map(piece_bytes).sum())?;
    Ok(rendered)
}

/// How the answer is to be read.
fn form(cx: &Context<'_>, tools: &Tools, prompt: &str, key: [u8; 32]) -> Form {
    let model = match tools.callable.is_empty() {
        true => cx.engine.form.clone(),
        false => ModelForm::new(cx.engine.form.syntax.with_calls(), &cx.engine.tokenizer),
    };
    let in_reasoning = model.syntax.begins_in_reasoning(prompt);
    Form { model, tools: Arc::clone(&tools.callable), in_reasoning, named: tools.named, key }
}

/// What the answer as a whole must be, calls and reasoning included.
fn formed(
    cx: &Context<'_>,
    form: &Form,
    tools: &Tools,
    asked: Option<Asked>,
) -> Result<Option<Asked>, ApiError> {
    let reasons = form.model.syntax.reasoning().is_some();
    let whole = tools.callable.is_empty() && !reasons;
    if whole || (asked.is_none() && !tools.need_grammar()) {
        return Ok(asked);
    }
    let field = asked.as_ref().map_or("tools", |asked| asked.field);
    let refused = |field: &'static str, e: &dyn std::fmt::Display| {
        ApiError::invalid(field, format!("Invalid value for '{field}': {e}"))
    };
    let content = asked.map(|asked| asked.spec.rule().map_err(|e| refused(field, &e))).transpose()?;
    let answers = Answers {
        tools: &tools.callable,
        required: tools.required,
        parallel: tools.parallel,
        content: content.as_deref(),
        in_reasoning: form.in_reasoning,
        reasoning: reasons,
    };
    let text = grammar(&form.model.syntax, &answers, &cx.engine.tokenizer).map_err(|e| match e {
        GrammarError::Schema { .. } => refused("tools", &e),
        e => refused(field, &e),
    })?;
    Ok(Some(Asked { spec: ConstraintSpec::Composed(text), field }))
}

fn budget(form: &Form, reasoning: &Reasoning) -> Option<Budgeted> {
    let marks = form.model.syntax.reasoning()?;
    Some(Budgeted { tokens: reasoning.budget?, marks, begun: form.in_reasoning })
}

fn piece_bytes(piece: &Piece) -> usize {
    match piece {
        Piece::Text(text) | Piece::Control(text) => text.len(),
    }
}

/// `max_completion_tokens`, or `max_tokens`, its older name.
fn max_tokens(fields: &mut Fields, cx: &Context<'_>) -> Result<Option<u32>, ApiError> {
    let range = 1..=u32::MAX;
    let new = fields.count("max_completion_tokens", range.clone())?;
    let old = fields.count("max_tokens", range)?;
    match (new, old) {
        (Some(new), Some(old)) if new != old => {
            let message = "'max_tokens' and 'max_completion_tokens' mean the same and differ";
            Err(ApiError::invalid("max_tokens", message))
        }
        (new, old) => cx.check_output("max_tokens", new.or(old)),
    }
}

fn logprobs(fields: &mut Fields, max: u32) -> Result<Option<u32>, ApiError> {
    let wanted = fields.flag("logprobs")?;
    let top = fields.count("top_logprobs", 0..=max)?;
    match (wanted, top) {
        (true, top) => Ok(Some(top.unwrap_or(0))),
        (false, None | Some(0)) => Ok(None),
        (false, Some(_)) => {
            Err(ApiError::invalid("top_logprobs", "'top_logprobs' is only allowed when 'logprobs' is true"))
        }
    }
}

/// Checked and as templates know them.
fn messages(fields: &mut Fields, cx: &Context<'_>) -> Result<Vec<Value>, ApiError> {
    let messages = match fields.take(PROMPT_FIELD) {
        Some(Value::Array(messages)) if !messages.is_empty() => messages,
        Some(Value::Array(_)) => return Err(ApiError::invalid(PROMPT_FIELD, "'messages' must not be empty")),
        None => return Err(ApiError::invalid(PROMPT_FIELD, "Missing required parameter: 'messages'")),
        Some(other) => return Err(fields.mistyped(PROMPT_FIELD, "an array of messages", &other)),
    };
    let mut announced = HashSet::new();
    let messages = messages.into_iter().enumerate();
    let one = |(i, message)| one_message(&format!("{PROMPT_FIELD}[{i}]"), message, &mut announced, cx);
    messages.map(one).collect()
}

fn one_message(
    path: &str,
    message: Value,
    announced: &mut HashSet<String>,
    cx: &Context<'_>,
) -> Result<Value, ApiError> {
    let Value::Object(map) = message else { return Err(mistyped(path, "an object", &message)) };
    let mut fields = Fields::nested(map, path);
    let role = fields.string("role")?;
    let role = match role.as_deref() {
        Some("system" | "developer") => "system",
        Some("user") => "user",
        Some("assistant") => "assistant",
        Some("tool") => "tool",
        Some(_) => {
            let message = format!(
                "Invalid value for '{path}.role': supported are system, developer, user, assistant and tool"
            );
            return Err(ApiError::invalid(&fields.name("role"), message));
        }
        None => {
            let name = fields.name("role");
            return Err(ApiError::invalid(&name, format!("Missing required parameter: '{name}'")));
        }
    };
    if fields.has("type") {
        fields.word("type", MESSAGE_TYPES)?;
    }
    let content = content(&mut fields, cx)?;
    if content.is_none() && role != "assistant" {
        return Err(fields.missing("content"));
    }
    let mut rendered = Map::new();
    rendered.insert("role".to_owned(), role.into());
    rendered.insert("content".to_owned(), content.as_deref().unwrap_or_default().into());
    if let Some(name) = fields.string("name")? {
        if name.chars().count() > NAME_CHARS {
            let message = format!("'{path}.name' has more than {NAME_CHARS} characters");
            return Err(ApiError::invalid(&fields.name("name"), message));
        }
        rendered.insert("name".to_owned(), name.into());
    }
    if role == "tool" {
        rendered.insert("tool_call_id".to_owned(), tools::answered(&mut fields, announced)?.into());
    }
    if role == "assistant" {
        let calls = tools::calls(&mut fields, announced, cx.settings.unknown_fields)?;
        if !calls.is_empty() {
            // Templates tell null from no text beside calls.
            rendered.insert("content".to_owned(), content.into());
            rendered.insert("tool_calls".to_owned(), calls.into());
        }
        if let Some(reasoning) = fields.string("reasoning_content")? {
            rendered.insert("reasoning_content".to_owned(), reasoning.into());
        }
        // What answers of ours and of OpenAI hold, sent back.
        if let Some(refusal) = fields.string("refusal")? {
            let name = fields.name("refusal");
            let message = format!("Unsupported parameter: '{name}' {refusal:?} has no place in a prompt");
            return Err(ApiError::unsupported(&name, message));
        }
    }
    fields.finish(cx.settings.unknown_fields)?;
    Ok(Value::Object(rendered))
}

/// What the answer may turn out to be (OpenAI's predicted outputs). It changes how soon the answer comes, and nothing else.
fn prediction(fields: &mut Fields, cx: &Context<'_>) -> Result<Option<String>, ApiError> {
    let Some(mut prediction) = fields.object("prediction")? else { return Ok(None) };
    prediction.word("type", &["content"])?;
    let text = content(&mut prediction, cx)?.ok_or_else(|| prediction.missing("content"))?;
    prediction.finish(cx.settings.unknown_fields)?;
    cx.check_text("prediction", text.len())?;
    Ok(Some(text))
}

/// `content`: a string, or an array of texts.
fn content(fields: &mut Fields, cx: &Context<'_>) -> Result<Option<String>, ApiError> {
    match fields.take("content") {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(Value::Array(parts)) => text_of_parts(&fields.name("content"), parts, cx).map(Some),
        Some(other) => Err(fields.mistyped("content", "a string or an array of text parts", &other)),
    }
}

fn text_of_parts(path: &str, parts: Vec<Value>, cx: &Context<'_>) -> Result<String, ApiError> {
    let mut texts = Vec::with_capacity(parts.len());
    for (i, part) in parts.into_iter().enumerate() {
        let path = format!("{path}[{i}]");
        let Value::Object(map) = part else { return Err(mistyped(&path, "an object", &part)) };
        let mut part = Fields::nested(map, &path);
        let kind = part.string("type")?;
        if kind.as_deref() != Some("text") {
            let name = part.name("type");
            let message = format!("Unsupported value: '{name}' must be 'text'; this server reads text only");
            return Err(ApiError::unsupported(&name, message));
        }
        let name = part.name("text");
        let text = part.string("text")?;
        texts.push(
            text.ok_or_else(|| ApiError::invalid(&name, format!("Missing required parameter: '{name}'")))?,
        );
        messages::cache_control(&mut part, cx.settings.unknown_fields)?;
        part.finish(cx.settings.unknown_fields)?;
    }
    Ok(texts.join("\n"))
}
