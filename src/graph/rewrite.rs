//! A graph that is copied with changes: what the rewrites for training have in common.

use super::Builder;
use crate::{
    error::{Error, Result},
    ir::{Graph, Node, ValueId},
};
use std::collections::HashMap;

/// A copy under way. Weights keep their ids; new ones come behind them.
pub(super) struct Rewrite<'a> {
    /// What is copied.
    pub graph: &'a Graph,
    /// The copy.
    pub builder: Builder,
    /// For each value of the old graph that of the copy.
    pub values: HashMap<ValueId, ValueId>,
}

impl<'a> Rewrite<'a> {
    pub fn new(graph: &'a Graph) -> Self {
        let empty = Graph { nodes: vec![], values: vec![], outputs: vec![], ..graph.clone() };
        Rewrite { graph, builder: Builder::resume(empty), values: HashMap::new() }
    }

    /// What an old value is in the copy.
    pub fn value(&self, v: ValueId) -> Result<ValueId> {
        self.values.get(&v).copied().ok_or_else(|| Error::Graph(format!("%{} is used before it is made", v.0)))
    }

    /// Copies a node; gives what it makes.
    pub fn copy(&mut self, node: &Node) -> Result<Vec<ValueId>> {
        let inputs = node.inputs.iter().map(|v| self.value(*v)).collect::<Result<Vec<_>>>()?;
        self.builder.set_layer(node.layer);
        let made = self.builder.add(node.op.clone(), &inputs)?;
        self.values.extend(node.outputs.iter().copied().zip(made.iter().copied()));
        Ok(made)
    }

    /// Names the outputs, and gives the copy.
    pub fn finish(mut self) -> Result<Graph> {
        for (name, v) in &self.graph.outputs {
            let v = self.value(*v)?;
            self.builder.output(name.clone(), v);
        }
        Ok(self.builder.finish())
    }
}
