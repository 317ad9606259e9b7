//! The weights that nodes read, as the device holds them.

use super::{super::limits::padded, KernelOp};
use crate::ir::{Graph, Linear, Norm, Router, WeightId};

/// A piece of a vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum VectorPart {
    /// A weight `[n]`, as f32.
    Weight(WeightId),
    /// Zeros: the bias of a stacked matrix that has none.
    Zeros(usize),
}

/// A weight that a node reads, as the device holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::plan) enum Operand {
    /// Weights of one format stacked by rows.
    Matrix(Vec<WeightId>),
    /// Two matrices that are cut into segments at the same rows.
    Aligned([WeightId; 2]),
    /// Numbers in the buffer of vectors.
    Vector(Vec<VectorPart>),
}

/// The weights of stacked parts.
pub(in crate::plan) fn stacked(parts: &[Linear]) -> Vec<WeightId> {
    parts.iter().map(|l| l.weight).collect()
}

/// The bias of a stack: `None` where no part has one.
pub(in crate::plan) fn stacked_bias(graph: &Graph, parts: &[Linear]) -> Option<Vec<VectorPart>> {
    let bias = |l: &Linear| l.bias.map_or(VectorPart::Zeros(graph.weight(l.weight).rows()), VectorPart::Weight);
    parts.iter().any(|l| l.bias.is_some()).then(|| parts.iter().map(bias).collect())
}

/// The bias of a pair, by column of the result: the second matrix's columns begin at a multiple of 4.
pub(in crate::plan) fn pair_bias(graph: &Graph, parts: &[Vec<Linear>; 2]) -> Option<Vec<VectorPart>> {
    let all = |parts: &[Linear]| -> Vec<VectorPart> {
        let bias = |l: &Linear| l.bias.map_or(VectorPart::Zeros(graph.weight(l.weight).rows()), VectorPart::Weight);
        parts.iter().map(bias).collect()
    };
    let end: usize = parts[0].iter().map(|l| graph.weight(l.weight).rows()).sum();
    let gap = VectorPart::Zeros(padded(end) - end);
    let some = parts.iter().flatten().any(|l| l.bias.is_some());
    some.then(|| [all(&parts[0]), vec![gap], all(&parts[1])].concat())
}

/// The biases of experts' gated units, those of the gates first.
pub(in crate::plan) fn glu_bias(gate: &Linear, up: &Linear) -> Option<Vec<VectorPart>> {
    Some(vec![VectorPart::Weight(gate.bias?), VectorPart::Weight(up.bias?)])
}

/// What a norm of queries or of keys is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::plan) enum NormSpan {
    /// Each head.
    Head,
    /// The whole row.
    Row,
}

/// What a norm is over in rows of `cols` columns; `None` where that is neither a head nor the row.
pub(in crate::plan) fn norm_span(graph: &Graph, norm: &Norm, head_dim: usize, cols: usize) -> Option<NormSpan> {
    match graph.weight(norm.weight).cols() {
        n if n == head_dim => Some(NormSpan::Head),
        n if n == cols => Some(NormSpan::Row),
        _ => None,
    }
}

/// A router's numbers of each expert: selection biases, and behind them the factors; `None` where it has neither.
pub(in crate::plan) fn router_numbers(r: &Router) -> Option<Vec<VectorPart>> {
    let bias = r.selection_bias.map(VectorPart::Weight);
    match r.expert_scale {
        Some(scale) => Some(vec![bias.unwrap_or(VectorPart::Zeros(r.experts)), VectorPart::Weight(scale)]),
        None => bias.map(|b| vec![b]),
    }
}

impl KernelOp {
    /// The weights that a node reads, in the order in which they are laid out.
    pub(in crate::plan) fn operands(&self, graph: &Graph) -> Vec<Operand> {
        let mut out = Operands { graph, list: vec![] };
        match self {
            KernelOp::Embed { table, .. } => out.matrix(&[*table]),
            KernelOp::Norm(n) => out.norm(n),
            KernelOp::RopeStore { norms, .. } => norms.iter().flatten().for_each(|n| out.norm(n)),
            KernelOp::Attend(a) => out.vectors(a.sinks),
            KernelOp::ShortConv(c) => out.vectors([c.weight].into_iter().chain(c.bias)),
            KernelOp::DeltaNet(d) => out.vectors([d.decay, d.dt_bias]),
            KernelOp::Linear { parts, norm, .. } => {
                norm.iter().for_each(|n| out.norm(n));
                out.stack(parts);
            }
            KernelOp::LinearPair { parts, norm } => {
                norm.iter().for_each(|n| out.norm(n));
                parts.iter().for_each(|p| out.stack(p));
                out.vector(pair_bias(graph, parts));
            }
            KernelOp::LinearGlu { gate, up, norm, .. } => {
                norm.iter().for_each(|n| out.norm(n));
                out.list.push(Operand::Aligned([*gate, *up]));
            }
            KernelOp::Router(r) | KernelOp::RouterCached { router: r, .. } => out.vector(router_numbers(r)),
            KernelOp::ExpertLinear { linear, .. } => {
                out.matrix(&[linear.weight]);
                out.vectors(linear.bias);
            }
            KernelOp::ExpertGlu { gate, up, shared, choose, .. } => {
                out.list.push(Operand::Aligned([gate.weight, up.weight]));
                out.vector(glu_bias(gate, up));
                shared.iter().for_each(|s| out.list.push(Operand::Aligned(*s)));
                out.vector(choose.as_ref().and_then(router_numbers));
            }
            KernelOp::ExpertDown { linear, shared, .. } => {
                out.matrix(&[linear.weight]);
                out.vectors(linear.bias);
                shared.iter().for_each(|s| out.matrix(&[s.down]));
            }
            KernelOp::Tokens
            | KernelOp::Input(_)
            | KernelOp::Elementwise(_)
            | KernelOp::ScaleExpertInputs
            | KernelOp::HeadIds { .. }
            | KernelOp::LocalIds { .. }
            | KernelOp::JoinHeads { .. }
            | KernelOp::Rope(_)
            | KernelOp::KvStore { .. }
            | KernelOp::ExpertPlaces { .. }
            | KernelOp::ExpertFill { .. }
            | KernelOp::ExpertSort { .. }
            | KernelOp::HostExperts { .. }
            | KernelOp::ExpertCombine { .. } => {}
        }
        out.list
    }
}

/// Collects the operands of a node.
struct Operands<'a> {
    graph: &'a Graph,
    list: Vec<Operand>,
}

impl Operands<'_> {
    fn matrix(&mut self, parts: &[WeightId]) {
        self.list.push(Operand::Matrix(parts.to_vec()));
    }

    fn vector(&mut self, parts: Option<Vec<VectorPart>>) {
        self.list.extend(parts.map(Operand::Vector));
    }

    fn vectors(&mut self, weights: impl IntoIterator<Item = WeightId>) {
        weights.into_iter().for_each(|w| self.vector(Some(vec![VectorPart::Weight(w)])));
    }

    fn norm(&mut self, n: &Norm) {
        self.vectors(n.weights());
    }

    fn stack(&mut self, parts: &[Linear]) {
        self.matrix(&stacked(parts));
        self.vector(stacked_bias(self.graph, parts));
    }
}
