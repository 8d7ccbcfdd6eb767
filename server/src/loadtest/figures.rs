//! The figures of a level, as JSON and as rows of a table.
//!
//! Law: what failed is counted and nowhere else in the figures but for the time it took; what was not told or not seen is absent, not 0.

use std::time::Duration;

use serde::Serialize;

use super::measure::{Answer, Level};
use crate::bench::{median, rounded};
use crate::terminal::{money, printable_line};

/// What a level gave. Its names are those of the JSON.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Figures {
    pub(super) clients: u32,
    requests: usize,
    ok: usize,
    pub(super) failed: usize,
    first_failure: Option<String>,
    wall_s: f64,
    output_tokens: u64,
    pub(super) output_tokens_per_second: Option<f64>,
    /// Of prompts and answers.
    all_tokens_per_second: Option<f64>,
    prompt_tokens_mean: Option<f64>,
    /// Of prompts' tokens those that the server had in its cache, 0 to 1, where it tells.
    cached_share: Option<f64>,
    pub(super) ttft_ms_p50: Option<f64>,
    ttft_ms_p95: Option<f64>,
    /// Of the requests' means.
    between_tokens_ms_p50: Option<f64>,
    between_tokens_ms_p95: Option<f64>,
    /// Of the longest inside each stream.
    longest_pause_ms_p50: Option<f64>,
    longest_pause_ms_max: Option<f64>,
    /// The server says that they have more or fewer tokens than were asked for.
    answers_of_other_length: usize,
    /// The server does not say what they took: each of their pieces counts as a token.
    answers_without_usage: usize,
    /// They took tokens, of which nothing could be seen.
    answers_without_text: usize,
    /// Of prompts and answers together, where the server tells their cost (Frugal: prefill and decode, without idle time).
    cost_per_million_tokens: Option<f64>,
    currency: Option<String>,
}

impl Figures {
    /// Of a level whose answers should have `output` tokens each.
    pub(super) fn new(level: &Level, output: u32) -> Self {
        let answers: Vec<&Answer> = level.outcomes.iter().flatten().collect();
        let wall = level.wall.as_secs_f64();
        let output_tokens: u64 = answers.iter().map(|answer| answer.tokens()).sum();
        let usages = || answers.iter().filter_map(|answer| answer.usage.as_ref());
        // Of all answers, or it is not known.
        let prompts: Option<Vec<u64>> = answers.iter().map(|answer| answer.usage.as_ref()?.prompt).collect();
        let prompt_tokens: Option<u64> =
            prompts.filter(|all| !all.is_empty()).map(|all| all.iter().sum::<u64>());
        let times = |of: fn(&Answer) -> Option<Duration>| -> Vec<f64> {
            answers.iter().filter_map(|answer| of(answer)).map(|time| time.as_secs_f64() * 1e3).collect()
        };
        let first = times(|answer| Some(answer.times?.first));
        let between = times(Answer::between);
        let pauses = times(|answer| answer.times?.pause);
        let (cost_per_million_tokens, currency) = cost(&answers).unzip();
        Self {
            clients: level.clients,
            requests: level.outcomes.len(),
            ok: answers.len(),
            failed: level.outcomes.len() - answers.len(),
            first_failure: level.outcomes.iter().find_map(|outcome| outcome.as_ref().err().cloned()),
            // Of a tiny model, milliseconds.
            wall_s: rounded(wall * 1e3) / 1e3,
            output_tokens,
            output_tokens_per_second: (!answers.is_empty()).then(|| rounded(output_tokens as f64 / wall)),
            all_tokens_per_second: prompt_tokens.map(|sum| rounded((sum + output_tokens) as f64 / wall)),
            prompt_tokens_mean: prompt_tokens.map(|sum| rounded(sum as f64 / answers.len() as f64)),
            cached_share: cached_share(&answers).map(rounded),
            ttft_ms_p50: median(first.clone()).map(rounded),
            ttft_ms_p95: percentile(first, 95).map(rounded),
            between_tokens_ms_p50: median(between.clone()).map(rounded),
            between_tokens_ms_p95: percentile(between, 95).map(rounded),
            longest_pause_ms_p50: median(pauses.clone()).map(rounded),
            longest_pause_ms_max: percentile(pauses, 100).map(rounded),
            answers_of_other_length: usages().filter(|usage| usage.tokens != u64::from(output)).count(),
            answers_without_usage: answers.len() - usages().count(),
            answers_without_text: answers.iter().filter(|answer| answer.times.is_none()).count(),
            cost_per_million_tokens,
            currency,
        }
    }

