//! `rms_norm`: `y = w · x / sqrt(mean(x²) + eps)` over each row, or over each group of n columns where the weight has n
//! numbers and the row has several groups (the heads of a QK norm).
//!
//! A layer norm ([`NormKind::Layer`]) takes the mean off first: `y = w · (x − mean) / sqrt(var + eps) + b`, with the variance
//! over all n numbers (not n − 1). A bias may be missing, and a root-mean-square norm may have one.
//!
//! Gradient: with r = 1 / sqrt(mean square (variance) + eps), x̂ = r · (x − centre) and g = w · dy:
//! `dx = r (g − x̂ mean(g x̂))`, a layer norm's also less `r mean(g)`; `dw = Σ dy x̂` over rows and groups, `db = Σ dy`.
//!
//! Source: Ba et al. 2016, *Layer Normalization*; Zhang and Sennrich 2019, *Root Mean Square Layer Normalization*. Shapes: x
//! `[R, g·n]`, w `[n]` → `[R, g·n]`. Tolerance 1e-10: an f32 sum of squares of up to some ten thousand numbers.

use super::{Array, Real, Weights, arity, f32_of, weight_shape};
use crate::ir::{Graph, Norm, NormKind, Type};

/// Shape rule.
///
/// # Errors
/// A sentence that says which operand does not fit, and why.
pub fn infer(n: &Norm, inputs: &[Type], g: &Graph) -> Result<Vec<Type>, String> {
    let [x] = arity(inputs)?;
    let (_, cols) = f32_of(&x)?;
    let shape = &g.weights.get(n.weight.0 as usize).ok_or("an undeclared weight")?.shape;
    match shape.as_slice() {
        [len] if *len > 0 && cols % len == 0 => {
            n.bias.map_or(Ok(()), |b| weight_shape(g, b, &[*len]))?;
            Ok(vec![x])
        }
        other => Err(format!("a norm of {other:?} on {cols} columns")),
    }
}

/// Reference code.
pub fn eval<T: Real>(x: &Array<T>, n: &Norm, w: Weights<'_, T>) -> Array<T> {
    let weight = w.vector(n.weight);
    let mut out = x.clone();
    let bias = n.bias.map_or_else(|| vec![T::default(); weight.len()], |b| w.vector(b));
    for group in out.data.chunks_mut(weight.len()) {
        let count = group.len() as f64;
        let centre = match n.kind {
            NormKind::Rms => 0.0,
            NormKind::Layer => group.iter().map(|v| v.get()).sum::<f64>() / count,
        };
        let mean = group.iter().map(|v| (v.get() - centre).powi(2)).sum::<f64>() / count;
        let r = 1.0 / (mean + f64::from(n.eps)).sqrt();
        for ((v, w), b) in group.iter_mut().zip(&weight).zip(&bias) {
            *v = T::of((v.get() - centre) * r * w.get() + b.get());
        }
    }
    out
}

/// x̂ and r of a group.
fn normalised<T: Real>(group: &[T], n: &Norm) -> (Vec<f64>, f64) {
    let count = group.len() as f64;
    let centre = match n.kind {
        NormKind::Rms => 0.0,
        NormKind::Layer => group.iter().map(|v| v.get()).sum::<f64>() / count,
    };
    let mean = group.iter().map(|v| (v.get() - centre).powi(2)).sum::<f64>() / count;
    let r = 1.0 / (mean + f64::from(n.eps)).sqrt();
    (group.iter().map(|v| (v.get() - centre) * r).collect(), r)
}

/// Reference code of the gradient by x.
pub fn grad<T: Real>(x: &Array<T>, dy: &Array<T>, n: &Norm, w: Weights<'_, T>) -> Array<T> {
    let (weight, mut dx) = (w.vector(n.weight), dy.clone());
    for (group, d) in x.data.chunks(weight.len()).zip(dx.data.chunks_mut(weight.len())) {
        let (xh, r) = normalised(group, n);
        let g: Vec<f64> = d.iter().zip(&weight).map(|(d, w)| d.get() * w.get()).collect();
        let count = group.len() as f64;
        let along = g.iter().zip(&xh).map(|(g, x)| g * x).sum::<f64>() / count;
        let centre = match n.kind {
            NormKind::Rms => 0.0,
            NormKind::Layer => g.iter().sum::<f64>() / count,
        };
        d.iter_mut().zip(g).zip(xh).for_each(|((d, g), x)| *d = T::of(r * (g - centre - x * along)));
    }
    dx
}

/// Reference code of the gradient by the weight: adds to `into`, `[n]`.
pub fn grad_weight<T: Real>(x: &Array<T>, dy: &Array<T>, n: &Norm, into: &mut [T]) {
    let mut sums = vec![0.0; into.len()];
    for (group, d) in x.data.chunks(into.len()).zip(dy.data.chunks(into.len())) {
        let (xh, _) = normalised(group, n);
        sums.iter_mut().zip(xh).zip(d).for_each(|((s, x), d)| *s += x * d.get());
    }
    super::add_to(into, &sums);
}
