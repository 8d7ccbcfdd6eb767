//! Who may queue: the only place where a request is refused by the engine.
//!
//! Shared between the front end and the driver under a short lock. Absent on purpose: prompts, clocks.

use std::collections::BTreeMap;
use std::sync::Arc;

use frugal_models::step::Geometry;

use crate::kv::group::capacity;
use crate::options::EngineOptions;
use crate::request::{Request, RequestId, SubmitError};
use crate::snapshot::Rejections;

/// Bounds on the queue, and what is in it.
#[derive(Debug)]
pub struct Gate {
    requests_max: u32,
    tokens_max: u64,
    tenant_max: Option<u32>,
    capacity: u32,
    vocab: u32,
    next_id: u64,
    closed: bool,
    /// Places of requests that are being prepared.
    reserved: u32,
    queued: BTreeMap<RequestId, u64>,
    queued_tokens: u64,
    /// What each tenant has in progress: requests of clients, from the moment that they are prepared.
    tenants: BTreeMap<u64, u32>,
    /// Whose a request is. One of a client's with several prompts is several here and counts once.
    tenant_of: BTreeMap<RequestId, Arc<u64>>,
    rejections: Rejections,
    tokens_per_s: f64,
}

impl Gate {
    /// Open and empty.
    pub fn new(options: &EngineOptions, geometry: &Geometry) -> Self {
        Self {
            requests_max: options.queue_requests_max,
            tokens_max: options.queue_tokens_max,
            tenant_max: options.tenant_requests_max,
            capacity: capacity(geometry),
            vocab: geometry.vocab,
            next_id: 1,
            closed: false,
            reserved: 0,
            queued: BTreeMap::new(),
            queued_tokens: 0,
            tenants: BTreeMap::new(),
            tenant_of: BTreeMap::new(),
            rejections: Rejections::default(),
            tokens_per_s: 0.0,
        }
    }

    /// Whether a request of this tenant would be taken if it were small; a refusal counts.
    pub fn look(&mut self, tenant: u64) -> Result<(), SubmitError> {
        self.open()?;
        self.within_limit(tenant)?;
        let full = self.queued_tokens >= self.tokens_max && !self.queued.is_empty();
        if full || !self.has_places(1) { Err(self.full()) } else { Ok(()) }
    }

    /// The same, and keeps a place among the requests until [`Gate::release`]: who prepares a request does not do so in vain.
    pub fn reserve(&mut self, tenant: u64) -> Result<(), SubmitError> {
        self.look(tenant)?;
        self.reserved += 1;
        self.count(tenant);
        Ok(())
    }

    /// A place is used, or not needed any more.
    ///
    /// # Panics
    /// If none was reserved.
    pub fn release(&mut self, tenant: u64) {
        self.reserved = self.reserved.checked_sub(1).expect("a place is given back once");
        self.leave(tenant);
    }

    /// Counts work for a tenant that needs no place in the queue, until [`Gate::leave`].
    pub fn enter(&mut self, tenant: u64) -> Result<(), SubmitError> {
        self.within_limit(tenant)?;
        self.count(tenant);
        Ok(())
    }

    /// It is done.
    pub fn leave(&mut self, tenant: u64) {
        if let Some(count) = self.tenants.get_mut(&tenant) {
            *count -= 1;
            if *count == 0 {
                self.tenants.remove(&tenant);
            }
        }
    }

    /// A request was refused for its length before it got here.
    pub fn too_long(&mut self) {
        self.rejections.too_long += 1;
    }

    /// Takes a client's request into the queue, one for each of its prompts, or says why not: all of them or none. Whoever has
    /// reserved a place for it releases that first, under the same lock.
    ///
    /// # Panics
    /// If there is none, or one has no prompt, a token out of the vocabulary, or asks for nothing: the front end has let through
    /// what it must not.
    pub fn admit(&mut self, requests: &[Request]) -> Result<Vec<RequestId>, SubmitError> {
        let tenant = requests.first().expect("a request has a prompt").tenant;
        self.open()?;
        let mut sizes = Vec::with_capacity(requests.len());
        for request in requests {
            assert!(!request.prompt.is_empty() && request.n > 0, "a request has a prompt and a choice");
            assert!(request.prompt.iter().all(|t| t.0 < self.vocab), "a token is one of the vocabulary");
            assert!(
                request.max_tokens > 0 || request.prompt_logprobs.is_some(),
                "a request asks for something"
            );
            let prompt = request.prompt.len() as u64;
            let needed = prompt.saturating_add(u64::from(request.max_tokens.min(1)));
            if needed > u64::from(self.capacity) {
                self.too_long();
                let needed = u32::try_from(needed).unwrap_or(u32::MAX);
                return Err(SubmitError::TooLong { needed, available: self.capacity });
            }
            sizes.push(prompt.saturating_mul(u64::from(request.n)));
        }
        self.within_limit(tenant)?;
        let tokens = sizes.iter().fold(self.queued_tokens, |sum, &size| sum.saturating_add(size));
        // An empty queue takes what is larger than it, or that would be refused for ever.
        let over = tokens > self.tokens_max && !self.queued.is_empty();
        if over || !self.has_places(sizes.len() as u64) {
            return Err(self.full());
        }
        self.count(tenant);
        let whose = Arc::new(tenant);
        let take = |tokens| {
            let id = RequestId(self.next_id);
            self.next_id += 1;
            self.queued.insert(id, tokens);
            self.queued_tokens += tokens;
            self.tenant_of.insert(id, whose.clone());
            id
        };
        Ok(sizes.into_iter().map(take).collect())
    }

