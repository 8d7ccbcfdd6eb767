//! Cutting text into words before pairs are merged: one row per `tokenizer.ggml.pre`.
//!
//! The published patterns end in `\s+(?!\S)|\s+`. Backtracking engines need quadratic time or give up on long runs
//! of white space there, so the look-ahead is not a pattern: a row's words are one linear-time regex, and
//! white space that no word takes is cut by the rule that the look-ahead expresses (see [`Pass::cut`]).

use regex_automata::meta::Regex;

use super::TokenizerError;

/// A row: what a value of `tokenizer.ggml.pre` means.
struct Row {
    /// The value.
    name: &'static str,
    /// Applied one after the other, each to the pieces that the one before left.
    passes: &'static [Cut],
    /// A word that is a token is that token, whatever the merges say.
    whole_words: bool,
    /// Whether prompts begin with BOS if `tokenizer.ggml.add_bos_token` does not say.
    add_bos: bool,
}

/// One pass over a piece of text.
#[derive(Clone, Copy)]
enum Cut {
    /// Matches become pieces, and so does what lies between them.
    Out(&'static str),
    /// Matches are words; what lies between them is white space.
    Words(&'static str),
}

const DIGIT: Cut = Cut::Out(r"\p{N}");
const GPT2: Cut = Cut::Words(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+");
const QWEN2: Cut = Cut::Words(concat!(
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])",
    r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
));
const LLAMA3: Cut = Cut::Words(concat!(
    r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])",
    r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
));

/// The patterns are those of llama.cpp's `llama-vocab.cpp`, less the white space at their ends.
const ROWS: &[Row] = &[
    Row { name: "gpt-2", passes: &[GPT2], whole_words: false, add_bos: false },
    Row { name: "llama-bpe", passes: &[LLAMA3], whole_words: true, add_bos: true },
    Row { name: "qwen2", passes: &[QWEN2], whole_words: false, add_bos: false },
    Row { name: "smollm", passes: &[DIGIT, GPT2], whole_words: false, add_bos: false },
];

/// The pre-tokenizer of one model.
#[derive(Debug)]
pub(super) struct PreTokenizer {
    passes: Vec<Pass>,
    /// See [`Row::whole_words`].
    pub(super) whole_words: bool,
    /// See [`Row::add_bos`].
    pub(super) add_bos: bool,
}

impl PreTokenizer {
    /// By the value of `tokenizer.ggml.pre`.
    pub(super) fn named(name: &str) -> Result<Self, TokenizerError> {
        let row = ROWS.iter().find(|row| row.name == name).ok_or_else(|| {
            let known = ROWS.iter().map(|row| row.name).collect::<Vec<_>>().join(", ");
            TokenizerError::UnknownPre { name: name.to_owned(), known }
        })?;
        let passes = row.passes.iter().map(|&cut| Pass::new(cut)).collect();
        Ok(Self { passes, whole_words: row.whole_words, add_bos: row.add_bos })
    }

    /// Calls `each` with the words of `text` in order; together they are `text`.
    pub(super) fn words<'t>(&self, text: &'t str, each: &mut impl FnMut(&'t str)) {
        run(&self.passes, text, each);
    }
}

fn run<'t>(passes: &[Pass], text: &'t str, each: &mut impl FnMut(&'t str)) {
    match passes.split_first() {
        None => each(text),
        Some((pass, rest)) => pass.cut(text, &mut |piece| run(rest, piece, each)),
    }
}

#[derive(Debug)]
struct Pass {
    regex: Regex,
    /// Whether what no match takes is white space to be cut as `\s+(?!\S)|\s+` does.
    words: bool,
}

impl Pass {
    fn new(cut: Cut) -> Self {
        let (pattern, words) = match cut {
            Cut::Out(pattern) => (pattern, false),
            Cut::Words(pattern) => (pattern, true),
        };
        Self { regex: Regex::new(pattern).expect("the table's patterns are tested"), words }
    }

