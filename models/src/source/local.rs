//! Model files that are here already: what a user may have given instead of one, and what to do about it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::hub::{HubRef, is_gguf};
use crate::gguf::{Gguf, PartName};

/// Most files of a folder that an error lists.
const LISTED_MAX: usize = 10;

/// What was given is no file.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// Neither file nor folder.
    #[error("there is no model file {}{}", path.display(), on_the_hub(path))]
    Missing {
        /// What was given.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A folder.
    #[error("{} is a folder; {advice}", path.display())]
    Folder {
        /// What was given.
        path: PathBuf,
        /// What to do, by what is in it.
        advice: String,
    },
}

/// What is not a language model, in a file that is well formed.
#[derive(Debug, thiserror::Error)]
#[error("{key} is {value}: {advice}")]
pub struct NotServable {
    /// Which metadata key says so.
    key: &'static str,
    /// What it says.
    value: String,
    /// What it is, and what to do.
    advice: &'static str,
}

/// The path, if it leads to something that is not a folder. What it is shows when it is opened.
pub(super) fn file(path: &Path) -> Result<PathBuf, LocalError> {
    match fs::metadata(path) {
        Err(source) => Err(LocalError::Missing { path: path.to_owned(), source }),
        Ok(data) if data.is_dir() => Err(LocalError::Folder { path: path.to_owned(), advice: advice(path) }),
        Ok(_) => Ok(path.to_owned()),
    }
}

/// What a path is called that is none: a repository's name or address, which is not looked for on the hub unasked.
fn on_the_hub(path: &Path) -> String {
    let text = path.to_str().unwrap_or_default();
    let address = ["https://huggingface.co/", "https://hf.co/", "huggingface.co/", "hf.co/"];
    let name = address.iter().find_map(|address| text.strip_prefix(address));
    // Behind an address there may be more than a name.
    let name = name.map_or(text.to_owned(), |rest| rest.split('/').take(2).collect::<Vec<_>>().join("/"));
    match HubRef::parse(&format!("hf:{name}")) {
        Some(Ok(reference)) if !is_gguf(&name) => format!(" (on the hub it is {reference})"),
        _ => String::new(),
    }
}

/// The file's name without extension, and without the number of a part.
pub(super) fn id(path: &Path) -> String {
    let part = path.file_name().and_then(|name| name.to_str()).and_then(PartName::parse);
    let stem = || path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    part.map_or_else(stem, |part| part.prefix.to_owned())
}

fn advice(folder: &Path) -> String {
    let mut names: Vec<String> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    let with = |ending: &str| names.iter().filter(|name| name.ends_with(ending)).cloned().collect::<Vec<_>>();
    let mut models = with(".gguf");
    models.retain(|name| PartName::parse(name).is_none_or(|part| part.no == 1));
    if models.is_empty() && !with(".safetensors").is_empty() {
        return "its safetensors must be converted to GGUF, or get a GGUF version of the model".to_owned();
    }
    if models.is_empty() {
        return "give a GGUF file".to_owned();
    }
    let more = models.len().saturating_sub(LISTED_MAX);
    models.truncate(LISTED_MAX);
    let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("give one of its files: {}{rest}", models.join(", "))
}

