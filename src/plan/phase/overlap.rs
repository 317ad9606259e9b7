//! What a device does while the host computes experts: the nodes of the layer that do not wait for them come first.

use super::super::nodes::{KernelGraph, KernelNode, KernelOp};
use crate::ir::ValueId;
use std::collections::BTreeSet;

/// Behind each call of the host, puts the nodes of its layer that need nothing of its result (a shared expert) before those that do.
pub(super) fn beside_the_host(k: &mut KernelGraph) {
    let mut i = 0;
    while i < k.nodes.len() {
        if let KernelOp::HostExperts { .. } = k.nodes[i].op {
            let (layer, first) = (k.nodes[i].layer, i + 1);
            let own = k.nodes[first..].iter().take_while(|n| n.layer == layer);
            let end = first + own.take_while(|n| !matches!(n.op, KernelOp::HostExperts { .. })).count();
            let mut waiting: BTreeSet<ValueId> = k.nodes[i].outputs.iter().copied().collect();
            let waits: Vec<KernelNode> = k.nodes.drain(first..end).collect();
            let (waits, free): (Vec<KernelNode>, Vec<KernelNode>) = waits.into_iter().partition(|n| {
                let waits = n.inputs.iter().any(|v| waiting.contains(v));
                waiting.extend(n.outputs.iter().filter(|_| waits));
                waits
            });
            k.nodes.splice(first..first, free.into_iter().chain(waits));
        }
        i += 1;
    }
}
