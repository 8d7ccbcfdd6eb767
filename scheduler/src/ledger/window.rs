//! Sums over the last five minutes, in buckets of ten seconds.

use std::collections::VecDeque;

use crate::request::Tick;
use crate::snapshot::{Amount, UnitCost};

const BUCKET_NS: u64 = 10_000_000_000;
const BUCKETS: u64 = 30;

/// Amounts and tokens of some stretch of time.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    pub(super) accounts: [Amount; 7],
    pub(super) input: u64,
    pub(super) output: u64,
}

impl Tally {
    pub(super) fn add(&mut self, other: &Self) {
        for (a, b) in self.accounts.iter_mut().zip(other.accounts) {
            *a += b;
        }
        self.input += other.input;
        self.output += other.output;
    }
}

/// Ring of tallies; at most `BUCKETS`, the present one included.
#[derive(Clone, Debug, Default)]
pub(super) struct Window {
    buckets: VecDeque<(u64, Tally)>,
}

impl Window {
    pub(super) fn add(&mut self, at: Tick, tally: &Tally) {
        let index = at.0 / BUCKET_NS;
        if self.buckets.back().is_none_or(|(last, _)| *last != index) {
            self.buckets.push_back((index, Tally::default()));
        }
        while self.buckets.front().is_some_and(|(first, _)| first + BUCKETS <= index) {
            self.buckets.pop_front();
        }
        if let Some((_, last)) = self.buckets.back_mut() {
            last.add(tally);
        }
    }

    pub(super) fn sum(&self, now: Tick) -> Tally {
        let index = now.0 / BUCKET_NS;
        let mut sum = Tally::default();
        for (_, tally) in self.buckets.iter().filter(|(i, _)| i + BUCKETS > index) {
            sum.add(tally);
        }
        sum
    }
}

/// `part` per million of `tokens`; loaded with its proportion of `all`, where `both` is what is in proportion.
pub(super) fn unit_cost(part: Amount, both: Amount, all: Amount, tokens: u64) -> UnitCost {
    let per_million = |amount: f64| (tokens > 0).then(|| amount * 1e6 / tokens as f64);
    let loaded = |part: f64, both: f64, all: f64| {
        if both > 0.0 { per_million(part * (all / both)) } else { None }
    };
    let seconds = |a: Amount| a.ns as f64 * 1e-9;
    let money = |a: Amount| a.pico as f64 * 1e-12;
    let joules = |a: Amount| a.energy as f64 * 1e-12;
    UnitCost {
        seconds_marginal: per_million(seconds(part)),
        seconds_loaded: loaded(seconds(part), seconds(both), seconds(all)),
        money_marginal: per_million(money(part)),
        money_loaded: loaded(money(part), money(both), money(all)),
        joules_marginal: per_million(joules(part)),
        joules_loaded: loaded(joules(part), joules(both), joules(all)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_window_forgets_after_five_minutes() {
        let mut window = Window::default();
        let tally = Tally { input: 1, ..Tally::default() };
        let second = 1_000_000_000;
        for s in 0..1000 {
            window.add(Tick(s * second), &tally);
        }
        assert_eq!(window.sum(Tick(999 * second)).input, 300);
        assert_eq!(window.buckets.len(), 30);
        assert_eq!(window.sum(Tick(1205 * second)).input, 90);
        assert_eq!(window.sum(Tick(2000 * second)).input, 0);
    }
}
