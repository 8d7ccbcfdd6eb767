//! Packing a model file for the CPU backend: see [`crate::gguf`] for what a packed file is.

use std::convert::Infallible;
use std::io::{self, Write};
use std::path::Path;

use crate::arch::{self, LoadError};
use crate::atomic::{self, Target, WriteError};
use crate::cpu::{HUGE, pack_panels};
use crate::gguf::packed::{CHECKSUM_KEY, LAYOUT, LAYOUT_KEY, in_parallel};
use crate::gguf::{Gguf, GgufError, GgufWriter, SPLIT_KEYS, TensorInfo, Value};
use crate::quant::{Isa, PANEL, Pack, format};
use crate::weights::TensorView;

/// Of tensors' data: a page, as that of memory of our own is at least.
const ALIGNMENT: u32 = 4096;
/// Most bytes of panels that are held at once by a thread.
const PIECE: usize = 1 << 20;

/// Why a model was not packed. The output does not exist then, or is what it was.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// The input is no good model file, or is packed already.
    #[error("the input cannot be used")]
    File(#[from] GgufError),
    /// The input is not a model that can be run.
    #[error("the input cannot be run")]
    Model(#[from] LoadError),
    /// The output could not be written: a full disk, no permission.
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// One tensor of the result.
struct Job<'a> {
    view: TensorView<'a>,
    /// None: as it is.
    packing: Option<Pack>,
}

/// Makes `output` of the model `input`, all its files in one: the same, with matrices in panels. `progress` is told bytes written
/// and in all.
///
/// `output` appears whole, by renaming, or not at all.
///
/// # Errors
/// If the input is no model that can be run, is packed already, or the output exists, cannot be written or is the input.
pub fn pack<'a>(
    input: &Path,
    output: impl Into<Target<'a>>,
    threads: usize,
    mut progress: impl FnMut(u64, u64),
) -> Result<(), PackError> {
    let output = output.into();
    output.check()?;
    let gguf = Gguf::open(input)?;
    atomic::apart(output, &gguf.files(input))?;
    gguf.rows_only()?;
    arch::shape(&gguf)?;
    let isa = Isa::detect();
    let job = |tensor: &TensorInfo| -> Result<Job<'_>, GgufError> {
        let view = gguf.view(&tensor.name)?;
        Ok(Job { view, packing: is_matrix(&view).then(|| format(view.ty).packing(isa)) })
    };
    let jobs = gguf.tensors().iter().map(job).collect::<Result<Vec<_>, _>>()?;
    // Panels are made twice: the header comes first, and has their checksums.
    let checksums = in_parallel(&jobs, threads, |job| {
        let mut hash = crc32fast::Hasher::new();
        let Ok(()) = job.pieces(|piece| {
            hash.update(piece);
            Ok::<(), Infallible>(())
        });
        hash.finalize().cast_signed()
    });
    let mut writer = GgufWriter::new();
    let ours = ["general.alignment", LAYOUT_KEY, CHECKSUM_KEY];
    for (key, value) in gguf.metadata() {
        if !ours.contains(&key) && !key.starts_with(SPLIT_KEYS) {
            writer.set(key, value);
        }
    }
    writer.set("general.alignment", Value::U32(ALIGNMENT));
    writer.set(LAYOUT_KEY, Value::U32(LAYOUT)).set_i32s(CHECKSUM_KEY, &checksums);
    for (tensor, job) in gguf.tensors().iter().zip(&jobs) {
        let dims = &tensor.dims[..tensor.dim_count as usize];
        writer.declare(&tensor.name, job.view.ty, job.packing.is_some(), dims);
    }
    let total = writer.data_bytes();
    atomic::write(output, |out| {
        let mut written = 0;
        let fill = || {
            let mut data = writer.start(HugeWrites { out: &mut *out, held: Vec::with_capacity(HUGE) })?;
            for job in &jobs {
                job.pieces(|piece| {
                    written += piece.len() as u64;
                    progress(written, total);
                    data.write(piece)
                })?;
            }
            data.finish().flush()
        };
        let result = fill();
        result.map_err(|source| PackError::Write(out.failed(source)))
    })
}

/// Whether a tensor is loaded as it is, and multiplied with: what is no vector, nor one for each expert, nor taken apart at loading.
fn is_matrix(view: &TensorView<'_>) -> bool {
    view.rows > 1 && view.name.ends_with(".weight") && !view.name.ends_with(arch::UNSPLIT)
}

impl Job<'_> {
    /// The tensor's data as they are to be written, in pieces.
    fn pieces<E>(&self, mut piece: impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        let Some(packing) = self.packing else { return self.view.data.chunks(PIECE).try_for_each(piece) };
        let bytes = PANEL * self.view.row_bytes();
        let (all, each) = (self.view.experts * self.view.rows.div_ceil(PANEL), (PIECE / bytes.max(1)).max(1));
        let mut panels = vec![0; each.min(all) * bytes];
        for first in (0..all).step_by(each) {
            let panels = &mut panels[..each.min(all - first) * bytes];
            pack_panels(&self.view, packing, first, panels);
            piece(panels)?;
        }
        Ok(())
    }
}

/// Writes as much at a time as fills a huge page, at its places in the file: where the file system can, its cache then consists of
/// such pages, and a mapping of them is as fast as memory of our own.
struct HugeWrites<W: Write> {
    out: W,
    held: Vec<u8>,
}

impl<W: Write> Write for HugeWrites<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(HUGE - self.held.len());
        self.held.extend_from_slice(&bytes[..taken]);
        if self.held.len() == HUGE {
            self.out.write_all(&self.held)?;
            self.held.clear();
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.write_all(&self.held)?;
        self.held.clear();
        self.out.flush()
    }
}

#[cfg(test)]
mod tests;
