//! Responses by route and status: the only numbers that the engine does not know.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::{MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::Response;

/// Counts of responses. Routes are patterns of the router, so their number is bounded whatever clients ask for.
#[derive(Clone, Debug, Default)]
pub struct HttpCounts(Arc<Mutex<BTreeMap<(String, u16), u64>>>);

impl HttpCounts {
    /// One response.
    pub fn add(&self, route: &str, status: u16) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *counts.entry((route.to_owned(), status)).or_default() += 1;
    }

    /// (route, status, responses), in order.
    pub fn all(&self) -> Vec<(String, u16, u64)> {
        let counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        counts.iter().map(|((route, status), n)| (route.clone(), *status, *n)).collect()
    }
}

/// Middleware that counts each response when its head is known. Paths without a route count as `other`.
pub async fn count(State(counts): State<HttpCounts>, request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().map(|m| m.as_str().to_owned());
    let response = next.run(request).await;
    counts.add(route.as_deref().unwrap_or("other"), response.status().as_u16());
    response
}
