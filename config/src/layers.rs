//! Defaults, file, environment and flags, merged key by key; every value knows where it was written.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use serde::Deserialize as _;
use toml::Value;

use crate::DEFAULT_TOML;
use crate::error::{ConfigError, Setting};
use crate::raw::Raw;

/// Where a value was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// `default.toml`.
    Default,
    /// A configuration file.
    File {
        /// As it was given.
        path: PathBuf,
        /// From 1.
        line: usize,
    },
    /// An environment variable.
    Environment(String),
    /// A command line flag.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Environment(name) => write!(f, "environment variable {name}"),
            Self::Flag(flag) => write!(f, "flag {flag}"),
        }
    }
}

/// Prefix of the environment variables that are ours.
const PREFIX: &str = "FRUGAL_";
/// In place of a value.
pub(crate) const UNSET: &str = "unset";
/// The key that `--model` sets.
const MODEL_KEY: &str = "model.source";
/// Its value is never shown.
const SECRET_KEY: &str = "auth.keys";
/// Names the configuration file.
pub(crate) const CONFIG_VARIABLE: &str = "FRUGAL_CONFIG";
/// A client's API key. With [`CONFIG_VARIABLE`] the only variables that are not keys.
pub(crate) const API_KEY_VARIABLE: &str = "FRUGAL_API_KEY";
/// Authorities that `frugal chat` trusts, as OpenSSL and what is made with it call them.
pub(crate) const CA_FILE_VARIABLE: &str = "SSL_CERT_FILE";

/// The merged settings. Later calls override earlier ones.
#[derive(Clone, Debug)]
pub struct Layers {
    /// By `section.key`.
    entries: BTreeMap<String, (Value, Origin)>,
    /// Lines of what lies inside a key's value, by its whole path.
    inner: BTreeMap<String, Origin>,
    known: BTreeSet<String>,
    /// Sections that are read; None for all. What a file and the environment say of others is passed over, be it wrong.
    sections: Option<&'static [&'static str]>,
}

impl Default for Layers {
    fn default() -> Self {
        Self::new()
    }
}

impl Layers {
    /// The built-in defaults alone.
    pub fn new() -> Self {
        let defaults: toml::Table = DEFAULT_TOML.parse().expect("default.toml is TOML (tested)");
        let raw: Raw =
            Value::Table(defaults.clone()).try_into().expect("default.toml fits the keys (tested)");
        let json = serde_json::to_value(&raw).expect("configuration values are plain data");
        let sections = json.as_object().expect("sections are a map");
        let known = sections
            .iter()
            .flat_map(|(section, keys)| {
                let keys = keys.as_object().expect("a section is a map");
                keys.keys().map(move |key| format!("{section}.{key}"))
            })
            .collect();
        let mut layers = Self { entries: BTreeMap::new(), inner: BTreeMap::new(), known, sections: None };
        for (section, keys) in &defaults {
            for (key, value) in keys.as_table().expect("a section is a table") {
                layers.entries.insert(format!("{section}.{key}"), (value.clone(), Origin::Default));
            }
        }
        layers
    }

