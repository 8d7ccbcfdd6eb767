//! Typed views of a model file's tensors.

use crate::quant::GgmlType;

/// A tensor's bytes in GGUF layout, checked: `data` is exactly `experts * rows * row_bytes` long.
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
}
