//! Rows kernels in plain Rust: for processors without the SIMD levels, and as their check.

use super::{
    Kernels, RowsJob, by_format,
    formats::{self, Format},
};
use crate::quant::DType;

pub fn kernels(dtype: DType) -> Kernels {
    by_format!(dtype, formats, of)
}

fn of<F: Format>() -> Kernels {
    Kernels { one: rows::<F, 1>, two: rows::<F, 2>, four: rows::<F, 4>, panel: None }
}

/// Safety: see [`super::RowsKernel`].
unsafe fn rows<F: Format, const T: usize>(job: &RowsJob<T>) {
    let (mut codes, mut scales, mut mins) = ([0u8; 256], [0f32; 16], [0f32; 16]);
    let (per_block, subs) = (F::BLOCK, F::BLOCK / 16);
    for r in 0..job.rows {
        // SAFETY: the job has `rows` rows of `row_bytes` bytes.
        let row = unsafe { std::slice::from_raw_parts(job.weights.add(r * job.row_bytes), job.row_bytes) };
        let mut sums = [0f32; T];
        for (b, block) in row.chunks_exact(F::BYTES).enumerate() {
            F::unpack(block, &mut codes[..per_block], &mut scales[..subs], &mut mins[..subs]);
            for (sum, act) in sums.iter_mut().zip(&job.acts) {
                // SAFETY: an activation row has as many codes as the weight row has weights, and sums and scales to match.
                let (x, x_scales, x_sums) = unsafe {
                    (
                        std::slice::from_raw_parts(act.codes.add(b * per_block), per_block),
                        std::slice::from_raw_parts(act.scales.add(b * per_block / 32), per_block / 32),
                        std::slice::from_raw_parts(act.sums16.add(b * subs), subs),
                    )
                };
                for j in 0..subs {
                    let dot: i32 = (16 * j..16 * j + 16).map(|i| i32::from(codes[i]) * i32::from(x[i])).sum();
                    *sum += scales[j] * x_scales[j / 2] * dot as f32 - mins[j] * x_sums[j];
                }
            }
        }
        for (t, sum) in sums.iter().enumerate() {
            // SAFETY: `out` has a row of `rows` numbers for each token.
            unsafe { *job.out.add(t * job.stride + r) = *sum };
        }
    }
}
