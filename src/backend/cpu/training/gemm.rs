//! Products of f32 matrices in any layout: forward (`x Wᵀ`), by inputs (`dy W`) and by weights (`dyᵀ x`).
//!
//! The right operand is packed into panels of 32 results, with the summed dimension outside; the left one is read where it lies if
//! its rows have all summands of a result, and is packed into panels of 6 otherwise. A tile of results sums blocks of 256 in ascending
//! order. Which thread computes a tile does not change it, so results do not depend on the number of threads. Precision: f32
//! products and sums.

use super::{
    super::{
        buffer::Out,
        pool::Pool,
        simd::{F32x16, N},
        simd_level::{SimdKernel, SimdLevel, dispatch},
    },
    spare::{AlignedPart, Spare},
};
use crate::error::Result;

/// Rows that are computed together.
pub const MR: usize = 6;
/// Columns of a panel of the right operand.
pub const NR: usize = 2 * N;
/// Groups of rows and panels in a tile.
const TILE: [usize; 2] = [8, 4];
/// Numbers that are summed before the next panels are taken: both fit the first caches.
const KC: usize = 256;
/// Rows that are transposed together.
const TURNED: usize = 8;

/// The left operand: rows by number, where they lie.
#[derive(Clone, Copy)]
pub struct Left<'a> {
    /// Row i.
    pub row: &'a (dyn Fn(usize) -> &'a [f32] + Sync),
    /// Whether a row is of the summed dimension: row i has the i-th summand of all results.
    pub summed: bool,
}

/// The right operand.
#[derive(Clone, Copy)]
pub struct Right<'a> {
    /// Its rows.
    pub rows: Source<'a>,
    /// As [`Left::summed`].
    pub summed: bool,
}

/// Where rows come from.
#[derive(Clone, Copy)]
pub enum Source<'a> {
    /// They lie in memory.
    Slices(&'a (dyn Fn(usize) -> &'a [f32] + Sync)),
    /// They are written, such as rows of quantised weights.
    Copied(&'a (dyn Fn(usize, &mut [f32]) + Sync)),
}

/// Threads and instructions.
#[derive(Clone, Copy)]
pub struct Machine<'a> {
    /// The threads.
    pub pool: &'a Pool,
    /// The instructions, which the processor has.
    pub simd_level: SimdLevel,
    /// Memory.
    pub spare: &'a Spare,
}

/// Numbers of the right operand that are packed at once, where its rows are results: an output matrix may be larger than all else. The
/// same bits come out whatever it is.
const MOST_PACKED: usize = 4 << 20;

/// `C [m, n] = A [m, k] · B [k, n]`; `store(row, first column, numbers)` takes each part of a row of C once.
///
/// # Errors
/// [`crate::Error::Device`] where a thread panicked.
pub fn gemm(
    machine: Machine<'_>,
    [m, n, k]: [usize; 3],
    a: Left<'_>,
    b: Right<'_>,
    store: &(dyn Fn(usize, usize, &[f32]) + Sync),
) -> Result<()> {
    let tile_cols = TILE[1] * NR;
    let width = (MOST_PACKED / k.max(1) / tile_cols).max(1) * tile_cols;
    if b.summed || a.summed || n <= width {
        return gemm_of_columns(machine, [m, n, k], a, b, store);
    }
    for first in (0..n).step_by(width) {
        let store = |r: usize, c: usize, part: &[f32]| store(r, first + c, part);
        let size = [m, width.min(n - first), k];
        match b.rows {
            Source::Slices(row) => {
                let rows = Source::Slices(&|r| row(first + r));
                gemm_of_columns(machine, size, a, Right { rows, summed: false }, &store)?;
            }
            Source::Copied(copy) => {
                let rows = Source::Copied(&|r, to| copy(first + r, to));
                gemm_of_columns(machine, size, a, Right { rows, summed: false }, &store)?;
            }
        }
    }
    Ok(())
}

