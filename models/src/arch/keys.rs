//! Hyperparameters: an architecture's metadata, checked key by key.

use super::LoadError;
use crate::backend::{Rope, RopeStyle};
use crate::gguf::{Gguf, GgufError, Value};

/// No model comes near this many heads, experts or values per head; it bounds what is computed before tensors
/// have confirmed the numbers.
const COUNT_MAX: u32 = 1 << 16;

/// The keys that begin with the architecture's name.
pub(super) struct Keys<'a> {
    gguf: &'a Gguf,
    arch: &'a str,
}

impl<'a> Keys<'a> {
    pub(super) fn new(gguf: &'a Gguf) -> Result<Self, LoadError> {
        Ok(Self { gguf, arch: gguf.str("general.architecture")? })
    }

    /// The full name of a key.
    pub(super) fn name(&self, key: &str) -> String {
        format!("{}.{key}", self.arch)
    }

    pub(super) fn bad(&self, key: &str, value: impl ToString, why: impl ToString) -> LoadError {
        LoadError::BadValue { key: self.name(key), value: value.to_string(), why: why.to_string() }
    }

    /// A number of things: at least 1.
    pub(super) fn size(&self, key: &str) -> Result<u32, LoadError> {
        self.opt_size(key)?.ok_or_else(|| GgufError::MissingKey { key: self.name(key) }.into())
    }

    /// The same, if the key is there.
    pub(super) fn opt_size(&self, key: &str) -> Result<Option<u32>, LoadError> {
        match self.gguf.opt_u32(&self.name(key))? {
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
        self.opt_count(key)?.ok_or_else(|| GgufError::MissingKey { key: self.name(key) }.into())
    }

    /// A positive number.
    pub(super) fn opt_positive(&self, key: &str) -> Result<Option<f32>, LoadError> {
        match self.gguf.opt_f32(&self.name(key))? {
            Some(x) if !(x.is_finite() && x > 0.0) => Err(self.bad(key, x, "it must be positive and finite")),
            value => Ok(value),
        }
    }

    pub(super) fn positive(&self, key: &str) -> Result<f32, LoadError> {
        self.opt_positive(key)?.ok_or_else(|| GgufError::MissingKey { key: self.name(key) }.into())
    }

    /// Refuses keys that would change what the model computes, unless they say that they do not.
    pub(super) fn refuse_unless_neutral(&self, neutral: &[(&str, Neutral)]) -> Result<(), LoadError> {
        for (key, neutral) in neutral {
            let name = self.name(key);
            let Some(value) = self.gguf.get(&name) else { continue };
            if !neutral.holds(&value) {
                let value = match value {
                    Value::String(text) => text.to_owned(),
                    other => format!("{other:?}"),
                };
                return Err(LoadError::NotHonoured { key: name, value });
            }
        }
        Ok(())
    }

    /// Rotation of heads of `head_dim` values, with `factors` dividing each pair's frequency.
    pub(super) fn rope(
        &self,
        style: RopeStyle,
        head_dim: u32,
        factors: Option<&[f32]>,
    ) -> Result<Rope, LoadError> {
        let key = "rope.dimension_count";
        let dims = self.opt_count(key)?.unwrap_or(head_dim);
        if dims > head_dim || dims % 2 != 0 {
            return Err(self.bad(
                key,
                dims,
                format!("it must be even and at most {head_dim}, the head's size"),
            ));
        }
        let base = f64::from(self.opt_positive("rope.freq_base")?.unwrap_or(10_000.0));
        let stretch = self.linear_scaling()?;
        let frequency = |i: u32| base.powf(-2.0 * f64::from(i) / f64::from(dims)) / stretch;
        let mut frequencies: Vec<f64> = (0..dims / 2).map(frequency).collect();
        if let Some(factors) = factors {
            let usable = |f: &f32| f.is_finite() && *f > 0.0;
            if factors.len() != frequencies.len() || !factors.iter().all(usable) {
                let why = format!("must hold {} positive factors", frequencies.len());
                return Err(LoadError::BadTensor { tensor: "rope_freqs.weight".to_owned(), why });
            }
            for (frequency, &factor) in frequencies.iter_mut().zip(factors) {
                *frequency /= f64::from(factor);
            }
        }
        Ok(Rope { style, first: 0, frequencies, scale: 1.0 })
    }

    /// The factor by which positions are compressed: `rope.scaling.type` none or linear.
    fn linear_scaling(&self) -> Result<f64, LoadError> {
        let key = "rope.scaling.type";
        let factor = self.opt_positive("rope.scaling.factor")?;
        match self.gguf.opt_str(&self.name(key))? {
            Some("none") => Ok(1.0),
            Some("linear") => {
                let missing = || GgufError::MissingKey { key: self.name("rope.scaling.factor") };
                Ok(f64::from(factor.ok_or_else(missing)?))
            }
            Some(other) => Err(LoadError::NotHonoured { key: self.name(key), value: other.to_owned() }),
            // Files older than `rope.scaling.type` say it so.
            None => Ok(f64::from(factor.or(self.opt_positive("rope.scale_linear")?).unwrap_or(1.0))),
        }
    }
}

/// The value of a key that changes nothing.
#[derive(Clone, Copy, Debug)]
pub(super) enum Neutral {
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