    /// # Errors
    /// If there is nothing to measure.
    pub(super) fn check(&self, url: &str) -> anyhow::Result<()> {
        let (requests, clients) = (self.requests, clients(self.clients));
        let said = self.first_failure.as_deref().unwrap_or("there were none");
        anyhow::ensure!(
            self.ok > 0,
            "all {requests} requests of {clients} to {url} failed, the first: {said}"
        );
        Ok(())
    }

    /// Cells under [`HEADINGS`].
    pub(super) fn row(&self) -> Vec<String> {
        let pair = |a, b, digits| format!("{} / {}", shown(a, digits), shown(b, digits));
        let cost = self.cost_per_million_tokens.zip(self.currency.as_deref());
        vec![
            self.clients.to_string(),
            self.ok.to_string(),
            self.failed.to_string(),
            format!("{:.2}", self.wall_s),
            shown(self.output_tokens_per_second, 1),
            shown(self.all_tokens_per_second, 1),
            shown(self.prompt_tokens_mean, 1),
            self.cached_share.map_or("-".to_owned(), |share| format!("{:.0} %", share * 100.0)),
            pair(self.ttft_ms_p50, self.ttft_ms_p95, 1),
            pair(self.between_tokens_ms_p50, self.between_tokens_ms_p95, 2),
            pair(self.longest_pause_ms_p50, self.longest_pause_ms_max, 1),
            cost.map_or("-".to_owned(), |(amount, currency)| {
                format!("{} {}", money(amount), printable_line(currency))
            }),
        ]
    }

    /// What a reader of the figures has to know besides, a line each.
    pub(super) fn notes(&self, output: u32) -> Vec<String> {
        let mut notes = Vec::new();
        let mut note = |count: usize, what: &str| {
            if count > 0 {
                notes.push(format!("{}: {count} of {} {what}", clients(self.clients), self.requests));
            }
        };
        let said = printable_line(self.first_failure.as_deref().unwrap_or_default());
        note(self.failed, &format!("requests failed, the first: {said}"));
        note(self.answers_of_other_length, &format!("answers do not have {output} tokens"));
        note(self.answers_without_usage, "answers come without usage: their pieces of text are counted");
        note(self.answers_without_text, "answers have no text, and so no times");
        notes
    }
}

