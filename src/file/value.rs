//! The values of GGUF metadata, with the types of its specification
//! (<https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>).
//!
//! Arrays stay as the bytes that the file holds and are decoded when read: a vocabulary of 150 000 strings costs one
//! offset a string, not one allocation a string.

use super::bytes::Bytes;
use std::fmt;

/// The type of a [`Value`], numbered as in the file (`enum gguf_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
#[repr(u32)]
pub enum ValueType {
    U8 = 0,
    I8 = 1,
    U16 = 2,
    I16 = 3,
    U32 = 4,
    I32 = 5,
    F32 = 6,
    Bool = 7,
    String = 8,
    Array = 9,
    U64 = 10,
    I64 = 11,
    F64 = 12,
}

impl ValueType {
    const ALL: [ValueType; 13] = [
        ValueType::U8,
        ValueType::I8,
        ValueType::U16,
        ValueType::I16,
        ValueType::U32,
        ValueType::I32,
        ValueType::F32,
        ValueType::Bool,
        ValueType::String,
        ValueType::Array,
        ValueType::U64,
        ValueType::I64,
        ValueType::F64,
    ];

    /// The type with GGUF's number `id`.
    pub fn from_id(id: u32) -> Option<Self> {
        Self::ALL.get(id as usize).copied()
    }

    /// Bytes of a value of fixed size; `None` for strings and arrays.
    pub fn size(self) -> Option<usize> {
        match self {
            ValueType::U8 | ValueType::I8 | ValueType::Bool => Some(1),
            ValueType::U16 | ValueType::I16 => Some(2),
            ValueType::U32 | ValueType::I32 | ValueType::F32 => Some(4),
            ValueType::U64 | ValueType::I64 | ValueType::F64 => Some(8),
            ValueType::String | ValueType::Array => None,
        }
    }

    /// Name as in the specification, lower case.
    pub fn name(self) -> &'static str {
        match self {
            ValueType::U8 => "u8",
            ValueType::I8 => "i8",
            ValueType::U16 => "u16",
            ValueType::I16 => "i16",
            ValueType::U32 => "u32",
            ValueType::I32 => "i32",
            ValueType::F32 => "f32",
            ValueType::Bool => "bool",
            ValueType::String => "string",
            ValueType::Array => "array",
            ValueType::U64 => "u64",
            ValueType::I64 => "i64",
            ValueType::F64 => "f64",
        }
    }
}

/// One value of the metadata.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(Box<str>),
    Array(Array),
    U64(u64),
    I64(i64),
    F64(f64),
}

impl Value {
    /// A string value.
    pub fn string(text: impl Into<Box<str>>) -> Self {
        Value::String(text.into())
    }

    /// Its type.
    pub fn kind(&self) -> ValueType {
        match self {
            Value::U8(_) => ValueType::U8,
            Value::I8(_) => ValueType::I8,
            Value::U16(_) => ValueType::U16,
            Value::I16(_) => ValueType::I16,
            Value::U32(_) => ValueType::U32,
            Value::I32(_) => ValueType::I32,
            Value::F32(_) => ValueType::F32,
            Value::Bool(_) => ValueType::Bool,
            Value::String(_) => ValueType::String,
            Value::Array(_) => ValueType::Array,
            Value::U64(_) => ValueType::U64,
            Value::I64(_) => ValueType::I64,
            Value::F64(_) => ValueType::F64,
        }
    }

    /// Any integer as i64; `None` where it does not fit or is no integer.
    pub fn as_i64(&self) -> Option<i64> {
        Some(match *self {
            Value::U8(v) => v.into(),
            Value::I8(v) => v.into(),
            Value::U16(v) => v.into(),
            Value::I16(v) => v.into(),
            Value::U32(v) => v.into(),
            Value::I32(v) => v.into(),
            Value::I64(v) => v,
            Value::U64(v) => return i64::try_from(v).ok(),
            _ => return None,
        })
    }

    /// Any integer that is not negative.
    pub fn as_u64(&self) -> Option<u64> {
        match *self {
            Value::U64(v) => Some(v),
            _ => u64::try_from(self.as_i64()?).ok(),
        }
    }

    /// Any number, rounded to f64.
    pub fn as_f64(&self) -> Option<f64> {
        match *self {
            Value::F32(v) => Some(v.into()),
            Value::F64(v) => Some(v),
            Value::U64(v) => Some(v as f64),
            _ => self.as_i64().map(|v| v as f64),
        }
    }

