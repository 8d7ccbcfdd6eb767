//! Quantization formats: one file and one row of [`FORMATS`] each.
//!
//! A weight is used in two forms: as in the file (rows of blocks; the reference and the embedding gather read
//! that) and packed into panels of [`PANEL`] rows, whose bytes lie in the order in which a kernel reads them.
//! Both have the same size. Activations are encoded once per token in the [`ActKind`] a format asks for.
//!
//! Law: for every format, all instruction sets give the same bits, and so does any grouping of columns.
//! Within an activation block sums are exact integers; across blocks there is one float expression, in
//! ascending order of k, with fused multiply-add. F32, F16 and BF16 products are two sums, over even and over odd k,
//! each accumulated in ascending k with fused multiply-add, then added. (Two chains are enough for one column
//! to run at memory speed, and leave registers for six columns.) Bits of a NaN are not part of the law.
//!
//! Absent on purpose: threads, row counts, memory. A matrix whose rows are no multiple of [`PANEL`] is packed with
//! rows of zero bytes, which are zeros in every format.

mod act;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx2_wide;
mod block256;
mod block32;
mod dense;
#[cfg(target_arch = "x86_64")]
mod interleave;
mod iq4_nl;
mod iq4_xs;
mod mxfp4;
#[cfg(target_arch = "aarch64")]
mod neon;
mod prefetch;
mod q2_k;
mod q3_k;
mod q4_0;
mod q4_1;
mod q4_k;
mod q5_0;
mod q5_1;
mod q5_k;
mod q6_k;
mod q8_0;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod vnni;
#[cfg(target_arch = "x86_64")]
mod vnni_wide;
#[cfg(target_arch = "x86_64")]
mod wide;
#[cfg(target_arch = "x86_64")]
mod wide32;

pub use act::{act_bytes, encode};
pub use prefetch::prefetch;

/// Rows in a panel of packed weights.
pub const PANEL: usize = 8;

/// Most activation columns one call of a [`PanelProduct`] takes.
pub const COLUMNS_MAX: usize = 8;

/// GGUF's element formats that Frugal can read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs, non_camel_case_types)]
pub enum GgmlType {
    F32,
    F16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    IQ4_NL,
    IQ4_XS,
    BF16,
    MXFP4,
}

/// How activations are encoded for a format's products.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ActKind {
    /// F32 as they are.
    F32,
    /// Signed bytes with one scale per 32.
    Q8x32,
    /// Signed bytes with one scale per 256.
    Q8x256,
}

/// Instruction sets there are products and encoders for. All give the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Isa {
    /// Plain Rust: the definition.
    Scalar,
    /// AVX2, FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512 with VNNI, on vectors of 256 bits for one panel and 512 for two; what has no product of its own uses AVX2's.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// NEON with dot products of bytes (`dotprod`), which Armv8.4 and most of Armv8.2 have.
    #[cfg(target_arch = "aarch64")]
    Neon,
}

impl Isa {
    /// Every set, the fastest last.
    pub const ALL: &[Self] = &[
        Self::Scalar,
        #[cfg(target_arch = "x86_64")]
        Self::Avx2,
        #[cfg(target_arch = "x86_64")]
        Self::Avx512,
        #[cfg(target_arch = "aarch64")]
        Self::Neon,
    ];

    /// As configured.
    pub fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => "avx512",
            #[cfg(target_arch = "aarch64")]
            Self::Neon => "neon",
        }
    }

    /// Whether this processor has it.
    pub fn available(self) -> bool {
        match self {
            Self::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => avx2::available(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => vnni::available(),
            #[cfg(target_arch = "aarch64")]
            Self::Neon => neon::available(),
        }
    }

    /// The fastest this processor has.
    pub fn detect() -> Self {
        Self::ALL.iter().rev().copied().find(|isa| isa.available()).unwrap_or(Self::Scalar)
    }
}

