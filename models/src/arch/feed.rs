//! Feed-forward: dense, or of experts chosen by a router, with or without one that every token takes.

use super::LoadError;
use super::held::Held;
use super::keys::Keys;
use super::load::Loader;
use super::plan::{Experts, Gate, Plan, Shared};
use crate::backend::{
    Activation, Backend, BackendError, Batch, ExpertGroups, Gated, Gating, GroupScore, RouteSpec, Router,
};

/// Models whose gating is sigmoid are balanced by this.
const CHOICE_BIAS: &str = "exp_probs_b.bias";

/// Validated hyperparameters.
#[derive(Clone, Debug)]
pub(super) struct Hyper {
    /// Inner size of dense blocks; 0 if there are none.
    dense: u32,
    /// None: every block is dense.
    experts: Option<ExpertsHyper>,
}

#[derive(Clone, Debug)]
struct ExpertsHyper {
    plan: Experts,
    count: u32,
    inner: u32,
    /// Blocks before the first with experts.
    dense_lead: u32,
    /// Inner size of the expert that every token takes.
    shared: Option<u32>,
    route: RouteSpec,
}

impl Hyper {
    /// Of `layers` blocks.
    pub(super) fn read(keys: &Keys<'_>, plan: &Plan, layers: u32) -> Result<Self, LoadError> {
        let experts = match &plan.experts {
            Some(plan) if !plan.optional || keys.opt_u32("expert_count")?.unwrap_or(0) > 0 => {
                Some(ExpertsHyper::read(keys, *plan, layers)?)
            }
            _ => None,
        };
        let any_dense = experts.as_ref().is_none_or(|e| e.dense_lead > 0);
        let dense = if any_dense { keys.size("feed_forward_length")? } else { 0 };
        Ok(Self { dense, experts })
    }

    /// What a token has in [`FeedForward::forward`] beside `x`, of `hidden` values: `x` normed and what comes of it. The inner values are
    /// encoded at once.
    pub(super) fn held(&self, hidden: u64) -> Held {
        let dense = Held { values: 2 * hidden, encoded: hidden + u64::from(self.dense) };
        self.experts.as_ref().map_or(dense, |experts| dense.or(experts.held(hidden)))
    }
}

impl ExpertsHyper {
    fn read(keys: &Keys<'_>, plan: Experts, layers: u32) -> Result<Self, LoadError> {
        let count = keys.count("expert_count")?;
        let used_key = "expert_used_count";
        let used = keys.count(used_key)?;
        if used > count {
            return Err(keys.bad(used_key, used, format!("there are {count} experts")));
        }
        let inner = keys.size(plan.inner)?;
        let shared = match plan.shared {
            Shared::None => None,
            Shared::Gated => Some(keys.size("expert_shared_feed_forward_length")?),
            Shared::Wide => keys.count_or_none("expert_shared_feed_forward_length")?,
            Shared::Counted => {
                let key = "expert_shared_count";
                let wide = |n| keys.product(key, n, inner);
                keys.count_or_none(key)?.map(wide).transpose()?
            }
        };
        let lead_key = "leading_dense_block_count";
        let dense_lead = if plan.dense_lead { keys.opt_u32(lead_key)?.unwrap_or(0) } else { 0 };
        if dense_lead > layers {
            return Err(keys.bad(lead_key, dense_lead, format!("there are {layers} blocks")));
        }
        let route = route(keys, plan.gating, used, count)?;
        Ok(Self { plan, count, inner, dense_lead, shared, route })
    }

    /// As [`Hyper::held`]: the router's logits before there is a result, then the routed experts' result and the shared one's. Of each
    /// choice the expert, its weight, and both again in the order of experts.
    fn held(&self, hidden: u64) -> Held {
        let (chosen, shared) = (u64::from(self.route.top_k), self.shared.map(u64::from));
        let results = hidden * (1 + u64::from(shared.is_some()));
        let inner = (chosen * u64::from(self.inner)).max(shared.unwrap_or(0));
        Held { values: hidden + results.max(self.count.into()) + 5 * chosen, encoded: hidden + inner }
    }
}

