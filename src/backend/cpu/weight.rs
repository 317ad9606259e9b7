//! A weight as the CPU backend reads it: the file's blocks or a packed copy, and the kernels of its format.

use super::{
    act::{ActRow, Acts},
    buffer::Aligned,
    kernel::{Kernels, RowsJob, float_panel, kernels, packed::Packed, panel},
    pool::{Pool, lock_unpoisoned},
    simd_level::SimdLevel,
};
use crate::{backend::arena::Arena, error::Result, file::Tensor, quant::Float};
use std::sync::{Mutex, MutexGuard};

/// A matrix, or the matrices of all experts one behind the other.
pub struct Weight {
    tensor: Tensor,
    kernels: Kernels,
    simd_level: SimdLevel,
    packed: Option<Packed>,
}

/// The activations that a product reads: rows of as many values as the weight has columns.
#[derive(Clone, Copy)]
pub struct Input<'a> {
    /// The activations in f32, `[rows, cols]`.
    pub floats: &'a [f32],
    /// The activations as int8 quants; filled where a weight that reads them is quantised.
    pub acts: &'a Acts,
}

/// Scratch memory of one worker.
#[derive(Default)]
pub struct Scratch {
    /// Memory inside of products.
    pub work: MatmulScratch,
    /// The results of a product.
    pub tile: Vec<f32>,
    /// The results of a second product, or the state of attention.
    pub other: Vec<f32>,
}

/// Memory inside of products.
#[derive(Default)]
pub struct MatmulScratch {
    panel: panel::Panel,
    acts: Vec<ActRow>,
    /// Sixteen rows of a float weight, converted to f32.
    floats: Aligned<f32>,
    /// The addresses of the tokens' rows of f32 activations.
    rows: Vec<*const f32>,
    /// The products with both planes of the activations, before they are added.
    pair: Vec<f32>,
}

// SAFETY: `acts` and `rows` hold pointers only while a product runs, on one thread.
unsafe impl Send for MatmulScratch {}

impl MatmulScratch {
    /// The memory held, in bytes.
    pub fn bytes(&self) -> u64 {
        self.panel.bytes()
            + self.floats.bytes()
            + (8 * self.rows.capacity() + self.acts.capacity() * size_of::<ActRow>() + 4 * self.pair.capacity()) as u64
    }
}

/// The scratch memory of all workers.
pub struct ScratchPool(Vec<Mutex<Scratch>>);

impl ScratchPool {
    /// Empty scratch memory for `threads` workers.
    pub fn new(threads: usize) -> Self {
        ScratchPool((0..threads).map(|_| Mutex::default()).collect())
    }

    /// The memory of `worker`. The lock is never contended, because worker numbers are unique within a job.
    pub fn of(&self, worker: usize) -> MutexGuard<'_, Scratch> {
        lock_unpoisoned(&self.0[worker])
    }

    /// The memory held, in bytes.
    pub fn bytes(&self) -> u64 {
        let one = |s: MutexGuard<'_, Scratch>| s.work.bytes() + 4 * (s.tile.capacity() + s.other.capacity()) as u64;
        self.0.iter().map(|s| one(lock_unpoisoned(s))).sum()
    }
}

/// The first `len` values of `v`, which grows if it is shorter.
pub fn ensure_len(v: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if v.len() < len {
        v.resize(len, 0.0);
    }
    &mut v[..len]
}

impl Weight {
    /// A weight with the kernels of `simd_level`, not packed.
    pub fn new(tensor: Tensor, simd_level: SimdLevel) -> Self {
        let kernels = kernels(tensor.dtype(), simd_level);
        Weight { tensor, kernels, simd_level, packed: None }
    }

    /// Packs the weight, where the SIMD level has kernels for packed weights of this format; `progress` gets the bytes done.
    ///
    /// # Errors
    /// As [`Packed::new`].
    pub fn pack(
        &mut self,
        simd_level: SimdLevel,
        pool: &Pool,
        arena: &mut Arena,
        progress: &mut dyn FnMut(u64) -> Result<()>,
    ) -> Result<()> {
        self.packed = Packed::new(&self.tensor, simd_level, pool, arena, progress)?;
        Ok(())
    }

    /// The size of the packed copy, in bytes; 0 where there is none.
    pub fn packed_bytes(&self) -> u64 {
        self.packed.as_ref().map_or(0, Packed::bytes)
    }

