//! `response_format` and `structured_outputs`: what an answer's text must be.
//!
//! - `json_schema` is enforced with and without `strict`; its `name` and `description` say nothing to the model.
//! - `structured_outputs` has vLLM's names, of which one is given: `json`, `regex`, `choice` or `grammar` (Lark).
//! - That a prompt mentions JSON, as OpenAI demands for `json_object`, is not demanded.
//!
//! What is asked is read with the other fields; compiling takes longer, so it has threads of its own ([`compiled`]).

use std::sync::Arc;

use frugal_models::budget::Budget;
use frugal_models::constraint::{ConstraintError, ConstraintSpec};
use frugal_models::mask::Grammar;
use serde_json::{Value, json};

use super::fields::{Fields, mistyped};
use super::{Admitted, Budgeted};
use crate::error::ApiError;
use crate::settings::UnknownFields;
use crate::state::State;

const RESPONSE_FORMAT: &str = "response_format";
const STRUCTURED_OUTPUTS: &str = "structured_outputs";

/// Longest name of a schema, as OpenAI has it.
const NAME_CHARS: usize = 64;

/// A client that found the compilers busy may come back after so many seconds.
const RETRY_AFTER_S: u32 = 3;

/// What an answer must be, and the field that said so.
#[derive(Clone, Debug, PartialEq)]
pub struct Asked {
    /// To be compiled.
    pub spec: ConstraintSpec,
    /// Errors name it.
    pub field: &'static str,
}

/// `response_format`; None asks for nothing.
pub(super) fn response_format(fields: &mut Fields, policy: UnknownFields) -> Result<Option<Asked>, ApiError> {
    let Some(mut format) = fields.object(RESPONSE_FORMAT)? else { return Ok(None) };
    let name = format.name("type");
    let schema = match format.string("type")?.as_deref() {
        Some("text") => None,
        Some("json_object") => Some(json!({"type": "object"})),
        Some("json_schema") => Some(json_schema(&mut format, policy)?),
        Some(_) => {
            let message =
                format!("Invalid value for '{name}': supported are 'text', 'json_object' and 'json_schema'");
            return Err(ApiError::invalid(&name, message));
        }
        None => return Err(missing(&name)),
    };
    format.finish(policy)?;
    Ok(schema.map(|schema| Asked { spec: ConstraintSpec::Json(schema), field: RESPONSE_FORMAT }))
}

fn json_schema(format: &mut Fields, policy: UnknownFields) -> Result<Value, ApiError> {
    let mut fields = format.object("json_schema")?.ok_or_else(|| format.missing("json_schema"))?;
    let Named { schema, .. } = named_schema(&mut fields)?;
    fields.finish(policy)?;
    Ok(schema)
}

/// A schema and what it is called.
pub(super) struct Named {
    pub(super) name: String,
    pub(super) description: Option<String>,
    pub(super) schema: Value,
}

/// `name`, `description`, `strict` and `schema`.
pub(super) fn named_schema(fields: &mut Fields) -> Result<Named, ApiError> {
    let at = fields.name("name");
    let name = fields.string("name")?.ok_or_else(|| missing(&at))?;
    let fine = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if name.is_empty() || name.len() > NAME_CHARS || !name.chars().all(fine) {
        let message =
            format!("Invalid value for '{at}': expected 1 to {NAME_CHARS} letters, digits, '_' or '-'");
        return Err(ApiError::invalid(&at, message));
    }
    let description = fields.string("description")?;
    fields.flag("strict")?;
    let at = fields.name("schema");
    let schema = fields.take("schema").ok_or_else(|| missing(&at))?;
    if !schema.is_object() {
        return Err(fields.mistyped("schema", "an object", &schema));
    }
    Ok(Named { name, description, schema })
}

