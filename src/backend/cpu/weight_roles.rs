//! What the ops of a graph do with each weight: it decides in which form a weight is kept.

use crate::ir::{Graph, Op, WeightId};

/// The uses of one weight; a tied embedding has two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Role {
    /// Multiplied with activations: worth a packed copy.
    pub matrix: bool,
    /// Read as plain f32 values: norms, biases, convolution taps, factors. Kept dequantised.
    pub vector: bool,
    /// A matrix whose products choose experts.
    pub router: bool,
}

/// The roles of all weights of `graph`, by weight id.
pub fn roles(graph: &Graph) -> Vec<Role> {
    let mut roles = vec![Role::default(); graph.weights.len()];
    for node in &graph.nodes {
        let matrices = matrices(&node.op);
        for w in node.op.weights() {
            let role = &mut roles[w.0 as usize];
            if matrices.contains(&w) {
                role.matrix = true;
            } else if !matches!(node.op, Op::Embed { .. }) {
                role.vector = true;
            }
        }
        if let Op::NormRouter { linear, .. } = &node.op {
            roles[linear.weight.0 as usize].router = true;
        }
        if let Op::Router(_) = &node.op {
            let logits_from = graph.nodes.iter().find(|n| n.outputs.contains(&node.inputs[0]));
            if let Some(Op::Linear(l)) = logits_from.map(|n| &n.op) {
                roles[l.weight.0 as usize].router = true;
            }
        }
    }
    roles
}

/// The weights of an op that it multiplies activations with. The others are vectors, or the table of an embedding.
fn matrices(op: &Op) -> Vec<WeightId> {
    match op {
        Op::Linear(l)
        | Op::LinearAdd { linear: l, .. }
        | Op::LinearAct { linear: l, .. }
        | Op::NormRouter { linear: l, .. }
        | Op::ExpertLinear(l)
        | Op::ExpertAct { linear: l, .. }
        | Op::ExpertDownAdd { linear: l, .. } => vec![l.weight],
        Op::NormLinears { parts, .. } => parts.iter().map(|l| l.weight).collect(),
        Op::LinearGlu { gate, up, .. } => vec![*gate, *up],
        Op::ExpertGlu { gate, up, .. } => vec![gate.weight, up.weight],
        Op::Tokens
        | Op::Input { .. }
        | Op::Embed { .. }
        | Op::RmsNorm(_)
        | Op::Rope(_)
        | Op::HeadIds { .. }
        | Op::JoinHeads { .. }
        | Op::KvStore { .. }
        | Op::Attend(_)
        | Op::ShortConv(_)
        | Op::DeltaNet(_)
        | Op::Add
        | Op::Scale(_)
        | Op::Glu(_)
        | Op::Act(_)
        | Op::SigmoidGate
        | Op::Router(_)
        | Op::ScaleExpertInputs
        | Op::ExpertCombine
        | Op::TakeOutputs
        | Op::HostExperts { .. }
        | Op::LocalIds { .. }
        | Op::Math(_)
        | Op::Grad(_)
        | Op::RopeStore { .. } => vec![],
    }
}
