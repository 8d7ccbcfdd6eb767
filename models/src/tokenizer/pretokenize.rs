//! Cutting text into words before pairs are merged: one row per `tokenizer.ggml.pre`.
//!
//! The published patterns end in `\s+(?!\S)|\s+`. Backtracking engines need quadratic time or give up on long runs
//! of white space there, so the look-ahead is not a pattern: a row's words are one linear-time regex, and
//! white space that no word takes is cut by the rule that the look-ahead expresses (see [`Pass::cut`]).

use regex_automata::meta::Regex;

use super::TokenizerError;

/// A row: what values of `tokenizer.ggml.pre` mean.
struct Row {
    /// The values.
    names: &'static [&'static str],
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
    /// Matches are words; what lies between them is cut where white space begins and ends.
    Words(&'static str),
}

macro_rules! contraction {
    () => {
        r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
    };
}

/// Words of letters that are not lower case, then letters that are not upper case. As in llama.cpp, only ASCII letters
/// have a case here and marks are no letters; the models' authors tell all of Unicode apart.
macro_rules! cased {
    ($end:expr) => {
        concat!(
            r"[^\r\n\p{L}\p{N}]?[\p{L}--[a-z]]*[\p{L}--[A-Z]]+",
            $end,
            r"|[^\r\n\p{L}\p{N}]?[\p{L}--[a-z]]+[\p{L}--[A-Z]]*",
            $end
        )
    };
}

/// The same with cases and marks of all scripts, but without Han.
macro_rules! cased_no_han {
    () => {
        concat!(
            r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+",
            contraction!(),
            r"?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*",
            contraction!(),
            "?"
        )
    };
}

