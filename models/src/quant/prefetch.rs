//! Asking for cache lines before they are read.

use super::AHEAD;

/// Bytes of a cache line.
const LINE: usize = 64;

/// Asks for the lines of `bytes` from `p`, which may be anywhere: a prefetch never faults.
#[cfg_attr(
    any(target_arch = "x86_64", target_arch = "aarch64"),
    expect(unsafe_code, reason = "one instruction per architecture")
)]
#[inline(always)]
pub(crate) fn prefetch(p: *const u8, bytes: usize) {
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

/// Asks for what lies [`AHEAD`] of the `bytes` from `p`.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[inline(always)]
pub(super) fn prefetch_ahead(p: *const u8, bytes: usize) {
    prefetch(p.wrapping_add(AHEAD), bytes);
}
