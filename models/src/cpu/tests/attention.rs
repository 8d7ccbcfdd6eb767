//! Attention of every kind against the reference, and bit for bit whatever the chunks, batch, blocks and machine.

use std::collections::VecDeque;

use super::*;

/// Sequences whose queries, keys and values are made up.
struct Case {
    spec: AttendSpec,
    /// Without values: they are the beginnings of the keys.
    latent: bool,
    sinks: Option<Vec<f32>>,
    sequences: Vec<[Vec<f32>; 3]>,
}

impl Case {
    fn new(random: &mut Random, kind: Kind, lengths: &[usize]) -> Self {
        let Kind { heads: [heads, kv_heads], dims: [key_dim, value_dim], window, latent, sinks } = kind;
        let spec = AttendSpec {
            group: 0,
            slot: 1,
            heads: heads as u32,
            kv_heads: kv_heads as u32,
            key_dim: key_dim as u32,
            value_dim: value_dim as u32,
            scale: 1.5 / (key_dim as f32).sqrt(),
            window,
        };
        let mut large = |n: usize| random.values(n).into_iter().map(|v| 3.0 * v).collect::<Vec<f32>>();
        let sinks = sinks.then(|| large(heads));
        let sequences = lengths
            .iter()
            .map(|n| {
                let values = if latent { 0 } else { n * kv_heads * value_dim };
                [large(n * heads * key_dim), large(n * kv_heads * key_dim), large(values)]
            })
            .collect();
        Self { spec, latent, sinks, sequences }
    }

    fn widths(&self) -> [usize; 3] {
        let AttendSpec { heads, kv_heads, key_dim, value_dim, .. } = self.spec;
        let value = if self.latent { 0 } else { kv_heads * value_dim };
        [heads * key_dim, kv_heads * key_dim, value].map(|w| w as usize)
    }

    fn layout(&self, setting: &Setting) -> GroupLayout {
        let AttendSpec { kv_heads, key_dim, value_dim, .. } = self.spec;
        let value_dim = if self.latent { 0 } else { value_dim as usize };
        setting.layout(kv_heads as usize, [key_dim as usize, value_dim])
    }

    fn on_cpu(&self, setting: &Setting) -> Attended {
        let attended = self.poisoned_on_cpu(setting);
        assert!(attended.values.values().flatten().all(|v| v.is_finite()), "{setting:?}");
        attended
    }

    /// With values that need not give finite ones.
    fn poisoned_on_cpu(&self, setting: &Setting) -> Attended {
        let mut b = CpuBackend::new(&setting.options(self.layout(setting))).unwrap();
        self.run(&mut b, setting)
    }

    fn on_reference(&self, setting: &Setting) -> Attended {
        let kv = KvStore::new(&[self.layout(setting)], setting.block_tokens, setting.page).unwrap();
        self.run(&mut ReferenceBackend::new(kv), setting)
    }