/// `structured_outputs`; None asks for nothing.
pub(super) fn structured_outputs(
    fields: &mut Fields,
    policy: UnknownFields,
) -> Result<Option<Asked>, ApiError> {
    let Some(mut outputs) = fields.object(STRUCTURED_OUTPUTS)? else { return Ok(None) };
    let mut specs = Vec::new();
    if let Some(schema) = outputs.take("json") {
        specs.push(ConstraintSpec::Json(parsed(&outputs.name("json"), schema)?));
    }
    specs.extend(outputs.string("regex")?.map(ConstraintSpec::Regex));
    if let Some(choices) = outputs.take("choice") {
        let at = outputs.name("choice");
        let wrong = |value: &Value| mistyped(&at, "an array of strings", value);
        let Value::Array(values) = choices else { return Err(wrong(&choices)) };
        let text = |value: Value| value.as_str().map(str::to_owned).ok_or_else(|| wrong(&value));
        specs.push(ConstraintSpec::Choice(values.into_iter().map(text).collect::<Result<_, _>>()?));
    }
    specs.extend(outputs.string("grammar")?.map(ConstraintSpec::Lark));
    outputs.finish(policy)?;
    match (specs.pop(), specs.is_empty()) {
        (Some(spec), true) => Ok(Some(Asked { spec, field: STRUCTURED_OUTPUTS })),
        _ => {
            let message =
                "'structured_outputs' must have exactly one of 'json', 'regex', 'choice' and 'grammar'";
            Err(ApiError::invalid(STRUCTURED_OUTPUTS, message))
        }
    }
}

/// A schema, as an object or as text that holds one.
fn parsed(at: &str, schema: Value) -> Result<Value, ApiError> {
    let schema = match schema {
        Value::String(text) => serde_json::from_str(&text)
            .map_err(|e| ApiError::invalid(at, format!("Invalid value for '{at}': it is not JSON: {e}")))?,
        schema => schema,
    };
    if schema.is_object() { Ok(schema) } else { Err(mistyped(at, "an object", &schema)) }
}

fn missing(name: &str) -> ApiError {
    ApiError::invalid(name, format!("Missing required parameter: '{name}'"))
}

/// One of both, or none.
pub(super) fn one_of(format: Option<Asked>, outputs: Option<Asked>) -> Result<Option<Asked>, ApiError> {
    match (format, outputs) {
        (Some(_), Some(_)) => {
            let message = "'structured_outputs' and 'response_format' must not both ask for something";
            Err(ApiError::invalid(STRUCTURED_OUTPUTS, message))
        }
        (format, outputs) => Ok(format.or(outputs)),
    }
}

/// The same with its grammar compiled, if it asks for one.
///
/// # Errors
/// 400 if the grammar is refused, 503 if too many wait for theirs.
pub async fn compiled(state: &State, mut admitted: Admitted) -> Result<Admitted, ApiError> {
    let engine = state.engine()?;
    let mut grammar: Option<Arc<dyn Grammar>> = None;
    if let Some(Asked { spec, field }) = admitted.constraint.take() {
        let (grammars, digest) = (engine.grammars.clone(), spec.digest());
        grammar = match grammars.compiled(&digest) {
            None => {
                let compile = move || grammars.compile(&spec).map_err(|e| refusal(field, &e));
                Some(state.text().compile((digest, field), compile).await?)
            }
            compiled => compiled,
        };
    }
    if let Some(Budgeted { tokens, marks, begun }) = admitted.budget {
        let budget = Budget::new(engine.tokenizer.clone(), grammar, tokens, (marks.open, marks.close), begun);
        let budget = budget.ok_or_else(|| {
            ApiError::unsupported(
                "thinking_budget",
                "This model's vocabulary cannot write the end of reasoning",
            )
        })?;
        grammar = Some(Arc::new(budget));
    }
    for prompt in &mut admitted.prompts {
        prompt.request.grammar = grammar.clone();
    }
    Ok(admitted)
}

fn refusal(field: &str, error: &ConstraintError) -> ApiError {
    match error {
        ConstraintError::Refused(why) => {
            ApiError::invalid(field, format!("Invalid value for '{field}': {why}"))
        }
        ConstraintError::Busy => ApiError::overloaded(RETRY_AFTER_S),
        _ => {
            tracing::error!(error = error as &dyn std::error::Error, "a grammar was not compiled");
            ApiError::internal("The grammar could not be compiled")
        }
    }
}
