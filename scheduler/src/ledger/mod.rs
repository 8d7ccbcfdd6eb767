//! Who used the machine, in exact integers.
//!
//! Invariant (I7): after every settlement the accounts sum to the time since start, their energy to what was measured by then and
//! the configured power times that time, and their money to the price times that time and the price of what was measured, each
//! rounded down once with the remainder carried. Time without work has a power and a price of its own. Absent on purpose: clocks, meters, names of currencies, floats in anything that is
//! summed (the fit yields only the weights of a split).

mod fit;
mod split;
#[cfg(test)]
mod tests;
mod window;

use frugal_models::step::StepStats;

use crate::options::{Coefficients, Prices};
use crate::request::{RequestCost, Tick};
use crate::snapshot::{Account, Amount, Cost, UnitCosts};

use self::fit::Fit;
pub use self::split::split;
use self::window::{Tally, Window};

const NS_PER_HOUR: u128 = 3_600_000_000_000;
const PICOJOULES_PER_KWH: u128 = 3_600_000_000_000_000_000;

/// What a row's tokens were computed for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RowTokens {
    /// Computed before, and thrown away.
    pub recompute: u32,
    /// Of the prompt, for the first time.
    pub prefill: u32,
    /// Of the output, for the first time.
    pub decode: u32,
    /// Guessed, and wrong.
    pub draft: u32,
}

/// What a request is charged for a row.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RowCharge {
    /// Into `prefill`.
    pub prefill: Amount,
    /// Into `decode`.
    pub decode: Amount,
    /// Into `recompute`: the house's.
    pub recompute: Amount,
    /// Into `draft`: the house's.
    pub draft: Amount,
}

/// What time costs and draws; 0 where that is not known.
#[derive(Clone, Copy, Debug)]
struct Rate {
    per_hour: u64,
    milliwatts: u64,
}

impl Rate {
    fn busy(prices: &Prices) -> Self {
        let Prices { per_hour, power_milliwatts, .. } = prices;
        Self { per_hour: per_hour.unwrap_or(0), milliwatts: power_milliwatts.unwrap_or(0) }
    }

    /// Nothing that is unknown with work is known without.
    fn idle(prices: &Prices) -> Self {
        let per_hour = prices.per_hour.map(|busy| prices.idle_per_hour.unwrap_or(busy));
        let milliwatts = prices.power_milliwatts.map(|busy| prices.idle_milliwatts.unwrap_or(busy));
        Self { per_hour: per_hour.unwrap_or(0), milliwatts: milliwatts.unwrap_or(0) }
    }
}

/// The accounts, and the coefficients that split steps.
#[derive(Clone, Debug)]
pub struct Ledger {
    prices: Prices,
    startup_ns: u64,
    settled: Tick,
    /// Of the time until then, that without work.
    idle_ns: u64,
    /// Picojoules measured so far; None until something is.
    measured: Option<u128>,
    /// Of these, what accounts hold.
    settled_energy: u128,
    /// Remainder of money for time, in 1/3.6e12 of a pico-unit.
    carry: u128,
    /// Remainder of money for measured energy, in 1/3.6e18 of a pico-unit.
    carry_energy: u128,
    accounts: [Amount; 7],
    /// Taken back by faults and not yet paid out of later charges; `prefill` and `decode` only.
    owed: [Amount; 7],
    saved: Amount,
    fit: Fit,
    total: Tally,
    window: Window,
}

impl Ledger {
    /// At tick 0, with `startup_ns` already spent, and picojoules as for [`Ledger::measure`].
    pub fn new(prices: &Prices, start: Coefficients, startup_ns: u64, measured: Option<u128>) -> Self {
        let mut ledger = Self {
            prices: *prices,
            startup_ns,
            settled: Tick(0),
            idle_ns: 0,
            measured,
            settled_energy: 0,
            carry: 0,
            carry_energy: 0,
            accounts: [Amount::default(); 7],
            owed: [Amount::default(); 7],
            saved: Amount::default(),
            fit: Fit::new(start),
            total: Tally::default(),
            window: Window::default(),
        };
        let spent = ledger.priced(startup_ns, Rate::busy(prices));
        ledger.post(Account::Startup, spent);
        ledger
    }

    /// Picojoules that were measured so far, which the next settlement is charged with as far as none was before. What is less than
    /// at the last call is not heard.
    pub fn measure(&mut self, picojoules: u128) {
        self.measured = self.measured.max(Some(picojoules));
    }

    /// The time since the last settlement had no work in it.
    pub fn idle(&mut self, now: Tick) {
        let spent = self.settle(now, Rate::idle(&self.prices));
        self.idle_ns += spent.ns;
        self.post(Account::Idle, spent);
    }

    /// A step faulted: what it took is nobody's.
    pub fn fault(&mut self, now: Tick) {
        let spent = self.settle(now, Rate::busy(&self.prices));
        self.post(Account::Failed, spent);
    }

