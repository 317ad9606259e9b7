//! Experts with room for so many tokens, and dropout in them: rewrites of a model's graph for training. Evaluation and inference are
//! without.

use super::{
    counted_rows,
    formula::{over_sum, random_second},
    rewrite::Rewrite,
    routers,
    routers::ungrouped,
};
use crate::{
    error::{Error, Result},
    ir::{Capacity, Distribution, Graph, Keep, Math, Op, Router},
};

/// Random streams of this file begin here, behind those of the routers' noise.
const STREAMS: u32 = 1 << 24;

/// The room of a model's experts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RouterCapacity {
    /// An expert takes `max(ceil(tokens / E · k · factor), least)` slots.
    pub factor: f64,
    /// The least room.
    pub least: usize,
    /// Which slots stay.
    pub keep: Keep,
    /// Whether a second choice stays only with probability `2 g₂`, of the two weights g over their sum (Lepikhin et al. 2020,
    /// algorithm 1); where it does not, it takes no room.
    pub random_second: bool,
    /// Whether weights are divided by the sum of those that stay (DeepSpeed's `top2gating`), and not before dropping.
    pub over_kept: bool,
}

/// Lets every router's experts take as many slots as they have room for: a slot that is dropped has weight 0, and a token without
/// any slot passes by its residual alone. Rows of padding ([`super::COUNTED`]) take no room.
///
/// # Errors
/// [`Error::Invalid`] for no room, for a model without routers, and where the routers' weights are not as the options want them.
pub fn with_capacity(graph: &Graph, c: RouterCapacity) -> Result<Graph> {
    if !(c.factor > 0.0 && c.factor.is_finite()) {
        return Err(Error::Invalid(format!("a capacity factor of {}; a number above 0 is expected", c.factor)));
    }
    if c.random_second && c.keep == Keep::Largest {
        return Err(Error::Invalid("second choices that stay at random are dropped by position".into()));
    }
    ungrouped(&routers(graph), "a capacity for")?;
    let mut rewrite = Rewrite::new(graph);
    let counted = counted_rows(&mut rewrite.builder)?;
    let mut found = false;
    for (i, node) in graph.nodes.iter().enumerate() {
        let made = rewrite.copy(node)?;
        let (Op::Router(r), [ids, weights]) = (&node.op, &made[..]) else { continue };
        found = true;
        fits(r, c)?;
        let b = &mut rewrite.builder;
        let (weights, takes) = if c.random_second {
            let noise = Math::Noise { distribution: Distribution::Uniform, cols: 1, stream: STREAMS + i as u32 };
            let random = b.math(noise, &[])?;
            random_second(b, *weights, random)?
        } else {
            (*weights, *weights)
        };
        let takes = b.times(takes, counted)?;
        let capacity = Capacity { experts: r.experts, factor: c.factor, least: c.least, keep: c.keep };
        let keep = b.add(Op::Math(Math::Capacity(capacity)), &[*ids, takes])?[0];
        let mut kept = b.times(weights, keep)?;
        if c.over_kept {
            kept = over_sum(b, kept)?;
        }
        rewrite.values.insert(node.outputs[1], kept);
    }
    if found { rewrite.finish() } else { Err(Error::Invalid("a capacity for a model without routers".into())) }
}

fn fits(r: &Router, c: RouterCapacity) -> Result<()> {
    if c.random_second && r.used != 2 {
        return Err(Error::Invalid(format!("a second choice at random: the router chooses {}, not 2", r.used)));
    }
    if (c.over_kept || c.random_second) && !r.sums_to_one() {
        return Err(Error::Invalid(format!(
            "weights over the sum of those that stay: this model's do not sum to 1 ({})",
            r.variant()
        )));
    }
    Ok(())
}

/// Dropout of experts, each a probability from 0 to below 1; 0 for none.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ExpertDropout {
    /// Of what lies between an expert's matrices.
    pub inside: f64,
    /// Of what an expert gives.
    pub behind: f64,
}

/// Puts dropout into the routed experts of every layer.
///
/// # Errors
/// [`Error::Invalid`] for no probability, and for a model without routed experts.
pub fn with_expert_dropout(graph: &Graph, d: ExpertDropout) -> Result<Graph> {
    if let Some(p) = [d.inside, d.behind].into_iter().find(|p| !(0.0..1.0).contains(p)) {
        return Err(Error::Invalid(format!("a dropout of {p}; a number from 0 to below 1 is expected")));
    }
    let read_by = |v, f: &dyn Fn(&Op) -> bool| graph.nodes.iter().any(|n| n.inputs.first() == Some(&v) && f(&n.op));
    let mut rewrite = Rewrite::new(graph);
    let mut found = false;
    for (i, node) in graph.nodes.iter().enumerate() {
        let made = rewrite.copy(node)?;
        let [old] = node.outputs[..] else { continue };
        let p = match &node.op {
            Op::Glu(_) | Op::Act(_) if read_by(old, &|op| matches!(op, Op::ExpertLinear(_))) => d.inside,
            Op::ExpertLinear(_) if read_by(old, &|op| matches!(op, Op::ExpertCombine)) => d.behind,
            _ => continue,
        };
        found = true;
        if p > 0.0 {
            let dropout = Math::Dropout { p, stream: 2 * STREAMS + i as u32 };
            let dropped = rewrite.builder.math(dropout, &made)?;
            rewrite.values.insert(old, dropped);
        }
    }
    if found { rewrite.finish() } else { Err(Error::Invalid("dropout of experts in a model that has none".into())) }
}
