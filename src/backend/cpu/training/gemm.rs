//! Products of f32 matrices in any layout: forward (`x Wᵀ`), by inputs (`dy W`) and by weights (`dyᵀ x`).
//!
//! The right operand is packed into panels of 16 results, with the summed dimension outside; the left one is read where it lies if
//! its rows have all summands of a result, and is packed into panels of 6 otherwise. A tile of results sums blocks of 256 in ascending
//! order: a panel's block stays in the first cache while all rows of the tile take it. Which thread computes a tile does not change it,
//! so results do not depend on the number of threads. Precision: f32 products and sums of 256, which are added in f32.

use super::{
    super::{
        buffer::Out,
        pool::Pool,
        prefetch,
        simd::{F32x16, N},
        simd_level::{SimdKernel, SimdLevel, dispatch},
    },
    spare::{AlignedPart, Spare},
};
use crate::error::Result;
use std::ops::Range;

/// Rows that are computed together.
pub const MR: usize = 6;
/// Columns of a panel of the right operand.
pub const NR: usize = N;
/// Rows of a tile: 8 groups.
pub const TILE_ROWS: usize = 8 * MR;
/// Columns of a tile: 8 panels.
pub const TILE_COLS: usize = 8 * NR;
/// Numbers that are summed before the next panels are taken: both fit the first caches.
pub const KC: usize = 256;
/// Rows of summands that are packed together: they stay in the first cache while parts of them are taken.
pub const SUMMANDS: usize = 32;
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

/// Where rows of results go.
#[derive(Clone, Copy)]
pub struct Target<'a> {
    /// All of them. Nobody else has the rows of results that a product writes.
    pub out: &'a Out<'a, f32>,
    /// Where row r begins; rows are apart.
    pub at: &'a (dyn Fn(usize) -> usize + Sync),
    /// What results are added to.
    pub start: Start<'a>,
}

/// What results of a product are added to.
#[derive(Clone, Copy)]
pub enum Start<'a> {
    /// Nothing: what is there is written over.
    Zero,
    /// What is there.
    There,
    /// A bias: these numbers in every row.
    Row(&'a [f32]),
}

impl<'a> Start<'a> {
    /// The same of the columns from `first` on.
    fn columns(self, first: usize) -> Start<'a> {
        match self {
            Start::Row(row) => Start::Row(&row[first..]),
            Start::Zero | Start::There => self,
        }
    }
}

impl Target<'_> {
    /// Some columns of a row.
    ///
    /// # Safety
    /// As [`Out::slice`].
    #[allow(clippy::mut_from_ref)]
    unsafe fn part(&self, row: usize, col: usize, len: usize) -> &mut [f32] {
        // SAFETY: by the contract.
        unsafe { self.out.slice((self.at)(row) + col, len) }
    }
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
pub const MOST_PACKED: usize = 4 << 20;

