//! Parsing, templates, tokenizers and grammars, off the threads that serve connections.
//!
//! Bounded twice: in the threads it occupies and in the requests that wait for them. Large bodies queue for one
//! thread of their own, so they delay each other and never a small one; so do grammars, with a queue of their own. Requests for the
//! same grammar take one place in it, and one result.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use frugal_models::mask::Grammar;
use tokio::sync::{OnceCell, OwnedSemaphorePermit, Semaphore};

use crate::error::ApiError;

/// From here a body counts as large: tokenizing it takes tens of milliseconds.
pub(crate) const LARGE_BYTES: usize = 64 << 10;

/// Seconds after which a client that found the queue full may come back.
const RETRY_AFTER_S: u32 = 1;

/// Grammars compiled at a time.
const GRAMMARS: usize = 2;

/// Grammars that may wait to be compiled: each may take seconds.
const GRAMMARS_WAITING: usize = 32;

/// A grammar's digest, and the field that errors name.
type Key = ([u8; 32], &'static str);

/// What one compile comes to, for all that wait for it.
type Compiled = OnceCell<Result<Arc<dyn Grammar>, ApiError>>;

/// Runs closures on tokio's blocking threads, a few at a time.
#[derive(Debug)]
pub struct TextPool {
    /// One permit per request that waits or runs.
    queue: Arc<Semaphore>,
    small: Arc<Semaphore>,
    large: Arc<Semaphore>,
    grammar_queue: Arc<Semaphore>,
    grammars: Arc<Semaphore>,
    /// What requests wait for.
    compiling: Mutex<HashMap<Key, Arc<Compiled>>>,
}

impl TextPool {
    /// At most `threads` small jobs and one large job at a time, `waiting` more in the queue.
    pub fn new(threads: usize, waiting: usize) -> Self {
        let threads = threads.max(1);
        let queue = threads.saturating_add(1).saturating_add(waiting).min(Semaphore::MAX_PERMITS);
        Self {
            queue: Arc::new(Semaphore::new(queue)),
            small: Arc::new(Semaphore::new(threads)),
            large: Arc::new(Semaphore::new(1)),
            grammar_queue: Arc::new(Semaphore::new(GRAMMARS + GRAMMARS_WAITING)),
            grammars: Arc::new(Semaphore::new(GRAMMARS)),
            compiling: Mutex::default(),
        }
    }

    /// Runs `job`, which has `bytes` of input to work on.
    ///
    /// # Errors
    /// 503 if too many wait; 500 if the job panicked; else what the job said.
    pub async fn run<T: Send + 'static>(
        &self,
        bytes: usize,
        job: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        in_lane(&self.queue, if bytes < LARGE_BYTES { &self.small } else { &self.large }, job).await
    }

    /// Runs `job`, which compiles the grammar that `key` stands for, or waits for the one that does.
    ///
    /// # Errors
    /// As [`TextPool::run`], all of them the same.
    pub async fn compile(
        &self,
        key: Key,
        job: impl FnOnce() -> Result<Arc<dyn Grammar>, ApiError> + Send + 'static,
    ) -> Result<Arc<dyn Grammar>, ApiError> {
        let compiled = self.compiling().entry(key).or_default().clone();
        let waiting = Waiting { pool: self, key, compiled };
        // Should this request end before its job does, the next one that waits begins again.
        let compiled = waiting.compiled.get_or_init(|| in_lane(&self.grammar_queue, &self.grammars, job));
        compiled.await.clone()
    }

    fn compiling(&self) -> MutexGuard<'_, HashMap<Key, Arc<Compiled>>> {
        // Each change is whole.
        self.compiling.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request that waits for a grammar; the last one takes the entry with it.
struct Waiting<'a> {
    pool: &'a TextPool,
    key: Key,
    compiled: Arc<Compiled>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut compiling = self.pool.compiling();
        // Under the lock, as clones are made: so one of those who leave together sees that it is the last.
        drop(std::mem::take(&mut self.compiled));
        if compiling.get(&self.key).is_some_and(|compiled| Arc::strong_count(compiled) == 1) {
            compiling.remove(&self.key);
        }
    }
}

