//! Which block is whose.
//!
//! Blocks become immutable when full, and only full blocks are shared, so nothing is ever copied on write.
//!
//! A pool of windows is small beside the prompts that pass through it, and a hit needs only what a window sees from its end. So of the blocks
//! that leave a window those are kept longest from which another sequence is likely to go on: before the end of the prompt, before
//! the end of the hit, and where this sequence left the path of an older one, which only the groups over the whole context still know.
//!
//! Absent on purpose: the bytes, which are `models::kv`'s.

pub(crate) mod group;
pub(crate) mod pool;
pub(crate) mod prefix;
pub(crate) mod table;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::ops::Range;

use frugal_models::step::{BlockCopy, BlockId, Geometry, GroupKind, TokenId};

use self::group::first_needed;
use self::pool::{Pool, PoolCounts, Worth};
use self::prefix::{Key, Link, PrefixIndex};
use self::table::{Pin, SeqKv};

/// All cache groups' pools and the prefix cache over them.
#[derive(Clone, Debug)]
pub(crate) struct KvCache {
    block_tokens: u32,
    kinds: Vec<GroupKind>,
    pools: Vec<Pool>,
    index: PrefixIndex,
}

impl KvCache {
    pub(crate) fn new(geometry: &Geometry) -> Self {
        assert!(geometry.block_tokens > 0, "a block holds at least one position");
        Self {
            block_tokens: geometry.block_tokens,
            kinds: geometry.groups.iter().map(|g| g.kind).collect(),
            pools: geometry.groups.iter().map(|g| Pool::new(g.blocks)).collect(),
            index: PrefixIndex::default(),
        }
    }

    pub(crate) fn has_state(&self) -> bool {
        self.kinds.contains(&GroupKind::State)
    }

    /// Takes the longest cached prefix of at most `limit` tokens for a sequence that holds nothing and whose prompt has `prompt` tokens; the
    /// positions taken.
    ///
    /// Every group must be able to go on from there: `Full` with all blocks, `Window` with those the next query sees,
    /// `State` with a checkpoint exactly there (pinned, for [`Self::restore`]).
    pub(crate) fn adopt(&mut self, kv: &mut SeqKv, tokens: &[TokenId], limit: u32, prompt: u32) -> u32 {
        assert!(!kv.holds_blocks() && kv.pins.is_empty(), "a sequence starts with empty hands");
        let (blocks, path) = self.longest_hit(kv, tokens, limit);
        let end = blocks as u32 * self.block_tokens;
        kv.forks = [blocks, path, (prompt.saturating_sub(1) / self.block_tokens) as usize];
        if blocks == 0 {
            return 0;
        }
        for group in 0..self.kinds.len() {
            let kind = self.kinds[group];
            if kind == GroupKind::State {
                let block = self.cached(kv, tokens, blocks - 1, group).expect("the hit has a checkpoint");
                self.pools[group].retain(block);
                kv.pins.push(Pin { group, block, publish: None });
                continue;
            }
            let first = first_needed(kind, self.block_tokens, end);
            kv.tables[group].first = first;
            for index in first as usize..blocks {
                let block = self.cached(kv, tokens, index, group).expect("the hit has all blocks");
                self.pools[group].retain(block);
                kv.tables[group].blocks.push(block);
            }
        }
        end
    }

    /// Of a sequence that holds nothing the positions that [`Self::adopt`] would take, and how many more it could take once
    /// the blocks `coming` are known.
    pub(crate) fn coming(
        &self,
        kv: &mut SeqKv,
        tokens: &[TokenId],
        limit: u32,
        coming: &HashSet<Key>,
    ) -> (u32, u32) {
        let (hit, _) = self.longest_hit(kv, tokens, limit);
        let limit = limit.min(tokens.len() as u32) / self.block_tokens;
        let more = kv.chain[hit..limit as usize].iter().take_while(|key| coming.contains(key)).count();
        (hit as u32 * self.block_tokens, more as u32 * self.block_tokens)
    }

