//! A lawful fake runner: tokens are hashes of what its cache blocks hold, step times come from a formula.
//!
//! It keeps simulated cache blocks of all three kinds and reads a sequence's past out of them through the row's tables, so a wrong
//! table, a lost block or a missed copy shows as a wrong token ([`expected_token`] says what is right) or as a panic that names
//! what is malformed. Faults and panics come by script. Absent on purpose: randomness, clocks, weights.

mod control;
mod law;

use std::sync::Arc;

use crate::runner::{Invariance, Runner};
use crate::step::{
    BlockTable, CacheGroup, Geometry, GroupKind, Row, RowFault, RowOutput, RowWork, StepFault, StepInput,
    StepOutput, StepStats, TokenId,
};

use self::law::{EMPTY, choose, mix, oldest_visible, score_of};

pub use self::control::{FakeControl, FakeFault};
pub use self::law::{expected_prompt_score, expected_token};

/// What the fake model is made of: the formula of its work and time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FakeModel {
    /// Bytes of dense weights, read once a step.
    pub dense_bytes: u64,
    /// Experts of its one layer.
    pub experts: u32,
    /// Experts per token.
    pub top_k: u32,
    /// Bytes of one expert.
    pub expert_bytes: u64,
    /// Multiply-adds per token, attention apart.
    pub macs: u64,
    /// Step time in nanoseconds is `step_ns + bytes / bytes_per_ns + macs / macs_per_ns`, and what startup takes.
    pub step_ns: u64,
    /// At least 1.
    pub bytes_per_ns: u64,
    /// At least 1.
    pub macs_per_ns: u64,
    /// Of a step's time, for each row that begins a sequence: makes weights ready.
    pub startup_ns: u64,
}

impl Default for FakeModel {
    fn default() -> Self {
        Self {
            dense_bytes: 1_000_000,
            experts: 8,
            top_k: 2,
            expert_bytes: 500_000,
            macs: 2_000_000,
            step_ns: 20_000,
            bytes_per_ns: 10,
            macs_per_ns: 20,
            startup_ns: 0,
        }
    }
}

/// A position in a simulated block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cell {
    position: u32,
    token: TokenId,
}

/// A simulated block.
#[derive(Clone, Debug)]
enum Block {
    /// Of `Full` and `Window` groups.
    Cells(Vec<Option<Cell>>),
    /// Of `State` groups: after so many positions, their chained hash.
    State { positions: u32, chain: u64 },
}

/// The runner.
#[derive(Debug)]
pub struct FakeRunner {
    geometry: Geometry,
    model: FakeModel,
    blocks: Vec<Vec<Block>>,
    in_flight: Option<Arc<StepInput>>,
    control: FakeControl,
}

impl FakeRunner {
    /// With garbage in every block.
    pub fn new(geometry: Geometry, model: FakeModel) -> Self {
        let cells = geometry.block_tokens as usize;
        let block = |g: &CacheGroup| match g.kind {
            GroupKind::State => Block::State { positions: u32::MAX, chain: u64::MAX },
            _ => Block::Cells(vec![None; cells]),
        };
        let blocks = geometry.groups.iter().map(|g| vec![block(g); g.blocks as usize]).collect();
        Self { geometry, model, blocks, in_flight: None, control: FakeControl::default() }
    }

    /// For scripting it after it was given away.
    pub fn control(&self) -> FakeControl {
        self.control.clone()
    }

