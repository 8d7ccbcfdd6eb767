//! `[cost]`: what the machine costs, from whichever prices are given.

use super::{Check, Cost};
use crate::error::ConfigError;
use crate::layers::UNSET;
use crate::prices::{Milliwatts, Parts, PicoPerHour, PicoPerKwh};
use crate::raw::{self, Raw};
use crate::units::{Decimal, PICO};

impl Check<'_> {
    pub(super) fn cost(&self, raw: &Raw) -> Result<Cost, ConfigError> {
        let c = &raw.cost;
        if c.currency.is_empty() || c.currency.len() > 16 || !c.currency.bytes().all(|b| b.is_ascii_graphic())
        {
            return Err(self.layers.wrong("cost.currency", "expected 1 to 16 visible ASCII characters"));
        }
        let (power, idle_power) = self.powers(c)?;
        if let Some(0) = c.gpu_count {
            return Err(self.layers.wrong("cost.gpu_count", "expected at least 1"));
        }
        let (per_hour, idle_per_hour) = match c.instance_per_hour {
            Some(price) => {
                self.instance_price_stands_alone(c)?;
                (Some(price.pico()), None)
            }
            None => {
                let parts = self.parts(c)?;
                (parts.per_hour(), c.idle_watts.and_then(|watts| parts.drawing(watts).per_hour()))
            }
        };
        let price = |pico: Option<u128>| pico.map(|pico| self.price(pico)).transpose();
        let (per_hour, idle_per_hour) = (price(per_hour)?, price(idle_per_hour)?);
        let per_kwh = match c.electricity_per_kwh {
            Some(price) => Some(PicoPerKwh::from_price(price).ok_or_else(|| {
                self.layers.wrong("cost.electricity_per_kwh", "a kilowatt-hour would cost more than 10^6")
            })?),
            None => None,
        };
        let hosted = c.hosted.clone().unwrap_or_default();
        let hosted = hosted.into_iter().map(|(name, list)| (name, list.into())).collect();
        let currency = c.currency.clone();
        Ok(Cost { currency, per_hour, idle_per_hour, per_kwh, power, idle_power, hosted })
    }

    /// With work and without.
    fn powers(&self, c: &raw::Cost) -> Result<(Option<Milliwatts>, Option<Milliwatts>), ConfigError> {
        let of = |key: &'static str, watts: Option<Decimal>| {
            let wrong = || self.layers.wrong(key, "expected at most 3 decimals");
            watts.map(|watts| Milliwatts::from_watts(watts).ok_or_else(wrong)).transpose()
        };
        let (busy, idle) = (of("cost.power_watts", c.power_watts)?, of("cost.idle_watts", c.idle_watts)?);
        if idle.is_some() && busy.is_none() {
            return Err(self.incomplete("cost.idle_watts", "cost.power_watts"));
        }
        if idle > busy {
            let problem = "a machine without work draws no more than one with work";
            return Err(self.contradiction("cost.idle_watts", "cost.power_watts", problem));
        }
        Ok((busy, idle))
    }

    /// At most a million an hour, so that the sums of years fit into 128 bits.
    fn price(&self, pico: u128) -> Result<PicoPerHour, ConfigError> {
        let fits = u64::try_from(pico).ok().filter(|_| pico <= 1_000_000 * PICO).map(PicoPerHour);
        let set = |key: &&str| self.layers.setting(key).value != UNSET;
        let keys = [
            "cost.instance_per_hour",
            "cost.gpu_per_hour",
            "cost.electricity_per_kwh",
            "cost.hardware_price",
        ];
        let key = keys.iter().find(|key| set(key)).copied().unwrap_or(keys[0]);
        fits.ok_or_else(|| self.layers.wrong(key, "the machine would cost more than 10^6 an hour"))
    }

    /// An instance price includes everything: with another price beside it, something would be counted twice.
    fn instance_price_stands_alone(&self, c: &raw::Cost) -> Result<(), ConfigError> {
        let others = [
            ("cost.gpu_per_hour", c.gpu_per_hour.is_some()),
            ("cost.electricity_per_kwh", c.electricity_per_kwh.is_some()),
            ("cost.hardware_price", c.hardware_price.is_some()),
        ];
        match others.iter().find(|(_, set)| *set) {
            Some((other, _)) => {
                let problem = "an instance price includes everything";
                Err(self.contradiction("cost.instance_per_hour", other, problem))
            }
            None => Ok(()),
        }
    }

    fn parts(&self, c: &raw::Cost) -> Result<Parts, ConfigError> {
        let both = |first: (&'static str, Option<Decimal>), second: (&'static str, Option<Decimal>)| match (
            first.1, second.1,
        ) {
            (Some(a), Some(b)) => Ok(Some((a, b))),
            (Some(_), None) => Err(self.incomplete(first.0, second.0)),
            (None, Some(_)) => Err(self.incomplete(second.0, first.0)),
            (None, None) => Ok(None),
        };
        if c.gpu_count.is_some() && c.gpu_per_hour.is_none() {
            return Err(self.incomplete("cost.gpu_count", "cost.gpu_per_hour"));
        }
        let gpus = c.gpu_per_hour.map(|price| (price, c.gpu_count.unwrap_or(1)));
        // Power alone is the basis of joules; a price of electricity alone is worth nothing.
        let electricity = match c.electricity_per_kwh {
            Some(_) => both(
                ("cost.electricity_per_kwh", c.electricity_per_kwh),
                ("cost.power_watts", c.power_watts),
            )?
            .map(|(price, watts)| (watts, price)),
            None => None,
        };
        let hardware =
            both(("cost.hardware_price", c.hardware_price), ("cost.hardware_years", c.hardware_years))?;
        if c.hardware_years.is_some_and(|y| y.pico() < PICO / 1_000) {
            return Err(self.layers.wrong("cost.hardware_years", "expected at least 0.001"));
        }
        Ok(Parts { gpus, electricity, hardware })
    }
}