/// `out[p * acts.len() + c][r]` = dot product of row r of panel p with activation column c, over `cols` elements.
///
/// `panels` are packed panels one behind the other, as many as there are results for; `acts[c]` is one encoded column, of at
/// most [`COLUMNS_MAX`]. `next` is what will be read afterwards, if that is known: its beginning is asked for in time.
///
/// # Panics
/// If lengths do not fit each other, or the processor lacks the instructions.
pub type PanelProduct = fn(panels: &[u8], cols: usize, acts: &[&[u8]], next: &[u8], out: &mut [[f32; PANEL]]);

/// `out[c][p][r]` = dot product of row r of `panels[p]` with activation column c: a [`PanelProduct`] of two panels and
/// any number of columns, with the same bits. It decodes weights once, so it pays above [`COLUMNS_MAX`] columns; beyond
/// about a hundred the results (64 bytes a column) no longer stay in L1.
///
/// # Panics
/// As [`PanelProduct`].
pub type WideProduct = fn(panels: [&[u8]; 2], cols: usize, acts: &[&[u8]], out: &mut [[[f32; PANEL]; 2]]);

/// Eight rows as in the file to one panel: `PANEL * rows[i].len() == panel.len()`.
pub type Pack = fn(rows: &[&[u8]; PANEL], panel: &mut [u8]);

/// One row of [`FORMATS`].
#[derive(Debug)]
pub struct Format {
    /// The format.
    pub ty: GgmlType,
    /// As GGUF tools print it.
    pub name: &'static str,
    /// Its number in GGUF files.
    pub ggml_id: u32,
    /// Elements in a block; rows are whole blocks.
    pub block: usize,
    /// Bytes in a block.
    pub block_bytes: usize,
    /// What its products take.
    pub act: ActKind,
    /// Whole blocks to F32: `src.len() / block_bytes * block == dst.len()`.
    pub dequantize: fn(src: &[u8], dst: &mut [f32]),
    /// The definition of its packing.
    pub pack: Pack,
    /// The same bytes with AVX2, where moving them one by one is slow; panics where the processor lacks it.
    #[cfg(target_arch = "x86_64")]
    pub avx2_pack: Option<Pack>,
    /// One row of a panel, as it was in the file: `PANEL * dst.len() == panel.len()`.
    pub unpack: fn(panel: &[u8], row: usize, dst: &mut [u8]),
    /// The definition of its product.
    pub scalar: PanelProduct,
    /// The same bits with AVX2, FMA and F16C; panics where the processor lacks them.
    #[cfg(target_arch = "x86_64")]
    pub avx2: PanelProduct,
    /// The same bits with AVX2 for two panels and many columns, where that is faster than groups of eight.
    #[cfg(target_arch = "x86_64")]
    pub avx2_wide: Option<WideProduct>,
    /// The same bits with AVX-512 VNNI, where there is such a product.
    #[cfg(target_arch = "x86_64")]
    pub avx512: Option<PanelProduct>,
    /// The same bits with AVX-512 VNNI for two panels and many columns.
    #[cfg(target_arch = "x86_64")]
    pub avx512_wide: Option<WideProduct>,
    /// The same bits with NEON and dot products of bytes; panics where the processor lacks them.
    #[cfg(target_arch = "aarch64")]
    pub neon: PanelProduct,
}

/// Every format, in the order of [`GgmlType`].
pub static FORMATS: [Format; 16] = [
    dense::F32,
    dense::F16,
    q4_0::FORMAT,
    q4_1::FORMAT,
    q5_0::FORMAT,
    q5_1::FORMAT,
    q8_0::FORMAT,
    q2_k::FORMAT,
    q3_k::FORMAT,
    q4_k::FORMAT,
    q5_k::FORMAT,
    q6_k::FORMAT,
    iq4_nl::FORMAT,
    iq4_xs::FORMAT,
    dense::BF16,
    mxfp4::FORMAT,
];

const _: () = {
    let mut i = 0;
    while i < FORMATS.len() {
        assert!(FORMATS[i].ty as usize == i, "FORMATS is in the order of GgmlType");
        assert!(GgmlType::ALL[i] as usize == i, "and so is ALL");
        i += 1;
    }
};