    /// The same, for some sections alone.
    pub(crate) fn of(sections: &'static [&'static str]) -> Self {
        Self { sections: Some(sections), ..Self::new() }
    }

    fn reads(&self, section: &str) -> bool {
        self.sections.is_none_or(|sections| sections.contains(&section))
    }

    /// All keys there are, as `section.key`.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.known.iter().map(String::as_str)
    }

    /// Adds a file.
    pub fn file(&mut self, path: &Path) -> Result<(), ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        self.file_text(path, &text)
    }

    /// Adds a file's content.
    pub fn file_text(&mut self, path: &Path, text: &str) -> Result<(), ConfigError> {
        let at = |offset: usize| {
            let line = 1 + text.bytes().take(offset).filter(|b| *b == b'\n').count();
            Origin::File { path: path.to_owned(), line }
        };
        let syntax = |e: toml::de::Error| ConfigError::Syntax {
            origin: at(e.span().map_or(0, |s| s.start)),
            problem: plain(e.message()),
        };
        let spanned = toml::de::DeTable::parse(text).map_err(syntax)?;
        let table: toml::Table = text.parse().map_err(syntax)?;
        let mut lines = BTreeMap::new();
        record_lines("", spanned.get_ref(), &at, &mut lines);
        for (section, keys) in table {
            if !self.reads(&section) {
                continue;
            }
            let origin = lines.get(&section).cloned().unwrap_or_else(|| at(0));
            let Value::Table(keys) = keys else {
                return Err(self.unknown(section, origin));
            };
            if !self.known.iter().any(|k| k.split('.').next() == Some(section.as_str())) {
                return Err(self.unknown(section, origin));
            }
            for (key, value) in keys {
                let path = format!("{section}.{key}");
                let origin = lines.get(&path).cloned().unwrap_or_else(|| origin.clone());
                self.insert(path, value, origin)?;
            }
        }
        self.inner = lines;
        Ok(())
    }

    /// Adds the environment: every variable that begins with `FRUGAL_` must be one of ours.
    ///
    /// Orchestrators inject variables for a service that happens to be called like us
    /// (`FRUGAL_SERVICE_HOST`, `FRUGAL_PORT_8000_TCP`, `FRUGAL_PORT=tcp://...`); these are left alone. An empty variable
    /// says nothing, for whoever passes variables on cannot always leave one out.
    pub fn environment(
        &mut self,
        variables: impl IntoIterator<Item = (String, String)>,
    ) -> Result<(), ConfigError> {
        for (name, value) in variables {
            let Some(rest) = name.strip_prefix(PREFIX) else { continue };
            if [CONFIG_VARIABLE, API_KEY_VARIABLE].contains(&name.as_str()) || injected(rest, &value) {
                continue;
            }
            let section = rest.split('_').next().unwrap_or_default().to_lowercase();
            if !self.reads(&section) {
                continue;
            }
            let origin = Origin::Environment(name.clone());
            match rest.split_once("__") {
                Some((section, key)) => {
                    let key = format!("{}.{}", section.to_lowercase(), key.to_lowercase());
                    if value.is_empty() && self.known.contains(&key) {
                        continue;
                    }
                    self.insert_text(&key, &value, origin)?;
                }
                None => {
                    let dotted = rest.to_lowercase().replacen('_', ".", 1);
                    // No variable sets a section; this one's name is that of a flag.
                    let nearest = match dotted.as_str() {
                        "model" => Some(MODEL_KEY.to_owned()),
                        _ => most_like(&dotted, self.known.iter()),
                    };
                    let nearest = nearest.map(|key| variable(&key));
                    return Err(ConfigError::UnknownKey { key: name, origin, nearest });
                }
            }
        }
        Ok(())
    }

    /// Adds a flag's value for a key. What is not read must exist all the same: it was given for this command.
    pub fn flag(&mut self, flag: &str, key: &str, value: &str) -> Result<(), ConfigError> {
        if self.known.contains(key) && !self.reads(key.split('.').next().unwrap_or_default()) {
            return Ok(());
        }
        self.insert_text(key, value, Origin::Flag(flag.to_owned()))
    }

    /// Parses the merged values into their types.
    pub fn parse(&self) -> Result<Raw, ConfigError> {
        let table = Value::Table(self.table());
        serde_path_to_error::deserialize(table).map_err(|e| {
            let path = e.path().to_string();
            self.wrong(&path, e.inner().message())
        })
    }

    /// How a key was set: for errors. The values of `[auth]` are hidden.
    pub(crate) fn setting(&self, key: &str) -> Setting {
        let (value, origin) = match self.entries.get(key) {
            Some((value, origin)) => (shown(key, value), origin.clone()),
            None => (UNSET.to_owned(), Origin::Default),
        };
        Setting { key: key.to_owned(), value, origin }
    }

    /// A key's value is not what it should be.
    pub(crate) fn wrong(&self, path: &str, problem: &str) -> ConfigError {
        let key: String = path.split(['.', '[']).take(2).collect::<Vec<_>>().join(".");
        let Setting { value, origin, .. } = self.setting(&key);
        // The parser quotes what it found, which may be a secret.
        let hide = path.starts_with(SECRET_KEY) && problem.starts_with("invalid ");
        let problem = if hide { "expected a list of { name = \"...\", key = \"...\" }" } else { problem };
        let origin = match (&origin, self.inner.get(path)) {
            (Origin::File { .. }, Some(inner)) => inner.clone(),
            _ => origin,
        };
        ConfigError::Value { key: path.to_owned(), value, origin, problem: plain(problem) }
    }

    /// The effective configuration as TOML, with the origin of what is not a default; secrets are hidden.
    pub fn to_toml(&self) -> String {
        let mut text = String::new();
        let mut last = "";
        for (path, (value, origin)) in &self.entries {
            let (section, key) = path.split_once('.').expect("entries have a section");
            if section != last {
                text += &format!("{}[{section}]\n", if last.is_empty() { "" } else { "\n" });
                last = section;
            }
            let hide = if path == SECRET_KEY && *origin != Origin::Default { "# " } else { "" };
            text += &format!("{hide}{key} = {}", shown(path, value));
            text += &if *origin == Origin::Default { "\n".to_owned() } else { format!("  # {origin}\n") };
        }
        text
    }

    fn table(&self) -> toml::Table {
        let mut table = toml::Table::new();
        for section in self.known.iter().filter_map(|k| k.split('.').next()) {
            table.entry(section).or_insert_with(|| Value::Table(toml::Table::new()));
        }
        for (path, (value, _)) in &self.entries {
            let (section, key) = path.split_once('.').expect("entries have a section");
            if let Some(Value::Table(keys)) = table.get_mut(section) {
                keys.insert(key.to_owned(), value.clone());
            }
        }
        table
    }

    /// A variable or flag has no type of its own: it is a string if the key takes one, else TOML.
    fn insert_text(&mut self, key: &str, text: &str, origin: Origin) -> Result<(), ConfigError> {
        let mut with_text = self.clone();
        with_text.insert(key.to_owned(), Value::String(text.to_owned()), origin.clone())?;
        let parsed = toml::de::ValueDeserializer::parse(text).ok().and_then(|d| Value::deserialize(d).ok());
        let refused = match (with_text.parse(), parsed) {
            (Ok(_), _) | (Err(_), None) => None,
            (Err(_), Some(value)) => Some(value),
        };
        match refused {
            None => *self = with_text,
            Some(value) => self.insert(key.to_owned(), value, origin)?,
        }
        self.parse().map(|_| ())
    }

    fn insert(&mut self, key: String, value: Value, origin: Origin) -> Result<(), ConfigError> {
        if !self.known.contains(&key) {
            return Err(self.unknown(key, origin));
        }
        self.entries.insert(key, (value, origin));
        Ok(())
    }

    fn unknown(&self, key: String, origin: Origin) -> ConfigError {
        let nearest = self.nearest(&key).map(|near| match origin {
            Origin::Environment(_) => variable(&near),
            _ => near,
        });
        ConfigError::UnknownKey { key, origin, nearest }
    }

    /// The known key most like this one, be it in another section; for a bare word perhaps a section.
    fn nearest(&self, key: &str) -> Option<String> {
        let sections = self.known.iter().filter_map(|k| k.split('.').next()).filter(|_| !key.contains('.'));
        let sections: BTreeSet<String> = sections.map(str::to_owned).collect();
        most_like(key, self.known.iter().chain(&sections))
    }
}

