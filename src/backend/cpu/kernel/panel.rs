//! Panels: 16 rows of a quantised weight unpacked once and multiplied with many tokens.
//!
//! The quants of 16 rows lie interleaved, four of a row after four of the next, so that one `vpdpbusd` adds four products for
//! each of 16 rows and a token's four activations are one broadcast: no sum across a register, one scale a row in a lane.
//! A panel of 16 × K bytes stays in the first or second cache while the tokens pass by.

use super::super::{act::ActRow, buffer::Aligned};

/// Rows of a panel.
pub const ROWS: usize = 16;

/// From how many tokens on unpacking pays, for scales per 32 weights: measured on Zen 5, 4 tokens at a time by rows do as well.
pub const WORTH: usize = 6;

/// The same for scales per 16 weights.
pub const WORTH_SUB16: usize = 9;

/// How a format fills panels.
#[derive(Clone, Copy)]
pub struct Fill {
    /// Unpacks the rows. Safety: the processor has the SIMD level, and a valid job.
    pub fill: unsafe fn(&FillJob),
    /// Multiplies what this fill made. Safety: the processor has the SIMD level, and a valid job.
    pub multiply: unsafe fn(&MultiplyJob<'_>),
    /// Scales are per 16 weights, not 32.
    pub sub16: bool,
}

/// What a fill works on.
pub struct FillJob {
    /// First row.
    pub weights: *const u8,
    /// Bytes from row to row.
    pub row_bytes: usize,
    /// Rows, 1 to 16; the others are filled with a scale of 0.
    pub rows: usize,
    /// Weights of a row, a multiple of 32.
    pub cols: usize,
    /// `[cols / 4][16][4]`, with `cols` rounded up to whole 64s.
    pub quants: *mut u8,
    /// `[cols / 16 or 32][16]`, with `cols` rounded up to whole 256s.
    pub scales: *mut f32,
    /// As scales.
    pub mins: *mut f32,
}

/// What a multiplication works on: a filled panel and rows of activations.
pub struct MultiplyJob<'a> {
    /// As [`FillJob::quants`].
    pub quants: *const u8,
    /// As [`FillJob::scales`].
    pub scales: *const f32,
    /// As scales.
    pub mins: *const f32,
    /// Weights of a row by 32.
    pub groups: usize,
    /// Rows that are wanted, 1 to 16.
    pub rows: usize,
    /// The tokens' activations.
    pub acts: &'a [ActRow],
    /// Row r of token t goes to `out[t * stride + r]`.
    pub out: *mut f32,
    /// See `out`.
    pub stride: usize,
}

/// A panel's memory.
#[derive(Default)]
pub struct Panel {
    quants: Aligned<u8>,
    scales: Aligned<f32>,
    mins: Aligned<f32>,
}

impl Panel {
    /// Room for rows of `cols` weights.
    pub fn reserve(&mut self, cols: usize) {
        let n = cols.next_multiple_of(256);
        self.quants.grow(n * ROWS);
        self.scales.grow(n / 16 * ROWS);
        self.mins.grow(n / 16 * ROWS);
    }

    /// Bytes held.
    pub fn bytes(&self) -> u64 {
        self.quants.bytes() + self.scales.bytes() + self.mins.bytes()
    }

    /// Unpacks `rows` rows of `cols` weights.
    ///
    /// # Safety
    /// The processor has the fill's SIMD level; the rows lie one behind the other from `weights` on, of the fill's format.
    pub unsafe fn fill(&mut self, fill: Fill, weights: *const u8, row_bytes: usize, rows: usize, cols: usize) {
        self.reserve(cols);
        let job = FillJob {
            weights,
            row_bytes,
            rows,
            cols,
            quants: self.quants.as_mut_ptr(),
            scales: self.scales.as_mut_ptr(),
            mins: self.mins.as_mut_ptr(),
        };
        // SAFETY: the buffers have the sizes that the job states; the rest is the caller's.
        unsafe { (fill.fill)(&job) }
    }

    /// Multiplies the panel with tokens: row r of token t goes to `out[t * stride + r]`, for `rows` rows.
    ///
    /// # Safety
    /// The panel was filled with rows of `cols` weights by `fill`; the processor has its SIMD level; `acts` are rows of `cols`
    /// activations.
    pub unsafe fn multiply(
        &self,
        fill: Fill,
        cols: usize,
        rows: usize,
        acts: &[ActRow],
        out: &mut [f32],
        stride: usize,
    ) {
        assert!(rows <= ROWS && (acts.is_empty() || out.len() >= (acts.len() - 1) * stride + rows));
        let job = MultiplyJob {
            quants: self.quants.as_ptr(),
            scales: self.scales.as_ptr(),
            mins: self.mins.as_ptr(),
            groups: cols / 32,
            rows,
            acts,
            out: out.as_mut_ptr(),
            stride,
        };
        // SAFETY: the panel holds what the caller says; `out` has the room, as asserted.
        unsafe { (fill.multiply)(&job) }
    }
}
