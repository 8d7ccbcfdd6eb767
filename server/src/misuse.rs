//! Errors of usage or configuration that show only when it is put to use: trying again without a change is of no use.

use std::error::Error;
use std::fmt;

/// Says so of an error, with that error's words.
#[derive(Debug)]
pub(crate) struct Misuse(anyhow::Error);

impl fmt::Display for Misuse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Error for Misuse {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.0.source()
    }
}

/// For results whose errors are such.
pub(crate) trait OrMisuse<T> {
    fn or_misuse(self) -> anyhow::Result<T>;
}

impl<T, E: Into<anyhow::Error>> OrMisuse<T> for Result<T, E> {
    fn or_misuse(self) -> anyhow::Result<T> {
        self.map_err(|error| Misuse(error.into()).into())
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;

    #[test]
    fn it_keeps_every_word_and_is_found_below_others() {
        let inner: anyhow::Result<()> = Err(std::io::Error::other("gone")).context("cannot read a");
        let error = inner.or_misuse().context("cannot start").unwrap_err();
        assert_eq!(format!("{error:#}"), "cannot start: cannot read a: gone");
        assert!(error.is::<Misuse>());
        assert!(!anyhow::anyhow!("other").is::<Misuse>());
    }
}
