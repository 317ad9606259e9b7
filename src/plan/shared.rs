//! A shared expert rides with the routed ones where a step has one row a workgroup: its gated unit in the dispatch of theirs,
//! its last product (and its gate, and the residual) in theirs. Two dispatches fewer a layer, and more work in the others.

use super::{Weights, weights};
use crate::ir::{Activation, Graph, Linear, Node, Op, ValueId, WeightId};

/// A shared expert, as the routed experts' nodes see it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Shared {
    /// Its gate and up matrices, `[Is, H]`.
    pub unit: [WeightId; 2],
    /// Its last matrix, `[H, Is]`.
    pub down: WeightId,
    /// The value between.
    pub h: ValueId,
    /// `[T, 1]`: its sigmoid multiplies.
    pub gate: Option<ValueId>,
    /// The result: residual, routed experts and shared expert.
    pub out: ValueId,
    /// Node numbers: of the routed experts' gated unit and last product, and of its own two.
    pub nodes: [usize; 4],
}

/// The shared experts of a graph that may ride.
pub(super) fn find(g: &Graph, w: &Weights) -> Vec<Shared> {
    (0..g.nodes.len()).filter_map(|i| at(g, w, i)).collect()
}

/// The only node that uses `v`.
fn only_user(g: &Graph, v: ValueId) -> Option<usize> {
    let mut users = (0..g.nodes.len()).filter(|i| g.nodes[*i].inputs.contains(&v));
    let first = users.next()?;
    (users.next().is_none() && g.outputs.iter().all(|(_, o)| *o != v)).then_some(first)
}

fn maker(g: &Graph, v: ValueId) -> Option<usize> {
    g.nodes.iter().position(|n| n.outputs.contains(&v))
}

fn unit(n: &Node) -> Option<([WeightId; 2], Activation, ValueId)> {
    match n.op {
        Op::LinearGlu { gate, up, act } => Some(([gate, up], act, n.inputs[0])),
        _ => None,
    }
}

/// The shared expert of the routed experts whose last product is node `down`.
fn at(g: &Graph, w: &Weights, down: usize) -> Option<Shared> {
    let Op::ExpertDownAdd { linear: Linear { bias: None, .. }, factor: 1.0 } = g.nodes[down].op else { return None };
    let h = g.nodes[down].inputs[0];
    let glu = maker(g, h).filter(|_| only_user(g, h) == Some(down))?;
    let Op::ExpertGlu { act, gate: Linear { weight: gate, bias: None }, .. } = g.nodes[glu].op else { return None };
    let x = g.nodes[glu].inputs[0];
    let sum = g.nodes[down].outputs[0];
    let add = only_user(g, sum)?;
    let (Op::LinearAdd { linear: Linear { weight, bias: None }, factor: 1.0, .. }, [hs, residual, rest @ ..]) =
        (&g.nodes[add].op, &g.nodes[add].inputs[..])
    else {
        return None;
    };
    let own = maker(g, *hs).filter(|_| only_user(g, *hs) == Some(add) && *residual == sum && *hs != sum)?;
    let (matrices, own_act, own_x) = unit(&g.nodes[own])?;
    // What the gate's maker is: a rider of the router, or a node that comes before.
    let known = |v: &ValueId| maker(g, *v).is_some_and(|i| i < down || weights::rides_with_router(g, w, &g.nodes[i]));
    let whole = |ids: &[WeightId]| w.matrix(ids).is_ok_and(|m| w.matrices[m as usize].segments.len() == 1);
    let fits = own_act == act
        && own_x == x
        && g.weight(gate).shape.last() == Some(&g.cols(x))
        && rest.iter().all(known)
        && [matrices[0], matrices[1], *weight].iter().all(|m| whole(&[*m]));
    fits.then(|| Shared {
        unit: matrices,
        down: *weight,
        h: *hs,
        gate: rest.first().copied(),
        out: g.nodes[add].outputs[0],
        nodes: [glu, down, own, add],
    })
}
