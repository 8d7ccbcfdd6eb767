//! Remote control of a fake runner: scripted faults, and steps held back.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::step::RowFault;

/// Something that goes wrong in a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FakeFault {
    /// The step fails after its blocks were half written.
    Step(String),
    /// Row `index % rows` fails.
    Row(usize, RowFault),
    /// The runner panics in `wait`.
    Panic,
}

/// Remote control of a [`FakeRunner`](super::FakeRunner) that someone else owns. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct FakeControl {
    shared: Arc<(Mutex<ControlState>, Condvar)>,
}

#[derive(Debug, Default)]
struct ControlState {
    faults: VecDeque<FakeFault>,
    /// Steps that may still be finished; None for any number.
    permits: Option<u64>,
    steps: u64,
    last_step_ns: u64,
    passed: Option<Instant>,
}

impl FakeControl {
    /// The next step without a fault of its own gets this one; more queue up.
    pub fn inject(&self, fault: FakeFault) {
        self.state().faults.push_back(fault);
    }

    /// Steps begun from now on do not finish until [`Self::allow`] or [`Self::resume`].
    pub fn pause(&self) {
        self.state().permits.get_or_insert(0);
    }

    /// Lets so many more steps finish.
    pub fn allow(&self, steps: u64) {
        let mut state = self.state();
        state.permits = state.permits.map(|p| p.saturating_add(steps));
        self.shared.1.notify_all();
    }

    /// Lets all steps finish.
    pub fn resume(&self) {
        self.state().permits = None;
        self.shared.1.notify_all();
    }

    /// Steps finished, faulted ones included.
    pub fn steps(&self) -> u64 {
        self.state().steps
    }

    /// Virtual nanoseconds that the last step took, by the formula.
    pub fn last_step_ns(&self) -> u64 {
        self.state().last_step_ns
    }

    /// When the last step was let finish; None before the first.
    pub fn passed(&self) -> Option<Instant> {
        self.state().passed
    }

    pub(super) fn took(&self, ns: u64) {
        self.state().last_step_ns = ns;
    }

    fn state(&self) -> MutexGuard<'_, ControlState> {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for leave to finish a step, and takes the fault that is due.
    pub(super) fn pass(&self) -> Option<FakeFault> {
        let held = |s: &mut ControlState| s.permits == Some(0);
        let mut state = self.shared.1.wait_while(self.state(), held).unwrap_or_else(PoisonError::into_inner);
        state.permits = state.permits.map(|p| p - 1);
        state.steps += 1;
        state.passed = Some(Instant::now());
        state.faults.pop_front()
    }
}
