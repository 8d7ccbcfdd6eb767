//! A cheap identity of a model file.

use sha2::{Digest, Sha256};

use super::TensorInfo;

/// Tensors up to this size are hashed whole.
const WHOLE_MAX: usize = 64 << 10;
/// Of larger ones, this many pages.
const PAGES: usize = 8;
const PAGE: usize = 4 << 10;

/// See [`super::Gguf::digest`].
pub(super) fn digest(header: &[u8], file: &[u8], tensors: &[TensorInfo]) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(b"frugal model 1");
    hash.update((file.len() as u64).to_le_bytes());
    hash.update((header.len() as u64).to_le_bytes());
    hash.update(header);
    for tensor in tensors {
        // The header gives every length, so that the concatenation is unambiguous.
        let data = &file[tensor.range.clone()];
        if data.len() <= WHOLE_MAX {
            hash.update(data);
        } else {
            for page in 0..PAGES {
                let at = (data.len() - PAGE) / (PAGES - 1) * page;
                let at = if page == PAGES - 1 { data.len() - PAGE } else { at };
                hash.update(&data[at..at + PAGE]);
            }
        }
    }
    hash.finalize().into()
}
