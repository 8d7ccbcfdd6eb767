//! Two coefficients, seconds per byte and per multiply-add, fitted while serving.
//!
//! Least squares on relative errors (each step asks `a * bytes + b * macs = time`, divided by its time), forgetting slowly,
//! drawn to the start values where steps do not tell the two apart, and bounded around them. The same steps give the
//! same coefficients.

use frugal_models::step::{RowWork, StepStats};

use super::RowTokens;
use crate::options::Coefficients;

/// Weight of the past at each step: about the last 200 steps count.
const MEMORY: f64 = 0.995;
/// Pull to the start values, in steps.
const PULL: f64 = 0.005;
/// Weight of the past at each step that decodes, and at each of the kind whose time is foretold: about the last ten count.
const RECENT: f64 = 0.9;
/// Largest factor by which what was foretold is corrected.
const FORETOLD_BOUND: f64 = 4.0;
/// Largest factor between a coefficient and its start value.
const BOUND: f64 = 1000.0;
/// A row, in parts that its drafts may be charged of it.
const FINE: u32 = 1 << 24;

#[derive(Clone, Debug, Default)]
pub(super) struct Fit {
    start: Coefficients,
    now: Coefficients,
    /// Normal equations in units of the start values: sums of xx, xy, yy, x, y.
    sums: [f64; 5],
    /// Of recent rows that compute prompts: tokens, multiply-adds, bytes of their share.
    prefill: [f64; 3],
    /// Bytes read by recent steps that compute prompts, and how many of them.
    mixed: [f64; 2],
    decode: Decode,
    /// What recent steps with prompts beside decoding rows took, and what the coefficients foretold: they overlap bytes and
    /// multiply-adds otherwise than the other steps do, from which the coefficients mostly are.
    foretold: [f64; 2],
}

/// Of recent steps that decode.
#[derive(Clone, Copy, Debug, Default)]
struct Decode {
    /// Rows that decode; their tokens, multiply-adds, and bytes that do not grow with their tokens.
    rows: f64,
    tokens: f64,
    macs: f64,
    rest: f64,
    /// Steps, and of all their rows: rows, tokens, experts by token, experts, their bytes.
    steps: f64,
    all_rows: f64,
    all_tokens: f64,
    assigned: f64,
    experts: f64,
    expert_bytes: f64,
    /// Most experts that any step has used.
    experts_max: u64,
}

impl Fit {
    pub(super) fn new(start: Coefficients) -> Self {
        Self { start, now: start, ..Self::default() }
    }

    pub(super) fn coefficients(&self) -> Coefficients {
        self.now
    }

    /// Each row's part of the step's work, as weights that sum to about 2^32.
    pub(super) fn weights(&self, stats: &StepStats) -> Vec<u64> {
        let dense = stats.dense_bytes as f64 / stats.rows.len() as f64;
        let time = |row: &RowWork| self.time(dense + row_bytes(row), row.macs as f64);
        let total: f64 = stats.rows.iter().map(time).sum();
        if !total.is_finite() || total <= 0.0 {
            return vec![1; stats.rows.len()];
        }
        stats.rows.iter().map(|row| ((time(row) / total * 4_294_967_296.0) as u64).max(1)).collect()
    }

    /// Each kind of tokens' part of its row's work, as weights: recompute, prefill, decode, draft. A row reads dense weights and its part
    /// of the cache whether or not it has drafts, so wrong ones answer for experts and multiply-adds alone.
    pub(super) fn kinds(&self, stats: &StepStats, work: &RowWork, tokens: &RowTokens) -> [u64; 4] {
        let draft = u64::from(tokens.draft);
        let kept = [tokens.recompute, tokens.prefill, tokens.decode].map(u64::from);
        let all: u64 = kept.iter().sum::<u64>() + draft;
        let own = self.time(work.expert_bytes as f64, work.macs as f64);
        let shared =
            self.time(stats.dense_bytes as f64 / stats.rows.len() as f64 + work.kv_bytes as f64, 0.0);
        let part = own / (own + shared) * draft as f64 / all as f64;
        let [recompute, prefill, decode] = kept;
        if draft == 0 || draft == all || !part.is_finite() {
            return [recompute, prefill, decode, draft];
        }
        let part = (part * f64::from(FINE)) as u64;
        let rest = u64::from(FINE) - part;
        [rest * recompute, rest * prefill, rest * decode, part * (all - draft)]
    }

