//! What a repository has: names, lengths and checksums, as the hub's API describes them.

use std::io::Read;

use serde::{Deserialize, Serialize};

use super::HubError;
use super::reference::{is_commit, is_gguf, is_hex, is_path};

/// Most bytes of a description; the largest repositories take a few of them.
pub(super) const BYTES_MAX: u64 = 16 << 20;

/// The GGUF files of one commit, every field checked.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Listing {
    pub(super) commit: String,
    pub(super) files: Vec<Remote>,
}

/// A file of a repository.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Remote {
    pub(super) name: String,
    pub(super) size: u64,
    pub(super) sha256: String,
}

/// What we read of the hub's description.
#[derive(Deserialize)]
struct Info {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    size: u64,
    sha256: String,
}

impl Listing {
    /// Reads the hub's description.
    pub(super) fn read(json: &[u8]) -> Result<Self, HubError> {
        let info: Info = serde_json::from_slice(json).map_err(|e| problem(e.to_string()))?;
        let mut files = Vec::new();
        for Sibling { rfilename: name, lfs } in info.siblings {
            if !is_gguf(&name) {
                continue;
            }
            // Model files of any size are in LFS; another one has no checksum to hold it to.
            let Some(Lfs { size, sha256 }) = lfs else {
                tracing::warn!(file = ?name, "has no checksum on the hub and is left out");
                continue;
            };
            files.push(Remote { name, size, sha256 });
        }
        Self { commit: info.sha, files }.checked()
    }

    /// Reads what [`Self::write`] wrote; None if it is no such thing.
    pub(super) fn reread(file: impl Read) -> Option<Self> {
        let listing: Self = serde_json::from_reader(file.take(BYTES_MAX)).ok()?;
        listing.checked().ok()
    }

    pub(super) fn write(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("names and numbers are JSON")
    }

    fn checked(self) -> Result<Self, HubError> {
        if !is_commit(&self.commit) {
            return Err(problem(format!("{:?} is no commit", super::error::clean(&self.commit))));
        }
        for Remote { name, size, sha256 } in &self.files {
            if !is_path(name) {
                return Err(problem(format!("{:?} is no name of a file", super::error::clean(name))));
            }
            if sha256.len() != 64 || !is_hex(sha256) {
                return Err(problem(format!("{name} has no SHA-256")));
            }
            if *size > i64::MAX as u64 {
                return Err(problem(format!("{name} has {size} bytes")));
            }
        }
        Ok(self)
    }
}

fn problem(problem: String) -> HubError {
    HubError::Listing { problem }
}
