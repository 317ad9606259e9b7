//! The routers of a model's graph in training: noise before them, and other numbers of experts.
//!
//! `logits + std · N(0, 1)` before the choice, the std constant or learned (`softplus` of a matrix on the router's input: Shazeer et
//! al. 2017), and factors between 1 − e and 1 + e on the router's input (Fedus et al. 2021). Evaluation is without: it takes the graph
//! without these nodes.

use super::{rewrite::Rewrite, routers::ungrouped};
use crate::{
    error::{Error, Result},
    ir::{Arithmetic, Distribution, Function, Graph, Linear, Math, Node, Op, ValueId},
};
use std::collections::HashMap;

/// What the matrix of a noise's size is called, behind its layer.
pub const NOISE_ROUTER: &str = "ffn_noise_inp.weight";

/// Noise before a router's choice.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RouterNoise {
    /// Standard deviation of normal noise on the logits; 0: none.
    pub std: f64,
    /// Whether the deviation is learned, from a matrix `blk.N.` and [`NOISE_ROUTER`] `[E, H]` on the router's input:
    /// `std · softplus(W x)`.
    pub learned: bool,
    /// e: factors between 1 − e and 1 + e on the router's input; 0: none.
    pub jitter: f64,
    /// Whether routed experts read the input with these factors, too (Hugging Face's Mixtral), and not the router alone (Switch
    /// Transformer).
    pub jitter_experts: bool,
}

/// Puts noise before every router. Its logits, as `routers` gives them, are then the noisy ones. The input of a router with
/// hidden layers is that of the first.
///
/// # Errors
/// [`Error::Invalid`] for numbers out of range or a model without routers; [`Error::Unsupported`] for a router whose logits are not made
/// by a matrix, for a router over groups, and for factors on what experts read where that is not what the router reads.
pub fn with_router_noise(graph: &Graph, noise: RouterNoise) -> Result<Graph> {
    if !(noise.std >= 0.0 && noise.std.is_finite() && (0.0..1.0).contains(&noise.jitter)) {
        return Err(Error::Invalid(format!("noise of {} and jitter of {} before routers", noise.std, noise.jitter)));
    }
    let routers = super::routers(graph);
    if routers.is_empty() {
        return Err(Error::Invalid("noise before routers in a model that has none".into()));
    }
    ungrouped(&routers, "noise before")?;
    let places = routers.iter().map(|r| place(graph, r.logits)).collect::<Result<Vec<_>>>()?;
    let mut rewrite = Rewrite::new(graph);
    // The input of each router as its first matrix reads it: with factors.
    let mut inputs = vec![None; places.len()];
    // The same by what the model's own graph has there, for experts; and whether any reads it.
    let (mut of_experts, mut read) = (HashMap::new(), false);
    for (i, node) in graph.nodes.iter().enumerate() {
        let mut made = None;
        if let Some(n) = places.iter().position(|p| p.first == i) {
            let input = rewrite.jittered(node, noise, places[n].last as u32)?;
            inputs[n] = Some(input);
            of_experts.insert(node.inputs[0], input);
            rewrite.builder.set_layer(node.layer);
            made = Some(rewrite.builder.one(node.op.clone(), &[input])?);
        }
        if let Some(n) = places.iter().position(|p| p.last == i)
            && let Some(input) = inputs[n]
        {
            let clean = match made {
                Some(clean) => clean,
                None => rewrite.copy(node)?[0],
            };
            made = Some(rewrite.noisy(node, [input, clean], noise, i as u32)?);
        }
        match made {
            Some(v) => {
                rewrite.values.insert(node.outputs[0], v);
            }
            None if noise.jitter_experts && matches!(node.op, Op::ExpertLinear(_) | Op::ScaleExpertInputs) => {
                read |= rewrite.copy_reading(node, &of_experts)?;
            }
            None => {
                rewrite.copy(node)?;
            }
        }
    }
    if noise.jitter_experts && !read {
        return Err(Error::Unsupported("jitter of what experts read, where the router reads something else".into()));
    }
    rewrite.finish()
}

/// The nodes of a router's first and last matrix.
struct Place {
    first: usize,
    last: usize,
}

