//! The bytes of cache blocks.
//!
//! Never allocates or frees a block: whose a block is, is the scheduler's business. A block holds all layers
//! of its group: `[layer][K: kv_head, token, key_dim][V: kv_head, token, value_dim]`, so that copying one is
//! one move and a (layer, head) page is contiguous.

use half::f16;

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
}

/// A value of a page.
pub trait PageValue: Copy + Default + Send + Sync + 'static {
    /// Rounds to the page's type.
    fn from_f32(x: f32) -> Self;
    /// Exact.
    fn to_f32(self) -> f32;
}

impl PageValue for f32 {
    fn from_f32(x: f32) -> Self {
        x
    }
    fn to_f32(self) -> f32 {
        self
    }
}

impl PageValue for f16 {
    fn from_f32(x: f32) -> Self {
        f16::from_f32(x)
    }
    fn to_f32(self) -> f32 {
        f16::to_f32(self)
    }
}

/// The pages of one group, all of one type.
#[derive(Debug)]
pub struct Pages<V> {
    layout: GroupLayout,
    block_tokens: usize,
    values: Vec<V>,
}

impl<V: PageValue> Pages<V> {
    fn new(layout: GroupLayout, block_tokens: usize) -> Self {
        let values = vec![V::default(); layout.blocks * layout.block_values(block_tokens)];
        Self { layout, block_tokens, values }
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

    /// Keys of one (block, layer, head): `[block_tokens, key_dim]`.
    pub fn keys(&self, block: BlockId, layer: usize, head: usize) -> &[V] {
        let at = self.key_at(block, layer, head);
        &self.values[at..at + self.block_tokens * self.layout.key_dim]
    }

    /// Values of one (block, layer, head): `[block_tokens, value_dim]`.
    pub fn values(&self, block: BlockId, layer: usize, head: usize) -> &[V] {
        let at = self.value_at(block, layer, head);
        &self.values[at..at + self.block_tokens * self.layout.value_dim]
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
        for (to, &from) in self.values[k..k + kd].iter_mut().zip(key) {
            *to = V::from_f32(from);
        }
        for (to, &from) in self.values[v..v + vd].iter_mut().zip(value) {
            *to = V::from_f32(from);
        }
    }

    fn copy(&mut self, from: BlockId, to: BlockId) {
        let n = self.layout.block_values(self.block_tokens);
        let from = from.0 as usize * n;
        self.values.copy_within(from..from + n, to.0 as usize * n);
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
    pub fn new(groups: &[GroupLayout], block_tokens: usize, page: PageType) -> Self {
        let groups = groups
            .iter()
            .map(|&g| match page {
                PageType::F16 => GroupPages::F16(Pages::new(g, block_tokens)),
                PageType::F32 => GroupPages::F32(Pages::new(g, block_tokens)),
            })
            .collect();
        Self { block_tokens, groups }
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
        let mut store = KvStore::new(&[layout], 2, PageType::F32);
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
        let mut seen: Vec<f32> = pages.values[layout.block_values(2)..].to_vec();
        seen.sort_by(f32::total_cmp);
        assert_eq!(seen, (0..108).map(|i| i as f32).collect::<Vec<_>>());
        assert_eq!(pages.keys(BlockId(1), 1, 2)[4], 99.0);
        assert_eq!(pages.values(BlockId(1), 0, 0)[..2], [4.0, 5.0]);
    }
}
