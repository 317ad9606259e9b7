//! Low-rank adapters (LoRA, Hu et al. 2021) in a graph: y = W x becomes y = W x + s · B (A x).
//!
//! The base weight stays as it is, quantised or not; A and B are two more matrices, of experts two more stacks of matrices on
//! the same choices. The product B A is never made.

use super::{Builder, Program};
use crate::{
    error::{Error, Result},
    file::Tensor,
    ir::{Linear, Op, ValueId, WeightId},
};
use std::collections::BTreeMap;

/// An adapter of one matrix.
#[derive(Clone, Debug)]
pub struct LowRank {
    /// The canonical name of the weight that it changes.
    pub weight: String,
    /// A, `[r, in]`; of experts `[E, r, in]`.
    pub a: Tensor,
    /// B, `[out, r]`; of experts `[E, out, r]`.
    pub b: Tensor,
    /// The factor on what is added; 1 where it is in B already.
    pub scale: f32,
}

impl LowRank {
    /// r.
    pub fn rank(&self) -> usize {
        self.b.cols()
    }
}

/// The program with adapters; several of one weight add up.
///
/// # Errors
/// [`Error::Model`] for an adapter of a weight that the graph has not, or that is no matrix of a product, and for shapes that do
/// not fit the weight's.
pub fn with_low_rank(program: &Program, adapters: &[LowRank]) -> Result<Program> {
    let from = &*program.graph;
    let mut b = Builder::new();
    let mut weights = program.weights.to_vec();
    for w in &from.weights {
        b.weight(&w.name, &w.shape);
    }
    for c in &from.caches {
        b.cache(c.clone());
    }
    for s in &from.states {
        b.state(s.len);
    }
    let mut pairs: BTreeMap<WeightId, Vec<([WeightId; 2], f32)>> = BTreeMap::new();
    for (n, adapter) in adapters.iter().enumerate() {
        let weight = place(program, adapter)?;
        // Two adapters of one weight need two names.
        let name = |part: &str| match n {
            0 => format!("{}.lora_{part}", adapter.weight),
            n => format!("{}.lora_{part}.{n}", adapter.weight),
        };
        let pair = [b.weight(name("a"), adapter.a.shape()), b.weight(name("b"), adapter.b.shape())];
        weights.extend([adapter.a.clone(), adapter.b.clone()]);
        pairs.entry(weight).or_default().push((pair, adapter.scale));
    }
    let mut moved: Vec<ValueId> = Vec::with_capacity(from.values.len());
    for node in &from.nodes {
        b.set_layer(node.layer);
        let inputs: Vec<ValueId> = node.inputs.iter().map(|v| moved[v.0 as usize]).collect();
        let mut made = b.add(node.op.clone(), &inputs)?;
        if let Some((linear, again)) = product(&node.op) {
            for ([down, up], scale) in pairs.get(&linear.weight).into_iter().flatten() {
                let low = b.one(again(*down), &inputs)?; // [R, r] or [T, k·r]
                let further: Vec<ValueId> = std::iter::once(low).chain(inputs[1..].iter().copied()).collect();
                let mut add = b.one(again(*up), &further)?; // [R, out] or [T, k·out]
                if *scale != 1.0 {
                    add = b.one(Op::Scale(*scale), &[add])?;
                }
                made[0] = b.one(Op::Add, &[made[0], add])?;
            }
        }
        // Values are numbered in the order in which nodes make them.
        moved.extend(made);
    }
    b.set_layer(None);
    for (name, v) in &from.outputs {
        b.output(name.clone(), moved[v.0 as usize]);
    }
    Program::new(b.finish(), weights)
}

/// A product with a matrix.
type Product = fn(WeightId) -> Op;

/// The matrix of a product, and the same product with another matrix.
fn product(op: &Op) -> Option<(&Linear, Product)> {
    match op {
        Op::Linear(l) => Some((l, |weight| Op::Linear(Linear { weight, bias: None }))),
        Op::ExpertLinear(l) => Some((l, |weight| Op::ExpertLinear(Linear { weight, bias: None }))),
        _ => None,
    }
}

/// The weight that an adapter belongs to.
fn place(program: &Program, adapter: &LowRank) -> Result<WeightId> {
    let name = &adapter.weight;
    let graph = &program.graph;
    let at = graph.weights.iter().position(|w| w.name == *name);
    let at = at.ok_or_else(|| Error::Model(format!("the adapter changes `{name}`, which this model has not")))?;
    let id = WeightId(at as u32);
    let products = graph.nodes.iter().filter_map(|n| product(&n.op)).any(|(l, _)| l.weight == id);
    let looked_up = graph.nodes.iter().any(|n| matches!(n.op, Op::Embed { table, .. } if table == id));
    if !products || looked_up {
        let what = if looked_up { "a table that tokens are looked up in" } else { "no matrix of a product" };
        return Err(Error::Model(format!(
            "the adapter changes `{name}`, which is {what}: such adapters are not known here"
        )));
    }
    let shape = &graph.weights[at].shape;
    let (lead, [out, inp]) = match shape[..] {
        [out, inp] => (vec![], [out, inp]),
        [e, out, inp] => (vec![e], [out, inp]),
        _ => return Err(Error::Model(format!("the adapter changes `{name}`, which is no matrix"))),
    };
    let r = adapter.rank();
    let (a, b) = ([&lead[..], &[r, inp]].concat(), [&lead[..], &[out, r]].concat());
    if adapter.a.shape() != a || adapter.b.shape() != b {
        let (a, b) = (adapter.a.shape(), adapter.b.shape());
        return Err(Error::Model(format!(
            "the adapter of `{name}` {shape:?} has shapes {a:?} and {b:?}: it is of another model"
        )));
    }
    Ok(id)
}