    /// The text of a string.
    pub fn as_str(&self) -> Option<&str> {
        if let Value::String(s) = self { Some(s) } else { None }
    }

    /// A truth value.
    pub fn as_bool(&self) -> Option<bool> {
        if let Value::Bool(b) = self { Some(*b) } else { None }
    }

    /// An array.
    pub fn as_array(&self) -> Option<&Array> {
        if let Value::Array(a) = self { Some(a) } else { None }
    }

    /// Decodes a value of fixed size; the caller passes exactly [`ValueType::size`] bytes.
    pub(super) fn from_le(kind: ValueType, b: &[u8]) -> Option<Value> {
        Some(match kind {
            ValueType::U8 => Value::U8(*b.first()?),
            ValueType::I8 => Value::I8(*b.first()? as i8),
            ValueType::Bool => Value::Bool(*b.first()? != 0),
            ValueType::U16 => Value::U16(u16::from_le_bytes(b.try_into().ok()?)),
            ValueType::I16 => Value::I16(i16::from_le_bytes(b.try_into().ok()?)),
            ValueType::U32 => Value::U32(u32::from_le_bytes(b.try_into().ok()?)),
            ValueType::I32 => Value::I32(i32::from_le_bytes(b.try_into().ok()?)),
            ValueType::F32 => Value::F32(f32::from_le_bytes(b.try_into().ok()?)),
            ValueType::U64 => Value::U64(u64::from_le_bytes(b.try_into().ok()?)),
            ValueType::I64 => Value::I64(i64::from_le_bytes(b.try_into().ok()?)),
            ValueType::F64 => Value::F64(f64::from_le_bytes(b.try_into().ok()?)),
            ValueType::String | ValueType::Array => return None,
        })
    }
}

/// An array value, decoded when read.
#[derive(Clone)]
pub struct Array(pub(super) Repr);

/// How an array is kept.
#[derive(Clone)]
pub(super) enum Repr {
    /// `len` numbers or truth values, little-endian as in the file, at no particular alignment.
    Fixed { kind: ValueType, data: Bytes },
    /// Strings as in the file (length as u64, then the bytes, checked to be UTF-8); `starts[i]` is where the length of
    /// string i begins.
    Strings { data: Bytes, starts: Vec<u64> },
    /// Arrays of arrays.
    Nested(Vec<Array>),
}

impl Array {
    /// An array of strings.
    pub fn from_strings<S: AsRef<str>>(items: impl IntoIterator<Item = S>) -> Self {
        let (mut data, mut starts) = (Vec::new(), Vec::new());
        for s in items {
            let s = s.as_ref().as_bytes();
            starts.push(data.len() as u64);
            data.extend_from_slice(&(s.len() as u64).to_le_bytes());
            data.extend_from_slice(s);
        }
        Array(Repr::Strings { data: Bytes::from_vec(data), starts })
    }

    /// An array of i32.
    pub fn from_i32(items: &[i32]) -> Self {
        Self::fixed(ValueType::I32, items.iter().flat_map(|v| v.to_le_bytes()).collect())
    }

    /// An array of u32.
    pub fn from_u32(items: &[u32]) -> Self {
        Self::fixed(ValueType::U32, items.iter().flat_map(|v| v.to_le_bytes()).collect())
    }

    /// An array of f32.
    pub fn from_f32(items: &[f32]) -> Self {
        Self::fixed(ValueType::F32, items.iter().flat_map(|v| v.to_le_bytes()).collect())
    }

    /// An array of truth values.
    pub fn from_bool(items: &[bool]) -> Self {
        Self::fixed(ValueType::Bool, items.iter().map(|v| u8::from(*v)).collect())
    }

    /// An array of arrays.
    pub fn nested(items: Vec<Array>) -> Self {
        Array(Repr::Nested(items))
    }

    /// An array of numbers or truth values from its little-endian bytes; a trailing part of an element is dropped.
    fn fixed(kind: ValueType, data: Vec<u8>) -> Self {
        Array(Repr::Fixed { kind, data: Bytes::from_vec(data) })
    }

