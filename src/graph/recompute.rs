//! Less memory for more work: activations that backward reads are computed again instead of kept.
//!
//! The forward nodes of a layer whose values its backward nodes read are repeated in front of the first of these. What enters the
//! layer is kept, and what its routers chose: ids and weights are used again and never chosen twice. Backends free a value behind
//! its last use, so that the first computation's values go when the layer's forward is done. Ops draw random numbers from counters
//! and sum in one order, so results are the same bits.

use super::{TrainProgram, check};
use crate::{
    error::Result,
    ir::{Graph, Math, Node, Op, ValueId},
};
use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

/// What is computed twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Recompute {
    /// Nothing.
    #[default]
    None,
    /// What is inside of experts.
    Experts,
    /// Whole layers.
    Layer,
}

impl Recompute {
    /// Whether a node may run again.
    fn repeats(self, node: &Node, inside: &BTreeSet<ValueId>) -> bool {
        match self {
            Recompute::None => false,
            Recompute::Experts => {
                matches!(node.op, Op::ExpertLinear(_))
                    // Units times the weights of their slots, which are kept.
                    || (matches!(node.op, Op::Math(Math::ScaleSlots { shared: false })) && inside.contains(&node.inputs[0]))
                    // Sums are of adapters: W x + B A x.
                    || (matches!(node.op, Op::Glu(_) | Op::Act(_) | Op::Add | Op::Scale(_))
                        && node.inputs.iter().all(|v| inside.contains(v)))
            }
            Recompute::Layer => !matches!(node.op, Op::Router(_)),
        }
    }
}

impl TrainProgram {
    /// The same program with activations computed again as `what` says.
    ///
    /// # Errors
    /// [`crate::Error::Graph`] where the result is no graph: an error of this function.
    pub fn recomputing(&self, what: Recompute) -> Result<TrainProgram> {
        let forward = &self.graph.nodes[..self.forward];
        let mut again: HashMap<ValueId, usize> = HashMap::new();
        let mut inside = BTreeSet::new();
        for (i, node) in forward.iter().enumerate().filter(|(_, n)| n.layer.is_some()) {
            if what.repeats(node, &inside) {
                inside.extend(node.outputs.iter().copied());
                again.extend(node.outputs.iter().map(|v| (*v, i)));
            }
        }
        // What leaves a layer is there for the next one, and what is read at the end is there anyway.
        let mut kept: BTreeSet<ValueId> = self.graph.outputs.iter().map(|(_, v)| *v).collect();
        for node in forward {
            let of_another = |v: &&ValueId| again.get(v).is_some_and(|i| forward[*i].layer != node.layer);
            kept.extend(node.inputs.iter().filter(of_another).copied());
        }
        again.retain(|v, _| !kept.contains(v));
        let mut out = Repeat { graph: (*self.graph).clone(), again, copies: HashMap::new() };
        let backward = out.graph.nodes.split_off(self.forward);
        for node in backward {
            out.push(node);
        }
        check(&out.graph)?;
        Ok(TrainProgram { graph: Arc::new(out.graph), ..self.clone() })
    }
}

struct Repeat {
    graph: Graph,
    /// Values that are computed again, with their nodes.
    again: HashMap<ValueId, usize>,
    /// What stands for them in backward.
    copies: HashMap<ValueId, ValueId>,
}

impl Repeat {
    /// Appends a backward node behind the nodes that it needs again.
    fn push(&mut self, mut node: Node) {
        for v in &mut node.inputs {
            *v = self.copy(*v);
        }
        self.graph.nodes.push(node);
    }

    /// What stands for a value in backward.
    fn copy(&mut self, v: ValueId) -> ValueId {
        if let Some(made) = self.copies.get(&v) {
            return *made;
        }
        let Some(i) = self.again.get(&v).copied() else { return v };
        let mut node = self.graph.nodes[i].clone();
        for v in &mut node.inputs {
            *v = self.copy(*v);
        }
        for old in &mut node.outputs {
            let new = ValueId(self.graph.values.len() as u32);
            self.graph.values.push(self.graph.ty(*old));
            self.copies.insert(*old, new);
            *old = new;
        }
        self.graph.nodes.push(node);
        self.copies.get(&v).copied().unwrap_or(v)
    }
}
