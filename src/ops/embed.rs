//! `embed`: `x[t, :] = scale · table[ids[t], :]`.
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
