//! What the fake model says, by definition: no cache, no batch, no engine.

use crate::step::{Geometry, GroupKind, Sample, TokenId, TokenScore};

/// The token that follows `tokens`, by definition: what every engine over a [`FakeRunner`](super::FakeRunner) must arrive at, however it batches,
/// cuts, caches or preempts. None if nothing may be chosen.
///
/// Depends on `sample.params` only by `temperature` (0: seed and choice do not matter) and `logit_bias` (100 and more forces,
/// -100 and less forbids). What its grammar lets follow must not have to be waited for.
pub fn expected_token(geometry: &Geometry, tokens: &[TokenId], sample: &Sample) -> Option<TokenId> {
    choose(expected_past(geometry, tokens, true), geometry.vocab, sample, 0)
}

/// The score, by definition, of `target` after `tokens` when it is a prompt's.
pub fn expected_prompt_score(
    geometry: &Geometry,
    tokens: &[TokenId],
    target: TokenId,
    top: u32,
) -> TokenScore {
    score_of(expected_past(geometry, tokens, false), geometry.vocab, target, top)
}

fn expected_past(geometry: &Geometry, tokens: &[TokenId], with_state: bool) -> u64 {
    let last = (tokens.len() as u32).saturating_sub(1);
    let groups = geometry.groups.iter().filter(|g| with_state || g.kind != GroupKind::State);
    groups.fold(EMPTY, |hash, group| {
        let seen = &tokens[oldest_visible(group.kind, last)..];
        mix(hash, seen.iter().fold(EMPTY, |hash, t| mix(hash, u64::from(t.0))))
    })
}

pub(super) fn score_of(past: u64, vocab: u32, token: TokenId, top: u32) -> TokenScore {
    let first = (mix(past, 1) % u64::from(vocab)) as u32;
    let rivals = (0..top.min(vocab)).map(|i| (TokenId((first + i) % vocab), -0.5 - i as f32));
    let logprob = -((mix(past, u64::from(token.0)) % 1000) as f32) / 100.0;
    TokenScore { token, logprob, rank: 1 + (mix(past, 2) % u64::from(vocab)) as u32, top: rivals.collect() }
}

pub(super) fn choose(past: u64, vocab: u32, sample: &Sample, nth: usize) -> Option<TokenId> {
    let bias = &sample.params.logit_bias;
    let next = sample.constraint.as_ref().map(|c| (c.nth(nth), &c.ends));
    let fits = |t: TokenId| match &next {
        None => true,
        Some((Ok(next), ends)) => next.tokens.contains(t) || next.may_end && ends.contains(&t),
        Some((Err(_), _)) => false,
    };
    let forbidden = |t: TokenId| {
        !fits(t) || sample.forbid.contains(&t) || bias.iter().any(|&(b, x)| b == t && x <= -100.0)
    };
    if let Some(&(forced, _)) = bias.iter().find(|&&(t, x)| x >= 100.0 && !forbidden(t)) {
        return Some(forced);
    }
    let keyed = match sample.params.temperature {
        0.0 => past,
        _ => mix(mix(past, sample.seed), u64::from(sample.choice)),
    };
    let first = (keyed % u64::from(vocab)) as u32;
    (0..vocab).map(|i| TokenId((first + i) % vocab)).find(|&t| !forbidden(t))
}

pub(super) fn oldest_visible(kind: GroupKind, position: u32) -> usize {
    match kind {
        GroupKind::Window { window } => (position + 1).saturating_sub(window) as usize,
        GroupKind::Full | GroupKind::State => 0,
    }
}

pub(super) const EMPTY: u64 = 0x9e37_79b9_7f4a_7c15;

/// A step of SplitMix64 over both.
pub(super) fn mix(hash: u64, value: u64) -> u64 {
    let mut z = hash.rotate_left(23) ^ value.wrapping_mul(0xff51_afd7_ed55_8ccd).wrapping_add(EMPTY);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
