//! A graph with its weights: what a model is to a backend.

use crate::{
    error::{Error, Result},
    file::Tensor,
    ir::Graph,
};
use std::sync::Arc;

/// What to run: a graph as the model room made it (unfused; a backend applies `fuse` itself where it
/// wants the fused ops) and its weights, in the order of `graph.weights`.
#[derive(Clone, Debug)]
pub struct Program {
    /// The graph, checked.
    pub graph: Arc<Graph>,
    /// One tensor for each of `graph.weights`, of the declared shape.
    pub weights: Arc<Vec<Tensor>>,
}

impl Program {
    /// Pairs a graph with its weights.
    ///
    /// # Errors
    /// [`Error::Graph`] where the graph is malformed; [`Error::Model`] where a weight's shape is not the declared one.
    pub fn new(graph: Graph, weights: Vec<Tensor>) -> Result<Self> {
        super::check(&graph)?;
        if graph.weights.len() != weights.len() {
            return Err(Error::Model(format!("{} weights for {} declared", weights.len(), graph.weights.len())));
        }
        for (d, t) in graph.weights.iter().zip(&weights) {
            if d.shape != t.shape() {
                return Err(Error::Model(format!("{} has shape {:?}, expected {:?}", d.name, t.shape(), d.shape)));
            }
        }
        Ok(Program { graph: Arc::new(graph), weights: Arc::new(weights) })
    }
}
