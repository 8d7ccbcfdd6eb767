//! GGUF model files, versions 2 and 3, little-endian.
//!
//! A file is hostile: whatever is wrong with it is a [`GgufError`] that names the key or tensor, never a panic or
//! an allocation out of proportion to the header, whose size is bounded, as are its entries. Everything is checked when it is opened, so reading later cannot fail
//! but for an absent name or another type than was asked for.
//!
//! The header (metadata, tensor table) is copied; tensor data stays in the mapping. Data is aligned in the file to
//! `general.alignment`, which may be 1: views promise no alignment.
//!
//! A model may be split into several files ([`PartName`]); opening the first opens them all, as one.

mod bytes;
mod digest;
mod error;
pub(crate) mod packed;
mod parse;
mod signals;
mod split;
mod value;
mod write;

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(crate) use self::bytes::Bytes;
pub use self::error::GgufError;
pub use self::signals::{EXIT_MODEL_LOST, answer_file_signals};
pub use self::split::{PartName, SPLIT_KEYS};
pub use self::value::{Array, Value, ValueType};
pub use self::write::{GgufData, GgufWriter};
use crate::quant::GgmlType;
use crate::weights::{Place, TensorView};

/// A row of the tensor table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Unique in the model.
    pub name: String,
    /// GGUF's `ne`: innermost first, filled up with 1.
    pub dims: [u64; 4],
    /// How many dimensions the file gives, 1 to 4.
    pub dim_count: u32,
    /// Number of the element format, known or not; that of a packed tensor has [`packed::PACKED`] more.
    pub type_id: u32,
    /// Relative to the start of the tensor data.
    offset: u64,
    /// Of data; unknown for an unknown format.
    bytes: Option<u64>,
    /// Index of the part that it lies in.
    part: usize,
    range: Range<usize>,
}

impl TensorInfo {
    /// Elements in it.
    pub fn elements(&self) -> u64 {
        // Their product was checked when the file was opened.
        self.dims.iter().product()
    }

    /// The format, if Frugal reads it.
    pub fn ty(&self) -> Option<GgmlType> {
        packed::decode(self.type_id).0
    }

    /// The format's name in GGUF tools, also of one that Frugal does not read.
    pub fn type_name(&self) -> String {
        match packed::decode(self.type_id) {
            (Some(ty), true) => format!("{}, packed", ty.name()),
            _ => type_name(self.type_id),
        }
    }

    /// Bytes of data, if the format is known.
    pub fn bytes(&self) -> Option<u64> {
        self.bytes
    }

    /// Where the data lies in its file, if the format is known.
    pub fn range(&self) -> Option<Range<usize>> {
        self.bytes.map(|_| self.range.clone())
    }
}

/// An open model file, or all the files of a split model.
pub struct Gguf {
    /// At least one.
    parts: Vec<Part>,
    /// Of all parts, in their order.
    tensors: Vec<TensorInfo>,
    /// Where the first part's metadata entries are.
    keys: HashMap<String, usize>,
    names: HashMap<String, usize>,
}

/// One file.
struct Part {
    bytes: Bytes,
    /// The part of `bytes` before tensor data, copied: text must not change after it was checked.
    header: Vec<u8>,
    version: u32,
    alignment: u64,
    entries: Vec<parse::Entry>,
}

impl std::fmt::Debug for Gguf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gguf")
            .field("version", &self.version())
            .field("parts", &self.parts.len())
            .field("bytes", &self.file_bytes())
            .field("entries", &self.first().entries.len())
            .field("tensors", &self.tensors.len())
            .finish()
    }
}

impl Gguf {
    /// Maps and checks a file, and if it is the first part of a split model the other parts too. They must not be
    /// changed in place while they are open; replace them by renaming.
    ///
    /// # Errors
    /// If a file cannot be read or anything in it is not as it should be.
    pub fn open(path: &Path) -> Result<Self, GgufError> {
        split::complete(Self::read(Bytes::map(path)?)?, path)
    }

