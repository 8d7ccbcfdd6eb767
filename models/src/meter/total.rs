//! Energy from counters that may begin anew, or from power alone.

use std::time::{Duration, Instant};

use super::{PERIOD, Sample};

const PICO_PER_MILLI: u128 = 1_000_000_000;

/// No device draws 10 kW: a counter that goes on faster has not counted.
const MILLIWATTS_MAX: u128 = 10_000_000;

/// Picojoules since the first answer.
///
/// A counter's differences add up to what it counted, whatever happened in between: missed answers cost nothing. Where it goes
/// back (the driver was loaded anew) or leaps, that one interval counts at the present power, and so does every interval of a device
/// that has no counter, if answers came at both its ends.
#[derive(Clone, Debug, Default)]
pub(super) struct Total {
    energy: u128,
    /// Of it, what is not yet due. One that is still here is of a longer interval than all after it together, or of a period:
    /// there are few, however long answers were missed.
    due: Vec<Due>,
    at: Option<Instant>,
    /// The last that was seen, and when.
    counter: Option<(u64, Instant)>,
    /// Whether anything said how much energy is used.
    known: bool,
    /// Whether there was no answer since.
    missed: bool,
}

/// Energy that an answer added: it comes evenly, over as much time as it is of.
#[derive(Clone, Copy, Debug)]
struct Due {
    energy: u128,
    since: Instant,
    /// Not zero.
    over: Duration,
}

impl Due {
    /// What is still to come.
    fn left(&self, now: Instant) -> u128 {
        let early = self.over.saturating_sub(now.saturating_duration_since(self.since));
        (self.energy * early.as_nanos()).div_ceil(self.over.as_nanos())
    }
}

impl Total {
    /// An answer.
    pub(super) fn add(&mut self, at: Instant, sample: &Sample) {
        let passed = self.at.map_or(Duration::ZERO, |last| at.saturating_duration_since(last));
        let seen = if self.missed { Duration::ZERO } else { passed };
        // Milliwatts times nanoseconds are picojoules.
        let drawn = u128::from(sample.power_milliwatts.unwrap_or(0)).min(MILLIWATTS_MAX) * seen.as_nanos();
        let counted = sample.energy_millijoules;
        let (added, of) = match (self.counter, counted) {
            (Some((last, since)), Some(now)) => {
                let of = at.saturating_duration_since(since);
                let more = now.checked_sub(last).map(|more| u128::from(more) * PICO_PER_MILLI);
                let counted = more.filter(|&more| more <= of.as_nanos() * MILLIWATTS_MAX);
                counted.map_or((drawn, seen), |counted| (counted, of))
            }
            // The counter's next value has it.
            (Some(_), None) => (0, seen),
            (None, _) => (drawn, seen),
        };
        self.counter = counted.map(|now| (now, at)).or(self.counter);
        self.known |= counted.is_some() || sample.power_milliwatts.is_some();
        (self.at, self.missed) = (Some(at), false);
        self.energy += added;
        self.due.retain(|due| due.left(at) > 0);
        if added > 0 {
            self.due.push(Due { energy: added, since: at, over: of.max(PERIOD) });
        }
    }

    /// No answer.
    pub(super) fn miss(&mut self) {
        self.missed = true;
    }

    /// All of it; None if nothing ever said how much.
    pub(super) fn seen(&self) -> Option<u128> {
        self.known.then_some(self.energy)
    }

