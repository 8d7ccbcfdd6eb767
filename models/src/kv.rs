//! The bytes of cache blocks.
//!
//! Never allocates or frees a block: whose a block is, is the scheduler's business. A block holds all layers
//! of its group: `[layer][K: kv_head, token, key_dim][V: kv_head, token, value_dim]`, so that copying one is
//! one move and a (layer, head) page is contiguous.

use std::marker::PhantomData;
use std::ops::Range;

use half::f16;
use half::slice::HalfFloatSliceExt;
use memmap2::MmapMut;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::step::{BlockCopy, BlockId};

/// Element type of cache pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageType {
    /// Two bytes a value; keys and values are rounded once, when written.
    F16,
    /// Exact.
    F32,
}

impl PageType {
    /// Bytes of one value.
    pub fn bytes(self) -> usize {
        match self {
            Self::F16 => 2,
            Self::F32 => 4,
        }
    }
}

/// Shape of one group's blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupLayout {
    /// Layers that share the group's tables.
    pub layers: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Values of a key.
    pub key_dim: usize,
    /// Values of a value.
    pub value_dim: usize,
    /// Blocks in the pool.
    pub blocks: usize,
}

impl GroupLayout {
    fn key_values(&self, block_tokens: usize) -> usize {
        self.kv_heads * block_tokens * self.key_dim
    }

    fn layer_values(&self, block_tokens: usize) -> usize {
        self.kv_heads * block_tokens * (self.key_dim + self.value_dim)
    }

    /// Values in one block.
    pub fn block_values(&self, block_tokens: usize) -> usize {
        self.layers * self.layer_values(block_tokens)
    }

    /// Values of one position in one layer, over all heads.
    pub fn position_values(&self) -> usize {
        self.kv_heads * (self.key_dim + self.value_dim)
    }

    /// Bytes of the whole pool, if that is a number.
    fn pool_bytes(&self, block_tokens: usize, value: usize) -> Option<usize> {
        let dims = self.key_dim.checked_add(self.value_dim)?;
        [self.kv_heads, block_tokens, self.layers, self.blocks, value]
            .into_iter()
            .try_fold(dims, |product, factor| product.checked_mul(factor))
    }
}

/// The cache does not fit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KvError {
    /// A product of the layout's numbers overflows.
    #[error("cache group {group} is larger than the address space")]
    TooLarge {
        /// Its index.
        group: usize,
    },
    /// The system refused.
    #[error("cannot reserve {bytes} bytes for cache group {group}: {why}")]
    OutOfMemory {
        /// Its index.
        group: usize,
        /// What was asked for.
        bytes: usize,
        /// The system's words.
        why: String,
    },
}

/// A value of a page.
pub trait PageValue:
    Copy + FromBytes + IntoBytes + Immutable + KnownLayout + Send + Sync + std::fmt::Debug + 'static
{
    /// Its name among types.
    const TYPE: PageType;
    /// Rounds to the page's type, to nearest, ties to even.
    fn narrow(from: &[f32], to: &mut [Self]);
    /// Exact.
    fn widen(from: &[Self], to: &mut [f32]);
}

impl PageValue for f32 {
    const TYPE: PageType = PageType::F32;
    fn narrow(from: &[f32], to: &mut [Self]) {
        to.copy_from_slice(from);
    }
    fn widen(from: &[Self], to: &mut [f32]) {
        to.copy_from_slice(from);
    }
}

impl PageValue for f16 {
    const TYPE: PageType = PageType::F16;
    fn narrow(from: &[f32], to: &mut [Self]) {
        to.convert_from_f32_slice(from);
    }
    fn widen(from: &[Self], to: &mut [f32]) {
        from.convert_to_f32_slice(to);
    }
}

/// The pages of one group, all of one type.
#[derive(Debug)]
pub struct Pages<V> {
    layout: GroupLayout,
    block_tokens: usize,
    /// Anonymous, so zeros until written; the system gives memory to what is touched.
    memory: MmapMut,
    bytes: usize,
    value: PhantomData<V>,
}

