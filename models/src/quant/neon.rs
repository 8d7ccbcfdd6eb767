//! Products with NEON's dot products of bytes (`sdot`): four products of signed bytes are added to a 32-bit sum at once,
//! so codes meet activations as what they stand for, without a bias, and only whole sums need bounds: those of the
//! AVX2 kernels.
//!
//! A vector has 16 bytes, which is half a panel's vector: four rows. Each block is read twice, for rows 0-3 and for rows
//! 4-7, so that eight words of codes and what eight columns need stay in 32 registers.
//!
//! Absent on purpose: wide products; packing and encoding of their own, for the plain ones are compiled for NEON anyway.
//! Two instructions are assembly, because our oldest Rust has no stable intrinsics for them: `sdot` and `fcvtl`.

#![expect(unsafe_code, reason = "SIMD loads by pointer, and assembly")]

use std::arch::aarch64::*;
use std::arch::{asm, is_aarch64_feature_detected};

use super::act::{Q8X32_BYTES, Q8X32_D, Q8X32_SUM, Q8X256_BYTES, Q8X256_D, Q8X256_PAIRS, Q8X256_SUMS};
use super::block32::{self, Block32};
use super::block256::Block256;
use super::prefetch::{Ahead, prefetch};
use super::{PANEL, by_columns};

/// Whether this processor can run the kernels.
pub(super) fn available() -> bool {
    is_aarch64_feature_detected!("dotprod")
}

/// A format with blocks of 32. Pointers are to the first of four rows.
pub(super) trait Kernel32: Block32 {
    /// What the codes of four rows stand for, one vector for each word.
    ///
    /// # Safety
    /// `body` is readable for four rows of a panel block's body.
    unsafe fn values(body: *const u8) -> [int8x16_t; 8];

    /// A factor of four rows.
    ///
    /// # Safety
    /// `p` is readable for it.
    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn factor_of_rows(p: *const u8) -> float32x4_t {
        // SAFETY: the caller's promise.
        unsafe { halves(p) }
    }
}

/// A format with blocks of 256, whose panel block is a header and eight runs of 32 codes. Pointers `p` are to the block, of
/// which rows `4 * half..` are meant; `run` is to the first of four rows.
pub(super) trait Kernel256: Block256 {
    /// Bytes before the first run.
    const HEADER: usize;
    /// Bytes of a run.
    const RUN: usize = (PANEL * Self::FORMAT.block_bytes - Self::HEADER) / 8;
    /// Where d of eight rows lies.
    const D: usize;
    /// Where dmin lies, if there is one.
    const DMIN: usize = 0;

    /// What scales stand for: vector v has those of sub-blocks 4v to 4v + 3, byte `4 * (sub % 4) + row`. Beyond
    /// `SUBS` they may be anything.
    ///
    /// # Safety
    /// `p` is readable for the block.
    unsafe fn scales(p: *const u8, half: usize) -> [int8x16_t; 4];

    /// Mins, likewise; only asked for where there are some.
    ///
    /// # Safety
    /// `p` is readable for the block.
    #[inline]
    #[target_feature(enable = "neon")]
    unsafe fn mins(_p: *const u8, _half: usize) -> [int8x16_t; 4] {
        zeros()
    }

    /// What the codes of a run stand for, one vector for each word.
    ///
    /// # Safety
    /// `run` is readable for four rows.
    unsafe fn values(run: *const u8) -> [int8x16_t; 8];
}

/// A panel product of a format with blocks of 32.
pub(super) fn product32<B: Kernel32>(
    panels: &[u8],
    cols: usize,
    acts: &[&[u8]],
    next: &[u8],
    out: &mut [[f32; PANEL]],
) {
    let count = cols / B::FORMAT.block;
    assert!(available(), "no dot products of bytes on this processor");
    for (panel, next, out) in B::FORMAT.in_turn(panels, cols, acts, next, out) {
        // SAFETY: the processor has the features; `in_turn` asserted the lengths.
        unsafe { by_columns!(acts, tile32[B](panel.as_ptr(), next, count, acts, out)) }
    }
}

