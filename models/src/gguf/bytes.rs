//! The bytes of a model file, mapped or in memory.
#![expect(unsafe_code, reason = "mapping a file")]

use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;

use super::GgufError;

/// Bytes that stay where they are, for as long as anyone has them.
#[derive(Clone, Debug)]
pub(crate) enum Bytes {
    Mapped(Arc<Mmap>),
    Owned(Arc<Vec<u8>>),
}

impl Bytes {
    /// Maps a regular file for reading.
    pub(super) fn map(path: &Path) -> Result<Self, GgufError> {
        let io = |source| GgufError::Io { path: path.to_owned(), source };
        // Before opening: a named pipe would block, a device could do anything.
        if !std::fs::metadata(path).map_err(io)?.is_file() {
            return Err(GgufError::NotAFile { path: path.to_owned() });
        }
        let file = File::open(path).map_err(io)?;
        // SAFETY: the mapping is read-only, but shared: what others write into the file shows in it. Its bytes are only ever
        // read as numbers for which every bit pattern is valid, and whatever must stay as it was checked (names, texts, the
        // tensor table) is copied before it is looked at. What remains is the operator's part: whoever may write to a model
        // file while it is served can change what the model computes, and truncating it ends the process (see
        // `signals`). Replace a model file by renaming a new one over it, which leaves the mapping whole.
        let map = unsafe { Mmap::map(&file) }.map_err(io)?;
        // Only a wish: where the file system's cache has huge pages, it then reads ahead in them, and packed weights are used in them.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        Ok(Self::Mapped(Arc::new(map)))
    }

    /// Gives back the memory that holds what was read so far of a range; reading it again fetches it again.
    pub(crate) fn release(&self, range: Range<usize>) {
        #[cfg(target_os = "linux")]
        if let Self::Mapped(map) = self {
            let len = range.end.min(map.len()).saturating_sub(range.start);
            // SAFETY: the mapping is shared with the file and never written to, so dropped pages come back as they were.
            // If the system will not, they stay.
            let _ =
                unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.start, len) };
        }
        #[cfg(not(target_os = "linux"))]
        let _ = range;
    }
}

impl std::ops::Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Owned(bytes) => bytes,
        }
    }
}
