//! The seam between decisions and execution.

use std::sync::Arc;

use crate::step::{Geometry, StepFault, StepInput, StepOutput};

/// What may change a row's bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Invariance {
    /// A row's results depend on its tokens and positions alone: not on the batch, the chunking, the
    /// number of threads or the instruction set.
    Bitwise,
    /// Results agree within the goldens' tolerance.
    Tolerance,
}

/// Runs steps over a model and its cache. One step is in flight at a time.
pub trait Runner: Send {
    /// Fixed for the runner's life.
    fn geometry(&self) -> &Geometry;

    /// What callers may rely on.
    fn invariance(&self) -> Invariance;

    /// Starts a step. May return before it is done; the caller then prepares what the next step needs.
    ///
    /// # Panics
    /// If a step is in flight.
    fn submit(&mut self, step: Arc<StepInput>);

    /// The result of the step in flight. A fault is a value.
    ///
    /// # Panics
    /// If no step is in flight.
    fn wait(&mut self) -> Result<StepOutput, StepFault>;
}
