//! Routing: from a router's logits to each token's experts and their weights.
//!
//! Law: a token's choice depends on its logits alone. Scores are ordered totally: -0 is below 0, what is not a number is
//! above everything, so that a fault is chosen and shows in the token's result; among equals the smaller index wins.
//! Sums of groups and of the chosen weights run from the largest score down.

use super::math;
use super::pool::Disjoint;
use super::tensor::CpuTensor;
use super::weight::CpuVector;
use super::{Core, Env};
use crate::backend::{ExpertGroups, Gating, GroupScore, RouteSpec};

/// The experts of each token.
#[derive(Clone, Debug, PartialEq)]
pub struct CpuRouting {
    pub(super) top_k: usize,
    /// `[tokens, top_k]`, ascending within a token.
    pub(super) experts: Vec<u32>,
    /// `[tokens, top_k]`.
    pub(super) weights: Vec<f32>,
}

/// A worker's room for one token.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    /// Of every expert, before the choice.
    weights: Vec<f32>,
    /// What is chosen by, if that is something else.
    scores: Vec<f32>,
    groups: Vec<f32>,
    best: Best,
}

/// The largest scores of a row and where they are, largest first.
#[derive(Debug, Default)]
struct Best(Vec<i64>);

impl Best {
    /// Of the `n` largest scores the indices; fewer if there are fewer scores. Most scores cost one comparison.
    fn of(&mut self, scores: &[f32], n: usize) -> impl ExactSizeIterator<Item = usize> + Clone {
        let keys = &mut self.0;
        keys.clear();
        for (i, &score) in scores.iter().enumerate() {
            // Score above, complement of the index below: all keys differ, and the smaller index has the larger.
            let key = i64::from(rank(score)) << 32 | i64::from(!(i as u32));
            if keys.len() == n {
                match keys.last() {
                    Some(&least) if key > least => keys.pop(),
                    _ => continue,
                };
            }
            let at = keys.partition_point(|&k| k > key);
            keys.insert(at, key);
        }
        self.0.iter().map(|&key| !(key as u32) as usize)
    }
}

/// Orders as the values do: `f32::total_cmp`, with every NaN largest.
fn rank(x: f32) -> i32 {
    if x.is_nan() {
        return i32::MAX;
    }
    let bits = x.to_bits().cast_signed();
    bits ^ ((bits >> 31).cast_unsigned() >> 1).cast_signed()
}

impl Core {
    /// Each row's experts; `biases` are added to the logits, and to the scores of the choice. Counts nothing.
    pub(super) fn choose(
        &self,
        logits: &CpuTensor,
        biases: [Option<&CpuVector>; 2],
        spec: &RouteSpec,
    ) -> CpuRouting {
        let (rows, top_k) = (logits.rows, spec.top_k as usize);
        assert!(0 < top_k && top_k <= logits.width, "experts per token");
        let [bias, choice_bias] = biases.map(|b| b.map(|b| &b.values[..]));
        assert!([bias, choice_bias].iter().flatten().all(|b| b.len() == logits.width), "a bias per expert");
        if let Some(groups) = &spec.groups {
            let count = groups.count as usize;
            assert!(count > 0 && logits.width.is_multiple_of(count), "groups of equal size");
            assert!(0 < groups.used && groups.used <= groups.count, "groups chosen from");
        }
        let mut routing =
            CpuRouting { top_k, experts: vec![0; rows * top_k], weights: vec![0.0; rows * top_k] };
        let experts = Disjoint::new(&mut routing.experts);
        let weights = Disjoint::new(&mut routing.weights);
        let env = &self.env;
        // An exponential and its place in the order cost about eight plain values.
        self.rows(rows, 8 * logits.width, |worker, row| {
            let scratch = &mut env.scratch(worker).route;
            // SAFETY: each row is done once.
            let out = unsafe { (experts.slice(row * top_k, top_k), weights.slice(row * top_k, top_k)) };
            env.choose_row(logits.row(row), [bias, choice_bias], spec, scratch, out);
        });
        routing
    }
}

impl Env {
    fn choose_row(
        &self,
        logits: &[f32],
        [bias, choice_bias]: [Option<&[f32]>; 2],
        spec: &RouteSpec,
        scratch: &mut Scratch,
        (experts, weights): (&mut [u32], &mut [f32]),
    ) {
        let Scratch { weights: all, scores, groups, best } = scratch;
        all.clear();
        all.extend_from_slice(logits);
        if let Some(bias) = bias {
            math::add(self.isa, all, bias, 1.0);
        }
        match spec.gating {
            Gating::Softmax => self.softmax(all),
            Gating::Sigmoid => math::sigmoid(self.isa, all),
            Gating::ChosenSoftmax => {}
        }
        let mut chosen_by = &*all;
        if choice_bias.is_some() || spec.groups.is_some() {
            scores.clone_from(all);
            if let Some(bias) = choice_bias {
                math::add(self.isa, scores, bias, 1.0);
            }
            if let Some(spec) = &spec.groups {
                close_groups(scores, spec, groups, best);
            }
            chosen_by = &*scores;
        }
        let chosen = best.of(chosen_by, experts.len());
        for ((e, w), index) in experts.iter_mut().zip(weights.iter_mut()).zip(chosen) {
            (*e, *w) = (index as u32, all[index]);
        }
        if spec.gating == Gating::ChosenSoftmax {
            self.softmax(weights);
        }
        let sum = if spec.normalise { weights.iter().sum::<f32>().max(RouteSpec::SUM_MIN) } else { 1.0 };
        weights.iter_mut().for_each(|w| *w = *w / sum * spec.scale);
        // Ascending by expert, the order of summation.
        for i in 1..experts.len() {
            let mut j = i;
            while j > 0 && experts[j] < experts[j - 1] {
                experts.swap(j, j - 1);
                weights.swap(j, j - 1);
                j -= 1;
            }
        }
    }

    fn softmax(&self, x: &mut [f32]) {
        let max = math::largest(self.isa, x);
        let sum = math::exp_sum(self.isa, x, max);
        x.iter_mut().for_each(|v| *v /= sum);
    }
}

/// Puts the scores of experts outside the best groups beyond choice.
fn close_groups(scores: &mut [f32], spec: &ExpertGroups, of_groups: &mut Vec<f32>, best: &mut Best) {
    let each = scores.len() / spec.count as usize;
    let counted = match spec.score {
        GroupScore::Best => 1,
        GroupScore::BestTwo => 2,
    };
    of_groups.clear();
    for group in scores.chunks_exact(each) {
        of_groups.push(best.of(group, counted).map(|i| group[i]).sum());
    }
    let open = best.of(of_groups, spec.used as usize);
    for (i, group) in scores.chunks_exact_mut(each).enumerate() {
        if !open.clone().any(|o| o == i) {
            group.fill(f32::NEG_INFINITY);
        }
    }
}
