//! Typed views of a model file's tensors.

use crate::gguf::Bytes;
use crate::quant::GgmlType;

/// Where a tensor's data lie: in a file's bytes, which may be kept.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    pub(crate) file: &'a Bytes,
    pub(crate) start: usize,
}

/// A tensor's bytes, checked: in GGUF layout `data` is exactly `experts * rows * row_bytes` long.
#[derive(Clone, Copy, Debug)]
pub struct TensorView<'a> {
    /// Its name in the file.
    pub name: &'a str,
    /// Element format.
    pub ty: GgmlType,
    /// Elements in a row (GGUF's `ne[0]`): the input width of a matrix, the length of a vector.
    pub cols: usize,
    /// Rows: the output width; 1 for a vector.
    pub rows: usize,
    /// Stacked matrices; 1 unless the tensor is three-dimensional.
    pub experts: usize,
    /// The bytes.
    pub data: &'a [u8],
    /// Whether `data` are not rows but panels (see [`crate::gguf`]), with the last one of each matrix filled up with zeros.
    pub packed: bool,
    /// Of `data`, if they are a file's.
    pub place: Option<Place<'a>>,
}

impl<'a> TensorView<'a> {
    /// Bytes of one row.
    pub fn row_bytes(&self) -> usize {
        self.ty.row_bytes(self.cols)
    }

    /// One row: `row_bytes` long.
    ///
    /// # Panics
    /// If there is no such row, or there are no rows but panels.
    pub fn row(&self, expert: usize, row: usize) -> &'a [u8] {
        assert!(expert < self.experts && row < self.rows, "row {row} of expert {expert} of {}", self.name);
        assert!(!self.packed, "{} is not packed", self.name);
        let bytes = self.row_bytes();
        &self.data[(expert * self.rows + row) * bytes..][..bytes]
    }

    /// One matrix of a stack.
    ///
    /// # Panics
    /// If there is no such expert, or there are no rows but panels.
    pub fn expert(&self, expert: usize) -> TensorView<'a> {
        assert!(expert < self.experts, "expert {expert} of {}", self.name);
        assert!(!self.packed, "{} is not packed", self.name);
        let bytes = self.rows * self.row_bytes();
        let place = self.place.map(|Place { file, start }| Place { file, start: start + expert * bytes });
        TensorView { experts: 1, data: &self.data[expert * bytes..][..bytes], place, ..*self }
    }
}
