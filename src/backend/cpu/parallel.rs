//! How the ops share work among threads: by row, by head, or by blocks of a matrix's rows.

use super::{
    buffer::Out,
    pool::Pool,
    simd_level::{SimdKernel, SimdLevel, dispatch},
    weight::{ScratchPool, Weight},
};
use crate::error::Result;
use std::ops::Range;

/// What every op needs.
#[derive(Clone, Copy)]
pub struct Env<'a> {
    /// The threads.
    pub pool: &'a Pool,
    /// The instructions.
    pub simd_level: SimdLevel,
    /// Memory of each worker.
    pub scratch: &'a ScratchPool,
    /// By weight id.
    pub weights: &'a [Weight],
    /// By weight id; empty for weights of more than one dimension.
    pub vectors: &'a [Vec<f32>],
    /// 0, 1, 2, …: the list of all tokens.
    pub all_tokens: &'a [u32],
}

impl Env<'_> {
    /// Runs float code.
    pub fn simd<F: SimdKernel>(&self, f: F) -> F::Output {
        // SAFETY: the SIMD level was found available at load; the ops of `rows` have no other conditions.
        unsafe { dispatch(self.simd_level, f) }
    }

    /// How the rows of a weight are cut for so many tokens.
    pub fn partition(&self, rows: usize, row_bytes: usize, tokens: usize) -> RowPartition {
        let many = tokens >= super::kernel::panel::WORTH;
        let by_bytes = if many { 64 } else { (24 << 10) / row_bytes.max(1) };
        let by_threads = rows / (6 * self.pool.threads());
        let block = by_bytes.min(by_threads).clamp(16, 128).next_multiple_of(16);
        RowPartition { block_rows: block, max_blocks: if many { 1 } else { MAX_SPAN_ROWS / block } }
    }
}

/// Rows of a product with few tokens, at most: what starting a product costs is little beside them, and its results still
/// stay in the first cache.
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
    /// Blocks of so many rows.
    pub fn blocks(&self, rows: usize) -> usize {
        rows.div_ceil(self.block_rows)
    }

    /// Of the rows of several matrices of `rows` rows, whose blocks are numbered one matrix after the other: calls `f` with
    /// each matrix that has some of `blocks`, their first row and how many rows they are.
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

/// What is done with a row: its number, its input, its output.
pub type RowFn<'a> = &'a (dyn Fn(usize, &[f32], &mut [f32]) + Sync);

/// What is done with a row: its number, its output.
pub type OutputFn<'a> = &'a (dyn Fn(usize, &mut [f32]) + Sync);

/// FloatReader that are worth a thread's attention.
const MIN_VALUES_PER_ITEM: usize = 16384;

/// Calls `f` with the number, input and output of every row; by several threads where there are many numbers.
///
/// # Errors
/// As [`Pool::run`].
pub fn each_row(env: Env<'_>, x: &[f32], cols: usize, out: &mut [f32], f: RowFn<'_>) -> Result<()> {
    let cols = cols.max(1);
    each_output(env, x.len() / cols, cols, out, cols, &|r, y| f(r, &x[r * cols..(r + 1) * cols], y))
}

/// Calls `f` with the number and output of every row, `[rows, cols]`; by several threads where rows of `cost` numbers are
/// many.
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

/// Calls `f` with every head, row and that row's part of the head, of rows of `heads · d` numbers. Heads go to several threads
/// where there is much to write, one to one thread.
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