/// Where the matrices are that make these logits: between two of them is an activation.
fn place(graph: &Graph, logits: ValueId) -> Result<Place> {
    let maker = |v: ValueId| graph.nodes.iter().position(|n| n.outputs.contains(&v));
    let matrix = |v: ValueId| maker(v).filter(|i| matches!(graph.nodes[*i].op, Op::Linear(_)));
    let Some(last) = matrix(logits) else {
        return Err(Error::Unsupported("noise before a router whose logits are not made by a matrix".into()));
    };
    let before = |i: usize| {
        let act = maker(graph.nodes[i].inputs[0]).filter(|i| matches!(graph.nodes[*i].op, Op::Act(_)))?;
        matrix(graph.nodes[act].inputs[0])
    };
    let mut first = last;
    while let Some(earlier) = before(first) {
        first = earlier;
    }
    Ok(Place { first, last })
}

/// The same graph with routers that choose `used` experts: what a schedule from dense to sparse trains by turns, on the same weights.
///
/// # Errors
/// [`Error::Invalid`] for more experts than there are, and for a model without routers.
pub fn with_experts_used(graph: &Graph, used: usize) -> Result<Graph> {
    let routers = super::routers(graph);
    if routers.is_empty() {
        return Err(Error::Invalid("a number of experts for a model that has none".into()));
    }
    ungrouped(&routers, "another number of experts for")?;
    let mut rewrite = Rewrite::new(graph);
    for node in &graph.nodes {
        let mut node = node.clone();
        if let Op::Router(r) = &mut node.op {
            r.used = used;
            r.check().map_err(Error::Invalid)?;
        }
        rewrite.copy(&node)?;
    }
    rewrite.finish()
}

impl Rewrite<'_> {
    /// Copies a node that reads another value, where its first input has one in `instead`; gives whether it has.
    fn copy_reading(&mut self, node: &Node, instead: &HashMap<ValueId, ValueId>) -> Result<bool> {
        let Some((x, input)) = node.inputs.first().and_then(|x| Some((*x, *instead.get(x)?))) else {
            self.copy(node)?;
            return Ok(false);
        };
        let own = self.value(x)?;
        self.values.insert(x, input);
        self.copy(node)?;
        self.values.insert(x, own);
        Ok(true)
    }

    /// The input of a router's first matrix, with factors where there are some.
    fn jittered(&mut self, node: &Node, noise: RouterNoise, stream: u32) -> Result<ValueId> {
        let x = self.value(node.inputs[0])?;
        if noise.jitter == 0.0 {
            return Ok(x);
        }
        self.builder.set_layer(node.layer);
        let b = &mut self.builder;
        let cols = b.graph().cols(x);
        let uniform = b.math(Math::Noise { distribution: Distribution::Uniform, cols, stream: 2 * stream }, &[])?;
        let factors = b.math(Math::Affine { factor: 2.0 * noise.jitter, shift: 1.0 - noise.jitter }, &[uniform])?;
        b.times(x, factors)
    }

    /// The clean logits of a router with noise; `input` is what its first matrix reads.
    fn noisy(&mut self, node: &Node, [input, clean]: [ValueId; 2], noise: RouterNoise, stream: u32) -> Result<ValueId> {
        if noise.std == 0.0 {
            return Ok(clean);
        }
        self.builder.set_layer(node.layer);
        let b = &mut self.builder;
        let (experts, hidden) = (self.graph.cols(node.outputs[0]), b.graph().cols(input));
        let normal = Math::Noise { distribution: Distribution::Normal, cols: experts, stream: 2 * stream + 1 };
        let normal = b.math(normal, &[])?;
        let std = if noise.learned {
            let name = match node.layer {
                Some(layer) => format!("blk.{layer}.{NOISE_ROUTER}"),
                None => NOISE_ROUTER.into(),
            };
            let weight = b.weight(name, &[experts, hidden]);
            let scale = b.one(Op::Linear(Linear { weight, bias: None }), &[input])?;
            let soft = b.apply(Function::Softplus, scale)?;
            b.scaled(soft, noise.std)?
        } else {
            b.math(Math::Constant { value: noise.std, cols: 1 }, &[])?
        };
        let added = b.math(Math::Binary(Arithmetic::Mul), &[normal, std])?;
        b.plus(clean, added)
    }
}