/// # Safety
/// The features; `p` is a panel of `count` blocks, so is each of the N `acts`; N results.
#[inline(never)]
#[target_feature(enable = "neon,dotprod")]
unsafe fn tile32<B: Kernel32, const N: usize>(
    p: *const u8,
    next: *const u8,
    count: usize,
    acts: &[&[u8]],
    out: &mut [[f32; PANEL]],
) {
    let bytes = PANEL * B::FORMAT.block_bytes;
    let mut x: [*const u8; N] = pointers(acts);
    let mut sums = [[vdupq_n_f32(0.0); N]; 2];
    let ahead = Ahead::new(p, next, count, bytes);
    for b in 0..count {
        // SAFETY: b < count, which bounds the panel and every column.
        unsafe {
            let p = p.add(b * bytes);
            prefetch(ahead.of(b), bytes);
            for (half, sums) in sums.iter_mut().enumerate() {
                let d = B::factor_of_rows(p.add(B::FACTOR_BYTES * 4 * half));
                let values = B::values(p.add(PANEL * block32::header::<B>() + 16 * half));
                for (&act, sum) in x.iter().zip(sums) {
                    let mut value = vmulq_f32(vcvtq_f32_s32(dot32(values, act)), d);
                    if B::FACTORS == 2 {
                        let m = B::factor_of_rows(p.add(B::FACTOR_BYTES * (PANEL + 4 * half)));
                        value = vfmaq_n_f32(value, m, single(act.add(Q8X32_SUM)));
                    }
                    *sum = vfmaq_n_f32(*sum, value, single(act.add(Q8X32_D)));
                }
            }
            for x in &mut x {
                *x = x.add(Q8X32_BYTES);
            }
        }
    }
    store(sums, out);
}

/// A panel product of a format with blocks of 256.
pub(super) fn product256<K: Kernel256>(
    panels: &[u8],
    cols: usize,
    acts: &[&[u8]],
    next: &[u8],
    out: &mut [[f32; PANEL]],
) {
    const { assert!(K::HEADER + 8 * K::RUN == PANEL * K::FORMAT.block_bytes) };
    let count = cols / K::FORMAT.block;
    assert!(available(), "no dot products of bytes on this processor");
    for (panel, next, out) in K::FORMAT.in_turn(panels, cols, acts, next, out) {
        // SAFETY: the processor has the features; `in_turn` asserted the lengths.
        unsafe { by_columns!(acts, tile256[K](panel.as_ptr(), next, count, acts, out)) }
    }
}

/// # Safety
/// As [`tile32`].
#[inline(never)]
#[target_feature(enable = "neon,dotprod")]
unsafe fn tile256<K: Kernel256, const N: usize>(
    p: *const u8,
    next: *const u8,
    count: usize,
    acts: &[&[u8]],
    out: &mut [[f32; PANEL]],
) {
    let bytes = PANEL * K::FORMAT.block_bytes;
    let mut x: [*const u8; N] = pointers(acts);
    let mut sums = [[vdupq_n_f32(0.0); N]; 2];
    let ahead = Ahead::new(p, next, count, bytes);
    for b in 0..count {
        // SAFETY: b < count, which bounds the panel and every column.
        unsafe {
            let p = p.add(b * bytes);
            for (half, sums) in sums.iter_mut().enumerate() {
                prefetch(ahead.of(b).wrapping_add(half * bytes / 2), bytes / 2);
                let isums = isums::<K, N>(p, half, &x);
                let (d, dmin) = (halves(p.add(K::D + 8 * half)), halves(p.add(K::DMIN + 8 * half)));
                for ((&act, isum), sum) in x.iter().zip(isums).zip(sums) {
                    let mut value = vmulq_f32(vcvtq_f32_s32(isum), d);
                    if K::MINS {
                        let msum = msum::<K>(K::mins(p, half), act);
                        value = vfmsq_f32(value, vcvtq_f32_s32(msum), dmin);
                    }
                    *sum = vfmaq_n_f32(*sum, value, single(act.add(Q8X256_D)));
                }
            }
            for x in &mut x {
                *x = x.add(Q8X256_BYTES);
            }
        }
    }
    store(sums, out);
}

