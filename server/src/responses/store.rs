//! Responses that can be retrieved and continued: bounded in number and bytes, each for a while, each for its API key.
//!
//! - The oldest go first. What runs in the background is not counted before it ends: the engine's queue bounds it.
//! - A conversation is the turns it consists of. Responses share turns, so a conversation goes on when its earlier responses are gone,
//!   and a turn takes room until the last response that has it is gone.
//!
//! Absent on purpose: a clock. Nothing is written to a disk.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use tokio::sync::{Notify, watch};

use super::items::Item;

/// What is kept.
#[derive(Clone, Copy, Debug)]
pub struct StoreLimits {
    /// Responses; 0 keeps none.
    pub entries: usize,
    /// Bytes of their JSON and of their conversations.
    pub bytes: usize,
    /// From their end.
    pub keep: Duration,
}

impl Default for StoreLimits {
    fn default() -> Self {
        Self { entries: 1000, bytes: 64 << 20, keep: Duration::from_secs(3600) }
    }
}

/// Beside its text, what an entry takes: about.
const OVERHEAD: usize = 256;

/// Whose a response is, and its id.
pub(crate) type Key = ([u8; 32], String);

/// The items that one request added to a conversation, and those of its answer.
pub(crate) struct Turn {
    items: Charged,
}

impl Turn {
    /// The items again.
    pub(crate) fn items(&self) -> serde_json::Result<Vec<Item>> {
        serde_json::from_slice(&self.items.bytes)
    }
}

/// A conversation, turn by turn.
pub(crate) type Turns = Vec<Arc<Turn>>;

/// Bytes that are counted for as long as they are there.
struct Charged {
    bytes: Bytes,
    charge: usize,
    total: Arc<AtomicUsize>,
}

impl Drop for Charged {
    fn drop(&mut self) {
        self.total.fetch_sub(self.charge, Ordering::Relaxed);
    }
}

/// A response that has ended.
#[derive(Clone)]
pub(crate) struct Ended {
    /// Its JSON.
    pub(crate) body: Bytes,
    /// It ran in the background.
    pub(crate) background: bool,
    /// A conversation can go on from here.
    pub(crate) can_be_continued: bool,
    /// What was said up to its own input.
    pub(crate) before: Turns,
    /// Its own input and output.
    pub(crate) turn: Arc<Turn>,
    /// How many items of its turn are input.
    pub(crate) inputs: usize,
}

impl Ended {
    /// What it is an answer to.
    pub(crate) fn input_items(&self) -> serde_json::Result<Vec<Item>> {
        let mut items = Vec::new();
        for turn in &self.before {
            items.extend(turn.items()?);
        }
        items.extend(self.turn.items()?.into_iter().take(self.inputs));
        Ok(items)
    }
}

/// What there is of an id.
pub(crate) enum Found {
    /// It runs in the background.
    Running(Bytes),
    Ended(Ended),
}

/// A response in the background.
struct Running {
    body: Bytes,
    cancel: Arc<Notify>,
    /// Closed when it has ended.
    ended: watch::Receiver<()>,
}

struct Stored {
    response: Ended,
    _body: Charged,
    sequence: u64,
    expires: Instant,
}

#[derive(Default)]
struct Inner {
    ended: HashMap<Key, Stored>,
    /// By age.
    order: BTreeMap<u64, Key>,
    next: u64,
    running: HashMap<Key, Running>,
}

/// All of them.
pub(crate) struct Store {
    limits: StoreLimits,
    inner: Mutex<Inner>,
    bytes: Arc<AtomicUsize>,
}

impl Store {
    /// An empty one.
    pub(crate) fn new(limits: StoreLimits) -> Self {
        Self { limits, inner: Mutex::default(), bytes: Arc::default() }
    }

    /// Whether anything is kept.
    pub(crate) fn keeps(&self) -> bool {
        self.limits.entries > 0
    }

    /// Responses that ended and are kept, and the bytes they take.
    pub(crate) fn size(&self, now: Instant) -> (usize, usize) {
        let entries = self.lock(now).ended.len();
        (entries, self.bytes.load(Ordering::Relaxed))
    }

    /// A turn of these items.
    pub(crate) fn turn(&self, items: &[&Item]) -> Arc<Turn> {
        let json = serde_json::to_vec(items).expect("strings and numbers");
        Arc::new(Turn { items: self.charge(json.into()) })
    }

