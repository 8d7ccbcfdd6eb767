//! The header: metadata and tensor table, every number of it checked.

use std::collections::HashMap;
use std::ops::Range;

use super::value::decode;
use super::{Array, GgufError, TensorInfo, Value, ValueType, packed};

/// Most bytes of metadata and tensor table; a vocabulary of 256 k tokens takes a fifth of it.
pub(super) const HEADER_BYTES_MAX: usize = 128 << 20;

/// Most metadata entries; models have about fifty. Each takes some hundred bytes of ours, a dozen of the file's.
const ENTRIES_MAX: usize = 1 << 16;
/// Most tensors; the largest models have some thousand in a file.
const TENSORS_MAX: usize = 1 << 20;

/// Alignment of tensor data unless `general.alignment` says otherwise.
pub(super) const ALIGNMENT_DEFAULT: u64 = 32;

/// The key that does.
pub(super) const ALIGNMENT_KEY: &str = "general.alignment";

/// Where a metadata entry lies in the header.
pub(super) struct Entry {
    pub(super) key: String,
    ty: ValueType,
    /// Element type and number, for an array.
    array: Option<(ValueType, usize)>,
    /// The value, or an array's elements.
    at: Range<usize>,
}

impl Entry {
    /// The value, given the header it was read from.
    pub(super) fn value<'a>(&self, header: &'a [u8]) -> Value<'a> {
        let data = &header[self.at.clone()];
        match self.array {
            Some((ty, len)) => Value::Array(Array { ty, len, data }),
            None => decode(self.ty, data).expect("checked when the header was read").0,
        }
    }
}

/// What a header says.
pub(super) struct Header {
    /// What is before padding and tensor data.
    pub(super) bytes: Vec<u8>,
    pub(super) version: u32,
    pub(super) entries: Vec<Entry>,
    /// Where in `entries`.
    pub(super) keys: HashMap<String, usize>,
    pub(super) tensors: Vec<TensorInfo>,
    /// Where in `tensors`.
    pub(super) names: HashMap<String, usize>,
    pub(super) alignment: u64,
}

/// A position in the file; all reads are checked. What is read is copied, and only the copy is looked at: it must not change after it was
/// checked, as the file may.
struct Cursor<'a> {
    file: &'a [u8],
    copy: Vec<u8>,
}

impl Cursor<'_> {
    fn take(&mut self, len: usize, what: impl FnOnce() -> String) -> Result<&[u8], GgufError> {
        let at = self.copy.len();
        let end = at.checked_add(len).filter(|&end| end <= self.file.len());
        let Some(end) = end else {
            return Err(GgufError::Truncated { what: what(), len: self.file.len() });
        };
        if end > HEADER_BYTES_MAX {
            return Err(GgufError::HeaderTooLarge { limit: HEADER_BYTES_MAX });
        }
        self.copy.extend_from_slice(&self.file[at..end]);
        Ok(&self.copy[at..])
    }

    fn array<const N: usize>(&mut self, what: impl FnOnce() -> String) -> Result<[u8; N], GgufError> {
        let taken = self.take(N, what)?;
        Ok(taken.try_into().expect("took N bytes"))
    }

    fn u32(&mut self, what: impl FnOnce() -> String) -> Result<u32, GgufError> {
        self.array(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: impl FnOnce() -> String) -> Result<u64, GgufError> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A number of things, at most `most` and taking at least `bytes_min` each.
    fn count(
        &mut self,
        what: impl Fn() -> String,
        bytes_min: usize,
        most: usize,
    ) -> Result<usize, GgufError> {
        let count = self.u64(&what)?;
        let most = most.min((self.file.len() - self.copy.len()) / bytes_min);
        match usize::try_from(count) {
            Ok(n) if n <= most => Ok(n),
            _ => Err(GgufError::AbsurdCount { what: what(), count, most }),
        }
    }

    fn text(&mut self, what: impl Fn() -> String) -> Result<&str, GgufError> {
        let len = self.u64(&what)?;
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        let bytes = self.take(len, &what)?;
        std::str::from_utf8(bytes).map_err(|_| GgufError::NotUtf8 { what: what() })
    }
}

