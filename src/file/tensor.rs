//! A named tensor: type, shape, and bytes in one or several parts.

use super::bytes::Bytes;
use crate::{
    error::{Error, Result},
    quant::DType,
};

/// A weight as the file stores it: row-major, with the last dimension contiguous and quantised along it.
///
/// The rows (all dimensions but the last, flattened) may be spread over several parts of equally many rows each: the
/// experts of a Hugging Face checkpoint are one tensor each, and the gate half of a merged gate-up tensor is a piece of
/// every expert. Nothing is copied for that.
#[derive(Clone, Debug)]
pub struct Tensor {
    dtype: DType,
    shape: Vec<usize>,
    parts: Vec<Bytes>,
    rows_per_part: usize,
    row_bytes: usize,
}

impl Tensor {
    /// A tensor of `shape` whose bytes are `parts`, each of equally many rows. Checks sizes, not values.
    ///
    /// # Errors
    /// [`Error::Model`] where the shape is empty or overflows, the last dimension is no whole number of blocks, or the
    /// parts' sizes do not add up.
    pub fn new(dtype: DType, shape: Vec<usize>, parts: Vec<Bytes>) -> Result<Self> {
        let bad = |what: String| Error::Model(format!("tensor {dtype} {shape:?}: {what}"));
        let Some((&cols, lead)) = shape.split_last() else {
            return Err(bad("no dimensions".into()));
        };
        let rows =
            lead.iter().try_fold(1usize, |a, &d| a.checked_mul(d)).ok_or_else(|| bad("size overflows".into()))?;
        let row_bytes = dtype.row_bytes(cols).ok_or_else(|| {
            bad(format!("rows of {cols} weights are no whole number of {}-weight blocks", dtype.layout().block))
        })?;
        if parts.is_empty() || rows % parts.len() != 0 {
            return Err(bad(format!("{rows} rows in {} parts", parts.len())));
        }
        let rows_per_part = rows / parts.len();
        let want = rows_per_part.checked_mul(row_bytes).ok_or_else(|| bad("size overflows".into()))?;
        if let Some(p) = parts.iter().find(|p| p.len() != want) {
            return Err(bad(format!("a part has {} bytes instead of {want}", p.len())));
        }
        Ok(Tensor { dtype, shape, parts, rows_per_part, row_bytes })
    }

    /// An f32 tensor of these values.
    ///
    /// # Errors
    /// As [`Tensor::new`].
    pub fn from_f32(shape: Vec<usize>, values: Vec<f32>) -> Result<Self> {
        Self::new(DType::F32, shape, vec![Bytes::from_f32(values)])
    }

    /// An f32 tensor in the place of this one, whose values are elsewhere: zeros, which take memory only if somebody reads them.
    pub(crate) fn elsewhere(&self) -> Self {
        let (rows, row_bytes) = (self.rows(), 4 * self.cols());
        let parts = vec![Bytes::from_fn(rows * row_bytes, Vec::new)];
        Tensor { dtype: DType::F32, shape: self.shape.clone(), parts, rows_per_part: rows, row_bytes }
    }

    /// The format of the weights.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Row-major shape, outermost dimension first: `[out, in]`, `[experts, out, in]`, `[n]`.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The number of weights of a row: the last dimension.
    pub fn cols(&self) -> usize {
        self.shape.last().copied().unwrap_or(0)
    }

    /// The number of rows: the product of all dimensions but the last.
    pub fn rows(&self) -> usize {
        self.rows_per_part * self.parts.len()
    }

    /// The size of a row, in bytes.
    pub fn row_bytes(&self) -> usize {
        self.row_bytes
    }

    /// The size of the tensor, in bytes.
    pub fn byte_len(&self) -> usize {
        self.rows() * self.row_bytes
    }

    /// The parts, each of [`Tensor::rows_per_part`] rows.
    pub fn parts(&self) -> &[Bytes] {
        &self.parts
    }