/// For each column the sum of `scale * w * a` over a block's codes.
///
/// # Safety
/// `p` is a panel block, each of `acts` an activation block.
#[inline]
#[target_feature(enable = "neon,dotprod")]
unsafe fn isums<K: Kernel256, const N: usize>(
    p: *const u8,
    half: usize,
    acts: &[*const u8; N],
) -> [int32x4_t; N] {
    let mut isums = [vdupq_n_s32(0); N];
    // SAFETY: the caller's promise; all offsets lie within the blocks.
    unsafe {
        let mut scales = [[vdupq_n_s32(0); 4]; 4];
        for (scales, bytes) in scales.iter_mut().zip(K::scales(p, half)) {
            *scales = widen(bytes);
        }
        let scales = scales.as_flattened();
        for j in 0..8 {
            let values = K::values(p.add(K::HEADER + K::RUN * j + 16 * half));
            for (act, isum) in acts.iter().zip(&mut isums) {
                let act = act.add(32 * j);
                if K::SUBS == 8 {
                    *isum = vmlaq_s32(*isum, dot32(values, act), scales[j]);
                } else {
                    let [a, b, c, d, rest @ ..] = values;
                    *isum = vmlaq_s32(*isum, dot16(vdupq_n_s32(0), [a, b, c, d], act), scales[2 * j]);
                    let sum = dot16(vdupq_n_s32(0), rest, act.add(16));
                    *isum = vmlaq_s32(*isum, sum, scales[2 * j + 1]);
                }
            }
        }
    }
    isums
}

/// The sum of `min * a` over a block.
///
/// # Safety
/// `act` is an activation block.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn msum<K: Kernel256>(mins: [int8x16_t; 4], act: *const u8) -> int32x4_t {
    let zero = vdupq_n_s32(0);
    // SAFETY: sums and pair sums lie within the activation block.
    unsafe {
        if K::SUBS == 8 {
            return add_mins(zero, [mins[0], mins[1]], words(act.add(Q8X256_SUMS)));
        }
        // Pair sums are of 16 values, times -32.
        let sums = |first: usize| {
            let pairs = [0, 16].map(|at| vshrq_n_s16::<5>(words(act.add(Q8X256_PAIRS + 4 * first + at))));
            vnegq_s16(vpaddq_s16(pairs[0], pairs[1]))
        };
        add_mins(add_mins(zero, [mins[0], mins[1]], sums(0)), [mins[2], mins[3]], sums(8))
    }
}

/// `to` plus the mins of eight sub-blocks times their sums.
#[inline]
#[target_feature(enable = "neon")]
fn add_mins(to: int32x4_t, mins: [int8x16_t; 2], sums: int16x8_t) -> int32x4_t {
    // Two sub-blocks to a vector.
    let [a, c] = mins.map(|v| vmovl_s8(vget_low_s8(v)));
    let [b, d] = mins.map(|v| vmovl_high_s8(v));
    let to = vmlal_laneq_s16::<0>(to, vget_low_s16(a), sums);
    let to = vmlal_high_laneq_s16::<1>(to, a, sums);
    let to = vmlal_laneq_s16::<2>(to, vget_low_s16(b), sums);
    let to = vmlal_high_laneq_s16::<3>(to, b, sums);
    let to = vmlal_laneq_s16::<4>(to, vget_low_s16(c), sums);
    let to = vmlal_high_laneq_s16::<5>(to, c, sums);
    let to = vmlal_laneq_s16::<6>(to, vget_low_s16(d), sums);
    vmlal_high_laneq_s16::<7>(to, d, sums)
}

