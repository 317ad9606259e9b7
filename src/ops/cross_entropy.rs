//! `cross_entropy`: the negative log-likelihood of each row's target, `nll[r] = ln Σ_v e^(logits[r, v]) − logits[r, targets[r]]`.
//!
//! Shapes: logits `[R, V]`, targets `[R, 1]` → nll `[R, 1]`, and lse `[R, 1]`, the logarithm of the sum, for the gradient:
//! `dlogits[r, v] = (e^(logits[r, v] − lse[r]) − [v = targets[r]]) · dnll[r]`. How rows count (masks, means) is the graph's matter:
//! dnll carries it. Tolerance 1e-10.

use super::{Array, Real, arity, f32_of, math::rows_log_sum_exp, u32_of};
use crate::ir::Type;

/// Shape rule.
///
/// # Errors
/// A sentence that says which operand does not fit, and why.
pub fn infer(inputs: &[Type]) -> Result<Vec<Type>, String> {
    let [logits, targets] = arity(inputs)?;
    let ((rows, _), (other, cols)) = (f32_of(&logits)?, u32_of(&targets)?);
    if rows != other || cols != 1 {
        return Err(format!("targets {targets} of {logits}"));
    }
    Ok(vec![Type::F32(rows, 1), Type::F32(rows, 1)])
}

/// Reference code: nll and lse. Targets are in range.
pub fn eval<T: Real>(logits: &Array<T>, targets: &[u32]) -> [Array<T>; 2] {
    let lse = rows_log_sum_exp(logits);
    let mut nll = lse.clone();
    for (r, id) in targets.iter().enumerate() {
        // From the logits and not from the rounded lse, so that a likely target keeps its digits.
        let target = logits.row(r)[*id as usize].get();
        let sum: f64 = logits.row(r).iter().map(|v| (v.get() - target).exp()).sum();
        nll.data[r] = T::of(if sum.is_finite() { sum.ln() } else { lse.data[r].get() - target });
    }
    [nll, lse]
}

/// Reference code of the gradient.
pub fn grad<T: Real>(logits: &Array<T>, targets: &[u32], lse: &Array<T>, dnll: &Array<T>) -> Array<T> {
    let mut d = logits.clone();
    for (r, id) in targets.iter().enumerate() {
        let (lse, by) = (lse.data[r].get(), dnll.data[r].get());
        for (v, x) in d.row_mut(r).iter_mut().enumerate() {
            let hit = f64::from(u8::from(v == *id as usize));
            *x = T::of(((x.get() - lse).exp() - hit) * by);
        }
    }
    d
}
