//! Losses that keep routers balanced and logits small, and the update of selection biases that needs no loss.
//!
//! Losses are of all rows, or of those that count.

use super::Builder;
use crate::{
    error::{Error, Result},
    ir::{Arithmetic, Function, Math, ValueId},
};

/// Rows that count in a loss, and others that do not: those of padding.
#[derive(Clone, Copy, Debug)]
pub struct Counted {
    /// `[T, 1]`: 1 for a row that counts, 0 for another.
    mask: ValueId,
    /// The same over the number of rows that count.
    part: ValueId,
}

impl Counted {
    /// Of a mask `[T, 1]`.
    ///
    /// # Errors
    /// [`Error::Graph`].
    pub fn new(b: &mut Builder, mask: ValueId) -> Result<Counted> {
        let (all, one) = (b.sum_rows(mask)?, b.math(Math::Constant { value: 1.0, cols: 1 }, &[])?);
        // Without a row that counts all means are 0.
        let all = b.math(Math::Binary(Arithmetic::Max), &[all, one])?;
        Ok(Counted { mask, part: b.over(mask, all)? })
    }
}

/// The sum over rows of `[T, c]`, `[1, c]`.
pub(super) fn sum_of_rows(b: &mut Builder, x: ValueId, rows: Option<Counted>) -> Result<ValueId> {
    let counted = match rows {
        Some(rows) => b.times(x, rows.mask)?,
        None => x,
    };
    b.sum_rows(counted)
}

/// The mean over rows of `[T, c]`, `[1, c]`.
fn mean_of_rows(b: &mut Builder, x: ValueId, rows: Option<Counted>) -> Result<ValueId> {
    let Some(rows) = rows else { return b.mean_rows(x) };
    let parts = b.times(x, rows.part)?;
    b.sum_rows(parts)
}

/// `E · Σ_e share_e · mean_p_e` of probabilities `[T, E]` and the shares of experts `[1, E]`.
fn products(b: &mut Builder, share: ValueId, mean_p: ValueId, experts: usize) -> Result<ValueId> {
    let product = b.times(share, mean_p)?;
    let sum = b.sum_cols(product)?;
    b.scaled(sum, experts as f64)
}

/// How many choices each row gives to each expert, `[T, E]`; without gradient.
fn chosen(b: &mut Builder, probs: ValueId, used: usize) -> Result<ValueId> {
    let experts = b.graph().cols(probs);
    let ids = b.math(Math::TopK { used, groups: 1 }, &[probs])?;
    b.math(Math::MultiHot { experts }, &[ids])
}

/// `switch_load_balancing_loss` as it is often copied, on logits `[T, E]`: shares of the two best experts, whatever the layer's k, counted apart and
/// summed. Even routing gives 2.
///
/// # Errors
/// [`Error::Invalid`] for fewer than two experts.
pub fn switch_balance(b: &mut Builder, logits: ValueId, rows: Option<Counted>) -> Result<ValueId> {
    let experts = b.graph().cols(logits);
    if experts < 2 {
        return Err(Error::Invalid(format!("a balance of the two best of {experts} experts")));
    }
    layers_balance(b, &[logits], 2, rows)
}

/// The mean of `logits²` over rows and experts: the z-loss that is copied with [`switch_balance`].
///
/// # Errors
/// [`Error::Graph`].
pub fn mean_square_z(b: &mut Builder, logits: ValueId, rows: Option<Counted>) -> Result<ValueId> {
    let square = b.apply(Function::Square, logits)?;
    let of_rows = b.mean_cols(square)?;
    mean_of_rows(b, of_rows, rows)
}

/// The mean of `logsumexp(logits)²` over the rows of all layers (Zoph et al. 2022, *ST-MoE*).
///
/// # Errors
/// [`Error::Invalid`] without layers.
pub fn log_sum_exp_z(b: &mut Builder, layers: &[ValueId], rows: Option<Counted>) -> Result<ValueId> {
    let mut terms = vec![];
    for logits in layers {
        let lse = b.math(Math::LogSumExp, &[*logits])?;
        let square = b.apply(Function::Square, lse)?;
        terms.push((1.0 / layers.len() as f64, mean_of_rows(b, square, rows)?));
    }
    some_layers(layers)?;
    b.weighted_sum(&terms)
}

fn some_layers(layers: &[ValueId]) -> Result<()> {
    if layers.is_empty() { Err(Error::Invalid("a balance of no layers".into())) } else { Ok(()) }
}

/// A loss of usage on gates `[T, E]`: `E · Σ usage_e · mean gate_e` with usage the share of rows with a gate above 0. On a dense
/// softmax that is the constant E, without gradient; on sparse gates it works.
///
/// # Errors
/// [`Error::Graph`].
pub fn usage_balance(b: &mut Builder, gates: ValueId, rows: Option<Counted>) -> Result<ValueId> {
    let experts = b.graph().cols(gates);
    let used = b.apply(Function::Step, gates)?;
    let (usage, mean) = (mean_of_rows(b, used, rows)?, mean_of_rows(b, gates, rows)?);
    products(b, usage, mean, experts)
}