    fn charge(&self, bytes: Bytes) -> Charged {
        let charge = bytes.len() + OVERHEAD;
        self.total().fetch_add(charge, Ordering::Relaxed);
        Charged { bytes, charge, total: self.bytes.clone() }
    }

    fn total(&self) -> &AtomicUsize {
        &self.bytes
    }

    /// Keeps a response that has ended.
    pub(crate) fn put(&self, key: Key, response: Ended, now: Instant) {
        let body = self.charge(response.body.clone());
        let mut inner = self.lock(now);
        inner.running.remove(&key);
        let sequence = inner.next;
        inner.next += 1;
        let expires = now + self.limits.keep;
        inner.order.insert(sequence, key.clone());
        inner.ended.insert(key, Stored { response, _body: body, sequence, expires });
        while inner.ended.len() > self.limits.entries
            || self.total().load(Ordering::Relaxed) > self.limits.bytes
        {
            let Some((_, oldest)) = inner.order.pop_first() else { break };
            inner.ended.remove(&oldest);
        }
    }

    /// What there is of an id.
    pub(crate) fn find(&self, key: &Key, now: Instant) -> Option<Found> {
        let inner = self.lock(now);
        let running = inner.running.get(key).map(|running| Found::Running(running.body.clone()));
        running.or_else(|| inner.ended.get(key).map(|stored| Found::Ended(stored.response.clone())))
    }

    /// Forgets a response, and ends it if it runs; whether there was one.
    pub(crate) fn delete(&self, key: &Key, now: Instant) -> bool {
        let mut inner = self.lock(now);
        if let Some(running) = inner.running.remove(key) {
            running.cancel.notify_one();
            return true;
        }
        let Some(stored) = inner.ended.remove(key) else { return false };
        inner.order.remove(&stored.sequence);
        true
    }

    /// A response begins in the background; what is returned tells it to end.
    pub(crate) fn run(self: &Arc<Self>, key: Key, body: Bytes, now: Instant) -> Run {
        let (alive, ended) = watch::channel(());
        let cancel = Arc::new(Notify::new());
        let running = Running { body, cancel: cancel.clone(), ended };
        self.lock(now).running.insert(key.clone(), running);
        Run { store: self.clone(), key, cancel, _alive: alive }
    }

    /// Asks a response in the background to end and waits until it has.
    pub(crate) async fn cancel(&self, key: &Key, now: Instant) {
        let ended = self.lock(now).running.get(key).map(|running| {
            running.cancel.notify_one();
            running.ended.clone()
        });
        if let Some(mut ended) = ended {
            // Its other end sends nothing: it is dropped.
            while ended.changed().await.is_ok() {}
        }
    }

    /// Without what has expired.
    fn lock(&self, now: Instant) -> MutexGuard<'_, Inner> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(oldest) = inner.order.first_entry() {
            let key = oldest.get().clone();
            if inner.ended.get(&key).is_some_and(|stored| stored.expires > now) {
                break;
            }
            inner.order.pop_first();
            inner.ended.remove(&key);
        }
        inner
    }
}

/// A response in the background, for as long as it runs.
pub(crate) struct Run {
    store: Arc<Store>,
    key: Key,
    cancel: Arc<Notify>,
    _alive: watch::Sender<()>,
}

impl Run {
    /// Somebody wants it to end.
    pub(crate) async fn cancelled(&self) {
        self.cancel.notified().await;
    }

    /// It is further than it was.
    pub(crate) fn update(&self, body: Bytes, now: Instant) {
        if let Some(running) = self.store.lock(now).running.get_mut(&self.key) {
            running.body = body;
        }
    }

