//! The ledger against sums that know nothing of it.

use frugal_models::step::{RowWork, StepStats};
use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Op {
    Idle(u64),
    Fault(u64),
    Step(u64, u64, Vec<(RowWork, RowTokens)>),
    /// The request that was charged for the row ended in a fault.
    Fail(usize),
    Count(u64, u64),
    /// More was measured, in picojoules.
    Measure(u128),
}

fn op() -> impl Strategy<Value = Op> {
    let work = (0u64..1 << 40, 0u64..1 << 45, 0u64..1 << 35)
        .prop_map(|(expert_bytes, macs, kv_bytes)| RowWork { expert_bytes, macs, kv_bytes });
    let tokens = (0u32..50, 0u32..50, 0u32..5, 0u32..5);
    let tokens = tokens.prop_map(|(recompute, prefill, decode, draft)| RowTokens {
        recompute,
        prefill,
        decode: decode.max(1),
        draft,
    });
    let ns = || prop_oneof![Just(0), 0u64..100, 0u64..20_000_000_000, Just(1 << 56)];
    prop_oneof![
        2 => ns().prop_map(Op::Idle),
        1 => ns().prop_map(Op::Fault),
        6 => (ns(), 0u64..1 << 40, prop::collection::vec((work, tokens), 1..6))
            .prop_map(|(ns, dense, rows)| Op::Step(ns, dense, rows)),
        2 => (0usize..100).prop_map(Op::Fail),
        1 => (0u64..1000, 0u64..1000).prop_map(|(input, output)| Op::Count(input, output)),
        3 => prop_oneof![Just(0), 0u128..1 << 50, Just(1 << 80)].prop_map(Op::Measure),
    ]
}

proptest! {
    #[test]
    fn every_nanosecond_pico_unit_and_picojoule_is_somewhere(
        ops in prop::collection::vec(op(), 0..60),
        (price, idle_price, per_kwh) in (price(), price(), price()),
        (power, idle_power) in (power(), power()),
        startup in 0u64..10_000_000_000,
        mut measured in prop::option::of(0u128..1 << 50),
    ) {
        let prices = Prices {
            per_hour: price,
            idle_per_hour: idle_price,
            per_kwh,
            power_milliwatts: power,
            idle_milliwatts: idle_power,
        };
        let rate = |busy: Option<u64>, idle: Option<u64>| [busy, busy.and(idle.or(busy))].map(|rate| u128::from(rate.unwrap_or(0)));
        let (rate, drawn) = (rate(price, idle_price), rate(power, idle_power));
        let mut ledger = Ledger::new(&prices, Coefficients::default(), startup, measured);
        let (mut now, mut idle, mut charged, mut requests) = (0, 0, Amount::default(), Vec::new());
        let mut settled = measured;
        for op in ops {
            let before = ledger.cost().accounts;
            if let Op::Idle(_) | Op::Fault(_) | Op::Step(..) = op {
                settled = measured;
            }
            match op {
                Op::Idle(ns) => { now += ns; idle += ns; ledger.idle(Tick(now)); }
                Op::Fault(ns) => { now += ns; ledger.fault(Tick(now)); }
                Op::Step(ns, dense_bytes, rows) => {
                    now += ns;
                    let (work, tokens): (Vec<_>, Vec<_>) = rows.into_iter().unzip();
                    let expert_bytes = work.iter().map(|w| w.expert_bytes).sum();
                    let startup_ns = if expert_bytes % 3 == 0 { dense_bytes } else { 0 };
                    let stats = StepStats { dense_bytes, expert_bytes, startup_ns, rows: work, ..StepStats::default() };
                    let charges = ledger.step(Tick(now), &stats, &tokens);
                    let whole = |c: &RowCharge| c.prefill + c.decode + c.recompute + c.draft;
                    let all: Vec<_> = charges.iter().map(whole).collect();
                    let after = ledger.cost().accounts;
                    let startup = after[Account::Startup as usize] - before[Account::Startup as usize];
                    prop_assert_eq!(startup.ns, ns.min(startup_ns));
                    prop_assert_eq!(sum(&all) + startup, sum(&after) - sum(&before));
                    prop_assert_eq!(sum(&all).ns, ns - startup.ns);
                    for (charge, tokens) in charges.iter().zip(&tokens) {
                        prop_assert!(tokens.prefill > 0 || charge.prefill == Amount::default());
                        let mut cost = RequestCost::default();
                        charge.add_to(&mut cost, price.is_some());
                        charged += cost.prefill() + cost.decode();
                        requests.push(cost);
                    }
                }
                Op::Fail(i) if !requests.is_empty() => {
                    let cost = requests.swap_remove(i % requests.len());
                    charged = charged - (cost.prefill() + cost.decode());
                    ledger.fail(&cost);
                }
                Op::Fail(_) => {}
                Op::Count(input, output) => ledger.count(input, output),
                Op::Measure(more) => {
                    let all = measured.unwrap_or(0) + more;
                    measured = Some(all);
                    ledger.measure(all);
                    // A clock of the device's own may seem to go back.
                    ledger.measure(all / 2);
                }
            }
            let held = ledger.check();
            let of_time = |[with, without]: [u128; 2]| u128::from(startup + now - idle) * with + u128::from(idle) * without;
            let (of_energy, _) = priced(settled.unwrap_or(0), price.and(per_kwh).unwrap_or(0), 0);
            let due = Amount {
                ns: startup + now,
                pico: of_time(rate) / NS_PER_HOUR + of_energy,
                energy: of_time(drawn) + settled.unwrap_or(0),
            };
            prop_assert_eq!(held, Ok(due));
            let after = ledger.cost().accounts;
            prop_assert_eq!(after[Account::Idle as usize].ns, idle);
            for (a, b) in before.iter().zip(&after) {
                prop_assert_eq!(a.min(*b), *a, "an account went down");
            }
            let held = after[Account::Prefill as usize] + after[Account::Decode as usize];
            let owed = ledger.owed(Account::Prefill) + ledger.owed(Account::Decode);
            prop_assert_eq!(held, charged + owed);
        }
    }
}

