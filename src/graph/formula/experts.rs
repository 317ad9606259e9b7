//! Expert networks.

use super::{Builder, Choice};
use crate::{
    error::Result,
    ir::{Activation, Linear, Math, Op, Router, Score, ValueId},
};

/// The network that each expert is; matrices `[E, out, in]`, biases `[E, out]`.
#[derive(Clone, Copy, Debug)]
pub enum ExpertNet {
    /// `W x + b`.
    Linear(Linear),
    /// `down(act(up x))`.
    Mlp {
        /// `[E, I, H]`.
        up: Linear,
        /// Between the two.
        act: Activation,
        /// `[E, H, I]`.
        down: Linear,
    },
    /// `down(act(gate x) · up x)`.
    Gated {
        /// `[E, I, H]`.
        gate: Linear,
        /// `[E, I, H]`.
        up: Linear,
        /// On the gate.
        act: Activation,
        /// `[E, H, I]`.
        down: Linear,
    },
}

/// The results of the experts `ids` `[T, k]` on x `[T, H]`: a slot each, `[T, k·H]`.
fn slots(b: &mut Builder, net: ExpertNet, x: ValueId, ids: ValueId) -> Result<ValueId> {
    match net {
        ExpertNet::Linear(l) => b.one(Op::ExpertLinear(l), &[x, ids]),
        ExpertNet::Mlp { up, act, down } => {
            let h = b.one(Op::ExpertLinear(up), &[x, ids])?;
            let h = b.one(Op::Act(act), &[h])?;
            b.one(Op::ExpertLinear(down), &[h, ids])
        }
        ExpertNet::Gated { gate, up, act, down } => {
            let (g, u) = (b.one(Op::ExpertLinear(gate), &[x, ids])?, b.one(Op::ExpertLinear(up), &[x, ids])?);
            let h = b.one(Op::Glu(act), &[g, u])?;
            b.one(Op::ExpertLinear(down), &[h, ids])
        }
    }
}

/// `y[t] = Σ_j weights[t, j] · E_{ids[t, j]}(x[t])`, `[T, H]`: only the chosen experts run.
///
/// # Errors
/// [`crate::Error::Graph`] for operands that do not fit.
pub fn routed_experts(b: &mut Builder, net: ExpertNet, x: ValueId, choice: Choice) -> Result<ValueId> {
    let y = slots(b, net, x, choice.ids)?;
    b.one(Op::ExpertCombine, &[y, choice.weights])
}

/// The results of all experts on every row, `[T, E·H]`, in the order of the experts.
///
/// # Errors
/// [`crate::Error::Graph`] for operands that do not fit.
pub fn dense_experts(b: &mut Builder, net: ExpertNet, x: ValueId, experts: usize) -> Result<ValueId> {
    let ids = b.one(Op::HeadIds { heads: experts }, &[])?;
    slots(b, net, x, ids)
}

/// Sizes of experts in groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    /// Groups, G.
    pub groups: usize,
    /// Experts of a group, M.
    pub per_group: usize,
    /// Groups that a row uses.
    pub groups_used: usize,
    /// Experts that it uses in each.
    pub experts_used: usize,
}

/// Two levels of routing: a router over groups (logits `[T, G]`) and one in each group (logits `[T, G·M]`, group after group), each a
/// softmax over its chosen logits; the weights multiply (Shazeer et al. 2017, appendix B). Gives the sparse gates `[T, G·M]` and the
/// choice among all experts.
///
/// # Errors
/// [`crate::Error::Graph`] for sizes that do not fit.
pub fn hierarchical(b: &mut Builder, primary: ValueId, secondary: ValueId, h: Hierarchy) -> Result<(ValueId, Choice)> {
    let outer = super::top_k(b, primary, Router::new(h.groups, h.groups_used, Score::SoftmaxOfSelected))?;
    let outer = super::gates_of(b, outer, h.groups)?; // [T, G]
    let ids = b.math(Math::TopK { used: h.experts_used, groups: h.groups }, &[secondary])?; // [T, G·k]
    let logits = b.math(Math::GatherSlots, &[secondary, ids])?;
    let inner = b.math(Math::Softmax { groups: h.groups }, &[logits])?;
    let inner = b.math(Math::ScatterSlots { experts: h.groups * h.per_group }, &[inner, ids])?; // [T, G·M]
    let gates = b.math(Math::ScaleSlots { shared: false }, &[inner, outer])?;
    // Exactly the gates of chosen experts in chosen groups are above 0.
    let ids = b.math(Math::TopK { used: h.groups_used * h.experts_used, groups: 1 }, &[gates])?;
    let weights = b.math(Math::GatherSlots, &[gates, ids])?;
    Ok((gates, Choice { ids, weights }))
}
