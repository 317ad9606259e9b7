//! A program that trains: forward and backward in one graph, and the weights that are trained.

use super::{Parameter, Program, check, differentiate, fuse::fuse_training, weighed::weigh_units};
use crate::{
    error::{Error, Result},
    file::Tensor,
    ir::{Graph, Math, Node, Op, Rows, ValueId, WeightId},
};
use std::{collections::BTreeSet, sync::Arc};

/// The name of the output that is differentiated.
pub const LOSS: &str = "loss";

/// See the module's description. Made of a [`Program`] whose graph has an output [`LOSS`].
#[derive(Clone, Debug)]
pub struct TrainProgram {
    /// Forward nodes, then backward nodes; checked.
    pub graph: Arc<Graph>,
    /// How many nodes are forward.
    pub forward: usize,
    /// What evaluation runs, where it is not the forward nodes: a graph without noise, dropout and capacity.
    pub evaluation: Option<Arc<Graph>>,
    /// The weights as they stand before training, by weight id: first values of those that are trained.
    pub weights: Arc<Vec<Tensor>>,
    /// What is trained, in the order of the graph's declarations.
    pub parameters: Vec<Parameter>,
    /// Names of trained weights that the loss does not depend on: their gradient is always 0.
    pub unreached: Vec<String>,
}

impl TrainProgram {
    /// Differentiates a program by the weights whose names `trained` accepts, and by the inputs `wanted`, whose gradients
    /// become outputs `grad.<input>`.
    ///
    /// # Errors
    /// [`Error::Graph`] without a loss; [`Error::Invalid`] where nothing is trained or an input is not there;
    /// [`Error::Unsupported`] for ops without a gradient.
    pub fn new(program: &Program, trained: &dyn Fn(&str) -> bool, wanted: &[&str]) -> Result<TrainProgram> {
        let graph = &weigh_units(&program.graph)?;
        let loss = graph.outputs.iter().find(|(n, _)| n == LOSS).map(|(_, v)| *v);
        let loss = loss.ok_or_else(|| Error::Graph(format!("a graph without an output `{LOSS}` cannot be trained")))?;
        let read: BTreeSet<WeightId> = graph.nodes.iter().flat_map(|n| n.op.weights()).collect();
        let chosen = read.into_iter().filter(|w| trained(&graph.weight(*w).name));
        let ids: BTreeSet<WeightId> = chosen.collect();
        if ids.is_empty() && wanted.is_empty() {
            return Err(Error::Invalid("no weight is left to train: all are frozen".into()));
        }
        let inputs = wanted.iter().map(|name| input(graph, name)).collect::<Result<Vec<_>>>()?;
        let mut d = differentiate(graph, loss, &ids, &inputs)?;
        for (name, v) in wanted.iter().zip(&d.wanted) {
            d.graph.outputs.extend(v.map(|v| (format!("grad.{name}"), v)));
        }
        check(&d.graph)?;
        let parameter = |w: &WeightId| {
            let decl = graph.weight(*w);
            Parameter { name: decl.name.clone(), shape: decl.shape.clone(), weight: *w }
        };
        Ok(TrainProgram {
            forward: d.forward,
            evaluation: None,
            weights: program.weights.clone(),
            parameters: ids.iter().map(parameter).collect(),
            unreached: d.unreached.iter().map(|w| graph.weight(*w).name.clone()).collect(),
            graph: Arc::new(d.graph),
        })
    }
}

impl TrainProgram {
    /// The same with a graph of its own for evaluation, on the same weights.
    ///
    /// # Errors
    /// [`Error::Graph`] for a graph that is not well-formed, or whose weights are not the first of this program's.
    pub fn evaluating(mut self, graph: Graph) -> Result<TrainProgram> {
        check(&graph)?;
        if !self.graph.weights.starts_with(&graph.weights) {
            return Err(Error::Graph("evaluation with other weights than training has".into()));
        }
        self.evaluation = Some(Arc::new(graph));
        Ok(self)
    }
}

impl TrainProgram {
    /// The same training in fewer ops, for backends that have them.
    pub(crate) fn fused(&self) -> TrainProgram {
        let graph = fuse_training(&self.graph);
        // Nodes keep their order: what is forward ends with the same values.
        let forward = &self.graph.nodes[..self.forward];
        let made: BTreeSet<ValueId> = forward.iter().flat_map(|n| &n.outputs).copied().collect();
        let forward = graph.nodes.iter().filter(|n| n.outputs.iter().all(|v| made.contains(v))).count();
        let evaluation = self.evaluation.as_ref().map(|g| Arc::new(fuse_training(g)));
        TrainProgram { graph: Arc::new(graph), forward, evaluation, ..self.clone() }
    }

    /// Lets go of the first values of what is trained: a backend has them now.
    pub(crate) fn release_trained(&mut self) {
        let weights = Arc::make_mut(&mut self.weights);
        for p in &self.parameters {
            let t = &mut weights[p.weight.0 as usize];
            *t = t.elsewhere();
        }
    }
}

/// The value of an input of numbers.
fn input(graph: &Graph, name: &str) -> Result<ValueId> {
    let found = graph.nodes.iter().find(|n| match &n.op {
        Op::Input { name: n, .. } | Op::Math(Math::Numbers { name: n, .. }) => n == name,
        _ => false,
    });
    found.map(|n| n.outputs[0]).ok_or_else(|| Error::Invalid(format!("the graph has no input `{name}`")))
}

/// Refuses a graph that only training runs.
///
/// # Errors
/// [`Error::Unsupported`] names the op.
pub fn inference_only(graph: &Graph) -> Result<()> {
    let of_training = |n: &&Node| {
        let fixed = n.outputs.iter().any(|v| matches!(graph.ty(*v).dims(), Some((Rows::Fixed(_), _))));
        matches!(n.op, Op::Math(_) | Op::Grad(_)) || fixed
    };
    match graph.nodes.iter().find(of_training) {
        Some(n) => {
            Err(Error::Unsupported(format!("{} is an op of training and does not run as inference", n.op.name())))
        }
        None => Ok(()),
    }
}