/// Of [`Figures::row`].
pub(super) const HEADINGS: [&str; 12] = [
    "clients",
    "ok",
    "failed",
    "seconds",
    "output/s",
    "all/s",
    "prompt",
    "cached",
    "first p50 / p95",
    "between p50 / p95",
    "pause p50 / max",
    "marginal cost of 1M",
];
/// What they mean.
pub(super) const LEGEND: &str = "tokens a second of answers and with their prompts, mean tokens of a prompt, share of them that the server had in its cache; milliseconds
to the first token, between tokens (a request's mean), of the longest pause inside a stream; what a million tokens, prompts and answers
together, cost by the server's usage.cost: prefill and decode, without the machine's idle time";

/// In words.
pub(super) fn clients(count: u32) -> String {
    if count == 1 { "1 client".to_owned() } else { format!("{count} clients") }
}

pub(super) fn shown(figure: Option<f64>, digits: usize) -> String {
    figure.map_or("-".to_owned(), |figure| format!("{figure:.digits$}"))
}

/// What a million tokens cost, and in what; None if no server tells or the currencies differ.
fn cost(answers: &[&Answer]) -> Option<(f64, String)> {
    let told = || {
        answers.iter().filter_map(|answer| {
            let usage = answer.usage.as_ref()?;
            Some((usage.tokens + usage.prompt?, usage.cost.as_ref()?))
        })
    };
    let currency = &told().next()?.1.1;
    let same = told().all(|(_, (_, other))| other == currency);
    let (tokens, cost) =
        told().fold((0, 0.0), |(tokens, sum), (more, (cost, _))| (tokens + more, sum + cost));
    (same && tokens > 0).then(|| (cost * 1e6 / tokens as f64, currency.clone()))
}

/// How much of the prompts was cached, of all answers that tell it.
fn cached_share(answers: &[&Answer]) -> Option<f64> {
    let told = answers.iter().filter_map(|answer| {
        let usage = answer.usage.as_ref()?;
        Some((usage.cached?, usage.prompt?))
    });
    let (cached, all) = told.fold((0, 0), |(cached, all), (more, of)| (cached + more, all + of));
    (all > 0).then(|| cached as f64 / all as f64)
}

/// The smallest figure that `percent` of them do not exceed: one that was measured, never one between. None of nothing.
fn percentile(mut figures: Vec<f64>, percent: usize) -> Option<f64> {
    figures.sort_by(f64::total_cmp);
    let rank = (figures.len() * percent).div_ceil(100);
    figures.get(rank.saturating_sub(1)).copied()
}

#[cfg(test)]
mod tests {
    use super::super::measure::Times;
    use super::*;
    use crate::client::sse::Usage;
    use crate::terminal::table;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn answer(first: u64, usage: Option<Usage>) -> Answer {
        let times = Times { first: ms(first), last: ms(first + 30), pause: Some(ms(first / 2)) };
        let mut answer = Answer::default();
        (answer.times, answer.pieces, answer.usage) = (Some(times), 4, usage);
        answer
    }

    fn usage(tokens: u64, prompt: Option<u64>, cost: Option<(f64, &str)>) -> Option<Usage> {
        let cost = cost.map(|(amount, currency)| (amount, currency.to_owned()));
        Some(Usage { tokens, prompt, cached: prompt.map(|prompt| prompt / 4), cost })
    }

    fn figures(outcomes: Vec<Result<Answer, String>>) -> Figures {
        Figures::new(&Level { clients: 2, wall: ms(2000), outcomes }, 4)
    }

    #[test]
    fn percentiles_are_figures_that_were_measured() {
        let check = |count: u32, percent, expected| {
            let figures = (1..=count).rev().map(f64::from).collect();
            assert_eq!(percentile(figures, percent), expected, "{percent} % of {count}");
        };
        check(0, 95, None);
        check(1, 95, Some(1.0));
        check(10, 95, Some(10.0));
        check(19, 95, Some(19.0));
        check(20, 95, Some(19.0));
        check(21, 95, Some(20.0));
        check(100, 95, Some(95.0));
        check(101, 95, Some(96.0));
        check(101, 100, Some(101.0));
        check(4, 0, Some(1.0));
    }

    #[test]
    fn figures_are_of_answers_and_failures_are_counted() {
        let paid = |first, cost| Ok(answer(first, usage(4, Some(6), Some((cost, "EUR")))));
        let failed = |words: &str| Err(words.to_owned());
        let all = figures(vec![
            paid(100, 1e-6),
            failed("full"),
            paid(300, 3e-6),
            failed("gone"),
            paid(201, 2e-6),
            paid(199, 2e-6),
        ]);
        insta::assert_json_snapshot!("level", all);
        assert!(all.check("http://box").is_ok());
    }

    #[test]
    fn what_is_not_told_is_absent() {
        let told = || Ok(answer(100, usage(4, Some(6), Some((1e-6, "USD")))));
        let some = figures(vec![told(), Ok(answer(100, None)), Ok(answer(100, usage(3, None, None)))]);
        assert_eq!(
            (some.output_tokens, some.answers_without_usage, some.answers_of_other_length),
            (11, 1, 1)
        );
        assert_eq!((some.all_tokens_per_second, some.prompt_tokens_mean), (None, None));
        // Of the one that tells it.
        assert_eq!(some.cost_per_million_tokens.map(rounded), Some(0.1));
        let mixed = figures(vec![told(), Ok(answer(100, usage(4, Some(6), Some((1e-6, "EUR")))))]);
        assert_eq!((mixed.cost_per_million_tokens, mixed.currency), (None, None));
        let mut unseen = answer(100, usage(4, Some(6), None));
        unseen.times = None;
        let unseen = figures(vec![Ok(unseen)]);
        assert_eq!((unseen.ttft_ms_p50, unseen.answers_without_text, unseen.output_tokens), (None, 1, 4));
    }

    #[test]
    fn a_level_of_failures_is_an_error() {
        let none = figures(vec![Err("full".to_owned()), Err("gone".to_owned())]);
        let error = none.check("http://box").unwrap_err().to_string();
        assert_eq!(error, "all 2 requests of 2 clients to http://box failed, the first: full");
        assert_eq!((none.output_tokens_per_second, none.ttft_ms_p95), (None, None));
    }

    #[test]
    fn levels_are_rows_with_notes() {
        let paid = |first| Ok(answer(first, usage(4, Some(6), Some((1e-6, "USD")))));
        let levels = [
            figures(vec![paid(100), paid(1300)]),
            figures(vec![Err("over\u{1b}[2Jloaded\n".to_owned()), Ok(answer(100, usage(3, None, None)))]),
            figures(vec![Ok(answer(100, None))]),
        ];
        let rows: Vec<_> = levels.iter().map(Figures::row).collect();
        let notes: Vec<String> = levels.iter().flat_map(|level| level.notes(4)).collect();
        insta::assert_snapshot!("table", format!("{}\n{}", table(&HEADINGS, &rows), notes.join("\n")));
    }
}
