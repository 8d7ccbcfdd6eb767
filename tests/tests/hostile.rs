//! Model files with damaged headers through everything that reads them, up to a step of those that still load: an error
//! with a name, or a model that runs; never a panic, nor memory beyond what the file itself needs. Sampling parameters
//! of any bits.
//!
//! A program of its own, because it looks at the process' memory.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use frugal_models::arch::LoadError;
use frugal_models::gguf::Gguf;
use frugal_models::inspect::{InspectOptions, inspect};
use frugal_models::kv::PageType;
use frugal_models::memory::{KvOptions, KvSize};
use frugal_models::model_runner::{BackendKind, RunnerOptions, load_runner};
use frugal_models::runner::Runner;
use frugal_models::source::servable;
use frugal_models::step::{BlockId, BlockTable, Row, Sample, SamplingParams, SeqId, StepInput, TokenId};
use frugal_models::template::{Chat, ChatTemplate, TemplateError};
use frugal_models::tokenizer::Tokenizer;
use serde_json::json;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

/// Numbers that checks forget.
const EDGES: [u64; 14] =
    [0, 1, 2, 3, 7, 31, 33, 255, 65_536, 1 << 31, u32::MAX as u64, 1 << 32, 1 << 63, u64::MAX];

/// One to three places of the header changed: a bit, a byte, or a whole number.
fn damage(file: &mut [u8], header: usize, random: &mut Random) {
    for _ in 0..1 + random.below(3) {
        let at = random.below(header);
        let edge = EDGES[random.below(EDGES.len())].to_le_bytes();
        match random.below(5) {
            0 => file[at] ^= 1 << random.below(8),
            1 => file[at] = random.next() as u8,
            2 => file[at..at + 4].copy_from_slice(&edge[..4]),
            3 => file[at..at + 8].copy_from_slice(&edge),
            _ => file[at] = file[at].wrapping_add(1),
        }
    }
}

/// Whether the model still ran.
fn read(file: Vec<u8>) -> bool {
    let Ok(mut looked_at) = Gguf::from_bytes(file.clone()) else { return false };
    let looked = InspectOptions { kv: options().kv, available: None, template: None };
    let report = inspect(&mut looked_at, &looked);
    drop(looked_at);
    let gguf = Gguf::from_bytes(file).expect("it opened once");
    let text = Tokenizer::from_gguf(&gguf).is_ok_and(|tokenizer| reads_text(&gguf, &tokenizer));
    let mut runner = match load_runner(&gguf, &options()) {
        Ok(runner) => {
            assert_eq!(report.servable, text && servable(&gguf).is_ok(), "{:?}", report.problems);
            runner
        }
        // Not the file's fault.
        Err(LoadError::Memory { .. } | LoadError::Backend(_)) => return false,
        Err(error) => {
            assert!(!report.servable, "{error}");
            return false;
        }
    };
    let sample = Sample {
        params: Arc::default(),
        seed: 1,
        choice: 0,
        history: Vec::new(),
        prompt_len: 1,
        forbid: Arc::default(),
        constraint: None,
    };
    // Damaged numbers may well compute no number: that is the row's fault.
    let token = step(&mut *runner, sample);
    report.servable && token.is_some()
}

/// Whether its template, if it has one, can be used; whatever it makes of a text.
fn reads_text(gguf: &Gguf, tokenizer: &Tokenizer) -> bool {
    let tokens = tokenizer.encode_prompt("Hello <|im_start|> \u{1f600} 12345").unwrap_or_default();
    tokenizer.decode(&tokens);
    let template = ChatTemplate::from_gguf(gguf, tokenizer.template_tokens());
    if let Ok(template) = &template
        && let Ok(rendered) = template.render(&Chat {
            messages: &[json!({"role": "user", "content": "Hi"})],
            add_generation_prompt: true,
            ..Default::default()
        })
    {
        tokenizer.encode_rendered(&rendered).unwrap_or_default();
    }
    matches!(template, Ok(_) | Err(TemplateError::Missing))
}

fn options() -> RunnerOptions {
    let (page, size) = (PageType::F16, KvSize::Blocks(2));
    let kv = KvOptions { block_tokens: 16, page, size, context: None, sequences: 1, step_tokens: 64 };
    RunnerOptions { backend: BackendKind::Cpu, threads: 1, pin: false, isa: None, kv, lazy: false }
}

