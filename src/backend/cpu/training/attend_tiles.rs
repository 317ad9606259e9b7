//! What attention in training is made of: operands packed by heads, products of them, blocks of rows with the keys that they see.

use super::{
    super::buffer::Out,
    gemm::{MR, Machine, NR, micro, turn},
};
use crate::{
    backend::cpu::simd::{F32x16, N},
    error::Result,
    ir::SelfAttention,
    ops::{Array, self_attend::seen},
};
use std::ops::Range;

/// Rows of a block.
pub const BLOCK: usize = 8 * MR;
/// Summands of a product that are taken before the next panel.
const KC: usize = 256;

/// One head of a row.
pub fn head(x: &Array<f32>, r: usize, h: usize, n: usize) -> &[f32] {
    &x.row(r)[h * n..(h + 1) * n]
}

/// One head of all rows as a right operand whose results are the rows: `[block of 32 rows][n][32]`.
pub fn rows_packed(machine: Machine<'_>, x: &Array<f32>, heads: usize, n: usize) -> Result<Vec<Vec<f32>>> {
    let panels = x.rows.div_ceil(NR);
    let mut all: Vec<Vec<f32>> = (0..heads).map(|_| vec![0f32; panels * n * NR]).collect();
    let outs: Vec<_> = all.iter_mut().map(|v| Out::new(v)).collect();
    machine.pool.run(panels * heads, &|_, item| {
        let (p, h) = (item / heads, item % heads);
        // SAFETY: each panel of a head is of one item.
        let to = unsafe { outs[h].slice(p * n * NR, n * NR) };
        turn(NR.min(x.rows - p * NR), n, &|w| head(x, p * NR + w, h, n), to);
    })?;
    drop(outs);
    Ok(all)
}

/// One head of all rows as a right operand whose summands are the rows: `[block of 32 columns][rows, padded to 32][32]`.
pub fn cols_packed(machine: Machine<'_>, x: &Array<f32>, heads: usize, n: usize) -> Result<Vec<Vec<f32>>> {
    let rows = x.rows.next_multiple_of(NR);
    let mut all: Vec<Vec<f32>> = (0..heads).map(|_| vec![0f32; n.div_ceil(NR) * rows * NR]).collect();
    let outs: Vec<_> = all.iter_mut().map(|v| Out::new(v)).collect();
    machine.pool.run(heads, &|_, h| {
        for r in 0..x.rows {
            for (p, part) in head(x, r, h, n).chunks(NR).enumerate() {
                // SAFETY: each head is of one item.
                unsafe { outs[h].slice((p * rows + r) * NR, part.len()) }.copy_from_slice(part);
            }
        }
    })?;
    drop(outs);
    Ok(all)
}

/// Adds A · B to c, `[rows, stride]`: row r of A begins at `a(r)`, its `k` summands `step` apart; of B the summands from `from` on of each
/// panel `[of][32]`.
///
/// # Safety
/// Rows of A have k summands so; the processor has the features of `L`; c has whole groups of rows, and room for whole panels.
#[inline(always)]
pub unsafe fn product<L: F32x16>(
    a: &dyn Fn(usize) -> *const f32,
    step: usize,
    rows: usize,
    b: &[f32],
    [panels, of, from, k]: [usize; 4],
    c: &mut [f32],
    stride: usize,
) {
    for begin in (0..k).step_by(KC) {
        let count = KC.min(k - begin);
        for q in 0..panels {
            let b = &b[(q * of + from + begin) * NR..][..count * NR];
            for r in (0..rows).step_by(MR) {
                // Rows behind the end read the last one; what is made of them is read by nobody.
                let a = std::array::from_fn(|i| a((r + i).min(rows - 1)).wrapping_add(begin * step));
                // SAFETY: by the contract.
                unsafe { micro::<L>(a, step, b, &mut c[r * stride + q * NR..], stride, count) };
            }
        }
    }
}

/// `Σ a b` in the order and with the roundings of [`micro`]: where a row sees one key alone, what it gives back to that is exactly 0.
///
/// # Safety
/// The processor has the features of `L`.
#[inline(always)]
pub unsafe fn in_order<L: F32x16>(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0f32; N];
    // SAFETY: by the contract; a vector's numbers have room.
    unsafe {
        let mut sum = L::splat(0.0);
        for (a, b) in a.iter().zip(b) {
            sum = L::splat(*a).fma(L::splat(*b), sum);
        }
        sum.store(lanes.as_mut_ptr());
    }
    lanes[0]
}

/// A block of rows, and the keys that any of them sees, in whole panels.
pub struct Block {
    /// The rows.
    pub rows: Range<usize>,
    /// The first key.
    pub begin: usize,
    /// Keys, a multiple of 32.
    pub width: usize,
}

impl Block {
    /// Of these rows.
    pub fn new(a: &SelfAttention, starts: &[u32], rows: Range<usize>) -> Block {
        let first = rows.clone().map(|t| seen(a, starts, t).start).min().unwrap_or(rows.start);
        let begin = first / NR * NR;
        Block { begin, width: (rows.end - begin).next_multiple_of(NR), rows }
    }

    /// Panels of keys.
    pub fn panels(&self) -> usize {
        self.width / NR
    }

    /// Where the keys that row t sees are among the block's.
    pub fn seen(&self, a: &SelfAttention, starts: &[u32], t: usize) -> Range<usize> {
        let all = seen(a, starts, t);
        all.start - self.begin..all.end - self.begin
    }

    /// Rows in whole groups.
    pub fn padded(&self) -> usize {
        self.rows.len().next_multiple_of(MR)
    }
}

/// `x[i] = e^(x[i] · factor − shift)`, and the sum.
///
/// # Safety
/// The processor has the features of `L`.
#[inline(always)]
pub unsafe fn exponentials<L: F32x16>(x: &mut [f32], factor: f32, shift: f32) -> f32 {
    let mut rest = [f32::NEG_INFINITY; N];
    // SAFETY: whole vectors within the slices; the features are there by the contract.
    unsafe {
        let (f, s) = (L::splat(factor), L::splat(-shift));
        let mut sum = L::splat(0.0);
        let mut whole = x.chunks_exact_mut(N);
        for part in &mut whole {
            let e = L::load(part.as_ptr()).fma(f, s).exp();
            e.store(part.as_mut_ptr());
            sum = sum.add(e);
        }
        let tail = whole.into_remainder();
        if tail.is_empty() {
            return sum.sum();
        }
        rest[..tail.len()].copy_from_slice(tail);
        L::load(rest.as_ptr()).fma(f, s).exp().store(rest.as_mut_ptr());
        tail.copy_from_slice(&rest[..tail.len()]);
        sum.sum() + tail.iter().sum::<f32>()
    }
}

/// Rows as a right operand whose summands they are: `[block of 32 columns][rows][32]`.
pub fn packed_block<'a>(row: &dyn Fn(usize) -> &'a [f32], rows: usize, n: usize) -> Vec<f32> {
    let mut packed = vec![0f32; n.div_ceil(NR) * rows * NR];
    for r in 0..rows {
        for (p, part) in row(r).chunks(NR).enumerate() {
            packed[(p * rows + r) * NR..][..part.len()].copy_from_slice(part);
        }
    }
    packed
}
