//! SentencePiece's BPE: characters are joined to pieces of the vocabulary, the pair with the best score first and of
//! equals the leftmost, over the whole text. A space is written `▁`; characters that no piece has become bytes.
//!
//! Pieces of type "unused" take part in joining and are taken apart again at the end.
//!
//! Time is n log n in the text, also where it is one enormous word. Absent on purpose: normalisation (files that
//! llama.cpp writes have none), sampling, and pieces of control, which text never becomes.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashMap};

use super::{Kind, TokenizerError};
use crate::step::TokenId;

/// What stands for a space in pieces.
pub(super) const SPACE: char = '▁';
/// Longest piece that text is joined to: bounds the time of one look-up. Published vocabularies stay below 100.
const PIECE_BYTES_MAX: usize = 1024;

#[derive(Clone, Copy, Debug)]
struct Piece {
    id: TokenId,
    score: f32,
    unused: bool,
}

#[derive(Debug)]
pub(super) struct Pieces {
    by_text: HashMap<String, Piece>,
    longest: usize,
    bytes: [Option<TokenId>; 256],
    unknown: Option<TokenId>,
    /// Whether text at the beginning and after a token that was written in it has a space put in front.
    prefix: bool,
    /// Whether no piece reaches from a word into the next one, so that words can be joined one by one.
    words: bool,
}

impl Pieces {
    pub(super) fn new(
        tokens: &[String],
        scores: &[f32],
        kinds: &[Kind],
        unknown: Option<TokenId>,
        prefix: bool,
    ) -> Result<Self, TokenizerError> {
        if scores.len() != tokens.len() {
            return Err(TokenizerError::ScoreCount { expected: tokens.len(), found: scores.len() });
        }
        let mut by_text = HashMap::with_capacity(tokens.len());
        let mut bytes = [None; 256];
        let (mut longest, mut words) = (0, true);
        for (token, ((text, kind), &score)) in (0..).zip(tokens.iter().zip(kinds).zip(scores)) {
            let unused = match *kind {
                Kind::Byte(byte) => {
                    bytes[usize::from(byte)] = Some(TokenId(token));
                    continue;
                }
                Kind::Control | Kind::Unknown => continue,
                Kind::Normal | Kind::UserDefined => false,
                Kind::Unused => true,
            };
            if text.len() > PIECE_BYTES_MAX && *kind == Kind::Normal {
                return Err(TokenizerError::LongPiece { token, bytes: text.len() });
            }
            if score.is_nan() {
                return Err(TokenizerError::Score { token });
            }
            if text.is_empty() || text.len() > PIECE_BYTES_MAX {
                continue;
            }
            longest = longest.max(text.len());
            words &= !text.trim_start_matches(SPACE).contains(SPACE);
            // Zero is written with either sign.
            by_text.insert(text.clone(), Piece { id: TokenId(token), score: score + 0.0, unused });
        }
        Ok(Self { by_text, longest, bytes, unknown, prefix, words })
    }

    /// Appends the tokens of `text`, which is not empty. `fresh`: nothing or a token is in front of it, not text.
    pub(super) fn encode(&self, text: &str, fresh: bool, out: &mut Vec<TokenId>) {
        let mut escaped = String::with_capacity(text.len() + SPACE.len_utf8());
        if self.prefix && fresh {
            escaped.push(SPACE);
        }
        escaped.extend(text.chars().map(|c| if c == ' ' { SPACE } else { c }));
        let mut sink = Sink { pieces: self, out, after_unknown: false };
        let mut rest = escaped.as_str();
        while !rest.is_empty() {
            let word = if self.words { &rest[..word_len(rest)] } else { rest };
            self.join(word, &mut sink);
            rest = &rest[word.len()..];
        }
    }

    fn join(&self, text: &str, sink: &mut Sink<'_>) {
        let mut symbols: Vec<Symbol> = text
            .char_indices()
            .enumerate()
            .map(|(i, (start, c))| Symbol { start, len: c.len_utf8(), prev: i.checked_sub(1), next: i + 1 })
            .collect();
        let mut joining =
            Joining { pieces: self, text, pairs: BinaryHeap::new(), taken_apart: HashMap::new() };
        for left in 0..symbols.len() {
            joining.offer(&symbols, Some(left));
        }
        while let Some(pair) = joining.pairs.pop() {
            let left = symbols[pair.left];
            let Some(&right) = symbols.get(left.next) else { continue };
            // One of them was joined to another since.
            if left.len == 0 || left.len + right.len != pair.len {
                continue;
            }
            symbols[left.next].len = 0;
            symbols[pair.left] = Symbol { len: pair.len, next: right.next, ..left };
            if let Some(after) = symbols.get_mut(right.next) {
                after.prev = Some(pair.left);
            }
            joining.offer(&symbols, left.prev);
            joining.offer(&symbols, Some(pair.left));
        }
        for symbol in symbols.iter().filter(|symbol| symbol.len > 0) {
            let mut stack = vec![&text[symbol.start..symbol.start + symbol.len]];
            while let Some(piece) = stack.pop() {
                match joining.taken_apart.get(piece) {
                    Some(&at) => stack.extend([&piece[at..], &piece[..at]]),
                    None => sink.piece(piece),
                }
            }
        }
    }
}

/// Bytes of the first word with the spaces in front of it.
fn word_len(text: &str) -> usize {
    let start = text.len() - text.trim_start_matches(SPACE).len();
    text[start..].find(SPACE).map_or(text.len(), |end| start + end)
}

/// A stretch of text that is one piece so far; empty once it belongs to the one before.
#[derive(Clone, Copy)]
struct Symbol {
    start: usize,
    len: usize,
    prev: Option<usize>,
    /// At the end: the number of symbols.
    next: usize,
}

/// A symbol and the one after it that make a piece of `len` bytes.
struct Pair {
    score: f32,
    left: usize,
    len: usize,
}

impl Ord for Pair {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Pair {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Pair {}

struct Joining<'t> {
    pieces: &'t Pieces,
    text: &'t str,
    pairs: BinaryHeap<Pair>,
    /// Unused pieces that were made, and where they are cut in two.
    taken_apart: HashMap<&'t str, usize>,
}

impl Joining<'_> {
    /// Queues `left` with the symbol after it if they make a piece.
    fn offer(&mut self, symbols: &[Symbol], left: Option<usize>) {
        let Some((left, symbol)) = left.and_then(|left| Some((left, symbols.get(left)?))) else { return };
        let Some(next) = symbols.get(symbol.next) else { return };
        let len = symbol.len + next.len;
        if len > self.pieces.longest {
            return;
        }
        let text = &self.text[symbol.start..symbol.start + len];
        if let Some(piece) = self.pieces.by_text.get(text) {
            self.pairs.push(Pair { score: piece.score, left, len });
            if piece.unused {
                self.taken_apart.insert(text, symbol.len);
            }
        }
    }
}

struct Sink<'a> {
    pieces: &'a Pieces,
    out: &'a mut Vec<TokenId>,
    /// A run of unknown characters is one unknown token.
    after_unknown: bool,
}

impl Sink<'_> {
    fn piece(&mut self, text: &str) {
        if let Some(piece) = self.pieces.by_text.get(text) {
            self.after_unknown = false;
            self.out.push(piece.id);
            return;
        }
        let bytes: Option<Vec<TokenId>> = text.bytes().map(|b| self.pieces.bytes[usize::from(b)]).collect();
        match &bytes {
            Some(bytes) => self.out.extend(bytes),
            None if self.after_unknown => {}
            None => self.out.extend(self.pieces.unknown),
        }
        self.after_unknown = bytes.is_none();
    }
}
