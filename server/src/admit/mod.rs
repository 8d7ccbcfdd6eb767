//! Turns wire requests into admitted ones: after this, every value is known to be good.
//!
//! Absent on purpose: clocks and threads. Tokenizing happens here and takes time, so callers run this in
//! [`crate::text::TextPool`].

pub mod chat;
pub mod completions;
pub mod constraint;
pub mod fields;
pub mod messages;
pub(crate) mod reasoning;
pub(crate) mod responses;
mod sampling;
pub(crate) mod tools;
mod turns;

use std::sync::Arc;
use std::time::Duration;

use frugal_models::step::{SamplingParams, TokenId};
use frugal_models::syntax::Marks;
use frugal_models::tokenizer::TokenizerError;
use frugal_scheduler::handle::Place;
use frugal_scheduler::request::{Request, Tick};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::error::{ApiError, too_long};
use crate::form::Form;
use crate::settings::{Caller, Limits, Settings};
use crate::state::{Engine, State};
use fields::{Fields, mistyped, whole};
use sampling::sampling;

/// A request ready to be submitted, and how its answer is to look.
#[derive(Debug)]
pub struct Admitted {
    /// In the queue, for the first of its prompts: taken before the work.
    pub place: Option<Place>,
    /// One per prompt; for each, `n` choices.
    pub prompts: Vec<Prompt>,
    /// Choices per prompt.
    pub n: u32,
    /// Answer as a stream of server-sent events.
    pub stream: bool,
    /// End the stream with a chunk that holds `usage`.
    pub usage: ToldUsage,
    /// Log-probabilities of the answer, with so many alternatives.
    pub logprobs: Option<u32>,
    /// Log-probabilities of the prompt, with so many alternatives.
    pub prompt_logprobs: Option<u32>,
    /// Tokens that end a choice because the client said so.
    pub stop_token_ids: Arc<[TokenId]>,
    /// Tokens are named `token_id:N`.
    pub as_token_ids: bool,
    /// The field that holds the prompt: errors name it.
    pub prompt_field: &'static str,
    /// What the answer must be, to be compiled by [`constraint::compiled`].
    pub constraint: Option<constraint::Asked>,
    /// How the answer is read, if it is more than text.
    pub form: Option<Form>,
    /// A bound on reasoning, to be put around the grammar.
    pub budget: Option<Budgeted>,
    /// Reasoning is not shown.
    pub omit_reasoning: bool,
    /// The context left less than was asked for.
    pub cut_to_context: bool,
}

/// A bound on reasoning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budgeted {
    /// Tokens.
    pub tokens: u32,
    /// What encloses it.
    pub marks: Marks,
    /// The prompt opened it.
    pub begun: bool,
}

/// One prompt.
#[derive(Debug)]
pub struct Prompt {
    /// What the engine is told.
    pub request: Request,
    /// What the answer begins with.
    pub echo: Option<Echo>,
}

/// A prompt that is repeated before the answer.
#[derive(Debug)]
pub struct Echo {
    /// Bytes of each of the prompt's tokens in the text; none for tokens the server added.
    pub pieces: Vec<Vec<u8>>,
}

/// What an admission may look at.
pub(crate) struct Context<'a> {
    pub(crate) settings: &'a Settings,
    pub(crate) engine: &'a Engine,
    pub(crate) caller: Caller,
}

impl<'a> Context<'a> {
    /// Fails while the model is being loaded.
    pub(crate) fn new(state: &'a State, caller: Caller) -> Result<Self, ApiError> {
        Ok(Self { settings: state.settings(), engine: state.engine()?, caller })
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.settings.limits
    }

    pub(crate) fn context_max(&self) -> u32 {
        self.engine.handle.context_max()
    }

    pub(crate) fn vocab(&self) -> u32 {
        self.engine.handle.geometry().vocab
    }

