//! Responses that can be retrieved and continued: bounded in number and bytes, each for a while, each for its API key.
//!
//! - Where there is too much, the oldest response of the key that has most of it goes: no key takes another's room while it has more
//!   itself. What runs in the background is not counted before it ends: the engine's queue bounds it. The turns that it goes on from are.
//! - A conversation is the turns it consists of. Responses share turns, so a conversation goes on when its earlier responses are gone,
//!   and a turn takes room until the last response that has it is gone.
//! - An item is found by its id as long as a response is kept that was given it or has it as output.
//!
//! Absent on purpose: a clock. Nothing is written to a disk.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
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

/// The same of an item that is found by its id.
const ITEM_OVERHEAD: usize = 128;

/// Whose something is.
type Domain = [u8; 32];

/// Whose a response is, and its id.
pub(crate) type Key = (Domain, String);

/// The items that one request added to a conversation, and those of its answer.
pub(crate) struct Turn {
    items: Charged,
    ids: Vec<Arc<str>>,
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
    /// Of their owner.
    total: Arc<AtomicUsize>,
}

impl Charged {
    fn new(bytes: Bytes, overhead: usize, total: &Arc<AtomicUsize>) -> Self {
        let charge = bytes.len() + overhead;
        total.fetch_add(charge, Ordering::Relaxed);
        Self { bytes, charge, total: total.clone() }
    }
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

/// A response that runs in the background.
#[derive(Clone)]
pub(crate) struct Running {
    /// Its JSON.
    pub(crate) body: Bytes,
    /// What was said up to its own input.
    pub(crate) before: Turns,
    /// Its own input: a list of items, as JSON.
    pub(crate) input: Bytes,
}

/// What there is of an id.
pub(crate) enum Found {
    /// It runs in the background.
    Running(Running),
    Ended(Ended),
}

impl Found {
    /// Turns, and then so many items of a list.
    fn input(&self) -> (&Turns, &Bytes, usize) {
        match self {
            Self::Running(running) => (&running.before, &running.input, usize::MAX),
            Self::Ended(ended) => (&ended.before, &ended.turn.items.bytes, ended.inputs),
        }
    }

    /// Bytes of what it is an answer to, about.
    pub(crate) fn weight(&self) -> usize {
        let (before, last, _) = self.input();
        before.iter().map(|turn| turn.items.bytes.len()).sum::<usize>() + last.len()
    }

    /// What it is an answer to.
    pub(crate) fn input_items(&self) -> serde_json::Result<Vec<Item>> {
        let (before, last, inputs) = self.input();
        let mut items = Vec::new();
        for turn in before {
            items.extend(turn.items()?);
        }
        items.extend(serde_json::from_slice::<Vec<Item>>(last)?.into_iter().take(inputs));
        Ok(items)
    }
}

struct Runs {
    response: Running,
    cancel: Arc<Notify>,
    /// Closed when it has ended.
    ended: watch::Receiver<()>,
}

struct Stored {
    key: Key,
    response: Ended,
    _body: Charged,
    expires: Instant,
}

/// What a key has: keys are configured, so that there are few.
#[derive(Default)]
struct Owner {
    /// Of everything that is charged to it.
    bytes: Arc<AtomicUsize>,
    /// Its responses, by age.
    ended: BTreeSet<u64>,
}

#[derive(Default)]
struct Inner {
    /// By age.
    ended: BTreeMap<u64, Stored>,
    ages: HashMap<Key, u64>,
    /// Items of their turns; an id may be in several.
    items: BTreeSet<(Domain, Arc<str>, u64)>,
    owners: HashMap<Domain, Owner>,
    next: u64,
    running: HashMap<Key, Runs>,
}

impl Inner {
    fn bytes(&self) -> usize {
        self.owners.values().map(|owner| owner.bytes.load(Ordering::Relaxed)).sum()
    }

    /// The response that has to go, if there is too much.
    fn surplus(&self, limits: &StoreLimits) -> Option<u64> {
        let too_many = self.ended.len() > limits.entries;
        if !too_many && self.bytes() <= limits.bytes {
            return None;
        }
        let share = |owner: &Owner| match too_many {
            true => owner.ended.len(),
            false => owner.bytes.load(Ordering::Relaxed),
        };
        // Of those who have alike, whose is the oldest. Who has most of it in what still runs has nothing to give, and nobody else does.
        let rank = |owner: &Owner| (share(owner), owner.ended.first().copied().map(Reverse));
        self.owners.values().map(rank).max().and_then(|(_, oldest)| oldest).map(|Reverse(age)| age)
    }

    /// A response and all that leads to it goes.
    fn forget(&mut self, age: u64) {
        let Some(Stored { key, response, .. }) = self.ended.remove(&age) else { return };
        for id in &response.turn.ids {
            self.items.remove(&(key.0, id.clone(), age));
        }
        if let Some(owner) = self.owners.get_mut(&key.0) {
            owner.ended.remove(&age);
        }
        self.ages.remove(&key);
    }
}

/// All of them.
pub(crate) struct Store {
    limits: StoreLimits,
    inner: Mutex<Inner>,
}

impl Store {
    /// An empty one.
    pub(crate) fn new(limits: StoreLimits) -> Self {
        Self { limits, inner: Mutex::default() }
    }

