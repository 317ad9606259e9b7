//! `head_ids` and `join_heads`: what latent attention needs beside the usual ops.
//!
//! `head_ids`: ids `[T, heads]` with 0, 1, 2… in every row, so that `expert_linear` multiplies each head by a matrix of its
//! own. `join_heads` (gradient: `split_heads`, its inverse): `y[t, h, :] = [a[t, h, :]; b[t, h, :]]`. Shapes: a `[T, heads·m]`, b `[T, heads·n]` →
//! `[T, heads·(m + n)]`. Nothing is computed, so the result is exact.

use super::{Array, Real, arity, f32_of};
use crate::ir::{Rows, Type};

/// Shape rule of `head_ids`.
///
/// # Errors
/// A sentence that says which operand does not fit, and why.
pub fn infer_ids(heads: usize, inputs: &[Type]) -> Result<Vec<Type>, String> {
    arity::<0>(inputs)?;
    if heads == 0 { Err("no heads".into()) } else { Ok(vec![Type::U32(Rows::Tokens, heads)]) }
}

/// Shape rule of `join_heads`.
///
/// # Errors
/// A sentence that says which operand does not fit, and why.
pub fn infer_join(heads: usize, inputs: &[Type]) -> Result<Vec<Type>, String> {
    let [a, b] = arity(inputs)?;
    let ((rows, m), (other, n)) = (f32_of(&a)?, f32_of(&b)?);
    if heads == 0 || rows != other || m % heads != 0 || n % heads != 0 {
        return Err(format!("{heads} heads in {m} and {n} columns"));
    }
    Ok(vec![Type::F32(rows, m + n)])
}

/// Reference code of `head_ids`.
pub fn eval_ids(rows: usize, heads: usize) -> Vec<u32> {
    (0..rows).flat_map(|_| 0..heads as u32).collect()
}

/// Reference code of `join_heads`.
pub fn eval_join<T: Real>(a: &Array<T>, b: &Array<T>, heads: usize) -> Array<T> {
    let (m, n) = (a.cols / heads, b.cols / heads);
    let mut y = Array::zeros(a.rows, a.cols + b.cols);
    for t in 0..a.rows {
        for h in 0..heads {
            let to = &mut y.row_mut(t)[h * (m + n)..(h + 1) * (m + n)];
            to[..m].copy_from_slice(&a.row(t)[h * m..(h + 1) * m]);
            to[m..].copy_from_slice(&b.row(t)[h * n..(h + 1) * n]);
        }
    }
    y
}

/// Reference code of `split_heads`: of each head the first `first` columns, and the others.
pub fn eval_split<T: Real>(y: &Array<T>, heads: usize, first: usize) -> [Array<T>; 2] {
    let size = y.cols / heads;
    let part = |from: usize, to: usize| {
        let row = |t: usize| (0..heads).flat_map(move |h| y.row(t)[h * size + from..h * size + to].to_vec());
        Array { rows: y.rows, cols: heads * (to - from), data: (0..y.rows).flat_map(row).collect() }
    };
    [part(0, first), part(first, size)]
}