    /// The request was scheduled for the first time.
    pub fn scheduled(&mut self, id: RequestId) {
        if let Some(tokens) = self.queued.remove(&id) {
            self.queued_tokens -= tokens;
        }
    }

    /// The request is done.
    pub fn done(&mut self, id: RequestId) {
        self.scheduled(id);
        // The last one of a client's request.
        if let Some(tenant) = self.tenant_of.remove(&id).and_then(Arc::into_inner) {
            self.leave(tenant);
        }
    }

    /// A step computed so many tokens in so many nanoseconds: what retry advice is guessed from.
    pub fn pace(&mut self, tokens: usize, ns: u64) {
        if ns > 0 {
            let rate = tokens as f64 * 1e9 / ns as f64;
            self.tokens_per_s =
                if self.tokens_per_s > 0.0 { self.tokens_per_s * 0.9 + rate * 0.1 } else { rate };
        }
    }

    /// Takes nothing more.
    pub fn close(&mut self) {
        self.closed = true;
    }

    /// Whether it takes nothing more.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// Requests that wait for their first step, those that are being prepared included, and tokens of the others.
    pub fn queue(&self) -> (u32, u64) {
        (self.queued.len() as u32 + self.reserved, self.queued_tokens)
    }

    /// Requests that are being prepared.
    pub fn reserved(&self) -> u32 {
        self.reserved
    }

    /// Requests not taken so far.
    pub fn rejections(&self) -> Rejections {
        self.rejections
    }

    fn open(&mut self) -> Result<(), SubmitError> {
        if self.closed {
            self.rejections.shutting_down += 1;
            return Err(SubmitError::ShuttingDown);
        }
        Ok(())
    }

    fn within_limit(&mut self, tenant: u64) -> Result<(), SubmitError> {
        let in_progress = self.tenants.get(&tenant).copied().unwrap_or(0);
        if tenant != 0 && self.tenant_max.is_some_and(|max| in_progress >= max) {
            self.rejections.tenant_limit += 1;
            return Err(SubmitError::TenantLimit);
        }
        Ok(())
    }

    fn count(&mut self, tenant: u64) {
        if tenant != 0 {
            *self.tenants.entry(tenant).or_default() += 1;
        }
    }

    fn has_places(&self, places: u64) -> bool {
        let taken = self.queued.len() as u64 + u64::from(self.reserved);
        taken == 0 || taken + places <= u64::from(self.requests_max)
    }

    fn full(&mut self) -> SubmitError {
        self.rejections.queue_full += 1;
        SubmitError::QueueFull { retry_after_s: self.retry_after_s() }
    }

