//! For training: the results of experts are weighed in front of their last matrix instead of behind it.
//!
//! `Σ_j w_j (W_j h_j)` is `Σ_j W_j (w_j h_j)`. The second form keeps the units, which a gradient needs anyway, and not what comes out of
//! every slot; all slots of a token have one gradient then, and a weight's is a product over units. Where experts are wider inside than
//! outside, or have biases behind that matrix, graphs stay as they are.

use super::rewrite::Rewrite;
use crate::{
    error::Result,
    ir::{Graph, Linear, Math, Node, Op, ValueId},
};
use std::collections::HashMap;

/// The graph in that form.
///
/// # Errors
/// [`crate::Error::Graph`] for a graph whose values are used before they are made.
pub(super) fn weigh_units(graph: &Graph) -> Result<Graph> {
    let lasts = last_matrices(graph);
    if lasts.is_empty() {
        return Ok(graph.clone());
    }
    let mut out = Rewrite::new(graph);
    for node in &graph.nodes {
        let own = node.outputs.first().is_some_and(|v| lasts.contains_key(v));
        match (&node.op, node.inputs.first().and_then(|v| lasts.get(v))) {
            _ if own => {}
            (Op::ExpertCombine, Some(last)) => {
                let [h, ids] = [out.value(last.inputs[0])?, out.value(last.inputs[1])?];
                let weights = out.value(node.inputs[1])?;
                out.builder.set_layer(node.layer);
                let scaled = out.builder.math(Math::ScaleSlots { shared: false }, &[h, weights])?;
                let y = out.builder.one(last.op.clone(), &[scaled, ids])?;
                let y = out.builder.math(Math::SumSlots { slots: graph.cols(node.inputs[1]) }, &[y])?;
                out.values.insert(node.outputs[0], y);
            }
            _ => drop(out.copy(node)?),
        }
    }
    out.finish()
}

/// The experts' last matrices that can be so, by what they make.
fn last_matrices(graph: &Graph) -> HashMap<ValueId, &Node> {
    let mut lasts = HashMap::new();
    for node in &graph.nodes {
        let Op::ExpertLinear(Linear { weight, bias: None }) = &node.op else { continue };
        let (shape, k) = (&graph.weight(*weight).shape, graph.cols(node.inputs[1]));
        if k > 1 && shape[2] <= shape[1] && graph.cols(node.inputs[0]) == k * shape[2] {
            lasts.insert(node.outputs[0], node);
        }
    }
    // Read once, by a weighed sum.
    let mut readers: HashMap<ValueId, Vec<&Op>> = HashMap::new();
    for node in &graph.nodes {
        node.inputs.iter().for_each(|v| readers.entry(*v).or_default().push(&node.op));
    }
    let outputs = |v: &ValueId| graph.outputs.iter().any(|(_, o)| o == v);
    lasts.retain(|v, _| matches!(readers.get(v).map(Vec::as_slice), Some([Op::ExpertCombine])) && !outputs(v));
    lasts
}
