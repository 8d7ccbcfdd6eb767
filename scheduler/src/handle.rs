//! The front end's view of the engine: submit, watch, stop. Every call returns at once.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use frugal_models::meter::Meter;
use frugal_models::runner::Runner;
use frugal_models::step::Geometry;
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
    /// What happens to it; `Event::Done` is the last. Has room for everything that can happen, so the engine never waits.
    pub events: mpsc::Receiver<Event>,
}

/// A place in the queue for a request that is being prepared. Dropping it gives it back.
#[derive(Debug)]
pub struct Place(Option<Arc<Shared>>);

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(unused) = self.0.take() {
            unused.inbox().gate.release();
        }
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
        self.submit_at(None, request)
    }

    /// Whether there is room in the queue for a request of this tenant. A refusal counts as one of [`Handle::submit`].
    pub fn look(&self, tenant: u64) -> Result<(), SubmitError> {
        self.shared.inbox().gate.look(tenant)
    }

    /// A place in the queue for a request of this tenant, before the work of preparing it. Only its tokens may still be too many.
    pub fn reserve(&self, tenant: u64) -> Result<Place, SubmitError> {
        self.shared.inbox().gate.reserve(tenant)?;
        Ok(Place(Some(self.shared.clone())))
    }

    /// Queues a request at its place, if one was reserved.
    ///
    /// # Panics
    /// As [`Handle::submit`].
    pub fn submit_at(&self, place: Option<Place>, request: Request) -> Result<Submission, SubmitError> {
        let (sender, events) = mpsc::channel(self.room(&request));
        let mut inbox = self.shared.inbox();
        // From one to the other nobody else gets in.
        if place.is_some_and(|mut place| place.0.take().is_some()) {
            inbox.gate.release();
        }
        let id = inbox.gate.admit(&request)?;
        let at = self.now();
        inbox.posts.push(Post::Submit { id, request: Box::new(request), at, events: sender });
        self.shared.watchdog.work(at);
        drop(inbox);
        self.shared.wake.notify_one();
        Ok(Submission { id, events })
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
        let posted = inbox.posts.iter().filter(|p| matches!(p, Post::Submit { .. })).count() as u32;
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

/// What a handle tells the driver.
#[derive(Debug)]
pub(crate) enum Post {
    Submit { id: RequestId, request: Box<Request>, at: Tick, events: mpsc::Sender<Event> },
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
    clients: Mutex<BTreeMap<RequestId, mpsc::Sender<Event>>>,
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

    pub(crate) fn clients(&self) -> MutexGuard<'_, BTreeMap<RequestId, mpsc::Sender<Event>>> {
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
            if let Post::Submit { id, events, .. } = post {
                clients.insert(id, events);
            }
        }
        let why = match ended {
            Ended::Drained => "the server is shutting down",
            Ended::Failed(why) => why,
        };
        for client in clients.into_values() {
            let report = Report { fault: Some(why.to_owned()), ..Report::default() };
            // A client that has gone needs no telling.
            let _ = client.try_send(Event::Done(Box::new(report)));
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
mod tests {
    use super::*;
    use crate::request::{FinishReason, Report, test_request};
    use frugal_models::fake::{FakeControl, FakeFault, FakeModel, FakeRunner};
    use frugal_models::meter::{Device, Sample};
    use frugal_models::step::{CacheGroup, GroupKind};

    fn engine(options: EngineOptions) -> (Handle, EngineThread, FakeControl) {
        let group = |kind, blocks| CacheGroup { kind, block_bytes: 64, blocks };
        let geometry = Geometry {
            vocab: 200,
            context_max: 256,
            block_tokens: 4,
            groups: vec![
                group(GroupKind::Full, 80),
                group(GroupKind::Window { window: 9 }, 80),
                group(GroupKind::State, 20),
            ],
            digest: [1; 32],
        };
        let runner = FakeRunner::new(geometry, FakeModel::default());
        let control = runner.control();
        let (handle, thread) = start(Box::new(runner), options);
        (handle, thread, control)
    }

    async fn collect(mut submission: Submission) -> (usize, Vec<FinishReason>, Report) {
        let (mut tokens, mut reasons) = (0, Vec::new());
        while let Some(event) = submission.events.recv().await {
            match event {
                Event::Token { .. } => tokens += 1,
                Event::Finish { reason, .. } => reasons.push(reason),
                Event::Done(report) => {
                    assert!(submission.events.recv().await.is_none(), "nothing follows the end");
                    return (tokens, reasons, *report);
                }
                Event::PromptScores { .. } => panic!("nobody asked for scores"),
            }
        }
        panic!("the end is always told");
    }

    #[tokio::test]
    async fn requests_are_answered_and_the_thread_drains() {
        let (handle, thread, _) = engine(EngineOptions::default());
        let request = Request { n: 3, max_tokens: 5, ..test_request(30) };
        let a = handle.submit(request.clone()).expect("room");
        let b = handle.submit(request).expect("room");
        for submission in [a, b] {
            let (tokens, reasons, report) = collect(submission).await;
            assert_eq!((tokens, reasons), (15, vec![FinishReason::Length; 3]));
            assert!(report.cost.prefill_ns > 0 && report.cost.decode_ns > 0 && report.cost.prefill.is_none());
        }
        let check = handle.self_check().await.expect("it lives");
        assert_eq!((check.violation, check.sequences), (None, 0));
        assert_eq!(handle.snapshot().counters.generated_tokens, 30);
        handle.drain(Duration::from_secs(60));
        assert_eq!(handle.submit(test_request(1)).expect_err("closed"), SubmitError::ShuttingDown);
        assert_eq!(handle.ended().await, Ended::Drained);
        assert_eq!(thread.join(), Ended::Drained);
        assert_eq!(handle.healthy(), Ok(()));
        assert!(handle.self_check().await.is_none());
    }

    #[tokio::test]
    async fn what_the_device_measured_is_in_the_accounts_to_the_picojoule() {
        let mut counter = 1_000_000;
        let probe = move || {
            counter = (counter + 1_500).min(1_006_500);
            Ok(Sample { energy_millijoules: Some(counter), busy_percent: Some(7), ..Sample::default() })
        };
        let device = Device { name: "fake".to_owned(), ..Device::default() };
        let meter = Meter::start(device, Box::new(probe)).expect("it answers");
        let group = CacheGroup { kind: GroupKind::Full, block_bytes: 64, blocks: 80 };
        let geometry =
            Geometry { vocab: 200, context_max: 256, block_tokens: 4, groups: vec![group], digest: [1; 32] };
        let runner = FakeRunner::new(geometry, FakeModel::default());
        let (handle, _thread) = start_metered(Box::new(runner), EngineOptions::default(), Some(meter));
        let begun = Instant::now();
        // The first answer is where counting begins.
        let all = 5_000 * 1_000_000_000;
        loop {
            let request = Request { max_tokens: 5, ..test_request(30) };
            collect(handle.submit(request).expect("room")).await;
            let check = handle.self_check().await.expect("it lives");
            assert_eq!(check.violation, None);
            assert!(check.accounts.energy <= all, "more than was measured");
            if check.accounts.energy == all {
                break;
            }
            assert!(begun.elapsed() < Duration::from_secs(60), "{} of {all}", check.accounts.energy);
        }
        let snapshot = handle.snapshot();
        let gpu = snapshot.gpu.as_ref().expect("it is asked");
        assert_eq!((gpu.device.name.as_str(), gpu.energy), ("fake", Some(all)));
        assert_eq!(gpu.sample.and_then(|sample| sample.busy_percent), Some(7));
        assert!(snapshot.cost.total.all.joules_loaded.is_some_and(|joules| joules > 0.0));
    }

    #[test]
    fn a_place_is_kept_until_it_is_used_or_dropped() {
        let (handle, _thread, control) =
            engine(EngineOptions { queue_requests_max: 1, ..EngineOptions::default() });
        control.pause();
        let place = handle.reserve(0).expect("room");
        assert!(matches!(handle.look(0), Err(SubmitError::QueueFull { .. })));
        assert!(matches!(handle.submit(test_request(1)), Err(SubmitError::QueueFull { .. })));
        drop(place);
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _place = handle.reserve(0).expect("it was given back");
            panic!("on purpose");
        }));
        assert!(panicked.is_err());
        let place = handle.reserve(0).expect("a panic gives it back");
        let _running = handle.submit_at(Some(place), test_request(1)).expect("its place was kept");
        control.resume();
    }

    #[tokio::test]
    async fn dropping_the_receiver_cancels() {
        let (handle, _thread, control) = engine(EngineOptions { max_seqs: 1, ..EngineOptions::default() });
        control.pause();
        let mut running = handle.submit(Request { max_tokens: 200, ..test_request(8) }).expect("room");
        let queued = handle.submit(test_request(8)).expect("room");
        let last = handle.submit(Request { max_tokens: 2, ..test_request(8) }).expect("room");
        control.allow(3);
        let Some(Event::Token { .. }) = running.events.recv().await else { panic!("a token comes first") };
        drop((running, queued));
        control.resume();
        let (tokens, _, _) = collect(last).await;
        assert_eq!(tokens, 2);
        let check = handle.self_check().await.expect("it lives");
        assert_eq!((check.violation, check.requests), (None, 0));
        assert_eq!(
            handle.snapshot().counters.finished[crate::snapshot::finish_index(FinishReason::Cancelled)],
            2
        );
    }

    #[tokio::test]
    async fn a_drain_past_its_deadline_tells_the_rest() {
        let (handle, thread, control) = engine(EngineOptions::default());
        control.pause();
        let submission = handle.submit(Request { max_tokens: 200, ..test_request(8) }).expect("room");
        handle.drain(Duration::ZERO);
        control.resume();
        let (_, reasons, _) = collect(submission).await;
        assert_eq!(reasons, [FinishReason::Shutdown]);
        assert_eq!(thread.join(), Ended::Drained);
    }

    #[tokio::test]
    async fn a_step_fault_ends_its_requests_and_the_engine_goes_on() {
        let (handle, _thread, control) = engine(EngineOptions::default());
        control.inject(FakeFault::Step("torn".to_owned()));
        let (_, reasons, report) = collect(handle.submit(test_request(8)).expect("room")).await;
        assert_eq!(
            (reasons, report.fault),
            (vec![FinishReason::Fault], Some("step failed: torn".to_owned()))
        );
        let (tokens, _, _) = collect(handle.submit(test_request(8)).expect("room")).await;
        assert_eq!(tokens, 8);
    }

    #[tokio::test]
    async fn a_panicking_runner_ends_the_engine_after_telling_everyone() {
        let (handle, thread, control) = engine(EngineOptions { max_seqs: 1, ..EngineOptions::default() });
        control.pause();
        control.inject(FakeFault::Panic);
        let requests: Vec<_> = (0..3).map(|_| handle.submit(test_request(8)).expect("room")).collect();
        control.resume();
        for submission in requests {
            let (_, _, report) = collect(submission).await;
            assert!(report.fault.expect("a reason").contains("the script says so"));
        }
        assert!(matches!(thread.join(), Ended::Failed(_)));
        assert!(matches!(handle.healthy(), Err(Stalled::Dead(_))));
        assert_eq!(handle.submit(test_request(1)).expect_err("gone"), SubmitError::ShuttingDown);
    }

    #[tokio::test]
    async fn a_step_that_hangs_is_unhealthy() {
        let options = EngineOptions { stall_timeout: Duration::ZERO, ..EngineOptions::default() };
        let (handle, _thread, control) = engine(options);
        control.pause();
        let submission = handle.submit(test_request(8)).expect("room");
        assert!(matches!(handle.healthy(), Err(Stalled::Stuck(_))));
        control.resume();
        collect(submission).await;
    }

    #[tokio::test]
    async fn an_engine_that_is_given_up_leaves_no_one_waiting() {
        let (handle, thread, control) = engine(EngineOptions { max_seqs: 1, ..EngineOptions::default() });
        control.pause();
        let requests: Vec<_> = (0..3).map(|_| handle.submit(test_request(8)).expect("room")).collect();
        handle.give_up("it hangs");
        for submission in requests {
            let (tokens, _, report) = collect(submission).await;
            assert_eq!((tokens, report.fault.as_deref()), (0, Some("it hangs")));
        }
        assert_eq!(handle.ended().await, Ended::Failed("it hangs".to_owned()));
        assert_eq!(handle.healthy(), Err(Stalled::Dead("it hangs".to_owned())));
        assert_eq!(handle.submit(test_request(1)).expect_err("gone"), SubmitError::ShuttingDown);
        // Should it move again, it finds nobody, and what it says of its end comes too late.
        control.resume();
        handle.drain(Duration::ZERO);
        assert_eq!(thread.join(), Ended::Drained);
        assert_eq!(handle.ended().await, Ended::Failed("it hangs".to_owned()));
    }

    #[test]
    fn dropping_the_last_handle_ends_the_thread() {
        let (handle, thread, _) = engine(EngineOptions::default());
        drop(handle.clone());
        drop(handle);
        assert_eq!(thread.join(), Ended::Drained);
    }

    /// Clients that read a little and go, at every point of a request's life, beside some that stay: what is left is nothing.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn clients_that_go_leave_nothing() {
        let prices = crate::options::Prices { per_hour: Some(777_777_777_777), ..Default::default() };
        let options = EngineOptions { max_seqs: 6, step_tokens: 24, prices, ..EngineOptions::default() };
        let (handle, _thread, _) = engine(options);
        let clients = (0..150u32).map(|i| {
            let handle = handle.clone();
            tokio::spawn(async move {
                let request = Request { n: 1 + i % 3, max_tokens: 40, ..test_request(1 + i * 7 % 90) };
                let mut submission = handle.submit(request).expect("the queue has room for all");
                if i % 5 == 0 {
                    let (tokens, _, report) = collect(submission).await;
                    assert_eq!(tokens as u32, report.completion_tokens);
                    return;
                }
                for _ in 0..i * 13 % 29 {
                    submission.events.recv().await;
                }
            })
        });
        for client in clients.collect::<Vec<_>>() {
            client.await.expect("no client fails");
        }
        // Two round trips: the first may overtake the last client's leaving, which is noticed at the top of a step.
        handle.self_check().await.expect("it lives");
        let check = handle.self_check().await.expect("it lives");
        assert_eq!((check.violation, check.requests, check.sequences), (None, 0, 0));
        assert!(check.blocks.iter().all(|b| b.referenced == 0));
        assert_eq!(handle.snapshot().gauges.queue_requests, 0);
        let ended: u64 = handle.snapshot().counters.finished.iter().sum();
        assert_eq!(ended, 300);
    }
}
