//! From the nodes of a model to those of a schedule: what its kernels cannot do is taken apart, what they can do together is
//! folded, tokens are sorted by expert where there are many.

mod apart;
mod fold;
mod overlap;
mod slots;
mod sort;

use super::{
    ExpertCache, Phase,
    nodes::{KernelGraph, KernelNode},
    target::Target,
    weights::Weights,
};
use crate::{
    error::Result,
    ir::{Graph, ValueId},
};

/// The nodes of a schedule, checked.
///
/// # Errors
/// [`crate::Error::Graph`] where a weight has no place on the device.
pub(super) fn for_phase(
    graph: &Graph,
    w: &Weights,
    caches: &[ExpertCache],
    target: &Target<'_>,
) -> Result<KernelGraph> {
    let mut k = w.nodes.clone();
    apart::take_apart(&mut k, graph, w, target)?;
    if target.phase == Phase::SmallBatch {
        slots::of_few_tokens(&mut k, caches);
    }
    if target.decode() {
        fold::norms_into_glus(&mut k, graph, target);
        fold::shared_experts(&mut k, graph, w)?;
        fold::choices_of_experts(&mut k, graph);
        slots::experts_in_slots(&mut k, graph, caches);
    } else {
        sort::by_expert(&mut k, graph, w, target)?;
    }
    overlap::beside_the_host(&mut k);
    k.check(graph)?;
    Ok(k)
}

/// Who makes and who uses each value.
struct Uses {
    maker: Vec<Option<usize>>,
    users: Vec<Vec<usize>>,
    is_output: Vec<bool>,
}

impl Uses {
    fn new(k: &KernelGraph, graph: &Graph) -> Self {
        let n = k.values.len();
        let mut u = Uses { maker: vec![None; n], users: vec![vec![]; n], is_output: vec![false; n] };
        for (i, node) in k.nodes.iter().enumerate() {
            for v in &node.inputs {
                let users = &mut u.users[v.0 as usize];
                if users.last() != Some(&i) {
                    users.push(i);
                }
            }
            node.outputs.iter().for_each(|v| u.maker[v.0 as usize] = Some(i));
        }
        graph.outputs.iter().for_each(|(_, v)| u.is_output[v.0 as usize] = true);
        u
    }

    fn maker(&self, v: ValueId) -> Option<usize> {
        self.maker[v.0 as usize]
    }

    /// The nodes that use a value, in order.
    fn users(&self, v: ValueId) -> &[usize] {
        &self.users[v.0 as usize]
    }

    /// The only node that uses a value, where the caller does not read it.
    fn only_user(&self, v: ValueId) -> Option<usize> {
        match (self.users(v), self.is_output[v.0 as usize]) {
            ([one], false) => Some(*one),
            _ => None,
        }
    }
}

/// Takes nodes out.
fn remove(nodes: &mut Vec<KernelNode>, gone: &[bool]) {
    let mut i = 0;
    nodes.retain(|_| {
        i += 1;
        !gone[i - 1]
    });
}
