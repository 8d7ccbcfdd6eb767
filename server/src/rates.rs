//! Requests and tokens a minute, per key.
//!
//! A bucket each. It is full at first, holds a minute's worth and refills evenly. A request is charged when it comes, its
//! prompt's tokens when they are known, its answer's as they come, so no guess at an answer's length keeps anyone out.
//! An answer may so draw a bucket below zero: what runs goes on, and nothing new is admitted before the debt is paid.
//! In any time a key gets its rate, a bucketful, and what ran when that was used up.

use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use frugal_config::auth::Rates;

use crate::error::ApiError;

/// Tells the time.
pub type Clock = Arc<dyn Fn() -> Instant + Send + Sync>;

/// What a bucket holds is counted in such parts of a request or token, so that each nanosecond adds a whole number.
const PARTS: i128 = 60_000_000_000;

/// What one key may still use.
pub struct Budget {
    clock: Clock,
    buckets: Mutex<Buckets>,
}

#[derive(Default)]
struct Buckets {
    requests: Option<Bucket>,
    tokens: Option<Bucket>,
}

impl Budget {
    /// A full one.
    pub fn new(rates: Rates, clock: Clock) -> Self {
        let budget = Self { clock, buckets: Mutex::default() };
        budget.change(rates);
        budget
    }

    /// From now on at these rates; what is used stays used.
    pub fn change(&self, rates: Rates) {
        let now = (self.clock)();
        let mut buckets = self.lock();
        Bucket::change(&mut buckets.requests, rates.requests, now);
        Bucket::change(&mut buckets.tokens, rates.tokens, now);
    }

    /// Charges a request.
    ///
    /// # Errors
    /// 429 if it comes too early.
    pub fn request(&self) -> Result<(), ApiError> {
        let now = (self.clock)();
        let mut buckets = self.lock();
        let Buckets { requests, tokens } = &mut *buckets;
        if let Some(tokens) = tokens {
            // Any request has a token.
            tokens.check(1, "tokens", now)?;
        }
        if let Some(requests) = requests {
            requests.check(1, "requests", now)?;
            requests.level -= PARTS;
        }
        Ok(())
    }

    /// Charges the tokens of a request's prompts.
    ///
    /// # Errors
    /// 429 if they are more than what is left, or than a minute's worth.
    pub fn prompt(&self, tokens: u64) -> Result<(), ApiError> {
        let now = (self.clock)();
        if let Some(bucket) = &mut self.lock().tokens {
            bucket.check(tokens, "tokens", now)?;
            bucket.level -= i128::from(tokens) * PARTS;
        }
        Ok(())
    }

    /// Charges tokens of an answer.
    pub fn output(&self, tokens: u64) {
        if let Some(bucket) = &mut self.lock().tokens {
            bucket.level -= i128::from(tokens) * PARTS;
        }
    }

    /// Gives a prompt's tokens back: the engine did not take it.
    pub fn refund(&self, tokens: u64) {
        if let Some(bucket) = &mut self.lock().tokens {
            bucket.level = (bucket.level + i128::from(tokens) * PARTS).min(bucket.full());
        }
    }

    /// Tells a client where it stands, in OpenAI's headers.
    pub fn show(&self, headers: &mut HeaderMap) {
        let now = (self.clock)();
        let mut buckets = self.lock();
        let Buckets { requests, tokens } = &mut *buckets;
        let names = [
            (
                requests,
                "x-ratelimit-limit-requests",
                "x-ratelimit-remaining-requests",
                "x-ratelimit-reset-requests",
            ),
            (tokens, "x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"),
        ];
        for (bucket, limit, remaining, reset) in names {
            let Some(bucket) = bucket else { continue };
            bucket.refill(now);
            headers.insert(HeaderName::from_static(limit), HeaderValue::from(bucket.limit.get()));
            let left = u64::try_from(bucket.level / PARTS).unwrap_or(0);
            headers.insert(HeaderName::from_static(remaining), HeaderValue::from(left));
            let full = spelled(bucket.until(bucket.full()));
            let full = HeaderValue::try_from(full).expect("digits and letters");
            headers.insert(HeaderName::from_static(reset), full);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Buckets> {
        self.buckets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Bucket {
    limit: NonZeroU32,
    /// In [`PARTS`]; at most full.
    level: i128,
    /// When that was so.
    at: Instant,
}

impl Bucket {
    fn change(bucket: &mut Option<Self>, limit: Option<NonZeroU32>, now: Instant) {
        *bucket = limit.map(|limit| match bucket.take() {
            Some(mut old) => {
                old.refill(now);
                let used = old.full() - old.level;
                old.limit = limit;
                old.level = old.full() - used;
                old
            }
            None => {
                let mut new = Self { limit, level: 0, at: now };
                new.level = new.full();
                new
            }
        });
    }

    fn full(&self) -> i128 {
        i128::from(self.limit.get()) * PARTS
    }

    fn refill(&mut self, now: Instant) {
        let gone = now.saturating_duration_since(self.at).as_nanos();
        let gone = i128::try_from(gone).unwrap_or(i128::MAX);
        let gain = gone.saturating_mul(i128::from(self.limit.get()));
        self.level = self.level.saturating_add(gain).min(self.full());
        self.at = self.at.max(now);
    }

    /// Until there is that much.
    fn until(&self, level: i128) -> Duration {
        let missing = (level - self.level).max(0);
        let limit = i128::from(self.limit.get());
        Duration::from_nanos(u64::try_from((missing + limit - 1) / limit).unwrap_or(u64::MAX))
    }

    fn check(&mut self, wanted: u64, what: &str, now: Instant) -> Result<(), ApiError> {
        self.refill(now);
        let level = i128::from(wanted) * PARTS;
        let limit = self.limit;
        if level > self.full() {
            let message = format!(
                "Request too large for this API key: limit {limit} {what} per minute, requested {wanted}"
            );
            return Err(ApiError::rate_limited(message, None));
        }
        if level > self.level {
            let wait = self.until(level);
            let message = format!(
                "Rate limit reached for this API key: limit {limit} {what} per minute. Please try again in {}",
                spelled(wait)
            );
            return Err(ApiError::rate_limited(message, Some(wait)));
        }
        Ok(())
    }
}

/// As OpenAI spells it: `6m0s`, `1.5s`, `20ms`; rounded up.
fn spelled(time: Duration) -> String {
    let ms = time.as_nanos().div_ceil(1_000_000);
    match ms {
        0..1_000 => format!("{ms}ms"),
        1_000..60_000 => {
            let seconds = format!("{}.{:03}", ms / 1_000, ms % 1_000);
            format!("{}s", seconds.trim_end_matches('0').trim_end_matches('.'))
        }
        _ => format!("{}m{}s", ms.div_ceil(1_000) / 60, ms.div_ceil(1_000) % 60),
    }
}

#[cfg(test)]
mod tests;
