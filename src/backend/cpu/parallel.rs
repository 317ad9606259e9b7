//! How the ops share work among threads: by row, by head, or by blocks of a matrix's rows.

use super::{
    buffer::Out,
    pool::Pool,
    simd_level::{SimdKernel, SimdLevel, dispatch},
    weight::{ScratchPool, Weight},
};
use crate::error::Result;
use std::ops::Range;

/// What the code of every op is given: threads, instructions, scratch memory, weights.
#[derive(Clone, Copy)]
pub struct Env<'a> {
    /// The threads of the model.
    pub pool: &'a Pool,
    /// The instruction set of the kernels.
    pub simd_level: SimdLevel,
    /// Scratch memory, by worker.
    pub scratch: &'a ScratchPool,
    /// The weights, by weight id.
    pub weights: &'a [Weight],
    /// The f32 values of weights that ops read as vectors, by weight id; empty for matrices.
    pub vectors: &'a [Vec<f32>],
    /// 0, 1, 2, …: the rows of a product with all tokens of a step.
    pub all_tokens: &'a [u32],
}

impl Env<'_> {
    /// Runs a kernel with the instructions of this SIMD level.
    pub fn simd<F: SimdKernel>(&self, f: F) -> F::Output {
        // SAFETY: the SIMD level was found available at load; the kernels that ops run so have no other conditions.
        unsafe { dispatch(self.simd_level, f) }
    }

    /// How `rows` rows of a weight, each of `row_bytes` bytes, are divided for a product with `tokens` tokens.
    pub fn partition(&self, rows: usize, row_bytes: usize, tokens: usize) -> RowPartition {
        let many = tokens >= super::kernel::panel::WORTH;
        let by_bytes = if many { 64 } else { (24 << 10) / row_bytes.max(1) };
        let by_threads = rows / (6 * self.pool.threads());
        let block = by_bytes.min(by_threads).clamp(16, 128).next_multiple_of(16);
        RowPartition { block_rows: block, max_blocks: if many { 1 } else { MAX_SPAN_ROWS / block } }
    }
}

/// The most rows that one call of a small-batch kernel computes: enough to make the fixed cost of a call small, and few enough
/// for the results to stay in the first-level cache.
pub const MAX_SPAN_ROWS: usize = 512;

/// How the rows of a matrix are divided among the threads.
#[derive(Clone, Copy)]
pub struct RowPartition {
    /// Rows of a block, the least that a thread takes at a time. For a small batch they are some 24 KiB of weights, with
    /// enough blocks for every thread; for a large batch a few panels, so that the fixed cost of a block is small beside them.
    pub block_rows: usize,
    /// The most neighbouring blocks that one call of the kernel may compute.
    pub max_blocks: usize,
}

impl RowPartition {
    /// The number of blocks of a matrix of `rows` rows.
    pub fn blocks(&self, rows: usize) -> usize {
        rows.div_ceil(self.block_rows)
    }

    /// Finds the rows of a range of blocks, which are numbered through several matrices of `rows` rows, one matrix after the
    /// other. Calls `f` for each matrix that has some of `blocks`, with the matrix's number, the first row and the number of rows.
    pub fn for_each_block(&self, rows: usize, blocks: Range<usize>, mut f: impl FnMut(usize, usize, usize)) {
        let per = self.blocks(rows);
        let mut at = blocks.start;
        while at < blocks.end {
            let (matrix, first) = (at / per, at % per * self.block_rows);
            let end = blocks.end.min((matrix + 1) * per);
            f(matrix, first, rows.min(first + (end - at) * self.block_rows) - first);
            at = end;
        }
    }
}

/// What [`each_row`] does with a row, given the row's number, its input and its output.
pub type RowFn<'a> = &'a (dyn Fn(usize, &[f32], &mut [f32]) + Sync);

/// What [`each_output`] does with a row, given the row's number and its output.
pub type OutputFn<'a> = &'a (dyn Fn(usize, &mut [f32]) + Sync);

/// The least work for a thread of ops on rows, in input values: below, waking a thread costs more than it saves.
const MIN_VALUES_PER_ITEM: usize = 16384;

/// Calls `f` for every row of `x`, `[rows, cols]`, with its number, input and output. Many rows go to several threads.
///
/// # Errors
/// As [`Pool::run`].
pub fn each_row(env: Env<'_>, x: &[f32], cols: usize, out: &mut [f32], f: RowFn<'_>) -> Result<()> {
    let cols = cols.max(1);
    each_output(env, x.len() / cols, cols, out, cols, &|r, y| f(r, &x[r * cols..(r + 1) * cols], y))
}

/// Calls `f` for each of `rows` rows with its number and its row of `out`, `[rows, cols]`. Rows go to several threads where there
/// are many; `cost` is the work of a row, in values that it reads.
///
/// # Errors
/// As [`Pool::run`].
pub fn each_output(
    env: Env<'_>,
    rows: usize,
    cost: usize,
    out: &mut [f32],
    cols: usize,
    f: OutputFn<'_>,
) -> Result<()> {
    let per = (MIN_VALUES_PER_ITEM / cost.max(1)).max(1);
    let out = Out::new(out);
    env.pool.run(rows.div_ceil(per), &|_, item| {
        for r in item * per..rows.min((item + 1) * per) {
            // SAFETY: every row belongs to one item.
            f(r, unsafe { out.slice(r * cols, cols) });
        }
    })
}

/// Calls `f` for every head and row of `rows`, `[T, heads · d]`, with the head's number, the row's number and the row's `d` values
/// of that head. Heads go to several threads where there is much to write; one head goes to one thread.
pub fn each_head(
    env: Env<'_>,
    heads: usize,
    d: usize,
    rows: &[f32],
    f: &(dyn Fn(usize, usize, &[f32]) + Sync),
) -> Result<()> {
    if heads * d == 0 {
        return Ok(());
    }
    let per = if rows.len() > 16384 { 1 } else { heads };
    env.pool.run(heads.div_ceil(per), &|_, item| {
        for h in item * per..heads.min((item + 1) * per) {
            for (t, row) in rows.chunks_exact(heads * d).enumerate() {
                f(h, t, &row[h * d..(h + 1) * d]);
            }
        }
    })
}
