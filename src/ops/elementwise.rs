//! The ops that look at one row at a time and do no sums: `add`, `scale`, `glu`, `act`, `sigmoid_gate`, `take_outputs`.
//!
//! | op | formula | shapes |
//! |---|---|---|
//! | `add` | a + b | both `[R, n]` |
//! | `scale` | factor · x | `[R, n]` |
//! | `glu` | act(gate) · up (Shazeer 2020, *GLU variants*); GPT-OSS's clamped form as [`gated`] says | both `[R, n]` |
//! | `act` | act(x) | `[R, n]` |
//! | `sigmoid_gate` | x · σ(g) | `[R, n]`, `[R, 1]` |
//! | `take_outputs` | the last O rows | `[T, n]` → `[O, n]` |
//!
//! Gradients: `add` dy twice; `scale` factor · dy; `glu` act'(gate) · up · dy and act(gate) · dy; `act` act'(x) · dy; `sigmoid_gate` σ(g) · dy
//! and σ(g)(1 − σ(g)) Σ x dy; `take_outputs` has none, as every row has an output in training.
//!
//! Tolerance 1e-10: one exponential, right to a few units in the last place.

use super::{Array, Real, arity, f32_of};
use crate::ir::{Activation, Rows, Type};

/// Shape rule of `add` and `glu`.
///
/// # Errors
/// A sentence that says which operand does not fit, and why.
pub fn infer_pair(inputs: &[Type]) -> Result<Vec<Type>, String> {
    let [a, b] = arity(inputs)?;
    f32_of(&a)?;
    if a == b { Ok(vec![a]) } else { Err("operands of different shapes".into()) }
}

/// Shape rule of `scale`.
///
/// # Errors
/// A sentence that says which operand does not fit, and why.
pub fn infer_scale(inputs: &[Type]) -> Result<Vec<Type>, String> {
    let [x] = arity(inputs)?;
    f32_of(&x).map(|_| vec![x])
}

/// Shape rule of `act`.
///
/// # Errors
/// A sentence that says which operand does not fit, and why.
pub fn infer_act(act: Activation, inputs: &[Type]) -> Result<Vec<Type>, String> {
    let [x] = arity(inputs)?;
    f32_of(&x)?;
    if gated_only(act) { Err(format!("{act:?} without a gate")) } else { Ok(vec![x]) }
}

/// Shape rule of `take_outputs`.
///
/// # Errors
/// A sentence that says which operand does not fit, and why.
pub fn infer_take_outputs(inputs: &[Type]) -> Result<Vec<Type>, String> {
    let [x] = arity(inputs)?;
    match f32_of(&x)? {
        (Rows::Tokens, cols) => Ok(vec![Type::F32(Rows::Outputs, cols)]),
        (Rows::Outputs, _) => Err("outputs are taken already".into()),
        (Rows::Fixed(_), _) => Err("the last rows of a fixed number".into()),
    }
}

/// Shape rule of `sigmoid_gate`.
///
/// # Errors
/// A sentence that says which operand does not fit, and why.
pub fn infer_sigmoid_gate(inputs: &[Type]) -> Result<Vec<Type>, String> {
    let [x, g] = arity(inputs)?;
    let (rows, _) = f32_of(&x)?;
    if g == Type::F32(rows, 1) { Ok(vec![x]) } else { Err(format!("a gate of {g}")) }
}

/// The logistic function in f64.
pub fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// An activation in f64.
pub fn activate(act: Activation, x: f64) -> f64 {
    match act {
        Activation::Silu => x * sigmoid(x),
        Activation::Gelu => 0.5 * x * (1.0 + erf(x / std::f64::consts::SQRT_2)),
        Activation::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
            0.5 * x * (1.0 + inner.tanh())
        }
        Activation::Relu => x.max(0.0),
        Activation::Tanh => x.tanh(),
        Activation::Sigmoid => sigmoid(x),
        Activation::Identity => x,
        // By itself it has no up: the unit with up = 0.
        Activation::ClampedSwiglu { .. } => gated(act, x, 0.0),
    }
}

/// Whether an activation needs a gated unit.
pub fn gated_only(act: Activation) -> bool {
    matches!(act, Activation::ClampedSwiglu { .. })
}

/// A gated unit in f64: `act(gate) · up`, or what [`Activation::ClampedSwiglu`] says (Hugging Face `modeling_gpt_oss`,
/// `_apply_gate`).
pub fn gated(act: Activation, gate: f64, up: f64) -> f64 {
    match act {
        Activation::ClampedSwiglu { alpha, limit } => {
            let limit = f64::from(limit);
            let g = gate.min(limit);
            g * sigmoid(f64::from(alpha) * g) * (up.min(limit).max(-limit) + 1.0)
        }
        Activation::Silu
        | Activation::Gelu
        | Activation::GeluTanh
        | Activation::Relu
        | Activation::Tanh
        | Activation::Sigmoid
        | Activation::Identity => activate(act, gate) * up,
    }
}

