//! From a row of logits to a token.
//!
//! Order: bias, forbidden tokens, the grammar's mask, penalties, temperature, min-p, top-k, top-p. Each of the last three keeps a
//! prefix of the tokens from the likeliest down (ties to the smaller id); top-p counts the probability among
//! what min-p and top-k left, as vLLM does. Log-probabilities are of the raw logits.
//!
//! Law: the token depends on the logits, the parameters and (seed, choice, position) alone, and every sum has
//! one order, so neither the batch nor the machine's instruction set matters.

mod philox;
mod recommended;
#[cfg(test)]
mod tests;

use std::cmp::Ordering;

pub(crate) use recommended::entries;
pub use recommended::recommended;

use crate::mask::Next;
use crate::step::{RowFault, Sample, SamplingParams, TokenId, TokenScore};

/// Chooses tokens; holds scratch memory between rows, and nothing else.
#[derive(Debug, Default)]
pub struct Sampler {
    /// Logits after bias and penalties.
    adjusted: Vec<f32>,
    /// Per token 0, or 1 + its occurrences in the output if it is in the history. All 0 between rows.
    seen: Vec<u32>,
    /// Unnormalised probabilities.
    weights: Vec<f32>,
    best: Vec<Candidate>,
}

/// A token and its logit.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Candidate {
    logit: f32,
    id: u32,
}

impl Candidate {
    /// Likelier first, then the smaller id. Logits are not NaN.
    fn order(&self, other: &Self) -> Ordering {
        other.logit.partial_cmp(&self.logit).unwrap_or(Ordering::Equal).then(self.id.cmp(&other.id))
    }
}

impl Sampler {
    /// Chooses the token at `position` of its sequence from `raw` logits, one per token of the vocabulary; `nth` of those that its row
    /// chooses, from 0.
    ///
    /// # Errors
    /// [`RowFault::NotANumber`] if a logit is NaN or infinite upwards, or none is finite;
    /// [`RowFault::NothingToChoose`] if bias, forbidden tokens and grammar leave none; what [`PendingNext::wait`](crate::mask::PendingNext::wait) says if there is no mask.
    pub fn sample(
        &mut self,
        raw: &[f32],
        ask: &Sample,
        position: u32,
        nth: usize,
    ) -> Result<(TokenId, Option<TokenScore>), RowFault> {
        let raw_max = finite_max(raw)?;
        let params = &*ask.params;
        let score = |sampler: &mut Self, token| {
            params.logprobs.map(|top| sampler.score_checked(raw, raw_max, token, top))
        };
        let free = ask.forbid.is_empty() && ask.constraint.is_none();
        if params.logit_bias.is_empty() && free && !params.needs_history() {
            let token = self.choose(raw, raw_max, ask, position);
            return Ok((token, score(self, token)));
        }
        self.adjust(raw, ask, position, nth)?;
        let adjusted = std::mem::take(&mut self.adjusted);
        let max = adjusted.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let token = (max > f32::NEG_INFINITY).then(|| self.choose(&adjusted, max, ask, position));
        self.adjusted = adjusted;
        let token = token.ok_or(RowFault::NothingToChoose)?;
        Ok((token, score(self, token)))
    }

    /// The log-probability of `token` and of the `top` likeliest under `raw`.
    ///
    /// # Errors
    /// As [`Sampler::sample`]; also if `token` is outside the vocabulary.
    pub fn score(&mut self, raw: &[f32], token: TokenId, top: u32) -> Result<TokenScore, RowFault> {
        let max = finite_max(raw)?;
        if token.0 as usize >= raw.len() {
            return Err(RowFault::Other(format!("token {} is outside the vocabulary", token.0)));
        }
        Ok(self.score_checked(raw, max, token, top))
    }

