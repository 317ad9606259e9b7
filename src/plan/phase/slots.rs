//! A token's experts in slots: where there is a cache, the router says which slots they have, what is missing is copied there, and the
//! products read slots in place of ids.

use super::super::{
    ExpertCache, SMALL_BATCH_TOKENS,
    nodes::{KernelGraph, KernelNode, KernelOp},
};
use crate::ir::{Graph, Router, Rows, Type, ValueId};
use std::collections::BTreeMap;

/// Puts the choice of slots in the place of the choice of experts, a copy behind it, and tells the products.
pub(super) fn experts_in_slots(k: &mut KernelGraph, graph: &Graph, caches: &[ExpertCache]) {
    // Of the ids of a choice, the slots.
    let mut slots: BTreeMap<ValueId, ValueId> = BTreeMap::new();
    for mut n in std::mem::take(&mut k.nodes) {
        if let Some(choice) = choice_of(&n, graph)
            && let Some((number, _)) = (0..).zip(caches).find(|c| c.1.ids == choice.ids)
        {
            slots.insert(choice.ids, choose_slots(k, &n, &choice, number));
            if let KernelOp::ExpertGlu { choose, .. } = &mut n.op {
                // It is told what it would have chosen.
                *choose = None;
                n.inputs[1] = choice.ids;
                n.outputs.truncate(n.outputs.len() - 2);
            } else {
                continue;
            }
        }
        if let Some(own) = products_ids(&n).and_then(|ids| slots.get(&ids)) {
            n.inputs[1] = *own;
        }
        k.nodes.push(n);
    }
}

/// With a few tokens, the slots of their experts follow the choice, where all that they can choose have slots at once.
pub(super) fn of_few_tokens(k: &mut KernelGraph, caches: &[ExpertCache]) {
    let mut slots: BTreeMap<ValueId, ValueId> = BTreeMap::new();
    for mut n in std::mem::take(&mut k.nodes) {
        if let Some(own) = products_ids(&n).and_then(|ids| slots.get(&ids)) {
            n.inputs[1] = *own;
        }
        let ids = if let KernelOp::Router(_) = n.op { n.outputs.first().copied() } else { None };
        let used = ids.map_or(0, |ids| k.cols(ids));
        let cache = (0..).zip(caches).find(|(_, c)| ids == Some(c.ids) && c.serves(SMALL_BATCH_TOKENS));
        let behind = cache.map(|(cache, c)| {
            let taken = k.value(Type::U32(Rows::Tokens, used));
            slots.insert(c.ids, taken);
            let places = KernelNode {
                op: KernelOp::ExpertPlaces { cache },
                inputs: vec![c.ids],
                outputs: vec![taken],
                ..n.clone()
            };
            [places, fill(&n, cache, taken)]
        });
        k.nodes.push(n);
        k.nodes.extend(behind.into_iter().flatten());
    }
}

/// The ids by which a product finds its experts.
fn products_ids(n: &KernelNode) -> Option<ValueId> {
    match n.op {
        KernelOp::ExpertLinear { .. } | KernelOp::ExpertGlu { .. } | KernelOp::ExpertDown { .. } => {
            n.inputs.get(1).copied()
        }
        _ => None,
    }
}

/// The copy of what is missing in slots, of the layer of a node.
fn fill(n: &KernelNode, cache: u32, taken: ValueId) -> KernelNode {
    KernelNode { op: KernelOp::ExpertFill { cache }, inputs: vec![taken], outputs: vec![], ..n.clone() }
}

/// A choice of experts.
struct Choice {
    router: Router,
    logits: ValueId,
    ids: ValueId,
    weights: ValueId,
    /// Rows of an expert's matrix whose kernel chooses.
    beside: Option<usize>,
}

/// The choice that a node makes.
fn choice_of(n: &KernelNode, graph: &Graph) -> Option<Choice> {
    match (&n.op, &n.inputs[..], &n.outputs[..]) {
        (KernelOp::Router(router), [logits], [ids, weights]) => {
            Some(Choice { router: *router, logits: *logits, ids: *ids, weights: *weights, beside: None })
        }
        (KernelOp::ExpertGlu { gate, choose: Some(router), .. }, [_, logits], [.., ids, weights]) => {
            let beside = graph.weight(gate.weight).shape.get(1).copied();
            Some(Choice { router: *router, logits: *logits, ids: *ids, weights: *weights, beside })
        }
        _ => None,
    }
}

/// Adds a choice with its slots, and the copy of what is missing; gives the slots.
fn choose_slots(k: &mut KernelGraph, n: &KernelNode, c: &Choice, cache: u32) -> ValueId {
    let taken = k.value(Type::U32(Rows::Tokens, c.router.used));
    let op = KernelOp::RouterCached { router: c.router, cache, beside: c.beside };
    let (inputs, outputs) = (vec![c.logits], vec![c.ids, c.weights, taken]);
    k.nodes.push(KernelNode { op, inputs, outputs, ..n.clone() });
    k.nodes.push(fill(n, cache, taken));
    taken
}