fn route(keys: &Keys<'_>, gate: Gate, used: u32, count: u32) -> Result<RouteSpec, LoadError> {
    let norm_key = "expert_weights_norm";
    let norm = keys.opt_bool(norm_key)?;
    match gate {
        Gate::Fixed { gating, normalise } => {
            if let Some(other) = norm.filter(|n| *n != normalise) {
                return Err(keys.not_honoured(norm_key, other));
            }
            Ok(RouteSpec { top_k: used, gating, groups: None, normalise, scale: 1.0 })
        }
        Gate::Stated(default) => {
            let key = "expert_gating_func";
            let gating = match keys.opt_u32(key)? {
                // Files of V3's kin that do not state it (GLM-4.7-Flash) have what only sigmoids are balanced by.
                None | Some(0) if keys.some_block_has(CHOICE_BIAS) => Gating::Sigmoid,
                None | Some(0) => default,
                Some(1) => Gating::Softmax,
                Some(2) => Gating::Sigmoid,
                Some(other) => return Err(keys.not_honoured(key, other)),
            };
            let scale = keys.opt_positive("expert_weights_scale")?.unwrap_or(1.0);
            let groups = groups(keys, gating, used, count)?;
            Ok(RouteSpec { top_k: used, gating, groups, normalise: norm.unwrap_or(false), scale })
        }
    }
}

/// DeepSeek V2, whose gating is softmax, scores a group by its best expert; V3 and its kin by the two best.
fn groups(
    keys: &Keys<'_>,
    gating: Gating,
    chosen: u32,
    experts: u32,
) -> Result<Option<ExpertGroups>, LoadError> {
    let (key, used_key) = ("expert_group_count", "expert_group_used_count");
    let (count, used) = (keys.count_or_none(key)?, keys.count_or_none(used_key)?);
    let Some(count) = count.filter(|&n| n > 1) else {
        return match used.filter(|&n| n > 1) {
            Some(used) => Err(keys.bad(used_key, used, "there are no groups")),
            None => Ok(None),
        };
    };
    let used = used.ok_or_else(|| keys.missing(used_key))?;
    if !experts.is_multiple_of(count) {
        return Err(keys.bad(key, count, format!("it does not divide expert_count, {experts}")));
    }
    let each = experts / count;
    if used > count || u64::from(used) * u64::from(each) < u64::from(chosen) {
        let why = format!("{chosen} experts are chosen from so many of {count} groups of {each}");
        return Err(keys.bad(used_key, used, why));
    }
    let score = if gating == Gating::Softmax { GroupScore::Best } else { GroupScore::BestTwo };
    Ok(Some(ExpertGroups { count, used, score }))
}

/// A block's feed-forward.
pub(super) struct FeedForward<B: Backend> {
    weights: Weights<B>,
    /// None if dense.
    experts: Option<Routed<B>>,
}

struct Weights<B: Backend> {
    gate: B::Weight,
    up: B::Weight,
    down: B::Weight,
    biases: Option<[B::Vector; 3]>,
    activation: Activation,
}

struct Routed<B: Backend> {
    router: B::Weight,
    bias: Option<B::Vector>,
    choice_bias: Option<B::Vector>,
    route: RouteSpec,
    shared: Option<SharedExpert<B>>,
}

struct SharedExpert<B: Backend> {
    weights: Weights<B>,
    gate: Option<B::Vector>,
}

impl<B: Backend> FeedForward<B> {
    /// Checks and loads one block's tensors.
    pub(super) fn load(loader: &mut Loader<'_, B>, hyper: &Hyper, hidden: u32) -> Result<Self, LoadError> {
        let experts = hyper.experts.as_ref().filter(|e| loader.layer >= e.dense_lead);
        let Some(ExpertsHyper { plan, count, inner, shared, route, .. }) = experts else {
            return Ok(Self { weights: Weights::load(loader, "", [hidden, hyper.dense, 1])?, experts: None });
        };
        let router = loader.matrix("ffn_gate_inp", hidden, *count)?;
        let bias = plan.biases.then(|| loader.vector("ffn_gate_inp.bias", *count)).transpose()?;
        let stated = matches!(plan.gating, Gate::Stated(_));
        let has_choice_bias = stated && (route.gating == Gating::Sigmoid || loader.has(CHOICE_BIAS));
        let choice_bias = has_choice_bias.then(|| loader.vector(CHOICE_BIAS, *count)).transpose()?;
        let mut weights = Weights::load(loader, "_exps", [hidden, *inner, *count])?;
        weights.activation = plan.activation;
        if plan.biases {
            let mut biases = |name, len| loader.vectors(name, len, *count);
            weights.biases = Some([
                biases("ffn_gate_exps.bias", *inner)?,
                biases("ffn_up_exps.bias", *inner)?,
                biases("ffn_down_exps.bias", hidden)?,
            ]);
        }
        let shared = match *shared {
            Some(inner) => {
                let gated = plan.shared == Shared::Gated;
                let gate = gated.then(|| loader.vector("ffn_gate_inp_shexp.weight", hidden)).transpose()?;
                Some(SharedExpert { weights: Weights::load(loader, "_shexp", [hidden, inner, 1])?, gate })
            }
            None => None,
        };
        Ok(Self { weights, experts: Some(Routed { router, bias, choice_bias, route: *route, shared }) })
    }

