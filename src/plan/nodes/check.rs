//! What the passes promise: every value made once and before it is used, no weight lost, and what folded nodes rely on.

use super::{KernelGraph, KernelNode, KernelOp, Operand, Route, VectorPart};
use crate::{
    error::{Error, Result},
    ir::{Graph, ValueId, WeightId},
};
use std::collections::{BTreeMap, BTreeSet};

/// Of each sort by its number: the ids that it sorts, and the workgroups that it has arguments for.
type Sorts<'a> = BTreeMap<u32, (ValueId, &'a [u32])>;

/// Whether the sort that a node's route names is there, and sorts the node's ids.
fn routed(n: &KernelNode, route: &Route, sorts: &Sorts<'_>) -> std::result::Result<(), String> {
    match route {
        Route::Slots => Ok(()),
        Route::Sorted { sort, slot } => match sorts.get(sort) {
            Some((ids, blocks)) if *ids == n.inputs[1] && (*slot as usize) < blocks.len() => Ok(()),
            other => Err(format!("sort {sort}, arguments {slot}: there is {other:?}")),
        },
    }
}

impl KernelGraph {
    /// Refuses nodes that cannot stand for `graph`.
    ///
    /// # Errors
    /// [`Error::Graph`] that names the node.
    pub fn check(&self, graph: &Graph) -> Result<()> {
        let mut made = vec![false; self.values.len()];
        let mut sorts = BTreeMap::new();
        for (i, n) in self.nodes.iter().enumerate() {
            let bad = |what: String| Error::Graph(format!("plan node {i}, {} of {}: {what}", n.op.name(), n.part_of));
            let index = |v: &ValueId| v.0 as usize;
            if let Some(v) = n.inputs.iter().find(|v| !made.get(index(v)).copied().unwrap_or(false)) {
                return Err(bad(format!("%{} is used before it is made", v.0)));
            }
            for v in &n.outputs {
                if made.get_mut(index(v)).is_none_or(|m| std::mem::replace(m, true)) {
                    return Err(bad(format!("%{} is not declared, or made twice", v.0)));
                }
            }
            self.holds(n, &mut sorts).map_err(bad)?;
        }
        if let Some((name, _)) = graph.outputs.iter().find(|(_, v)| !made[v.0 as usize]) {
            return Err(Error::Graph(format!("output {name} is made by no node of the plan")));
        }
        self.weights_are_those_of(graph)
    }

    /// Whether a node has the operands and results that its op needs. `sorts`: ids and arguments of the sorts so far.
    fn holds<'a>(&self, n: &'a KernelNode, sorts: &mut Sorts<'a>) -> std::result::Result<(), String> {
        let count = |inputs: usize, outputs: usize| match (n.inputs.len(), n.outputs.len()) {
            (i, o) if i == inputs && o == outputs => Ok(()),
            (i, o) => Err(format!("{i} operands and {o} results, not {inputs} and {outputs}")),
        };
        let together = |values: &[ValueId]| match values.iter().all(|v| self.together(*v, values[0])) {
            true => Ok(()),
            false => Err(format!("{values:?} do not lie side by side")),
        };
        match &n.op {
            KernelOp::Linear { parts, norm, keep_normed, epilogue } => {
                let more = usize::from(epilogue.residual) + usize::from(epilogue.gated);
                count(1 + more, parts.len() + usize::from(*keep_normed))?;
                if *keep_normed && norm.is_none() {
                    return Err("no norm whose result could be kept".into());
                }
                together(&n.outputs)
            }
            KernelOp::LinearPair { parts, .. } => {
                count(1, parts[0].len() + parts[1].len())?;
                together(&n.outputs)
            }
            KernelOp::ScaleExpertInputs => count(2, 2).and_then(|()| together(&n.outputs)),
            KernelOp::RopeStore { .. } => count(3, 2),
            KernelOp::ExpertSort { sort, blocks, .. } => {
                count(1, 0)?;
                match sorts.insert(*sort, (n.inputs[0], blocks)) {
                    None if matches!(blocks.len(), 1 | 2) => Ok(()),
                    _ => Err(format!("sort {sort} with {blocks:?} workgroups, or a second one of its number")),
                }
            }
            KernelOp::ExpertLinear { route, .. } => count(2, 1).and_then(|()| routed(n, route, sorts)),
            KernelOp::ExpertGlu { route, shared, choose, .. } => {
                let results = 1 + usize::from(shared.is_some());
                count(2, results + if choose.is_some() { 2 } else { 0 })?;
                together(&n.outputs[..results])?;
                if choose.is_some() { together(&n.inputs) } else { routed(n, route, sorts) }
            }
            KernelOp::ExpertDown { shared, .. } => {
                count(4 + shared.map_or(0, |s| 1 + usize::from(s.gated)), 1)?;
                if shared.is_some() { together(&[n.inputs[0], n.inputs[4]]) } else { Ok(()) }
            }
            KernelOp::ExpertCombine { residual } => count(2 + usize::from(residual.is_some()), 1),
            KernelOp::Router(_) => count(1, 2),
            KernelOp::RouterCached { .. } => count(1, 3),
            KernelOp::ExpertFill { .. } => count(1, 0),
            KernelOp::ExpertPlaces { .. } => count(1, 1),
            KernelOp::HostExperts { .. } => count(n.inputs.len().max(1), 1),
            KernelOp::Attend(_) | KernelOp::JoinHeads { .. } => count(2, 1),
            KernelOp::DeltaNet(_) => count(3, 1),
            KernelOp::Tokens | KernelOp::Input(_) | KernelOp::HeadIds { .. } => count(0, 1),
            KernelOp::Embed { .. }
            | KernelOp::Norm(_)
            | KernelOp::Rope(_)
            | KernelOp::ShortConv(_)
            | KernelOp::LocalIds { .. }
            | KernelOp::LinearGlu { .. } => count(1, 1),
            KernelOp::Elementwise(e) => count(e.operands(), 1),
            KernelOp::KvStore { .. } if n.inputs.len() == 1 => count(1, 1),
            KernelOp::KvStore { .. } => count(2, 1),
        }
    }

    /// Whether the nodes read the weights that the graph's nodes read, and no others.
    fn weights_are_those_of(&self, graph: &Graph) -> Result<()> {
        let wanted: BTreeSet<WeightId> = graph.nodes.iter().flat_map(|n| n.op.weights()).collect();
        let mut read = BTreeSet::new();
        for operand in self.nodes.iter().flat_map(|n| n.op.operands(graph)) {
            match operand {
                Operand::Matrix(parts) => read.extend(parts),
                Operand::Aligned(pair) => read.extend(pair),
                Operand::Vector(parts) => read.extend(parts.into_iter().filter_map(|p| match p {
                    VectorPart::Weight(w) => Some(w),
                    VectorPart::Zeros(_) => None,
                })),
            }
        }
        match wanted.symmetric_difference(&read).next() {
            None => Ok(()),
            Some(w) => Err(Error::Graph(format!(
                "{} is read by the graph and by no node of the plan, or by none of the graph",
                graph.weight(*w).name
            ))),
        }
    }
}
