//! One file: received in as many attempts as it takes, held to its checksum, then published.
//!
//! A lock keeps other processes away, but not where the file system has none, nor between machines that share a folder and not its
//! locks. So any number may write one partial file, and what they write at a place is the same: the checksum is of the bytes that one of
//! them found or wrote, each at its place in the file. Nobody cuts off what may be another's, or has been published since.

use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::path::Path;
use std::time::Instant;

use sha2::{Digest, Sha256};
use ureq::http::StatusCode;
use ureq::http::header::CONTENT_RANGE;

use super::cache::{Cache, failed};
use super::client::{Answer, Client, Failure, Limits, transport};
use super::listing::Remote;
use super::{HubError, Stage};

/// Read at once.
const CHUNK: usize = 256 << 10;

/// Makes sure that the cache has a file's content. `report` is told what is being done and how many bytes are here.
pub(super) fn fetch(
    client: &Client<'_>,
    cache: &Cache,
    commit: &str,
    file: &Remote,
    report: &mut dyn FnMut(Stage, u64),
) -> Result<(), HubError> {
    if cache.has_blob(file) {
        report(Stage::Download, file.size);
        return Ok(());
    }
    let _lock = cache.lock(&file.sha256, || report(Stage::Waiting, 0))?;
    if cache.has_blob(file) {
        report(Stage::Download, file.size);
        return Ok(());
    }
    let path = cache.incomplete(&file.sha256);
    let mut partial = Partial::open(&path, file.size).map_err(failed(&path))?;
    let resumed = partial.done > 0;
    tracing::info!(file = file.name, bytes = file.size, already = partial.done, "downloading");
    receive(client, commit, file, &path, &mut partial, report)?;
    if resumed && partial.sha256() != file.sha256 {
        // What was here before may have been bad: once more, all of it.
        partial.restart().map_err(failed(&path))?;
        receive(client, commit, file, &path, &mut partial, report)?;
    }
    let found = partial.sha256();
    if found != file.sha256 {
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(&path)(error)),
            _ => {}
        }
        return Err(HubError::Checksum { file: file.name.clone(), found, wanted: file.sha256.clone() });
    }
    partial.out.sync_all().map_err(failed(&path))?;
    cache.publish(file)
}

/// Completes `partial`.
fn receive(
    client: &Client<'_>,
    commit: &str,
    file: &Remote,
    path: &Path,
    partial: &mut Partial<File>,
    report: &mut dyn FnMut(Stage, u64),
) -> Result<(), HubError> {
    if partial.done == partial.size {
        return Ok(());
    }
    report(Stage::Download, partial.done);
    client.retrying(|| {
        let before = partial.done;
        let Answer { host, mut response } = client.file(commit, &file.name, before)?;
        let length = |found: &dyn ToString| HubError::Length {
            file: file.name.clone(),
            host: host.clone(),
            wanted: file.size,
            found: found.to_string(),
        };
        let skip = match response.status() {
            StatusCode::PARTIAL_CONTENT => {
                let range = response.headers().get(CONTENT_RANGE).and_then(|range| range.to_str().ok());
                let range = range.unwrap_or("nothing");
                let rest = format!("bytes {before}-{}/{}", partial.size - 1, partial.size);
                if range != rest {
                    return Err(Failure::again(length(&super::error::clean(range))));
                }
                0
            }
            StatusCode::RANGE_NOT_SATISFIABLE => return Err(Failure::again(length(&"less"))),
            // Without ranges, all comes again: what is here is as good.
            _ => match response.body().content_length() {
                Some(found) if found != partial.size => return Err(Failure::again(length(&found))),
                _ => before,
            },
        };
        let body = response.body_mut().as_reader();
        let stop = partial.fill(body, skip, &client.limits, &mut |done| report(Stage::Download, done));
        let error = match stop {
            Stop::Complete => return Ok(()),
            Stop::Full(source) => return Err(Failure::last(failed(path)(source))),
            Stop::Ended => HubError::Short { host, done: partial.done, wanted: partial.size },
            Stop::Broken(error) => transport(&host, error.into()),
            Stop::Slow => {
                let Limits { window, window_bytes: bytes, .. } = client.limits;
                HubError::Slow { host, bytes, seconds: window.as_secs() }
            }
        };
        let progress = partial.done - before >= client.limits.window_bytes;
        Err(Failure { error, again: Some(None), progress })
    })
}

/// Why receiving stopped.
pub(super) enum Stop {
    Complete,
    /// The body ended too early.
    Ended,
    /// It could not be read.
    Broken(io::Error),
    /// Too little came.
    Slow,
    /// It could not be written.
    Full(io::Error),
}

/// The beginning of a file.
pub(super) struct Partial<W> {
    /// Writes at `done`.
    out: W,
    hash: Sha256,
    /// At most `size`.
    pub(super) done: u64,
    size: u64,
}

impl Partial<File> {
    /// What an earlier attempt left, or nothing yet.
    pub(super) fn open(path: &Path, size: u64) -> io::Result<Self> {
        let mut options = File::options();
        options.read(true).write(true).create(true);
        // A link could lead anywhere.
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_NOFOLLOW);
        let mut partial = Self::new(options.open(path)?, size);
        if partial.out.metadata()?.len() > size {
            partial.out.set_len(size)?;
        }
        partial.done = io::copy(&mut (&partial.out).take(size), &mut partial.hash)?;
        Ok(partial)
    }

    /// What is there is written over.
    pub(super) fn restart(&mut self) -> io::Result<()> {
        self.out.rewind()?;
        (self.hash, self.done) = (Sha256::new(), 0);
        Ok(())
    }
}

impl<W: Write> Partial<W> {
    pub(super) fn new(out: W, size: u64) -> Self {
        Self { out, hash: Sha256::new(), done: 0, size }
    }

    pub(super) fn sha256(&self) -> String {
        self.hash.clone().finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Drops `skip` bytes of `body`, then appends it until the size is reached, whatever follows.
    pub(super) fn fill(
        &mut self,
        mut body: impl Read,
        mut skip: u64,
        limits: &Limits,
        report: &mut dyn FnMut(u64),
    ) -> Stop {
        let mut chunk = vec![0; CHUNK];
        let (mut begun, mut came) = (Instant::now(), 0);
        while self.done < self.size {
            let most = skip.saturating_add(self.size - self.done).min(CHUNK as u64) as usize;
            let bytes = match body.read(&mut chunk[..most]) {
                Ok(0) => return Stop::Ended,
                Ok(len) => &chunk[..len],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Stop::Broken(error),
            };
            came += bytes.len() as u64;
            let dropped = skip.min(bytes.len() as u64) as usize;
            skip -= dropped as u64;
            let bytes = &bytes[dropped..];
            if let Err(error) = self.out.write_all(bytes) {
                return Stop::Full(error);
            }
            self.hash.update(bytes);
            self.done += bytes.len() as u64;
            report(self.done);
            if self.done < self.size && begun.elapsed() >= limits.window {
                if came < limits.window_bytes {
                    return Stop::Slow;
                }
                (begun, came) = (Instant::now(), 0);
            }
        }
        Stop::Complete
    }
}