    /// The number of rows of a part.
    pub fn rows_per_part(&self) -> usize {
        self.rows_per_part
    }

    /// The bytes of row `r` (of the flattened rows).
    ///
    /// # Panics
    /// Where `r` is out of range: callers take `r` from the shape.
    pub fn row(&self, r: usize) -> &[u8] {
        let (p, i) = (r / self.rows_per_part, r % self.rows_per_part);
        &self.parts[p][i * self.row_bytes..(i + 1) * self.row_bytes]
    }

    /// Whether all bytes of the tensor have been made already (see [`Bytes::from_fn`]).
    pub fn is_made(&self) -> bool {
        self.parts.iter().all(Bytes::is_made)
    }

    /// Advises the system that the bytes of some rows are not needed in memory for now, see [`Bytes::release`].
    pub fn release(&self, rows: std::ops::Range<usize>) {
        self.each_part(rows, Bytes::release);
    }

    /// Advises the system that the bytes of some rows will be read soon, see [`Bytes::will_need`].
    pub fn will_need(&self, rows: std::ops::Range<usize>) {
        self.each_part(rows, Bytes::will_need);
    }

    /// Advises the system to read what is asked for and nothing around it, see [`Bytes::read_at_random`].
    pub fn read_at_random(&self) {
        self.parts.iter().for_each(Bytes::read_at_random);
    }

    /// Whether any of the bytes lie in a memory map.
    pub fn is_mapped(&self) -> bool {
        self.parts.iter().any(Bytes::is_mapped)
    }

    fn each_part(&self, rows: std::ops::Range<usize>, advise: impl Fn(&Bytes)) {
        for (i, part) in self.parts.iter().enumerate() {
            let first = i * self.rows_per_part;
            let at = |r: usize| (r.clamp(first, first + self.rows_per_part) - first) * self.row_bytes;
            if let Some(bytes) = part.slice(at(rows.start)..at(rows.end)).filter(|b| !b.is_empty()) {
                advise(&bytes);
            }
        }
    }

    /// Some of the first dimension, such as a few of all experts. Nothing is copied.
    ///
    /// # Errors
    /// [`Error::Model`] where they are not there.
    pub fn part(&self, of: std::ops::Range<usize>) -> Result<Self> {
        let missing = || Error::Model(format!("{of:?} of a tensor {:?}", self.shape));
        let whole = self.shape.first().copied().filter(|n| of.start < of.end && of.end <= *n).ok_or_else(missing)?;
        let each = if self.shape.len() == 1 { 0 } else { self.rows() / whole };
        if each == 0 || self.rows_per_part == 0 {
            return Err(missing());
        }
        let (first, end) = (of.start * each, of.end * each);
        let mut shape = self.shape.clone();
        shape[0] = of.len();
        // Parts are of equally many rows: whole parts where experts are, else a piece of the one part that holds all of it.
        let per = self.rows_per_part;
        let bytes = |part: usize, rows: std::ops::Range<usize>| {
            self.parts[part].slice(rows.start * self.row_bytes..rows.end * self.row_bytes).ok_or_else(missing)
        };
        let parts = match () {
            () if first % per == 0 && end % per == 0 => self.parts[first / per..end / per].to_vec(),
            () if first / per == (end - 1) / per => vec![bytes(first / per, first % per..first % per + (end - first))?],
            () if per % each == 0 => {
                let one = |e: usize| bytes(e * each / per, e * each % per..e * each % per + each);
                of.clone().map(one).collect::<Result<_>>()?
            }
            () => return Err(missing()),
        };
        Self::new(self.dtype, shape, parts)
    }

    /// The same bytes under another shape with equally many weights and the same last dimension.
    ///
    /// # Errors
    /// As [`Tensor::new`].
    pub fn reshaped(&self, shape: Vec<usize>) -> Result<Self> {
        Self::new(self.dtype, shape, self.parts.clone())
    }
}
