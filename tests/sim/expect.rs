//! What a choice must come to, computed without any engine.

use std::sync::Arc;

use frugal_models::fake::expected_token;
use frugal_models::mask::Progress;
use frugal_models::step::{Constrained, Geometry, Sample, TokenBytes, TokenId};
use frugal_scheduler::request::{FinishReason, Request};

/// A choice that nobody disturbed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Expected {
    /// Without the end token, unless it is part of the text.
    pub(crate) tokens: Vec<TokenId>,
    pub(crate) reason: FinishReason,
    pub(crate) text_len: u32,
    /// Output tokens, the end token included.
    pub(crate) output: u32,
}

pub(crate) fn expected(
    geometry: &Geometry,
    text: &TokenBytes,
    room: u32,
    request: &Request,
    choice: u32,
) -> Expected {
    let prompt_len = request.prompt.len();
    let limit = request.max_tokens.min(room - prompt_len as u32) as usize;
    let mut tokens = request.prompt.to_vec();
    let (mut bytes, mut quiet) = (Vec::new(), 0);
    let done = |tokens: &[TokenId], reason, text_len: usize, output| Expected {
        tokens: tokens[prompt_len..].to_vec(),
        reason,
        text_len: text_len as u32,
        output: output as u32,
    };
    let mut matcher = request.grammar.as_ref().map(|grammar| grammar.matcher());
    for output in 1..=limit {
        let early = output <= request.min_tokens as usize;
        let next = matcher.as_mut().map(|matcher| matcher.next());
        if next.as_ref().is_some_and(|next| next.wait().expect("it is there").is_end()) {
            return done(&tokens, FinishReason::Complete, bytes.len(), output - 1);
        }
        let ends: Arc<[TokenId]> = if early { Arc::default() } else { request.end_tokens.clone() };
        let sample = Sample {
            params: request.sampling.clone(),
            seed: request.seed,
            choice,
            history: Vec::new(),
            prompt_len: prompt_len as u32,
            forbid: if early { request.end_tokens.clone() } else { Arc::default() },
            constraint: next.map(|next| Constrained { next: vec![next], ends }),
        };
        let Some(token) = expected_token(geometry, &tokens, &sample) else {
            return done(&tokens, FinishReason::Impossible, bytes.len(), output - 1);
        };
        if request.end_tokens.contains(&token) {
            let shown = request.include_stop && !text.get(token).is_empty();
            if shown || request.sampling.logprobs.is_some() {
                tokens.push(token);
            }
            if shown {
                bytes.extend_from_slice(text.get(token));
            }
            return done(&tokens, FinishReason::EndToken(token), bytes.len(), output);
        }
        tokens.push(token);
        bytes.extend_from_slice(text.get(token));
        if early {
            quiet = bytes.len();
        } else if let Some((index, text_len)) = stop(&bytes, quiet, &request.stop) {
            let kept = if request.include_stop { request.stop[index as usize].len() } else { 0 };
            return done(&tokens, FinishReason::StopString(index), text_len + kept, output);
        }
        match matcher.as_mut().map_or(Ok(Progress::Open), |matcher| matcher.advance(token)) {
            Ok(Progress::Open) => {}
            Ok(Progress::Complete) => return done(&tokens, FinishReason::Complete, bytes.len(), output),
            Err(_) => return done(&tokens, FinishReason::Impossible, bytes.len(), output),
        }
    }
    done(&tokens, FinishReason::Length, bytes.len(), limit)
}

/// The first match to end after byte `quiet`, and the longest of those that end together.
fn stop(text: &[u8], quiet: usize, stops: &[String]) -> Option<(u32, usize)> {
    (quiet + 1..=text.len()).find_map(|end| {
        let here = |s: &String| text[..end].ends_with(s.as_bytes());
        let longest = stops.iter().filter(|s| here(s)).map(String::len).max()?;
        let index = stops.iter().position(|s| here(s) && s.len() == longest)?;
        Some((index as u32, end - longest))
    })
}
