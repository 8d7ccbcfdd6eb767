//! Hyperparameters: an architecture's metadata, checked key by key.
//!
//! A key is honoured once it was asked for. Whatever else begins with the architecture's name must say that it
//! changes nothing, or be known to.

use std::cell::RefCell;
use std::collections::HashSet;

use super::LoadError;
use crate::gguf::{Gguf, GgufError, Value};

/// No model comes near this many heads, experts or values per head; it bounds what is computed before tensors
/// have confirmed the numbers.
const COUNT_MAX: u32 = 1 << 16;

/// The keys that begin with the architecture's name.
pub(super) struct Keys<'a> {
    gguf: &'a Gguf,
    arch: &'a str,
    asked: RefCell<HashSet<String>>,
}

impl<'a> Keys<'a> {
    pub(super) fn new(gguf: &'a Gguf) -> Result<Self, LoadError> {
        Ok(Self { gguf, arch: gguf.str("general.architecture")?, asked: RefCell::default() })
    }

    /// The full name of a key.
    fn name(&self, key: &str) -> String {
        format!("{}.{key}", self.arch)
    }

    fn ask(&self, key: &str) -> String {
        let name = self.name(key);
        self.asked.borrow_mut().insert(name.clone());
        name
    }

    /// Whether the file is of this architecture and cuts text as this model does, for what a file does not state.
    pub(super) fn is_of(&self, arch: &str, pre: &str) -> Result<bool, LoadError> {
        Ok(self.arch == arch && self.gguf.opt_str("tokenizer.ggml.pre")? == Some(pre))
    }

    pub(super) fn bad(&self, key: &str, value: impl ToString, why: impl ToString) -> LoadError {
        LoadError::BadValue { key: self.name(key), value: value.to_string(), why: why.to_string() }
    }

    pub(super) fn missing(&self, key: &str) -> LoadError {
        GgufError::MissingKey { key: self.name(key) }.into()
    }

    pub(super) fn not_honoured(&self, key: &str, value: impl ToString) -> LoadError {
        LoadError::NotHonoured { key: self.name(key), value: value.to_string() }
    }

    /// Whether any block has a tensor of that name, for what a file does not state and yet shows.
    pub(super) fn some_block_has(&self, kind: &str) -> bool {
        let of_block = |name: &str| name.strip_prefix("blk.")?.split_once('.').map(|(_, rest)| rest == kind);
        self.gguf.tensors().iter().any(|tensor| of_block(&tensor.name) == Some(true))
    }

    /// Any number of things.
    pub(super) fn opt_u32(&self, key: &str) -> Result<Option<u32>, LoadError> {
        Ok(self.gguf.opt_u32(&self.ask(key))?)
    }

    pub(super) fn opt_str(&self, key: &str) -> Result<Option<&'a str>, LoadError> {
        Ok(self.gguf.opt_str(&self.ask(key))?)
    }

    pub(super) fn opt_bool(&self, key: &str) -> Result<Option<bool>, LoadError> {
        Ok(self.gguf.opt_bool(&self.ask(key))?)
    }

    /// A number of things: at least 1.
    pub(super) fn size(&self, key: &str) -> Result<u32, LoadError> {
        self.opt_size(key)?.ok_or_else(|| self.missing(key))
    }

    /// The same, if the key is there.
    pub(super) fn opt_size(&self, key: &str) -> Result<Option<u32>, LoadError> {
        match self.opt_u32(key)? {
            Some(0) => Err(self.bad(key, 0, "it must be at least 1")),
            value => Ok(value),
        }
    }

    /// Heads, experts or values per head: at least 1 and not absurd.
    pub(super) fn opt_count(&self, key: &str) -> Result<Option<u32>, LoadError> {
        match self.opt_size(key)? {
            Some(n) if n > COUNT_MAX => Err(self.bad(key, n, format!("at most {COUNT_MAX} are supported"))),
            value => Ok(value),
        }
    }

    pub(super) fn count(&self, key: &str) -> Result<u32, LoadError> {
        self.opt_count(key)?.ok_or_else(|| self.missing(key))
    }

    /// The same, where 0 and no key say that there are none.
    pub(super) fn count_or_none(&self, key: &str) -> Result<Option<u32>, LoadError> {
        match self.opt_u32(key)?.unwrap_or(0) {
            0 => Ok(None),
            _ => self.opt_count(key),
        }
    }

    /// A positive number.
    pub(super) fn opt_positive(&self, key: &str) -> Result<Option<f32>, LoadError> {
        match self.gguf.opt_f32(&self.ask(key))? {
            Some(x) if !(x.is_finite() && x > 0.0) => Err(self.bad(key, x, "it must be positive and finite")),
            value => Ok(value),
        }
    }

    pub(super) fn positive(&self, key: &str) -> Result<f32, LoadError> {
        self.opt_positive(key)?.ok_or_else(|| self.missing(key))
    }

    /// `count` times `each`, which is less than 2^32 for all that a file may say of heads and experts unless it lies.
    pub(super) fn product(&self, key: &str, count: u32, each: u32) -> Result<u32, LoadError> {
        count.checked_mul(each).ok_or_else(|| self.bad(key, count, format!("each is {each} wide")))
    }

    /// Refuses what was not asked for and could change what the model computes.
    pub(super) fn refuse_unknown(&self, context: u32) -> Result<(), LoadError> {
        let (asked, neutral) = (self.asked.borrow(), neutral(context));
        for (name, value) in self.gguf.metadata() {
            let key = name.strip_prefix(self.arch).and_then(|rest| rest.strip_prefix('.'));
            let Some(key) = key.filter(|_| !asked.contains(name)) else { continue };
            let holds = neutral.iter().find(|(k, _)| *k == key).map(|(_, neutral)| neutral.holds(&value));
            if !holds.unwrap_or(INFORMATIONAL.contains(&key)) {
                return Err(self.not_honoured(key, shown(&value)));
            }
        }
        Ok(())
    }
}

