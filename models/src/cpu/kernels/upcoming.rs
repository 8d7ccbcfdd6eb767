//! What will be read soon.

/// Asks for the lines of `values`, which will be read soon.
fn prefetch<T>(values: &[T]) {
    frugal_quant::prefetch(values.as_ptr().cast(), size_of_val(values));
}

/// What will be read soon, asked for a little at a time between computations: a core waits for so many lines at once, and more
/// would stop it.
pub struct Upcoming<'a> {
    bytes: &'a [u8],
    each: usize,
}

impl<'a> Upcoming<'a> {
    /// `bytes`, in so many turns.
    pub fn new(bytes: &'a [u8], turns: usize) -> Self {
        Self { bytes, each: bytes.len().div_ceil(turns.max(1)) }
    }

    /// Asks for the next part.
    #[inline(always)]
    pub fn turn(&mut self) {
        let (now, later) = self.bytes.split_at(self.each.min(self.bytes.len()));
        prefetch(now);
        self.bytes = later;
    }

    /// Asks for what is left: there may be fewer turns than were counted on.
    pub fn rest(self) {
        prefetch(self.bytes);
    }
}
