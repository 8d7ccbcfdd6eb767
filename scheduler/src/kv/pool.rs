//! Reference-counted pool of one cache group's blocks.
//!
//! Invariant (I1): every block is in exactly one of {free, referenced, cached-idle}; a cached block without
//! references is idle. Order of `idle` is eviction order: what no one is likely to ask for, then what was let go longest ago.
//! Absent on purpose: bytes, tokens, clocks.

use std::collections::BTreeMap;

use frugal_models::step::BlockId;

use super::prefix::Key;

#[derive(Clone, Debug, Default)]
struct Slot {
    refs: u32,
    key: Option<Key>,
    /// Its key in `idle`, while it is there.
    stamp: Stamp,
}

/// When a block was let go, those that are worth keeping after all others.
type Stamp = (Worth, u64);

/// Whether someone is likely to ask for a block that was let go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Worth {
    Little,
    #[default]
    Much,
}

/// How many blocks are where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolCounts {
    /// Never used, or their content was dropped.
    pub free: u32,
    /// In some sequence's table.
    pub referenced: u32,
    /// In no table, but the prefix cache knows what they hold; evicted when blocks run out.
    pub cached: u32,
}

#[derive(Clone, Debug)]
pub(crate) struct Pool {
    slots: Vec<Slot>,
    free: Vec<BlockId>,
    idle: BTreeMap<Stamp, BlockId>,
    released: u64,
}

impl Pool {
    pub(crate) fn new(blocks: u32) -> Self {
        Self {
            slots: vec![Slot::default(); blocks as usize],
            free: (0..blocks).rev().map(BlockId).collect(),
            idle: BTreeMap::new(),
            released: 0,
        }
    }

    /// Blocks that `alloc` can still give.
    pub(crate) fn available(&self) -> u32 {
        (self.free.len() + self.idle.len()) as u32
    }

    /// A block with one reference, and the key under which its former content was cached.
    pub(crate) fn alloc(&mut self) -> Option<(BlockId, Option<Key>)> {
        let block = match self.free.pop() {
            Some(block) => block,
            None => self.idle.pop_first()?.1,
        };
        let slot = self.slot(block);
        assert_eq!(slot.refs, 0, "block {block:?} was referenced and yet for the taking");
        slot.refs = 1;
        Some((block, slot.key.take()))
    }

    pub(crate) fn retain(&mut self, block: BlockId) {
        let slot = self.slot(block);
        assert!(slot.refs > 0 || slot.key.is_some(), "block {block:?} is free");
        slot.refs += 1;
        if slot.refs == 1 {
            let stamp = slot.stamp;
            assert_eq!(self.idle.remove(&stamp), Some(block), "an unreferenced cached block is idle");
        }
    }

    pub(crate) fn release(&mut self, block: BlockId, worth: Worth) {
        let stamp = (worth, self.released);
        let slot = self.slot(block);
        assert!(slot.refs > 0, "block {block:?} released too often");
        slot.refs -= 1;
        if slot.refs > 0 {
            return;
        }
        if slot.key.is_some() {
            slot.stamp = stamp;
            self.released += 1;
            self.idle.insert(stamp, block);
        } else {
            self.free.push(block);
        }
    }

    /// From now on the prefix cache knows this block as `key`.
    pub(crate) fn cache(&mut self, block: BlockId, key: Key) {
        let slot = self.slot(block);
        assert!(slot.refs > 0 && slot.key.is_none(), "only a block in use becomes cached, once");
        slot.key = Some(key);
    }

    pub(crate) fn counts(&self) -> PoolCounts {
        let total = self.slots.len() as u32;
        let (free, cached) = (self.free.len() as u32, self.idle.len() as u32);
        PoolCounts { free, cached, referenced: total.saturating_sub(free + cached) }
    }

    /// I1 and I2: `holders[b]` is the number of tables that hold block `b`.
    pub(crate) fn check(&self, holders: &[u32]) -> Result<(), String> {
        let mut place = vec![0u32; self.slots.len()];
        for b in self.free.iter().chain(self.idle.values()) {
            place[b.0 as usize] += 1;
        }
        for (i, slot) in self.slots.iter().enumerate() {
            if slot.refs != holders[i] {
                return Err(format!(
                    "I2: block {i} counts {} references, {} tables hold it",
                    slot.refs, holders[i]
                ));
            }
            if place[i] != u32::from(slot.refs == 0) {
                return Err(format!("I1: block {i} with {} references is in {} lists", slot.refs, place[i]));
            }
            if slot.refs == 0
                && slot.key.is_some() != (self.idle.get(&slot.stamp) == Some(&BlockId(i as u32)))
            {
                return Err(format!("I1: block {i} is idle without being cached, or free while cached"));
            }
        }
        Ok(())
    }

    pub(crate) fn key(&self, block: BlockId) -> Option<Key> {
        self.slots[block.0 as usize].key
    }

    fn slot(&mut self, block: BlockId) -> &mut Slot {
        &mut self.slots[block.0 as usize]
    }
}