fn shown(value: &Value<'_>) -> String {
    match value {
        Value::String(text) => (*text).to_owned(),
        other => format!("{other:?}"),
    }
}

/// Keys that say nothing of what is computed, or nothing that tensors or other keys do not say too.
const INFORMATIONAL: [&str; 7] = [
    "vocab_size",
    "tensor_data_layout",
    // Without experts.
    "expert_used_count",
    // Where every block has experts, or none has.
    "feed_forward_length",
    "expert_feed_forward_length",
    // Without YaRN.
    "rope.scaling.original_context_length",
    "rope.scaling.finetuned",
];

/// Keys that some architectures honour, and what they are to others when they change nothing.
fn neutral(context: u32) -> [(&'static str, Neutral); 25] {
    [
        ("attention.sliding_window", Neutral::AtLeast(context)),
        ("attention.scale", Neutral::Zero),
        ("attention.clamp_kqv", Neutral::Zero),
        ("attention.max_alibi_bias", Neutral::Zero),
        ("attention.causal", Neutral::True),
        ("attention.temperature_scale", Neutral::Zero),
        ("attn_logit_softcapping", Neutral::Zero),
        ("final_logit_softcapping", Neutral::Zero),
        ("embedding_scale", Neutral::One),
        ("residual_scale", Neutral::One),
        ("logit_scale", Neutral::One),
        ("use_parallel_residual", Neutral::False),
        ("rope.scaling.attn_factor", Neutral::One),
        ("rope.scaling.yarn_attn_factor", Neutral::One),
        ("rope.scaling.yarn_ext_factor", Neutral::One),
        ("rope.scaling.yarn_log_multiplier", Neutral::Zero),
        ("expert_count", Neutral::Zero),
        ("expert_shared_count", Neutral::Zero),
        ("expert_shared_feed_forward_length", Neutral::Zero),
        ("expert_weights_scale", Neutral::One),
        ("expert_gating_func", Neutral::Softmax),
        ("expert_group_count", Neutral::AtMostOne),
        ("expert_group_used_count", Neutral::AtMostOne),
        ("leading_dense_block_count", Neutral::Zero),
        ("nextn_predict_layers", Neutral::Zero),
    ]
}

/// The value of a key that changes nothing.
#[derive(Clone, Copy, Debug)]
enum Neutral {
    Zero,
    One,
    /// One group, or none.
    AtMostOne,
    False,
    True,
    /// 0 or at least this: a window as wide as the context.
    AtLeast(u32),
    /// `expert_gating_func` of softmax, or unset.
    Softmax,
}

impl Neutral {
    fn holds(self, value: &Value<'_>) -> bool {
        let number = value.integer().map(|n| n as f64).or(value.float().map(f64::from));
        match self {
            Self::Zero => number == Some(0.0),
            Self::One => number == Some(1.0),
            Self::AtMostOne => number.is_some_and(|n| n <= 1.0),
            Self::False => *value == Value::Bool(false),
            Self::True => *value == Value::Bool(true),
            Self::AtLeast(least) => number.is_some_and(|n| n == 0.0 || n >= f64::from(least)),
            Self::Softmax => number.is_some_and(|n| n == 0.0 || n == 1.0),
        }
    }
}
