//! What a language model is trained for: cross entropy, and losses of its routers.

use super::{
    Builder, layers_balance, log_sum_exp_z, mean_of_layers_balance, mean_square_z, switch_balance, usage_balance,
};
use crate::{
    error::{Error, Result},
    graph::{LOSS, RouterNode, routers},
    ir::{Graph, Math, Op, ValueId},
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
/// means over rows). Outputs: `loss`, `loss.cross_entropy`, `loss.balance` and `loss.z` (both without weight and share), and for
/// each router `tokens_per_expert_<layer>` `[1, E]`.
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
    if let Some(balance) = balance(&mut b, o.balance, &all)? {
        b.output("loss.balance", balance);
        terms.push((o.balance_weight, balance));
    }
    if let Some(z) = small_logits(&mut b, o.z, &all)? {
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
        let hot = b.math(Math::MultiHot { experts: r.router.experts }, &[r.ids])?;
        let counts = b.sum_rows(hot)?;
        b.output(format!("tokens_per_expert_{}", r.layer.map_or(i, |l| l as usize)), counts);
    }
    Ok(b.finish())
}

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

fn balance(b: &mut Builder, balance: Balance, all: &[RouterNode]) -> Result<Option<ValueId>> {
    let logits: Vec<ValueId> = all.iter().map(|r| r.logits).collect();
    let used = all.first().map_or(1, |r| r.router.used);
    Ok(Some(match balance {
        Balance::None => return Ok(None),
        Balance::Switch => averaged(b, all, |b, r| switch_balance(b, r.logits))?,
        Balance::Layers => layers_balance(b, &logits, used, None)?,
        Balance::MeanOfLayers => mean_of_layers_balance(b, &logits, used)?,
        Balance::Usage => averaged(b, all, |b, r| {
            let experts = r.router.experts;
            let gates = b.math(Math::ScatterSlots { experts }, &[r.weights, r.ids])?;
            usage_balance(b, gates)
        })?,
    }))
}

fn small_logits(b: &mut Builder, z: SmallLogits, all: &[RouterNode]) -> Result<Option<ValueId>> {
    let logits: Vec<ValueId> = all.iter().map(|r| r.logits).collect();
    Ok(Some(match z {
        SmallLogits::None => return Ok(None),
        SmallLogits::LogSumExp => log_sum_exp_z(b, &logits)?,
        SmallLogits::MeanSquare => averaged(b, all, |b, r| mean_square_z(b, r.logits))?,
    }))
}
