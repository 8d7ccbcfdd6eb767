//! Writes GGUF files, version 3.

use std::collections::HashSet;
use std::io::{self, Write};

use super::parse::{ALIGNMENT_DEFAULT, ALIGNMENT_KEY};
use super::{Array, Value, ValueType, packed};
use crate::quant::GgmlType;

/// A header under construction. What it is told is the caller's own, so mistakes panic.
#[derive(Default)]
pub struct GgufWriter {
    keys: HashSet<String>,
    metadata: Vec<u8>,
    names: HashSet<String>,
    table: Vec<u8>,
    /// Bytes of each tensor's data.
    sizes: Vec<u64>,
    /// Where the next tensor's data goes.
    offset: u64,
    alignment: Option<u64>,
}

impl GgufWriter {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a metadata entry. `general.alignment` also takes effect; it must come before the first tensor.
    ///
    /// # Panics
    /// If the key was added before, or an alignment is not a power of two of 32 bits or comes too late.
    pub fn set(&mut self, key: &str, value: Value<'_>) -> &mut Self {
        if key == ALIGNMENT_KEY {
            let alignment = value.integer().and_then(|v| u32::try_from(v).ok());
            let alignment = alignment.filter(|a| a.is_power_of_two()).expect("a power of two");
            assert!(self.sizes.is_empty(), "the alignment must be known before the first tensor");
            self.alignment = Some(alignment.into());
        }
        match value {
            Value::Array(array) => self.array(key, &array),
            value => {
                self.entry(key, value.ty());
                encode(&value, &mut self.metadata);
            }
        }
        self
    }

    /// Adds an array of strings.
    ///
    /// # Panics
    /// If the key was added before.
    pub fn set_strings<S: AsRef<str>>(&mut self, key: &str, values: &[S]) -> &mut Self {
        self.values(key, ValueType::String, values.iter().map(|v| Value::String(v.as_ref())))
    }

    /// Adds an array of I32.
    ///
    /// # Panics
    /// If the key was added before.
    pub fn set_i32s(&mut self, key: &str, values: &[i32]) -> &mut Self {
        self.values(key, ValueType::I32, values.iter().map(|&v| Value::I32(v)))
    }

    /// Adds an array of F32.
    ///
    /// # Panics
    /// If the key was added before.
    pub fn set_f32s(&mut self, key: &str, values: &[f32]) -> &mut Self {
        self.values(key, ValueType::F32, values.iter().map(|&v| Value::F32(v)))
    }

    /// Declares the next tensor; its data follows in [`GgufData::write`], in the order of declaration.
    /// `dims` are GGUF's: innermost first.
    ///
    /// # Panics
    /// If the name was declared before, there are not 1 to 4 dimensions, one is 0, a row is not whole blocks, or
    /// the size overflows.
    pub fn tensor(&mut self, name: &str, ty: GgmlType, dims: &[u64]) -> &mut Self {
        self.declare(name, ty, false, dims)
    }

    /// [`GgufWriter::tensor`] of one that may be packed: see [`super::packed`].
    pub(crate) fn declare(&mut self, name: &str, ty: GgmlType, packed: bool, dims: &[u64]) -> &mut Self {
        assert!(self.names.insert(name.to_owned()), "tensor {name} was declared before");
        assert!((1..=4).contains(&dims.len()), "tensor {name} has {} dimensions", dims.len());
        let block = ty.block() as u64;
        assert!(dims[0].is_multiple_of(block), "rows of {name} are not whole blocks");
        let mut all = [1; 4];
        all[..dims.len()].copy_from_slice(dims);
        let bytes = packed::bytes(ty, packed, all).filter(|&n| n > 0);
        let bytes = bytes.expect("a size that is neither zero nor overflows");
        text(name, &mut self.table);
        self.table.extend((dims.len() as u32).to_le_bytes());
        for dim in dims {
            self.table.extend(dim.to_le_bytes());
        }
        let type_id = if packed { packed::PACKED + ty.id() } else { ty.id() };
        self.table.extend(type_id.to_le_bytes());
        self.table.extend(self.offset.to_le_bytes());
        self.sizes.push(bytes);
        self.offset = (self.offset + bytes).next_multiple_of(self.alignment());
        self
    }

    /// Bytes of all tensors, without padding.
    pub fn data_bytes(&self) -> u64 {
        self.sizes.iter().sum()
    }

    /// Bytes of each tensor, in the order of declaration.
    pub fn tensor_bytes(&self) -> &[u64] {
        &self.sizes
    }

