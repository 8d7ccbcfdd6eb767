//! Quantization formats: one file and one row of [`FORMATS`] each.
//!
//! A weight is used in two forms: as in the file (rows of blocks; the reference and the embedding gather read
//! that) and packed into panels of [`PANEL`] rows, whose bytes lie in the order in which a kernel reads them.
//! Both have the same size. Activations are encoded once per token in the [`ActKind`] a format asks for.
//!
//! Law: for every format, all instruction sets give the same bits, and so does any grouping of columns.
//! Within an activation block sums are exact integers; across blocks there is one float expression, in
//! ascending order of k, with fused multiply-add. F32 and F16 products use eight partial sums over k mod 8,
//! each accumulated in ascending k with fused multiply-add, added pairwise: ((0+4)+(2+6))+((1+5)+(3+7)).

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
    Q8_0,
    Q4_K,
    Q6_K,
}

impl GgmlType {
    /// Every format, in order of [`GgmlType::id`].
    pub const ALL: [Self; 8] =
        [Self::F32, Self::F16, Self::Q4_0, Self::Q4_1, Self::Q5_0, Self::Q8_0, Self::Q4_K, Self::Q6_K];

    /// Number in GGUF files, name, elements and bytes of a block: the one place that says so.
    const fn layout(self) -> (u32, &'static str, usize, usize) {
        match self {
            Self::F32 => (0, "F32", 1, 4),
            Self::F16 => (1, "F16", 1, 2),
            Self::Q4_0 => (2, "Q4_0", 32, 18),
            Self::Q4_1 => (3, "Q4_1", 32, 20),
            Self::Q5_0 => (6, "Q5_0", 32, 22),
            Self::Q8_0 => (8, "Q8_0", 32, 34),
            Self::Q4_K => (12, "Q4_K", 256, 144),
            Self::Q6_K => (14, "Q6_K", 256, 210),
        }
    }

    /// The format with this number in GGUF files, if Frugal reads it.
    pub fn from_id(id: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|ty| ty.id() == id)
    }

    /// Its number in GGUF files.
    pub const fn id(self) -> u32 {
        self.layout().0
    }

    /// As GGUF tools print it.
    pub const fn name(self) -> &'static str {
        self.layout().1
    }

    /// Elements in a block; rows are whole blocks.
    pub const fn block(self) -> usize {
        self.layout().2
    }

    /// Bytes in a block.
    pub const fn block_bytes(self) -> usize {
        self.layout().3
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

/// `out[c][r]` = dot product of the panel's row r with activation column c, over `cols` elements.
///
/// `panel` is one packed panel, `acts[c]` one encoded column; at most [`COLUMNS_MAX`] columns,
/// `out.len() == acts.len()`.
pub type PanelProduct = fn(panel: &[u8], cols: usize, acts: &[&[u8]], out: &mut [[f32; PANEL]]);

/// One row of [`FORMATS`].
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
    /// Eight rows as in the file to one panel: `rows.len() == panel.len() == PANEL * row bytes`.
    pub pack: fn(rows: &[&[u8]; PANEL], panel: &mut [u8]),
    /// The definition of its product.
    pub scalar: PanelProduct,
    /// The same bits with AVX2, FMA and F16C; called only where the processor has them.
    #[cfg(target_arch = "x86_64")]
    pub avx2: PanelProduct,
}
