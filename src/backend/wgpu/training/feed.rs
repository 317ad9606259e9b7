//! What the host gives to a micro-batch, checked before anything runs.

use crate::{
    backend::training::Feed,
    error::{Error, Result},
    ir::{Grad, Graph, Math, Op, ValueId},
    ops::train::STARTS,
};

/// Whether the host writes an op's results.
pub fn is_input(op: &Op) -> bool {
    matches!(op, Op::Tokens | Op::Input { .. } | Op::Math(Math::Numbers { .. } | Math::Ids { .. }))
}

/// What the host writes.
pub enum Host<'a> {
    Ids(&'a [u32]),
    Numbers(&'a [f64]),
}

/// The inputs of a graph.
///
/// # Errors
/// [`Error::Invalid`] for what is missing, of another size or out of range; [`Error::Unsupported`] for an op whose ids are not known here.
pub fn inputs<'a>(graph: &Graph, feed: &'a Feed) -> Result<Vec<(ValueId, Host<'a>)>> {
    if feed.rows == 0 {
        return Err(Error::Invalid("a micro-batch without rows".into()));
    }
    let mut all = vec![];
    for node in graph.nodes.iter().filter(|n| is_input(&n.op)) {
        let v = node.outputs[0];
        let cols = graph.cols(v);
        let host = match &node.op {
            Op::Tokens if feed.tokens.len() != feed.rows => {
                return Err(Error::Invalid(format!("{} tokens for {} rows", feed.tokens.len(), feed.rows)));
            }
            Op::Tokens => Host::Ids(&feed.tokens),
            Op::Input { name, .. } => Host::Numbers(feed.get(name, feed.rows * cols).map_err(Error::Invalid)?),
            Op::Math(Math::Numbers { name, rows, .. }) => {
                Host::Numbers(feed.get(name, rows * cols).map_err(Error::Invalid)?)
            }
            Op::Math(Math::Ids { name, .. }) => {
                let ids = feed.get_ids(name, feed.rows * cols).map_err(Error::Invalid)?;
                if name == STARTS && ids.iter().enumerate().any(|(i, start)| *start as usize > i / cols) {
                    return Err(Error::Invalid("a sequence starts behind one of its rows".into()));
                }
                Host::Ids(ids)
            }
            // `is_input` names these alone.
            _ => continue,
        };
        if let Host::Ids(ids) = &host {
            below(graph, v, ids)?;
        }
        all.push((v, host));
    }
    Ok(all)
}

/// Rows of the longest text, as far as its starts are among the inputs.
pub fn longest(graph: &Graph, feed: &Feed) -> usize {
    let starts = graph.nodes.iter().find_map(|n| match &n.op {
        Op::Math(Math::Ids { name, cols: 1 }) if name == STARTS => feed.get_ids(name, feed.rows).ok(),
        _ => None,
    });
    let rows = |(t, start): (usize, &u32)| (t + 1).saturating_sub(*start as usize);
    starts.map_or(feed.rows, |s| s.iter().enumerate().map(rows).max().unwrap_or(feed.rows))
}

/// Checks ids against what they choose from.
fn below(graph: &Graph, v: ValueId, ids: &[u32]) -> Result<()> {
    for node in graph.nodes.iter().filter(|n| n.inputs.contains(&v)) {
        let (what, bound) = match &node.op {
            Op::Embed { table, .. } => ("token id", graph.weight(*table).rows()),
            Op::Math(Math::CrossEntropy) => ("target", graph.cols(node.inputs[0])),
            Op::ExpertLinear(l) => ("expert", graph.weight(l.weight).shape[0]),
            Op::Math(Math::GatherSlots) => ("column", graph.cols(node.inputs[0])),
            Op::Math(Math::ScatterSlots { experts } | Math::MultiHot { experts }) => ("expert", *experts),
            Op::Grad(Grad::ExpertOuter { into }) => ("expert", graph.weight(*into).shape[0]),
            // Where texts start is checked above; ids that were checked for the op forwards serve its gradient; these look nothing up.
            Op::Math(Math::SelfAttend(_) | Math::Rotate(_) | Math::IdColumns { .. } | Math::Capacity(_))
            | Op::Grad(
                Grad::SelfAttend(_)
                | Grad::CrossEntropy
                | Grad::Embed { .. }
                | Grad::ExpertInput { .. }
                | Grad::ExpertSumRows { .. },
            ) => continue,
            op => {
                let what =
                    format!("{} by ids of the host has no check on the GPU; the cpu backend trains it", op.name());
                return Err(Error::Unsupported(what));
            }
        };
        if let Some(id) = ids.iter().find(|id| **id as usize >= bound) {
            return Err(Error::Invalid(format!("{what} {id} is not below {bound}")));
        }
    }
    Ok(())
}
