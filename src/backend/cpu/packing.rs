//! Which weights are copied, packed for the kernels, and which are read from the file's memory map; and what is asked for ahead of its use
//! where those do not stay in memory.
//!
//! A weight that every token reads is worth its copy most, so these come first; then the experts of whole layers, as far as memory
//! lasts. Where what remains in the map is larger than the memory that is left, the system drops pages and reads them again. It
//! reads best what it is asked for in time and in large pieces: as soon as a layer's experts are chosen, all their matrices are asked
//! for, and nothing around them is.

use super::{
    Model, Options, experts::SlotsByExpert, kernel::packed::packed_bytes, simd_level::SimdLevel, weight_roles::Role,
};
use crate::{
    backend::Program,
    graph,
    ir::{Graph, Node, Op, ValueId, WeightId},
};
use std::collections::{BTreeMap, BTreeSet};

/// What becomes of each weight.
pub struct Packing {
    /// By weight id, whether it is copied.
    pub copied: Vec<bool>,
    /// Whether the weights that remain in memory maps are larger than the memory that is left.
    pub larger_than_memory: bool,
}

/// A weight's matrices that a choice of experts reads: asked for at the first op that uses the choice.
#[derive(Debug, Default)]
pub struct Ahead(BTreeMap<ValueId, Vec<WeightId>>);

fn gib(n: u64) -> f64 {
    n as f64 / (1u64 << 30) as f64
}

impl Packing {
    /// Decides for the weights of a fused graph.
    pub fn new(program: &Program, graph: &Graph, roles: &[Role], level: SimdLevel, options: &Options) -> Packing {
        let bytes = |i: usize| if roles[i].matrix { packed_bytes(&program.weights[i], level) } else { 0 };
        let free = options.memory.or_else(|| Some(crate::memory::available()? / 10 * 9));
        let mut p = Packing { copied: vec![false; roles.len()], larger_than_memory: false };
        let mut left = free.unwrap_or(u64::MAX);
        let experts = graph::expert_weights(graph);
        if options.repack {
            let routed: BTreeSet<WeightId> = experts.values().flatten().copied().collect();
            let always: Vec<usize> = (0..roles.len()).filter(|i| !routed.contains(&WeightId(*i as u32))).collect();
            let layers = experts.values().map(|layer| layer.iter().map(|w| w.0 as usize).collect::<Vec<usize>>());
            let mut without = 0;
            for group in std::iter::once(always).chain(layers) {
                let needed: u64 = group.iter().map(|i| bytes(*i)).sum();
                match left.checked_sub(needed).filter(|_| without == 0) {
                    Some(rest) => {
                        left = rest;
                        group.iter().for_each(|i| p.copied[*i] = bytes(*i) > 0);
                    }
                    // What comes behind is worth no more.
                    None => without += needed,
                }
            }
            if without > 0 {
                tracing::warn!(
                    "{:.1} GiB of memory are free for packed weights, {:.1} GiB more would take all: those are read from the file as \
                     they are needed, which is slower",
                    gib(free.unwrap_or(0)),
                    gib(without - left)
                );
            }
        }
        let mapped = |i: &usize| roles[*i].matrix && !p.copied[*i] && program.weights[*i].is_mapped();
        let rest: u64 = (0..roles.len()).filter(mapped).map(|i| program.weights[i].byte_len() as u64).sum();
        p.larger_than_memory = rest > left;
        p
    }
}

impl Ahead {
    /// For the experts of a fused graph that are read from the map. Of tables whose rows are looked up the system is told to read nothing
    /// around a row, which would be megabytes. Of experts it is not: what is asked for as a whole has nothing read around it, and Linux does
    /// not count how often pages are used that are read at random, so that it would drop those of the experts in use as soon as others.
    pub fn new(program: &Program, graph: &Graph, packing: &Packing) -> Ahead {
        let mut first: BTreeMap<ValueId, ValueId> = BTreeMap::new();
        let mut ahead = Ahead::default();
        let routed = graph.nodes.iter().filter(|n| n.op.is_routed());
        for node in routed {
            let (Some(ids), Some(out)) = (node.inputs.get(1), node.outputs.first()) else { continue };
            let key = *first.entry(*ids).or_insert(*out);
            let own = node.op.weights().into_iter().filter(|w| {
                let tensor = &program.weights[w.0 as usize];
                !packing.copied[w.0 as usize] && tensor.is_mapped() && tensor.shape().len() == 3
            });
            ahead.0.entry(key).or_default().extend(own);
        }
        ahead.0.retain(|_, weights| !weights.is_empty());
        let multiplied = |table: &WeightId| graph.nodes.iter().any(|n| !is_lookup(n) && n.op.weights().contains(table));
        let tables = graph.nodes.iter().filter(|n| is_lookup(n)).flat_map(|n| n.op.weights());
        for table in tables.filter(|t| !multiplied(t)) {
            program.weights[table.0 as usize].read_at_random();
        }
        ahead
    }

    /// Asks for the chosen experts' matrices of all ops that use the same choice, where this op, known by its result, is the first of them.
    pub fn ask(&self, model: &Model, op: ValueId, chosen: &SlotsByExpert) {
        for w in self.0.get(&op).into_iter().flatten() {
            let tensor = model.weights[w.0 as usize].tensor();
            let rows = tensor.shape().get(1).copied().unwrap_or(0);
            for expert in chosen.experts() {
                tensor.will_need(expert as usize * rows..(expert as usize + 1) * rows);
            }
        }
    }
}

fn is_lookup(node: &Node) -> bool {
    matches!(node.op, Op::Embed { .. })
}