    /// Refuses what can never fit before any work is done for it.
    fn check_output(&self, field: &str, max_tokens: Option<u32>) -> Result<Option<u32>, ApiError> {
        match max_tokens {
            Some(wanted) if wanted > self.context_max() => {
                Err(self.too_long(field, too_long(self.context_max(), wanted)))
            }
            fits => Ok(fits),
        }
    }

    /// The refusal of what is longer than the context.
    fn too_long(&self, field: &str, message: String) -> ApiError {
        self.engine.handle.too_long();
        ApiError::context_length(field, message)
    }

    /// Bounds the work of the tokenizer.
    pub(crate) fn check_text(&self, prompt_field: &str, bytes: usize) -> Result<(), ApiError> {
        let most = self.limits().prompt_bytes;
        if bytes <= most {
            return Ok(());
        }
        let message = format!("The text of '{prompt_field}' has {bytes} bytes, {most} is the most");
        Err(self.too_long(prompt_field, message))
    }
}

/// What all generating endpoints ask for.
#[derive(Debug)]
struct Common {
    stream: bool,
    usage: ToldUsage,
    /// The field that bounds the output: errors name it.
    output_field: &'static str,
    /// An output that is too long for the context ends with it, instead of being refused.
    fit_context: bool,
    as_token_ids: bool,
    n: u32,
    min_tokens: u32,
    ignore_eos: bool,
    seed: Seed,
    stop: Arc<[String]>,
    stop_token_ids: Arc<[TokenId]>,
    include_stop: bool,
    prompt_logprobs: Option<u32>,
    sampling: SamplingParams,
    cache_domain: [u8; 32],
    constraint: Option<constraint::Asked>,
    prediction: Arc<[TokenId]>,
}

impl Common {
    /// Of endpoints that give one answer and have fewer words: what all of them read, and `stop`.
    fn of_one(
        fields: &mut Fields,
        cx: &Context<'_>,
        stream: bool,
        output_field: &'static str,
        stop: Arc<[String]>,
    ) -> Result<Self, ApiError> {
        Ok(Self {
            stream,
            usage: ToldUsage::Last,
            output_field,
            fit_context: false,
            as_token_ids: false,
            n: 1,
            min_tokens: 0,
            ignore_eos: false,
            seed: Seed::take(fields)?,
            stop,
            stop_token_ids: Arc::default(),
            include_stop: false,
            prompt_logprobs: None,
            sampling: sampling(fields, cx)?,
            cache_domain: cache_domain(fields, cx.caller)?,
            constraint: None,
            prediction: Arc::default(),
        })
    }

    fn take(fields: &mut Fields, cx: &Context<'_>) -> Result<Self, ApiError> {
        model(fields, cx.settings)?;
        let limits = cx.limits();
        let stream = fields.flag("stream")?;
        let n = fields.count("n", 1..=limits.n)?.unwrap_or(1);
        if let Some(best_of) = fields.count("best_of", 1..=u32::MAX)?
            && best_of != n
        {
            let message = "Unsupported parameter: 'best_of' must equal 'n' on this server";
            return Err(ApiError::unsupported("best_of", message));
        }
        Ok(Self {
            stream,
            usage: told_usage(fields, stream, cx.settings)?,
            output_field: "max_tokens",
            fit_context: false,
            as_token_ids: fields.flag("return_tokens_as_token_ids")?,
            n,
            min_tokens: fields.count("min_tokens", 0..=cx.context_max())?.unwrap_or(0),
            ignore_eos: fields.flag("ignore_eos")?,
            seed: Seed::take(fields)?,
            stop: stop(fields, "stop", limits)?,
            stop_token_ids: stop_token_ids(fields, cx)?,
            include_stop: fields.flag("include_stop_str_in_output")?,
            prompt_logprobs: prompt_logprobs(fields, stream, limits)?,
            sampling: sampling(fields, cx)?,
            cache_domain: cache_domain(fields, cx.caller)?,
            constraint: constraint::structured_outputs(fields, cx.settings.unknown_fields)?,
            prediction: Arc::default(),
        })
    }