/// Products of eight words of four rows with 32 activations.
///
/// # Safety
/// `q` is readable for them.
#[inline]
#[target_feature(enable = "neon,dotprod")]
unsafe fn dot32(values: [int8x16_t; 8], q: *const u8) -> int32x4_t {
    let [a, b, c, d, rest @ ..] = values;
    // SAFETY: the caller's promise.
    unsafe { dot16(dot16(vdupq_n_s32(0), [a, b, c, d], q), rest, q.add(16)) }
}

/// `sum` plus the products of four words of four rows with 16 activations.
///
/// # Safety
/// `q` is readable for them.
#[inline]
#[target_feature(enable = "neon,dotprod")]
unsafe fn dot16(sum: int32x4_t, values: [int8x16_t; 4], q: *const u8) -> int32x4_t {
    // SAFETY: the caller's promise.
    let q = vreinterpretq_s8_u8(unsafe { load(q) });
    let sum = sdot::<0>(sum, values[0], q);
    let sum = sdot::<1>(sum, values[1], q);
    let sum = sdot::<2>(sum, values[2], q);
    sdot::<3>(sum, values[3], q)
}

/// `sum` plus, in each lane, four products of bytes of `w` with word `WORD` of `q`.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn sdot<const WORD: i32>(sum: int32x4_t, w: int8x16_t, q: int8x16_t) -> int32x4_t {
    let mut sum = sum;
    // SAFETY: the processor has the instruction, which touches no memory and no flags.
    unsafe {
        asm!(
            "sdot {sum:v}.4s, {w:v}.16b, {q:v}.4b[{word}]",
            sum = inout(vreg) sum,
            w = in(vreg) w,
            q = in(vreg) q,
            word = const WORD,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sum
}

/// Four half-precision values from `p`.
///
/// # Safety
/// `p` is readable for 8 bytes.
#[inline]
#[target_feature(enable = "neon")]
pub(super) unsafe fn halves(p: *const u8) -> float32x4_t {
    // SAFETY: the caller's promise; loads of bytes may be unaligned.
    let halves = unsafe { vld1_u8(p) };
    let singles;
    // SAFETY: every arm64 processor has the instruction, which is exact and touches no memory.
    unsafe {
        asm!(
            "fcvtl {singles:v}.4s, {halves:v}.4h",
            singles = lateout(vreg) singles,
            halves = in(vreg) halves,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    singles
}

/// 16 bytes from `p`.
///
/// # Safety
/// `p` is readable for them.
#[inline]
#[target_feature(enable = "neon")]
pub(super) unsafe fn load(p: *const u8) -> uint8x16_t {
    // SAFETY: the caller's promise; loads of bytes may be unaligned.
    unsafe { vld1q_u8(p) }
}

/// Eight 16-bit values from `p`.
///
/// # Safety
/// `p` is readable for 16 bytes.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn words(p: *const u8) -> int16x8_t {
    // SAFETY: the caller's promise.
    vreinterpretq_s16_u8(unsafe { load(p) })
}

/// A single-precision value from `p`.
///
/// # Safety
/// `p` is readable for 4 bytes.
#[inline]
#[target_feature(enable = "neon")]
pub(super) unsafe fn single(p: *const u8) -> f32 {
    // SAFETY: the caller's promise; the read may be unaligned.
    unsafe { p.cast::<f32>().read_unaligned() }
}

/// Low four bits of each byte, and the high ones.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn nibbles(v: uint8x16_t) -> [uint8x16_t; 2] {
    [vandq_u8(v, vdupq_n_u8(15)), vshrq_n_u8::<4>(v)]
}

/// Codes of four rows in four vectors of nibbles.
///
/// # Safety
/// `body` is readable for four rows of four vectors.
#[inline]
#[target_feature(enable = "neon")]
pub(super) unsafe fn decode_nibbles(body: *const u8) -> [uint8x16_t; 8] {
    let mut codes = [vdupq_n_u8(0); 8];
    for (v, pair) in codes.as_chunks_mut().0.iter_mut().enumerate() {
        // SAFETY: v < 4.
        *pair = nibbles(unsafe { load(body.add(32 * v)) });
    }
    codes
}

/// `codes` with bit i of each byte of `fifths` as fifth bits of word i.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn with_fifths(codes: [uint8x16_t; 8], fifths: uint8x16_t) -> [uint8x16_t; 8] {
    let shifted = [
        vshlq_n_u8::<4>(fifths),
        vshlq_n_u8::<3>(fifths),
        vshlq_n_u8::<2>(fifths),
        vshlq_n_u8::<1>(fifths),
        fifths,
        vshrq_n_u8::<1>(fifths),
        vshrq_n_u8::<2>(fifths),
        vshrq_n_u8::<3>(fifths),
    ];
    let mut codes = codes;
    for (code, bits) in codes.iter_mut().zip(shifted) {
        *code = vorrq_u8(*code, vandq_u8(bits, vdupq_n_u8(0x10)));
    }
    codes
}

