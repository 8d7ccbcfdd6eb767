//! The receiving end of a step: what the scheduler promises, looked at before memory is touched.

use std::collections::HashSet;

use crate::step::{BlockTable, CacheGroup, Geometry, GroupKind, Row, Sample, StepInput};

/// Says what is wrong with a step, if something is.
pub(super) fn step(step: &StepInput, geometry: &Geometry) -> Result<(), String> {
    for copy in &step.copies {
        let group = geometry.groups.get(copy.group as usize).ok_or("a copy in a group that is not there")?;
        if copy.from.0.max(copy.to.0) >= group.blocks {
            return Err(format!("a copy of block {} to {} of {}", copy.from.0, copy.to.0, group.blocks));
        }
    }
    let mut sequences = HashSet::new();
    let mut written = HashSet::new();
    for row in &step.rows {
        let of = |what: String| format!("sequence {}: {what}", row.seq.0);
        if !sequences.insert(row.seq) {
            return Err(of("two rows".to_owned()));
        }
        tokens(row, geometry).map_err(of)?;
        if row.tables.len() != geometry.groups.len() {
            return Err(of(format!("{} tables for {} groups", row.tables.len(), geometry.groups.len())));
        }
        for (index, (table, group)) in row.tables.iter().zip(&geometry.groups).enumerate() {
            let range = covered(table, group, row, geometry.block_tokens).map_err(of)?;
            // A block that two rows write would hold neither's keys.
            if let Some(block) = table.blocks[range].iter().find(|&&b| !written.insert((index, b))) {
                return Err(of(format!("block {} is written twice", block.0)));
            }
        }
    }
    Ok(())
}

fn tokens(row: &Row, geometry: &Geometry) -> Result<(), String> {
    if row.tokens.is_empty() {
        return Err("a row without tokens".to_owned());
    }
    let end = row.start as usize + row.tokens.len();
    if end > geometry.context_max as usize {
        return Err(format!("position {end} beyond the context of {}", geometry.context_max));
    }
    let targets = row.score.as_ref().map_or(&[][..], |s| &s.targets);
    if targets.len() > row.tokens.len() {
        return Err("more targets than tokens".to_owned());
    }
    if row.drafts > 0 {
        let masks =
            |sample: &Sample| sample.constraint.as_ref().is_none_or(|c| c.next.len() > row.drafts as usize);
        let guessed = |sample: &Sample| masks(sample) && row.score.is_none();
        if row.drafts as usize >= row.tokens.len() || !row.sample.as_ref().is_some_and(guessed) {
            return Err(format!("{} drafts in a row that may have none", row.drafts));
        }
        if geometry.groups.iter().any(|group| group.kind == GroupKind::State) {
            return Err("drafts over a state that cannot go back".to_owned());
        }
    }
    match row.tokens.iter().chain(targets).find(|t| t.0 >= geometry.vocab) {
        Some(token) => Err(format!("token {} outside the vocabulary of {}", token.0, geometry.vocab)),
        None => Ok(()),
    }
}

/// The indices in `table.blocks` of the blocks that the row writes.
fn covered(
    table: &BlockTable,
    group: &CacheGroup,
    row: &Row,
    block_tokens: u32,
) -> Result<std::ops::Range<usize>, String> {
    if let Some(block) = table.blocks.iter().find(|b| b.0 >= group.blocks) {
        return Err(format!("block {} of a pool of {}", block.0, group.blocks));
    }
    let first_needed = match group.kind {
        GroupKind::State if table.blocks.len() == 1 => return Ok(0..1),
        GroupKind::State => return Err(format!("{} blocks of state", table.blocks.len())),
        GroupKind::Full => 0,
        GroupKind::Window { window } => row.start.saturating_sub(window.saturating_sub(1)) / block_tokens,
    };
    let (first, block_tokens) = (table.first as usize, block_tokens as usize);
    let end = row.start as usize + row.tokens.len();
    let blocks = end.div_ceil(block_tokens);
    if first > first_needed as usize || first + table.blocks.len() < blocks {
        let last = first + table.blocks.len();
        return Err(format!("blocks {first}..{last} do not cover positions up to {end}"));
    }
    Ok(row.start as usize / block_tokens - first..blocks - first)
}
