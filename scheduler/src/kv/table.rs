//! What a sequence holds of the cache.

use frugal_models::step::{BlockId, BlockTable, Geometry};

use super::prefix::Key;

/// One table per cache group, and the identity of the sequence's full blocks.
#[derive(Clone, Debug)]
pub(crate) struct SeqKv {
    pub(crate) tables: Vec<BlockTable>,
    pub(crate) root: Key,
    /// Keys of the first full blocks of its tokens, as far as they were needed. Tokens are only ever appended, so
    /// keys stay true when the blocks are gone.
    pub(crate) chain: Vec<Key>,
    /// Counts of its first blocks after which another sequence is likely to go on as it did: what a window sees from there is worth keeping.
    pub(crate) forks: [usize; 3],
    /// Blocks held until the step in flight is committed, by group: checkpoints read or being made.
    pub(crate) pins: Vec<Pin>,
}

/// A block that a copy of the step in flight reads or writes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pin {
    pub(crate) group: usize,
    pub(crate) block: BlockId,
    /// Known to the prefix cache once the step is good, as the state after so many blocks.
    pub(crate) publish: Option<usize>,
}

impl SeqKv {
    pub(crate) fn new(geometry: &Geometry, root: Key) -> Self {
        let tables = vec![BlockTable::default(); geometry.groups.len()];
        Self { tables, root, chain: Vec::new(), forks: [0; 3], pins: Vec::new() }
    }

    /// Key before block `index`.
    pub(crate) fn parent(&self, index: usize) -> Key {
        index.checked_sub(1).map_or(self.root, |i| self.chain[i])
    }

    pub(crate) fn holds_blocks(&self) -> bool {
        self.tables.iter().any(|t| !t.blocks.is_empty())
    }
}
