//! What a language model is trained for: cross entropy, and losses of its routers.

use super::{
    Builder, Variance, coefficient_of_variation, gshard_balance, layers_balance, log_sum_exp_z, mean_of_layers_balance,
    mean_square_z, smooth_load, sum_of_rows, switch_balance, usage_balance,
};
use crate::{
    error::{Error, Result},
    graph::{LOSS, RouterNode, counted_rows, routers},
    ir::{Arithmetic, Graph, Math, Node, Op, ValueId},
};

/// How routers are kept balanced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Balance {
    /// By nothing, or by selection biases.
    #[default]
    None,
    /// [`switch_balance`] of every layer, averaged.
    Switch,
    /// [`layers_balance`]: Hugging Face's, over all layers.
    Layers,
    /// [`mean_of_layers_balance`].
    MeanOfLayers,
    /// [`usage_balance`] of every layer's sparse gates, averaged.
    Usage,
    /// [`gshard_balance`] of every layer, averaged: with the factor 1/E of the paper, or E as DeepSpeed has it.
    Gshard {
        /// The factor 1/E.
        paper: bool,
    },
    /// [`coefficient_of_variation`] of the gates' sums (Shazeer et al. 2017), of every layer, averaged.
    Importance(Variance),
    /// The same plus that of [`smooth_load`], which needs [noise](crate::graph::RouterNoise) on the logits.
    ImportanceLoad(Variance),
}

/// How router logits are kept small.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SmallLogits {
    /// By nothing.
    #[default]
    None,
    /// [`log_sum_exp_z`].
    LogSumExp,
    /// [`mean_square_z`] of every layer, averaged.
    MeanSquare,
}

/// The terms of a language model's loss.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Objective {
    /// The balancing loss.
    pub balance: Balance,
    /// Its weight.
    pub balance_weight: f64,
    /// The z-loss.
    pub z: SmallLogits,
    /// Its weight.
    pub z_weight: f64,
}

/// Adds the loss to a graph that [`crate::graph::for_training`] made.
///
/// It reads ids `targets` `[T, 1]`, numbers `weights` `[T, 1]` (how each row counts), and the scalars `normaliser` (1 / Σ weights of the whole
/// batch, on the summed cross entropy) and `share` (the micro-batch's part of the batch's rows, on the routers' terms, which are
/// means over rows); where there are routers also `counted` `[T, 1]`, 1 for a token and 0 for padding, which counts neither in a router's
/// term nor in its loads. Outputs: `loss`, `loss.cross_entropy`, `loss.balance` and `loss.z` (both without weight and share), and for
/// each router `tokens_per_expert_<layer>` `[1, E]`, under a capacity those that stay, and `dropped_<layer>` `[1, 1]`, the others.
///
/// # Errors
/// [`Error::Graph`] without logits; [`Error::Invalid`] for a router's loss in a graph without routers.
pub fn language_model(graph: Graph, o: &Objective) -> Result<Graph> {
    let logits = graph.outputs.iter().find(|(n, _)| n == "logits").map(|(_, v)| *v);
    let logits = logits.ok_or_else(|| Error::Graph("a graph without an output `logits`".into()))?;
    let all = routers(&graph);
    let wanted = o.balance != Balance::None || o.z != SmallLogits::None;
    if wanted && all.is_empty() {
        return Err(Error::Invalid("a loss of routers for a model that has none".into()));
    }
    let mut b = Builder::resume(graph);
    b.set_layer(None);
    let targets = b.math(Math::Ids { name: "targets".into(), cols: 1 }, &[])?;
    let weights = b.one(Op::Input { name: "weights".into(), cols: 1 }, &[])?;
    let normaliser = scalar(&mut b, "normaliser")?;
    let ce = super::cross_entropy(&mut b, logits, targets, weights, Some(normaliser))?;
    b.output("loss.cross_entropy", ce);
    let mut terms = vec![];
    let mask = if all.is_empty() { None } else { Some(counted_rows(&mut b)?) };
    if let Some(balance) = balance(&mut b, o.balance, &all, mask)? {
        b.output("loss.balance", balance);
        terms.push((o.balance_weight, balance));
    }
    if let Some(z) = small_logits(&mut b, o.z, &all, mask)? {
        b.output("loss.z", z);
        terms.push((o.z_weight, z));
    }
    let mut loss = ce;
    if !terms.is_empty() {
        let (share, sum) = (scalar(&mut b, "share")?, b.weighted_sum(&terms)?);
        let part = b.times(sum, share)?;
        loss = b.plus(ce, part)?;
    }
    b.output(LOSS, loss);
    for (i, r) in all.iter().enumerate() {
        loads(&mut b, r, r.layer.map_or(i, |l| l as usize), mask)?;
    }
    Ok(b.finish())
}

