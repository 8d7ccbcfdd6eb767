//! Threads that run one phase after another with barriers of nanoseconds between them.
//!
//! A phase is one closure, called once by every worker; the calling thread is worker 0. Between phases the
//! workers spin for a short while, then yield, then park, so that an idle server uses no processor and an
//! oversubscribed machine makes progress. A panic in a worker ends the phase and is raised again on the caller.
//!
//! Memory ordering. The caller writes `job` and `pending`, then stores `epoch`; a worker that sees the new epoch
//! therefore sees the job. Each worker decrements `pending` after its last use of the job; the caller returns,
//! and may drop what the job borrows, only after it has read 0, so it sees all the workers wrote. Parking is
//! Dekker's pattern: the sleeper raises its flag and looks again, the waker writes and then looks at the flag;
//! all four are sequentially consistent, so at least one of them sees the other. Stale wake-ups only make a
//! loop turn once more.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::marker::PhantomData;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

/// After this long a waiting thread lets others run between looks.
const SPIN: Duration = Duration::from_micros(20);
/// After this long a waiting thread parks: longer than the gaps within a step, shorter than those between steps.
const PARK: Duration = Duration::from_micros(150);

/// Threads that this process may keep busy: its affinity mask and its cgroup's quota (v1 and v2) are honoured.
pub fn available_threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Threads that a control group's quota leaves beside so many that compute; None if there is no quota, for then the system's
/// priorities say who waits.
pub(super) fn spare_threads(computing: usize) -> Option<usize> {
    beside(computing, available_threads(), allowed_processors().len())
}

/// Of `available` threads on `allowed` processors: fewer are what a quota leaves.
fn beside(computing: usize, available: usize, allowed: usize) -> Option<usize> {
    (available < allowed).then(|| available.saturating_sub(computing))
}

/// Its own cache line, and its neighbour's that the prefetcher pulls in.
#[derive(Default)]
#[repr(align(128))]
struct Line<T>(T);

type Task<'a> = &'a (dyn Fn(usize) + Sync);

struct Shared {
    /// Phases started so far.
    epoch: Line<AtomicUsize>,
    /// Workers that have not finished the current phase.
    pending: Line<AtomicUsize>,
    /// The current phase's closure, its lifetime erased; valid while `pending` is above 0.
    job: UnsafeCell<Option<Task<'static>>>,
    stop: AtomicBool,
    /// One per spawned worker.
    parked: Vec<Line<AtomicBool>>,
    caller_parked: Line<AtomicBool>,
    caller: Mutex<Option<Thread>>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: `job` is the only field that is not `Sync`. It is written by the one thread that can start phases
// (`Pool` is not `Sync`) while no worker is in a phase, and read by workers only within one; the module's comment
// says which atomics order the two. The closure behind it is `Sync`.
unsafe impl Sync for Shared {}

/// A fixed set of threads.
///
/// Not `Sync`: a phase cannot be started from within a phase or by two threads at once.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    handles: Vec<JoinHandle<()>>,
    not_sync: PhantomData<Cell<()>>,
}

impl Pool {
    /// `threads` workers, of which the caller of [`Pool::run`] is one. `pin` binds the others to one processor
    /// each, leaving the first allowed processor to the caller, whose affinity is not touched (threads that it
    /// starts later would inherit it).
    pub(crate) fn new(threads: usize, pin: bool) -> std::io::Result<Self> {
        let others = threads.max(1) - 1;
        let shared = Arc::new(Shared {
            epoch: Line::default(),
            pending: Line::default(),
            job: UnsafeCell::new(None),
            stop: AtomicBool::new(false),
            parked: (0..others).map(|_| Line::default()).collect(),
            caller_parked: Line::default(),
            caller: Mutex::new(None),
            panic: Mutex::new(None),
        });
        let processors = if pin { allowed_processors() } else { Vec::new() };
        let mut pool = Self { shared, handles: Vec::with_capacity(others), not_sync: PhantomData };
        for i in 0..others {
            let shared = Arc::clone(&pool.shared);
            let processor = (!processors.is_empty()).then(|| processors[(i + 1) % processors.len()]);
            let body = move || {
                if let Some(p) = processor {
                    pin_current_thread(p);
                }
                shared.work(i);
            };
            // If one cannot be started, dropping `pool` stops those before it.
            pool.handles.push(std::thread::Builder::new().name(format!("frugal-cpu-{}", i + 1)).spawn(body)?);
        }
        Ok(pool)
    }

