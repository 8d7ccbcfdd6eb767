//! The front end's view of the engine: submit, watch, stop. Every call returns at once.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use frugal_models::meter::Meter;
use frugal_models::runner::Runner;
use frugal_models::step::Geometry;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot, watch};

use crate::check::SelfCheck;
use crate::driver::Driver;
use crate::engine::Engine;
use crate::gate::Gate;
use crate::kv::group::capacity;
use crate::options::EngineOptions;
use crate::request::{Event, Report, Request, RequestId, SubmitError, Tick};
use crate::snapshot::{Gpu, Snapshot};
use crate::watchdog::Watchdog;

/// Bytes of the engine's stack, of which only what is used takes memory: following a deep grammar recurses.
const STACK: usize = 64 << 20;

/// Spawns the thread that owns the engine and the runner.
///
/// The thread ends after [`Handle::drain`], when the last handle is dropped, or when the runner or the engine panics: then
/// every request gets its terminal event and [`Handle::ended`] says so.
///
/// # Panics
/// If options and geometry leave no room for a single token, or the OS gives no thread.
pub fn start(runner: Box<dyn Runner>, options: EngineOptions) -> (Handle, EngineThread) {
    start_metered(runner, options, None)
}

/// The same, of a runner whose device measures its energy. What it has measured so far is charged to `startup`.
///
/// # Panics
/// As [`start`].
pub fn start_metered(
    runner: Box<dyn Runner>,
    mut options: EngineOptions,
    meter: Option<Meter>,
) -> (Handle, EngineThread) {
    options.startup_energy = meter.as_ref().and_then(Meter::energy_seen);
    let geometry = runner.geometry().clone();
    let (ended, watch_end) = watch::channel(None);
    let shared = Arc::new(Shared {
        inbox: Mutex::new(Inbox { gate: Gate::new(&options, &geometry), posts: Vec::new() }),
        wake: Condvar::new(),
        clients: Mutex::default(),
        ended,
        snapshot: Mutex::new(Arc::default()),
        watchdog: Watchdog::new(options.stall_timeout),
        meter,
        epoch: Instant::now(),
        capacity: capacity(&geometry),
        geometry: geometry.clone(),
    });
    let driver = Driver::new(runner, Engine::new(geometry, options), shared.clone());
    let thread =
        std::thread::Builder::new().name("engine".to_owned()).stack_size(STACK).spawn(move || driver.run());
    let thread = thread.expect("the OS gives the engine its thread at start");
    let alive = Arc::new(Alive(shared.clone()));
    (Handle { shared, ended: watch_end, _alive: alive }, EngineThread { thread })
}

/// The front end's end. Cheap to clone; dropping the last one stops the engine at once.
#[derive(Clone, Debug)]
pub struct Handle {
    shared: Arc<Shared>,
    ended: watch::Receiver<Option<Ended>>,
    _alive: Arc<Alive>,
}

/// An accepted request. Dropping `events` cancels it: its sequences end within one step, whatever they are doing.
#[derive(Debug)]
pub struct Submission {
    /// Its id, for logs.
    pub id: RequestId,
    /// When it came: what its times are measured from.
    pub at: Tick,
    /// What happens to it; `Event::Done` is the last. Has room for everything that can happen, so the engine never waits.
    pub events: mpsc::Receiver<Event>,
    /// Its report, if `events` was closed before the last one.
    pub account: oneshot::Receiver<Box<Report>>,
}

/// A place in the queue for a request of a tenant that is being prepared. Dropping it gives it back.
#[derive(Debug)]
pub struct Place {
    unused: Option<(Arc<Shared>, u64)>,
    /// When it was reserved: from then on the request waits.
    at: Tick,
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some((shared, tenant)) = self.unused.take() {
            shared.inbox().gate.release(tenant);
        }
    }
}

/// Work for a tenant that needs no place in the queue, and counts among what it has in progress. Dropping it ends that.
#[derive(Debug)]
pub struct Visit(Arc<Shared>, u64);

