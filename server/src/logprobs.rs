//! Log-probabilities in OpenAI's two shapes.
//!
//! Every token of the answer has an entry, in order, also those whose text a stop string took back; in a stream an
//! entry comes when its token does, which may be before its text. What is not a finite number is -9999, for JSON
//! knows no infinity.
//!
//! Tokens are named by their text. A token that is a part of a character has none: in completions, whose
//! alternatives are the keys of an object, it is `bytes:\xe2\x82` (as OpenAI has it); in chats U+FFFD, with `bytes`
//! beside it. `return_tokens_as_token_ids` names all tokens `token_id:N` instead, which is the only
//! way to tell apart two tokens of the same text.

use std::fmt::Write;
use std::sync::Arc;

use frugal_models::step::{TokenId, TokenScore};
use frugal_models::tokenizer::Tokenizer;
use serde::{Serialize, Serializer};
use utoipa::ToSchema;

use crate::stream::Scored;

const NOT_FINITE: f32 = -9999.0;

/// Names tokens for one request.
#[derive(Clone)]
pub struct Names {
    /// The model's.
    pub tokenizer: Arc<Tokenizer>,
    /// `token_id:N` instead of text.
    pub as_token_ids: bool,
}

impl Names {
    fn by_id(&self, token: TokenId) -> Option<String> {
        self.as_token_ids.then(|| format!("token_id:{}", token.0))
    }

    /// For completions.
    fn escaped(&self, token: TokenId) -> String {
        self.by_id(token).unwrap_or_else(|| {
            String::from_utf8(self.tokenizer.raw_bytes(token)).unwrap_or_else(|error| {
                let mut name = String::from("bytes:");
                for byte in error.as_bytes() {
                    write!(name, "\\x{byte:02x}").expect("a string takes everything");
                }
                name
            })
        })
    }

    /// For chats.
    fn lossy(&self, token: TokenId) -> String {
        self.by_id(token).unwrap_or_else(|| self.tokenizer.token_text(token))
    }
}

/// `logprobs` of a chat's choice.
#[derive(Debug, Serialize, ToSchema)]
pub struct ChatLogprobs {
    content: Vec<ChatToken>,
    #[schema(value_type = Option<Vec<ChatToken>>)]
    refusal: Option<()>,
}

/// A token with its log-probability.
#[derive(Debug, Serialize, ToSchema)]
pub struct ChatToken {
    #[serde(flatten)]
    token: Alternative,
    top_logprobs: Vec<Alternative>,
}

#[derive(Debug, Serialize, ToSchema)]
struct Alternative {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
}

impl ChatToken {
    /// Of a token that has a score; others have no place in this shape.
    pub fn new(names: &Names, token: &Scored) -> Option<Self> {
        let alternative = |&(token, logprob): &(TokenId, f32)| Alternative {
            token: names.lossy(token),
            logprob: finite(logprob),
            bytes: names.tokenizer.raw_bytes(token),
        };
        let score = token.score.as_ref()?;
        Some(Self {
            token: alternative(&(score.token, score.logprob)),
            top_logprobs: score.top.iter().map(alternative).collect(),
        })
    }

    /// Bytes that it writes.
    pub fn byte_count(&self) -> usize {
        self.token.bytes.len()
    }
}

impl ChatLogprobs {
    /// Of all tokens.
    pub fn new(names: &Names, tokens: &[Scored]) -> Self {
        Self {
            content: tokens.iter().filter_map(|token| ChatToken::new(names, token)).collect(),
            refusal: None,
        }
    }
}

/// `logprobs` of a completion's choice: parallel lists.
#[derive(Debug, Default, Serialize, ToSchema)]
pub struct CompletionLogprobs {
    tokens: Vec<String>,
    /// Null for the prompt's first token, which nothing predicts.
    token_logprobs: Vec<Option<f32>>,
    /// The best ones, and the token itself if it is not among them.
    #[schema(value_type = Vec<Option<HashMap<String, f32>>>)]
    top_logprobs: Vec<Option<Ranked>>,
    /// Characters of the choice's text that are complete before the token.
    text_offset: Vec<usize>,
}

/// An object in the order of its members: best first.
#[derive(Debug)]
struct Ranked(Vec<(String, f32)>);

impl Serialize for Ranked {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_map(self.0.iter().map(|(name, logprob)| (name, logprob)))
    }
}

impl Ranked {
    /// Of tokens with the same name the likeliest counts.
    fn new(names: &Names, score: &TokenScore) -> Self {
        let mut all: Vec<(String, f32)> = Vec::with_capacity(score.top.len() + 1);
        for &(token, logprob) in score.top.iter().chain([&(score.token, score.logprob)]) {
            let name = names.escaped(token);
            if all.iter().all(|(known, _)| *known != name) {
                all.push((name, finite(logprob)));
            }
        }
        Self(all)
    }
}

impl CompletionLogprobs {
    /// Of all tokens.
    pub fn new(names: &Names, tokens: &[Scored]) -> Self {
        let mut all = Self::default();
        for token in tokens {
            all.tokens.push(names.escaped(token.token));
            all.token_logprobs.push(token.score.as_ref().map(|s| finite(s.logprob)));
            all.top_logprobs.push(token.score.as_ref().map(|s| Ranked::new(names, s)));
            all.text_offset.push(token.text_offset);
        }
        all
    }
}

/// `prompt_logprobs` as vLLM has it: for each token of the prompt, itself and then the best ones, by id; null for the
/// first token, which nothing predicts.
#[derive(Clone, Debug)]
pub struct PromptLogprobs(Vec<Option<Vec<(TokenId, PromptToken)>>>);

/// One of the tokens that could have stood there.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct PromptToken {
    logprob: f32,
    /// 1 for the likeliest.
    rank: u32,
    decoded_token: String,
}

impl PromptLogprobs {
    /// Of a prompt's tokens.
    pub fn new(names: &Names, tokens: &[Scored]) -> Self {
        let entry = |token: TokenId, logprob: f32, rank: u32| {
            (token, PromptToken { logprob: finite(logprob), rank, decoded_token: names.lossy(token) })
        };
        let position = |score: &TokenScore| {
            let others = score.top.iter().zip(1..).filter(|((token, _), _)| *token != score.token);
            let others = others.map(|(&(token, logprob), rank)| entry(token, logprob, rank));
            std::iter::once(entry(score.token, score.logprob, score.rank)).chain(others).collect()
        };
        Self(tokens.iter().map(|t| t.score.as_ref().map(position)).collect())
    }
}

impl Serialize for PromptLogprobs {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        struct Position<'a>(&'a [(TokenId, PromptToken)]);
        impl Serialize for Position<'_> {
            fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.collect_map(self.0.iter().map(|(token, entry)| (token.0, entry)))
            }
        }
        to.collect_seq(self.0.iter().map(|position| position.as_deref().map(Position)))
    }
}

fn finite(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob } else { NOT_FINITE }
}
