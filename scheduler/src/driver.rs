//! The thread that owns engine and runner: plan, execute, commit. It reads the clock.
//!
//! It never waits for a client: event buffers have room for everything that can happen to their request.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use frugal_models::meter::Meter;
use frugal_models::runner::Runner;
use frugal_models::step::{StepFault, StepOutput};

use crate::engine::{Command, Engine};
use crate::handle::{Ended, Post, Shared};
use crate::policy::Plan;
use crate::request::{Event, RequestId};

/// An idle engine settles and publishes this often.
const HEARTBEAT: Duration = Duration::from_secs(1);

pub(crate) struct Driver {
    runner: Box<dyn Runner>,
    engine: Engine,
    shared: Arc<Shared>,
    draining: bool,
    /// Requests have come that no published number knows of.
    news: bool,
}

/// The runner panicked.
struct Panicked(String);

impl Driver {
    pub(crate) fn new(runner: Box<dyn Runner>, engine: Engine, shared: Arc<Shared>) -> Self {
        Self { runner, engine, shared, draining: false, news: false }
    }

    pub(crate) fn run(mut self) -> Ended {
        self.publish();
        let ended = match catch_unwind(AssertUnwindSafe(|| self.serve())) {
            Ok(Ok(())) => Ended::Drained,
            Ok(Err(Panicked(why))) => Ended::Failed(why),
            Err(panic) => Ended::Failed(message(&*panic)),
        };
        self.shared.close(&ended);
        ended
    }

    fn serve(&mut self) -> Result<(), Panicked> {
        while self.listen() {
            let plan = self.engine.plan(self.shared.now());
            if plan.is_empty() {
                self.deliver();
                continue;
            }
            // A step may take long, and whoever looks meanwhile wants to see what has come.
            if std::mem::take(&mut self.news) {
                self.publish();
            }
            let begun = self.shared.now();
            let (result, panicked) = self.execute(&plan);
            let (tokens, now) = (plan.input.tokens(), self.shared.now());
            self.measure();
            tracing::trace!(rows = plan.input.rows.len(), tokens, ns = now.0 - begun.0, "step");
            self.engine.commit(plan, result, now);
            if let Some(why) = panicked {
                self.engine.abort(&why);
                self.deliver();
                return Err(Panicked(why));
            }
            self.shared.watchdog.progress(now);
            self.shared.inbox().gate.pace(tokens, now.0 - begun.0);
            self.deliver();
        }
        Ok(())
    }

    /// Takes what was posted, waiting for it if there is nothing else to do; false when nothing is left to do for ever.
    fn listen(&mut self) -> bool {
        let shared = self.shared.clone();
        let mut inbox = shared.inbox();
        if inbox.posts.is_empty() && self.engine.is_idle() {
            if self.draining {
                return false;
            }
            shared.watchdog.idle();
            inbox = shared.wake.wait_timeout(inbox, HEARTBEAT).unwrap_or_else(PoisonError::into_inner).0;
        }
        let posts = std::mem::take(&mut inbox.posts);
        drop(inbox);
        let now = shared.now();
        self.measure();
        let mut clients = shared.clients();
        for post in posts {
            match post {
                Post::Submit { id, request, at, client } => {
                    self.news = true;
                    clients.insert(id, client);
                    self.engine.apply(Command::Submit { id, request, at }, now);
                }
                Post::Drain(deadline) => {
                    self.draining = true;
                    self.engine.apply(Command::Drain(deadline), now);
                }
                // Whoever asked may have gone.
                Post::Check(reply) => drop(reply.send(self.engine.check())),
            }
        }
        let gone: Vec<RequestId> = clients.iter().filter(|(_, c)| c.has_gone()).map(|(&id, _)| id).collect();
        gone.into_iter().for_each(|id| self.engine.apply(Command::Cancel(id), now));
        true
    }

    /// Energy that became known belongs to the time that is settled next.
    fn measure(&mut self) {
        if let Some(energy) = self.shared.meter.as_ref().and_then(Meter::energy) {
            self.engine.measure(energy);
        }
    }

    /// A panic is a fault of the step, and the runner's last.
    fn execute(&mut self, plan: &Plan) -> (Result<StepOutput, StepFault>, Option<String>) {
        let runner = &mut self.runner;
        let run = || {
            runner.submit(plan.input.clone());
            runner.wait()
        };
        match catch_unwind(AssertUnwindSafe(run)) {
            Ok(result) => {
                if let Err(fault) = &result {
                    tracing::error!(%fault, rows = plan.input.rows.len(), "a step failed");
                }
                (result, None)
            }
            Err(panic) => {
                let why = message(&*panic);
                tracing::error!(panic = %why, "the runner panicked");
                (Err(StepFault(why.clone())), Some(why))
            }
        }
    }

    /// Numbers and gate first: whoever has seen an event finds it counted, and whose request is done may send the next.
    fn deliver(&mut self) {
        let outbox = self.engine.take_outbox();
        self.publish();
        let mut inbox = self.shared.inbox();
        outbox.scheduled.into_iter().for_each(|id| inbox.gate.scheduled(id));
        let done = outbox.events.iter().filter(|(_, event)| matches!(event, Event::Done(_)));
        done.for_each(|(id, _)| inbox.gate.done(*id));
        drop(inbox);
        let mut clients = self.shared.clients();
        for (id, event) in outbox.events {
            match event {
                Event::Done(report) => {
                    if let Some(client) = clients.remove(&id) {
                        client.end(id, report);
                    }
                }
                event => {
                    if let Some(client) = clients.get(&id) {
                        client.tell(id, event);
                    }
                }
            }
        }
    }

    fn publish(&self) {
        let snapshot = Arc::new(self.engine.snapshot());
        *self.shared.snapshot.lock().unwrap_or_else(PoisonError::into_inner) = snapshot;
    }
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text =
        panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    format!("panic: {}", text.unwrap_or("of unknown kind"))
}
