//! A graph in two: what a device computes, and the routed experts of some layers, which its host computes in between.
//!
//! The experts of a layer are a region of the graph: the products with experts' matrices, the weighted sum behind them, and whatever
//! lies between (activations, low-rank adapters). What goes in are the experts' input and the router's choice, what comes out is one
//! vector a token. In the device's graph one node stands for the region ([`Op::HostExperts`]); the host's graph has the regions
//! alone, under the same numbers of values and weights. Router and shared expert stay with the device.

use crate::{
    error::{Error, Result},
    ir::{Graph, Math, Node, Op, Rows, Type, ValueId, WeightId},
};
use std::collections::{BTreeMap, BTreeSet};

/// See the module's description.
#[derive(Clone, Debug, PartialEq)]
pub struct Split {
    /// What the device computes.
    pub device: Graph,
    /// What the host computes: the regions, each behind nodes that stand for what goes in.
    pub host: Graph,
    /// The regions, in the order in which the device meets them. [`Op::HostExperts`] has their number.
    pub regions: Vec<Region>,
}

/// The experts of one layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Region {
    /// The transformer layer.
    pub layer: u32,
    /// What goes in, in the order of the device's node: f32 or u32 `[T, cols]`.
    pub inputs: Vec<ValueId>,
    /// What comes out: f32 `[T, cols]`.
    pub output: ValueId,
    /// In the host's graph: zeros that the host adds its result to, for the last product of experts and the sum over them is one op
    /// together with a residual.
    pub zeros: ValueId,
    /// In the host's graph: the sum of zeros and the output, which is the result.
    pub result: ValueId,
}

/// The weights of the routed experts of each layer that has any.
pub fn expert_weights(graph: &Graph) -> BTreeMap<u32, Vec<WeightId>> {
    let mut out: BTreeMap<u32, Vec<WeightId>> = BTreeMap::new();
    for node in graph.nodes.iter().filter(|n| is_expert(graph, n)) {
        if let Some(layer) = node.layer {
            out.entry(layer).or_default().extend(node.op.weights());
        }
    }
    out
}

/// Whether a node multiplies with the matrices of experts that a router chose; heads with matrices of their own are no experts.
fn is_expert(graph: &Graph, node: &Node) -> bool {
    node.op.is_routed() && node.inputs.get(1).is_some_and(|ids| is_chosen(graph, *ids))
}

/// Whether ids are a router's choice, as it made them or as those of its experts that are here.
fn is_chosen(graph: &Graph, ids: ValueId) -> bool {
    let maker = graph.nodes.iter().find(|n| n.outputs.contains(&ids));
    maker.is_some_and(|n| match n.op {
        Op::Router(_) | Op::NormRouter { .. } => true,
        Op::LocalIds { .. } => is_chosen(graph, n.inputs[0]),
        _ => false,
    })
}

/// Leaves the experts of these layers to the host.
///
/// # Errors
/// [`Error::Invalid`] for a layer without routed experts, [`Error::Unsupported`] for experts whose results are not one vector a token.
pub fn split_experts(graph: &Graph, layers: &BTreeSet<u32>) -> Result<Split> {
    let with_experts = expert_weights(graph);
    if let Some(layer) = layers.iter().find(|l| !with_experts.contains_key(l)) {
        return Err(Error::Invalid(format!("layer {layer} has no routed experts that the processor could compute")));
    }
    let regions: Vec<(u32, Vec<bool>)> = layers.iter().map(|l| (*l, region(graph, *l))).collect();
    let mut split = Split {
        device: Graph { nodes: vec![], ..graph.clone() },
        host: Graph { nodes: vec![], caches: vec![], states: vec![], outputs: vec![], ..graph.clone() },
        regions: vec![],
    };
    for (i, node) in graph.nodes.iter().enumerate() {
        let Some((layer, inside)) = regions.iter().find(|r| r.1[i]) else {
            split.device.nodes.push(node.clone());
            continue;
        };
        // The last node of a region stands where all that goes in was made, and before all that uses what comes out.
        if inside[i + 1..].contains(&true) {
            continue;
        }
        split.add(graph, *layer, inside)?;
    }
    Ok(split)
}

