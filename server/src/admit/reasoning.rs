//! Reasoning: whether, how hard and how long a model reasons before it answers.
//!
//! - `chat_template_kwargs` are variables of the model's template; one that the template does not read is refused.
//! - `reasoning_effort` is the variable of that name where the template reads it; else `none` turns the template's switch off, and
//!   other efforts turn it on, where there is one ([`SWITCHES`]). OpenAI's defaults, `none` and `medium`, ask for nothing elsewhere.
//! - `thinking_budget` is the number of tokens after which reasoning is closed for the model.

use frugal_models::template::ChatTemplate;
use serde_json::{Map, Value};

use super::fields::Fields;
use crate::error::ApiError;

/// The variable of templates that know more than on and off.
pub(super) const EFFORT: &str = "reasoning_effort";
const EFFORTS: &[&str] = &["none", "minimal", "low", "medium", "high", "xhigh", "max"];

/// Variables of templates that turn reasoning on and off as a whole: Qwen's and GLM's, Granite's and DeepSeek's.
const SWITCHES: &[&str] = &["enable_thinking", "thinking"];

/// What a request says of reasoning.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reasoning {
    /// Variables for the template.
    pub(crate) kwargs: Map<String, Value>,
    /// Tokens of reasoning.
    pub(crate) budget: Option<u32>,
}

/// `chat_template_kwargs`, `reasoning_effort`, `thinking_budget`.
pub(super) fn take(
    fields: &mut Fields,
    template: &ChatTemplate,
    can_reason: bool,
) -> Result<Reasoning, ApiError> {
    let effort = fields.string("reasoning_effort")?;
    with_effort(fields, "reasoning_effort", effort, template, can_reason)
}

/// The same, with an effort that came in the field `name`.
pub(super) fn with_effort(
    fields: &mut Fields,
    name: &str,
    effort: Option<String>,
    template: &ChatTemplate,
    can_reason: bool,
) -> Result<Reasoning, ApiError> {
    let mut kwargs = kwargs(fields, template)?;
    if let Some(effort) = effort {
        set_effort(&mut kwargs, name, &effort, template)?;
    }
    let budget = fields.count("thinking_budget", 0..=u32::MAX)?;
    if budget.is_some() && !can_reason {
        let message =
            "Unsupported parameter: 'thinking_budget', because this model's chat template knows no reasoning";
        return Err(ApiError::unsupported("thinking_budget", message));
    }
    Ok(Reasoning { kwargs, budget })
}

/// `chat_template_kwargs`.
pub(crate) fn kwargs(fields: &mut Fields, template: &ChatTemplate) -> Result<Map<String, Value>, ApiError> {
    let kwargs = match fields.take("chat_template_kwargs") {
        None => Map::new(),
        Some(Value::Object(kwargs)) => kwargs,
        Some(other) => return Err(fields.mistyped("chat_template_kwargs", "an object", &other)),
    };
    if let Some(unknown) = kwargs.keys().find(|name| !template.variables().contains(*name)) {
        let name = format!("chat_template_kwargs.{unknown}");
        let message =
            format!("Unsupported parameter: this model's chat template has no variable '{unknown}'");
        return Err(ApiError::unsupported(&name, message));
    }
    Ok(kwargs)
}

fn set_effort(
    kwargs: &mut Map<String, Value>,
    name: &str,
    effort: &str,
    template: &ChatTemplate,
) -> Result<(), ApiError> {
    if !EFFORTS.contains(&effort) {
        let message = format!("Invalid value for '{name}': supported are {}", EFFORTS.join(", "));
        return Err(ApiError::invalid(name, message));
    }
    match effort {
        effort if template.variables().contains(EFFORT) => set(kwargs, name, EFFORT, effort.into()),
        effort => match switch(template) {
            Some(switch) => set(kwargs, name, switch, (effort != "none").into()),
            None if ["none", "medium"].contains(&effort) => Ok(()),
            None => {
                let message = format!(
                    "Unsupported value: '{name}' does nothing for this model; only 'none' and 'medium', \
                 the defaults of OpenAI's models, are taken"
                );
                Err(ApiError::unsupported(name, message))
            }
        },
    }
}

fn switch(template: &ChatTemplate) -> Option<&'static str> {
    SWITCHES.iter().copied().find(|switch| template.variables().contains(*switch))
}

/// Reasoning that is on or off as a whole, where the template lets that be chosen.
pub(super) fn switched(on: bool, budget: Option<u32>, template: &ChatTemplate) -> Reasoning {
    let mut kwargs = Map::new();
    if let Some(switch) = switch(template) {
        kwargs.insert(switch.to_owned(), on.into());
    }
    Reasoning { kwargs, budget }
}

/// A variable said twice must be said alike.
fn set(kwargs: &mut Map<String, Value>, name: &str, variable: &str, value: Value) -> Result<(), ApiError> {
    match kwargs.insert(variable.to_owned(), value.clone()) {
        Some(other) if other != value => {
            let message = format!("'{name}' contradicts 'chat_template_kwargs.{variable}'");
            Err(ApiError::invalid(name, message))
        }
        _ => Ok(()),
    }
}
