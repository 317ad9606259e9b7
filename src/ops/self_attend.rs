//! `self_attend`: the attention of [`super::attend`] on keys and values of the same rows instead of a cache, so that gradients
//! flow through them.
//!
//! Row t belongs to the sequence that begins at row `starts[t]`; it sees the rows of its sequence up to itself, within the
//! window or chunk. P = softmax(scale · q·k), with a sink in the denominator where there is one; o = P v; lse is the logarithm of
//! the denominator.
//!
//! Gradient: with D = Σ do · o a head and dS = P (do·v − D): `dq = scale Σ_j dS k_j`, `dk_j = scale Σ_t dS q_t` and
//! `dv_j = Σ_t P do_t`, both summed over the rows t that see j and over the query heads that share the head of j;
//! `dsink = −Σ_t e^(sink − lse) D` (Dao et al. 2022, *FlashAttention*, for the use of lse and D).
//!
//! Shapes: q `[T, heads·Dk]`, k `[T, kv_heads·Dk]`, v `[T, kv_heads·Dv]`, starts `[T, 1]` → o `[T, heads·Dv]`, lse `[T, heads]`.
//! Tolerance 1e-10.

use super::{Array, Real, Weights, arity, f32_of, linear::dot, math::log_sum_exp, u32_of, weight_shape};
use crate::ir::{Graph, SelfAttention, Type};
use std::ops::Range;

/// Shape rule.
///
/// # Errors
/// A sentence that says which operand does not fit, and why.
pub fn infer(a: &SelfAttention, inputs: &[Type], g: &Graph) -> Result<Vec<Type>, String> {
    let [q, k, v, starts] = arity(inputs)?;
    let ((rows, qc), (_, kc), (_, vc)) = (f32_of(&q)?, f32_of(&k)?, f32_of(&v)?);
    if a.kv_heads == 0 || a.heads == 0 || a.heads % a.kv_heads != 0 {
        return Err(format!("{} query heads on {} heads", a.heads, a.kv_heads));
    }
    if qc != a.heads * a.k_dim || kc != a.kv_heads * a.k_dim || vc != a.kv_heads * a.v_dim {
        return Err(format!("{q}, {k} and {v} for {a:?}"));
    }
    if u32_of(&starts)? != (rows, 1) {
        return Err(format!("starts of sequences as {starts}"));
    }
    if a.window == Some(0) || a.attention_chunk == Some(0) {
        return Err("a window or a chunk of 0 positions".into());
    }
    if let Some(s) = a.sinks {
        weight_shape(g, s, &[a.heads])?;
    }
    Ok(vec![Type::F32(rows, a.heads * a.v_dim), Type::F32(rows, a.heads)])
}

/// The operands of attention.
#[derive(Clone, Copy, Debug)]
pub struct Operands<'a, T> {
    /// Queries.
    pub q: &'a Array<T>,
    /// Keys.
    pub k: &'a Array<T>,
    /// Values.
    pub v: &'a Array<T>,
    /// For each row the first row of its sequence.
    pub starts: &'a [u32],
}

/// The rows that row `t` sees.
pub fn seen(a: &SelfAttention, starts: &[u32], t: usize) -> Range<usize> {
    let start = starts[t] as usize;
    start + a.first_seen(t - start)..t + 1
}

impl<T: Real> Operands<'_, T> {
    fn head(x: &Array<T>, r: usize, h: usize, n: usize) -> &[T] {
        &x.row(r)[h * n..(h + 1) * n]
    }

    fn score(&self, a: &SelfAttention, t: usize, j: usize, h: usize) -> f64 {
        let kv = h / (a.heads / a.kv_heads);
        dot(Self::head(self.q, t, h, a.k_dim), Self::head(self.k, j, kv, a.k_dim)) * a.scale
    }
}

/// Reference code: o and lse.
pub fn eval<T: Real>(x: Operands<'_, T>, a: &SelfAttention, w: Weights<'_, T>) -> [Array<T>; 2] {
    let (mut o, mut lse) = (Array::zeros(x.q.rows, a.heads * a.v_dim), Array::zeros(x.q.rows, a.heads));
    let sinks = a.sinks.map(|s| w.vector(s));
    for t in 0..x.q.rows {
        for h in 0..a.heads {
            let kv = h / (a.heads / a.kv_heads);
            let scores: Vec<f64> = seen(a, x.starts, t).map(|j| x.score(a, t, j, h)).collect();
            let sink = sinks.as_ref().map(|s| s[h].get());
            let total = log_sum_exp(scores.iter().copied().chain(sink));
            for c in 0..a.v_dim {
                let pairs = scores.iter().zip(seen(a, x.starts, t));
                let sum: f64 = pairs.map(|(s, j)| (s - total).exp() * x.v.row(j)[kv * a.v_dim + c].get()).sum();
                o.row_mut(t)[h * a.v_dim + c] = T::of(sum);
            }
            lse.row_mut(t)[h] = T::of(total);
        }
    }
    [o, lse]
}

/// Reference code of the gradients by q, k and v.
pub fn grad<T: Real>(
    x: Operands<'_, T>,
    o: &Array<T>,
    lse: &Array<T>,
    d: &Array<T>,
    a: &SelfAttention,
) -> [Array<T>; 3] {
    let zeros = |like: &Array<T>| Array::<f64>::zeros(like.rows, like.cols);
    let (mut dq, mut dk, mut dv) = (zeros(x.q), zeros(x.k), zeros(x.v));
    for t in 0..x.q.rows {
        for h in 0..a.heads {
            let (kv, vd, kd) = (h / (a.heads / a.kv_heads), a.v_dim, a.k_dim);
            let dout = Operands::head(d, t, h, vd);
            let mean = dot(dout, Operands::head(o, t, h, vd));
            for j in seen(a, x.starts, t) {
                let p = (x.score(a, t, j, h) - lse.row(t)[h].get()).exp();
                let ds = p * (dot(dout, Operands::head(x.v, j, kv, vd)) - mean) * a.scale;
                for c in 0..kd {
                    dq.row_mut(t)[h * kd + c] += ds * x.k.row(j)[kv * kd + c].get();
                    dk.row_mut(j)[kv * kd + c] += ds * x.q.row(t)[h * kd + c].get();
                }
                for (c, d) in dout.iter().enumerate() {
                    dv.row_mut(j)[kv * vd + c] += p * d.get();
                }
            }
        }
    }
    let rounded =
        |x: Array<f64>| Array { rows: x.rows, cols: x.cols, data: x.data.iter().map(|v| T::of(*v)).collect() };
    [rounded(dq), rounded(dk), rounded(dv)]
}

/// Reference code of the gradient by the sinks.
pub fn grad_sinks<T: Real>(sinks: &[T], o: &Array<T>, lse: &Array<T>, d: &Array<T>) -> Vec<f64> {
    let vd = o.cols / sinks.len().max(1);
    let head = |h: usize| -> f64 {
        let row = |t: usize| {
            let mean = dot(Operands::head(d, t, h, vd), Operands::head(o, t, h, vd));
            -(sinks[h].get() - lse.row(t)[h].get()).exp() * mean
        };
        (0..o.rows).map(row).sum()
    };
    (0..sinks.len()).map(head).collect()
}