fn price() -> impl Strategy<Value = Option<u64>> {
    prop::option::of(prop_oneof![0u64..1000, 0u64..20_000_000_000_000, Just(u64::MAX)])
}

fn power() -> impl Strategy<Value = Option<u64>> {
    prop::option::of(0u64..500_000)
}

/// 3.60 an hour: a milliunit a second.
const PRICES: Prices = Prices {
    per_hour: Some(3_600_000_000_000),
    idle_per_hour: None,
    per_kwh: None,
    power_milliwatts: Some(50_000),
    idle_milliwatts: None,
};
const SECOND: u64 = 1_000_000_000;
const JOULE: u128 = 1_000_000_000_000;

#[test]
fn loaded_cost_reconciles_with_the_bill() {
    let mut ledger = Ledger::new(&PRICES, Coefficients::default(), 10 * SECOND, None);
    let rows =
        [RowTokens { prefill: 90, ..RowTokens::default() }, RowTokens { decode: 1, ..RowTokens::default() }];
    let work = |macs| RowWork { macs, ..RowWork::default() };
    let stats = StepStats { rows: vec![work(300), work(100)], ..StepStats::default() };
    ledger.idle(Tick(50 * SECOND));
    ledger.step(Tick(90 * SECOND), &stats, &rows);
    ledger.count(2_000_000, 500_000);
    let cost = ledger.cost();
    assert_eq!(cost.accounts[Account::Prefill as usize].ns, 30 * SECOND);
    assert_eq!(cost.accounts[Account::Decode as usize].pico, 10 * 1_000_000_000);
    let near =
        |a: Option<f64>, b: f64| assert!((a.expect("there were tokens") / b - 1.0).abs() < 1e-9, "{a:?} {b}");
    near(cost.total.input.money_marginal, 0.030 / 2.0);
    near(cost.total.output.money_marginal, 0.010 / 0.5);
    near(cost.total.all.money_loaded, 0.100 / 2.5);
    let bill =
        cost.total.input.money_loaded.zip(cost.total.output.money_loaded).map(|(i, o)| i * 2.0 + o * 0.5);
    near(bill, 0.100);
    near(cost.recent.all.seconds_loaded, 100.0 / 2.5);
    near(cost.joules(Account::Idle), 50.0 * 50.0);
}