    /// Chunk by chunk; what a window has passed is given to others at once.
    fn run<B: Backend>(&self, b: &mut B, setting: &Setting) -> Attended {
        let [q_width, k_width, v_width] = self.widths();
        let lengths: Vec<usize> = self.sequences.iter().map(|s| s[0].len() / q_width).collect();
        let mut free: VecDeque<BlockId> =
            Random(setting.blocks).shuffled(2048 / setting.block_tokens).into_iter().map(BlockId).collect();
        let mut tables = vec![BlockTable::default(); lengths.len()];
        let mut done = vec![0; lengths.len()];
        let mut chunks = setting.chunks.iter().cycle();
        let mut attended = Attended::default();
        loop {
            let (mut rows, mut parts) = (Vec::new(), [Vec::new(), Vec::new(), Vec::new()]);
            let unfinished = (0..lengths.len()).filter(|&s| done[s] < lengths[s]);
            for seq in unfinished.take(setting.together).collect::<Vec<_>>() {
                let (start, table) = (done[seq], &mut tables[seq]);
                let end = lengths[seq].min(start.saturating_add(*chunks.next().unwrap()));
                let first = self.spec.first_seen(start as u32) as usize / setting.block_tokens;
                let gone = (first - table.first as usize).min(table.blocks.len());
                free.extend(table.blocks.drain(..gone));
                table.first = first as u32;
                while (first + table.blocks.len()) * setting.block_tokens < end {
                    table.blocks.push(free.pop_front().unwrap());
                }
                rows.push(row(seq, start, &vec![0; end - start], table.clone(), false));
                for ((part, of), width) in
                    parts.iter_mut().zip(&self.sequences[seq]).zip([q_width, k_width, v_width])
                {
                    part.extend_from_slice(&of[start * width..end * width]);
                }
                done[seq] = end;
            }
            if rows.is_empty() {
                return attended;
            }
            let batch = Batch::new(&StepInput { rows: rows.clone(), ..StepInput::default() });
            let [q, k] = [(q_width, &parts[0]), (k_width, &parts[1])].map(|(width, of)| put(b, width, of));
            let v = (!self.latent).then(|| put(b, v_width, &parts[2]));
            let sinks = self.sinks.as_ref().map(|s| vector(b, s));
            b.begin(&batch).unwrap();
            let out = b.attend(&q, &k, v.as_ref(), sinks.as_ref(), &self.spec, &batch).unwrap();
            let values = b.values(&out).unwrap();
            attended.work.push(b.take_stats().unwrap());
            let places = rows
                .iter()
                .flat_map(|r| (0..r.tokens.len()).map(|i| (r.seq.0 as usize, r.start as usize + i)));
            let out_width = (self.spec.heads * self.spec.value_dim) as usize;
            assert_eq!(values.len(), batch.tokens.len() * out_width);
            for (place, values) in places.zip(values.chunks_exact(out_width)) {
                attended.values.insert(place, values.to_vec());
            }
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Kind {
    /// Of queries, and of keys.
    heads: [usize; 2],
    /// Of keys, and of values.
    dims: [usize; 2],
    window: Option<u32>,
    latent: bool,
    sinks: bool,
}

const PLAIN: Kind = Kind { heads: [4, 2], dims: [64, 64], window: None, latent: false, sinks: false };

/// What came of it, by sequence and position, and the work of each step.
#[derive(Debug, Default)]
struct Attended {
    values: BTreeMap<(usize, usize), Vec<f32>>,
    work: Vec<StepStats>,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn attention_is_the_references(
        seed in 1_u64..,
        heads in prop::sample::select(vec![[1, 1], [4, 2], [6, 1], [3, 3], [35, 1]]),
        dims in [1_usize..70, 1_usize..70], latent: bool, sinks: bool,
        window in prop::option::of(1_u32..400),
        lengths in prop::collection::vec(1_usize..330, 1..4),
        chunks in prop::collection::vec(1_usize..200, 1..4),
        threads in 1_usize..4, block_tokens in 1_usize..40, page in prop::sample::select(&PageType::ALL),
    ) {
        let dims = if latent { [dims[0].max(dims[1]), dims[0].min(dims[1])] } else { dims };
        let case = Case::new(&mut Random(seed), Kind { heads, dims, window, latent, sinks }, &lengths);
        let isa = Isa::detect();
        let setting = Setting { threads, isa, block_tokens, chunks, together: 3, ..Setting::plain(page) };
        let (found, expected) = (case.on_cpu(&setting), case.on_reference(&setting));
        prop_assert_eq!(found.work, expected.work);
        prop_assert_eq!(found.values.len(), lengths.iter().sum::<usize>());
        // Together: a sum that cancels is as exact as what it is a sum of.
        let (found, expected) = (found.values.into_values(), expected.values.into_values());
        assert_close(&found.flatten().collect::<Vec<_>>(), &widen(&expected.flatten().collect::<Vec<_>>()), 2e-5)?;
    }
}

/// Every kind, over several ranges of positions, gives the same bits in every setting.
#[test]
fn every_kind_of_attention_is_invariant() {
    let latent = Kind { heads: [4, 1], dims: [576, 512], latent: true, ..PLAIN };
    let kinds = [
        (PLAIN, &[600, 300][..]),
        (Kind { heads: [6, 2], dims: [40, 40], sinks: true, ..PLAIN }, &[520, 30]),
        (Kind { heads: [3, 1], dims: [192, 128], ..PLAIN }, &[300, 20]),
        (Kind { heads: [5, 1], dims: [37, 13], ..PLAIN }, &[300, 20]),
        (Kind { window: Some(300), sinks: true, ..PLAIN }, &[700, 310]),
        (Kind { window: Some(100), ..PLAIN }, &[530, 90, 260]),
        (Kind { heads: [2, 1], dims: [16, 16], ..PLAIN }, &[600, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9]),
        (Kind { window: Some(1), ..PLAIN }, &[270]),
        (latent, &[270, 5]),
        (Kind { heads: [35, 1], dims: [40, 24], sinks: true, ..latent }, &[270, 12]),
        (Kind { heads: [6, 2], dims: [20, 20], window: Some(33), ..latent }, &[300, 40]),
    ];
    for (i, (kind, lengths)) in kinds.into_iter().enumerate() {
        let case = Case::new(&mut Random(900 + i as u64), kind, lengths);
        for page in PageType::ALL {
            let plain = Setting::plain(page);
            let expected = case.on_cpu(&plain);
            assert_eq!(expected.values.len(), lengths.iter().sum::<usize>());
            let isa = Isa::detect();
            let sets = Isa::ALL.iter().filter(|isa| isa.available());
            let mut settings: Vec<_> = sets.map(|&isa| Setting { isa, ..plain.clone() }).collect();
            settings.extend([
                Setting { isa, threads: 2, together: 3, chunks: vec![255, 1, 1, 2, 64], ..plain.clone() },
                Setting {
                    isa,
                    threads: 3,
                    chunks: vec![251, 1],
                    block_tokens: 7,
                    blocks: 5,
                    ..plain.clone()
                },
                Setting { threads: 5, together: 2, chunks: vec![40, 130], block_tokens: 1, ..plain.clone() },
                // Many items, of which one is most of the work.
                Setting { threads: 3, together: 14, chunks: [&[40][..], &[1; 13]].concat(), ..plain.clone() },
                Setting { isa, threads: 2, chunks: vec![1], block_tokens: 64, together: 3, ..plain },
            ]);
            for setting in settings {
                let found = case.on_cpu(&setting).values;
                let differs = |(place, values): &(&_, &Vec<f32>)| {
                    found.get(place).is_none_or(|found| bits(found) != bits(values))
                };
                let wrong = expected.values.iter().find(differs).map(|(place, _)| place);
                assert!(wrong.is_none(), "{kind:?} {setting:?}: differs first at {wrong:?}");
            }
        }
    }
}

/// Tokens computed together share what they read of a page: what only the last of them sees must not reach the others.
#[test]
fn what_a_token_does_not_see_changes_nothing() {
    let window = Some(70);
    for kind in
        [PLAIN, Kind { window, ..PLAIN }, Kind { heads: [8, 1], dims: [20, 24], sinks: true, ..PLAIN }]
    {
        let mut case = Case::new(&mut Random(77), kind, &[300]);
        let setting = Setting { isa: Isa::detect(), ..Setting::plain(PageType::F32) };
        let expected = case.on_cpu(&setting).values;
        // A factor of 0 would not make these 0.
        let [_, k_width, v_width] = case.widths();
        for (of, width) in case.sequences[0][1..].iter_mut().zip([k_width, v_width]) {
            let values = of.len();
            of[values - width..].fill(f32::MAX);
        }
        let found = case.poisoned_on_cpu(&setting).values;
        for (place, values) in expected.iter().filter(|((_, position), _)| *position < 299) {
            assert_eq!(bits(&found[place]), bits(values), "{kind:?} {place:?}");
        }
    }
}

/// A head whose sink outweighs every score gathers next to nothing.
#[test]
fn a_sink_takes_weight_and_gives_no_value() {
    let kind = Kind { heads: [2, 1], dims: [8, 8], sinks: true, ..PLAIN };
    let mut case = Case::new(&mut Random(31), kind, &[300]);
    let setting = Setting::plain(PageType::F32);
    case.sinks = Some(vec![f32::NEG_INFINITY, 80.0]);
    let with = case.on_cpu(&setting);
    case.sinks = None;
    let without = case.on_cpu(&setting);
    for (place, values) in &with.values {
        let (of_first, of_second) = values.split_at(8);
        assert_close(of_first, &widen(&without.values[place][..8]), 1e-6).unwrap();
        assert!(of_second.iter().all(|v| v.abs() < 1e-20), "{of_second:?}");
    }
}

#[test]
#[should_panic(expected = "what the row's first token sees")]
fn a_table_that_lacks_what_is_seen_is_refused() {
    let mut case = Case::new(&mut Random(5), Kind { window: Some(40), ..PLAIN }, &[100]);
    let mut b =
        CpuBackend::new(&Setting::plain(PageType::F32).options(case.layout(&Setting::plain(PageType::F32))))
            .unwrap();
    let table = BlockTable { first: 1, blocks: vec![BlockId(0)] };
    case.sequences[0].iter_mut().zip([256, 128, 128]).for_each(|(of, width)| of.truncate(width));
    let batch = Batch::new(&StepInput { rows: vec![row(0, 31, &[0], table, false)], ..StepInput::default() });
    b.begin(&batch).unwrap();
    let [q, k, v] = &case.sequences[0];
    let (q, k, v) = (put(&mut b, 256, q), put(&mut b, 128, k), put(&mut b, 128, v));
    let _ = b.attend(&q, &k, Some(&v), None, &case.spec, &batch);
}

#[test]
fn blocks_are_copied_before_the_step() {
    let setting = Setting { isa: Isa::detect(), ..Setting::plain(PageType::F32) };
    let random = &mut Random(9);
    let case = Case::new(random, Kind { heads: [2, 2], dims: [8, 8], ..PLAIN }, &[]);
    let mut b = CpuBackend::new(&setting.options(case.layout(&setting))).unwrap();
    let attend = |b: &mut CpuBackend, values: &[f32], start: usize, block: u32, copies: Vec<BlockCopy>| {
        let n = values.len() / 16;
        let table = BlockTable { first: 0, blocks: vec![BlockId(block)] };
        let batch = Batch::new(&StepInput { copies, rows: vec![row(0, start, &vec![0; n], table, false)] });
        b.begin(&batch).unwrap();
        let x = put(b, 16, values);
        let out = b.attend(&x, &x, Some(&x), None, &case.spec, &batch).unwrap();
        b.values(&out).unwrap()
    };
    let (past, new) = (random.values(5 * 16), random.values(16));
    attend(&mut b, &past, 0, 3, Vec::new());
    let copy = BlockCopy { group: 0, from: BlockId(3), to: BlockId(6) };
    let copied = attend(&mut b, &new, 5, 6, vec![copy]);
    assert_eq!(copied, attend(&mut b, &new, 5, 3, Vec::new()));
}