/// Reads the header of a file.
///
/// Allocates in proportion to the header's bytes, never to a number it claims.
pub(super) fn header(file: &[u8]) -> Result<Header, GgufError> {
    let mut cursor = Cursor { file, copy: Vec::new() };
    if !file.starts_with(b"GGUF") {
        return Err(GgufError::NotGguf { instead: instead(file) });
    }
    cursor.take(4, || "the magic number".into())?;
    let version = cursor.u32(|| "the version".into())?;
    match version {
        2 | 3 => {}
        v if matches!(v.swap_bytes(), 1..=3) => return Err(GgufError::BigEndian),
        v => return Err(GgufError::Version(v)),
    }
    // The tensor count comes first in the file, so it is checked against the bytes that metadata shares with it.
    // Name length, dimension count, one dimension, type, offset: 32 bytes. Key length, type, a byte: 13.
    let tensor_count = cursor.count(|| "tensors".into(), 32, TENSORS_MAX)?;
    let entry_count = cursor.count(|| "metadata entries".into(), 13, ENTRIES_MAX)?;
    let (entries, keys) = metadata(&mut cursor, entry_count)?;
    let alignment = alignment(&entries, &cursor.copy)?;
    let mut tensors = Vec::new();
    let mut names = HashMap::new();
    for i in 0..tensor_count {
        let tensor = tensor(&mut cursor, i, alignment)?;
        if names.insert(tensor.name.clone(), i).is_some() {
            return Err(GgufError::DuplicateTensor { tensor: tensor.name });
        }
        tensors.push(tensor);
    }
    let mut bytes = cursor.copy;
    bytes.shrink_to_fit();
    place(&mut tensors, bytes.len(), alignment, file.len())?;
    Ok(Header { bytes, version, entries, keys, tensors, names, alignment })
}

/// What a file that is no GGUF file probably is, and what to do about it: the end of a sentence, or nothing.
fn instead(bytes: &[u8]) -> &'static str {
    match bytes {
        [] => ": it is empty",
        [b'v', b'e', b'r', b's', b'i', b'o', b'n', b' ', b'h', b't', b't', b'p', ..] => {
            " but a pointer to one in Git LFS: run `git lfs pull` where it was cloned"
        }
        [b'<', ..] => " but a web page: the download did not get the model",
        [_, _, _, _, _, _, _, _, b'{', ..] => {
            " but probably a safetensors file: convert the model to GGUF, or get a version that is"
        }
        [b'P', b'K', 3, 4, ..] => {
            " but a zip archive, perhaps a PyTorch model: convert the model to GGUF, or get a version that is"
        }
        [b'l', b'm', b'g', b'g', ..] | [b'f', b'm', b'g', b'g', ..] | [b't', b'j', b'g', b'g', ..] => {
            " but of its predecessor GGML: get a newer version of the model"
        }
        _ => "",
    }
}

fn metadata(
    cursor: &mut Cursor<'_>,
    count: usize,
) -> Result<(Vec<Entry>, HashMap<String, usize>), GgufError> {
    let mut entries = Vec::new();
    let mut keys = HashMap::new();
    for i in 0..count {
        let key = cursor.text(|| format!("the key of metadata entry {i}"))?.to_owned();
        if keys.insert(key.clone(), i).is_some() {
            return Err(GgufError::DuplicateKey { key });
        }
        entries.push(entry(cursor, key)?);
    }
    Ok((entries, keys))
}

fn entry(cursor: &mut Cursor<'_>, key: String) -> Result<Entry, GgufError> {
    let what = || format!("metadata key {key}");
    let ty = value_type(cursor, &key)?;
    let array = match ty {
        ValueType::Array => {
            let element = value_type(cursor, &key)?;
            if element == ValueType::Array {
                return Err(GgufError::NestedArray { key });
            }
            let elements = || format!("elements of metadata key {key}");
            Some((element, cursor.count(elements, element.bytes_min(), usize::MAX)?))
        }
        _ => None,
    };
    let begin = cursor.copy.len();
    match array {
        Some((ValueType::String, len)) => {
            for j in 0..len {
                cursor.text(|| format!("element {j} of metadata key {key}"))?;
            }
        }
        Some((ValueType::Bool, len)) => bools(cursor.take(len, what)?, &key)?,
        Some((element, len)) => {
            // No overflow: `count` has compared the product with the bytes that are left.
            cursor.take(len * element.bytes_min(), what)?;
        }
        None if ty == ValueType::String => {
            cursor.text(what)?;
        }
        None if ty == ValueType::Bool => bools(cursor.take(1, what)?, &key)?,
        None => {
            cursor.take(ty.bytes_min(), what)?;
        }
    }
    Ok(Entry { key, ty, array, at: begin..cursor.copy.len() })
}

