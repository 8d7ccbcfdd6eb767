//! A file's tensors, checked against the metadata and counted off.

use std::cell::RefCell;
use std::collections::HashSet;
use std::ops::Range;

use super::LoadError;
use crate::gguf::Gguf;
use crate::quant::GgmlType;
use crate::weights::TensorView;

/// Hands out tensors by name and notes which were asked for.
pub(super) struct Tensors<'a> {
    gguf: &'a Gguf,
    used: RefCell<HashSet<String>>,
}

impl<'a> Tensors<'a> {
    pub(super) fn new(gguf: &'a Gguf) -> Self {
        Self { gguf, used: RefCell::default() }
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.gguf.tensor(name).is_some()
    }

    /// `[experts, rows, cols]`, packed or not.
    pub(super) fn weight(
        &self,
        name: &str,
        [cols, rows, experts]: [u32; 3],
    ) -> Result<TensorView<'a>, LoadError> {
        let view = self.gguf.weight(name)?;
        if [view.cols, view.rows, view.experts] != [cols as usize, rows as usize, experts as usize] {
            return Err(LoadError::WrongShape {
                tensor: name.to_owned(),
                found: format!("{} x {} x {}", view.cols, view.rows, view.experts),
                wanted: format!("{cols} x {rows} x {experts}"),
            });
        }
        self.used.borrow_mut().insert(name.to_owned());
        Ok(view)
    }

    /// `[rows, cols]`, in rows.
    pub(super) fn matrix(&self, name: &str, cols: u32, rows: u32) -> Result<TensorView<'a>, LoadError> {
        self.gguf.view(name)?;
        self.weight(name, [cols, rows, 1])
    }

    /// `len` values.
    pub(super) fn vector(&self, name: &str, len: u32) -> Result<TensorView<'a>, LoadError> {
        self.matrix(name, len, 1)
    }

    /// The F32 values of a vector of any length, if it is there.
    pub(super) fn opt_floats(&self, name: &str) -> Result<Option<Vec<f32>>, LoadError> {
        if !self.has(name) {
            return Ok(None);
        }
        let view = self.gguf.view(name)?;
        if view.ty != GgmlType::F32 || view.rows != 1 || view.experts != 1 {
            let why = "must be a vector of F32".to_owned();
            return Err(LoadError::BadTensor { tensor: name.to_owned(), why });
        }
        self.used.borrow_mut().insert(name.to_owned());
        let (values, _) = view.data.as_chunks::<4>();
        Ok(Some(values.iter().map(|&v| f32::from_le_bytes(v)).collect()))
    }

    /// Passes over blocks whose tensors are called as those used of block `like`, or by one of `more`.
    pub(super) fn skip_blocks(&self, blocks: Range<u32>, like: u32, more: &[&str]) {
        let mut used = self.used.borrow_mut();
        for tensor in self.gguf.tensors() {
            let Some((block, kind)) = tensor.name.strip_prefix("blk.").and_then(|name| name.split_once('.'))
            else {
                continue;
            };
            if block.parse().is_ok_and(|block| blocks.contains(&block))
                && (more.contains(&kind) || used.contains(&format!("blk.{like}.{kind}")))
            {
                used.insert(tensor.name.clone());
            }
        }
    }

    /// Refuses what was not asked for.
    pub(super) fn all_used(&self) -> Result<(), LoadError> {
        let used = self.used.borrow();
        let mut unused = self.gguf.tensors().iter().filter(|t| !used.contains(&t.name));
        match unused.next() {
            Some(t) => Err(LoadError::UnexpectedTensor { tensor: t.name.clone(), others: unused.count() }),
            None => Ok(()),
        }
    }
}