impl Drop for Visit {
    fn drop(&mut self) {
        self.0.inbox().gate.leave(self.1);
    }
}

/// Why the engine is not healthy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Stalled {
    /// Work is pending, and no step was committed for the configured time.
    #[error("no step was committed for {0:?} while work is pending")]
    Stuck(Duration),
    /// The engine has failed.
    #[error("the engine has stopped: {0}")]
    Dead(String),
}

/// How the engine's thread ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It was asked to, and nothing was left to do.
    Drained,
    /// The runner or the engine panicked, or was given up. The process should exit, to be started again.
    Failed(String),
}

/// The engine's thread.
#[derive(Debug)]
pub struct EngineThread {
    thread: JoinHandle<Ended>,
}

impl EngineThread {
    /// Blocks until the thread has ended.
    pub fn join(self) -> Ended {
        self.thread.join().unwrap_or_else(|_| Ended::Failed("the engine's thread was lost".to_owned()))
    }
}

impl Handle {
    /// Queues a request, or says why not.
    ///
    /// # Panics
    /// If the request has no prompt, a token out of the vocabulary, or asks for nothing.
    pub fn submit(&self, request: Request) -> Result<Submission, SubmitError> {
        self.submit_at(None, vec![request]).map(|mut one| one.swap_remove(0))
    }

    /// Whether there is room in the queue for a request of this tenant. A refusal counts as one of [`Handle::submit`].
    pub fn look(&self, tenant: u64) -> Result<(), SubmitError> {
        self.shared.inbox().gate.look(tenant)
    }

    /// Counts a request that was refused for its length without being submitted, as if it had been.
    pub fn too_long(&self) {
        self.shared.inbox().gate.too_long();
    }

    /// A place in the queue for a request of this tenant, before the work of preparing it. Only its tokens may still be too many, or
    /// its prompts.
    pub fn reserve(&self, tenant: u64) -> Result<Place, SubmitError> {
        self.shared.inbox().gate.reserve(tenant)?;
        Ok(Place { unused: Some((self.shared.clone(), tenant)), at: self.now() })
    }

    /// Counts other work for this tenant among what it has in progress, if that is not too much.
    pub fn visit(&self, tenant: u64) -> Result<Visit, SubmitError> {
        self.shared.inbox().gate.enter(tenant)?;
        Ok(Visit(self.shared.clone(), tenant))
    }

    /// Queues what a client asked for at its place, if one was reserved: a request for each prompt, all of them or none.
    ///
    /// # Panics
    /// As [`Handle::submit`], and if there is none.
    pub fn submit_at(
        &self,
        place: Option<Place>,
        requests: Vec<Request>,
    ) -> Result<Vec<Submission>, SubmitError> {
        let channels: Vec<_> = requests.iter().map(|request| Client::new(self.room(request))).collect();
        let now = self.now();
        let at = place.as_ref().map_or(now, |place| place.at);
        let mut inbox = self.shared.inbox();
        // From one to the other nobody else gets in.
        if let Some((_, tenant)) = place.and_then(|mut place| place.unused.take()) {
            inbox.gate.release(tenant);
        }
        let ids = inbox.gate.admit(&requests)?;
        let mut submissions = Vec::with_capacity(ids.len());
        for ((request, id), (client, events, account)) in requests.into_iter().zip(ids).zip(channels) {
            inbox.posts.push(Post::Submit { id, request: Box::new(request), at, client });
            submissions.push(Submission { id, at, events, account });
        }
        self.shared.watchdog.work(now);
        drop(inbox);
        self.shared.wake.notify_one();
        Ok(submissions)
    }

