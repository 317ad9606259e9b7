//! The memory of packed weights.

use super::{
    super::super::{
        act::ActRow,
        buffer::Out,
        pool::Pool,
        prefetch::{self, Level},
        simd_level::SimdLevel,
    },
    Job, Kernels, Packing, Prefetch, ROWS,
    pack::Pack,
    packing,
};
use crate::{
    backend::arena::{Arena, Piece},
    error::{Error, Result},
    file::Tensor,
};

/// A packed weight: one matrix, or several of equal shape (experts), each in panels of its own.
pub struct Packed {
    bytes: Piece,
    kernels: Kernels,
    /// Rows of a matrix, and how many panels they make.
    rows: usize,
    panels: usize,
    panel_bytes: usize,
    cols: usize,
}

/// How a tensor is cut into panels.
struct Panels {
    packing: Packing,
    /// Rows of a matrix, and how many panels they make.
    rows: usize,
    panels: usize,
    /// Panels of all matrices.
    total: usize,
    panel_bytes: usize,
}

impl Panels {
    /// `None` where the SIMD level has no kernels for the tensor's format, or where there is nothing in it.
    fn of(tensor: &Tensor, simd_level: SimdLevel) -> Option<Panels> {
        let packing = packing(tensor.dtype(), simd_level)?;
        let (shape, cols) = (tensor.shape(), tensor.cols());
        let rows = if shape.len() < 2 { 1 } else { shape[shape.len() - 2] };
        if cols == 0 || rows == 0 || tensor.rows() == 0 {
            return None;
        }
        let panels = rows.div_ceil(ROWS);
        let panel_bytes = packing.layout.panel_bytes(cols);
        Some(Panels { packing, rows, panels, total: tensor.rows() / rows * panels, panel_bytes })
    }

    fn bytes(&self) -> usize {
        self.total.saturating_mul(self.panel_bytes)
    }
}

/// The memory that [`Packed::new`] will take, in bytes; 0 where it packs nothing.
pub fn packed_bytes(tensor: &Tensor, simd_level: SimdLevel) -> u64 {
    Panels::of(tensor, simd_level).map_or(0, |p| p.bytes() as u64)
}

impl Packed {
    /// Packs a tensor for `simd_level` into memory of the arena; `None` where the SIMD level has no kernels for its format. Pages of a
    /// mapped file are released as they have been read; `progress` is called with the bytes of the tensor that are done.
    ///
    /// # Errors
    /// [`Error::Device`] where there is no memory for it.
    pub fn new(
        tensor: &Tensor,
        simd_level: SimdLevel,
        pool: &Pool,
        arena: &mut Arena,
        progress: &mut dyn FnMut(u64) -> Result<()>,
    ) -> Result<Option<Packed>> {
        let Some(cut) = Panels::of(tensor, simd_level) else {
            return Ok(None);
        };
        let mut bytes = arena.zeroed(cut.bytes()).map_err(|e| {
            let (len, dtype, shape) = (cut.bytes(), tensor.dtype(), tensor.shape());
            Error::Device(format!("no memory for the {len} bytes of a packed {dtype} {shape:?}: {e}"))
        })?;
        let Panels { packing: Packing { pack, kernels, .. }, rows, panels, total, panel_bytes } = cut;
        let cols = tensor.cols();
        let out = Out::new(&mut bytes);
        // Small enough pieces that what is mapped twice, and the wait for a cancelling host, stay small.
        let piece = ((32 << 20) / panel_bytes).max(1);
        let mut first = 0;
        while first < total {
            let end = total.min(first + piece);
            pool.run(end - first, &|_, item| {
                let panel = first + item;
                let from = panel / panels * rows + panel % panels * ROWS;
                let n = ROWS.min(rows - panel % panels * ROWS);
                let mut list: [&[u8]; ROWS] = [&[]; ROWS];
                (0..n).for_each(|i| list[i] = tensor.row(from + i));
                // SAFETY: every panel belongs to one item.
                let to = unsafe { out.slice(panel * panel_bytes, panel_bytes) };
                // SAFETY: the SIMD level is one of this processor's, because it has kernels.
                unsafe { pack(Pack { rows: &list[..n], cols, panel: to }) }
            })?;
            let row_of = |panel: usize| panel / panels * rows + (panel % panels * ROWS).min(rows);
            tensor.release(row_of(first)..row_of(end));
            progress((row_of(end) * tensor.row_bytes()) as u64)?;
            first = end;
        }
        Ok(Some(Packed { bytes, kernels, rows, panels, panel_bytes, cols }))
    }

    /// Bytes held.
    pub fn bytes(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// Where the panel of row `first` begins.
    pub fn address(&self, first: usize) -> *const u8 {
        let panel = first / self.rows * self.panels + first % self.rows / ROWS;
        self.bytes.as_ptr().wrapping_add(panel * self.panel_bytes)
    }

    /// Rows `first .. first + rows` (of all matrices' rows in order) times `acts`: row r of the i-th to `out[i * stride + r]`.
    /// `next` is where the weights begin that are needed after these; where it is null, these are those behind them.
    ///
    /// # Panics
    /// Where the rows are not within one matrix, do not begin with a panel, or `out` is too short.
    ///
    /// # Safety
    /// `acts` are valid rows of as many activations as the weight has columns.
    pub unsafe fn product(
        &self,
        first: usize,
        rows: usize,
        acts: &[ActRow],
        out: &mut [f32],
        stride: usize,
        next: *const u8,
    ) {
        let (matrix, at) = (first / self.rows, first % self.rows);
        assert!(at % ROWS == 0 && at + rows <= self.rows, "rows {first} + {rows} of matrices of {}", self.rows);
        assert!(acts.is_empty() || out.len() >= (acts.len() - 1) * stride + rows);
        let panel = matrix * self.panels + at / ROWS;
        let from = &self.bytes[panel * self.panel_bytes..][..rows.div_ceil(ROWS) * self.panel_bytes];
        let prefetch = match prefetch::level() {
            Level::L2 => Prefetch::Staged,
            _ if acts.len() == 1 => Prefetch::Direct(Level::L1Only),
            level => Prefetch::Direct(level),
        };
        let end = from.as_ptr_range().end;
        let next = if next.is_null() { end } else { next };
        // Tokens whose activations stay in the second cache while some panels pass by.
        for (some, acts) in acts.chunks(TOKENS).enumerate() {
            for (i, panel) in from.chunks_exact(self.panel_bytes).enumerate() {
                let n = ROWS.min(rows - i * ROWS);
                let mut done = 0;
                while done < acts.len() {
                    let kernel = (self.kernels.by.len() - 1).min((acts.len() - done).ilog2() as usize);
                    let at = (some * TOKENS + done) * stride + i * ROWS;
                    // SAFETY: kernels exist only for SIMD levels that the processor has; the panel is of this weight's format,
                    // the kernel takes as many activation rows as are left, and `out` has the room, as asserted.
                    unsafe {
                        (self.kernels.by[kernel])(&Job {
                            panel: panel.as_ptr(),
                            cols: self.cols,
                            rows: n,
                            acts: acts.as_ptr().add(done),
                            out: out.as_mut_ptr().add(at),
                            stride,
                            prefetch: if some + done == 0 { prefetch } else { Prefetch::Nothing },
                            end,
                            next,
                        });
                    }
                    done += 1 << kernel;
                }
            }
        }
    }
}

/// Activation rows that go together through some panels.
const TOKENS: usize = 128;