    /// Keys of the blocks that become full between positions `start` and `end`.
    pub(crate) fn keys<'a>(
        &self,
        kv: &'a mut SeqKv,
        tokens: &[TokenId],
        start: u32,
        end: u32,
    ) -> impl Iterator<Item = Key> + use<'a> {
        let (start, end) = ((start / self.block_tokens) as usize, (end / self.block_tokens) as usize);
        self.extend_chain(kv, tokens, end);
        kv.chain[start..end].iter().copied()
    }

    /// In blocks, and how many of them the groups over the whole context know.
    fn longest_hit(&self, kv: &mut SeqKv, tokens: &[TokenId], limit: u32) -> (usize, usize) {
        let limit = (limit as usize).min(tokens.len()) / self.block_tokens as usize;
        self.extend_chain(kv, tokens, limit);
        let missing = |index: usize, group: usize| self.cached(kv, tokens, index, group).is_none();
        let full = |g: &usize| self.kinds[*g] == GroupKind::Full;
        let run =
            (0..limit).take_while(|&i| !(0..self.kinds.len()).filter(full).any(|g| missing(i, g))).count();
        let ends_well = |&blocks: &usize| {
            self.kinds.iter().enumerate().all(|(g, &kind)| match kind {
                GroupKind::Full => true,
                GroupKind::State => !missing(blocks - 1, g),
                GroupKind::Window { .. } => {
                    let first = first_needed(kind, self.block_tokens, blocks as u32 * self.block_tokens);
                    !(first as usize..blocks).rev().any(|i| missing(i, g))
                }
            })
        };
        // A window of one position needs nothing of the past, and yet only what was computed is a hit.
        let known = |&blocks: &usize| self.index.get(self.link(kv, tokens, blocks - 1)).is_some();
        let hit = (1..=run).rev().find(|blocks| known(blocks) && ends_well(blocks)).unwrap_or(0);
        (hit, if self.kinds.contains(&GroupKind::Full) { run } else { hit })
    }

    fn link<'a>(&self, kv: &SeqKv, tokens: &'a [TokenId], index: usize) -> Link<'a> {
        let bt = self.block_tokens as usize;
        Link { key: kv.chain[index], parent: kv.parent(index), tokens: &tokens[index * bt..(index + 1) * bt] }
    }

    fn cached(&self, kv: &SeqKv, tokens: &[TokenId], index: usize, group: usize) -> Option<BlockId> {
        self.index.get(self.link(kv, tokens, index))?[group]
    }

    fn extend_chain(&self, kv: &mut SeqKv, tokens: &[TokenId], blocks: usize) {
        let bt = self.block_tokens as usize;
        for index in kv.chain.len()..blocks {
            kv.chain.push(kv.parent(index).child(&tokens[index * bt..(index + 1) * bt]));
        }
    }

    /// How many of `want` positions from `start` on the blocks still available can hold, less `reserve` of every group.
    pub(crate) fn fit(&self, kv: &SeqKv, start: u32, want: u32, reserve: u32) -> u32 {
        let mut fit = u64::from(want);
        for (group, pool) in self.pools.iter().enumerate() {
            let table = &kv.tables[group];
            let held = table.blocks.len() as u64;
            let available = u64::from(pool.available().saturating_sub(reserve));
            fit = fit.min(match self.kinds[group] {
                GroupKind::State if held + available == 0 => 0,
                GroupKind::State => fit,
                _ => {
                    let covered = (u64::from(table.first) + held + available) * u64::from(self.block_tokens);
                    covered.saturating_sub(u64::from(start))
                }
            });
        }
        fit as u32
    }

    /// Whether positions up to `len` would leave `reserve` blocks available in every `Full` group.
    pub(crate) fn leaves(&self, kv: &SeqKv, len: u32, reserve: u32) -> bool {
        self.kinds.iter().enumerate().filter(|(_, k)| **k == GroupKind::Full).all(|(group, _)| {
            let more = u64::from(len.div_ceil(self.block_tokens))
                .saturating_sub(kv.tables[group].blocks.len() as u64);
            more + u64::from(reserve) <= u64::from(self.pools[group].available())
        })
    }

    /// Makes the tables cover positions before `end`, which [`Self::fit`] has allowed.
    pub(crate) fn grow(&mut self, kv: &mut SeqKv, end: u32) {
        for group in 0..self.kinds.len() {
            let upto = match self.kinds[group] {
                GroupKind::State => 1,
                _ => end.div_ceil(self.block_tokens),
            };
            while kv.tables[group].first + (kv.tables[group].blocks.len() as u32) < upto {
                let block = self.take(group).expect("fit was asked first");
                kv.tables[group].blocks.push(block);
            }
        }
    }

    fn take(&mut self, group: usize) -> Option<BlockId> {
        let (block, evicted) = self.pools[group].alloc()?;
        if let Some(key) = evicted {
            self.index.remove(key, group);
        }
        Some(block)
    }

    /// The copies that put adopted checkpoints into the sequence's own state blocks.
    pub(crate) fn restore(&self, kv: &SeqKv) -> Vec<BlockCopy> {
        let own = |group: usize| kv.tables[group].blocks[0];
        let copy = |p: &Pin| BlockCopy { group: p.group as u32, from: p.block, to: own(p.group) };
        kv.pins.iter().filter(|p| p.publish.is_none()).map(copy).collect()
    }

    /// Copies the state after `computed` positions (whole blocks) aside, where blocks are to be had without taking any from
    /// a sequence and no such checkpoint exists; published by [`Self::unpin`].
    pub(crate) fn checkpoint(&mut self, kv: &mut SeqKv, tokens: &[TokenId], computed: u32) -> Vec<BlockCopy> {
        let blocks = (computed / self.block_tokens) as usize;
        let mut copies = Vec::new();
        for group in 0..self.kinds.len() {
            if self.kinds[group] != GroupKind::State || self.cached(kv, tokens, blocks - 1, group).is_some() {
                continue;
            }
            if let Some(block) = self.take(group) {
                copies.push(BlockCopy { group: group as u32, from: kv.tables[group].blocks[0], to: block });
                kv.pins.push(Pin { group, block, publish: Some(blocks) });
            }
        }
        copies
    }

    /// Lets go of what the step in flight needed; if it was good, new checkpoints become known.
    pub(crate) fn unpin(&mut self, kv: &mut SeqKv, tokens: &[TokenId], good: bool) {
        for pin in std::mem::take(&mut kv.pins) {
            if let (Some(blocks), true) = (pin.publish, good) {
                self.publish(kv, tokens, blocks - 1, pin.group, pin.block);
            }
            self.pools[pin.group].release(pin.block, Worth::Much);
        }
    }

    /// Positions before `computed` now hold `tokens`: full blocks become known (`share`), what left a window is let go.
    pub(crate) fn computed(
        &mut self,
        kv: &mut SeqKv,
        tokens: &[TokenId],
        from: u32,
        computed: u32,
        share: bool,
    ) {
        let (begin, end) = ((from / self.block_tokens) as usize, (computed / self.block_tokens) as usize);
        if share {
            self.extend_chain(kv, tokens, end);
        }
        for group in 0..self.kinds.len() {
            let kind = self.kinds[group];
            if kind == GroupKind::State {
                continue;
            }
            if share {
                for index in begin..end {
                    let table = &kv.tables[group];
                    let block = table.blocks[index - table.first as usize];
                    self.publish(kv, tokens, index, group, block);
                }
            }
            let first = first_needed(kind, self.block_tokens, computed);
            let seen = |&end: &usize| {
                first_needed(kind, self.block_tokens, end as u32 * self.block_tokens)..end as u32
            };
            let kept: [Range<u32>; 3] = kv.forks.each_ref().map(seen);
            let table = &mut kv.tables[group];
            let gone = first.saturating_sub(table.first).min(table.blocks.len() as u32);
            for (index, block) in (table.first..).zip(table.blocks.drain(..gone as usize)) {
                let likely = kept.iter().any(|range| range.contains(&index));
                self.pools[group].release(block, if likely { Worth::Much } else { Worth::Little });
            }
            table.first += gone;
        }
    }

    fn publish(&mut self, kv: &SeqKv, tokens: &[TokenId], index: usize, group: usize, block: BlockId) {
        let link = self.link(kv, tokens, index);
        if self.index.insert(link, self.kinds.len(), group, block) {
            self.pools[group].cache(block, link.key);
        }
    }

    /// Takes everything from a sequence. Its last blocks go first, so that eviction eats prefixes from their ends.
    pub(crate) fn release(&mut self, kv: &mut SeqKv) {
        assert!(kv.pins.is_empty(), "pins are let go at commit");
        for (group, table) in kv.tables.iter_mut().enumerate() {
            for block in table.blocks.drain(..).rev() {
                self.pools[group].release(block, Worth::Much);
            }
            table.first = 0;
        }
    }

    /// Undoes [`Self::adopt`].
    pub(crate) fn abandon(&mut self, kv: &mut SeqKv) {
        for pin in std::mem::take(&mut kv.pins) {
            self.pools[pin.group].release(pin.block, Worth::Much);
        }
        self.release(kv);
    }

    /// I3: whether every position that a query after `computed` can see has its block, and what has left a window none.
    pub(crate) fn covers(&self, kv: &SeqKv, computed: u32) -> bool {
        self.kinds.iter().zip(&kv.tables).all(|(&kind, table)| match kind {
            GroupKind::State => computed == 0 || table.blocks.len() == 1,
            _ => {
                let end = u64::from(table.first) + table.blocks.len() as u64;
                table.first == first_needed(kind, self.block_tokens, computed)
                    && end >= u64::from(computed.div_ceil(self.block_tokens))
            }
        })
    }

    pub(crate) fn counts(&self) -> impl Iterator<Item = PoolCounts> + '_ {
        self.pools.iter().map(Pool::counts)
    }

    /// I1 and I2 of every group, and that pools and index agree on what is cached.
    pub(crate) fn check<'a>(&self, seqs: impl Iterator<Item = &'a SeqKv>) -> Result<(), String> {
        let mut holders: Vec<Vec<u32>> = self
            .pools
            .iter()
            .map(|p| vec![0; (p.counts().free + p.counts().referenced + p.counts().cached) as usize])
            .collect();
        for kv in seqs {
            for (group, table) in kv.tables.iter().enumerate() {
                table.blocks.iter().for_each(|b| holders[group][b.0 as usize] += 1);
            }
            kv.pins.iter().for_each(|p| holders[p.group][p.block.0 as usize] += 1);
        }
        for (group, pool) in self.pools.iter().enumerate() {
            pool.check(&holders[group]).map_err(|e| format!("group {group}: {e}"))?;
        }
        for (key, group, block) in self.index.blocks() {
            if self.pools[group].key(block) != Some(key) {
                return Err(format!(
                    "group {group}: the prefix cache gives out block {block:?} that holds something else"
                ));
            }
        }
        Ok(())
    }
}