/// `C [m, n] = A [m, k] · B [k, n]`, added to what the target says.
///
/// # Errors
/// [`crate::Error::Device`] where a thread panicked.
pub fn gemm(machine: Machine<'_>, [m, n, k]: [usize; 3], a: Left<'_>, b: Right<'_>, to: Target<'_>) -> Result<()> {
    let width = (MOST_PACKED / k.max(1) / TILE_COLS).max(1) * TILE_COLS;
    if b.summed || a.summed || n <= width {
        return gemm_of_columns(machine, [m, n, k], a, b, to);
    }
    for first in (0..n).step_by(width) {
        let to = Target { out: to.out, at: &|r| (to.at)(r) + first, start: to.start.columns(first) };
        let size = [m, width.min(n - first), k];
        match b.rows {
            Source::Slices(row) => {
                let rows = Source::Slices(&|r| row(first + r));
                gemm_of_columns(machine, size, a, Right { rows, summed: false }, to)?;
            }
            Source::Copied(copy) => {
                let rows = Source::Copied(&|r, to| copy(first + r, to));
                gemm_of_columns(machine, size, a, Right { rows, summed: false }, to)?;
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
    to: Target<'_>,
) -> Result<()> {
    if m == 0 || n == 0 {
        return Ok(());
    }
    let b = pack_right(machine, b, [n, k])?;
    let packed = if a.summed { Some(pack_left(machine, a, [m, k])?) } else { None };
    let across = n.div_ceil(TILE_COLS);
    machine.pool.run(m.div_ceil(TILE_ROWS) * across, &|_, item| {
        let (row, col) = (item / across * TILE_ROWS, item % across * TILE_COLS);
        let rows = |r: usize| match &packed {
            Some(p) => p[((row + r) / MR * MR) * k..].as_ptr().wrapping_add((row + r) % MR),
            None => (a.row)(row + r)[..k].as_ptr(),
        };
        let results = Results {
            rows: TILE_ROWS.min(m - row),
            cols: TILE_COLS.min(n - col),
            // SAFETY: each part of a row of results is of one item, which has it once at a time.
            part: &|r| unsafe { to.part(row + r, col, TILE_COLS.min(n - col)) },
            start: to.start.columns(col),
        };
        let step = if a.summed { MR } else { 1 };
        // SAFETY: the processor has the level by the contract of `Machine`; every row of A has k summands in steps of `step`.
        unsafe { tile(machine.simd_level, (&rows, step), (&b[col * k..], k), results) };
    })
}

/// What a tile makes: at most [`TILE_ROWS`] rows of at most [`TILE_COLS`] columns.
#[derive(Clone, Copy)]
pub struct Results<'a> {
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// Those columns of row r.
    pub part: &'a dyn Fn(usize) -> &'a mut [f32],
    /// What they are added to; of a bias the columns of the tile.
    pub start: Start<'a>,
}

/// A tile of results: row r of A begins at `a.0(r)` and has its `b.1` summands `a.1` apart; `b.0` are the packed panels of B.
///
/// # Safety
/// The processor has the level; every row of A is readable so.
pub unsafe fn tile(
    level: SimdLevel,
    (a, step): (&dyn Fn(usize) -> *const f32, usize),
    (b, k): (&[f32], usize),
    to: Results<'_>,
) {
    let Results { rows, cols, part, start } = to;
    debug_assert!(rows <= TILE_ROWS && cols <= TILE_COLS && b.len() >= cols.div_ceil(NR) * NR * k);
    let whole_rows = if cols % NR == 0 && k > 0 { rows / MR * MR } else { 0 };
    if let Start::Row(bias) = start {
        (0..rows).for_each(|r| part(r).copy_from_slice(&bias[..cols]));
    }
    let add = !matches!(start, Start::Zero);
    // Rows behind the end read the last one, and are not stored.
    let rows_at: [*const f32; TILE_ROWS] = std::array::from_fn(|r| a(r.min(rows - 1)));
    let panels = cols.div_ceil(NR);
    if whole_rows > 0 {
        let c: [*mut f32; TILE_ROWS] = std::array::from_fn(|r| part(r.min(rows - 1)).as_mut_ptr());
        let whole = Tile { a: &rows_at, step, b, c: &c, add, panels: [whole_rows / MR, panels], k };
        // SAFETY: by the contract; panels are padded to whole ones, and these rows of C have room for them.
        unsafe { dispatch(level, whole) };
    }
    // The others, a group at a time: some rows or columns of it are not stored.
    for first in (whole_rows..rows).step_by(MR) {
        let mut own = [0f32; MR * TILE_COLS];
        let count = MR.min(rows - first);
        if add {
            let parts = own.chunks_exact_mut(TILE_COLS).enumerate().take(count);
            parts.for_each(|(r, own)| own[..cols].copy_from_slice(part(first + r)));
        }
        let at = own.as_mut_ptr();
        let c: [*mut f32; MR] = std::array::from_fn(|r| at.wrapping_add(r * TILE_COLS));
        let group = Tile { a: &rows_at[first..], step, b, c: &c, add, panels: [1, panels], k };
        // SAFETY: as above; every row of C is a whole one of the group's own.
        unsafe { dispatch(level, group) };
        let parts = own.chunks_exact(TILE_COLS).enumerate().take(count);
        parts.for_each(|(r, own)| part(first + r).copy_from_slice(&own[..cols]));
    }
}

/// Packs the left operand where its rows are summands: `[group of 6][k][6]`, padded to whole tiles with numbers whose products are not
/// stored.
fn pack_left<'a>(machine: Machine<'a>, x: Left<'_>, [m, k]: [usize; 2]) -> Result<AlignedPart<'a>> {
    let mut packed = machine.spare.aligned(m.next_multiple_of(TILE_ROWS) * k);
    let out = Out::new(&mut packed);
    machine.pool.run(k.div_ceil(SUMMANDS), &|_, block| {
        let own = block * SUMMANDS..k.min((block + 1) * SUMMANDS);
        // SAFETY: each row has a place of its own in every panel.
        unsafe { spread::<MR>(own, x.row, m, k, &out) };
    })?;
    Ok(packed)
}

/// Packs the right operand: `[panel of 16][k][16]`, padded with numbers whose products are not stored.
fn pack_right<'a>(machine: Machine<'a>, x: Right<'_>, [n, k]: [usize; 2]) -> Result<AlignedPart<'a>> {
    let mut packed = machine.spare.aligned(n.next_multiple_of(NR) * k);
    let out = Out::new(&mut packed);
    // SAFETY: each piece is of one item.
    machine.pool.run(x.pieces([n, k]), &|_, piece| unsafe { x.pack(piece, [n, k], &out) })?;
    Ok(packed)
}

impl Right<'_> {
    /// Parts that are packed each by itself.
    pub fn pieces(&self, [n, k]: [usize; 2]) -> usize {
        if self.summed { k.div_ceil(SUMMANDS) } else { n.div_ceil(NR) }
    }

    /// Packs a piece.
    ///
    /// # Safety
    /// `out` has room for whole panels, and nobody else has this piece's numbers there.
    pub unsafe fn pack(&self, piece: usize, [n, k]: [usize; 2], out: &Out<'_, f32>) {
        if self.summed {
            let own = piece * SUMMANDS..k.min((piece + 1) * SUMMANDS);
            match self.rows {
                // SAFETY: each row has a place of its own in every panel.
                Source::Slices(row) => unsafe { spread::<NR>(own, row, n, k, out) },
                Source::Copied(copy) => {
                    let mut rows = vec![0f32; own.len() * n];
                    rows.chunks_mut(n).zip(own.clone()).for_each(|(to, i)| copy(i, to));
                    let row = |i: usize| &rows[(i - own.start) * n..][..n];
                    // SAFETY: as above.
                    unsafe { spread::<NR>(own.clone(), &row, n, k, out) };
                }
            }
        } else {
            // SAFETY: by the contract: a panel.
            let to = unsafe { out.slice(piece * k * NR, k * NR) };
            let count = NR.min(n - piece * NR);
            match self.rows {
                Source::Slices(row) => turn(count, k, &|w| row(piece * NR + w), to),
                Source::Copied(copy) => {
                    let mut own = vec![0f32; count * k];
                    own.chunks_mut(k.max(1)).enumerate().for_each(|(w, row)| copy(piece * NR + w, row));
                    turn(count, k, &|w| &own[w * k..(w + 1) * k], to);
                }
            }
        }
    }
}

/// Copies at most [`SUMMANDS`] rows of n numbers, which are summands, to panels `[k][P]`: panel by panel, so that each is written from its
/// beginning on.
///
/// # Safety
/// Nobody else has these rows of the panels.
pub unsafe fn spread<'a, const P: usize>(
    rows: Range<usize>,
    row: &dyn Fn(usize) -> &'a [f32],
    n: usize,
    k: usize,
    out: &Out<'_, f32>,
) {
    let mut own: [&[f32]; SUMMANDS] = [&[]; SUMMANDS];
    own.iter_mut().zip(rows.clone()).for_each(|(own, i)| *own = &row(i)[..n]);
    let own = &own[..rows.len()];
    for first in (0..n).step_by(P) {
        // SAFETY: by the contract.
        let to = unsafe { out.slice((first / P * k + rows.start) * P, rows.len() * P) };
        let to = to.as_chunks_mut::<P>().0.iter_mut().zip(own);
        if first + P <= n {
            // Copies whose length is known are a few instructions.
            // SAFETY: each of the slices above has n numbers.
            to.for_each(|(to, own)| *to = unsafe { own.as_ptr().add(first).cast::<[f32; P]>().read_unaligned() });
        } else {
            to.for_each(|(to, own)| to[..n - first].copy_from_slice(&own[first..n]));
        }
    }
}

