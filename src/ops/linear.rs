//! `linear`: `y[r, o] = Σ_i W[o, i] · x[r, i] + b[o]`.
//!
//! Shapes: x `[R, in]`, W `[out, in]` of any block format, b `[out]` → `[R, out]`.
//!
//! Tolerance: 1e-10 wherever activations stay f32 (`wgpu`; `cpu` with float weights): the weights are the same numbers and
//! only the order of f32 sums differs. `cpu` rounds the activations that meet quantised weights to 8 bits, as
//! [`Activations::Int8`] says exactly; against the reference that does the same it is held to 1e-10 too. What the rounding
//! itself costs is a property of the data: half a step is 1/254 of the largest of 32 neighbours, which for bell-shaped
//! activations is an NMSE of 4e-5, and about 1e-3 where one in 64 is thirty times larger than the rest.

use super::{Array, Phrase, Weights, arity, f32_of, matrix_shape, weight_shape};
use crate::ir::{Graph, Linear, Type, WeightId};

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

/// How activations enter a product with quantised weights. Float weights always meet f32 activations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activations {
    /// As they are.
    #[default]
    F32,
    /// Rounded by [`int8`].
    Int8,
}

/// Rounds to 8 bits with one scale per 32: with m the largest magnitude of 32 neighbours, each x becomes
/// `m/127 · round(x · 127/m)`, ties to even, every operation in f32.
pub fn int8(x: &[f32]) -> Vec<f32> {
    let group = |g: &[f32]| {
        let largest = g.iter().fold(0f32, |m, v| m.max(v.abs()));
        let inverse = if largest > 1e-30 { 127.0 / largest } else { 0.0 };
        let scale = largest / 127.0;
        g.iter().map(|v| scale * (v * inverse).round_ties_even()).collect::<Vec<f32>>()
    };
    x.chunks(32).flat_map(group).collect()
}

/// The activations that a product with `weight` sees.
pub fn seen(x: &Array, weight: WeightId, w: Weights<'_>) -> Array {
    match w.activations {
        Activations::Int8 if !w.tensor(weight).dtype().is_float() => Array { data: int8(&x.data), ..*x },
        _ => x.clone(),
    }
}

/// `Σ a·b` in f64.
pub fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// Reference code.
pub fn eval(x: &Array, l: &Linear, w: Weights<'_>) -> Array {
    let out = w.tensor(l.weight).rows();
    let bias = l.bias.map(|b| w.vector(b));
    let x = &seen(x, l.weight, w);
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
