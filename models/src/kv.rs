//! The bytes of cache blocks.
//!
//! Never allocates or frees a block: whose a block is, is the scheduler's business. A pool is
//! `[layer][block][K: kv_head, token, key_dim][V: kv_head, token, value_dim]`: a step goes through a layer at a time, so what it reads and
//! writes then lies on few pages of the system's, and a (layer, head) page is contiguous. What a key or a value is as bytes,
//! [`PageType`] says.

use std::ops::Range;

use memmap2::MmapMut;

use crate::step::{BlockCopy, BlockId};

pub use frugal_kernels::page::PageType;

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

/// The pages of one group.
#[derive(Debug)]
pub struct Pages {
    layout: GroupLayout,
    page: PageType,
    block_tokens: usize,
    /// Bytes of a key and of a value.
    key: usize,
    value: usize,
    /// Anonymous, so zeros until written; the system gives memory to what is touched.
    memory: MmapMut,
    bytes: usize,
}

impl Pages {
    fn new(group: usize, layout: GroupLayout, block_tokens: usize, page: PageType) -> Result<Self, KvError> {
        let (key, value) = (page.row_bytes(layout.key_dim), page.row_bytes(layout.value_dim));
        let bytes = [layout.kv_heads, block_tokens, layout.layers, layout.blocks]
            .into_iter()
            .try_fold(key.saturating_add(value), usize::checked_mul)
            .ok_or(KvError::TooLarge { group })?;
        let memory = MmapMut::map_anon(bytes.max(1)).map_err(|e| KvError::OutOfMemory {
            group,
            bytes,
            why: e.to_string(),
        })?;
        // Pages of one layer and head lie apart: with small pages each costs a walk of the page table. Only a wish.
        #[cfg(target_os = "linux")]
        let _ = memory.advise(memmap2::Advice::HugePage);
        Ok(Self { layout, page, block_tokens, key, value, memory, bytes })
    }

    /// The group's shape.
    pub fn layout(&self) -> &GroupLayout {
        &self.layout
    }

    /// What its rows are.
    pub fn page(&self) -> PageType {
        self.page
    }

    /// Bytes of one head's key, and of its value, of one token.
    pub fn row_bytes(&self) -> [usize; 2] {
        [self.key, self.value]
    }

    /// Bytes of one position in one layer, over all heads.
    pub fn position_bytes(&self) -> usize {
        self.layout.kv_heads * (self.key + self.value)
    }

    fn layer_bytes(&self) -> usize {
        self.block_tokens * self.position_bytes()
    }

    /// Every byte of the pool.
    pub fn all(&self) -> &[u8] {
        &self.memory[..self.bytes]
    }

    /// Every byte of the pool, to write at the places that [`Pages::keys_at`] and [`Pages::values_at`] tell.
    pub fn all_mut(&mut self) -> &mut [u8] {
        &mut self.memory[..self.bytes]
    }

    fn layer_at(&self, block: BlockId, layer: usize) -> usize {
        debug_assert!(layer < self.layout.layers);
        debug_assert!((block.0 as usize) < self.layout.blocks);
        (layer * self.layout.blocks + block.0 as usize) * self.layer_bytes()
    }

    /// Where in [`Pages::all`] the keys of one (block, layer, head) are: `[block_tokens]` rows.
    pub fn keys_at(&self, block: BlockId, layer: usize, head: usize) -> Range<usize> {
        debug_assert!(head < self.layout.kv_heads);
        let len = self.block_tokens * self.key;
        let at = self.layer_at(block, layer) + head * len;
        at..at + len
    }

    /// Where in [`Pages::all`] the values of one (block, layer, head) are: `[block_tokens]` rows.
    pub fn values_at(&self, block: BlockId, layer: usize, head: usize) -> Range<usize> {
        debug_assert!(head < self.layout.kv_heads);
        let len = self.block_tokens * self.value;
        let keys = self.layout.kv_heads * self.block_tokens * self.key;
        let at = self.layer_at(block, layer) + keys + head * len;
        at..at + len
    }

    /// Keys of one (block, layer, head): `[block_tokens]` rows.
    pub fn keys(&self, block: BlockId, layer: usize, head: usize) -> &[u8] {
        &self.all()[self.keys_at(block, layer, head)]
    }