    /// A step is done: splits the time since the last settlement over its rows by the work each caused, and within a
    /// row by tokens, of which wrong drafts pay for what they added; but for what made weights ready, which is startup. One
    /// charge per row.
    ///
    /// # Panics
    /// If `stats` has not one entry per row, or there is no row.
    pub fn step(&mut self, now: Tick, stats: &StepStats, rows: &[RowTokens]) -> Vec<RowCharge> {
        assert!(!rows.is_empty() && stats.rows.len() == rows.len(), "work is reported for every row");
        let spent = self.settle(now, Rate::busy(&self.prices));
        let (startup, spent) = apart(spent, stats.startup_ns);
        self.post(Account::Startup, startup);
        let weights = self.fit.weights(stats);
        let kinds: Vec<_> =
            stats.rows.iter().zip(rows).map(|(work, row)| self.fit.kinds(stats, work, row)).collect();
        self.fit.observe(stats, rows, spent.ns);
        let mut charges = Vec::with_capacity(rows.len());
        for (kinds, share) in kinds.iter().zip(shares(spent, &weights)) {
            let parts = shares(share, kinds);
            let charge =
                RowCharge { recompute: parts[0], prefill: parts[1], decode: parts[2], draft: parts[3] };
            self.post(Account::Recompute, charge.recompute);
            self.post(Account::Prefill, charge.prefill);
            self.post(Account::Decode, charge.decode);
            self.post(Account::Draft, charge.draft);
            charges.push(charge);
        }
        charges
    }

    /// A request ended in a fault: what it used goes to `failed`, out of the next charges to where it was.
    pub fn fail(&mut self, cost: &RequestCost) {
        self.owed[Account::Prefill as usize] += cost.prefill();
        self.owed[Account::Decode as usize] += cost.decode();
    }

    /// Prompt tokens taken from the prefix cache: what computing them would have cost, by the present coefficients.
    pub fn save(&mut self, tokens: u32) -> Amount {
        let ns = self.fit.prefill_ns(tokens);
        let pico = u128::from(ns) * u128::from(self.prices.per_hour.unwrap_or(0)) / NS_PER_HOUR;
        self.saved.ns = self.saved.ns.saturating_add(ns);
        self.saved.pico = self.saved.pico.saturating_add(pico);
        Amount { ns, pico, energy: 0 }
    }

    /// Tokens for the cost per million: prompt tokens scheduled, output tokens chosen.
    pub fn count(&mut self, input: u64, output: u64) {
        let tally = Tally { input, output, ..Tally::default() };
        self.total.add(&tally);
        self.window.add(self.settled, &tally);
    }

    /// Prompt tokens that a step may compute beside `decode_rows` to be done in `target_ns`; None before any was computed.
    pub fn chunk_within(&self, target_ns: u64, decode_rows: u32) -> Option<u32> {
        self.fit.chunk_within(target_ns, decode_rows)
    }

    /// How likely a draft token has to be right to be worth its computation, as far as is known; 1 or more where none is.
    pub fn draft_price(&self) -> f64 {
        self.fit.draft_price()
    }

    /// Present coefficients.
    pub fn coefficients(&self) -> Coefficients {
        self.fit.coefficients()
    }

    /// Whether money means anything.
    pub fn is_priced(&self) -> bool {
        self.prices.per_hour.is_some()
    }

    fn has_energy(&self) -> bool {
        self.measured.is_some() || self.prices.power_milliwatts.is_some()
    }

    /// What faults took back and later charges have not paid yet.
    pub fn owed(&self, account: Account) -> Amount {
        self.owed[account as usize]
    }

    /// All totals, as published.
    pub fn cost(&self) -> Cost {
        let costs = |t: &Tally| t.unit_costs(self.is_priced(), self.has_energy());
        Cost {
            accounts: self.accounts,
            price_per_hour: self.prices.per_hour,
            has_energy: self.has_energy(),
            saved: self.saved,
            recent: costs(&self.window.sum(self.settled)),
            total: costs(&self.total),
        }
    }

    /// I7. Gives all that the accounts hold.
    pub fn check(&self) -> Result<Amount, String> {
        let held = sum(&self.accounts);
        let elapsed = self.startup_ns + self.settled.0;
        let times =
            [(elapsed - self.idle_ns, Rate::busy(&self.prices)), (self.idle_ns, Rate::idle(&self.prices))];
        let of_time = |of: fn(&Rate) -> u64| -> u128 {
            times.iter().map(|(ns, rate)| u128::from(*ns) * u128::from(of(rate))).sum()
        };
        let (of_energy, _) = priced(self.settled_energy, self.per_kwh(), 0);
        let due = Amount {
            ns: elapsed,
            pico: of_time(|rate| rate.per_hour) / NS_PER_HOUR + of_energy,
            energy: of_time(|rate| rate.milliwatts) + self.settled_energy,
        };
        if held != due {
            return Err(format!("I7: the accounts hold {held:?}, what was spent is {due:?}"));
        }
        Ok(held)
    }