/// `code - bias` of each.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn less<const N: usize>(codes: [uint8x16_t; N], bias: u8) -> [int8x16_t; N] {
    codes.map(|code| vreinterpretq_s8_u8(vsubq_u8(code, vdupq_n_u8(bias))))
}

/// `values[code]` of each.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn look_up(values: &[i8; 16], codes: [uint8x16_t; 8]) -> [int8x16_t; 8] {
    // SAFETY: sixteen bytes are readable.
    let values = unsafe { vld1q_s8(values.as_ptr()) };
    codes.map(|code| vqtbl1q_s8(values, code))
}

/// Four rows' sixteen 6-bit values in three vectors, as [`panel_sixes`](super::block256::panel_sixes) has them: values 0-3,
/// 4-7, 8-11 and 12-15.
///
/// # Safety
/// `p` is readable for four rows of three vectors.
#[inline]
#[target_feature(enable = "neon")]
pub(super) unsafe fn sixes(p: *const u8) -> [uint8x16_t; 4] {
    // SAFETY: the caller's promise.
    let [a, b, c] = unsafe { [load(p), load(p.add(32)), load(p.add(64))] };
    let six = |v| vandq_u8(v, vdupq_n_u8(63));
    let upper = vorrq_u8(
        vshrq_n_u8::<6>(a),
        vorrq_u8(
            vandq_u8(vshrq_n_u8::<4>(b), vdupq_n_u8(0x0c)),
            vandq_u8(vshrq_n_u8::<2>(c), vdupq_n_u8(0x30)),
        ),
    );
    [six(a), six(b), six(c), upper]
}

/// Sixteen bytes in order.
#[inline]
#[target_feature(enable = "neon")]
fn widen(bytes: int8x16_t) -> [int32x4_t; 4] {
    let (low, high) = (vmovl_s8(vget_low_s8(bytes)), vmovl_high_s8(bytes));
    [vmovl_s16(vget_low_s16(low)), vmovl_high_s16(low), vmovl_s16(vget_low_s16(high)), vmovl_high_s16(high)]
}

/// Vectors of nothing.
#[inline]
#[target_feature(enable = "neon")]
pub(super) fn zeros<const N: usize>() -> [int8x16_t; N] {
    [vdupq_n_s8(0); N]
}

fn pointers<const N: usize>(acts: &[&[u8]]) -> [*const u8; N] {
    let mut pointers = [std::ptr::null(); N];
    for (pointer, act) in pointers.iter_mut().zip(acts) {
        *pointer = act.as_ptr();
    }
    pointers
}

/// The sums of rows 0-3 and of rows 4-7 as results.
#[inline]
#[target_feature(enable = "neon")]
fn store<const N: usize>(sums: [[float32x4_t; N]; 2], out: &mut [[f32; PANEL]]) {
    let [first, second] = sums;
    for (out, (first, second)) in out.iter_mut().zip(first.into_iter().zip(second)) {
        // SAFETY: a result is eight values.
        unsafe {
            vst1q_f32(out.as_mut_ptr(), first);
            vst1q_f32(out.as_mut_ptr().add(4), second);
        }
    }
}