    /// The same, but for what is not yet due: what an answer added comes evenly, over a period or the longer time since the one before.
    pub(super) fn until(&self, now: Instant) -> Option<u128> {
        let left: u128 = self.due.iter().map(|due| due.left(now)).sum();
        self.seen().map(|energy| energy - left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const COUNTED: Sample = Sample {
        energy_millijoules: Some(0),
        power_milliwatts: None,
        busy_percent: None,
        memory_used: None,
        memory: None,
        celsius: None,
    };

    fn counter(value: u64) -> Sample {
        Sample { energy_millijoules: Some(value), ..COUNTED }
    }

    fn power(milliwatts: u64) -> Sample {
        Sample { energy_millijoules: None, power_milliwatts: Some(milliwatts), ..COUNTED }
    }

    /// Answers at 100 ms each, None for an error; millijoules.
    fn total(answers: &[Option<Sample>]) -> Option<u128> {
        let (mut total, begin) = (Total::default(), Instant::now());
        for (i, answer) in answers.iter().enumerate() {
            match answer {
                Some(sample) => total.add(begin + PERIOD * i as u32, sample),
                None => total.miss(),
            }
        }
        total.seen().map(|energy| energy / PICO_PER_MILLI)
    }

    #[test]
    fn a_counter_counts_from_its_first_value() {
        assert_eq!(total(&[Some(counter(7_000_000))]), Some(0));
        assert_eq!(
            total(&[Some(counter(7_000_000)), Some(counter(7_000_000)), Some(counter(7_000_040))]),
            Some(40)
        );
    }

    #[test]
    fn what_was_used_while_it_did_not_answer_is_counted_when_it_does() {
        assert_eq!(total(&[Some(counter(10)), None, None, Some(counter(70)), Some(counter(80))]), Some(70));
        let silent = Sample { energy_millijoules: None, power_milliwatts: Some(900), ..COUNTED };
        assert_eq!(total(&[Some(counter(10)), Some(silent), Some(counter(70))]), Some(60), "and once only");
    }

    #[test]
    fn a_counter_that_begins_anew_or_leaps_is_bridged_by_power() {
        let draws =
            |counter| Sample { energy_millijoules: Some(counter), power_milliwatts: Some(300), ..COUNTED };
        assert_eq!(total(&[Some(draws(5_000)), Some(draws(3)), Some(draws(13))]), Some(30 + 10));
        assert_eq!(total(&[Some(draws(5_000)), Some(draws(u64::MAX)), Some(draws(5_030))]), Some(30 + 30));
        assert_eq!(
            total(&[Some(counter(5_000)), Some(counter(3)), Some(counter(13))]),
            Some(10),
            "or is lost"
        );
    }

    #[test]
    fn without_a_counter_power_is_summed_where_both_ends_are_known() {
        assert_eq!(total(&[Some(power(500)), Some(power(400)), Some(power(200))]), Some(40 + 20));
        assert_eq!(total(&[Some(power(500)), None, Some(power(400)), Some(power(200))]), Some(20));
        assert_eq!(total(&[Some(Sample::default()), Some(Sample::default())]), None, "nothing is measured");
    }

    #[test]
    fn a_leap_becomes_due_over_the_next_period() {
        let (mut total, begin) = (Total::default(), Instant::now());
        total.add(begin, &counter(0));
        total.add(begin + PERIOD, &counter(30));
        let at = |percent: u32| total.until(begin + PERIOD + PERIOD * percent / 100).map(|e| e / 1_000_000);
        assert_eq!([0, 10, 50, 100, 900].map(at), [0, 3_000, 15_000, 30_000, 30_000].map(Some));
    }

    /// As a driver does that answers with errors for half a minute: whoever runs when it answers again pays for his own time.
    #[test]
    fn what_becomes_known_after_a_gap_is_due_over_as_long() {
        let (mut total, begin) = (Total::default(), Instant::now());
        total.add(begin, &counter(0));
        let known = begin + PERIOD * 300;
        total.miss();
        // 100 W for 30 s, then the same.
        total.add(known, &counter(3_000_000));
        let millijoules =
            |total: &Total, periods: u32| total.until(known + PERIOD * periods).map(|e| e / PICO_PER_MILLI);
        assert_eq!(
            [0, 1, 30, 300].map(|n| millijoules(&total, n)),
            [0, 10_000, 300_000, 3_000_000].map(Some)
        );
        for period in 1..=400 {
            total.add(known + PERIOD * period, &counter(3_000_000 + 10_000 * u64::from(period)));
            // Of the gap so much is due, and of what came since all but the last.
            let due = 10_000 * u128::from(period.min(300) + period - 1);
            assert_eq!(millijoules(&total, period), Some(due), "{period}");
            assert!(total.due.len() <= 2, "{:?}", total.due);
        }
        assert_eq!(total.until(known + PERIOD * 401), total.seen());
    }

    proptest! {
        #[test]
        fn it_never_goes_back_and_ends_where_the_counter_does(
            steps in prop::collection::vec((0u64..2_000, 0u64..150, prop::bool::weighted(0.8)), 1..50),
        ) {
            let (mut total, mut now, mut value) = (Total::default(), Instant::now(), 1_000);
            total.add(now, &counter(value));
            let (mut before, mut seen) = (Some(0), value);
            for (wait, more, answers) in steps {
                // No less than a period, which is how it is asked, and looked at in between.
                for _ in 0..4 {
                    now += (PERIOD + Duration::from_millis(wait)) / 4;
                    let settled = total.until(now);
                    prop_assert!(settled >= before && settled <= total.seen());
                    before = settled;
                }
                value += more;
                match answers {
                    true => { total.add(now, &counter(value)); seen = value; }
                    false => total.miss(),
                }
                prop_assert_eq!(total.seen(), Some(u128::from(seen - 1_000) * PICO_PER_MILLI));
                prop_assert!(total.until(now) >= before);
                // The longest wait is of 50 steps.
                prop_assert!(total.due.len() < 20, "{}", total.due.len());
                prop_assert_eq!(total.until(now + PERIOD * 50 * 21), total.seen());
            }
        }
    }
}