/// Writes at most 16 rows of k numbers as the columns of a panel `[k][16]`.
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
    c: &'a [*mut f32],
    /// Whether to add to C.
    add: bool,
    panels: [usize; 2],
    k: usize,
}

impl SimdKernel for Tile<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: F32x16>(self) {
        let a = |p: usize| std::array::from_fn(|r| self.a[p * MR + r]);
        let c = |p: usize| std::array::from_fn(|r| self.c[p * MR + r]);
        let b = Panels { numbers: self.b, count: self.panels[1], stride: self.k * NR };
        // SAFETY: rows have k summands and room for the panels by the contract; the processor has the features.
        unsafe { product::<L>((&a, self.step), b, (&c, self.add), self.panels[0], self.k) };
    }
}

/// Panels of a right operand: from one to the next it is `stride` numbers.
#[derive(Clone, Copy)]
pub struct Panels<'a> {
    /// From the first summand of the first panel on.
    pub numbers: &'a [f32],
    /// How many.
    pub count: usize,
    /// See the type.
    pub stride: usize,
}

/// A · B of groups of 6 rows: the rows of group p of A begin at `a.0(p)`, their `k` summands `a.1` apart; those of C begin at `c.0(p)`, and
/// `c.1` says whether to add to them.
///
/// # Safety
/// Every row of A is readable so, every panel of B has `16 · k` numbers, every row of C has 16 for each panel; the processor has the
/// features of `L`.
#[inline(always)]
pub unsafe fn product<L: F32x16>(
    (a, step): (&dyn Fn(usize) -> [*const f32; MR], usize),
    b: Panels<'_>,
    (c, add): (&dyn Fn(usize) -> [*mut f32; MR], bool),
    groups: usize,
    k: usize,
) {
    for begin in (0..k).step_by(KC) {
        let (count, add) = (KC.min(k - begin), add || begin > 0);
        let mut q = 0;
        while q < b.count {
            // Twelve sums of two registers each and what they are made of are all registers that most levels have.
            let two = L::MANY_REGISTERS && q + 1 < b.count;
            let numbers = &b.numbers[q * b.stride + begin * NR..];
            debug_assert!(numbers.len() >= NR * count + if two { b.stride } else { 0 });
            for p in 0..groups {
                let a = a(p).map(|row| row.wrapping_add(begin * step));
                let c = c(p).map(|row| row.wrapping_add(q * NR));
                // SAFETY: by the contract; within the length above.
                unsafe {
                    if two {
                        sums::<L, 2>((a, step), (numbers.as_ptr(), b.stride), (c, add), count);
                    } else {
                        sums::<L, 1>((a, step), (numbers.as_ptr(), b.stride), (c, add), count);
                    }
                }
            }
            q += 1 + usize::from(two);
        }
    }
}

