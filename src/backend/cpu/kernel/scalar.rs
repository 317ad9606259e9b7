//! Rows kernels in plain Rust: for processors without the SIMD levels, and as their check.

use super::{Kernels, RowsJob};
use crate::quant::{
    DType, Float,
    bits::bytes,
    format::{BlockFormat, WithFormat, values},
    unpack::Portable,
};

/// The kernels of a block format; for a float, which.
pub fn kernels(dtype: DType) -> Result<Kernels, Float> {
    dtype.with_format(Of)
}

struct Of;

impl WithFormat for Of {
    type Output = Kernels;

    fn run<F: BlockFormat>(self) -> Kernels {
        Kernels { one: rows::<F, 1>, two: rows::<F, 2>, four: rows::<F, 4>, panel: None }
    }
}

/// Safety: see [`super::RowsKernel`].
unsafe fn rows<F: BlockFormat, const T: usize>(job: &RowsJob<T>) {
    for r in 0..job.rows {
        // SAFETY: the job has `rows` rows of `row_bytes` bytes.
        let row = unsafe { std::slice::from_raw_parts(job.weights.add(r * job.row_bytes), job.row_bytes) };
        let mut sums = [0f32; T];
        for (b, block) in row.chunks_exact(F::BYTES).enumerate() {
            // SAFETY: block b is in the row.
            unsafe { add_block::<F, T>(job, b, block, &mut sums) }
        }
        for (t, sum) in sums.iter().enumerate() {
            // SAFETY: `out` has a row of `rows` numbers for each token.
            unsafe { *job.out.add(t * job.stride + r) = *sum };
        }
    }
}

/// Adds the products of block `b` of a row. Safety: the activations are valid and have that block.
unsafe fn add_block<F: BlockFormat, const T: usize>(job: &RowsJob<T>, b: usize, block: &[u8], sums: &mut [f32; T]) {
    let scales = F::scales(Portable, block);
    for g in 0..F::BLOCK / 32 {
        let quants = bytes(values::<F, _>(Portable, (block, g)));
        let at = b * F::BLOCK + 32 * g;
        for (sum, act) in sums.iter_mut().zip(&job.acts) {
            // SAFETY: an activation row has as many quants as the weight row has weights, and scales and sums to match.
            let (x, x_scale, x_sums) = unsafe {
                (
                    std::slice::from_raw_parts(act.quants.add(at), 32),
                    *act.scales.add(at / 32),
                    std::slice::from_raw_parts(act.sums16.add(at / 16), 2),
                )
            };
            for h in 0..2 {
                let j = (32 * g + 16 * h) / F::SUB_BLOCK;
                let dot: i32 = (16 * h..16 * h + 16).map(|i| i32::from(quants[i]) * i32::from(x[i])).sum();
                let scale = scales.d * scales.s[j];
                let minimum = if F::MINIMA { scales.dmin * scales.m[j] } else { scale * f32::from(F::OFFSET) };
                *sum += scale * x_scale * dot as f32 - minimum * x_sums[h];
            }
        }
    }
}
