//! GGUF, versions 2 and 3, little-endian: header, metadata, tensor table, tensor data.
//!
//! Format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>. The file is hostile until proven otherwise: every
//! length is compared with the bytes that are left before anything is allocated or sliced, so a file of N bytes never
//! makes the reader allocate more than a small multiple of N. Tensor data is never touched, only sliced.

use super::{
    bytes::Bytes,
    checkpoint::TensorInfo,
    cursor::Cursor,
    metadata::Metadata,
    tensor::Tensor,
    value::{Array, Repr, Value, ValueType},
};
use crate::{error::Result, quant::DType};
use std::borrow::Cow;

/// The first four bytes.
pub(super) const MAGIC: &[u8; 4] = b"GGUF";
/// The alignment of tensor data in bytes, where the file does not set `general.alignment`.
pub(super) const ALIGNMENT: usize = 32;
/// The most dimensions that a tensor can have (`GGML_MAX_DIMS`).
const MAX_DIMS: u32 = 4;
/// The deepest nesting of arrays in arrays; no known file nests them at all.
const MAX_NESTING: usize = 4;
/// The size of the smallest metadata entry, in bytes: an empty key (8), a type (4), one byte of value.
const MIN_ENTRY: usize = 13;
/// The size of the smallest tensor entry, in bytes: an empty name (8), the number of dimensions (4), one dimension (8), a type
/// (4), an offset (8).
const MIN_TENSOR: usize = 32;

/// What one file holds.
#[derive(Debug)]
pub(super) struct Parsed {
    pub meta: Metadata,
    pub tensors: Vec<TensorInfo>,
}

/// Reads the whole table of contents of a GGUF file; `file` is its name in messages, `number` its place among shards.
pub(super) fn parse(file: &str, number: usize, bytes: &Bytes) -> Result<Parsed> {
    let mut c = Cursor { file, bytes, all: bytes, pos: 0 };
    let (tensors, entries) = header(&mut c)?;
    let meta = metadata(&mut c, entries)?;
    let alignment = alignment(&c, &meta)?;
    let n = c.count(tensors, MIN_TENSOR, || "the tensor count".into())?;
    // Grows with what is there, so that a false count reserves nothing.
    let mut raw = Vec::with_capacity(n.min(1024));
    for i in 0..n {
        raw.push(tensor_header(&mut c, i)?);
    }
    let base = c.pos.checked_next_multiple_of(alignment).ok_or_else(|| c.error("the data offset overflows"))?;
    let tensors = raw.into_iter().map(|r| locate(&c, r, base, alignment, number)).collect::<Result<Vec<_>>>()?;
    check_overlap(&c, &tensors)?;
    Ok(Parsed { meta, tensors })
}

/// Magic, version and the two counts: tensors, metadata entries.
fn header(c: &mut Cursor<'_>) -> Result<(u64, u64)> {
    let magic = c.take(4, || "the magic number".into())?;
    if magic != MAGIC {
        return Err(c.error(format!("starts with {magic:02x?}, not with \"GGUF\"")));
    }
    let version = c.u32(|| "the version".into())?;
    match version {
        2 | 3 => {}
        // A big-endian 1, 2, 3: its low half is empty when read as little-endian.
        v if v != 0 && v & 0xffff == 0 => {
            return Err(c.error(format!(
                "is a big-endian GGUF (version {}); only little-endian files are read: convert it with gguf_convert_endian.py",
                v.swap_bytes()
            )));
        }
        v => return Err(c.error(format!("is GGUF version {v}; versions 2 and 3 are read"))),
    }
    Ok((c.u64(|| "the tensor count".into())?, c.u64(|| "the metadata count".into())?))
}

fn metadata(c: &mut Cursor<'_>, count: u64) -> Result<Metadata> {
    let n = c.count(count, MIN_ENTRY, || "the metadata count".into())?;
    let mut entries = Vec::with_capacity(n.min(1024));
    for i in 0..n {
        let key = c.string(|| format!("metadata key {i}"))?;
        let kind = value_type(c, key)?;
        let value = value(c, key, kind)?;
        entries.push((key.to_owned(), value));
    }
    Metadata::from_entries(entries).map_err(|key| c.error(format!("metadata key `{}` comes twice", shown(&key))))
}

fn value_type(c: &mut Cursor<'_>, key: &str) -> Result<ValueType> {
    let at = c.pos;
    let id = c.u32(|| format!("the type of `{}`", shown(key)))?;
    ValueType::from_id(id)
        .ok_or_else(|| c.error(format!("`{}` has unknown value type {id} at byte {at} (0 to 12 exist)", shown(key))))
}

