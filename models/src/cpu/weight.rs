//! Weights in panels.
//!
//! A weight is copied once, panel by panel, straight from the view's bytes; the view may be dropped afterwards. What is packed in the
//! file stays there, in a mapping that servers of one machine share.
//! Rows are padded to whole panels with zeros, so the size is the file's, rounded up to 8 rows a matrix.
//! A table that is also the head is one copy: the gather unpacks single rows of panels.

use std::ops::Range;
use std::sync::{Arc, Weak};

use super::Core;
use super::memory::{Bytes, HUGE};
use super::pool::Pool;
use crate::backend::BackendError;
use crate::gguf;
use crate::quant::{Format, PANEL, Pack, format};
use crate::weights::{Panels, TensorView};

/// Fewest panels that one thread packs at a time.
const PACK_PANELS: usize = 16;
/// Most bytes that one thread packs at a time: a huge page, so that threads seldom wait for each other's to be cleared.
const PACK_BYTES: usize = HUGE;

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
            Home::File(bytes, start) => &bytes[*start..],
        };
        &bytes[(first + panels.start) * len..(first + panels.end) * len]
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

    fn holds(&self, view: &TensorView<'_>, pool: &Pool) -> bool {
        if (self.format.ty, self.cols, self.rows, self.experts)
            != (view.ty, view.cols, view.rows, view.experts)
        {
            return false;
        }
        let differs = std::sync::atomic::AtomicBool::new(false);
        let row_bytes = self.row_bytes;
        pool.for_each(self.experts * self.panels(), |_, i| {
            let (expert, panel) = (i / self.panels(), i % self.panels());
            let mut row = vec![0; row_bytes];
            for r in 0..PANEL.min(self.rows - panel * PANEL) {
                (self.format.unpack)(self.panel(expert, panel), r, &mut row);
                let at = (expert * self.rows + panel * PANEL + r) * row_bytes;
                if row != view.data[at..at + row_bytes] {
                    differs.store(true, std::sync::atomic::Ordering::Relaxed);
                }
            }
        });
        !differs.into_inner()
    }
}

/// What was loaded from where, so that a tensor with two uses is packed once.
#[derive(Debug, Default)]
pub(super) struct Loaded(Vec<(usize, Weak<Bytes>, CpuShape)>);

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

    fn with(self, bytes: Arc<Bytes>) -> CpuWeight {
        let Self { format, cols, rows, experts, row_bytes } = self;
        CpuWeight { format, cols, rows, experts, row_bytes, bytes: Home::Own(bytes) }
    }
}

impl Loaded {
    /// Packs `view`, or returns what was packed from the same place if that is still the same.
    pub(super) fn load(&mut self, view: &TensorView<'_>, core: &Core) -> Result<CpuWeight, BackendError> {
        if let Some(panels) = view.panels {
            return mapped(view, panels);
        }
        let place = view.data.as_ptr() as usize;
        self.0.retain(|(_, bytes, _)| bytes.strong_count() > 0);
        for (at, bytes, shape) in &self.0 {
            if let (true, Some(bytes)) = (*at == place, bytes.upgrade()) {
                let weight = shape.with(bytes);
                if weight.holds(view, &core.pool) {
                    return Ok(weight);
                }
            }
        }
        let shape = CpuShape::of(view)?;
        let bytes = Arc::new(pack(view, shape, core)?);
        self.0.push((place, Arc::downgrade(&bytes), shape));
        Ok(shape.with(bytes))
    }
}

/// What is packed already.
fn mapped(view: &TensorView<'_>, panels: Panels<'_>) -> Result<CpuWeight, BackendError> {
    let CpuShape { format, cols, rows, experts, row_bytes } = CpuShape::of(view)?;
    assert_eq!(view.data.len(), experts * rows.next_multiple_of(PANEL) * row_bytes, "the view was checked");
    let bytes = Home::File(panels.file.clone(), panels.start);
    Ok(CpuWeight { format, cols, rows, experts, row_bytes, bytes })
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
    let unsupported = |what: String| BackendError::Unsupported { tensor: view.name.to_owned(), what };
    let CpuShape { format, row_bytes, .. } = shape;
    let panels = view.rows.div_ceil(PANEL);
    assert_eq!(view.data.len(), view.experts * view.rows * row_bytes, "the view was checked");
    let panel_bytes = PANEL * row_bytes;
    let total = view.experts.checked_mul(panels).and_then(|n| n.checked_mul(panel_bytes));
    let total = total.ok_or_else(|| unsupported("a size beyond the address space".to_owned()))?;
    let mut bytes = Bytes::new(total)
        .map_err(|e| BackendError::Device(format!("no {total} bytes for {}: {e}", view.name)))?;
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
