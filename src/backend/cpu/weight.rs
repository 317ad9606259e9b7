//! A weight as the CPU backend reads it: the file's bytes, and the kernels of its format.

use super::{
    act::{ActRow, Acts},
    kernel::{Kernels, RowsJob, kernels, panel},
    pool::relock,
    tier::Tier,
};
use crate::file::Tensor;
use std::sync::{Mutex, MutexGuard};

/// A matrix, or several of equal shape one behind the other (experts).
pub struct Weight {
    tensor: Tensor,
    kernels: Kernels,
}

/// The activations that a product reads: rows of as many numbers as the weight has columns.
#[derive(Clone, Copy)]
pub struct Input<'a> {
    /// In f32, `[rows, cols]`.
    pub floats: &'a [f32],
    /// In 8 bits; filled where a weight that reads them is quantised.
    pub acts: &'a Acts,
}

/// What one worker needs to itself.
#[derive(Default)]
pub struct Scratch {
    /// Memory of products.
    pub work: Work,
    /// Results of a product.
    pub tile: Vec<f32>,
    /// Results of a second product, or of attention.
    pub other: Vec<f32>,
}

/// Memory of products.
#[derive(Default)]
pub struct Work {
    panel: panel::Panel,
    acts: Vec<ActRow>,
}

// SAFETY: `acts` holds pointers only while a product runs, on one thread.
unsafe impl Send for Work {}

impl Work {
    /// Bytes held.
    pub fn bytes(&self) -> u64 {
        self.panel.bytes() + (self.acts.capacity() * size_of::<ActRow>()) as u64
    }
}

/// The scratch of each worker.
pub struct Scratches(Vec<Mutex<Scratch>>);

impl Scratches {
    /// One for each of `threads` workers.
    pub fn new(threads: usize) -> Self {
        Scratches((0..threads).map(|_| Mutex::default()).collect())
    }

    /// That of `worker`; never contended, because worker numbers are unique within a job.
    pub fn of(&self, worker: usize) -> MutexGuard<'_, Scratch> {
        relock(&self.0[worker])
    }

    /// Bytes held.
    pub fn bytes(&self) -> u64 {
        let one = |s: MutexGuard<'_, Scratch>| s.work.bytes() + 4 * (s.tile.capacity() + s.other.capacity()) as u64;
        self.0.iter().map(|s| one(relock(s))).sum()
    }
}

/// The first `len` numbers of `v`, which grows where it is shorter.
pub fn room(v: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if v.len() < len {
        v.resize(len, 0.0);
    }
    &mut v[..len]
}

impl Weight {
    /// Prepares a tensor for `tier`.
    pub fn new(tensor: Tensor, tier: Tier) -> Self {
        let kernels = kernels(tensor.dtype(), tier);
        Weight { tensor, kernels }
    }

    /// Weights of a row.
    pub fn cols(&self) -> usize {
        self.tensor.cols()
    }

    /// All rows.
    pub fn rows(&self) -> usize {
        self.tensor.rows()
    }

    /// Bytes of a row.
    pub fn row_bytes(&self) -> usize {
        self.tensor.row_bytes()
    }

    /// Whether products read the activations in 8 bits.
    pub fn is_quantised(&self) -> bool {
        !self.tensor.dtype().is_float()
    }

    /// The tensor.
    pub fn tensor(&self) -> &Tensor {
        &self.tensor
    }

    /// Rows `first .. first + rows` times the activation rows `tokens` of `x`: row r of the i-th token to
    /// `out[i * rows + r]`.
    ///
    /// # Panics
    /// Where a row, a token or `out` is out of range.
    pub fn product(&self, first: usize, rows: usize, x: Input<'_>, tokens: &[u32], work: &mut Work, out: &mut [f32]) {
        assert!(first + rows <= self.rows() && out.len() >= rows * tokens.len());
        assert!(!self.is_quantised() || x.acts.cols() == self.cols());
        let per_part = self.tensor.rows_per_part();
        let mut r = first;
        while r < first + rows {
            let (part, at) = (r / per_part, r % per_part);
            let n = (per_part - at).min(first + rows - r);
            let bytes = &self.tensor.parts()[part][at * self.row_bytes()..(at + n) * self.row_bytes()];
            self.run(bytes, n, x, tokens, work, &mut out[r - first..], rows);
            r += n;
        }
    }

    /// `n` rows that lie one behind the other in `bytes`; token i to `out[i * stride ..]`.
    fn run(
        &self,
        bytes: &[u8],
        n: usize,
        x: Input<'_>,
        tokens: &[u32],
        work: &mut Work,
        out: &mut [f32],
        stride: usize,
    ) {
        if let Some(fill) = self.kernels.panel
            && tokens.len() >= if fill.fine { panel::WORTH_FINE } else { panel::WORTH }
        {
            work.acts.clear();
            work.acts.extend(tokens.iter().map(|t| x.acts.row(*t as usize)));
            for r in (0..n).step_by(panel::ROWS) {
                let rows = panel::ROWS.min(n - r);
                let from = &bytes[r * self.row_bytes()..(r + rows) * self.row_bytes()];
                // SAFETY: `from` holds `rows` rows of this format; kernels with panels are made for processors that run
                // them; `Acts::row` gives rows of as many activations as the weight has columns.
                unsafe {
                    work.panel.fill(fill, from.as_ptr(), self.row_bytes(), rows, self.cols());
                    work.panel.multiply(fill.fine, self.cols(), rows, &work.acts, &mut out[r..], stride);
                }
            }
            return;
        }
        let mut i = 0;
        while i < tokens.len() {
            let out = &mut out[i * stride..];
            let left = &tokens[i..];
            i += match left.len() {
                4.. => self.rows_kernel::<4>(self.kernels.four, bytes, n, x, left, out, stride),
                2.. => self.rows_kernel::<2>(self.kernels.two, bytes, n, x, left, out, stride),
                _ => self.rows_kernel::<1>(self.kernels.one, bytes, n, x, left, out, stride),
            };
        }
    }

    /// The next `T` tokens; gives `T`.
    fn rows_kernel<const T: usize>(
        &self,
        kernel: super::kernel::RowsKernel<T>,
        bytes: &[u8],
        rows: usize,
        x: Input<'_>,
        tokens: &[u32],
        out: &mut [f32],
        stride: usize,
    ) -> usize {
        let cols = self.cols();
        assert!(out.len() >= (T - 1) * stride + rows && bytes.len() == rows * self.row_bytes());
        let quantised = self.is_quantised();
        let job = RowsJob {
            weights: bytes.as_ptr(),
            row_bytes: self.row_bytes(),
            rows,
            cols,
            acts: std::array::from_fn(|t| if quantised { x.acts.row(tokens[t] as usize) } else { ActRow::NONE }),
            floats: std::array::from_fn(|t| {
                if quantised { std::ptr::null() } else { x.floats[tokens[t] as usize * cols..][..cols].as_ptr() }
            }),
            out: out.as_mut_ptr(),
            stride,
        };
        // SAFETY: the kernel is of this processor's tier and this weight's format; the rows are in `bytes`, the activations
        // have `cols` numbers, `out` has the room, as asserted.
        unsafe { kernel(&job) };
        T
    }
}
