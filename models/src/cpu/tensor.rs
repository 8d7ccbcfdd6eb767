//! Activations.

use std::sync::{Arc, OnceLock};

use zerocopy::IntoBytes;

use super::Core;
use super::memory::Recycled;
use crate::quant::{ActKind, act_bytes, encode};

/// Rows that one thread encodes at a time.
const ENCODE_ROWS: usize = 4;

/// `[rows, width]` F32, with its encoded forms once some product has asked for them.
#[derive(Debug)]
pub struct CpuTensor {
    pub(super) rows: usize,
    pub(super) width: usize,
    values: Recycled<f32>,
    q8x32: OnceLock<Recycled<u8>>,
    q8x256: OnceLock<Recycled<u8>>,
    /// Which of the batch's tokens the rows are; all of them, in order, if `None`.
    pub(super) tokens: Option<Arc<[u32]>>,
}

impl CpuTensor {
    pub(super) fn new(rows: usize, width: usize, values: Recycled<f32>, tokens: Option<Arc<[u32]>>) -> Self {
        assert_eq!(values.len(), rows * width, "rows of the width");
        Self { rows, width, values, q8x32: OnceLock::new(), q8x256: OnceLock::new(), tokens }
    }

    pub(super) fn values(&self) -> &[f32] {
        &self.values
    }

    /// The values, to change: encoded forms are forgotten.
    pub(super) fn values_mut(&mut self) -> &mut [f32] {
        self.q8x32.take();
        self.q8x256.take();
        &mut self.values
    }

    pub(super) fn row(&self, i: usize) -> &[f32] {
        &self.values[i * self.width..(i + 1) * self.width]
    }

    /// The rows as products of `kind` read them; encoded at the first call.
    pub(super) fn columns(&self, core: &Core, kind: ActKind) -> Columns<'_> {
        let cell = match kind {
            ActKind::F32 => {
                const { assert!(cfg!(target_endian = "little"), "encoded F32 is little-endian") };
                return Columns { bytes: self.values.as_bytes(), stride: 4 * self.width };
            }
            ActKind::Q8x32 => &self.q8x32,
            ActKind::Q8x256 => &self.q8x256,
        };
        let stride = act_bytes(kind, self.width);
        let bytes = cell.get_or_init(|| {
            let isa = core.env.isa;
            let mut bytes = core.env.bytes.take(self.rows * stride);
            core.pool.for_each_part(&mut bytes, ENCODE_ROWS * stride, |_, part, to| {
                for (i, to) in to.chunks_exact_mut(stride).enumerate() {
                    encode(isa, kind, self.row(part * ENCODE_ROWS + i), to);
                }
            });
            bytes
        });
        Columns { bytes, stride }
    }
}

/// Encoded activations, one column a token.
#[derive(Clone, Copy, Debug)]
pub(super) struct Columns<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) stride: usize,
}

impl<'a> Columns<'a> {
    pub(super) fn get(&self, i: usize) -> &'a [u8] {
        &self.bytes[i * self.stride..(i + 1) * self.stride]
    }
}
