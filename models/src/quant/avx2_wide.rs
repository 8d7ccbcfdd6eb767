//! The loops in which wide AVX2 products spend their time, as assembly.
//!
//! Two panels meet up to five columns. A word is two loads of codes, and for each column a broadcast, two `vpmaddubsw` and two `vpaddw`; ten
//! sums, two vectors of codes and two pairs of products fill the sixteen registers. A column's products are added once the next
//! column's are under way, so no addition waits for the product before it. The compiler's loop was little longer (269 instructions for eight words
//! of five columns, here 244), but added products in trees whose parts leave the registers: 54 of them were to the stack. The tile is a
//! sixth faster so on a Zen 3.

#![expect(unsafe_code, reason = "assembly")]

use std::arch::asm;
use std::arch::x86_64::{__m256i, _mm256_set1_epi16};

use super::act::{Q8X32_BYTES, Q8X32_D, Q8X32_PAIRS, Q8X32_SUM, Q8X256_PAIRS};
use super::block256::Sums;
use super::{PANEL, block32, wide, wide32};

/// Most columns: their sums, the codes and the products fill the registers.
pub(super) const COLUMNS: usize = 5;

/// 32-bit sums of two panels for each column.
pub(super) type Isums = [[__m256i; 2]; COLUMNS];

/// The products of word `$i` of column `$x` with both panels' codes, which are in ymm10 and ymm11, in the pair of registers.
macro_rules! products {
    ($i:literal, $x:ident, ($p:literal $q:literal)) => {
        concat!(
            concat!("vpbroadcastd ymm", $q, ", [{", stringify!($x), "} + {at} + 4*", $i, "]\n"),
            concat!("vpmaddubsw ymm", $p, ", ymm10, ymm", $q, "\n"),
            concat!("vpmaddubsw ymm", $q, ", ymm11, ymm", $q, "\n"),
        )
    };
}

/// Adds a pair of products to sums `$a` and `$b`.
macro_rules! add {
    ($a:literal $b:literal, ($p:literal $q:literal)) => {
        concat!(
            concat!("vpaddw ymm", $a, ", ymm", $a, ", ymm", $p, "\n"),
            concat!("vpaddw ymm", $b, ", ymm", $b, ", ymm", $q, "\n"),
        )
    };
}

/// Both panels' codes of word `$i`.
macro_rules! codes {
    ($i:literal) => {
        concat!("vmovdqa ymm10, [{codes} + 64*", $i, "]\nvmovdqa ymm11, [{codes} + 64*", $i, " + 32]\n")
    };
}

/// Word `$i` of the columns, whose products go to the pairs of registers in turn; those of the column before are added after them.
macro_rules! word {
    ($i:literal, [], $now:tt, $then:tt, [($x:ident $c:literal $a:literal $b:literal) $($rest:tt)*]) => {
        concat!(codes!($i), products!($i, $x, $now), word!($i, [$a $b], $then, $now, [$($rest)*]))
    };
    ($i:literal, [$l:literal $m:literal], $now:tt, $then:tt, [($x:ident $c:literal $a:literal $b:literal) $($rest:tt)*]) => {
        concat!(products!($i, $x, $now), add!($l $m, $then), word!($i, [$a $b], $then, $now, [$($rest)*]))
    };
    ($i:literal, [$l:literal $m:literal], $now:tt, $then:tt, []) => { add!($l $m, $then) };
}

/// These words, one after the other.
macro_rules! words {
    ([$($i:literal)*], $columns:tt) => { concat!($(word!($i, [], (12 13), (14 15), $columns)),*) };
}