    /// `\s+(?!\S)|\s+` takes a run of white space whole at the end of the text, and up to its last character before
    /// a word: that character belongs to the word if the word can begin with it, and is a piece of its own if not.
    fn cut<'t>(&self, text: &'t str, each: &mut impl FnMut(&'t str)) {
        let mut done = 0;
        for found in self.regex.find_iter(text) {
            let (gap, word) = (&text[done..found.start()], &text[found.range()]);
            done = found.end();
            match gap.char_indices().next_back() {
                Some((last, _)) if self.words && last > 0 && !word.starts_with(char::is_whitespace) => {
                    each(&gap[..last]);
                    each(&gap[last..]);
                }
                Some(_) => each(gap),
                None => {}
            }
            each(word);
        }
        if done < text.len() {
            each(&text[done..]);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;

    use super::*;

    fn words<'t>(name: &str, text: &'t str) -> Vec<&'t str> {
        let mut out = Vec::new();
        PreTokenizer::named(name).unwrap().words(text, &mut |word| out.push(word));
        out
    }

    /// A row's published patterns on a backtracking engine.
    struct Published(Vec<fancy_regex::Regex>);

    impl Published {
        fn new(row: &Row) -> Self {
            let pattern = |cut: &Cut| match *cut {
                Cut::Out(pattern) => pattern.to_owned(),
                Cut::Words(pattern) => format!(r"{pattern}|\s+(?!\S)|\s+"),
            };
            Self(row.passes.iter().map(|cut| fancy_regex::Regex::new(&pattern(cut)).unwrap()).collect())
        }

        fn words<'t>(&self, text: &'t str) -> Vec<&'t str> {
            let cut = |regex: &fancy_regex::Regex, text: &'t str| {
                let mut out = Vec::new();
                let mut done = 0;
                for found in regex.find_iter(text).map(Result::unwrap) {
                    out.extend([&text[done..found.start()], &text[found.range()]]);
                    done = found.end();
                }
                out.push(&text[done..]);
                out.retain(|piece| !piece.is_empty());
                out
            };
            self.0.iter().fold(vec![text], |pieces, regex| {
                pieces.into_iter().flat_map(|piece| cut(regex, piece)).collect()
            })
        }
    }

    #[test]
    fn the_last_space_before_a_word_is_cut_off() {
        assert_eq!(words("gpt-2", "a   b\n\nc  "), ["a", "  ", " b", "\n", "\n", "c", "  "]);
        assert_eq!(words("qwen2", "a \t\tb\n \n  12"), ["a", " \t", "\tb", "\n \n", " ", " ", "1", "2"]);
        assert_eq!(words("llama-bpe", "x 12345  !?"), ["x", " ", "123", "45", " ", " !?"]);
        // Digits are taken out first, so white space before one is at the end of its piece.
        assert_eq!(words("smollm", "a  12b"), ["a", "  ", "1", "2", "b"]);
    }

    #[test]
    fn an_unknown_name_is_refused_with_the_known_ones() {
        let error = PreTokenizer::named("tekken").unwrap_err().to_string();
        assert!(error.contains("tekken") && error.contains("gpt-2, llama-bpe, qwen2, smollm"), "{error}");
    }

    static BOTH: LazyLock<Vec<(&str, PreTokenizer, Published)>> = LazyLock::new(|| {
        let both = |row: &Row| (row.name, PreTokenizer::named(row.name).unwrap(), Published::new(row));
        ROWS.iter().map(both).collect()
    });

    proptest! {
        #[test]
        fn words_are_those_of_the_published_patterns(
            parts in proptest::collection::vec(prop_oneof![
                "[ \t\r\n]{1,4}", "[a-z']{1,3}", "[0-9]{1,5}", "[-!<|>]{1,3}",
                any::<char>().prop_map(String::from),
                proptest::sample::select(vec!["\u{a0}", "\u{85}", "\u{2028}", "\u{3000}", "'S", "é", "中", "½"])
                    .prop_map(String::from),
            ], 0..12),
        ) {
            let text = parts.concat();
            for (name, ours, published) in BOTH.iter() {
                let mut got = Vec::new();
                ours.words(&text, &mut |word| got.push(word));
                got.retain(|piece| !piece.is_empty());
                prop_assert_eq!(got, published.words(&text), "{}", name);
            }
        }
    }
}