    /// Whether anything is kept.
    pub(crate) fn keeps(&self) -> bool {
        self.limits.entries > 0
    }

    /// Responses that ended and are kept, and the bytes they take.
    pub(crate) fn size(&self, now: Instant) -> (usize, usize) {
        let inner = self.lock(now);
        (inner.ended.len(), inner.bytes())
    }

    /// A turn of these items.
    pub(crate) fn turn(&self, domain: Domain, items: &[&Item]) -> Arc<Turn> {
        let json = serde_json::to_vec(items).expect("strings and numbers");
        let ids: Vec<Arc<str>> = items.iter().map(|item| item.id().into()).collect();
        let found_by: usize = ids.iter().map(|id| id.len() + ITEM_OVERHEAD).sum();
        let mut inner = self.inner();
        let owner = inner.owners.entry(domain).or_default();
        Arc::new(Turn { items: Charged::new(json.into(), OVERHEAD + found_by, &owner.bytes), ids })
    }

    /// Keeps a response that has ended.
    pub(crate) fn put(&self, key: Key, response: Ended, now: Instant) {
        let mut guard = self.lock(now);
        let inner = &mut *guard;
        inner.running.remove(&key);
        let age = inner.next;
        inner.next += 1;
        let owner = inner.owners.entry(key.0).or_default();
        owner.ended.insert(age);
        let overhead = OVERHEAD + response.before.len() * size_of::<Arc<Turn>>();
        let body = Charged::new(response.body.clone(), overhead, &owner.bytes);
        inner.items.extend(response.turn.ids.iter().map(|id| (key.0, id.clone(), age)));
        inner.ages.insert(key.clone(), age);
        let expires = now + self.limits.keep;
        inner.ended.insert(age, Stored { key, response, _body: body, expires });
        while let Some(age) = inner.surplus(&self.limits) {
            inner.forget(age);
        }
    }

    /// The newest turn with this item.
    pub(crate) fn turn_of(&self, domain: Domain, item: &str, now: Instant) -> Option<Arc<Turn>> {
        let inner = self.lock(now);
        let id: Arc<str> = item.into();
        let (_, _, age) = inner.items.range((domain, id.clone(), 0)..=(domain, id, u64::MAX)).next_back()?;
        inner.ended.get(age).map(|stored| stored.response.turn.clone())
    }

    /// Bytes of all that a key has.
    pub(crate) fn owned(&self, domain: Domain) -> usize {
        self.inner().owners.get(&domain).map_or(0, |owner| owner.bytes.load(Ordering::Relaxed))
    }

    /// What there is of an id.
    pub(crate) fn find(&self, key: &Key, now: Instant) -> Option<Found> {
        let inner = self.lock(now);
        if let Some(running) = inner.running.get(key) {
            return Some(Found::Running(running.response.clone()));
        }
        let age = inner.ages.get(key)?;
        inner.ended.get(age).map(|stored| Found::Ended(stored.response.clone()))
    }

    /// Forgets a response, and ends it if it runs; whether there was one.
    pub(crate) fn delete(&self, key: &Key, now: Instant) -> bool {
        let mut inner = self.lock(now);
        if let Some(running) = inner.running.remove(key) {
            running.cancel.notify_one();
            return true;
        }
        let Some(&age) = inner.ages.get(key) else { return false };
        inner.forget(age);
        true
    }