    fn run(&mut self, step: &StepInput, fault: Option<&FakeFault>) -> Result<StepOutput, StepFault> {
        self.check(step);
        for copy in &step.copies {
            let group = &mut self.blocks[copy.group as usize];
            group[copy.to.0 as usize] = group[copy.from.0 as usize].clone();
        }
        step.rows.iter().for_each(|row| self.write(row));
        let stats = self.stats(step);
        let bytes =
            stats.dense_bytes + stats.expert_bytes + stats.rows.iter().map(|r| r.kv_bytes).sum::<u64>();
        let macs: u64 = stats.rows.iter().map(|r| r.macs).sum();
        let m = &self.model;
        let work = bytes / m.bytes_per_ns.max(1) + macs / m.macs_per_ns.max(1);
        self.control.took(m.step_ns + work + stats.startup_ns);
        if let Some(FakeFault::Step(what)) = fault {
            step.rows.iter().for_each(|row| self.spoil(row));
            for copy in &step.copies {
                if let Block::State { positions, .. } =
                    &mut self.blocks[copy.group as usize][copy.to.0 as usize]
                {
                    *positions = u32::MAX;
                }
            }
            return Err(StepFault(what.clone()));
        }
        let rows = step.rows.iter().enumerate().map(|(i, row)| match fault {
            Some(FakeFault::Row(at, fault)) if at % step.rows.len() == i => Err(fault.clone()),
            _ => self.output(row),
        });
        let rows: Vec<_> = rows.collect();
        for (row, result) in step.rows.iter().zip(&rows) {
            if result.is_err() {
                self.spoil(row);
            }
        }
        Ok(StepOutput { rows, stats })
    }

    /// # Panics
    /// Names what is malformed.
    fn check(&self, step: &StepInput) {
        assert!(!step.rows.is_empty(), "a step without rows");
        let mut seqs: Vec<_> = step.rows.iter().map(|r| r.seq).collect();
        seqs.sort_unstable();
        assert!(seqs.windows(2).all(|w| w[0] != w[1]), "two rows of one sequence");
        for row in &step.rows {
            let (seq, start, end) = (row.seq, row.start, row.start as usize + row.tokens.len());
            assert!(!row.tokens.is_empty(), "{seq:?}: a row without tokens");
            assert!(end <= self.geometry.context_max as usize, "{seq:?}: {end} positions pass the context");
            assert!(
                row.tokens.iter().all(|t| t.0 < self.geometry.vocab),
                "{seq:?}: a token out of the vocabulary"
            );
            assert_eq!(row.tables.len(), self.geometry.groups.len(), "{seq:?}: one table per group");
            for (group, table) in self.geometry.groups.iter().zip(&row.tables) {
                assert!(table.blocks.iter().all(|b| b.0 < group.blocks), "{seq:?}: a block out of the pool");
                self.check_table(row, group.kind, table);
            }
            if let Some(score) = &row.score {
                assert!(score.targets.len() <= row.tokens.len(), "{seq:?}: more targets than tokens");
            }
            if let Some(sample) = &row.sample {
                let wanted = if sample.params.needs_history() { end } else { 0 };
                assert_eq!(sample.history.len(), wanted, "{seq:?}: history at position {start}");
                let given = row.start as usize + row.last_given() + 1;
                assert!(sample.prompt_len as usize <= given, "{seq:?}: sampled before the prompt's end");
            }
            if row.drafts > 0 {
                let sample = row.sample.as_ref().expect("drafts are for rows that sample");
                assert!(row.drafts < row.tokens.len() as u32, "{seq:?}: nothing but drafts");
                assert!(row.score.is_none(), "{seq:?}: drafts where none may be");
                let masks =
                    sample.constraint.as_ref().is_none_or(|c| c.next.len() == 1 + row.drafts as usize);
                assert!(masks, "{seq:?}: a mask for each token");
                let state = self.geometry.groups.iter().any(|g| g.kind == GroupKind::State);
                assert!(!state, "{seq:?}: a state cannot go back to before a draft");
            }
        }
    }

    fn check_table(&self, row: &Row, kind: GroupKind, table: &BlockTable) {
        let (seq, bt) = (row.seq, self.geometry.block_tokens as usize);
        if kind == GroupKind::State {
            assert_eq!(table.blocks.len(), 1, "{seq:?}: a state is one block");
            return;
        }
        let end = row.start as usize + row.tokens.len();
        let covered = (table.first as usize + table.blocks.len()) * bt;
        assert!(covered >= end, "{seq:?}: the table covers {covered} of {end} positions");
        let oldest = oldest_visible(kind, row.start);
        assert!(table.first as usize * bt <= oldest, "{seq:?}: position {oldest} was let go");
    }

