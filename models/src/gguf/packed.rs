//! Files whose matrices are packed: they lie in the order in which the CPU backend's kernels read them, so that loading is mapping,
//! and servers on one machine share one copy of them.
//!
//! Everything else of such a file is GGUF as it ever was. A packed tensor has the dimensions of the original, panels of
//! [`PANEL`] rows instead of rows (see [`crate::quant`]; the last panel of a matrix filled up with zeros), and the number of its
//! format plus [`PACKED`]: other programs refuse it as a format they do not know. Two keys go with them: [`LAYOUT_KEY`], and
//! [`CHECKSUM_KEY`] with the CRC-32 (IEEE 802.3) of every tensor's data in the order of the table.

use crate::quant::{GgmlType, PANEL};

use super::{Gguf, GgufError, TensorInfo};

/// What the number of a packed format has more.
pub(crate) const PACKED: u32 = 1 << 16;
/// Version of the panels' layout; another one is refused.
pub(crate) const LAYOUT: u32 = 1;
/// Its key.
pub(crate) const LAYOUT_KEY: &str = "frugal.packed.layout";
/// Key of the checksums.
pub(crate) const CHECKSUM_KEY: &str = "frugal.packed.crc32";

/// The format that a number stands for, and whether the tensor is packed.
pub(super) fn decode(type_id: u32) -> (Option<GgmlType>, bool) {
    match type_id.checked_sub(PACKED).and_then(GgmlType::from_id) {
        Some(ty) => (Some(ty), true),
        None => (GgmlType::from_id(type_id), false),
    }
}

/// Bytes of a tensor's data; None if they overflow. Its rows are whole blocks.
pub(crate) fn bytes(ty: GgmlType, packed: bool, [cols, rows, more @ ..]: [u64; 4]) -> Option<u64> {
    let rows = if packed { rows.checked_next_multiple_of(PANEL as u64)? } else { rows };
    let blocks =
        more.iter().try_fold((cols / ty.block() as u64).checked_mul(rows)?, |n, &d| n.checked_mul(d))?;
    blocks.checked_mul(ty.block_bytes() as u64)
}

impl TensorInfo {
    /// Whether its data are panels: see [`super::packed`].
    pub fn is_packed(&self) -> bool {
        decode(self.type_id).1
    }
}

impl Gguf {
    /// Whether any tensor is packed.
    pub fn is_packed(&self) -> bool {
        self.tensors.iter().any(TensorInfo::is_packed)
    }

    /// For whoever needs rows.
    ///
    /// # Errors
    /// If a tensor is packed.
    pub fn rows_only(&self) -> Result<(), GgufError> {
        match self.tensors.iter().find(|tensor| tensor.is_packed()) {
            Some(tensor) => Err(GgufError::Packed { tensor: tensor.name.clone() }),
            None => Ok(()),
        }
    }

    /// Compares a packed file's data with their checksums, on so many threads. What is not packed has none.
    ///
    /// # Errors
    /// If they differ, and those of [`Gguf::packed_checksums`].
    pub fn verify(&self, threads: usize) -> Result<(), GgufError> {
        let wanted = self.packed_checksums()?;
        if wanted.is_empty() {
            return Ok(());
        }
        let checksums = self.checksums(threads);
        let differs =
            checksums.iter().zip(&wanted).position(|(&found, &wanted)| found != wanted.cast_unsigned());
        match differs {
            Some(at) => Err(GgufError::Checksum { tensor: self.tensors[at].name.clone() }),
            None => Ok(()),
        }
    }

    /// The checksums that a packed file's header has, one for each tensor; none of what is not packed. Reads no data.
    ///
    /// # Errors
    /// If the data lie in an order that this program does not know, or there is not a checksum for each.
    pub(crate) fn packed_checksums(&self) -> Result<Vec<i32>, GgufError> {
        if !self.is_packed() {
            return Ok(Vec::new());
        }
        let layout = self.u32(LAYOUT_KEY)?;
        if layout != LAYOUT {
            return Err(GgufError::Layout { layout, known: LAYOUT });
        }
        let wanted = self.i32_array(CHECKSUM_KEY)?;
        if wanted.len() != self.tensors.len() {
            return Err(GgufError::ChecksumCount { checksums: wanted.len(), tensors: self.tensors.len() });
        }
        Ok(wanted)
    }

    /// The CRC-32 of every tensor's data.
    fn checksums(&self, threads: usize) -> Vec<u32> {
        let of = |tensor: &TensorInfo| crc32fast::hash(&self.parts[tensor.part].bytes[tensor.range.clone()]);
        in_parallel(&self.tensors, threads, of)
    }
}

/// `of` each item, on so many threads, or those that the system gives; the caller's is one.
pub(crate) fn in_parallel<T: Sync, R: Send + Clone + Default>(
    items: &[T],
    threads: usize,
    of: impl Fn(&T) -> R + Sync,
) -> Vec<R> {
    in_parallel_on(items, threads.min(items.len()), std::thread::Builder::new, of)
}

fn in_parallel_on<T: Sync, R: Send + Clone + Default>(
    items: &[T],
    threads: usize,
    thread: impl Fn() -> std::thread::Builder,
    of: impl Fn(&T) -> R + Sync,
) -> Vec<R> {
    let next = std::sync::atomic::AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        loop {
            let at = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            let Some(item) = items.get(at) else { return done };
            done.push((at, of(item)));
        }
    };
    let mut results = vec![R::default(); items.len()];
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads).map_while(|_| thread().spawn_scoped(scope, work).ok()).collect();
        let mut done = work();
        for other in others {
            done.extend(other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        for (at, result) in done {
            results[at] = result;
        }
    });
    results
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_done_on_the_threads_that_there_are() {
        let items: Vec<u32> = (0..100).collect();
        let doubled: Vec<u32> = items.iter().map(|n| n * 2).collect();
        for threads in [0, 1, 3, usize::MAX] {
            assert_eq!(in_parallel(&items, threads, |n| n * 2), doubled, "{threads}");
        }
        // No system has room for such a stack.
        let none = || std::thread::Builder::new().stack_size(1 << 60);
        assert!(none().spawn(|| ()).is_err());
        assert_eq!(in_parallel_on(&items, 4, none, |n| n * 2), doubled);
        assert_eq!(in_parallel(&[], 4, |n: &u32| *n), [0; 0]);
    }
}