    /// Values of one (block, layer, head): `[block_tokens]` rows.
    pub fn values(&self, block: BlockId, layer: usize, head: usize) -> &[u8] {
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
        let (layout, page) = (self.layout, self.page);
        assert!(key.len() == layout.key_dim && value.len() == layout.value_dim, "key and value widths");
        let k = self.keys_at(block, layer, head).start + token * self.key;
        let v = self.values_at(block, layer, head).start + token * self.value;
        let [key_bytes, value_bytes] = self.row_bytes();
        let all = self.all_mut();
        page.write(key, &mut all[k..k + key_bytes]);
        page.write(value, &mut all[v..v + value_bytes]);
    }

    fn copy(&mut self, from: BlockId, to: BlockId) {
        let n = self.layer_bytes();
        for layer in 0..self.layout.layers {
            let (from, to) = (self.layer_at(from, layer), self.layer_at(to, layer));
            self.all_mut().copy_within(from..from + n, to);
        }
    }
}

/// Owns the bytes of every block. Memory is reserved at once and committed as blocks are first written.
#[derive(Debug)]
pub struct KvStore {
    block_tokens: usize,
    groups: Vec<Pages>,
}

impl KvStore {
    /// All groups with one page type.
    pub fn new(groups: &[GroupLayout], block_tokens: usize, page: PageType) -> Result<Self, KvError> {
        let pages = |(i, &g): (usize, &GroupLayout)| Pages::new(i, g, block_tokens, page);
        let groups = groups.iter().enumerate().map(pages).collect::<Result<_, _>>()?;
        Ok(Self { block_tokens, groups })
    }

    /// Positions per block.
    pub fn block_tokens(&self) -> usize {
        self.block_tokens
    }

    /// One group's pages.
    pub fn group(&self, group: usize) -> &Pages {
        &self.groups[group]
    }

    /// One group's pages, to write.
    pub fn group_mut(&mut self, group: usize) -> &mut Pages {
        &mut self.groups[group]
    }

    /// Copies whole blocks within their groups, in order.
    pub fn copy(&mut self, copies: &[BlockCopy]) {
        for c in copies {
            self.groups[c.group as usize].copy(c.from, c.to);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_do_not_overlap_and_copies_move_whole_blocks() {
        let layout = GroupLayout { layers: 2, kv_heads: 3, key_dim: 34, value_dim: 5, blocks: 2 };
        for page in PageType::ALL {
            let mut store = KvStore::new(&[layout], 2, page).unwrap();
            let places: Vec<_> = (0..12).map(|i| (i / 6, i / 2 % 3, i % 2)).collect();
            // Small integers and a largest of 127 in each block are exact in every type.
            let row = |place: usize, len: usize| -> Vec<f32> {
                (0..len).map(|i| if i % 32 == 0 { 127.0 } else { (place * 7 + i) as f32 }).collect()
            };
            for (i, &(layer, head, token)) in places.iter().enumerate() {
                let pages = store.group_mut(0);
                pages.write(BlockId(0), layer, head, token, &row(i, 34), &row(i + 1, 5));
            }
            store.copy(&[BlockCopy { group: 0, from: BlockId(0), to: BlockId(1) }]);
            let pages = store.group(0);
            let [key, value] = pages.row_bytes();
            let mut seen = vec![0; pages.all().len()];
            for block in [0, 1].map(BlockId) {
                for (i, &(layer, head, token)) in places.iter().enumerate() {
                    let (mut k, mut v) = ([0.0; 34], [0.0; 5]);
                    page.widen(&pages.keys(block, layer, head)[token * key..][..key], &mut k);
                    page.widen(&pages.values(block, layer, head)[token * value..][..value], &mut v);
                    assert_eq!((k.to_vec(), v.to_vec()), (row(i, 34), row(i + 1, 5)), "{page:?}");
                    if token == 0 {
                        pages.keys_at(block, layer, head).for_each(|at| seen[at] += 1);
                        pages.values_at(block, layer, head).for_each(|at| seen[at] += 1);
                    }
                }
            }
            assert!(seen.iter().all(|&n| n == 1), "{page:?}: every byte is of one place");
        }
    }

    #[test]
    fn a_pool_that_does_not_fit_is_an_error() {
        let layout = GroupLayout { layers: 1, kv_heads: 1, key_dim: 64, value_dim: 64, blocks: 1 << 40 };
        assert!(matches!(
            KvStore::new(&[layout], 16, PageType::F16),
            Err(KvError::OutOfMemory { group: 0, .. })
        ));
        for layout in
            [GroupLayout { blocks: usize::MAX, ..layout }, GroupLayout { key_dim: usize::MAX, ..layout }]
        {
            for page in PageType::ALL {
                assert_eq!(KvStore::new(&[layout], 16, page).err(), Some(KvError::TooLarge { group: 0 }));
            }
        }
    }
}
