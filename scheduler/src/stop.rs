//! Stop strings over a growing text.
//!
//! The earliest match to be complete wins, of those that end together the longest: so the result does not depend on
//! how the text was cut into tokens. Matching is by bytes.

use std::sync::Arc;

/// Prepared stop strings (Knuth-Morris-Pratt), shared by a request's choices.
#[derive(Clone, Debug, Default)]
pub struct StopStrings {
    patterns: Vec<Pattern>,
}

#[derive(Clone, Debug)]
struct Pattern {
    bytes: Box<[u8]>,
    /// `border[j]`: length of the longest proper prefix of `bytes[..j]` that also ends it.
    border: Box<[u32]>,
}

/// A match: the text counts up to its first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StopMatch {
    /// Which string.
    pub index: u32,
    /// Where it begins: this many bytes of text come before it.
    pub text_len: u32,
}

impl StopStrings {
    /// Empty strings never match.
    pub fn new<S: AsRef<[u8]>>(strings: &[S]) -> Self {
        Self { patterns: strings.iter().map(|s| Pattern::new(s.as_ref())).collect() }
    }
}

impl Pattern {
    fn new(bytes: &[u8]) -> Self {
        let mut border = vec![0u32; bytes.len() + 1];
        let mut j = 0;
        for i in 1..bytes.len() {
            while j > 0 && bytes[i] != bytes[j] {
                j = border[j] as usize;
            }
            j += usize::from(bytes[i] == bytes[j]);
            border[i + 1] = j as u32;
        }
        Self { bytes: bytes.into(), border: border.into() }
    }

    /// From `j` bytes matched to how many after `byte`.
    fn next(&self, mut j: usize, byte: u8) -> usize {
        if self.bytes.is_empty() {
            return 0;
        }
        if j == self.bytes.len() {
            j = self.border[j] as usize;
        }
        while j > 0 && self.bytes[j] != byte {
            j = self.border[j] as usize;
        }
        j + usize::from(self.bytes[j] == byte)
    }
}

/// One choice's text so far, as far as stop strings care.
///
/// ```
/// use std::sync::Arc;
/// use frugal_scheduler::stop::{StopMatch, StopMatcher, StopStrings};
/// let mut text = StopMatcher::new(Arc::new(StopStrings::new(&["END"])));
/// assert_eq!(text.push(b"The E", true), None);
/// assert_eq!((text.len(), text.release()), (5, 4)); // "E" may yet be taken back
/// assert_eq!(text.push(b"ND.", true), Some(StopMatch { index: 0, text_len: 4 }));
/// ```
#[derive(Clone, Debug)]
pub struct StopMatcher {
    strings: Arc<StopStrings>,
    matched: Vec<usize>,
    len: u32,
}

impl StopMatcher {
    /// With no text yet.
    pub fn new(strings: Arc<StopStrings>) -> Self {
        let matched = vec![0; strings.patterns.len()];
        Self { strings, matched, len: 0 }
    }

    /// Appends a token's bytes; the first match they complete, if any. With `may_stop` false completions go unnoticed (a match
    /// that began then and is completed later counts).
    pub fn push(&mut self, bytes: &[u8], may_stop: bool) -> Option<StopMatch> {
        for &byte in bytes {
            self.len = self.len.saturating_add(1);
            let mut best: Option<(usize, usize)> = None;
            for (i, (pattern, j)) in self.strings.patterns.iter().zip(&mut self.matched).enumerate() {
                *j = pattern.next(*j, byte);
                let complete = *j > 0 && *j == pattern.bytes.len();
                if complete && best.is_none_or(|(_, longest)| *j > longest) {
                    best = Some((i, *j));
                }
            }
            if let (Some((i, length)), true) = (best, may_stop) {
                return Some(StopMatch { index: i as u32, text_len: self.len.saturating_sub(length as u32) });
            }
        }
        None
    }

    /// Bytes of text so far.
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether there is no text.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of text that no future match can take back.
    pub fn release(&self) -> u32 {
        let held = self.strings.patterns.iter().zip(&self.matched).map(|(pattern, &j)| {
            // A whole match that was not to stop can only be the beginning of a later one.
            if j == pattern.bytes.len() { pattern.border[j] as usize } else { j }
        });
        self.len - held.max().unwrap_or(0) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// First end of any match at or after byte `from + 1`, and the longest match that ends there.
    fn naive(text: &[u8], stops: &[Vec<u8>], from: usize) -> Option<(usize, usize, StopMatch)> {
        (from + 1..=text.len()).find_map(|end| {
            let ends_here = |s: &&Vec<u8>| !s.is_empty() && text[..end].ends_with(s);
            let longest = stops.iter().filter(ends_here).map(Vec::len).max()?;
            let index = stops.iter().position(|s| s.len() == longest && text[..end].ends_with(s))? as u32;
            Some((end, longest, StopMatch { index, text_len: (end - longest) as u32 }))
        })
    }

    fn letters(n: std::ops::Range<usize>) -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(prop_oneof![Just(b'a'), Just(b'b'), Just(b'c')], n)
    }

    proptest! {
        #[test]
        fn it_finds_what_a_search_of_the_whole_text_finds(
            tokens in prop::collection::vec(letters(0..4), 0..20),
            stops in prop::collection::vec(letters(0..6), 0..4),
            quiet in 0usize..6,
        ) {
            let mut matcher = StopMatcher::new(Arc::new(StopStrings::new(&stops)));
            let whole: Vec<u8> = tokens.concat();
            let from: usize = tokens.iter().take(quiet).map(Vec::len).sum();
            let expect = naive(&whole, &stops, from);
            let (mut text, mut released) = (Vec::new(), 0);
            for (i, token) in tokens.iter().enumerate() {
                let found = matcher.push(token, i >= quiet);
                text.extend_from_slice(token);
                if let Some(found) = found {
                    let (end, _, m) = expect.expect("a match the search does not know");
                    prop_assert_eq!(found, m);
                    prop_assert!(end <= text.len() && end > text.len() - token.len());
                    prop_assert!(released <= m.text_len, "released text is never taken back");
                    return Ok(());
                }
                prop_assert_eq!(matcher.len() as usize, text.len());
                prop_assert!(matcher.release() >= released);
                released = matcher.release();
                // Exactly what could still be the beginning of a match is held.
                let held = stops.iter().flat_map(|s| (1..s.len()).filter(|&k| text.ends_with(&s[..k]))).max();
                prop_assert_eq!(released as usize, text.len() - held.unwrap_or(0));
            }
            prop_assert_eq!(expect, None);
        }
    }
}