/// Sums of `count` products for 6 rows of `V` panels: row r's summand i lies at `a[r] + i · step`.
///
/// # Safety
/// Every row of A is readable so, each panel has `16 · count` numbers, each row of C `16 V`; the processor has the features of `L`.
#[inline(always)]
unsafe fn sums<L: F32x16, const V: usize>(
    (a, step): ([*const f32; MR], usize),
    (b, panel): (*const f32, usize),
    (c, add): ([*mut f32; MR], bool),
    count: usize,
) {
    // Results come from far away where rows are gathered: they are asked for before they are summed.
    for row in c {
        (0..=V).for_each(|v| prefetch::line(row.wrapping_add(v * N).cast(), prefetch::Level::L1));
    }
    // SAFETY: as the caller's contract says.
    unsafe {
        let mut sums = [[L::splat(0.0); V]; MR];
        for i in 0..count {
            let mut x = [L::splat(0.0); V];
            for (v, x) in x.iter_mut().enumerate() {
                *x = L::load(b.add(v * panel + i * NR));
            }
            for (row, s) in a.iter().zip(&mut sums) {
                let own = L::splat(*row.add(i * step));
                for (x, s) in x.iter().zip(s) {
                    *s = own.fma(*x, *s);
                }
            }
        }
        for (row, s) in c.into_iter().zip(sums) {
            for (v, s) in s.into_iter().enumerate() {
                let to = row.add(v * N);
                if add {
                    L::load(to).add(s).store(to);
                } else {
                    s.store(to);
                }
            }
        }
    }
}
