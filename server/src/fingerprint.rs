//! `system_fingerprint`: the same one, model, request and seed give the same tokens.
//!
//! Made of what may change them: this version, the kind of backend, the model file and the cache's element type (both in the
//! geometry's digest), defaults of sampling, and a chat template that is not the file's own. Threads, instruction sets and load are no part
//! of it, for they change nothing.

use std::sync::Arc;

use frugal_models::step::{Geometry, SamplingParams};
use sha2::{Digest, Sha256};

/// Hexadecimal digits, as in OpenAI's.
const DIGITS: usize = 10;

/// `backend` is what computes, as [`frugal_models::model_runner::BackendKind::name`] has it; `template` the configured one, if there is
/// one.
pub fn fingerprint(
    backend: &str,
    geometry: &Geometry,
    sampling: &SamplingParams,
    template: Option<&str>,
) -> Arc<str> {
    let SamplingParams {
        temperature,
        top_k,
        top_p,
        min_p,
        repetition_penalty,
        presence_penalty,
        frequency_penalty,
        // Requests have no defaults of these.
        logit_bias: _,
        logprobs: _,
    } = sampling;
    let mut hash = Sha256::new().chain_update(env!("CARGO_PKG_VERSION")).chain_update(geometry.digest);
    hash.update(backend);
    hash.update(top_k.to_le_bytes());
    for number in [temperature, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty] {
        hash.update(number.to_le_bytes());
    }
    if let Some(source) = template {
        hash.update(source);
    }
    let hex: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("fp_{}", &hex[..DIGITS]).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changes_tokens_changes_it() {
        let geometry = |digest| Geometry {
            vocab: 8,
            context_max: 8,
            block_tokens: 1,
            groups: Vec::new(),
            digest: [digest; 32],
        };
        let plain = SamplingParams::default();
        let cold = SamplingParams { temperature: 0.5, ..plain.clone() };
        let all = [
            fingerprint("cpu", &geometry(1), &plain, None),
            fingerprint("cuda", &geometry(1), &plain, None),
            fingerprint("cpu", &geometry(2), &plain, None),
            fingerprint("cpu", &geometry(1), &cold, None),
            fingerprint("cpu", &geometry(1), &plain, Some("{{ messages }}")),
        ];
        for (i, one) in all.iter().enumerate() {
            assert!(one.len() == 13 && one.starts_with("fp_"), "{one}");
            assert!(all[..i].iter().all(|other| other != one), "{all:?}");
        }
        let asking = SamplingParams { logprobs: Some(1), ..plain };
        assert_eq!(all[0], fingerprint("cpu", &geometry(1), &asking, None));
    }
}
