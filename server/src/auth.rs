//! Who asks: API keys as bearer tokens, or in `x-api-key`, where Anthropic's clients put them.
//!
//! Keys are compared by digest, all of them, in constant time: neither a key's content nor its place in the list shows
//! in how long an answer takes. What needs no key is a list; everything else does.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Instant;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use frugal_config::auth::Key;
use sha2::{Digest, Sha256};
use subtle::{ConditionallySelectable as _, ConstantTimeEq as _};
use tracing::Span;

use crate::access::Line;
use crate::error::ApiError;
use crate::rates::{Budget, Clock};
use crate::settings::Caller;

/// For probes, collectors and browsers, which have no keys; as in vLLM. The last ones are the same on every server.
const OPEN: &[&str] =
    &["/livez", "/readyz", "/health", "/metrics", "/version", "/openapi.json", "/docs", "/"];

const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// What pages are made of.
const OPEN_BELOW: &[&str] = &["/docs/", "/page/"];

/// The keys that let in; without any, everyone is let in. Clones share them.
#[derive(Clone)]
pub struct Keys(Arc<Shared>);

struct Shared {
    known: RwLock<Arc<[Arc<Known>]>>,
    clock: Clock,
}

struct Known {
    name: String,
    digest: [u8; 32],
    caller: Caller,
    budget: Arc<Budget>,
}

impl Default for Keys {
    fn default() -> Self {
        Self::new(&[])
    }
}

impl Keys {
    /// From now on with these, at the system's time.
    pub fn new(keys: &[Key]) -> Self {
        Self::timed(keys, Arc::new(Instant::now))
    }

    /// The same with another clock.
    pub fn timed(keys: &[Key], clock: Clock) -> Self {
        let new = Self(Arc::new(Shared { known: RwLock::default(), clock }));
        new.replace(keys);
        new
    }

    /// Lets these in and no others. Who stays keeps its budget and its caches: both go with the name.
    pub fn replace(&self, keys: &[Key]) {
        let before = self.known();
        let mut known: Vec<Arc<Known>> = Vec::with_capacity(keys.len());
        for key in keys {
            // A name may have several keys.
            let same = known.iter().chain(&*before).find(|other| other.name == key.name);
            let budget = match same {
                Some(same) => {
                    same.budget.change(key.rates);
                    same.budget.clone()
                }
                None => Arc::new(Budget::new(key.rates, self.0.clock.clone())),
            };
            let caller = Caller::named(&key.name);
            known.push(Arc::new(Known { name: key.name.clone(), digest: key.digest, caller, budget }));
        }
        *self.0.known.write().unwrap_or_else(PoisonError::into_inner) = known.into();
    }

    fn known(&self) -> Arc<[Arc<Known>]> {
        self.0.known.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn find(&self, presented: &str) -> Option<Arc<Known>> {
        let digest: [u8; 32] = Sha256::digest(presented.as_bytes()).into();
        let known = self.known();
        let mut found = u64::MAX;
        for (place, known) in (0..).zip(&*known) {
            found.conditional_assign(&place, known.digest.ct_eq(&digest));
        }
        // Whose key it was is no secret to whoever holds it.
        known.get(usize::try_from(found).ok()?).cloned()
    }

    fn check(&self, headers: &HeaderMap) -> Result<Arc<Known>, ApiError> {
        let hint =
            "provide your API key in an Authorization header with Bearer auth (Authorization: Bearer KEY)";
        let unknown = || ApiError::unauthorized("The API key is not known to this server");
        let Some(value) = headers.get(header::AUTHORIZATION) else {
            if let Some(key) = headers.get(API_KEY) {
                return key.to_str().ok().and_then(|key| self.find(key.trim())).ok_or_else(unknown);
            }
            return Err(ApiError::unauthorized(format!("No API key was given: {hint}")));
        };
        let bearer = value.to_str().ok().and_then(|v| v.split_once(' '));
        let Some((_, key)) = bearer.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")) else {
            return Err(ApiError::unauthorized(format!(
                "The Authorization header is not understood: {hint}"
            )));
        };
        self.find(key.trim()).ok_or_else(unknown)
    }
}