    /// The columns: weights of a row.
    pub fn cols(&self) -> usize {
        self.tensor.cols()
    }

    /// The rows, of all experts together.
    pub fn rows(&self) -> usize {
        self.tensor.rows()
    }

    /// The size of a row in the file, in bytes.
    pub fn row_bytes(&self) -> usize {
        self.tensor.row_bytes()
    }

    /// Whether products read the activations as int8 quants.
    pub fn is_quantised(&self) -> bool {
        !self.tensor.dtype().is_float()
    }

    /// The weight as the file has it.
    pub fn tensor(&self) -> &Tensor {
        &self.tensor
    }

    /// The address of the packed rows from `first` on, for prefetching; null where the weight is not packed or has no such row.
    pub fn address(&self, first: usize) -> *const u8 {
        let packed = self.packed.as_ref().filter(|_| first < self.rows());
        packed.map_or(std::ptr::null(), |p| p.address(first))
    }

    /// Multiplies rows `first .. first + rows` with the activation rows `tokens` of `x`; row r of the i-th token goes to
    /// `out[i * rows + r]`. `next` is the [`Weight::address`] of the rows that are read after these, which are prefetched.
    ///
    /// # Panics
    /// If a row, a token or `out` is out of range.
    pub fn product(
        &self,
        first: usize,
        rows: usize,
        x: Input<'_>,
        tokens: &[u32],
        work: &mut MatmulScratch,
        out: &mut [f32],
        next: *const u8,
    ) {
        assert!(first + rows <= self.rows() && out.len() >= rows * tokens.len());
        assert!(!self.is_quantised() || x.acts.cols() == self.cols());
        if let Some(packed) = &self.packed {
            // SAFETY: `Acts` gives rows of as many activations as the weight has columns, as asserted.
            with_planes(x.acts, tokens, work, out, (rows, rows), |acts, _, out, stride| unsafe {
                packed.product(first, rows, acts, out, stride, next);
            });
            return;
        }
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

    /// Multiplies `n` rows, stored one behind the other in `bytes`, with the activation rows `tokens`; the results of the i-th
    /// token go to `out[i * stride ..]`.
    fn run(
        &self,
        bytes: &[u8],
        n: usize,
        x: Input<'_>,
        tokens: &[u32],
        work: &mut MatmulScratch,
        out: &mut [f32],
        stride: usize,
    ) {
        if let Err(float) = self.tensor.dtype().codec() {
            let floats = |t: &u32| x.floats[*t as usize * self.cols()..][..self.cols()].as_ptr();
            if tokens.len() >= float_panel::worth(self.simd_level) {
                work.rows.clear();
                work.rows.extend(tokens.iter().map(floats));
                self.float_gemm(float, bytes, n, work, out, stride);
                return;
            }
            self.gemv_rows(bytes, n, tokens.len(), |i| (ActRow::NONE, floats(&tokens[i])), out, stride);
            return;
        }
        with_planes(x.acts, tokens, work, out, (n, stride), |acts, panel, out, stride| {
            self.quantised_products(bytes, n, acts, panel, out, stride);
        });
    }

    /// Products of `n` rows of a float weight with many tokens, whose activations `work.rows` points to: sixteen rows at a time
    /// are converted to f32 first.
    fn float_gemm(
        &self,
        float: Float,
        bytes: &[u8],
        n: usize,
        work: &mut MatmulScratch,
        out: &mut [f32],
        stride: usize,
    ) {
        assert!(out.len() >= (work.rows.len() - 1) * stride + n && bytes.len() == n * self.row_bytes());
        for r in (0..n).step_by(panel::ROWS) {
            let rows = panel::ROWS.min(n - r);
            let job = float_panel::Job {
                weights: bytes[r * self.row_bytes()..].as_ptr(),
                row_bytes: self.row_bytes(),
                rows,
                cols: self.cols(),
                tokens: &work.rows,
                out: out[r..].as_mut_ptr(),
                stride,
            };
            // SAFETY: the weight was made for a SIMD level that the processor has; rows, activations and `out` have the sizes that
            // the job states, as asserted here and where `rows` was made.
            unsafe { float_panel::product(self.simd_level, float, &mut work.floats, job) }
        }
    }

    /// Products of `n` rows of a quantised weight with quantised activations; the results of the i-th of `acts` go to
    /// `out[i * stride ..]`. Many tokens are worth unpacking sixteen rows at a time into a panel.
    fn quantised_products(
        &self,
        bytes: &[u8],
        n: usize,
        acts: &[ActRow],
        panel: &mut panel::Panel,
        out: &mut [f32],
        stride: usize,
    ) {
        let worth = |fill: &panel::Fill| acts.len() >= if fill.sub16 { panel::WORTH_SUB16 } else { panel::WORTH };
        let Some(fill) = self.kernels.panel.filter(worth) else {
            self.gemv_rows(bytes, n, acts.len(), |i| (acts[i], std::ptr::null()), out, stride);
            return;
        };
        for r in (0..n).step_by(panel::ROWS) {
            let rows = panel::ROWS.min(n - r);
            let from = &bytes[r * self.row_bytes()..(r + rows) * self.row_bytes()];
            // SAFETY: `from` holds `rows` rows of this format; kernels with panels are made for processors that run
            // them; `Acts` gives rows of as many activations as the weight has columns.
            unsafe {
                panel.fill(fill, from.as_ptr(), self.row_bytes(), rows, self.cols());
                panel.multiply(fill, self.cols(), rows, acts, &mut out[r..], stride);
            }
        }
    }

    /// Products of `n` rows with few tokens, a row of the weight at a time with four, two or one of `count` activation rows. `of`
    /// gives the i-th activation row, as quants or as f32.
    fn gemv_rows(
        &self,
        bytes: &[u8],
        n: usize,
        count: usize,
        of: impl Fn(usize) -> (ActRow, *const f32),
        out: &mut [f32],
        stride: usize,
    ) {
        let mut i = 0;
        while i < count {
            let (out, of) = (&mut out[i * stride..], |t: usize| of(i + t));
            i += match count - i {
                4.. => self.rows_kernel::<4>(self.kernels.four, bytes, n, of, out, stride),
                2.. => self.rows_kernel::<2>(self.kernels.two, bytes, n, of, out, stride),
                _ => self.rows_kernel::<1>(self.kernels.one, bytes, n, of, out, stride),
            };
        }
    }

    /// Calls the kernel for `T` activation rows; gives `T`.
    fn rows_kernel<const T: usize>(
        &self,
        kernel: super::kernel::RowsKernel<T>,
        bytes: &[u8],
        rows: usize,
        of: impl Fn(usize) -> (ActRow, *const f32),
        out: &mut [f32],
        stride: usize,
    ) -> usize {
        assert!(out.len() >= (T - 1) * stride + rows && bytes.len() == rows * self.row_bytes());
        let job = RowsJob {
            weights: bytes.as_ptr(),
            row_bytes: self.row_bytes(),
            rows,
            cols: self.cols(),
            acts: std::array::from_fn(|t| of(t).0),
            floats: std::array::from_fn(|t| of(t).1),
            out: out.as_mut_ptr(),
            stride,
        };
        // SAFETY: the kernel is of this processor's SIMD level and this weight's format; the rows are in `bytes`, the activations
        // have `cols` numbers, `out` has the room, as asserted.
        unsafe { kernel(&job) };
        T
    }
}

/// Calls `product` with the quantised activations of some tokens, `out` and its stride, for `n` rows of a weight. Where
/// activations have two planes, both are multiplied with the same weights and the products added.
fn with_planes(
    x: &Acts,
    tokens: &[u32],
    work: &mut MatmulScratch,
    out: &mut [f32],
    (n, stride): (usize, usize),
    product: impl FnOnce(&[ActRow], &mut panel::Panel, &mut [f32], usize),
) {
    let MatmulScratch { panel, acts, pair, .. } = work;
    x.gather(tokens, acts);
    if acts.len() == tokens.len() {
        return product(acts, panel, out, stride);
    }
    let pair = ensure_len(pair, acts.len() * n);
    product(acts, panel, pair, n);
    for (i, planes) in pair.chunks_exact(2 * n).enumerate() {
        let (high, low) = planes.split_at(n);
        for ((o, h), l) in out[i * stride..][..n].iter_mut().zip(high).zip(low) {
            *o = h + l;
        }
    }
}
