//! A packed model is the model: bit for bit what the file it was packed from gives, on the CPU, and refused elsewhere.

use anyhow::{Result, ensure};
use frugal_models::gguf::Gguf;
use frugal_models::kv::PageType;
use frugal_models::model_runner::BackendKind;
use frugal_models::pack::pack;

use crate::drive::Driver;
use crate::fixture::{folder, golden_in, names, path};
use crate::invariance::alone;

#[test]
fn packed_models_give_the_same_bits() -> Result<()> {
    let folder_of_packed = tempfile::tempdir()?;
    let packed = folder_of_packed.path().join("packed.gguf");
    for name in names(&folder())? {
        let (rows, mut golden) = (Gguf::open(&path(&name))?, golden_in(&folder(), &name)?);
        pack(&path(&name), &packed, 2, |_, _| {})?;
        let panels = Gguf::open(&packed)?;
        ensure!(panels.is_packed() && !rows.is_packed(), "{name}");
        golden.prompts.truncate(2);
        let run =
            |gguf: &Gguf| alone(&mut Driver::new(gguf, BackendKind::Cpu, PageType::F32, 128)?, &golden, 100);
        ensure!(run(&panels)? == run(&rows)?, "{name} computes something else when it is packed");
        let Err(refused) = Driver::new(&panels, BackendKind::Reference, PageType::F32, 128) else {
            anyhow::bail!("{name}: the reference reads rows alone")
        };
        ensure!(format!("{refused:#}").contains("use the file that it was packed from"), "{refused:#}");
    }
    Ok(())
}
