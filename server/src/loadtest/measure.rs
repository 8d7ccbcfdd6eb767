//! A level of load: so many clients, each with one request at a time.
//!
//! A request is timed from before its connection is made to the last of its answer. Bytes have the time at which they were
//! read, before they are understood.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use frugal_config::cli::Load;
use futures_util::StreamExt as _;
use futures_util::stream::iter;
use serde_json::json;

use crate::client::Target;
use crate::client::sse::{Delta, Events, Usage};
use crate::misuse::OrMisuse as _;

/// Of a failure's words, so many are kept.
const FAILURE_CHARS_MAX: usize = 300;

/// A server that is loading its model is asked again after this.
const LOADING_PAUSE: Duration = Duration::from_millis(200);

/// A server, and what is asked of it.
pub(super) struct Server {
    target: Target,
    api_key: Option<String>,
    pub(super) model: String,
    output: u32,
    patience: Duration,
}

/// What a level gave: an answer or the words of a failure for each request, in the order of their ends.
pub(super) struct Level {
    pub(super) clients: u32,
    pub(super) wall: Duration,
    pub(super) outcomes: Vec<Result<Answer, String>>,
}

/// An answer that came to its end.
#[derive(Clone, Debug, Default)]
pub(super) struct Answer {
    /// None if nothing of it could be seen.
    pub(super) times: Option<Times>,
    /// Events with text.
    pub(super) pieces: u64,
    /// What the server says it took.
    pub(super) usage: Option<Usage>,
    finished: bool,
}

/// When an answer came, from the begin of its request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    pub(super) first: Duration,
    pub(super) last: Duration,
    /// The longest between two events; None if there was one.
    pub(super) pause: Option<Duration>,
}

impl Server {
    /// The server at a URL that `flag` gave, once its model is loaded; asks it for the model if none is named.
    ///
    /// # Errors
    /// If that is no URL, or the server does not say in time.
    pub(super) async fn new(flag: &'static str, url: &str, load: &Load) -> anyhow::Result<Self> {
        let target = Target::new(flag, url, load.access.ca_file.as_deref()).or_misuse()?;
        let api_key = load.access.api_key.as_ref().map(|key| key.expose().to_owned());
        let patience = Duration::from_secs(load.timeout.into());
        let loaded = async {
            while target.is_loading().await? {
                tokio::time::sleep(LOADING_PAUSE).await;
            }
            anyhow::Ok(())
        };
        tokio::time::timeout(patience, loaded)
            .await
            .with_context(|| format!("{url} is not ready after {} s", load.timeout))??;
        let model = match &load.model {
            Some(model) => model.clone(),
            None => tokio::time::timeout(patience, target.first_model(api_key.as_deref()))
                .await
                .with_context(|| format!("{url} does not list its models within {} s", load.timeout))??,
        };
        Ok(Self { target, api_key, model, output: load.output, patience })
    }

    /// As it was given.
    pub(super) fn url(&self) -> &str {
        self.target.url()
    }

    /// An answer that nothing is counted of: what a server does at its first one only, such as preparing weights, is no load.
    pub(super) async fn warm_up(&self, prompt: String) {
        // The first level tells what is wrong.
        self.request(prompt).await.ok();
    }

    /// Sends all prompts, `clients` at a time.
    pub(super) async fn level(&self, clients: u32, prompts: impl Iterator<Item = String>) -> Level {
        let begin = Instant::now();
        // Prompts are made when their turn comes; all of them would not be bounded.
        let requests = iter(prompts).map(|prompt| self.request(prompt));
        let outcomes = requests.buffer_unordered(clients as usize).collect().await;
        Level { clients, wall: begin.elapsed(), outcomes }
    }

    async fn request(&self, prompt: String) -> Result<Answer, String> {
        let answer = match tokio::time::timeout(self.patience, self.answer(&prompt)).await {
            Ok(answer) => answer,
            Err(_) => Err(anyhow::anyhow!("the answer has no end after {} s", self.patience.as_secs())),
        };
        answer.map_err(|error| format!("{error:#}").chars().take(FAILURE_CHARS_MAX).collect())
    }

