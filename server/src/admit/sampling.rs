//! How tokens are to be chosen.

use frugal_models::step::{SamplingParams, TokenId};
use serde_json::Value;

use super::Context;
use super::fields::{Fields, mistyped};
use crate::error::ApiError;

/// Below this a temperature chooses like 0: dividing by it would overflow.
const GREEDY_BELOW: f32 = 1e-5;

/// What a request says, and the engine's own where it says nothing.
pub(super) fn sampling(fields: &mut Fields, cx: &Context<'_>) -> Result<SamplingParams, ApiError> {
    let default = &cx.engine.sampling;
    let mut temperature = fields.number("temperature", 0.0..=2.0)?.unwrap_or(default.temperature);
    if temperature < GREEDY_BELOW {
        temperature = 0.0;
    }
    let mut top_p = fields.number("top_p", 0.0..=1.0)?.unwrap_or(default.top_p);
    // -1 and 0 both keep all, as in vLLM; what passes the vocabulary keeps all, too.
    let top_k = fields.integer("top_k", -1..=i64::from(u32::MAX))?;
    let mut top_k = top_k.map_or(default.top_k, |k| u32::try_from(k).unwrap_or(0).min(cx.vocab()));
    if top_p == 0.0 {
        // The smallest set that is not empty.
        (top_p, top_k) = (1.0, 1);
    }
    let repetition_penalty =
        fields.number("repetition_penalty", 0.0..=10.0)?.unwrap_or(default.repetition_penalty);
    if repetition_penalty < 0.01 {
        return Err(ApiError::invalid("repetition_penalty", "'repetition_penalty' must be at least 0.01"));
    }
    Ok(SamplingParams {
        temperature,
        top_k,
        top_p,
        min_p: fields.number("min_p", 0.0..=1.0)?.unwrap_or(default.min_p),
        repetition_penalty,
        presence_penalty: fields.number("presence_penalty", -2.0..=2.0)?.unwrap_or(default.presence_penalty),
        frequency_penalty: fields
            .number("frequency_penalty", -2.0..=2.0)?
            .unwrap_or(default.frequency_penalty),
        logit_bias: logit_bias(fields, cx)?,
        logprobs: None,
    })
}

fn logit_bias(fields: &mut Fields, cx: &Context<'_>) -> Result<Vec<(TokenId, f32)>, ApiError> {
    let name = "logit_bias";
    let entries = match fields.take(name) {
        None => return Ok(Vec::new()),
        Some(Value::Object(entries)) => entries,
        // "Empty lists ask for nothing."
        Some(Value::Array(none)) if none.is_empty() => return Ok(Vec::new()),
        Some(other) => return Err(fields.mistyped(name, "an object", &other)),
    };
    if entries.len() > cx.limits().logit_bias {
        let message =
            format!("'{name}' has {} entries, {} is the most", entries.len(), cx.limits().logit_bias);
        return Err(ApiError::invalid(name, message));
    }
    let mut bias = Vec::with_capacity(entries.len());
    for (key, value) in entries {
        let token = key.parse().ok().filter(|&id: &u32| id < cx.vocab());
        let token = token.ok_or_else(|| {
            ApiError::invalid(
                name,
                format!("A key of '{name}' is not the id of one of the {} tokens", cx.vocab()),
            )
        })?;
        let number = value.as_f64().ok_or_else(|| mistyped(name, "numbers as values", &value))?;
        if !(-100.0..=100.0).contains(&number) {
            return Err(ApiError::invalid(name, format!("A value of '{name}' is not between -100 and 100")));
        }
        #[expect(clippy::cast_possible_truncation, reason = "between -100 and 100, rounded to the nearest")]
        bias.push((TokenId(token), number as f32));
    }
    // "7" and "07" are one token: the last one counts, as with repeated keys.
    bias.reverse();
    bias.sort_by_key(|&(token, _)| token);
    bias.dedup_by_key(|&mut (token, _)| token);
    Ok(bias)
}
