//! Text out of token bytes, piece by piece.
//!
//! Law: whatever way bytes are cut into pushes, the pieces together are `String::from_utf8_lossy` of all bytes.
//! No piece ends in half a character.

/// Turns bytes that arrive in arbitrary pieces into text.
///
/// ```
/// use frugal_models::detok::Detokenizer;
/// let mut text = Detokenizer::new();
/// assert_eq!(text.push(b"caf\xc3"), "caf");
/// assert_eq!(text.push(b"\xa9"), "é");
/// assert_eq!(text.finish(), "");
/// ```
#[derive(Clone, Debug, Default)]
pub struct Detokenizer {
    /// The beginning of a character, at most three bytes.
    pending: Vec<u8>,
}

impl Detokenizer {
    /// At the beginning of a text.
    pub fn new() -> Self {
        Self::default()
    }

    /// The text that `bytes` completes. What can never become a character is U+FFFD; what still may is kept.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        self.pending.extend_from_slice(bytes);
        let mut text = String::with_capacity(self.pending.len());
        let mut rest = self.pending.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    rest = &[];
                    break;
                }
                Err(error) => {
                    let (valid, after) = rest.split_at(error.valid_up_to());
                    text.push_str(std::str::from_utf8(valid).expect("valid up to here"));
                    rest = after;
                    let Some(bad) = error.error_len() else { break };
                    text.push(char::REPLACEMENT_CHARACTER);
                    rest = &rest[bad..];
                }
            }
        }
        let kept = self.pending.len() - rest.len();
        self.pending.drain(..kept);
        text
    }

    /// U+FFFD if the text ends inside a character, else nothing.
    pub fn finish(self) -> String {
        String::from_utf8_lossy(&self.pending).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pieces(bytes: &[u8], sizes: &[usize]) -> Vec<String> {
        let mut detok = Detokenizer::new();
        let mut sizes = sizes.iter().copied().cycle();
        let mut rest = bytes;
        let mut out = Vec::new();
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(sizes.next().unwrap_or(1).min(rest.len()));
            out.push(detok.push(piece));
            assert!(detok.pending.len() <= 3);
            rest = after;
        }
        out.push(detok.finish());
        out
    }

    /// Bytes that are often nearly UTF-8: characters, some of them cut or with a byte changed.
    fn nearly_utf8() -> impl Strategy<Value = Vec<u8>> {
        let part = prop_oneof![
            any::<char>().prop_map(|c| c.to_string().into_bytes()),
            (any::<char>(), 0..4usize).prop_map(|(c, n)| c.to_string().bytes().take(n).collect()),
            proptest::collection::vec(any::<u8>(), 0..4),
            Just(vec![0xf0, 0x9f]),
            Just(vec![0xed, 0xa0, 0x80]),
        ];
        proptest::collection::vec(part, 0..24).prop_map(|parts| parts.concat())
    }

    proptest! {
        #[test]
        fn any_split_gives_the_lossy_text(
            bytes in nearly_utf8(),
            sizes in proptest::collection::vec(0..6usize, 1..8).prop_filter("some progress", |s| s.iter().any(|&n| n > 0)),
        ) {
            prop_assert_eq!(pieces(&bytes, &sizes).concat(), String::from_utf8_lossy(&bytes));
        }
    }

    #[test]
    fn a_character_comes_whole_and_at_once() {
        assert_eq!(pieces("é😀x".as_bytes(), &[1]), ["", "é", "", "", "", "😀", "x", ""]);
    }

    #[test]
    fn a_cut_character_is_replaced_as_soon_as_it_is_certain() {
        assert_eq!(pieces(b"\xf0\x9fA", &[1]), ["", "", "\u{fffd}A", ""]);
        assert_eq!(pieces(b"A\xf0\x9f\x98", &[4]), ["A", "\u{fffd}"]);
    }
}