/// The outputs that say how many tokens each expert of a layer takes, and how many slots found no room.
fn loads(b: &mut Builder, r: &RouterNode, layer: usize, mask: Option<ValueId>) -> Result<()> {
    let experts = r.router.experts;
    let hot = match r.keep {
        Some(keep) => b.math(Math::ScatterSlots { experts }, &[keep, r.ids])?,
        None => b.math(Math::MultiHot { experts }, &[r.ids])?,
    };
    let counts = sum_of_rows(b, hot, mask)?;
    b.output(format!("{TOKENS_PER_EXPERT}{layer}"), counts);
    if let Some(keep) = r.keep {
        let gone = b.math(Math::Affine { factor: -1.0, shift: 1.0 }, &[keep])?;
        let gone = b.sum_cols(gone)?;
        let gone = sum_of_rows(b, gone, mask)?;
        b.output(format!("{DROPPED}{layer}"), gone);
    }
    Ok(())
}

/// What the counts of tokens are called, before the layer.
pub const TOKENS_PER_EXPERT: &str = "tokens_per_expert_";

/// What the counts of slots without room are called, before the layer.
pub const DROPPED: &str = "dropped_";

fn scalar(b: &mut Builder, name: &str) -> Result<ValueId> {
    b.math(Math::Numbers { name: name.into(), rows: 1, cols: 1 }, &[])
}

/// The mean over layers of a loss of each.
fn averaged(
    b: &mut Builder,
    all: &[RouterNode],
    one: impl Fn(&mut Builder, &RouterNode) -> Result<ValueId>,
) -> Result<ValueId> {
    let mut terms = vec![];
    for r in all {
        terms.push((1.0 / all.len() as f64, one(b, r)?));
    }
    b.weighted_sum(&terms)
}

fn balance(
    b: &mut Builder,
    balance: Balance,
    all: &[RouterNode],
    mask: Option<ValueId>,
) -> Result<Option<ValueId>> {
    let logits: Vec<ValueId> = all.iter().map(|r| r.logits).collect();
    let used = all.first().map_or(1, |r| r.router.used);
    Ok(Some(match balance {
        Balance::None => return Ok(None),
        Balance::Switch => averaged(b, all, |b, r| switch_balance(b, r.logits, mask))?,
        Balance::Layers => layers_balance(b, &logits, used, mask)?,
        Balance::MeanOfLayers => mean_of_layers_balance(b, &logits, used, mask)?,
        Balance::Usage => averaged(b, all, |b, r| {
            let gates = gates(b, r)?;
            usage_balance(b, gates, mask)
        })?,
        Balance::Gshard { paper } => averaged(b, all, |b, r| {
            let (experts, probs) = (r.router.experts as f64, b.softmax(r.logits)?);
            gshard_balance(b, probs, if paper { 1.0 / experts } else { experts }, mask)
        })?,
        Balance::Importance(variance) => averaged(b, all, |b, r| importance(b, r, variance, mask))?,
        Balance::ImportanceLoad(variance) => averaged(b, all, |b, r| {
            let importance = importance(b, r, variance, mask)?;
            let (clean, std) = noise_of(b.graph(), r.logits)?;
            let load = smooth_load(b, [clean, r.logits, std], r.router.used, mask)?;
            let load = coefficient_of_variation(b, load, variance, LEAST)?;
            b.plus(importance, load)
        })?,
    }))
}

/// What is added to the square of a mean that is divided by, as copies of the loss of importance have it.
const LEAST: f64 = 1e-10;

/// The sparse gates `[T, E]` of a router.
fn gates(b: &mut Builder, r: &RouterNode) -> Result<ValueId> {
    b.math(Math::ScatterSlots { experts: r.router.experts }, &[r.weights, r.ids])
}

fn importance(b: &mut Builder, r: &RouterNode, variance: Variance, mask: Option<ValueId>) -> Result<ValueId> {
    let gates = gates(b, r)?;
    let sums = sum_of_rows(b, gates, mask)?;
    coefficient_of_variation(b, sums, variance, LEAST)
}

/// The clean logits and the noise's deviation, of logits that [`crate::graph::with_router_noise`] made.
fn noise_of(graph: &Graph, logits: ValueId) -> Result<(ValueId, ValueId)> {
    let made = |v: ValueId, op: Arithmetic| -> Option<&Node> {
        graph.nodes.iter().find(|n| n.outputs.contains(&v) && n.op == Op::Math(Math::Binary(op)))
    };
    let parts = made(logits, Arithmetic::Add).and_then(|sum| {
        let product = made(sum.inputs[1], Arithmetic::Mul)?;
        let drawn = graph.nodes.iter().find(|n| n.outputs.contains(&product.inputs[0]))?;
        matches!(drawn.op, Op::Math(Math::Noise { .. })).then_some((sum.inputs[0], product.inputs[1]))
    });
    parts.ok_or_else(|| Error::Invalid("a loss of load needs noise on the routers' logits".into()))
}

fn small_logits(
    b: &mut Builder,
    z: SmallLogits,
    all: &[RouterNode],
    mask: Option<ValueId>,
) -> Result<Option<ValueId>> {
    let logits: Vec<ValueId> = all.iter().map(|r| r.logits).collect();
    Ok(Some(match z {
        SmallLogits::None => return Ok(None),
        SmallLogits::LogSumExp => log_sum_exp_z(b, &logits, mask)?,
        SmallLogits::MeanSquare => averaged(b, all, |b, r| mean_square_z(b, r.logits, mask))?,
    }))
}