/// Word `$i` of a column starts its sums: with the products, or with those and the pair sums that make up for a bias.
macro_rules! first {
    ($i:literal plain, ($x:ident $c:literal $a:literal $b:literal)) => { products!($i, $x, ($a $b)) };
    ($i:literal biased256, ($x:ident $c:literal $a:literal $b:literal)) => {
        concat!(
            concat!("vpbroadcastd ymm14, [{", stringify!($x), "} + {pairs}]\n"),
            first!($i after_bias, ($x $c $a $b)),
        )
    };
    ($i:literal biased32, ($x:ident $c:literal $a:literal $b:literal)) => {
        concat!(
            concat!("vpbroadcastd ymm14, [{", stringify!($x), "} + {at} + {pairs}]\n"),
            "vpmullw ymm14, ymm14, [{constants} + 32]\n",
            first!($i after_bias, ($x $c $a $b)),
        )
    };
    ($i:literal after_bias, ($x:ident $c:literal $a:literal $b:literal)) => {
        concat!(
            products!($i, $x, (12 13)),
            concat!("vpaddw ymm", $a, ", ymm14, ymm12\nvpaddw ymm", $b, ", ymm14, ymm13\n"),
        )
    };
}

/// Sums times the scales, which are in ymm10 and ymm11.
macro_rules! scaled {
    (($x:ident $c:literal $a:literal $b:literal)) => {
        concat!("vpmaddwd ymm", $a, ", ymm", $a, ", ymm10\nvpmaddwd ymm", $b, ", ymm", $b, ", ymm11\n")
    };
}

/// Adds them to the sums at `$to`.
macro_rules! accumulate {
    ($to:literal, ($x:ident $c:literal $a:literal $b:literal)) => {
        concat!(
            concat!("vpaddd ymm", $a, ", ymm", $a, ", [{", $to, "} + 64*", $c, "]\n"),
            concat!("vpaddd ymm", $b, ", ymm", $b, ", [{", $to, "} + 64*", $c, " + 32]\n"),
        )
    };
}

/// Stores registers at `$to`.
macro_rules! store {
    ($to:literal, ($x:ident $c:literal $a:literal $b:literal)) => {
        concat!(
            concat!("vmovdqu [{", $to, "} + 64*", $c, "], ymm", $a, "\n"),
            concat!("vmovdqu [{", $to, "} + 64*", $c, " + 32], ymm", $b, "\n"),
        )
    };
}

/// `asm!` with these lines and operands; nothing is left in the vector registers.
macro_rules! assembly {
    ([$($x:ident)*], $($rest:tt)*) => {
        asm!(
            $($rest)*
            $($x = in(reg) $x,)*
            out("ymm0") _, out("ymm1") _, out("ymm2") _, out("ymm3") _, out("ymm4") _, out("ymm5") _, out("ymm6") _, out("ymm7") _,
            out("ymm8") _, out("ymm9") _, out("ymm10") _, out("ymm11") _, out("ymm12") _, out("ymm13") _, out("ymm14") _, out("ymm15") _,
            options(nostack),
        )
    };
}

/// `$block` for three, four or five columns.
macro_rules! by_number {
    ($acts:expr, $block:ident $args:tt) => {
        match *$acts {
            [x0, x1, x2, x3, x4] => {
                $block!($args, [(x0 0 0 1) (x1 1 2 3) (x2 2 4 5) (x3 3 6 7) (x4 4 8 9)], [x0 x1 x2 x3 x4])
            }
            [x0, x1, x2, x3] => $block!($args, [(x0 0 0 1) (x1 1 2 3) (x2 2 4 5) (x3 3 6 7)], [x0 x1 x2 x3]),
            [x0, x1, x2] => $block!($args, [(x0 0 0 1) (x1 1 2 3) (x2 2 4 5)], [x0 x1 x2]),
            _ => unreachable!("three to five columns"),
        }
    };
}

/// Three columns in place of fewer, which are rare: what the others give is computed for nothing.
fn padded(acts: &[*const u8]) -> [*const u8; 3] {
    [acts[0], acts[acts.len() - 1], acts[0]]
}

