//! A client: collects what it is told, and knows what it should have been told (I6, I9, I10).

use frugal_models::fake::expected_prompt_score;
use frugal_models::step::{Geometry, TokenBytes, TokenId, TokenScore};
use frugal_scheduler::options::EngineOptions;
use frugal_scheduler::request::{Event, FinishReason, Report, Request, Tick};

use crate::expect::{Expected, expected};

#[derive(Debug, Default, Clone)]
struct Choice {
    tokens: Vec<TokenId>,
    released: u32,
    finish: Option<(FinishReason, u32)>,
}

/// What may end a choice before its time, when it is told.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Causes {
    pub(crate) now: Tick,
    /// When the drain ends what is left.
    pub(crate) drain: Option<Tick>,
    /// Whether the runner failed in the step that was committed, or a row of it did.
    pub(crate) fault: bool,
}

#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) request: Request,
    pub(crate) cancelled: bool,
    choices: Vec<Choice>,
    scores: Vec<TokenScore>,
    pub(crate) report: Option<Report>,
    events: usize,
}

impl Client {
    pub(crate) fn new(request: Request) -> Self {
        let choices = vec![Choice::default(); request.n as usize];
        Self { request, cancelled: false, choices, scores: Vec::new(), report: None, events: 0 }
    }

    pub(crate) fn hear(&mut self, event: Event, text: &TokenBytes, causes: Causes) {
        assert!(self.report.is_none(), "I6: nothing follows the end: {event:?}");
        self.events += 1;
        match event {
            Event::PromptScores { first, scores } => {
                assert!(self.request.prompt_logprobs.is_some(), "scores that nobody asked for");
                assert_eq!(first as usize, self.scores.len() + 1, "scores come in order, each once");
                self.scores.extend(scores);
            }
            Event::Token { choice, token, score, release } => {
                assert_eq!(score.is_some(), self.request.sampling.logprobs.is_some(), "scores as asked");
                let c = &mut self.choices[choice as usize];
                assert!(c.finish.is_none(), "I6: choice {choice} has ended");
                assert!(release >= c.released, "released text stays released");
                c.tokens.push(token);
                c.released = release;
                let bytes: usize = c.tokens.iter().map(|&t| text.get(t).len()).sum();
                assert!(release as usize <= bytes, "text is not released before it exists");
            }
            Event::Finish { choice, reason, text_len } => {
                assert!(self.may_end(reason, causes), "I6: choice {choice} ends with {reason:?}: {causes:?}");
                let c = &mut self.choices[choice as usize];
                assert!(c.finish.is_none(), "I6: choice {choice} ends once");
                assert!(text_len >= c.released, "released text is taken back");
                c.finish = Some((reason, text_len));
            }
            Event::Done(report) => {
                assert!(
                    self.choices.iter().all(|c| c.finish.is_some()),
                    "I6: every choice ends before its request"
                );
                self.report = Some(*report);
            }
        }
    }

    /// Whether its deadline has passed and its end was not told.
    pub(crate) fn is_overdue(&self, now: Tick) -> bool {
        self.report.is_none() && self.request.deadline.is_some_and(|deadline| deadline <= now)
    }

    /// Whether there is a cause. That a whole answer is one is judged at the end.
    fn may_end(&self, reason: FinishReason, causes: Causes) -> bool {
        match reason {
            FinishReason::Cancelled => self.cancelled,
            FinishReason::Timeout => self.is_overdue(causes.now),
            FinishReason::Shutdown => causes.drain.is_some_and(|due| due <= causes.now),
            FinishReason::Fault => causes.fault,
            FinishReason::EndToken(_)
            | FinishReason::Complete
            | FinishReason::StopString(_)
            | FinishReason::Length
            | FinishReason::Impossible => true,
        }
    }

    /// Tokens of a choice.
    pub(crate) fn said(&self, choice: usize) -> Vec<TokenId> {
        self.choices[choice].tokens.clone()
    }

