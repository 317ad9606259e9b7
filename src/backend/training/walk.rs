//! Training by walking the graph, node by node: of the reference by the pages' code alone, of other backends with code of their
//! own for some nodes.

use super::{Feed, Named, Parameter, Slot, Training};
use crate::{
    error::{Error, Result},
    graph::TrainProgram,
    ir::{Graph, Node, Type, ValueId},
    ops::{
        Real, Weights,
        linear::Activations,
        train::{Scope, Value, eval},
    },
};
use std::any::Any;

/// A backend's own code for nodes; `None` leaves a node to the reference code.
pub trait Nodes<T>: Send {
    /// `reference`, `cpu`, with what else is to be known.
    fn describe(&self) -> String;

    /// Evaluates a node.
    ///
    /// # Errors
    /// A sentence, or an error of a device.
    fn eval(&mut self, node: &Node, values: &[Value<T>], scope: &mut Scope<'_, T>) -> Result<Option<Vec<Value<T>>>>;

    /// A micro-batch begins.
    fn begin(&mut self) {}

    /// No micro-batch comes soon: memory for the next one may go.
    fn rest(&mut self) {}

    /// A trained weight was changed.
    fn changed(&mut self) {}

    /// Nobody reads this value any more: its memory is the backend's.
    fn gone(&mut self, value: Value<T>) {
        drop(value);
    }
}

/// Training in memory of this process.
pub struct Walk<T, N> {
    program: TrainProgram,
    nodes: N,
    owned: Vec<Option<Vec<T>>>,
    gradients: Vec<Option<Vec<T>>>,
    /// Of every value the last node that reads it in a whole micro-batch, and in an evaluation; `usize::MAX` for outputs.
    last: [Vec<usize>; 2],
}

impl<T: Real, N: Nodes<T>> Walk<T, N> {
    /// Takes the first values of the parameters from the program's tensors.
    pub fn new(mut program: TrainProgram, nodes: N) -> Self {
        let (mut owned, mut gradients) = (vec![None; program.weights.len()], vec![None; program.weights.len()]);
        for p in &program.parameters {
            let i = p.weight.0 as usize;
            let w = Weights::<T> { tensors: &program.weights, activations: Activations::F32, owned: &[] };
            let rows = program.weights[i].rows();
            let mut values = Vec::with_capacity(p.len());
            (0..rows).for_each(|r| values.extend(w.row(p.weight, r)));
            owned[i] = Some(values);
            gradients[i] = Some(vec![T::default(); p.len()]);
        }
        program.release_trained();
        let (graph, forward) = (&program.graph, &program.graph.nodes[..program.forward]);
        let evaluated = program.evaluation.as_ref().map_or((graph, forward), |g| (g, &g.nodes[..]));
        let last = [last_use(graph, &graph.nodes), last_use(evaluated.0, evaluated.1)];
        Walk { program, nodes, owned, gradients, last }
    }

    fn run(&mut self, feed: &Feed, backward: bool) -> Result<Vec<Named>> {
        if feed.rows == 0 {
            return Err(Error::Invalid("a micro-batch without rows".into()));
        }
        self.nodes.begin();
        let last = &self.last[usize::from(!backward)];
        let (graph, nodes) = match &self.program.evaluation {
            Some(graph) if !backward => (graph.clone(), graph.nodes.len()),
            Some(_) | None => {
                let graph = self.program.graph.clone();
                let nodes = if backward { graph.nodes.len() } else { self.program.forward };
                (graph, nodes)
            }
        };
        let mut values: Vec<Value<T>> = vec![Value::Nothing; graph.values.len()];
        for (i, node) in graph.nodes[..nodes].iter().enumerate() {
            let weights = Weights { tensors: &self.program.weights, activations: Activations::F32, owned: &self.owned };
            let mut scope = Scope { graph: &graph, weights, feed, gradients: &mut self.gradients };
            let own = self.nodes.eval(node, &values, &mut scope)?;
            let made = match own {
                Some(made) => made,
                None => eval(node, &values, &mut scope).map_err(Error::Invalid)?,
            };
            node.outputs.iter().zip(made).for_each(|(v, x)| values[v.0 as usize] = x);
            for v in node.inputs.iter().chain(&node.outputs).filter(|v| last[v.0 as usize] <= i) {
                self.nodes.gone(std::mem::replace(&mut values[v.0 as usize], Value::Nothing));
            }
        }
        let outputs = graph.outputs.iter();
        let results = outputs.filter_map(|(name, v)| named(name, graph.cols(*v), &values[v.0 as usize])).collect();
        values.into_iter().for_each(|v| self.nodes.gone(v));
        Ok(results)
    }

