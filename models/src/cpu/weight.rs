//! Weights in panels.
//!
//! A weight is copied once, panel by panel, straight from the view's bytes; the view may be dropped afterwards. Experts may be copied
//! as they are needed: see [`stack`](super::stack). What is packed in the file stays there, in a mapping that servers of one machine share.
//! Rows are padded to whole panels with zeros, so the size is the file's, rounded up to 8 rows a matrix.
//! A table that is also the head is one copy: the gather unpacks single rows of panels.

use std::ops::Range;
use std::sync::Arc;

use super::Core;
use super::memory::{Bytes, HUGE};
use super::stack::Stack;
use crate::backend::BackendError;
use crate::gguf;
use crate::quant::{Format, PANEL, Pack, format};
use crate::weights::{Place, TensorView};

/// Fewest panels that one thread packs at a time.
const PACK_PANELS: usize = 16;
/// Most bytes that one thread packs at a time: a huge page, so that threads seldom wait for each other's to be cleared.
pub(super) const PACK_BYTES: usize = HUGE;

/// A matrix, a stack of matrices or an embedding table.
#[derive(Clone, Debug)]
pub struct CpuWeight {
    pub(super) format: &'static Format,
    /// Input width.
    pub(super) cols: usize,
    /// Output width of each matrix.
    pub(super) rows: usize,
    /// Matrices in the stack.
    pub(super) experts: usize,
    row_bytes: usize,
    bytes: Home,
}

/// Where panels lie.
#[derive(Clone, Debug)]
enum Home {
    /// Memory of our own.
    Own(Arc<Bytes>),
    /// The same, filled as it is needed.
    Stack(Arc<Stack>),
    /// From here on in a file's bytes.
    File(gguf::Bytes, usize),
}

impl CpuWeight {
    /// Panels of one matrix.
    pub(super) fn panels(&self) -> usize {
        self.rows.div_ceil(PANEL)
    }

    /// Panel `panel` of matrix `expert`.
    pub(super) fn panel(&self, expert: usize, panel: usize) -> &[u8] {
        self.panels_of(expert, panel..panel + 1)
    }

    /// Panels of matrix `expert`, which lie one behind the other.
    pub(super) fn panels_of(&self, expert: usize, panels: Range<usize>) -> &[u8] {
        let len = PANEL * self.row_bytes;
        let first = expert * self.panels();
        let bytes = match &self.bytes {
            Home::Own(bytes) => bytes,
            Home::Stack(stack) => return stack.panels_of(expert, panels),
            Home::File(bytes, start) => &bytes[*start..],
        };
        &bytes[(first + panels.start) * len..(first + panels.end) * len]
    }

    /// Where experts may be missing.
    pub(super) fn stack(&self) -> Option<&Stack> {
        match &self.bytes {
            Home::Stack(stack) => Some(stack),
            Home::Own(_) | Home::File(..) => None,
        }
    }

    /// Bytes that a product with one matrix reads.
    pub(super) fn matrix_bytes(&self) -> u64 {
        (self.rows * self.row_bytes) as u64
    }

    /// Multiply-adds per token of one matrix.
    pub(super) fn macs(&self) -> u64 {
        (self.rows * self.cols) as u64
    }

    /// Row `row` of the first matrix as values; `raw` is room to work in.
    pub(super) fn gather(&self, row: usize, raw: &mut Vec<u8>, to: &mut [f32]) {
        assert!(row < self.rows, "token id inside the embedding table");
        raw.resize(self.row_bytes, 0);
        (self.format.unpack)(self.panel(0, row / PANEL), row % PANEL, raw);
        (self.format.dequantize)(raw, to);
    }
}

/// Loads weights, and keeps those that are not packed yet.
#[derive(Debug, Default)]
pub(super) struct Loaded {
    /// Whether experts wait until they are needed.
    lazy: bool,
    /// Those that do, until [`Packers`](super::stack::Packers) see to them.
    pub(super) stacks: Vec<Arc<Stack>>,
}

/// A weight without its bytes.
#[derive(Clone, Copy, Debug)]
struct CpuShape {
    format: &'static Format,
    cols: usize,
    rows: usize,
    experts: usize,
    row_bytes: usize,
}

impl CpuShape {
    fn of(view: &TensorView<'_>) -> Result<Self, BackendError> {
        let format = format(view.ty);
        if !view.cols.is_multiple_of(format.block) {
            let what = format!("{} rows of {} values, no whole number of blocks", format.name, view.cols);
            return Err(BackendError::Unsupported { tensor: view.name.to_owned(), what });
        }
        let (cols, rows, experts) = (view.cols, view.rows, view.experts);
        Ok(Self { format, cols, rows, experts, row_bytes: view.ty.row_bytes(cols) })
    }

