//! What a language model is trained for: cross entropy, and losses of its routers.

use super::{Builder, Counted, Needs, Routed, RouterLoss, Variance, sum_of_rows};
use crate::{
    error::{Error, Result},
    graph::{LOSS, RouterNode, counted_rows, routers},
    ir::{Graph, Math, Op, ValueId},
};

/// The terms of a language model's loss.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Objective {
    /// The balancing loss.
    pub balance: Option<&'static RouterLoss>,
    /// Its weight.
    pub balance_weight: f64,
    /// The z-loss.
    pub z: Option<&'static RouterLoss>,
    /// Its weight.
    pub z_weight: f64,
    /// What variances are divided by.
    pub variance: Variance,
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
    fits(o, &all)?;
    let mut b = Builder::resume(graph);
    b.set_layer(None);
    let targets = b.math(Math::Ids { name: "targets".into(), cols: 1 }, &[])?;
    let weights = b.one(Op::Input { name: "weights".into(), cols: 1 }, &[])?;
    let normaliser = scalar(&mut b, "normaliser")?;
    let ce = super::cross_entropy(&mut b, logits, targets, weights, Some(normaliser))?;
    b.output("loss.cross_entropy", ce);
    let mut terms = vec![];
    let rows = match all.is_empty() {
        true => None,
        false => {
            let mask = counted_rows(&mut b)?;
            Some(Counted::new(&mut b, mask)?)
        }
    };
    let routed = Routed { routers: &all, rows, variance: o.variance };
    for (name, weight, loss) in [("balance", o.balance_weight, o.balance), ("z", o.z_weight, o.z)] {
        if let Some(loss) = loss {
            let term = (loss.build)(&mut b, &routed)?;
            b.output(format!("{LOSS}.{name}"), term);
            terms.push((weight, term));
        }
    }
    let mut loss = ce;
    if !terms.is_empty() {
        let (share, sum) = (scalar(&mut b, "share")?, b.weighted_sum(&terms)?);
        let part = b.times(sum, share)?;
        loss = b.plus(ce, part)?;
    }
    b.output(LOSS, loss);
    for (i, r) in all.iter().enumerate() {
        loads(&mut b, r, r.layer.map_or(i, |l| l as usize), rows)?;
    }
    Ok(b.finish())
}

/// Refuses losses that the routers have no numbers for.
fn fits(o: &Objective, all: &[RouterNode]) -> Result<()> {
    let mut wanted = [o.balance, o.z].into_iter().flatten();
    if wanted.clone().next().is_some() && all.is_empty() {
        return Err(Error::Invalid("a loss of routers for a model that has none".into()));
    }
    let grouped = all.iter().any(|r| r.groups_used.is_some());
    match wanted.find(|l| grouped && l.needs != Needs::Weights) {
        Some(l) => Err(Error::Unsupported(format!(
            "the loss `{}` is of one softmax over all experts, and the router is over groups; those of usage and importance are of \
             its weights",
            l.name
        ))),
        None => Ok(()),
    }
}

/// The outputs that say how many tokens each expert of a layer takes, and how many slots found no room.
fn loads(b: &mut Builder, r: &RouterNode, layer: usize, rows: Option<Counted>) -> Result<()> {
    let experts = r.router.experts;
    let hot = match r.keep {
        Some(keep) => b.math(Math::ScatterSlots { experts }, &[keep, r.ids])?,
        None => b.math(Math::MultiHot { experts }, &[r.ids])?,
    };
    let counts = sum_of_rows(b, hot, rows)?;
    b.output(format!("{TOKENS_PER_EXPERT}{layer}"), counts);
    if let Some(keep) = r.keep {
        let gone = b.math(Math::Affine { factor: -1.0, shift: 1.0 }, &[keep])?;
        let gone = b.sum_cols(gone)?;
        let gone = sum_of_rows(b, gone, rows)?;
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