    fn write(&mut self, row: &Row) {
        let bt = self.geometry.block_tokens;
        for (group, table) in row.tables.iter().enumerate() {
            if self.geometry.groups[group].kind == GroupKind::State {
                let block = table.blocks[0].0 as usize;
                // Positions from 0 begin a new state, whatever the block held.
                let before = match self.blocks[group][block] {
                    _ if row.start == 0 => EMPTY,
                    Block::State { positions, chain } if positions == row.start => chain,
                    ref other => panic!("{:?}: starts at {}, its state is {other:?}", row.seq, row.start),
                };
                let chain = row.tokens.iter().fold(before, |chain, t| mix(chain, u64::from(t.0)));
                let positions = row.start + row.tokens.len() as u32;
                self.blocks[group][block] = Block::State { positions, chain };
                continue;
            }
            for (position, &token) in (row.start..).zip(&row.tokens) {
                let block = table.blocks[(position / bt - table.first) as usize].0 as usize;
                if let Block::Cells(cells) = &mut self.blocks[group][block] {
                    cells[(position % bt) as usize] = Some(Cell { position, token });
                }
            }
        }
    }

    /// What a failed row leaves behind.
    fn spoil(&mut self, row: &Row) {
        let bt = self.geometry.block_tokens;
        for (blocks, table) in self.blocks.iter_mut().zip(&row.tables) {
            for (position, _) in (row.start..).zip(&row.tokens) {
                // A state's table has one block for all positions.
                let index =
                    ((position / bt).saturating_sub(table.first) as usize).min(table.blocks.len() - 1);
                match &mut blocks[table.blocks[index].0 as usize] {
                    Block::Cells(cells) => cells[(position % bt) as usize] = None,
                    Block::State { positions, .. } => *positions = u32::MAX,
                }
            }
        }
    }

    /// Hash of all that a query at `position` sees, read through the tables; `State` groups only where the state is.
    fn past(&self, row: &Row, position: u32, with_state: bool) -> u64 {
        let mut hash = EMPTY;
        for (group, table) in row.tables.iter().enumerate() {
            let kind = self.geometry.groups[group].kind;
            if kind != GroupKind::State {
                hash = mix(hash, self.cells_past(row, group, position));
            } else if with_state {
                match self.blocks[group][table.blocks[0].0 as usize] {
                    Block::State { positions, chain } if positions == position + 1 => hash = mix(hash, chain),
                    ref other => panic!("{:?}: at position {position}, its state is {other:?}", row.seq),
                }
            }
        }
        hash
    }

    fn cells_past(&self, row: &Row, group: usize, position: u32) -> u64 {
        let (bt, table) = (self.geometry.block_tokens, &row.tables[group]);
        let oldest = oldest_visible(self.geometry.groups[group].kind, position) as u32;
        (oldest..=position).fold(EMPTY, |hash, p| {
            let block = table.blocks[(p / bt - table.first) as usize].0 as usize;
            let cell = match &self.blocks[group][block] {
                Block::Cells(cells) => cells[(p % bt) as usize],
                Block::State { .. } => None,
            };
            match cell {
                Some(cell) if cell.position == p => mix(hash, u64::from(cell.token.0)),
                other => panic!("{:?}: position {p} is not in group {group}: {other:?}", row.seq),
            }
        })
    }

    fn output(&self, row: &Row) -> Result<RowOutput, RowFault> {
        let mut out = RowOutput::default();
        if let Some(score) = &row.score {
            for (position, &target) in (row.start..).zip(&score.targets) {
                let past = self.past(row, position, false);
                out.prompt_scores.push(score_of(past, self.geometry.vocab, target, score.top));
            }
        }
        let Some(sample) = &row.sample else { return Ok(out) };
        for at in row.last_given()..row.tokens.len() {
            if out.tokens.last().is_some_and(|chosen| *chosen != row.tokens[at]) {
                break;
            }
            let past = self.past(row, row.start + at as u32, true);
            if let Some(constraint) = &sample.constraint
                && constraint.nth(out.tokens.len())?.is_end()
            {
                break;
            }
            match choose(past, self.geometry.vocab, sample, out.tokens.len()) {
                Some(token) => {
                    out.tokens.push(token);
                    let score = |top| score_of(past, self.geometry.vocab, token, top);
                    out.scores.extend(sample.params.logprobs.map(score));
                }
                None if out.tokens.is_empty() => return Err(RowFault::NothingToChoose),
                None => break,
            }
        }
        Ok(out)
    }