    pub(super) fn observe(&mut self, stats: &StepStats, rows: &[RowTokens], ns: u64) {
        let kv: f64 = stats.rows.iter().map(|r| r.kv_bytes as f64).sum();
        let bytes = stats.dense_bytes as f64 + stats.expert_bytes as f64 + kv;
        let macs: f64 = stats.rows.iter().map(|r| r.macs as f64).sum();
        self.remember_prefill(stats, rows, bytes);
        self.remember_decode(stats, rows);
        if ns == 0 || bytes + macs == 0.0 {
            return;
        }
        if rows.iter().any(|r| r.prefill + r.recompute > 0) && rows.iter().any(|r| r.decode > 0) {
            let step = [ns as f64, self.time(bytes, macs)];
            (0..2).for_each(|i| self.foretold[i] = self.foretold[i] * RECENT + step[i]);
        }
        let x = self.start.ns_per_byte * bytes / ns as f64;
        let y = self.start.ns_per_mac * macs / ns as f64;
        for (sum, term) in self.sums.iter_mut().zip([x * x, x * y, y * y, x, y]) {
            *sum = *sum * MEMORY + term;
        }
        self.solve();
    }

    fn remember_prefill(&mut self, stats: &StepStats, rows: &[RowTokens], bytes: f64) {
        let dense = stats.dense_bytes as f64 / stats.rows.len() as f64;
        let mut step = [0.0; 3];
        for (work, tokens) in stats.rows.iter().zip(rows) {
            // Only rows that do nothing else, so that the averages are a prompt token's.
            if tokens.prefill > 0 && tokens.recompute + tokens.decode == 0 {
                step[0] += f64::from(tokens.prefill);
                step[1] += work.macs as f64;
                step[2] += dense + row_bytes(work);
            }
        }
        if step[0] > 0.0 {
            (0..3).for_each(|i| self.prefill[i] = self.prefill[i] * MEMORY + step[i]);
            self.mixed = [self.mixed[0] * MEMORY + bytes, self.mixed[1] * MEMORY + 1.0];
        }
    }

    fn remember_decode(&mut self, stats: &StepStats, rows: &[RowTokens]) {
        let dense = stats.dense_bytes as f64 / stats.rows.len() as f64;
        let mut step = Decode::default();
        for (work, tokens) in stats.rows.iter().zip(rows) {
            let others = tokens.prefill + tokens.recompute;
            step.all_tokens += f64::from(tokens.decode + tokens.draft + others);
            if tokens.decode > 0 && others == 0 {
                step.rows += 1.0;
                step.tokens += f64::from(tokens.decode + tokens.draft);
                step.macs += work.macs as f64;
                step.rest += dense + work.kv_bytes as f64;
            }
        }
        let decode = &mut self.decode;
        decode.experts_max = decode.experts_max.max(stats.experts_used);
        if step.rows == 0.0 {
            return;
        }
        let remember = |sum: &mut f64, term: f64| *sum = *sum * RECENT + term;
        remember(&mut decode.rows, step.rows);
        remember(&mut decode.tokens, step.tokens);
        remember(&mut decode.macs, step.macs);
        remember(&mut decode.rest, step.rest);
        remember(&mut decode.steps, 1.0);
        remember(&mut decode.all_rows, rows.len() as f64);
        remember(&mut decode.all_tokens, step.all_tokens);
        remember(&mut decode.assigned, stats.expert_tokens as f64);
        remember(&mut decode.experts, stats.experts_used as f64);
        remember(&mut decode.expert_bytes, stats.expert_bytes as f64);
    }

