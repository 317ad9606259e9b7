//! Products of float weights with many tokens: 16 rows are converted to f32 once, column by column (`[cols][16]`), and stay in
//! the second cache while the tokens pass by. A column is then one vector that is multiplied with one number of each token:
//! no sum across a vector, and an activation is loaded once for 16 rows.
//!
//! Everything is in f32. Sums are made over pieces of 256 columns and then added, which keeps long rows exact.

use super::panel::ROWS;
use crate::{
    backend::cpu::{
        buffer::Aligned,
        simd::{BF16, F16, F32, F32x16, FloatStorage, N},
        simd_level::{SimdKernel, SimdLevel, dispatch},
    },
    quant::Float,
};
use std::marker::PhantomData;

/// From how many tokens on the conversion pays, if it does: with 512-bit registers, four rows and four tokens at a time do as
/// well from the file's form (measured on Zen 5: 184 G products a second against 146 for F16).
pub fn worth(simd_level: SimdLevel) -> usize {
    if simd_level == SimdLevel::Avx512Vnni { usize::MAX } else { 64 }
}

/// Columns that are summed before they are added to the rest.
const PIECE: usize = 256;

/// What a product works on: up to 16 weight rows, one behind the other, and the tokens' activations.
#[derive(Clone, Copy)]
pub struct Job<'a> {
    /// First row.
    pub weights: *const u8,
    /// Bytes from row to row.
    pub row_bytes: usize,
    /// Number of rows, 1 to 16.
    pub rows: usize,
    /// Weights of a row.
    pub cols: usize,
    /// The tokens' activations, `cols` numbers each.
    pub tokens: &'a [*const f32],
    /// Row r of token t goes to `out[t * stride + r]`.
    pub out: *mut f32,
    /// See `out`.
    pub stride: usize,
}

/// Multiplies; `panel` is scratch.
///
/// # Safety
/// The processor has `simd_level`, the weights are of type `float`, and the pointers of the job are valid for the sizes it states.
pub unsafe fn product(simd_level: SimdLevel, float: Float, panel: &mut Aligned<f32>, job: Job<'_>) {
    assert!(job.rows <= ROWS);
    panel.grow(job.cols * ROWS);
    let to = panel.as_mut_ptr();
    // SAFETY: the panel has room for 16 rows; the rest is the caller's.
    unsafe {
        match float {
            Float::F32 => dispatch(simd_level, Run::<F32>(job, to, PhantomData)),
            Float::F16 => dispatch(simd_level, Run::<F16>(job, to, PhantomData)),
            Float::BF16 => dispatch(simd_level, Run::<BF16>(job, to, PhantomData)),
        }
    }
}

struct Run<'a, S>(Job<'a>, *mut f32, PhantomData<S>);

impl<S: FloatStorage> SimdKernel for Run<'_, S> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: F32x16>(self) {
        let Run(job, panel, _) = self;
        // SAFETY: by the contract of `product`.
        unsafe {
            for r in 0..ROWS {
                fill::<S, L>(&job, r, panel.add(r));
            }
            let mut t = 0;
            while t < job.tokens.len() {
                // As many sums as registers hold.
                t += match job.tokens.len() - t {
                    6.. => tokens::<L, 6>(&job, panel, t),
                    4.. => tokens::<L, 4>(&job, panel, t),
                    2.. => tokens::<L, 2>(&job, panel, t),
                    _ => tokens::<L, 1>(&job, panel, t),
                };
            }
        }
    }
}

/// Row `r` as a column of the panel; zeros where there is none.
#[inline(always)]
unsafe fn fill<S: FloatStorage, L: F32x16>(job: &Job<'_>, r: usize, to: *mut f32) {
    // SAFETY: rows below `job.rows` have `cols` weights, the panel has `cols` times 16 numbers.
    unsafe {
        if r >= job.rows {
            (0..job.cols).for_each(|c| *to.add(c * ROWS) = 0.0);
            return;
        }
        let row = job.weights.add(r * job.row_bytes);
        let whole = job.cols / N * N;
        let mut some = [0f32; N];
        for c in (0..whole).step_by(N) {
            S::load::<L>(row.add(c * S::BYTES)).store(some.as_mut_ptr());
            for (i, x) in some.into_iter().enumerate() {
                *to.add((c + i) * ROWS) = x;
            }
        }
        for c in whole..job.cols {
            *to.add(c * ROWS) = S::one(row.add(c * S::BYTES));
        }
    }
}

/// The panel with `T` tokens from `first` on; gives `T`.
#[inline(always)]
unsafe fn tokens<L: F32x16, const T: usize>(job: &Job<'_>, panel: *const f32, first: usize) -> usize {
    // SAFETY: the panel has `cols` columns, the tokens as many numbers, `out` room for `rows` numbers of each.
    unsafe {
        let x: [*const f32; T] = std::array::from_fn(|t| job.tokens[first + t]);
        let mut totals = [L::splat(0.0); T];
        for from in (0..job.cols).step_by(PIECE) {
            let mut sums = [L::splat(0.0); T];
            for c in from..job.cols.min(from + PIECE) {
                let w = L::load(panel.add(c * ROWS));
                for t in 0..T {
                    sums[t] = w.fma(L::splat(*x[t].add(c)), sums[t]);
                }
            }
            for t in 0..T {
                totals[t] = totals[t].add(sums[t]);
            }
        }
        for t in 0..T {
            let mut y = [0f32; ROWS];
            totals[t].store(y.as_mut_ptr());
            job.out.add((first + t) * job.stride).copy_from_nonoverlapping(y.as_ptr(), job.rows);
        }
    }
    T
}