    /// An array of any fixed-size type from little-endian bytes; `None` where `kind` has no fixed size or the bytes are
    /// no whole number of elements.
    pub fn from_le_bytes(kind: ValueType, data: Vec<u8>) -> Option<Self> {
        data.len().is_multiple_of(kind.size()?).then(|| Self::fixed(kind, data))
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        match &self.0 {
            Repr::Fixed { kind, data } => data.len() / kind.size().unwrap_or(1),
            Repr::Strings { starts, .. } => starts.len(),
            Repr::Nested(items) => items.len(),
        }
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Type of the elements.
    pub fn kind(&self) -> ValueType {
        match &self.0 {
            Repr::Fixed { kind, .. } => *kind,
            Repr::Strings { .. } => ValueType::String,
            Repr::Nested(_) => ValueType::Array,
        }
    }

    /// Element `i`, decoded; `None` where it is out of range.
    pub fn get(&self, i: usize) -> Option<Value> {
        match &self.0 {
            Repr::Fixed { kind, data } => {
                let n = kind.size()?;
                Value::from_le(*kind, data.get(i.checked_mul(n)?..i.checked_add(1)?.checked_mul(n)?)?)
            }
            Repr::Strings { .. } => self.str(i).map(Value::string),
            Repr::Nested(items) => items.get(i).cloned().map(Value::Array),
        }
    }

    /// String `i` of an array of strings.
    pub fn str(&self, i: usize) -> Option<&str> {
        let Repr::Strings { data, starts } = &self.0 else { return None };
        let at = usize::try_from(*starts.get(i)?).ok()?;
        let len = u64::from_le_bytes(data.get(at..at.checked_add(8)?)?.try_into().ok()?);
        let end = (at + 8).checked_add(usize::try_from(len).ok()?)?;
        std::str::from_utf8(data.get(at + 8..end)?).ok()
    }

    /// The strings of an array of strings, in order; `None` for other arrays.
    pub fn strings(&self) -> Option<Strings<'_>> {
        matches!(self.0, Repr::Strings { .. }).then_some(Strings { array: self, next: 0 })
    }

    /// All elements, decoded one by one.
    pub fn iter(&self) -> impl Iterator<Item = Value> + '_ {
        (0..self.len()).filter_map(|i| self.get(i))
    }

    /// The arrays of an array of arrays.
    pub fn arrays(&self) -> Option<&[Array]> {
        if let Repr::Nested(items) = &self.0 { Some(items) } else { None }
    }
}

impl PartialEq for Array {
    /// Equal types, lengths and bytes (so that NaN equals itself).
    fn eq(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (Repr::Fixed { kind: a, data: x }, Repr::Fixed { kind: b, data: y }) => a == b && x[..] == y[..],
            (Repr::Strings { data: x, .. }, Repr::Strings { data: y, .. }) => x[..] == y[..],
            (Repr::Nested(x), Repr::Nested(y)) => x == y,
            _ => false,
        }
    }
}

/// Iterator over the strings of an [`Array`].
#[derive(Clone, Debug)]
pub struct Strings<'a> {
    array: &'a Array,
    next: usize,
}

impl<'a> Iterator for Strings<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        let s = self.array.str(self.next)?;
        self.next += 1;
        Some(s)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let n = self.array.len() - self.next;
        (n, Some(n))
    }
}

impl ExactSizeIterator for Strings<'_> {}

impl fmt::Display for Value {
    /// For people: strings quoted and escaped, long strings and arrays cut with their length.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::U8(v) => write!(f, "{v}"),
            Value::I8(v) => write!(f, "{v}"),
            Value::U16(v) => write!(f, "{v}"),
            Value::I16(v) => write!(f, "{v}"),
            Value::U32(v) => write!(f, "{v}"),
            Value::I32(v) => write!(f, "{v}"),
            Value::F32(v) => write!(f, "{v}"),
            Value::Bool(v) => write!(f, "{v}"),
            Value::String(s) => {
                let cut: String = s.chars().take(80).collect();
                write!(f, "{cut:?}")?;
                if cut.len() < s.len() { write!(f, "… ({} bytes)", s.len()) } else { Ok(()) }
            }
            Value::Array(a) => write!(f, "{a}"),
            Value::U64(v) => write!(f, "{v}"),
            Value::I64(v) => write!(f, "{v}"),
            Value::F64(v) => write!(f, "{v}"),
        }
    }
}

impl fmt::Display for Array {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 6;
        f.write_str("[")?;
        for i in 0..self.len().min(SHOWN) {
            f.write_str(if i > 0 { ", " } else { "" })?;
            match self.get(i) {
                Some(Value::Array(a)) => write!(f, "[{} × {}]", a.len(), a.kind().name())?,
                Some(v) => write!(f, "{v}")?,
                None => {}
            }
        }
        if self.len() > SHOWN { write!(f, ", … {} × {}]", self.len(), self.kind().name()) } else { f.write_str("]") }
    }
}

impl fmt::Debug for Array {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
