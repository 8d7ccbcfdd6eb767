//! `/v1/completions`: prompts are taken as they are, control-token text included, for they come from whoever
//! writes the template.

use std::sync::Arc;

use frugal_models::step::TokenId;
use serde_json::Value;

use super::fields::{Fields, mistyped, whole};
use super::{Admitted, Common, Context, Echo, Prompt, token_ids, unencodable};
use crate::error::ApiError;
use crate::settings::Caller;
use crate::state::State;

const PROMPT_FIELD: &str = "prompt";

/// As OpenAI has it.
const MAX_TOKENS_DEFAULT: u32 = 16;

/// A prompt as it was written.
#[derive(Debug, PartialEq)]
enum Written {
    Text(String),
    Ids(Vec<TokenId>),
}

/// Reads, checks and tokenizes a request.
pub fn admit(state: &State, caller: Caller, body: &[u8]) -> Result<Admitted, ApiError> {
    let cx = Context::new(state, caller)?;
    let mut fields = super::fields::parse(body)?;
    let mut common = Common::take(&mut fields, &cx)?;
    let logprobs = logprobs(&mut fields, cx.limits().logprobs)?;
    common.sampling.logprobs = logprobs;
    let echo = fields.flag("echo")?;
    let max_tokens = fields.count("max_tokens", 0..=u32::MAX)?.unwrap_or(MAX_TOKENS_DEFAULT);
    cx.check_output("max_tokens", Some(max_tokens))?;
    if max_tokens == 0 && !echo {
        return Err(ApiError::invalid("max_tokens", "'max_tokens' may be 0 only with 'echo'"));
    }
    let written = prompts(&mut fields, &cx)?;
    fields.finish(cx.settings.unknown_fields)?;

    let mut prompts = Vec::with_capacity(written.len());
    for prompt in written {
        let (ids, added) = encode(&cx, prompt)?;
        let echo = echo.then(|| echo_of(&cx, &ids, added));
        let mut request = common.request(&cx, PROMPT_FIELD, ids, Some(max_tokens))?;
        if echo.is_some() {
            // A prompt that is not continued is computed all the same, so that its usage is true.
            let scored = logprobs.or((max_tokens == 0).then_some(0));
            request.prompt_logprobs = request.prompt_logprobs.max(scored);
        }
        prompts.push(Prompt { request, echo });
        common.seed = common.seed.next()?;
    }
    common.admit(&cx, PROMPT_FIELD, prompts)
}

/// A number of alternatives; `false` asks for nothing.
fn logprobs(fields: &mut Fields, max: u32) -> Result<Option<u32>, ApiError> {
    match fields.take("logprobs") {
        None | Some(Value::Bool(false)) => Ok(None),
        Some(value) => match whole(&value) {
            None => Err(fields.mistyped("logprobs", "an integer", &value)),
            Some(n) => match u32::try_from(n) {
                Ok(n) if n <= max => Ok(Some(n)),
                _ => Err(ApiError::invalid(
                    "logprobs",
                    format!("Invalid value for 'logprobs': {n} is not between 0 and {max}"),
                )),
            },
        },
    }
}

/// A string, a list of strings, a list of token ids, or a list of those.
fn prompts(fields: &mut Fields, cx: &Context<'_>) -> Result<Vec<Written>, ApiError> {
    let expected = "a string, an array of strings, an array of token ids or an array of those";
    let values = match fields.take(PROMPT_FIELD) {
        None => return Err(ApiError::invalid(PROMPT_FIELD, "Missing required parameter: 'prompt'")),
        Some(Value::String(text)) => return Ok(vec![Written::Text(text)]),
        Some(Value::Array(values)) if values.is_empty() => {
            return Err(ApiError::invalid(PROMPT_FIELD, "'prompt' must not be empty"));
        }
        Some(Value::Array(values)) => values,
        Some(other) => return Err(fields.mistyped(PROMPT_FIELD, expected, &other)),
    };
    if values.iter().all(Value::is_number) {
        return Ok(vec![Written::Ids(token_ids(PROMPT_FIELD, &values, cx.vocab())?)]);
    }
    if values.len() > cx.limits().prompts {
        let message = format!("'prompt' has {} prompts, {} is the most", values.len(), cx.limits().prompts);
        return Err(ApiError::invalid(PROMPT_FIELD, message));
    }
    let strings = values.iter().all(Value::is_string);
    let written = values.into_iter().map(|value| match value {
        Value::String(text) if strings => Ok(Written::Text(text)),
        Value::Array(ids) => Ok(Written::Ids(token_ids(PROMPT_FIELD, &ids, cx.vocab())?)),
        other => Err(mistyped(PROMPT_FIELD, expected, &other)),
    });
    written.collect()
}

/// The tokens, and how many of the first ones are the server's own.
fn encode(cx: &Context<'_>, prompt: Written) -> Result<(Arc<[TokenId]>, usize), ApiError> {
    let tokenizer = &cx.engine.tokenizer;
    match prompt {
        Written::Ids(ids) => Ok((ids.into(), 0)),
        Written::Text(text) => {
            cx.check_text(PROMPT_FIELD, text.len())?;
            let ids = tokenizer.encode_prompt(&text).map_err(|e| unencodable(&e))?;
            let bos =
                ids.first().copied().filter(|first| tokenizer.add_bos() && tokenizer.bos() == Some(*first));
            let added = bos.is_some_and(|bos| !text.as_bytes().starts_with(&tokenizer.raw_bytes(bos)));
            Ok((ids.into(), usize::from(added)))
        }
    }
}

fn echo_of(cx: &Context<'_>, ids: &[TokenId], added: usize) -> Echo {
    let piece = |(i, &id): (usize, &TokenId)| {
        if i < added { Vec::new() } else { cx.engine.tokenizer.raw_bytes(id) }
    };
    Echo { pieces: ids.iter().enumerate().map(piece).collect() }
}
