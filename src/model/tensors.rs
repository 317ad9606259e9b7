//! Tensors in another order: numbers, rows, columns, taps. Matrices are not copied where whole rows move.

use crate::{
    error::{Error, Result},
    file::{Bytes, Tensor},
    quant,
};

/// The numbers of a tensor, row-major.
pub(super) fn numbers(t: &Tensor) -> Result<Vec<f32>> {
    let mut out = vec![0.0; t.rows() * t.cols()];
    for (r, row) in out.chunks_mut(t.cols().max(1)).enumerate() {
        quant::dequantize(t.dtype(), t.row(r), row)?;
    }
    Ok(out)
}

/// The same tensor as f32.
pub(super) fn as_f32(t: &Tensor) -> Result<Tensor> {
    Tensor::from_f32(t.shape().to_vec(), numbers(t)?)
}

/// The same tensor as `shape` where the two differ by sizes of 1 only: ggml drops the last of them, and other writers put some
/// between. Another one is given back as it is.
pub(super) fn fitted(t: Tensor, shape: &[usize]) -> Tensor {
    if t.shape() == shape || !same_sizes(t.shape(), shape) {
        return t;
    }
    t.reshaped(shape.to_vec()).unwrap_or(t)
}

/// Whether two shapes are the same but for sizes of 1.
pub(super) fn same_sizes(a: &[usize], b: &[usize]) -> bool {
    a.iter().filter(|n| **n != 1).eq(b.iter().filter(|n| **n != 1))
}

fn bad() -> Error {
    Error::Model("parts of a projection do not fit each other".into())
}

/// Row `r`, which is not copied.
pub(super) fn row(t: &Tensor, r: usize) -> Option<Bytes> {
    let (n, bytes) = (t.rows_per_part(), t.row_bytes());
    t.parts().get(r / n)?.slice(r % n * bytes..(r % n + 1) * bytes)
}

/// The same matrix with row `source(r)` as row r.
pub(super) fn rows_from(t: &Tensor, source: impl Fn(usize) -> usize) -> Result<Tensor> {
    let rows = (0..t.rows()).map(|r| row(t, source(r))).collect::<Option<Vec<_>>>().ok_or_else(bad)?;
    Tensor::new(t.dtype(), t.shape().to_vec(), rows)
}

/// The same matrix with column `source(c)` as column c; of matrices without blocks.
pub(super) fn columns_from(t: &Tensor, source: impl Fn(usize) -> usize) -> Result<Tensor> {
    if !t.dtype().is_float() {
        return Err(Error::Unsupported(format!("columns of {} in another order", t.dtype())));
    }
    let size = t.row_bytes() / t.cols().max(1);
    let rows = (0..t.rows()).map(|r| {
        let row = t.row(r);
        let moved = (0..t.cols()).flat_map(|c| row[source(c) * size..(source(c) + 1) * size].iter().copied());
        Bytes::from_vec(moved.collect())
    });
    Tensor::new(t.dtype(), t.shape().to_vec(), rows.collect())
}

/// `groups[0]` rows of `a`, `groups[1]` of `b`, and so on in turn; with more than `a` has, b behind a.
///
/// # Errors
/// [`Error::Model`] where the two do not fit each other.
pub(super) fn joined(a: &Tensor, b: &Tensor, groups: [usize; 2]) -> Result<Tensor> {
    if a.cols() != b.cols() || a.dtype() != b.dtype() {
        return Err(bad());
    }
    let (mut rows, mut at) = (vec![], [0, 0]);
    while at[0] < a.rows() || at[1] < b.rows() {
        for ((t, at), group) in [a, b].iter().zip(&mut at).zip(groups) {
            let end = at.saturating_add(group.max(1)).min(t.rows());
            rows.extend((*at..end).map(|r| row(t, r)));
            *at = end;
        }
    }
    let rows = rows.into_iter().collect::<Option<Vec<Bytes>>>().ok_or_else(bad)?;
    Tensor::new(a.dtype(), vec![a.rows() + b.rows(), a.cols()], rows)
}

/// Taps of a convolution from `[channels, taps]` to tap by tap: `[taps · channels]`.
pub(super) fn taps_first(t: &Tensor, channels: usize, taps: usize) -> Result<Tensor> {
    let x = numbers(t)?;
    let moved = (0..taps * channels).map(|i| x[i % channels * taps + i / channels]).collect();
    Tensor::from_f32(vec![taps * channels], moved)
}

/// Taps of a convolution from tap by tap to channel by channel: `[channels, taps]`.
pub(super) fn channels_first(t: &Tensor, taps: usize) -> Result<Tensor> {
    let (x, channels) = (numbers(t)?, t.cols() / taps.max(1));
    let moved = (0..x.len()).map(|i| x[i % taps * channels + i / taps]).collect();
    Tensor::from_f32(vec![channels, taps], moved)
}

/// Rows of each head of `d` columns from halves (i, i + d/2) to pairs (2i, 2i + 1); the numbers of a vector likewise.
pub(super) fn interleaved(t: &Tensor, d: usize) -> Result<Tensor> {
    moved(t, |r| (r / d) * d + (r % 2) * (d / 2) + (r % d) / 2)
}

/// The way back of [`interleaved`].
pub(super) fn by_halves(t: &Tensor, d: usize) -> Result<Tensor> {
    moved(t, |r| (r / d) * d + 2 * (r % d % (d / 2)) + (r % d) / (d / 2))
}

/// Row, or number of a vector, `source(r)` as r.
fn moved(t: &Tensor, source: impl Fn(usize) -> usize) -> Result<Tensor> {
    if t.shape().len() > 1 {
        return rows_from(t, source);
    }
    let (size, row) = (t.dtype().layout().bytes, t.row(0));
    let bytes = (0..t.cols()).flat_map(|i| row[source(i) * size..(source(i) + 1) * size].iter().copied()).collect();
    Tensor::new(t.dtype(), t.shape().to_vec(), vec![Bytes::from_vec(bytes)])
}
