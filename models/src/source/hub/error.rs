//! Why a model could not be had from the hub, and what the user can do about it.

use std::io;
use std::path::PathBuf;

use super::choose::ChoiceError;

/// Why a model could not be had from the hub. What the hub says is shown without control characters, and cut.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the fields are what the messages say")]
pub enum HubError {
    /// Not in the cache, and nothing else may be asked.
    #[error("HF_HUB_OFFLINE is set, and {} does not have it", cache.display())]
    Offline { cache: PathBuf },
    /// Neither HF_HUB_CACHE nor HF_HOME, XDG_CACHE_HOME or HOME.
    #[error("there is no folder to keep it in: set HF_HOME")]
    NoCache,
    /// HF_ENDPOINT is no address.
    #[error("HF_ENDPOINT is {endpoint:?}, but must be an address such as https://huggingface.co")]
    Endpoint { endpoint: String },
    /// A token with characters that a header cannot have.
    #[error("the Hugging Face token has characters that no token has: check HF_TOKEN and the token file")]
    Token,
    /// The network, or a server that does not keep to the protocol.
    #[error("cannot read from {host}")]
    Transport { host: String, source: Box<ureq::Error> },
    /// A status that says who may have it.
    #[error("{host} answered {status}{said}: {advice}")]
    Denied { host: String, status: u16, said: String, advice: String },
    /// Another status that is no answer.
    #[error("{host} answered {status}{said}")]
    Status { host: String, status: u16, said: String },
    /// A wait that is longer than anyone stays.
    #[error("{host} asks to wait {seconds} seconds; try again then, or set HF_TOKEN for higher limits")]
    Busy { host: String, seconds: u64 },
    /// Redirected in circles, to no address, or from https to http.
    #[error("{host} redirects {how}")]
    Redirect { host: String, how: &'static str },
    /// The description of a repository cannot be used.
    #[error("the hub's description of the repository is unusable: {problem}")]
    Listing { problem: String },
    /// No file is the one that is wanted.
    #[error(transparent)]
    Choice(#[from] ChoiceError),
    /// Another length than the hub's description says.
    #[error("{file} should have {wanted} bytes, but {host} says {found}")]
    Length { file: String, host: String, wanted: u64, found: String },
    /// The connection ended early.
    #[error("the connection to {host} ended after {done} of {wanted} bytes")]
    Short { host: String, done: u64, wanted: u64 },
    /// Hardly anything comes.
    #[error("{host} sends less than {bytes} bytes in {seconds} seconds")]
    Slow { host: String, bytes: u64, seconds: u64 },
    /// Not the file that was published.
    #[error(
        "{file} has the SHA-256 {found}, not {wanted}: it was changed on the way; nothing of it was kept"
    )]
    Checksum { file: String, found: String, wanted: String },
    /// The cache cannot be read or written: no permission, a full disk.
    #[error("cannot write {}", path.display())]
    Write { path: PathBuf, source: io::Error },
}

/// Most characters of what a server says that are shown.
const SAID_CHARS_MAX: usize = 200;

/// What a server says, fit for one line.
pub(super) fn clean(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(SAID_CHARS_MAX).collect()
}
