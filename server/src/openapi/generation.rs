//! What requests have in common, as a schema: see `admit::Common`, which reads it.

use serde::Serialize;
use utoipa::ToSchema;

/// How a stream is told.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StreamOptions {
    /// End the stream with a chunk that holds `usage`.
    #[schema(example = true)]
    pub include_usage: Option<bool>,
    /// With it, let every other chunk hold the tokens so far (as in vLLM).
    #[schema(example = true)]
    pub continuous_usage_stats: Option<bool>,
}

/// One stop string or several.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
#[schema(example = json!(["\n\n"]))]
pub enum Stop {
    /// One.
    One(String),
    /// Several.
    Several(Vec<String>),
}

/// What can be had: there is one tier.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ServiceTier {
    /// The one there is.
    Auto,
    /// The one there is.
    Default,
}

/// As long as there is room for it.
#[derive(Serialize, ToSchema)]
pub enum CacheRetention {
    /// In the documentation's words.
    #[serde(rename = "in_memory")]
    InMemory,
    /// In the client library's words.
    #[serde(rename = "in-memory")]
    InMemoryToo,
}

/// What an answer's text must be: exactly one of these.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"choice": ["yes", "no"]}))]
pub struct StructuredOutputs {
    /// JSON that fits this schema.
    #[schema(value_type = Option<Object>)]
    pub json: Option<serde_json::Value>,
    /// Text that matches.
    pub regex: Option<String>,
    /// One of these texts.
    pub choice: Option<Vec<String>>,
    /// Text of this grammar, in Lark.
    pub grammar: Option<String>,
}

/// Defines a request of its own fields and those that all requests share whose answers are sampled.
macro_rules! sampled_request {
    ($(#[$about:meta])* pub struct $name:ident { $($own:tt)* }) => {
        $(#[$about])*
        #[derive(serde::Serialize, utoipa::ToSchema)]
        #[serde(deny_unknown_fields)]
        pub struct $name {
            $($own)*
            /// A name of the model; if absent, the one there is.
            #[schema(example = json!(null))]
            pub model: Option<String>,
            /// The same seed gives the same tokens, whatever else is running. Absent, or -1: a random one.
            #[schema(example = 1)]
            pub seed: Option<i64>,
            /// 0 is greedy.
            #[schema(minimum = 0, maximum = 2, example = 0.7)]
            pub temperature: Option<f32>,
            /// Keep the smallest set of likeliest tokens whose probability reaches this.
            #[schema(minimum = 0, maximum = 1, example = 0.9)]
            pub top_p: Option<f32>,
            /// Keep the k likeliest tokens; -1 and 0 keep all.
            #[schema(minimum = -1, example = 40)]
            pub top_k: Option<i64>,
            /// Drop tokens less likely than this times the likeliest.
            #[schema(minimum = 0, maximum = 1, example = 0.05)]
            pub min_p: Option<f32>,
            /// Taken off the logits of tokens that are in the answer.
            #[schema(minimum = -2, maximum = 2, example = 0.5)]
            pub presence_penalty: Option<f32>,
            /// Taken off the logits of tokens as often as they are in the answer.
            #[schema(minimum = -2, maximum = 2, example = 0.5)]
            pub frequency_penalty: Option<f32>,
            /// Divides the positive and multiplies the negative logits of tokens seen.
            #[schema(minimum = 0.01, maximum = 10, example = 1.1)]
            pub repetition_penalty: Option<f32>,
            /// Token ids and what is added to their logits, from -100 to 100; at most `server.max_logit_bias`.
            #[schema(example = json!({"0": -100}))]
            pub logit_bias: Option<std::collections::HashMap<String, f32>>,
            /// Prefixes are shared only with requests of the same salt.
            #[schema(example = "salt")]
            pub cache_salt: Option<String>,
        }
    };
}
pub(crate) use sampled_request;

/// Defines a request of its own fields and those that requests for chats and completions share.
macro_rules! generation_request {
    ($(#[$about:meta])* pub struct $name:ident { $($own:tt)* }) => {
        $crate::openapi::sampled_request! {
            $(#[$about])*
            pub struct $name {
                $($own)*
                /// Answer as a stream of server-sent events: `data:` and a chunk each, then `data: [DONE]`.
                #[schema(example = false)]
                pub stream: Option<bool>,
                /// Only with `stream`.
                #[schema(example = json!(null))]
                pub stream_options: Option<$crate::openapi::StreamOptions>,
                /// Choices per prompt, at most `server.max_n`.
                #[schema(minimum = 1, example = 1)]
                pub n: Option<u32>,
                /// The same as `n`, or absent.
                #[schema(minimum = 1, example = 1)]
                pub best_of: Option<u32>,
                /// Ends a choice when it appears in its text; at most `server.max_stop` strings of `server.max_stop_bytes`.
                pub stop: Option<$crate::openapi::Stop>,
                /// Ends a choice when chosen; at most `server.max_stop`. `stop_reason` says which stop it was.
                #[schema(example = json!([0]))]
                pub stop_token_ids: Option<Vec<u32>>,
                /// Show the stop string, or the stop token's text.
                #[schema(example = true)]
                pub include_stop_str_in_output: Option<bool>,
                /// Go on after the model's own end.
                #[schema(example = true)]
                pub ignore_eos: Option<bool>,
                /// Nothing ends a choice before so many tokens.
                #[schema(example = 1)]
                pub min_tokens: Option<u32>,
                /// What an answer's text must be.
                pub structured_outputs: Option<$crate::openapi::StructuredOutputs>,
                /// Log-probabilities of the prompt's tokens with so many alternatives, at most `server.max_logprobs`; not with
                /// `stream`. Such a request does not read the prefix cache.
                #[schema(example = 1)]
                pub prompt_logprobs: Option<u32>,
                /// Log-probabilities name tokens `token_id:N`.
                #[schema(example = true)]
                pub return_tokens_as_token_ids: Option<bool>,
                /// Changes nothing. For balancers in front of replicas; the cache finds common prefixes by itself.
                #[schema(example = "thread-7")]
                pub prompt_cache_key: Option<String>,
                /// A prefix stays as long as there is room for it.
                pub prompt_cache_retention: Option<$crate::openapi::CacheRetention>,
                /// Changes nothing.
                #[schema(example = "user-7")]
                pub user: Option<String>,
                /// Changes nothing.
                #[schema(example = "user-7")]
                pub safety_identifier: Option<String>,
                /// Changes nothing.
                #[schema(example = json!({"key": "value"}))]
                pub metadata: Option<std::collections::HashMap<String, String>>,
                /// Nothing is stored, so only false.
                #[schema(example = false)]
                pub store: Option<bool>,
                /// There is one tier.
                pub service_tier: Option<$crate::openapi::ServiceTier>,
            }
        }
    };
}
pub(crate) use generation_request;
