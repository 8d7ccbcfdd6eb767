//! A step's tokens and tables as index tensors, uploaded once per step in one buffer per element type.
//!
//! A slot is `block * block_tokens + position % block_tokens`. Tables are padded with block 0, which no kernel reads: each reads only
//! what a sequence's length covers. Everything that a kernel will not check is checked here.

use candle_core::{Device, Tensor};

use super::error::{GpuError, contract};
use crate::backend::Batch;

/// One span's place in the batch and in its sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SpanPlace {
    /// First token of the batch.
    pub begin: usize,
    /// Tokens.
    pub len: usize,
    /// Position of the first token.
    pub start: usize,
}

impl SpanPlace {
    /// Positions of its sequence once this step is written.
    pub(super) fn context(&self) -> usize {
        self.start + self.len
    }
}

/// What kernels need to know of a step.
pub(super) struct StepIndex {
    /// u32 `[tokens]`.
    pub positions: Tensor,
    /// u32 `[tokens]`: the span of each.
    pub span_of: Tensor,
    /// u32 `[spans, 4]`: 0, tokens, 0, positions once written; two pairs of cumulative lengths.
    pub lengths: Tensor,
    /// The same on the host.
    pub spans: Vec<SpanPlace>,
    /// In the order of the model's cache groups.
    pub groups: Vec<GroupIndex>,
}

/// One cache group's part.
pub(super) struct GroupIndex {
    /// i64 `[tokens]`: where each token's key and value go.
    pub slots: Tensor,
    /// u32 `[spans, width]`.
    pub tables: Tensor,
    /// u32 `[spans]`: index within the sequence of a table's first block.
    pub firsts: Tensor,
    /// u32 `[spans]`: positions once written, less those before the table.
    pub held: Tensor,
    /// Positions before each table, on the host.
    pub gone: Vec<usize>,
}

/// Where a part of the packed buffer lies.
struct Part {
    at: usize,
    len: usize,
}

#[derive(Default)]
struct Pack<T> {
    values: Vec<T>,
}

impl<T: Copy> Pack<T> {
    fn add(&mut self, values: impl IntoIterator<Item = T>) -> Part {
        let at = self.values.len();
        self.values.extend(values);
        Part { at, len: self.values.len() - at }
    }
}

fn part(all: &Tensor, part: &Part) -> candle_core::Result<Tensor> {
    all.narrow(0, part.at, part.len)
}

