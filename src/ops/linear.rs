//! `linear`: `y[r, o] = Σ_i W[o, i] · x[r, i] + b[o]`.
//!
//! Shapes: x `[R, in]`, W `[out, in]` of any block format, b `[out]` → `[R, out]`.
//!
//! Tolerance: 1e-10 wherever activations stay f32 (`wgpu`; `cpu` with float weights): the weights are the same numbers and
//! only the order of f32 sums differs. 2e-4 on `cpu` with quantised weights: an activation quantised to 8 bits with one
//! scale per 32 carries an error of up to half a step, 1/254 of the largest of the 32, which for bell-shaped values is
//! about 0.6 % of their standard deviation, 4e-5 in squares; outliers make it a few times worse.

use super::{Array, Phrase, Weights, arity, f32_of, matrix_shape, weight_shape};
use crate::ir::{Graph, Linear, Type};

/// Shape rule.
///
/// # Errors
/// What does not fit.
pub fn infer(l: &Linear, inputs: &[Type], g: &Graph) -> Result<Vec<Type>, Phrase> {
    let [x] = arity(inputs)?;
    let (rows, cols) = f32_of(&x)?;
    let [out, inp] = matrix_shape(g, l.weight)?;
    if inp != cols {
        return Err(format!("a [{out}, {inp}] matrix on {cols} columns"));
    }
    if let Some(b) = l.bias {
        weight_shape(g, b, &[out])?;
    }
    Ok(vec![Type::F32(rows, out)])
}

/// `Σ a·b` in f64.
pub fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// Reference code.
pub fn eval(x: &Array, l: &Linear, w: Weights<'_>) -> Array {
    let out = w.tensor(l.weight).rows();
    let bias = l.bias.map(|b| w.vector(b));
    let mut y = Array::zeros(x.rows, out);
    for o in 0..out {
        let row = w.row(l.weight, o);
        for r in 0..x.rows {
            let b = bias.as_ref().map_or(0.0, |b| f64::from(b[o]));
            y.data[r * out + o] = (dot(&row, x.row(r)) + b) as f32;
        }
    }
    y
}