/// Whichever is most like this key, if it is like it at all.
fn most_like<'a>(key: &str, mut all: impl Iterator<Item = &'a String>) -> Option<String> {
    let bare = |k: &str| k.rsplit('.').next().unwrap_or_default().to_owned();
    let likeness = |known: &String| {
        let whole = strsim::jaro_winkler(known, key);
        whole.max(strsim::normalized_damerau_levenshtein(&bare(known), &bare(key)))
    };
    let first = all.next()?;
    let best = all.fold(first, |best, k| if likeness(k) > likeness(best) { k } else { best });
    (likeness(best) > 0.75).then(|| best.clone())
}

/// One line, without Rust's names of types.
fn plain(problem: &str) -> String {
    let names = [
        ("expected u16", "expected a whole number from 0 to 65535"),
        ("expected u32", "expected a whole number from 0 to 4294967295"),
        ("expected u64", "expected a whole number from 0"),
        ("expected a boolean", "expected true or false"),
    ];
    let line = problem.trim().replace('\n', ", ");
    names.iter().fold(line, |line, (from, to)| line.replace(from, to))
}

fn variable(key: &str) -> String {
    format!("{PREFIX}{}", key.to_uppercase().replace('.', "__"))
}

fn shown(key: &str, value: &Value) -> String {
    let empty = value.as_array().is_some_and(Vec::is_empty);
    if key == SECRET_KEY && !empty { "[redacted]".to_owned() } else { value.to_string() }
}

/// Whether an orchestrator made this variable for a service whose name begins like ours.
fn injected(rest: &str, value: &str) -> bool {
    if rest.contains("__") {
        return false;
    }
    let service = rest.ends_with("SERVICE_HOST") || rest.contains("SERVICE_PORT");
    let linked =
        ["_TCP", "_UDP", "_ADDR", "_PROTO"].iter().any(|end| rest.contains(end)) && rest.contains("PORT_");
    service || linked || (rest.ends_with("PORT") && value.contains("://"))
}

fn record_lines(
    prefix: &str,
    table: &toml::de::DeTable<'_>,
    at: &impl Fn(usize) -> Origin,
    lines: &mut BTreeMap<String, Origin>,
) {
    for (key, value) in table {
        let path =
            if prefix.is_empty() { key.get_ref().to_string() } else { format!("{prefix}.{}", key.get_ref()) };
        lines.insert(path.clone(), at(key.span().start));
        if let Some(inner) = value.get_ref().as_table() {
            record_lines(&path, inner, at, lines);
        }
    }
}
