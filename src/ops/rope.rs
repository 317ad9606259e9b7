//! `rope`: rotary position embedding. For a pair (a, b) of columns with frequency f and a row at position p:
//! `a' = s (a cos pf − b sin pf)`, `b' = s (a sin pf + b cos pf)`.
//!
//! Source: Su et al. 2021, *RoFormer*. Which columns pair up is [`crate::ir::RopePairs`]; scalings of the frequencies
//! (linear, NTK, YaRN, Llama 3) are applied by the model room when it makes `inv_freq`, so this op knows none of them.
//! Columns beyond `dims` pass through. With a [`crate::ir::Temperature`] s grows with the position; without frequencies (all
//! 0) that is all that the op does. Where a rope has two sets of frequencies, backends take
//! [`crate::ir::Rope::for_context`]. Shapes: x `[T, heads·D]` → the same; row t is at position P + t.
//!
//! In training (`rotate`) positions are those within a sequence, angles are in f64, and the gradient is the rotation back with the
//! same scale.
//!
//! Tolerance 1e-10. The angle `p·f` is rounded to f32, as other implementations do; its sine and cosine must be as exact
//! as f32 allows (a GPU's own `sin` is not, for large angles).

use super::{Array, Real, arity, f32_of};
use crate::ir::{Rope, RopePairs, Rotation, Type};

/// Shape rule.
///
/// # Errors
/// A sentence that says which operand does not fit, and why.
pub fn infer(r: &Rope, inputs: &[Type]) -> Result<Vec<Type>, String> {
    let [x] = arity(inputs)?;
    let (_, cols) = f32_of(&x)?;
    if r.head_dim == 0 || cols % r.head_dim != 0 {
        return Err(format!("heads of {} on {cols} columns", r.head_dim));
    }
    let long = r.long.as_ref().map_or(r.inv_freq.len(), |l| l.inv_freq.len());
    if r.dims % 2 != 0 || r.dims > r.head_dim || r.inv_freq.len() * 2 != r.dims || long * 2 != r.dims {
        return Err(format!("{} rotary columns of {}, {} frequencies", r.dims, r.head_dim, r.inv_freq.len()));
    }
    Ok(vec![x])
}

/// Cosine and sine of pair `i` at position `pos`, times the rope's scale: what every backend puts in its tables.
pub fn cos_sin(r: &Rope, pos: usize, i: usize) -> (f32, f32) {
    let angle = f64::from(pos as f32 * r.inv_freq[i]);
    let s = f64::from(r.scale) * r.temperature.map_or(1.0, |t| t.at(pos));
    ((angle.cos() * s) as f32, (angle.sin() * s) as f32)
}

/// The two columns of pair `i` within a head.
pub fn pair(r: &Rope, i: usize) -> (usize, usize) {
    columns(r.pairs, r.dims, i)
}

fn columns(pairs: RopePairs, dims: usize, i: usize) -> (usize, usize) {
    match pairs {
        RopePairs::Interleaved => (2 * i, 2 * i + 1),
        RopePairs::Halves => (i, i + dims / 2),
    }
}

/// Reference code; `past` is P.
pub fn eval<T: Real>(x: &Array<T>, r: &Rope, past: usize) -> Array<T> {
    let mut out = x.clone();
    for t in 0..x.rows {
        for head in out.row_mut(t).chunks_mut(r.head_dim) {
            for i in 0..r.dims / 2 {
                let (cos, sin) = cos_sin(r, past + t, i);
                let (ia, ib) = pair(r, i);
                let (a, b) = (head[ia].get(), head[ib].get());
                head[ia] = T::of(a * f64::from(cos) - b * f64::from(sin));
                head[ib] = T::of(a * f64::from(sin) + b * f64::from(cos));
            }
        }
    }
    out
}

/// Shape rule of `rotate`.
///
/// # Errors
/// A sentence that says which operand does not fit, and why.
pub fn infer_rotate(r: &Rotation, inputs: &[Type]) -> Result<Vec<Type>, String> {
    let [x, starts] = arity(inputs)?;
    let (rows, cols) = f32_of(&x)?;
    if super::u32_of(&starts)? != (rows, 1) {
        return Err(format!("starts of sequences as {starts}"));
    }
    if r.head_dim == 0 || cols % r.head_dim != 0 || r.dims > r.head_dim || r.freq.len() * 2 != r.dims {
        return Err(format!("{} rotary columns in heads of {} on {cols} columns", r.dims, r.head_dim));
    }
    Ok(vec![x])
}

/// Reference code of `rotate`.
pub fn rotate<T: Real>(x: &Array<T>, starts: &[u32], r: &Rotation) -> Array<T> {
    let mut out = x.clone();
    for (t, start) in starts.iter().enumerate() {
        let at = t - *start as usize;
        let (position, scale) = (at as f64, r.scale * r.temperature.map_or(1.0, |t| t.at(at)));
        let angles: Vec<(f64, f64)> = r.freq.iter().map(|f| (position * f).sin_cos()).collect();
        for head in out.row_mut(t).chunks_mut(r.head_dim) {
            for (i, (sin, cos)) in angles.iter().enumerate() {
                let sin = if r.inverse { -sin } else { *sin };
                let (ia, ib) = columns(r.pairs, r.dims, i);
                let (a, b) = (head[ia].get(), head[ib].get());
                head[ia] = T::of(scale * (a * cos - b * sin));
                head[ib] = T::of(scale * (a * sin + b * cos));
            }
        }
    }
    out
}