    fn settle(&mut self, now: Tick, rate: Rate) -> Amount {
        assert!(now >= self.settled, "time goes forward");
        let ns = now.0 - self.settled.0;
        self.settled = now;
        self.priced(ns, rate)
    }

    /// So much time, and what was measured since the last one.
    fn priced(&mut self, ns: u64, rate: Rate) -> Amount {
        let due = u128::from(ns) * u128::from(rate.per_hour) + self.carry;
        self.carry = due % NS_PER_HOUR;
        let measured = self.measured.unwrap_or(0) - self.settled_energy;
        self.settled_energy += measured;
        let (pico, carry) = priced(measured, self.per_kwh(), self.carry_energy);
        self.carry_energy = carry;
        let configured = u128::from(ns) * u128::from(rate.milliwatts);
        Amount { ns, pico: due / NS_PER_HOUR + pico, energy: measured + configured }
    }

    /// What measured energy costs, in a ledger that counts money.
    fn per_kwh(&self) -> u64 {
        self.prices.per_kwh.filter(|_| self.is_priced()).unwrap_or(0)
    }

    fn post(&mut self, account: Account, amount: Amount) {
        let owed = &mut self.owed[account as usize];
        let back = owed.min(amount);
        *owed = *owed - back;
        self.add(Account::Failed, back);
        self.add(account, amount - back);
    }

    fn add(&mut self, account: Account, amount: Amount) {
        self.accounts[account as usize] += amount;
        let mut tally = Tally::default();
        tally.accounts[account as usize] = amount;
        self.total.add(&tally);
        self.window.add(self.settled, &tally);
    }
}

impl RowCharge {
    /// Adds what the request is shown.
    pub fn add_to(&self, cost: &mut RequestCost, priced: bool) {
        cost.prefill_ns += self.prefill.ns;
        cost.decode_ns += self.decode.ns;
        cost.prefill_energy += self.prefill.energy;
        cost.decode_energy += self.decode.energy;
        if priced {
            *cost.prefill.get_or_insert(0) += self.prefill.pico;
            *cost.decode.get_or_insert(0) += self.decode.pico;
        }
    }
}

impl Tally {
    fn unit_costs(&self, priced: bool, has_energy: bool) -> UnitCosts {
        let all = sum(&self.accounts);
        let (prefill, decode) =
            (self.accounts[Account::Prefill as usize], self.accounts[Account::Decode as usize]);
        let both = prefill + decode;
        let unit = |part, tokens| {
            let mut cost = window::unit_cost(part, both, all, tokens);
            if !priced {
                (cost.money_marginal, cost.money_loaded) = (None, None);
            }
            if !has_energy {
                (cost.joules_marginal, cost.joules_loaded) = (None, None);
            }
            cost
        };
        UnitCosts {
            input: unit(prefill, self.input),
            output: unit(decode, self.output),
            all: unit(both, self.input + self.output),
        }
    }
}

fn sum(amounts: &[Amount]) -> Amount {
    amounts.iter().fold(Amount::default(), |sum, &amount| sum + amount)
}

/// So much of an amount's time, with its share of the money and energy; and the rest.
fn apart(amount: Amount, ns: u64) -> (Amount, Amount) {
    let ns = ns.min(amount.ns);
    // As finely as rows are weighed.
    let weight = ((u128::from(ns) << 32) / u128::from(amount.ns.max(1))) as u64;
    let of = |total| split(total, &[weight, (1 << 32) - weight]);
    let (pico, energy) = (of(amount.pico), of(amount.energy));
    let part = Amount { ns, pico: pico[0], energy: energy[0] };
    (part, amount - part)
}

/// Each part of an amount by [`split`].
fn shares(amount: Amount, weights: &[u64]) -> Vec<Amount> {
    let (ns, pico, energy) =
        (split(u128::from(amount.ns), weights), split(amount.pico, weights), split(amount.energy, weights));
    let parts = ns.into_iter().zip(pico).zip(energy);
    parts.map(|((ns, pico), energy)| Amount { ns: ns as u64, pico, energy }).collect()
}

/// Pico-units for picojoules and a remainder of earlier ones; and what remains. In two parts, so that decades fit into 128 bits.
fn priced(picojoules: u128, per_kwh: u64, carry: u128) -> (u128, u128) {
    let (kwh, rest) = (picojoules / PICOJOULES_PER_KWH, picojoules % PICOJOULES_PER_KWH);
    let due = rest * u128::from(per_kwh) + carry;
    (kwh * u128::from(per_kwh) + due / PICOJOULES_PER_KWH, due % PICOJOULES_PER_KWH)
}
