//! Numbers of schemas that the library would follow in another way than they are meant, or not in bounded time.

use serde_json::{Number, Value};

/// The library takes numbers for floating-point ones, which tell integers apart up to here.
const EXACT_MAX: u64 = 1 << 53;

/// Largest `multipleOf` without its decimal point: an automaton counts up to it.
const MULTIPLE_MAX: u64 = 10_000;

/// The same for one that is all zeros but for two digits: those are counted faster.
const ROUND_MAX: u64 = 100_000_000;

/// Most decimal places of `multipleOf`.
const PLACES_MAX: u32 = 9;

/// An integer in `value`, at any depth, that the library would change.
pub(super) fn inexact(value: &Value) -> Option<&Number> {
    match value {
        Value::Number(number) => (!exact(number)).then_some(number),
        Value::Array(values) => values.iter().find_map(inexact),
        Value::Object(values) => values.values().find_map(inexact),
        _ => None,
    }
}

/// Floating-point numbers past all fractions count too: the integer that was written is no longer known.
fn exact(number: &Number) -> bool {
    match (number.as_i64(), number.as_u64()) {
        (Some(signed), _) => signed.unsigned_abs() <= EXACT_MAX,
        (None, Some(unsigned)) => unsigned <= EXACT_MAX,
        (None, None) => number.as_f64().is_some_and(|float| float.abs() <= EXACT_MAX as f64),
    }
}

/// Whether a bound is an integer that the library would change; other numbers as large are bounds of nothing that is written out.
pub(super) fn inexact_bound(value: &Value) -> bool {
    let integer = value.is_i64() || value.is_u64();
    integer && inexact(value).is_some()
}

/// What a number is a multiple of: `digits` before `places` decimals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Multiple {
    digits: u64,
    places: u32,
}

impl Multiple {
    /// None: it is 0, or more than any that can be followed.
    pub(super) fn of(number: &Number) -> Option<Self> {
        let text = number.to_string();
        let text = text.trim_start_matches('-');
        let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let digits: u64 = format!("{whole}{fraction}").parse().ok().filter(|&digits| digits > 0)?;
        let exponent = exponent.parse::<i32>().ok()? - i32::try_from(fraction.len()).ok()?;
        match u32::try_from(exponent) {
            Ok(zeros) => Some(Self { digits: digits.checked_mul(10u64.checked_pow(zeros)?)?, places: 0 }),
            Err(_) => Some(Self { digits, places: exponent.unsigned_abs() }.reduced()),
        }
    }

    fn reduced(mut self) -> Self {
        while self.places > 0 && self.digits.is_multiple_of(10) {
            self = Self { digits: self.digits / 10, places: self.places - 1 };
        }
        self
    }

    /// The least that is a multiple of both; None if that is too large.
    pub(super) fn common(self, other: Self) -> Option<Self> {
        let places = self.places.max(other.places);
        let scaled = |it: Self| it.digits.checked_mul(10u64.checked_pow(places - it.places)?);
        let (a, b) = (scaled(self)?, scaled(other)?);
        let digits = (a / divisor(a, b)).checked_mul(b)?;
        Some(Self { digits, places }.reduced())
    }

    pub(super) fn can_be_followed(self) -> bool {
        let mut rest = self.digits;
        while rest.is_multiple_of(10) {
            rest /= 10;
        }
        let round = rest < 100 && self.digits <= ROUND_MAX;
        self.places <= PLACES_MAX && (self.digits <= MULTIPLE_MAX || round)
    }
}

fn divisor(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { divisor(b, a % b) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn multiples_are_what_they_are_in_decimals() {
        let of = |value: Value| Multiple::of(value.as_number().expect("a number"));
        for (value, digits, places) in [
            (json!(5), 5, 0),
            (json!(-70), 70, 0),
            (json!(0.25), 25, 2),
            (json!(10.0), 10, 0),
            (json!(1e-7), 1, 7),
            (json!(1.5e3), 1500, 0),
        ] {
            assert_eq!(of(value.clone()), Some(Multiple { digits, places }), "{value}");
        }
        assert_eq!(of(json!(0)), None);
        assert_eq!(of(json!(1e300)), None);
        let common = |a: Value, b: Value| of(a)?.common(of(b)?).map(|m| (m.digits, m.places));
        assert_eq!(common(json!(0.25), json!(0.1)), Some((5, 1)));
        assert_eq!(common(json!(6), json!(4)), Some((12, 0)));
        assert_eq!(common(json!(1e-300), json!(4)), None);
        for (value, followed) in [
            (json!(9973), true),
            (json!(99_730), false),
            (json!(83_200_000), false),
            (json!(99_000_000), true),
            (json!(0.001), true),
            (json!(1e-12), false),
        ] {
            assert_eq!(of(value.clone()).is_some_and(Multiple::can_be_followed), followed, "{value}");
        }
    }
}
