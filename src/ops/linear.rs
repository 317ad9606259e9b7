//! `linear`: `y[r, o] = Σ_i W[o, i] · x[r, i] + b[o]`.
//!
//! Shapes: x `[R, in]`, W `[out, in]` of any block format, b `[out]` → `[R, out]`.
//!
//! Gradient: `dx = dy W`, of any block format; `dW = dyᵀ x`, `db = Σ_r dy`, for weights that are trained.
//!
//! Tolerance: 1e-10 wherever activations stay f32 (`wgpu`; `cpu` with float weights): the weights are the same numbers and
//! only the order of f32 sums differs. `cpu` rounds the activations that meet quantised weights, as [`Activations`] says
//! exactly; against the reference that rounds in the same way it is held to 1e-10 for one product, and to 1e-7
//! ([`Activations::Int16`]) or 1e-5 ([`Activations::Int8`]) for several in a row, where an activation at the edge of a
//! rounding step may fall on the other side. What the rounding itself costs is a property of the data. Half an 8-bit step is
//! 1/254 of the largest of 32 neighbours: an NMSE of 4e-5 for bell-shaped activations, and about 1e-3 where one in 64 is
//! thirty times larger than the rest. With the second number both are 254² times smaller.

use super::{Array, Real, Weights, arity, f32_of, matrix_shape, weight_shape};
use crate::ir::{Graph, Linear, Rows, Type, WeightId};

/// Shape rule.
///
/// # Errors
/// A sentence that says which operand does not fit, and why.
pub fn infer(l: &Linear, inputs: &[Type], g: &Graph) -> Result<Vec<Type>, String> {
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

/// How activations are rounded before they are multiplied with quantised weights. Float weights are always multiplied with f32
/// activations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activations {
    /// Not at all.
    #[default]
    F32,
    /// To one int8 quant each, by `int8`.
    Int8,
    /// To the sum of two int8 quants: `int8(x)`, and `int8` of the rounding error of the first. About 15 bits.
    Int16,
}

impl Activations {
    /// The rounding of a value with `rows` rows. Values with a row for each wanted output are never rounded to 8 bits: they are
    /// the input of the last matrix, whose rounding errors reach the logits undamped (a tenth of the whole divergence), and there
    /// 16 bits cost next to nothing.
    pub fn of(self, rows: Rows) -> Activations {
        match (self, rows) {
            (Activations::Int8, Rows::Outputs) => Activations::Int16,
            (other, _) => other,
        }
    }
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

/// The activations that `weight` is multiplied with, rounded as `w.activations` says.
pub fn seen<T: Real>(x: &Array<T>, weight: WeightId, w: Weights<'_, T>) -> Array<T> {
    let f32s = || x.data.iter().map(|v| v.get() as f32).collect::<Vec<f32>>();
    let whole = |rounded: Vec<f32>| Array { data: rounded.iter().map(|v| T::of(f64::from(*v))).collect(), ..*x };
    match w.activations {
        _ if w.tensor(weight).dtype().is_float() => x.clone(),
        Activations::F32 => x.clone(),
        Activations::Int8 => whole(int8(&f32s())),
        Activations::Int16 => {
            let (x, high) = (f32s(), int8(&f32s()));
            let low = int8(&x.iter().zip(&high).map(|(x, h)| x - h).collect::<Vec<f32>>());
            whole(high.iter().zip(&low).map(|(h, l)| h + l).collect())
        }
    }
}

/// `Σ a·b` in f64.
pub fn dot<T: Real>(a: &[T], b: &[T]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a.get() * b.get()).sum()
}

/// Reference code.
pub fn eval<T: Real>(x: &Array<T>, l: &Linear, w: Weights<'_, T>) -> Array<T> {
    let out = w.tensor(l.weight).rows();
    let bias = l.bias.map(|b| w.vector(b));
    let x = &seen(x, l.weight, w);
    let mut y = Array::zeros(x.rows, out);
    for o in 0..out {
        let row = w.row(l.weight, o);
        for r in 0..x.rows {
            let b = bias.as_ref().map_or(0.0, |b| b[o].get());
            y.data[r * out + o] = T::of(dot(&row, x.row(r)) + b);
        }
    }
    y
}

/// Reference code of the gradient by x.
pub fn grad_input<T: Real>(dy: &Array<T>, weight: WeightId, w: Weights<'_, T>) -> Array<T> {
    let t = w.tensor(weight);
    let mut sums = Array::<f64>::zeros(dy.rows, t.cols());
    for o in 0..t.rows() {
        let row = w.row(weight, o);
        for r in 0..dy.rows {
            let d = dy.data[r * dy.cols + o].get();
            sums.row_mut(r).iter_mut().zip(&row).for_each(|(s, w)| *s += d * w.get());
        }
    }
    Array { rows: dy.rows, cols: t.cols(), data: sums.data.into_iter().map(T::of).collect() }
}

/// Reference code of the gradient by the matrix: adds to `into`, `[out, in]`.
pub fn grad_weight<T: Real>(x: &Array<T>, dy: &Array<T>, into: &mut [T]) {
    for (o, row) in into.chunks_mut(x.cols).enumerate() {
        let mut sums = vec![0.0; x.cols];
        for r in 0..x.rows {
            let d = dy.data[r * dy.cols + o].get();
            sums.iter_mut().zip(x.row(r)).for_each(|(s, x)| *s += d * x.get());
        }
        super::add_to(row, &sums);
    }
}

/// Reference code of the gradient by a bias or another vector that every row and every group of columns takes: adds to `into`.
pub fn grad_bias<T: Real>(dy: &Array<T>, into: &mut [T]) {
    let mut sums = vec![0.0; into.len()];
    for group in dy.data.chunks(into.len()) {
        sums.iter_mut().zip(group).for_each(|(s, d)| *s += d.get());
    }
    super::add_to(into, &sums);
}