    /// Number of workers, the caller included.
    pub(crate) fn threads(&self) -> usize {
        self.handles.len() + 1
    }

    /// Calls `phase(worker)` once on every worker and returns when all are done.
    ///
    /// # Panics
    /// With a worker's panic, after all have finished.
    pub(crate) fn run(&self, phase: Task<'_>) {
        if self.handles.is_empty() {
            return phase(0);
        }
        let s = &*self.shared;
        // SAFETY: Only the lifetime changes. Workers use the reference between the epoch's increase and their
        // decrement of `pending`, and this function does not return or unwind before `pending` is 0.
        let job = unsafe { std::mem::transmute::<Task<'_>, Task<'static>>(phase) };
        // SAFETY: No worker is in a phase here (the previous `run` waited for `pending` to be 0), and no other
        // thread can be in `run`, because `Pool` is not `Sync`.
        unsafe { *s.job.get() = Some(job) };
        s.pending.0.store(self.handles.len(), Ordering::Relaxed);
        s.epoch.0.fetch_add(1, Ordering::SeqCst);
        self.wake();
        let own = catch_unwind(AssertUnwindSafe(|| phase(0)));
        s.wait_for_workers();
        let theirs = s.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(panic) = own.err().or(theirs) {
            resume_unwind(panic);
        }
    }

    /// Calls `work(worker, item)` for every item below `items`, in ascending order of start; items go to
    /// whichever worker is free.
    pub(crate) fn for_each(&self, items: usize, work: impl Fn(usize, usize) + Sync) {
        if items <= 1 || self.handles.is_empty() {
            return (0..items).for_each(|i| work(0, i));
        }
        let next = Line(AtomicUsize::new(0));
        self.run(&|worker| {
            loop {
                let i = next.0.fetch_add(1, Ordering::Relaxed);
                if i >= items {
                    return;
                }
                work(worker, i);
            }
        });
    }

    /// [`Pool::for_each`] for items that lie behind one another in memory: each worker goes through a stretch of them, so that
    /// it reads on where it was and what the processor fetches ahead is what it needs; then it takes from the end of the longest
    /// stretch left.
    pub(crate) fn for_each_near(&self, items: usize, work: impl Fn(usize, usize) + Sync) {
        let workers = self.threads();
        if items <= 1 || workers == 1 {
            return (0..items).for_each(|i| work(0, i));
        }
        let stretches: Vec<_> = (0..workers)
            .map(|w| Line(Stretch::new(items * w / workers..items * (w + 1) / workers)))
            .collect();
        self.run(&|worker| {
            while let Some(i) = stretches[worker].0.take_first() {
                work(worker, i);
            }
            while let Some(longest) = stretches.iter().max_by_key(|s| s.0.len()).filter(|s| s.0.len() > 0) {
                if let Some(i) = longest.0.take_last() {
                    work(worker, i);
                }
            }
        });
    }

    /// [`Pool::for_each`] over disjoint parts of `data`: `work(worker, part, values)`, `len` values each but the last.
    pub(crate) fn for_each_part<T: Send>(
        &self,
        data: &mut [T],
        len: usize,
        work: impl Fn(usize, usize, &mut [T]) + Sync,
    ) {
        let total = data.len();
        let data = Disjoint::new(data);
        self.for_each(total.div_ceil(len), |worker, i| {
            // SAFETY: Parts of different items do not overlap, and each item is taken once.
            work(worker, i, unsafe { data.slice(i * len, len.min(total - i * len)) });
        });
    }

    fn wake(&self) {
        for (flag, handle) in self.shared.parked.iter().zip(&self.handles) {
            if flag.0.load(Ordering::SeqCst) {
                handle.thread().unpark();
            }
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.epoch.0.fetch_add(1, Ordering::SeqCst);
        self.wake();
        for h in self.handles.drain(..) {
            // A worker catches the panics of phases; one of its own has nothing more to say here.
            let _ = h.join();
        }
    }
}

impl Shared {
    fn work(&self, worker: usize) {
        let mut seen = 0;
        loop {
            let flag = &self.parked[worker].0;
            wait(|| self.epoch.0.load(Ordering::SeqCst) != seen, flag);
            // Phases start only when all workers are done, so an epoch cannot be missed.
            seen = seen.wrapping_add(1);
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
            // SAFETY: The epoch was seen, so the job was written before; it is not written again, and what it
            // borrows lives, until `pending` is decremented below.
            let job = unsafe { *self.job.get() };
            let result = catch_unwind(AssertUnwindSafe(|| {
                if let Some(phase) = job {
                    phase(worker + 1);
                }
            }));
            if let Err(panic) = result {
                let mut first = self.panic.lock().unwrap_or_else(PoisonError::into_inner);
                first.get_or_insert(panic);
            }
            if self.pending.0.fetch_sub(1, Ordering::SeqCst) == 1
                && self.caller_parked.0.load(Ordering::SeqCst)
            {
                let caller = self.caller.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(thread) = &*caller {
                    thread.unpark();
                }
            }
        }
    }

