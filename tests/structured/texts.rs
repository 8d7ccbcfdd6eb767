//! What came out is what was asked for.

use anyhow::{Context, Result, ensure};
use frugal_models::constraint::ConstraintSpec;
use frugal_models::step::{SamplingParams, TokenId};
use frugal_scheduler::options::{Coefficients, EngineOptions};
use frugal_scheduler::request::FinishReason;
use serde_json::{Value, json};

use crate::crowd::{All, Ask, Model, Said, at_once};
use crate::schemas::{Rng, schema};

const MODEL: &str = "qwen3moe-Q4_K_M";

/// Another implementation's word on it.
fn validate(schema: &Value, text: &str) -> Result<()> {
    let value: Value = serde_json::from_str(text).with_context(|| format!("{schema}: {text}"))?;
    let options = jsonschema::options().should_validate_formats(true);
    let validator = options.build(schema).map_err(|e| anyhow::anyhow!("{schema}: {e}"))?;
    validator.validate(&value).map_err(|e| anyhow::anyhow!("{schema}: {text}: {e}"))
}

/// Those that came to an end by themselves.
fn whole(all: &All) -> impl Iterator<Item = (u64, &Said)> {
    all.iter().filter(|(_, said)| said.reason != FinishReason::Length).map(|((id, _), said)| (*id, said))
}

fn ended(said: &Said) -> bool {
    matches!(said.reason, FinishReason::EndToken(_) | FinishReason::Complete)
}

#[test]
fn two_hundred_random_schemas_are_kept_sixteen_at_once() -> Result<()> {
    let model = Model::open(MODEL)?;
    let mut rng = Rng(7);
    let schemas: Vec<Value> = (0..200).map(|_| schema(&mut rng)).collect();
    let mut asks = Vec::new();
    for (id, schema) in (0..).zip(&schemas) {
        let grammar = model.compile(&ConstraintSpec::Json(schema.clone()))?;
        asks.push(Ask::new(id, &grammar));
    }
    let (all, counters) = model.run(&asks, 2048, at_once(16))?;
    ensure!(all.len() == 200 && counters.row_faults == 0);
    for (id, said) in whole(&all) {
        ensure!(ended(said), "{said:?}");
        validate(&schemas[id as usize], &said.text)?;
    }
    let cut = all.len() - whole(&all).count();
    eprintln!("{cut} of 200 were cut off by max_tokens");
    ensure!(cut <= 20, "{cut} of 200 were cut off");
    Ok(())
}