fn bools(bytes: &[u8], key: &str) -> Result<(), GgufError> {
    match bytes.iter().find(|&&b| b > 1) {
        Some(&value) => Err(GgufError::BadBool { key: key.to_owned(), value }),
        None => Ok(()),
    }
}

fn value_type(cursor: &mut Cursor<'_>, key: &str) -> Result<ValueType, GgufError> {
    let id = cursor.u32(|| format!("the type of metadata key {key}"))?;
    ValueType::from_id(id).ok_or_else(|| GgufError::UnknownValueType { key: key.to_owned(), id })
}

fn alignment(entries: &[Entry], bytes: &[u8]) -> Result<u64, GgufError> {
    let Some(entry) = entries.iter().find(|e| e.key == ALIGNMENT_KEY) else {
        return Ok(ALIGNMENT_DEFAULT);
    };
    let value = entry.value(bytes);
    let wide = value.integer().ok_or_else(|| GgufError::BadAlignment { value: value.describe() })?;
    match u32::try_from(wide) {
        Ok(a) if a.is_power_of_two() => Ok(a.into()),
        _ => Err(GgufError::BadAlignment { value: wide.to_string() }),
    }
}

/// One row of the tensor table; `range` is filled in by [`place`].
fn tensor(cursor: &mut Cursor<'_>, index: usize, alignment: u64) -> Result<TensorInfo, GgufError> {
    let name = cursor.text(|| format!("the name of tensor {index}"))?.to_owned();
    let what = || format!("the entry of tensor {name}");
    let count = cursor.u32(what)?;
    if !(1..=4).contains(&count) {
        return Err(GgufError::DimensionCount { tensor: name, count });
    }
    let mut dims = [1; 4];
    for dim in dims.iter_mut().take(count as usize) {
        *dim = cursor.u64(what)?;
    }
    let type_id = cursor.u32(what)?;
    let offset = cursor.u64(what)?;
    if dims.contains(&0) {
        return Err(GgufError::EmptyTensor { tensor: name });
    }
    if offset % alignment != 0 {
        return Err(GgufError::Misaligned { tensor: name, offset, alignment });
    }
    let overflow = || GgufError::SizeOverflow { tensor: name.clone() };
    dims.iter().try_fold(1u64, |n, &d| n.checked_mul(d)).ok_or_else(overflow)?;
    let (ty, packed) = packed::decode(type_id);
    let bytes = match ty {
        Some(ty) => {
            let block = ty.block() as u64;
            if dims[0] % block != 0 {
                let (cols, ty, block) = (dims[0], ty.name(), ty.block());
                return Err(GgufError::PartialBlock { tensor: name, cols, ty, block });
            }
            Some(packed::bytes(ty, packed, dims).ok_or_else(overflow)?)
        }
        None => None,
    };
    Ok(TensorInfo { name, dims, dim_count: count, type_id, offset, bytes, part: 0, range: 0..0 })
}

/// Turns offsets into ranges of the file and checks that no two tensors share a byte.
///
/// The size of an unknown type is unknown: one byte stands for it.
fn place(
    tensors: &mut [TensorInfo],
    header_len: usize,
    alignment: u64,
    file_len: usize,
) -> Result<(), GgufError> {
    let data = (header_len as u64).next_multiple_of(alignment);
    for tensor in tensors.iter_mut() {
        let bytes = tensor.bytes.unwrap_or(1);
        let range =
            data.checked_add(tensor.offset).and_then(|begin| Some((begin, begin.checked_add(bytes)?)));
        match range {
            // Both fit in `usize`: they are at most the file's length.
            Some((begin, end)) if end <= file_len as u64 => tensor.range = begin as usize..end as usize,
            _ => {
                let (tensor, offset) = (tensor.name.clone(), tensor.offset);
                return Err(GgufError::OutOfFile { tensor, offset, bytes });
            }
        }
    }
    let mut order: Vec<&TensorInfo> = tensors.iter().collect();
    order.sort_by_key(|t| t.range.start);
    for pair in order.windows(2) {
        if pair[0].range.end > pair[1].range.start {
            let (first, second) = (pair[0].name.clone(), pair[1].name.clone());
            return Err(GgufError::Overlap { first, second });
        }
    }
    Ok(())
}
