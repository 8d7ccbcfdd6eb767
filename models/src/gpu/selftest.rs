//! What `frugal gpu-selftest` runs: every operation of a GPU beside the reference's, and how fast it is.

mod operations;

use std::time::Instant;

use operations::{attentions, experts, products, small};

use super::backend::GpuBackend;
use super::device::GpuDevice;
use super::error::GpuError;
use crate::backend::{Backend, BackendError};
use crate::kv::{KvStore, PageType};
use crate::model_runner::{Check, SelfTest};
use crate::reference::ReferenceBackend;

/// Positions in a block of the cache.
const BLOCK: usize = 16;
/// Runs that a time is the mean of, at most.
const RUNS_MAX: u32 = 50;

/// Runs everything on the device that `open` gives.
///
/// # Errors
/// If a device fails; a wrong result is not an error but a [`Check`] that has not passed.
pub fn selftest(open: &dyn Fn() -> Result<GpuDevice, GpuError>) -> Result<SelfTest, GpuError> {
    let device = open()?;
    let gpu = device.name().to_owned();
    let mut b = GpuBackend::new(device);
    let copy = b.copy_rate()?;
    let mut checks = Vec::new();
    for op in products().into_iter().chain(experts()).chain(small()) {
        checks.push(check(&op, &mut b)?);
    }
    for op in attentions() {
        b.reserve(&[op.layout()], BLOCK, op.page)?;
        checks.push(check(&op, &mut b)?);
    }
    Ok(SelfTest { gpu, copy, checks })
}

type Prepared<B> = Box<dyn Fn(&mut B) -> Result<<B as Backend>::Tensor, BackendError>>;

/// An operation with its inputs.
trait Op {
    fn name(&self) -> String;
    fn limit(&self) -> f64;
    /// Bytes and multiply-adds.
    fn work(&self) -> (u64, u64);
    /// Whether the reference is fast enough to compare with.
    fn compared(&self) -> bool;
    fn prepare<B: Backend + 'static>(&self, b: &mut B) -> Result<Prepared<B>, BackendError>;
    fn reference(&self) -> Result<ReferenceBackend, GpuError> {
        KvStore::new(&[], BLOCK, PageType::F32).map(ReferenceBackend::new).map_err(device_error)
    }
}

fn device_error(error: impl std::fmt::Display) -> GpuError {
    GpuError::Device(error.to_string())
}

fn check<O: Op>(op: &O, b: &mut GpuBackend) -> Result<Check, GpuError> {
    let of = |e: BackendError| GpuError::Device(format!("{}: {e}", op.name()));
    let run = op.prepare(b).map_err(of)?;
    let result = run(b).map_err(of)?;
    let ours = b.values(&result).map_err(of)?;
    let error = match op.compared() {
        false => None,
        true => {
            let mut reference = op.reference()?;
            let run = op.prepare(&mut reference).map_err(of)?;
            let result = run(&mut reference).map_err(of)?;
            Some(distance(&ours, &reference.values(&result).map_err(of)?))
        }
    };
    let micros = mean_micros(b, &run).map_err(of)?;
    let (bytes, macs) = op.work();
    Ok(Check { name: op.name(), error, limit: op.limit(), micros, bytes, macs })
}

/// Of one run among many; slow operations run less often.
fn mean_micros(b: &mut GpuBackend, run: &Prepared<GpuBackend>) -> Result<f64, BackendError> {
    let mut timed = |runs: u32| -> Result<f64, BackendError> {
        let begin = Instant::now();
        for _ in 0..runs {
            run(b)?;
        }
        b.synchronize()?;
        Ok(begin.elapsed().as_secs_f64() / f64::from(runs))
    };
    let once = timed(1)?;
    Ok(timed(((0.05 / once) as u32).clamp(1, RUNS_MAX))? * 1e6)
}

/// NaN if anything is.
fn distance(ours: &[f32], theirs: &[f32]) -> f64 {
    if ours.len() != theirs.len() {
        return f64::NAN;
    }
    let square = |v: f32| f64::from(v) * f64::from(v);
    let difference: f64 = ours.iter().zip(theirs).map(|(a, b)| square(a - b)).sum();
    let size: f64 = theirs.iter().map(|&v| square(v)).sum();
    (difference / size).sqrt()
}

#[cfg(test)]
mod tests {
    use super::operations::AnyOp;
    use super::*;

    /// The operations on the host, so that the comparison itself is known to work; those that are only timed are left out.
    #[test]
    fn the_host_passes() {
        passes(GpuDevice::host());
    }

    /// What runs on Apple's GPUs, on the host.
    #[test]
    fn plain_operations_pass() {
        passes(GpuDevice::plain());
    }

    fn passes(device: GpuDevice) {
        let mut b = GpuBackend::new(device);
        // Every format and kind once: the loops of the host do not depend on the number of rows.
        let few = |op: &AnyOp| match op {
            AnyOp::Product(op) => op.compared && op.tokens == 7,
            AnyOp::Experts(op) => op.compared && op.tokens < 10,
            AnyOp::Small(_) => true,
        };
        for op in products().into_iter().chain(experts()).chain(small()).filter(few) {
            let check = check_once(&op, &mut b);
            assert!(check <= op.limit(), "{}: {check}", op.name());
        }
        for op in attentions().into_iter().filter(|op| op.compared && [5, 40].contains(&op.tokens)) {
            b.reserve(&[op.layout()], BLOCK, op.page).unwrap();
            let check = check_once(&op, &mut b);
            assert!(check <= op.limit(), "{}: {check}", op.name());
        }
    }

    fn check_once<O: Op>(op: &O, b: &mut GpuBackend) -> f64 {
        let run = op.prepare(b).unwrap();
        let result = run(b).unwrap();
        let ours = b.values(&result).unwrap();
        let mut reference = op.reference().unwrap();
        let run = op.prepare(&mut reference).unwrap();
        let result = run(&mut reference).unwrap();
        distance(&ours, &reference.values(&result).unwrap())
    }

    #[test]
    fn a_wrong_result_fails() {
        assert!(distance(&[1.0, 2.0], &[1.0, 2.1]) > 0.02);
        assert!(distance(&[1.0, f32::NAN], &[1.0, 2.0]).is_nan());
        let check =
            Check { name: String::new(), error: Some(f64::NAN), limit: 1.0, micros: 0.0, bytes: 0, macs: 0 };
        assert!(!check.passed());
    }
}
