//! `delta_net`: linear attention with the gated delta rule, a memory of fixed size instead of a KV cache.
//!
//! For every value head h, with the key head that serves it, a state S `[Dk, Dv]` and for each token in order
//!
//! ```text
//! q̂ = q / sqrt(q·q + 1e-6) / sqrt(Dk),   k̂ = k / sqrt(k·k + 1e-6)
//! S ← exp(A_h · softplus(a_h + dt_h)) · S
//! S ← S + k̂ (sigmoid(b_h) · (v − Sᵀ k̂))ᵀ
//! y = Sᵀ q̂
//! ```
//!
//! A_h is negative (`−exp(A_log)` in checkpoints). Sources: Yang et al. 2024 (gated DeltaNet); Hugging Face
//! `modeling_qwen3_next`, `torch_recurrent_gated_delta_rule`; its chunked form computes the same.
//!
//! Shapes: qkv `[T, 2·Hk·Dk + Hv·Dv]` (all q heads, all k heads, all v heads), a `[T, Hv]`, b `[T, Hv]` → `[T, Hv·Dv]`; the
//! state is `[Hv, Dk, Dv]`. Tolerance: 1e-10 for a few tokens, 1e-9 for hundreds: a rounding error of the state lives as
//! long as the decay lets it.

use super::{Array, Weights, arity, elementwise::sigmoid, f32_of, weight_shape};
use crate::ir::{DeltaNet, Graph, Rows, Type};

/// Added to the squared lengths of queries and keys.
pub const EPS: f64 = 1e-6;

/// Shape rule.
///
/// # Errors
/// A sentence that says which operand does not fit, and why.
pub fn infer(d: &DeltaNet, inputs: &[Type], g: &Graph) -> Result<Vec<Type>, String> {
    let [qkv, a, b] = arity(inputs)?;
    let (rows, cols) = f32_of(&qkv)?;
    let heads = Type::F32(rows, d.v_heads);
    let whole = d.k_heads > 0 && d.v_heads > 0 && d.v_heads % d.k_heads == 0 && d.k_dim > 0 && d.v_dim > 0;
    if !whole || cols != d.qkv_cols() || a != heads || b != heads || rows != Rows::Tokens {
        return Err(format!("{d:?} on {qkv}, {a} and {b}"));
    }
    weight_shape(g, d.decay, &[d.v_heads])?;
    weight_shape(g, d.dt_bias, &[d.v_heads])?;
    super::state_len(g, d.state, d.v_heads * d.k_dim * d.v_dim)?;
    Ok(vec![Type::F32(rows, d.v_heads * d.v_dim)])
}

/// ln(1 + e^x), without overflow.
pub fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

/// Reference code; moves the state on by the rows of `qkv`.
pub fn eval(qkv: &Array, a: &Array, b: &Array, d: &DeltaNet, state: &mut [f32], w: Weights<'_>) -> Array {
    let (decay, dt) = (w.vector(d.decay), w.vector(d.dt_bias));
    let mut y = Array::zeros(qkv.rows, d.v_heads * d.v_dim);
    let numbers = |s: &[f32]| s.iter().map(|x| f64::from(*x)).collect::<Vec<f64>>();
    let unit = |v: Vec<f64>, scale: f64| {
        let r = scale / (v.iter().map(|x| x * x).sum::<f64>() + EPS).sqrt();
        v.into_iter().map(|x| x * r).collect::<Vec<f64>>()
    };
    for h in 0..d.v_heads {
        let (q_at, k_at) = (d.key_head(h) * d.k_dim, (d.k_heads + d.key_head(h)) * d.k_dim);
        let v_at = 2 * d.k_heads * d.k_dim + h * d.v_dim;
        let head = &mut state[h * d.k_dim * d.v_dim..(h + 1) * d.k_dim * d.v_dim];
        let mut s = numbers(head);
        for t in 0..qkv.rows {
            let row = qkv.row(t);
            let q = unit(numbers(&row[q_at..q_at + d.k_dim]), 1.0 / (d.k_dim as f64).sqrt());
            let k = unit(numbers(&row[k_at..k_at + d.k_dim]), 1.0);
            let v = &row[v_at..v_at + d.v_dim];
            let keep = (f64::from(decay[h]) * softplus(f64::from(a.row(t)[h]) + f64::from(dt[h]))).exp();
            let beta = sigmoid(f64::from(b.row(t)[h]));
            s.iter_mut().for_each(|x| *x *= keep);
            for (j, vj) in v.iter().enumerate() {
                let known: f64 = (0..d.k_dim).map(|i| s[i * d.v_dim + j] * k[i]).sum();
                let delta = beta * (f64::from(*vj) - known);
                (0..d.k_dim).for_each(|i| s[i * d.v_dim + j] += k[i] * delta);
                let read: f64 = (0..d.k_dim).map(|i| s[i * d.v_dim + j] * q[i]).sum();
                y.row_mut(t)[h * d.v_dim + j] = read as f32;
            }
        }
        head.iter_mut().zip(&s).for_each(|(o, x)| *o = *x as f32);
    }
    y
}