/// Hugging Face's `load_balancing_loss_func` on the logits `[T, E]` of all layers: shares of the k choices and mean probabilities over layers
/// and rows, `E · Σ share · mean`; the optimum is k.
///
/// # Errors
/// [`Error::Invalid`] without layers.
pub fn layers_balance(b: &mut Builder, layers: &[ValueId], used: usize, rows: Option<Counted>) -> Result<ValueId> {
    some_layers(layers)?;
    let experts = b.graph().cols(layers[0]);
    let (mut hots, mut probs) = (vec![], vec![]);
    for logits in layers {
        let p = b.softmax(*logits)?;
        let hot = chosen(b, p, used)?;
        let weight = 1.0 / layers.len() as f64;
        hots.push((weight, hot));
        probs.push((weight, p));
    }
    // Layers first, then rows: a sum over rows costs as much for all layers as for one.
    let (hot, p) = (b.weighted_sum(&hots)?, b.weighted_sum(&probs)?);
    let (share, mean) = (mean_of_rows(b, hot, rows)?, mean_of_rows(b, p, rows)?);
    products(b, share, mean, experts)
}

/// The balance of each layer by itself, averaged over layers; the optimum is k (Fedus et al. 2021 with k = 1). MegaBlocks divides by
/// k too: scale it.
///
/// # Errors
/// As [`layers_balance`].
pub fn mean_of_layers_balance(
    b: &mut Builder,
    layers: &[ValueId],
    used: usize,
    rows: Option<Counted>,
) -> Result<ValueId> {
    some_layers(layers)?;
    let mut terms = vec![];
    for logits in layers {
        terms.push((1.0 / layers.len() as f64, layers_balance(b, &[*logits], used, rows)?));
    }
    b.weighted_sum(&terms)
}

/// `factor · Σ_e c_e · mean p_e` with c the shares of first choices: GShard's `l_aux` has the factor 1/E, DeepSpeed's E.
///
/// # Errors
/// [`Error::Graph`].
pub fn gshard_balance(b: &mut Builder, probs: ValueId, factor: f64, rows: Option<Counted>) -> Result<ValueId> {
    let hot = chosen(b, probs, 1)?;
    let (share, mean) = (mean_of_rows(b, hot, rows)?, mean_of_rows(b, probs, rows)?);
    let product = b.times(share, mean)?;
    let sum = b.sum_cols(product)?;
    b.scaled(sum, factor)
}

/// What a variance is divided by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Variance {
    /// The number of values.
    #[default]
    Population,
    /// One less.
    Sample,
}

/// `(σ / μ)²` of `[1, E]`: the loss of importance (gate values summed over rows) and of load (Shazeer et al. 2017). The paper does not
/// say which variance; copies add `eps` to μ².
///
/// # Errors
/// [`Error::Invalid`] for the sample variance of one value.
pub fn coefficient_of_variation(b: &mut Builder, x: ValueId, variance: Variance, eps: f64) -> Result<ValueId> {
    let n = b.graph().cols(x) as f64;
    let by = match variance {
        Variance::Population => n,
        Variance::Sample => n - 1.0,
    };
    if by < 1.0 {
        return Err(Error::Invalid("the sample variance of one expert".into()));
    }
    let mean = b.mean_cols(x)?;
    let d = b.minus(x, mean)?;
    let square = b.apply(Function::Square, d)?;
    let sum = b.sum_cols(square)?;
    let var = b.scaled(sum, 1.0 / by)?;
    let below = b.apply(Function::Square, mean)?;
    let below = b.shifted(below, eps)?;
    b.over(var, below)
}

/// `Load(e) = Σ_t Φ((clean − threshold) / std)`, `[1, E]`: the probability that an expert is chosen if its noise is drawn again. The
/// threshold is the (k + 1)-th largest noisy logit for chosen experts and the k-th for others; gradient flows through it. With
/// k = E there is none: every expert's load is the number of rows.
///
/// # Errors
/// [`Error::Graph`] for operands of different shapes.
pub fn smooth_load(
    b: &mut Builder,
    [clean, noisy, std]: [ValueId; 3],
    used: usize,
    rows: Option<Counted>,
) -> Result<ValueId> {
    let experts = b.graph().cols(clean);
    if used >= experts {
        let ids = b.math(Math::TopK { used: experts, groups: 1 }, &[noisy])?;
        let all = b.math(Math::MultiHot { experts }, &[ids])?;
        return sum_of_rows(b, all, rows);
    }
    let ids = b.math(Math::TopK { used: used + 1, groups: 1 }, &[noisy])?;
    let ordered = b.math(Math::GatherSlots, &[noisy, ids])?; // [T, k + 1]
    let inside = b.math(Math::Columns { first: used, count: 1 }, &[ordered])?;
    let outside = b.math(Math::Columns { first: used - 1, count: 1 }, &[ordered])?;
    let best = b.math(Math::IdColumns { first: 0, count: used }, &[ids])?;
    let is_chosen = b.math(Math::MultiHot { experts }, &[best])?;
    let is_not = b.math(Math::Affine { factor: -1.0, shift: 1.0 }, &[is_chosen])?;
    let (a, c) = (b.times(is_chosen, inside)?, b.times(is_not, outside)?);
    let threshold = b.plus(a, c)?;
    let d = b.minus(clean, threshold)?;
    let d = b.over(d, std)?;
    let p = b.apply(Function::NormalCdf, d)?;
    sum_of_rows(b, p, rows)
}

/// `b_e += rate · sign(mean load − load_e)`: the balance of DeepSeek-V3 without a loss; sign(0) = 0. `loads` are the tokens of each expert
/// in the step.
pub fn bias_update(biases: &mut [f64], loads: &[f64], rate: f64) {
    let mean = loads.iter().sum::<f64>() / loads.len().max(1) as f64;
    for (b, load) in biases.iter_mut().zip(loads) {
        let d = mean - load;
        *b += if d == 0.0 { 0.0 } else { rate * d.signum() };
    }
}
