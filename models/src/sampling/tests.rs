use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::mask::PendingNext;
use crate::step::Constrained;

fn ask(params: SamplingParams, seed: u64) -> Sample {
    Sample {
        params: Arc::new(params),
        seed,
        choice: 0,
        history: Vec::new(),
        prompt_len: 0,
        forbid: Arc::from([]),
        constraint: None,
    }
}

fn token(logits: &[f32], ask: &Sample, position: u32) -> u32 {
    Sampler::default().sample(logits, ask, position, 0).unwrap().0.0
}

/// Probabilities by the definition: sort, cut three times, normalise. In f64.
fn exact(logits: &[f32], p: &SamplingParams) -> Vec<f64> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weight: Vec<f64> =
        logits.iter().map(|&l| (f64::from(l - max) / f64::from(p.temperature)).exp()).collect();
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
    order.retain(|&i| weight[i] >= f64::from(p.min_p));
    if p.top_k > 0 {
        order.truncate(p.top_k as usize);
    }
    let total: f64 = order.iter().map(|&i| weight[i]).sum();
    let mut reached = 0.0;
    let mut kept = 0;
    while kept < order.len() && (kept == 0 || reached < f64::from(p.top_p) * total) {
        reached += weight[order[kept]];
        kept += 1;
    }
    let mut probability = vec![0.0; logits.len()];
    for &i in &order[..kept] {
        probability[i] = weight[i] / reached;
    }
    probability
}

fn logits_of(vocab: usize, spread: f32) -> Vec<f32> {
    (0..vocab).map(|i| spread * (philox::uniform(77, 1, i as u32) as f32 - 0.5)).collect()
}

#[test]
fn draws_have_the_exact_distribution() {
    const DRAWS: u32 = 40_000;
    let cases = [
        SamplingParams::default(),
        SamplingParams { temperature: 0.7, ..Default::default() },
        SamplingParams { temperature: 1.8, top_k: 7, ..Default::default() },
        SamplingParams { top_p: 0.8, ..Default::default() },
        SamplingParams { min_p: 0.1, ..Default::default() },
        SamplingParams { temperature: 1.3, top_k: 12, top_p: 0.9, min_p: 0.02, ..Default::default() },
    ];
    let mut sampler = Sampler::default();
    for (case, params) in cases.into_iter().enumerate() {
        let logits = logits_of(24, 5.0);
        let probability = exact(&logits, &params);
        let ask = ask(params, case as u64 + 1);
        let mut counts = vec![0u32; logits.len()];
        for position in 0..DRAWS {
            counts[sampler.sample(&logits, &ask, position, 0).unwrap().0.0 as usize] += 1;
        }
        let mut chi2 = 0.0;
        let mut cells = 0;
        for (&n, &p) in counts.iter().zip(&probability) {
            if p == 0.0 {
                assert_eq!(n, 0, "case {case}: a dropped token was chosen");
            } else {
                let expected = p * f64::from(DRAWS);
                chi2 += (f64::from(n) - expected).powi(2) / expected;
                cells += 1;
            }
        }
        // 23 degrees of freedom at most: above 58 by chance once in 20,000; the seeds are fixed.
        assert!(chi2 < 58.0, "case {case}: chi-square {chi2} over {cells} tokens");
        assert!(cells > 1, "case {case} has something to choose");
    }
}

#[test]
fn draws_over_a_large_vocabulary_have_the_exact_distribution_by_octile() {
    let logits = logits_of(50_000, 8.0);
    for (top_p, top_k) in [(1.0, 0), (0.95, 0), (0.3, 20_000), (1.0, 30_000)] {
        let params = SamplingParams { top_p, top_k, ..Default::default() };
        let probability = exact(&logits, &params);
        let ask = ask(params, 5);
        let mut sampler = Sampler::default();
        let mut counts = [0u32; 8];
        let mut expected = [0.0; 8];
        for (i, p) in probability.iter().enumerate() {
            expected[i * 8 / logits.len()] += p * 480.0;
        }
        for position in 0..480 {
            let id = sampler.sample(&logits, &ask, position, 0).unwrap().0.0 as usize;
            assert!(probability[id] > 0.0, "outside the nucleus");
            counts[id * 8 / logits.len()] += 1;
        }
        let chi2: f64 = counts.iter().zip(expected).map(|(&n, e)| (f64::from(n) - e).powi(2) / e).sum();
        assert!(chi2 < 30.0, "top_p {top_p}: chi-square {chi2}");
    }
}

