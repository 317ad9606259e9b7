//! Routers whose experts have room for so many tokens.

use super::Builder;
use crate::{
    error::Result,
    ir::{Arithmetic, Capacity, Function, Math, ValueId},
};

/// The least sum that weights are divided by: the distance of 1 to the next number of f32, as DeepSpeed has it.
const LEAST_SUM: f64 = 1.0 / 8_388_608.0;

/// A choice with places.
#[derive(Clone, Copy, Debug)]
pub struct Placed {
    /// The chosen experts `[T, k]`.
    pub ids: ValueId,
    /// Their weights `[T, k]`; 0 where the expert was full. A token whose slots are all 0 passes by its residual alone.
    pub weights: ValueId,
    /// 1 where a slot stayed, `[T, k]`.
    pub keep: ValueId,
    /// Places `[T, k]`, −1 where dropped.
    pub places: ValueId,
    /// Probabilities of all experts `[T, E]`.
    pub probs: ValueId,
}

/// What GShard's top-2 router does about dropped and random second choices.
#[derive(Clone, Copy, Debug)]
pub enum Form {
    /// Weights are divided by the sum of those that stay (DeepSpeed's `top2gating`). The second choice is the largest logit but the first's;
    /// with Gumbel noise `[T, E]` it is drawn.
    Survivors(Option<ValueId>),
    /// Weights are p over the sum of both, before dropping (Lepikhin et al. 2020, algorithm 1). The second choice stays where `2 g₂` is above
    /// the uniform numbers `[T, 1]`; only then does it take a place.
    Paper(ValueId),
}

/// GShard's top-2 router on logits `[T, E]`.
///
/// # Errors
/// [`crate::Error::Graph`] for operands that do not fit.
pub fn top_two_capacity(b: &mut Builder, logits: ValueId, capacity: Capacity, form: Form) -> Result<Placed> {
    let experts = capacity.experts;
    let probs = b.softmax(logits)?;
    let ids = match form {
        Form::Survivors(Some(gumbel)) => second_by(b, logits, gumbel, experts)?,
        Form::Survivors(None) | Form::Paper(_) => b.math(Math::TopK { used: 2, groups: 1 }, &[logits])?,
    };
    let p = b.math(Math::GatherSlots, &[probs, ids])?; // [T, 2]
    let (weights, takes) = match form {
        Form::Survivors(_) => (p, p),
        Form::Paper(random) => random_second(b, p, random)?,
    };
    let placed = b.add(crate::ir::Op::Math(Math::Capacity(capacity)), &[ids, takes])?;
    let (keep, places) = (placed[0], placed[1]);
    let mut weights = b.times(weights, keep)?;
    if let Form::Survivors(_) = form {
        weights = over_sum(b, weights)?;
    }
    Ok(Placed { ids, weights, keep, places, probs })
}

/// The weights p `[T, 2]` over their sum, and what takes a place: first choices, and second ones with `2 g₂` above the uniform
/// numbers `[T, 1]`.
pub(in crate::graph) fn random_second(b: &mut Builder, p: ValueId, random: ValueId) -> Result<(ValueId, ValueId)> {
    let sum = b.sum_cols(p)?;
    let g = b.over(p, sum)?;
    let first = b.math(Math::Columns { first: 0, count: 1 }, &[g])?;
    let second = b.math(Math::Columns { first: 1, count: 1 }, &[g])?;
    let twice = b.scaled(second, 2.0)?;
    let above = b.minus(twice, random)?;
    let stays = b.apply(Function::Step, above)?;
    // First choices always take a place: g is above 0.
    let first = b.math(Math::PadColumns { before: 0, after: 1 }, &[first])?;
    let stays = b.math(Math::PadColumns { before: 1, after: 0 }, &[stays])?;
    Ok((g, b.plus(first, stays)?))
}

/// First choices by logits, second ones by logits and noise without the first.
fn second_by(b: &mut Builder, logits: ValueId, gumbel: ValueId, experts: usize) -> Result<ValueId> {
    let first = b.math(Math::TopK { used: 1, groups: 1 }, &[logits])?;
    let hot = b.math(Math::MultiHot { experts }, &[first])?;
    let noisy = b.plus(logits, gumbel)?;
    // So large that the first choice is first and the rest keeps its order.
    let lifted = b.scaled(hot, 1e6)?;
    let seek = b.plus(noisy, lifted)?;
    b.math(Math::TopK { used: 2, groups: 1 }, &[seek])
}

/// Weights `[T, k]` over their sum, or over the least sum where all are 0.
pub(in crate::graph) fn over_sum(b: &mut Builder, weights: ValueId) -> Result<ValueId> {
    let sum = b.sum_cols(weights)?;
    let least = b.math(Math::Constant { value: LEAST_SUM, cols: 1 }, &[])?;
    let sum = b.math(Math::Binary(Arithmetic::Max), &[sum, least])?;
    b.over(weights, sum)
}

/// The k best of a softmax over logits `[T, E]`, as many as the experts have room for; weights are the probabilities as they are (Switch
/// Transformer's with k = 1, whose router so has a gradient) or over the sum of those that stay.
///
/// # Errors
/// [`crate::Error::Graph`] for operands that do not fit.
pub fn top_k_capacity(
    b: &mut Builder,
    logits: ValueId,
    used: usize,
    capacity: Capacity,
    renormalise: bool,
) -> Result<Placed> {
    let probs = b.softmax(logits)?;
    let ids = b.math(Math::TopK { used, groups: 1 }, &[probs])?;
    let p = b.math(Math::GatherSlots, &[probs, ids])?;
    let placed = b.add(crate::ir::Op::Math(Math::Capacity(capacity)), &[ids, p])?;
    let (keep, places) = (placed[0], placed[1]);
    let mut weights = b.times(p, keep)?;
    if renormalise {
        weights = over_sum(b, weights)?;
    }
    Ok(Placed { ids, weights, keep, places, probs })
}