    fn stats(&self, step: &StepInput) -> StepStats {
        let m = &self.model;
        let mut users = vec![0u64; m.experts as usize];
        let mut expert_tokens = 0;
        let row_experts: Vec<Vec<usize>> = step
            .rows
            .iter()
            .map(|row| {
                let mut mine = vec![false; users.len()];
                for (position, token) in (row.start..).zip(&row.tokens) {
                    for k in 0..m.top_k.min(m.experts) {
                        let first = mix(u64::from(token.0), u64::from(position)) + u64::from(k);
                        mine[(first % u64::from(m.experts)) as usize] = true;
                        expert_tokens += 1;
                    }
                }
                let mine: Vec<usize> = (0..mine.len()).filter(|&e| mine[e]).collect();
                mine.iter().for_each(|&e| users[e] += 1);
                mine
            })
            .collect();
        let kv_per_position: u64 =
            self.geometry.groups.iter().map(|g| g.block_bytes / u64::from(self.geometry.block_tokens)).sum();
        let rows = step.rows.iter().zip(&row_experts).map(|(row, mine)| {
            let (start, tokens) = (u64::from(row.start), row.tokens.len() as u64);
            RowWork {
                expert_bytes: mine.iter().map(|&e| m.expert_bytes / users[e]).sum(),
                macs: tokens * m.macs + tokens * (2 * start + tokens + 1) / 2,
                kv_bytes: (start + tokens) * kv_per_position,
            }
        });
        let used = users.iter().filter(|&&u| u > 0).count() as u64;
        StepStats {
            dense_bytes: m.dense_bytes,
            expert_bytes: used * m.expert_bytes,
            experts_used: used,
            expert_tokens,
            startup_ns: step.rows.iter().map(|row| u64::from(row.start == 0) * m.startup_ns).sum(),
            rows: rows.collect(),
        }
    }
}

impl Runner for FakeRunner {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn invariance(&self) -> Invariance {
        Invariance::Bitwise
    }

    fn submit(&mut self, step: Arc<StepInput>) {
        assert!(self.in_flight.is_none(), "a step is in flight");
        self.in_flight = Some(step);
    }

