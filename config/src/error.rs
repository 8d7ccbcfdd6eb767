//! Everything that can be wrong with a configuration, said in one line with key, value and origin.

use std::path::PathBuf;

use crate::layers::Origin;

/// Why a configuration was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The configuration file cannot be read.
    #[error("cannot read configuration file {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// There is a token, but it cannot be read.
    #[error("cannot read the Hugging Face token file {}", path.display())]
    Token {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Not TOML.
    #[error("{origin}: {problem}")]
    Syntax {
        /// File and line.
        origin: Origin,
        /// What the parser said.
        problem: String,
    },
    /// A key that does not exist.
    #[error("unknown key `{key}` ({origin}){}", hint(nearest.as_deref()))]
    UnknownKey {
        /// As written, with its section.
        key: String,
        /// Where it was written.
        origin: Origin,
        /// The most similar key that does exist.
        nearest: Option<String>,
    },
    /// A value of the wrong type or out of range.
    #[error("{key} = {value} ({origin}): {problem}")]
    Value {
        /// With its section.
        key: String,
        /// As written; hidden for secrets.
        value: String,
        /// Where it was written.
        origin: Origin,
        /// What would be right.
        problem: String,
    },
    /// A flag that does not fit what it is given with.
    #[error("{flag} {value}: {problem}")]
    Flag {
        /// Its name.
        flag: &'static str,
        /// As written.
        value: String,
        /// Why not.
        problem: String,
    },
    /// A client's key where a server has none: whoever sets it believes to have protected the server.
    #[error(
        "FRUGAL_API_KEY is the key that `frugal chat` and `frugal load` send; what a server lets in are `auth.keys` or \
         the file `auth.keys_file`: set one of them, or unset the variable to let everyone in"
    )]
    ClientKey,
    /// Two values that cannot both hold.
    #[error("{} = {} ({}) contradicts {} = {} ({}): {problem}",
            first.key, first.value, first.origin, second.key, second.value, second.origin)]
    Contradiction {
        /// One of them.
        first: Box<Setting>,
        /// The other.
        second: Box<Setting>,
        /// Why not.
        problem: String,
    },
    /// A key that another one needs is missing.
    #[error("{} = {} ({}) needs `{needs}`", setting.key, setting.value, setting.origin)]
    Incomplete {
        /// What is set.
        setting: Box<Setting>,
        /// What is missing.
        needs: &'static str,
    },
}

/// A key as it was set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// With its section.
    pub key: String,
    /// As written; hidden for secrets.
    pub value: String,
    /// Where it was written.
    pub origin: Origin,
}

impl Setting {
    /// The value is not what it should be.
    pub(crate) fn wrong(&self, problem: &str) -> ConfigError {
        let Self { key, value, origin } = self.clone();
        ConfigError::Value { key, value, origin, problem: problem.to_owned() }
    }
}

fn hint(nearest: Option<&str>) -> String {
    nearest.map(|n| format!("; did you mean `{n}`?")).unwrap_or_default()
}
