//! Models from the Hugging Face hub, or a server that speaks its protocol (HF_ENDPOINT).
//!
//! A file is asked for by the commit that the repository's description names, resumed where an earlier attempt
//! ended, and gets its final name in the cache only with the SHA-256 of that description. A revision that is in the
//! cache is not asked for again: a second start makes no request.
//!
//! The cache is the one that all Hugging Face tools share, with their layout and locks; a test reads it with the
//! crate `hf-hub`. Of that crate itself, version 0.5 checks no checksum, and version 1 brings an asynchronous runtime
//! and the Xet client; so the transfer is ours, over the HTTP client that version 0.5 uses.
//!
//! Absent on purpose: Xet's protocol (the hub serves the same bytes over HTTP), uploads, parallel connections.

mod cache;
mod choose;
mod client;
mod download;
mod error;
mod listing;
mod reference;

use std::path::PathBuf;

use self::cache::Cache;
pub use self::choose::ChoiceError;
use self::client::{Client, Limits};
pub use self::error::HubError;
use self::listing::{Listing, Remote};
use self::reference::Wanted;
pub(super) use self::reference::is_gguf;
pub use self::reference::{HubRef, RefError};
use super::{Progress, Stage};

/// Where the hub is and what is ours of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hub {
    /// `https://huggingface.co`, or a mirror.
    pub endpoint: String,
    /// Sent to the endpoint alone.
    pub token: Option<String>,
    /// The folder `hub` that Hugging Face tools share; None if the user has no home.
    pub cache: Option<PathBuf>,
    /// Use the cache alone.
    pub offline: bool,
}

/// The path of a model's first file in the cache, with all its parts beside it, downloaded if need be.
///
/// # Errors
/// If it is not there, not open to us, not what it should be, or the network or disk fails.
pub(super) fn fetch(
    reference: &HubRef,
    hub: &Hub,
    progress: &mut dyn FnMut(Progress),
) -> Result<PathBuf, HubError> {
    fetch_within(reference, hub, Limits::default(), progress)
}

fn fetch_within(
    reference: &HubRef,
    hub: &Hub,
    limits: Limits,
    progress: &mut dyn FnMut(Progress),
) -> Result<PathBuf, HubError> {
    let root = hub.cache.as_deref().ok_or(HubError::NoCache)?;
    let cache = Cache::new(root, &reference.repo);
    if let Some(path) = cached(&cache, reference, hub.offline) {
        return Ok(path);
    }
    if hub.offline {
        return Err(HubError::Offline { cache: root.to_owned() });
    }
    let client = Client::new(hub, reference, limits)?;
    let listing = client.listing()?;
    let files = choose(&listing.files, &reference.wanted)?;
    let total = files.iter().map(|file| file.size).fold(0, u64::saturating_add);
    let mut before = 0;
    for file in &files {
        let mut report = |stage, done: u64| {
            progress(match stage {
                Stage::Download => Progress { stage, done: before + done, total },
                _ => Progress { stage, done: 0, total: 0 },
            });
        };
        download::fetch(&client, &cache, &listing.commit, file, &mut report)?;
        cache.link(&listing.commit, file)?;
        before = before.saturating_add(file.size);
    }
    cache.set_listing(&listing)?;
    cache.set_ref(&reference.revision, &listing.commit)?;
    Ok(cache.file(&listing.commit, &files[0].name))
}

/// Names of the files that [`fetch`] would download, the first part first, if the hub describes the repository so.
///
/// # Errors
/// If the description is unusable, or no file is the one that is wanted.
pub fn wanted_files(reference: &HubRef, description: &[u8]) -> Result<Vec<String>, HubError> {
    let listing = Listing::read(description)?;
    let files = choose(&listing.files, &reference.wanted)?;
    Ok(files.into_iter().map(|file| file.name.clone()).collect())
}

fn choose<'a>(files: &'a [Remote], wanted: &Wanted) -> Result<Vec<&'a Remote>, ChoiceError> {
    let names = choose::choose(files.iter().map(|file| file.name.as_str()), wanted)?;
    let of = |name: &str| files.iter().find(|file| file.name == name).expect("it was chosen among them");
    Ok(names.into_iter().map(of).collect())
}

/// The path, if the cache has all of it.
///
/// With what the repository has at hand, the choice is the same as online. Without, as when another tool filled the
/// cache, what is explicitly named is looked for among the files that are here; and offline, whatever fits.
fn cached(cache: &Cache, reference: &HubRef, offline: bool) -> Option<PathBuf> {
    let commit = cache.commit(&reference.revision)?;
    if let Some(listing) = cache.listing(&commit) {
        let files = choose(&listing.files, &reference.wanted).ok()?;
        let here = files.iter().all(|file| cache.has(&commit, file));
        return here.then(|| cache.file(&commit, &files[0].name));
    }
    if reference.wanted == Wanted::Default && !offline {
        return None;
    }
    let names = cache.names(&commit);
    let files = choose::choose(names.iter().map(String::as_str), &reference.wanted).ok()?;
    Some(cache.file(&commit, files.first()?))
}

#[cfg(test)]
mod tests;
