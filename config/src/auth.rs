//! Who may ask and how much: names, digests of keys and rates, from the configuration and from a file that may be read
//! again while serving.
//!
//! A key is written as it is or as `sha256:` and the digest's hexadecimal digits. What is kept is the digest alone.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::path::PathBuf;

use sha2::{Digest, Sha256};

use crate::error::{ConfigError, Setting};
use crate::layers::Layers;
use crate::raw;

/// Before a digest.
const DIGEST_PREFIX: &str = "sha256:";

/// Who may ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Auth {
    /// Digests are unique; several may have a name, with the same rates: an old key and the one that takes its place. Empty: no
    /// authentication.
    pub keys: Vec<Key>,
    /// Requests in progress per key; None for no limit.
    pub requests_per_key_max: Option<NonZeroU32>,
    source: Source,
}

/// A key that lets in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// Stands for the key in logs and isolates its prefix cache.
    pub name: String,
    /// SHA-256 of what the client sends.
    pub digest: [u8; 32],
    /// How much it may ask.
    pub rates: Rates,
}

/// What may be used in a minute; None for as much as one likes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    /// Requests that ask for work.
    pub requests: Option<NonZeroU32>,
    /// Tokens of prompts and answers.
    pub tokens: Option<NonZeroU32>,
}

/// Where keys come from.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Source {
    /// Those in the configuration itself.
    written: Vec<Key>,
    file: Option<(PathBuf, Setting)>,
    /// For keys that have no rates of their own.
    rates: Rates,
}

impl Auth {
    pub(crate) fn resolve(layers: &Layers, raw: &raw::Auth) -> Result<Self, ConfigError> {
        let at_least_1 = |key: &'static str, value: Option<u32>| match value.map(NonZeroU32::new) {
            Some(None) => Err(layers.wrong(key, "expected at least 1")),
            other => Ok(other.flatten()),
        };
        let requests_per_key_max = at_least_1("auth.max_requests_per_key", raw.max_requests_per_key)?;
        let rates = Rates {
            requests: at_least_1("auth.requests_per_minute", raw.requests_per_minute)?,
            tokens: at_least_1("auth.tokens_per_minute", raw.tokens_per_minute)?,
        };
        let setting = layers.setting("auth.keys");
        let written = raw.keys.iter().map(|key| {
            let own = (key.requests_per_minute, key.tokens_per_minute);
            let read = Key::read(&key.name, key.key.expose(), own, rates);
            read.map_err(|problem| setting.wrong(&format!("key `{}`: {problem}", key.name)))
        });
        let written: Vec<Key> = written.collect::<Result<_, _>>()?;
        consistent(&written).map_err(|problem| setting.wrong(&problem))?;
        let file = raw.keys_file.clone().map(|path| (path, layers.setting("auth.keys_file")));
        let source = Source { written, file, rates };
        let keys = source.read()?;
        let limits = [
            ("auth.max_requests_per_key", raw.max_requests_per_key),
            ("auth.requests_per_minute", raw.requests_per_minute),
            ("auth.tokens_per_minute", raw.tokens_per_minute),
        ];
        if let Some((key, _)) = limits.iter().find(|(_, limit)| limit.is_some() && keys.is_empty()) {
            let setting = Box::new(layers.setting(key));
            return Err(ConfigError::Incomplete { setting, needs: "auth.keys` or `auth.keys_file" });
        }
        Ok(Self { keys, requests_per_key_max, source })
    }

    /// Whether there is a file that may change.
    pub fn has_file(&self) -> bool {
        self.source.file.is_some()
    }

    /// The keys as they are now, the file's read again.
    ///
    /// # Errors
    /// As at the start.
    pub fn read_again(&self) -> Result<Vec<Key>, ConfigError> {
        self.source.read()
    }
}

impl Source {
    fn read(&self) -> Result<Vec<Key>, ConfigError> {
        let mut keys = self.written.clone();
        if let Some((path, setting)) = &self.file {
            let text = std::fs::read_to_string(path)
                .map_err(|error| setting.wrong(&format!("cannot read the file: {error}")))?;
            for (number, line) in (1..).zip(text.lines().map(str::trim)) {
                if !line.is_empty() && !line.starts_with('#') {
                    let key = self.line(line);
                    keys.push(key.map_err(|problem| setting.wrong(&format!("line {number}: {problem}")))?);
                }
            }
            if keys.is_empty() {
                return Err(setting.wrong("the file has no key, which would let everyone in"));
            }
            consistent(&keys).map_err(|problem| setting.wrong(&problem))?;
        }
        Ok(keys)
    }

