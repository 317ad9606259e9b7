//! `rms_norm`: `y = w · x / sqrt(mean(x²) + eps)` over each row, or over each group of n columns where the weight has n
//! numbers and the row has several groups (the heads of a QK norm).
//!
//! Source: Zhang and Sennrich 2019, *Root Mean Square Layer Normalization*. Shapes: x `[R, g·n]`, w `[n]` → `[R, g·n]`.
//! Tolerance 1e-10: an f32 sum of squares of up to some ten thousand numbers.

use super::{Array, Phrase, Weights, arity, f32_of};
use crate::ir::{Graph, Norm, NormKind, Type};

/// Shape rule.
///
/// # Errors
/// What does not fit.
pub fn infer(n: &Norm, inputs: &[Type], g: &Graph) -> Result<Vec<Type>, Phrase> {
    let [x] = arity(inputs)?;
    let (_, cols) = f32_of(&x)?;
    if n.kind != NormKind::Rms || n.bias.is_some() {
        return Err("a norm that is not the root-mean-square one".into());
    }
    let shape = &g.weights.get(n.weight.0 as usize).ok_or("an undeclared weight")?.shape;
    match shape.as_slice() {
        [len] if *len > 0 && cols % len == 0 => Ok(vec![x]),
        other => Err(format!("a norm of {other:?} on {cols} columns")),
    }
}

/// Reference code.
pub fn eval(x: &Array, n: &Norm, w: Weights<'_>) -> Array {
    let weight = w.vector(n.weight);
    let mut out = x.clone();
    for group in out.data.chunks_mut(weight.len()) {
        let mean = group.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / group.len() as f64;
        let r = 1.0 / (mean + f64::from(n.eps)).sqrt();
        for (v, w) in group.iter_mut().zip(&weight) {
            *v = (f64::from(*v) * r * f64::from(*w)) as f32;
        }
    }
    out
}
