//! Metadata values.

use std::fmt;

/// Type of a metadata value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum ValueType {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    String,
    Array,
    U64,
    I64,
    F64,
}

impl ValueType {
    /// In order of their number in files.
    const ALL: [Self; 13] = [
        Self::U8,
        Self::I8,
        Self::U16,
        Self::I16,
        Self::U32,
        Self::I32,
        Self::F32,
        Self::Bool,
        Self::String,
        Self::Array,
        Self::U64,
        Self::I64,
        Self::F64,
    ];

    /// The type with this number in files.
    pub fn from_id(id: u32) -> Option<Self> {
        Self::ALL.get(usize::try_from(id).ok()?).copied()
    }

    /// Its number in files.
    pub fn id(self) -> u32 {
        self as u32
    }

    /// Bytes of a value; of a string or an array, the least it can take.
    pub(super) fn bytes_min(self) -> usize {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 | Self::String => 8,
            Self::Array => 12,
        }
    }
}

impl fmt::Display for ValueType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::U8 => "u8",
            Self::I8 => "i8",
            Self::U16 => "u16",
            Self::I16 => "i16",
            Self::U32 => "u32",
            Self::I32 => "i32",
            Self::F32 => "f32",
            Self::Bool => "bool",
            Self::String => "string",
            Self::Array => "array",
            Self::U64 => "u64",
            Self::I64 => "i64",
            Self::F64 => "f64",
        })
    }
}

/// A metadata value, borrowed from the file's header.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Value<'a> {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(&'a str),
    Array(Array<'a>),
    U64(u64),
    I64(i64),
    F64(f64),
}

impl Value<'_> {
    /// Its type.
    pub fn ty(&self) -> ValueType {
        match self {
            Self::U8(_) => ValueType::U8,
            Self::I8(_) => ValueType::I8,
            Self::U16(_) => ValueType::U16,
            Self::I16(_) => ValueType::I16,
            Self::U32(_) => ValueType::U32,
            Self::I32(_) => ValueType::I32,
            Self::F32(_) => ValueType::F32,
            Self::Bool(_) => ValueType::Bool,
            Self::String(_) => ValueType::String,
            Self::Array(_) => ValueType::Array,
            Self::U64(_) => ValueType::U64,
            Self::I64(_) => ValueType::I64,
            Self::F64(_) => ValueType::F64,
        }
    }

    /// As an integer, if it is one of any width.
    pub fn integer(&self) -> Option<i128> {
        match *self {
            Self::U8(v) => Some(v.into()),
            Self::I8(v) => Some(v.into()),
            Self::U16(v) => Some(v.into()),
            Self::I16(v) => Some(v.into()),
            Self::U32(v) => Some(v.into()),
            Self::I32(v) => Some(v.into()),
            Self::U64(v) => Some(v.into()),
            Self::I64(v) => Some(v.into()),
            _ => None,
        }
    }

    /// As a float, if it is one; F64 is rounded.
    pub fn float(&self) -> Option<f32> {
        match *self {
            Self::F32(v) => Some(v),
            #[expect(clippy::cast_possible_truncation, reason = "rounding is meant")]
            Self::F64(v) => Some(v as f32),
            _ => None,
        }
    }

    /// Its type in words, with the element type of an array.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Array(array) => format!("array of {}", array.ty),
            other => other.ty().to_string(),
        }
    }
}

/// An array of values that are not arrays themselves; strings and bools are checked.
#[derive(Clone, Copy, PartialEq)]
pub struct Array<'a> {
    pub(super) ty: ValueType,
    pub(super) len: usize,
    /// The elements as in the file.
    pub(super) data: &'a [u8],
}

impl<'a> Array<'a> {
    /// Type of the elements.
    pub fn element_type(&self) -> ValueType {
        self.ty
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The elements, decoded one by one.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Value<'a>> + use<'a> {
        let (mut rest, ty) = (self.data, self.ty);
        (0..self.len).map(move |_| {
            let (value, after) = decode(ty, rest).expect("checked when the array was read");
            rest = after;
            value
        })
    }
}

impl fmt::Debug for Array<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}; {}]", self.ty, self.len)
    }
}

/// The value of type `ty` at the start of `bytes`, and what follows it. None if it is cut short, not valid
/// UTF-8, a bool other than 0 and 1, or an array.
pub(super) fn decode(ty: ValueType, bytes: &[u8]) -> Option<(Value<'_>, &[u8])> {
    fn take<const N: usize>(bytes: &[u8]) -> Option<([u8; N], &[u8])> {
        bytes.split_first_chunk::<N>().map(|(head, rest)| (*head, rest))
    }
    macro_rules! number {
        ($variant:ident, $ty:ty) => {
            take(bytes).map(|(b, rest)| (Value::$variant(<$ty>::from_le_bytes(b)), rest))
        };
    }
    match ty {
        ValueType::U8 => number!(U8, u8),
        ValueType::I8 => number!(I8, i8),
        ValueType::U16 => number!(U16, u16),
        ValueType::I16 => number!(I16, i16),
        ValueType::U32 => number!(U32, u32),
        ValueType::I32 => number!(I32, i32),
        ValueType::F32 => number!(F32, f32),
        ValueType::U64 => number!(U64, u64),
        ValueType::I64 => number!(I64, i64),
        ValueType::F64 => number!(F64, f64),
        ValueType::Bool => match take(bytes)? {
            ([0], rest) => Some((Value::Bool(false), rest)),
            ([1], rest) => Some((Value::Bool(true), rest)),
            _ => None,
        },
        ValueType::String => {
            let (len, rest) = take::<8>(bytes)?;
            let len = usize::try_from(u64::from_le_bytes(len)).ok()?;
            let (text, rest) = rest.split_at_checked(len)?;
            Some((Value::String(std::str::from_utf8(text).ok()?), rest))
        }
        ValueType::Array => None,
    }
}