#[test]
fn choices_seeds_and_positions_are_independent_streams() {
    let logits = vec![0.0; 1000];
    let base = ask(SamplingParams::default(), 9);
    let run =
        |ask: &Sample, from: u32| -> Vec<u32> { (from..from + 20).map(|p| token(&logits, ask, p)).collect() };
    let first = run(&base, 0);
    assert_eq!(first, run(&base, 0));
    assert_ne!(first, run(&Sample { choice: 1, ..base.clone() }, 0));
    assert_ne!(first, run(&Sample { seed: 9 + (1 << 32), ..base.clone() }, 0));
    assert_ne!(first, run(&base, 20));
}

#[test]
fn greedy_takes_the_smallest_id_among_equals() {
    let params = SamplingParams { temperature: 0.0, ..Default::default() };
    assert_eq!(token(&[1.0, 3.0, 3.0, -1.0], &ask(params.clone(), 0), 0), 1);
    assert_eq!(token(&[f32::NEG_INFINITY, -0.0, 0.0], &ask(params, 0), 0), 1);
}

#[test]
fn ranks_count_what_is_likelier() {
    let rank = |token| Sampler::default().score(&[1.0, 3.0, 3.0, -1.0], TokenId(token), 0).unwrap().rank;
    assert_eq!([0, 1, 2, 3].map(rank), [3, 1, 2, 4]);
}

#[test]
fn rows_without_numbers_are_faults() {
    let greedy = ask(SamplingParams { temperature: 0.0, ..Default::default() }, 0);
    for bad in [&[1.0, f32::NAN][..], &[f32::NEG_INFINITY; 3], &[f32::INFINITY, 0.0], &[]] {
        let mut sampler = Sampler::default();
        assert_eq!(sampler.sample(bad, &greedy, 0, 0), Err(RowFault::NotANumber));
        assert_eq!(sampler.score(bad, TokenId(0), 0), Err(RowFault::NotANumber));
    }
    let all = Sample { forbid: Arc::from([TokenId(0), TokenId(1)]), ..greedy };
    assert_eq!(Sampler::default().sample(&[1.0, 2.0], &all, 0, 0), Err(RowFault::NothingToChoose));
}

#[test]
fn penalties_follow_their_definitions() {
    let params = SamplingParams {
        repetition_penalty: 2.0,
        presence_penalty: 0.25,
        frequency_penalty: 0.5,
        logit_bias: vec![(TokenId(4), 8.0), (TokenId(900), 1.0)],
        ..Default::default()
    };
    let history = [0, 1, 0, 2, 2, 3].map(TokenId).to_vec();
    let ask = Sample { history, prompt_len: 3, forbid: Arc::from([TokenId(5)]), ..ask(params, 0) };
    let mut sampler = Sampler::default();
    for _ in 0..2 {
        sampler.adjust(&[4.0, -4.0, 4.0, -1.0, 1.0, 7.0, 0.5], &ask, 6, 0).unwrap();
        // 0 and 1 only in the prompt; 2 twice and 3 once in the output.
        let expected = [2.0, -8.0, 2.0 - 1.0 - 0.25, -2.0 - 0.5 - 0.25, 9.0, f32::NEG_INFINITY, 0.5];
        assert_eq!(sampler.adjusted, expected);
        assert!(sampler.seen.iter().all(|&n| n == 0));
    }
}

