//! `hf:OWNER/REPO[:TAG or :FILE][@REVISION]`: a model on the hub, in words.
//!
//! Every name is checked here, so that it can be part of a path or an address as it is.

use std::fmt;

/// What a reference to the hub begins with.
const PREFIX: &str = "hf:";

/// The branch that repositories have.
const MAIN: &str = "main";

/// A model on the hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubRef {
    /// `owner/name`.
    pub(super) repo: String,
    pub(super) wanted: Wanted,
    /// A branch, tag or commit.
    pub(super) revision: String,
}

/// Which of a repository's models.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    /// What nobody chose.
    Default,
    /// The one with this quantization tag in its name.
    Tag(String),
    /// The one in this file, or this part.
    File(String),
}

/// What follows `hf:` is no reference.
#[derive(Debug, thiserror::Error)]
#[error(
    "{text}: {problem}; expected hf:OWNER/REPO, hf:OWNER/REPO:TAG or hf:OWNER/REPO:FILE.gguf, then @REVISION if need be"
)]
pub struct RefError {
    text: String,
    problem: &'static str,
}

impl HubRef {
    /// None if `text` does not begin with [`PREFIX`].
    ///
    /// # Errors
    /// If it does, and the rest is no reference.
    pub fn parse(text: &str) -> Option<Result<Self, RefError>> {
        let rest = text.strip_prefix(PREFIX)?;
        Some(parse(rest).map_err(|problem| RefError { text: text.to_owned(), problem }))
    }

    /// What clients call the model: the reference without `hf:` and revision.
    pub fn id(&self) -> String {
        match &self.wanted {
            Wanted::Default => self.repo.clone(),
            Wanted::Tag(wanted) | Wanted::File(wanted) => format!("{}:{wanted}", self.repo),
        }
    }
}

impl fmt::Display for HubRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", self.id())?;
        if self.revision == MAIN { Ok(()) } else { write!(f, "@{}", self.revision) }
    }
}

fn parse(text: &str) -> Result<HubRef, &'static str> {
    let (rest, revision) = text.rsplit_once('@').unwrap_or((text, MAIN));
    let (repo, wanted) = match rest.split_once(':') {
        None => (rest, Wanted::Default),
        Some((repo, file)) if is_gguf(file) => (repo, Wanted::File(file.to_owned())),
        Some((repo, tag)) => (repo, Wanted::Tag(tag.to_owned())),
    };
    let (owner, name) = repo.split_once('/').ok_or("the repository has no owner")?;
    if !is_name(owner) || !is_name(name) {
        return Err("this is no name of a repository");
    }
    match &wanted {
        Wanted::File(file) if !is_path(file) => return Err("this is no name of a file"),
        Wanted::Tag(tag) if !is_word(tag) => return Err("this is neither a tag nor a .gguf file"),
        _ => {}
    }
    if !is_path(revision) || !revision.split('/').all(is_word) {
        return Err("this is no revision");
    }
    Ok(HubRef { repo: repo.to_owned(), wanted, revision: revision.to_owned() })
}

/// Whether a name ends as model files do.
pub(in crate::source) fn is_gguf(name: &str) -> bool {
    name.len()
        .checked_sub(5)
        .and_then(|at| name.get(at..))
        .is_some_and(|end| end.eq_ignore_ascii_case(".gguf"))
}

/// Letters, digits, `.`, `_` and `-`.
fn is_word(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    (1..=96).contains(&text.len()) && text.bytes().all(allowed)
}

/// By the hub's own rules, which also make a cache folder's name unambiguous.
fn is_name(text: &str) -> bool {
    let edge = |c: char| c == '.' || c == '-';
    is_word(text)
        && !text.starts_with(edge)
        && !text.ends_with(edge)
        && !text.contains("..")
        && !text.contains("--")
}

/// Whether a name from outside, joined to a folder, stays within it, on any system.
pub(super) fn is_path(text: &str) -> bool {
    let bad = |c: char| c.is_control() || "\\:".contains(c);
    let part = |part: &str| !part.is_empty() && part != "." && part != ".." && part.len() <= 255;
    text.len() <= 1024 && !text.contains(bad) && text.split('/').all(part)
}

/// Whether a revision is a commit, which never changes.
pub(super) fn is_commit(text: &str) -> bool {
    text.len() == 40 && is_hex(text)
}

/// Lower-case hexadecimal.
pub(super) fn is_hex(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_read() {
        let check = |text: &str, repo: &str, wanted: Wanted, revision: &str, id: &str| {
            let parsed = HubRef::parse(text).unwrap().unwrap();
            let expected = HubRef { repo: repo.to_owned(), wanted, revision: revision.to_owned() };
            assert_eq!(parsed, expected, "{text}");
            assert_eq!((parsed.id().as_str(), parsed.to_string().as_str()), (id, text));
        };
        let tag = |tag: &str| Wanted::Tag(tag.to_owned());
        let file = |file: &str| Wanted::File(file.to_owned());
        check("hf:o/r", "o/r", Wanted::Default, "main", "o/r");
        check("hf:o/R-1.5_x:Q4_K_M", "o/R-1.5_x", tag("Q4_K_M"), "main", "o/R-1.5_x:Q4_K_M");
        check("hf:o/r:a/b-Q8_0.GGUF", "o/r", file("a/b-Q8_0.GGUF"), "main", "o/r:a/b-Q8_0.GGUF");
        check("hf:o/r@refs/pr/1", "o/r", Wanted::Default, "refs/pr/1", "o/r");
        check("hf:o/r:Q8_0@v1", "o/r", tag("Q8_0"), "v1", "o/r:Q8_0");
        assert!(HubRef::parse("models/hf.gguf").is_none());
    }

    #[test]
    fn what_is_no_reference_is_refused() {
        for bad in [
            "",
            "r",
            "/r",
            "o/",
            "o/r/s",
            "o/..",
            "../r",
            "o/.r",
            "o/r-",
            "o/a--b",
            "o/r:",
            "o/r:a b",
            "o/r:../x.gguf",
            "o/r:/x.gguf",
            "o/r:a\\x.gguf",
            "o/r:a//x.gguf",
            "o/r@",
            "o/r@../x",
            "o/r@a b",
            "o/r@/x",
            "o\n/r",
            "o/é",
            "o/r:Q4:Q5",
        ] {
            let error = HubRef::parse(&format!("hf:{bad}")).unwrap().unwrap_err().to_string();
            assert!(error.contains("expected hf:OWNER/REPO"), "{error}");
        }
    }
}