/// The token after a short prompt; None if the row has a fault.
fn step(runner: &mut dyn Runner, sample: Sample) -> Option<TokenId> {
    let geometry = runner.geometry();
    let row = Row {
        seq: SeqId(1),
        start: 0,
        tokens: (0..geometry.context_max.min(3)).map(|i| TokenId(i % geometry.vocab)).collect(),
        tables: vec![BlockTable { first: 0, blocks: vec![BlockId(1)] }; geometry.groups.len()],
        sample: Some(sample),
        drafts: 0,
        score: None,
    };
    runner.submit(Arc::new(StepInput { copies: Vec::new(), rows: vec![row] }));
    let mut output = runner.wait().expect("a model that loads runs");
    output.rows.remove(0).ok()?.tokens.first().copied()
}

/// Peak of resident memory in bytes, where the system tells.
fn peak() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? << 10)
}

#[test]
fn damaged_headers_are_refused_or_run() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    let mut random = Random(2);
    let files = [
        ("llama-F32", 500),
        ("qwen3moe-F16", 700),
        ("llama-Q4_K_M", 700),
        ("llama-moe-F32", 600),
        ("gpt-oss-F32", 600),
        ("glm4moe-F32", 600),
        ("deepseek2-v3-F32", 600),
    ];
    for (name, cases) in files {
        let whole = std::fs::read(folder.join(format!("{name}.gguf"))).expect("the fixture is there");
        let gguf = Gguf::from_bytes(whole.clone()).expect("it is whole");
        let ranges = gguf.tensors().iter().filter_map(frugal_models::gguf::TensorInfo::range);
        let header = ranges.map(|r| r.start).min().expect("tensors");
        let vocabulary = gguf.get("tokenizer.ggml.tokens").is_some();
        assert!(vocabulary && read(whole.clone()), "{name} runs as it is");
        let mut ran = 0;
        for case in 0..cases {
            let mut file = whole.clone();
            damage(&mut file, header, &mut random);
            if case % 50 == 0 {
                file.truncate(random.below(file.len()));
            }
            match catch_unwind(AssertUnwindSafe(|| read(file))) {
                Ok(good) => ran += usize::from(good),
                Err(_) => panic!("{name}, case {case}"),
            }
        }
        assert!(0 < ran && ran < cases, "{ran} of {cases} still ran: the damage is neither none nor total");
    }
    if let Some(peak) = peak() {
        assert!(peak < 256 << 20, "{peak} bytes were resident");
    }
}

#[test]
fn sampling_parameters_of_any_bits_choose_a_token_or_fault_the_row() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/llama-F32.gguf");
    let gguf = Gguf::open(&path).expect("the fixture is there");
    let mut runner = load_runner(&gguf, &options()).expect("it runs");
    let vocab = runner.geometry().vocab;
    let mut random = Random(3);
    let special =
        [0.0, -0.0, 1.0, -1.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN, 1e-45];
    let (mut chosen, mut faults) = (0, 0);
    for _ in 0..1500 {
        let number = |random: &mut Random| match random.below(3) {
            0 => f32::from_bits(random.next() as u32),
            1 => special[random.below(special.len())],
            _ => random.below(100) as f32 / 50.0,
        };
        let token = |random: &mut Random| match random.below(4) {
            0 => TokenId(random.next() as u32),
            _ => TokenId(random.below(vocab as usize) as u32),
        };
        let count = |random: &mut Random| EDGES[random.below(EDGES.len())] as u32;
        let params = SamplingParams {
            temperature: number(&mut random),
            top_k: count(&mut random),
            top_p: number(&mut random),
            min_p: number(&mut random),
            repetition_penalty: number(&mut random),
            presence_penalty: number(&mut random),
            frequency_penalty: number(&mut random),
            logit_bias: (0..random.below(4)).map(|_| (token(&mut random), number(&mut random))).collect(),
            logprobs: (random.below(2) == 0).then(|| count(&mut random)),
        };
        let forbid = match random.below(10) {
            0 => (0..vocab).map(TokenId).collect(),
            _ => (0..random.below(3)).map(|_| token(&mut random)).collect(),
        };
        let sample = Sample {
            params: Arc::new(params),
            seed: random.next(),
            choice: count(&mut random),
            history: (0..random.below(5)).map(|_| token(&mut random)).collect(),
            prompt_len: count(&mut random),
            forbid,
            constraint: None,
        };
        match step(&mut *runner, sample) {
            Some(token) => {
                assert!(token.0 < vocab);
                chosen += 1;
            }
            None => faults += 1,
        }
    }
    assert!(chosen > 1000 && faults > 10, "{chosen} chosen, {faults} faults");
}
