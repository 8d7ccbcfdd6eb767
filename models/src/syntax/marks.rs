//! Marks in a text that still grows: what might become one has to wait.

/// How much of `text` comes before the first mark, and which mark that is and how long; without one, how much cannot be
/// the beginning of one.
pub(super) fn find(
    text: &str,
    marks: &[Option<&'static str>],
    last: bool,
) -> (usize, Option<(usize, usize)>) {
    let marks = || marks.iter().enumerate().filter_map(|(i, mark)| Some((i, (*mark)?)));
    let found = marks().filter_map(|(i, mark)| Some((text.find(mark)?, i, mark.len()))).min();
    let begun = |at: &usize| marks().any(|(_, mark)| mark.starts_with(&text[*at..]));
    let longest = marks().map(|(_, mark)| mark.len()).max().unwrap_or(0);
    let tail = text.len().saturating_sub(longest);
    let partial = text.char_indices().map(|(at, _)| at).filter(|&at| at > tail || tail == 0).find(begun);
    match (found, partial.filter(|_| !last)) {
        (Some((at, ..)), Some(partial)) if partial < at => (partial, None),
        (Some((at, i, len)), _) => (at, Some((i, len))),
        (None, Some(partial)) => (partial, None),
        (None, None) => (text.len(), None),
    }
}

/// What text begins with, behind white space.
pub(super) enum Ahead {
    /// This mark; so many bytes with it.
    Mark(usize, usize),
    Other,
    /// More must come.
    Unknown,
}

pub(super) fn ahead(text: &str, marks: &[&str], last: bool) -> Ahead {
    let trimmed = text.trim_start();
    let space = text.len() - trimmed.len();
    if let Some(i) = marks.iter().position(|mark| trimmed.starts_with(mark)) {
        return Ahead::Mark(i, space + marks[i].len());
    }
    match !last && marks.iter().any(|mark| mark.starts_with(trimmed)) {
        true => Ahead::Unknown,
        false => Ahead::Other,
    }
}
