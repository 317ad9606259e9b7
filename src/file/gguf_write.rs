//! Writes GGUF version 3, little-endian, tensor data aligned to 32 bytes.
//!
//! Format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>. Tensor data is streamed: the caller is asked for
//! one tensor after the other, so a model is never in memory as a whole.

use super::{
    gguf::{ALIGNMENT, MAGIC},
    metadata::Metadata,
    unfinished::Unfinished,
    value::{Array, Repr, Value},
};
use crate::{
    error::{Error, Result},
    quant::DType,
};
use std::{
    io::{BufWriter, Write},
    path::Path,
};

/// A tensor to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its name.
    pub name: String,
    /// How its weights are stored.
    pub dtype: DType,
    /// Row-major shape, outermost dimension first; 1 to 4 dimensions.
    pub shape: Vec<usize>,
}

impl TensorSpec {
    /// The size of its data, in bytes; `None` where the shape is impossible (no or more than 4 dimensions, a dimension of 0, rows that
    /// are no whole number of blocks, an overflow).
    pub fn byte_len(&self) -> Option<usize> {
        let (cols, lead) = self.shape.split_last()?;
        if self.shape.len() > 4 || self.shape.contains(&0) {
            return None;
        }
        lead.iter().try_fold(self.dtype.row_bytes(*cols)?, |a, d| a.checked_mul(*d))
    }
}

/// Where the data of the current tensor goes, in as many pieces as the caller likes.
pub struct Sink<'a> {
    out: &'a mut dyn Write,
    name: &'a str,
    target: &'a Path,
    left: usize,
}

impl Sink<'_> {
    /// Appends bytes of the current tensor.
    ///
    /// # Errors
    /// [`Error::Write`] where writing fails; [`Error::Invalid`] for more bytes than the tensor has.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.left = self.left.checked_sub(bytes.len()).ok_or_else(|| {
            Error::Invalid(format!("tensor `{}` was given {} bytes too many", self.name, bytes.len() - self.left))
        })?;
        self.out.write_all(bytes).map_err(|source| Error::Write { path: self.target.to_owned(), source })
    }
}