impl<V: PageValue> Pages<V> {
    fn new(group: usize, layout: GroupLayout, block_tokens: usize) -> Result<Self, KvError> {
        let bytes = layout.pool_bytes(block_tokens, size_of::<V>()).ok_or(KvError::TooLarge { group })?;
        let memory = MmapMut::map_anon(bytes.max(1)).map_err(|e| KvError::OutOfMemory {
            group,
            bytes,
            why: e.to_string(),
        })?;
        // Pages of one layer and head lie apart: with small pages each costs a walk of the page table. Only a wish.
        #[cfg(target_os = "linux")]
        let _ = memory.advise(memmap2::Advice::HugePage);
        Ok(Self { layout, block_tokens, memory, bytes, value: PhantomData })
    }

    /// The group's shape.
    pub fn layout(&self) -> &GroupLayout {
        &self.layout
    }

    /// Every value of the pool.
    pub fn all(&self) -> &[V] {
        <[V]>::ref_from_bytes(&self.memory[..self.bytes])
            .expect("a mapping is aligned to pages and holds whole values")
    }

    /// Every value of the pool, to write at the places that [`Pages::keys_at`] and [`Pages::values_at`] tell.
    pub fn all_mut(&mut self) -> &mut [V] {
        <[V]>::mut_from_bytes(&mut self.memory[..self.bytes])
            .expect("a mapping is aligned to pages and holds whole values")
    }

    fn key_at(&self, block: BlockId, layer: usize, head: usize) -> usize {
        let l = &self.layout;
        debug_assert!(layer < l.layers && head < l.kv_heads);
        block.0 as usize * l.block_values(self.block_tokens)
            + layer * l.layer_values(self.block_tokens)
            + head * self.block_tokens * l.key_dim
    }

    fn value_at(&self, block: BlockId, layer: usize, head: usize) -> usize {
        self.key_at(block, layer, 0)
            + self.layout.key_values(self.block_tokens)
            + head * self.block_tokens * self.layout.value_dim
    }

    /// Where in [`Pages::all`] the keys of one (block, layer, head) are: `[block_tokens, key_dim]`.
    pub fn keys_at(&self, block: BlockId, layer: usize, head: usize) -> Range<usize> {
        let at = self.key_at(block, layer, head);
        at..at + self.block_tokens * self.layout.key_dim
    }

    /// Where in [`Pages::all`] the values of one (block, layer, head) are: `[block_tokens, value_dim]`.
    pub fn values_at(&self, block: BlockId, layer: usize, head: usize) -> Range<usize> {
        let at = self.value_at(block, layer, head);
        at..at + self.block_tokens * self.layout.value_dim
    }

    /// Keys of one (block, layer, head): `[block_tokens, key_dim]`.
    pub fn keys(&self, block: BlockId, layer: usize, head: usize) -> &[V] {
        &self.all()[self.keys_at(block, layer, head)]
    }

    /// Values of one (block, layer, head): `[block_tokens, value_dim]`.
    pub fn values(&self, block: BlockId, layer: usize, head: usize) -> &[V] {
        &self.all()[self.values_at(block, layer, head)]
    }

    /// Writes one token's key and value of one head.
    pub fn write(
        &mut self,
        block: BlockId,
        layer: usize,
        head: usize,
        token: usize,
        key: &[f32],
        value: &[f32],
    ) {
        assert!(token < self.block_tokens, "token index inside a block");
        let (kd, vd) = (self.layout.key_dim, self.layout.value_dim);
        assert!(key.len() == kd && value.len() == vd, "key and value widths");
        let k = self.key_at(block, layer, head) + token * kd;
        let v = self.value_at(block, layer, head) + token * vd;
        let all = self.all_mut();
        V::narrow(key, &mut all[k..k + kd]);
        V::narrow(value, &mut all[v..v + vd]);
    }

    fn copy(&mut self, from: BlockId, to: BlockId) {
        let n = self.layout.block_values(self.block_tokens);
        let from = from.0 as usize * n;
        self.all_mut().copy_within(from..from + n, to.0 as usize * n);
    }
}

/// One group's pages of either type.
#[derive(Debug)]
pub enum GroupPages {
    /// Half precision.
    F16(Pages<f16>),
    /// Single precision.
    F32(Pages<f32>),
}