/// Whether a file is a language model at all: not one of the other things that are kept in GGUF files.
///
/// # Errors
/// If it is one of those.
pub fn servable(file: &Gguf) -> Result<(), NotServable> {
    const TYPE: &str = "general.type";
    const ARCHITECTURE: &str = "general.architecture";
    const PROJECTOR: &str = "this is the image projector of a model (mmproj); give the model's own file";
    const EMBEDDING: &str =
        "this is an embedding model, which has no next token; Frugal serves text generation";
    // What is no text is for those to refuse who need it.
    let text = |key: &str| file.opt_str(key).ok().flatten().unwrap_or_default();
    let (kind, architecture) = (text(TYPE), text(ARCHITECTURE));
    let (key, value, advice) = match (kind, architecture) {
        ("mmproj", _) => (TYPE, kind, PROJECTOR),
        (_, "clip") => (ARCHITECTURE, architecture, PROJECTOR),
        ("adapter", _) => (TYPE, kind, "this is a LoRA adapter; merge it into its model and give that"),
        ("imatrix", _) => {
            (TYPE, kind, "this is an importance matrix, made to quantize a model; give the model")
        }
        ("vocab", _) => (TYPE, kind, "this is a vocabulary without weights; give the model"),
        (_, name) if name.contains("bert") || name == "t5encoder" || name == "gemma-embedding" => {
            (ARCHITECTURE, name, EMBEDDING)
        }
        _ => return Ok(()),
    };
    Err(NotServable { key, value: value.to_owned(), advice })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gguf::{GgufWriter, Value};

    #[test]
    fn folders_and_absent_files_are_explained() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        let check = |wanted: &str| {
            assert_eq!(
                file(path).unwrap_err().to_string(),
                format!("{} is a folder; {wanted}", path.display())
            )
        };
        check("give a GGUF file");
        fs::write(path.join("model-00001-of-00002.safetensors"), "").unwrap();
        check("its safetensors must be converted to GGUF, or get a GGUF version of the model");
        for name in ["b-00001-of-00002.gguf", "b-00002-of-00002.gguf", "a.gguf"] {
            fs::write(path.join(name), "").unwrap();
        }
        check("give one of its files: a.gguf, b-00001-of-00002.gguf");
        for i in 0..20 {
            fs::write(path.join(format!("c{i:02}.gguf")), "").unwrap();
        }
        assert!(file(path).unwrap_err().to_string().ends_with("c07.gguf and 12 more"));
        let gone = path.join("gone.gguf");
        assert_eq!(
            file(&gone).unwrap_err().to_string(),
            format!("there is no model file {}", gone.display())
        );
        assert_eq!(file(&path.join("a.gguf")).unwrap(), path.join("a.gguf"));
    }

    #[test]
    fn what_looks_like_a_repository_is_told_how_to_ask_for_it() {
        for (given, hint) in [
            ("unsloth/Qwen3-GGUF", " (on the hub it is hf:unsloth/Qwen3-GGUF)"),
            ("unsloth/Qwen3-GGUF:Q4_K_M", " (on the hub it is hf:unsloth/Qwen3-GGUF:Q4_K_M)"),
            ("https://huggingface.co/o/r", " (on the hub it is hf:o/r)"),
            ("https://huggingface.co/o/r/tree/main", " (on the hub it is hf:o/r)"),
            ("hf.co/o/r:Q8_0", " (on the hub it is hf:o/r:Q8_0)"),
            ("models/gone.gguf", ""),
            ("/models/gone", ""),
            ("./gone", ""),
            ("gone", ""),
            ("a/b/c", ""),
            ("https://example.com/o/r", ""),
        ] {
            let error = file(Path::new(given)).unwrap_err().to_string();
            assert_eq!(error, format!("there is no model file {given}{hint}"));
        }
    }

    #[test]
    fn ids_are_names_without_extensions_and_numbers() {
        assert_eq!(id(Path::new("/m/Some-Q4_K_M.gguf")), "Some-Q4_K_M");
        assert_eq!(id(Path::new("Some-Q4_K_M-00001-of-00003.gguf")), "Some-Q4_K_M");
    }

    #[test]
    fn what_is_no_language_model_is_refused_by_name() {
        let check = |kind: Option<&str>, architecture: &str| {
            let mut writer = GgufWriter::new();
            writer.set("general.architecture", Value::String(architecture));
            if let Some(kind) = kind {
                writer.set("general.type", Value::String(kind));
            }
            let file = Gguf::from_bytes(writer.start(Vec::new()).unwrap().finish()).unwrap();
            servable(&file).map_err(|error| error.to_string())
        };
        for (kind, architecture) in
            [(None, "llama"), (Some("model"), "qwen3moe"), (None, "whatever"), (Some("x"), "y")]
        {
            assert_eq!(check(kind, architecture), Ok(()), "{architecture}");
        }
        for (kind, architecture, words) in [
            (Some("mmproj"), "clip", "general.type is mmproj: this is the image projector"),
            (None, "clip", "general.architecture is clip: this is the image projector"),
            (Some("adapter"), "llama", "general.type is adapter: this is a LoRA adapter"),
            (Some("model"), "nomic-bert", "general.architecture is nomic-bert: this is an embedding model"),
            (None, "bert", "general.architecture is bert: this is an embedding model"),
            (Some("imatrix"), "llama", "an importance matrix"),
        ] {
            let error = check(kind, architecture).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
    }
}