/// Fills the data of tensor `i` of the list into the sink.
pub type Fill<'a> = &'a mut dyn FnMut(usize, &mut Sink<'_>) -> Result<()>;

/// Writes a GGUF file. It appears under its name only when it is complete: until then it has another name in the same
/// folder, which is removed where anything fails (so `path` may be a file that is being read).
///
/// Of the metadata, `general.alignment` is left out (it is always 32, the default) and so are the `split.*` keys: what is
/// written is one file.
///
/// # Errors
/// [`Error::Write`]; [`Error::Invalid`] for an impossible shape, a tensor name that comes twice, or data of another size
/// than the shape says; and what `fill` returns.
pub fn write_gguf(path: &Path, meta: &Metadata, tensors: &[TensorSpec], fill: Fill<'_>) -> Result<()> {
    let io = |source| Error::Write { path: path.to_owned(), source };
    // Renaming over a device or a pipe would put a file in its place.
    if path.metadata().is_ok_and(|m| !m.is_file()) {
        return Err(io(std::io::Error::new(std::io::ErrorKind::InvalidInput, "it exists and is no regular file")));
    }
    let (file, guard) = Unfinished::create(path)?;
    let mut out = BufWriter::with_capacity(1 << 20, file);
    write_gguf_to(&mut out, path, meta, tensors, fill)?;
    let file = out.into_inner().map_err(|e| io(e.into_error()))?;
    // The name must never stand for bytes that a power cut could still lose.
    file.sync_all().map_err(io)?;
    drop(file);
    guard.finish(path).map_err(io)
}

/// As [`write_gguf`], to any writer; `target` names it in errors.
///
/// # Errors
/// As [`write_gguf`].
pub fn write_gguf_to(
    mut out: &mut dyn Write,
    target: &Path,
    meta: &Metadata,
    tensors: &[TensorSpec],
    fill: Fill<'_>,
) -> Result<()> {
    let io = |source| Error::Write { path: target.to_owned(), source };
    let sizes = sizes(tensors)?;
    let head = head(meta, tensors, &sizes);
    out.write_all(&head).map_err(io)?;
    for (i, spec) in tensors.iter().enumerate() {
        let mut sink = Sink { out: &mut out, name: &spec.name, target, left: sizes[i] };
        fill(i, &mut sink)?;
        if sink.left > 0 {
            return Err(Error::Invalid(format!("tensor `{}` was given {} bytes too few", spec.name, sink.left)));
        }
        out.write_all(&[0; ALIGNMENT][..padding(sizes[i])]).map_err(io)?;
    }
    Ok(())
}

/// The size of every tensor in bytes, checked.
fn sizes(tensors: &[TensorSpec]) -> Result<Vec<usize>> {
    if let Err(i) = super::metadata::sorted_index(tensors.len(), |i| tensors[i].name.as_str()) {
        return Err(Error::Invalid(format!("tensor `{}` would be written twice", tensors[i].name)));
    }
    let impossible =
        |t: &TensorSpec| Error::Invalid(format!("tensor `{}` {:?} cannot be {}", t.name, t.shape, t.dtype));
    tensors.iter().map(|t| t.byte_len().ok_or_else(|| impossible(t))).collect()
}

fn padding(len: usize) -> usize {
    len.next_multiple_of(ALIGNMENT) - len
}

/// The header, the metadata and the tensor table, padded to the start of the data.
fn head(meta: &Metadata, tensors: &[TensorSpec], sizes: &[usize]) -> Vec<u8> {
    let kept = |key: &str| key != "general.alignment" && !key.starts_with("split.");
    let mut b = Vec::new();
    b.extend_from_slice(MAGIC);
    b.extend_from_slice(&3u32.to_le_bytes());
    b.extend_from_slice(&(tensors.len() as u64).to_le_bytes());
    b.extend_from_slice(&(meta.iter().filter(|(k, _)| kept(k)).count() as u64).to_le_bytes());
    for (key, value) in meta.iter().filter(|(k, _)| kept(k)) {
        put_string(&mut b, key);
        b.extend_from_slice(&(value.kind() as u32).to_le_bytes());
        put_value(&mut b, value);
    }
    let mut offset = 0u64;
    for (t, size) in tensors.iter().zip(sizes) {
        put_string(&mut b, &t.name);
        b.extend_from_slice(&(t.shape.len() as u32).to_le_bytes());
        for d in t.shape.iter().rev() {
            b.extend_from_slice(&(*d as u64).to_le_bytes());
        }
        b.extend_from_slice(&t.dtype.layout().ggml_id.to_le_bytes());
        b.extend_from_slice(&offset.to_le_bytes());
        offset += (size + padding(*size)) as u64;
    }
    b.resize(b.len() + padding(b.len()), 0);
    b
}

fn put_string(b: &mut Vec<u8>, s: &str) {
    b.extend_from_slice(&(s.len() as u64).to_le_bytes());
    b.extend_from_slice(s.as_bytes());
}

fn put_value(b: &mut Vec<u8>, value: &Value) {
    match value {
        Value::U8(v) => b.push(*v),
        Value::I8(v) => b.extend_from_slice(&v.to_le_bytes()),
        Value::U16(v) => b.extend_from_slice(&v.to_le_bytes()),
        Value::I16(v) => b.extend_from_slice(&v.to_le_bytes()),
        Value::U32(v) => b.extend_from_slice(&v.to_le_bytes()),
        Value::I32(v) => b.extend_from_slice(&v.to_le_bytes()),
        Value::F32(v) => b.extend_from_slice(&v.to_le_bytes()),
        Value::Bool(v) => b.push(u8::from(*v)),
        Value::String(v) => put_string(b, v),
        Value::Array(v) => put_array(b, v),
        Value::U64(v) => b.extend_from_slice(&v.to_le_bytes()),
        Value::I64(v) => b.extend_from_slice(&v.to_le_bytes()),
        Value::F64(v) => b.extend_from_slice(&v.to_le_bytes()),
    }
}

/// Arrays are kept as they stand in a file, so their bytes go out as they are.
fn put_array(b: &mut Vec<u8>, array: &Array) {
    b.extend_from_slice(&(array.kind() as u32).to_le_bytes());
    b.extend_from_slice(&(array.len() as u64).to_le_bytes());
    match &array.0 {
        Repr::Fixed { data, .. } | Repr::Strings { data, .. } => b.extend_from_slice(data),
        Repr::Nested(items) => items.iter().for_each(|a| put_array(b, a)),
    }
}
