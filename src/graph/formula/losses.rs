//! Losses of a model's results.

use super::Builder;
use crate::{
    error::Result,
    ir::{Function, Math, Op, ValueId},
};

/// The mean of `(x − target)²` over all numbers, `[1, 1]`.
///
/// # Errors
/// [`crate::Error::Graph`] for operands of different shapes.
pub fn mean_square(b: &mut Builder, x: ValueId, target: ValueId) -> Result<ValueId> {
    let d = b.minus(x, target)?;
    let square = b.apply(Function::Square, d)?;
    b.mean_all(square)
}

/// `normaliser · Σ_t weights[t] · nll[t]`, `[1, 1]`: cross entropy of logits `[T, V]` against targets `[T, 1]`, where each row counts as
/// `weights` `[T, 1]` says. The normaliser `[1, 1]` is 1 / Σ weights of the whole batch; without one the weights' own sum divides.
/// (Averaging the means of micro-batches with different numbers of tokens is a known mistake.)
///
/// # Errors
/// [`crate::Error::Graph`] for operands that do not fit.
pub fn cross_entropy(
    b: &mut Builder,
    logits: ValueId,
    targets: ValueId,
    weights: ValueId,
    normaliser: Option<ValueId>,
) -> Result<ValueId> {
    let nll = b.add(Op::Math(Math::CrossEntropy), &[logits, targets])?[0];
    let weighted = b.times(nll, weights)?;
    let sum = b.sum_rows(weighted)?;
    match normaliser {
        Some(n) => b.times(sum, n),
        None => {
            let all = b.sum_rows(weights)?;
            b.over(sum, all)
        }
    }
}

/// What the competitive loss is made of.
#[derive(Clone, Copy, Debug)]
pub struct Competitive {
    /// Of each row, `[T, 1]`.
    pub rows: ValueId,
    /// The mean over rows, `[1, 1]`.
    pub mean: ValueId,
}

/// `−ln Σ_i p_i exp(−|y − E_i|² / 2)` with p = softmax(logits), by a logarithm of a sum (Jacobs et al. 1991, *Adaptive mixtures of local
/// experts*). Logits `[T, E]`, results of all experts `[T, E·n]`, target `[T, n]`.
///
/// # Errors
/// [`crate::Error::Graph`] for operands that do not fit.
pub fn competitive(b: &mut Builder, logits: ValueId, experts: ValueId, target: ValueId) -> Result<Competitive> {
    let count = b.graph().cols(logits);
    let targets = b.math(Math::RepeatSlots { slots: count }, &[target])?; // [T, E·n]
    let d = b.minus(targets, experts)?;
    let distance = b.math(Math::SlotDots { slots: count }, &[d, d])?; // [T, E]
    let lse = b.math(Math::LogSumExp, &[logits])?; // [T, 1]
    let log_p = b.minus(logits, lse)?;
    let half = b.scaled(distance, -0.5)?;
    let joint = b.plus(log_p, half)?;
    let likelihood = b.math(Math::LogSumExp, &[joint])?; // [T, 1]
    let rows = b.scaled(likelihood, -1.0)?;
    Ok(Competitive { rows, mean: b.mean_rows(rows)? })
}
