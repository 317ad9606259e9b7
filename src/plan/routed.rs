//! The experts that each router of a graph chooses among: what belongs together in slots.

use super::nodes::{KernelGraph, KernelNode, KernelOp, VectorPart, glu_bias};
use crate::ir::{Router, ValueId, WeightId};

/// The experts of a router: the nodes that multiply with their matrices.
pub(super) struct Routed<'a> {
    pub router: &'a Router,
    pub layer: Option<u32>,
    pub ids: ValueId,
    pub nodes: Vec<&'a KernelNode>,
}

/// Each router's, where the device has any of its experts. Of nodes as they are before a schedule folds them.
pub(super) fn routed(k: &KernelGraph) -> Vec<Routed<'_>> {
    let mut all: Vec<Routed<'_>> = vec![];
    for n in &k.nodes {
        if let KernelOp::Router(router) = &n.op {
            all.push(Routed { router, layer: n.layer, ids: n.outputs[0], nodes: vec![] });
        }
        let is_product =
            matches!(n.op, KernelOp::ExpertLinear { .. } | KernelOp::ExpertGlu { .. } | KernelOp::ExpertDown { .. });
        if let Some(of) = n.inputs.get(1).filter(|_| is_product).and_then(|ids| all.iter_mut().find(|r| r.ids == *ids))
        {
            of.nodes.push(n);
        }
    }
    all.retain(|r| !r.nodes.is_empty());
    all
}

impl Routed<'_> {
    /// The weights of the experts' matrices, each once.
    pub fn weights(&self) -> Vec<WeightId> {
        let mut out: Vec<WeightId> = vec![];
        for w in self.nodes.iter().flat_map(|n| matrices(&n.op)) {
            if !out.contains(&w) {
                out.push(w);
            }
        }
        out
    }
}

/// The experts' matrices of a node.
fn matrices(op: &KernelOp) -> Vec<WeightId> {
    match op {
        KernelOp::ExpertLinear { linear, .. } | KernelOp::ExpertDown { linear, .. } => vec![linear.weight],
        KernelOp::ExpertGlu { gate, up, .. } => vec![gate.weight, up.weight],
        _ => vec![],
    }
}

/// The experts' biases of a node, as its kernel reads them.
pub(super) fn biases(op: &KernelOp) -> Option<Vec<VectorPart>> {
    match op {
        KernelOp::ExpertLinear { linear, .. } | KernelOp::ExpertDown { linear, .. } => {
            linear.bias.map(|b| vec![VectorPart::Weight(b)])
        }
        KernelOp::ExpertGlu { gate, up, .. } => glu_bias(gate, up),
        _ => None,
    }
}
