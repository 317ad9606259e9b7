//! A graph in ranges of layers, each for a device of its own: what one stage makes and a later one reads goes from hand to hand.
//!
//! As a rule that is one vector a token at each border, the residual stream. Keys and values, and recurrent states, are those of the stages
//! whose layers have them. What costs nothing (token ids, numbers of heads) every stage makes for itself.

use super::Program;
use crate::{
    error::{Error, Result},
    ir::{CacheId, Graph, Node, Op, Rows, StateId, Type, ValueId},
};
use std::{collections::BTreeSet, ops::Range, sync::Arc};

/// A range of layers, with what comes before the first layer and behind the last where it has these.
#[derive(Clone, Debug)]
pub struct Stage {
    /// Its graph. Weights have the numbers that they have in the whole graph.
    pub program: Program,
    /// The transformer layers.
    pub layers: Range<usize>,
    /// What it reads of earlier stages: the names of its inputs, which are those of the earlier stages' outputs.
    pub reads: Vec<String>,
    /// Of its graph's outputs, in order: which output of the whole graph it is, or `None` for what later stages read.
    pub outputs: Vec<Option<usize>>,
}

/// Layers of a graph.
pub fn layers(graph: &Graph) -> usize {
    graph.nodes.iter().filter_map(|n| n.layer).max().map_or(0, |l| l as usize + 1)
}

/// The ranges of so many layers for devices with these shares, each of one layer at least.
///
/// # Errors
/// [`Error::Invalid`] for no shares, a share of 0, or more shares than layers.
pub fn ranges_of_layers(layers: usize, shares: &[u32]) -> Result<Vec<Range<usize>>> {
    if let Some(at) = shares.iter().position(|s| *s == 0) {
        return Err(Error::Invalid(format!("a share of 0 of the layers, of device {} of {}", at + 1, shares.len())));
    }
    if shares.is_empty() || shares.len() > layers {
        return Err(Error::Invalid(format!("{layers} layers for {} devices: each has one at least", shares.len())));
    }
    let total: u64 = shares.iter().map(|s| u64::from(*s)).sum();
    let (mut out, mut sum, mut first) = (vec![], 0, 0);
    for (i, share) in shares.iter().enumerate() {
        sum += u64::from(*share);
        // To the nearest layer, with one for this device and for each behind it.
        let wanted = (2 * sum * layers as u64 + total) / (2 * total);
        let end = (wanted as usize).clamp(first + 1, layers - (shares.len() - 1 - i));
        out.push(first..end);
        first = end;
    }
    Ok(out)
}

/// Cuts a program into stages of these ranges of layers, which follow each other and are all.
///
/// # Errors
/// [`Error::Unsupported`] where a layer reads what cannot be handed over, such as keys and values of a layer of an earlier stage.
pub fn stages(program: &Program, ranges: &[Range<usize>]) -> Result<Vec<Stage>> {
    let graph = &program.graph;
    let mut cut = Cut { graph, stage: vec![0; graph.nodes.len()], maker: vec![None; graph.values.len()] };
    for (i, node) in graph.nodes.iter().enumerate() {
        let before = node.inputs.iter().filter_map(|v| cut.maker[v.0 as usize]).map(|m| cut.stage[m]).max();
        let own = node.layer.and_then(|l| ranges.iter().position(|r| r.contains(&(l as usize))));
        cut.stage[i] = own.unwrap_or(0).max(before.unwrap_or(0));
        node.outputs.iter().for_each(|v| cut.maker[v.0 as usize] = Some(i));
    }
    (0..ranges.len()).map(|s| cut.stage(program, s, ranges)).collect()
}

/// What a value is called between stages.
fn name(v: ValueId) -> String {
    format!("%{}", v.0)
}

/// Whether every stage makes the node's results for itself.
fn is_free(op: &Op) -> bool {
    matches!(op, Op::Tokens | Op::HeadIds { .. } | Op::Input { .. })
}

/// The graph with the stage of each node, and the node that makes each value.
struct Cut<'a> {
    graph: &'a Graph,
    stage: Vec<usize>,
    maker: Vec<Option<usize>>,
}

