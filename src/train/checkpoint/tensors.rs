//! f32 tensors to a safetensors file and back, with a checksum.
//!
//! Format: <https://huggingface.co/docs/safetensors>: the length of the header (u64), the header (JSON), the numbers.

use crate::{
    error::{Error, Result},
    file::{self, Bytes},
};
use safetensors::{Dtype, SafeTensors};
use serde_json::json;
use std::{
    fs::File,
    io::{BufWriter, Write},
    path::{Path, PathBuf},
};

/// Numbers that are made bytes at once.
const PIECE: usize = 1 << 14;

/// A file of tensors under way.
pub(super) struct Writer {
    path: PathBuf,
    out: Summed,
    bytes: Vec<u8>,
}

impl Writer {
    /// A file of tensors with these names and shapes, whose numbers come in this order.
    pub fn create(path: &Path, tensors: Vec<(String, Vec<usize>)>) -> Result<Writer> {
        let io = |source| Error::Write { path: path.to_owned(), source };
        let mut header = serde_json::Map::new();
        let mut at = 0usize;
        for (name, shape) in tensors {
            let end = at + 4 * shape.iter().product::<usize>();
            header.insert(name, json!({ "dtype": "F32", "shape": shape, "data_offsets": [at, end] }));
            at = end;
        }
        let mut head = serde_json::Value::Object(header).to_string().into_bytes();
        head.resize(head.len().next_multiple_of(8), b' ');
        let file = File::create_new(path).map_err(io)?;
        let mut out = Summed { out: BufWriter::with_capacity(1 << 20, file), sum: Checksum::new(), size: 0 };
        out.write(&(head.len() as u64).to_le_bytes()).and_then(|()| out.write(&head)).map_err(io)?;
        Ok(Writer { path: path.to_owned(), out, bytes: Vec::with_capacity(4 * PIECE) })
    }

    /// The numbers of the next tensor.
    pub fn add(&mut self, numbers: &[f32]) -> Result<()> {
        for piece in numbers.chunks(PIECE) {
            self.bytes.clear();
            self.bytes.extend(piece.iter().flat_map(|x| x.to_le_bytes()));
            self.out.write(&self.bytes).map_err(|source| Error::Write { path: self.path.clone(), source })?;
        }
        Ok(())
    }

    /// Makes the file durable; gives its size and checksum.
    pub fn finish(self) -> Result<(u64, u32)> {
        let io = |source| Error::Write { path: self.path.clone(), source };
        let (size, sum) = (self.out.size, self.out.sum.finish());
        let file = self.out.out.into_inner().map_err(|e| io(e.into_error()))?;
        file.sync_all().map_err(io)?;
        Ok((size, sum))
    }
}

/// A file under way, and what went into it.
struct Summed {
    out: BufWriter<File>,
    sum: Checksum,
    size: u64,
}

impl Summed {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.sum.add(bytes);
        self.size += bytes.len() as u64;
        self.out.write_all(bytes)
    }
}

/// Checks a file's size and checksum.
pub(super) fn verify(path: &Path, size: u64, sum: u32) -> Result<()> {
    let damaged = |what: String| Err(Error::format(path.display().to_string(), what));
    if path.exists() && !path.is_file() {
        return damaged("is no file".into());
    }
    let bytes = file::map(path)?;
    if bytes.len() as u64 != size {
        return damaged(format!("has {} bytes instead of {size}", bytes.len()));
    }
    if checksum(&bytes) != sum {
        return damaged("is damaged: its checksum is another one".into());
    }
    Ok(())
}

/// A file of f32 tensors.
pub(super) struct Reader {
    path: PathBuf,
    bytes: Bytes,
}

impl Reader {
    pub fn open(path: &Path) -> Result<Reader> {
        Ok(Reader { path: path.to_owned(), bytes: file::map(path)? })
    }

    /// The numbers of a tensor of as many.
    pub fn read(&self, name: &str, into: &mut [f32]) -> Result<()> {
        let bad = |what: String| Error::format(self.path.display().to_string(), what);
        let file = SafeTensors::deserialize(&self.bytes).map_err(|e| bad(e.to_string()))?;
        let tensor = file.tensor(name).map_err(|_| bad(format!("has no tensor `{name}`")))?;
        if tensor.dtype() != Dtype::F32 || tensor.data().len() != 4 * into.len() {
            let (d, s) = (tensor.dtype(), tensor.shape());
            return Err(bad(format!("tensor `{name}` is {d:?} {s:?}, and {} f32 numbers are expected", into.len())));
        }
        for (x, b) in into.iter_mut().zip(tensor.data().chunks_exact(4)) {
            *x = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
        }
        Ok(())
    }
}

/// CRC-32C (Castagnoli, RFC 3720), eight bytes at a time.
#[derive(Clone, Copy)]
pub(crate) struct Checksum(u32);

/// `TABLES[k][b]`: what byte b does to the remainder k bytes further on.
static TABLES: [[u32; 256]; 8] = tables();

const fn tables() -> [[u32; 256]; 8] {
    let mut t = [[0u32; 256]; 8];
    let mut i = 0;
    while i < 256 {
        let (mut c, mut bit) = (i as u32, 0);
        while bit < 8 {
            c = if c & 1 == 1 { (c >> 1) ^ 0x82f6_3b78 } else { c >> 1 };
            bit += 1;
        }
        t[0][i] = c;
        i += 1;
    }
    let mut k = 1;
    while k < 8 {
        let mut i = 0;
        while i < 256 {
            t[k][i] = (t[k - 1][i] >> 8) ^ t[0][(t[k - 1][i] & 0xff) as usize];
            i += 1;
        }
        k += 1;
    }
    t
}

impl Checksum {
    fn new() -> Self {
        Checksum(!0)
    }

    fn add(&mut self, bytes: &[u8]) {
        let mut c = self.0;
        let mut eights = bytes.chunks_exact(8);
        for b in &mut eights {
            let low = c ^ u32::from_le_bytes([b[0], b[1], b[2], b[3]]);
            let at = |k: usize, byte: u32| TABLES[k][(byte & 0xff) as usize];
            c = at(7, low) ^ at(6, low >> 8) ^ at(5, low >> 16) ^ at(4, low >> 24);
            c ^= at(3, b[4].into()) ^ at(2, b[5].into()) ^ at(1, b[6].into()) ^ at(0, b[7].into());
        }
        for b in eights.remainder() {
            c = (c >> 8) ^ TABLES[0][((c ^ u32::from(*b)) & 0xff) as usize];
        }
        self.0 = c;
    }

    fn finish(self) -> u32 {
        !self.0
    }
}

/// The CRC-32C of some bytes.
pub(crate) fn checksum(bytes: &[u8]) -> u32 {
    let mut c = Checksum::new();
    c.add(bytes);
    c.finish()
}

#[cfg(test)]
mod tests {
    use super::checksum;

    #[test]
    fn checksums_of_the_rfc() {
        // RFC 3720, appendix B.4.
        assert_eq!(checksum(&[0; 32]), 0x8a91_36aa);
        assert_eq!(checksum(&[0xff; 32]), 0x62a8_ab43);
        let rising: Vec<u8> = (0..32).collect();
        assert_eq!(checksum(&rising), 0x46dd_794e);
        assert_eq!(checksum(b"123456789"), 0xe306_9283);
        assert_eq!(checksum(b""), 0);
    }
}
