//! `expert_linear`, `expert_combine` and `scale_expert_inputs`: the routed half of a Mixture-of-Experts layer (Shazeer et al. 2017).
//!
//! `expert_linear`: slot j of token t through the matrix of expert `ids[t, j]`:
//! `y[t, j, :] = W[ids[t, j]] · x[t, j, :] + b[ids[t, j]]`, where x has one row a token (the same for all slots) or one a
//! slot, and b may be missing.
//! `expert_combine`: `y[t, :] = Σ_j weights[t, j] · y[t, j, :]`, in slot order.
//! `local_ids`: `y[t, j] = ids[t, j] - first`, or `count` where that expert is not among the `count` that are here: for experts that several
//! processes share. `expert_linear` leaves the slots of such ids as they are.
//! `scale_expert_inputs`: `y[t, j, :] = weights[t, j] · x[t, :]`, and ones in the weights' place: for routers whose weights are for
//! what goes into the experts and not for what comes out (Llama 4, Hugging Face `modeling_llama4`, `Llama4TextMoe`).
//!
//! `expert_sum`: `y[t, :] = Σ_j M[ids[t, j]] · x[t, j, :]` with M = W or Wᵀ: a sum over slots made by the product in front of it, so that
//! no result of a slot is kept. A fast backend may add the slots of a token in the order of their experts.
//!
//! Gradients: `expert_linear`: `dx[t, j, :] = W[ids[t, j]]ᵀ · dy[t, j, :]`, summed over the slots where x was shared; `dW[e] = Σ dy xᵀ` and
//! `db[e] = Σ dy` over the slots of expert e, tokens and slots in ascending order; dy may have one row for all slots of a token.
//! `expert_combine` and `scale_expert_inputs`: `scale_slots` and `slot_dots` of [`super::slots`].
//!
//! Shapes: x `[T, in]` or `[T, k·in]`, W `[E, out, in]`, b `[E, out]`, ids `[T, k]` → `[T, k·out]`; then `[T, k·n]`,
//! `[T, k]` → `[T, n]`. `scale_expert_inputs`: `[T, n]`, `[T, k]` → `[T, k·n]`, `[T, k]`.
//! Tolerance as [`super::linear`].

use super::{
    Array, Real, Weights, arity, experts_shape, f32_of,
    linear::{dot, seen},
    u32_of, weight_shape,
};
use crate::ir::{Graph, Linear, Rows, Type, WeightId};

/// Shape rule of `expert_linear`.
///
/// # Errors
/// A sentence that says which operand does not fit, and why.
pub fn infer_linear(l: &Linear, inputs: &[Type], g: &Graph) -> Result<Vec<Type>, String> {
    let [x, ids] = arity(inputs)?;
    let (rows, cols) = f32_of(&x)?;
    let (_, k) = u32_of(&ids)?;
    let [experts, out, inp] = experts_shape(g, l.weight)?;
    if cols != inp && cols != k * inp {
        return Err(format!("experts of {inp} inputs on {cols} columns in {k} slots"));
    }
    if let Some(b) = l.bias {
        weight_shape(g, b, &[experts, out])?;
    }
    Ok(vec![Type::F32(rows, k * out)])
}

/// Shape rule of `expert_combine`.
///
/// # Errors
/// A sentence that says which operand does not fit, and why.
pub fn infer_combine(inputs: &[Type]) -> Result<Vec<Type>, String> {
    let [y, weights] = arity(inputs)?;
    let ((rows, cols), (_, k)) = (f32_of(&y)?, f32_of(&weights)?);
    if k == 0 || cols % k != 0 {
        return Err(format!("{cols} columns in {k} slots"));
    }
    Ok(vec![Type::F32(rows, cols / k)])
}

/// Shape rule of `host_experts`: one vector of so many columns for each token, from values with a row a token.
///
/// # Errors
/// A sentence that says which operand does not fit, and why.
pub fn infer_host(cols: usize, inputs: &[Type]) -> Result<Vec<Type>, String> {
    let of_tokens = |t: &Type| matches!(t, Type::F32(Rows::Tokens, _) | Type::U32(Rows::Tokens, _));
    match inputs.iter().find(|t| !of_tokens(t)) {
        None => Ok(vec![Type::F32(Rows::Tokens, cols)]),
        Some(t) => Err(format!("{t} where rows of tokens are expected")),
    }
}

/// Shape rule of `local_ids`.
///
/// # Errors
/// A sentence that says which operand does not fit, and why.
pub fn infer_local(count: u32, inputs: &[Type]) -> Result<Vec<Type>, String> {
    let [ids] = arity(inputs)?;
    let (rows, k) = u32_of(&ids)?;
    if count == 0 { Err("no experts".into()) } else { Ok(vec![Type::U32(rows, k)]) }
}

/// Shape rule of `scale_expert_inputs`.
///
/// # Errors
/// A sentence that says which operand does not fit, and why.
pub fn infer_scale_inputs(inputs: &[Type]) -> Result<Vec<Type>, String> {
    let [x, weights] = arity(inputs)?;
    let ((rows, n), (other, k)) = (f32_of(&x)?, f32_of(&weights)?);
    if rows != other || n == 0 || k == 0 {
        return Err(format!("{k} weights for {n} columns"));
    }
    Ok(vec![Type::F32(rows, k * n), Type::F32(rows, k)])
}

/// Reference code of `scale_expert_inputs`.
pub fn eval_scale_inputs<T: Real>(x: &Array<T>, weights: &Array<T>) -> [Array<T>; 2] {
    let mut y = Array::zeros(x.rows, weights.cols * x.cols);
    for t in 0..x.rows {
        for (slot, w) in y.row_mut(t).chunks_exact_mut(x.cols).zip(weights.row(t)) {
            slot.iter_mut().zip(x.row(t)).for_each(|(y, x)| *y = T::of(w.get() * x.get()));
        }
    }
    [y, Array { data: vec![T::of(1.0); weights.data.len()], ..*weights }]
}

