//! What the parts of a block are loaded with.

use super::LoadError;
use super::tensors::Tensors;
use crate::backend::Backend;

/// Loads one block's tensors into a backend.
pub(super) struct Loader<'a, B: Backend> {
    pub tensors: &'a Tensors<'a>,
    pub backend: &'a mut B,
    pub layer: u32,
}

impl<B: Backend> Loader<'_, B> {
    /// The full name of one of the block's tensors.
    pub(super) fn name(&self, kind: &str) -> String {
        format!("blk.{}.{kind}", self.layer)
    }

    pub(super) fn has(&self, kind: &str) -> bool {
        self.tensors.has(&self.name(kind))
    }

    /// `KIND.weight`, `[cols, rows, experts]`.
    pub(super) fn weight(&mut self, kind: &str, dims: [u32; 3]) -> Result<B::Weight, LoadError> {
        let view = self.tensors.weight(&self.name(&format!("{kind}.weight")), dims)?;
        Ok(self.backend.load_weight(&view)?)
    }

    /// `KIND.weight`, `[cols, rows]`.
    pub(super) fn matrix(&mut self, kind: &str, cols: u32, rows: u32) -> Result<B::Weight, LoadError> {
        self.weight(kind, [cols, rows, 1])
    }

    /// A vector by its whole name.
    pub(super) fn vector(&mut self, name: &str, len: u32) -> Result<B::Vector, LoadError> {
        self.vectors(name, len, 1)
    }

    /// A stack of vectors by its whole name.
    pub(super) fn vectors(&mut self, name: &str, len: u32, count: u32) -> Result<B::Vector, LoadError> {
        let view = self.tensors.matrix(&self.name(name), len, count)?;
        Ok(self.backend.load_vector(&view)?)
    }
}

/// As many results as weights were given.
pub(super) fn take<T, const N: usize>(results: Vec<T>) -> [T; N] {
    <[T; N]>::try_from(results).unwrap_or_else(|_| panic!("a product gives one result per weight"))
}
