//! The loop in which wide AVX2 products spend their time, as assembly.
//!
//! Two panels meet up to five columns. A word is two loads of codes, and for each column a broadcast, two `vpmaddubsw` and two `vpaddw`; ten
//! sums, two vectors of codes and two pairs of products fill the sixteen registers. A column's products are added once the next
//! column's are under way, so no addition waits for the product before it. Compilers add products in trees instead, whose parts leave the
//! registers: six instructions for a product and its addition where this takes three (a sixth faster on a Zen 3).

#![expect(unsafe_code, reason = "assembly")]

use std::arch::asm;
use std::arch::x86_64::__m256i;

use super::act::Q8X256_PAIRS;
use super::block256::Sums;
use super::wide::Decoded;

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
        concat!("vpaddw ymm", $a, ", ymm", $a, ", ymm", $p, "\nvpaddw ymm", $b, ", ymm", $b, ", ymm", $q, "\n")
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

/// The first word of a column starts its sums.
macro_rules! first {
    (plain, ($x:ident $c:literal $a:literal $b:literal)) => { products!(0, $x, ($a $b)) };
    (biased, ($x:ident $c:literal $a:literal $b:literal)) => {
        concat!(
            products!(0, $x, (12 13)),
            concat!("vpbroadcastd ymm", $b, ", [{", stringify!($x), "} + {pairs}]\n"),
            concat!("vpaddw ymm", $a, ", ymm", $b, ", ymm12\nvpaddw ymm", $b, ", ymm", $b, ", ymm13\n"),
        )
    };
}

/// Sums times the scales, which are in ymm10 and ymm11.
macro_rules! scaled {
    (($x:ident $c:literal $a:literal $b:literal)) => {
        concat!("vpmaddwd ymm", $a, ", ymm", $a, ", ymm10\nvpmaddwd ymm", $b, ", ymm", $b, ", ymm11\n")
    };
}

/// Adds them to the results.
macro_rules! store {
    (($x:ident $c:literal $a:literal $b:literal)) => {
        concat!(
            concat!("vpaddd ymm", $a, ", ymm", $a, ", [{isums} + 64*", $c, "]\n"),
            concat!("vpaddd ymm", $b, ", ymm", $b, ", [{isums} + 64*", $c, " + 32]\n"),
            concat!("vmovdqa [{isums} + 64*", $c, "], ymm", $a, "\n"),
            concat!("vmovdqa [{isums} + 64*", $c, " + 32], ymm", $b, "\n"),
        )
    };
}

/// All parts of a block, `$words` words each: word 0 and `$i`.
macro_rules! block {
    ($w:ident, $acts:ident, $isums:ident, $start:ident, $i:tt, $words:literal, [$($column:tt)*], [$($x:ident $c:literal)*]) => {
        asm!(
            "2:",
            codes!(0),
            $(first!($start, $column),)*
            words!($i, [$($column)*]),
            "vmovdqa ymm10, [{scales}]",
            "vmovdqa ymm11, [{scales} + 32]",
            $(scaled!($column),)*
            $(store!($column),)*
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
            at = inout(reg) 0_usize => _,
            pairs = inout(reg) Q8X256_PAIRS => _,
            $($x = in(reg) $acts[$c],)*
            out("ymm0") _, out("ymm1") _, out("ymm2") _, out("ymm3") _, out("ymm4") _, out("ymm5") _, out("ymm6") _, out("ymm7") _,
            out("ymm8") _, out("ymm9") _, out("ymm10") _, out("ymm11") _, out("ymm12") _, out("ymm13") _, out("ymm14") _, out("ymm15") _,
            options(nostack),
        )
    };
}

/// [`block`] for three, four or five columns.
macro_rules! columns {
    ($n:ident, $w:ident, $acts:ident, $isums:ident, $start:ident, $words:literal, $i:tt) => {
        match $n {
            5 => block!($w, $acts, $isums, $start, $i, $words,
                [(x0 0 0 1) (x1 1 2 3) (x2 2 4 5) (x3 3 6 7) (x4 4 8 9)], [x0 0 x1 1 x2 2 x3 3 x4 4]),
            4 => block!($w, $acts, $isums, $start, $i, $words,
                [(x0 0 0 1) (x1 1 2 3) (x2 2 4 5) (x3 3 6 7)], [x0 0 x1 1 x2 2 x3 3]),
            // Fewer than three are rare: the others are computed for nothing.
            _ => block!($w, $acts, $isums, $start, $i, $words,
                [(x0 0 0 1) (x1 1 2 3) (x2 2 4 5)], [x0 0 x1 1 x2 2]),
        }
    };
}

/// The sums of products of `n` columns with a block of two panels, times the scales.
///
/// # Safety
/// The processor has AVX2; all `acts` are activation blocks, those from `n` on of any column.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) unsafe fn sums(sums: Sums, w: &Decoded, acts: [*const u8; COLUMNS], n: usize, isums: &mut Isums) {
    // SAFETY: a block is 64 words of codes, sixteen scales, and in a column 256 codes and sixteen pairs of sums: `codes`
    // reaches its end after all its parts, with the other pointers at the ends of theirs. Codes, scales and sums are aligned to their size.
    unsafe {
        match sums {
            Sums::Run => columns!(n, w, acts, isums, plain, 8, [1 2 3 4 5 6 7]),
            Sums::Half => columns!(n, w, acts, isums, plain, 4, [1 2 3]),
            Sums::Biased => columns!(n, w, acts, isums, biased, 4, [1 2 3]),
            Sums::Word => unreachable!("signed codes have no wide product"),
        }
    }
}