/// Owns the bytes of every block. Memory is reserved at once and committed as blocks are first written.
#[derive(Debug)]
pub struct KvStore {
    block_tokens: usize,
    groups: Vec<GroupPages>,
}

impl KvStore {
    /// All groups with one page type.
    pub fn new(groups: &[GroupLayout], block_tokens: usize, page: PageType) -> Result<Self, KvError> {
        let pages = |(i, &g): (usize, &GroupLayout)| {
            Ok(match page {
                PageType::F16 => GroupPages::F16(Pages::new(i, g, block_tokens)?),
                PageType::F32 => GroupPages::F32(Pages::new(i, g, block_tokens)?),
            })
        };
        let groups = groups.iter().enumerate().map(pages).collect::<Result<_, _>>()?;
        Ok(Self { block_tokens, groups })
    }

    /// Positions per block.
    pub fn block_tokens(&self) -> usize {
        self.block_tokens
    }

    /// One group's pages.
    pub fn group(&self, group: usize) -> &GroupPages {
        &self.groups[group]
    }

    /// One group's pages, to write.
    pub fn group_mut(&mut self, group: usize) -> &mut GroupPages {
        &mut self.groups[group]
    }

    /// Copies whole blocks within their groups, in order.
    pub fn copy(&mut self, copies: &[BlockCopy]) {
        for c in copies {
            match &mut self.groups[c.group as usize] {
                GroupPages::F16(p) => p.copy(c.from, c.to),
                GroupPages::F32(p) => p.copy(c.from, c.to),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_do_not_overlap_and_copies_move_whole_blocks() {
        let layout = GroupLayout { layers: 2, kv_heads: 3, key_dim: 4, value_dim: 5, blocks: 2 };
        let mut store = KvStore::new(&[layout], 2, PageType::F32).unwrap();
        let GroupPages::F32(pages) = store.group_mut(0) else { panic!("asked for F32") };
        let mut next = 0.0;
        for layer in 0..2 {
            for head in 0..3 {
                for token in 0..2 {
                    let key: Vec<f32> = (0..4).map(|i| next + i as f32).collect();
                    let value: Vec<f32> = (4..9).map(|i| next + i as f32).collect();
                    pages.write(BlockId(0), layer, head, token, &key, &value);
                    next += 9.0;
                }
            }
        }
        store.copy(&[BlockCopy { group: 0, from: BlockId(0), to: BlockId(1) }]);
        let GroupPages::F32(pages) = store.group(0) else { panic!("asked for F32") };
        let mut seen: Vec<f32> = pages.all()[layout.block_values(2)..].to_vec();
        seen.sort_by(f32::total_cmp);
        assert_eq!(seen, (0..108).map(|i| i as f32).collect::<Vec<_>>());
        assert_eq!(pages.keys(BlockId(1), 1, 2)[4], 99.0);
        assert_eq!(pages.values(BlockId(1), 0, 0)[..2], [4.0, 5.0]);
    }
    #[test]
    fn a_pool_that_does_not_fit_is_an_error() {
        let layout = GroupLayout { layers: 1, kv_heads: 1, key_dim: 64, value_dim: 64, blocks: 1 << 40 };
        assert!(matches!(
            KvStore::new(&[layout], 16, PageType::F16),
            Err(KvError::OutOfMemory { group: 0, .. })
        ));
        let layout = GroupLayout { blocks: usize::MAX, ..layout };
        assert_eq!(KvStore::new(&[layout], 16, PageType::F16).err(), Some(KvError::TooLarge { group: 0 }));
    }

    #[test]
    fn half_precision_pages_round_to_nearest_even() {
        let from = [1.0 + 1.0 / 2048.0, 1.0 + 3.0 / 2048.0, -65504.0, 1e-8, 5.9604645e-8, f32::INFINITY];
        let mut half = [f16::ZERO; 6];
        f16::narrow(&from, &mut half);
        let mut back = [0.0; 6];
        f16::widen(&half, &mut back);
        assert_eq!(back, [1.0, 1.0 + 2.0 / 1024.0, -65504.0, 0.0, 5.9604645e-8, f32::INFINITY]);
    }
}
