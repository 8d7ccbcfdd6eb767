//! Money and energy prices, exact.

use std::fmt;

use crate::raw;
use crate::units::{Decimal, PICO};

/// What the machine costs: pico-units of currency per hour; 64 bits hold 18 million units.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PicoPerHour(pub u64);

impl fmt::Display for PicoPerHour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Decimal::of_pico(self.0.into()).fmt(f)
    }
}

/// Pico-units of currency per kilowatt-hour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PicoPerKwh(pub u64);

/// Electrical power in milliwatts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Milliwatts(pub u64);

/// Pico-units of currency per million tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PicoPerMillion(pub u128);

/// List prices of a hosted API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hosted {
    /// Of prompt tokens that it computes.
    pub input: PicoPerMillion,
    /// Of prompt tokens that are in its cache.
    pub cached: PicoPerMillion,
    /// Of answers.
    pub output: PicoPerMillion,
}

/// Hours in a year, leap years averaged (365.25 days).
const HOURS_PER_YEAR: u128 = 8_766;

/// The parts of the price of a machine that is ours rather than rented by the hour.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Parts {
    /// Price per GPU-hour, number of GPUs.
    pub(crate) gpus: Option<(Decimal, u32)>,
    /// Watts, price per kWh.
    pub(crate) electricity: Option<(Decimal, Decimal)>,
    /// Price, years.
    pub(crate) hardware: Option<(Decimal, Decimal)>,
}

impl Parts {
    /// GPU price x count + power x electricity price + hardware price / lifetime; each part is rounded down to a
    /// pico-unit per hour, far below anything that a bill shows. None without any part.
    pub(crate) fn per_hour(&self) -> Option<u128> {
        let gpus = self.gpus.map(|(price, count)| price.pico() * u128::from(count));
        // Pico-watts x pico-units per kWh: one factor of 10^12 and the thousand watts of a kW go.
        let electricity =
            self.electricity.map(|(watts, price)| (watts.pico() / PICO_PER_MILLI) * price.pico() / 1_000_000);
        let hardware = self.hardware.map(|(price, years)| {
            let milli_hours = (years.pico() / PICO_PER_MILLI) * HOURS_PER_YEAR;
            price.pico() * 1_000 / milli_hours.max(1)
        });
        let parts = [gpus, electricity, hardware];
        parts.iter().any(Option::is_some).then(|| parts.iter().flatten().sum())
    }

    /// The same machine when it draws so many watts.
    pub(crate) fn drawing(self, watts: Decimal) -> Self {
        Self { electricity: self.electricity.map(|(_, price)| (watts, price)), ..self }
    }
}

const PICO_PER_MILLI: u128 = PICO / 1_000;

impl From<raw::Hosted> for Hosted {
    fn from(list: raw::Hosted) -> Self {
        let of = |price: Decimal| PicoPerMillion(price.pico());
        let cached = list.cached.unwrap_or(list.input);
        Self { input: of(list.input), cached: of(cached), output: of(list.output) }
    }
}

impl PicoPerKwh {
    /// None above a million units.
    pub(crate) fn from_price(price: Decimal) -> Option<Self> {
        u64::try_from(price.pico()).ok().filter(|&pico| u128::from(pico) <= 1_000_000 * PICO).map(Self)
    }
}

impl Milliwatts {
    /// None if finer than a milliwatt or more than 64 bits hold.
    pub(crate) fn from_watts(watts: Decimal) -> Option<Self> {
        let whole = watts.pico().is_multiple_of(PICO_PER_MILLI);
        u64::try_from(watts.pico() / PICO_PER_MILLI).ok().filter(|_| whole).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn d(text: &str) -> Decimal {
        text.parse().unwrap()
    }

    #[test]
    fn the_price_of_an_hour() {
        let check = |parts: Parts, pico: Option<u128>| assert_eq!(parts.per_hour(), pico);
        check(Parts::default(), None);
        check(Parts { gpus: Some((d("2.00"), 8)), ..Parts::default() }, Some(16 * PICO));
        // 500 W at 0.30 a kWh: 0.15 an hour.
        check(Parts { electricity: Some((d("500"), d("0.30"))), ..Parts::default() }, Some(150_000_000_000));
        // 8766 over one year: 1 an hour.
        check(Parts { hardware: Some((d("8766"), d("1"))), ..Parts::default() }, Some(PICO));
        let all = Parts {
            gpus: Some((d("1"), 1)),
            electricity: Some((d("1000"), d("1"))),
            hardware: Some((d("17532"), d("2"))),
        };
        check(all, Some(3 * PICO));
        check(all.drawing(d("200")), Some(2 * PICO + PICO / 5));
        check(Parts { electricity: None, ..all }.drawing(d("200")), Some(2 * PICO));
    }

    #[test]
    fn the_largest_prices_do_not_overflow() {
        let most = d("999999999");
        let all = Parts {
            gpus: Some((most, u32::MAX)),
            electricity: Some((most, most)),
            hardware: Some((most, most)),
        };
        assert!(all.per_hour().is_some());
    }

    #[test]
    fn a_kilowatt_hour_has_a_sensible_price() {
        assert_eq!(PicoPerKwh::from_price(d("0.30")), Some(PicoPerKwh(300_000_000_000)));
        assert_eq!(PicoPerKwh::from_price(d("1000000.1")), None);
    }

    #[test]
    fn power_is_whole_milliwatts() {
        assert_eq!(Milliwatts::from_watts(d("65.5")), Some(Milliwatts(65_500)));
        assert_eq!(Milliwatts::from_watts(d("0.0001")), None);
    }
}
