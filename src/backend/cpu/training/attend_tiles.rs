//! What attention in training is made of: operands packed by heads, products of them, blocks of rows with the keys that they see.

use super::{
    super::buffer::Out,
    gemm::{KC, MR, Machine, NR, Panels, SUMMANDS, product, spread, turn},
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

/// One head of a row.
pub fn head(x: &Array<f32>, r: usize, h: usize, n: usize) -> &[f32] {
    &x.row(r)[h * n..(h + 1) * n]
}

/// One head of all rows as a right operand whose results are the rows: `[block of 16 rows][n][16]`.
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

/// One head of all rows as a right operand whose summands are the rows: `[block of 16 columns][rows, padded to 16][16]`.
pub fn cols_packed(machine: Machine<'_>, x: &Array<f32>, heads: usize, n: usize) -> Result<Vec<Vec<f32>>> {
    let rows = x.rows.next_multiple_of(NR);
    let mut all: Vec<Vec<f32>> = (0..heads).map(|_| vec![0f32; n.div_ceil(NR) * rows * NR]).collect();
    let outs: Vec<_> = all.iter_mut().map(|v| Out::new(v)).collect();
    machine.pool.run(heads, &|_, h| {
        for first in (0..x.rows).step_by(SUMMANDS) {
            let own = first..x.rows.min(first + SUMMANDS);
            // SAFETY: each head is of one item.
            unsafe { spread::<NR>(own, &|r| head(x, r, h, n), n, rows, &outs[h]) };
        }
    })?;
    drop(outs);
    Ok(all)
}

/// Adds A · B to c, `[rows, stride]`: row r of A begins at `a(r)`, its `k` summands `step` apart; of B the summands from `from` on of each
/// panel `[of][16]`.
///
/// # Safety
/// Rows of A have k summands so; the processor has the features of `L`; c has whole groups of rows, and room for whole panels.
#[inline(always)]
pub unsafe fn rows_times<L: F32x16>(
    a: &dyn Fn(usize) -> *const f32,
    step: usize,
    rows: usize,
    b: &[f32],
    [panels, of, from, k]: [usize; 4],
    c: &mut [f32],
    stride: usize,
) {
    // Rows behind the end read the last one; what is made of them is read by nobody.
    let group = |p: usize| std::array::from_fn(|i| a((p * MR + i).min(rows - 1)));
    let b = Panels { numbers: &b[from * NR..], count: panels, stride: of * NR };
    let groups = rows.div_ceil(MR);
    debug_assert!(c.len() >= groups * MR * stride && stride >= panels * NR);
    let c = c.as_mut_ptr();
    let made = |p: usize| std::array::from_fn(|i| c.wrapping_add((p * MR + i) * stride));
    // SAFETY: by the contract.
    unsafe { product::<L>((&group, step), b, (&made, true), groups, k) };
}

/// `Σ a b` in the order and with the roundings of [`product`], whose blocks have 256 summands: where a row sees one key alone, what it gives
/// back to that is exactly 0.
///
/// # Safety
/// The processor has the features of `L`.
#[inline(always)]
pub unsafe fn in_order<L: F32x16>(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0f32; N];
    // SAFETY: by the contract; a vector's numbers have room.
    unsafe {
        let mut all = L::splat(0.0);
        for (a, b) in a.chunks(KC).zip(b.chunks(KC)) {
            let mut sum = L::splat(0.0);
            for (a, b) in a.iter().zip(b) {
                sum = L::splat(*a).fma(L::splat(*b), sum);
            }
            all = all.add(sum);
        }
        all.store(lanes.as_mut_ptr());
    }
    lanes[0]
}

/// A block of rows, and the keys that any of them sees, in whole panels.
pub struct Block {
    /// The rows.
    pub rows: Range<usize>,
    /// The first key.
    pub begin: usize,
    /// Keys, a multiple of 16.
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

/// Rows as a right operand whose summands they are: `[block of 16 columns][rows][16]`.
pub fn packed_block<'a>(row: &dyn Fn(usize) -> &'a [f32], rows: usize, n: usize) -> Vec<f32> {
    let mut packed = vec![0f32; n.div_ceil(NR) * rows * NR];
    let out = Out::new(&mut packed);
    for first in (0..rows).step_by(SUMMANDS) {
        // SAFETY: nobody else has the memory.
        unsafe { spread::<NR>(first..rows.min(first + SUMMANDS), row, n, rows, &out) };
    }
    packed
}
