//! Adapters merged into their model: W + s · B A in the place of W.

use crate::{
    error::{Error, Result},
    file::Tensor,
    graph::LowRank,
    model::tensors::numbers,
    quant::{DType, quantize_rows},
    threads,
};

/// Rows that a thread changes at once.
const ROWS: usize = 64;

/// The bytes of the weight `name` with the pairs that are of it, stored as `dtype`.
///
/// # Errors
/// [`Error::Model`] for pairs of another shape; errors of storing the sum.
pub fn merged(name: &str, t: &Tensor, pairs: &[LowRank], dtype: DType) -> Result<Vec<u8>> {
    let (rows, cols, shape) = (t.rows(), t.cols(), t.shape());
    let experts: usize = shape.iter().rev().skip(2).product();
    let out = (rows / experts.max(1)).max(1);
    let mut w = numbers(t)?;
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(rows.div_ceil(ROWS)).max(1);
    for p in pairs.iter().filter(|p| p.weight == name) {
        let r = p.rank();
        if p.a.cols() != cols || p.b.rows() != rows || p.a.rows() != r * experts {
            let (a, b) = (p.a.shape(), p.b.shape());
            return Err(Error::Model(format!("the adapter of `{name}` {shape:?} has shapes {a:?} and {b:?}")));
        }
        let (a, b) = (numbers(&p.a)?, numbers(&p.b)?);
        let blocks = w.chunks_mut((ROWS * cols).max(1)).enumerate();
        threads::for_each(
            threads,
            blocks,
            || (),
            |(), (block, w)| {
                for (row, w) in w.chunks_exact_mut(cols).enumerate() {
                    let row = block * ROWS + row;
                    let e = row / out;
                    for j in 0..r {
                        let factor = p.scale * b[row * r + j];
                        let low = &a[(e * r + j) * cols..(e * r + j + 1) * cols];
                        w.iter_mut().zip(low).for_each(|(w, a)| *w += factor * a);
                    }
                }
                Ok(())
            },
        )?;
    }
    quantize_rows(dtype, rows, cols, &w, threads)
}
