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
    let _running = handle.submit_at(Some(place), vec![test_request(1)]).expect("its place was kept");
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
async fn who_has_left_is_told_what_it_came_to() {
    let (handle, _thread, control) = engine(EngineOptions::default());
    control.pause();
    let Submission { mut events, account, .. } =
        handle.submit(Request { max_tokens: 200, ..test_request(8) }).expect("room");
    control.allow(3);
    let Some(Event::Token { .. }) = events.recv().await else { panic!("a token comes first") };
    events.close();
    control.resume();
    let mut told = 1;
    while let Some(event) = events.recv().await {
        assert!(matches!(event, Event::Token { .. }), "the end is for the account");
        told += 1;
    }
    let report = account.await.expect("it is closed");
    assert_eq!(report.prompt_tokens, 8);
    assert!(report.completion_tokens >= told && report.cost.prefill_ns > 0, "{report:?}, {told} told");
    // Who has stayed needs none.
    let mut stayed = handle.submit(test_request(8)).expect("room");
    while stayed.events.recv().await.is_some() {}
    stayed.account.await.expect_err("the report came with the last event");
}

#[tokio::test]
async fn a_request_waits_from_the_moment_that_it_is_prepared() {
    let (handle, _thread, control) = engine(EngineOptions::default());
    let place = handle.reserve(0).expect("room");
    let gauges = handle.snapshot().gauges.clone();
    assert_eq!((gauges.queue_requests, gauges.waiting), (1, 1));
    let reserved = handle.now();
    while handle.now().0 < reserved.0 + 2_000_000 {
        std::thread::yield_now();
    }
    control.pause();
    let submission = handle.submit_at(Some(place), vec![test_request(8)]).expect("its place");
    assert!(submission[0].at <= reserved);
    control.resume();
    let (_, _, report) = collect(submission.into_iter().next().expect("one")).await;
    assert!(report.queued_ns.expect("it was planned") >= 2_000_000, "{report:?}");
}

/// A step may take seconds, and what came before it is waited for.
#[tokio::test]
async fn a_long_step_hides_no_one() {
    let (handle, _thread, control) = engine(EngineOptions { max_seqs: 2, ..EngineOptions::default() });
    control.pause();
    let all: Vec<_> =
        (0..4).map(|_| handle.submit(Request { n: 2, ..test_request(8) }).expect("room")).collect();
    // The step that is paused has begun once something is running.
    let mut gauges = handle.snapshot().gauges.clone();
    while gauges.running == 0 {
        tokio::task::yield_now().await;
        gauges = handle.snapshot().gauges.clone();
    }
    assert_eq!(gauges.running + gauges.waiting, 8, "{gauges:?}");
    control.resume();
    for submission in all {
        collect(submission).await;
    }
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
    assert_eq!((reasons, report.fault), (vec![FinishReason::Fault], Some("step failed: torn".to_owned())));
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
