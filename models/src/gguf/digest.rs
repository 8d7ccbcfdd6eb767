//! A cheap identity of a model.

use sha2::{Digest, Sha256};

use super::{Part, TensorInfo};

/// Tensors up to this size are hashed whole.
const WHOLE_MAX: usize = 64 << 10;
/// Of larger ones, this many pages.
const PAGES: usize = 8;
const PAGE: usize = 4 << 10;

/// See [`super::Gguf::digest`].
pub(super) fn digest(parts: &[Part], tensors: &[TensorInfo]) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(b"frugal model 1");
    for (index, Part { bytes: file, header, .. }) in parts.iter().enumerate() {
        hash.update((file.len() as u64).to_le_bytes());
        hash.update((header.len() as u64).to_le_bytes());
        hash.update(header);
        for tensor in tensors.iter().filter(|tensor| tensor.part == index) {
            // The header gives every length, so that the concatenation is unambiguous.
            sample(&mut hash, &file[tensor.range.clone()]);
        }
    }
    hash.finalize().into()
}

fn sample(hash: &mut Sha256, data: &[u8]) {
    if data.len() <= WHOLE_MAX {
        return hash.update(data);
    }
    for page in 0..PAGES {
        let at = (data.len() - PAGE) / (PAGES - 1) * page;
        let at = if page == PAGES - 1 { data.len() - PAGE } else { at };
        hash.update(&data[at..at + PAGE]);
    }
}
