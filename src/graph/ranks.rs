//! A graph as one of several processes computes it that share the routed experts of every layer.
//!
//! Each process (rank) has a block of neighbouring experts of each layer, and all the rest of the model. Everything but the products with
//! experts' matrices is computed by all of them, from the same numbers to the same numbers. Of a token's k slots a rank computes those whose
//! experts it has; where the weighted sum over the slots stood, one node stands for the exchange with the others and for that sum
//! ([`Op::HostExperts`]). It is summed in the order of the slots, as one process does it, so that nobody sees how many processes there are.

use super::{Program, expert_weights, split::region};
use crate::{
    error::{Error, Result},
    ir::{Graph, Node, Op, Type, ValueId, WeightId},
};
use std::{collections::BTreeMap, ops::Range, sync::Arc};

/// What a rank computes.
#[derive(Clone, Debug)]
pub struct RankSplit {
    /// The graph, with the rank's own experts alone.
    pub program: Program,
    /// The exchanges, in the order in which they come. [`Op::HostExperts`] has their number; what goes in are the slots `[T, k·n]`, the
    /// experts' ids `[T, k]` and the slots' weights `[T, k]`, what comes out is `[T, n]`.
    pub regions: Vec<RankRegion>,
}

/// The experts of one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RankRegion {
    /// The transformer layer.
    pub layer: u32,
    /// Experts of all ranks together, E.
    pub experts: usize,
    /// Experts of a token, k.
    pub used: usize,
    /// Columns of the result, n.
    pub cols: usize,
}

/// The experts of a rank, of `experts` on `ranks`: blocks of neighbours whose sizes differ by one at most.
pub fn experts_of_rank(experts: usize, rank: usize, ranks: usize) -> Range<usize> {
    let first = |r: usize| r * experts / ranks.max(1);
    first(rank)..first(rank + 1)
}

/// What rank `rank` of `ranks` computes of a program.
///
/// # Errors
/// [`Error::Invalid`] for a rank that is not there, a model without routed experts, or a layer with fewer experts than there are ranks;
/// [`Error::Unsupported`] for experts whose results are not summed slot by slot.
pub fn split_for_rank(program: &Program, rank: usize, ranks: usize) -> Result<RankSplit> {
    if rank >= ranks {
        return Err(Error::Invalid(format!("rank {rank} of {ranks}")));
    }
    let layers: Vec<u32> = expert_weights(&program.graph).into_keys().collect();
    if layers.is_empty() {
        return Err(Error::Invalid(format!("the model has no routed experts that {ranks} processes could share")));
    }
    let graph = Graph::clone(&program.graph);
    let weights = program.weights.to_vec();
    let mut parts = Parts { graph, weights, cut: BTreeMap::new(), regions: vec![], rank, ranks };
    for layer in layers {
        parts.layer(layer)?;
    }
    let program = Program { graph: Arc::new(parts.graph), weights: Arc::new(parts.weights) };
    Ok(RankSplit { program, regions: parts.regions })
}

/// The program while it is cut.
struct Parts {
    graph: Graph,
    weights: Vec<crate::file::Tensor>,
    /// Weights that were cut, and into how many experts' parts.
    cut: BTreeMap<WeightId, usize>,
    regions: Vec<RankRegion>,
    rank: usize,
    ranks: usize,
}

impl Parts {
    /// Cuts the experts of a layer.
    fn layer(&mut self, layer: u32) -> Result<()> {
        let refused = |what: &str| {
            Error::Unsupported(format!("the experts of layer {layer} cannot be shared by processes: {what}"))
        };
        let inside = region(&self.graph, layer);
        let own: Vec<usize> = (0..inside.len()).filter(|i| inside[*i]).collect();
        let sums: Vec<usize> =
            own.iter().copied().filter(|i| matches!(self.graph.nodes[*i].op, Op::ExpertCombine)).collect();
        let [sum] = sums[..] else {
            return Err(refused("they are not summed once"));
        };
        let sum_made = self.graph.nodes[sum].outputs[0];
        if own.iter().any(|i| self.graph.nodes[*i].inputs.contains(&sum_made)) {
            return Err(refused("something lies behind their sum"));
        }
        let mut chosen = own.iter().filter_map(|i| self.ids_of(*i));
        let ids = chosen.next().filter(|ids| chosen.all(|other| other == *ids));
        let ids = ids.ok_or_else(|| refused("they are chosen more than once"))?;
        let experts = own.iter().filter_map(|i| self.experts_of(*i)).max().unwrap_or(0);
        if experts < self.ranks {
            return Err(Error::Invalid(format!(
                "{} processes for the {experts} experts of layer {layer}: each needs one at least",
                self.ranks
            )));
        }
        let block = experts_of_rank(experts, self.rank, self.ranks);
        let local = ValueId(self.graph.values.len() as u32);
        self.graph.values.push(self.graph.ty(ids));
        for i in &own {
            if !self.graph.nodes[*i].op.is_routed() {
                continue;
            }
            self.graph.nodes[*i].inputs[1] = local;
            for w in self.graph.nodes[*i].op.weights() {
                self.cut(w, experts, &block)?;
            }
        }
        let Type::F32(_, cols) = self.graph.ty(sum_made) else { return Err(refused("their sum is no vector")) };
        let region = self.regions.len() as u32;
        let (slots, weights) = (self.graph.nodes[sum].inputs[0], self.graph.nodes[sum].inputs[1]);
        let used = self.graph.cols(ids);
        let exchange = &mut self.graph.nodes[sum];
        (exchange.op, exchange.inputs) = (Op::HostExperts { region, cols }, vec![slots, ids, weights]);
        self.regions.push(RankRegion { layer, experts, used, cols });
        // Before the first product, behind the router.
        let op = Op::LocalIds { first: block.start as u32, count: block.len() as u32 };
        self.graph.nodes.insert(own[0], Node { op, inputs: vec![ids], outputs: vec![local], layer: Some(layer) });
        Ok(())
    }

    /// The ids that a node is routed by.
    fn ids_of(&self, node: usize) -> Option<ValueId> {
        let n = &self.graph.nodes[node];
        if n.op.is_routed() { n.inputs.get(1).copied() } else { None }
    }

    /// Experts of a routed node's matrices.
    fn experts_of(&self, node: usize) -> Option<usize> {
        let n = &self.graph.nodes[node];
        let first = n.op.weights().first().copied().filter(|_| n.op.is_routed())?;
        self.graph.weight(first).shape.first().copied()
    }

    /// Leaves of a weight the part of these experts.
    fn cut(&mut self, w: WeightId, experts: usize, block: &Range<usize>) -> Result<()> {
        let decl = &mut self.graph.weights[w.0 as usize];
        match self.cut.insert(w, experts) {
            Some(same) if same == experts => return Ok(()),
            None if decl.shape.first() == Some(&experts) => {}
            _ => return Err(Error::Unsupported(format!("{} is no matrix for each of {experts} experts", decl.name))),
        }
        decl.shape[0] = block.len();
        let tensor = &mut self.weights[w.0 as usize];
        *tensor = tensor.part(block.clone())?;
        Ok(())
    }
}