/// Middleware that lets requests with a known key through, at the rates of the key, and tells handlers whose it was
/// (extension [`Caller`]); the log gets the key's name.
pub async fn require(State(keys): State<Keys>, mut request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let open = OPEN.contains(&path) || OPEN_BELOW.iter().any(|folder| path.starts_with(folder));
    if open || keys.known().is_empty() {
        return next.run(request).await;
    }
    let known = match keys.check(request.headers()) {
        Ok(known) => known,
        Err(refusal) => return refusal.into_response(),
    };
    Span::current().record("key", &known.name);
    request.extensions_mut().insert(known.caller);
    if let Some(line) = request.extensions().get::<Arc<Line>>() {
        line.charge(&known.name, known.budget.clone());
    }
    if !asks_for_work(&request) {
        return next.run(request).await;
    }
    let mut response = match known.budget.request() {
        Ok(()) => next.run(request).await,
        Err(early) => early.into_response(),
    };
    known.budget.show(response.headers_mut());
    response
}

/// Looking things up is free, and so is ending what runs.
fn asks_for_work(request: &Request) -> bool {
    request.method() == Method::POST && !request.uri().path().ends_with("/cancel")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> Keys {
        Keys::new(&[Key::new("a", "sk-a"), Key::new("b", "sk-b")])
    }

    fn name(headers: &[(HeaderName, &str)]) -> Option<String> {
        let headers = headers.iter().map(|(name, value)| (name.clone(), value.parse().unwrap())).collect();
        keys().check(&headers).ok().map(|known| known.name.clone())
    }

    #[test]
    fn only_whole_known_keys_let_in() {
        let check = |value: &str| name(&[(header::AUTHORIZATION, value)]);
        assert_eq!(check("Bearer sk-a").as_deref(), Some("a"));
        assert_eq!(check("bearer  sk-b ").as_deref(), Some("b"));
        for wrong in ["Bearer sk-", "Bearer sk-ab", "Bearer", "Bearer ", "Basic sk-a", "sk-a"] {
            assert_eq!(check(wrong), None, "{wrong}");
        }
        // What the file of keys holds opens nothing.
        let line = Key::new("a", "sk-a").line();
        assert_eq!(check(&line.replace("a ", "Bearer ")), None);
        assert_eq!(name(&[]), None);
    }

    #[test]
    fn a_key_may_come_in_a_header_of_its_own_unless_a_bearer_is_there() {
        assert_eq!(name(&[(API_KEY, "sk-b")]).as_deref(), Some("b"));
        assert_eq!(name(&[(API_KEY, "Bearer sk-b")]), None);
        assert_eq!(name(&[(API_KEY, "")]), None);
        let both = [(header::AUTHORIZATION, "Bearer sk-a"), (API_KEY, "sk-b")];
        assert_eq!(name(&both).as_deref(), Some("a"));
        assert_eq!(name(&[(header::AUTHORIZATION, "Bearer sk"), (API_KEY, "sk-b")]), None);
    }

    #[test]
    fn who_stays_is_the_same_caller_whatever_the_key_and_its_place() {
        let keys = keys();
        let before = keys.find("sk-b").unwrap();
        keys.replace(&[Key::new("b", "sk-new"), Key::new("c", "sk-c")]);
        let after = keys.find("sk-new").unwrap();
        assert_eq!(before.caller, after.caller);
        assert!(Arc::ptr_eq(&before.budget, &after.budget));
        // Both of a name's keys are the same caller, be the name new or not.
        let both = [("b", "sk-b"), ("b", "sk-new"), ("d", "sk-d"), ("d", "sk-d2")];
        let both = both.map(|(name, key)| Key::new(name, key));
        let rotating = Keys::new(&both);
        for (old, new) in [("sk-b", "sk-new"), ("sk-d", "sk-d2")] {
            let [old, new] = [old, new].map(|key| rotating.find(key).unwrap());
            assert!(old.caller == new.caller && Arc::ptr_eq(&old.budget, &new.budget));
        }
        assert!(keys.find("sk-a").is_none() && keys.find("sk-b").is_none());
        let other = keys.find("sk-c").unwrap().caller;
        assert!(other.domain != after.caller.domain && other.tenant != after.caller.tenant);
        assert_ne!(other.domain, Caller::default().domain);
    }
}