async fn in_lane<T: Send + 'static>(
    queue: &Arc<Semaphore>,
    lane: &Arc<Semaphore>,
    job: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let ticket = queue.clone().try_acquire_owned();
    let ticket = ticket.map_err(|_| ApiError::overloaded(RETRY_AFTER_S))?;
    let turn = lane.clone().acquire_owned().await.expect("the semaphore is never closed");
    // The permits go with the job: it runs on when its client is gone, and occupies its thread until it ends.
    let permits: (OwnedSemaphorePermit, OwnedSemaphorePermit) = (ticket, turn);
    let done = tokio::task::spawn_blocking(move || {
        let result = job();
        drop(permits);
        result
    });
    done.await.unwrap_or_else(|panic| {
        tracing::error!(%panic, "preparing a request failed");
        Err(ApiError::internal("The request could not be prepared"))
    })
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use axum::http::StatusCode;

    use super::*;

    #[tokio::test]
    async fn large_jobs_do_not_delay_small_ones() {
        let pool = Arc::new(TextPool::new(1, 8));
        let (release, blocked) = mpsc::channel::<()>();
        let large = tokio::spawn({
            let pool = pool.clone();
            async move {
                pool.run(LARGE_BYTES, move || {
                    blocked.recv().expect("the test releases it");
                    Ok("large")
                })
                .await
            }
        });
        assert_eq!(pool.run(10, || Ok("small")).await, Ok("small"));
        release.send(()).unwrap();
        assert_eq!(large.await.unwrap(), Ok("large"));
    }

    #[tokio::test]
    async fn grammars_delay_only_each_other() {
        let pool = Arc::new(TextPool::new(1, 0));
        let (release, blocked) = std::sync::mpsc::channel::<()>();
        let blocked = Arc::new(std::sync::Mutex::new(blocked));
        let mut jobs = Vec::new();
        for i in 0..u8::try_from(GRAMMARS + GRAMMARS_WAITING).expect("few") {
            let (pool, blocked) = (pool.clone(), blocked.clone());
            jobs.push(tokio::spawn(async move {
                pool.compile(([i; 32], "tools"), move || {
                    blocked.lock().unwrap().recv().expect("the test releases it");
                    Ok(grammar())
                })
                .await
            }));
        }
        // Every place is taken once each of them has run up to its first wait.
        while pool.grammar_queue.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        let refused = pool.compile(([255; 32], "tools"), || Ok(grammar())).await.unwrap_err();
        assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(pool.run(10, || Ok("prompt")).await, Ok("prompt"));
        for _ in &jobs {
            release.send(()).unwrap();
        }
        for job in jobs {
            job.await.unwrap().unwrap();
        }
        assert!(pool.compile(([255; 32], "tools"), || Ok(grammar())).await.is_ok());
    }

    fn grammar() -> Arc<dyn Grammar> {
        #[derive(Debug)]
        struct Unfollowed;
        impl Grammar for Unfollowed {
            fn matcher(&self) -> Box<dyn frugal_models::mask::Matcher> {
                unreachable!("nobody follows it")
            }
        }
        Arc::new(Unfollowed)
    }

    #[tokio::test]
    async fn a_crowd_that_asks_for_the_same_grammar_has_it_compiled_once() {
        let pool = Arc::new(TextPool::new(1, 0));
        let (release, blocked) = mpsc::channel::<()>();
        let compiles = Arc::new(Mutex::new((0, blocked)));
        let ask = |good: bool| {
            let (pool, compiles) = (pool.clone(), compiles.clone());
            tokio::spawn(async move {
                let job = move || {
                    let mut compiles = compiles.lock().unwrap();
                    compiles.1.recv().expect("the test releases it");
                    compiles.0 += 1;
                    if good { Ok(grammar()) } else { Err(ApiError::overloaded(7)) }
                };
                pool.compile(([u8::from(good); 32], "tools"), job).await
            })
        };
        let asked: Vec<_> = (0..100).map(|i| (i % 2 == 0, ask(i % 2 == 0))).collect();
        let waiting =
            || pool.compiling().values().map(|waiting| Arc::strong_count(waiting) - 1).sum::<usize>();
        while waiting() < 100 {
            tokio::task::yield_now().await;
        }
        release.send(()).unwrap();
        release.send(()).unwrap();
        for (good, answer) in asked {
            assert_eq!(answer.await.unwrap().is_ok(), good);
        }
        assert_eq!(compiles.lock().unwrap().0, 2);
        assert!(pool.compiling().is_empty());
    }

    #[tokio::test]
    async fn a_full_queue_refuses_and_a_panic_is_an_error() {
        let pool = Arc::new(TextPool::new(1, 0));
        let panicked = pool.run(1, || -> Result<(), ApiError> { panic!("on purpose") }).await;
        assert_eq!(panicked.unwrap_err().status(), StatusCode::INTERNAL_SERVER_ERROR);

        // The two places, one a lane, are taken; `started` says when.
        let (started, when_started) = mpsc::channel::<()>();
        let mut release = Vec::new();
        let mut running = Vec::new();
        for bytes in [1, LARGE_BYTES] {
            let (tell, blocked) = mpsc::channel::<()>();
            let (pool, started) = (pool.clone(), started.clone());
            release.push(tell);
            running.push(tokio::spawn(async move {
                pool.run(bytes, move || {
                    started.send(()).expect("the test listens");
                    blocked.recv().expect("the test releases it");
                    Ok(())
                })
                .await
            }));
        }
        let both = tokio::task::spawn_blocking(move || (when_started.recv(), when_started.recv()));
        assert_eq!(both.await.unwrap(), (Ok(()), Ok(())));
        assert_eq!(pool.run(1, || Ok(())).await.unwrap_err().status(), StatusCode::SERVICE_UNAVAILABLE);
        for tell in release {
            tell.send(()).unwrap();
        }
        for job in running {
            job.await.unwrap().unwrap();
        }
        assert_eq!(pool.run(1, || Ok(())).await, Ok(()));
    }
}