    fn wait_for_workers(&self) {
        let done = || self.pending.0.load(Ordering::SeqCst) == 0;
        if spin(done) {
            return;
        }
        *self.caller.lock().unwrap_or_else(PoisonError::into_inner) = Some(std::thread::current());
        park(done, &self.caller_parked.0);
    }
}

/// Items that are not yet taken: first in the upper half, end in the lower. Only ever taken from, so a look at its length
/// that is out of date is too long.
struct Stretch(AtomicU64);

impl Stretch {
    fn new(items: Range<usize>) -> Self {
        assert!(items.end <= u32::MAX as usize, "items are counted in 32 bits");
        Self(AtomicU64::new((items.start as u64) << 32 | items.end as u64))
    }

    fn parts(value: u64) -> (u64, u64) {
        (value >> 32, value & u64::from(u32::MAX))
    }

    fn len(&self) -> u64 {
        let (first, end) = Self::parts(self.0.load(Ordering::Relaxed));
        end - first
    }

    fn take_first(&self) -> Option<usize> {
        self.take(|value| value + (1 << 32)).map(|(first, _)| first as usize)
    }

    fn take_last(&self) -> Option<usize> {
        self.take(|value| value - 1).map(|(_, end)| end as usize - 1)
    }

    /// What was there before, unless it was empty.
    fn take(&self, less: impl Fn(u64) -> u64) -> Option<(u64, u64)> {
        let some = |value| (Self::parts(value).0 < Self::parts(value).1).then(|| less(value));
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, some).ok().map(Self::parts)
    }
}

fn wait(done: impl Fn() -> bool, flag: &AtomicBool) {
    if !spin(&done) {
        park(done, flag);
    }
}

/// Looks often for a while; false if that was not enough.
fn spin(done: impl Fn() -> bool) -> bool {
    let looks = |n: usize| {
        (0..n).any(|_| {
            std::hint::spin_loop();
            done()
        })
    };
    if done() || looks(64) {
        return true;
    }
    let start = Instant::now();
    loop {
        if looks(32) {
            return true;
        }
        let waited = start.elapsed();
        if waited > PARK {
            return false;
        }
        if waited > SPIN {
            std::thread::yield_now();
        }
    }
}

/// Sleeps until `done`; whoever makes it true must then look at `flag` and unpark.
fn park(done: impl Fn() -> bool, flag: &AtomicBool) {
    flag.store(true, Ordering::SeqCst);
    while !done() {
        std::thread::park();
    }
    flag.store(false, Ordering::SeqCst);
}

/// A slice that several workers write, each in places of its own.
pub(crate) struct Disjoint<'a, T> {
    start: *mut T,
    len: usize,
    life: PhantomData<&'a mut [T]>,
}

// SAFETY: The only access is `slice`, whose callers promise that no two slices alive at a time overlap; then
// sharing it is handing out parts of a `&mut [T]` to several threads, which `T: Send` allows.
unsafe impl<T: Send> Sync for Disjoint<'_, T> {}

impl<'a, T> Disjoint<'a, T> {
    pub(crate) fn new(data: &'a mut [T]) -> Self {
        Self { start: data.as_mut_ptr(), len: data.len(), life: PhantomData }
    }

    /// `len` values from `at`.
    ///
    /// # Safety
    /// No two slices alive at the same time may overlap.
    #[expect(clippy::mut_from_ref, reason = "that is its purpose; callers keep the slices apart")]
    pub(crate) unsafe fn slice(&self, at: usize, len: usize) -> &mut [T] {
        assert!(at <= self.len && len <= self.len - at, "part of the slice");
        // SAFETY: In bounds by the assertion, unaliased by the caller's promise, alive by `life`.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(at), len) }
    }
}