    /// How a choice ended.
    pub(crate) fn ended(&self, choice: usize) -> FinishReason {
        self.choices[choice].finish.expect("it has ended").0
    }

    /// Compares what was told with what had to be.
    pub(crate) fn judge(&self, geometry: &Geometry, options: &EngineOptions, room: u32) -> Vec<FinishReason> {
        let report = self.report.as_ref().expect("I6: the end was told");
        let prompt = &self.request.prompt;
        let mut output = 0;
        let mut exact = true;
        for (i, c) in self.choices.iter().enumerate() {
            let want = expected(geometry, &options.token_bytes, room, &self.request, i as u32);
            let (reason, text_len) = c.finish.expect("checked at the end");
            let whole = Expected { tokens: c.tokens.clone(), reason, text_len, output: want.output };
            match reason {
                FinishReason::EndToken(_)
                | FinishReason::Complete
                | FinishReason::StopString(_)
                | FinishReason::Length
                | FinishReason::Impossible => {
                    assert_eq!(whole, want, "I9, I10: choice {i} of {:?}", self.request);
                    output += want.output;
                    // A row without a token to choose has no scores of the prompt either.
                    exact &= reason != FinishReason::Impossible;
                }
                FinishReason::Cancelled
                | FinishReason::Timeout
                | FinishReason::Shutdown
                | FinishReason::Fault => {
                    assert!(
                        want.tokens.starts_with(&c.tokens),
                        "I9, I10: choice {i}, cut short, of {:?}",
                        self.request
                    );
                    output += c.tokens.len() as u32;
                    exact = false;
                }
            }
        }
        self.judge_scores(geometry, exact);
        assert_eq!(report.completion_tokens, output);
        assert_eq!(report.prompt_tokens as usize, prompt.len());
        assert!((report.cached_tokens as usize) < prompt.len(), "one token is always computed");
        let reads_cache = options.prefix_cache && self.request.prompt_logprobs.is_none();
        assert!(reads_cache || report.cached_tokens == 0, "this request does not read the cache");
        assert_eq!(report.cost.saved_ns > 0, report.cost.saved_ns > 0 && report.cached_tokens > 0);
        let bound = self.request.n * (self.request.max_tokens + 1) + prompt.len() as u32 + 1;
        assert!(self.events <= bound as usize, "more events than a buffer has room for");
        self.judge_report(report, options);
        self.choices.iter().filter_map(|c| c.finish.map(|f| f.0)).collect()
    }

    fn judge_report(&self, report: &Report, options: &EngineOptions) {
        let ended = |reason| self.choices.iter().any(|c| c.finish.is_some_and(|(r, _)| r == reason));
        let faulted = ended(FinishReason::Fault);
        assert_eq!(report.fault.is_some(), faulted || ended(FinishReason::Impossible));
        let cost = &report.cost;
        assert_eq!(cost.prefill.is_some(), options.prices.per_hour.is_some(), "no price, no money");
        assert_eq!(cost.decode.is_some(), cost.prefill.is_some());
        if faulted || report.queued_ns.is_none() {
            assert_eq!(
                (cost.prefill_ns, cost.decode_ns),
                (0, 0),
                "a fault is the house's, and queueing is free"
            );
        }
        if let Some(first) = report.first_token_ns {
            assert!(report.queued_ns.is_some_and(|queued| queued <= first) && first <= report.total_ns);
            assert!(faulted || cost.prefill_ns > 0, "the prompt was not free");
        }
    }

    fn judge_scores(&self, geometry: &Geometry, exact: bool) {
        let prompt = &self.request.prompt;
        if let Some(top) = self.request.prompt_logprobs {
            assert!(!exact || self.scores.len() + 1 == prompt.len(), "every token after the first is scored");
            for (i, score) in self.scores.iter().enumerate() {
                assert_eq!(*score, expected_prompt_score(geometry, &prompt[..=i], prompt[i + 1], top));
            }
        }
    }
}