/// All parts of a block of 256, `$words` words each: word 0 and `$i`.
macro_rules! block256 {
    (($w:ident, $first:ident, $isums:ident, $start:ident, $words:literal, $i:tt), [$($column:tt)*], $operands:tt) => {
        assembly!(
            $operands,
            "2:",
            codes!(0),
            $(first!(0 $start, $column),)*
            words!($i, [$($column)*]),
            "vmovdqa ymm10, [{scales}]",
            "vmovdqa ymm11, [{scales} + 32]",
            $(scaled!($column),)*
            $(accumulate!("isums", $column), store!("isums", $column),)*
            concat!("add {codes}, 64*", $words),
            // One of the scales of 16 values a part.
            concat!("add {scales}, 16*", $words),
            concat!("add {at}, 4*", $words),
            "add {pairs}, 4",
            "cmp {codes}, {end}",
            "jb 2b",
            codes = inout(reg) $w.codes.as_ptr() => _,
            end = in(reg) $w.codes.as_ptr_range().end,
            scales = inout(reg) $w.scales.as_ptr() => _,
            isums = in(reg) $isums.as_mut_ptr(),
            at = inout(reg) $first => _,
            pairs = inout(reg) $first + Q8X256_PAIRS => _,
        )
    };
}

/// The sums of products of a block of two panels with one to five columns, from byte `first` of them on, times the scales: added to
/// `isums`.
///
/// # Safety
/// The processor has AVX2; the columns have an activation block there.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) unsafe fn block256(
    sums: Sums,
    w: &wide::Decoded,
    acts: &[*const u8],
    first: usize,
    isums: &mut Isums,
) {
    let few = padded(acts);
    let acts = if acts.len() < 3 { &few } else { acts };
    // SAFETY: a block is 64 words of codes, sixteen scales, and in a column 256 codes and sixteen pairs of sums: `codes`
    // reaches its end after all its parts, with the other pointers at the ends of theirs. Codes and scales are aligned to their size.
    unsafe {
        match sums {
            Sums::Run => by_number!(acts, block256(w, first, isums, plain, 8, [1 2 3 4 5 6 7])),
            Sums::Half => by_number!(acts, block256(w, first, isums, plain, 4, [1 2 3])),
            Sums::Biased => by_number!(acts, block256(w, first, isums, biased256, 4, [1 2 3])),
            Sums::Word => unreachable!("signed codes have no wide product"),
        }
    }
}

/// Sums times d, which is in ymm10 and ymm11.
macro_rules! times_d {
    (($x:ident $c:literal $a:literal $b:literal)) => {
        concat!("vmulps ymm", $a, ", ymm", $a, ", ymm10\nvmulps ymm", $b, ", ymm", $b, ", ymm11\n")
    };
}

/// Adds m, which is in ymm14 and ymm15 if there is one, times the activations' sum.
macro_rules! plus_m {
    (1, $column:tt) => {
        ""
    };
    (2, ($x:ident $c:literal $a:literal $b:literal)) => {
        concat!(
            concat!("vbroadcastss ymm12, [{", stringify!($x), "} + {at} + {sum}]\n"),
            concat!("vfmadd231ps ymm", $a, ", ymm12, ymm14\nvfmadd231ps ymm", $b, ", ymm12, ymm15\n"),
        )
    };
}

/// Sums as floats.
macro_rules! floats {
    (($x:ident $c:literal $a:literal $b:literal)) => {
        concat!("vcvtdq2ps ymm", $a, ", ymm", $a, "\nvcvtdq2ps ymm", $b, ", ymm", $b, "\n")
    };
}

/// Adds the values times the activations' d to the results.
macro_rules! total {
    (($x:ident $c:literal $a:literal $b:literal)) => {
        concat!(
            concat!("vbroadcastss ymm13, [{", stringify!($x), "} + {at} + {d}]\n"),
            concat!("vfmadd213ps ymm", $a, ", ymm13, [{out} + 64*", $c, "]\n"),
            concat!("vfmadd213ps ymm", $b, ", ymm13, [{out} + 64*", $c, " + 32]\n"),
            store!("out", ($x $c $a $b)),
        )
    };
}

