//! What all Hugging Face tools read from the environment, so that a machine set up for them is set up for us.
//!
//! Keys of our own for the same things would be a second place to look.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::ConfigError;
use crate::units::Secret;

/// How models are had from the hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hub {
    /// HF_ENDPOINT: the hub, or a mirror.
    pub endpoint: String,
    /// HF_TOKEN, or what the token file has.
    pub token: Option<Secret>,
    /// HF_HUB_CACHE, or the folder `hub` in HF_HOME; None if the user has no home.
    pub cache_dir: Option<PathBuf>,
    /// HF_HUB_OFFLINE.
    pub offline: bool,
}

impl Default for Hub {
    /// With an empty environment.
    fn default() -> Self {
        Self { endpoint: "https://huggingface.co".to_owned(), token: None, cache_dir: None, offline: false }
    }
}

impl Hub {
    /// Reads the token file only if `source`, what `--model` says, is on the hub.
    pub(crate) fn new(env: &[(String, String)], source: Option<&str>) -> Result<Self, ConfigError> {
        let var = |wanted: &str| {
            let value = env.iter().find(|(name, _)| name == wanted).map(|(_, value)| value.trim());
            value.filter(|value| !value.is_empty())
        };
        let user = || Some(Path::new(var("HOME")?).join(".cache"));
        let home = var("HF_HOME").map(PathBuf::from).or_else(|| {
            let cache = var("XDG_CACHE_HOME").map(PathBuf::from).or_else(user)?;
            Some(cache.join("huggingface"))
        });
        let token_file =
            var("HF_TOKEN_PATH").map(PathBuf::from).or_else(|| Some(home.as_ref()?.join("token")));
        let token = match (var("HF_TOKEN"), token_file) {
            (Some(token), _) => Some(Secret::new(token)),
            (None, Some(path)) if source.is_some_and(|source| source.starts_with("hf:")) => read(&path)?,
            _ => None,
        };
        let default = Self::default();
        let truths = ["1", "true", "yes", "on"];
        Ok(Self {
            endpoint: var("HF_ENDPOINT").map_or(default.endpoint, str::to_owned),
            token,
            cache_dir: var("HF_HUB_CACHE").map(PathBuf::from).or_else(|| Some(home?.join("hub"))),
            offline: var("HF_HUB_OFFLINE").is_some_and(|v| truths.contains(&v.to_ascii_lowercase().as_str())),
        })
    }
}

fn read(path: &Path) -> Result<Option<Secret>, ConfigError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text.trim()).filter(|text| !text.is_empty()).map(Secret::new)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(ConfigError::Token { path: path.to_owned(), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hub(env: &[(&str, &str)], source: &str) -> Hub {
        let env: Vec<_> = env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Hub::new(&env, Some(source)).unwrap()
    }

    #[test]
    fn the_variables_of_hugging_face_are_read() {
        assert_eq!(hub(&[], "hf:o/r"), Hub::default());
        let all = [
            ("HOME", "/nonexistent"),
            ("HF_TOKEN", " hf_s3cret\n"),
            ("HF_ENDPOINT", "http://mirror:8080"),
            ("HF_HUB_OFFLINE", "TRUE"),
        ];
        let hub = hub(&all, "m.gguf");
        assert_eq!(hub.token, Some(Secret::new("hf_s3cret")));
        assert_eq!((hub.endpoint.as_str(), hub.offline), ("http://mirror:8080", true));
        assert!(!format!("{hub:?}").contains("s3cret"));
    }

    #[test]
    fn the_cache_is_where_other_tools_have_it() {
        let check = |env: &[(&str, &str)], folder: &str| {
            assert_eq!(hub(env, "m.gguf").cache_dir.as_deref(), Some(Path::new(folder)));
        };
        check(&[("HOME", "/u")], "/u/.cache/huggingface/hub");
        check(&[("HOME", "/u"), ("XDG_CACHE_HOME", "/c")], "/c/huggingface/hub");
        check(&[("HOME", "/u"), ("XDG_CACHE_HOME", "/c"), ("HF_HOME", "/h")], "/h/hub");
        check(&[("HF_HOME", "/h"), ("HF_HUB_CACHE", "/k")], "/k");
        for off in ["0", "", "no"] {
            assert!(!hub(&[("HF_HUB_OFFLINE", off)], "m.gguf").offline);
        }
    }

    #[test]
    fn the_token_file_is_read_when_it_is_needed() {
        let folder = std::env::temp_dir().join(format!("frugal-hub-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("token"), "hf_file\n").unwrap();
        let home = ("HF_HOME", folder.to_str().unwrap());
        let path = ("HF_TOKEN_PATH", "/nonexistent/token");
        assert_eq!(hub(&[home], "hf:o/r").token, Some(Secret::new("hf_file")));
        assert_eq!(hub(&[home], "m.gguf").token, None);
        assert_eq!(hub(&[home, ("HF_TOKEN", "hf_env")], "hf:o/r").token, Some(Secret::new("hf_env")));
        assert_eq!(hub(&[home, path], "hf:o/r").token, None);
        fs::remove_file(folder.join("token")).unwrap();
        fs::create_dir(folder.join("token")).unwrap();
        let env = [("HF_HOME".to_owned(), folder.to_str().unwrap().to_owned())];
        let error = Hub::new(&env, Some("hf:o/r")).unwrap_err().to_string();
        assert!(error.starts_with("cannot read the Hugging Face token file "), "{error}");
        fs::remove_dir_all(&folder).unwrap();
    }
}