/// The error function to 1e-12: its Taylor series near 0, else the continued fraction of erfc
/// (Abramowitz and Stegun 7.1.6 and 7.1.14).
pub fn erf(x: f64) -> f64 {
    let a = x.abs();
    let magnitude = if a < 2.5 {
        let (mut term, mut sum, mut n) = (a, a, 0.0);
        while term.abs() > 1e-17 * sum.abs() {
            n += 1.0;
            term *= 2.0 * a * a / (2.0 * n + 1.0);
            sum += term;
        }
        sum * 2.0 / std::f64::consts::PI.sqrt() * (-a * a).exp()
    } else {
        let f = (1..=60).rev().fold(0.0, |f, k| f64::from(k) / 2.0 / (a + f));
        1.0 - (-a * a).exp() / std::f64::consts::PI.sqrt() / (a + f)
    };
    magnitude.copysign(x)
}

/// Reference code of `add`.
pub fn add<T: Real>(a: &Array<T>, b: &Array<T>) -> Array<T> {
    a.zip(b, |a, b| a + b)
}

/// Reference code of `scale`.
pub fn scale<T: Real>(x: &Array<T>, factor: f32) -> Array<T> {
    x.map(|x| x * f64::from(factor))
}

/// Reference code of `glu`.
pub fn glu<T: Real>(gate: &Array<T>, up: &Array<T>, act: Activation) -> Array<T> {
    gate.zip(up, |g, u| gated(act, g, u))
}

/// Reference code of `act`.
pub fn act<T: Real>(x: &Array<T>, act: Activation) -> Array<T> {
    x.map(|v| activate(act, v))
}

/// Reference code of `sigmoid_gate`.
pub fn sigmoid_gate<T: Real>(x: &Array<T>, g: &Array<T>) -> Array<T> {
    let mut out = x.clone();
    for r in 0..x.rows {
        let s = sigmoid(g.row(r)[0].get());
        out.row_mut(r).iter_mut().for_each(|v| *v = T::of(v.get() * s));
    }
    out
}

/// Reference code of `take_outputs`.
pub fn take_outputs<T: Real>(x: &Array<T>, outputs: usize) -> Array<T> {
    let first = (x.rows - outputs) * x.cols;
    Array { rows: outputs, cols: x.cols, data: x.data[first..].to_vec() }
}

/// The derivative of an activation.
pub fn activate_grad(act: Activation, x: f64) -> f64 {
    let s = sigmoid(x);
    match act {
        Activation::Silu => s * (1.0 + x * (1.0 - s)),
        Activation::Gelu => {
            let density = (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt();
            0.5 * (1.0 + erf(x / std::f64::consts::SQRT_2)) + x * density
        }
        Activation::GeluTanh => {
            let root = (2.0 / std::f64::consts::PI).sqrt();
            let t = (root * (x + 0.044_715 * x * x * x)).tanh();
            0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * root * (1.0 + 3.0 * 0.044_715 * x * x)
        }
        Activation::Relu => f64::from(u8::from(x > 0.0)),
        Activation::Tanh => 1.0 - x.tanh().powi(2),
        Activation::Sigmoid => s * (1.0 - s),
        Activation::Identity => 1.0,
        // As `activate` has it: the unit with up = 0.
        Activation::ClampedSwiglu { .. } => gated_grad(act, x, 0.0)[0],
    }
}

/// The derivatives of a gated unit by gate and up.
pub fn gated_grad(act: Activation, gate: f64, up: f64) -> [f64; 2] {
    match act {
        Activation::ClampedSwiglu { alpha, limit } => {
            let (alpha, limit) = (f64::from(alpha), f64::from(limit));
            let (g, u) = (gate.min(limit), up.min(limit).max(-limit) + 1.0);
            let s = sigmoid(alpha * g);
            let inside = |within: bool| f64::from(u8::from(within));
            [inside(gate < limit) * u * s * (1.0 + alpha * g * (1.0 - s)), inside(up.abs() < limit) * g * s]
        }
        Activation::Silu
        | Activation::Gelu
        | Activation::GeluTanh
        | Activation::Relu
        | Activation::Tanh
        | Activation::Sigmoid
        | Activation::Identity => [activate_grad(act, gate) * up, activate(act, gate)],
    }
}

/// Reference code of the gradients of `glu`.
pub fn glu_grad<T: Real>(gate: &Array<T>, up: &Array<T>, dy: &Array<T>, act: Activation) -> [Array<T>; 2] {
    let part = |i: usize| gate.zip(up, |g, u| gated_grad(act, g, u)[i]).zip(dy, |a, d| a * d);
    [part(0), part(1)]
}

/// Reference code of the gradient of `act`.
pub fn act_grad<T: Real>(x: &Array<T>, dy: &Array<T>, act: Activation) -> Array<T> {
    x.zip(dy, |x, d| activate_grad(act, x) * d)
}

/// Reference code of the gradients of `sigmoid_gate`.
pub fn sigmoid_gate_grad<T: Real>(x: &Array<T>, g: &Array<T>, dy: &Array<T>) -> [Array<T>; 2] {
    let mut dg = g.clone();
    for r in 0..x.rows {
        let s = sigmoid(g.data[r].get());
        dg.data[r] = T::of(s * (1.0 - s) * super::linear::dot(x.row(r), dy.row(r)));
    }
    [sigmoid_gate(dy, g), dg]
}
