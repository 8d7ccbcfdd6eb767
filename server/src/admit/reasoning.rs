//! Reasoning: whether, how hard and how long a model reasons before it answers.
//!
//! - `chat_template_kwargs` are variables of the model's template; one that the template does not mention is refused.
//! - `reasoning_effort` is the variable of that name where the template mentions it; else `none` turns `enable_thinking` off, and
//!   other efforts turn it on, where that is mentioned. OpenAI's defaults, `none` and `medium`, ask for nothing elsewhere.
//! - `thinking_budget` is the number of tokens after which reasoning is closed for the model.

use frugal_models::template::ChatTemplate;
use serde_json::{Map, Value};

use super::fields::Fields;
use crate::error::ApiError;

const EFFORTS: &[&str] = &["none", "minimal", "low", "medium", "high", "xhigh"];

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
    let mentions = |name: &str| template.source().contains(name);
    let mut kwargs = match fields.take("chat_template_kwargs") {
        None => Map::new(),
        Some(Value::Object(kwargs)) => kwargs,
        Some(other) => return Err(fields.mistyped("chat_template_kwargs", "an object", &other)),
    };
    if let Some(unknown) = kwargs.keys().find(|name| name.is_empty() || !mentions(name)) {
        let name = format!("chat_template_kwargs.{unknown}");
        let message =
            format!("Unsupported parameter: this model's chat template has no variable '{unknown}'");
        return Err(ApiError::unsupported(&name, message));
    }
    if let Some(effort) = fields.string("reasoning_effort")? {
        if !EFFORTS.contains(&effort.as_str()) {
            let message =
                format!("Invalid value for 'reasoning_effort': supported are {}", EFFORTS.join(", "));
            return Err(ApiError::invalid("reasoning_effort", message));
        }
        match effort.as_str() {
            effort if mentions("reasoning_effort") => set(&mut kwargs, "reasoning_effort", effort.into())?,
            effort if mentions("enable_thinking") => {
                set(&mut kwargs, "enable_thinking", (effort != "none").into())?
            }
            "none" | "medium" => {}
            _ => {
                let message = "Unsupported value: 'reasoning_effort' does nothing for this model; only 'none' and 'medium', \
                               the defaults of OpenAI's models, are taken";
                return Err(ApiError::unsupported("reasoning_effort", message));
            }
        }
    }
    let budget = fields.count("thinking_budget", 0..=u32::MAX)?;
    if budget.is_some() && !can_reason {
        let message =
            "Unsupported parameter: 'thinking_budget', because this model's chat template knows no reasoning";
        return Err(ApiError::unsupported("thinking_budget", message));
    }
    Ok(Reasoning { kwargs, budget })
}

/// Reasoning that is on or off as a whole, where the template lets that be chosen.
pub(super) fn switched(on: bool, budget: Option<u32>, template: &ChatTemplate) -> Reasoning {
    let mut kwargs = Map::new();
    if template.source().contains("enable_thinking") {
        kwargs.insert("enable_thinking".to_owned(), on.into());
    }
    Reasoning { kwargs, budget }
}

/// A variable said twice must be said alike.
fn set(kwargs: &mut Map<String, Value>, name: &str, value: Value) -> Result<(), ApiError> {
    match kwargs.insert(name.to_owned(), value.clone()) {
        Some(other) if other != value => {
            let message = format!("'reasoning_effort' contradicts 'chat_template_kwargs.{name}'");
            Err(ApiError::invalid("reasoning_effort", message))
        }
        _ => Ok(()),
    }
}
