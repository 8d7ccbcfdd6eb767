//! Value types of configuration keys: what may be written, and what it means.

use std::fmt;
use std::str::FromStr;

use serde::de::{Deserializer, Error as _, Visitor};
use serde::{Deserialize, Serialize, Serializer};

/// A number of bytes: an integer, or a string such as `"512MiB"` or `"2GB"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, unit) = text.split_at(digits);
        let factor: u64 = match unit.trim_start() {
            "" | "B" => 1,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            "TiB" => 1 << 40,
            "kB" | "KB" => 1_000,
            "MB" => 1_000_000,
            "GB" => 1_000_000_000,
            "TB" => 1_000_000_000_000,
            _ => return Err(BYTES_EXPECTED.to_owned()),
        };
        let number: u64 = number.parse().map_err(|_| BYTES_EXPECTED.to_owned())?;
        number.checked_mul(factor).map(Self).ok_or_else(|| "more bytes than 64 bits count".to_owned())
    }
}

const BYTES_EXPECTED: &str =
    "expected whole bytes with an optional unit (KiB, MiB, GiB, TiB, kB, MB, GB, TB)";

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shift, unit) in [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")] {
            if self.0 != 0 && self.0.is_multiple_of(1 << shift) {
                return write!(f, "{}{unit}", self.0 >> shift);
            }
        }
        write!(f, "{}B", self.0)
    }
}

/// A chosen value, or `"auto"`: the consumer decides from the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Auto<T> {
    /// Not chosen.
    Auto,
    /// Chosen.
    Set(T),
}

impl<T> Auto<T> {
    /// The choice, if there is one.
    pub fn chosen(self) -> Option<T> {
        match self {
            Self::Auto => None,
            Self::Set(t) => Some(t),
        }
    }
}

impl<T: FromStr<Err = String>> FromStr for Auto<T> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "auto" {
            return Ok(Self::Auto);
        }
        text.parse().map(Self::Set).map_err(|e| format!("{e}, or \"auto\""))
    }
}

impl<T: fmt::Display> fmt::Display for Auto<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Set(t) => t.fmt(f),
        }
    }
}

/// A positive whole number, as an integer or in a string.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count(pub u32);

impl FromStr for Count {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse()
            .ok()
            .filter(|n| *n > 0)
            .map(Self)
            .ok_or_else(|| "expected a whole number from 1".to_owned())
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A decimal number from 0, below 10^9, with at most 12 digits after the point, exact: never a binary float.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Decimal {
    pico: u128,
}

/// Pico-units in a unit.
pub const PICO: u128 = 1_000_000_000_000;

impl Decimal {
    pub(crate) fn of_pico(pico: u128) -> Self {
        Self { pico }
    }

    /// The number times 10^12; below 10^21.
    pub fn pico(self) -> u128 {
        self.pico
    }
}

impl FromStr for Decimal {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || {
            "expected a decimal number such as \"0.085\", from 0, below 10^9, at most 12 decimals".to_owned()
        };
        let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
        let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
        if !digits(whole) || !digits(fraction) || fraction.len() > 12 || whole.len() > 9 {
            return Err(expected());
        }
        let whole: u128 = whole.parse().map_err(|_| expected())?;
        let fraction: u128 = format!("{fraction:0<12}").parse().map_err(|_| expected())?;
        Ok(Self { pico: whole * PICO + fraction })
    }
}

impl fmt::Display for Decimal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = format!("{}.{:012}", self.pico / PICO, self.pico % PICO);
        f.write_str(text.trim_end_matches('0').trim_end_matches('.'))
    }
}

/// A string that is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    pub fn new(secret: impl Into<String>) -> Self {
        Self(secret.into())
    }

    /// The secret itself; for comparing, not for showing.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str("[redacted]")
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d).map(Self)
    }
}

/// Reads a `FromStr` type from a string or a number, as TOML or an environment variable spells it.
fn from_text<'de, D: Deserializer<'de>, T: FromStr<Err = String>>(d: D) -> Result<T, D::Error> {
    struct Text<T>(std::marker::PhantomData<T>);
    impl<T: FromStr<Err = String>> Visitor<'_> for Text<T> {
        type Value = T;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a number or a string")
        }
        fn visit_str<E: serde::de::Error>(self, v: &str) -> Result<T, E> {
            v.parse().map_err(E::custom)
        }
        fn visit_i64<E: serde::de::Error>(self, v: i64) -> Result<T, E> {
            self.visit_str(&v.to_string())
        }
        fn visit_u64<E: serde::de::Error>(self, v: u64) -> Result<T, E> {
            self.visit_str(&v.to_string())
        }
        // The shortest text that reads back as this float is what the user wrote, up to 15 digits.
        fn visit_f64<E: serde::de::Error>(self, v: f64) -> Result<T, E> {
            self.visit_str(&v.to_string())
        }
    }
    d.deserialize_any(Text(std::marker::PhantomData)).map_err(D::Error::custom)
}

macro_rules! text_serde {
    ($([$($generic:tt)*] $type:ty),* $(,)?) => {$(
        impl<'de, $($generic)*> Deserialize<'de> for $type where Self: FromStr<Err = String> {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                from_text(d)
            }
        }
        impl<$($generic)*> Serialize for $type where Self: fmt::Display {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                s.collect_str(self)
            }
        }
    )*};
}

text_serde!([] crate::raw::Device, [] ByteSize, [] Count, [] Decimal, [T] Auto<T>);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes() {
        let check = |text: &str, bytes: Option<u64>| {
            assert_eq!(text.parse::<ByteSize>().ok().map(|b| b.0), bytes, "{text}");
        };
        check("2GiB", Some(2 << 30));
        check("2 GiB", Some(2 << 30));
        check("10MB", Some(10_000_000));
        check("77", Some(77));
        check("", None);
        check("GiB", None);
        check("1.5GiB", None);
        check("-1", None);
        check("99999999TiB", None);
        check("18446744073709551616", None);
    }

    #[test]
    fn decimals_are_exact() {
        let check = |text: &str, pico: Option<u128>| {
            assert_eq!(text.parse::<Decimal>().ok().map(Decimal::pico), pico, "{text}");
        };
        check("0.1", Some(100_000_000_000));
        check("2", Some(2 * PICO));
        check("0.000000000001", Some(1));
        check("0.0000000000001", None);
        check("1e3", None);
        check(".5", None);
        check("5.", None);
        check("-1", None);
        check("inf", None);
        check("NaN", None);
        check("999999999", Some(999_999_999 * PICO));
        check("1000000000", None);
    }

    proptest! {
        #[test]
        fn what_is_printed_reads_back(whole in 0u64..1_000_000_000, pico in 0u64..1_000_000_000_000, bytes: u64) {
            let d = Decimal { pico: u128::from(whole) * PICO + u128::from(pico) };
            prop_assert_eq!(d.to_string().parse::<Decimal>(), Ok(d));
            prop_assert_eq!(ByteSize(bytes).to_string().parse::<ByteSize>(), Ok(ByteSize(bytes)));
        }

        #[test]
        fn floats_in_toml_mean_their_digits(cents in 0u32..10_000_000) {
            let text = format!("{}.{:02}", cents / 100, cents % 100);
            let read: std::collections::BTreeMap<String, Decimal> = toml::from_str(&format!("p = {text}")).unwrap();
            prop_assert_eq!(read["p"], text.parse::<Decimal>().unwrap());
        }
    }
}
