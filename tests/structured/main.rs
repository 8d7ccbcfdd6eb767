//! Outputs that follow grammars, by a model with random weights, which would rather not.

mod crowd;
mod schemas;
mod texts;