/// A machine of 50 W that draws 20 W when it has nothing to do, at 0.36 a kilowatt-hour and 1.80 an hour for the rest.
#[test]
fn idle_time_has_a_price_and_a_power_of_its_own() {
    let hour = |watts: u64| Some(1_800_000_000_000 + watts * 360_000_000);
    let prices =
        Prices { per_hour: hour(50), idle_per_hour: hour(20), idle_milliwatts: Some(20_000), ..PRICES };
    let mut ledger = Ledger::new(&prices, Coefficients::default(), 10 * SECOND, None);
    ledger.idle(Tick(100 * SECOND));
    ledger.fault(Tick(101 * SECOND));
    ledger.idle(Tick(102 * SECOND));
    let step = StepStats { rows: vec![RowWork { macs: 1, ..RowWork::default() }], ..StepStats::default() };
    ledger.step(Tick(103 * SECOND), &step, &[RowTokens { decode: 1, ..RowTokens::default() }]);
    let cost = ledger.cost();
    let of = |account| {
        let Amount { ns, pico, energy } = cost.accounts[account as usize];
        (ns / SECOND, pico, energy / JOULE)
    };
    // 500 millions of pico-units a second, and a tenth of one a joule.
    assert_eq!(of(Account::Startup), (10, 10 * 505_000_000, 10 * 50));
    assert_eq!(of(Account::Idle), (101, 101 * 502_000_000, 101 * 20));
    assert_eq!(of(Account::Failed), (1, 505_000_000, 50));
    assert_eq!(of(Account::Decode), (1, 505_000_000, 50));
    ledger.check().expect("all is accounted for");
}

#[test]
fn what_makes_weights_ready_is_startup_and_teaches_nothing() {
    let start = Coefficients { ns_per_byte: 1.0, ns_per_mac: 1.0 };
    let mut ledger = Ledger::new(&PRICES, start, 10 * SECOND, None);
    let row = [RowTokens { decode: 1, ..RowTokens::default() }];
    let work = vec![RowWork { macs: SECOND, ..RowWork::default() }];
    let stats = StepStats { startup_ns: 30 * SECOND, rows: work, ..StepStats::default() };
    let charges = ledger.step(Tick(31 * SECOND), &stats, &row);
    let Amount { ns, pico, energy } = charges[0].decode;
    assert_eq!((ns, pico / 1_000_000, energy / (JOULE / 1000)), (SECOND, 1000, 50_000));
    let seconds = |account: Account, ledger: &Ledger| ledger.cost().accounts[account as usize].ns / SECOND;
    assert_eq!([Account::Startup, Account::Decode].map(|a| seconds(a, &ledger)), [40, 1]);
    // As foretold, so there was nothing to learn.
    assert!((ledger.coefficients().ns_per_mac - 1.0).abs() < 1e-6);
    // No step is shorter than what it was for.
    ledger.step(Tick(32 * SECOND), &stats, &row);
    assert_eq!([Account::Startup, Account::Decode].map(|a| seconds(a, &ledger)), [41, 1]);
    ledger.check().expect("all is accounted for");
}

#[test]
fn without_a_price_there_is_no_money() {
    let mut ledger = Ledger::new(&Prices::default(), Coefficients::default(), 0, None);
    ledger.count(5, 5);
    ledger.idle(Tick(SECOND));
    let cost = ledger.cost();
    assert_eq!(
        (cost.price_per_hour, cost.total.all.money_loaded, cost.total.all.money_marginal),
        (None, None, None)
    );
    assert_eq!(cost.total.all.seconds_marginal, Some(0.0));
    assert_eq!((cost.joules(Account::Idle), cost.total.all.joules_loaded), (None, None));
}