    async fn answer(&self, prompt: &str) -> anyhow::Result<Answer> {
        let body = json!({
            "model": self.model,
            "messages": [{ "role": "user", "content": prompt }],
            "max_tokens": self.output,
            "ignore_eos": true,
            "temperature": 0,
            "stream": true,
            "stream_options": { "include_usage": true },
        });
        let begin = Instant::now();
        let mut stream = self.target.chat(&body, self.api_key.as_deref()).await?;
        let (mut events, mut answer, mut done) = (Events::default(), Answer::default(), false);
        while !done && let Some(bytes) = stream.next().await? {
            let now = begin.elapsed();
            for data in events.push(&bytes)? {
                let delta = Delta::parse(&data)?;
                done |= delta.done;
                answer.add(delta, now);
            }
        }
        anyhow::ensure!(answer.finished, "the server ended the answer before its end");
        Ok(answer)
    }
}

impl Answer {
    fn add(&mut self, delta: Delta, now: Duration) {
        let text = !(delta.text.is_empty() && delta.reasoning.is_empty());
        self.pieces += u64::from(text);
        self.finished |= delta.finish.is_some();
        // Some servers tell in every event what it took so far.
        self.usage = delta.usage.or(self.usage.take());
        self.times = match self.times {
            None => text.then_some(Times { first: now, last: now, pause: None }),
            // The last token may have no text: its end comes with it.
            Some(Times { first, last, pause }) if text || delta.finish.is_some() => {
                Some(Times { first, last: now, pause: pause.max(Some(now.saturating_sub(last))) })
            }
            same => same,
        };
    }

    /// By the server's count, else by what came.
    pub(super) fn tokens(&self) -> u64 {
        self.usage.as_ref().map_or(self.pieces, |usage| usage.tokens)
    }

    /// The mean time from one token to the next, if there were two.
    pub(super) fn between(&self) -> Option<Duration> {
        let (times, steps) = (self.times?, self.tokens().saturating_sub(1));
        (steps > 0).then(|| times.last.saturating_sub(times.first).div_f64(steps as f64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn answer(events: &[(u64, Delta)]) -> Answer {
        let mut answer = Answer::default();
        for (at, delta) in events {
            answer.add(delta.clone(), ms(*at));
        }
        answer
    }

    fn text(text: &str) -> Delta {
        Delta { text: text.to_owned(), ..Delta::default() }
    }

    fn end() -> Delta {
        Delta { finish: Some("length".to_owned()), ..Delta::default() }
    }

    fn usage(tokens: u64) -> Delta {
        Delta { usage: Some(Usage { tokens, ..Usage::default() }), ..Delta::default() }
    }

    #[test]
    fn an_answer_is_timed_by_what_can_be_seen() {
        let thought = Delta { reasoning: "Hm".to_owned(), ..Delta::default() };
        let events =
            [(1, text("")), (10, thought), (20, text("a")), (50, text("b")), (60, end()), (99, usage(6))];
        let answer = answer(&events);
        let times = answer.times.unwrap();
        assert_eq!((times.first, times.last, times.pause), (ms(10), ms(60), Some(ms(30))));
        assert_eq!((answer.tokens(), answer.pieces, answer.finished), (6, 3, true));
        assert_eq!(answer.between(), Some(ms(10)));
    }

    #[test]
    fn what_is_not_told_is_counted_or_absent() {
        let uncounted = answer(&[(10, text("a")), (20, text("b")), (20, end())]);
        assert_eq!((uncounted.tokens(), uncounted.between()), (2, Some(ms(10))));
        let silent = answer(&[(10, end()), (10, usage(4))]);
        assert!(silent.times.is_none() && silent.between().is_none());
        assert_eq!(silent.tokens(), 4);
        let short = answer(&[(10, text("a")), (10, usage(1))]);
        assert!(short.between().is_none() && short.times.unwrap().pause.is_none() && !short.finished);
        assert_eq!(answer(&[(1, usage(1)), (2, usage(2)), (3, end())]).tokens(), 2);
    }
}