/// The same of columns that are packed at once.
fn gemm_of_columns(
    machine: Machine<'_>,
    [m, n, k]: [usize; 3],
    a: Left<'_>,
    b: Right<'_>,
    store: &(dyn Fn(usize, usize, &[f32]) + Sync),
) -> Result<()> {
    if m == 0 || n == 0 {
        return Ok(());
    }
    let b = pack_right(machine, b, [n, k])?;
    let packed = if a.summed { Some(pack_left(machine, a, [m, k])?) } else { None };
    let (tile_rows, tile_cols) = (TILE[0] * MR, TILE[1] * NR);
    let (down, across) = (m.div_ceil(tile_rows), n.div_ceil(tile_cols));
    machine.pool.run(down * across, &|_, item| {
        let (row, col) = (item / across * tile_rows, item % across * tile_cols);
        let rows = tile_rows.min(m - row);
        // Rows behind the end read the last one, and are not stored.
        let at = |r: usize| (row + r).min(m - 1);
        let (rows_at, step): ([*const f32; TILE[0] * MR], usize) = match &packed {
            Some(p) => (std::array::from_fn(|r| p[(row + r / MR * MR) * k..].as_ptr().wrapping_add(r % MR)), MR),
            None => (std::array::from_fn(|r| (a.row)(at(r))[..k].as_ptr()), 1),
        };
        let panels = [rows.div_ceil(MR), (n - col).min(tile_cols).div_ceil(NR)];
        let mut c = [0f32; TILE[0] * MR * TILE[1] * NR];
        let tile = Tile { a: &rows_at, step, b: &b[col * k..], c: &mut c, panels, k };
        // SAFETY: the processor has the level by the contract of `Machine`; every row of A has k summands in steps of `step`, and
        // panels are padded to whole ones.
        unsafe { dispatch(machine.simd_level, tile) };
        for (r, numbers) in c.chunks(tile_cols).enumerate().take(rows) {
            store(row + r, col, &numbers[..(n - col).min(tile_cols)]);
        }
    })
}

/// Packs the left operand where its rows are summands: `[group of 6][k][6]`, padded to whole tiles with numbers whose products are not
/// stored.
fn pack_left<'a>(machine: Machine<'a>, x: Left<'_>, [m, k]: [usize; 2]) -> Result<AlignedPart<'a>> {
    let mut packed = machine.spare.aligned(m.next_multiple_of(TILE[0] * MR) * k);
    let out = Out::new(&mut packed);
    machine.pool.run(k.div_ceil(32), &|_, block| {
        for i in block * 32..k.min(block * 32 + 32) {
            for (p, part) in (x.row)(i)[..m].chunks(MR).enumerate() {
                // SAFETY: each row has a place of its own in every group.
                unsafe { out.slice((p * k + i) * MR, part.len()) }.copy_from_slice(part);
            }
        }
    })?;
    Ok(packed)
}

/// Packs the right operand: `[panel of 32][k][32]`, padded with numbers whose products are not stored.
fn pack_right<'a>(machine: Machine<'a>, x: Right<'_>, [n, k]: [usize; 2]) -> Result<AlignedPart<'a>> {
    let panels = n.div_ceil(NR);
    let mut packed = machine.spare.aligned(panels * k * NR);
    let out = Out::new(&mut packed);
    if x.summed {
        machine.pool.run(k.div_ceil(32), &|_, block| {
            let mut own = vec![0f32; if matches!(x.rows, Source::Copied(_)) { n } else { 0 }];
            for i in block * 32..k.min(block * 32 + 32) {
                let row = match x.rows {
                    Source::Slices(row) => &row(i)[..n],
                    Source::Copied(copy) => {
                        copy(i, &mut own);
                        &own[..]
                    }
                };
                for (p, part) in row.chunks(NR).enumerate() {
                    // SAFETY: each row has a place of its own in every panel.
                    unsafe { out.slice((p * k + i) * NR, part.len()) }.copy_from_slice(part);
                }
            }
        })?;
    } else {
        machine.pool.run(panels, &|_, p| {
            // SAFETY: each panel is of one item.
            let to = unsafe { out.slice(p * k * NR, k * NR) };
            let count = NR.min(n - p * NR);
            match x.rows {
                Source::Slices(row) => turn(count, k, &|w| row(p * NR + w), to),
                Source::Copied(copy) => {
                    let mut own = vec![0f32; count * k];
                    own.chunks_mut(k.max(1)).enumerate().for_each(|(w, row)| copy(p * NR + w, row));
                    turn(count, k, &|w| &own[w * k..(w + 1) * k], to);
                }
            }
        })?;
    }
    Ok(packed)
}

