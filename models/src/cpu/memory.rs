//! Where bytes live: huge-page friendly memory for weights, recycled buffers for activations.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError};

use memmap2::MmapMut;

/// Linux' huge page on x86-64 and most arm64.
pub(crate) const HUGE: usize = 2 << 20;

/// Zeros at first, aligned for huge pages, which are asked for.
#[derive(Debug)]
pub(super) struct Bytes {
    map: MmapMut,
    at: usize,
    len: usize,
}

impl Bytes {
    /// Fails where the system has no such memory.
    pub(super) fn new(len: usize) -> std::io::Result<Self> {
        let huge = len >= HUGE;
        let room = if huge { len.checked_add(HUGE) } else { Some(len.max(1)) };
        let map = MmapMut::map_anon(room.ok_or(std::io::ErrorKind::OutOfMemory)?)?;
        let at = if huge { map.as_ptr().align_offset(HUGE) } else { 0 };
        #[cfg(target_os = "linux")]
        if huge {
            // Only a wish; without huge pages all is the same, slower.
            let _ = map.advise_range(memmap2::Advice::HugePage, at, len);
        }
        Ok(Self { map, at, len })
    }
}

impl Deref for Bytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.map[self.at..self.at + self.len]
    }
}

impl DerefMut for Bytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.map[self.at..self.at + self.len]
    }
}

/// Keeps the buffers that tensors give back. It never holds more than were in use at one time.
#[derive(Debug)]
pub(super) struct Recycler<T>(Mutex<Vec<Vec<T>>>);

impl<T> Default for Recycler<T> {
    fn default() -> Self {
        Self(Mutex::new(Vec::new()))
    }
}

impl<T: Copy + Default> Recycler<T> {
    /// `len` values of any content.
    pub(super) fn take(self: &Arc<Self>, len: usize) -> Recycled<T> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // The smallest that is large enough, else the largest.
        let fits = kept.iter().enumerate().filter(|(_, v)| v.capacity() >= len);
        let best = fits.min_by_key(|(_, v)| v.capacity()).map(|(i, _)| i);
        let best = best.or_else(|| kept.iter().enumerate().max_by_key(|(_, v)| v.capacity()).map(|(i, _)| i));
        let mut values = best.map(|i| kept.swap_remove(i)).unwrap_or_default();
        drop(kept);
        // Never shortened, so that what is there is written once, not at every use.
        if values.len() < len {
            values.resize(len, T::default());
        }
        Recycled { values, len, home: Arc::clone(self) }
    }

    /// Values of all buffers that are back.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().map(Vec::len).sum()
    }

    /// `len` zeros.
    pub(super) fn zeros(self: &Arc<Self>, len: usize) -> Recycled<T> {
        let mut buffer = self.take(len);
        buffer.fill(T::default());
        buffer
    }
}

/// A buffer that goes back when dropped.
#[derive(Debug)]
pub(super) struct Recycled<T> {
    values: Vec<T>,
    len: usize,
    home: Arc<Recycler<T>>,
}

impl<T> Drop for Recycled<T> {
    fn drop(&mut self) {
        let values = std::mem::take(&mut self.values);
        self.home.0.lock().unwrap_or_else(PoisonError::into_inner).push(values);
    }
}

impl<T> Deref for Recycled<T> {
    type Target = [T];
    fn deref(&self) -> &[T] {
        &self.values[..self.len]
    }
}

impl<T> DerefMut for Recycled<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.values[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_memory_is_zero_and_aligned() {
        let mut bytes = Bytes::new(3 * HUGE + 5).unwrap();
        assert_eq!(bytes.len(), 3 * HUGE + 5);
        assert_eq!(bytes.as_ptr().align_offset(HUGE), 0);
        assert!(bytes.iter().all(|&b| b == 0));
        bytes[3 * HUGE + 4] = 7;
        assert_eq!(bytes.last(), Some(&7));
        assert!(Bytes::new(usize::MAX).is_err());
        assert!(Bytes::new(0).unwrap().is_empty());
    }

    #[test]
    fn buffers_come_back() {
        let home = Arc::new(Recycler::<f32>::default());
        let (a, b) = (home.take(100), home.take(10));
        let (at_a, at_b) = (a.as_ptr(), b.as_ptr());
        drop((a, b));
        let small = home.take(5);
        assert_eq!(small.as_ptr(), at_b);
        let large = home.zeros(60);
        assert_eq!(large.as_ptr(), at_a);
        assert!(large.len() == 60 && large.iter().all(|&x| x == 0.0));
    }
}