    fn with(self, bytes: Home) -> CpuWeight {
        let Self { format, cols, rows, experts, row_bytes } = self;
        CpuWeight { format, cols, rows, experts, row_bytes, bytes }
    }

    /// Memory for all panels.
    fn room(&self, name: &str) -> Result<Bytes, BackendError> {
        let each = self.rows.div_ceil(PANEL).checked_mul(PANEL * self.row_bytes);
        let total = each.and_then(|each| each.checked_mul(self.experts)).ok_or_else(|| {
            let what = "a size beyond the address space".to_owned();
            BackendError::Unsupported { tensor: name.to_owned(), what }
        })?;
        Bytes::new(total).map_err(|e| BackendError::Device(format!("no {total} bytes for {name}: {e}")))
    }
}

impl Loaded {
    /// Nothing yet; `lazy` as in [`CpuOptions`](super::CpuOptions).
    pub(super) fn new(lazy: bool) -> Self {
        Self { lazy, ..Self::default() }
    }

    /// Packs `view`, now or as it is needed.
    pub(super) fn load(&mut self, view: &TensorView<'_>, core: &Core) -> Result<CpuWeight, BackendError> {
        let shape = CpuShape::of(view)?;
        if view.packed {
            let place = view.place.expect("only files hold packed tensors");
            return Ok(mapped(view, shape, place));
        }
        let packing = shape.format.packing(core.env.isa);
        if self.lazy
            && view.experts > 1
            && let Some(stack) = Stack::new(view, packing, shape.room(view.name)?)
        {
            let stack = Arc::new(stack);
            self.stacks.push(Arc::clone(&stack));
            return Ok(shape.with(Home::Stack(stack)));
        }
        Ok(shape.with(Home::Own(Arc::new(pack(view, shape, core)?))))
    }
}

/// What is packed already.
fn mapped(view: &TensorView<'_>, shape: CpuShape, place: Place<'_>) -> CpuWeight {
    let CpuShape { rows, experts, row_bytes, .. } = shape;
    assert_eq!(view.data.len(), experts * rows.next_multiple_of(PANEL) * row_bytes, "the view was checked");
    shape.with(Home::File(place.file.clone(), place.start))
}

/// Packs panels one behind the other, from panel `first` of the stack on.
///
/// # Panics
/// If `view` is packed, has no such panels, or `to` is no whole number of them.
pub(crate) fn pack_panels(view: &TensorView<'_>, packing: Pack, first: usize, to: &mut [u8]) {
    let row_bytes = view.row_bytes();
    let (panels, zeros) = (view.rows.div_ceil(PANEL), vec![0; row_bytes]);
    assert!(to.len().is_multiple_of((PANEL * row_bytes).max(1)), "whole panels");
    for (i, to) in to.chunks_exact_mut((PANEL * row_bytes).max(1)).enumerate() {
        let (expert, panel) = ((first + i) / panels, (first + i) % panels);
        let row = |r| if r < view.rows { view.row(expert, r) } else { &zeros[..] };
        packing(&std::array::from_fn(|r| row(panel * PANEL + r)), to);
    }
}

fn pack(view: &TensorView<'_>, shape: CpuShape, core: &Core) -> Result<Bytes, BackendError> {
    let CpuShape { format, row_bytes, .. } = shape;
    let panels = view.rows.div_ceil(PANEL);
    assert_eq!(view.data.len(), view.experts * view.rows * row_bytes, "the view was checked");
    let panel_bytes = PANEL * row_bytes;
    let mut bytes = shape.room(view.name)?;
    let packing = format.packing(core.env.isa);
    let share = view.experts * panels / (4 * core.pool.threads());
    let each = (PACK_BYTES / panel_bytes.max(1)).min(share).max(PACK_PANELS);
    if panel_bytes > 0 {
        core.pool.for_each_part(&mut bytes, each * panel_bytes, |_, part, to| {
            pack_panels(view, packing, part * each, to);
        });
    }
    Ok(bytes)
}

/// Norms, biases and factors.
#[derive(Clone, Debug)]
pub struct CpuVector {
    pub(super) values: Vec<f32>,
}

impl CpuVector {
    pub(super) fn new(view: &TensorView<'_>) -> Result<Self, BackendError> {
        let format = format(view.ty);
        let values = view.experts * view.rows * view.cols;
        if !values.is_multiple_of(format.block) || view.ty.row_bytes(values) != view.data.len() {
            let what = format!("a vector of {values} values as {}", format.name);
            return Err(BackendError::Unsupported { tensor: view.name.to_owned(), what });
        }
        let mut vector = Self { values: vec![0.0; values] };
        (format.dequantize)(view.data, &mut vector.values);
        Ok(vector)
    }
}