/// Writes at most 32 rows of k numbers as the columns of a panel `[k][32]`.
pub fn turn<'a>(count: usize, k: usize, row: &dyn Fn(usize) -> &'a [f32], to: &mut [f32]) {
    debug_assert!(count <= NR && to.len() >= k * NR);
    let to = &mut to[..k * NR];
    for first in (0..count).step_by(TURNED) {
        if first + TURNED <= count {
            let rows: [&[f32]; TURNED] = std::array::from_fn(|w| &row(first + w)[..k]);
            for (i, to) in to.chunks_exact_mut(NR).enumerate() {
                let to = &mut to[first..first + TURNED];
                to.iter_mut().zip(rows).for_each(|(to, row)| *to = row[i]);
            }
        } else {
            for w in first..count {
                let row = &row(w)[..k];
                to.chunks_exact_mut(NR).zip(row).for_each(|(to, x)| to[w] = *x);
            }
        }
    }
}

/// Some groups of rows times some panels.
struct Tile<'a> {
    a: &'a [*const f32],
    /// From one summand of a row to the next.
    step: usize,
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
                    let a = std::array::from_fn(|r| self.a[p * MR + r].wrapping_add(from * self.step));
                    let c = &mut self.c[p * MR * stride + q * NR..];
                    // SAFETY: rows have k summands by the contract; the tile has whole groups; the processor has the features.
                    unsafe { micro::<L>(a, self.step, b, c, stride, count) };
                }
            }
        }
    }
}

/// Adds `count` summands to 6 rows of 32 results: row r's summand i lies at `a[r] + i · step`.
///
/// # Safety
/// Every row of a is readable so, b has `32 · count` numbers, c `5 · stride + 32`; the processor has the features of `L`.
#[inline(always)]
pub unsafe fn micro<L: F32x16>(
    a: [*const f32; MR],
    step: usize,
    b: &[f32],
    c: &mut [f32],
    stride: usize,
    count: usize,
) {
    debug_assert!(b.len() >= NR * count && c.len() >= (MR - 1) * stride + NR);
    let (b, c) = (b.as_ptr(), c.as_mut_ptr());
    // SAFETY: within the lengths that the contract gives.
    unsafe {
        if L::MANY_REGISTERS {
            sums::<L, 2>(a, step, b, c, stride, count);
        } else {
            // Twelve sums of eight numbers and what they are made of are all registers that there are.
            sums::<L, 1>(a, step, b, c, stride, count);
            sums::<L, 1>(a, step, b.add(N), c.add(N), stride, count);
        }
    }
}

/// The same for `V` vectors of results.
///
/// # Safety
/// As [`micro`].
#[inline(always)]
unsafe fn sums<L: F32x16, const V: usize>(
    a: [*const f32; MR],
    step: usize,
    b: *const f32,
    c: *mut f32,
    stride: usize,
    count: usize,
) {
    // SAFETY: as the caller's contract says.
    unsafe {
        let mut sums = [[L::splat(0.0); V]; MR];
        for (r, s) in sums.iter_mut().enumerate() {
            for (v, s) in s.iter_mut().enumerate() {
                *s = L::load(c.add(r * stride + v * N));
            }
        }
        for i in 0..count {
            let mut x = [L::splat(0.0); V];
            for (v, x) in x.iter_mut().enumerate() {
                *x = L::load(b.add(i * NR + v * N));
            }
            for (row, s) in a.iter().zip(&mut sums) {
                let own = L::splat(*row.add(i * step));
                for (x, s) in x.iter().zip(s) {
                    *s = own.fma(*x, *s);
                }
            }
        }
        for (r, s) in sums.into_iter().enumerate() {
            for (v, s) in s.into_iter().enumerate() {
                s.store(c.add(r * stride + v * N));
            }
        }
    }
}
