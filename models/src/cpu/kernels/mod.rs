//! What the CPU backend computes beside products of weights: element by element, and attention over the rows of pages.
//!
//! Law: every function has one definition and the same bits by every instruction set; the modules say how each sum is ordered.
//! An `isa` that the processor lacks is a panic.
//!
//! Absent on purpose: threads, and whose a row is.

#[cfg_attr(
    target_arch = "x86_64",
    expect(unsafe_code, reason = "the same code compiled per instruction set")
)]
pub mod few;
#[cfg_attr(target_arch = "x86_64", expect(unsafe_code, reason = "vector instructions"))]
pub mod lanes;
#[cfg_attr(
    target_arch = "x86_64",
    expect(unsafe_code, reason = "the same code compiled per instruction set")
)]
pub mod math;
pub mod page;
#[cfg(test)]
mod tests;
#[cfg_attr(
    target_arch = "x86_64",
    expect(unsafe_code, reason = "the same code compiled per instruction set")
)]
pub mod tiles;
pub mod upcoming;