    fn wait(&mut self) -> Result<StepOutput, StepFault> {
        let step = self.in_flight.take().expect("a step is in flight");
        let fault = self.control.pass();
        assert_ne!(fault, Some(FakeFault::Panic), "the script says so");
        self.run(&step, fault.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::step::{BlockCopy, BlockId, Sample, SeqId};

    fn geometry() -> Geometry {
        let group = |kind, blocks| CacheGroup { kind, block_bytes: 64, blocks };
        Geometry {
            vocab: 97,
            context_max: 64,
            block_tokens: 4,
            groups: vec![
                group(GroupKind::Full, 8),
                group(GroupKind::Window { window: 5 }, 8),
                group(GroupKind::State, 3),
            ],
            digest: [0; 32],
        }
    }

    fn sample() -> Sample {
        let forbid = Arc::new([]);
        let (params, history) = (Arc::default(), Vec::new());
        Sample { params, seed: 3, choice: 1, history, prompt_len: 1, forbid, constraint: None }
    }

    fn row(start: u32, tokens: &[u32], tables: [(u32, &[u32]); 3]) -> Row {
        let table = |(first, blocks): (u32, &[u32])| BlockTable {
            first,
            blocks: blocks.iter().copied().map(BlockId).collect(),
        };
        Row {
            seq: SeqId(1),
            start,
            tokens: tokens.iter().copied().map(TokenId).collect(),
            tables: tables.map(table).to_vec(),
            sample: Some(sample()),
            drafts: 0,
            score: None,
        }
    }

    fn step(runner: &mut FakeRunner, copies: Vec<BlockCopy>, row: Row) -> Option<TokenId> {
        runner.submit(Arc::new(StepInput { copies, rows: vec![row] }));
        runner.wait().expect("no fault was asked for").rows[0]
            .clone()
            .expect("nor here")
            .tokens
            .first()
            .copied()
    }

    #[test]
    fn tokens_come_from_the_cache_and_equal_the_definition() {
        let mut runner = FakeRunner::new(geometry(), FakeModel::default());
        let tokens: Vec<TokenId> = (10..17).map(TokenId).collect();
        let whole = expected_token(&geometry(), &tokens, &sample());
        let one = row(0, &[10, 11, 12, 13, 14, 15, 16], [(0, &[5, 2]), (0, &[1, 0]), (0, &[2])]);
        assert_eq!(step(&mut runner, vec![], one), whole);
        // The same in two chunks, with a state moved and the window's first block still seen.
        step(&mut runner, vec![], row(0, &[10, 11, 12, 13], [(0, &[7]), (0, &[6]), (0, &[0])]));
        let moved = BlockCopy { group: 2, from: BlockId(0), to: BlockId(1) };
        let rest = row(4, &[14, 15, 16], [(0, &[7, 3]), (0, &[6, 4]), (0, &[1])]);
        assert_eq!(step(&mut runner, vec![moved], rest), whole);
        assert_eq!(runner.control().steps(), 3);
    }

    #[test]
    fn a_wrong_block_gives_a_wrong_token() {
        let mut runner = FakeRunner::new(geometry(), FakeModel::default());
        step(&mut runner, vec![], row(0, &[10, 11, 12, 13], [(0, &[0]), (0, &[0]), (0, &[0])]));
        step(&mut runner, vec![], row(0, &[20, 21, 22, 23], [(0, &[1]), (0, &[1]), (0, &[1])]));
        let tokens: Vec<TokenId> = [10, 11, 12, 13, 14].map(TokenId).to_vec();
        let token = step(&mut runner, vec![], row(4, &[14], [(0, &[1, 2]), (0, &[0, 2]), (0, &[0])]));
        assert_ne!(token, expected_token(&geometry(), &tokens, &sample()));
    }

    #[test]
    #[should_panic(expected = "the table covers 4 of 5 positions")]
    fn a_short_table_is_malformed() {
        let mut runner = FakeRunner::new(geometry(), FakeModel::default());
        step(&mut runner, vec![], row(0, &[1, 2, 3, 4, 5], [(0, &[0]), (0, &[0, 1]), (0, &[0])]));
    }

    #[test]
    #[should_panic(expected = "starts at 4, its state is")]
    fn positions_follow_the_state() {
        let mut runner = FakeRunner::new(geometry(), FakeModel::default());
        step(&mut runner, vec![], row(0, &[1, 2, 3], [(0, &[0]), (0, &[0]), (0, &[0])]));
        step(&mut runner, vec![], row(4, &[5], [(0, &[0, 1]), (0, &[0, 1]), (0, &[0])]));
    }

    #[test]
    fn faults_come_in_the_order_of_the_script() {
        let mut runner = FakeRunner::new(geometry(), FakeModel::default());
        let control = runner.control();
        control.inject(FakeFault::Step("torn".to_owned()));
        control.inject(FakeFault::Row(0, RowFault::NotANumber));
        let input = Arc::new(StepInput {
            copies: vec![],
            rows: vec![row(0, &[1, 2], [(0, &[0]), (0, &[0]), (0, &[0])])],
        });
        runner.submit(input.clone());
        assert_eq!(runner.wait(), Err(StepFault("torn".to_owned())));
        runner.submit(input.clone());
        assert_eq!(runner.wait().expect("the step is good").rows[0], Err(RowFault::NotANumber));
        runner.submit(input);
        assert!(runner.wait().expect("good").rows[0].is_ok());
        assert!(control.last_step_ns() > 0);
    }
}