    /// The engine's request for one prompt. `max_tokens` None takes what the context has left.
    fn request(
        &self,
        cx: &Context<'_>,
        prompt_field: &str,
        prompt: Arc<[TokenId]>,
        max_tokens: Option<u32>,
    ) -> Result<Request, ApiError> {
        let available = cx.context_max();
        let length = u32::try_from(prompt.len()).unwrap_or(u32::MAX);
        if length == 0 {
            return Err(ApiError::invalid(
                prompt_field,
                format!("'{prompt_field}' must have at least one token"),
            ));
        }
        // Anthropic's words, which its clients search for as OpenAI's do for theirs.
        if self.fit_context && length >= available {
            let message = format!("prompt is too long: {length} tokens > {} maximum", available - 1);
            return Err(cx.too_long(prompt_field, message));
        }
        let max_tokens =
            max_tokens.map(|most| if self.fit_context { most.min(available - length) } else { most });
        let wanted = length.saturating_add(max_tokens.unwrap_or(1));
        if wanted > available {
            return Err(cx.too_long(prompt_field, too_long(available, wanted)));
        }
        // What no answer can be is no prediction; so this bounds what is kept of it.
        let predicted = u32::try_from(self.prediction.len()).unwrap_or(u32::MAX);
        if predicted > available - length {
            let left = available - length;
            let message =
                format!("'prediction' has {predicted} tokens, the context has {left} left for the answer");
            return Err(ApiError::context_length("prediction", message));
        }
        let max_tokens =
            max_tokens.unwrap_or_else(|| (available - length).min(self.held(cx.limits(), length)));
        if self.min_tokens > max_tokens {
            let message =
                format!("'min_tokens' is {}, more than the {max_tokens} of 'max_tokens'", self.min_tokens);
            return Err(ApiError::invalid("min_tokens", message));
        }
        let model_ends = if self.ignore_eos { Arc::default() } else { cx.engine.tokenizer.end_tokens() };
        let end_tokens = model_ends.iter().chain(&*self.stop_token_ids).copied().collect();
        Ok(Request {
            prompt,
            sampling: Arc::new(self.sampling.clone()),
            seed: self.seed.value,
            n: self.n,
            max_tokens,
            min_tokens: self.min_tokens,
            end_tokens,
            stop: self.stop.clone(),
            grammar: None,
            include_stop: self.include_stop,
            prediction: self.prediction.clone(),
            prompt_logprobs: self.prompt_logprobs,
            cache_domain: self.cache_domain,
            deadline: deadline(cx.engine.handle.now(), cx.limits().request_time),
            tenant: cx.caller.tenant,
        })
    }

    /// Output tokens that an answer may hold whatever the context leaves room for; at least 1, so that a refusal names what is too large.
    fn held(&self, limits: &Limits, prompt: u32) -> u32 {
        let prompts =
            self.prompt_logprobs.map_or(0, |top| u64::from(prompt) * u64::from(self.n) * width(Some(top)));
        let left = limits.response_entries.saturating_sub(prompts);
        let tokens = left / (u64::from(self.n) * width(self.sampling.logprobs)).max(1);
        u32::try_from(tokens).unwrap_or(u32::MAX).max(1)
    }

    /// The whole of it, once all prompts are known.
    fn admit(
        self,
        cx: &Context<'_>,
        prompt_field: &'static str,
        prompts: Vec<Prompt>,
    ) -> Result<Admitted, ApiError> {
        let entries: u64 = prompts.iter().map(|p| response_entries(&p.request)).fold(0, u64::saturating_add);
        if entries > cx.limits().response_entries {
            let message = format!(
                "The answer might hold {entries} tokens and log-probabilities, {} is the most; \
                 lower '{}', 'n' or the number of log-probabilities",
                cx.limits().response_entries,
                self.output_field
            );
            return Err(ApiError::invalid(self.output_field, message));
        }
        Ok(Admitted {
            place: None,
            prompts,
            n: self.n,
            stream: self.stream,
            usage: self.usage,
            logprobs: self.sampling.logprobs,
            prompt_logprobs: self.prompt_logprobs,
            stop_token_ids: self.stop_token_ids,
            as_token_ids: self.as_token_ids,
            prompt_field,
            form: None,
            budget: None,
            omit_reasoning: false,
            cut_to_context: false,
            constraint: self.constraint,
        })
    }
}

