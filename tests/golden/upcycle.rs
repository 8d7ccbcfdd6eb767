//! An upcycled model's logits are its dense parent's, so the parent's golden is its golden too.

use anyhow::Result;
use frugal_models::gguf::Gguf;
use frugal_models::kv::PageType;
use frugal_models::model_runner::BackendKind;
use frugal_models::upcycle::upcycle;

use crate::compare::compare;
use crate::fixture::{EXACT, Limits, ROUNDED, open, path};

fn check(name: &str, experts: u32, top_k: u32, backend: BackendKind, limits: Limits) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let output = folder.path().join("upcycled.gguf");
    upcycle(&path(name), &output, (experts, top_k, 1), &[], |_, _| {})?;
    let (dense, golden) = open(name)?;
    let upcycled = Gguf::open(&output)?;
    assert_ne!(upcycled.digest(), dense.digest());
    compare(&upcycled, &golden, backend, PageType::F32, limits)
}

#[test]
fn f32_on_the_reference() -> Result<()> {
    check("llama-F32", 8, 2, BackendKind::Reference, EXACT)
}

#[test]
fn f32_on_the_cpu_with_one_expert() -> Result<()> {
    check("llama-F32", 3, 1, BackendKind::Cpu, EXACT)
}

#[test]
fn q4_k_m_on_the_cpu_with_all_experts() -> Result<()> {
    check("llama-Q4_K_M", 4, 4, BackendKind::Cpu, ROUNDED)
}
