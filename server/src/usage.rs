//! `usage`: tokens as OpenAI counts them, money as OpenRouter shows it.

use frugal_scheduler::request::Report;
use serde::Serialize;
use utoipa::ToSchema;

/// Pico-units in a unit.
const PICO: f64 = 1e12;

/// Tokens and money of all prompts together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Tokens of the prompts, each counted once.
    pub prompt_tokens: u64,
    /// Of these, taken from the prefix cache.
    pub cached_tokens: u64,
    /// Output tokens of all choices.
    pub completion_tokens: u64,
    /// Of these, spent on reasoning; None if the answer has no form that tells.
    pub reasoning_tokens: Option<u64>,
    /// Draft tokens that were right and wrong; None if no answer was predicted.
    pub predicted: Option<[u64; 2]>,
    /// Pico-units for prompts; None without a price.
    pub prefill: Option<u128>,
    /// Pico-units for output; None without a price.
    pub decode: Option<u128>,
    /// Pico-units that prefix hits saved; None without a price.
    pub saved: Option<u128>,
}

impl Totals {
    /// Adds one prompt's account.
    pub fn add(&mut self, report: &Report) {
        fn money(sum: &mut Option<u128>, part: Option<u128>) {
            if let Some(part) = part {
                *sum = Some(sum.unwrap_or(0).saturating_add(part));
            }
        }
        self.prompt_tokens += u64::from(report.prompt_tokens);
        self.cached_tokens += u64::from(report.cached_tokens);
        // Reasoning is counted where answers are read.
        self.completion_tokens += u64::from(report.completion_tokens);
        if report.predicted {
            let [accepted, rejected] = self.predicted.unwrap_or_default();
            let more = [report.accepted_tokens, report.rejected_tokens].map(u64::from);
            self.predicted = Some([accepted + more[0], rejected + more[1]]);
        }
        money(&mut self.prefill, report.cost.prefill);
        money(&mut self.decode, report.cost.decode);
        money(&mut self.saved, report.cost.saved);
    }

    /// What the request is charged.
    pub fn cost(&self) -> Option<u128> {
        Some(self.prefill?.saturating_add(self.decode?))
    }
}

/// What a request took, for its client.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub struct Usage {
    prompt_tokens: u64,
    completion_tokens: u64,
    total_tokens: u64,
    /// Absent while the answer goes on.
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt_tokens_details: Option<PromptDetails>,
    /// Of a chat whose model marks its reasoning, or that was asked for with a prediction.
    #[serde(skip_serializing_if = "Option::is_none")]
    completion_tokens_details: Option<CompletionDetails>,
    /// Absent without a price: no price is not a price of 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    cost: Option<f64>,
    /// As absent as `cost`.
    #[serde(skip_serializing_if = "Option::is_none")]
    cost_details: Option<CostDetails>,
}

/// Of the prompt's tokens.
#[derive(Clone, Debug, Serialize, ToSchema)]
struct PromptDetails {
    /// Taken from the prefix cache.
    cached_tokens: u64,
}

/// Of the answer's tokens.
#[derive(Clone, Debug, Serialize, ToSchema)]
struct CompletionDetails {
    /// Spent on reasoning.
    #[serde(skip_serializing_if = "Option::is_none")]
    reasoning_tokens: Option<u64>,
    /// Of a predicted answer, those that were guessed and computed ahead.
    #[serde(skip_serializing_if = "Option::is_none")]
    accepted_prediction_tokens: Option<u64>,
    /// Tokens that were computed ahead in vain. They are no part of `completion_tokens`, and of no cost.
    #[serde(skip_serializing_if = "Option::is_none")]
    rejected_prediction_tokens: Option<u64>,
}

/// What the cost is made of.
#[derive(Clone, Debug, Serialize, ToSchema)]
pub(crate) struct CostDetails {
    upstream_inference_cost: f64,
    upstream_inference_prompt_cost: f64,
    upstream_inference_completions_cost: f64,
    /// What the prefix cache spared this request, an estimate.
    saved: f64,
    currency: String,
}

impl CompletionDetails {
    /// None if there is nothing to tell.
    fn new(totals: &Totals) -> Option<Self> {
        let Totals { reasoning_tokens, predicted, .. } = *totals;
        let [accepted, rejected] = [0, 1].map(|i| predicted.map(|tokens| tokens[i]));
        (reasoning_tokens.is_some() || predicted.is_some()).then_some(Self {
            reasoning_tokens,
            accepted_prediction_tokens: accepted,
            rejected_prediction_tokens: rejected,
        })
    }
}

impl CostDetails {
    /// None without a price.
    pub(crate) fn new(totals: &Totals, currency: Option<&str>) -> Option<Self> {
        let (prefill, decode) = (totals.prefill?, totals.decode?);
        Some(Self {
            upstream_inference_cost: units(totals.cost()?),
            upstream_inference_prompt_cost: units(prefill),
            upstream_inference_completions_cost: units(decode),
            saved: units(totals.saved.unwrap_or(0)),
            currency: currency?.to_owned(),
        })
    }

    /// The whole.
    pub(crate) fn cost(&self) -> f64 {
        self.upstream_inference_cost
    }
}

impl Usage {
    /// `currency` labels the money, if there is any.
    pub fn new(totals: &Totals, currency: Option<&str>) -> Self {
        let cost_details = CostDetails::new(totals, currency);
        Self {
            prompt_tokens: totals.prompt_tokens,
            completion_tokens: totals.completion_tokens,
            total_tokens: totals.prompt_tokens + totals.completion_tokens,
            prompt_tokens_details: Some(PromptDetails { cached_tokens: totals.cached_tokens }),
            completion_tokens_details: CompletionDetails::new(totals),
            cost: cost_details.as_ref().map(CostDetails::cost),
            cost_details,
        }
    }

    /// Of an answer that goes on: tokens of prompts and answer, which are all that is known.
    pub fn so_far([prompt_tokens, completion_tokens]: [u64; 2]) -> Self {
        let totals = Totals { prompt_tokens, completion_tokens, ..Totals::default() };
        Self { prompt_tokens_details: None, ..Self::new(&totals, None) }
    }
}

/// Whole units of pico-units, as near as a JSON number comes.
pub fn units(pico: u128) -> f64 {
    pico as f64 / PICO
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn money_is_absent_without_a_price_and_adds_up_with_one() {
        let mut totals = Totals { prompt_tokens: 3, completion_tokens: 2, ..Totals::default() };
        let free = serde_json::to_value(Usage::new(&totals, Some("USD"))).unwrap();
        assert_eq!(
            free,
            serde_json::json!({
                "prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5,
                "prompt_tokens_details": {"cached_tokens": 0},
            })
        );
        (totals.prefill, totals.decode, totals.saved) = (Some(1_500_000), Some(500_000), Some(0));
        let paid = serde_json::to_value(Usage::new(&totals, Some("USD"))).unwrap();
        assert_eq!(paid["cost"], serde_json::json!(2e-6));
        assert_eq!(paid["cost_details"]["upstream_inference_prompt_cost"], serde_json::json!(1.5e-6));
        assert_eq!(paid["cost_details"]["currency"], "USD");
    }
}
