//! A model file is hostile: what inspection calls servable loads and runs a step on the reference backend, and what it
//! has problems with does not load.
//!
//! The input is a file's header; its tensors hold zeros, which are put behind it.
#![no_main]

use std::sync::Arc;

use frugal_models::arch::LoadError;
use frugal_models::gguf::Gguf;
use frugal_models::inspect::{InspectOptions, inspect};
use frugal_models::kv::PageType;
use frugal_models::memory::{KvOptions, KvSize};
use frugal_models::model_runner::{BackendKind, RunnerOptions, load_runner};
use frugal_models::runner::Runner;
use frugal_models::source::servable;
use frugal_models::step::{BlockId, BlockTable, Row, Sample, SeqId, StepInput, TokenId};
use frugal_models::template::{ChatTemplate, TemplateError};
use frugal_models::tokenizer::Tokenizer;
use libfuzzer_sys::fuzz_target;

/// Enough for the seeds' tensors.
const ZEROS: usize = 32 << 10;

const KV: KvOptions = KvOptions {
    block_tokens: 16,
    page: PageType::F32,
    size: KvSize::Blocks(2),
    context: None,
    sequences: 1,
    step_tokens: 64,
};

fn step(runner: &mut dyn Runner) {
    let geometry = runner.geometry();
    let (vocab, groups) = (geometry.vocab, geometry.groups.len());
    let sample = Sample {
        params: Arc::default(),
        seed: 1,
        choice: 0,
        history: Vec::new(),
        prompt_len: 1,
        forbid: Arc::default(),
        constraint: None,
    };
    let row = Row {
        seq: SeqId(1),
        start: 0,
        tokens: (0..geometry.context_max.min(3)).map(|i| TokenId(i % vocab)).collect(),
        tables: vec![BlockTable { first: 0, blocks: vec![BlockId(1)] }; groups],
        sample: Some(sample),
        drafts: 0,
        score: None,
    };
    runner.submit(Arc::new(StepInput { copies: Vec::new(), rows: vec![row] }));
    let mut output = runner.wait().expect("a model that loads runs");
    // Numbers of the file's choice may well compute no number: that is the row's fault.
    if let Some(token) = output.rows.remove(0).ok().and_then(|row| row.tokens.first().copied()) {
        assert!(token.0 < vocab);
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut file = bytes.to_vec();
    file.resize(bytes.len() + ZEROS, 0);
    let Ok(mut looked_at) = Gguf::from_bytes(file.clone()) else { return };
    let report = inspect(&mut looked_at, &InspectOptions { kv: KV, available: None, template: None });
    assert_eq!(report.servable, report.problems.is_empty());
    assert!(report.problems.iter().all(|problem| !problem.message.is_empty()));
    drop(looked_at);

    let gguf = Gguf::from_bytes(file).expect("it opened once");
    let text = Tokenizer::from_gguf(&gguf).is_ok_and(|tokenizer| {
        let template = ChatTemplate::from_gguf(&gguf, tokenizer.template_tokens());
        matches!(template, Ok(_) | Err(TemplateError::Missing))
    });
    let options = RunnerOptions {
        backend: BackendKind::Reference,
        threads: 1,
        pin: false,
        isa: None,
        kv: KV,
        lazy: false,
    };
    match load_runner(&gguf, &options) {
        Ok(mut runner) => {
            assert_eq!(report.servable, text && servable(&gguf).is_ok(), "{:?}", report.problems);
            step(&mut *runner);
        }
        // Not the file's fault.
        Err(LoadError::Memory { .. } | LoadError::Backend(_)) => {}
        Err(error) => assert!(!report.servable, "{error}"),
    }
});