#[test]
fn a_mask_leaves_what_may_follow() {
    let logits = logits_of(100, 5.0);
    let greedy = SamplingParams { temperature: 0.0, logprobs: Some(2), ..Default::default() };
    let sampled =
        SamplingParams { logit_bias: vec![(TokenId(3), 100.0)], presence_penalty: 1.0, ..Default::default() };
    let allowed: Vec<TokenId> = (0..100).map(TokenId).filter(|t| t.0 % 7 == 2).collect();
    let best = |ids: &[u32]| {
        *ids.iter().max_by(|&&a, &&b| logits[a as usize].total_cmp(&logits[b as usize])).unwrap()
    };
    let fitting: Vec<u32> = allowed.iter().map(|t| t.0).collect();
    for may_end in [false, true] {
        let next = Next { tokens: allowed.iter().copied().collect(), may_end };
        let constraint = Some(Constrained {
            next: vec![PendingNext::ready(Arc::new(next))],
            ends: [TokenId(4), TokenId(500)].into(),
        });
        let fits = |token: u32| token % 7 == 2 || may_end && token == 4;
        for position in 0..200 {
            let ask = Sample { constraint: constraint.clone(), ..ask(sampled.clone(), 5) };
            assert!(fits(token(&logits, &ask, position)));
        }
        let ask = Sample { constraint, ..ask(greedy.clone(), 5) };
        let (chosen, score) = Sampler::default().sample(&logits, &ask, 0, 0).unwrap();
        let ids = if may_end { [&fitting[..], &[4]].concat() } else { fitting.clone() };
        assert_eq!(chosen.0, best(&ids));
        // Of the raw logits: the likeliest of all are reported, whether or not they fit.
        let all: Vec<u32> = (0..100).collect();
        assert_eq!(score.unwrap().top[0].0.0, best(&all));
        // The smallest id among equals that fit.
        assert_eq!(token(&[0.0; 100], &ask, 0), 2);
    }
}

#[test]
fn a_row_without_its_mask_is_a_fault_of_its_own() {
    let (next, promise) = PendingNext::promised(Box::new(|| ()));
    drop(promise);
    let lost = Sample {
        constraint: Some(Constrained { next: vec![next], ends: Arc::from([]) }),
        ..ask(Default::default(), 0)
    };
    let mut sampler = Sampler::default();
    assert!(matches!(sampler.sample(&[1.0, 2.0], &lost, 0, 0), Err(RowFault::Other(_))));
    let nothing = PendingNext::ready(Arc::default());
    let nothing =
        Sample { constraint: Some(Constrained { next: vec![nothing], ends: Arc::from([]) }), ..lost };
    assert_eq!(sampler.sample(&[1.0, 2.0], &nothing, 0, 0), Err(RowFault::NothingToChoose));
    assert!(sampler.sample(&[1.0, 2.0], &ask(Default::default(), 0), 0, 0).is_ok());
}

#[test]
fn scores_are_of_the_raw_logits() {
    let logits = logits_of(3000, 10.0);
    let params = SamplingParams {
        temperature: 0.3,
        logit_bias: vec![(TokenId(17), 100.0)],
        logprobs: Some(5),
        ..Default::default()
    };
    let (chosen, score) = Sampler::default().sample(&logits, &ask(params, 0), 3, 0).unwrap();
    let score = score.unwrap();
    assert_eq!((chosen, score.token), (TokenId(17), TokenId(17)));
    let sum: f64 = logits.iter().map(|&l| f64::from(l).exp()).sum();
    let expect = |id: usize| (f64::from(logits[id]) - sum.ln()) as f32;
    assert!((score.logprob - expect(17)).abs() < 1e-6);
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
    assert_eq!(score.top.len(), 5);
    for (&(token, logprob), &id) in score.top.iter().zip(&order) {
        assert_eq!(token.0 as usize, id);
        assert!((logprob - expect(id)).abs() < 1e-6);
    }
}