    /// The same for bytes in memory, of a model in one file.
    ///
    /// # Errors
    /// If anything is not as it should be.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, GgufError> {
        Self::from_parts(vec![bytes])
    }

    /// The same for a model in any number of files, the first one first. A file beyond the last part is an error.
    ///
    /// # Errors
    /// If anything is not as it should be.
    pub fn from_parts(parts: Vec<Vec<u8>>) -> Result<Self, GgufError> {
        let given = parts.len();
        let mut parts = parts.into_iter();
        let lacking = |no: usize| GgufError::PartsInMemory { given, no };
        let mut next =
            |no: usize| Self::read(Bytes::Owned(Arc::new(parts.next().ok_or_else(|| lacking(no))?)));
        let first = next(0)?;
        let whole = split::join(first, |no| next(no as usize))?;
        if whole.parts.len() == given { Ok(whole) } else { Err(lacking(whole.parts.len())) }
    }

    fn read(bytes: Bytes) -> Result<Self, GgufError> {
        let parse::Header { bytes: header, version, entries, keys, tensors, names, alignment } =
            parse::header(&bytes)?;
        let part = Part { bytes, header, version, alignment, entries };
        Ok(Self { parts: vec![part], tensors, keys, names })
    }

    /// Adds what another part holds; its metadata are dropped.
    fn append(&mut self, part: Self) -> Result<(), GgufError> {
        for mut tensor in part.tensors {
            if self.names.insert(tensor.name.clone(), self.tensors.len()).is_some() {
                return Err(GgufError::DuplicateTensor { tensor: tensor.name });
            }
            tensor.part = self.parts.len();
            self.tensors.push(tensor);
        }
        self.parts.extend(part.parts);
        Ok(())
    }

    fn first(&self) -> &Part {
        &self.parts[0]
    }

    /// 2 or 3.
    pub fn version(&self) -> u32 {
        self.first().version
    }

    /// How many files the model is split into; 1 if it is not.
    pub fn parts(&self) -> usize {
        self.parts.len()
    }

    /// The files that this one consists of, if it was opened at `path`.
    pub(crate) fn files(&self, path: &Path) -> Vec<PathBuf> {
        split::files(path, self.parts.len())
    }

    /// Length of the file, or of all together.
    pub fn file_bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.bytes.len() as u64).sum()
    }

    /// Alignment of tensor data within the first file.
    pub fn alignment(&self) -> u64 {
        self.first().alignment
    }

    /// All metadata in the order of the first file.
    pub fn metadata(&self) -> impl ExactSizeIterator<Item = (&str, Value<'_>)> {
        let Part { entries, header, .. } = self.first();
        entries.iter().map(|e| (e.key.as_str(), e.value(header)))
    }

    /// The tensor tables in the order of the files.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// A metadata value.
    pub fn get(&self, key: &str) -> Option<Value<'_>> {
        let Part { entries, header, .. } = self.first();
        self.keys.get(key).map(|&i| entries[i].value(header))
    }

    /// Forgets a metadata entry; whether there was one.
    pub fn hide(&mut self, key: &str) -> bool {
        let Some(hidden) = self.keys.remove(key) else { return false };
        self.parts[0].entries.remove(hidden);
        for at in self.keys.values_mut().filter(|at| **at > hidden) {
            *at -= 1;
        }
        true
    }

    /// A row of the tensor table.
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.names.get(name).map(|&i| &self.tensors[i])
    }

    /// A tensor's data as a vector, a matrix or a stack of matrices, in rows.
    ///
    /// # Errors
    /// If there is no such tensor, its format is not supported, it has four dimensions, or it is packed.
    pub fn view(&self, name: &str) -> Result<TensorView<'_>, GgufError> {
        let view = self.weight(name)?;
        match view.packed {
            false => Ok(view),
            true => Err(GgufError::Packed { tensor: name.to_owned() }),
        }
    }

    /// The same, packed or not.
    ///
    /// # Errors
    /// If there is no such tensor, its format is not supported, or it has four dimensions.
    pub fn weight(&self, name: &str) -> Result<TensorView<'_>, GgufError> {
        let tensor = self.tensor(name).ok_or_else(|| GgufError::MissingTensor { tensor: name.to_owned() })?;
        let Some(ty) = tensor.ty() else {
            return Err(GgufError::UnsupportedType { tensor: name.to_owned(), ty: tensor.type_name() });
        };
        let [cols, rows, experts, 1] = tensor.dims else {
            return Err(GgufError::FourDimensions { tensor: name.to_owned() });
        };
        // They fit: their product's bytes lie within the file.
        let (cols, rows, experts) = (cols as usize, rows as usize, experts as usize);
        let file = &self.parts[tensor.part].bytes;
        let place = Some(Place { file, start: tensor.range.start });
        let data = &file[tensor.range.clone()];
        let packed = tensor.is_packed();
        Ok(TensorView { name: &tensor.name, ty, cols, rows, experts, data, packed, place })
    }

    /// Identifies the model's content without reading all of it.
    ///
    /// SHA-256 over each file's length, its whole header, and of each tensor everything up to 64 KiB or else eight
    /// evenly spread pages of 4 KiB, first and last included. Two files that differ in metadata, shapes, formats or
    /// any small tensor (norms, routers, biases) have different digests, and so have two trainings or two
    /// quantizations of one model. Files made to differ only between the sampled pages do not.
    pub fn digest(&self) -> [u8; 32] {
        digest::digest(&self.parts, &self.tensors)
    }

    /// Gives back the memory that a mapped file's tensor data was read into, unless it is packed, for then it is used where it is. It
    /// may be read again.
    pub fn release(&self) {
        if !self.is_packed() {
            self.parts.iter().for_each(|part| part.bytes.release(0..part.bytes.len()));
        }
    }
}