const NEWLINE: Cut = Cut::Out(r"[\r\n]");
const DIGIT: Cut = Cut::Out(r"\p{N}");
const DIGITS: Cut = Cut::Out(r"\p{N}+");
const UP_TO_3_DIGITS: Cut = Cut::Out(r"\p{N}{1,3}");
const GPT2: Cut = Cut::Words(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+");
const QWEN2: Cut = Cut::Words(concat!(
    contraction!(),
    r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
));
const QWEN35: Cut = Cut::Words(concat!(
    contraction!(),
    r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+"
));
const LLAMA3: Cut = Cut::Words(concat!(
    contraction!(),
    r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
));
const GPT4O: Cut = Cut::Words(concat!(
    cased!(concat!(contraction!(), "?")),
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+"
));
const TEKKEN: Cut = Cut::Words(concat!(cased!(""), r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+"));
const KIMI_K2: Cut =
    Cut::Words(concat!(r"\p{Han}+|", cased_no_han!(), r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"));
const BAILINGMOE: Cut = Cut::Words(concat!(
    r"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])",
    r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]"
));
/// Han from U+4E00, everything from U+0800 up to it, Hangul. To llama.cpp white space is white space only.
const DEEPSEEK_CJK: Cut = Cut::Out(r"[[\u{4e00}-\u{9fa5}\u{800}-\u{4e00}\u{ac00}-\u{d7ff}]--\s]+");
/// Latin, Greek, Cyrillic and others that have a case, as Unicode was when the pattern was written.
const DEEPSEEK_LETTERS: Cut = Cut::Out(concat!(
    r"\s?[A-Za-z\u{b5}\u{c0}-\u{d6}\u{d8}-\u{f6}\u{f8}-\u{1ba}\u{1bc}-\u{1bf}\u{1c4}-\u{293}\u{295}-\u{2af}",
    r"\u{370}-\u{373}\u{376}\u{377}\u{37b}-\u{37d}\u{37f}\u{386}\u{388}-\u{38a}\u{38c}\u{38e}-\u{3a1}",
    r"\u{3a3}-\u{3f5}\u{3f7}-\u{481}\u{48a}-\u{52f}\u{531}-\u{556}\u{10a0}-\u{10c5}\u{13a0}-\u{13f5}",
    r"\u{13f8}-\u{13fd}\u{1c90}-\u{1cba}\u{1cbd}-\u{1cbf}\u{1d00}-\u{1d2b}\u{1d6b}-\u{1d77}",
    r"\u{1d79}-\u{1d9a}\u{1e00}-\u{1f15}\u{1f18}-\u{1f1d}\u{1f20}-\u{1f45}\u{1f48}-\u{1f4d}",
    r"\u{1f50}-\u{1f57}\u{1f59}\u{1f5b}\u{1f5d}\u{1f5f}-\u{1f7d}\u{1f80}-\u{1fb4}\u{1fb6}-\u{1fbc}",
    r"\u{1fbe}\u{1fc2}-\u{1fc4}\u{1fc6}-\u{1fcc}\u{1fd0}-\u{1fd3}\u{1fd6}-\u{1fdb}\u{1fe0}-\u{1fec}",
    r"\u{1ff2}-\u{1ff4}\u{1ff6}-\u{1ffc}\u{2102}\u{2107}\u{210a}-\u{2113}\u{2115}\u{2119}-\u{211d}",
    r"\u{2124}\u{2126}\u{2128}\u{212a}-\u{212d}\u{212f}-\u{2134}\u{2139}\u{213c}-\u{213f}",
    r"\u{2145}-\u{2149}\u{214e}\u{2183}\u{2184}\u{2c00}-\u{2c7b}\u{2c7e}-\u{2ce4}\u{2ceb}-\u{2cee}",
    r"\u{2cf2}\u{2cf3}\u{a640}-\u{a66d}\u{a680}-\u{a69b}\u{a722}-\u{a76f}\u{a771}-\u{a787}",
    r"\u{a78b}-\u{a78e}\u{ab70}-\u{abbf}\u{fb00}-\u{fb06}\u{fb13}-\u{fb17}\u{ff21}-\u{ff3a}",
    r"\u{ff41}-\u{ff5a}\u{10400}-\u{1044f}\u{104b0}-\u{104d3}\u{104d8}-\u{104fb}\u{10c80}-\u{10cb2}",
    r"\u{10cc0}-\u{10cf2}\u{118a0}-\u{118df}\u{1e900}-\u{1e943}",
    "]+"
));
const DEEPSEEK_SIGNS: Cut =
    Cut::Out(r"\s?[!-/:-~\u{ff01}-\u{ff0f}\u{ff1a}-\u{ff5e}\u{2018}-\u{201f}\u{3001}\u{3002}]+");
/// Han and kana.
const DEEPSEEK3_CJK: Cut = Cut::Out(r"[\u{4e00}-\u{9fa5}\u{3040}-\u{309f}\u{30a0}-\u{30ff}]+");
const DEEPSEEK3: Cut = Cut::Words(concat!(
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"##,
    r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+"
));

/// A row whose words are found by their merges, and whose prompts begin without BOS.
const fn row(names: &'static [&'static str], passes: &'static [Cut]) -> Row {
    Row { names, passes, whole_words: false, add_bos: false }
}

/// Names and patterns are those of llama.cpp's `llama-vocab.cpp`, less the white space at the patterns' ends; `kimi-k2`
/// is as its authors published it.
const ROWS: &[Row] = &[
    row(
        &[
            "gpt-2",
            "phi-2",
            "jina-es",
            "jina-de",
            "gigachat",
            "jina-v2-es",
            "jina-v2-de",
            "a.x-4.0",
            "mellum",
            "modern-bert",
            "exaone4",
            "mpt",
            "olmo",
            "jais",
            "trillion",
            "granite-docling",
        ],
        &[GPT2],
    ),
    Row {
        names: &[
            "llama-bpe",
            "llama3",
            "llama-v3",
            "falcon3",
            "falcon-h1",
            "pixtral",
            "midm-2.0",
            "lfm2",
            "jina-v5-nano",
        ],
        passes: &[LLAMA3],
        whole_words: true,
        add_bos: true,
    },
    Row { names: &["glm4", "glm5"], passes: &[LLAMA3], whole_words: true, add_bos: false },
    row(&["chatglm-bpe", "dbrx", "smaug-bpe"], &[LLAMA3]),
    row(
        &[
            "qwen2",
            "deepseek-r1-qwen",
            "kormo",
            "f2llmv2",
            "megrez",
            "stablelm2",
            "hunyuan",
            "solar-open",
            "grok-2",
        ],
        &[QWEN2],
    ),
    row(&["qwen35"], &[QWEN35]),
    row(
        &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"],
        &[DIGIT, GPT2],
    ),
    row(&["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"], &[GPT4O]),
    Row { names: &["tekken"], passes: &[TEKKEN], whole_words: true, add_bos: true },
    row(
        &["deepseek-llm"],
        &[NEWLINE, DEEPSEEK_LETTERS, DEEPSEEK_SIGNS, Cut::Out(r"\s+$"), DEEPSEEK_CJK, DIGITS],
    ),
    row(&["deepseek-coder"], &[NEWLINE, Cut::Out(r"\s?\p{L}+"), Cut::Out(r"\s?\p{P}+"), DEEPSEEK_CJK, DIGIT]),
    row(&["deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"], &[UP_TO_3_DIGITS, DEEPSEEK3_CJK, DEEPSEEK3]),
    row(&["kimi-k2"], &[KIMI_K2]),
    row(&["bailingmoe", "bailingmoe2", "llada-moe"], &[BAILINGMOE]),
    row(&["default"], &[Cut::Out(r"[\p{P}\$\+<=>\^~\|]+"), GPT2, DIGITS, Cut::Out("[0-9][0-9][0-9]")]),
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
        let row = ROWS.iter().find(|row| row.names.contains(&name)).ok_or_else(|| {
            let known = ROWS.iter().flat_map(|row| row.names).copied().collect::<Vec<_>>().join(", ");
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

    /// Calls `each` with the pieces of `text` in order.
    fn cut<'t>(&self, text: &'t str, each: &mut impl FnMut(&'t str)) {
        let mut done = 0;
        for found in self.regex.find_iter(text) {
            let (gap, word) = (&text[done..found.start()], &text[found.range()]);
            done = found.end();
            self.gap(gap, !word.starts_with(char::is_whitespace), each);
            each(word);
        }
        self.gap(&text[done..], false, each);
    }

    /// `\s+(?!\S)|\s+` takes a run of white space whole at the end of the text, and up to its last character before
    /// something else: that character belongs to the word if the word can begin with it, and is a piece of its own if
    /// not.
    fn gap<'t>(&self, gap: &'t str, before_word: bool, each: &mut impl FnMut(&'t str)) {
        let mut rest = gap;
        while !rest.is_empty() {
            let (space, other) = if self.words {
                let other = rest.trim_start();
                let end = other.find(char::is_whitespace).unwrap_or(other.len());
                (&rest[..rest.len() - other.len()], &other[..end])
            } else {
                ("", rest)
            };
            let last = space.char_indices().next_back().map_or(0, |(last, _)| last);
            let cut = if before_word || space.len() < rest.len() { last } else { 0 };
            for piece in [&space[..cut], &space[cut..], other] {
                if !piece.is_empty() {
                    each(piece);
                }
            }
            rest = &rest[space.len() + other.len()..];
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
            // As llama.cpp writes what needs no look-ahead here.
            let ahead = |pattern: &str| {
                pattern
                    .replace(r"[\p{L}--[a-z]]", r"(?:(?=[\p{L}])[^a-z])")
                    .replace(r"[\p{L}--[A-Z]]", r"(?:(?=[\p{L}])[^A-Z])")
            };
            let pattern = |cut: &Cut| match *cut {
                Cut::Out(pattern) => pattern.to_owned(),
                Cut::Words(pattern) => format!(r"{}|\s+(?!\S)|\s+", ahead(pattern)),
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
        let error = PreTokenizer::named("nosuch").unwrap_err().to_string();
        assert!(error.contains("\"nosuch\"") && error.contains("qwen2, deepseek-r1-qwen"), "{error}");
    }

    #[test]
    fn a_name_has_one_row() {
        let mut names: Vec<&str> = ROWS.iter().flat_map(|row| row.names).copied().collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    /// Quadratic time would take hours here.
    #[test]
    fn enormous_words_are_cut() {
        for row in ROWS {
            let pre = PreTokenizer::named(row.names[0]).unwrap();
            for unit in [
                "a", "A", " ", "\n", "\n ", " \n", "1", "'", "'s", "\u{3000}", "\u{301}", "中", "!a", "\0",
                "a\0 ",
            ] {
                let text = unit.repeat((1 << 18) / unit.len());
                let mut bytes = 0;
                pre.words(&text, &mut |word| bytes += word.len());
                assert_eq!(bytes, text.len(), "{} {unit:?}", row.names[0]);
            }
        }
    }

    static BOTH: LazyLock<Vec<(&str, PreTokenizer, Published)>> = LazyLock::new(|| {
        let both =
            |row: &Row| (row.names[0], PreTokenizer::named(row.names[0]).unwrap(), Published::new(row));
        ROWS.iter().map(both).collect()
    });

    proptest! {
        #[test]
        fn words_are_those_of_the_published_patterns(
            parts in proptest::collection::vec(prop_oneof![
                "[ \t\r\n]{1,4}", "[a-z']{1,3}", "[0-9]{1,5}", "[-!<|>]{1,3}",
                any::<char>().prop_map(String::from),
                proptest::sample::select(vec![
                    "\u{a0}", "\u{85}", "\u{2028}", "\u{3000}", "'S", "é", "e\u{301}", "Ж", "中", "か", "한", "½", "\0", "、", "/",
                ])
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