    /// Events that a request can have, at most.
    fn room(&self, request: &Request) -> usize {
        let prompt = request.prompt.len();
        let output =
            (request.max_tokens as usize).min((self.shared.capacity as usize).saturating_sub(prompt));
        let scores = if request.prompt_logprobs.is_some() { prompt } else { 0 };
        let choices = request.n as usize;
        choices.saturating_mul(output + 1).saturating_add(scores + 1).min(tokio::sync::Semaphore::MAX_PERMITS)
    }

    /// The engine's numbers after the last step (an idle engine publishes every second); queue, rejections and GPU are of now.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        let published = self.shared.snapshot.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut snapshot = Snapshot::clone(&published);
        snapshot.gpu = self.shared.meter.as_ref().map(|meter| Gpu {
            device: meter.device().clone(),
            energy: meter.energy_seen(),
            sample: meter.sample(),
        });
        let inbox = self.shared.inbox();
        let sequences = |post: &Post| match post {
            Post::Submit { request, .. } => request.n,
            Post::Drain(_) | Post::Check(_) => 0,
        };
        let posted = inbox.posts.iter().map(sequences).fold(inbox.gate.reserved(), u32::saturating_add);
        snapshot.counters.rejections = inbox.gate.rejections();
        snapshot.gauges.draining = inbox.gate.is_closed();
        snapshot.gauges.waiting += posted;
        (snapshot.gauges.queue_requests, snapshot.gauges.queue_tokens) = inbox.gate.queue();
        Arc::new(snapshot)
    }

    /// Whether work gets done.
    pub fn healthy(&self) -> Result<(), Stalled> {
        if let Some(Ended::Failed(why)) = &*self.ended.borrow() {
            return Err(Stalled::Dead(why.clone()));
        }
        self.shared.watchdog.stalled(self.now()).map_or(Ok(()), |waited| Err(Stalled::Stuck(waited)))
    }

    /// Takes no more requests. What is not done after `grace` ends with `FinishReason::Shutdown`; when nothing is left, the
    /// thread ends. A second call can only shorten the grace.
    pub fn drain(&self, grace: Duration) {
        let grace = u64::try_from(grace.as_nanos()).unwrap_or(u64::MAX);
        self.shared.drain(Tick(self.now().0.saturating_add(grace)));
    }

    /// For whoever has seen it hang: tells every client so in the engine's place, and has it ended, whatever its thread does.
    pub fn give_up(&self, why: &str) {
        self.shared.close(&Ended::Failed(why.to_owned()));
    }

    /// Whether it takes no more requests.
    pub fn is_draining(&self) -> bool {
        self.shared.inbox().gate.is_closed()
    }

    /// Resolves when the engine's thread has ended.
    pub async fn ended(&self) -> Ended {
        let mut ended = self.ended.clone();
        let lost = || Ended::Failed("the engine's thread was lost".to_owned());
        ended.wait_for(Option::is_some).await.ok().and_then(|e| e.clone()).unwrap_or_else(lost)
    }

    /// Checks I1, I2, I3, I6 and I7 on the live engine, between two steps; None if it has ended.
    pub async fn self_check(&self) -> Option<SelfCheck> {
        let (sender, result) = oneshot::channel();
        self.shared.inbox().posts.push(Post::Check(sender));
        self.shared.wake.notify_one();
        let mut ended = self.ended.clone();
        tokio::select! {
            result = result => result.ok(),
            _ = ended.wait_for(Option::is_some) => None,
        }
    }

    /// The model and cache it serves.
    pub fn geometry(&self) -> &Geometry {
        &self.shared.geometry
    }

    /// Tokens that prompt and output may have together: what context and pools allow.
    pub fn context_max(&self) -> u32 {
        self.shared.capacity
    }

    /// The engine's time, which deadlines are in.
    pub fn now(&self) -> Tick {
        self.shared.now()
    }
}

/// Whoever waits for a request.
#[derive(Debug)]
pub(crate) struct Client {
    events: mpsc::Sender<Event>,
    account: oneshot::Sender<Box<Report>>,
}

