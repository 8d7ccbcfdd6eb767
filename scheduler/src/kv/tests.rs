//! Pools, tables and prefix cache against a model that knows what every block holds.

use frugal_models::step::{BlockCopy, CacheGroup, Geometry, GroupKind, TokenId};
use proptest::prelude::*;

use super::KvCache;
use super::group::first_needed;
use super::prefix::{Key, Scope};
use super::table::SeqKv;

const BLOCK: u32 = 3;

#[derive(Clone, Debug)]
enum Op {
    /// A sequence of one of few texts, cut to a length, in one of two domains; takes what is cached and computes some.
    Start { text: u8, len: u32, domain: u8, compute: u32 },
    /// The sequence computes more.
    Go { which: usize, compute: u32 },
    /// It ends, or is preempted.
    End { which: usize },
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        3 => (0u8..3, 1u32..30, 0u8..2, 1u32..12)
            .prop_map(|(text, len, domain, compute)| Op::Start { text, len, domain, compute }),
        3 => (0usize..8, 1u32..8).prop_map(|(which, compute)| Op::Go { which, compute }),
        2 => (0usize..8).prop_map(|which| Op::End { which }),
    ];
    prop::collection::vec(op, 1..60)
}

/// Texts share beginnings of 0, 5 and 11 tokens.
fn text(text: u8, len: u32) -> Vec<TokenId> {
    let common = [30, 5, 11][text as usize];
    (0..len).map(|i| TokenId(if i < common { i } else { i + 100 * (u32::from(text) + 1) })).collect()
}

struct Seq {
    tokens: Vec<TokenId>,
    domain: u8,
    computed: u32,
    kv: SeqKv,
}

/// What a block holds: in a paged group, per position, the tokens up to it; in a state group, the tokens so far.
type Content = Vec<Option<Vec<TokenId>>>;

struct World {
    geometry: Geometry,
    kv: KvCache,
    blocks: Vec<Vec<Content>>,
    seqs: Vec<Seq>,
    /// Whole blocks ever computed, by domain: what could be hit if nothing were evicted.
    known: Vec<(u8, Vec<TokenId>)>,
}

impl World {
    fn new(groups: &[(GroupKind, u32)]) -> Self {
        let group = |&(kind, blocks): &(GroupKind, u32)| CacheGroup { kind, block_bytes: 1, blocks };
        let groups: Vec<CacheGroup> = groups.iter().map(group).collect();
        let geometry = Geometry { vocab: 999, context_max: 99, block_tokens: BLOCK, groups, digest: [0; 32] };
        let blocks = geometry.groups.iter().map(|g| vec![vec![None; BLOCK as usize]; g.blocks as usize]);
        Self { kv: KvCache::new(&geometry), blocks: blocks.collect(), seqs: vec![], known: vec![], geometry }
    }

    fn run(&mut self, op: &Op) {
        match *op {
            Op::Start { text: which, len, domain, compute } => {
                let root = Key::root(&self.geometry.digest, Scope::Domain([domain; 32]));
                let kv = SeqKv::new(&self.geometry, root);
                let mut seq = Seq { tokens: text(which, len), domain, computed: 0, kv };
                seq.computed = self.kv.adopt(&mut seq.kv, &seq.tokens, len - 1, len);
                self.judge_hit(&seq);
                if self.kv.fit(&seq.kv, seq.computed, 1, 0) == 0 {
                    return self.kv.abandon(&mut seq.kv);
                }
                self.go(&mut seq, compute);
                self.seqs.push(seq);
            }
            Op::Go { which, compute } if which < self.seqs.len() => {
                let mut seq = self.seqs.swap_remove(which);
                self.go(&mut seq, compute);
                self.seqs.push(seq);
            }
            Op::End { which } if which < self.seqs.len() => {
                let mut seq = self.seqs.swap_remove(which);
                self.kv.release(&mut seq.kv);
            }
            Op::Go { .. } | Op::End { .. } => {}
        }
    }

