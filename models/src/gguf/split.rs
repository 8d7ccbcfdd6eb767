//! Models split into several files, as llama.cpp's `gguf-split` makes them.
//!
//! Law: the first part names how many there are and how many tensors they hold together; every part says which one
//! it is, and of how many. All of it is checked, so that a part that is missing, swapped or of another split is an
//! error that names it. Metadata are the first part's, tensors are found wherever they lie.
//!
//! Absent on purpose: a checksum. Parts of two quantizations of one model, mixed, can agree in all these numbers.

use std::path::{Path, PathBuf};

use super::{Gguf, GgufError};

const NO: &str = "split.no";
const COUNT: &str = "split.count";
const TENSORS: &str = "split.tensors.count";

/// Prefix of the keys that a whole model does not have.
pub const SPLIT_KEYS: &str = "split.";

/// The name of a part: `PREFIX-00001-of-00003.gguf`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PartName<'a> {
    /// The same in all parts.
    pub prefix: &'a str,
    /// From 1.
    pub no: u32,
    /// At least `no`.
    pub count: u32,
}

impl<'a> PartName<'a> {
    /// None if a file of this name is no part.
    pub fn parse(name: &'a str) -> Option<Self> {
        let number = |text: &str| -> Option<u32> {
            let five = text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit());
            if five { text.parse().ok() } else { None }
        };
        let (rest, count) = name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
        let (prefix, no) = rest.rsplit_once('-')?;
        let (no, count) = (number(no)?, number(count)?);
        (1..=count).contains(&no).then_some(Self { prefix, no, count })
    }

    /// The name of another part, from 1.
    pub fn part(&self, no: u32) -> String {
        format!("{}-{no:05}-of-{:05}.gguf", self.prefix, self.count)
    }
}

/// What a file says of the split it is a part of.
#[derive(Clone, Copy)]
pub(super) struct Split {
    /// From 0, as in files.
    no: u32,
    count: u32,
}

impl Split {
    /// None if the file is whole.
    pub(super) fn of(file: &Gguf) -> Result<Option<Self>, GgufError> {
        let count = file.opt_u32(COUNT)?.unwrap_or(0);
        if count <= 1 {
            return Ok(None);
        }
        Ok(Some(Self { no: file.u32(NO)?, count }))
    }
}

/// The rest of a split model of which `first` was opened at `path`; `first` itself if it is whole.
pub(super) fn complete(first: Gguf, path: &Path) -> Result<Gguf, GgufError> {
    let Some(split) = Split::of(&first)? else { return Ok(first) };
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let no = split.no.saturating_add(1);
    let named = match PartName::parse(name) {
        Some(named) if (named.no, named.count) == (no, split.count) => named,
        _ => {
            let ending = PartName { prefix: "", no, count: split.count }.part(no);
            return Err(GgufError::PartName { no, count: split.count, ending });
        }
    };
    if split.no != 0 {
        return Err(GgufError::NotTheFirstPart { no, count: split.count, first: named.part(1) });
    }
    join(first, |no| {
        let name = named.part(no + 1);
        let path: PathBuf = path.with_file_name(&name);
        if !path.exists() {
            return Err(GgufError::MissingPart { no: no + 1, count: split.count, path });
        }
        let part = super::bytes::Bytes::map(&path).and_then(Gguf::read);
        part.map_err(|source| GgufError::Part { part: name, source: Box::new(source) })
    })
}

/// The files of a model of so many parts, the first of which is at `path`.
pub(super) fn files(path: &Path, parts: usize) -> Vec<PathBuf> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    match PartName::parse(name) {
        Some(named) if parts > 1 => (1..=named.count).map(|no| path.with_file_name(named.part(no))).collect(),
        _ => vec![path.to_owned()],
    }
}

/// Joins the parts that `open` is asked for, numbered from 0, to the first one.
pub(super) fn join(
    first: Gguf,
    mut open: impl FnMut(u32) -> Result<Gguf, GgufError>,
) -> Result<Gguf, GgufError> {
    let Some(split) = Split::of(&first)? else { return Ok(first) };
    if split.no != 0 {
        return Err(GgufError::PartNumber { wanted: 1, found: split.no.saturating_add(1) });
    }
    let wanted = first.u64(TENSORS)?;
    let mut whole = first;
    for no in 1..split.count {
        let part = open(no)?;
        check(&whole, &part, no, &split, wanted)?;
        whole.append(part)?;
    }
    let found = whole.tensors.len() as u64;
    if found != wanted {
        return Err(GgufError::TensorTotal { wanted, found });
    }
    Ok(whole)
}

fn check(whole: &Gguf, part: &Gguf, no: u32, split: &Split, tensors: u64) -> Result<(), GgufError> {
    let named = |source| GgufError::Part { part: (no + 1).to_string(), source: Box::new(source) };
    let (found, count) = (part.u32(NO).map_err(named)?, part.u32(COUNT).map_err(named)?);
    if found != no {
        return Err(GgufError::PartNumber { wanted: no + 1, found: found.saturating_add(1) });
    }
    if count != split.count {
        return Err(GgufError::PartCount { no: no + 1, wanted: split.count, found: count });
    }
    if part.version() != whole.version() {
        return Err(GgufError::PartVersion { no: no + 1, wanted: whole.version(), found: part.version() });
    }
    match part.opt_u64(TENSORS).map_err(named)? {
        Some(found) if found != tensors => Err(GgufError::TensorTotal { wanted: tensors, found }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
