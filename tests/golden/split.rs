//! A model split into files is the model: its golden, bit for bit what the whole file gives.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use frugal_models::gguf::{Gguf, GgufWriter, PartName, Value};
use frugal_models::kv::PageType;
use frugal_models::model_runner::BackendKind;

use crate::compare::compare;
use crate::fixture::open;

/// Writes `whole` as `count` parts, tensors in turn as `gguf-split` has them, and says where the first is.
fn split(whole: &Gguf, folder: &Path, count: u32) -> Result<PathBuf> {
    let name = PartName { prefix: "model", no: 1, count };
    let each = whole.tensors().len().div_ceil(count as usize);
    for (no, tensors) in (0u16..).zip(whole.tensors().chunks(each)) {
        let mut writer = GgufWriter::new();
        if no == 0 {
            whole.metadata().for_each(|(key, value)| {
                writer.set(key, value);
            });
        }
        writer.set("split.no", Value::U16(no));
        writer.set("split.count", Value::U16(u16::try_from(count)?));
        writer.set("split.tensors.count", Value::I32(i32::try_from(whole.tensors().len())?));
        for tensor in tensors {
            let ty = tensor.ty().context("a format that can be read")?;
            writer.tensor(&tensor.name, ty, &tensor.dims[..tensor.dim_count as usize]);
        }
        let file = std::fs::File::create(folder.join(name.part(u32::from(no) + 1)))?;
        let mut data = writer.start(std::io::BufWriter::new(file))?;
        for tensor in tensors {
            data.write(whole.view(&tensor.name)?.data)?;
        }
        data.finish().into_inner()?;
    }
    Ok(folder.join(name.part(1)))
}

#[test]
fn a_split_model_is_the_whole_one() -> Result<()> {
    let (whole, golden) = open("qwen3moe-Q4_K_M")?;
    for count in [2, 5] {
        let folder = tempfile::tempdir()?;
        let parts = Gguf::open(&split(&whole, folder.path(), count)?)?;
        assert_eq!(parts.parts(), count as usize);
        assert_ne!(parts.digest(), whole.digest());
        for tensor in whole.tensors() {
            assert!(parts.view(&tensor.name)?.data == whole.view(&tensor.name)?.data, "{}", tensor.name);
        }
        compare(&parts, &golden, BackendKind::Cpu, PageType::F32, golden.cpu_limits())?;
    }
    Ok(())
}