fn value(c: &mut Cursor<'_>, key: &str, kind: ValueType) -> Result<Value> {
    match kind {
        ValueType::String => Ok(Value::String(c.text(key, || format!("`{}`", shown(key)))?.into())),
        ValueType::Array => Ok(Value::Array(array(c, key, MAX_NESTING)?)),
        _ => {
            let size = kind.size().unwrap_or(0) as u64;
            let at = c.pos;
            let b = c.take(size, || format!("`{}` ({})", shown(key), kind.name()))?;
            check_bools(c, key, kind, b, at)?;
            Value::from_le(kind, b).ok_or_else(|| c.error(format!("`{}` cannot be read", shown(key))))
        }
    }
}

fn array(c: &mut Cursor<'_>, key: &str, nesting: usize) -> Result<Array> {
    if nesting == 0 {
        return Err(c.error(format!("`{}` nests arrays deeper than {MAX_NESTING}", shown(key))));
    }
    let kind = value_type(c, key)?;
    let count = c.u64(|| format!("the length of array `{}`", shown(key)))?;
    let min = match kind {
        ValueType::String => 8,
        ValueType::Array => 12,
        _ => kind.size().unwrap_or(1),
    };
    let n = c.count(count, min, || format!("the length of array `{}`", shown(key)))?;
    let start = c.pos;
    Ok(Array(match kind {
        ValueType::String => strings(c, key, n)?,
        ValueType::Array => {
            let mut items = Vec::new();
            for _ in 0..n {
                items.push(array(c, key, nesting - 1)?);
            }
            Repr::Nested(items)
        }
        _ => {
            let b = c.take((n * min) as u64, || format!("array `{}`", shown(key)))?;
            check_bools(c, key, kind, b, start)?;
            Repr::Fixed { kind, data: slice(c, start, c.pos)? }
        }
    }))
}

/// So many strings: the file's own bytes where they are as they should be, else a copy.
fn strings(c: &mut Cursor<'_>, key: &str, n: usize) -> Result<Repr> {
    let start = c.pos;
    let (mut starts, mut clean) = (Vec::with_capacity(n), true);
    for i in 0..n {
        let at = c.pos;
        starts.push((at - start) as u64);
        let text = c.text(key, || format!("string {i} of `{}`", shown(key)))?;
        clean &= matches!(&text, Cow::Borrowed(t) if at + 8 + t.len() == c.pos);
    }
    if clean {
        return Ok(Repr::Strings { data: slice(c, start, c.pos)?, starts });
    }
    c.pos = start;
    let texts = (0..n).map(|i| c.text(key, || format!("string {i} of `{}`", shown(key))));
    Ok(Array::from_strings(texts.collect::<Result<Vec<_>>>()?).0)
}

/// Truth values are 0 or 1; anything else is a corrupt file.
fn check_bools(c: &Cursor<'_>, key: &str, kind: ValueType, b: &[u8], at: usize) -> Result<()> {
    match b.iter().position(|v| *v > 1) {
        Some(i) if kind == ValueType::Bool => {
            Err(c.error(format!("`{}` holds {} as a truth value at byte {}", shown(key), b[i], at + i)))
        }
        _ => Ok(()),
    }
}

fn slice(c: &Cursor<'_>, from: usize, to: usize) -> Result<Bytes> {
    c.bytes.slice(from..to).ok_or_else(|| c.error(format!("bytes {from}..{to} lie beyond the end")))
}

fn alignment(c: &Cursor<'_>, meta: &Metadata) -> Result<usize> {
    let Some(value) = meta.get("general.alignment") else { return Ok(ALIGNMENT) };
    match value.as_u64().and_then(|v| usize::try_from(v).ok()) {
        Some(a) if a.is_power_of_two() => Ok(a),
        _ => Err(c.error(format!("general.alignment is {value}, which is no power of two"))),
    }
}

/// A tensor's entry in the table, as it stands there.
struct Raw<'a> {
    name: &'a str,
    /// The shape, outermost dimension first: the reverse of the file's order.
    shape: Vec<usize>,
    kind: u32,
    /// The offset of the data in bytes, from the start of the data section.
    offset: u64,
}

fn tensor_header<'a>(c: &mut Cursor<'a>, i: usize) -> Result<Raw<'a>> {
    let name = c.string(|| format!("the name of tensor {i}"))?;
    let dims = c.u32(|| format!("the dimension count of tensor `{}`", shown(name)))?;
    if dims == 0 || dims > MAX_DIMS {
        return Err(c.error(format!("tensor `{}` has {dims} dimensions; 1 to {MAX_DIMS} are possible", shown(name))));
    }
    let mut shape = Vec::with_capacity(dims as usize);
    for _ in 0..dims {
        let d = c.u64(|| format!("the dimensions of tensor `{}`", shown(name)))?;
        match usize::try_from(d) {
            Ok(d) if d > 0 => shape.push(d),
            _ => return Err(c.error(format!("tensor `{}` has a dimension of {d}", shown(name)))),
        }
    }
    shape.reverse();
    let kind = c.u32(|| format!("the type of tensor `{}`", shown(name)))?;
    let offset = c.u64(|| format!("the offset of tensor `{}`", shown(name)))?;
    Ok(Raw { name, shape, kind, offset })
}

