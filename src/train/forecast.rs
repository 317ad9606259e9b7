//! What a step takes: memory and arithmetic, from the graph alone.

use crate::{
    graph::TrainProgram,
    ir::{Grad, Graph, Node, Op, Rows, Type, ValueId, WeightId},
};

/// What training takes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Forecast {
    /// Bytes of weights that are trained, f32.
    pub weights: u64,
    /// Bytes of their gradients.
    pub gradients: u64,
    /// Bytes of the optimizer's state.
    pub optimizer: u64,
    /// Bytes of values that are alive at once at most in a micro-batch, with what the op under way takes beside them.
    pub values: u64,
    /// Bytes of weights that stay as they are.
    pub frozen: u64,
    /// Bytes of the first values of trained weights where these were made in memory: they are kept, for what is written at the end.
    pub first: u64,
    /// Multiplications and additions of matrix products in a micro-batch, forwards and backwards.
    pub flops: f64,
}

impl Forecast {
    /// Of a micro-batch of so many rows; `optimizer` is the size of the optimizer's state, in bytes.
    pub fn new(program: &TrainProgram, rows: usize, optimizer: u64) -> Forecast {
        let trained: u64 = program.parameters.iter().map(|p| 4 * p.len() as u64).sum();
        let mut is_trained = vec![false; program.weights.len()];
        program.parameters.iter().for_each(|p| is_trained[p.weight.0 as usize] = true);
        let frozen = program.weights.iter().zip(&is_trained).filter(|(_, trained)| !**trained);
        // Those of a mapped file are the system's to give back.
        let first = program.parameters.iter().flat_map(|p| program.weights[p.weight.0 as usize].parts());
        Forecast {
            weights: trained,
            gradients: trained,
            optimizer,
            values: peak(&program.graph, &program.graph.nodes, rows),
            frozen: frozen.map(|(t, _)| t.byte_len() as u64).sum(),
            first: first.filter(|bytes| !bytes.is_mapped()).map(|bytes| bytes.len() as u64).sum(),
            flops: program.graph.nodes.iter().map(|n| flops(&program.graph, &n.op, &n.inputs, rows)).sum(),
        }
    }

    /// Bytes in all.
    pub fn bytes(&self) -> u64 {
        self.weights + self.gradients + self.optimizer + self.values + self.frozen + self.first
    }
}

/// Rows and columns of a value.
fn count(ty: Type, rows: usize) -> (usize, usize) {
    match ty.dims() {
        Some((Rows::Fixed(n), cols)) => (n, cols),
        Some((Rows::Tokens | Rows::Outputs, cols)) => (rows, cols),
        None => (0, 0),
    }
}

/// Bytes of values that are alive at once at most in an evaluation of so many rows.
pub(super) fn evaluation(program: &TrainProgram, rows: usize) -> u64 {
    match &program.evaluation {
        Some(graph) => peak(graph, &graph.nodes, rows),
        None => peak(&program.graph, &program.graph.nodes[..program.forward], rows),
    }
}

/// Bytes of values of these nodes that are alive at once at most: each from the node that makes it to the last that reads it.
fn peak(graph: &Graph, nodes: &[Node], rows: usize) -> u64 {
    let size = |v: usize| {
        let (r, c) = count(graph.values[v], rows);
        4 * (r * c) as u64
    };
    let mut last = vec![0usize; graph.values.len()];
    for (i, node) in nodes.iter().enumerate() {
        node.inputs.iter().chain(&node.outputs).for_each(|v| last[v.0 as usize] = i);
    }
    graph.outputs.iter().for_each(|(_, v)| last[v.0 as usize] = usize::MAX);
    let (mut now, mut most) = (0u64, 0u64);
    for (i, node) in nodes.iter().enumerate() {
        now += node.outputs.iter().map(|v| size(v.0 as usize)).sum::<u64>();
        most = most.max(now + packed(graph, &node.op, &node.inputs, rows));
        let mut ended: Vec<u32> = node.inputs.iter().chain(&node.outputs).map(|v| v.0).collect();
        ended.sort_unstable();
        ended.dedup();
        now -= ended.into_iter().filter(|v| last[*v as usize] == i).map(|v| size(v as usize)).sum::<u64>();
    }
    most
}

/// Numbers of a matrix that a product forwards copies at once, at most, as `backend::cpu` has it.
const MOST_PACKED: usize = 4 << 20;

/// Bytes of the copies that a product on the CPU makes of its operands: of the matrix, or of both where it sums over rows. Of experts
/// these are one expert's, with its share of the rows.
fn packed(graph: &Graph, op: &Op, inputs: &[ValueId], rows: usize) -> u64 {
    let matrix = |w: WeightId| graph.weight(w).shape.iter().rev().take(2).product::<usize>();
    let sides = |w: WeightId| graph.weight(w).shape.iter().rev().take(2).sum::<usize>();
    let numbers = match op {
        Op::Linear(l) | Op::ExpertLinear(l) => matrix(l.weight).min(MOST_PACKED),
        Op::Grad(Grad::LinearInput { weight } | Grad::ExpertInput { weight }) => matrix(*weight),
        Op::Grad(Grad::Outer { into }) => rows * sides(*into),
        Op::Grad(Grad::ExpertOuter { into }) => {
            let slots = inputs.get(2).map_or(1, |ids| graph.cols(*ids)) * rows;
            slots / graph.weight(*into).shape[0].max(1) * sides(*into)
        }
        _ => 0,
    };
    4 * numbers as u64
}

/// Multiplications and additions of a node that is a matrix product.
fn flops(graph: &Graph, op: &Op, inputs: &[ValueId], rows: usize) -> f64 {
    let numbers = |w: WeightId| graph.weight(w).shape.iter().rev().take(2).product::<usize>() as f64;
    let slots = |ids: usize| inputs.get(ids).map_or(1, |v| graph.cols(*v)) as f64;
    let products = match op {
        Op::Linear(l) => numbers(l.weight),
        Op::ExpertLinear(l) => numbers(l.weight) * slots(1),
        Op::Grad(Grad::LinearInput { weight }) => numbers(*weight),
        Op::Grad(Grad::Outer { into }) => numbers(*into),
        Op::Grad(Grad::ExpertInput { weight }) => numbers(*weight) * slots(1),
        Op::Grad(Grad::ExpertOuter { into }) => numbers(*into) * slots(2),
        _ => 0.0,
    };
    2.0 * products * rows as f64
}