impl Client {
    fn new(room: usize) -> (Self, mpsc::Receiver<Event>, oneshot::Receiver<Box<Report>>) {
        let ((events, from_events), (account, from_account)) = (mpsc::channel(room), oneshot::channel());
        (Self { events, account }, from_events, from_account)
    }

    /// Whether no event is wanted any more.
    pub(crate) fn has_gone(&self) -> bool {
        self.events.is_closed()
    }

    /// An event that is not the last.
    ///
    /// # Panics
    /// If there is no room for it.
    pub(crate) fn tell(&self, id: RequestId, event: Event) {
        if let Err(TrySendError::Full(event)) = self.events.try_send(event) {
            panic!("the buffer of {id:?} has no room for {event:?}");
        }
    }

    /// The last event; who has left is still told what it came to.
    ///
    /// # Panics
    /// As [`Self::tell`].
    pub(crate) fn end(self, id: RequestId, report: Box<Report>) {
        match self.events.try_send(Event::Done(report)) {
            // Whoever asked may not care.
            Err(TrySendError::Closed(Event::Done(report))) => drop(self.account.send(report)),
            Err(TrySendError::Full(event)) => panic!("the buffer of {id:?} has no room for {event:?}"),
            _ => {}
        }
    }
}

/// What a handle tells the driver.
#[derive(Debug)]
pub(crate) enum Post {
    Submit { id: RequestId, request: Box<Request>, at: Tick, client: Client },
    Drain(Tick),
    Check(oneshot::Sender<SelfCheck>),
}

/// Bounded by the gate.
#[derive(Debug)]
pub(crate) struct Inbox {
    pub(crate) gate: Gate,
    pub(crate) posts: Vec<Post>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    inbox: Mutex<Inbox>,
    pub(crate) wake: Condvar,
    /// Whoever waits for events. Locked after `inbox`, if both are.
    clients: Mutex<BTreeMap<RequestId, Client>>,
    ended: watch::Sender<Option<Ended>>,
    pub(crate) snapshot: Mutex<Arc<Snapshot>>,
    pub(crate) watchdog: Watchdog,
    pub(crate) meter: Option<Meter>,
    epoch: Instant,
    capacity: u32,
    geometry: Geometry,
}

impl Shared {
    pub(crate) fn inbox(&self) -> MutexGuard<'_, Inbox> {
        // A panic of the front end leaves the inbox usable: each change to it is one call.
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn clients(&self) -> MutexGuard<'_, BTreeMap<RequestId, Client>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whoever still waits is told; whoever comes is refused. Of several ends, the first is the one that counts.
    pub(crate) fn close(&self, ended: &Ended) {
        let mut inbox = self.inbox();
        inbox.gate.close();
        let posts = std::mem::take(&mut inbox.posts);
        let mut clients = std::mem::take(&mut *self.clients());
        drop(inbox);
        for post in posts {
            if let Post::Submit { id, client, .. } = post {
                clients.insert(id, client);
            }
        }
        let why = match ended {
            Ended::Drained => "the server is shutting down",
            Ended::Failed(why) => why,
        };
        for (id, client) in clients {
            // Of who has gone, nothing is known that could be told.
            if !client.has_gone() {
                client.end(id, Box::new(Report { fault: Some(why.to_owned()), ..Report::default() }));
            }
        }
        self.watchdog.idle();
        self.ended.send_if_modified(|end| {
            let first = end.is_none();
            end.get_or_insert_with(|| ended.clone());
            first
        });
    }

    pub(crate) fn now(&self) -> Tick {
        Tick(u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    fn drain(&self, deadline: Tick) {
        let mut inbox = self.inbox();
        inbox.gate.close();
        inbox.posts.push(Post::Drain(deadline));
        drop(inbox);
        self.wake.notify_one();
    }
}

#[derive(Debug)]
struct Alive(Arc<Shared>);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.drain(Tick(0));
    }
}

#[cfg(test)]
mod tests;