/// Checks a tensor's place and slices its data. A type that this program cannot compute with is kept as a refusal, so
/// that such a file can still be inspected; a false size or place is an error.
fn locate(c: &Cursor<'_>, raw: Raw<'_>, base: usize, alignment: usize, number: usize) -> Result<TensorInfo> {
    let Raw { name, shape, kind, offset } = raw;
    let bad = |what: String| c.error(format!("tensor `{}` {shape:?}: {what}", shown(name)));
    if offset % alignment as u64 != 0 {
        return Err(bad(format!("its data offset {offset} is no multiple of the alignment {alignment}")));
    }
    let start =
        usize::try_from(offset).ok().and_then(|o| base.checked_add(o)).filter(|s| *s <= c.all.len()).ok_or_else(
            || bad(format!("its data at {base} + {offset} lies beyond the file's {} bytes", c.all.len())),
        )?;
    let (type_name, block) = match ggml_type(kind) {
        Some((n, block, bytes)) => (Cow::Borrowed(n), Some((block, bytes))),
        None => (Cow::Owned(format!("type {kind}")), None),
    };
    let size = match block {
        Some((block, bytes)) => {
            let (cols, lead) = shape.split_last().map_or((0, &[][..]), |(c, l)| (*c, l));
            if cols % block != 0 {
                return Err(bad(format!(
                    "rows of {cols} weights are no whole number of {block}-weight {type_name} blocks"
                )));
            }
            lead.iter()
                .try_fold(cols / block, |a, d| a.checked_mul(*d))
                .and_then(|n| n.checked_mul(bytes))
                .ok_or_else(|| bad("its size overflows".into()))?
        }
        None => 0,
    };
    let end = start.checked_add(size).filter(|e| *e <= c.all.len()).ok_or_else(|| {
        bad(format!(
            "its {size} bytes of {type_name} at byte {start} end beyond the file's {} bytes (truncated?)",
            c.all.len()
        ))
    })?;
    let content = match DType::from_ggml_id(kind) {
        Some(dtype) => {
            Ok(Tensor::new(dtype, shape.clone(), vec![slice(c, start, end)?]).map_err(|e| bad(e.to_string()))?)
        }
        None => Err(unsupported_type(&type_name)),
    };
    Ok(TensorInfo {
        name: name.to_owned(),
        type_name,
        shape,
        bytes: size as u64,
        file: number as u32,
        offset: start as u64,
        content,
        raw: None,
    })
}

/// Why a tensor of this type cannot be used, and what could.
fn unsupported_type(type_name: &str) -> String {
    let known: Vec<_> = DType::ALL.iter().map(|d| d.layout().name).collect();
    format!("has type {type_name}, which is not supported (supported: {})", known.join(", "))
}

/// Two tensors must not share bytes: it would be a corrupt offset that no size check sees.
fn check_overlap(c: &Cursor<'_>, tensors: &[TensorInfo]) -> Result<()> {
    let mut order: Vec<&TensorInfo> = tensors.iter().filter(|t| t.bytes > 0).collect();
    order.sort_unstable_by_key(|t| t.offset);
    match order.windows(2).find(|w| w[0].offset + w[0].bytes > w[1].offset) {
        Some(w) => Err(c.error(format!(
            "tensor `{}` (bytes {} to {}) overlaps tensor `{}` (from byte {})",
            shown(&w[0].name),
            w[0].offset,
            w[0].offset + w[0].bytes,
            shown(&w[1].name),
            w[1].offset
        ))),
        None => Ok(()),
    }
}

/// A name from the file, cut and escaped for a message.
fn shown(name: &str) -> String {
    let mut s: String = name.chars().take(80).flat_map(char::escape_debug).collect();
    if name.chars().nth(80).is_some() {
        s.push('…');
    }
    s
}

/// Name, weights a block and bytes a block of ggml's type number `id` (`enum ggml_type` and the type table in `ggml.c`),
/// whether or not this program can compute with it: for listing files and checking their sizes.
fn ggml_type(id: u32) -> Option<(&'static str, usize, usize)> {
    if let Some(d) = DType::from_ggml_id(id) {
        let l = d.layout();
        return Some((l.name, l.block, l.bytes));
    }
    Some(match id {
        15 => ("Q8_K", 256, 292),
        24 => ("I8", 1, 1),
        25 => ("I16", 1, 2),
        26 => ("I32", 1, 4),
        27 => ("I64", 1, 8),
        28 => ("F64", 1, 8),
        41 => ("Q1_0", 128, 18),
        _ => return None,
    })
}
