use std::sync::Arc;

use super::*;
use crate::backend::Rope;
use crate::kv::{GroupLayout, PageType};
use crate::step::{BlockCopy, BlockId, BlockTable, GroupKind, Sample, SamplingParams, Score, SeqId, TokenId};

const VOCAB: u32 = 8;

/// Logits say the token's own id is likeliest, without a weight; tokens 6 and 7 are NaN and a panic.
struct Echo;

impl Model<ReferenceBackend> for Echo {
    fn forward(
        &self,
        backend: &mut ReferenceBackend,
        batch: &Batch,
    ) -> Result<Option<<ReferenceBackend as Backend>::Tensor>, BackendError> {
        let bytes: Vec<u8> = (0..VOCAB * VOCAB)
            .flat_map(|i| {
                match (i / VOCAB, i % VOCAB) {
                    (6, _) => f32::NAN,
                    (a, b) if a == b => 5.0,
                    (_, b) => b as f32 / 16.0,
                }
                .to_le_bytes()
            })
            .collect();
        let view = crate::weights::TensorView {
            name: "identity",
            ty: crate::quant::GgmlType::F32,
            cols: VOCAB as usize,
            rows: VOCAB as usize,
            experts: 1,
            data: &bytes,
            packed: false,
            place: None,
        };
        assert!(batch.tokens.iter().all(|t| t.0 != 7), "token seven");
        let table = backend.load_embedding(&view)?;
        let mut x = backend.embed(&table, batch)?;
        let still =
            Rope { style: crate::backend::RopeStyle::Normal, first: 0, frequencies: vec![], scale: 1.0 };
        backend.rope(&mut x, VOCAB, &still, batch)?;
        Ok(Some(backend.select(&x, &batch.outputs)?))
    }

    fn logits(
        &self,
        _: &mut ReferenceBackend,
        x: &<ReferenceBackend as Backend>::Tensor,
    ) -> Result<<ReferenceBackend as Backend>::Tensor, BackendError> {
        Ok(x.clone())
    }
}

#[test]
fn a_failed_step_is_a_fault_while_the_device_is_there() {
    let failed = BackendError::Device("out of memory".to_owned());
    assert_eq!(fault(&failed, Ok(())), StepFault("out of memory".to_owned()));
}

#[test]
#[should_panic(expected = "the device is lost: illegal address, after: launch failed")]
fn a_lost_device_ends_its_runner() {
    let error = |what: &str| BackendError::Device(what.to_owned());
    let _ = fault(&error("launch failed"), Err(error("illegal address")));
}

fn runner() -> ModelRunner<ReferenceBackend> {
    let geometry = Geometry {
        vocab: VOCAB,
        context_max: 12,
        block_tokens: 4,
        groups: vec![CacheGroup { kind: GroupKind::Full, block_bytes: 32, blocks: 5 }],
        digest: [0; 32],
    };
    let layout = GroupLayout { layers: 1, kv_heads: 1, key_dim: 1, value_dim: 1, blocks: 5 };
    let backend = ReferenceBackend::new(KvStore::new(&[layout], 4, PageType::F32).unwrap());
    ModelRunner::new(backend, Box::new(Echo), geometry, Invariance::Bitwise)
}

fn row(seq: u64, start: u32, tokens: &[u32], blocks: &[u32]) -> Row {
    let params = SamplingParams { temperature: 0.0, logprobs: Some(1), ..SamplingParams::default() };
    Row {
        seq: SeqId(seq),
        start,
        tokens: tokens.iter().map(|&t| TokenId(t)).collect(),
        tables: vec![BlockTable { first: 0, blocks: blocks.iter().map(|&b| BlockId(b)).collect() }],
        sample: Some(Sample {
            params: Arc::new(params),
            seed: 0,
            choice: 0,
            history: Vec::new(),
            prompt_len: 0,
            forbid: Arc::from([]),
            constraint: None,
        }),
        drafts: 0,
        score: None,
    }
}

fn run(runner: &mut ModelRunner<ReferenceBackend>, rows: Vec<Row>) -> Result<StepOutput, StepFault> {
    runner.submit(Arc::new(StepInput { copies: Vec::new(), rows }));
    runner.wait()
}

#[test]
fn each_row_gets_its_own_logits() {
    let scored = |targets: &[u32], sample: bool| {
        let mut row = row(targets.len() as u64 + 10, 0, &[1, 2, 3], &[targets.len() as u32]);
        let targets = targets.iter().map(|&t| TokenId(t)).collect();
        row.score = Some(Score { targets, top: 2 });
        row.sample = row.sample.filter(|_| sample);
        row
    };
    let silent = Row { sample: None, ..row(3, 0, &[5], &[4]) };
    let rows = vec![scored(&[1, 0], true), silent, row(1, 0, &[4, 0], &[0]), scored(&[1, 2, 3], true)];
    let output = run(&mut runner(), rows.clone()).unwrap();
    for piece in [1, 2, 5] {
        assert_eq!(run(&mut ModelRunner { piece, ..runner() }, rows.clone()).unwrap().rows, output.rows);
    }
    let rows: Vec<_> = output.rows.into_iter().map(Result::unwrap).collect();
    let tokens: Vec<_> = rows.iter().map(|r| r.tokens.first().map(|t| t.0)).collect();
    assert_eq!(tokens, [Some(3), None, Some(0), Some(3)]);
    let targets = |i: usize| rows[i].prompt_scores.iter().map(|s| s.token.0).collect::<Vec<_>>();
    assert_eq!((targets(0), targets(1), targets(3)), (vec![1, 0], vec![], vec![1, 2, 3]));
    // After token 1 comes 1 itself with logit 5, after token 2 not 0.
    let scores = &rows[0].prompt_scores;
    assert_eq!(scores[0].top[0], (TokenId(1), scores[0].logprob));
    assert_eq!((scores[1].top[0].0, scores[1].top.len()), (TokenId(2), 2));
    assert!(scores[1].logprob < scores[1].top[0].1);
    assert_eq!(rows[2].scores[0].token, TokenId(0));
}