    /// `name key`, and perhaps rates.
    fn line(&self, line: &str) -> Result<Key, String> {
        let expected = || "expected `name key [requests_per_minute=N] [tokens_per_minute=N]`".to_owned();
        let mut words = line.split_whitespace();
        let (name, key) = words.next().zip(words.next()).ok_or_else(expected)?;
        let (mut requests, mut tokens) = (None, None);
        for word in words {
            let rate = match word.split_once('=').ok_or_else(expected)? {
                ("requests_per_minute", text) => (&mut requests, text),
                ("tokens_per_minute", text) => (&mut tokens, text),
                _ => return Err(expected()),
            };
            *rate.0 = Some(rate.1.parse().map_err(|_| expected())?);
        }
        Key::read(name, key, (requests, tokens), self.rates).map_err(|why| format!("key `{name}`: {why}"))
    }
}

impl Key {
    /// A key without rates.
    pub fn new(name: impl Into<String>, key: &str) -> Self {
        Self { name: name.into(), digest: Sha256::digest(key).into(), rates: Rates::default() }
    }

    /// A line for the file of keys, which tells nothing of the key.
    pub fn line(&self) -> String {
        let digits: String = self.digest.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{} {DIGEST_PREFIX}{digits}", self.name)
    }

    fn read(
        name: &str,
        key: &str,
        (requests, tokens): (Option<u32>, Option<u32>),
        default: Rates,
    ) -> Result<Self, String> {
        is_name(name)?;
        let digest = match key.strip_prefix(DIGEST_PREFIX) {
            Some(digits) => digest(digits)
                .ok_or_else(|| format!("expected 64 hexadecimal digits after {DIGEST_PREFIX}"))?,
            None if key.is_empty() || key.len() > 512 || !key.bytes().all(|b| b.is_ascii_graphic()) => {
                return Err("a key is 1 to 512 visible ASCII characters".to_owned());
            }
            None => Sha256::digest(key).into(),
        };
        let rate = |own: Option<u32>, default| match own.map(NonZeroU32::new) {
            None => Ok(default),
            Some(None) => Err("a rate is at least 1".to_owned()),
            Some(rate) => Ok(rate),
        };
        let rates =
            Rates { requests: rate(requests, default.requests)?, tokens: rate(tokens, default.tokens)? };
        Ok(Self { name: name.to_owned(), digest, rates })
    }
}

/// What a key may be called.
pub(crate) fn is_name(name: &str) -> Result<(), String> {
    let fits = !name.is_empty() && name.len() <= 64 && name.bytes().all(|b| b.is_ascii_graphic());
    // In the file it would begin a comment.
    if fits && !name.starts_with('#') {
        return Ok(());
    }
    Err("a name is 1 to 64 visible ASCII characters, the first no `#`".to_owned())
}

fn digest(digits: &str) -> Option<[u8; 32]> {
    let mut digest = [0; 32];
    if digits.len() != 2 * digest.len() || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, at) in digest.iter_mut().zip((0..).step_by(2)) {
        *byte = u8::from_str_radix(digits.get(at..at + 2)?, 16).ok()?;
    }
    Some(digest)
}