    fn retry_after_s(&self) -> u32 {
        let guess = if self.tokens_per_s > 0.0 { self.queued_tokens as f64 / self.tokens_per_s } else { 1.0 };
        guess.clamp(1.0, 60.0).ceil() as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::test_request;
    use frugal_models::step::{CacheGroup, GroupKind};

    fn gate(options: EngineOptions) -> Gate {
        let group = CacheGroup { kind: GroupKind::Full, block_bytes: 1, blocks: 10 };
        let geometry =
            Geometry { vocab: 99, context_max: 1000, block_tokens: 4, groups: vec![group], digest: [0; 32] };
        Gate::new(&options, &geometry)
    }

    fn one(gate: &mut Gate, request: Request) -> Result<RequestId, SubmitError> {
        gate.admit(&[request]).map(|ids| ids[0])
    }

    #[test]
    fn the_queue_is_bounded_by_requests_and_tokens() {
        let mut gate =
            gate(EngineOptions { queue_requests_max: 2, queue_tokens_max: 30, ..EngineOptions::default() });
        let first = one(&mut gate, test_request(20)).expect("an empty queue takes it");
        assert!(matches!(one(&mut gate, test_request(11)), Err(SubmitError::QueueFull { retry_after_s: 1 })));
        let second = one(&mut gate, test_request(10)).expect("30 tokens are the bound");
        assert!(matches!(one(&mut gate, test_request(1)), Err(SubmitError::QueueFull { .. })));
        gate.scheduled(first);
        assert_eq!(gate.queue(), (1, 10));
        gate.done(second);
        gate.done(first);
        assert_eq!(gate.queue(), (0, 0));
        one(&mut gate, test_request(39)).expect("an empty queue takes one of any size");
        assert_eq!(gate.rejections().queue_full, 2);
    }

    #[test]
    fn a_reserved_place_is_kept_until_it_is_released() {
        let mut gate =
            gate(EngineOptions { queue_requests_max: 2, queue_tokens_max: 30, ..EngineOptions::default() });
        gate.reserve(0).expect("the first place");
        let queued = one(&mut gate, test_request(30)).expect("the second");
        assert!(matches!(gate.look(0), Err(SubmitError::QueueFull { .. })));
        assert!(matches!(one(&mut gate, test_request(1)), Err(SubmitError::QueueFull { .. })));
        gate.release(0);
        assert!(matches!(gate.reserve(0), Err(SubmitError::QueueFull { .. })), "the tokens are used up");
        gate.scheduled(queued);
        gate.reserve(0).expect("room");
        gate.reserve(0).expect("room");
        gate.release(0);
        one(&mut gate, test_request(1)).expect("the place that was released");
        assert_eq!((gate.queue(), gate.reserved(), gate.rejections().queue_full), ((2, 1), 1, 3));
    }

    #[test]
    fn retry_advice_follows_the_pace() {
        let mut gate = gate(EngineOptions { queue_requests_max: 1, ..EngineOptions::default() });
        one(&mut gate, test_request(30)).expect("room");
        gate.pace(5, 1_000_000_000);
        assert_eq!(one(&mut gate, test_request(1)), Err(SubmitError::QueueFull { retry_after_s: 6 }));
    }

    #[test]
    fn tenants_are_limited_until_their_requests_are_done() {
        let mut gate = gate(EngineOptions { tenant_requests_max: Some(1), ..EngineOptions::default() });
        let of = |tenant| Request { tenant, ..test_request(3) };
        let id = one(&mut gate, of(7)).expect("the first");
        gate.scheduled(id);
        assert_eq!(one(&mut gate, of(7)), Err(SubmitError::TenantLimit));
        one(&mut gate, of(8)).expect("another tenant");
        one(&mut gate, of(0)).expect("no tenant");
        one(&mut gate, of(0)).expect("no tenant, no limit");
        gate.done(id);
        one(&mut gate, of(7)).expect("its place is free again");
    }

    #[test]
    fn tenants_are_limited_from_the_moment_that_a_request_is_prepared() {
        let mut gate = gate(EngineOptions { tenant_requests_max: Some(2), ..EngineOptions::default() });
        let of = |tenant| Request { tenant, ..test_request(3) };
        gate.reserve(7).expect("the first");
        gate.enter(7).expect("the second");
        assert_eq!(gate.reserve(7), Err(SubmitError::TenantLimit));
        assert_eq!(gate.enter(7), Err(SubmitError::TenantLimit));
        gate.reserve(8).expect("another tenant");
        gate.release(7);
        let id = one(&mut gate, of(7)).expect("at the place that was released");
        assert_eq!(gate.look(7), Err(SubmitError::TenantLimit));
        gate.leave(7);
        gate.done(id);
        assert_eq!(gate.tenants, BTreeMap::from([(8, 1)]));
        gate.release(8);
        assert!(gate.tenants.is_empty() && gate.rejections().tenant_limit == 3);
    }

    #[test]
    fn several_prompts_are_one_request_and_taken_as_a_whole() {
        let mut gate = gate(EngineOptions {
            queue_requests_max: 3,
            tenant_requests_max: Some(1),
            ..EngineOptions::default()
        });
        let of = |tenant, prompts| vec![Request { tenant, ..test_request(3) }; prompts];
        let ids = gate.admit(&of(7, 5)).expect("an empty queue takes one of any size");
        assert_eq!(gate.admit(&of(7, 1)), Err(SubmitError::TenantLimit));
        ids[..4].iter().for_each(|&id| gate.done(id));
        assert_eq!(gate.admit(&of(7, 1)), Err(SubmitError::TenantLimit), "one prompt is still in progress");
        assert!(matches!(gate.admit(&of(8, 3)), Err(SubmitError::QueueFull { .. })));
        gate.admit(&of(8, 2)).expect("what there is room for");
        gate.done(ids[4]);
        gate.admit(&of(7, 1)).expect("it is over");
        let mixed = [test_request(3), test_request(40)];
        assert!(matches!(gate.admit(&mixed), Err(SubmitError::TooLong { .. })));
        assert_eq!(gate.queue(), (3, 9));
    }

    #[test]
    fn what_can_never_run_is_refused() {
        let mut gate = gate(EngineOptions::default());
        let error = one(&mut gate, test_request(40)).expect_err("41 positions, 40 in the pool");
        assert_eq!(error, SubmitError::TooLong { needed: 41, available: 40 });
        let scored = Request { max_tokens: 0, prompt_logprobs: Some(0), ..test_request(40) };
        one(&mut gate, scored).expect("nothing follows the prompt");
        gate.close();
        assert_eq!(one(&mut gate, test_request(1)), Err(SubmitError::ShuttingDown));
    }
}
