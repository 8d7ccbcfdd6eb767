//! Rotary position embedding: frequencies as metadata and `rope_freqs.weight` have them.
//!
//! YaRN as llama.cpp computes it, which the goldens hold it to: fast pairs keep their frequency, slow ones are divided
//! by the factor, between them a ramp whose ends are whole pairs, unless the architecture's plan says that they are not.
//!
//! Metadata alone may claim heads of any size: there are frequencies only once tensors of that size have been loaded.

use super::LoadError;
use super::keys::Keys;
use super::plan::Plan;

/// How positions turn the pairs of a head.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Rotation {
    /// Values of a head that are rotated, an even number.
    dims: u32,
    base: f64,
    scaling: Scaling,
    /// `rope.scaling.attn_factor`: a factor on cos and sin beside YaRN's own.
    pub factor: f32,
}

/// What `rope.scaling.type` says.
#[derive(Clone, Debug, PartialEq)]
enum Scaling {
    /// Frequencies divided by this, which is 1 where there is no scaling.
    Linear(f64),
    Yarn(Yarn),
}

#[derive(Clone, Debug, PartialEq)]
struct Yarn {
    factor: f64,
    /// Context before it was extended.
    context: u32,
    /// Turns within that context above which a pair keeps its frequency, and below which it is divided.
    turns: [f32; 2],
    /// The ramp begins and ends at whole pairs.
    whole: bool,
}

impl Rotation {
    /// Of `dims` values, an even number, of a model with a context of `context`.
    pub(super) fn read(keys: &Keys<'_>, plan: &Plan, dims: u32, context: u32) -> Result<Self, LoadError> {
        let base = f64::from(keys.opt_positive("rope.freq_base")?.unwrap_or(10_000.0));
        let factor = keys.opt_positive("rope.scaling.attn_factor")?.unwrap_or(1.0);
        Ok(Self { dims, base, scaling: scaling(keys, plan, context)?, factor })
    }

    /// Values that are rotated, which have as many angles' cos and sin.
    pub(super) fn dims(&self) -> u32 {
        self.dims
    }

    /// Angle per position of each pair, divided by the factors of `rope_freqs.weight` if there are any.
    pub(super) fn frequencies(&self, factors: Option<&[f32]>) -> Result<Vec<f64>, LoadError> {
        let pairs = self.dims / 2;
        let usable = |f: &f32| f.is_finite() && *f > 0.0;
        if factors.is_some_and(|f| f.len() != pairs as usize || !f.iter().all(usable)) {
            let why = format!("must hold {pairs} positive factors");
            return Err(LoadError::BadTensor { tensor: "rope_freqs.weight".to_owned(), why });
        }
        let frequency = |i: u32| self.base.powf(-2.0 * f64::from(i) / f64::from(self.dims));
        let mut frequencies: Vec<f64> = (0..pairs).map(frequency).collect();
        match &self.scaling {
            Scaling::Linear(factor) => frequencies.iter_mut().for_each(|f| *f /= factor),
            Scaling::Yarn(yarn) => yarn.stretch(&mut frequencies, self.base),
        }
        for (frequency, &factor) in frequencies.iter_mut().zip(factors.unwrap_or_default()) {
            *frequency /= f64::from(factor);
        }
        Ok(frequencies)
    }

    /// `ln` of YaRN's factor; None without YaRN.
    pub(super) fn yarn(&self) -> Option<f64> {
        if let Scaling::Yarn(yarn) = &self.scaling { Some(yarn.factor.ln()) } else { None }
    }

    /// YaRN's factor on cos and sin: what stretched attention needs to stay as sharp as it was.
    pub(super) fn sharpness(&self) -> f32 {
        self.factor * self.yarn().map_or(1.0, |ln| (1.0 + 0.1 * ln) as f32)
    }
}

impl Yarn {
    fn stretch(&self, frequencies: &mut [f64], base: f64) {
        let dims = 2.0 * frequencies.len() as f64;
        // The pair that turns so often within the context.
        let pair = |turns: f32| {
            let wave = f64::from(self.context) / (f64::from(turns) * std::f64::consts::TAU);
            dims * wave.ln() / (2.0 * base.ln())
        };
        let [low, high] = self.turns.map(pair);
        let [low, high] = if self.whole { [low.floor(), high.ceil()] } else { [low, high] };
        let (low, high) = (low.max(0.0), high.min(dims - 1.0));
        for (i, frequency) in frequencies.iter_mut().enumerate() {
            let stretched = ((i as f64 - low) / (high - low).max(0.001)).clamp(0.0, 1.0);
            *frequency *= 1.0 - stretched + stretched / self.factor;
        }
    }
}

fn scaling(keys: &Keys<'_>, plan: &Plan, context: u32) -> Result<Scaling, LoadError> {
    let (kind, factor_key) = ("rope.scaling.type", "rope.scaling.factor");
    let factor = keys.opt_positive(factor_key)?.map(f64::from);
    let required = || factor.ok_or_else(|| keys.missing(factor_key));
    match keys.opt_str(kind)? {
        Some("none") => Ok(Scaling::Linear(1.0)),
        Some("linear") => required().map(Scaling::Linear),
        Some("yarn") => {
            let factor = required()?;
            if factor < 1.0 {
                return Err(keys.bad(factor_key, factor, "YaRN does not shorten the context"));
            }
            let context = keys.opt_size("rope.scaling.original_context_length")?.unwrap_or(context);
            let turns = |key, usual| Ok::<_, LoadError>(keys.opt_positive(key)?.unwrap_or(usual));
            // Kimi K2 (Instruct and 0905) was made with `beta_fast` 1, says its config.json, but its files lack the key: only
            // those since K2.5 have it.
            let fast = if keys.is_of("deepseek2", "kimi-k2")? { 1.0 } else { 32.0 };
            let turns =
                [turns("rope.scaling.yarn_beta_fast", fast)?, turns("rope.scaling.yarn_beta_slow", 1.0)?];
            Ok(Scaling::Yarn(Yarn { factor, context, turns, whole: plan.yarn_whole }))
        }
        Some(other) => Err(keys.not_honoured(kind, other)),
        // Files older than `rope.scaling.type` say it so.
        None => {
            let old = keys.opt_positive("rope.scale_linear")?.map(f64::from);
            Ok(Scaling::Linear(factor.or(old).unwrap_or(1.0)))
        }
    }
}
