//! The invariants, executable: on a live engine for a debug endpoint, after every step in the simulation.

use crate::engine::Engine;
use crate::snapshot::{Account, Amount, PoolCounts};

/// What a check saw.
#[derive(Clone, Debug, Default)]
pub struct SelfCheck {
    /// Requests not done.
    pub requests: usize,
    /// Sequences not ended.
    pub sequences: usize,
    /// Per cache group.
    pub blocks: Vec<PoolCounts>,
    /// All accounts together.
    pub accounts: Amount,
    /// The first invariant found broken.
    pub violation: Option<String>,
}

impl Engine {
    /// I1, I2, I3, I6 and I7 between steps. Takes time in proportion to blocks and sequences.
    pub fn check(&self) -> SelfCheck {
        let mut seen = SelfCheck {
            requests: self.live.len(),
            sequences: self.seqs.len(),
            blocks: self.kv.counts().collect(),
            ..SelfCheck::default()
        };
        let money = self.ledger.check();
        seen.accounts = money.clone().unwrap_or_default();
        seen.violation = self
            .kv
            .check(self.seqs.values().map(|s| &s.kv))
            .and_then(|()| self.check_sequences())
            .and_then(|()| self.check_requests())
            .and_then(|()| money.map(drop))
            .and_then(|()| self.check_charges())
            .err();
        seen
    }

    fn check_sequences(&self) -> Result<(), String> {
        for (id, seq) in &self.seqs {
            let (waiting, running) = (self.waiting.contains(id), self.running.contains(id));
            if waiting == running {
                return Err(format!("{id:?} is waiting: {waiting}, running: {running}"));
            }
            if seq.computed > seq.len() || (waiting && (seq.computed > 0 || seq.kv.holds_blocks())) {
                return Err(format!(
                    "I3: {id:?} has computed {} of {} (waiting: {waiting})",
                    seq.computed,
                    seq.len()
                ));
            }
            if !self.kv.covers(&seq.kv, seq.computed) {
                return Err(format!("I3: the tables of {id:?} do not cover its {} positions", seq.computed));
            }
        }
        if self.waiting.len() + self.running.len() != self.seqs.len() {
            return Err("a sequence that has ended is still listed".to_owned());
        }
        Ok(())
    }

    /// I6, as far as it can be seen from here: a request is live while a choice is, and no longer.
    fn check_requests(&self) -> Result<(), String> {
        let mut open = 0;
        for (id, live) in &self.live {
            let alive = live.seqs.iter().filter(|s| self.seqs.contains_key(s)).count();
            if alive == 0 || alive != live.open as usize {
                return Err(format!("I6: {id:?} counts {} open choices, {alive} are alive", live.open));
            }
            open += alive;
        }
        if open != self.seqs.len() {
            return Err(format!("I6: {} sequences, {open} of live requests", self.seqs.len()));
        }
        Ok(())
    }

    /// I7, second half: what requests were shown is what the accounts hold.
    fn check_charges(&self) -> Result<(), String> {
        let cost = self.ledger.cost();
        for (i, account) in [Account::Prefill, Account::Decode].into_iter().enumerate() {
            let mut charged = self.ended[i];
            for live in self.live.values() {
                let cost = &live.report.cost;
                charged += [cost.prefill(), cost.decode()][i];
            }
            let owed = self.ledger.owed(account);
            let held = cost.accounts[account as usize];
            if held != charged + owed {
                let name = account.name();
                return Err(format!(
                    "I7: `{name}` holds {held:?}, requests were charged {charged:?}, {owed:?} is owed"
                ));
            }
        }
        Ok(())
    }
}