fn consistent(keys: &[Key]) -> Result<(), String> {
    let (mut rates, mut digests) = (BTreeMap::new(), BTreeSet::new());
    for key in keys {
        if *rates.entry(&key.name).or_insert(key.rates) != key.rates {
            return Err(format!("key `{}`: two keys of this name have different rates", key.name));
        }
        if !digests.insert(key.digest) {
            return Err(format!("key `{}`: the key is there twice", key.name));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn auth(text: &str) -> Result<Auth, ConfigError> {
        let mut layers = Layers::new();
        layers.file_text(Path::new("frugal.toml"), text)?;
        Auth::resolve(&layers, &layers.parse()?.auth)
    }

    /// A file of keys, removed with the value.
    struct File(PathBuf);

    impl File {
        fn new(name: &str, text: &str) -> Self {
            let path = std::env::temp_dir().join(format!("frugal-keys-{name}-{}", std::process::id()));
            std::fs::write(&path, text).unwrap();
            Self(path)
        }

        fn auth(&self, more: &str) -> Result<Auth, ConfigError> {
            auth(&format!("[auth]\nkeys_file = {:?}\n{more}", self.0))
        }
    }

    impl Drop for File {
        fn drop(&mut self) {
            std::fs::remove_file(&self.0).ok();
        }
    }

    #[test]
    fn a_key_and_its_digest_mean_the_same_and_only_the_digest_is_kept() {
        let plain = auth("[auth]\nkeys = [{ name = \"a\", key = \"sk-s3cret\" }]\n").unwrap();
        let line = Key::new("a", "sk-s3cret").line();
        let (name, digest) = line.split_once(' ').unwrap();
        assert_eq!((name, digest.len()), ("a", 7 + 64));
        let file = File::new("digest", &format!("# ours\n\n{line}\n"));
        assert_eq!(file.auth("").unwrap().keys, plain.keys);
        let upper = digest.to_uppercase().replace("SHA256", "sha256");
        let inline = auth(&format!("[auth]\nkeys = [{{ name = \"a\", key = \"{upper}\" }}]\n")).unwrap();
        assert_eq!(inline.keys, plain.keys);
        assert!(!format!("{plain:?}").contains("s3cret"));
    }

    #[test]
    fn rates_are_the_keys_own_or_the_default() {
        let file = File::new("rates", "a sk-a\nb sk-b tokens_per_minute=7 requests_per_minute=5\n");
        let rates = |auth: &Auth| -> Vec<_> {
            let rates = auth.keys.iter().map(|key| (key.rates.requests, key.rates.tokens));
            rates.map(|(requests, tokens)| (requests.map(u32::from), tokens.map(u32::from))).collect()
        };
        assert_eq!(rates(&file.auth("").unwrap()), [(None, None), (Some(5), Some(7))]);
        let keys = "keys = [{ name = \"c\", key = \"sk-c\", tokens_per_minute = 9 }]\n";
        let all = file.auth(&format!("requests_per_minute = 60\n{keys}")).unwrap();
        assert_eq!(rates(&all), [(Some(60), Some(9)), (Some(60), None), (Some(5), Some(7))]);
    }

    #[test]
    fn wrong_lines_are_named_and_never_quoted() {
        let check = |line: &str, problem: &str| {
            let file = File::new("wrong", &format!("a sk-a\n{line}\n"));
            let error = file.auth("").expect_err(line).to_string();
            assert!(error.contains("auth.keys_file") && error.contains(problem), "{error}");
            assert!(!error.contains("s3cret"), "{error}");
        };
        check("s3cret", "line 2: expected `name key [requests_per_minute=N]");
        check("b s3cret tokens=3", "line 2: expected");
        check("b s3cret tokens_per_minute=x", "line 2: expected");
        check("b s3cret tokens_per_minute=0", "line 2: key `b`: a rate is at least 1");
        check("b sha256:s3cret", "line 2: key `b`: expected 64 hexadecimal digits");
        check("a s3cret tokens_per_minute=3", "key `a`: two keys of this name have different rates");
        check("b sk-a", "key `b`: the key is there twice");
        check("a sk-a", "key `a`: the key is there twice");
        let empty = File::new("empty", "# nobody\n");
        assert!(empty.auth("").unwrap_err().to_string().contains("would let everyone in"));
    }

    #[test]
    fn a_key_and_the_one_that_takes_its_place_are_both_valid() {
        let file =
            File::new("both", "a sk-old requests_per_minute=5\nb sk-b\na sk-new requests_per_minute=5\n");
        let keys = file.auth("").unwrap().keys;
        assert_eq!(keys.iter().map(|key| key.name.as_str()).collect::<Vec<_>>(), ["a", "b", "a"]);
        assert_eq!(keys[0].rates, keys[2].rates);
        // What one line says and the default are the same, too.
        let file = File::new("default", "a sk-old requests_per_minute=5\na sk-new\n");
        assert_eq!(file.auth("requests_per_minute = 5\n").unwrap().keys.len(), 2);
    }

    #[test]
    fn the_file_is_read_again() {
        let file = File::new("again", "a sk-a\n");
        let auth = file.auth("").unwrap();
        assert!(auth.has_file());
        std::fs::write(&file.0, "b sk-b\n").unwrap();
        assert_eq!(auth.read_again().unwrap(), [Key::new("b", "sk-b")]);
        std::fs::write(&file.0, "b\n").unwrap();
        assert!(auth.read_again().unwrap_err().to_string().contains("line 1"));
    }
}