/// Reference code of `local_ids`.
pub fn eval_local(ids: &[u32], first: u32, count: u32) -> Vec<u32> {
    ids.iter().map(|id| id.wrapping_sub(first).min(count)).collect()
}

/// Reference code of `expert_linear`; `ids` is `[T · k]`. Slots of experts that are not here are zeros.
pub fn eval_linear<T: Real>(x: &Array<T>, ids: &[u32], l: &Linear, w: Weights<'_, T>) -> Array<T> {
    let shape = w.tensor(l.weight).shape();
    let (out, inp, k) = (shape[1], shape[2], ids.len() / x.rows.max(1));
    let mut y = Array::zeros(x.rows, k * out);
    let x = &seen(x, l.weight, w);
    let here = |id: &u32| (*id as usize) < shape[0];
    for (slot, expert) in ids.iter().enumerate().filter(|(_, id)| here(id)) {
        let (t, j) = (slot / k, slot % k);
        let from = if x.cols == inp { 0 } else { j * inp };
        let bias = l.bias.map(|b| w.row(b, *expert as usize));
        for o in 0..out {
            let row = w.row(l.weight, *expert as usize * out + o);
            let b = bias.as_ref().map_or(0.0, |b| b[o].get());
            y.row_mut(t)[j * out + o] = T::of(dot(&row, &x.row(t)[from..from + inp]) + b);
        }
    }
    y
}

/// Reference code of `expert_combine`.
pub fn eval_combine<T: Real>(y: &Array<T>, weights: &Array<T>) -> Array<T> {
    let n = y.cols / weights.cols;
    let mut out = Array::zeros(y.rows, n);
    for t in 0..y.rows {
        for c in 0..n {
            let sum: f64 = (weights.row(t).iter().enumerate()).map(|(j, w)| w.get() * y.row(t)[j * n + c].get()).sum();
            out.row_mut(t)[c] = T::of(sum);
        }
    }
    out
}

/// The row of a slot, of numbers with a row a token or a slot of `n` columns.
pub fn row_of<T>(x: &Array<T>, slot: usize, n: usize, k: usize) -> &[T] {
    // Where there is one row a token, all slots read that.
    if x.cols == n { &x.data[slot / k * n..][..n] } else { &x.data[slot * n..][..n] }
}

/// Reference code of `expert_sum`.
pub fn eval_sum<T: Real>(x: &Array<T>, ids: &[u32], weight: WeightId, transposed: bool, w: Weights<'_, T>) -> Array<T> {
    let slots =
        if transposed { grad_input(x, ids, weight, w) } else { eval_linear(x, ids, &Linear { weight, bias: None }, w) };
    super::slots::sum(&slots, ids.len() / x.rows.max(1))
}

/// Reference code of the gradient of `expert_linear` by x, a row a slot.
pub fn grad_input<T: Real>(dy: &Array<T>, ids: &[u32], weight: WeightId, w: Weights<'_, T>) -> Array<T> {
    let shape = w.tensor(weight).shape();
    let (out, inp, k) = (shape[1], shape[2], ids.len() / dy.rows.max(1));
    let mut dx = Array::zeros(dy.rows, k * inp);
    for (slot, expert) in ids.iter().enumerate() {
        let mut sums = vec![0.0; inp];
        for o in 0..out {
            let d = row_of(dy, slot, out, k)[o].get();
            let row = w.row(weight, *expert as usize * out + o);
            sums.iter_mut().zip(row).for_each(|(s, w)| *s += d * w.get());
        }
        dx.data[slot * inp..(slot + 1) * inp].iter_mut().zip(sums).for_each(|(x, s)| *x = T::of(s));
    }
    dx
}

/// The slots of every expert, tokens and slots in ascending order.
pub fn by_expert(ids: &[u32], experts: usize) -> Vec<Vec<usize>> {
    let mut slots = vec![vec![]; experts];
    ids.iter().enumerate().for_each(|(slot, e)| slots[*e as usize].push(slot));
    slots
}

/// Reference code of the gradient of `expert_linear` by its matrices: adds to `into`, `[E, out, in]`.
pub fn grad_weight<T: Real>(x: &Array<T>, dy: &Array<T>, ids: &[u32], [e, out, inp]: [usize; 3], into: &mut [T]) {
    let k = ids.len() / x.rows.max(1);
    for (slots, matrix) in by_expert(ids, e).iter().zip(into.chunks_mut(out * inp)) {
        for (o, to) in matrix.chunks_mut(inp).enumerate() {
            let mut sums = vec![0.0; inp];
            for slot in slots {
                let d = row_of(dy, *slot, out, k)[o].get();
                sums.iter_mut().zip(row_of(x, *slot, inp, k)).for_each(|(s, x)| *s += d * x.get());
            }
            super::add_to(to, &sums);
        }
    }
}

/// Reference code of the gradient of `expert_linear` by its biases: adds to `into`, `[E, out]`.
pub fn grad_bias<T: Real>(dy: &Array<T>, ids: &[u32], [e, out]: [usize; 2], into: &mut [T]) {
    for (slots, to) in by_expert(ids, e).iter().zip(into.chunks_mut(out)) {
        let mut sums = vec![0.0; out];
        for slot in slots {
            sums.iter_mut().zip(&dy.data[slot * out..(slot + 1) * out]).for_each(|(s, d)| *s += d.get());
        }
        super::add_to(to, &sums);
    }
}
