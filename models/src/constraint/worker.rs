//! Threads that compute token masks while the model computes logits.
//!
//! The queue is bounded by its users: a sequence has one mask in the making, and those behind its guesses. Jobs that
//! panic end with their promise broken.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use super::STACK;

/// At least two, so that one grammar that is slow to follow does not hold up the others' masks; few, because the cores belong to the model.
const THREADS: std::ops::RangeInclusive<usize> = 2..=4;

pub(super) type Job = Box<dyn FnOnce() + Send>;

/// The threads; they end when this is dropped.
pub(super) struct Workers(Arc<Shared>);

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    wake: Condvar,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    closed: bool,
}

impl Workers {
    pub(super) fn start() -> std::io::Result<Self> {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let workers = Self(Arc::default());
        for _ in 0..(cores / 4).clamp(*THREADS.start(), *THREADS.end()) {
            let shared = workers.0.clone();
            // Should one thread be refused, those there are end with `workers`.
            thread::Builder::new().name("mask".to_owned()).stack_size(STACK).spawn(move || shared.run())?;
        }
        Ok(workers)
    }

    /// Has a job done, in turn.
    pub(super) fn post(&self, job: Job) {
        self.0.queue().jobs.push_back(job);
        self.0.wake.notify_one();
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.0.queue().closed = true;
        self.0.wake.notify_all();
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        loop {
            let idle = |queue: &mut Queue| queue.jobs.is_empty() && !queue.closed;
            let mut queue = self.wake.wait_while(self.queue(), idle).unwrap_or_else(PoisonError::into_inner);
            let Some(job) = queue.jobs.pop_front() else { return };
            drop(queue);
            if catch_unwind(AssertUnwindSafe(job)).is_err() {
                tracing::warn!("computing a token mask panicked");
            }
        }
    }
}
