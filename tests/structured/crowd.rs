//! Requests through the scheduler and the CPU runner, as texts.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use frugal_models::constraint::{ConstraintEngine, ConstraintSpec};
use frugal_models::gguf::Gguf;
use frugal_models::kv::PageType;
use frugal_models::mask::Grammar;
use frugal_models::memory::{KvOptions, KvSize};
use frugal_models::model_runner::{BackendKind, RunnerOptions, load_runner};
use frugal_models::runner::Runner;
use frugal_models::step::{SamplingParams, TokenId};
use frugal_models::tokenizer::Tokenizer;
use frugal_scheduler::engine::{Command, Engine};
use frugal_scheduler::options::EngineOptions;
use frugal_scheduler::request::{Event, FinishReason, Request, RequestId, Tick};
use frugal_scheduler::snapshot::Counters;

/// A model, its tokenizer, and grammars for it.
pub(crate) struct Model {
    gguf: Gguf,
    pub(crate) tokenizer: Tokenizer,
    engine: ConstraintEngine,
}

/// What to say, and how.
#[derive(Clone)]
pub(crate) struct Ask {
    pub(crate) id: u64,
    pub(crate) grammar: Option<Arc<dyn Grammar>>,
    pub(crate) sampling: SamplingParams,
    pub(crate) n: u32,
    pub(crate) max_tokens: u32,
    pub(crate) min_tokens: u32,
    pub(crate) ends: bool,
    pub(crate) stop: Vec<String>,
    pub(crate) prediction: Vec<TokenId>,
}

impl Ask {
    pub(crate) fn new(id: u64, grammar: &Arc<dyn Grammar>) -> Self {
        let grammar = Some(grammar.clone());
        let (sampling, stop, prediction) = (SamplingParams::default(), Vec::new(), Vec::new());
        Self { id, grammar, sampling, n: 1, max_tokens: 600, min_tokens: 0, ends: true, stop, prediction }
    }
}

/// A choice's text and end.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Said {
    pub(crate) text: String,
    pub(crate) tokens: Vec<TokenId>,
    pub(crate) reason: FinishReason,
}

/// By request and choice.
pub(crate) type All = BTreeMap<(u64, u32), Said>;

impl Model {
    pub(crate) fn open(name: &str) -> Result<Self> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(format!("{name}.gguf"));
        let gguf = Gguf::open(&path)?;
        let tokenizer = Tokenizer::from_gguf(&gguf)?;
        let engine = ConstraintEngine::new(&tokenizer)?;
        Ok(Self { gguf, tokenizer, engine })
    }

    pub(crate) fn compile(&self, spec: &ConstraintSpec) -> Result<Arc<dyn Grammar>> {
        self.engine.compile(spec).with_context(|| format!("{spec:?}"))
    }

    fn runner(&self, blocks: u32) -> Result<Box<dyn Runner>> {
        let size = KvSize::Blocks(blocks);
        let kv = KvOptions {
            block_tokens: 16,
            page: PageType::F16,
            size,
            context: None,
            sequences: 16,
            step_tokens: 512,
        };
        let options =
            RunnerOptions { backend: BackendKind::Cpu, threads: 1, pin: false, isa: None, kv, lazy: false };
        Ok(load_runner(&self.gguf, &options)?)
    }

    fn request(&self, ask: &Ask) -> Request {
        Request {
            prompt: (0..5 + ask.id as u32 % 40)
                .map(|t| TokenId(30 + (t * 7 + ask.id as u32) % 200))
                .collect(),
            sampling: Arc::new(ask.sampling.clone()),
            seed: 1000 + ask.id,
            n: ask.n,
            max_tokens: ask.max_tokens,
            min_tokens: ask.min_tokens,
            end_tokens: if ask.ends { self.tokenizer.end_tokens() } else { Arc::default() },
            stop: ask.stop.clone().into(),
            include_stop: false,
            grammar: ask.grammar.clone(),
            prediction: ask.prediction.clone().into(),
            prompt_logprobs: None,
            cache_domain: [0; 32],
            deadline: None,
            tenant: 0,
        }
    }

    /// Runs all, as many at once as the options allow.
    pub(crate) fn run(&self, asks: &[Ask], blocks: u32, options: EngineOptions) -> Result<(All, Counters)> {
        let mut runner = self.runner(blocks)?;
        let options = EngineOptions { token_bytes: self.tokenizer.token_bytes(), ..options };
        let mut engine = Engine::new(runner.geometry().clone(), options);
        for (i, ask) in (1..).zip(asks) {
            let request = Box::new(self.request(ask));
            engine.apply(Command::Submit { id: RequestId(i), request, at: Tick(0) }, Tick(0));
        }
        let mut tokens: BTreeMap<(u64, u32), Vec<TokenId>> = BTreeMap::new();
        let mut all = All::new();
        for now in (1..100_000).map(Tick) {
            let plan = engine.plan(now);
            if plan.is_empty() {
                return Ok((all, engine.snapshot().counters));
            }
            runner.submit(plan.input.clone());
            engine.commit(plan, runner.wait(), now);
            for (request, event) in engine.take_outbox().events {
                let id = asks[request.0 as usize - 1].id;
                match event {
                    Event::Token { choice, token, .. } => tokens.entry((id, choice)).or_default().push(token),
                    Event::Finish { choice, reason, text_len } => {
                        let tokens = tokens.remove(&(id, choice)).unwrap_or_default();
                        let text = self.text(&tokens, text_len as usize)?;
                        all.insert((id, choice), Said { text, tokens, reason });
                    }
                    Event::Done(report) => ensure!(report.fault.is_none(), "{id}: {:?}", report.fault),
                    Event::PromptScores { .. } => {}
                }
            }
            ensure!(engine.check().violation.is_none(), "{:?}", engine.check().violation);
        }
        anyhow::bail!("no end in sight")
    }

    fn text(&self, tokens: &[TokenId], len: usize) -> Result<String> {
        let bytes = self.tokenizer.token_bytes();
        let mut text: Vec<u8> = tokens.iter().flat_map(|&t| bytes.get(t)).copied().collect();
        text.truncate(len);
        // A text that was cut may end within a character.
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}

/// So many sequences at once.
pub(crate) fn at_once(max_seqs: u32) -> EngineOptions {
    EngineOptions { max_seqs, ..EngineOptions::default() }
}
