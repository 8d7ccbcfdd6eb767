//! A backend that takes weights and computes nothing, so that an architecture's own checks of a file can be had for the
//! price of its header.
//!
//! Its tensors cannot exist, so neither can a call of an operation on one.

use std::convert::Infallible;

use crate::backend::{AttendSpec, Backend, BackendError, Batch, Gated, Rope, RouteSpec, Router};
use crate::step::StepStats;
use crate::weights::TensorView;

/// See the module.
pub(super) struct Dry;

type Never<T> = Result<T, BackendError>;

impl Backend for Dry {
    type Tensor = Infallible;
    type Weight = ();
    type Room = ();
    type Vector = ();
    type Routing = Infallible;

    fn load_weight(&mut self, _: &TensorView) -> Never<()> {
        Ok(())
    }

    fn load_embedding(&mut self, _: &TensorView) -> Never<()> {
        Ok(())
    }

    fn load_vector(&mut self, _: &TensorView) -> Never<()> {
        Ok(())
    }

    fn begin(&mut self, _: &Batch) -> Never<()> {
        Err(computes_nothing())
    }

    fn embed(&mut self, (): &(), _: &Batch) -> Never<Infallible> {
        Err(computes_nothing())
    }

    fn rms_norm(&mut self, x: &Infallible, (): &(), _: f32) -> Never<Infallible> {
        match *x {}
    }

    fn linear(&mut self, x: &Infallible, _: &[&()]) -> Never<Vec<Infallible>> {
        match *x {}
    }

    fn add_bias(&mut self, x: &mut Infallible, (): &()) -> Never<()> {
        match *x {}
    }

    fn per_head(&mut self, x: &Infallible, (): &()) -> Never<Infallible> {
        match *x {}
    }

    fn rope(&mut self, x: &mut Infallible, _: u32, _: &Rope, _: &Batch) -> Never<()> {
        match *x {}
    }

    fn attend(
        &mut self,
        q: &Infallible,
        _: &Infallible,
        _: Option<&Infallible>,
        _: Option<&()>,
        _: &AttendSpec,
        _: &Batch,
    ) -> Never<Infallible> {
        match *q {}
    }

    fn route(&mut self, x: &Infallible, _: Router<'_, (), ()>, _: &RouteSpec) -> Never<Infallible> {
        match *x {}
    }

    fn experts(
        &mut self,
        x: &Infallible,
        _: &Infallible,
        _: Gated<'_, (), ()>,
        _: &Batch,
    ) -> Never<Infallible> {
        match *x {}
    }

    fn feed_forward(&mut self, x: &Infallible, _: Gated<'_, (), ()>) -> Never<Infallible> {
        match *x {}
    }

    fn gate(&mut self, x: &mut Infallible, _: &Infallible, (): &()) -> Never<()> {
        match *x {}
    }

    fn scale(&mut self, x: &mut Infallible, _: f32) -> Never<()> {
        match *x {}
    }

    fn add(&mut self, x: &mut Infallible, _: &Infallible, _: f32) -> Never<()> {
        match *x {}
    }

    fn select(&mut self, x: &Infallible, _: &[u32]) -> Never<Infallible> {
        match *x {}
    }

    fn read<'a>(&mut self, x: &'a Infallible, (): &'a mut ()) -> Never<&'a [f32]> {
        match *x {}
    }

    fn take_stats(&mut self) -> Never<StepStats> {
        Ok(StepStats::default())
    }
}

fn computes_nothing() -> BackendError {
    BackendError::Device("weights were only looked at".to_owned())
}
