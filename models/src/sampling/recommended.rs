//! How a model's publisher would have tokens chosen: `general.sampling.*` in its file, which converters take from
//! `generation_config.json` (llama.cpp's #17120).

use std::ops::RangeInclusive;

use crate::gguf::{Gguf, Value};
use crate::step::SamplingParams;

const TEMPERATURE: &str = "general.sampling.temp";
const TOP_P: &str = "general.sampling.top_p";

/// What a file says, and OpenAI's defaults where it says nothing, or nothing that can be: such a value is logged.
pub fn recommended(gguf: &Gguf) -> SamplingParams {
    let number = |key: &str, range: RangeInclusive<f64>| {
        let value = gguf.get(key).and_then(as_number)?;
        if !range.contains(&value) {
            tracing::warn!(key, value, "ignored: not from {} to {}", range.start(), range.end());
            return None;
        }
        Some(value)
    };
    let float = |key, range| number(key, range).map(|value| value as f32);
    let default = SamplingParams::default();
    SamplingParams {
        temperature: float(TEMPERATURE, 0.0..=2.0).unwrap_or(default.temperature),
        top_p: float(TOP_P, 0.001..=1.0).unwrap_or(default.top_p),
        // None keep all below 1.
        top_k: number("general.sampling.top_k", -1.0..=f64::from(u32::MAX))
            .map_or(default.top_k, |k| k as u32),
        min_p: float("general.sampling.min_p", 0.0..=1.0).unwrap_or(default.min_p),
        repetition_penalty: float("general.sampling.penalty_repeat", 0.01..=10.0)
            .unwrap_or(default.repetition_penalty),
        ..default
    }
}

/// The keys of a file that recommends these.
pub(crate) fn entries(temperature: f32, top_p: f32) -> [(&'static str, Value<'static>); 2] {
    [(TEMPERATURE, Value::F32(temperature)), (TOP_P, Value::F32(top_p))]
}

fn as_number(value: Value<'_>) -> Option<f64> {
    Some(match value {
        Value::F32(v) => f64::from(v),
        Value::F64(v) => v,
        Value::I32(v) => f64::from(v),
        Value::U32(v) => f64::from(v),
        Value::I64(v) => v as f64,
        Value::U64(v) => v as f64,
        Value::I16(v) => f64::from(v),
        Value::U16(v) => f64::from(v),
        Value::I8(v) => f64::from(v),
        Value::U8(v) => f64::from(v),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::GgufWriter;

    fn of(entries: &[(&str, Value<'_>)]) -> SamplingParams {
        let mut writer = GgufWriter::new();
        for (key, value) in entries {
            writer.set(key, *value);
        }
        recommended(&Gguf::from_bytes(writer.start(Vec::new()).unwrap().finish()).unwrap())
    }

    #[test]
    fn what_the_file_says_counts_and_the_rest_is_openai_s() {
        let default = SamplingParams::default();
        assert_eq!(of(&[]), default);
        let all = of(&[
            ("general.sampling.temp", Value::F32(0.6)),
            ("general.sampling.top_k", Value::I32(20)),
            ("general.sampling.top_p", Value::F32(0.95)),
            ("general.sampling.min_p", Value::F64(0.25)),
            ("general.sampling.penalty_repeat", Value::F32(1.05)),
        ]);
        let expected = SamplingParams {
            temperature: 0.6,
            top_k: 20,
            top_p: 0.95,
            min_p: 0.25,
            repetition_penalty: 1.05,
            ..default.clone()
        };
        assert_eq!(all, expected);
        assert_eq!(
            of(&entries(0.2, 0.9)),
            SamplingParams { temperature: 0.2, top_p: 0.9, ..default.clone() }
        );
        // As llama.cpp and vLLM say "all".
        assert_eq!(of(&[("general.sampling.top_k", Value::I32(-1))]).top_k, 0);
        for wrong in [
            ("general.sampling.temp", Value::F32(f32::NAN)),
            ("general.sampling.temp", Value::F32(-1.0)),
            ("general.sampling.top_k", Value::I32(-5)),
            ("general.sampling.top_p", Value::F32(0.0)),
            ("general.sampling.top_p", Value::String("0.9")),
            ("general.sampling.penalty_repeat", Value::F32(f32::INFINITY)),
        ] {
            assert_eq!(of(std::slice::from_ref(&wrong)), default, "{wrong:?}");
        }
    }
}
