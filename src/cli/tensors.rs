//! Safetensors files that are written and read piece by piece, so that logits of a long text need no memory.
//!
//! The format: eight bytes of little-endian header length, a JSON header `{name: {dtype, shape, data_offsets}}` with
//! text under `__metadata__`, and the data without gaps (<https://github.com/huggingface/safetensors#format>).

use super::{
    failure::{Failure, Outcome},
    output::NewFile,
};
use serde_json::{Map, Value, json};
use std::{
    fs::File,
    io::{Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

/// A header may not be longer; the safetensors crate's own limit.
const MAX_HEADER: u64 = 100_000_000;

/// One tensor of a file to be: all types here have four bytes.
pub struct Entry {
    /// Its name.
    pub name: String,
    /// `F32` or `U32`.
    pub dtype: &'static str,
    /// Row-major shape.
    pub shape: Vec<usize>,
}

impl Entry {
    /// An f32 tensor.
    pub fn f32(name: impl Into<String>, shape: &[usize]) -> Self {
        Entry { name: name.into(), dtype: "F32", shape: shape.to_vec() }
    }

    /// A u32 tensor.
    pub fn u32(name: impl Into<String>, shape: &[usize]) -> Self {
        Entry { name: name.into(), dtype: "U32", shape: shape.to_vec() }
    }

    fn bytes(&self) -> u64 {
        self.shape.iter().map(|d| *d as u64).product::<u64>() * 4
    }
}

/// Writes tensors in the order in which they were announced.
pub struct Writer {
    file: NewFile,
    left: u64,
}

impl Writer {
    /// Starts the file with its header.
    pub fn create(path: &Path, metadata: &[(&str, String)], entries: &[Entry]) -> Outcome<Self> {
        let mut header = Map::new();
        let text = metadata.iter().map(|(k, v)| (k.to_string(), Value::from(v.as_str())));
        header.insert("__metadata__".into(), Value::Object(text.collect()));
        let mut at = 0;
        for e in entries {
            let end = at + e.bytes();
            header.insert(e.name.clone(), json!({"dtype": e.dtype, "shape": e.shape, "data_offsets": [at, end]}));
            at = end;
        }
        let mut header = Value::Object(header).to_string().into_bytes();
        header.resize(header.len().next_multiple_of(8), b' ');
        let mut file = NewFile::create(path)?;
        let written = file.write_all(&(header.len() as u64).to_le_bytes()).and_then(|()| file.write_all(&header));
        written.map_err(|e| file.failure(&e))?;
        Ok(Writer { file, left: at })
    }

    /// The next numbers.
    pub fn f32(&mut self, values: &[f32]) -> Outcome {
        self.bytes(values.iter().map(|v| v.to_le_bytes()))
    }

    /// The next numbers.
    pub fn u32(&mut self, values: &[u32]) -> Outcome {
        self.bytes(values.iter().map(|v| v.to_le_bytes()))
    }

    fn bytes(&mut self, mut values: impl ExactSizeIterator<Item = [u8; 4]>) -> Outcome {
        self.left = (self.left.checked_sub(values.len() as u64 * 4))
            .ok_or_else(|| Failure::new("more numbers than the file's header announced"))?;
        values.try_for_each(|b| self.file.write_all(&b)).map_err(|e| self.file.failure(&e))
    }

    /// Gives the file its name.
    pub fn finish(self) -> Outcome {
        if self.left > 0 {
            return Err(Failure::new(format!("{} bytes fewer than the file's header announced", self.left)));
        }
        self.file.finish()
    }
}

/// Reads numbers of a safetensors file in pieces.
pub struct Reader {
    path: PathBuf,
    file: File,
    header: Map<String, Value>,
    data: u64,
}

impl Reader {
    /// Opens a file and checks its header against its length.
    pub fn open(path: &Path) -> Outcome<Self> {
        let mut file = File::open(path).map_err(|e| Failure::io("read", path, &e))?;
        let len = file.metadata().map_err(|e| Failure::io("read", path, &e))?.len();
        let bad = |what: &str| Failure::new(format!("{}: {what}", path.display()));
        let mut n = [0; 8];
        file.read_exact(&mut n).map_err(|_| bad("too short for a safetensors file"))?;
        let n = u64::from_le_bytes(n);
        if n > MAX_HEADER || n > len.saturating_sub(8) {
            return Err(bad("not a safetensors file, or a truncated one: its header is longer than the file"));
        }
        let mut text = vec![0; n as usize];
        file.read_exact(&mut text).map_err(|e| Failure::io("read", path, &e))?;
        let header: Map<String, Value> =
            serde_json::from_slice(&text).map_err(|e| bad(&format!("not a safetensors file: {e}")))?;
        let reader = Reader { path: path.into(), file, header, data: 8 + n };
        for name in reader.header.keys().filter(|k| *k != "__metadata__") {
            let range = reader.range(name).ok_or_else(|| bad(&format!("tensor {name}: malformed entry")))?;
            if range.1 > len.saturating_sub(reader.data) {
                return Err(bad(&format!("truncated: tensor {name} ends beyond the file")));
            }
        }
        Ok(reader)
    }

    /// Data offsets, where they agree with the shape.
    fn range(&self, name: &str) -> Option<(u64, u64)> {
        let offsets = self.header.get(name)?.get("data_offsets")?.as_array()?;
        let (start, end) = (offsets.first()?.as_u64()?, offsets.get(1)?.as_u64()?);
        let size = self.shape_of(name)?.iter().try_fold(4u64, |a, d| a.checked_mul(*d as u64))?;
        (end.checked_sub(start)? == size).then_some((start, end))
    }

    fn shape_of(&self, name: &str) -> Option<Vec<usize>> {
        let shape = self.header.get(name)?.get("shape")?.as_array()?;
        shape.iter().map(|d| d.as_u64().map(|d| d as usize)).collect()
    }

    /// The shape of a tensor of `dtype`.
    pub fn shape(&self, name: &str, dtype: &str) -> Outcome<Vec<usize>> {
        let found = self.header.get(name).and_then(|t| t.get("dtype")).and_then(Value::as_str);
        match (found, self.shape_of(name)) {
            (Some(d), Some(shape)) if d == dtype => Ok(shape),
            (Some(d), _) => Err(self.bad(&format!("tensor {name} has type {d}, expected {dtype}"))),
            _ => Err(self.bad(&format!("no tensor {name}"))),
        }
    }

    /// Fills `out` with the four-byte numbers of a tensor from number `first` on.
    pub fn read<T: bytemuck::Pod>(&mut self, name: &str, first: usize, out: &mut [T]) -> Outcome {
        let (start, end) = self.range(name).ok_or_else(|| self.bad(&format!("no tensor {name}")))?;
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(out);
        let at = start + first as u64 * 4;
        if at + bytes.len() as u64 > end {
            return Err(self.bad(&format!("tensor {name} is too short")));
        }
        let read = self.file.seek(SeekFrom::Start(self.data + at)).and_then(|_| self.file.read_exact(bytes));
        read.map_err(|e| Failure::io("read", &self.path, &e))?;
        if cfg!(target_endian = "big") {
            bytes.chunks_exact_mut(4).for_each(<[u8]>::reverse);
        }
        Ok(())
    }

    /// A failure that names the file.
    pub fn bad(&self, what: &str) -> Failure {
        Failure::new(format!("{}: {what}", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(path: &Path) {
        let entries = [Entry::f32("a", &[2, 3]), Entry::u32("b", &[2])];
        let mut w = Writer::create(path, &[("ctx", "7".into())], &entries).unwrap();
        w.f32(&[1.0, 2.0, 3.0]).unwrap();
        w.f32(&[4.0, 5.0, 6.0]).unwrap();
        w.u32(&[8, 9]).unwrap();
        w.finish().unwrap();
    }

    #[test]
    fn written_files_read_back_here_and_elsewhere() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        sample(&path);
        let bytes = std::fs::read(&path).unwrap();
        let parsed = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(parsed.tensor("a").unwrap().shape(), [2, 3]);
        assert_eq!(bytemuck::pod_collect_to_vec::<u8, u32>(parsed.tensor("b").unwrap().data()), [8, 9]);
        let mut r = Reader::open(&path).unwrap();
        assert_eq!(r.shape("a", "F32").unwrap(), [2, 3]);
        let mut out = [0f32; 2];
        r.read("a", 3, &mut out).unwrap();
        assert_eq!(out, [4.0, 5.0]);
        assert!(r.read("a", 5, &mut out).is_err() && r.shape("a", "U32").is_err() && r.shape("c", "F32").is_err());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "a temporary file was left");
    }

    #[test]
    fn unfinished_and_wrongly_filled_files_leave_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        let mut w = Writer::create(&path, &[], &[Entry::f32("a", &[2])]).unwrap();
        assert!(w.f32(&[0.0; 3]).is_err());
        assert!(w.finish().is_err());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn truncated_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        sample(&path);
        let bytes = std::fs::read(&path).unwrap();
        for n in [0, 7, 8, 30, bytes.len() - 1] {
            std::fs::write(&path, &bytes[..n]).unwrap();
            assert!(Reader::open(&path).is_err(), "{n} bytes");
        }
    }
}
