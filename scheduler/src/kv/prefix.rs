//! Automatic prefix cache: which blocks hold the past of which tokens.
//!
//! A block's key is a hash chained over all tokens before and in it, rooted in the model's digest, the
//! cache's format and the isolation domain; a hit is verified against the block's tokens and its parent's key
//! all the same. Absent on purpose: eviction, which is the pools' (they say which key has gone).

use std::collections::HashMap;

use frugal_models::step::{BlockId, TokenId};
use sha2::{Digest, Sha256};

/// Bump when the meaning of cached bytes changes.
const CACHE_FORMAT: u32 = 1;

/// Identity of a prefix that ends with a full block, or of a root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key([u8; 32]);

/// Who may hit what is stored under a root.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Scope {
    /// All requests of an isolation domain.
    Domain([u8; 32]),
    /// The choices of one request: all the sharing there is with the prefix cache off.
    Request(u64),
}

impl Key {
    pub(crate) fn root(digest: &[u8; 32], scope: Scope) -> Self {
        let mut h = Sha256::new();
        h.update(digest);
        h.update(CACHE_FORMAT.to_le_bytes());
        match scope {
            Scope::Domain(domain) => {
                h.update([0]);
                h.update(domain);
            }
            Scope::Request(id) => {
                h.update([1]);
                h.update(id.to_le_bytes());
            }
        }
        Self(h.finalize().into())
    }

    pub(crate) fn child(self, tokens: &[TokenId]) -> Self {
        let mut h = Sha256::new();
        h.update(self.0);
        for t in tokens {
            h.update(t.0.to_le_bytes());
        }
        Self(h.finalize().into())
    }
}

/// A full block's place in its chain.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Link<'a> {
    pub(crate) key: Key,
    pub(crate) parent: Key,
    pub(crate) tokens: &'a [TokenId],
}

#[derive(Clone, Debug)]
struct Entry {
    parent: Key,
    tokens: Box<[TokenId]>,
    /// One per cache group; for a `State` group the checkpoint after the block's last position.
    blocks: Vec<Option<BlockId>>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct PrefixIndex {
    entries: HashMap<Key, Entry>,
}

impl PrefixIndex {
    /// The blocks known for a link, one per group.
    pub(crate) fn get(&self, link: Link<'_>) -> Option<&[Option<BlockId>]> {
        let entry = self.entries.get(&link.key)?;
        (entry.parent == link.parent && *entry.tokens == *link.tokens).then_some(&entry.blocks)
    }

    /// Whether the block was taken: the first to come stays.
    pub(crate) fn insert(&mut self, link: Link<'_>, groups: usize, group: usize, block: BlockId) -> bool {
        let entry = self.entries.entry(link.key).or_insert_with(|| Entry {
            parent: link.parent,
            tokens: link.tokens.into(),
            blocks: vec![None; groups],
        });
        let same = entry.parent == link.parent && *entry.tokens == *link.tokens;
        if !same || entry.blocks[group].is_some() {
            return false;
        }
        entry.blocks[group] = Some(block);
        true
    }

    /// The block cached as `key` in `group` was evicted.
    pub(crate) fn remove(&mut self, key: Key, group: usize) {
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.blocks[group] = None;
            if entry.blocks.iter().all(Option::is_none) {
                self.entries.remove(&key);
            }
        }
    }

    /// Every (key, group, block) it would give out.
    pub(crate) fn blocks(&self) -> impl Iterator<Item = (Key, usize, BlockId)> + '_ {
        self.entries.iter().flat_map(|(&key, entry)| {
            entry.blocks.iter().enumerate().filter_map(move |(g, b)| b.map(|b| (key, g, b)))
        })
    }
}