    fn score_checked(&mut self, raw: &[f32], max: f32, token: TokenId, top: u32) -> TokenScore {
        self.weights.clear();
        self.weights.extend(raw.iter().map(|&l| exp(l - max)));
        let log_sum = f64::from(max) + sums(&self.weights).iter().sum::<f64>().ln();
        let logprob = |logit: f32| (f64::from(logit) - log_sum) as f32;
        self.find_best(raw, top as usize);
        let top = self.best.iter().map(|c| (TokenId(c.id), logprob(c.logit))).collect();
        let own = raw[token.0 as usize];
        let (before, after) = raw.split_at(token.0 as usize);
        let ahead = before.iter().filter(|&&l| l >= own).count() + after.iter().filter(|&&l| l > own).count();
        TokenScore { token, logprob: logprob(own), rank: ahead as u32 + 1, top }
    }

    /// Fills `adjusted`: bias, forbidden tokens, the grammar's mask, then penalties for what is before `position`.
    fn adjust(&mut self, raw: &[f32], ask: &Sample, position: u32, nth: usize) -> Result<(), RowFault> {
        let params = &*ask.params;
        self.adjusted.clear();
        self.adjusted.extend_from_slice(raw);
        for &(token, bias) in &params.logit_bias {
            if let Some(logit) = self.adjusted.get_mut(token.0 as usize) {
                *logit = (*logit + bias).min(f32::MAX);
            }
        }
        for token in ask.forbid.iter() {
            if let Some(logit) = self.adjusted.get_mut(token.0 as usize) {
                *logit = f32::NEG_INFINITY;
            }
        }
        if let Some(constraint) = &ask.constraint {
            let next = constraint.nth(nth)?;
            self.mask(&next, &constraint.ends);
        }
        if params.needs_history() {
            // Behind it are guesses.
            self.penalise(ask, ask.history.get(..position as usize).unwrap_or(&ask.history));
        }
        Ok(())
    }