/// Typed metadata. Integers of any width are accepted where the value fits.
impl Gguf {
    /// # Errors
    /// If the key is absent, not an integer, or does not fit.
    pub fn u32(&self, key: &str) -> Result<u32, GgufError> {
        self.opt_u32(key)?.ok_or_else(|| missing(key))
    }

    /// None if the key is absent.
    ///
    /// # Errors
    /// If it is not an integer or does not fit.
    pub fn opt_u32(&self, key: &str) -> Result<Option<u32>, GgufError> {
        self.get(key).map(|v| integer(key, &v, "u32")).transpose()
    }

    /// # Errors
    /// If the key is absent, not an integer, or does not fit.
    pub fn u64(&self, key: &str) -> Result<u64, GgufError> {
        self.opt_u64(key)?.ok_or_else(|| missing(key))
    }

    /// None if the key is absent.
    ///
    /// # Errors
    /// If it is not an integer or does not fit.
    pub fn opt_u64(&self, key: &str) -> Result<Option<u64>, GgufError> {
        self.get(key).map(|v| integer(key, &v, "u64")).transpose()
    }

    /// # Errors
    /// If the key is absent or not a float.
    pub fn f32(&self, key: &str) -> Result<f32, GgufError> {
        self.opt_f32(key)?.ok_or_else(|| missing(key))
    }

    /// None if the key is absent.
    ///
    /// # Errors
    /// If it is not a float.
    pub fn opt_f32(&self, key: &str) -> Result<Option<f32>, GgufError> {
        self.get(key).map(|v| v.float().ok_or_else(|| wrong(key, "a float", &v))).transpose()
    }

    /// # Errors
    /// If the key is absent or not a bool.
    pub fn bool(&self, key: &str) -> Result<bool, GgufError> {
        self.opt_bool(key)?.ok_or_else(|| missing(key))
    }

