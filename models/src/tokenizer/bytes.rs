//! The byte alphabet of byte-level BPE: GPT-2's bijection between bytes and printable characters, in which
//! vocabularies and merges are written.

/// `CHARS[b]` stands for byte `b`: itself if it is printable Latin-1, else the next free character from U+0100 on.
const CHARS: [char; 256] = {
    let mut chars = ['\0'; 256];
    let mut next = 0x100u32;
    let mut byte = 0;
    while byte < 256 {
        let code = byte as u32;
        let printable = matches!(code, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
        let code = if printable { code } else { next };
        next += !printable as u32;
        chars[byte] = match char::from_u32(code) {
            Some(c) => c,
            None => panic!("below the surrogates"),
        };
        byte += 1;
    }
    chars
};

/// The character that stands for `byte`.
pub(super) fn char_of(byte: u8) -> char {
    CHARS[usize::from(byte)]
}

/// The bytes that a token's characters stand for; a token with any other character stands for its own UTF-8.
pub(super) fn bytes_of(token: &str) -> Vec<u8> {
    token.chars().map(byte_of).collect::<Option<_>>().unwrap_or_else(|| token.as_bytes().to_vec())
}

fn byte_of(c: char) -> Option<u8> {
    match u32::from(c) {
        0x100..=0x143 => CHARS.iter().position(|&x| x == c),
        code => Some(code as usize).filter(|&b| CHARS.get(b) == Some(&c)),
    }
    .and_then(|b| u8::try_from(b).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_and_characters_correspond() {
        for byte in 0..=255 {
            assert_eq!(byte_of(char_of(byte)), Some(byte));
        }
        assert_eq!(char_of(b' '), 'Ġ');
        assert_eq!(char_of(b'\n'), 'Ċ');
        assert_eq!(char_of(0xad), '\u{143}');
    }

    #[test]
    fn a_token_outside_the_alphabet_is_its_own_text() {
        assert_eq!(bytes_of("Ġa"), b" a");
        assert_eq!(bytes_of("a b"), b"a b");
        assert_eq!(bytes_of("Ń中"), "Ń中".as_bytes());
    }
}