/// Of each node whether it belongs to the experts of a layer: their products, the sums behind them, and what lies between two of these.
pub(super) fn region(graph: &Graph, layer: u32) -> Vec<bool> {
    let n = graph.nodes.len();
    let mut maker = vec![None; graph.values.len()];
    for (i, node) in graph.nodes.iter().enumerate() {
        node.outputs.iter().for_each(|v| maker[v.0 as usize] = Some(i));
    }
    let makers = |i: usize| graph.nodes[i].inputs.iter().filter_map(|v| maker[v.0 as usize]);
    let own = |i: usize| graph.nodes[i].layer == Some(layer);
    let experts: Vec<bool> = (0..n).map(|i| own(i) && is_expert(graph, &graph.nodes[i])).collect();
    let (mut behind, mut before) = (experts.clone(), experts);
    for i in 0..n {
        behind[i] |= own(i) && makers(i).any(|m| behind[m]);
    }
    for i in (0..n).rev() {
        before[i] |= behind[i] && matches!(graph.nodes[i].op, Op::ExpertCombine);
        if before[i] {
            makers(i).for_each(|m| before[m] = true);
        }
    }
    (0..n).map(|i| own(i) && behind[i] && before[i]).collect()
}

impl Split {
    /// A new value of the host's graph, f32 `[T, cols]`.
    fn host_value(&mut self, cols: usize) -> ValueId {
        self.host.values.push(Type::F32(Rows::Tokens, cols));
        ValueId(self.host.values.len() as u32 - 1)
    }

    fn add(&mut self, graph: &Graph, layer: u32, inside: &[bool]) -> Result<()> {
        let nodes = || graph.nodes.iter().zip(inside).filter(|n| *n.1).map(|n| n.0);
        let made: BTreeSet<ValueId> = nodes().flat_map(|n| &n.outputs).copied().collect();
        let mut inputs: Vec<ValueId> = vec![];
        for v in nodes().flat_map(|n| &n.inputs).filter(|v| !made.contains(v)) {
            if !inputs.contains(v) {
                inputs.push(*v);
            }
        }
        let outside = graph.nodes.iter().zip(inside).filter(|n| !*n.1).flat_map(|n| &n.0.inputs);
        let used: BTreeSet<ValueId> =
            outside.chain(graph.outputs.iter().map(|(_, v)| v)).filter(|v| made.contains(v)).copied().collect();
        let refused = |what: &str| {
            Error::Unsupported(format!("the experts of layer {layer} cannot be left to the processor: {what}"))
        };
        let mut used = used.into_iter();
        let (Some(output), None) = (used.next(), used.next()) else {
            return Err(refused("they have more results than one"));
        };
        let Type::F32(Rows::Tokens, cols) = graph.ty(output) else {
            return Err(refused("their result is no vector of each token"));
        };
        let number = self.regions.len() as u32;
        for v in &inputs {
            let name = format!("%{}", v.0);
            let op = match graph.ty(*v) {
                Type::F32(Rows::Tokens, cols) => Op::Input { name, cols },
                Type::U32(Rows::Tokens, cols) => Op::Math(Math::Ids { name, cols }),
                Type::F32(..) | Type::U32(..) | Type::Cache(_) | Type::Grad(_) => {
                    return Err(refused("they read what is not of a token"));
                }
            };
            self.host.nodes.push(Node { op, inputs: vec![], outputs: vec![*v], layer: Some(layer) });
        }
        let zeros = self.host_value(cols);
        let result = self.host_value(cols);
        let op = Op::Input { name: format!("zeros of layer {layer}"), cols };
        self.host.nodes.push(Node { op, inputs: vec![], outputs: vec![zeros], layer: Some(layer) });
        self.host.nodes.extend(nodes().cloned());
        let sum = Node { op: Op::Add, inputs: vec![zeros, output], outputs: vec![result], layer: Some(layer) };
        self.host.nodes.push(sum);
        let op = Op::HostExperts { region: number, cols };
        self.device.nodes.push(Node { op, inputs: inputs.clone(), outputs: vec![output], layer: Some(layer) });
        self.regions.push(Region { layer, inputs, output, zeros, result });
        Ok(())
    }
}
