//! Reverse-mode differentiation: from a graph that ends in a loss, the same graph with the nodes behind it that compute
//! gradients. One pass before any fusion; a backend sees one longer list of nodes.
//!
//! A value's gradient is the sum of what its users give back, in the reverse of their order. A weight's gradients are additions to
//! a buffer that the backend keeps ([`crate::ir::Type::Grad`]): nodes that make an edge and no data, in the order of the list.
//! Only what lies between trained weights (or wanted inputs) and the loss is walked. An op without a rule there is refused by name.

use super::{Builder, back::Back, rules};
use crate::{
    error::{Error, Result},
    ir::{Graph, Math, Node, Op, Rows, Type, ValueId, WeightId},
};
use std::collections::BTreeSet;

/// A graph with its gradients.
#[derive(Clone, Debug)]
pub struct Differentiated {
    /// Forward nodes, then backward nodes.
    pub graph: Graph,
    /// How many nodes are forward.
    pub forward: usize,
    /// The gradients of the wanted values, in their order; `None` where the loss does not depend on one.
    pub wanted: Vec<Option<ValueId>>,
    /// Trained weights that the loss does not depend on.
    pub unreached: BTreeSet<WeightId>,
}

/// Appends to a graph what computes the gradients of `loss` by the trained weights and by the wanted values.
///
/// # Errors
/// [`Error::Graph`] where the loss is not one number; [`Error::Unsupported`] for an op without a rule, by name.
pub fn differentiate(
    graph: &Graph,
    loss: ValueId,
    trained: &BTreeSet<WeightId>,
    wanted: &[ValueId],
) -> Result<Differentiated> {
    let scalar = Type::F32(Rows::Fixed(1), 1);
    if graph.ty(loss) != scalar {
        return Err(Error::Graph(format!("a loss of {}, not one number", graph.ty(loss))));
    }
    let mut back = Back {
        needs: needs(graph, trained, wanted),
        grads: vec![None; graph.values.len()],
        builder: Builder::resume(graph.clone()),
        trained,
        reached: BTreeSet::new(),
    };
    let forward = graph.nodes.len();
    if back.needs(loss) {
        let one = back.builder.one(Op::Math(Math::Constant { value: 1.0, cols: 1 }), &[])?;
        back.grads[loss.0 as usize] = Some(one);
    }
    for node in graph.nodes.iter().rev() {
        self::node(&mut back, node)?;
    }
    let unreached = trained.difference(&back.reached).copied().collect();
    let wanted: Vec<_> = wanted.iter().map(|v| back.grads[v.0 as usize]).collect();
    let mut graph = back.builder.finish();
    drop_unread(&mut graph, forward, wanted.iter().flatten().copied().collect());
    Ok(Differentiated { graph, forward, wanted, unreached })
}

/// Drops backward nodes that make only what nobody reads.
fn drop_unread(graph: &mut Graph, forward: usize, mut read: BTreeSet<ValueId>) {
    let mut backward = graph.nodes.split_off(forward);
    backward.reverse();
    backward.retain(|n| {
        let stays = n.outputs.iter().any(|v| read.contains(v) || matches!(graph.ty(*v), Type::Grad(_)));
        read.extend(n.inputs.iter().copied().filter(|_| stays));
        stays
    });
    backward.reverse();
    graph.nodes.extend(backward);
}

/// Which values depend on what is trained or wanted.
fn needs(graph: &Graph, trained: &BTreeSet<WeightId>, wanted: &[ValueId]) -> Vec<bool> {
    let mut needs = vec![false; graph.values.len()];
    wanted.iter().for_each(|v| needs[v.0 as usize] = true);
    for node in &graph.nodes {
        let own = node.op.weights().iter().any(|w| trained.contains(w));
        if own || node.inputs.iter().any(|v| needs[v.0 as usize]) {
            let numbers = node.outputs.iter().filter(|v| matches!(graph.ty(**v), Type::F32(..)));
            numbers.for_each(|v| needs[v.0 as usize] = true);
        }
    }
    needs
}

/// The backward nodes of one node.
fn node(back: &mut Back<'_>, node: &Node) -> Result<()> {
    let d: Vec<Option<ValueId>> =
        node.outputs.iter().map(|v| back.grads.get(v.0 as usize).copied().flatten()).collect();
    let own = node.op.weights().iter().any(|w| back.trains(*w));
    if d.iter().all(Option::is_none) || !(own || node.inputs.iter().any(|v| back.needs(*v))) {
        return Ok(());
    }
    back.builder.set_layer(node.layer);
    rules::rule(back, node, &d)
}
