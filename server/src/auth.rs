//! Who asks: API keys as bearer tokens, or in `x-api-key`, where Anthropic's clients put them.
//!
//! Keys are compared by digest, all of them, in constant time: neither a key's content nor its place in the list shows
//! in how long an answer takes. What needs no key is a list; everything else does.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use frugal_config::raw::ApiKey;
use sha2::{Digest, Sha256};
use subtle::{ConditionallySelectable as _, ConstantTimeEq as _};
use tracing::Span;

use crate::error::ApiError;
use crate::settings::Caller;

/// For probes, collectors and browsers, which have no keys; as in vLLM. The last ones are the same on every server.
const OPEN: &[&str] =
    &["/livez", "/readyz", "/health", "/metrics", "/version", "/openapi.json", "/docs", "/"];

const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// What pages are made of.
const OPEN_BELOW: &[&str] = &["/docs/", "/page/"];

/// The keys that let in; without any, everyone is let in.
#[derive(Clone, Default)]
pub struct Keys(Arc<[Known]>);

struct Known {
    name: String,
    digest: [u8; 32],
    caller: Caller,
}

impl Keys {
    /// Numbers callers from 1, in the order of `keys`.
    pub fn new(keys: &[ApiKey]) -> Self {
        let known = keys.iter().zip(1..).map(|(key, tenant)| {
            let domain = Sha256::new().chain_update(b"key\0").chain_update(key.name.as_bytes());
            Known {
                name: key.name.clone(),
                digest: Sha256::digest(key.key.expose().as_bytes()).into(),
                caller: Caller { tenant, domain: domain.finalize().into() },
            }
        });
        Self(known.collect())
    }

    fn find(&self, presented: &str) -> Option<&Known> {
        let digest: [u8; 32] = Sha256::digest(presented.as_bytes()).into();
        let mut tenant = 0;
        for known in &*self.0 {
            tenant.conditional_assign(&known.caller.tenant, known.digest.ct_eq(&digest));
        }
        // Whose key it was is no secret to whoever holds it.
        self.0.iter().find(|known| known.caller.tenant == tenant)
    }

    fn check(&self, headers: &HeaderMap) -> Result<&Known, ApiError> {
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

/// Middleware that lets requests with a known key through and tells handlers whose it was (extension [`Caller`]);
/// the log gets the key's name.
pub async fn require(State(keys): State<Keys>, mut request: Request, next: Next) -> Response {
    let path = request.uri().path();
    if keys.0.is_empty() || OPEN.contains(&path) || OPEN_BELOW.iter().any(|folder| path.starts_with(folder)) {
        return next.run(request).await;
    }
    match keys.check(request.headers()) {
        Ok(known) => {
            Span::current().record("key", &known.name);
            request.extensions_mut().insert(known.caller);
            next.run(request).await
        }
        Err(refusal) => refusal.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use frugal_config::units::Secret;

    use super::*;

    fn keys() -> Keys {
        let key = |name: &str, key: &str| ApiKey { name: name.to_owned(), key: Secret::new(key) };
        Keys::new(&[key("a", "sk-a"), key("b", "sk-b")])
    }

    fn check(authorization: Option<&str>) -> Option<u64> {
        let mut headers = HeaderMap::new();
        if let Some(value) = authorization {
            headers.insert(header::AUTHORIZATION, value.parse().unwrap());
        }
        keys().check(&headers).ok().map(|known| known.caller.tenant)
    }

    #[test]
    fn only_whole_known_keys_let_in() {
        assert_eq!(check(Some("Bearer sk-a")), Some(1));
        assert_eq!(check(Some("bearer  sk-b ")), Some(2));
        for wrong in ["Bearer sk-", "Bearer sk-ab", "Bearer", "Bearer ", "Basic sk-a", "sk-a"] {
            assert_eq!(check(Some(wrong)), None, "{wrong}");
        }
        assert_eq!(check(None), None);
    }

    #[test]
    fn a_key_may_come_in_a_header_of_its_own_unless_a_bearer_is_there() {
        let check = |headers: &[(HeaderName, &str)]| {
            let headers =
                headers.iter().map(|(name, value)| (name.clone(), value.parse().unwrap())).collect();
            keys().check(&headers).ok().map(|known| known.caller.tenant)
        };
        assert_eq!(check(&[(API_KEY, "sk-b")]), Some(2));
        assert_eq!(check(&[(API_KEY, "Bearer sk-b")]), None);
        assert_eq!(check(&[(API_KEY, "")]), None);
        assert_eq!(check(&[(header::AUTHORIZATION, "Bearer sk-a"), (API_KEY, "sk-b")]), Some(1));
        assert_eq!(check(&[(header::AUTHORIZATION, "Bearer sk"), (API_KEY, "sk-b")]), None);
    }

    #[test]
    fn callers_have_domains_of_their_own() {
        let domains: Vec<_> = keys().0.iter().map(|k| k.caller.domain).collect();
        assert_ne!(domains[0], domains[1]);
        assert_ne!(domains[0], Caller::default().domain);
    }
}