    fn solve(&mut self) {
        let [xx, xy, yy, x, y] = self.sums;
        let (xx, yy, x, y) = (xx + PULL, yy + PULL, x + PULL, y + PULL);
        let det = xx * yy - xy * xy;
        let (mut a, mut b) = ((x * yy - y * xy) / det, (y * xx - x * xy) / det);
        // At a bound, the other coefficient explains what is left.
        let bounded = |v: f64| v.clamp(1.0 / BOUND, BOUND);
        if bounded(a) != a {
            a = bounded(a);
            b = bounded((y - a * xy) / yy);
        } else if bounded(b) != b {
            b = bounded(b);
            a = bounded((x - b * xy) / xx);
        }
        if a.is_finite() && b.is_finite() {
            self.now = Coefficients {
                ns_per_byte: a * self.start.ns_per_byte,
                ns_per_mac: b * self.start.ns_per_mac,
            };
        }
    }

    fn time(&self, bytes: f64, macs: f64) -> f64 {
        self.now.ns_per_byte * bytes + self.now.ns_per_mac * macs
    }

    /// Nanoseconds that computing so many prompt tokens takes, of recent rows' work per token; 0 before the first.
    pub(super) fn prefill_ns(&self, tokens: u32) -> u64 {
        let [seen, macs, bytes] = self.prefill;
        if seen == 0.0 { 0 } else { (self.time(bytes, macs) / seen * f64::from(tokens)) as u64 }
    }

    /// What one more token costs a row that decodes, over what a row of one token costs. That token needs as many experts as others do; of
    /// them it shares with the step what share of all experts the step has in use.
    pub(super) fn draft_price(&self) -> f64 {
        let d = &self.decode;
        let macs = self.time(0.0, d.macs / d.tokens);
        let (each, bytes) = match d.experts > 0.0 {
            true => (d.assigned / d.all_tokens, d.expert_bytes / d.experts),
            false => (0.0, 0.0),
        };
        let fresh = 1.0 - (d.experts / d.steps / d.experts_max.max(1) as f64).min(1.0);
        let token = macs + self.time(bytes * each * fresh, 0.0);
        let row = macs + self.time(bytes * each.min(d.experts / d.all_rows) + d.rest / d.rows, 0.0);
        let price = token / row;
        if price.is_finite() { price } else { 1.0 }
    }

    pub(super) fn chunk_within(&self, target_ns: u64, decode_rows: u32) -> Option<u32> {
        let ([seen, macs, _], [bytes, steps]) = (self.prefill, self.mixed);
        let per_token = self.now.ns_per_mac * macs / seen;
        if seen == 0.0 {
            return None;
        }
        if per_token <= 0.0 {
            return Some(u32::MAX);
        }
        let [took, foretold] = self.foretold;
        let late = if foretold > 0.0 { took / foretold } else { 1.0 };
        let target = target_ns as f64 / late.clamp(1.0 / FORETOLD_BOUND, FORETOLD_BOUND);
        let left = target - self.now.ns_per_byte * bytes / steps;
        Some(((left / per_token).max(0.0) as u32).saturating_sub(decode_rows))
    }
}