/// Those of the affinity mask.
#[cfg(target_os = "linux")]
fn allowed_processors() -> Vec<usize> {
    // SAFETY: `cpu_set_t` is a plain array of bits, for which zero is a value; the call writes at most its size.
    let set = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        if libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set) != 0 {
            return Vec::new();
        }
        set
    };
    // SAFETY: The index is below the set's size.
    (0..libc::CPU_SETSIZE as usize).filter(|&i| unsafe { libc::CPU_ISSET(i, &set) }).collect()
}

#[cfg(target_os = "linux")]
fn pin_current_thread(processor: usize) {
    // SAFETY: As in `allowed_processors`, from which `processor` is. A refusal only means no pinning.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(processor, &mut set);
        if libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set) != 0 {
            tracing::warn!(processor, "a worker thread could not be pinned");
        }
    }
}

/// None is known: nothing is pinned, and there is no quota.
#[cfg(not(target_os = "linux"))]
fn allowed_processors() -> Vec<usize> {
    Vec::new()
}

#[cfg(not(target_os = "linux"))]
fn pin_current_thread(_processor: usize) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_worker_runs_every_phase_once_and_sees_the_phase_before() {
        for threads in [1, 2, 3, 7] {
            let pool = Pool::new(threads, threads == 3).unwrap();
            assert_eq!(pool.threads(), threads);
            let mut slots = vec![0_u64; threads];
            for round in 1..=300 {
                if round % 100 == 0 {
                    let awake = || pool.shared.parked.iter().any(|p| !p.0.load(Ordering::SeqCst));
                    while awake() {
                        std::thread::yield_now();
                    }
                }
                let before: u64 = slots.iter().sum();
                assert_eq!(before, (round - 1) * threads as u64);
                let shared = Disjoint::new(&mut slots);
                // SAFETY: One slot a worker.
                pool.run(&|w| unsafe { shared.slice(w, 1)[0] += 1 });
            }
            assert!(slots.iter().all(|&n| n == 300), "{slots:?}");
        }
    }

    #[test]
    fn a_quota_is_what_leaves_fewer_threads_than_processors() {
        for (computing, available, allowed, spare) in [
            (8, 8, 8, None),
            (4, 8, 8, None),
            (4, 4, 16, Some(0)),
            (3, 4, 16, Some(1)),
            (6, 4, 16, Some(0)),
            // Where the mask is not known.
            (8, 8, 0, None),
        ] {
            assert_eq!(
                beside(computing, available, allowed),
                spare,
                "{computing} of {available} on {allowed}"
            );
        }
    }

    #[test]
    fn every_item_is_done_once() {
        let pool = Pool::new(4, false).unwrap();
        for items in [0, 1, 2, 3, 5, 64, 1000] {
            let hits: Vec<AtomicU64> = (0..items).map(|_| AtomicU64::new(0)).collect();
            pool.for_each(items, |_, i| {
                hits[i].fetch_add(1, Ordering::Relaxed);
            });
            assert!(hits.iter().all(|h| h.load(Ordering::Relaxed) == 1));
            pool.for_each_near(items, |worker, i| {
                hits[i].fetch_add(1, Ordering::Relaxed);
                // One that is slow: the others take what it leaves.
                if worker == 1 {
                    std::thread::yield_now();
                }
            });
            assert!(hits.iter().all(|h| h.load(Ordering::Relaxed) == 2));
        }
        let mut data = vec![0_usize; 103];
        pool.for_each_part(&mut data, 10, |_, part, values| values.fill(part));
        assert!(data.iter().enumerate().all(|(i, &part)| part == i / 10));
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Pool::new(3, false).unwrap();
        for guilty in [0, 1, 2] {
            let result = catch_unwind(AssertUnwindSafe(|| {
                pool.run(&|w| assert_ne!(w, guilty, "worker {w} fails"));
            }));
            let panic = result.expect_err("the panic is raised again");
            assert!(
                panic
                    .downcast_ref::<String>()
                    .expect("formatted")
                    .contains(&format!("worker {guilty} fails"))
            );
        }
        let ran = AtomicU64::new(0);
        pool.run(&|_| {
            ran.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(ran.into_inner(), 3);
    }

    #[test]
    fn more_threads_than_processors_make_progress() {
        let pool = Pool::new(4 * available_threads().min(8) + 1, false).unwrap();
        let count = AtomicU64::new(0);
        for _ in 0..50 {
            pool.for_each(100, |_, _| {
                count.fetch_add(1, Ordering::Relaxed);
            });
        }
        assert_eq!(count.into_inner(), 5000);
    }
}