#[test]
fn measured_energy_goes_where_time_goes_at_its_own_price() {
    // 0.36 a kilowatt-hour: 100 nano-units a joule.
    let per_kwh = Some(360_000_000_000);
    let prices = Prices { per_hour: Some(0), per_kwh, power_milliwatts: Some(10_000), ..Prices::default() };
    let mut ledger = Ledger::new(&prices, Coefficients::default(), SECOND, Some(70 * JOULE));
    ledger.measure(100 * JOULE);
    ledger.idle(Tick(2 * SECOND));
    let rows =
        [RowTokens { prefill: 90, ..RowTokens::default() }, RowTokens { decode: 1, ..RowTokens::default() }];
    let work = |macs| RowWork { macs, ..RowWork::default() };
    let stats = StepStats { rows: vec![work(300), work(100)], ..StepStats::default() };
    ledger.measure(500 * JOULE);
    ledger.step(Tick(3 * SECOND), &stats, &rows);
    ledger.count(100, 50);
    let cost = ledger.cost();
    let joules = |account| cost.joules(account).expect("it is measured");
    // What was measured, and 10 W of the rest of the machine.
    assert_eq!([Account::Startup, Account::Idle].map(joules), [70.0 + 10.0, 30.0 + 20.0]);
    assert!(
        (joules(Account::Prefill) - 307.5).abs() < 1e-6 && (joules(Account::Decode) - 102.5).abs() < 1e-6
    );
    let pico: u128 = cost.accounts.iter().map(|a| a.pico).sum();
    assert_eq!(pico, 500 * 100_000, "the rest of the machine is in the price of an hour");
    let per_token = |joules: Option<f64>| joules.map(|j| (j / 1e6 * 1e3).round() / 1e3);
    assert_eq!(per_token(cost.total.all.joules_marginal), Some(2.733));
    assert_eq!(per_token(cost.total.all.joules_loaded), Some(3.6));
}

#[test]
fn savings_are_what_computing_would_have_cost() {
    let mut ledger = Ledger::new(&PRICES, Coefficients { ns_per_byte: 1.0, ns_per_mac: 1.0 }, 0, None);
    assert_eq!(ledger.save(100), Amount::default(), "nothing is known of prompts yet");
    let stats =
        StepStats { rows: vec![RowWork { macs: 4000, ..RowWork::default() }], ..StepStats::default() };
    ledger.step(Tick(4000), &stats, &[RowTokens { prefill: 40, ..RowTokens::default() }]);
    let saved = ledger.save(100);
    assert!((9_999..=10_000).contains(&saved.ns) && (9_999..=10_000).contains(&saved.pico), "{saved:?}");
    assert_eq!(ledger.cost().saved, saved);
}

/// Dense weights that take 25 ms to read, and 10 us of multiply-adds for each token: wrong drafts pay for the latter alone.
#[test]
fn wrong_drafts_pay_for_what_they_added() {
    let coefficients = Coefficients { ns_per_byte: 0.05, ns_per_mac: 0.01 };
    let mut ledger = Ledger::new(&PRICES, coefficients, 0, None);
    let step = |tokens: u64, ns| {
        let work = RowWork { expert_bytes: 0, macs: 1_000_000 * tokens, kv_bytes: 100_000_000 };
        (StepStats { dense_bytes: 400_000_000, rows: vec![work], ..StepStats::default() }, ns)
    };
    let charge = |ledger: &mut Ledger, (stats, ns): (StepStats, u64), tokens: RowTokens| {
        let now = Tick(ledger.settled.0 + ns);
        ledger.step(now, &stats, &[tokens])[0]
    };
    let alone = charge(&mut ledger, step(1, 25_010_000), RowTokens { decode: 1, ..RowTokens::default() });
    assert_eq!((alone.decode.ns, alone.draft.ns), (25_010_000, 0));
    let wrong = RowTokens { decode: 1, draft: 8, ..RowTokens::default() };
    let charged = charge(&mut ledger, step(9, 25_090_000), wrong);
    assert!(charged.draft.ns.abs_diff(80_000) < 100, "{charged:?}");
    let right = RowTokens { decode: 9, ..RowTokens::default() };
    let charged = charge(&mut ledger, step(9, 25_090_000), right);
    assert_eq!((charged.decode.ns, charged.draft.ns), (25_090_000, 0));
}