    /// It has ended; it is kept unless it was deleted.
    pub(crate) fn end(self, response: Ended, now: Instant) {
        if self.store.lock(now).running.contains_key(&self.key) {
            self.store.put(self.key.clone(), response, now);
        }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // If it did not come to an end.
        self.store.inner.lock().unwrap_or_else(PoisonError::into_inner).running.remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::super::items::{ItemPart, ItemRole, ItemStatus};
    use super::*;

    fn key(owner: u8, id: &str) -> Key {
        ([owner; 32], id.to_owned())
    }

    fn item(text: &str) -> Item {
        let content = vec![ItemPart::InputText { text: text.to_owned() }];
        Item::Message { id: "msg".to_owned(), role: ItemRole::User, status: ItemStatus::Completed, content }
    }

    fn ended(store: &Store, before: Turns, text: &str) -> Ended {
        let turn = store.turn(&[&item(text)]);
        let body = Bytes::from_static(b"{}");
        Ended { body, background: false, can_be_continued: true, before, turn, inputs: 1 }
    }

    fn is_there(store: &Store, key: &Key, now: Instant) -> bool {
        store.find(key, now).is_some()
    }

    #[test]
    fn the_oldest_go_first_and_all_go_in_time() {
        let limits = StoreLimits { entries: 2, bytes: 1 << 20, keep: Duration::from_secs(10) };
        let (store, start) = (Store::new(limits), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        for (i, id) in ["a", "b", "c"].iter().enumerate() {
            store.put(key(0, id), ended(&store, Vec::new(), id), at(i as u64));
        }
        assert!(!is_there(&store, &key(0, "a"), at(2)));
        assert!(!is_there(&store, &key(1, "b"), at(2)), "another key's");
        assert!(is_there(&store, &key(0, "b"), at(10)));
        assert!(!is_there(&store, &key(0, "b"), at(11)));
        assert!(store.delete(&key(0, "c"), at(11)) && !store.delete(&key(0, "c"), at(11)));
        assert_eq!(store.size(at(11)), (0, 0));
    }

    #[test]
    fn bytes_are_bounded_and_turns_are_counted_once() {
        let (store, now) =
            (Store::new(StoreLimits { bytes: 10_000, ..StoreLimits::default() }), Instant::now());
        let long = "x".repeat(3000);
        store.put(key(0, "a"), ended(&store, Vec::new(), &long), now);
        let (_, one) = store.size(now);
        let Some(Found::Ended(first)) = store.find(&key(0, "a"), now) else { panic!("it is there") };
        let before = vec![first.turn.clone()];
        drop(first);
        store.put(key(0, "b"), ended(&store, before, "short"), now);
        assert!(store.size(now).1 < one + 1000, "the turn is shared");
        // The conversation outlives its first response.
        assert!(store.delete(&key(0, "a"), now));
        let Some(Found::Ended(second)) = store.find(&key(0, "b"), now) else { panic!("it is there") };
        assert_eq!(second.before[0].items().unwrap().len(), 1);
        drop(second);
        for i in 0..10 {
            store.put(key(0, &format!("c{i}")), ended(&store, Vec::new(), &long), now);
            assert!(store.size(now).1 <= 10_000);
        }
        assert!(is_there(&store, &key(0, "c9"), now) && !is_there(&store, &key(0, "b"), now));
        // What is larger than everything is not kept, and nothing is left of it.
        store.put(key(0, "d"), ended(&store, Vec::new(), &"x".repeat(20_000)), now);
        assert_eq!(store.size(now), (0, 0));
    }

    #[tokio::test]
    async fn what_runs_is_found_cancelled_and_deleted() {
        let (store, now) = (Arc::new(Store::new(StoreLimits::default())), Instant::now());
        let run = store.run(key(0, "a"), Bytes::from_static(b"queued"), now);
        run.update(Bytes::from_static(b"in_progress"), now);
        assert!(
            matches!(store.find(&key(0, "a"), now), Some(Found::Running(body)) if body == "in_progress"[..])
        );
        let task = tokio::spawn({
            let store = store.clone();
            async move {
                run.cancelled().await;
                let response = ended(&store, Vec::new(), "a");
                run.end(response, now);
            }
        });
        store.cancel(&key(0, "a"), now).await;
        assert!(matches!(store.find(&key(0, "a"), now), Some(Found::Ended(_))));
        task.await.unwrap();
        let run = store.run(key(0, "b"), Bytes::new(), now);
        assert!(store.delete(&key(0, "b"), now));
        run.cancelled().await;
        run.end(ended(&store, Vec::new(), "b"), now);
        assert!(!is_there(&store, &key(0, "b"), now), "it was deleted");
        drop(store.run(key(0, "c"), Bytes::new(), now));
        assert!(!is_there(&store, &key(0, "c"), now), "it was lost");
    }
}
