use std::sync::atomic::{AtomicU64, Ordering};

use axum::http::StatusCode;
use axum::response::IntoResponse as _;
use proptest::prelude::*;

use super::*;

/// A clock that stands until it is moved.
fn clock() -> (Clock, Arc<AtomicU64>) {
    let (start, ms) = (Instant::now(), Arc::new(AtomicU64::new(0)));
    let hand = ms.clone();
    (Arc::new(move || start + Duration::from_millis(hand.load(Ordering::Relaxed))), ms)
}

fn rates(requests: u32, tokens: u32) -> Rates {
    Rates { requests: NonZeroU32::new(requests), tokens: NonZeroU32::new(tokens) }
}

fn shown(budget: &Budget) -> String {
    let mut headers = HeaderMap::new();
    budget.show(&mut headers);
    let value = |name: &str| headers.get(name).map_or("-", |value| value.to_str().unwrap());
    let parts = ["limit", "remaining", "reset"].map(|part| {
        let [requests, tokens] =
            ["requests", "tokens"].map(|what| value(&format!("x-ratelimit-{part}-{what}")));
        format!("{requests} {tokens}")
    });
    parts.join(", ")
}

/// Seconds of Retry-After of a refusal.
fn retry(refused: Result<(), ApiError>) -> Option<String> {
    let response = refused.expect_err("too early").into_response();
    assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
    response.headers().get("retry-after").map(|value| value.to_str().unwrap().to_owned())
}

#[test]
fn requests_come_back_evenly() {
    let (clock, ms) = clock();
    let budget = Budget::new(rates(3, 0), clock);
    assert_eq!(shown(&budget), "3 -, 3 -, 0ms -");
    for _ in 0..3 {
        budget.request().unwrap();
    }
    assert_eq!(shown(&budget), "3 -, 0 -, 1m0s -");
    assert_eq!(retry(budget.request()).as_deref(), Some("20"));
    ms.store(19_999, Ordering::Relaxed);
    assert_eq!(retry(budget.request()).as_deref(), Some("1"));
    ms.store(20_000, Ordering::Relaxed);
    budget.request().unwrap();
    assert_eq!(retry(budget.request()).as_deref(), Some("20"));
    ms.store(3_600_000, Ordering::Relaxed);
    assert_eq!(shown(&budget), "3 -, 3 -, 0ms -", "no more than a minute's worth is saved up");
}

#[test]
fn answers_may_overdraw_and_nothing_new_begins_before_that_is_paid() {
    let (clock, ms) = clock();
    let budget = Budget::new(rates(0, 60), clock);
    budget.request().unwrap();
    budget.prompt(50).unwrap();
    assert_eq!(retry(budget.prompt(11)).as_deref(), Some("1"), "10 are left");
    budget.output(40);
    assert_eq!(shown(&budget), "- 60, - 0, - 1m30s");
    assert_eq!(retry(budget.request()).as_deref(), Some("31"), "30 of debt, and a token");
    ms.store(31_000, Ordering::Relaxed);
    budget.request().unwrap();
    budget.prompt(1).unwrap();
    budget.refund(1);
    budget.prompt(1).unwrap();
    budget.refund(1000);
    assert_eq!(shown(&budget), "- 60, - 60, - 0ms");
    assert_eq!(retry(budget.prompt(61)), None, "it would never fit");
}

#[test]
fn changed_rates_forget_nothing() {
    let (clock, _) = clock();
    let budget = Budget::new(rates(2, 0), clock);
    budget.request().unwrap();
    budget.change(rates(3, 100));
    assert_eq!(shown(&budget), "3 100, 2 100, 20s 0ms");
    budget.change(rates(1, 0));
    assert_eq!(shown(&budget), "1 -, 0 -, 1m0s -");
    budget.change(rates(0, 0));
    budget.request().unwrap();
    assert_eq!(shown(&budget), "- -, - -, - -");
}

#[test]
fn times_are_spelled_as_clients_know_them() {
    let check = |ns: u64, text: &str| assert_eq!(spelled(Duration::from_nanos(ns)), text);
    check(0, "0ms");
    check(1, "1ms");
    check(20_000_000, "20ms");
    check(1_000_000_000, "1s");
    check(1_500_000_000, "1.5s");
    check(10_050_000_000, "10.05s");
    check(59_999_000_001, "1m0s");
    check(360_000_000_000, "6m0s");
}

proptest! {
    #[test]
    fn no_schedule_of_requests_gets_more_than_rate_and_bucket(
        limit in 1u32..100,
        pauses in proptest::collection::vec(0u64..3_000, 1..300),
    ) {
        let (clock, ms) = clock();
        let budget = Budget::new(rates(limit, 0), clock);
        let mut admitted = 0u64;
        for pause in pauses {
            ms.fetch_add(pause, Ordering::Relaxed);
            admitted += u64::from(budget.request().is_ok());
            let most = u64::from(limit) + ms.load(Ordering::Relaxed) * u64::from(limit) / 60_000;
            prop_assert!(admitted <= most, "{admitted} of {most}");
        }
    }
}