    /// `x` is normed.
    pub(super) fn forward(
        &self,
        backend: &mut B,
        batch: &Batch,
        x: &B::Tensor,
    ) -> Result<B::Tensor, BackendError> {
        let ffn = self.weights.gated();
        let Some(routed) = &self.experts else { return backend.feed_forward(x, ffn) };
        let Routed { router: weight, bias, choice_bias, route, shared } = routed;
        let router = Router { weight, bias: bias.as_ref(), choice_bias: choice_bias.as_ref() };
        let routing = backend.route(x, router, route)?;
        let mut out = backend.experts(x, &routing, ffn, batch)?;
        if let Some(SharedExpert { weights, gate }) = shared {
            let mut all = backend.feed_forward(x, weights.gated())?;
            if let Some(gate) = gate {
                backend.gate(&mut all, x, gate)?;
            }
            backend.add(&mut out, &all, 1.0)?;
        }
        Ok(out)
    }
}

impl<B: Backend> Weights<B> {
    /// Of so many experts, without biases.
    fn load(
        loader: &mut Loader<'_, B>,
        suffix: &str,
        [hidden, inner, experts]: [u32; 3],
    ) -> Result<Self, LoadError> {
        Ok(Self {
            gate: loader.weight(&format!("ffn_gate{suffix}"), [hidden, inner, experts])?,
            up: loader.weight(&format!("ffn_up{suffix}"), [hidden, inner, experts])?,
            down: loader.weight(&format!("ffn_down{suffix}"), [inner, hidden, experts])?,
            biases: None,
            activation: Activation::Silu,
        })
    }

    fn gated(&self) -> Gated<'_, B::Weight, B::Vector> {
        let Self { gate, up, down, biases, activation } = self;
        Gated { gate, up, down, biases: biases.as_ref().map(|b| b.each_ref()), activation: *activation }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::tests::file::file;
    use crate::gguf::Value;

    fn route_of(file: &crate::arch::tests::file::File, arch: &str) -> RouteSpec {
        let gguf = file.build();
        let plan = &crate::arch::TABLE.iter().find(|row| row.name == arch).unwrap().plan;
        let hyper = Hyper::read(&Keys::new(&gguf).unwrap(), plan, 2).unwrap();
        hyper.experts.unwrap().route
    }

    #[test]
    fn routing_is_as_the_architecture_or_the_file_says() {
        let spec = |gating, normalise| RouteSpec { top_k: 2, gating, groups: None, normalise, scale: 1.0 };
        let of = |arch| route_of(&file(arch), arch);
        assert_eq!(of("qwen3moe"), spec(Gating::Softmax, true));
        assert_eq!(of("granitemoe"), spec(Gating::Softmax, true));
        assert_eq!(of("olmoe"), spec(Gating::Softmax, false));
        assert_eq!(of("qwen2moe"), spec(Gating::Softmax, false));
        assert_eq!(of("gpt-oss"), spec(Gating::ChosenSoftmax, false));
        assert_eq!(of("deepseek2"), spec(Gating::Softmax, false));
        assert_eq!(of("glm4moe"), RouteSpec { scale: 1.5, ..spec(Gating::Sigmoid, true) });
    }

    #[test]
    fn groups_are_scored_as_the_gating_s_models_do() {
        let grouped = file("deepseek2")
            .set("expert_group_count", Value::U32(2))
            .set("expert_group_used_count", Value::U32(1));
        let groups = |score| Some(ExpertGroups { count: 2, used: 1, score });
        assert_eq!(route_of(&grouped, "deepseek2").groups, groups(GroupScore::Best));
        let sigmoid = grouped.clone().set("expert_gating_func", Value::U32(2));
        assert_eq!(route_of(&sigmoid, "deepseek2").groups, groups(GroupScore::BestTwo));
        let biased = grouped.block(1, &[(CHOICE_BIAS, &[4])]);
        assert_eq!(route_of(&biased, "deepseek2").groups, groups(GroupScore::BestTwo));
    }

    #[test]
    fn a_bias_tells_of_sigmoids_where_the_file_does_not() {
        let biased = file("deepseek2").block(1, &[(CHOICE_BIAS, &[4])]);
        let gating = |file: &crate::arch::tests::file::File| route_of(file, "deepseek2").gating;
        assert_eq!(gating(&biased), Gating::Sigmoid);
        let stated = |n| biased.clone().set("expert_gating_func", Value::U32(n));
        assert_eq!(
            [0, 1, 2].map(|n| gating(&stated(n))),
            [Gating::Sigmoid, Gating::Softmax, Gating::Sigmoid]
        );
    }
}