    /// Writes the header; the tensors' data comes next.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn start<W: Write>(self, mut out: W) -> io::Result<GgufData<W>> {
        out.write_all(b"GGUF")?;
        out.write_all(&3u32.to_le_bytes())?;
        out.write_all(&(self.sizes.len() as u64).to_le_bytes())?;
        out.write_all(&(self.keys.len() as u64).to_le_bytes())?;
        out.write_all(&self.metadata)?;
        out.write_all(&self.table)?;
        let alignment = self.alignment();
        let header = 24 + self.metadata.len() as u64 + self.table.len() as u64;
        pad(&mut out, header, alignment)?;
        let left = self.sizes.first().copied().unwrap_or(0);
        Ok(GgufData { out, alignment, sizes: self.sizes, at: 0, left })
    }

    fn alignment(&self) -> u64 {
        self.alignment.unwrap_or(ALIGNMENT_DEFAULT)
    }

    fn entry(&mut self, key: &str, ty: ValueType) {
        assert!(self.keys.insert(key.to_owned()), "metadata key {key} was added before");
        text(key, &mut self.metadata);
        self.metadata.extend(ty.id().to_le_bytes());
    }

    fn array(&mut self, key: &str, array: &Array<'_>) {
        self.entry(key, ValueType::Array);
        self.metadata.extend(array.ty.id().to_le_bytes());
        self.metadata.extend((array.len as u64).to_le_bytes());
        self.metadata.extend(array.data);
    }

    fn values<'a>(
        &mut self,
        key: &str,
        ty: ValueType,
        values: impl ExactSizeIterator<Item = Value<'a>>,
    ) -> &mut Self {
        let len = values.len();
        let mut data = Vec::new();
        for value in values {
            encode(&value, &mut data);
        }
        self.array(key, &Array { ty, len, data: &data });
        self
    }
}

/// The data of the declared tensors, in parts of any size.
pub struct GgufData<W> {
    out: W,
    alignment: u64,
    sizes: Vec<u64>,
    /// Index of the tensor being written.
    at: usize,
    /// Bytes it still lacks.
    left: u64,
}

impl<W: Write> GgufData<W> {
    /// Writes a part of the current tensor; the next one begins when it is complete.
    ///
    /// # Errors
    /// Those of the output.
    ///
    /// # Panics
    /// If the part reaches beyond the current tensor.
    pub fn write(&mut self, part: &[u8]) -> io::Result<()> {
        assert!(part.len() as u64 <= self.left, "more data than was declared for tensor {}", self.at);
        self.out.write_all(part)?;
        self.left -= part.len() as u64;
        if self.left == 0 && self.at < self.sizes.len() {
            pad(&mut self.out, self.sizes[self.at], self.alignment)?;
            self.at += 1;
            self.left = self.sizes.get(self.at).copied().unwrap_or(0);
        }
        Ok(())
    }

    /// Gives the output back, not flushed.
    ///
    /// # Panics
    /// If data of a declared tensor is lacking.
    pub fn finish(self) -> W {
        assert!(self.at == self.sizes.len(), "data of tensor {} is lacking", self.at);
        self.out
    }
}

fn pad(out: &mut impl Write, len: u64, alignment: u64) -> io::Result<()> {
    let zeros = len.next_multiple_of(alignment) - len;
    io::copy(&mut io::Read::take(io::repeat(0), zeros), out).map(|_| ())
}

fn text(text: &str, into: &mut Vec<u8>) {
    into.extend((text.len() as u64).to_le_bytes());
    into.extend(text.as_bytes());
}

fn encode(value: &Value<'_>, into: &mut Vec<u8>) {
    match *value {
        Value::U8(v) => into.extend(v.to_le_bytes()),
        Value::I8(v) => into.extend(v.to_le_bytes()),
        Value::U16(v) => into.extend(v.to_le_bytes()),
        Value::I16(v) => into.extend(v.to_le_bytes()),
        Value::U32(v) => into.extend(v.to_le_bytes()),
        Value::I32(v) => into.extend(v.to_le_bytes()),
        Value::F32(v) => into.extend(v.to_le_bytes()),
        Value::Bool(v) => into.push(v.into()),
        Value::String(v) => text(v, into),
        Value::U64(v) => into.extend(v.to_le_bytes()),
        Value::I64(v) => into.extend(v.to_le_bytes()),
        Value::F64(v) => into.extend(v.to_le_bytes()),
        Value::Array(_) => unreachable!("arrays hold no arrays"),
    }
}
