//! `embed`: `x[t, :] = scale · table[ids[t], :]`.
//!
//! Gradient: `dtable[v, :] = scale · Σ_t dy[t, :]` over the rows t with id v, in ascending order.
//!
//! Shapes: ids `[T, 1]`, table `[V, H]` → `[T, H]`. Exact up to the multiplication: every backend agrees to 1e-12.

use super::{Array, Real, Weights, arity, matrix_shape, u32_of};
use crate::ir::{Graph, Type, WeightId};

/// Shape rule.
///
/// # Errors
/// A sentence that says which operand does not fit, and why.
pub fn infer(table: WeightId, inputs: &[Type], g: &Graph) -> Result<Vec<Type>, String> {
    let [ids] = arity(inputs)?;
    let (rows, cols) = u32_of(&ids)?;
    if cols != 1 {
        return Err(format!("{cols} ids a token"));
    }
    Ok(vec![Type::F32(rows, matrix_shape(g, table)?[1])])
}

/// Reference code. Ids are in range (checked when the step begins).
pub fn eval<T: Real>(ids: &[u32], table: WeightId, scale: f32, w: Weights<'_, T>) -> Array<T> {
    let mut out = Array::zeros(ids.len(), w.tensor(table).cols());
    for (t, id) in ids.iter().enumerate() {
        for (o, x) in out.row_mut(t).iter_mut().zip(w.row(table, *id as usize)) {
            *o = T::of(x.get() * f64::from(scale));
        }
    }
    out
}

/// Reference code of the gradient: adds to `into`, `[V, H]`.
pub fn grad<T: Real>(ids: &[u32], dy: &Array<T>, scale: f32, into: &mut [T]) {
    // A row of the table takes its sum once, so that it is rounded once.
    let mut order: Vec<usize> = (0..ids.len()).collect();
    order.sort_by_key(|t| ids[*t]);
    for rows in order.chunk_by(|a, b| ids[*a] == ids[*b]) {
        let first = ids[rows[0]] as usize * dy.cols;
        for (c, to) in into[first..first + dy.cols].iter_mut().enumerate() {
            let sum: f64 = rows.iter().map(|t| dy.row(*t)[c].get()).sum();
            *to = T::of(to.get() + sum * f64::from(scale));
        }
    }
}
