//! How much of a step lives at once.

use std::ops::Add;

/// What one token of a step holds at the same time, at most. Values and encoded forms have buffers of their own, which are kept for what
/// comes next: so the most of either counts, though it be at different times.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Held {
    /// F32 values.
    pub values: u64,
    /// Values in the form in which a product reads them. One by one they take 4 bytes at most: those of a tensor in both 8-bit forms
    /// less, in F32 as much.
    pub encoded: u64,
}

impl Held {
    /// This at one time, `other` at another.
    pub(super) fn or(self, other: Self) -> Self {
        Self { values: self.values.max(other.values), encoded: self.encoded.max(other.encoded) }
    }

    /// In units of 4 bytes. A buffer may be lent to what is smaller, and then another grows: with heads much wider than keys (Qwen3-30B-A3B)
    /// values take half as much again, and of encoded forms most have a quarter of what they count here.
    pub(super) fn total(self) -> u64 {
        self.values.saturating_add(self.values / 2).saturating_add(self.encoded)
    }
}

impl Add for Held {
    type Output = Self;

    /// Both at the same time.
    fn add(self, other: Self) -> Self {
        Self {
            values: self.values.saturating_add(other.values),
            encoded: self.encoded.saturating_add(other.encoded),
        }
    }
}
