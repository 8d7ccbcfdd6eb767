//! Histograms with fixed bounds. Counts and sums only ever grow.

/// Counts of observations at most each bound, and their sum, in exact integers.
#[derive(Clone, Debug)]
pub struct Histogram {
    bounds: &'static [f64],
    /// Observations between the previous bound and this one; the last is beyond all bounds.
    counts: Vec<u64>,
    sum: u64,
    unit: f64,
}

impl Histogram {
    /// Of durations: observed in nanoseconds, bounds in seconds, ascending.
    pub fn seconds(bounds: &'static [f64]) -> Self {
        Self { bounds, counts: vec![0; bounds.len() + 1], sum: 0, unit: 1e-9 }
    }

    /// Of counts.
    pub fn tokens(bounds: &'static [f64]) -> Self {
        Self { unit: 1.0, ..Self::seconds(bounds) }
    }

    /// One observation: nanoseconds, or a count.
    pub fn observe(&mut self, value: u64) {
        let scaled = value as f64 * self.unit;
        let at = self.bounds.partition_point(|&b| b < scaled);
        self.counts[at] += 1;
        self.sum = self.sum.saturating_add(value);
    }

    /// (upper bound, observations at most that), ascending, without the infinite one.
    pub fn cumulative(&self) -> impl Iterator<Item = (f64, u64)> + '_ {
        self.bounds.iter().zip(&self.counts).scan(0, |sum, (&bound, count)| {
            *sum += count;
            Some((bound, *sum))
        })
    }

    /// Observations.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Sum of all observations, in seconds or as a count.
    pub fn sum(&self) -> f64 {
        self.sum as f64 * self.unit
    }
}

/// Bounds of the time to the first token, seconds.
pub const FIRST_TOKEN: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
    80.0, 160.0, 640.0, 2560.0,
];
/// Bounds of the time between two tokens, seconds.
pub const INTER_TOKEN: &[f64] = &[
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
];
/// Bounds of a request's whole time and its parts, seconds.
pub const REQUEST_TIME: &[f64] = &[
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0,
    960.0, 1920.0, 7680.0,
];
/// Bounds of a request's tokens.
pub const REQUEST_TOKENS: &[f64] = &[
    1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10_000.0, 20_000.0,
    50_000.0, 100_000.0,
];
/// Bounds of a step's tokens.
pub const STEP_TOKENS: &[f64] =
    &[1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_observation_on_a_bound_counts_below_it() {
        let mut h = Histogram::seconds(&[0.5, 1.0]);
        for ns in [500_000_000, 500_000_001, 2_000_000_000] {
            h.observe(ns);
        }
        assert_eq!(h.cumulative().collect::<Vec<_>>(), [(0.5, 1), (1.0, 2)]);
        assert_eq!(h.count(), 3);
        assert!((h.sum() - 3.000_000_001).abs() < 1e-12);
    }
}