/// The row of `ty`.
pub fn format(ty: GgmlType) -> &'static Format {
    &FORMATS[ty as usize]
}

impl GgmlType {
    /// Every format, in order of [`GgmlType::id`].
    pub const ALL: [Self; FORMATS.len()] = [
        Self::F32,
        Self::F16,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q2_K,
        Self::Q3_K,
        Self::Q4_K,
        Self::Q5_K,
        Self::Q6_K,
        Self::IQ4_NL,
        Self::IQ4_XS,
        Self::BF16,
        Self::MXFP4,
    ];

    /// The format with this number in GGUF files, if Frugal reads it.
    pub fn from_id(id: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|ty| ty.id() == id)
    }

    /// Its number in GGUF files.
    pub const fn id(self) -> u32 {
        FORMATS[self as usize].ggml_id
    }

    /// As GGUF tools print it.
    pub const fn name(self) -> &'static str {
        FORMATS[self as usize].name
    }

    /// Elements in a block; rows are whole blocks.
    pub const fn block(self) -> usize {
        FORMATS[self as usize].block
    }

    /// Bytes in a block.
    pub const fn block_bytes(self) -> usize {
        FORMATS[self as usize].block_bytes
    }

    /// Bytes of a row of `cols` elements.
    ///
    /// # Panics
    /// If a row is not whole blocks.
    pub const fn row_bytes(self, cols: usize) -> usize {
        assert!(cols.is_multiple_of(self.block()), "rows are whole blocks");
        cols / self.block() * self.block_bytes()
    }
}

impl Format {
    /// The packing on `isa`.
    pub fn packing(&self, isa: Isa) -> Pack {
        match isa {
            Isa::Scalar => self.pack,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 | Isa::Avx512 => self.avx2_pack.unwrap_or(self.pack),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => self.pack,
        }
    }

    /// The product on `isa`.
    pub fn product(&self, isa: Isa) -> PanelProduct {
        match isa {
            Isa::Scalar => self.scalar,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => self.avx2,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => self.avx512.unwrap_or(self.avx2),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => self.neon,
        }
    }

    /// The product of two panels with more than [`COLUMNS_MAX`] columns, if `isa` has one for this format.
    pub fn wide(&self, isa: Isa) -> Option<WideProduct> {
        match isa {
            Isa::Scalar => None,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => self.avx2_wide,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => self.avx512_wide.or(self.avx2_wide),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => None,
        }
    }

    /// Bytes of a panel; asserts that rows of `cols` elements are whole blocks.
    fn panel_bytes(&self, cols: usize) -> usize {
        assert!(cols.is_multiple_of(self.block), "rows are whole blocks");
        let bytes = (cols / self.block).checked_mul(self.block_bytes * PANEL);
        bytes.expect("a panel fits the address space")
    }