#[test]
fn extreme_temperatures_are_harmless() {
    let logits = [3.0, f32::NEG_INFINITY, 2.0, -1e38];
    for temperature in [f32::MIN_POSITIVE / 4.0, 1e-6, 1e30] {
        for top_p in [1.0, 0.5] {
            let params = SamplingParams { temperature, top_p, ..Default::default() };
            let id = token(&logits, &ask(params, 1), 0);
            assert!(id != 1 && (temperature > 1.0 || id == 0));
        }
    }
}

#[test]
fn exponential_is_accurate() {
    assert_eq!(exp(0.0), 1.0);
    assert_eq!(exp(f32::NEG_INFINITY), 0.0);
    for i in 0..200_000 {
        let x = -87.0 * i as f32 / 200_000.0;
        let expected = f64::from(x).exp();
        assert!((f64::from(exp(x)) - expected).abs() <= 2.5e-7 * expected, "exp({x})");
    }
}

proptest! {
    #[test]
    fn top_k_of_one_is_greedy(
        logits in prop::collection::vec(prop_oneof![-9.0f32..9.0, Just(1.0f32), Just(f32::NEG_INFINITY)], 1..400),
        seed: u64,
    ) {
        prop_assume!(logits.iter().any(|l| l.is_finite()));
        let greedy = ask(SamplingParams { temperature: 0.0, ..Default::default() }, seed);
        let one = ask(SamplingParams { top_k: 1, ..Default::default() }, seed);
        let tiny = ask(SamplingParams { top_p: 1e-9, ..Default::default() }, seed);
        prop_assert_eq!(token(&logits, &greedy, 0), token(&logits, &one, 0));
        prop_assert_eq!(token(&logits, &greedy, 0), token(&logits, &tiny, 0));
    }

    /// The narrowed set is exactly the definition's. Logits on a grid, so that ties are common.
    #[test]
    fn what_is_kept_is_what_the_definition_keeps(
        grid in prop::collection::vec(-40i8..40, 1..900),
        scale in prop_oneof![Just(8.0f32), Just(200.0)],
        top_k in prop_oneof![Just(0u32), 0u32..80, 200u32..1000],
        top_p in prop_oneof![Just(1.0f32), 0.01f32..1.0],
        min_p in prop_oneof![Just(0.0f32), 0.0f32..0.5],
    ) {
        let logits: Vec<f32> = grid.iter().map(|&g| f32::from(g) / scale).collect();
        let params = SamplingParams { top_k, top_p, min_p, ..Default::default() };
        let probability = exact(&logits, &params);
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut sampler = Sampler::default();
        let mut kept: Vec<u32> = match sampler.narrow(&logits, max, &params) {
            Kept::Best => sampler.best[..sampler.weights.len()].iter().map(|c| c.id).collect(),
            Kept::ById => (0..).zip(&sampler.weights).filter(|(_, w)| **w > 0.0).map(|(id, _)| id).collect(),
        };
        kept.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b)));
        let count = probability.iter().filter(|&&p| p > 0.0).count();
        // f32 weights may put the boundary one token aside when the sum meets top_p almost exactly.
        prop_assert!(kept.len().abs_diff(count) <= 1, "{} kept, {count} by definition", kept.len());
        let mut order: Vec<u32> = (0..logits.len() as u32).collect();
        order.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b)));
        prop_assert_eq!(&kept[..], &order[..kept.len()]);
    }

    #[test]
    fn the_best_are_found_in_any_order(
        grid in prop::collection::vec(-300i16..300, 0..3000), count in 0usize..700,
    ) {
        let logits: Vec<f32> = grid.iter().map(|&g| f32::from(g)).collect();
        let mut sampler = Sampler::default();
        sampler.find_best(&logits, count);
        let mut all: Vec<Candidate> =
            logits.iter().enumerate().map(|(id, &logit)| Candidate { logit, id: id as u32 }).collect();
        all.sort_by(Candidate::order);
        all.truncate(count);
        prop_assert_eq!(&sampler.best, &all);
    }
}
