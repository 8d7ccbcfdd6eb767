//! Routing of every kind against the reference.

use super::*;

/// A router over few hidden values, with numbers that make equal logits and scores frequent.
struct Case {
    experts: usize,
    spec: RouteSpec,
    weight: Vec<f32>,
    biases: [Option<Vec<f32>>; 2],
}

const HIDDEN: usize = 5;

impl Case {
    fn random(random: &mut Random) -> Self {
        let experts = [4, 8, 12, 60, 256, 384][random.below(6)];
        let gating = [Gating::Softmax, Gating::Sigmoid, Gating::ChosenSoftmax][random.below(3)];
        let score = [GroupScore::Best, GroupScore::BestTwo][random.below(2)];
        let count = [2, 4][random.below(2)];
        let groups =
            (random.below(2) == 0).then(|| ExpertGroups { count, used: 1 + random.below(2) as u32, score });
        let spec = RouteSpec {
            top_k: 1 + random.below(experts.min(8)) as u32,
            gating,
            groups,
            normalise: random.below(2) == 0,
            scale: [1.0, 2.5][random.below(2)],
        };
        let mut quarters = |n: usize| (0..n).map(|_| random.below(9) as f32 / 4.0 - 1.0).collect::<Vec<_>>();
        let weight = quarters(HIDDEN * experts);
        let biases = [quarters(experts), quarters(experts)];
        let biases = biases.map(|b| (random.below(2) == 0).then_some(b));
        Self { experts, spec, weight, biases }
    }

    /// Each token's weight for every expert, as what experts add that answer with a unit vector each.
    fn weights<B: Backend>(&self, b: &mut B, x: &[f32]) -> (Vec<f32>, StepStats) {
        let n = self.experts;
        let mut unit = vec![0.0; n * n];
        unit.iter_mut().step_by(n + 1).for_each(|v| *v = 1.0);
        let (none, unit) = (vec![0; 4 * HIDDEN * n], le_bytes(&unit));
        let router = b.load_weight(&view(&le_bytes(&self.weight), [HIDDEN, n, 1])).unwrap();
        let gate = b.load_weight(&view(&none, [HIDDEN, 1, n])).unwrap();
        let down = b.load_weight(&view(&unit, [1, n, n])).unwrap();
        let (one, zero) = (vector(b, &vec![4.0; n]), vector(b, &vec![0.0; n * n]));
        let [bias, choice_bias] = self.biases.each_ref().map(|v| v.as_ref().map(|v| vector(b, v)));
        let (x, batch) = (put(b, HIDDEN, x), batch(x.len() / HIDDEN));
        b.begin(&batch).unwrap();
        let router = Router { weight: &router, bias: bias.as_ref(), choice_bias: choice_bias.as_ref() };
        let routing = b.route(&x, router, &self.spec).unwrap();
        let (biases, activation) = (Some([&one, &one, &zero]), Activation::Silu);
        let ffn = Gated { gate: &gate, up: &gate, down: &down, biases, activation };
        let out = b.experts(&x, &routing, ffn, &batch).unwrap();
        (b.values(&out).unwrap(), b.take_stats().unwrap())
    }
}

#[test]
fn routing_is_the_references() {
    for seed in 1..=150 {
        let random = &mut Random(seed);
        let case = Case::random(random);
        let x: Vec<f32> = (0..9 * HIDDEN).map(|_| random.below(9) as f32 / 4.0 - 1.0).collect();
        let (expected, work) = case.weights(&mut reference(), &x);
        let (found, cpu_work) = case.weights(&mut backend(2, Isa::detect()), &x);
        assert_eq!(work, cpu_work, "{:?}", case.spec);
        for (expected, found) in expected.chunks_exact(case.experts).zip(found.chunks_exact(case.experts)) {
            let chosen = |w: &[f32]| (0..w.len()).filter(|&e| w[e] != 0.0).collect::<Vec<_>>();
            assert_eq!(chosen(expected), chosen(found), "{seed}: {:?}", case.spec);
            assert_close(found, &widen(expected), 1e-5).unwrap();
        }
    }
}