impl StepIndex {
    /// `blocks` is the pool's size in each group.
    ///
    /// # Errors
    /// If a table does not cover its tokens or names a block that the pool has not.
    pub(super) fn new(
        batch: &Batch,
        block_tokens: usize,
        blocks: &[usize],
        device: &Device,
    ) -> Result<Self, GpuError> {
        let (mut words, mut longs) = (Pack::<u32>::default(), Pack::<i64>::default());
        let spans: Vec<SpanPlace> = batch.spans.iter().map(place).collect();
        let positions = words.add(batch.positions.iter().copied());
        let of = spans.iter().enumerate().flat_map(|(i, s)| std::iter::repeat_n(i as u32, s.len));
        let span_of = words.add(of);
        let lengths = words.add(spans.iter().flat_map(|s| [0, s.len as u32, 0, s.context() as u32]));
        let mut groups = Vec::new();
        for (group, &blocks) in blocks.iter().enumerate() {
            let tables = || batch.spans.iter().map(|span| &span.tables[group]);
            let width = tables().map(|t| t.blocks.len()).max().unwrap_or(0).max(1);
            let mut slots = Vec::with_capacity(batch.tokens.len());
            for (span, table) in spans.iter().zip(tables()) {
                if let Some(block) = table.blocks.iter().find(|b| b.0 as usize >= blocks) {
                    return Err(contract("step", format!("block {} of {blocks}", block.0)));
                }
                for position in span.start..span.context() {
                    let block = (position / block_tokens).checked_sub(table.first as usize);
                    let block = block.and_then(|at| table.blocks.get(at)).ok_or_else(|| {
                        contract("step", format!("no block of group {group} for position {position}"))
                    })?;
                    slots.push((block.0 as usize * block_tokens + position % block_tokens) as i64);
                }
            }
            let padded = |t: &crate::step::BlockTable| {
                let blocks: Vec<u32> = t.blocks.iter().map(|b| b.0).collect();
                blocks.into_iter().chain(std::iter::repeat(0)).take(width)
            };
            let gone: Vec<usize> = tables().map(|t| t.first as usize * block_tokens).collect();
            let held = spans.iter().zip(&gone).map(|(s, gone)| (s.context() - gone) as u32);
            let parts = [
                longs.add(slots),
                words.add(tables().flat_map(padded)),
                words.add(tables().map(|t| t.first)),
                words.add(held),
            ];
            groups.push((parts, width, gone));
        }
        let count = spans.len();
        let (total_words, total_longs) = (words.values.len(), longs.values.len());
        let words = Tensor::from_vec(words.values, total_words, device)?;
        let longs = Tensor::from_vec(longs.values, total_longs, device)?;
        let group = |([slots, tables, firsts, held], width, gone): ([Part; 4], usize, Vec<usize>)| {
            Ok(GroupIndex {
                slots: part(&longs, &slots)?,
                tables: part(&words, &tables)?.reshape((count, width))?,
                firsts: part(&words, &firsts)?,
                held: part(&words, &held)?,
                gone,
            })
        };
        Ok(Self {
            positions: part(&words, &positions)?,
            span_of: part(&words, &span_of)?,
            lengths: part(&words, &lengths)?.reshape((count, 4))?,
            groups: groups.into_iter().map(group).collect::<candle_core::Result<_>>()?,
            spans,
        })
    }
}

fn place(span: &crate::backend::Span) -> SpanPlace {
    SpanPlace {
        begin: span.begin as usize,
        len: (span.end - span.begin) as usize,
        start: span.start as usize,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Span;
    use crate::step::{BlockId, BlockTable, TokenId};

    fn batch(tables: [BlockTable; 2]) -> Batch {
        let [first, second] = tables;
        let spans = vec![
            Span { begin: 0, end: 3, start: 3, tables: vec![first] },
            Span { begin: 3, end: 4, start: 9, tables: vec![second] },
        ];
        Batch { tokens: vec![TokenId(0); 4], positions: vec![3, 4, 5, 9], spans, ..Batch::default() }
    }

    fn table(first: u32, blocks: &[u32]) -> BlockTable {
        BlockTable { first, blocks: blocks.iter().map(|&b| BlockId(b)).collect() }
    }

    #[test]
    fn tokens_have_slots_and_tables_are_padded() {
        let batch = batch([table(0, &[7, 2]), table(1, &[5])]);
        // Blocks of 4: the second sequence's block 0 is gone; position 9 lies in block 2, which it lacks.
        let short = StepIndex::new(&batch, 4, &[8], &Device::Cpu).err().unwrap().to_string();
        assert!(short.contains("position 9"), "{short}");
        let mut batch = batch;
        batch.spans[1].tables[0].blocks.push(BlockId(6));
        let index = StepIndex::new(&batch, 4, &[8], &Device::Cpu).unwrap();
        let group = &index.groups[0];
        assert_eq!(group.slots.to_vec1::<i64>().unwrap(), [31, 8, 9, 25]);
        assert_eq!(group.tables.to_vec2::<u32>().unwrap(), [[7, 2], [5, 6]]);
        assert_eq!(group.firsts.to_vec1::<u32>().unwrap(), [0, 1]);
        assert_eq!(group.held.to_vec1::<u32>().unwrap(), [6, 6]);
        assert_eq!(index.span_of.to_vec1::<u32>().unwrap(), [0, 0, 0, 1]);
        assert_eq!(index.lengths.to_vec2::<u32>().unwrap(), [[0, 3, 0, 6], [0, 1, 0, 10]]);
        let outside = StepIndex::new(&batch, 4, &[7], &Device::Cpu).err().unwrap().to_string();
        assert!(outside.contains("block 7 of 7"), "{outside}");
    }
}