    /// A step of one row, as the policy and the engine do it.
    fn go(&mut self, seq: &mut Seq, compute: u32) {
        let want = compute.min(seq.tokens.len() as u32 - seq.computed);
        // States are set aside at block ends only.
        let whole = (seq.computed / BLOCK + 1) * BLOCK - seq.computed;
        let want = if self.kv.has_state() { want.min(whole) } else { want };
        let count = self.kv.fit(&seq.kv, seq.computed, want, 0);
        if count == 0 {
            return;
        }
        let end = seq.computed + count;
        self.kv.grow(&mut seq.kv, end);
        let mut copies = self.kv.restore(&seq.kv);
        if seq.computed > 0 && seq.computed.is_multiple_of(BLOCK) {
            copies.extend(self.kv.checkpoint(&mut seq.kv, &seq.tokens, seq.computed));
        }
        for BlockCopy { group, from, to } in copies {
            let blocks = &mut self.blocks[group as usize];
            blocks[to.0 as usize] = blocks[from.0 as usize].clone();
        }
        self.write(seq, end);
        self.kv.unpin(&mut seq.kv, &seq.tokens, true);
        self.kv.computed(&mut seq.kv, &seq.tokens, seq.computed, end, true);
        seq.computed = end;
        for blocks in 1..=end / BLOCK {
            self.known.push((seq.domain, seq.tokens[..(blocks * BLOCK) as usize].to_vec()));
        }
    }

    fn write(&mut self, seq: &Seq, end: u32) {
        for (group, table) in seq.kv.tables.iter().enumerate() {
            if self.geometry.groups[group].kind == GroupKind::State {
                let state = &mut self.blocks[group][table.blocks[0].0 as usize][0];
                let begun = seq.tokens[..seq.computed as usize].to_vec();
                assert!(seq.computed == 0 || *state == Some(begun), "the state is of something else");
                *state = Some(seq.tokens[..end as usize].to_vec());
                continue;
            }
            for p in seq.computed..end {
                let block = table.blocks[(p / BLOCK - table.first) as usize];
                let past = seq.tokens[..=p as usize].to_vec();
                self.blocks[group][block.0 as usize][(p % BLOCK) as usize] = Some(past);
            }
        }
    }

    /// What a hit gives is what computing would have given; without evictions, it is all there is.
    fn judge_hit(&self, seq: &Seq) {
        for (group, table) in seq.kv.tables.iter().enumerate() {
            let kind = self.geometry.groups[group].kind;
            if kind == GroupKind::State {
                continue;
            }
            for p in first_needed(kind, BLOCK, seq.computed) * BLOCK..seq.computed {
                let block = table.blocks[(p / BLOCK - table.first) as usize];
                let holds = &self.blocks[group][block.0 as usize][(p % BLOCK) as usize];
                assert_eq!(holds.as_deref(), Some(&seq.tokens[..=p as usize]));
            }
        }
        for pin in &seq.kv.pins {
            let holds = &self.blocks[pin.group][pin.block.0 as usize][0];
            assert_eq!(holds.as_deref(), Some(&seq.tokens[..seq.computed as usize]));
        }
        let plenty = self.geometry.groups.iter().all(|g| g.kind == GroupKind::Full && g.blocks > 500);
        if plenty {
            let limit = (seq.tokens.len() - 1) / BLOCK as usize * BLOCK as usize;
            let is_known = |&n: &usize| {
                self.known.iter().any(|(domain, text)| *domain == seq.domain && **text == seq.tokens[..n])
            };
            let best = (0..=limit).rev().step_by(BLOCK as usize).find(|n| *n == 0 || is_known(n));
            assert_eq!(Some(seq.computed as usize), best, "the longest known prefix");
        }
    }

    /// The pools' own check, and counts by a second count.
    fn check(&self) {
        self.kv.check(self.seqs.iter().map(|s| &s.kv)).expect("I1, I2");
        for (group, counts) in self.kv.counts().enumerate() {
            let mut held: Vec<_> = self.seqs.iter().flat_map(|s| &s.kv.tables[group].blocks).collect();
            held.sort();
            held.dedup();
            assert_eq!(counts.referenced as usize, held.len());
            assert_eq!(counts.free + counts.referenced + counts.cached, self.geometry.groups[group].blocks);
        }
        assert!(self.seqs.iter().all(|s| self.kv.covers(&s.kv, s.computed)), "I3");
    }
}

fn check(groups: &[(GroupKind, u32)], ops: &[Op]) {
    let mut world = World::new(groups);
    for op in ops {
        world.run(op);
        world.check();
    }
    for mut seq in std::mem::take(&mut world.seqs) {
        world.kv.release(&mut seq.kv);
    }
    world.check();
}

proptest! {
    #[test]
    fn a_full_group_hits_the_longest_known_prefix(ops in ops()) {
        check(&[(GroupKind::Full, 1000)], &ops);
    }

    #[test]
    fn a_small_pool_evicts_and_never_lies(ops in ops(), blocks in 1u32..25) {
        check(&[(GroupKind::Full, blocks)], &ops);
    }

    #[test]
    fn groups_of_all_kinds_agree_on_a_hit(
        ops in ops(),
        (full, windowed, states) in (4u32..40, 4u32..30, 1u32..8),
        window in 1u32..14,
    ) {
        check(&[(GroupKind::Full, full), (GroupKind::Window { window }, windowed), (GroupKind::State, states)], &ops);
    }
}

