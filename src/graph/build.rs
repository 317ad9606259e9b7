//! The builder: methods in the words of model code; every call adds one node and checks its shapes.

use crate::{
    error::{Error, Result},
    ir::{CacheDecl, CacheId, Graph, Node, Op, StateDecl, StateId, Type, ValueId, WeightDecl, WeightId},
    ops,
};

/// Makes a [`Graph`] node by node.
#[derive(Debug, Default)]
pub struct Builder {
    graph: Graph,
    layer: Option<u32>,
}

impl Builder {
    /// An empty graph.
    pub fn new() -> Self {
        Self::default()
    }

    /// Goes on with a graph.
    pub fn resume(graph: Graph) -> Self {
        Builder { graph, layer: None }
    }

    /// Nodes from here on belong to transformer layer `layer`.
    pub fn set_layer(&mut self, layer: Option<u32>) {
        self.layer = layer;
    }

    /// Declares a weight.
    pub fn weight(&mut self, name: impl Into<String>, shape: &[usize]) -> WeightId {
        self.graph.weights.push(WeightDecl { name: name.into(), shape: shape.to_vec() });
        WeightId(self.graph.weights.len() as u32 - 1)
    }

    /// Declares a KV cache.
    pub fn cache(&mut self, decl: CacheDecl) -> CacheId {
        self.graph.caches.push(decl);
        CacheId(self.graph.caches.len() as u32 - 1)
    }

    /// Declares a recurrent state of `len` numbers, for one node.
    pub fn state(&mut self, len: usize) -> StateId {
        self.graph.states.push(StateDecl { len });
        StateId(self.graph.states.len() as u32 - 1)
    }

    /// Adds a node; its outputs come in the order of the op's page.
    ///
    /// # Errors
    /// [`Error::Graph`] where the operands do not fit the op.
    pub fn add(&mut self, op: Op, inputs: &[ValueId]) -> Result<Vec<ValueId>> {
        let types: Vec<Type> = inputs.iter().map(|v| self.graph.ty(*v)).collect();
        let made = ops::infer(&op, &types, &self.graph)
            .map_err(|what| Error::Graph(format!("{} of {types:?}: {what}", op.name())))?;
        let first = self.graph.values.len() as u32;
        self.graph.values.extend(&made);
        let outputs: Vec<ValueId> = (first..first + made.len() as u32).map(ValueId).collect();
        self.graph.nodes.push(Node { op, inputs: inputs.to_vec(), outputs: outputs.clone(), layer: self.layer });
        Ok(outputs)
    }

    /// Adds a node with one output.
    ///
    /// # Errors
    /// As [`Builder::add`].
    pub fn one(&mut self, op: Op, inputs: &[ValueId]) -> Result<ValueId> {
        Ok(self.add(op, inputs)?[0])
    }

    /// Names a value as a result of the graph.
    pub fn output(&mut self, name: impl Into<String>, value: ValueId) {
        self.graph.outputs.push((name.into(), value));
    }

    /// The graph so far.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// The finished graph.
    pub fn finish(self) -> Graph {
        self.graph
    }
}
