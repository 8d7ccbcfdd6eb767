//! Asking for cache lines before they are read.

/// Bytes of a cache line.
const LINE: usize = 64;

/// Asks for the lines of `bytes` from `p`, which may be anywhere: a prefetch never faults.
#[cfg_attr(
    any(target_arch = "x86_64", target_arch = "aarch64"),
    expect(unsafe_code, reason = "one instruction per architecture")
)]
#[inline(always)]
pub fn prefetch(p: *const u8, bytes: usize) {
    let mut at = 0;
    while at < bytes {
        let line = p.wrapping_add(at);
        // SAFETY: every x86-64 has the instruction, and it faults nowhere.
        #[cfg(target_arch = "x86_64")]
        unsafe {
            std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(line.cast());
        }
        // SAFETY: the instruction changes nothing but the cache, and it faults nowhere.
        #[cfg(target_arch = "aarch64")]
        unsafe {
            std::arch::asm!("prfm pldl1keep, [{line}]", line = in(reg) line, options(nostack, preserves_flags, readonly));
        }
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        let _ = line;
        at += LINE;
    }
}

/// How far ahead of its reads a kernel asks for weights, in bytes. At 25 GB/s a core 4 KiB are 160 ns: a memory's latency.
/// (One column of Q4_K, Q6_K and Q4_1 on two cores of Zen 4: 44 to 47 GB/s with 1 to 1.5 KiB, 48 to 51 with 3 to 6.)
const AHEAD: usize = 4096;

/// What a kernel asks for while it goes through a panel's blocks: those [`AHEAD`] of it, which near the end are the first of
/// what is read next. Panels may be shorter than that; then it is the block at the same place of the next one. So no line is asked
/// for that is not read, and a list of short panels all over memory streams as one long panel does.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[derive(Clone, Copy)]
pub(super) struct Ahead {
    panel: *const u8,
    next: *const u8,
    count: usize,
    distance: usize,
    bytes: usize,
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
impl Ahead {
    /// Of a panel of `count` blocks, `bytes` each.
    #[inline(always)]
    pub(super) fn new(panel: *const u8, next: *const u8, count: usize, bytes: usize) -> Self {
        Self { panel, next, count, distance: count.min(AHEAD.div_ceil(bytes)), bytes }
    }

    /// What is asked for at block `block`; it may be anywhere.
    #[inline(always)]
    pub(super) fn of(self, block: usize) -> *const u8 {
        let ahead = block + self.distance;
        if ahead < self.count {
            self.panel.wrapping_add(ahead * self.bytes)
        } else {
            self.next.wrapping_add((ahead - self.count) * self.bytes)
        }
    }
}

/// Asks for what lies [`AHEAD`] of the `bytes` from `p`: for products that have no next panel.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(super) fn prefetch_ahead(p: *const u8, bytes: usize) {
    prefetch(p.wrapping_add(AHEAD), bytes);
}