#[test]
fn routing_is_invariant() {
    for seed in 1..=40 {
        let random = &mut Random(2000 + seed);
        let case = Case::random(random);
        check_rows(case.experts, &random.values(19 * case.experts), |b, x, batch| {
            let biases = case.biases.each_ref().map(|v| v.as_ref().map(|v| vector(b, v)));
            let routing = b.core.choose(&x, biases.each_ref().map(Option::as_ref), &case.spec);
            let all: Vec<f32> =
                routing.experts.iter().zip(&routing.weights).flat_map(|(&e, &w)| [e as f32, w]).collect();
            put(b, all.len() / batch.tokens.len(), &all)
        });
    }
}

/// The chosen experts of one token, ascending, and their weights.
fn choose(logits: &[f32], top_k: u32, gating: Gating, groups: Option<ExpertGroups>) -> (Vec<u32>, Vec<f32>) {
    let spec = RouteSpec { top_k, gating, groups, normalise: true, scale: 1.0 };
    let mut b = backend(1, Isa::detect());
    let logits = put(&mut b, logits.len(), logits);
    let routing = b.core.choose(&logits, [None, None], &spec);
    (routing.experts, routing.weights)
}

#[test]
fn equals_go_to_the_smaller_index() {
    for gating in [Gating::Softmax, Gating::Sigmoid, Gating::ChosenSoftmax] {
        let (experts, weights) = choose(&[1.0, 3.0, 3.0, 3.0], 2, gating, None);
        assert_eq!((experts, weights), (vec![1, 2], vec![0.5, 0.5]), "{gating:?}");
    }
    // Negative zero is below zero, as in the reference.
    assert_eq!(choose(&[-0.0, 0.0, -0.0, -1.0], 2, Gating::ChosenSoftmax, None).0, [0, 1]);
    assert_eq!(choose(&[-0.0, -0.0, 0.0, 0.0], 2, Gating::ChosenSoftmax, None).0, [2, 3]);
    let groups = |score| Some(ExpertGroups { count: 3, used: 1, score });
    let logits = [5.0, 0.0, 4.0, 3.0, 4.0, 3.0];
    assert_eq!(choose(&logits, 2, Gating::ChosenSoftmax, groups(GroupScore::Best)).0, [0, 1]);
    assert_eq!(choose(&logits, 2, Gating::ChosenSoftmax, groups(GroupScore::BestTwo)).0, [2, 3]);
    // More to choose than the open groups have: the first of what is closed.
    assert_eq!(choose(&logits, 3, Gating::ChosenSoftmax, groups(GroupScore::BestTwo)).0, [0, 2, 3]);
}

/// What is not a number is chosen and shows; nothing is chosen twice.
#[test]
fn faults_of_a_router_stay_visible() {
    for fault in [f32::NAN, -f32::NAN, f32::INFINITY] {
        for gating in [Gating::Softmax, Gating::Sigmoid, Gating::ChosenSoftmax] {
            let (experts, weights) = choose(&[0.5, 1.0, fault, -2.0], 2, gating, None);
            assert!(experts[0] < experts[1], "{gating:?} {fault}: {experts:?}");
            match gating {
                // The sum over all is no number, so all are equal.
                Gating::Softmax => assert_eq!(experts, [0, 1]),
                _ => assert_eq!(experts, [1, 2]),
            }
            if gating != Gating::Sigmoid || fault.is_nan() {
                assert!(weights.iter().any(|w| w.is_nan()), "{gating:?} {fault}: {weights:?}");
            }
        }
    }
    for gating in [Gating::Softmax, Gating::ChosenSoftmax] {
        let (experts, weights) = choose(&[f32::NEG_INFINITY; 3], 2, gating, None);
        assert_eq!(experts, [0, 1]);
        assert!(weights.iter().all(|w| w.is_nan()));
    }
    let (experts, weights) = choose(&[f32::NEG_INFINITY, 1.0, f32::NEG_INFINITY], 2, Gating::Softmax, None);
    assert_eq!((experts, weights), (vec![0, 1], vec![0.0, 1.0]));
}

/// Weights that vanish are divided by no less than the smallest divisor.
#[test]
fn weights_that_vanish_stay_small() {
    let (experts, weights) = choose(&[-60.0, -60.0, -70.0], 2, Gating::Sigmoid, None);
    assert_eq!(experts, [0, 1]);
    assert!(weights.iter().all(|&w| 0.0 < w && w < 1e-20), "{weights:?}");
}
