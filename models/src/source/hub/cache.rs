//! The cache folder that all Hugging Face tools share.
//!
//! ```text
//! models--OWNER--REPO/refs/REVISION             the commit that a branch or tag was
//! models--OWNER--REPO/snapshots/COMMIT/FILE     a link to the file's content
//! models--OWNER--REPO/blobs/SHA256              the content, complete and checked; SHA256.incomplete until then
//! models--OWNER--REPO/frugal/COMMIT.json        ours: what else the repository has, so that a choice can be repeated
//! .locks/models--OWNER--REPO/SHA256.lock        held while a blob is made, by other tools too
//! ```

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use super::HubError;
use super::listing::{Listing, Remote};
use super::reference::is_commit;
use crate::atomic::{self, WriteError};

/// Most files of a snapshot that are looked at.
const NAMES_MAX: usize = 10_000;

/// A repository's part of the cache.
pub(super) struct Cache {
    folder: PathBuf,
    locks: PathBuf,
}

impl Cache {
    /// `repo` is `owner/name`.
    pub(super) fn new(root: &Path, repo: &str) -> Self {
        let name = format!("models--{}", repo.replace('/', "--"));
        Self { folder: root.join(&name), locks: root.join(".locks").join(name) }
    }

    /// The commit that a revision is, as far as is known here.
    pub(super) fn commit(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.to_owned());
        }
        let commit = fs::read_to_string(self.folder.join("refs").join(revision)).ok()?;
        Some(commit.trim().to_owned()).filter(|commit| is_commit(commit))
    }

    pub(super) fn set_ref(&self, revision: &str, commit: &str) -> Result<(), HubError> {
        if is_commit(revision) {
            return Ok(());
        }
        put(&self.folder.join("refs").join(revision), commit.as_bytes())
    }

    /// Where a file of a commit is, or will be.
    pub(super) fn file(&self, commit: &str, name: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit).join(name)
    }

    /// Whether all of a file is here.
    pub(super) fn has(&self, commit: &str, file: &Remote) -> bool {
        fs::metadata(self.file(commit, &file.name))
            .is_ok_and(|data| data.is_file() && data.len() == file.size)
    }

    /// Names of the files of a commit that are here, in folders up to two deep.
    pub(super) fn names(&self, commit: &str) -> Vec<String> {
        fn walk(folder: &Path, prefix: &str, depth: u32, names: &mut Vec<String>) {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                let Ok(name) = entry.file_name().into_string() else { continue };
                let name = format!("{prefix}{name}");
                match fs::metadata(entry.path()) {
                    Ok(data) if data.is_file() && names.len() < NAMES_MAX => names.push(name),
                    Ok(data) if data.is_dir() && depth > 0 => {
                        walk(&entry.path(), &format!("{name}/"), depth - 1, names);
                    }
                    // A link to nothing, or something else.
                    _ => {}
                }
            }
        }
        let mut names = Vec::new();
        walk(&self.folder.join("snapshots").join(commit), "", 2, &mut names);
        names.sort();
        names
    }

    /// What the repository had at a commit, if we asked before.
    pub(super) fn listing(&self, commit: &str) -> Option<Listing> {
        let listing = Listing::reread(File::open(self.listing_path(commit)).ok()?)?;
        (listing.commit == commit).then_some(listing)
    }

    pub(super) fn set_listing(&self, listing: &Listing) -> Result<(), HubError> {
        put(&self.listing_path(&listing.commit), &listing.write())
    }

    fn listing_path(&self, commit: &str) -> PathBuf {
        self.folder.join("frugal").join(format!("{commit}.json"))
    }

    /// Where a complete content lies.
    pub(super) fn blob(&self, sha256: &str) -> PathBuf {
        self.folder.join("blobs").join(sha256)
    }

    /// Where it grows.
    pub(super) fn incomplete(&self, sha256: &str) -> PathBuf {
        self.folder.join("blobs").join(format!("{sha256}.incomplete"))
    }

    pub(super) fn has_blob(&self, file: &Remote) -> bool {
        fs::metadata(self.blob(&file.sha256)).is_ok_and(|data| data.is_file() && data.len() == file.size)
    }

    /// Waits for the right to make a blob, which goes with the value. `waiting` is called if another process has it.
    /// None where the file system has no locks: see [`super::download`].
    pub(super) fn lock(&self, sha256: &str, waiting: impl FnOnce()) -> Result<Option<File>, HubError> {
        make_folder(&self.locks)?;
        make_folder(&self.folder.join("blobs"))?;
        let path = self.locks.join(format!("{sha256}.lock"));
        let file = File::options().create(true).append(true).open(&path).map_err(failed(&path))?;
        let locked = match file.try_lock() {
            Err(TryLockError::WouldBlock) => {
                waiting();
                file.lock()
            }
            Err(TryLockError::Error(error)) => Err(error),
            Ok(()) => Ok(()),
        };
        match locked {
            Ok(()) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Ok(None),
            Err(error) => Err(failed(&path)(error)),
        }
    }

    /// Gives a complete, checked file its final name, unless another process has done so. It is on disk before its name is.
    pub(super) fn publish(&self, file: &Remote) -> Result<(), HubError> {
        let (blob, incomplete) = (self.blob(&file.sha256), self.incomplete(&file.sha256));
        // What has the name may be another's by now, and not complete.
        let whole = |found: u64| match found == file.size {
            true => Ok(()),
            false => Err(io::Error::other("another process is writing it")),
        };
        let renamed = fs::metadata(&incomplete)
            .and_then(|data| whole(data.len()))
            .and_then(|()| fs::rename(&incomplete, &blob));
        match renamed {
            Err(_) if self.has_blob(file) => return Ok(()),
            renamed => renamed.map_err(failed(&blob))?,
        }
        // Some file systems cannot sync a folder; the file is good anyway.
        if let Ok(folder) = File::open(self.folder.join("blobs")) {
            folder.sync_all().ok();
        }
        Ok(())
    }

    /// Links a file of a commit to its content, in place of whatever was there.
    pub(super) fn link(&self, commit: &str, file: &Remote) -> Result<(), HubError> {
        let path = self.file(commit, &file.name);
        let folder = path.parent().unwrap_or(&self.folder);
        make_folder(folder)?;
        let up = "../".repeat(2 + file.name.matches('/').count());
        let target = format!("{up}blobs/{}", file.sha256);
        let temporary = tempfile::Builder::new()
            .prefix(".frugal-")
            .make_in(folder, |path| link(&target, &self.blob(&file.sha256), path))
            .map_err(failed(&path))?;
        temporary.persist(&path).map_err(|e| failed(&path)(e.error))?;
        Ok(())
    }
}

/// A relative link, so that the cache can be moved.
#[cfg(unix)]
fn link(target: &str, _blob: &Path, at: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, at)
}

/// A second name, where links need a privilege.
#[cfg(not(unix))]
fn link(_target: &str, blob: &Path, at: &Path) -> io::Result<()> {
    fs::hard_link(blob, at)
}

fn make_folder(folder: &Path) -> Result<(), HubError> {
    fs::create_dir_all(folder).map_err(failed(folder))
}

/// Writes a small file, whole or not at all.
fn put(path: &Path, bytes: &[u8]) -> Result<(), HubError> {
    make_folder(path.parent().unwrap_or(path))?;
    let written = atomic::write(path, |out| io::Write::write_all(out, bytes).map_err(|e| out.failed(e)));
    written.map_err(|WriteError { path, source }| HubError::Write { path, source })
}

pub(super) fn failed(path: &Path) -> impl FnOnce(io::Error) -> HubError {
    move |source| HubError::Write { path: path.to_owned(), source }
}
