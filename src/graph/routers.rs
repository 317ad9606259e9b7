//! The routers of a graph: what balancing losses, noise and capacities are about.

use crate::{
    error::{Error, Result},
    ir::{Graph, Math, Node, Op, Router, Score, ValueId},
};

/// A router of a graph: what balancing losses are made of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RouterNode {
    /// The layer.
    pub layer: Option<u32>,
    /// Logits `[T, E]`.
    pub logits: ValueId,
    /// The chosen experts, `[T, k]`.
    pub ids: ValueId,
    /// Their weights, `[T, k]`, before a capacity drops any.
    pub weights: ValueId,
    /// 1 for slots that stay, `[T, k]`, under a capacity.
    pub keep: Option<ValueId>,
    /// The selection; of a router over groups and those in the groups what both are together.
    pub router: Router,
    /// How many groups a router over groups chooses, where there is one: `logits` are then those of the routers in the groups.
    pub groups_used: Option<usize>,
}

/// The routers of a graph, in order. A router over groups and those in the groups are one.
pub fn routers(graph: &Graph) -> Vec<RouterNode> {
    let all: Vec<(RouterNode, ValueId)> = graph.nodes.iter().filter_map(|n| grouped(graph, n)).collect();
    let over_groups = |ids: &ValueId| all.iter().any(|(_, outer)| outer == ids);
    let kept = |ids: ValueId| {
        let node = graph.nodes.iter().find(|n| matches!(n.op, Op::Math(Math::Capacity(_))) && n.inputs[0] == ids)?;
        Some(node.outputs[0])
    };
    let one = |n: &Node| match (&n.op, &n.inputs[..], &n.outputs[..]) {
        (Op::Router(_), _, [ids, _]) if over_groups(ids) => None,
        (Op::Router(router), [logits], [ids, weights]) => {
            let keep = kept(*ids);
            let (layer, router, groups_used) = (n.layer, *router, router.over_groups().map(|g| g.used));
            Some(RouterNode { layer, logits: *logits, ids: *ids, weights: *weights, keep, router, groups_used })
        }
        _ => all.iter().find(|(r, _)| n.outputs.contains(&r.weights)).map(|(r, _)| *r),
    };
    graph.nodes.iter().filter_map(one).collect()
}

/// Refuses routers over groups.
pub(super) fn ungrouped(routers: &[RouterNode], what: &str) -> Result<()> {
    match routers.iter().any(|r| r.groups_used.is_some()) {
        true => Err(Error::Unsupported(format!("{what} a router over groups of experts"))),
        false => Ok(()),
    }
}

/// The choice of a router over groups and those in them ([`super::formula::hierarchical`]), where this node is its last: the weights of
/// the chosen experts. With it the groups that the router over them chose.
fn grouped(graph: &Graph, node: &Node) -> Option<(RouterNode, ValueId)> {
    let maker = |v: ValueId| graph.nodes.iter().find(|n| n.outputs.contains(&v));
    let (Op::Math(Math::GatherSlots), [gates, ids]) = (&node.op, &node.inputs[..]) else { return None };
    let product = maker(*gates).filter(|n| n.op == Op::Math(Math::ScaleSlots { shared: false }))?;
    let [inner, outer] = [maker(product.inputs[0])?, maker(product.inputs[1])?];
    let (Op::Math(Math::ScatterSlots { experts }), Op::Math(Math::ScatterSlots { .. })) = (&inner.op, &outer.op) else {
        return None;
    };
    let chosen = maker(inner.inputs[1])?;
    let Op::Math(Math::TopK { .. }) = chosen.op else { return None };
    let router = RouterNode {
        layer: node.layer,
        logits: chosen.inputs[0],
        ids: *ids,
        weights: node.outputs[0],
        keep: None,
        router: Router::new(*experts, graph.cols(*ids), Score::SoftmaxOfSelected),
        groups_used: Some(graph.cols(outer.inputs[1])),
    };
    Some((router, outer.inputs[1]))
}