/// Which chunks of a stream hold `usage`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToldUsage {
    /// None.
    Never,
    /// One more behind the last.
    Last,
    /// And all others, with the tokens so far (vLLM's `continuous_usage_stats`).
    Always,
}

/// Tokens and alternatives that the answer to one prompt may hold.
fn response_entries(request: &Request) -> u64 {
    let output = u64::from(request.max_tokens) * u64::from(request.n) * width(request.sampling.logprobs);
    // Every choice may begin with them.
    let prompts = request.prompt.len() as u64 * u64::from(request.n);
    output.saturating_add(request.prompt_logprobs.map_or(0, |top| prompts * width(Some(top))))
}

/// A token and its alternatives.
fn width(top: Option<u32>) -> u64 {
    1 + u64::from(top.unwrap_or(0))
}

/// The tokenizer's own failure.
pub(crate) fn unencodable(error: &TokenizerError) -> ApiError {
    tracing::error!(error = error as &dyn std::error::Error, "a prompt was not tokenized");
    ApiError::internal("The prompt could not be tokenized")
}

fn deadline(now: Tick, after: Option<Duration>) -> Option<Tick> {
    let after = u64::try_from(after?.as_nanos()).unwrap_or(u64::MAX);
    Some(Tick(now.0.saturating_add(after)))
}

/// An absent `model` means the one there is.
pub(crate) fn model(fields: &mut Fields, settings: &Settings) -> Result<(), ApiError> {
    match fields.string("model")? {
        Some(name) if !settings.models.contains(&name) => Err(ApiError::model_not_found(&name)),
        _ => Ok(()),
    }
}

fn told_usage(fields: &mut Fields, stream: bool, settings: &Settings) -> Result<ToldUsage, ApiError> {
    let Some(mut options) = fields.object("stream_options")? else { return Ok(ToldUsage::Never) };
    if !stream {
        let message = "The 'stream_options' parameter is only allowed when 'stream' is enabled";
        return Err(ApiError::invalid("stream_options", message));
    }
    let include = options.flag("include_usage")?;
    let always = options.flag("continuous_usage_stats")?;
    options.finish(settings.unknown_fields)?;
    Ok(match (include, always) {
        (false, _) => ToldUsage::Never,
        (true, false) => ToldUsage::Last,
        (true, true) => ToldUsage::Always,
    })
}

/// What the randomness of an answer begins with.
#[derive(Clone, Copy, Debug)]
struct Seed {
    value: u64,
    /// By the client.
    given: bool,
}

impl Seed {
    /// Any 64 bits, signed or not; but -1 is none, as for vLLM and llama.cpp.
    fn take(fields: &mut Fields) -> Result<Self, ApiError> {
        let Some(value) = fields.take("seed").filter(|value| whole(value) != Some(-1)) else {
            return Self::drawn();
        };
        let seed = value.as_u64().or_else(|| whole(&value).map(i64::cast_unsigned));
        let seed = seed.ok_or_else(|| fields.mistyped("seed", "an integer of 64 bits", &value))?;
        Ok(Self { value: seed, given: true })
    }

    /// The system's randomness.
    fn drawn() -> Result<Self, ApiError> {
        let value = getrandom::u64().map_err(|e| {
            tracing::error!(error = %e, "the system has no random numbers");
            ApiError::internal("The server could not draw a seed")
        })?;
        Ok(Self { value, given: false })
    }

