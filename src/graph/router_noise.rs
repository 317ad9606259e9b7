//! The routers of a model's graph in training: noise before them, and other numbers of experts.
//!
//! `logits + std · N(0, 1)` before the choice, the std constant or learned (`softplus` of a matrix on the router's input: Shazeer et
//! al. 2017), and factors between 1 − e and 1 + e on the router's input (Fedus et al. 2021). Evaluation is without: it takes the graph
//! without these nodes.

use super::rewrite::Rewrite;
use crate::{
    error::{Error, Result},
    ir::{Arithmetic, Distribution, Function, Graph, Linear, Math, Node, Op, ValueId},
};

/// Noise before a router's choice.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RouterNoise {
    /// Standard deviation of normal noise on the logits; 0: none.
    pub std: f64,
    /// Whether the deviation is learned, from a matrix `<router>` → `blk.N.ffn_noise_inp.weight` `[E, H]`: `std · softplus(W x)`.
    pub learned: bool,
    /// e: factors between 1 − e and 1 + e on the router's input; 0: none.
    pub jitter: f64,
}

/// Puts noise before every router. Its logits, as [`super::routers`] gives them, are then the noisy ones.
///
/// # Errors
/// [`Error::Invalid`] for numbers out of range or a model without routers; [`Error::Unsupported`] for a router whose logits are not made
/// by a matrix.
pub fn with_router_noise(graph: &Graph, noise: RouterNoise) -> Result<Graph> {
    if !(noise.std >= 0.0 && noise.std.is_finite() && (0.0..1.0).contains(&noise.jitter)) {
        return Err(Error::Invalid(format!("noise of {} and jitter of {} before routers", noise.std, noise.jitter)));
    }
    let routers = super::routers(graph);
    if routers.is_empty() {
        return Err(Error::Invalid("noise before routers in a model that has none".into()));
    }
    let mut rewrite = Rewrite::new(graph);
    for (i, node) in graph.nodes.iter().enumerate() {
        if !routers.iter().any(|r| node.outputs.contains(&r.logits)) {
            rewrite.copy(node)?;
            continue;
        }
        let Op::Linear(l) = &node.op else {
            return Err(Error::Unsupported("noise before a router whose logits are not made by a matrix".into()));
        };
        let logits = rewrite.noisy(node, l, noise, i as u32)?;
        rewrite.values.insert(node.outputs[0], logits);
    }
    rewrite.finish()
}

/// The same graph with routers that choose `used` experts: what a schedule from dense to sparse trains by turns, on the same weights.
///
/// # Errors
/// [`Error::Invalid`] for more experts than there are, and for a model without routers.
pub fn with_experts_used(graph: &Graph, used: usize) -> Result<Graph> {
    if super::routers(graph).is_empty() {
        return Err(Error::Invalid("a number of experts for a model that has none".into()));
    }
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
    /// The logits of a router's matrix with noise.
    fn noisy(&mut self, node: &Node, l: &Linear, noise: RouterNoise, stream: u32) -> Result<ValueId> {
        let x = self.value(node.inputs[0])?;
        self.builder.set_layer(node.layer);
        let b = &mut self.builder;
        let (experts, hidden) = (self.graph.cols(node.outputs[0]), b.graph().cols(x));
        let mut input = x;
        if noise.jitter > 0.0 {
            let uniform = Math::Noise { distribution: Distribution::Uniform, cols: hidden, stream: 2 * stream };
            let uniform = b.math(uniform, &[])?;
            let factors = b.math(Math::Affine { factor: 2.0 * noise.jitter, shift: 1.0 - noise.jitter }, &[uniform])?;
            input = b.times(x, factors)?;
        }
        let clean = b.one(Op::Linear(*l), &[input])?;
        if noise.std == 0.0 {
            return Ok(clean);
        }
        let normal = Math::Noise { distribution: Distribution::Normal, cols: experts, stream: 2 * stream + 1 };
        let normal = b.math(normal, &[])?;
        let std = if noise.learned {
            let name = match node.layer {
                Some(layer) => format!("blk.{layer}.ffn_noise_inp.weight"),
                None => "ffn_noise_inp.weight".into(),
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
