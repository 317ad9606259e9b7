//! What the kernels of a single token compute in one dispatch.

use super::{
    super::{
        nodes::{Epilogue, KernelGraph, KernelNode, KernelOp, SharedDown},
        target::Target,
        weights::Weights,
    },
    Uses, remove,
};
use crate::{
    error::Result,
    ir::{Activation, Graph, Linear, Renormalise, Router, Rows, Score, ValueId, WeightId},
};

/// Most experts among which every workgroup chooses anew.
const MOST_CHOSEN_ANEW: usize = 512;

/// A norm whose every user is a gated unit is computed inside these.
pub(super) fn norms_into_glus(k: &mut KernelGraph, graph: &Graph, target: &Target<'_>) {
    let uses = Uses::new(k, graph);
    let mut gone = vec![false; k.nodes.len()];
    for i in 0..k.nodes.len() {
        let KernelOp::Norm(norm) = k.nodes[i].op else { continue };
        let (x, y) = (k.nodes[i].inputs[0], k.nodes[i].outputs[0]);
        let users = uses.users(y);
        let glu = |u: &usize| matches!(k.nodes[*u].op, KernelOp::LinearGlu { norm: None, .. });
        let whole_row = graph.weight(norm.weight).shape.first() == Some(&k.cols(y));
        if users.is_empty()
            || uses.is_output[y.0 as usize]
            || !whole_row
            || !target.folds_norm(&norm)
            || !users.iter().all(glu)
        {
            continue;
        }
        for u in users {
            if let KernelOp::LinearGlu { norm: folded, .. } = &mut k.nodes[*u].op {
                *folded = Some(norm);
            }
            k.nodes[*u].inputs[0] = x;
        }
        gone[i] = true;
    }
    remove(&mut k.nodes, &gone);
}

/// A shared expert whose two dispatches the routed experts' can take along.
struct Shared {
    /// Nodes: the routed experts' gated unit and last product, and its own two.
    nodes: [usize; 4],
    /// Its gate and up matrices, `[Is, H]`.
    unit: [WeightId; 2],
    /// Its last matrix, `[H, Is]`.
    down: WeightId,
    /// The value between.
    h: ValueId,
    /// `[T, 1]`: its sigmoid multiplies.
    gate: Option<ValueId>,
    /// The result: residual, routed experts and shared expert.
    out: ValueId,
}

/// With one token, the shared expert's gated unit and last product (with its gate and its residual) are folded into the
/// routed experts' two dispatches: two dispatches fewer a layer, and more work in the others.
pub(super) fn shared_experts(k: &mut KernelGraph, graph: &Graph, w: &Weights) -> Result<()> {
    let uses = Uses::new(k, graph);
    let mut gone = vec![false; k.nodes.len()];
    for i in 0..k.nodes.len() {
        let Some(s) = shared_of(k, graph, w, &uses, i)? else { continue };
        let [glu, down, own, add] = s.nodes;
        let h = k.nodes[down].inputs[0];
        k.pack(Rows::Tokens, &[(h, 0), (s.h, k.cols(h))]);
        if let KernelOp::ExpertGlu { shared, .. } = &mut k.nodes[glu].op {
            *shared = Some(s.unit);
        }
        k.nodes[glu].outputs.push(s.h);
        if let KernelOp::ExpertDown { shared, .. } = &mut k.nodes[down].op {
            *shared = Some(SharedDown { down: s.down, gated: s.gate.is_some() });
        }
        k.nodes[down].inputs.push(s.h);
        k.nodes[down].inputs.extend(s.gate);
        k.nodes[down].outputs = vec![s.out];
        (gone[own], gone[add]) = (true, true);
    }
    remove(&mut k.nodes, &gone);
    Ok(())
}

fn unit(n: &KernelNode) -> Option<([WeightId; 2], Activation, ValueId)> {
    match n.op {
        KernelOp::LinearGlu { gate, up, act, norm: None } => Some(([gate, up], act, n.inputs[0])),
        _ => None,
    }
}

/// The matrix of `(x, residual [, gate]) → residual + [sigmoid(gate) ·] W x`.
fn added(n: &KernelNode) -> Option<WeightId> {
    let KernelOp::Linear { parts, norm: None, keep_normed: false, epilogue } = &n.op else { return None };
    let Epilogue { act: None, residual: true, factor: 1.0, gated: _ } = epilogue else { return None };
    match parts[..] {
        [Linear { weight, bias: None }] => Some(weight),
        _ => None,
    }
}