    /// For the next prompt: the same prompt twice is to be answered twice, unless the client says otherwise.
    fn next(self) -> Result<Self, ApiError> {
        if self.given { Ok(self) } else { Self::drawn() }
    }
}

/// The stop strings in the field `name`.
fn stop(fields: &mut Fields, name: &str, limits: &Limits) -> Result<Arc<[String]>, ApiError> {
    let expected = "a string or an array of strings";
    let values = match fields.take(name) {
        None => return Ok(Arc::default()),
        Some(Value::Array(values)) => values,
        Some(one) => vec![one],
    };
    if values.len() > limits.stop {
        let message = format!("'{name}' has {} strings, {} is the most", values.len(), limits.stop);
        return Err(ApiError::invalid(name, message));
    }
    let mut stop = Vec::with_capacity(values.len());
    for value in values {
        match value {
            Value::String(text) if text.is_empty() => {
                return Err(ApiError::invalid(name, format!("'{name}' must not hold an empty string")));
            }
            Value::String(text) if text.len() > limits.stop_bytes => {
                let message = format!(
                    "A string of '{name}' has {} bytes, {} is the most",
                    text.len(),
                    limits.stop_bytes
                );
                return Err(ApiError::invalid(name, message));
            }
            Value::String(text) => stop.push(text),
            other => return Err(fields.mistyped(name, expected, &other)),
        }
    }
    Ok(stop.into())
}

/// As many as stop strings at most; the same twice is once.
fn stop_token_ids(fields: &mut Fields, cx: &Context<'_>) -> Result<Arc<[TokenId]>, ApiError> {
    let name = "stop_token_ids";
    let values = match fields.take(name) {
        None => return Ok(Arc::default()),
        Some(Value::Array(values)) => values,
        Some(other) => return Err(fields.mistyped(name, "an array of token ids", &other)),
    };
    if values.len() > cx.limits().stop {
        let message = format!("'{name}' has {} ids, {} is the most", values.len(), cx.limits().stop);
        return Err(ApiError::invalid(name, message));
    }
    let mut ids = token_ids(name, &values, cx.vocab())?;
    ids.sort_unstable();
    ids.dedup();
    Ok(ids.into())
}

/// Ids below `vocab`, in the field `name`.
pub(crate) fn token_ids(name: &str, values: &[Value], vocab: u32) -> Result<Vec<TokenId>, ApiError> {
    let id = |value: &Value| {
        let id = whole(value).ok_or_else(|| mistyped(name, "token ids", value))?;
        let id = u32::try_from(id).ok().filter(|&id| id < vocab);
        let message = || ApiError::invalid(name, format!("'{name}' holds an id that is not below {vocab}"));
        id.map(TokenId).ok_or_else(message)
    };
    values.iter().map(id).collect()
}

/// As in vLLM, only whole answers hold them.
fn prompt_logprobs(fields: &mut Fields, stream: bool, limits: &Limits) -> Result<Option<u32>, ApiError> {
    let name = "prompt_logprobs";
    match fields.count(name, 0..=limits.logprobs)? {
        Some(_) if stream => {
            Err(ApiError::invalid(name, format!("'{name}' is only allowed when 'stream' is not enabled")))
        }
        wanted => Ok(wanted),
    }
}

/// The caller's domain, or a part of it that only those who know the salt share.
fn cache_domain(fields: &mut Fields, caller: Caller) -> Result<[u8; 32], ApiError> {
    match fields.string("cache_salt")? {
        None => Ok(caller.domain),
        Some(salt) => Ok(Sha256::new().chain_update(caller.domain).chain_update(salt).finalize().into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_is_a_duration_after_now() {
        for (now, after, due) in [
            (7, None, None),
            (7, Some(Duration::ZERO), Some(7)),
            (7, Some(Duration::from_millis(1500)), Some(1_500_000_007)),
            (7, Some(Duration::MAX), Some(u64::MAX)),
        ] {
            assert_eq!(deadline(Tick(now), after), due.map(Tick), "{after:?} after {now}");
        }
    }
}