    /// None if the key is absent.
    ///
    /// # Errors
    /// If it is not a bool.
    pub fn opt_bool(&self, key: &str) -> Result<Option<bool>, GgufError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(v)) => Ok(Some(v)),
            Some(v) => Err(wrong(key, "a bool", &v)),
        }
    }

    /// # Errors
    /// If the key is absent or not a string.
    pub fn str(&self, key: &str) -> Result<&str, GgufError> {
        self.opt_str(key)?.ok_or_else(|| missing(key))
    }

    /// None if the key is absent.
    ///
    /// # Errors
    /// If it is not a string.
    pub fn opt_str(&self, key: &str) -> Result<Option<&str>, GgufError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(v)) => Ok(Some(v)),
            Some(v) => Err(wrong(key, "a string", &v)),
        }
    }

    /// The strings of an array, decoded one by one from the header.
    ///
    /// # Errors
    /// If the key is absent or not an array of strings.
    pub fn str_array(&self, key: &str) -> Result<impl ExactSizeIterator<Item = &str>, GgufError> {
        self.opt_str_array(key)?.ok_or_else(|| missing(key))
    }

    /// None if the key is absent.
    ///
    /// # Errors
    /// If it is not an array of strings.
    pub fn opt_str_array(&self, key: &str) -> Result<Option<impl ExactSizeIterator<Item = &str>>, GgufError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value {
            Value::Array(array) if array.element_type() == ValueType::String => {
                Ok(Some(array.iter().map(|v| match v {
                    Value::String(text) => text,
                    _ => unreachable!("all elements have the array's type"),
                })))
            }
            _ => Err(wrong(key, "an array of strings", &value)),
        }
    }

    /// # Errors
    /// If the key is absent, not an array of integers, or one does not fit.
    pub fn i32_array(&self, key: &str) -> Result<Vec<i32>, GgufError> {
        self.opt_i32_array(key)?.ok_or_else(|| missing(key))
    }

    /// None if the key is absent.
    ///
    /// # Errors
    /// If it is not an array of integers or one does not fit.
    pub fn opt_i32_array(&self, key: &str) -> Result<Option<Vec<i32>>, GgufError> {
        self.opt_array(key, "an array of integers", |v| match v.integer() {
            Some(_) => integer(key, v, "i32").map(Some),
            None => Ok(None),
        })
    }

    /// # Errors
    /// If the key is absent or not an array of floats.
    pub fn f32_array(&self, key: &str) -> Result<Vec<f32>, GgufError> {
        self.opt_f32_array(key)?.ok_or_else(|| missing(key))
    }

    /// None if the key is absent.
    ///
    /// # Errors
    /// If it is not an array of floats.
    pub fn opt_f32_array(&self, key: &str) -> Result<Option<Vec<f32>>, GgufError> {
        self.opt_array(key, "an array of floats", |v| Ok(v.float()))
    }

    /// Converts every element; None from `convert` is a wrong type.
    fn opt_array<T>(
        &self,
        key: &str,
        wanted: &'static str,
        convert: impl Fn(&Value<'_>) -> Result<Option<T>, GgufError>,
    ) -> Result<Option<Vec<T>>, GgufError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let Value::Array(array) = value else { return Err(wrong(key, wanted, &value)) };
        let each = |v| convert(&v)?.ok_or_else(|| wrong(key, wanted, &value));
        array.iter().map(each).collect::<Result<_, _>>().map(Some)
    }
}

fn missing(key: &str) -> GgufError {
    GgufError::MissingKey { key: key.to_owned() }
}

fn wrong(key: &str, wanted: &'static str, found: &Value<'_>) -> GgufError {
    GgufError::WrongType { key: key.to_owned(), wanted, found: found.describe() }
}

fn integer<T: TryFrom<i128>>(key: &str, value: &Value<'_>, wanted: &'static str) -> Result<T, GgufError> {
    let wide = value.integer().ok_or_else(|| wrong(key, "an integer", value))?;
    let does_not_fit = |_| GgufError::DoesNotFit { key: key.to_owned(), value: wide.to_string(), wanted };
    T::try_from(wide).map_err(does_not_fit)
}

/// Names of the formats of GGUF, also of those that cannot be read yet, for messages.
fn type_name(id: u32) -> String {
    let name = match id {
        9 => "Q8_1",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        21 => "IQ3_S",
        22 => "IQ2_S",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        40 => "NVFP4",
        _ => match GgmlType::from_id(id) {
            Some(ty) => ty.name(),
            None => return format!("number {id}"),
        },
    };
    name.to_owned()
}

#[cfg(test)]
mod props;
#[cfg(test)]
mod tests;