#[test]
fn regexes_choices_and_grammars_are_kept() -> Result<()> {
    let model = Model::open(MODEL)?;
    let choices = ["yes", "no", "yes and no", "maybe \"é\""];
    let is_sum = |text: &str| {
        let inner = text.strip_prefix('(').and_then(|t| t.strip_suffix(')'));
        let number = |t: &str| !t.is_empty() && t.len() <= 3 && t.bytes().all(|b| b.is_ascii_digit());
        inner.is_some_and(|t| t.split('+').all(number))
    };
    let is_code = |text: &str| {
        let parts: Vec<&str> = text.split('-').collect();
        let letters = |t: &str| t.len() == 2 && t.bytes().all(|b| b.is_ascii_uppercase());
        let digits = |t: &str| (3..=5).contains(&t.len()) && t.bytes().all(|b| b.is_ascii_digit());
        parts.len() == 2 && letters(parts[0]) && digits(parts[1])
    };
    let any_of = |text: &str| choices.contains(&text);
    type Check<'a> = &'a dyn Fn(&str) -> bool;
    let sum = "start: \"(\" NUMBER (\"+\" NUMBER){0,5} \")\"\nNUMBER: /[0-9]{1,3}/";
    let cases: [(ConstraintSpec, Check<'_>); 3] = [
        (ConstraintSpec::Regex("[A-Z]{2}-\\d{3,5}".to_owned()), &is_code),
        (ConstraintSpec::Choice(choices.map(str::to_owned).to_vec()), &any_of),
        (ConstraintSpec::Lark(sum.to_owned()), &is_sum),
    ];
    for (spec, check) in cases {
        let grammar = model.compile(&spec)?;
        let ask = |id| Ask { n: 1 + (id as u32 % 3), ..Ask::new(id, &grammar) };
        let (all, _) = model.run(&(0..40).map(ask).collect::<Vec<_>>(), 2048, at_once(16))?;
        for said in all.values() {
            ensure!(ended(said) && check(&said.text), "{spec:?}: {said:?}");
        }
        let mut texts: Vec<&String> = all.values().map(|said| &said.text).collect();
        texts.sort();
        texts.dedup();
        ensure!(texts.len() > 2, "tokens are still sampled: {texts:?}");
    }
    Ok(())
}

/// With penalties, bias and truncation, choices of their own, stop strings, `min_tokens`, `ignore_eos`; and some without a grammar.
fn mixed(model: &Model) -> Result<Vec<Ask>> {
    let mut rng = Rng(99);
    let mut asks = Vec::new();
    for id in 0..24 {
        let grammar = match id % 3 {
            0 => model.compile(&ConstraintSpec::Json(schema(&mut rng)))?,
            1 => model.compile(&ConstraintSpec::Regex("(?s)[a-z]{2,}( [a-z]+)*\\.?".to_owned()))?,
            _ => model.compile(&ConstraintSpec::Json(json!({"type": "object"})))?,
        };
        let sampling = match id % 4 {
            0 => SamplingParams { temperature: 0.0, ..SamplingParams::default() },
            1 => SamplingParams { top_k: 20, repetition_penalty: 1.2, ..SamplingParams::default() },
            2 => SamplingParams {
                top_p: 0.9,
                logit_bias: vec![(TokenId(9), 5.0)],
                ..SamplingParams::default()
            },
            _ => SamplingParams { presence_penalty: 0.5, logprobs: Some(2), ..SamplingParams::default() },
        };
        asks.push(Ask {
            sampling,
            n: 1 + id as u32 % 2,
            max_tokens: 60,
            min_tokens: if id % 5 == 0 { 20 } else { 0 },
            ends: id % 7 != 0,
            stop: if id % 6 == 1 { vec!["e".to_owned()] } else { Vec::new() },
            grammar: (id % 8 != 5).then_some(grammar),
            ..Ask::new(id, &model.compile(&ConstraintSpec::Choice(vec!["x".to_owned()]))?)
        });
    }
    Ok(asks)
}

/// I9 and I10: what else runs, the prefix cache, chunks and preemption change no token.
#[test]
fn a_crowd_says_what_each_says_alone() -> Result<()> {
    let model = Model::open(MODEL)?;
    let asks = mixed(&model)?;
    let mut alone = All::new();
    for ask in &asks {
        let whole = EngineOptions { prefix_cache: false, ..EngineOptions::default() };
        alone.append(&mut model.run(std::slice::from_ref(ask), 256, whole)?.0);
    }
    ensure!(alone.len() == 36);
    let (ample, counters) = model.run(&asks, 2048, EngineOptions::default())?;
    ensure!(ample == alone && counters.preemptions == 0);
    let scarce = EngineOptions { step_tokens: 64, max_seqs: 16, ..EngineOptions::default() };
    let (scarce, counters) = model.run(&asks, 30, scarce)?;
    ensure!(scarce == alone && counters.preemptions > 0, "{counters:?}");
    // What they say, but for a token in eight that no grammar may let follow.
    let mut predicted = asks.clone();
    for ask in &mut predicted {
        let said = alone[&(ask.id, 0)].tokens.iter().enumerate();
        ask.prediction = said.map(|(i, t)| if i % 8 == 5 { TokenId(t.0 ^ 1) } else { *t }).collect();
    }
    let coefficients = Coefficients { ns_per_byte: 1.0, ns_per_mac: 1e-6 };
    let drafts = EngineOptions { draft_tokens: 6, coefficients, ..EngineOptions::default() };
    let (drafted, counters) = model.run(&predicted, 2048, drafts)?;
    ensure!(drafted == alone);
    ensure!(
        counters.accepted_tokens > 300 && counters.draft_tokens > counters.accepted_tokens,
        "{counters:?}"
    );
    let stopped = alone.values().filter(|said| matches!(said.reason, FinishReason::StopString(_))).count();
    let ended = alone.values().filter(|said| ended(said)).count();
    ensure!(stopped > 0 && ended > 5, "{stopped} stopped, {ended} ended");
    Ok(())
}