#[test]
fn eviction_eats_prefixes_from_their_ends() {
    let mut world = World::new(&[(GroupKind::Full, 4)]);
    let whole = |domain, len| Op::Start { text: 0, len, domain, compute: 99 };
    world.run(&whole(0, 9));
    world.run(&Op::End { which: 0 });
    // Two blocks for someone else: the free one, and one of the three that are idle.
    world.run(&whole(1, 6));
    let root = Key::root(&world.geometry.digest, Scope::Domain([0; 32]));
    let mut again = SeqKv::new(&world.geometry, root);
    assert_eq!(world.kv.adopt(&mut again, &text(0, 30), 30, 30), 6, "the first two are still there");
    world.kv.abandon(&mut again);
    world.check();
}

/// A sequence of `domain` whose first `common` tokens are those of all its like, and whose others are its own; it is computed by steps
/// of a few tokens and ends. Returns what it took from the cache.
fn pass(world: &mut World, domain: u8, own: u32, common: u32, len: u32) -> u32 {
    let root = Key::root(&world.geometry.digest, Scope::Domain([domain; 32]));
    let tokens = (0..len).map(|i| TokenId(if i < common { i } else { i + 1000 * own })).collect();
    let kv = SeqKv::new(&world.geometry, root);
    let mut seq = Seq { tokens, domain, computed: 0, kv };
    seq.computed = world.kv.adopt(&mut seq.kv, &seq.tokens, len - 1, len);
    world.judge_hit(&seq);
    let hit = seq.computed;
    while seq.computed < len {
        let before = seq.computed;
        world.go(&mut seq, 7);
        assert!(seq.computed > before, "the pools hold one sequence");
    }
    world.kv.release(&mut seq.kv);
    world.check();
    hit
}

const WINDOW: u32 = 6;
const GROUPS: [(GroupKind, u32); 2] = [(GroupKind::Full, 400), (GroupKind::Window { window: WINDOW }, 20)];

#[test]
fn passing_prompts_leave_windows_of_other_conversations() {
    let mut world = World::new(&GROUPS);
    assert_eq!(pass(&mut world, 0, 1, 0, 20), 0);
    // Five times what the windows' pool holds, by one who will not come back.
    assert_eq!(pass(&mut world, 1, 2, 0, 300), 0);
    assert_eq!(pass(&mut world, 0, 1, 0, 40), 18, "all whole blocks of the first turn");
}

#[test]
fn the_end_of_a_prompt_is_kept_for_a_next_turn_that_drops_the_answer() {
    let mut world = World::new(&GROUPS);
    let root = Key::root(&world.geometry.digest, Scope::Domain([0; 32]));
    let mut seq = Seq { tokens: text(0, 20), domain: 0, computed: 0, kv: SeqKv::new(&world.geometry, root) };
    seq.computed = world.kv.adopt(&mut seq.kv, &seq.tokens, 0, 20);
    // An answer far longer than a window.
    seq.tokens.extend((0..50).map(|i| TokenId(2000 + i)));
    while seq.computed < 70 {
        world.go(&mut seq, 4);
    }
    world.kv.release(&mut seq.kv);
    assert_eq!(pass(&mut world, 1, 2, 0, 300), 0);
    let mut next = SeqKv::new(&world.geometry, root);
    let mut tokens = text(0, 20);
    tokens.extend((0..20).map(|i| TokenId(5000 + i)));
    assert_eq!(world.kv.adopt(&mut next, &tokens, 39, 40), 18);
    world.kv.abandon(&mut next);
    world.check();
}

#[test]
fn where_two_have_parted_a_third_goes_on() {
    let mut world = World::new(&GROUPS);
    assert_eq!(pass(&mut world, 0, 1, 30, 90), 0);
    // What the window saw there is overwritten: nothing had told that others would come.
    assert_eq!(pass(&mut world, 1, 9, 0, 300), 0);
    assert_eq!(pass(&mut world, 0, 2, 30, 90), 0);
    assert_eq!(pass(&mut world, 1, 8, 0, 300), 0);
    assert_eq!(pass(&mut world, 0, 3, 30, 90), 30);
    // And so it stays while it is used.
    assert_eq!(pass(&mut world, 1, 7, 0, 300), 0);
    assert_eq!(pass(&mut world, 0, 4, 30, 90), 30);
}
