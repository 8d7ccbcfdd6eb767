//! Weights in panels.
//!
//! A weight is copied once, panel by panel, straight from the view's bytes; the view may be dropped afterwards.
//! Rows are padded to whole panels with zeros, so the size is the file's, rounded up to 8 rows a matrix.
//! A table that is also the head is one copy: the gather unpacks single rows of panels.

use std::ops::Range;
use std::sync::{Arc, Weak};

use super::Core;
use super::memory::{Bytes, HUGE};
use super::pool::Pool;
use crate::backend::BackendError;
use crate::quant::{Format, PANEL, format};
use crate::weights::TensorView;

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
    bytes: Arc<Bytes>,
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
        &self.bytes[(first + panels.start) * len..(first + panels.end) * len]
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
    fn with(self, bytes: Arc<Bytes>) -> CpuWeight {
        let Self { format, cols, rows, experts, row_bytes } = self;
        CpuWeight { format, cols, rows, experts, row_bytes, bytes }
    }
}

impl Loaded {
    /// Packs `view`, or returns what was packed from the same place if that is still the same.
    pub(super) fn load(&mut self, view: &TensorView<'_>, core: &Core) -> Result<CpuWeight, BackendError> {
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
        let weight = pack(view, core)?;
        let CpuWeight { format, cols, rows, experts, row_bytes, ref bytes } = weight;
        self.0.push((place, Arc::downgrade(bytes), CpuShape { format, cols, rows, experts, row_bytes }));
        Ok(weight)
    }
}

fn pack(view: &TensorView<'_>, core: &Core) -> Result<CpuWeight, BackendError> {
    let format = format(view.ty);
    let unsupported = |what: String| BackendError::Unsupported { tensor: view.name.to_owned(), what };
    if !view.cols.is_multiple_of(format.block) {
        let what = format!("{} rows of {} values, no whole number of blocks", format.name, view.cols);
        return Err(unsupported(what));
    }
    let row_bytes = view.ty.row_bytes(view.cols);
    let panels = view.rows.div_ceil(PANEL);
    assert_eq!(view.data.len(), view.experts * view.rows * row_bytes, "the view was checked");
    let panel_bytes = PANEL * row_bytes;
    let total = view.experts.checked_mul(panels).and_then(|n| n.checked_mul(panel_bytes));
    let total = total.ok_or_else(|| unsupported("a size beyond the address space".to_owned()))?;
    let mut bytes = Bytes::new(total)
        .map_err(|e| BackendError::Device(format!("no {total} bytes for {}: {e}", view.name)))?;
    let zeros = vec![0; row_bytes];
    let packing = format.packing(core.env.isa);
    let share = view.experts * panels / (4 * core.pool.threads());
    let each = (PACK_BYTES / panel_bytes.max(1)).min(share).max(PACK_PANELS);
    if panel_bytes > 0 {
        core.pool.for_each_part(&mut bytes, each * panel_bytes, |_, part, to| {
            for (i, to) in to.chunks_exact_mut(panel_bytes).enumerate() {
                let panel = part * each + i;
                let (expert, first) = (panel / panels, panel % panels * PANEL);
                let rows = std::array::from_fn(|r| {
                    if first + r >= view.rows {
                        return &zeros[..];
                    }
                    let at = (expert * view.rows + first + r) * row_bytes;
                    &view.data[at..at + row_bytes]
                });
                packing(&rows, to);
            }
        });
    }
    let (cols, rows, experts) = (view.cols, view.rows, view.experts);
    Ok(CpuWeight { format, cols, rows, experts, row_bytes, bytes: Arc::new(bytes) })
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
