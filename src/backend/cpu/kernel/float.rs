//! Rows kernels of F32, F16 and BF16 weights: f32 products and sums, sixteen partial sums a vector.

use super::{Kernels, RowsJob, ask_ahead};
use crate::{
    backend::cpu::{
        simd::{BF16, F16, F32, F32x16, FloatStorage, N},
        simd_level::{SimdKernel, SimdLevel, dispatch},
    },
    quant::Float,
};
use std::marker::PhantomData;

/// The kernels of a float type.
pub fn kernels(float: Float, simd_level: SimdLevel) -> Kernels {
    match float {
        Float::F32 => at::<F32>(simd_level),
        Float::F16 => at::<F16>(simd_level),
        Float::BF16 => at::<BF16>(simd_level),
    }
}

fn at<S: FloatStorage>(simd_level: SimdLevel) -> Kernels {
    macro_rules! all {
        ($level:literal) => {
            Kernels { one: rows::<S, $level, 1>, two: rows::<S, $level, 2>, four: rows::<S, $level, 4>, panel: None }
        };
    }
    match simd_level {
        SimdLevel::Scalar => all!(0),
        SimdLevel::NeonDotprod => all!(1),
        // AVX-VNNI is about integers.
        SimdLevel::Avx2 | SimdLevel::AvxVnni => all!(2),
        SimdLevel::Avx512Vnni => all!(4),
    }
}

/// Safety: see [`super::RowsKernel`].
unsafe fn rows<S: FloatStorage, const LEVEL: usize, const T: usize>(job: &RowsJob<T>) {
    // SAFETY: the caller vouches for the SIMD level and the pointers.
    unsafe { dispatch(SimdLevel::ALL[LEVEL], Rows::<S, T>(job, PhantomData)) }
}

struct Rows<'a, S, const T: usize>(&'a RowsJob<T>, PhantomData<S>);

impl<S: FloatStorage, const T: usize> SimdKernel for Rows<'_, S, T> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<L: F32x16>(self) {
        let job = self.0;
        // Several rows at a time share the loads of the activations; one token leaves registers for more partial sums.
        let mut r = 0;
        // SAFETY: rows `r ..` of the job exist and its pointers are valid.
        unsafe {
            if T == 1 {
                while r < job.rows {
                    tile::<S, L, T, 1, 4>(job, r);
                    r += 1;
                }
            } else {
                while r + 4 <= job.rows {
                    tile::<S, L, T, 4, 1>(job, r);
                    r += 4;
                }
                while r < job.rows {
                    tile::<S, L, T, 1, 1>(job, r);
                    r += 1;
                }
            }
        }
    }
}

/// `R` rows from `first` on, `T` tokens, `U` vectors of columns at a time.
///
/// Safety: the rows exist, the job's pointers are valid, the processor has the features of `L`.
#[inline(always)]
unsafe fn tile<S: FloatStorage, L: F32x16, const T: usize, const R: usize, const U: usize>(
    job: &RowsJob<T>,
    first: usize,
) {
    let (cols, step) = (job.cols, N * U);
    // SAFETY: every read is within a row of `cols` numbers, the writes within `out`.
    unsafe {
        let mut sums = [[[L::splat(0.0); U]; T]; R];
        let row: [*const u8; R] = std::array::from_fn(|r| job.weights.add((first + r) * job.row_bytes));
        let mut c = 0;
        while c + step <= cols {
            for line in 0..(step * S::BYTES).div_ceil(64) {
                row.iter().for_each(|row| ask_ahead(row.wrapping_add(c * S::BYTES + 64 * line)));
            }
            for u in 0..U {
                let at = c + N * u;
                let w: [L; R] = std::array::from_fn(|r| S::load::<L>(row[r].add(at * S::BYTES)));
                for t in 0..T {
                    let x = L::load(job.floats[t].add(at));
                    for r in 0..R {
                        sums[r][t][u] = w[r].fma(x, sums[r][t][u]);
                    }
                }
            }
            c += step;
        }
        let mut rest = [[0f32; T]; R];
        for i in c..cols {
            for r in 0..R {
                let w = S::one(row[r].add(i * S::BYTES));
                for t in 0..T {
                    rest[r][t] += w * *job.floats[t].add(i);
                }
            }
        }
        for r in 0..R {
            for t in 0..T {
                let total = (1..U).fold(sums[r][t][0], |a, u| a.add(sums[r][t][u]));
                *job.out.add(t * job.stride + first + r) = total.sum() + rest[r][t];
            }
        }
    }
}