fn row_bytes(row: &RowWork) -> f64 {
    row.expert_bytes as f64 + row.kv_bytes as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(prompt_tokens: u32, decode_rows: u32) -> (StepStats, Vec<RowTokens>, u64) {
        let mut rows = vec![RowTokens { decode: 1, ..RowTokens::default() }; decode_rows as usize];
        if prompt_tokens > 0 {
            rows.push(RowTokens { prefill: prompt_tokens, ..RowTokens::default() });
        }
        let work = |r: &RowTokens| RowWork {
            macs: 1_000_000 * u64::from(r.prefill + r.decode),
            ..RowWork::default()
        };
        let stats = StepStats {
            dense_bytes: 50_000_000,
            rows: rows.iter().map(work).collect(),
            ..StepStats::default()
        };
        let macs: u64 = stats.rows.iter().map(|r| r.macs).sum();
        // 0.5 ns a byte, 0.01 ns a multiply-add.
        let ns = stats.dense_bytes / 2 + macs / 100;
        (stats, rows, ns)
    }

    #[test]
    fn it_finds_the_coefficients_that_made_the_times() {
        let mut fit = Fit::new(Coefficients::default());
        assert_eq!(fit.chunk_within(30_000_000, 4), None, "nothing is known");
        for i in 0..2000 {
            let (stats, rows, ns) = step(if i % 3 == 0 { 400 } else { 0 }, 1 + i % 7);
            fit.observe(&stats, &rows, ns);
        }
        let Coefficients { ns_per_byte, ns_per_mac } = fit.coefficients();
        assert!((ns_per_byte / 0.5 - 1.0).abs() < 0.02, "{ns_per_byte}");
        assert!((ns_per_mac / 0.01 - 1.0).abs() < 0.02, "{ns_per_mac}");
        let chunk = fit.chunk_within(30_000_000, 4).unwrap();
        assert!((450..=550).contains(&chunk), "25 ms for the weights leave 5 ms: {chunk}");
        assert_eq!(fit.chunk_within(20_000_000, 4), Some(0));
    }

    #[test]
    fn chunks_shrink_where_steps_take_longer_than_foretold() {
        let mut fit = Fit::new(Coefficients::default());
        for i in 0..2000 {
            let (stats, rows, ns) = step(if i % 50 == 0 { 400 } else { 0 }, 4);
            // Only these are slow, and too rare to move the coefficients to it.
            fit.observe(&stats, &rows, if i % 50 == 0 { 2 * ns } else { ns });
        }
        // Foretold 25 ms and 10 us a token, they take up to twice that.
        let chunk = fit.chunk_within(60_000_000, 4).unwrap();
        assert!((400..=1200).contains(&chunk), "less than the 3500 foretold: {chunk}");
    }

    #[test]
    fn steps_that_do_not_tell_leave_it_near_the_start() {
        let mut fit = Fit::new(Coefficients::default());
        for _ in 0..1000 {
            let (stats, rows, _) = step(0, 4);
            // Nothing at all can explain such times.
            fit.observe(&stats, &rows, u64::MAX);
        }
        let Coefficients { ns_per_byte, ns_per_mac } = fit.coefficients();
        assert!((0.1 / BOUND..=0.1 * BOUND).contains(&ns_per_byte), "{ns_per_byte}");
        assert!((0.05 / BOUND..=0.05 * BOUND).contains(&ns_per_mac), "{ns_per_mac}");
    }

    #[test]
    fn drafts_cost_the_less_the_more_of_a_row_is_shared_by_its_tokens() {
        let mut fit = Fit::new(Coefficients { ns_per_byte: 0.5, ns_per_mac: 0.01 });
        assert_eq!(fit.draft_price(), 1.0, "nothing is known");
        let price = |fit: &mut Fit, decode_rows| {
            for _ in 0..200 {
                let (stats, rows, ns) = step(0, decode_rows);
                fit.observe(&stats, &rows, ns);
            }
            fit.draft_price()
        };
        // A token 10 us, the weights 25 ms.
        let alone = price(&mut fit, 1);
        assert!((alone / (0.01 / 25.01) - 1.0).abs() < 0.1, "{alone}");
        let crowd = price(&mut fit, 64);
        assert!((crowd / (0.01 / (0.01 + 25.0 / 64.0)) - 1.0).abs() < 0.1, "{crowd}");
        // A token's experts are twice the other weights, and of eight, a step has two in use: three quarters are a draft's own.
        let (mut stats, rows, ns) = step(0, 1);
        (stats.expert_bytes, stats.experts_used, stats.expert_tokens) = (100_000_000, 2, 2);
        (0..200).for_each(|_| fit.observe(&stats, &rows, 3 * ns));
        assert_eq!(fit.decode.experts_max, 2);
        assert!(fit.draft_price() < 0.01, "all experts there are, as far as is known");
        fit.decode.experts_max = 8;
        let own = fit.draft_price();
        assert!((own / 0.5 - 1.0).abs() < 0.1, "{own}");
    }

    #[test]
    fn a_row_that_pulls_experts_pays_for_them() {
        let fit = Fit::new(Coefficients { ns_per_byte: 1.0, ns_per_mac: 0.0 });
        let mut stats =
            StepStats { dense_bytes: 200, rows: vec![RowWork::default(); 2], ..StepStats::default() };
        stats.rows[1].expert_bytes = 300;
        let weights = fit.weights(&stats);
        assert_eq!(weights[1] / weights[0], 4);
    }
}