/// Sums of 32 bits of the block's products.
macro_rules! dots {
    ($start:ident 8, [$($column:tt)*]) => {
        concat!(
            codes!(0), $(first!(0 $start, $column),)* words!([1 2 3 4 5 6 7], [$($column)*]),
            "vmovdqa ymm10, [{constants}]\nvmovdqa ymm11, ymm10\n", $(scaled!($column)),*
        )
    };
    // A 16-bit sum takes four words.
    ($start:ident 4, [$($column:tt)*]) => {
        concat!(
            codes!(0), $(first!(0 $start, $column),)* words!([1 2 3], [$($column)*]),
            "vmovdqa ymm10, [{constants}]\nvmovdqa ymm11, ymm10\n", $(scaled!($column), store!("half", $column),)*
            codes!(4), $(first!(4 $start, $column),)* words!([5 6 7], [$($column)*]),
            "vmovdqa ymm10, [{constants}]\nvmovdqa ymm11, ymm10\n", $(scaled!($column), accumulate!("half", $column)),*
        )
    };
}

/// Blocks of 32.
macro_rules! blocks32 {
    (($w:ident, $first:ident, $out:ident, $constants:ident, $start:ident, $words:tt, $factors:tt $(, $half:ident)?), [$($column:tt)*], $operands:tt) => {
        assembly!(
            $operands,
            "2:",
            dots!($start $words, [$($column)*]),
            "vmovaps ymm10, [{codes} + {factors}]",
            "vmovaps ymm11, [{codes} + {factors} + 32]",
            "vmovaps ymm14, [{codes} + {factors} + 64]",
            "vmovaps ymm15, [{codes} + {factors} + 96]",
            // One step of all columns before the next: none waits for the one before it.
            $(floats!($column),)*
            $(times_d!($column),)*
            $(plus_m!($factors, $column),)*
            $(total!($column),)*
            "add {codes}, {size}",
            "add {at}, {act}",
            "cmp {codes}, {end}",
            "jb 2b",
            // Not every format has a use for all of them.
            "/* {pairs} {sum} */",
            codes = inout(reg) $w.as_ptr() => _,
            end = in(reg) $w.as_ptr_range().end,
            out = in(reg) $out.as_mut_ptr(),
            constants = in(reg) $constants.as_ptr(),
            $($half = in(reg) $half.as_mut_ptr(),)?
            at = inout(reg) $first => _,
            factors = const std::mem::offset_of!(wide32::Decoded, factors),
            size = const size_of::<wide32::Decoded>(),
            act = const Q8X32_BYTES,
            d = const Q8X32_D,
            sum = const Q8X32_SUM,
            pairs = const Q8X32_PAIRS,
        )
    };
}

/// Adds the products of blocks of two panels with one to five columns, from byte `first` of them on, to the results.
///
/// # Safety
/// The processor has AVX2 and FMA; the columns have as many activation blocks there, at least one; as many results as columns.
#[inline(never)]
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn blocks32<B: block32::Kernel>(
    w: &[wide32::Decoded],
    acts: &[*const u8],
    first: usize,
    out: &mut [[[f32; PANEL]; 2]],
) {
    const { assert!(std::mem::offset_of!(wide32::Decoded, codes) == 0, "a block starts with its codes") };
    let n = out.len();
    if n < 3 {
        // What is computed for nothing is stored as well.
        let mut three = [[[0.0; PANEL]; 2]; 3];
        three[..n].copy_from_slice(out);
        // SAFETY: the caller's promise.
        unsafe { blocks32::<B>(w, &padded(acts), first, &mut three) };
        out.copy_from_slice(&three[..n]);
        return;
    }
    let constants = [_mm256_set1_epi16(1), _mm256_set1_epi16(B::BIAS)];
    // SAFETY: `w` has codes and factors for each block, aligned to their size, and a column 44 bytes for each; results are 64 bytes a column.
    unsafe {
        match (B::WORDS, B::BIAS != 0, B::FACTORS) {
            (8, false, 2) => by_number!(acts, blocks32(w, first, out, constants, plain, 8, 2)),
            (8, true, 1) => by_number!(acts, blocks32(w, first, out, constants, biased32, 8, 1)),
            (4, false, 2) => {
                let mut half = [[_mm256_set1_epi16(0); 2]; COLUMNS];
                by_number!(acts, blocks32(w, first, out, constants, plain, 4, 2, half))
            }
            _ => unreachable!("no format is another"),
        }
    }
}
