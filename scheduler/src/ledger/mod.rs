//! Who used the machine, in exact integers.
//!
//! Invariant (I7): after every settlement the accounts sum to the time since start, and their money to the price times
//! that time, rounded down once with the remainder carried. Absent on purpose: clocks, names of currencies, floats
//! in anything that is summed (the fit yields only the weights of a split).

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

/// What a row's tokens were computed for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RowTokens {
    /// Computed before, and thrown away.
    pub recompute: u32,
    /// Of the prompt, for the first time.
    pub prefill: u32,
    /// Of the output, for the first time.
    pub decode: u32,
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
}

/// The accounts, and the coefficients that split steps.
#[derive(Clone, Debug)]
pub struct Ledger {
    price: Option<u64>,
    power_milliwatts: Option<u64>,
    startup_ns: u64,
    settled: Tick,
    /// Remainder of money, in 1/3.6e12 of a pico-unit.
    carry: u128,
    accounts: [Amount; 7],
    /// Taken back by faults and not yet paid out of later charges; `prefill` and `decode` only.
    owed: [Amount; 7],
    saved: Amount,
    fit: Fit,
    total: Tally,
    window: Window,
}

impl Ledger {
    /// At tick 0, with `startup_ns` already spent.
    pub fn new(prices: &Prices, start: Coefficients, startup_ns: u64) -> Self {
        let mut ledger = Self {
            price: prices.per_hour,
            power_milliwatts: prices.power_milliwatts,
            startup_ns,
            settled: Tick(0),
            carry: 0,
            accounts: [Amount::default(); 7],
            owed: [Amount::default(); 7],
            saved: Amount::default(),
            fit: Fit::new(start),
            total: Tally::default(),
            window: Window::default(),
        };
        let spent = ledger.priced(startup_ns);
        ledger.post(Account::Startup, spent);
        ledger
    }

    /// The time since the last settlement had no work in it.
    pub fn idle(&mut self, now: Tick) {
        let spent = self.settle(now);
        self.post(Account::Idle, spent);
    }

    /// A step faulted: what it took is nobody's.
    pub fn fault(&mut self, now: Tick) {
        let spent = self.settle(now);
        self.post(Account::Failed, spent);
    }

    /// A step is done: splits the time since the last settlement over its rows by the work each caused, and within a
    /// row by tokens. One charge per row.
    ///
    /// # Panics
    /// If `stats` has not one entry per row, or there is no row.
    pub fn step(&mut self, now: Tick, stats: &StepStats, rows: &[RowTokens]) -> Vec<RowCharge> {
        assert!(!rows.is_empty() && stats.rows.len() == rows.len(), "work is reported for every row");
        let spent = self.settle(now);
        let weights = self.fit.weights(stats);
        self.fit.observe(stats, rows, spent.ns);
        let ns = split(u128::from(spent.ns), &weights);
        let pico = split(spent.pico, &weights);
        let mut charges = Vec::with_capacity(rows.len());
        for (i, row) in rows.iter().enumerate() {
            let parts = [row.recompute, row.prefill, row.decode].map(u64::from);
            let (ns, pico) = (split(ns[i], &parts), split(pico[i], &parts));
            let amount = |k: usize| Amount { ns: ns[k] as u64, pico: pico[k] };
            let charge = RowCharge { recompute: amount(0), prefill: amount(1), decode: amount(2) };
            self.post(Account::Recompute, charge.recompute);
            self.post(Account::Prefill, charge.prefill);
            self.post(Account::Decode, charge.decode);
            charges.push(charge);
        }
        charges
    }

    /// A request ended in a fault: what it used goes to `failed`, out of the next charges to where it was.
    pub fn fail(&mut self, cost: &RequestCost) {
        for (account, ns, pico) in [
            (Account::Prefill, cost.prefill_ns, cost.prefill),
            (Account::Decode, cost.decode_ns, cost.decode),
        ] {
            let owed = &mut self.owed[account as usize];
            owed.ns += ns;
            owed.pico += pico.unwrap_or(0);
        }
    }

    /// Prompt tokens taken from the prefix cache: what computing them would have cost, by the present coefficients.
    pub fn save(&mut self, tokens: u32) -> Amount {
        let ns = self.fit.prefill_ns(tokens);
        let pico = u128::from(ns) * u128::from(self.price.unwrap_or(0)) / NS_PER_HOUR;
        self.saved.ns = self.saved.ns.saturating_add(ns);
        self.saved.pico = self.saved.pico.saturating_add(pico);
        Amount { ns, pico }
    }