impl Cut<'_> {
    /// What the nodes of a stage read that other stages make, in the order in which they were made.
    fn foreign(&self, stage: usize) -> BTreeSet<ValueId> {
        let own = self.graph.nodes.iter().zip(&self.stage).filter(|(_, s)| **s == stage);
        let reads = own.flat_map(|(n, _)| &n.inputs).copied();
        reads.filter(|v| self.maker[v.0 as usize].is_some_and(|m| self.stage[m] != stage)).collect()
    }

    fn stage(&self, program: &Program, stage: usize, ranges: &[Range<usize>]) -> Result<Stage> {
        let whole = self.graph;
        let mut g = Graph { nodes: vec![], outputs: vec![], caches: vec![], states: vec![], ..whole.clone() };
        let mut reads = vec![];
        for v in self.foreign(stage) {
            let maker = self.maker[v.0 as usize].map(|m| &whole.nodes[m]);
            let op = match (maker, whole.ty(v)) {
                (Some(n), _) if is_free(&n.op) => n.op.clone(),
                (_, Type::F32(Rows::Tokens, cols)) => {
                    reads.push(name(v));
                    Op::Input { name: name(v), cols }
                }
                (_, Type::F32(..) | Type::U32(..) | Type::Cache(_) | Type::Grad(_)) => {
                    return Err(Error::Unsupported(format!(
                        "layers {:?} on a device of their own: they read what layers of another device keep; cut the layers elsewhere",
                        ranges[stage]
                    )));
                }
            };
            g.nodes.push(Node { op, inputs: vec![], outputs: vec![v], layer: None });
        }
        let own = whole.nodes.iter().zip(&self.stage).filter(|(_, s)| **s == stage).map(|(n, _)| n.clone());
        g.nodes.extend(own);
        keep_own_memory(&mut g, whole)?;
        let mut outputs = vec![];
        let made_here = |v: ValueId| self.maker[v.0 as usize].is_some_and(|m| self.stage[m] == stage);
        for (i, (label, v)) in whole.outputs.iter().enumerate().filter(|(_, (_, v))| made_here(*v)) {
            g.outputs.push((label.clone(), *v));
            outputs.push(Some(i));
        }
        let later = (stage + 1..ranges.len()).flat_map(|s| self.foreign(s));
        let free = |v: &ValueId| self.maker[v.0 as usize].is_some_and(|m| is_free(&whole.nodes[m].op));
        for v in later.filter(|v| made_here(*v) && !free(v)).collect::<BTreeSet<_>>() {
            g.outputs.push((name(v), v));
            outputs.push(None);
        }
        let program = Program { graph: Arc::new(g), weights: program.weights.clone() };
        Ok(Stage { program, layers: ranges[stage].clone(), reads, outputs })
    }
}

/// Declares the caches and states that the nodes use, and no others.
///
/// # Errors
/// [`Error::Graph`] for an op with memory of a kind that is not known here.
fn keep_own_memory(g: &mut Graph, whole: &Graph) -> Result<()> {
    let (mut caches, mut states): (Vec<CacheId>, Vec<StateId>) = (vec![], vec![]);
    let mut cache_of = |c: &mut CacheId| {
        let at = caches.iter().position(|k| k == c).unwrap_or_else(|| {
            caches.push(*c);
            caches.len() - 1
        });
        *c = CacheId(at as u32);
    };
    let mut state_of = |s: &mut StateId| {
        let at = states.iter().position(|k| k == s).unwrap_or_else(|| {
            states.push(*s);
            states.len() - 1
        });
        *s = StateId(at as u32);
    };
    for node in &mut g.nodes {
        for v in &node.outputs {
            if let Type::Cache(c) = &mut g.values[v.0 as usize] {
                cache_of(c);
            }
        }
        match &mut node.op {
            Op::KvStore { cache } | Op::RopeStore { cache, .. } => cache_of(cache),
            Op::Attend(a) => cache_of(&mut a.cache),
            Op::ShortConv(c) => state_of(&mut c.state),
            Op::DeltaNet(d) => state_of(&mut d.state),
            other => {
                let stores = node.outputs.iter().any(|v| matches!(g.values[v.0 as usize], Type::Cache(_)));
                if stores || other.state().is_some() {
                    return Err(Error::Graph("an op whose memory cannot be given to a stage".into()));
                }
            }
        }
    }
    g.caches = caches.iter().map(|c| whole.caches[c.0 as usize].clone()).collect();
    g.states = states.iter().map(|s| whole.states[s.0 as usize].clone()).collect();
    Ok(())
}
