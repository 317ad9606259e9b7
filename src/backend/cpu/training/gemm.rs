//! Products of f32 matrices in any layout: forward (`x Wᵀ`), by inputs (`dy W`) and by weights (`dyᵀ x`).
//!
//! Both operands are packed into panels, A of 6 and B of 32 neighbours, with the summed dimension outside; a tile of results sums
//! blocks of 256 in ascending order. Which thread computes a tile does not change it, so results do not depend on the number of
//! threads. Precision: f32 products and sums.

use super::super::{
    buffer::Out,
    pool::Pool,
    simd::{F32x16, N},
    simd_level::{SimdKernel, SimdLevel, dispatch},
};
use crate::error::Result;

/// Rows of a panel of A.
const MR: usize = 6;
/// Columns of a panel of B.
const NR: usize = 2 * N;
/// Panels of A and of B in a tile.
const TILE: [usize; 2] = [8, 4];
/// Numbers that are summed before the next panels are taken: both fit the first caches.
const KC: usize = 256;

/// A matrix whose rows are copied by number.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    /// Writes row i.
    pub copy: &'a (dyn Fn(usize, &mut [f32]) + Sync),
    /// Whether a row is of the summed dimension: row i has the i-th summand of all results.
    pub summed: bool,
}

/// Threads and instructions.
#[derive(Clone, Copy)]
pub struct Machine<'a> {
    /// The threads.
    pub pool: &'a Pool,
    /// The instructions, which the processor has.
    pub simd_level: SimdLevel,
}

/// `C [m, n] = A [m, k] · B [k, n]`; `store(row, first column, numbers)` takes each part of a row of C once.
///
/// # Errors
/// [`crate::Error::Device`] where a thread panicked.
pub fn gemm(
    machine: Machine<'_>,
    [m, n, k]: [usize; 3],
    a: Rows<'_>,
    b: Rows<'_>,
    store: &(dyn Fn(usize, usize, &[f32]) + Sync),
) -> Result<()> {
    if m == 0 || n == 0 {
        return Ok(());
    }
    let (a, b) = (pack(machine, a, [m, k], MR)?, pack(machine, b, [n, k], NR)?);
    let (tile_rows, tile_cols) = (TILE[0] * MR, TILE[1] * NR);
    let (down, across) = (m.div_ceil(tile_rows), n.div_ceil(tile_cols));
    machine.pool.run(down * across, &|_, item| {
        let (row, col) = (item / across * tile_rows, item % across * tile_cols);
        let panels = [(m - row).min(tile_rows).div_ceil(MR), (n - col).min(tile_cols).div_ceil(NR)];
        let mut c = vec![0f32; tile_rows * tile_cols];
        let tile = Tile { a: &a[row * k..], b: &b[col * k..], c: &mut c, panels, k };
        // SAFETY: the processor has the level by the contract of `Machine`; panels are padded to whole ones.
        unsafe { dispatch(machine.simd_level, tile) };
        for (r, numbers) in c.chunks(tile_cols).enumerate().take(m - row) {
            store(row + r, col, &numbers[..(n - col).min(tile_cols)]);
        }
    })
}

/// Packs a matrix of `count` results and `k` summands into panels of `width` results: `[panel][k][width]`, padded with zeros.
fn pack(machine: Machine<'_>, x: Rows<'_>, [count, k]: [usize; 2], width: usize) -> Result<Vec<f32>> {
    let panels = count.div_ceil(width);
    let mut packed = vec![0f32; panels * k * width];
    let out = Out::new(&mut packed);
    if x.summed {
        machine.pool.run(k.div_ceil(32), &|_, block| {
            let mut row = vec![0f32; count];
            for i in block * 32..k.min(block * 32 + 32) {
                (x.copy)(i, &mut row);
                for (p, part) in row.chunks(width).enumerate() {
                    // SAFETY: each row has a place of its own in every panel.
                    let to = unsafe { out.slice((p * k + i) * width, part.len()) };
                    to.copy_from_slice(part);
                }
            }
        })?;
    } else {
        machine.pool.run(panels, &|_, p| {
            let mut row = vec![0f32; k];
            // SAFETY: each panel is of one item.
            let to = unsafe { out.slice(p * k * width, k * width) };
            for w in 0..width.min(count - p * width) {
                (x.copy)(p * width + w, &mut row);
                row.iter().enumerate().for_each(|(i, v)| to[i * width + w] = *v);
            }
        })?;
    }
    Ok(packed)
}

/// A tile of results.
struct Tile<'a> {
    a: &'a [f32],
    b: &'a [f32],
    c: &'a mut [f32],
    panels: [usize; 2],
    k: usize,
}

impl SimdKernel for Tile<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: F32x16>(self) {
        let stride = TILE[1] * NR;
        for from in (0..self.k).step_by(KC) {
            let count = KC.min(self.k - from);
            for q in 0..self.panels[1] {
                let b = &self.b[(q * self.k + from) * NR..][..count * NR];
                for p in 0..self.panels[0] {
                    let a = &self.a[(p * self.k + from) * MR..][..count * MR];
                    let c = &mut self.c[p * MR * stride + q * NR..];
                    // SAFETY: the slices have `count` summands and the tile has whole panels; the processor has the features.
                    unsafe { micro::<L>(a, b, c, stride, count) };
                }
            }
        }
    }
}

/// Adds `count` summands to 6 rows of 32 results.
///
/// # Safety
/// a has `6 · count` numbers, b `32 · count`, c `5 · stride + 32`; the processor has the features of `L`.
#[inline(always)]
unsafe fn micro<L: F32x16>(a: &[f32], b: &[f32], c: &mut [f32], stride: usize, count: usize) {
    debug_assert!(a.len() >= MR * count && b.len() >= NR * count && c.len() >= (MR - 1) * stride + NR);
    // SAFETY: within the lengths that the contract gives.
    unsafe {
        let mut sums = [[L::splat(0.0); 2]; MR];
        for (r, s) in sums.iter_mut().enumerate() {
            let at = c.as_ptr().add(r * stride);
            *s = [L::load(at), L::load(at.add(N))];
        }
        for i in 0..count {
            let at = b.as_ptr().add(i * NR);
            let (b0, b1) = (L::load(at), L::load(at.add(N)));
            for (r, s) in sums.iter_mut().enumerate() {
                let x = L::splat(*a.get_unchecked(i * MR + r));
                *s = [x.fma(b0, s[0]), x.fma(b1, s[1])];
            }
        }
        for (r, s) in sums.into_iter().enumerate() {
            let at = c.as_mut_ptr().add(r * stride);
            s[0].store(at);
            s[1].store(at.add(N));
        }
    }
}
