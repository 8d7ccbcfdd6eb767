//! The bytes of cache blocks on a device.
//!
//! Keys and values lie as `mistralrs-paged-attn` wants them: keys `[blocks, kv_heads, key_dim / x, block_tokens, x]` with
//! x values in 16 bytes, values `[blocks, kv_heads, value_dim, block_tokens]`. Latent pages hold keys alone, for our own kernel:
//! `[blocks, block_tokens, key_dim]`. Kernels that want them apart (module `plain`) have all pages so: `[blocks, block_tokens, heads * dim]`.

use candle_core::{DType, Device, Tensor};

use super::error::{GpuError, contract};
use super::kernels::Form;
use crate::kv::{GroupLayout, PageType};
use crate::step::BlockCopy;

/// What the kernels read pages of a type as.
///
/// # Errors
/// If they read none of it.
pub(crate) fn element(page: PageType) -> Result<DType, GpuError> {
    match page {
        PageType::F16 => Ok(DType::F16),
        PageType::F32 => Ok(DType::F32),
        PageType::Q8_0 => {
            let what = format!("kv.dtype is {:?}: on a GPU it must be \"f16\" or \"f32\"", page.name());
            Err(GpuError::Absent(what))
        }
    }
}

/// One layer's pages.
pub(super) struct LayerPages {
    pub keys: Tensor,
    /// None for latent pages.
    pub values: Option<Tensor>,
}

/// One group's pages.
pub(super) struct GroupPages {
    pub layers: Vec<LayerPages>,
    pub blocks: usize,
}

/// Every group's pages.
pub(super) struct Pages {
    pub groups: Vec<GroupPages>,
    pub block_tokens: usize,
    pub dtype: DType,
}

impl Pages {
    /// Takes the memory.
    ///
    /// # Errors
    /// If the device has not so much, or the kernels have no layout for a group.
    pub(super) fn new(
        layouts: &[GroupLayout],
        block_tokens: usize,
        page: PageType,
        (device, form): (&Device, Form),
    ) -> Result<Self, GpuError> {
        let dtype = element(page)?;
        let x = 16 / dtype.size_in_bytes();
        let zeros = |shape: &[usize]| match form {
            Form::Stacked => Tensor::zeros(shape, dtype, device),
            // What candle allocates on Metal itself has a power of two of bytes; what it takes from the host has as many as there are
            // (candle-core 0.10.2, metal_backend/device.rs).
            Form::Apart => Tensor::zeros(shape, dtype, &Device::Cpu)?.to_device(device),
        };
        let layer = |g: &GroupLayout| -> Result<LayerPages, GpuError> {
            if g.value_dim == 0 {
                return match g.kv_heads {
                    1 => Ok(LayerPages { keys: zeros(&[g.blocks, block_tokens, g.key_dim])?, values: None }),
                    n => Err(contract("latent pages", format!("{n} heads of keys"))),
                };
            }
            if form == Form::Apart {
                let pages = |dim: usize| zeros(&[g.blocks, block_tokens, g.kv_heads * dim]);
                return Ok(LayerPages { keys: pages(g.key_dim)?, values: Some(pages(g.value_dim)?) });
            }
            if !g.key_dim.is_multiple_of(x) {
                let what = format!("keys of {} values, which is no multiple of {x}", g.key_dim);
                return Err(contract("pages", what));
            }
            Ok(LayerPages {
                keys: zeros(&[g.blocks, g.kv_heads, g.key_dim / x, block_tokens, x])?,
                values: Some(zeros(&[g.blocks, g.kv_heads, g.value_dim, block_tokens])?),
            })
        };
        let group = |g: &GroupLayout| -> Result<GroupPages, GpuError> {
            let layers = (0..g.layers).map(|_| layer(g)).collect::<Result<_, _>>()?;
            Ok(GroupPages { layers, blocks: g.blocks })
        };
        let groups = layouts.iter().map(group).collect::<Result<_, _>>()?;
        Ok(Self { groups, block_tokens, dtype })
    }

    /// Blocks in each group.
    pub(super) fn blocks(&self) -> Vec<usize> {
        self.groups.iter().map(|g| g.blocks).collect()
    }

    /// Copies whole blocks within their groups, in order. (The kernel crate's `copy_blocks` reads pointers to pointers from host
    /// memory, so it is not used.)
    pub(super) fn copy(&self, copies: &[BlockCopy]) -> Result<(), GpuError> {
        for copy in copies {
            let group = self.groups.get(copy.group as usize);
            let group = group.ok_or_else(|| contract("copy", format!("group {}", copy.group)))?;
            let (from, to) = (copy.from.0 as usize, copy.to.0 as usize);
            if from.max(to) >= group.blocks {
                return Err(contract("copy", format!("block {} of {}", from.max(to), group.blocks)));
            }
            for layer in &group.layers {
                for pages in std::iter::once(&layer.keys).chain(&layer.values) {
                    // A source that shares the target's storage is refused.
                    pages.slice_set(&pages.narrow(0, from, 1)?.force_contiguous()?, 0, to)?;
                }
            }
        }
        Ok(())
    }
}
