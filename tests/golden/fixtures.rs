//! Every fixture, on every backend, within the limits.
//!
//! The project has each architecture in F32 and each format once. With FRUGAL_FIXTURES=FOLDER all models of that
//! folder that have a golden are run too.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use frugal_models::gguf::Gguf;
use frugal_models::kv::PageType;
use frugal_models::model_runner::BackendKind;

use crate::compare::{compare, guesses};
use crate::fixture::{
    EXACT, EXACT_F16_PAGES, EXACT_Q8_0_PAGES, EXACT_Q8_0_PAGES_DEEPSEEK2_V3, Golden, ROUNDED, folder, names,
    open, open_in,
};

fn reference(gguf: &Gguf, golden: &Golden) -> Result<()> {
    compare(gguf, golden, BackendKind::Reference, PageType::F32, EXACT)?;
    guesses(gguf, golden, BackendKind::Reference)
}

fn cpu(gguf: &Gguf, golden: &Golden) -> Result<()> {
    compare(gguf, golden, BackendKind::Cpu, PageType::F32, golden.cpu_limits())?;
    guesses(gguf, golden, BackendKind::Cpu)
}

macro_rules! fixtures {
    ($($test:ident = $name:literal;)*) => {
        const NAMES: &[&str] = &[$($name),*];
        mod reference {
            use super::*;
            $(#[test]
            fn $test() -> Result<()> {
                let (gguf, golden) = open($name)?;
                super::reference(&gguf, &golden).context($name)
            })*
        }
        mod cpu {
            use super::*;
            $(#[test]
            fn $test() -> Result<()> {
                let (gguf, golden) = open($name)?;
                super::cpu(&gguf, &golden).context($name)
            })*
        }
    };
}

fixtures! {
    llama_f32 = "llama-F32";
    llama_moe_f32 = "llama-moe-F32";
    qwen3moe_bf16 = "qwen3moe-BF16";
    qwen3moe_f16 = "qwen3moe-F16";
    qwen3moe_f32 = "qwen3moe-F32";
    qwen3moe_iq4_nl = "qwen3moe-IQ4_NL";
    qwen3moe_iq4_xs = "qwen3moe-IQ4_XS";
    qwen3moe_q2_k = "qwen3moe-Q2_K";
    qwen3moe_q4_0 = "qwen3moe-Q4_0";
    qwen3moe_q4_1 = "qwen3moe-Q4_1";
    qwen3moe_q4_k_m = "qwen3moe-Q4_K_M";
    qwen3moe_q5_1 = "qwen3moe-Q5_1";
    llama_q4_k_m = "llama-Q4_K_M";
    deepseek2_lite_f32 = "deepseek2-lite-F32";
    deepseek2_v3_f32 = "deepseek2-v3-F32";
    deepseek2_v3_q4_k_m = "deepseek2-v3-Q4_K_M";
    glm4moe_f32 = "glm4moe-F32";
    gpt_oss_f32 = "gpt-oss-F32";
    gpt_oss_mxfp4 = "gpt-oss-MXFP4_MOE";
    granitemoe_f32 = "granitemoe-F32";
    olmoe_f32 = "olmoe-F32";
    qwen2_f32 = "qwen2-F32";
    qwen2moe_f32 = "qwen2moe-F32";
    qwen3_f32 = "qwen3-F32";
}

/// GLM-4.7-Flash's published files have V3's bias and do not say that the gating is sigmoid.
#[test]
fn a_gating_that_is_not_stated_is_told_by_the_bias() -> Result<()> {
    let (mut gguf, golden) = open("deepseek2-v3-F32")?;
    ensure!(gguf.hide("deepseek2.expert_gating_func"), "the file states it");
    compare(&gguf, &golden, BackendKind::Reference, PageType::F32, EXACT)
}

#[test]
fn reference_with_f16_pages() -> Result<()> {
    let (gguf, golden) = open("qwen3moe-F32")?;
    compare(&gguf, &golden, BackendKind::Reference, PageType::F16, EXACT_F16_PAGES)
}

fn with_q8_0_pages(backend: BackendKind, name: &'static str) -> Result<()> {
    let (gguf, golden) = open(name)?;
    let limits = match name {
        "deepseek2-v3-F32" => EXACT_Q8_0_PAGES_DEEPSEEK2_V3,
        _ if golden.cpu_limits() == EXACT => EXACT_Q8_0_PAGES,
        _ => ROUNDED,
    };
    compare(&gguf, &golden, backend, PageType::Q8_0, limits).context(name)
}

#[test]
fn cpu_with_q8_0_pages() -> Result<()> {
    NAMES.iter().try_for_each(|name| with_q8_0_pages(BackendKind::Cpu, name))
}

#[test]
fn reference_with_q8_0_pages() -> Result<()> {
    ["qwen3moe-F32", "deepseek2-v3-F32"]
        .iter()
        .try_for_each(|name| with_q8_0_pages(BackendKind::Reference, name))
}

#[test]
fn every_fixture_is_tested() -> Result<()> {
    let mut tested = NAMES.to_vec();
    tested.sort_unstable();
    assert_eq!(tested, names(&folder())?);
    Ok(())
}

/// The files of FRUGAL_FIXTURES, and how each fails.
fn full_set(check: fn(&Gguf, &Golden) -> Result<()>) -> Result<()> {
    let Some(folder) = std::env::var_os("FRUGAL_FIXTURES").map(PathBuf::from) else {
        frugal_tests::skip("the full set of fixtures: FRUGAL_FIXTURES does not name its folder");
        return Ok(());
    };
    let names = names(&folder)?;
    ensure!(!names.is_empty(), "no models with goldens in {}", folder.display());
    let run = |name: &String| open_in(&folder, name).and_then(|(gguf, golden)| check(&gguf, &golden));
    let failed: Vec<String> =
        names.iter().filter_map(|name| Some(format!("{name}: {:#}", run(name).err()?))).collect();
    eprintln!("{} of {} files within their limits", names.len() - failed.len(), names.len());
    ensure!(failed.is_empty(), "{}", failed.join("\n"));
    Ok(())
}

#[test]
fn full_set_on_the_reference() -> Result<()> {
    full_set(reference)
}

#[test]
fn full_set_on_the_cpu() -> Result<()> {
    full_set(cpu)
}