    /// A response begins in the background; what is returned tells it to end.
    pub(crate) fn run(self: &Arc<Self>, key: Key, response: Running, now: Instant) -> Run {
        let (alive, ended) = watch::channel(());
        let cancel = Arc::new(Notify::new());
        let running = Runs { response, cancel: cancel.clone(), ended };
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
        let mut inner = self.inner();
        while let Some((&age, oldest)) = inner.ended.first_key_value() {
            if oldest.expires > now {
                break;
            }
            inner.forget(age);
        }
        inner
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
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
            running.response.body = body;
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
        self.store.inner().running.remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::super::items::{ItemPart, ItemRole, ItemStatus};
    use super::*;

    fn key(owner: u8, id: &str) -> Key {
        ([owner; 32], id.to_owned())
    }

    fn item(id: &str, text: &str) -> Item {
        let content = vec![ItemPart::InputText { text: text.to_owned() }];
        Item::Message { id: id.to_owned(), role: ItemRole::User, status: ItemStatus::Completed, content }
    }

    fn ended(store: &Store, before: Turns, text: &str) -> Ended {
        of(store, 0, before, &item("msg", text))
    }

    fn of(store: &Store, owner: u8, before: Turns, item: &Item) -> Ended {
        let turn = store.turn([owner; 32], &[item]);
        let body = Bytes::from_static(b"{}");
        Ended { body, background: false, can_be_continued: true, before, turn, inputs: 1 }
    }

    fn running(body: &'static str) -> Running {
        Running { body: Bytes::from_static(body.as_bytes()), before: Turns::new(), input: Bytes::new() }
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

    #[test]
    fn what_one_key_holds_in_what_runs_is_not_made_up_for_by_others() {
        let limits = StoreLimits { bytes: 20_000, ..StoreLimits::default() };
        let (store, now) = (Store::new(limits), Instant::now());
        store.put(key(1, "b"), of(&store, 1, Turns::new(), &item("b", "short")), now);
        // A long conversation whose next turn runs.
        let held: Turns = (0..4).map(|_| store.turn([0; 32], &[&item("msg", &"x".repeat(6000))])).collect();
        store.put(key(0, "a"), of(&store, 0, held.clone(), &item("a", "short")), now);
        assert!(store.size(now).1 > 20_000 && !is_there(&store, &key(0, "a"), now));
        assert!(is_there(&store, &key(1, "b"), now));
        store.put(key(1, "c"), of(&store, 1, Turns::new(), &item("c", "short")), now);
        assert!(is_there(&store, &key(1, "b"), now) && is_there(&store, &key(1, "c"), now));
        drop(held);
        assert!(store.size(now).1 < 2000);
    }

    #[test]
    fn who_has_most_gives_way() {
        let limits = StoreLimits { entries: 6, bytes: 20_000, ..StoreLimits::default() };
        let (store, now) = (Store::new(limits), Instant::now());
        let put = |owner: u8, id: &str, text: &str| {
            store.put(key(owner, id), of(&store, owner, Turns::new(), &item(id, text)), now);
        };
        put(1, "first", "short");
        // Another key's many responses push out each other, whether there are too many or they are too long.
        for (name, text) in [("few", "x".repeat(3000)), ("many", String::new())] {
            for i in 0..20 {
                put(2, &format!("{name}{i}"), &text);
                let (entries, bytes) = store.size(now);
                assert!(entries <= 6 && bytes <= 20_000, "{entries}, {bytes}");
            }
            assert!(is_there(&store, &key(1, "first"), now), "{name}");
            assert!(is_there(&store, &key(2, &format!("{name}19")), now));
            assert!(!is_there(&store, &key(2, &format!("{name}0")), now));
        }
        // Of two who have alike, whose is the oldest.
        for i in 0..2 {
            put(1, &format!("second{i}"), "");
        }
        assert!(is_there(&store, &key(1, "first"), now));
        put(1, "third", "");
        assert!(!is_there(&store, &key(1, "first"), now));
    }

    #[test]
    fn items_are_found_while_a_response_has_them() {
        let limits = StoreLimits { entries: 3, ..StoreLimits::default() };
        let (store, now) = (Store::new(limits), Instant::now());
        let put = |owner: u8, id: &str, text: &str| {
            store.put(key(owner, id), of(&store, owner, Turns::new(), &item("msg_1", text)), now);
        };
        let text = |owner: u8| {
            let items = store.turn_of([owner; 32], "msg_1", now)?.items().unwrap();
            let [Item::Message { content, .. }] = &items[..] else { panic!("{items:?}") };
            Some(content[0].text().to_owned())
        };
        put(0, "a", "older");
        put(0, "b", "newer");
        assert_eq!((text(0).as_deref(), text(1)), (Some("newer"), None), "another key's");
        assert!(store.delete(&key(0, "b"), now));
        assert_eq!(text(0).as_deref(), Some("older"));
        assert!(store.delete(&key(0, "a"), now));
        assert_eq!(text(0), None);
        for i in 0..9 {
            put(0, &format!("c{i}"), "");
        }
        assert_eq!(store.inner().items.len(), 3, "as many as are kept");
        assert!(store.turn_of([0; 32], "msg_1", now + StoreLimits::default().keep).is_none());
        assert!(store.inner().items.is_empty());
    }

    #[tokio::test]
    async fn what_runs_is_found_cancelled_and_deleted() {
        let (store, now) = (Arc::new(Store::new(StoreLimits::default())), Instant::now());
        let run = store.run(key(0, "a"), running("queued"), now);
        run.update(Bytes::from_static(b"in_progress"), now);
        assert!(
            matches!(store.find(&key(0, "a"), now), Some(Found::Running(running)) if running.body == "in_progress"[..])
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
        let run = store.run(key(0, "b"), running(""), now);
        assert!(store.delete(&key(0, "b"), now));
        run.cancelled().await;
        run.end(ended(&store, Vec::new(), "b"), now);
        assert!(!is_there(&store, &key(0, "b"), now), "it was deleted");
        drop(store.run(key(0, "c"), running(""), now));
        assert!(!is_there(&store, &key(0, "c"), now), "it was lost");
    }
}