#[test]
fn tokens_are_chosen_as_long_as_drafts_are_right() {
    // After every token comes itself.
    let guessed = |tokens: &[u32]| Row { drafts: tokens.len() as u32 - 1, ..row(1, 0, tokens, &[0]) };
    for (tokens, expected) in
        [(&[1, 1, 1, 2][..], &[1, 1, 1][..]), (&[2, 1, 1], &[2]), (&[3, 3, 3], &[3, 3, 3]), (&[4], &[4])]
    {
        for piece in [1, 2, 5] {
            let output = run(&mut ModelRunner { piece, ..runner() }, vec![guessed(tokens)]).unwrap();
            let output = output.rows[0].as_ref().unwrap();
            assert_eq!(output.tokens.iter().map(|t| t.0).collect::<Vec<_>>(), expected);
            assert_eq!(output.scores.iter().map(|s| s.token).collect::<Vec<_>>(), output.tokens);
        }
    }
    // Token 6 is chosen, whatever the logits; after it there are none.
    let mut fatal = guessed(&[1, 6, 1]);
    let sample = fatal.sample.as_mut().unwrap();
    sample.params =
        Arc::new(SamplingParams { logit_bias: vec![(TokenId(6), 100.0)], ..(*sample.params).clone() });
    let output = run(&mut runner(), vec![fatal]).unwrap();
    assert_eq!(output.rows[0].as_ref().unwrap().tokens, [TokenId(6)]);
}

#[test]
fn a_row_without_numbers_spoils_no_other() {
    let output = run(&mut runner(), vec![row(1, 0, &[6], &[0]), row(2, 0, &[2], &[1])]).unwrap();
    assert_eq!(output.rows[0], Err(RowFault::NotANumber));
    assert_eq!(output.rows[1].as_ref().unwrap().tokens, [TokenId(2)]);
}

#[test]
#[should_panic(expected = "token seven")]
fn a_panic_reaches_whoever_drives_the_runner() {
    let _ = run(&mut runner(), vec![row(1, 0, &[7], &[0])]);
}

#[test]
fn steps_that_break_their_promises_are_refused_and_harmless() {
    let mut runner = runner();
    let score = Score { targets: vec![TokenId(1); 2], top: 0 };
    let cases = [
        (vec![row(1, 0, &[], &[0])], "without tokens"),
        (vec![row(1, 0, &[8], &[0])], "token 8 outside"),
        (vec![row(1, 0, &[1], &[5])], "block 5 of a pool of 5"),
        (vec![row(1, 3, &[1, 1], &[0])], "do not cover positions up to 5"),
        (vec![row(1, 12, &[1], &[0, 1, 2, 3])], "beyond the context"),
        (vec![row(1, u32::MAX, &[1], &[0])], "beyond the context"),
        (vec![row(1, 0, &[1], &[0]), row(1, 0, &[1], &[1])], "two rows"),
        (vec![row(1, 0, &[1], &[0]), row(2, 0, &[1], &[0])], "block 0 is written twice"),
        (vec![Row { tables: vec![], ..row(1, 0, &[1], &[]) }], "0 tables for 1 groups"),
        (vec![Row { score: Some(score), ..row(1, 0, &[1], &[0]) }], "more targets than tokens"),
        (vec![Row { drafts: 2, ..row(1, 0, &[1, 1], &[0]) }], "2 drafts in a row that may have none"),
        (vec![Row { drafts: 1, sample: None, ..row(1, 0, &[1, 1], &[0]) }], "1 drafts"),
    ];
    for (rows, words) in cases {
        let fault = run(&mut runner, rows).unwrap_err();
        assert!(fault.0.contains(words), "{fault}");
    }
    let copies = vec![BlockCopy { group: 0, from: BlockId(0), to: BlockId(5) }];
    runner.submit(Arc::new(StepInput { copies, rows: Vec::new() }));
    assert!(runner.wait().unwrap_err().0.contains("copy of block 0 to 5"));
    // Two rows may read one block; a step may be empty.
    let shared = vec![row(1, 4, &[1], &[0, 1]), row(2, 4, &[1], &[0, 2])];
    assert_eq!(run(&mut runner, shared).unwrap().rows.len(), 2);
    assert_eq!(run(&mut runner, Vec::new()).unwrap(), StepOutput::default());
}
