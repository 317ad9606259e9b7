//! Routers as their sources train them.

use super::Builder;
use crate::{
    error::Result,
    ir::{Function, Math, Op, Router, ValueId},
};

/// What a router decided.
#[derive(Clone, Copy, Debug)]
pub struct Choice {
    /// The chosen experts `[T, k]`, largest first.
    pub ids: ValueId,
    /// Their weights `[T, k]`.
    pub weights: ValueId,
}

/// The choice of a router by its logits `[T, E]`: every variant of [`Router`]. With a softmax over the chosen and k = 1 the weight is 1 and no
/// gradient reaches the logits.
///
/// # Errors
/// [`crate::Error::Graph`] where router and logits do not fit.
pub fn top_k(b: &mut Builder, logits: ValueId, router: Router) -> Result<Choice> {
    let made = b.add(Op::Router(router), &[logits])?;
    Ok(Choice { ids: made[0], weights: made[1] })
}

/// The weights of a choice in their experts' columns, 0 elsewhere: sparse gates `[T, E]`.
///
/// # Errors
/// [`crate::Error::Graph`].
pub fn gates_of(b: &mut Builder, choice: Choice, experts: usize) -> Result<ValueId> {
    b.math(Math::ScatterSlots { experts }, &[choice.weights, choice.ids])
}

/// Noisy logits.
#[derive(Clone, Copy, Debug)]
pub struct Noisy {
    /// `clean + noise · std`, `[T, E]`.
    pub logits: ValueId,
    /// The noise's deviation, `[T, E]`.
    pub std: ValueId,
}

/// `clean + noise · std` with `std = factor · (softplus(scale) + eps)` (Shazeer et al. 2017). `clean` and `scale` are logits `[T, E]` of two
/// matrices; `noise` is standard normal: [`Math::Noise`] or an input. Gradient reaches both matrices.
///
/// # Errors
/// [`crate::Error::Graph`] for operands of different shapes.
pub fn noisy_logits(
    b: &mut Builder,
    clean: ValueId,
    scale: ValueId,
    noise: ValueId,
    (factor, eps): (f64, f64),
) -> Result<Noisy> {
    let soft = b.apply(Function::Softplus, scale)?;
    let std = b.math(Math::Affine { factor, shift: factor * eps }, &[soft])?;
    let added = b.times(noise, std)?;
    Ok(Noisy { logits: b.plus(clean, added)?, std })
}

/// A schedule from dense to sparse: how many experts a token uses in an epoch, counted from 0. All for 20 epochs, then one
/// less every 10 and at least two, from epoch 60 on `used`. (With 8 experts it falls from 5 to `used` at once.)
pub fn progressive_top_k(epoch: usize, experts: usize, used: usize) -> usize {
    match epoch {
        0..20 => experts,
        20..60 => experts.saturating_sub((epoch - 20) / 10).max(2),
        _ => used,
    }
}