/// The shared expert of the routed experts whose last product is node `down`.
fn shared_of(k: &KernelGraph, graph: &Graph, w: &Weights, uses: &Uses, down: usize) -> Result<Option<Shared>> {
    let KernelOp::ExpertDown { linear: Linear { bias: None, .. }, factor: 1.0, shared: None } = k.nodes[down].op else {
        return Ok(None);
    };
    let (h, sum) = (k.nodes[down].inputs[0], k.nodes[down].outputs[0]);
    let Some(glu) = uses.maker(h).filter(|_| uses.only_user(h) == Some(down)) else { return Ok(None) };
    let KernelOp::ExpertGlu { act, gate: Linear { weight: routed, bias: None }, shared: None, choose: None, .. } =
        k.nodes[glu].op
    else {
        return Ok(None);
    };
    let x = k.nodes[glu].inputs[0];
    let Some(add) = uses.only_user(sum) else { return Ok(None) };
    let (Some(last), [own_h, residual, gate @ ..]) = (added(&k.nodes[add]), &k.nodes[add].inputs[..]) else {
        return Ok(None);
    };
    let whole = uses.only_user(*own_h) == Some(add) && *residual == sum && *own_h != sum;
    let Some(own) = uses.maker(*own_h).filter(|_| whole) else { return Ok(None) };
    let Some((matrices, own_act, own_x)) = unit(&k.nodes[own]) else { return Ok(None) };
    // The gate must be there before the routed experts' last product.
    let known = |v: &ValueId| uses.maker(*v).is_some_and(|i| i < down);
    let fits = own_act == act
        && own_x == x
        && graph.weight(routed).shape.last() == Some(&k.cols(x))
        && gate.iter().all(known)
        && w.is_whole(&[matrices[0]])?
        && w.is_whole(&[matrices[1]])?
        && w.is_whole(&[last])?;
    Ok(fits.then(|| Shared {
        nodes: [glu, down, own, add],
        unit: matrices,
        down: last,
        h: *own_h,
        gate: gate.first().copied(),
        out: k.nodes[add].outputs[0],
    }))
}

/// Where the experts' gated unit is the first to use a router's results, it makes them itself.
pub(super) fn choices_of_experts(k: &mut KernelGraph, graph: &Graph) {
    let uses = Uses::new(k, graph);
    let mut gone = vec![false; k.nodes.len()];
    for i in 0..k.nodes.len() {
        let KernelOp::Router(router) = k.nodes[i].op else { continue };
        let (logits, ids, weights) = (k.nodes[i].inputs[0], k.nodes[i].outputs[0], k.nodes[i].outputs[1]);
        let Some(product) = uses.maker(logits).map(|m| &k.nodes[m]) else { continue };
        let (KernelOp::Linear { keep_normed: true, .. }, Some(normed)) = (&product.op, product.outputs.last().copied())
        else {
            continue;
        };
        let first = uses.users(ids).iter().chain(uses.users(weights)).min().copied();
        let Some(glu) = first.filter(|_| router.experts <= MOST_CHOSEN_ANEW && chooses_simply(&router)) else {
            continue;
        };
        if k.nodes[glu].inputs != [normed, ids] {
            continue;
        }
        let KernelOp::ExpertGlu { choose, .. } = &mut k.nodes[glu].op else { continue };
        *choose = Some(router);
        k.nodes[glu].inputs[1] = logits;
        k.nodes[glu].outputs.extend([ids, weights]);
        gone[i] = true;
    }
    remove(&mut k.nodes, &gone);
}

/// Whether a router chooses as the kernels that choose experts themselves do.
fn chooses_simply(r: &Router) -> bool {
    let score = match r.score {
        Score::Softmax | Score::SoftmaxOfSelected | Score::Sigmoid => true,
        Score::SqrtSoftplus | Score::SparseMixer { .. } => false,
    };
    let renormalise = match r.renormalise {
        Renormalise::No | Renormalise::Sum => true,
        Renormalise::SumPlus(_) | Renormalise::SumAtLeast(_) | Renormalise::Softmax => false,
    };
    let groups = r.groups.is_none_or(|g| g.used == g.count) && r.over_groups().is_none();
    score && renormalise && groups && r.chooses_by_logits() && r.expert_scale.is_none()
}