    /// Leaves what may follow, `ends` included where the output may end.
    fn mask(&mut self, next: &Next, ends: &[TokenId]) {
        let ends = if next.may_end { ends } else { &[] };
        let logit = |end: &TokenId| Some((end.0 as usize, *self.adjusted.get(end.0 as usize)?));
        let kept: Vec<(usize, f32)> = ends.iter().filter_map(logit).collect();
        let words = next.tokens.words().iter().copied().chain(std::iter::repeat(0));
        for (logits, word) in self.adjusted.chunks_mut(32).zip(words) {
            for (bit, logit) in logits.iter_mut().enumerate() {
                if word >> bit & 1 == 0 {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
        for (id, logit) in kept {
            self.adjusted[id] = logit;
        }
    }

    fn penalise(&mut self, ask: &Sample, history: &[TokenId]) {
        let params = &*ask.params;
        self.seen.resize(self.adjusted.len(), 0);
        for (i, token) in history.iter().enumerate() {
            if let Some(seen) = self.seen.get_mut(token.0 as usize) {
                *seen = (*seen).max(1) + u32::from(i >= ask.prompt_len as usize);
            }
        }
        for token in history {
            let id = token.0 as usize;
            let (Some(logit), Some(seen)) = (self.adjusted.get_mut(id), self.seen.get_mut(id)) else {
                continue;
            };
            let in_output = match std::mem::take(seen) {
                0 => continue, // an earlier occurrence did it
                seen => seen - 1,
            };
            if *logit > 0.0 {
                *logit /= params.repetition_penalty;
            } else {
                *logit *= params.repetition_penalty;
            }
            *logit -= params.frequency_penalty * in_output as f32;
            if in_output > 0 {
                *logit -= params.presence_penalty;
            }
            *logit = logit.min(f32::MAX);
        }
    }

    /// `max` is the largest of `logits` and finite.
    fn choose(&mut self, logits: &[f32], max: f32, ask: &Sample, position: u32) -> TokenId {
        let params = &*ask.params;
        if params.temperature == 0.0 {
            return TokenId(logits.iter().position(|&l| l == max).unwrap_or(0) as u32);
        }
        let u = philox::uniform(ask.seed, ask.choice, position);
        match self.narrow(logits, max, params) {
            Kept::Best => TokenId(self.best[draw(&self.weights, u)].id),
            Kept::ById => TokenId(draw(&self.weights, u) as u32),
        }
    }

    /// Fills `weights` with the unnormalised probabilities of what min-p, top-k and top-p leave.
    fn narrow(&mut self, logits: &[f32], max: f32, params: &SamplingParams) -> Kept {
        let top_k = match params.top_k as usize {
            0 => logits.len(),
            k => k.min(logits.len()),
        };
        if top_k <= FEW {
            self.find_best(logits, top_k);
            self.weigh_best(max, params);
            self.cut(self.weights.iter().map(|&w| f64::from(w)).sum(), params);
            return Kept::Best;
        }
        self.weigh(logits, max, params);
        if top_k == logits.len() {
            if params.top_p >= 1.0 {
                return Kept::ById;
            }
            // The nucleus is nearly always small.
            let total = sums(&self.weights).iter().sum();
            let all = std::mem::take(&mut self.weights);
            self.find_best(logits, FEW);
            self.weigh_best(max, params);
            if self.cut(total, params) {
                return Kept::Best;
            }
            self.weights = all;
        }
        self.narrow_many(logits, top_k, params);
        Kept::ById
    }

    /// Sets to 0 the `weights` of what top-k and top-p drop; without sorting the vocabulary.
    fn narrow_many(&mut self, logits: &[f32], top_k: usize, params: &SamplingParams) {
        let best = &mut self.best;
        best.clear();
        let possible = self.weights.iter().zip(logits).enumerate().filter(|(_, (w, _))| **w > 0.0);
        best.extend(possible.map(|(id, (_, &logit))| Candidate { logit, id: id as u32 }));
        if top_k < best.len() {
            let last = *best.select_nth_unstable_by(top_k - 1, Candidate::order).1;
            best.truncate(top_k);
            drop_after(&mut self.weights, logits, last);
        }
        if params.top_p >= 1.0 {
            return;
        }
        let goal = sums(&self.weights).iter().sum::<f64>() * f64::from(params.top_p);
        // Halve the range in which the goal is reached, then walk what is left.
        let weight = |c: &Candidate| f64::from(self.weights[c.id as usize]);
        let (mut range, mut reached) = (&mut best[..], 0.0);
        while range.len() > 32 {
            let middle = range.len() / 2;
            range.select_nth_unstable_by(middle, Candidate::order);
            let (likelier, others) = range.split_at_mut(middle);
            let sum: f64 = likelier.iter().map(weight).sum();
            if reached + sum >= goal {
                range = likelier;
            } else {
                reached += sum;
                range = others;
            }
        }
        range.sort_unstable_by(Candidate::order);
        let last = range.iter().find(|c| {
            reached += weight(c);
            reached >= goal
        });
        if let Some(&last) = last.or(range.last()) {
            drop_after(&mut self.weights, logits, last);
        }
    }

    /// Fills `weights` with every token's unnormalised probability, 0 where min-p drops it.
    fn weigh(&mut self, logits: &[f32], max: f32, params: &SamplingParams) {
        self.weights.clear();
        self.weights.extend(logits.iter().map(|&l| {
            let weight = exp((l - max) / params.temperature);
            if weight < params.min_p { 0.0 } else { weight }
        }));
    }

    fn weigh_best(&mut self, max: f32, params: &SamplingParams) {
        self.weights.clear();
        self.weights.extend(self.best.iter().map(|c| exp((c.logit - max) / params.temperature)));
        let kept = self.weights.partition_point(|&w| w >= params.min_p && w > 0.0);
        // The likeliest weighs 1, so one is always kept.
        self.weights.truncate(kept);
    }

    /// Keeps the shortest prefix of `weights` that reaches top-p of `total`; whether it was reached.
    fn cut(&mut self, total: f64, params: &SamplingParams) -> bool {
        let goal = total * f64::from(params.top_p);
        let mut reached = 0.0;
        for (i, &weight) in self.weights.iter().enumerate() {
            reached += f64::from(weight);
            if reached >= goal {
                self.weights.truncate(i + 1);
                return true;
            }
        }
        false
    }

    /// Fills `best` with the `count` likeliest tokens that are possible at all, likeliest first.
    fn find_best(&mut self, logits: &[f32], count: usize) {
        let best = &mut self.best;
        best.clear();
        if count == 0 {
            return;
        }
        let room = count.saturating_mul(2).max(256);
        // The count-th best so far; a later token equal to it has a larger id.
        let mut floor = f32::NEG_INFINITY;
        for (id, &logit) in logits.iter().enumerate() {
            if logit <= floor {
                continue;
            }
            best.push(Candidate { logit, id: id as u32 });
            if best.len() == room {
                best.select_nth_unstable_by(count - 1, Candidate::order);
                best.truncate(count);
                floor = best[count - 1].logit;
            }
        }
        if best.len() > count {
            best.select_nth_unstable_by(count - 1, Candidate::order);
            best.truncate(count);
        }
        best.sort_unstable_by(Candidate::order);
    }
}

/// So many candidates are sorted; more are not.
const FEW: usize = 256;

/// What `Sampler::weights` are the weights of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kept {
    /// `Sampler::best`, in order.
    Best,
    /// The vocabulary; 0 for what was dropped.
    ById,
}

/// Drops what comes after `last` in the order of likelihood.
fn drop_after(weights: &mut [f32], logits: &[f32], last: Candidate) {
    for (id, (weight, &logit)) in weights.iter_mut().zip(logits).enumerate() {
        if (Candidate { logit, id: id as u32 }).order(&last).is_gt() {
            *weight = 0.0;
        }
    }
}

/// The largest logit, unless the row is unusable.
fn finite_max(logits: &[f32]) -> Result<f32, RowFault> {
    let mut max = f32::NEG_INFINITY;
    let mut nan = false;
    for &logit in logits {
        nan |= logit.is_nan();
        max = if logit > max { logit } else { max };
    }
    if nan || !max.is_finite() { Err(RowFault::NotANumber) } else { Ok(max) }
}

/// Tokens whose weights are summed together.
const CHUNK: usize = 512;

/// Sums of each [`CHUNK`] weights.
fn sums(weights: &[f32]) -> Vec<f64> {
    let sum = |chunk: &[f32]| {
        let mut lanes = [0.0f64; 8];
        for part in chunk.chunks(8) {
            for (lane, &w) in lanes.iter_mut().zip(part) {
                *lane += f64::from(w);
            }
        }
        lanes.iter().sum()
    };
    weights.chunks(CHUNK).map(sum).collect()
}

/// The index at which the running sum of `weights` passes `u` of their total. Some weight is positive.
fn draw(weights: &[f32], u: f64) -> usize {
    let chunks = sums(weights);
    let mut rest = u * chunks.iter().sum::<f64>();
    let mut chosen = 0;
    for (at, &sum) in chunks.iter().enumerate() {
        if sum > 0.0 {
            chosen = at;
            if rest < sum {
                break;
            }
            rest -= sum;
        }
    }
    let first = chosen * CHUNK;
    let mut index = first;
    for (at, &weight) in weights[first..].iter().take(CHUNK).enumerate() {
        if weight > 0.0 {
            index = first + at;
            if rest < f64::from(weight) {
                break;
            }
            rest -= f64::from(weight);
        }
    }
    index
}

/// `e^x` for x <= 0, within 2 ulp; 0 below -87. Plain multiplications and additions, so that it is the same
/// everywhere (the C library's differs between processors) and the compiler vectorises it.
/// Reduction and polynomial are those of Cephes' `expf` (S. Moshier).
fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
    let clamped = x.max(-87.0);
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = clamped - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let mut p = 1.987_569_2e-4;
    for c in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_6e-1, 0.5] {
        p = p * r + c;
    }
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(1.0f32.to_bits()));
    let value = (p * r * r + r + 1.0) * power;
    if x < -87.0 { 0.0 } else { value }
}