    fn own(&mut self, parameter: usize) -> Result<(usize, &Parameter)> {
        let p = self.program.parameters.get(parameter);
        let p = p.ok_or_else(|| Error::Invalid(format!("there is no parameter {parameter}")))?;
        Ok((p.weight.0 as usize, p))
    }
}

/// An output, where it was computed.
fn named<T: Real>(name: &str, cols: usize, v: &Value<T>) -> Option<Named> {
    let values = match v {
        Value::Numbers(a) => a.data.iter().map(|x| x.get()).collect(),
        Value::Ids(ids) => ids.iter().map(|id| f64::from(*id)).collect(),
        Value::Nothing => return None,
    };
    Some(Named { name: name.into(), cols, values })
}

fn last_use(graph: &Graph, nodes: &[Node]) -> Vec<usize> {
    let mut last = vec![0; graph.values.len()];
    for (i, node) in nodes.iter().enumerate() {
        node.inputs.iter().chain(&node.outputs).for_each(|v: &ValueId| last[v.0 as usize] = i);
    }
    graph.outputs.iter().for_each(|(_, v)| last[v.0 as usize] = usize::MAX);
    debug_assert!(graph.outputs.iter().all(|(_, v)| !matches!(graph.ty(*v), Type::Cache(_) | Type::Grad(_))));
    last
}

impl<T: Real, N: Nodes<T>> Training for Walk<T, N> {
    fn describe(&self) -> String {
        self.nodes.describe()
    }

    fn parameters(&self) -> &[Parameter] {
        &self.program.parameters
    }

    fn rest(&mut self) {
        self.nodes.rest();
    }

    fn micro(&mut self, feed: &Feed) -> Result<Vec<Named>> {
        // Inputs are missing or out of range in forward nodes only: nothing is added before those have run.
        self.run(feed, true)
    }

    fn evaluate(&mut self, feed: &Feed) -> Result<Vec<Named>> {
        self.run(feed, false)
    }

    fn each(&mut self, each: &mut dyn FnMut(Slot<'_>) -> Result<()>) -> Result<()> {
        for (index, parameter) in self.program.parameters.iter().enumerate() {
            let i = parameter.weight.0 as usize;
            let (Some(weight), Some(gradient)) = (&mut self.owned[i], &mut self.gradients[i]) else { continue };
            let f32s = |x: &[T]| x.iter().map(|v| v.get() as f32).collect::<Vec<f32>>();
            if let (Some(weight), Some(gradient)) = (as_f32(weight), as_f32(gradient)) {
                each(Slot { index, parameter, weight, gradient })?;
                continue;
            }
            let (before, g) = (f32s(weight), f32s(gradient));
            let (mut after, mut changed) = (before.clone(), g.clone());
            each(Slot { index, parameter, weight: &mut after, gradient: &mut changed })?;
            for (to, (old, new)) in [(weight, (before, after)), (gradient, (g, changed))] {
                // What is not changed keeps the digits that f32 has not.
                let pairs = to.iter_mut().zip(old).zip(new).filter(|((_, old), new)| old != new);
                pairs.for_each(|((to, _), new)| *to = T::of(f64::from(new)));
            }
        }
        self.nodes.changed();
        Ok(())
    }

    fn clear(&mut self) -> Result<()> {
        self.gradients.iter_mut().flatten().for_each(|g| g.fill(T::default()));
        Ok(())
    }

    fn read(&mut self, parameter: usize) -> Result<Vec<f64>> {
        let (i, _) = self.own(parameter)?;
        Ok(self.owned[i].iter().flatten().map(|v| v.get()).collect())
    }

    fn write(&mut self, parameter: usize, values: &[f64]) -> Result<()> {
        let (i, p) = self.own(parameter)?;
        if p.len() != values.len() {
            return Err(Error::Invalid(format!("{} numbers for {} of {:?}", values.len(), p.name, p.shape)));
        }
        self.owned[i] = Some(values.iter().map(|v| T::of(*v)).collect());
        self.nodes.changed();
        Ok(())
    }

    fn gradient(&mut self, parameter: usize) -> Result<Vec<f64>> {
        let (i, _) = self.own(parameter)?;
        Ok(self.gradients[i].iter().flatten().map(|v| v.get()).collect())
    }
}

/// The numbers, where they are f32.
#[expect(clippy::ptr_arg, reason = "a slice is no sized type, which `Any` wants")]
fn as_f32<T: Real>(x: &mut Vec<T>) -> Option<&mut Vec<f32>> {
    (x as &mut dyn Any).downcast_mut()
}