    /// Tokens for the cost per million: prompt tokens scheduled, output tokens chosen.
    pub fn count(&mut self, input: u64, output: u64) {
        let tally = Tally { input, output, ..Tally::default() };
        self.total.add(&tally);
        self.window.add(self.settled, &tally);
    }

    /// Prompt tokens that a step may compute beside `decode_rows` to be done in `target_ns`, as far as is known.
    pub fn chunk_within(&self, target_ns: u64, decode_rows: u32) -> u32 {
        self.fit.chunk_within(target_ns, decode_rows)
    }

    /// Present coefficients.
    pub fn coefficients(&self) -> Coefficients {
        self.fit.coefficients()
    }

    /// Whether money means anything.
    pub fn is_priced(&self) -> bool {
        self.price.is_some()
    }

    /// What faults took back and later charges have not paid yet.
    pub fn owed(&self, account: Account) -> Amount {
        self.owed[account as usize]
    }

    /// All totals, as published.
    pub fn cost(&self) -> Cost {
        let costs = |t: &Tally| t.unit_costs(self.is_priced());
        Cost {
            accounts: self.accounts,
            price_per_hour: self.price,
            power_milliwatts: self.power_milliwatts,
            saved: self.saved,
            recent: costs(&self.window.sum(self.settled)),
            total: costs(&self.total),
        }
    }

    /// I7. Gives the time and money of all accounts.
    pub fn check(&self) -> Result<Amount, String> {
        let ns: u64 = self.accounts.iter().map(|a| a.ns).sum();
        let pico: u128 = self.accounts.iter().map(|a| a.pico).sum();
        let elapsed = self.startup_ns + self.settled.0;
        let price = u128::from(self.price.unwrap_or(0));
        if ns != elapsed {
            return Err(format!("I7: the accounts hold {ns} ns of {elapsed} ns"));
        }
        if pico != u128::from(elapsed) * price / NS_PER_HOUR {
            return Err(format!(
                "I7: the accounts hold {pico} pico-units, {price} an hour for {elapsed} ns is something else"
            ));
        }
        Ok(Amount { ns, pico })
    }

    fn settle(&mut self, now: Tick) -> Amount {
        assert!(now >= self.settled, "time goes forward");
        let ns = now.0 - self.settled.0;
        self.settled = now;
        self.priced(ns)
    }

    fn priced(&mut self, ns: u64) -> Amount {
        let due = u128::from(ns) * u128::from(self.price.unwrap_or(0)) + self.carry;
        self.carry = due % NS_PER_HOUR;
        Amount { ns, pico: due / NS_PER_HOUR }
    }

    fn post(&mut self, account: Account, amount: Amount) {
        let owed = &mut self.owed[account as usize];
        let back = Amount { ns: owed.ns.min(amount.ns), pico: owed.pico.min(amount.pico) };
        owed.ns -= back.ns;
        owed.pico -= back.pico;
        self.add(Account::Failed, back);
        self.add(account, Amount { ns: amount.ns - back.ns, pico: amount.pico - back.pico });
    }

    fn add(&mut self, account: Account, amount: Amount) {
        let total = &mut self.accounts[account as usize];
        total.ns += amount.ns;
        total.pico += amount.pico;
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
        if priced {
            *cost.prefill.get_or_insert(0) += self.prefill.pico;
            *cost.decode.get_or_insert(0) += self.decode.pico;
        }
    }
}

impl Tally {
    fn unit_costs(&self, priced: bool) -> UnitCosts {
        let all: Amount = self
            .accounts
            .iter()
            .fold(Amount::default(), |sum, a| Amount { ns: sum.ns + a.ns, pico: sum.pico + a.pico });
        let (prefill, decode) =
            (self.accounts[Account::Prefill as usize], self.accounts[Account::Decode as usize]);
        let both = Amount { ns: prefill.ns + decode.ns, pico: prefill.pico + decode.pico };
        let unit = |part, tokens| window::unit_cost(part, both, all, tokens, priced);
        UnitCosts {
            input: unit(prefill, self.input),
            output: unit(decode, self.output),
            all: unit(both, self.input + self.output),
        }
    }
}