    /// The panels of a call of one column by twos, one from either half of them, and what is left: memory is what bounds such a product,
    /// and two places to read from keep more of it under way (tests/benches/RESULTS.md). Asserts as [`Format::in_turn`].
    #[cfg(target_arch = "x86_64")]
    fn in_twos<'a>(
        &self,
        panels: &'a [u8],
        cols: usize,
        acts: &[&[u8]],
        next: &'a [u8],
        out: &'a mut [[f32; PANEL]],
    ) -> (impl Iterator<Item = Twos<'a>>, impl Iterator<Item = Turn<'a>>) {
        assert!(acts.len() == 1, "one column");
        let half = out.len() / 2;
        let at = (half * self.panel_bytes(cols)).min(panels.len() / 2);
        let (first, others) = panels.split_at(at);
        let (second, rest) = others.split_at(at);
        let (first_out, others_out) = out.split_at_mut(half);
        let (second_out, rest_out) = others_out.split_at_mut(half);
        let then = if rest.is_empty() { next } else { rest };
        let second = self.in_turn(second, cols, acts, &[], second_out);
        let twos = self.in_turn(first, cols, acts, then, first_out).zip(second).enumerate();
        let twos = twos.map(move |(i, ((p, next_p, out_p), (q, next_q, out_q)))| {
            // After the last two: what begins behind them, and its half.
            let next_q = if i + 1 < half { next_q } else { next_p.wrapping_add(at) };
            ([p, q], [next_p, next_q], [out_p, out_q])
        });
        (twos, self.in_turn(rest, cols, acts, next, rest_out))
    }

    /// The panels of a call, one by one: each with what is read after it, and its results. Asserts what [`PanelProduct`] and its
    /// kernels rely on.
    fn in_turn<'a>(
        &self,
        panels: &'a [u8],
        cols: usize,
        acts: &[&[u8]],
        next: &'a [u8],
        out: &'a mut [[f32; PANEL]],
    ) -> impl Iterator<Item = Turn<'a>> {
        let (columns, bytes) = (acts.len().max(1), self.panel_bytes(cols));
        assert!(acts.len() <= COLUMNS_MAX, "at most {COLUMNS_MAX} columns");
        let count = if acts.is_empty() { panels.len() / bytes.max(1) } else { out.len() / columns };
        assert!(count * acts.len() == out.len(), "a result per panel and column");
        assert!(count.checked_mul(bytes) == Some(panels.len()), "as many panels as results");
        let act_bytes = act_bytes(self.act, cols);
        assert!(acts.iter().all(|a| a.len() == act_bytes), "encoded columns have the row's length");
        out.chunks_exact_mut(columns).enumerate().map(move |(i, out)| {
            let (panel, rest) = panels[i * bytes..].split_at(bytes);
            // Where nothing is known to follow, what is in the cache is asked for.
            let then = [rest, next, panel].into_iter().find(|bytes| !bytes.is_empty());
            (panel, then.unwrap_or(panel).as_ptr(), out)
        })
    }
}

/// One panel of a call, what is read after it, and its results.
type Turn<'a> = (&'a [u8], *const u8, &'a mut [[f32; PANEL]]);
/// Two of them.
#[cfg(target_arch = "x86_64")]
type Twos<'a> = ([&'a [u8]; 2], [*const u8; 2], [&'a mut [[f32; PANEL]]; 2]);

/// Asserts the lengths of a dequantisation and pairs blocks with their values.
fn blocks<'a, const N: usize>(
    src: &'a [u8],
    block_bytes: usize,
    dst: &'a mut [f32],
) -> impl Iterator<Item = (&'a [u8], &'a mut [f32; N])> {
    let (values, rest) = dst.as_chunks_mut::<N>();
    assert!(rest.is_empty() && src.len() == values.len() * block_bytes, "whole blocks, as many as values");
    src.chunks_exact(block_bytes).zip(values)
}

/// Calls `$tile::<.., N>` with the arguments for the number of columns; none at all is nothing to do.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! by_columns {
    ($acts:ident, $tile:ident [$($t:ty),*] $args:tt) => {
        match $acts.len() {
            0 => {}
            1 => $tile::<$($t,)* 1> $args,
            2 => $tile::<$($t,)* 2> $args,
            3 => $tile::<$($t,)* 3> $args,
            4 => $tile::<$($t,)* 4> $args,
            5 => $tile::<$($t,)* 5> $args,
            6 => $tile::<$($t,)* 6> $args,
            7 => $tile::<$($t,)* 7> $args,
            8 => $tile::<$($t,)* 8> $args,
            _ => unreachable!("at most 8 columns"),
        }
    };
}
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use by_columns;

/// The little-endian word at `at`.
fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Stores `value` at `at`, little-endian.
fn put_word(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

/// The half-precision value at `at`.
fn half_at(bytes: &[u8], at: usize) -> f32 {
    half::f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

/// The single-precision value at `at`.
fn single_at(bytes: &[u8], at: usize) -> f32 {
    f32::from_bits(word(bytes, at))
}
